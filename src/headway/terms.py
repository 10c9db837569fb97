"""What may be added to attention scores, as data a kernel can look into, a planner choose by and a plot draw.

    score(i, j) = scale · q_i·k_j + Σ terms(i, j)

Each term is defined by its ``tile``: plain torch, for any rectangle of queries and keys, from explicit positions.
A term holds one value per distance (``ByDistance``), per key (``PerKey``) and so on, not one per pair: what is O(n)
stays O(n) until a backend decides otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headway.masks import ALL, Positions, distance
from headway.shapes import HeadwayError

Tile = Float[Tensor, "#batch #heads queries keys"]


class Term:
    """Something added to the scores."""

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """What the term adds for queries ``rows`` and keys ``cols``, (B or 1, H or 1, q, k).

        Args:
            q_pos: positions of all queries, (B or 1, Q).
            k_pos: positions of all keys, (B or 1, K).
            rows: the queries of the tile; default all.
            cols: the keys of the tile; default all.
        """
        raise NotImplementedError


def _entry(
    width: int, left: int, q_pos: Positions, k_pos: Positions, rows: slice, cols: slice
) -> Int[Tensor, "#batch q k"]:
    """Which of ``width`` entries belongs to each pair; entry ``left`` is distance 0, the ends serve all beyond."""
    return (distance(q_pos, k_pos, rows, cols) + left).clamp(0, width - 1)


@dataclass(frozen=True, eq=False)
class PerKey(Term):
    """Adds c[b, h, j]: one number per key, the same for every query.

    Args:
        bias: c, (B or 1, H or 1, K).
    """

    bias: Float[Tensor, "#batch #heads keys"]

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        return self.bias[:, :, None, cols].expand(-1, -1, q_pos[:, rows].shape[1], -1)


@dataclass(frozen=True, eq=False)
class ByDistance(Term):
    """Adds table[h, clamp(k_pos - q_pos + left)], and beyond the table's ends grows linearly by ``tails`` per step.

    Without tails the bias saturates (T5, Shaw); a table of one entry with tails is ALiBi. See :meth:`linear`.

    Args:
        table: one value per head and distance, (H or 1, W).
        left: the entry of distance 0; entries below it are the past.
        tails: added per step beyond the left and the right end, (H or 1, 2); None is (0, 0).
    """

    table: Float[Tensor, "#heads width"]
    left: int
    tails: Float[Tensor, "#heads 2"] | None = None

    @classmethod
    def linear(cls, slope: Float[Tensor, " heads"]) -> ByDistance:
        """slope[h] · |k_pos - q_pos|, for any distance.

        >>> pos = torch.arange(3)[None]
        >>> ByDistance.linear(torch.tensor([-0.5])).tile(pos, pos)[0, 0].tolist()
        [[0.0, -0.5, -1.0], [-0.5, 0.0, -0.5], [-1.0, -0.5, 0.0]]
        """
        return cls(torch.zeros_like(slope)[:, None], 0, torch.stack((slope, slope), 1))

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        width = self.table.shape[1]
        entry = _entry(width, self.left, q_pos, k_pos, rows, cols)  # (B, Q, K)
        if width == 1:
            bias = self.table[None, :, :, None].expand(entry.shape[0], -1, *entry.shape[1:])
        else:
            # embedding's backward sums equal entries densely; indexing's would sort them first
            bias = torch.nn.functional.embedding(entry, self.table.T).permute(0, 3, 1, 2)
        if self.tails is not None:
            beyond = (distance(q_pos, k_pos, rows, cols) + self.left - entry)[:, None]  # (B, 1, Q, K)
            past, future = self.tails[None, :, :, None, None].unbind(2)
            bias = bias + past * (-beyond).clamp(min=0) + future * beyond.clamp(min=0)
        return bias


@dataclass(frozen=True, eq=False)
class ByDistancePerQuery(Term):
    """Adds rows[b, h, i, clamp(k_pos - q_pos + left)]: each query brings its own table (Shaw, Transformer-XL).

    Args:
        table: one value per query and distance, (B or 1, H or 1, Q, W).
        left: the entry of distance 0.
    """

    table: Float[Tensor, "#batch #heads queries width"]
    left: int

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        entry = _entry(self.table.shape[-1], self.left, q_pos, k_pos, rows, cols)[:, None]
        table = self.table[:, :, rows]
        batch = torch.broadcast_shapes(table.shape[:2], entry.shape[:2])
        return table.expand(*batch, -1, -1).gather(-1, entry.expand(*batch, -1, -1))


@dataclass(frozen=True, eq=False)
class ByDistancePerKey(Term):
    """Adds columns[b, h, j, clamp(k_pos - q_pos + left)]: each key brings its own table (DeBERTa's p→c).

    Args:
        table: one value per key and distance, (B or 1, H or 1, K, W).
        left: the entry of distance 0.
    """

    table: Float[Tensor, "#batch #heads keys width"]
    left: int

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        entry = _entry(self.table.shape[-1], self.left, q_pos, k_pos, rows, cols)[:, None].transpose(-1, -2)
        table = self.table[:, :, cols]
        batch = torch.broadcast_shapes(table.shape[:2], entry.shape[:2])
        return table.expand(*batch, -1, -1).gather(-1, entry.expand(*batch, -1, -1)).transpose(-1, -2)


@dataclass(frozen=True, eq=False)
class Pairwise(Term):
    """Adds fn(q_pos, k_pos) of a tile: whatever has no smaller form (a graph's distances, a dense bias).

    Args:
        fn: maps query positions (B or 1, q) and key positions (B or 1, k) to a bias (B or 1, H or 1, q, k).
    """

    fn: Callable[[Positions, Positions], Tile]

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        bias = self.fn(q_pos[:, rows], k_pos[:, cols])
        expected = (q_pos[:, rows].shape[1], k_pos[:, cols].shape[1])
        if bias.ndim != 4 or tuple(bias.shape[-2:]) != expected:
            raise HeadwayError(
                f"expected Pairwise fn to return (batch or 1, heads or 1, {expected[0]}, {expected[1]}), "
                f"got {tuple(bias.shape)}"
            )
        return bias


@dataclass(frozen=True, eq=False)
class ValuesByDistance:
    """Acts on the values, not the scores: out_i += Σ_j α_ij · table[clamp(k_pos - q_pos + left)] (Shaw's a^V).

    Args:
        table: one vector per distance, (H or 1, W, D_v).
        left: the entry of distance 0.
    """

    table: Float[Tensor, "#heads width dim"]
    left: int

    def add(
        self, weights: Float[Tensor, "batch heads queries keys"], q_pos: Positions, k_pos: Positions
    ) -> Float[Tensor, "batch heads queries dim"]:
        """What the term adds to the output, given the attention weights α of all pairs."""
        entry = _entry(self.table.shape[1], self.left, q_pos, k_pos, ALL, ALL)[:, None]  # (B, 1, Q, K)
        # weights of equal distance are summed first: O(Q·W·D) instead of a vector for every pair
        share = weights.new_zeros(*weights.shape[:3], self.table.shape[1])
        share = share.scatter_add(-1, entry.expand_as(weights), weights)
        return share @ self.table.to(share.dtype)


class RowTerm:
    """Something added to the scores that no pair can know by itself: it needs a query's whole row, or all heads.

    Only backends that hold whole rows run it (tiled, reference).
    """

    def rows(
        self,
        content: Float[Tensor, "batch heads queries keys"],
        seen: Bool[Tensor, "#batch #heads queries keys"] | None,
        q_pos: Positions,
        k_pos: Positions,
        rows: slice = ALL,
        cols: slice = ALL,
    ) -> Tile:
        """What the term adds for queries ``rows`` and keys ``cols``, which are all keys that any of them may see.

        Args:
            content: scale · q·k of the tile, capped if there is a softcap.
            seen: which keys the queries may see; None is all. What is hidden must reach nothing.
            q_pos: positions of all queries, (B or 1, Q).
            k_pos: positions of all keys, (B or 1, K).
            rows: the queries of the tile; default all.
            cols: the keys of the tile; default all.
        """
        raise NotImplementedError


def from_the_end(
    x: Float[Tensor, "batch heads queries keys"],
    seen: Bool[Tensor, "#batch #heads queries keys"] | None,
    inclusive: bool,
) -> Float[Tensor, "batch heads queries keys"]:
    """Sums over the seen keys of each row from every key to the last, in the order they lie in memory.

    Args:
        x: what is summed, already finite where it is hidden.
        seen: which keys count; None is all.
        inclusive: whether a key counts for its own sum.
    """
    if seen is not None:
        x = x.masked_fill(~seen, 0.0)
    if not inclusive:
        x = torch.nn.functional.pad(x, (0, 1))[..., 1:]
    return x.flip(-1).cumsum(-1).flip(-1)


def _in_groups(x: Float[Tensor, "batch heads queries dim"], heads: int) -> Float[Tensor, "batch kv_heads rows dim"]:
    """Queries of all heads that share one of ``heads``, one after the other."""
    return x.unflatten(1, (heads, x.shape[1] // heads)).flatten(2, 3)


@dataclass(frozen=True, eq=False)
class Scan(RowTerm):
    """Adds c_ij, the sum of a gate over the keys a query sees from key j to its last, in the order they lie in memory;
    or looks c_ij up in a table that each query brings.

        z_it = content_it, or left_i · right_t                  g_it = σ(z_it), or slope_h · log σ(z_it)
        c_ij = Σ_{t ≥ j} g_it inclusive, Σ_{t > j} g_it else    over the t that query i sees

    A table is read between its entries ⌊c⌋ and ⌈c⌉ linearly, and its last entry serves all beyond (CoPE); without one
    c itself is added (GRAPE-AP). Sums are taken in float32 or better.

    Args:
        inclusive: whether the gate of key j itself counts.
        table: one value per query and count, (B or 1, H or 1, Q, W); None adds c.
        left: for each query, (B or 1, H, Q, D); None gates by the content, with σ.
        right: for each key, (B or 1, H_kv, K, D); with ``left``, whose heads H_kv divides.
        slope: multiplies log σ, (H or 1,).
    """

    inclusive: bool
    table: Float[Tensor, "#batch #heads queries width"] | None = None
    left: Float[Tensor, "#batch heads queries dim"] | None = None
    right: Float[Tensor, "#batch kv_heads keys dim"] | None = None
    slope: Float[Tensor, " #heads"] | None = None

    def rows(
        self,
        content: Float[Tensor, "batch heads queries keys"],
        seen: Bool[Tensor, "#batch #heads queries keys"] | None,
        q_pos: Positions,
        k_pos: Positions,
        rows: slice = ALL,
        cols: slice = ALL,
    ) -> Tile:
        """See :meth:`RowTerm.rows`."""
        wide = torch.promote_types(content.dtype, torch.float32)
        count = from_the_end(self._gates(content.to(wide), seen, rows, cols), seen, self.inclusive)
        if self.table is None:
            return count
        table = self.table[:, :, rows].to(wide).expand(*count.shape[:3], -1)
        count = count.clamp(max=table.shape[-1] - 1)
        below, above = (table.gather(-1, entry.long()) for entry in (count.floor(), count.ceil()))
        return torch.lerp(below, above, count - count.detach().floor())

    def _gates(self, content: Tensor, seen: Tensor | None, rows: slice, cols: slice) -> Tensor:
        if self.left is None or self.right is None:
            return (content if seen is None else content.masked_fill(~seen, 0.0)).sigmoid()
        left, right = (x.to(content.dtype) for x in (self.left[:, :, rows], self.right[:, :, cols]))
        product = (_in_groups(left, right.shape[1]) @ right.mT).reshape(*left.shape[:3], right.shape[2])
        # before log σ, whose gradient would make NaN of what is hidden
        product = product if seen is None else product.masked_fill(~seen, 0.0)
        gates = torch.nn.functional.logsigmoid(product)
        return gates if self.slope is None else gates * self.slope.to(gates.dtype)[:, None, None]


AnyTerm = Term | RowTerm | ValuesByDistance
