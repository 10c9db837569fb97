"""Selective rotary position embedding. Movahedi et al. 2025, "Selective Rotary Position Embedding", arXiv:2511.17388.

    pair p of q_i and k_j turns by  τ_p Φ_i,p  and  τ_p Φ_j,p       Φ_i = Σ_{t ≤ i} φ_t
    φ_t = W₂ W₁ x̂_t,   x̂_t = x_t, each head's slice of it at length 1;   τ_p = base^(−2p/r)

How far a token turns what follows depends on the token: rotary is φ_t = 1. q·k depends on the φ of the tokens after j,
up to i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.positions.base import Look, Position, frequencies
from headway.positions.rotary import PAIRINGS, turn, waves
from headway.shapes import HeadShape, HeadwayError


@dataclass(eq=False)
class SelectiveRotary(Position):
    """Rotary whose angles the tokens choose, summed up along the sequence (Selective RoPE, arXiv:2511.17388).

    Formula: pair p of the query and key of token i turns by τ_p·Σ_{t ≤ i} φ_t,p, where φ_t = W₂ W₁ x̂_t is computed from
    attention's input and τ_p = base^(−2p/d_k). Shapes: x (B, N, dim), marks φ (B, N, H_kv, d_k/2), q (B, H, Q, d_k) and
    k (B, H_kv, K, d_k) unchanged. Learned, in each layer: W₁ (rank, dim), W₂ (H_kv·d_k/2, rank), as ``nn.Linear`` draws
    them; query heads of a group share φ.

    Tokens are summed up in the order they lie in memory, in float64; padding adds no angle. The cache holds φ, and keys
    are turned at every call.

    Pitfalls: for self attention; a query that is not the token at its place in memory, as where attention crosses to a
    context, is not turned. Positions themselves are not looked at. The authors' code runs a short convolution over φ,
    which is left out here, because it would reach across packed documents.

    Args:
        base: 500000 in the authors' code.
        rank: numbers between W₁ and W₂; 32 in the authors' runs.
        pairing: see :class:`Rotary`.

    >>> position = SelectiveRotary(rank=4).attach(HeadShape.of(64, heads=4))
    >>> position.mark(torch.randn(2, 10, 64)).shape
    torch.Size([2, 10, 4, 8])
    """

    title: ClassVar[str] = "Selective RoPE"
    paper: ClassVar[str] = "arXiv:2511.17388"
    summary: ClassVar[str] = "Each token chooses how far it turns; queries and keys are turned by the sum so far."
    summary_zh: ClassVar[str] = "每个词元自行决定转动多少；查询和键按累计的角度转动。"
    per_layer: ClassVar[bool] = True
    variants: ClassVar[tuple[str, ...]] = ("selectiverotary(rank=3, pairing='interleaved')",)
    exempt: ClassVar[dict[str, str]] = {
        "order": "angles are summed up in the order tokens lie in memory",
        "narrow context": "angles are computed from tokens as wide as the model",
    }

    base: float = 500000.0
    rank: int = 32
    pairing: str = "half"

    def __post_init__(self) -> None:
        if not 0 < self.base < math.inf:
            raise HeadwayError(f"expected a finite selectiverotary base above 0, got {self.base}")
        if self.rank < 1:
            raise HeadwayError(f"expected selectiverotary rank of at least 1, got {self.rank}")
        if self.pairing not in PAIRINGS:
            raise HeadwayError(f"expected selectiverotary pairing {' or '.join(PAIRINGS)}, got {self.pairing!r}")

    def build(self, shape: HeadShape) -> None:
        """Check that the head divides into pairs, and make W₁ and W₂."""
        if shape.head_dim % 2:
            raise HeadwayError(
                f"expected an even head width, because selectiverotary turns pairs, got {shape.head_dim}: "
                f"change heads or head_dim"
            )
        self.inner = nn.Linear(shape.dim, self.rank, bias=False)
        self.outer = nn.Linear(self.rank, shape.kv_heads * shape.head_dim // 2, bias=False)
        # the input of a head that has a width of its own is not a slice of x: then x as a whole has length 1
        self.slices = shape.heads if shape.dim % shape.heads == 0 else 1

    def reset_parameters(self) -> None:
        """As ``nn.Linear`` draws them."""
        self.inner.reset_parameters()
        self.outer.reset_parameters()

    def mark(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens kv_heads pairs"]:
        """φ of each token."""
        assert self.shape is not None
        if x.shape[-1] != self.shape.dim:
            raise HeadwayError(
                f"expected a context as wide as the model, {self.shape.dim}, because selectiverotary makes angles from "
                f"it, got {x.shape[-1]}"
            )
        # NaN in a token reaches those who see it through its key and value, and must not reach all through the sum
        slices = x.nan_to_num(0.0, 0.0, 0.0).unflatten(-1, (self.slices, -1))
        unit = nn.functional.normalize(slices, dim=-1).flatten(-2)
        angles: Tensor = self.outer(self.inner(unit)).unflatten(-1, (self.shape.kv_heads, -1))
        return angles

    def recast(
        self, look: Look
    ) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        """Turn queries and all keys by the sums of φ."""
        assert self.shape is not None
        assert look.marks is not None
        rates = frequencies(look.q.shape[-1], self.base, look.q.device)
        steps = look.marks.to(rates.dtype).masked_fill((look.k_pos < 0)[..., None, None], 0.0)
        total = steps.cumsum(1).transpose(1, 2) * rates  # (B, H_kv, K, P)
        queries, keys, groups = look.q.shape[2], look.k.shape[2], self.shape.heads // self.shape.kv_heads
        heads = torch.arange(self.shape.heads, device=total.device) if look.heads is None else look.heads
        of_q, of_k = (total[:, each // groups] for each in (heads, heads[:: look.q.shape[1] // look.k.shape[1]]))
        place = torch.arange(keys - queries, keys, device=total.device).clamp(min=0)
        own = (look.k_pos[:, place] == look.q_pos)[:, None, :, None]
        of_q = of_q[:, :, place] * own
        q_waves, k_waves = waves(of_q, look.q), waves(of_k, look.k)
        return turn(look.q, *q_waves, self.pairing), turn(look.k, *k_waves, self.pairing)
