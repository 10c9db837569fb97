"""Pair terms that replace the product of a query and a key by another product of the two, by adding the difference.

NaN and inf count as zero in them: attend sees to the rows that see such tokens, they must not reach others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headway.integers import Positions, readable
from headway.masks import ALL, distance
from headway.shapes import HeadwayError
from headway.terms.pairs import Term, Tile, expect, expect_size
from headway.terms.rows import finite


class _OtherProduct(Term):
    """What such terms share."""

    q: Float[Tensor, "batch heads queries dim"]
    k: Float[Tensor, "batch kv_heads keys dim"]
    scale: float

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""
        expect_size(self, "q", 1, "heads", heads)
        expect_size(self, "q", 2, "queries", queries)
        expect_size(self, "k", 2, "keys", keys)
        if not self.k.shape[1] or heads % self.k.shape[1]:
            expect_size(self, "k", 1, "heads", heads, 1)

    def added(
        self,
        q: Float[Tensor, "batch heads q dim"],
        k: Float[Tensor, "batch kv_heads k dim"],
        exponents: Iterable[Tensor],
    ) -> Tile:
        """scale · Σ_c q_c k_c (e^{exponent_c} − 1), for exponents of pairs, one after the other.

        All dimensions at once would need queries · keys · head width values.
        """
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        total = q.new_zeros(*q.shape[:3], k.shape[2])
        for a, b, exponent in zip(q.unbind(-1), k.unbind(-1), exponents, strict=True):
            total = total + a[..., None] * b[..., None, :] * torch.expm1(exponent)
        return self.scale * total


@dataclass(frozen=True, eq=False)
class Boost(_OtherProduct):
    """Adds scale · Σ_c q̂_c k̂_c (e^{−r_c |k_pos − q_pos|} − 1): in the coordinates q̂ = basis · q and k̂ = basis · k, each
    product of q·k decays with distance at its own rate.

    With the queries, keys and scale of the call itself, the score becomes scale · Σ_c q̂_c k̂_c e^{−r_c |k_pos − q_pos|}.

    Args:
        q: queries, (B, H, Q, D).
        k: keys, (B, H_kv, K, D), where H_kv divides H.
        basis: coordinates, one per row, (D, D); its rows must be orthonormal.
        rates: r ≥ 0, (D,); fixed, and fastest to compute in ascending order.
        scale: what q·k is multiplied by.

    >>> one, pos = torch.ones(1, 1, 1, 1), torch.tensor([[0]])
    >>> Boost(one, one, torch.eye(1), torch.tensor([2.0]).log(), 4.0).tile(pos, pos + 1).item()
    -2.0
    """

    axes: ClassVar[dict[str, str]] = {"q": "bhqx", "k": "bgkx"}

    q: Float[Tensor, "batch heads queries dim"]
    k: Float[Tensor, "batch kv_heads keys dim"]
    basis: Float[Tensor, "dim dim"]
    rates: Float[Tensor, " dim"]
    scale: float

    def __post_init__(self) -> None:
        for name, axes in (("q", 4), ("k", 4), ("basis", 2), ("rates", 1)):
            expect(self, name, axes)
        if readable(self.rates) and not bool((self.rates >= 0).all()):
            raise HeadwayError(f"expected the rates of Boost of at least 0, got {self.rates.min().item()}")

    def coordinates(
        self, x: Float[Tensor, "batch heads tokens dim"], dtype: torch.dtype
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """Queries or keys in the basis."""
        return x.to(dtype) @ self.basis.to(dtype).mT

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        wide = torch.promote_types(torch.promote_types(self.q.dtype, self.rates.dtype), torch.float32)
        q, k = (self.coordinates(finite(x, wide), wide) for x in (self.q[:, :, rows], self.k[:, :, cols]))
        away = distance(q_pos, k_pos, rows, cols).abs()[:, None].to(q.dtype)
        return self.added(q, k, (-rate * away for rate in self.rates.to(q.dtype)))


@dataclass(frozen=True, eq=False)
class ChannelDecay(_OtherProduct):
    """Adds scale · Σ_c q_ic k_jc (e^{own_ic − c_jc} − 1): each dimension of q·k is forgotten at its own pace, learned
    and computed from the tokens.

    With the queries, keys and scale of the call itself, the score becomes scale · Σ_c q_ic k_jc e^{own_ic − c_jc}.
    Exponents above 80, which only a key that is less forgotten than its query can have, count as 80.

    Args:
        q: queries, (B, H, Q, D).
        k: keys, (B, H_kv, K, D), where H_kv divides H.
        own: the running sum of the log gates at each query, (B, H, Q, D); differences are computed in its dtype.
        c: the same at each key, (B, H, K, D).
        scale: what q·k is multiplied by.

    >>> one, pos = torch.ones(1, 1, 1, 1), torch.tensor([[0]])
    >>> ChannelDecay(one, one, -torch.tensor([[[[2.0]]]]).log(), 0 * one, 4.0).tile(pos, pos).item()
    -2.0
    """

    axes: ClassVar[dict[str, str]] = {"q": "bhqx", "k": "bgkx", "own": "bhqx", "c": "bhkx"}

    q: Float[Tensor, "batch heads queries dim"]
    k: Float[Tensor, "batch kv_heads keys dim"]
    own: Float[Tensor, "batch heads queries dim"]
    c: Float[Tensor, "batch heads keys dim"]
    scale: float

    def __post_init__(self) -> None:
        for name in ("q", "k", "own", "c"):
            expect(self, name, 4)
            expect_size(self, name, 3, "dimensions", self.q.shape[3])

    def fits(self, heads: int, queries: int, keys: int, dim_v: int) -> None:
        """See :meth:`Term.fits`."""
        super().fits(heads, queries, keys, dim_v)
        for name, of, count in (("own", "queries", queries), ("c", "keys", keys)):
            expect_size(self, name, 1, "heads", heads)
            expect_size(self, name, 2, of, count)

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Tile:
        """See :meth:`Term.tile`."""
        wide = torch.promote_types(self.q.dtype, torch.float32)
        q, k = (finite(x, wide) for x in (self.q[:, :, rows], self.k[:, :, cols]))
        own, c = (finite(x, x.dtype) for x in (self.own[:, :, rows], self.c[:, :, cols]))
        away = (
            (above[..., None] - below[..., None, :]).clamp(max=80.0).to(wide)
            for above, below in zip(own.unbind(-1), c.unbind(-1), strict=True)
        )
        return self.added(q, k, away)
