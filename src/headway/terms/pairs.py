"""Terms that can be added to attention scores, as data that kernels read, planners inspect and plots draw.

    score(i, j) = scale · q_i·k_j + Σ terms(i, j)

Each term is defined by its ``tile``: plain torch, for any rectangle of queries and keys, from explicit positions.
A term holds one value per distance (``ByDistance``), per key (``PerKey``) and so on, not one per pair, so that O(n)
data stays O(n) unless a backend expands it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.integers import FAR, Positions
from headway.masks import ALL, distance
from headway.shapes import HeadwayError, brief, kind_of

Tile = Float[Tensor, "#batch #heads queries keys"]


def expect(term: Any, name: str, axes: int, optional: bool = False) -> None:
    """Check that a term's argument is a float tensor with this many axes."""
    given = getattr(term, name)
    if isinstance(given, Tensor) and given.ndim == axes and given.is_floating_point() and 0 not in given.shape[-1:]:
        return
    if given is not None or not optional:
        got = kind_of(given)
        raise HeadwayError(
            f"expected the {name} of {type(term).__name__} as a float tensor with {axes} axes, the last not empty, "
            f"got {got}"
        )


def expect_number(term: Any, name: str, least: int) -> None:
    """Check that a term's argument is an integer in the range of distances."""
    given = getattr(term, name)
    if not isinstance(given, int) or isinstance(given, bool) or not least <= given < FAR:
        raise HeadwayError(f"expected the {name} of {type(term).__name__} as a whole number, got {brief(given)}")


def expect_size(term: Any, name: str, axis: int, of: str, *sizes: int) -> None:
    """Check that a term has entries for the right number of queries, keys or heads."""
    shape = tuple(getattr(term, name).shape)
    if shape[axis] not in sizes:
        raise HeadwayError(
            f"expected the {name} of {type(term).__name__} for {' or '.join(map(str, sizes))} {of}, got shape {shape}"
        )


class Term:
    """The interface of terms, which are added to the scores.

    Attributes:
        axes: what each axis of its tensors is for, so that they can be divided among processes: b sequences, h heads, g
            key heads, q queries, k keys, n keys of the whole text; x is none of these.
    """

    axes: ClassVar[dict[str, str]] = {}

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """Check that the term was made for this many tokens; backends check batch size and heads.

        Raises:
            HeadwayError: when it was made for another number.
        """

    @property
    def leading(self) -> tuple[tuple[int, int], ...]:
        """For how many sequences and heads its tensors are, all or 1 for all; none if only its tiles tell."""
        return ()

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """The values added for queries ``rows`` and keys ``cols``, (B or 1, H or 1, q, k).

        Args:
            q_pos: positions of all queries, (B or 1, Q).
            k_pos: positions of all keys, (B or 1, K).
            rows: the queries of the tile; default all.
            cols: the keys of the tile; default all.
        """
        raise NotImplementedError


def entry_of(
    width: int, left: int, q_pos: Positions, k_pos: Positions, rows: slice, cols: slice
) -> Int[Tensor, "#batch q k"]:
    """The table index of each pair, below ``width``; ``left`` is distance 0, the ends serve all distances beyond."""
    return (distance(q_pos, k_pos, rows, cols) + left).clamp(0, width - 1)


@dataclass(frozen=True, eq=False)
class PerKey(Term):
    """Adds c[b, h, j]: one value per key, the same for every query.

    Args:
        bias: c, (B or 1, H or 1, K).
    """

    axes: ClassVar[dict[str, str]] = {"bias": "bhk"}

    bias: Float[Tensor, "#batch #heads keys"]

    def __post_init__(self) -> None:
        if not isinstance(self.bias, Tensor) or self.bias.ndim != 3 or self.bias.shape[-1]:  # there may be no keys
            expect(self, "bias", 3)

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""
        expect_size(self, "bias", 2, "keys", keys)

    @property
    def leading(self) -> tuple[tuple[int, int], ...]:
        """See :attr:`Term.leading`."""
        return ((self.bias.shape[0], self.bias.shape[1]),)

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        return self.bias[:, :, None, cols].expand(-1, -1, q_pos[:, rows].shape[1], -1)


