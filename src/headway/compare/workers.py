"""A comparison computed by several workers: processes of this machine, and of others that share its folder.

Each worker takes cells that nobody has, see :mod:`headway.compare.claims`, until all are finished. The process that
starts them shows the progress of all, of other machines too, starts another worker for one that was killed, and writes
the report. Several such processes may work in one folder, and under torchrun each rank is one, with one worker: what
they agree on lies in the folder, so that those that are left finish the comparison when others are cut off.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headway.compare.claims import LEASE, Claims, superseded
from headway.compare.page import write_report
from headway.compare.run import Event, Job, gather
from headway.compare.settings import Comparison
from headway.shapes import HeadwayError
from headway.training.content import Tell
from headway.training.files import FolderLock, clean_leftovers, make_folder, read_json, write_json_atomic
from headway.training.loop import Handlers, Progress
from headway.training.ours import mark

_LOOK = 0.25  # seconds between two looks at the workers
_REPORT = "report"  # the claim of whoever writes the report
_OWN = ("created", "command", "environment", "notes")  # of the results, what tells one writer from another


@dataclass(frozen=True)
class Seen:
    """The progress of all workers, on all machines.

    Args:
        cells: number of cells.
        finished: method and seed of the finished cells, in the order in which they were seen finished.
        working: what each live worker does.
    """

    cells: int
    finished: list[tuple[str, int]]
    working: list[Event]


@dataclass(frozen=True)
class Outcome:
    """How a comparison of several workers ended.

    Args:
        results: as :func:`headway.compare.run.compare` returns them.
        failures: a sentence for each cell that could not be finished.
        written: whether this process wrote the report; otherwise it was there already, from another one.
    """

    results: dict[str, Any]
    failures: list[str]
    written: bool


def rank() -> int | None:
    """The rank of this process under torchrun, None without it."""
    value = os.environ.get("RANK", "") if "TORCHELASTIC_RUN_ID" in os.environ else ""
    return int(value) if value.isdigit() else None


def threads_of(workers: int) -> int:
    """Threads per worker by default: the cores divided by the workers; under torchrun one, or what it was told.

    >>> threads_of(10_000)
    1
    """
    if rank() is not None:
        told = os.environ.get("OMP_NUM_THREADS", "")
        return max(1, int(told)) if told.isdigit() else 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


def compare_with_workers(
    comparison: Comparison,
    out: str | Path,
    workers: int,
    *,
    lease: float = LEASE,
    command: str | None = None,
    on_progress: Callable[[Seen], None] | None = None,
    on_reading: Tell | None = None,
) -> Outcome:
    """Train and test all cells by several processes, and write ``out/results.json`` and ``out/report.html``.

    The same call on another machine with the same folder joins in. Every cell is trained by one worker at a time, with
    ``comparison.threads`` threads, and so gets the same bits as from :func:`headway.compare.run.compare` with as many
    threads on the same kind of processor.

    Args:
        comparison: what to compare.
        out: the folder, created if needed; of several machines a shared one.
        workers: processes to start here.
        lease: seconds without a sign of life after which a worker, e.g. of a machine that was cut off, is taken for
            lost. A worker of this machine that was killed is noticed at once.
        command: the command line that repeats this, for the report.
        on_progress: called with the progress a few times per second.
        on_reading: called with the progress of reading a large text.

    Raises:
        HeadwayError: when the text is missing or too short, the folder is in use by a comparison without workers or
            not writable, every cell failed, or no worker can be kept alive.
    """
    comparison = replace(comparison, threads=comparison.threads or threads_of(workers))
    assert comparison.threads is not None
    torch.set_num_threads(comparison.threads)
    out = Path(out).absolute()
    make_folder(out)
    with FolderLock(out, shared=True):
        mark(out, "comparison")
        job = Job.of(comparison, Claims(out, lease, comparison.threads), on_reading=on_reading)
        _refuse_other_threads(job)
        watch = _Watch(job)
        crew = _Crew(job, workers)
        with contextlib.closing(crew), _Interrupts() as interrupts:
            while watch.left or interrupts.count:
                if interrupts.count:
                    crew.stop(kill=interrupts.count > 1)
                    if not crew.alive():
                        break
                else:
                    crew.tend()
                watch.look()
                if on_progress is not None:
                    on_progress(Seen(len(job.cells), watch.finished, watch.working))
                time.sleep(_LOOK)
            # those without cells left end by themselves
            while crew.alive() and not interrupts.count:
                time.sleep(_LOOK / 5)
        return _report(job, not watch.left and not watch.failures, command, watch.failures)


class _Watch:
    """What the folder says about the cells."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.left = dict(enumerate(job.cells))
        self.finished: list[tuple[str, int]] = []
        self.failures: list[str] = []
        self.working: list[Event] = []
        self.look()

    def look(self) -> None:
        """Look at all cells that are not finished."""
        job, self.working = self._job, []
        for number, cell in list(self.left.items()):
            held = job.claims.held(cell.name)
            if held is not None:
                self.working.append(_event(number, len(job.cells), cell.spec, cell.seed, held))
            elif job.is_finished(cell):
                del self.left[number]
                self.finished.append((cell.spec, cell.seed))
            elif (error := job.failure(cell)) is not None:
                del self.left[number]
                self.failures.append(f"{cell.spec}, seed {cell.seed}: {error}")


