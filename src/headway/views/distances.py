"""Statistics by distance: a measure of many query–key pairs, grouped by their distance."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.figures.values import Line, Said, evenly
from headway.inspect.record import ROWS, Layer

MOST_ROWS = 128
"""Maximum number of queries; more would not visibly change a mean."""
ENOUGH = 50
"""Minimum queries per point, where the text is long enough."""
EVERY = 16_384
"""Maximum points of a curve; up to here every distance has one."""


@dataclass(frozen=True, eq=False)
class Spread:
    """A measure at each distance.

    Args:
        distances: in tokens, from 0.
        middle: the mean, (heads, distances).
        low: the 10th percentile.
        high: the 90th.
        counts: number of queries per point, (distances,).
        looked: total number of queries.
    """

    distances: list[int]
    middle: Float[Tensor, "heads distances"]
    low: Float[Tensor, "heads distances"]
    high: Float[Tensor, "heads distances"]
    counts: Int[Tensor, " distances"]
    looked: int

    @property
    def first(self) -> int:
        """Index of the first distance of at least 1: not every method lets a query see itself."""
        return bisect_left(self.distances, 1)

    @property
    def axis(self) -> list[float]:
        """The distances of :meth:`line`."""
        return [float(distance) for distance in self.distances[self.first :]]

    def line(self, head: int, label: Said, *, band: bool = False, floor: float = -math.inf) -> Line:
        """The curve of one head from distance 1 on; below ``floor`` nothing is drawn."""

        def shown(values: Tensor) -> list[float | None]:
            kept = zip(self.middle[head, self.first :].tolist(), values[head, self.first :].tolist(), strict=True)
            return [None if middle < floor else point(max(value, floor)) for middle, value in kept]

        low, high = (shown(self.low), shown(self.high)) if band else (None, None)
        return Line(label, shown(self.middle), low, high)


def second_half(tokens: int) -> slice:
    """The queries used: those in the second half of the text, at most :data:`MOST_ROWS`."""
    start = tokens // 2
    return slice(start, tokens, math.ceil((tokens - start) / MOST_ROWS))


def by_distance(
    layer: Layer,
    measure: Callable[[slice], Float[Tensor, "batch heads rows keys"]],
) -> Spread:
    """Gather a measure of all visible pairs of some queries by distance, keys before and after the query alike.

    Args:
        layer: a layer of a trace.
        measure: function of the queries ``rows`` and all keys.
    """
    call, rows = layer.call, second_half(layer.queries)
    samples = []
    for start in range(rows.start, rows.stop, ROWS * rows.step):
        part = slice(start, min(start + ROWS * rows.step, rows.stop), rows.step)
        values, seen = measure(part).double(), layer.seen(part)
        apart = (call.q_pos[:, part, None] - call.k_pos[:, None])[:, None].expand_as(values)
        shown = torch.ones_like(apart, dtype=torch.bool) if seen is None else seen.expand_as(apart)
        longest = int(call.q_pos.max() - call.k_pos.clamp(min=0).min())
        for side in (shown & (apart >= 0), shown & (apart < 0)):
            if side.any():
                # pairs on the other side go to one extra bin, which is dropped
                at = torch.where(side, apart.abs().clamp(max=longest), longest + 1)
                empty = values.new_full((*values.shape[:3], longest + 2), torch.nan)
                found = empty.scatter(-1, at, values)[..., :-1]  # (B, H, rows, distances)
                samples.append(found.transpose(0, 1).flatten(1, 2))
    table = torch.cat(samples, 1)  # (H, queries, distances)
    counts = table.isfinite().sum(1).amin(0)
    queries = len(layer.x) * len(range(*rows.indices(layer.queries)))
    kept = (counts >= min(ENOUGH, queries)).nonzero()[:, 0].tolist()
    distances = drawn(kept)
    table = table[..., distances]
    low, high = (torch.stack([each.nanquantile(share, 0) for each in table]) for share in (0.1, 0.9))
    return Spread(distances, table.nanmean(1), low, high, counts[distances], queries)


def drawn(distances: Sequence[int]) -> list[int]:
    """The distances with a point: all, or the first, the last and every n-th of more than :data:`EVERY`.

    >>> len(drawn(range(4096))), drawn(range(40_001))[-3:]
    (4096, [39996, 39999, 40000])
    """
    every = -(-len(distances) // EVERY)
    return list(dict.fromkeys([*distances[::every], *distances[-1:]]))


def point(value: float) -> float | None:
    """A value with six digits for a curve; None if it is not finite.

    >>> point(1 / 3), point(float("nan"))
    (0.333333, None)
    """
    return float(f"{value:.6g}") if math.isfinite(value) else None


def points(values: Tensor) -> list[float | None]:
    """A :func:`point` for each."""
    return [point(value) for value in values.tolist()]


def some(count: int, most: int, *, first: int = 0) -> list[int]:
    """At most ``most`` of ``count`` things, evenly spaced, including ``first``.

    >>> some(3, 8), some(32, 4, first=5)
    ([0, 1, 2], [0, 5, 10, 21])
    """
    chosen = evenly(count, most)
    return chosen if first in chosen else sorted([*chosen[: most - 1], first])
