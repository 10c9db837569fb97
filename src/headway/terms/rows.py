"""Terms of whole rows: sums along the text, products over the tokens in between, and mixtures of all heads.

A row term sees all scores of a query before they become weights, and changes them. Row terms run in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from headway.integers import Positions, exporting
from headway.masks import ALL
from headway.terms.pairs import Term, Tile, expect_size


class RowTerm:
    """A term that needs a query's whole row of scores, or all heads, not just one pair.

    Backends without a kernel for it materialise whole rows (tiled, reference). :meth:`rows` treats NaN and inf in its
    data per query or key as zero; ``attend`` then sets the rows that see them, and no others, to NaN.

    Attributes:
        axes: as of :class:`headway.terms.Term`.
    """

    axes: ClassVar[dict[str, str]] = {}

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""

    @property
    def per_query(self) -> tuple[Float[Tensor, "#batch #heads queries width"], ...]:
        """Its data per query."""
        return ()

    @property
    def per_key(self) -> tuple[Float[Tensor, "#batch kv_heads keys width"], ...]:
        """Its data per key."""
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
        """The values added for queries ``rows`` and keys ``cols``, which must include all keys that these queries see.

        Args:
            content: scale · q·k of the tile, after the softcap if there is one.
            seen: unmasked pairs; None is all. Masked pairs must not affect the result.
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
    """Sums over the unmasked keys of each row from every key to the last, in memory order.

    Args:
        x: the summands, which must be finite where masked.
        seen: unmasked pairs; None is all.
        inclusive: whether a key is part of its own sum.
    """
    x = _zero_where_masked(x, seen)
    if not inclusive:
        x = torch.nn.functional.pad(x, (0, 1))[..., 1:]
    return x.flip(-1).cumsum(-1).flip(-1)


