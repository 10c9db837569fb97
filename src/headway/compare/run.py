"""The main job: train one small model per position method and seed, and test it far beyond the training length.

All models of a seed see the same data in the same order and start from the same weights, except those of the position
method itself. Each (method, seed) is a cell with a folder of its own: an interrupted comparison is
resumed, and one extended by lengths, methods or seeds computes only what is new.

    OUT/results.json       all results, from which the report is made
    OUT/report.html        the report
    OUT/cells/…/           checkpoints and results of one cell, and for the first seed views of the trained model
    OUT/claims/…/          who computed it
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headway._version import __version__
from headway.compare.cells import Cell
from headway.compare.claims import Claim, Claims, current_folder
from headway.compare.compute import compute, key, missing, way
from headway.compare.models import New, models_of
from headway.compare.settings import Comparison, none_left
from headway.compare.tasks import Task, make_task
from headway.console import sentence
from headway.shapes import HeadwayError
from headway.training.content import Tell
from headway.training.files import FolderLock, clean_leftovers, make_folder, write_json_atomic
from headway.training.loop import Progress
from headway.training.optimizer import peak_rate
from headway.training.ours import mark

FORMAT = 1
_POLL = 0.5  # seconds between two looks of a worker that has nothing to do
_KILLED = 3  # deaths of a cell's workers after which it is given up


@dataclass(frozen=True)
class Event:
    """The progress of a comparison.

    Args:
        cell: index of the cell, from 0.
        cells: total number of cells.
        method: the cell's method.
        seed: the cell's seed.
        what: "train", "test" or "done".
        progress: progress of the training; None otherwise.
        length: the length being tested; None otherwise.
    """

    cell: int
    cells: int
    method: str
    seed: int
    what: str
    progress: Progress | None = None
    length: int | None = None


@dataclass
class Job:
    """A comparison in its folder, as seen by one of the processes that compute it.

    Args:
        comparison: what is compared.
        task: its task.
        models: what it trains.
        cells: its cells, in order.
        claims: who computes which of them.
        notes: what was noticed.
        since: the last claim of each cell before this comparison was started; what failed then is tried again.
    """

    comparison: Comparison
    task: Task
    models: New
    cells: list[Cell]
    claims: Claims
    notes: list[str]
    since: dict[str, int]

    @classmethod
    def of(
        cls,
        comparison: Comparison,
        claims: Claims,
        since: dict[str, int] | None = None,
        on_reading: Tell | None = None,
    ) -> Job:
        """Read the text, and make the folder.

        Raises:
            HeadwayError: when no method can be trained, or the text is missing or too short.
        """
        comparison, models = models_of(comparison)
        task = make_task(
            comparison.task,
            comparison.text,
            train_length=comparison.train_length,
            longest=max(comparison.test_lengths),
            vocabulary=models.vocabulary,
            vocabulary_size=comparison.vocabulary_size,
            most=comparison.max_text,
            column=comparison.column,
            tell=on_reading,
        )
        make_folder(claims.out / "cells")
        data = task.describe()
        cells = [
            _cell_of(claims.out, comparison, models, data, spec, seed)
            for seed in comparison.seeds
            for spec in comparison.specs()
        ]
        notes = [*models.notes, *getattr(task, "notes", ())]
        return cls(comparison, task, models, cells, claims, notes, claims.latest() if since is None else since)

    def is_finished(self, cell: Cell) -> bool:
        """Whether a cell is finished, as its folder says now; nothing is changed."""
        cell.folder = current_folder(cell.folder.parent, cell.name)
        return cell.read(self.notes) and missing(self.comparison, cell) is None

    def failure(self, cell: Cell) -> str | None:
        """Why a cell could not be finished since the start; None if nothing has failed."""
        ends = self.claims.ends(cell.name, self.since.get(cell.name, 0))
        last = ends[-1] if ends else None  # what a lost worker met with does not count
        return (last["error"] or "") if last is not None and last["outcome"] == "failed" else None


def compare(
    comparison: Comparison,
    out: str | Path,
    *,
    command: str | None = None,
    on_event: Callable[[Event], None] | None = None,
    on_reading: Tell | None = None,
) -> dict[str, Any]:
    """Train and test every unfinished cell, and return the results, which are also written to ``out/results.json``.

    After ctrl-C the results so far are returned with ``complete`` False, and the same call resumes. For several
    processes see :func:`headway.compare.workers.compare_with_workers`.

    Args:
        comparison: what to compare.
        out: the folder, created if needed.
        command: the command line that repeats this, for the report.
        on_event: called with the progress.
        on_reading: called with the progress of preparing a large text.

    Raises:
        HeadwayError: when the text is missing or too short, or the folder is in use or not writable.
    """
    out = Path(out)
    job = Job.of(comparison, Claims(out, threads=torch.get_num_threads()), on_reading=on_reading)
    with FolderLock(out):
        clean_leftovers(out)
        mark(out, "comparison")
        try:
            complete = work(job, on_event=on_event)
        except KeyboardInterrupt:
            complete = False
        results = gather(job, complete, command)
        write_json_atomic(out / "results.json", results)
    return results


def work(
    job: Job,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_event: Callable[[Event], None] | None = None,
    alone: bool = True,
) -> bool:
    """Compute cells until all are finished, by this process or others; False if interrupted.

    Args:
        job: the comparison.
        stop: whether to stop, asked between steps and tests.
        on_event: called with the progress of this process.
        alone: whether an exception in a cell ends it all; otherwise it is noted, and the other cells go on.
    """
    left = dict(enumerate(job.cells))
    while True:
        idle = True
        for number, cell in list(left.items()):
            if stop():
                return False

            def tell(what: str, progress: Progress | None = None, length: int | None = None) -> None:
                if on_event is not None:
                    on_event(Event(number, len(job.cells), cell.spec, cell.seed, what, progress, length))  # noqa: B023

            finished = job.is_finished(cell)
            if not finished and job.failure(cell) is None:
                claim = job.claims.take(cell.name)
                if claim is None:
                    continue
                idle = False
                if not _work_at(job, cell, claim, tell, stop, alone):
                    return False
                finished = job.is_finished(cell)
            if finished:
                del left[number]
                tell("done")
            elif job.failure(cell) is not None:
                del left[number]
        if not left:
            return True
        if idle:
            time.sleep(_POLL)


def _work_at(
    job: Job, cell: Cell, claim: Claim, tell: Callable[..., None], stop: Callable[[], bool], alone: bool
) -> bool:
    """Compute a claimed cell; False if interrupted, unless by another worker that has taken it up."""

    def telling(what: str, progress: Progress | None = None, length: int | None = None) -> None:
        claim.doing = doing(what, progress, length)
        tell(what, progress, length)

    with claim:
        killed = job.claims.ends(cell.name, job.since.get(cell.name, 0))[:-1].count(None)  # the last is this one's
        if killed >= _KILLED:
            claim.fail(f"its worker was killed {killed} times, maybe for want of memory: take fewer workers")
            return True
        cell.claim, cell.folder = claim, claim.folder
        cell.open(claim.notes)
        try:
            if not compute(
                job.comparison, job.task, job.models, cell, telling, claim.notes, lambda: stop() or claim.lost
            ):
                return claim.lost
            claim.outcome = "interrupted" if claim.lost else "done"
        except Exception as error:
            if alone:
                claim.fail(sentence(error))
                raise
            if not claim.check():  # a lost worker's folder may be gone
                claim.fail(sentence(error))
        finally:
            job.notes += claim.notes
    return True


def doing(what: str, progress: Progress | None, length: int | None) -> dict[str, Any]:
    """The progress of a cell as plain values, see :attr:`headway.compare.claims.Claim.doing`."""
    return {"what": what, "length": length, "progress": None if progress is None else asdict(progress)}


def _cell_of(out: Path, comparison: Comparison, models: New, data: dict[str, Any], spec: str, seed: int) -> Cell:
    """A cell. Its folder's name depends on everything that decides its training, so nothing stale is reused."""
    identity = {
        "format": FORMAT,
        "spec": spec,
        "task": comparison.task,
        "data": data,
        "train": comparison.train_settings(seed).plain(),
        "model": models.identity,
        "torch": torch.__version__,
        "headway": __version__,
    }
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=5).hexdigest()
    return Cell(out / "cells" / f"{spec.partition('(')[0]}-seed{seed}-{digest}", spec, seed, identity)


