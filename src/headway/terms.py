"""What may be added to attention scores, as data a kernel can look into, a planner choose by and a plot draw.

    score(i, j) = scale · q_i·k_j + Σ terms(i, j)

Each term is defined by its ``tile``: plain torch, for any rectangle of queries and keys, from explicit positions.
A term holds one value per distance (``ByDistance``), per key (``PerKey``) and so on, not one per pair: what is O(n)
stays O(n) until a backend decides otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from headway.masks import ALL, FAR, Positions, distance
from headway.shapes import HeadwayError, brief

Tile = Float[Tensor, "#batch #heads queries keys"]


def _expect(term: Any, name: str, axes: int, optional: bool = False) -> None:
    """Refuse what a term was given under this name unless it is a tensor of floats with so many axes."""
    given = getattr(term, name)
    if isinstance(given, Tensor) and given.ndim == axes and given.is_floating_point() and 0 not in given.shape[-1:]:
        return
    if given is not None or not optional:
        got = f"{given.dtype} of shape {tuple(given.shape)}" if isinstance(given, Tensor) else brief(given)
        raise HeadwayError(
            f"expected the {name} of {type(term).__name__} as a tensor of floats with {axes} axes, the last not empty, "
            f"got {got}"
        )


def _expect_number(term: Any, name: str, least: int) -> None:
    """Refuse what a term was given under this name unless it is a whole number that distances can be."""
    given = getattr(term, name)
    if not isinstance(given, int) or isinstance(given, bool) or not least <= given < FAR:
        raise HeadwayError(f"expected the {name} of {type(term).__name__} as a whole number, got {brief(given)}")


def _expect_size(term: Any, name: str, axis: int, of: str, *sizes: int) -> None:
    """Refuse a term that holds entries for another number of queries, keys or heads than there are."""
    shape = tuple(getattr(term, name).shape)
    if shape[axis] not in sizes:
        raise HeadwayError(
            f"expected the {name} of {type(term).__name__} for {' or '.join(map(str, sizes))} {of}, got shape {shape}"
        )


class Term:
    """Something added to the scores."""

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """Refuse another number of tokens than the term was made for; of sequences and heads backends do themselves.

        Raises:
            HeadwayError: when it holds entries for another number.
        """

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

    def __post_init__(self) -> None:
        if not isinstance(self.bias, Tensor) or self.bias.ndim != 3 or self.bias.shape[-1]:  # there may be no keys
            _expect(self, "bias", 3)

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""
        _expect_size(self, "bias", 2, "keys", keys)

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        return self.bias[:, :, None, cols].expand(-1, -1, q_pos[:, rows].shape[1], -1)


@dataclass(frozen=True, eq=False)
class Difference(Term):
    """Adds own[b, h, i] − c[b, h, j], each difference taken in the dtype of both and then rounded.

    Softmax ignores ``own``, and :class:`PerKey` has a smaller form; a sink, or other weights than softmax, do not.

    Args:
        own: one number per query, (B or 1, H or 1, Q).
        c: one number per key, (B or 1, H or 1, K).
        dtype: of what is added.
    """

    own: Float[Tensor, "#batch #heads queries"]
    c: Float[Tensor, "#batch #heads keys"]
    dtype: torch.dtype

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        return (self.own[:, :, rows, None] - self.c[:, :, None, cols]).to(self.dtype)


def raster(pos: Positions, row: int) -> Positions:
    """Where a token of a raster with rows this wide comes to lie when a gap of row − 1 follows each: -1 stays.

    There, any two tokens that lie (Δy, Δx) apart are Δy·(2·row − 1) + Δx apart, and no others are. Order is kept.

    >>> raster(torch.tensor([[-1, 0, 1, 2, 3, 6]]), 3).tolist()
    [[-1, 0, 1, 2, 5, 10]]
    """
    return pos + (pos // row).clamp(min=0) * (row - 1)


@dataclass(frozen=True, eq=False)
class ByDistance(Term):
    """Adds table[h, clamp(k_pos - q_pos + left)], and beyond the table's ends grows linearly by ``tails`` per step.

    Without tails the bias saturates (T5, Shaw); a table of one entry with tails is ALiBi. See :meth:`linear`.

    Args:
        table: one value per head and distance, (H or 1, W).
        left: the entry of distance 0; entries below it are the past.
        tails: added per step beyond the left and the right end, (H or 1, 2); None is (0, 0).
        row: positions are y·row + x, tokens of an image, and distances are those of :func:`raster`, where every
            (Δy, Δx) has its own; None takes positions as they are.
    """

    table: Float[Tensor, "#heads width"]
    left: int
    tails: Float[Tensor, "#heads 2"] | None = None
    row: int | None = None

    def __post_init__(self) -> None:
        _expect(self, "table", 2)
        _expect(self, "tails", 2, optional=True)
        _expect_number(self, "left", -FAR)
        if self.tails is not None:
            _expect_size(self, "tails", 1, "ends", 2)
        if self.row is not None:
            _expect_number(self, "row", 1)

    @classmethod
    def linear(cls, slope: Float[Tensor, " heads"]) -> ByDistance:
        """slope[h] · |k_pos - q_pos|, for any distance.

        >>> pos = torch.arange(3)[None]
        >>> ByDistance.linear(torch.tensor([-0.5])).tile(pos, pos)[0, 0].tolist()
        [[0.0, -0.5, -1.0], [-0.5, 0.0, -0.5], [-1.0, -0.5, 0.0]]
        """
        if not isinstance(slope, Tensor) or slope.ndim != 1 or not slope.is_floating_point():
            got = f"{slope.dtype} of shape {tuple(slope.shape)}" if isinstance(slope, Tensor) else brief(slope)
            raise HeadwayError(f"expected slopes as a tensor of floats, one per head or one for all, got {got}")
        return cls(torch.zeros_like(slope)[:, None], 0, torch.stack((slope, slope), 1))

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        if self.row is not None:
            q_pos, k_pos = raster(q_pos, self.row), raster(k_pos, self.row)
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

    def __post_init__(self) -> None:
        _expect(self, "table", 4)
        _expect_number(self, "left", -FAR)

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""
        _expect_size(self, "table", 2, "queries", queries)

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

    def __post_init__(self) -> None:
        _expect(self, "table", 4)
        _expect_number(self, "left", -FAR)

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""
        _expect_size(self, "table", 2, "keys", keys)

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

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise HeadwayError(f"expected fn of Pairwise as a function of positions, got {brief(self.fn)}")

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        bias = self.fn(q_pos[:, rows], k_pos[:, cols])
        expected = (q_pos[:, rows].shape[1], k_pos[:, cols].shape[1])
        if not isinstance(bias, Tensor) or not bias.is_floating_point() or bias.device != q_pos.device:
            got = f"{bias.dtype} on {bias.device}" if isinstance(bias, Tensor) else brief(bias)
            raise HeadwayError(f"expected Pairwise fn to return a tensor of floats on {q_pos.device}, got {got}")
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

    def __post_init__(self) -> None:
        _expect(self, "table", 3)
        _expect_number(self, "left", -FAR)

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""
        _expect_size(self, "table", 0, "heads", heads, 1)
        _expect_size(self, "table", 2, "dimensions of values", dim_v)

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

    Only backends that hold whole rows run it (tiled, reference). NaN and inf in what it holds per query or key count as
    zero in :meth:`rows`; ``attend`` makes NaN of the rows that see them, and of no others.
    """

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""

    @property
    def per_query(self) -> tuple[Float[Tensor, "#batch #heads queries width"], ...]:
        """What it holds for each query."""
        return ()

    @property
    def per_key(self) -> tuple[Float[Tensor, "#batch kv_heads keys width"], ...]:
        """What it holds for each key."""
        return ()

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
    x = _shown(x, seen)
    if not inclusive:
        x = torch.nn.functional.pad(x, (0, 1))[..., 1:]
    return x.flip(-1).cumsum(-1).flip(-1)


