"""The position tax: time, memory and error of every method and contender, relative to plain attention in the same run.

A row is one method by one contender on one case. It is measured in rounds that alternate with plain attention, and its
tax is the median over the rounds of its time ÷ that of plain attention. What cannot run is a row too, with the reason;
one row's failure never stops the others.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from headway.bench.cases import Case, TooLarge, Unsupported
from headway.bench.contenders import OURS, Contender, Work, eager, ours, plain
from headway.bench.measure import error, interleaved, median_ratio, repeats_for, same
from headway.bench.page import PLAIN
from headway.memory import peak_memory
from headway.shapes import HeadwayError

EXACT_UP_TO = 1024
"""Tokens up to which errors are measured: the float64 reference materialises all scores."""


@dataclass
class Row:
    """The measurements of one method by one contender on one case.

    Args:
        method: the method.
        contender: the implementation.
        length: tokens.
        mode: the mode of the case.
        mask: "causal" or "full".
        status: "ok", "unsupported", "out of memory", "failed" or, for lack of time, "left out".
        reason: why there are no measurements, or no floor.
        seconds: median of its samples.
        ratio: the tax, the median over rounds of its time ÷ plain attention's.
        low: the smallest of these ratios.
        high: the largest of these ratios.
        floor: what its products would cost at plain attention's speed, see :mod:`headway.bench.floor`; for our own
            backends.
        rounds: number of rounds.
        gflops: GFLOP/s, counting the operations of plain attention only, not those of the bias.
        peak_bytes: peak memory, inputs, outputs and gradients included.
        memory_ratio: peak memory ÷ plain attention's.
        error: largest error against float64, see :func:`headway.bench.measure.error`.
        error_ratio: error ÷ that of plain PyTorch in the same dtype.
        repeats: whether two runs gave the same bits.
        head_dim: width of a head.
        dtype: of q, k and v.
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
    floor: float | None = None
    rounds: int = 0
    gflops: float | None = None
    peak_bytes: int | None = None
    memory_ratio: float | None = None
    error: float | None = None
    error_ratio: float | None = None
    repeats: bool | None = None
    head_dim: int = 64
    dtype: str = "float32"

    @classmethod
    def of(cls, case: Case, method: str, contender: str, status: str = "ok", reason: str | None = None) -> Row:
        """A row of a case without measurements."""
        given = (method, contender, case.length, case.mode, case.mask, status, reason)
        return cls(*given, head_dim=case.head_dim, dtype=case.dtype)


@dataclass
class Entry:
    """A row to measure: a method and a contender; its time or only its memory, with or without its error."""

    method: str
    name: str
    prepare: Contender
    timed: bool = True
    exact: bool = True


@dataclass
class Group:
    """All rows of one case, and what they share: plain attention and the float64 reference."""

    case: Case
    rounds: int
    thorough: bool = True
    base: Work = field(init=False)
    base_peak: int = field(init=False)
    base_count: int = field(init=False)
    base_samples: list[float] = field(init=False, default_factory=list)
    truths: dict[str, tuple[dict[str, torch.Tensor], float] | None] = field(init=False, default_factory=dict)
    nones: dict[str, float | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.base = plain("none", self.case)
        self.base.step()
        self.base_peak, self.base_count = peak_and_repeats(self.base)

    def truth(self, method: str) -> tuple[dict[str, torch.Tensor], float] | None:
        """The float64 results of a method, and the error of plain PyTorch against them; None if memory is too small."""
        if method not in self.truths:
            try:
                exact = eager(method, self.case, wide=True).step()
                self.truths[method] = exact, error(eager(method, self.case).step(), exact)
            except (TooLarge, torch.cuda.OutOfMemoryError):
                self.truths[method] = None
        return self.truths[method]

    def floor(self, row: Row, work: Work) -> float | None:
        """The floor of a timed row; None for what is not ours, or where its backend refuses ``none``."""
        backend = work.backend
        if backend is None:
            return None
        if row.method == "none":
            self.nones[backend] = row.ratio
        elif backend not in self.nones:
            self.nones[backend] = measured(Entry("none", OURS + backend, ours(backend)), self).ratio
        none = self.nones[backend]
        return None if none is None else none * work.products() / self.base.products()

    def row(self, method: str, name: str) -> Row:
        """An empty row of this case."""
        return Row.of(self.case, method, name)

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

    def check(self, row: Row, work: Work, got: dict[str, torch.Tensor], exact: bool = True) -> None:
        """Compare a contender's result with a second run, and with float64 if that is wanted and affordable."""
        row.repeats = same(got, work.step())
        if exact and self.case.length <= EXACT_UP_TO and (truth := self.truth(row.method)) is not None:
            values, fair = truth
            row.error = error(got, values)
            row.error_ratio = row.error / fair if fair else None


def without_base(case: Case, problem: Exception) -> Row:
    """The only row of a case in which plain attention cannot be measured."""
    status, reason = trouble(problem)
    return Row.of(case, "none", PLAIN, status, reason)


def measured(entry: Entry, group: Group, keep: Callable[[Row, str, int, float], None] | None = None) -> Row:
    """Measure one row; a failure is recorded in it.

    Args:
        entry: the method and the contender.
        group: the case, and plain attention on it.
        keep: called with every sample: the row, which of the two ("it" or "plain"), the round and the seconds.
    """
    row, case = group.row(entry.method, entry.name), group.case
    try:
        work = entry.prepare(entry.method, case)
        row.contender = work.name
        first = work.step()
        if group.thorough:
            group.check(row, work, first, entry.exact)
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
            try:
                row.floor = group.floor(row, work)
            except Exception as problem:
                row.reason = f"without a floor: {trouble(problem)[1]}"
    except Exception as problem:
        row.status, row.reason = trouble(problem)
    return row


def peak_and_repeats(work: Work) -> tuple[int, int]:
    """Peak bytes of work that has run before, its inputs included, and the number of calls per sample."""
    begin = time.perf_counter()
    peak = work.held + peak_memory(work.step, work.case.device)
    # the profiler slows short work down, but not so much that this would be wrong
    slow = time.perf_counter() - begin > 1
    return peak, 1 if slow else repeats_for(work.step, work.case.device)


def _times(row: Row, samples: dict[str, list[float]], case: Case) -> None:
    row.seconds = statistics.median(samples["it"])
    row.ratio = median_ratio(samples["it"], samples["plain"])
    each = [it / base for it, base in zip(samples["it"], samples["plain"], strict=True)]
    row.low, row.high, row.rounds = min(each), max(each), len(each)
    row.gflops = case.flops / row.seconds / 1e9


def trouble(problem: Exception) -> tuple[str, str]:
    """The status of a row that raised an exception, and the reason in one line."""
    lines = str(problem).strip().splitlines()
    said = lines[0] if lines else ""
    if isinstance(problem, Unsupported | HeadwayError | NotImplementedError):  # a method that refuses says why
        return "unsupported", said
    if isinstance(problem, TooLarge):
        return "out of memory", said
    if isinstance(problem, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(problem):
        torch.cuda.empty_cache()
        return "out of memory", said
    return "failed", f"{type(problem).__name__}: {said}" if said else type(problem).__name__
