"""The main job: train one small model per position method and seed, and test it far beyond the training length.

All models of a seed see the same data in the same order and start from the same weights, except those of the position
method itself. Each (method, seed) is a cell with a folder of its own: an interrupted comparison is
resumed, and one extended by lengths, methods or seeds computes only what is new.

    OUT/results.json       all results, from which the report is made
    OUT/report.html        the report
    OUT/cells/…/           checkpoints and results of one cell, and for the first seed views of the trained model
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from headway._version import __version__
from headway.compare.cells import Cell
from headway.compare.extending import recalibrated
from headway.compare.saved_views import LOOKS, kept_views
from headway.compare.settings import Comparison, none_left
from headway.compare.tasks import Task, make_task
from headway.memory import peak_memory
from headway.positions import Position, parse
from headway.shapes import HeadwayError
from headway.training.batches import IGNORED
from headway.training.content import Tell
from headway.training.files import FolderLock, clean_leftovers, make_folder, write_json_atomic
from headway.training.history import History
from headway.training.loop import Progress, Trainer, evaluating
from headway.training.optimizer import peak_rate
from headway.training.ours import mark
from headway.training.watching import FOLDER, FolderWatcher
from headway.transformer import Transformer

FORMAT = 1


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


def compare(
    comparison: Comparison,
    out: str | Path,
    *,
    command: str | None = None,
    on_event: Callable[[Event], None] | None = None,
    on_reading: Tell | None = None,
) -> dict[str, Any]:
    """Train and test every unfinished cell, and return the results, which are also written to ``out/results.json``.

    After ctrl-C the results so far are returned with ``complete`` False, and the same call resumes.

    Args:
        comparison: what to compare.
        out: the folder, created if needed.
        command: the command line that repeats this, for the report.
        on_event: called with the progress.
        on_reading: called with the progress of preparing a large text.

    Raises:
        HeadwayError: when the text is missing or too short, or the folder is in use or not writable.
    """
    # the other tasks have smaller vocabularies than bytes
    comparison.check_sizes(comparison.vocabulary_size if comparison.vocabulary == "bpe" else 256)
    task = make_task(
        comparison.task,
        comparison.text,
        train_length=comparison.train_length,
        longest=max(comparison.test_lengths),
        vocabulary=comparison.vocabulary,
        vocabulary_size=comparison.vocabulary_size,
        most=comparison.max_text,
        column=comparison.column,
        tell=on_reading,
    )
    out = Path(out)
    make_folder(out / "cells")
    with FolderLock(out):
        clean_leftovers(out)
        mark(out, "comparison")
        data, notes = task.describe(), list(getattr(task, "notes", ()))
        cells = [
            _open(out, comparison, data, spec, seed, notes) for seed in comparison.seeds for spec in comparison.specs()
        ]
        complete = True
        try:
            for number, cell in enumerate(cells):

                def tell(what: str, progress: Progress | None = None, length: int | None = None) -> None:
                    if on_event is not None:
                        on_event(Event(number, len(cells), cell.spec, cell.seed, what, progress, length))  # noqa: B023

                if not _run(comparison, task, cell, tell, notes):
                    complete = False
                    break
                tell("done")
        except KeyboardInterrupt:
            complete = False
        if all(cell.known.get("status") == "failed" for cell in cells):
            # an empty report must not replace an earlier one
            raise HeadwayError(none_left([f"{cell.spec}: {cell.known['message']}" for cell in cells]))
        results = _results(comparison, data, cells, complete, command, notes)
        write_json_atomic(out / "results.json", results)
    return results


def _open(out: Path, comparison: Comparison, data: dict[str, Any], spec: str, seed: int, notes: list[str]) -> Cell:
    """Open a cell. Its folder's name depends on everything that decides its training, so nothing stale is reused."""
    identity = {
        "format": FORMAT,
        "spec": spec,
        "task": comparison.task,
        "data": data,
        "train": comparison.train_settings(seed).plain(),
        "model": [comparison.dim, comparison.layers, comparison.heads],
        "torch": torch.__version__,
        "headway": __version__,
    }
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=5).hexdigest()
    folder = out / "cells" / f"{spec.partition('(')[0]}-seed{seed}-{digest}"
    make_folder(folder)
    cell = Cell(folder, spec, seed)
    cell.open(identity, notes)
    return cell