def gather(job: Job, complete: bool, command: str | None) -> dict[str, Any]:
    """The results so far.

    Raises:
        HeadwayError: when every cell failed.
    """
    cells = job.cells
    for cell in cells:
        job.is_finished(cell)  # reads it
    if all(cell.known.get("status") == "failed" for cell in cells):
        # an empty report must not replace an earlier one
        raise HeadwayError(none_left([f"{cell.spec}: {cell.known['message']}" for cell in cells]))
    return _results(job, complete, command, [*job.notes, *_thread_notes(cells)])


def _thread_notes(cells: list[Cell]) -> list[str]:
    """A note if models were trained with different numbers of threads."""
    used = sorted({cell.known["threads"] for cell in cells if cell.known.get("threads")})
    if len(used) < 2:
        return []
    return [f"models were trained with {' and '.join(map(str, used))} threads: their last bits may differ for that"]


def _results(job: Job, complete: bool, command: str | None, notes: list[str]) -> dict[str, Any]:
    comparison, cells = job.comparison, job.cells
    train = comparison.train_settings(comparison.seeds[0])
    own = {**job.models.said, **job.task.describe(), "lr": peak_rate(train)}
    settings = {**asdict(comparison), **train.plain(), **own}
    elsewhere = (
        "max_text",
        "column",
        "positions",
        "seed",
        "task",
        "validate_every",
        "checkpoint_every",
        "keep",
        "length",
    )
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in settings.items()
        if name not in elsewhere and value is not None
    }
    return {
        "format": FORMAT,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "task": comparison.task,
        "settings": settings,
        "environment": _environment(),
        "complete": complete,
        "notes": list(dict.fromkeys(notes)),
        "methods": [
            method
            for spec in comparison.specs()
            for own in (job.models.method(spec),)
            for method in (own, *(_extended(own, how) for how in comparison.ways(spec)))
        ],
        "cells": [
            row
            for cell in cells
            if "status" in cell.known
            for row in (_cell(comparison, cell), *_extended_cells(comparison, cell))
        ],
        "views": {cell.spec: cell.kept() for cell in cells if "status" in cell.known and cell.views.exists()},
    }


