"""The position tax: time, memory and error of every method by every contender, beside plain attention in the same run.

A row is one method by one contender on one case. It is measured in rounds that alternate with plain attention, and its
tax is the median over the rounds of its time ÷ that of plain attention. What cannot be done is a row too, with the
reason; one row's failure never stops the others.
"""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

from headway.experiments.bench.cases import Case, TooLarge, Unsupported
from headway.experiments.bench.contenders import Contender, Work, eager, materialised, ours, plain
from headway.experiments.bench.measure import environment, error, interleaved, median_ratio, repeats_for, same
from headway.experiments.bench.others import others_for
from headway.experiments.bench.settings import Bench, rounds_for
from headway.experiments.memory import peak_memory
from headway.functional import BACKENDS
from headway.output import write_output
from headway.report.bench import PLAIN
from headway.shapes import HeadwayError
from headway.training.ours import mark

FORMAT = 1
EXACT_UP_TO = 1024
"""Tokens up to which errors are measured: the float64 truth holds all scores."""
REFERENCE_UP_TO = 2048
"""Tokens up to which ``--backends all`` includes the reference."""
SAMPLES = ("method", "contender", "length", "mode", "mask", "round", "who", "seconds")
"""Columns of samples.csv."""


@dataclass
class Row:
    """What was measured of one method by one contender on one case.

    Args:
        method: the method.
        contender: who computed it.
        length: tokens.
        mode: what was done.
        mask: under which mask.
        status: "ok", "unsupported", "out of memory" or "failed".
        reason: why there are no numbers.
        seconds: median of its samples.
        ratio: the tax, median over rounds of its time ÷ plain attention's.
        low: the smallest of those.
        high: the largest of those.
        rounds: how many.
        gflops: achieved, by the operations of plain attention: what a bias costs is never counted as work done.
        peak_bytes: peak memory, inputs, outputs and gradients included.
        memory_ratio: that ÷ plain attention's.
        error: largest error against float64, see :func:`headway.experiments.bench.measure.error`.
        error_ratio: that ÷ the error of plain PyTorch at the same dtype.
        repeats: whether two runs gave the same bits.
    """

    method: str
    contender: str
    length: int
    mode: str
    mask: str
    status: str = "ok"
    reason: str | None = None
    seconds: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    gflops: float | None = None
    peak_bytes: int | None = None
    memory_ratio: float | None = None
    error: float | None = None
    error_ratio: float | None = None
    repeats: bool | None = None


@dataclass
class Entry:
    """A row to be: who is to compute what."""

    method: str
    name: str
    prepare: Contender
    timed: bool = True