def _in_groups(x: Shaped[Tensor, "batch heads queries dim"], heads: int) -> Shaped[Tensor, "batch kv_heads rows dim"]:
    """Queries of all heads that share one of ``heads``, one after the other."""
    return x.reshape(x.shape[0], heads, x.shape[1] // heads * x.shape[2], x.shape[3])


def _finite(x: Tensor, dtype: torch.dtype) -> Tensor:
    """With zeros for NaN and inf, before a product of them with a hidden pair's zero makes NaN of a sum."""
    return x.to(dtype).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


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

    @property
    def per_query(self) -> tuple[Float[Tensor, "#batch #heads queries width"], ...]:
        """See :attr:`RowTerm.per_query`."""
        return tuple(x for x in (self.table, self.left) if x is not None)

    @property
    def per_key(self) -> tuple[Float[Tensor, "#batch kv_heads keys width"], ...]:
        """See :attr:`RowTerm.per_key`."""
        return () if self.right is None else (self.right,)

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
        table = _finite(self.table[:, :, rows], wide).expand(*count.shape[:3], -1)
        count = count.clamp(max=table.shape[-1] - 1)
        entry = count.detach().nan_to_num(nan=0.0)  # NaN is no index; it stays in the result
        below, above = (table.gather(-1, which.long()) for which in (entry.floor(), entry.ceil()))
        return torch.lerp(below, above, count - count.detach().floor())

    def _gates(self, content: Tensor, seen: Tensor | None, rows: slice, cols: slice) -> Tensor:
        if self.left is None or self.right is None:
            return _shown(content, seen).sigmoid()
        left, right = (_finite(x, content.dtype) for x in (self.left[:, :, rows], self.right[:, :, cols]))
        product = (_in_groups(left, right.shape[1]) @ right.mT).reshape(*left.shape[:3], right.shape[2])
        # before log σ, whose gradient would make NaN of what is hidden
        gates = torch.nn.functional.logsigmoid(_shown(product, seen))
        return gates if self.slope is None else gates * self.slope.to(gates.dtype)[:, None, None]


PATH_BLOCK = 64
"""Keys whose reflections are applied together: the triangular system of a block is as large."""


@dataclass(frozen=True, eq=False)
class PathProduct(RowTerm):
    """Turns scale · q_i·k_j into scale · q_i·H_r ⋯ H_{j+1} k_j, H_t = I − β_t w_t w_tᵀ, by adding the difference.

    r is the last key that query i may see: its own under a causal mask. Tokens lie in the order of memory; those at
    position -1 are passed over (β = 0).

    From r to the left, u ← H_t u. With γ_t what token t takes of it, u before j is q − Σ_{t>j} γ_t w_t, and for a block
    of tokens γ solves a triangular system (the UT transform), so that rows · keys · D multiplications suffice:

        γ_t + β_t Σ_{s>t} (w_t·w_s) γ_s = β_t w_t·u

    Args:
        q: queries, (B, H, Q, D).
        k: keys, (B, H_kv, K, D).
        w: directions of unit length, (B, H_w, K, D), where H_kv divides H_w and H_w divides H.
        beta: how much of the direction is taken, (B, H_w, K); 2 reflects.
        scale: multiplies q·k.
    """

    q: Float[Tensor, "batch heads queries dim"]
    k: Float[Tensor, "batch kv_heads keys dim"]
    w: Float[Tensor, "batch w_heads keys dim"]
    beta: Float[Tensor, "batch w_heads keys"]
    scale: float

    @property
    def per_query(self) -> tuple[Float[Tensor, "#batch #heads queries width"], ...]:
        """See :attr:`RowTerm.per_query`."""
        return (self.q,)

    @property
    def per_key(self) -> tuple[Float[Tensor, "#batch kv_heads keys width"], ...]:
        """See :attr:`RowTerm.per_key`."""
        return self.k, self.w, self.beta[..., None]

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
        held = (self.q[:, :, rows], self.k[:, :, cols], self.w[:, :, cols], self.beta[:, :, cols])
        q, k, w, beta = (_finite(x, wide) for x in held)
        beta = beta * (k_pos[:, None, cols] >= 0)
        groups = w.shape[1]
        q, k = _in_groups(q, groups), k.repeat_interleave(groups // k.shape[1], 1)
        before = None  # whether a token comes before the last key that a query may see, or is it
        if seen is not None:
            before = _in_groups((seen.flip(-1).cumsum(-1) > 0).flip(-1).expand(content.shape), groups)
        taken, tiles = torch.zeros_like(q), [q.new_zeros(*q.shape[:3], 0)]
        for stop in range(k.shape[2], 0, -PATH_BLOCK):
            part = slice(max(0, stop - PATH_BLOCK), stop)
            k_part, w_part, b_part = k[:, :, part], w[:, :, part], beta[:, :, None, part]
            share = (q - taken) @ w_part.mT * b_part
            if before is not None:
                share = share.masked_fill(~before[..., part], 0.0)
            system = (w_part @ w_part.mT * b_part).tril(-1)  # its diagonal is taken for 1
            share = torch.linalg.solve_triangular(system, share, upper=False, left=False, unitriangular=True)
            tiles.append(taken @ k_part.mT + share @ (w_part @ k_part.mT).tril(-1))
            taken = taken + share @ w_part
        return torch.cat(tiles[::-1], -1).reshape(content.shape) * -self.scale


@dataclass(frozen=True, eq=False)
class MixHeads(RowTerm):
    """Adds B + f(A, B): a bias B, and what a small network over all heads makes of the content A and of B at a pair.

        f = second ∗ LeakyReLU(first ∗ (A, B) + first_bias)

    ∗ is a product over the heads, and a convolution over ``kernel`` neighbouring keys if that is above 1. Hidden pairs
    are zero at either layer, so that a row is the same whatever comes after it; so are keys that are not there.

    Args:
        bias: terms that make up B.
        first: (F, 2H, kernel), kernel odd.
        first_bias: (F,).
        second: (H, F, kernel).
        order: which token of the text each key is, (B or 1, K): neighbours are those with neighbouring numbers, padding
            aside; None takes those in memory.
    """

    bias: tuple[Term, ...]
    first: Float[Tensor, "hidden both_heads kernel"]
    first_bias: Float[Tensor, " hidden"]
    second: Float[Tensor, "heads hidden kernel"]
    order: Int[Tensor, "#batch keys"] | None = None

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
        content, bias = content.to(wide), content.new_zeros((), dtype=wide)
        for term in self.bias:
            bias = bias + term.tile(q_pos, k_pos, rows, cols).to(wide)
        both = torch.cat((_shown(content, seen), _shown(bias.expand_as(content), seen)), 1)
        near = None
        if self.order is not None and self.first.shape[-1] > 1:
            near = _neighbours(self.order[:, cols], k_pos[:, cols] >= 0, self.first.shape[-1] // 2)
        hidden = _over_heads(self.first, both, near) + self.first_bias.to(wide)[:, None, None]
        hidden = torch.nn.functional.leaky_relu(hidden)
        if self.first.shape[-1] > 1:
            hidden = _shown(hidden, None if seen is None else seen.any(1, keepdim=True))
        return bias + _over_heads(self.second, hidden, near)


def _shown(x: Tensor, seen: Tensor | None) -> Tensor:
    """With zeros for hidden pairs."""
    return x if seen is None else x.masked_fill(~seen, 0.0)


def _neighbours(
    order: Int[Tensor, "#batch keys"], real: Bool[Tensor, "#batch keys"], reach: int
) -> list[tuple[Int[Tensor, "batch keys"], Bool[Tensor, "batch keys"]]]:
    """Where in memory the neighbours of each key lie, from the one ``reach`` before to the one after, and whether they
    are there.
    """
    order, real = torch.broadcast_tensors(order, real)
    sorted_order, place = order.masked_fill(~real, torch.iinfo(order.dtype).max).sort(1)
    sorted_order, found = sorted_order.contiguous(), []
    for step in range(-reach, reach + 1):
        rank = torch.searchsorted(sorted_order, order + step).clamp(max=order.shape[1] - 1)
        found.append((place.gather(1, rank), (sorted_order.gather(1, rank) == order + step) & real))
    return found


def _over_heads(
    weight: Float[Tensor, "out heads kernel"],
    x: Float[Tensor, "batch heads queries keys"],
    near: list[tuple[Int[Tensor, "#batch keys"], Bool[Tensor, "#batch keys"]]] | None,
) -> Float[Tensor, "batch out queries keys"]:
    """A convolution over neighbouring keys, zeros beyond the ends, with the heads as its channels."""
    if x.numel() == 0:
        return x.new_zeros(x.shape[0], weight.shape[0], *x.shape[2:])
    weight = weight.to(x.dtype)
    if near is None:
        return torch.nn.functional.conv2d(x, weight[:, :, None], padding=(0, weight.shape[2] // 2))
    total = x.new_zeros(())
    for tap, (place, there) in zip(weight.unbind(2), near, strict=True):
        neighbour = x.gather(-1, place[:, None, None].expand(*x.shape[:3], -1))
        total = total + torch.einsum("oh,bhqk->boqk", tap, neighbour.masked_fill(~there[:, None, None], 0.0))
    return total


AnyTerm = Term | RowTerm | ValuesByDistance