def _event(number: int, cells: int, spec: str, seed: int, held: dict[str, Any]) -> Event:
    with contextlib.suppress(TypeError, KeyError):
        progress = held["progress"]
        return Event(
            number, cells, spec, seed, held["what"], None if progress is None else Progress(**progress), held["length"]
        )
    return Event(number, cells, spec, seed, "train")  # it has just begun


class _Crew:
    """The workers that this process has started."""

    def __init__(self, job: Job, workers: int) -> None:
        self._told = {
            "comparison": job.comparison.plain(),
            "out": str(job.claims.out),
            "lease": job.claims.lease,
            "since": job.since,
        }
        # every death with a cell counts against the cell; others must end some time, too
        self._replacements = 3 * (workers + len(job.cells))
        self._stopped = False
        self._processes = [self._start() for _ in range(workers)]

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._told["comparison"]["threads"])}  # type: ignore[index]
        # a session of its own: ctrl-C in the terminal must reach it once, from here
        process = subprocess.Popen(
            [sys.executable, "-m", "headway.compare.worker"],
            stdin=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died already
            process.stdin.write(json.dumps(self._told).encode() + b"\n")
            process.stdin.flush()
        return process

    def alive(self) -> bool:
        """Whether any of them is."""
        return any(process.poll() is None for process in self._processes)

    def tend(self) -> None:
        """Start another worker for each that was killed.

        Raises:
            HeadwayError: when none is left.
        """
        for number, process in enumerate(self._processes):
            status = process.poll()
            if status not in (None, 0, 1) and self._replacements > 0:
                self._replacements -= 1
                _close(process)
                self._processes[number] = self._start()
        if not any(process.poll() in (None, 0) for process in self._processes):
            ends = ", ".join(str(process.poll()) for process in self._processes)
            raise HeadwayError(
                f"expected workers that compute the cells, but all ended early (exit status {ends}), see above: "
                f"finished work is saved; rerun the command to resume"
            )

    def stop(self, kill: bool = False) -> None:
        """Let them save what they have and end; with ``kill`` they end at once."""
        for process in self._processes:
            if process.poll() is None and (kill or not self._stopped):
                process.send_signal(signal.SIGKILL if kill else signal.SIGINT)
                _close(process)
        self._stopped = True

    def close(self) -> None:
        """End those that are left, if this process ends by an error, and wait for all."""
        self.stop()
        for process in self._processes:
            _close(process)
            process.wait()


def _close(process: subprocess.Popen[bytes]) -> None:
    """Close a worker's input, on which it stops."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()


class _Interrupts(Handlers):
    """Counts ctrl-C and SIGTERM, in the main thread; what arrives within a second counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._last = -1.0

    def handle(self, *_: object) -> None:
        """Count it."""
        if time.monotonic() - self._last > 1 or not self.count:
            self.count += 1
        self._last = time.monotonic()


def _refuse_other_threads(job: Job) -> None:
    """Refuse to join others that use another number of threads: the bits of results would depend on who made them."""
    for cell in job.cells:
        owner = job.claims.owner(cell.name) if job.claims.held(cell.name) is not None else None
        if owner is not None and owner["threads"] != job.claims.threads:
            raise HeadwayError(
                f"expected --threads {owner['threads']} as the workers that are computing in {job.claims.out}, got "
                f"{job.claims.threads}: results could differ in their last bits"
            )


def _report(job: Job, complete: bool, command: str | None, failures: list[str]) -> Outcome:
    """Write the results and the report, unless another process has just written the same."""
    out = job.claims.out
    while (claim := job.claims.take(_REPORT, copies=False)) is None:
        time.sleep(_LOOK)
    with claim:
        for cell in job.cells:
            for end in job.claims.ends(cell.name, job.since.get(cell.name, 0)):
                job.notes += [] if end is None else end["notes"]
        results = gather(job, complete, command)
        there = None
        with contextlib.suppress(HeadwayError):
            there = read_json(out / "results.json") if (out / "report.html").exists() else None
        written = there is None or _compared(there) != _compared(json.loads(json.dumps(results)))
        if written:
            clean_leftovers(out)
            write_json_atomic(out / "results.json", results)
            write_report(results, out / "report.html")
            for path in superseded(out / "cells") if complete else ():
                shutil.rmtree(path, ignore_errors=True)
        claim.outcome = "done"
    return Outcome(results, failures, written)


def _compared(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if name not in _OWN}