def _extended_cells(comparison: Comparison, cell: Cell) -> list[dict[str, Any]]:
    """The rows of an extended model: those of the model, with their own tests."""
    if cell.known["status"] != "ok":
        return []
    empty: dict[str, Any] = {"train": {"steps": [], "loss": []}, "validation": {"steps": [], "loss": []}}
    return [
        {
            **_cell(
                comparison, replace(cell, known={**cell.known, **empty, "tests": cell.extended(way(comparison, how))})
            ),
            "method": f"{cell.spec} + {how}",
        }
        for how in comparison.ways(cell.spec)
    ]


def _extended(method: dict[str, str], how: str) -> dict[str, str]:
    said = {"drope": "position dropped after training"}.get(how, f"extended after training, {how}")
    return {**method, "spec": f"{method['spec']} + {how}", "title": f"{method['title']}, {said}"}


def _cell(comparison: Comparison, cell: Cell) -> dict[str, Any]:
    known = cell.known
    keys = [key(comparison, length) for length in comparison.test_lengths]
    tests = [known["tests"][key] for key in keys if key in known["tests"]]
    names = ("status", "message", "parameters", "position_parameters", "peak_memory_bytes", "seconds")
    return {
        "method": cell.spec,
        "seed": cell.seed,
        **{name: known.get(name) for name in names},
        "tokens_per_second": known.get("tokens_per_second"),
        "train": known.get("train", {"steps": [], "loss": []}),
        "validation": known.get("validation", {"steps": [], "loss": []}),
        "tests": [{name: value for name, value in test.items() if name != "by_distance"} for test in tests],
        "by_distance": [row for test in tests for row in test.get("by_distance", [])],
    }


def _environment() -> dict[str, Any]:
    return {
        "headway": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