def _in_groups(x: Shaped[Tensor, "batch heads queries dim"], heads: int) -> Shaped[Tensor, "batch kv_heads rows dim"]:
    """For each of ``heads`` groups of heads, the queries of its heads, concatenated."""
    return x.reshape(x.shape[0], heads, x.shape[1] // heads * x.shape[2], x.shape[3])


def finite(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Replace NaN and inf by zeros, because their product with a masked pair's zero would turn a sum into NaN."""
    return x.to(dtype).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(frozen=True, eq=False)
class Scan(RowTerm):
    """Adds c_ij, the sum of a gate over the keys that query i sees, from key j to the last one, in memory order; or
    looks up c_ij in a table per query.

        z_it = content_it, or left_i · right_t                  g_it = σ(z_it), or slope_h · log σ(z_it)
        c_ij = Σ_{t ≥ j} g_it inclusive, Σ_{t > j} g_it else    over the t that query i sees

    A table is interpolated linearly between its entries ⌊c⌋ and ⌈c⌉, and its last entry serves all larger counts
    (CoPE); without a table c itself is added (GRAPE-AP). Sums are computed in float32 or better.

    Args:
        inclusive: whether c_ij includes the gate of key j itself.
        table: one value per query and count, (B or 1, H or 1, Q, W); None adds c.
        left: for each query, (B or 1, H, Q, D); None gates by the content, with σ.
        right: for each key, (B or 1, H_kv, K, D); with ``left``, whose heads H_kv divides.
        slope: multiplies log σ, (H or 1,).
    """

    axes: ClassVar[dict[str, str]] = {"table": "bhqx", "left": "bhqx", "right": "bgkx", "slope": "h"}

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
        table = finite(self.table[:, :, rows], wide).expand(*count.shape[:3], -1)
        count = count.clamp(max=table.shape[-1] - 1)
        entry = count.detach().nan_to_num(nan=0.0)  # NaN is not a valid index; it stays in the result
        below, above = (table.gather(-1, which.long()) for which in (entry.floor(), entry.ceil()))
        return torch.lerp(below, above, count - count.detach().floor())

    def _gates(self, content: Tensor, seen: Tensor | None, rows: slice, cols: slice) -> Tensor:
        if self.left is None or self.right is None:
            return _zero_where_masked(content, seen).sigmoid()
        left, right = (finite(x, content.dtype) for x in (self.left[:, :, rows], self.right[:, :, cols]))
        product = _in_groups(left, right.shape[1]) @ right.mT
        product = product.reshape(product.shape[0], *left.shape[1:3], right.shape[2])  # len() would fix it in an export
        # before log σ, whose gradient would be NaN where masked
        gates = torch.nn.functional.logsigmoid(_zero_where_masked(product, seen))
        return gates if self.slope is None else gates * self.slope.to(gates.dtype)[:, None, None]


PATH_BLOCK = 64
"""Keys whose reflections are applied together; the size of a block's triangular system."""


@dataclass(frozen=True, eq=False)
class PathProduct(RowTerm):
    """Changes scale · q_i·k_j into scale · q_i·H_r ⋯ H_{j+1} k_j, H_t = I − β_t w_t w_tᵀ, by adding the difference.

    r is the last key that query i sees: its own under a causal mask. Tokens are in memory order; those at position -1
    are skipped (β = 0).

    Start from u = q_i and apply u ← H_t u for t = r, r − 1, …. With γ_t the multiple of w_t that token t removes, u at
    key j is q − Σ_{t>j} γ_t w_t, and within a block of tokens γ solves a triangular system (the UT transform), so that
    O(rows · keys · D) multiplications suffice:

        γ_t + β_t Σ_{s>t} (w_t·w_s) γ_s = β_t w_t·u

    Args:
        q: queries, (B, H, Q, D).
        k: keys, (B, H_kv, K, D).
        w: directions of unit length, (B, H_w, K, D), where H_kv divides H_w and H_w divides H.
        beta: β, (B, H_w, K): 0 leaves u unchanged, 1 removes its component along w, 2 reflects it.
        scale: multiplies q·k.
    """

    axes: ClassVar[dict[str, str]] = {"q": "bhqx", "k": "bgkx", "w": "bgkx", "beta": "bgk"}

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
        tile = (self.q[:, :, rows], self.k[:, :, cols], self.w[:, :, cols], self.beta[:, :, cols])
        q, k, w, beta = (finite(x, wide) for x in tile)
        beta = beta * (k_pos[:, None, cols] >= 0)
        groups = w.shape[1]
        q, k = _in_groups(q, groups), k.repeat_interleave(groups // k.shape[1], 1)
        before = None  # whether a token is at or before the last key that a query sees
        if seen is not None:
            before = _in_groups((seen.flip(-1).cumsum(-1) > 0).flip(-1).expand(content.shape), groups)
        taken, tiles = torch.zeros_like(q), [q.new_zeros(*q.shape[:3], 0)]
        for part in _path_blocks(k.shape[2]):
            k_part, w_part, b_part = k[:, :, part], w[:, :, part], beta[:, :, None, part]
            share = (q - taken) @ w_part.mT * b_part
            if before is not None:
                share = share.masked_fill(~before[..., part], 0.0)
            system = (w_part @ w_part.mT * b_part).tril(-1)  # its diagonal counts as 1
            share = torch.linalg.solve_triangular(system, share, upper=False, left=False, unitriangular=True)
            tiles.append(taken @ k_part.mT + share @ (w_part @ k_part.mT).tril(-1))
            taken = taken + share @ w_part
        return torch.cat(tiles[::-1], -1).reshape(content.shape) * -self.scale


def _path_blocks(keys: int) -> list[slice]:
    """Blocks of keys from the last to the first; one in an exported program, which serves every length."""
    if exporting():
        return [slice(0, keys)]
    return [slice(max(0, stop - PATH_BLOCK), stop) for stop in range(keys, 0, -PATH_BLOCK)]


@dataclass(frozen=True, eq=False)
class MixHeads(RowTerm):
    """Adds B + f(A, B): a bias B, and the output of a small network across heads, applied to the content A and B.

        f = second ∗ LeakyReLU(first ∗ (A, B) + first_bias)

    ∗ is a matrix product over the heads and, if ``kernel`` is above 1, a convolution over that many neighbouring keys.
    Masked pairs and missing neighbours count as zero in both layers, so a row does not depend on later tokens.

    Args:
        bias: terms that make up B.
        first: (F, 2H, kernel), kernel odd.
        first_bias: (F,).
        second: (H, F, kernel).
        order: index in the text of each key, (B or 1, K), each once but for padding: neighbours have adjacent indices,
            without padding; None uses neighbours in memory.
    """

    axes: ClassVar[dict[str, str]] = {"order": "bk"}

    bias: tuple[Term, ...]
    first: Float[Tensor, "hidden both_heads kernel"]
    first_bias: Float[Tensor, " hidden"]
    second: Float[Tensor, "heads hidden kernel"]
    order: Int[Tensor, "#batch keys"] | None = None

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""
        for term in self.bias:
            term.fits(heads, queries, keys, dim_v)
        hidden, _, kernel = self.first.shape
        expect_size(self, "first", 1, "heads of content and bias", 2 * heads)
        expect_size(self, "first", 2, "neighbouring keys (an odd number)", kernel | 1)
        expect_size(self, "first_bias", 0, "hidden units", hidden)
        for axis, (of, size) in enumerate((("heads", heads), ("hidden units", hidden), ("neighbouring keys", kernel))):
            expect_size(self, "second", axis, of, size)
        if self.order is not None:
            expect_size(self, "order", 1, "keys", keys)

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
        both = torch.cat((_zero_where_masked(content, seen), _zero_where_masked(bias.expand_as(content), seen)), 1)
        near = None
        if self.order is not None and self.first.shape[-1] > 1:
            near = _neighbours(self.order[:, cols], k_pos[:, cols] >= 0, self.first.shape[-1] // 2)
        hidden = _over_heads(self.first, both, near) + self.first_bias.to(wide)[:, None, None]
        hidden = torch.nn.functional.leaky_relu(hidden)
        if self.first.shape[-1] > 1:
            hidden = _zero_where_masked(hidden, None if seen is None else seen.any(1, keepdim=True))
        return bias + _over_heads(self.second, hidden, near)


def _zero_where_masked(x: Tensor, seen: Tensor | None) -> Tensor:
    """Zero where masked."""
    return x if seen is None else x.masked_fill(~seen, 0.0)


def _neighbours(
    order: Int[Tensor, "#batch keys"], real: Bool[Tensor, "#batch keys"], reach: int
) -> list[tuple[Int[Tensor, "batch keys"], Bool[Tensor, "batch keys"]]]:
    """Indices in memory of the neighbours of each key, from ``reach`` before to ``reach`` after, and whether they
    exist.
    """
    order, real = torch.broadcast_tensors(order, real)
    sorted_order, index = order.masked_fill(~real, torch.iinfo(order.dtype).max).sort(1)
    sorted_order, found = sorted_order.contiguous(), []
    for step in range(-reach, reach + 1):
        rank = torch.searchsorted(sorted_order, order + step).clamp(max=order.shape[1] - 1)
        found.append((index.gather(1, rank), (sorted_order.gather(1, rank) == order + step) & real))
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
    for tap, (index, exists) in zip(weight.unbind(2), near, strict=True):
        neighbour = x.gather(-1, index[:, None, None].expand(*x.shape[:3], -1))
        total = total + torch.einsum("oh,bhqk->boqk", tap, neighbour.masked_fill(~exists[:, None, None], 0.0))
    return total