@dataclass
class Group:
    """All that is compared with plain attention on one case; holds what the rows share."""

    case: Case
    rounds: int
    thorough: bool = True
    base: Work = field(init=False)
    base_peak: int = field(init=False)
    base_count: int = field(init=False)
    base_samples: list[float] = field(init=False, default_factory=list)
    truths: dict[str, tuple[dict[str, torch.Tensor], float] | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.base = plain("none", self.case)
        self.base.step()
        self.base_peak, self.base_count = peak_and_repeats(self.base)

    def truth(self, method: str) -> tuple[dict[str, torch.Tensor], float] | None:
        """The float64 values of a method, and the error of plain PyTorch against them; None where they do not fit."""
        if method not in self.truths:
            try:
                exact = eager(method, self.case, wide=True).step()
                self.truths[method] = exact, error(eager(method, self.case).step(), exact)
            except (TooLarge, torch.cuda.OutOfMemoryError):
                self.truths[method] = None
        return self.truths[method]

    def row(self, method: str, name: str) -> Row:
        """An empty row of this case."""
        return Row(method, name, self.case.length, self.case.mode, self.case.mask)

    def base_row(self) -> Row:
        """Plain attention itself, over all its samples."""
        row = self.row("none", PLAIN)
        if self.base_samples:
            row.seconds, row.ratio, row.low, row.high = statistics.median(self.base_samples), 1.0, 1.0, 1.0
            row.rounds, row.gflops = len(self.base_samples), self.case.flops / row.seconds / 1e9
        row.peak_bytes, row.memory_ratio = self.base_peak, 1.0
        if self.thorough:
            self.check(row, self.base, self.base.step())
        return row

    def check(self, row: Row, work: Work, got: dict[str, torch.Tensor]) -> None:
        """Compare what a contender computed with a second run, and with float64 where that is affordable."""
        row.repeats = same(got, work.step())
        if self.case.length <= EXACT_UP_TO and (truth := self.truth(row.method)) is not None:
            exact, fair = truth
            row.error = error(got, exact)
            row.error_ratio = row.error / fair if fair else None


def without_base(case: Case, problem: Exception) -> Row:
    """The only row of a case whose denominator cannot be measured."""
    status, reason = trouble(problem)
    return Row("none", PLAIN, case.length, case.mode, case.mask, status, reason)


def measured(entry: Entry, group: Group, keep: Callable[[Row, str, int, float], None] | None = None) -> Row:
    """Measure one row; whatever goes wrong is in it.

    Args:
        entry: who is to compute what.
        group: the case, and plain attention on it.
        keep: told every sample: the row, who ("it" or "plain"), the round and the seconds.
    """
    row, case = group.row(entry.method, entry.name), group.case
    try:
        work = entry.prepare(entry.method, case)
        row.contender = work.name
        first = work.step()
        if group.thorough:
            group.check(row, work, first)
        del first
        row.peak_bytes, count = peak_and_repeats(work)
        row.memory_ratio = row.peak_bytes / group.base_peak
        if entry.timed:
            steps = {"plain": group.base.step, "it": work.step}
            repeats = {"plain": group.base_count, "it": count}
            samples = interleaved(steps, group.rounds, repeats, case.device)
            _times(row, samples, case)
            group.base_samples += samples["plain"]
            for who, seconds in samples.items():
                for number, one in enumerate(seconds):
                    if keep is not None:
                        keep(row, who, number, one)
    except Exception as problem:
        row.status, row.reason = trouble(problem)
    return row


def peak_and_repeats(work: Work) -> tuple[int, int]:
    """Peak bytes of a piece of work that ran before, its inputs included, and how many calls make a sample."""
    begin = time.perf_counter()
    peak = work.held + peak_memory(work.step, work.case.device)
    # the profiler slows short work down, never so much that this would be wrong
    slow = time.perf_counter() - begin > 1
    return peak, 1 if slow else repeats_for(work.step, work.case.device)


def _times(row: Row, samples: dict[str, list[float]], case: Case) -> None:
    row.seconds = statistics.median(samples["it"])
    row.ratio = median_ratio(samples["it"], samples["plain"])
    each = [it / base for it, base in zip(samples["it"], samples["plain"], strict=True)]
    row.low, row.high, row.rounds = min(each), max(each), len(each)
    row.gflops = case.flops / row.seconds / 1e9


def trouble(problem: Exception) -> tuple[str, str]:
    """What an exception means for a row: its status, and the reason in one line."""
    lines = str(problem).strip().splitlines()
    said = lines[0] if lines else ""
    if isinstance(problem, Unsupported):
        return "unsupported", said
    if isinstance(problem, TooLarge):
        return "out of memory", said
    if isinstance(problem, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(problem):
        torch.cuda.empty_cache()
        return "out of memory", said
    if isinstance(problem, NotImplementedError):
        return "unsupported", said
    return "failed", f"{type(problem).__name__}: {said}" if said else type(problem).__name__


def bench(
    settings: Bench,
    out: str | Path | None = None,
    *,
    command: str | None = None,
    on_row: Callable[[Row, int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure every row and return the results; they are in ``out/results.json``, all samples in ``out/samples.csv``.

    A ctrl-C keeps what is done: the results so far are returned with ``complete`` False.

    Args:
        settings: what to measure.
        out: the folder, made if needed; None writes nothing.
        command: the command line that repeats this, for the report.
        on_row: called after every row, with how many there are so far and will be.

    >>> tiny = Bench(methods=("t5",), lengths=(16,), modes=("forward",), baselines=False, heads=2, head_dim=8, rounds=1)
    >>> [(row["method"], row["status"]) for row in bench(tiny)["rows"]]
    [('none', 'ok'), ('t5', 'ok')]
    """
    from headway.experiments.bench.bars import measure_bars

    rows: list[Row] = []
    given = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}
    results: dict[str, Any] = {
        "format": FORMAT,
        "kind": "bench",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        # the bars have their own methods, lengths and shapes
        "settings": {name: given[name] for name in ("bars", "device", "rounds")} if settings.bars else given,
        "environment": environment(getattr(torch, settings.dtype), settings.device),
        "complete": True,
        "rows": [],
        "bars": [],
    }
    with _Folder(out) as folder:
        try:
            if settings.bars:
                for judged, found in measure_bars(settings, folder.keep, on_row):
                    results["bars"] += judged
                    results["rows"] += [asdict(row) for row in found]
                    folder.save(results)
            else:
                planned = [(case, entries_for(settings, case)) for case in cases(settings)]
                count = sum(len(entries) for _, entries in planned)
                for case, entries in planned:
                    try:
                        group = Group(case, settings.rounds or rounds_for(case.length))
                    except Exception as problem:
                        results["rows"].append(asdict(without_base(case, problem)))
                        continue
                    rows = []
                    try:
                        for entry in entries:
                            rows.append(measured(entry, group, folder.keep))
                            if on_row is not None:
                                on_row(rows[-1], len(results["rows"]) + len(rows), count)
                    finally:
                        results["rows"] += [asdict(row) for row in (group.base_row(), *rows)]
                        folder.save(results)
        except KeyboardInterrupt:
            results["complete"] = False
        folder.save(results)
    return results


def outcome(results: Mapping[str, Any]) -> int:
    """The exit status of a command: 130 when it was interrupted, 1 when a bar does not hold."""
    if not results["complete"]:
        return 130
    return int(any(not bar["passed"] for bar in results["bars"]))


def cases(settings: Bench) -> Iterator[Case]:
    """The cases of a benchmark, those with a backward pass first, short before long."""
    for mode in settings.modes:
        for mask in settings.masks[:1] if mode == "decode" else settings.masks:
            for length in sorted(settings.lengths):
                yield Case(
                    length,
                    mode,
                    mask,
                    settings.batch,
                    settings.heads,
                    settings.kv_heads or settings.heads,
                    settings.head_dim,
                    settings.dtype,
                    settings.device,
                )


def entries_for(settings: Bench, case: Case) -> list[Entry]:
    """Who is to compute what on a case: our backends first, then torch's own ways and other libraries."""
    entries = []
    names = BACKENDS if settings.backends == ("all",) else settings.backends
    if settings.backends == ("all",) and case.queries > REFERENCE_UP_TO:
        names = tuple(name for name in names if name != "reference")
    for method in settings.methods:
        entries += [Entry(method, f"headway: {name}", ours(name)) for name in names]
        if settings.baselines:
            if method not in ("none", "rotary", "shaw"):  # those have no bias to hold
                entries.append(Entry(method, "SDPA + bias tensor", materialised))
            entries += [Entry(method, other.name, other.prepare) for other in others_for(method, case)]
    return entries


class _Folder:
    """Where results and samples go, if anywhere."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.file: TextIO | None = None
        self.writer: Any = None

    def __enter__(self) -> _Folder:
        if self.path is not None:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self.file = (self.path / "samples.csv").open("w", encoding="utf-8", newline="")
            except OSError as problem:
                raise HeadwayError(f"expected a folder to write to, got {self.path}: {problem.strerror}") from None
            mark(self.path, "bench")
            self.writer = csv.writer(self.file)
            self.writer.writerow(SAMPLES)
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def keep(self, row: Row, who: str, number: int, seconds: float) -> None:
        """Write one sample."""
        if self.writer is not None and self.file is not None:
            self.writer.writerow((row.method, row.contender, row.length, row.mode, row.mask, number, who, seconds))
            self.file.flush()

    def save(self, results: dict[str, Any]) -> None:
        """Write all results so far."""
        if self.path is not None:
            write_output(self.path / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