def _run(comparison: Comparison, task: Task, cell: Cell, tell: Callable[..., None], notes: list[str]) -> bool:
    """Train and test one cell, as far as that is not done; False if it was interrupted."""
    tests = cell.known.setdefault("tests", {})
    missing = [length for length in comparison.test_lengths if _key(comparison, length) not in tests]
    ways = [
        how
        for how in comparison.ways(cell.spec)
        if any(_key(comparison, n) not in cell.extended(_way(comparison, how)) for n in comparison.test_lengths)
    ]
    status, shown = cell.known.get("status"), cell.seed == comparison.seeds[0]
    if status in ("diverged", "failed"):
        return True
    if status == "ok" and not missing and not ways and (cell.views.exists() or not shown):
        return True
    try:
        comparison.check_size(cell.spec, task.vocab)
        model = Transformer(task.vocab, comparison.dim, comparison.layers, comparison.heads, position=cell.spec)
    except HeadwayError as error:
        cell.save(status="failed", message=str(error))
        return True
    torch.manual_seed(cell.seed)
    model.reset_parameters()  # from the seed alone: all methods start from the same weights, except those of position
    settings = comparison.train_settings(cell.seed)
    batches = task.batches(settings.length, settings.batch, settings.seed)
    if "peak_memory_bytes" not in cell.known:
        cell.save(
            parameters=sum(p.numel() for p in model.parameters()),
            position_parameters=_position_parameters(model),
            peak_memory_bytes=_step_memory(model, batches(0)),
        )
    watcher = None
    if shown and not cell.views.exists():
        window = batches(0)[0][:1]
        watcher = FolderWatcher(cell.folder / FOLDER, math.ceil(settings.steps / LOOKS), window)
    trainer = Trainer(
        model,
        batches,
        settings,
        validation=task.validation(settings.length, settings.batch),
        folder=cell.folder,
        on_progress=lambda progress: tell("train", progress),
        observers=[] if watcher is None else [watcher],
    )
    history = trainer.run()
    notes += trainer.notes
    if history.status == "interrupted":
        return False
    cell.save(status="ok" if history.status == "done" else "diverged", message=history.reason, **_curves(history))
    if history.status == "done":
        if watcher is not None:
            _keep(cell, kept_views(model, task, settings.length, watcher.watched if watcher.watched.steps else None))
        for length in missing:
            tell("test", length=length)
            tests[_key(comparison, length)] = _test(task, model, length)
            cell.save()
        for how in ways:
            if not _extend(comparison, task, cell, model, how, tell):
                return False
    return True


def _keep(cell: Cell, views: list[dict[str, Any]]) -> None:
    """Write the views of a cell; the matrices they were made from are no longer needed."""
    cell.keep(views)
    shutil.rmtree(cell.folder / FOLDER, ignore_errors=True)


def _extend(
    comparison: Comparison, task: Task, cell: Cell, model: Transformer, how: str, tell: Callable[..., None]
) -> bool:
    """Test a trained model after an extension; False if it was interrupted."""
    way, failure = _way(comparison, how), None
    if how == "drope":
        settings = comparison.train_settings(cell.seed)
        longer, history = recalibrated(model, task, settings, comparison.recalibration, cell.folder / way)
        if history.status == "interrupted":
            return False
        if history.status == "diverged":
            failure = {"status": "diverged", "message": history.reason}
    else:
        longer = model.extended(max(comparison.test_lengths), how, comparison.train_length)
    for length in comparison.test_lengths:
        tell("test", length=length)
        found = _test(task, longer, length) if failure is None else {"length": length, **failure}
        cell.extended(way)[_key(comparison, length)] = found
        cell.save()
    return True


