"""Attention maps of long texts, up to 32,768 tokens, as a pyramid of tiles in O(n · tile) memory.

    level 0    one cell for each query and key, n × n
    level l    one cell for 2^l × 2^l of them: their mean, or their largest
    tile       256 × 256 cells of a level

Weights are recomputed from the recorded q, k and terms, in blocks of queries. One pass over all queries computes every
level that is small enough to keep, down to an overview of at most 256 × 256; finer tiles are computed on demand, for
their queries only. Masked pairs are excluded from means and maxima; fully masked cells are NaN.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from headway.inspect.record import Layer
from headway.integers import Positions
from headway.masks import ALL
from headway.shapes import HeadwayError, brief
from headway.terms import ByDistance, Term, Tile

TILE = 256
"""Cells along each side of a tile."""
HOW = ("max", "mean")
"""Cells per side that are pooled into one."""
REACH = 256
"""Width of the diagonal band, in tokens."""
STRIPS = 2
"""Number of cached strips of fine tiles, each as wide as all keys."""
_BLOCK = 2**22
"""Approximate number of values in a block of rows."""


@dataclass(frozen=True, eq=False)
class _OneHead(Term):
    """The part of a term for one head."""

    term: Term
    head: int

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        whole = self.term.tile(q_pos, k_pos, rows, cols)
        return whole if whole.shape[1] == 1 else whole[:, self.head : self.head + 1]


def one_head(layer: Layer, head: int) -> Layer:
    """The same recorded attention with one head only, where heads are independent; otherwise unchanged."""
    call, seen = layer.call, layer.seen(slice(0, 1))
    if call.row_terms or (seen is not None and seen.shape[1] > 1):  # terms may mix heads, masks differ between them
        return layer
    group = head // call.groups
    own = replace(
        call,
        q=call.q[:, head : head + 1],
        k=call.k[:, group : group + 1],
        v=call.v[:, group : group + 1],
        terms=tuple(_of_head(term, head) for term in call.score_terms),
        sinks=None if call.sinks is None else call.sinks[head : head + 1],
    )
    return replace(layer, call=own)


def _of_head(term: Term, head: int) -> Term:
    if isinstance(term, ByDistance) and term.table.shape[0] > 1:  # reads only what one head needs
        tails = None if term.tails is None else term.tails[head : head + 1]
        return replace(term, table=term.table[head : head + 1], tails=tails)
    return _OneHead(term, head)


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells of a map, each of several pairs of a query and a key.

    Args:
        total: the sum of their weights.
        count: number of unmasked pairs.
        most: the largest weight among those, −∞ without any.
    """

    total: Tensor
    count: Tensor
    most: Tensor

    @classmethod
    def of(cls, weights: Tensor, seen: Tensor | None) -> _Cells:
        """Cells of one pair each."""
        if seen is None:
            return cls(weights, torch.ones_like(weights), weights)
        return cls(weights * seen, seen.to(weights.dtype), weights.masked_fill(~seen, -math.inf))

    def coarser(self, rows: int, columns: int) -> _Cells:
        """Pool ``rows`` × ``columns`` cells into one; the last ones may pool fewer."""
        parts = []
        for cells, outside in ((self.total, 0.0), (self.count, 0.0), (self.most, -math.inf)):
            down, across = -cells.shape[0] % rows, -cells.shape[1] % columns
            whole = pad(cells, (0, across, 0, down), value=outside) if down or across else cells
            whole = whole.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
            parts.append(whole.amax((1, 3)) if outside else whole.sum((1, 3)))
        return _Cells(*parts)

    @classmethod
    def room(cls, rows: int, columns: int) -> _Cells:
        """Allocate this many cells, to be filled by :meth:`put`."""
        return cls(*(torch.empty(rows, columns) for _ in range(3)))

    def put(self, row: int, cells: _Cells) -> None:
        """Write cells, starting at a row.

        Results are written into preallocated memory: small pieces between temporary blocks would fragment the heap, so
        that gigabytes would not be returned to the system for a long text.
        """
        for name in ("total", "count", "most"):
            part: Tensor = getattr(cells, name)
            getattr(self, name)[row : row + len(part)] = part

    def values(self) -> dict[str, Tensor]:
        """The cells' values by kind of pooling; NaN where fully masked."""
        away = self.count == 0
        return {
            "max": self.most.masked_fill(away, math.nan),
            "mean": (self.total / self.count).masked_fill(away, math.nan),
        }