@dataclass(frozen=True, eq=False)
class Difference(Term):
    """Adds own[b, h, i] − c[b, h, j], each difference computed in their dtype and then rounded to ``dtype``.

    Softmax is invariant to ``own``, so :class:`PerKey` suffices there; a sink or another normalisation is not.

    Args:
        own: one value per query, (B or 1, H or 1, Q).
        c: one value per key, (B or 1, H or 1, K).
        dtype: dtype of the result.
    """

    axes: ClassVar[dict[str, str]] = {"own": "bhq", "c": "bhk"}

    own: Float[Tensor, "#batch #heads queries"]
    c: Float[Tensor, "#batch #heads keys"]
    dtype: torch.dtype

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        return (self.own[:, :, rows, None] - self.c[:, :, None, cols]).to(self.dtype)


def raster(pos: Positions, row: int) -> Positions:
    """Positions of an image's tokens with a gap of row − 1 after each row of this width; -1 stays.

    Two tokens with offset (Δy, Δx) then have distance Δy·(2·row − 1) + Δx, unique to this offset. Order is preserved.

    >>> raster(torch.tensor([[-1, 0, 1, 2, 3, 6]]), 3).tolist()
    [[-1, 0, 1, 2, 5, 10]]
    """
    return pos + (pos // row).clamp(min=0) * (row - 1)


@dataclass(frozen=True, eq=False)
class ByDistance(Term):
    """Adds table[h, clamp(k_pos - q_pos + left)]; beyond the table's ends it grows linearly by ``tails`` per step.

    Without tails the bias saturates (T5, Shaw); a table of one entry with tails is ALiBi. See :meth:`linear`.

    Args:
        table: one value per head and distance, (H or 1, W).
        left: the entry of distance 0; entries below it are the past.
        tails: increment per step beyond the left and the right end, (H or 1, 2); None is (0, 0).
        row: positions are y·row + x, tokens of an image, and distances are those of :func:`raster`, where every
            (Δy, Δx) is distinct; None uses positions unchanged.
    """

    axes: ClassVar[dict[str, str]] = {"table": "hx", "tails": "hx"}

    table: Float[Tensor, "#heads width"]
    left: int
    tails: Float[Tensor, "#heads 2"] | None = None
    row: int | None = None

    def __post_init__(self) -> None:
        expect(self, "table", 2)
        expect(self, "tails", 2, optional=True)
        expect_number(self, "left", -FAR)
        if self.tails is not None:
            expect_size(self, "tails", 1, "ends", 2)
        if self.row is not None:
            expect_number(self, "row", 1)

    @classmethod
    def linear(cls, slope: Float[Tensor, " heads"]) -> ByDistance:
        """slope[h] · |k_pos - q_pos|, for any distance.

        >>> pos = torch.arange(3)[None]
        >>> ByDistance.linear(torch.tensor([-0.5])).tile(pos, pos)[0, 0].tolist()
        [[0.0, -0.5, -1.0], [-0.5, 0.0, -0.5], [-1.0, -0.5, 0.0]]
        """
        if not isinstance(slope, Tensor) or slope.ndim != 1 or not slope.is_floating_point():
            got = f"{slope.dtype} of shape {tuple(slope.shape)}" if isinstance(slope, Tensor) else brief(slope)
            raise HeadwayError(f"expected slopes as a float tensor, one per head or one for all, got {got}")
        return cls(torch.zeros_like(slope)[:, None], 0, torch.stack((slope, slope), 1))

    @property
    def leading(self) -> tuple[tuple[int, int], ...]:
        """See :attr:`Term.leading`."""
        return ((1, self.table.shape[0]),)

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        if self.row is not None:
            q_pos, k_pos = raster(q_pos, self.row), raster(k_pos, self.row)
        width = self.table.shape[1]
        entry = entry_of(width, self.left, q_pos, k_pos, rows, cols)  # (B, Q, K)
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
class DenseBias(Term):
    """Adds bias[b, h, i, j]: one value per pair of query and key, e.g. from a graph or from protein pairs.

    It is indexed by the order of tokens in the call, not by their positions; with a cache, the cached keys come
    first. −inf masks a pair, as in torch's ``attn_mask``. Kernels read it tile by tile, broadcast over
    sequences and heads, and accumulate its gradient in its own shape.

    Args:
        bias: (B or 1, H or 1, Q, K), or (Q, K) for all sequences and heads.

    >>> pos = torch.arange(2)[None]
    >>> DenseBias(torch.tensor([[0.0, 1.0], [2.0, 3.0]])).tile(pos, pos)[0, 0].tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """

    axes: ClassVar[dict[str, str]] = {"bias": "bhqn"}

    bias: Float[Tensor, "*#leading queries keys"]

    def __post_init__(self) -> None:
        given: Any = self.bias
        if not isinstance(given, Tensor) or not given.is_floating_point() or given.ndim not in (2, 4):
            got = kind_of(given)
            hint = ""
            if isinstance(given, Tensor) and given.ndim == 3:
                hint = (
                    ": pass bias[:, None] if it is (batch, queries, keys), bias[None] if it is (heads, queries, keys)"
                )
            raise HeadwayError(
                f"expected the bias of DenseBias as a float tensor, (batch or 1, heads or 1, queries, keys) or "
                f"(queries, keys), got {got}{hint}"
            )
        if given.ndim == 2:
            object.__setattr__(self, "bias", given[None, None])

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""
        if tuple(self.bias.shape[2:]) != (queries, keys):
            raise HeadwayError(
                f"expected the bias of DenseBias over {queries} queries and {keys} keys, including cached ones, "
                f"got shape {tuple(self.bias.shape)}"
            )

    @property
    def leading(self) -> tuple[tuple[int, int], ...]:
        """See :attr:`Term.leading`."""
        return ((self.bias.shape[0], self.bias.shape[1]),)

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        return self.bias[:, :, rows, cols]


@dataclass(frozen=True, eq=False)
class LowRankBias(Term):
    """Adds q[b, h, i] · k[b, h, j]: a bias per pair, given by r values per token, e.g. a factored pair representation.

    :func:`headway.functional.attend` appends them to queries and keys where it can, so that every kernel supports them
    and their gradients, at the cost of wider heads.

    Args:
        q: (B or 1, H or 1, Q, r).
        k: (B or 1, H or H_kv or 1, K, r).

    >>> pos = torch.arange(2)[None]
    >>> LowRankBias(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3)).tile(pos, pos)[0, 0].tolist()
    [[3.0, 3.0], [3.0, 3.0]]
    """

    axes: ClassVar[dict[str, str]] = {"q": "bhqx", "k": "bgkx"}

    q: Float[Tensor, "#batch #heads queries rank"]
    k: Float[Tensor, "#batch #kv_heads keys rank"]

    def __post_init__(self) -> None:
        expect(self, "q", 4)
        expect(self, "k", 4)
        if self.q.shape[-1] != self.k.shape[-1]:
            raise HeadwayError(
                f"expected q and k of LowRankBias with the same rank, got {self.q.shape[-1]} and {self.k.shape[-1]}"
            )

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""
        expect_size(self, "q", 2, "queries", queries)
        expect_size(self, "k", 2, "keys", keys)
        expect_size(self, "q", 1, "heads", heads, 1)
        if heads % max(self.k.shape[1], 1):
            expect_size(self, "k", 1, "heads", heads, 1)

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        q, k = self.q[:, :, rows], self.k[:, :, cols]
        if 1 < k.shape[1] < q.shape[1]:
            k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        return q @ k.mT


@dataclass(frozen=True, eq=False)
class Pairwise(Term):
    """Adds fn(q_pos, k_pos), computed tile by tile: for biases that no other term can express.

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
            raise HeadwayError(f"expected Pairwise fn to return a float tensor on {q_pos.device}, got {got}")
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

    axes: ClassVar[dict[str, str]] = {"table": "hxx"}

    table: Float[Tensor, "#heads width dim"]
    left: int

    def __post_init__(self) -> None:
        expect(self, "table", 3)
        expect_number(self, "left", -FAR)

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""
        expect_size(self, "table", 0, "heads", heads, 1)
        expect_size(self, "table", 2, "dimensions of values", dim_v)

    def add(
        self, weights: Float[Tensor, "batch heads queries keys"], q_pos: Positions, k_pos: Positions
    ) -> Float[Tensor, "batch heads queries dim"]:
        """What is added to the output, given the attention weights α of all pairs."""
        entry = entry_of(self.table.shape[1], self.left, q_pos, k_pos, ALL, ALL)[:, None]  # (B, 1, Q, K)
        # weights of equal distance are summed first: O(Q·W·D) instead of a vector per pair
        share = weights.new_zeros(*weights.shape[:3], self.table.shape[1])
        share = share.scatter_add(-1, entry.expand_as(weights), weights)
        return share @ self.table.to(share.dtype)
