"""Pair terms with a table by distance for each token: given, or as products of its vector with one per distance.

score(i, j) += table_i[n], or table_j[n]          n = k_pos_j − q_pos_i, clamped to the table's ends
table_i[n] = x_i · vectors[n]                      for products (Shaw, Transformer-XL, DeBERTa, Music Transformer)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.integers import FAR, Positions
from headway.masks import ALL, distance
from headway.shapes import HeadwayError, kind_of
from headway.terms.pairs import Term, Tile, entry_of, expect, expect_number, expect_size


class TablePerToken(Term):
    """A table by distance for each query or key.

    Attributes:
        left: the entry of distance 0.
    """

    left: int

    def tables(self, tokens: slice = ALL) -> Float[Tensor, "#batch #heads tokens width"]:
        """The tables of some tokens; default all."""
        raise NotImplementedError

    @property
    def of_tokens(self) -> tuple[str, Float[Tensor, "#batch #heads tokens _"]]:
        """The tensor that has a row for each token, and its name."""
        raise NotImplementedError

    @property
    def leading(self) -> tuple[tuple[int, int], ...]:
        """See :attr:`Term.leading`."""
        _, rows = self.of_tokens
        return ((rows.shape[0], rows.shape[1]),)


def _looked_up(table: Tensor, entry: Tensor) -> Tensor:
    batch = torch.broadcast_shapes(table.shape[:2], entry.shape[:2])
    return table.expand(*batch, -1, -1).gather(-1, entry.expand(*batch, -1, -1))


class TablePerQuery(TablePerToken):
    """A table by distance for each query."""

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""
        expect_size(self, self.of_tokens[0], 2, "queries", queries)

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        table = self.tables()[:, :, rows]
        return _looked_up(table, entry_of(table.shape[-1], self.left, q_pos, k_pos, rows, cols)[:, None])


class TablePerKey(TablePerToken):
    """A table by distance for each key."""

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""
        expect_size(self, self.of_tokens[0], 2, "keys", keys)

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        table = self.tables()[:, :, cols]
        entry = entry_of(table.shape[-1], self.left, q_pos, k_pos, rows, cols)[:, None].transpose(-1, -2)
        return _looked_up(table, entry).transpose(-1, -2)


@dataclass(frozen=True, eq=False)
class _Given(TablePerToken):
    """Tables that are given."""

    table: Float[Tensor, "#batch #heads tokens width"]
    left: int

    def __post_init__(self) -> None:
        expect(self, "table", 4)
        expect_number(self, "left", -FAR)

    def tables(self, tokens: slice = ALL) -> Float[Tensor, "#batch #heads tokens width"]:
        """See :meth:`TablePerToken.tables`."""
        return self.table[:, :, tokens]

    @property
    def of_tokens(self) -> tuple[str, Float[Tensor, "#batch #heads tokens width"]]:
        """See :attr:`TablePerToken.of_tokens`."""
        return "table", self.table


@dataclass(frozen=True, eq=False)
class ByDistancePerQuery(_Given, TablePerQuery):
    """Adds table[b, h, i, clamp(k_pos - q_pos + left)]: each query has its own table.

    Args:
        table: one value per query and distance, (B or 1, H or 1, Q, W).
        left: the entry of distance 0.
    """

    axes: ClassVar[dict[str, str]] = {"table": "bhqx"}


@dataclass(frozen=True, eq=False)
class ByDistancePerKey(_Given, TablePerKey):
    """Adds table[b, h, j, clamp(k_pos - q_pos + left)]: each key has its own table.

    Args:
        table: one value per key and distance, (B or 1, H or 1, K, W).
        left: the entry of distance 0.
    """

    axes: ClassVar[dict[str, str]] = {"table": "bhkx"}


@dataclass(frozen=True, eq=False)
class _Product(TablePerToken):
    """Tables that are products."""

    x: Float[Tensor, "#batch heads tokens dim"]
    vectors: Float[Tensor, "#heads entries dim"]
    left: int
    index: Int[Tensor, " width"] | None = None

    def __post_init__(self) -> None:
        expect(self, "x", 4)
        expect(self, "vectors", 3)
        expect_number(self, "left", -FAR)
        width, heads = self.vectors.shape[2], self.vectors.shape[0]
        if self.x.shape[3] != width or heads not in (1, self.x.shape[1]):
            raise HeadwayError(
                f"expected the vectors of {type(self).__name__} as (heads or 1, distances, {self.x.shape[3]}), as wide "
                f"as x, got shape {tuple(self.vectors.shape)} with x of shape {tuple(self.x.shape)}"
            )
        if self.index is not None and (self.index.ndim != 1 or self.index.dtype is not torch.int64):
            raise HeadwayError(
                f"expected the index of {type(self).__name__} as an int64 tensor, one entry per distance, got "
                f"{kind_of(self.index)}"
            )

    def tables(self, tokens: slice = ALL) -> Float[Tensor, "#batch heads tokens width"]:
        """See :meth:`TablePerToken.tables`."""
        vectors = self.vectors if self.index is None else self.vectors[:, self.index]
        return self.x[:, :, tokens] @ vectors.mT

    @property
    def of_tokens(self) -> tuple[str, Float[Tensor, "#batch heads tokens dim"]]:
        """See :attr:`TablePerToken.of_tokens`."""
        return "x", self.x


@dataclass(frozen=True, eq=False)
class ProductPerQuery(_Product, TablePerQuery):
    """Adds x[b, h, i] · vectors[h, entry], entry = clamp(k_pos - q_pos + left), or index[clamp(…)].

    The native kernel computes these products a block of queries at a time; other backends materialise a table for each
    query.

    Args:
        x: a vector for each query, usually q times the scale, (B or 1, H, Q, D).
        vectors: one vector per distance, (H or 1, W, D), or per entry that ``index`` names.
        left: the entry of distance 0.
        index: which of the vectors serves a distance, (W,), so that distances can share them (log buckets); default
            each has its own.

    >>> x, vectors = torch.ones(1, 1, 3, 2), torch.tensor([[[1.0, 0.0], [2.0, 0.5]]])
    >>> pos = torch.arange(3)[None]
    >>> ProductPerQuery(x, vectors, 1).tile(pos, pos)[0, 0, 1].tolist()
    [1.0, 2.5, 2.5]
    """

    axes: ClassVar[dict[str, str]] = {"x": "bhqx", "vectors": "hxx"}

    def given(self) -> ByDistancePerQuery:
        """The same with its tables computed."""
        return ByDistancePerQuery(self.tables(), self.left)


@dataclass(frozen=True, eq=False)
class ProductPerKey(_Product, TablePerKey):
    """Adds x[b, h, j] · vectors[h, entry], entry = clamp(k_pos - q_pos + left), or index[clamp(…)] (DeBERTa's p→c).

    As :class:`ProductPerQuery`, with a vector for each key.

    Args:
        x: a vector for each key, (B or 1, H, K, D).
        vectors: one vector per distance, (H or 1, W, D), or per entry that ``index`` names.
        left: the entry of distance 0.
        index: which of the vectors serves a distance, (W,); default each has its own.
    """

    axes: ClassVar[dict[str, str]] = {"x": "bhkx", "vectors": "hxx"}

    def given(self) -> ByDistancePerKey:
        """The same with its tables computed."""
        return ByDistancePerKey(self.tables(), self.left)


@dataclass(frozen=True, eq=False)
class SlopePerToken(Term):
    """Adds |k_pos - q_pos| · (q[b, h, i] + k[b, h, j]): ALiBi with a slope for each query and key (GRAPE-A).

    Args:
        q: one slope per query, (B or 1, H or 1, Q); None is 0.
        k: one slope per key, (B or 1, H or 1, K); None is 0.

    >>> pos = torch.arange(3)[None]
    >>> SlopePerToken(torch.full((1, 1, 3), -1.0), None).tile(pos, pos)[0, 0, 2, :2].tolist()
    [-2.0, -1.0]
    """

    axes: ClassVar[dict[str, str]] = {"q": "bhq", "k": "bhk"}

    q: Float[Tensor, "#batch #heads queries"] | None
    k: Float[Tensor, "#batch #heads keys"] | None

    def __post_init__(self) -> None:
        for name in ("q", "k"):
            given = getattr(self, name)
            if not isinstance(given, Tensor) or given.ndim != 3 or given.shape[-1]:  # there may be no tokens
                expect(self, name, 3, optional=True)

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""
        if self.q is not None:
            expect_size(self, "q", 2, "queries", queries)
        if self.k is not None:
            expect_size(self, "k", 2, "keys", keys)

    @property
    def leading(self) -> tuple[tuple[int, int], ...]:
        """See :attr:`Term.leading`."""
        return tuple((x.shape[0], x.shape[1]) for x in (self.q, self.k) if x is not None)

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        slope: Tensor | float = 0.0 if self.q is None else self.q[:, :, rows, None]
        if self.k is not None:
            slope = slope + self.k[:, :, None, cols]
        return distance(q_pos, k_pos, rows, cols).abs()[:, None] * slope


@dataclass(frozen=True, eq=False)
class CurveByDistance(Term):
    """Adds a piecewise linear function of a distance that is scaled for each query: f_h(level[|n|] · rate[i]) (FIRE).

        f_h(x) = base[h, s] + slope[h, s] · x          s  the number of knots that are at most x

    A network of one input with one hidden layer of ReLUs is such a function, see :meth:`of_network`.

    Args:
        level: does not fall with the distance, (W,); the last serves all distances beyond.
        rate: positive, one per query, (B or 1, Q).
        knots: in ascending order, (K,); no gradient, since f is continuous.
        base: (H or 1, K + 1).
        slope: (H or 1, K + 1).

    >>> pos = torch.arange(3)[None]
    >>> level, rate = torch.tensor([0.0, 1.0, 2.0]), torch.ones(1, 3)
    >>> base, slope = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> curve = CurveByDistance(level, rate, torch.tensor([1.0]), base, slope)
    >>> curve.tile(pos, pos)[0, 0, 2].tolist()
    [1.0, 1.0, 0.0]
    """

    axes: ClassVar[dict[str, str]] = {"rate": "bq", "base": "hx", "slope": "hx"}

    level: Float[Tensor, " width"]
    rate: Float[Tensor, "#batch queries"]
    knots: Float[Tensor, " knots"]
    base: Float[Tensor, "#heads pieces"]
    slope: Float[Tensor, "#heads pieces"]

    def __post_init__(self) -> None:
        for name, axes in (("level", 1), ("rate", 2), ("base", 2), ("slope", 2)):
            expect(self, name, axes)
        pieces = self.knots.shape[0] + 1
        expect_size(self, "base", 1, "pieces", pieces)
        expect_size(self, "slope", 1, "pieces", pieces)

    @classmethod
    def of_network(
        cls,
        level: Float[Tensor, " width"],
        rate: Float[Tensor, "#batch queries"],
        inner: tuple[Float[Tensor, " hidden"], Float[Tensor, " hidden"]],
        outer: tuple[Float[Tensor, "heads hidden"], Float[Tensor, " heads"]],
    ) -> CurveByDistance:
        """f_h(x) = W_h · relu(w x + b) + c_h, differentiable in all of these.

        Args:
            level: see the class.
            rate: see the class.
            inner: w and b.
            outer: W and c.
        """
        (w, b), (weight, bias) = inner, outer
        with torch.no_grad():
            knots = (-b / w)[w != 0].sort().values
            ends = torch.cat((knots[:1] - 1, knots, knots[-1:] + 1)) if len(knots) else knots.new_zeros(2)
            middle = (ends[:-1] + ends[1:]) / 2
            active = (middle[:, None] * w + b > 0).to(w)  # (pieces, hidden)
        base = (weight * b) @ active.mT + bias[:, None]
        return cls(level, rate, knots, base, (weight * w) @ active.mT)

    def breaks(self) -> Int[Tensor, "#batch queries knots"]:
        """The distance at which each query reaches each knot; beyond all distances if it does not."""
        with torch.no_grad():
            found = torch.searchsorted(self.level, self.knots / self.rate[..., None])
            return found.masked_fill(found == self.level.shape[0], FAR)

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""
        expect_size(self, "rate", 1, "queries", queries)
        expect_size(self, "base", 0, "heads", heads, 1)
        expect_size(self, "slope", 0, "heads", heads, 1)

    @property
    def leading(self) -> tuple[tuple[int, int], ...]:
        """See :attr:`Term.leading`."""
        return ((self.rate.shape[0], max(len(self.base), len(self.slope))),)

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        away = distance(q_pos, k_pos, rows, cols).abs().clamp(max=self.level.shape[0] - 1)  # (B, q, k)
        breaks = self.breaks()[:, rows]
        batch = max(len(away), len(breaks))
        away = away.expand(batch, -1, -1).contiguous()
        piece = torch.searchsorted(breaks.expand(batch, -1, -1).contiguous(), away, right=True)
        x = self.level[away] * self.rate[:, rows, None]
        return (self.base[:, piece] + self.slope[:, piece] * x).movedim(0, 1)