@dataclass(frozen=True, eq=False)
class _Pass:
    """Results of one pass over all queries: the kept levels, the diagonal band, and the attention that keys receive, in
    total and from near queries.
    """

    levels: dict[int, dict[str, Tensor]]
    band: dict[str, Tensor]
    received: Tensor
    near: float


class TileSource:
    """The tiles of one head's attention map.

    A server sends :meth:`body`, little-endian: rows and columns of the tile as two unsigned 32-bit numbers, then rows ·
    columns float32 in row-major order, NaN where fully masked. Tiles at the lower and right edges have fewer than 256
    rows or columns. The whole map's ``size(0)``, ``levels`` and :data:`TILE` are what a page needs in advance
    (:class:`headway.figures.values.Tiles`).

    Args:
        layer: a layer of a trace.
        head: which head.
        batch: which sequence.
        reach: width of :attr:`band`, in tokens.

    Raises:
        HeadwayError: when there is no such head or sequence.

    >>> from headway import Attention
    >>> from headway.inspect import record
    >>> attention = Attention(dim=8, heads=2)
    >>> with record(attention) as trace:
    ...     _ = attention(torch.randn(1, 600, 8))
    >>> source = TileSource(trace[0], head=1)
    >>> source.levels, source.grid(0), source.tile(2, 0, 0, "mean")[:2]
    (3, (3, 3), (150, 150))
    """

    def __init__(self, layer: Layer, head: int, batch: int = 0, reach: int = REACH) -> None:
        for what, index, count in (("head", head, layer.heads), ("batch", batch, len(layer.x))):
            if not 0 <= index < count:
                raise HeadwayError(f"expected {what} from 0 to {count - 1}, got {index}")
        self.queries, self.keys, self.reach = layer.queries, layer.keys, min(reach, layer.keys)
        self._layer, self._batch = one_head(layer, head), batch
        self._head = head if self._layer is layer else 0
        self._strips: OrderedDict[tuple[int, int], dict[str, Tensor]] = OrderedDict()

    @property
    def levels(self) -> int:
        """Number of levels; the last is the overview, a single tile."""
        return max(0, math.ceil(math.log2(max(self.queries, self.keys, 1) / TILE))) + 1

    @property
    def kept(self) -> int:
        """The finest level that is kept in memory: the first with at most 256 cells per token."""
        cells = self.queries * self.keys / (TILE * max(self.queries, self.keys, 1))
        return min(self.levels - 1, math.ceil(math.log(max(cells, 1), 4)))

    def size(self, level: int) -> tuple[int, int]:
        """Rows and columns of a level.

        Raises:
            HeadwayError: when there is no such level.
        """
        if not 0 <= level < self.levels:
            raise HeadwayError(f"expected a level from 0 to {self.levels - 1}, got {level}")
        return -(-self.queries // 2**level), -(-self.keys // 2**level)

    def grid(self, level: int) -> tuple[int, int]:
        """Rows and columns of tiles in a level."""
        rows, columns = self.size(level)
        return -(-rows // TILE), -(-columns // TILE)

    def tile(self, level: int, row: int, column: int, how: str = "max") -> tuple[int, int, bytes]:
        """One tile: its number of rows and columns, and its float32 values as bytes, row by row; NaN is masked.

        Args:
            level: at level 0 a cell is a pair of tokens; each further level is half as fine.
            row: of tiles, from 0.
            column: of tiles, from 0.
            how: "max" or "mean" of the pairs in a cell.

        Raises:
            HeadwayError: when there is no such tile.
        """
        cells = self.cells(level, row, column, how)
        return cells.shape[0], cells.shape[1], cells.float().contiguous().numpy().tobytes()

    def body(self, level: int, row: int, column: int, how: str = "max") -> bytes:
        """:meth:`tile` as one response: rows and columns as unsigned 32-bit integers, then the float32 values."""
        rows, columns, data = self.tile(level, row, column, how)
        return struct.pack("<II", rows, columns) + data

    def cells(self, level: int, row: int, column: int, how: str = "max") -> Float[Tensor, "rows columns"]:
        """One tile as a tensor; arguments as in :meth:`tile`."""
        if how not in HOW:
            raise HeadwayError(f"expected tiles pooled by {' or '.join(HOW)}, got {brief(how)}")
        down, across = self.grid(level)
        if not (0 <= row < down and 0 <= column < across):
            raise HeadwayError(f"expected one of the {down} × {across} tiles of level {level}, got ({row}, {column})")
        columns = slice(column * TILE, (column + 1) * TILE)
        if level in self._pass.levels:
            return self._pass.levels[level][how][row * TILE : (row + 1) * TILE, columns]
        return self._strip(level, row)[how][:, columns]

    @property
    def overview(self) -> dict[str, Float[Tensor, "rows columns"]]:
        """The coarsest level, by kind of pooling, at most 256 × 256 each."""
        return self._pass.levels[self.levels - 1]

    @property
    def received(self) -> Float[Tensor, " keys"]:
        """The attention that each key receives from all queries, Σ_i α_ij, in float64."""
        return self._pass.received

    @property
    def band(self) -> dict[str, Float[Tensor, "rows reach"]]:
        """Attention from queries to the last ``reach`` tokens: column d is d tokens before the query, 0 the query
        itself.

        Rows are those of the overview. NaN where no query of a row has a token that far back. Queries are the last of
        the keys.
        """
        return self._pass.band

    @property
    def near(self) -> float:
        """The share of all attention that queries give to the last ``reach`` tokens."""
        return self._pass.near / max(float(self.received.sum()), 1e-30)

    @cached_property
    def _pass(self) -> _Pass:
        side = 2**self.kept
        rows, columns = self.size(self.kept)
        cells, band = _Cells.room(rows, columns), _Cells.room(rows, self.reach)
        received = torch.zeros(self.keys, dtype=torch.float64)
        back, near = torch.arange(self.reach), 0.0
        for start, weights, seen in self._blocks(0, self.queries, side):
            received += weights.sum(0, dtype=torch.float64)
            cells.put(start // side, _Cells.of(weights, seen).coarser(side, side))
            own = torch.arange(start, start + len(weights)) + self.keys - self.queries
            there = own[:, None] >= back
            key = (own[:, None] - back).clamp(min=0)
            if seen is not None:
                there &= seen.gather(1, key)
            last = _Cells.of(weights.gather(1, key), there)
            near += float(last.total.sum(dtype=torch.float64))
            band.put(start // side, last.coarser(side, 1))
        levels = {self.kept: cells.values()}
        for level in range(self.kept + 1, self.levels):
            cells, band = cells.coarser(2, 2), band.coarser(2, 1)
            levels[level] = cells.values()
        return _Pass(levels, band.values(), received, near)

    def _strip(self, level: int, row: int) -> dict[str, Tensor]:
        """All tiles of one row of tiles; the last few such strips are cached."""
        if (level, row) not in self._strips:
            side = 2**level
            first, last = row * TILE * side, min((row + 1) * TILE * side, self.queries)
            strip = _Cells.room(-(-(last - first) // side), self.size(level)[1])
            for start, weights, seen in self._blocks(first, last, side):
                strip.put((start - first) // side, _Cells.of(weights, seen).coarser(side, side))
            self._strips[level, row] = strip.values()
            if len(self._strips) > STRIPS:
                self._strips.popitem(last=False)
        self._strips.move_to_end((level, row))
        return self._strips[level, row]

    def _blocks(self, first: int, last: int, multiple: int) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Weights (q, K) of the queries from ``first`` to ``last`` and which keys they see, a few queries at a time."""
        height = max(1, _BLOCK // (self.keys * self._layer.heads * multiple)) * multiple
        with torch.no_grad():
            for start in range(first, last, height):
                rows = slice(start, min(start + height, last))
                weights, seen = self._layer.weights(rows), self._layer.seen(rows)
                if seen is not None:
                    seen = seen.expand(len(weights), weights.shape[1], -1, -1)[self._batch, self._head]
                yield start, weights[self._batch, self._head], seen