def _way(comparison: Comparison, how: str) -> str:
    """The key under which a cell stores the tests of an extension."""
    return f"drope-{comparison.recalibration}" if how == "drope" else how


def _key(comparison: Comparison, length: int) -> str:
    """The key under which a cell stores its test at a length; the tested windows depend on the longest length."""
    return f"{length} of {max(comparison.test_lengths)}"


def _test(task: Task, model: Transformer, length: int) -> dict[str, Any]:
    try:
        with evaluating(model):
            found = task.test(model, length)
    except HeadwayError as error:
        return {"length": length, "status": "cannot", "message": str(error)}
    if not math.isfinite(found["loss"]):
        return {"length": length, "status": "diverged", "message": "the loss is not finite"}
    return {"length": length, "status": "ok", "message": None, **found}


def _position_parameters(model: Transformer) -> int:
    found = {
        id(p): p.numel() for module in model.modules() if isinstance(module, Position) for p in module.parameters()
    }
    return sum(found.values())


def _step_memory(model: Transformer, example: tuple[torch.Tensor, torch.Tensor]) -> int:
    """Peak memory of one forward and backward pass, gradients included, weights not."""

    def step() -> None:
        inputs, targets = example
        cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED).backward()

    peak = peak_memory(step)
    model.zero_grad(set_to_none=True)
    return peak


def _curves(history: History) -> dict[str, Any]:
    return {
        "train": {"steps": history.steps, "loss": history.loss},
        "validation": {"steps": history.validation_steps, "loss": history.validation_loss},
        "seconds": history.seconds,
        "tokens_per_second": history.tokens_per_second,
    }


def _results(
    comparison: Comparison,
    data: dict[str, Any],
    cells: list[Cell],
    complete: bool,
    command: str | None,
    notes: list[str],
) -> dict[str, Any]:
    train = comparison.train_settings(comparison.seeds[0])
    settings = {**asdict(comparison), **train.plain(), **data, "lr": peak_rate(train)}
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
            for method in (_method(spec), *(_method(spec, how) for how in comparison.ways(spec)))
        ],
        "cells": [
            row
            for cell in cells
            if "status" in cell.known
            for row in (_cell(comparison, cell), *_extended_cells(comparison, cell))
        ],
        "views": {cell.spec: cell.kept() for cell in cells if cell.views.exists()},
    }


def _extended_cells(comparison: Comparison, cell: Cell) -> list[dict[str, Any]]:
    """The rows of an extended model: those of the model, with their own tests."""
    if cell.known["status"] != "ok":
        return []
    empty: dict[str, Any] = {"train": {"steps": [], "loss": []}, "validation": {"steps": [], "loss": []}}
    return [
        {
            **_cell(
                comparison, replace(cell, known={**cell.known, **empty, "tests": cell.extended(_way(comparison, how))})
            ),
            "method": f"{cell.spec} + {how}",
        }
        for how in comparison.ways(cell.spec)
    ]


def _method(spec: str, how: str | None = None) -> dict[str, str]:
    position = parse(spec)
    if how is not None:
        own = _method(spec)
        said = {"drope": "position dropped after training"}.get(how, f"extended after training, {how}")
        return {**own, "spec": f"{spec} + {how}", "title": f"{own['title']}, {said}"}
    return {
        "spec": spec,
        "name": position.method_name(),
        "title": position.title or type(position).__name__,
        "summary": position.summary,
        "summary_zh": position.summary_zh,
        "paper": position.paper,
    }


def _cell(comparison: Comparison, cell: Cell) -> dict[str, Any]:
    known = cell.known
    keys = [_key(comparison, length) for length in comparison.test_lengths]
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
