"""Results by method and length; only this file reads the saved dictionary.

A *spot* is one method at one test length over all seeds. Its mean, lowest and highest value are what the figures
draw as line and band, what the terminal table prints, and what the findings compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Results = Mapping[str, Any]


def finite(value: Any) -> float | None:
    """Return the number, or None for anything that is missing, not a number, or infinite.

    >>> finite(2), finite(float("nan")), finite(None)
    (2.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


@dataclass(frozen=True)
class Measure:
    """The compared measure: its key, and which direction is better."""

    key: str
    lower_is_better: bool = True

    def of(self, test: Mapping[str, Any]) -> float | None:
        """Read the number of one test, or None when it is not finite."""
        return finite(test.get(self.key))

    def better(self, one: float, other: float) -> bool:
        """Tell whether ``one`` is strictly better than ``other``."""
        return one < other if self.lower_is_better else one > other


@dataclass(frozen=True)
class Spot:
    """One method at one test length.

    Args:
        method: the method's spec.
        length: tokens in the test window.
        by_seed: the measured value for each seed that gave a finite one.
        planned: number of planned seeds.
        status: "ok" when any seed gave a value, else what happened: "cannot", "diverged", "failed" or "missing".
        message: the program's message, or None.
    """

    method: str
    length: int
    by_seed: Mapping[int, float]
    planned: int
    status: str
    message: str | None = None

    @cached_property
    def values(self) -> tuple[float, ...]:
        """The values, in the order of the seeds."""
        return tuple(self.by_seed.values())

    @cached_property
    def mean(self) -> float:
        """The mean over the seeds that gave a value."""
        return math.fsum(self.values) / len(self.values)

    @property
    def low(self) -> float:
        """The lowest value over the seeds."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The highest value over the seeds."""
        return max(self.values)

    def overlaps(self, other: Spot) -> bool:
        """Tell whether the two seed ranges share a value."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Lead:
    """The leading spots, as far as seeds can distinguish them. Everything that names a winner uses :func:`lead`.

    Args:
        kind: "alone" of one spot; "same" where means are printed alike and "one_seed" where a seed range is missing;
            "tied" where seed ranges overlap, "tied_all" where all of several do; "clear" otherwise.
        spots: best mean first.
        near: those indistinguishable from the first, including itself.
    """

    kind: str
    spots: tuple[Spot, ...]
    near: tuple[Spot, ...]


def lead(spots: Sequence[Spot], shown: Callable[[float], object]) -> Lead:
    """Find the leading spot, and whether its lead is significant.

    Args:
        spots: best mean first, at least one.
        shown: format of a mean; means that print the same count as equal.

    >>> one, other = (Spot("a", 8, {0: 1.0, 1: 1.4}, 2, "ok"), Spot("b", 8, {0: 1.3, 1: 1.5}, 2, "ok"))
    >>> lead([one, other], str).kind
    'tied'
    """
    first, rest = spots[0], spots[1:]
    overlapping = (first, *(spot for spot in rest if spot.overlaps(first)))
    same = tuple(spot for spot in spots if shown(spot.mean) == shown(first.mean))
    if not rest:
        kind = "alone"
    elif any(len(spot.values) < 2 for spot in (*overlapping, rest[0])):
        kind = "same" if len(same) > 1 else "one_seed"
    elif len(overlapping) > 1:
        kind = "tied_all" if len(overlapping) == len(spots) > 3 else "tied"
    else:
        kind = "clear"
    return Lead(kind, tuple(spots), same if kind == "same" else overlapping)


@dataclass(frozen=True)
class Summary:
    """The results of one comparison, looked up by method, seed and test length."""

    results: Results

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The specs, in the requested order."""
        listed = [str(method["spec"]) for method in self.results.get("methods") or ()]
        return tuple(dict.fromkeys([*listed, *(str(cell["method"]) for cell in self.cells)]))

    @cached_property
    def cells(self) -> tuple[Mapping[str, Any], ...]:
        """The trainings: one per method and seed."""
        return tuple(self.results.get("cells") or ())

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the run."""
        return self.results.get("settings") or {}

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The requested seeds, or else those that were run."""
        asked = self.settings.get("seeds") or ()
        return tuple(dict.fromkeys([*asked, *(cell["seed"] for cell in self.cells)]))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """The test lengths, shortest first."""
        asked = self.settings.get("test_lengths") or ()
        return tuple(sorted({*asked, *(test["length"] for cell in self.cells for test in cell.get("tests") or ())}))

    @cached_property
    def train_length(self) -> int | None:
        """The training length in tokens."""
        length = self.settings.get("train_length")
        return length if isinstance(length, int) else None

    @cached_property
    def base_length(self) -> int | None:
        """The length that longer ones are compared with: the training length where it was tested, else the shortest."""
        if not self.lengths:
            return None
        return self.train_length if self.train_length in self.lengths else self.lengths[0]

    @cached_property
    def measure(self) -> Measure:
        """The task's main number: accuracy for recall and copy; for text bits per byte, or loss where those lack."""
        if self.results.get("task") != "text":
            return Measure("accuracy", lower_is_better=False)
        done = [test for cell in self.cells for test in cell.get("tests") or () if finite(test.get("loss")) is not None]
        in_bits = bool(done) and all(finite(test.get("bits_per_byte")) is not None for test in done)
        return Measure("bits_per_byte" if in_bits else "loss")

    def cells_of(self, method: str) -> tuple[Mapping[str, Any], ...]:
        """The trainings of one method."""
        return tuple(cell for cell in self.cells if cell["method"] == method)

    def spot(self, method: str, length: int) -> Spot:
        """One method at one length, over its seeds."""
        by_seed: dict[int, float] = {}
        trouble: list[tuple[str, str | None]] = []
        for cell in self.cells_of(method):
            test = next((test for test in cell.get("tests") or () if test["length"] == length), None)
            if test is None:
                trouble.append(_status(cell, otherwise="missing"))
            elif test["status"] != "ok":
                trouble.append(_status(test, otherwise="missing"))
            elif (value := self.measure.of(test)) is None:
                trouble.append(("diverged", test.get("message")))
            else:
                by_seed[cell["seed"]] = value
        planned = max(len(self.seeds), len(self.cells_of(method)))
        status, message = ("ok", None) if by_seed else (trouble or [("missing", None)])[0]
        return Spot(method, length, by_seed, planned, status, message)

    def spots(self, length: int) -> list[Spot]:
        """Every method that gave a value at this length, best mean first."""
        spots = (self.spot(method, length) for method in self.methods)
        sign = 1 if self.measure.lower_is_better else -1
        return sorted((spot for spot in spots if spot.values), key=lambda spot: sign * spot.mean)

    def last_length(self, method: str) -> int | None:
        """The longest test length that gave this method a value."""
        return max((length for length in self.lengths if self.spot(method, length).values), default=None)


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean of at least one number."""
    listed = list(values)
    return math.fsum(listed) / len(listed)


def _status(part: Mapping[str, Any], otherwise: str) -> tuple[str, str | None]:
    """Status and message of a cell or test without a value; an "ok" cell that lacks the test counts as missing."""
    return (otherwise, None) if part["status"] == "ok" else (part["status"], part.get("message"))
