"""FoPE. Hua et al. 2024, "Fourier Position Embedding", arXiv:2412.17739.

(x_a, x_b) ← (x_a·C_i(pos) − x_b·S_i(pos),  x_b·C_i(pos) + x_a·S_i(pos))            pair i = (a, b) of q and of k
C_i(p) = Σ_j U_ji cos(p·ω_j),   S_i(p) = Σ_j V_ji sin(p·ω_j)      if ω_i ≥ 2π/L0, over the ω_j for which that holds
C_i(p) = 1,                     S_i(p) = 0                        else: the pair is not rotated
ω_i = base^(−2i/d), i = 0 … d/2−1; L0 the trained length; U, V near the identity, of each head
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.positions.base import Position, frequencies
from headway.positions.rotary import PAIRINGS, rotate_pairs, waves
from headway.shapes import HeadShape, HeadwayError


@dataclass(eq=False)
class FoPE(Position):
    """Rotary whose pairs follow a series of waves instead of one, without waves longer than the training length (FoPE,
    arXiv:2412.17739).

    Formula: pair i of q and k is rotated and stretched by C_i(pos) = Σ_j U_ji cos(pos·ω_j) and S_i(pos) = Σ_j V_ji
    sin(pos·ω_j), over the m frequencies with a full rotation within L0, ω_j ≥ 2π/L0; slower pairs are not rotated.
    Shapes: q (B, H, Q, d_k), k (B, H_kv, K, d_k) unchanged. Learned: A and B (H_kv, m, m), separate for each layer, in
    U = 1 + A and V = 1 + B, so that weight decay leads to plain rotation. They start as the authors' code draws them,
    ``xavier_normal`` of the whole tensor with gain σ: N(0, σ²·2/(m² + H_kv·m)), standard deviation 0.022 at σ = 0.3,
    m = 16 and 8 heads. Query heads share those of their key head.

    Pitfalls: with A = B = 0 it is relative, but not otherwise: scores depend on positions themselves. The authors
    freeze the coefficients at their random start by default; here they are learned, unless you call
    ``requires_grad_(False)``. Their first code pads S with 1 instead of 0, and so rotates pairs that should stay. Their
    code also rotates at most d_k // 4 pairs, which their equation (13) does not say: ``capped=True`` for its
    checkpoints (at L0 = 512 and base 10000 that is the same). To load its coefficients subtract the identity.

    Args:
        base: as in :class:`Rotary`.
        original: L0, the trained length.
        sigma: σ, the gain with which A and B are drawn; 0.3 to 0.6 in the paper's configurations, by size of model.
        pairing: as in :class:`Rotary`.
        capped: rotate at most d_k // 4 pairs, the fastest, as the authors' code does.

    Raises:
        HeadwayError: when no pair rotates fully within L0.

    >>> FoPE(original=512).attach(HeadShape.of(64, heads=4)).cosines.shape  # 4 of 8 pairs rotate fully in 512 tokens
    torch.Size([4, 4, 4])
    """

    title: ClassVar[str] = "Fourier (FoPE)"
    paper: ClassVar[str] = "arXiv:2412.17739"
    summary: ClassVar[str] = (
        "Rotary with a learned sum of waves for each pair, without waves longer than the training length."
    )
    summary_zh: ClassVar[str] = "每个维度对按若干正弦波之和旋转，去掉波长超过训练长度的分量。"
    sharding: ClassVar[dict[str, str]] = {"cosines": "gxx", "sines": "gxx"}
    relative: ClassVar[bool] = False
    per_layer: ClassVar[bool] = True
    variants: ClassVar[tuple[str, ...]] = (
        "fope(base=100.0, original=64, sigma=0.6, pairing='interleaved')",
        "fope(base=100.0, capped=True)",
    )

    base: float = 10000.0
    original: int = 512
    sigma: float = 0.3
    pairing: str = "half"
    capped: bool = False

    def __post_init__(self) -> None:
        if not 1 < self.base < math.inf:
            raise HeadwayError(f"expected a finite fope base above 1, got {self.base}")
        if self.original < 7:
            raise HeadwayError(
                f"expected fope original of at least 7, or no pair rotates within it, got {self.original}"
            )
        if not 0 <= self.sigma < math.inf:
            raise HeadwayError(f"expected a finite fope sigma of at least 0, got {self.sigma}")
        if self.pairing not in PAIRINGS:
            raise HeadwayError(f"expected fope pairing {' or '.join(PAIRINGS)}, got {self.pairing!r}")

    def build(self, shape: HeadShape) -> None:
        """Create A and B."""
        if shape.head_dim % 2:
            raise HeadwayError(f"expected an even head width, because fope rotates pairs, got {shape.head_dim}")
        pairs = sum(
            self.base ** (-2 * i / shape.head_dim) >= 2 * math.pi / self.original for i in range(shape.head_dim // 2)
        )
        pairs = min(pairs, max(1, shape.head_dim // 4)) if self.capped else pairs
        self.cosines = nn.Parameter(torch.empty(shape.kv_heads, pairs, pairs))
        self.sines = nn.Parameter(torch.empty(shape.kv_heads, pairs, pairs))

    def reset_parameters(self) -> None:
        """A, B ~ N(0, σ²·2/(m² + H_kv·m)): as a tensor of one matrix per head is drawn by ``xavier_normal_``."""
        nn.init.xavier_normal_(self.cosines, gain=self.sigma)
        nn.init.xavier_normal_(self.sines, gain=self.sigma)

    def rotate(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        q_pos: Int[Tensor, "#batch queries"],
        k_pos: Int[Tensor, "#batch keys"],
    ) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        """Rotate and stretch q and k by their positions."""
        q_series = self._series(q_pos, q)
        k_series = q_series if k_pos is q_pos else self._series(k_pos, k)
        cos, sin = (series.repeat_interleave(q.shape[1] // k.shape[1], 1) for series in q_series)
        return rotate_pairs(q, cos, sin, self.pairing), rotate_pairs(k, *k_series, self.pairing)

    def _series(self, pos: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """C and S of all pairs, (B, H_kv, N, d/2)."""
        kept, pairs = self.cosines.shape[-1], like.shape[-1] // 2
        angles = pos[:, None, :, None] * frequencies(like.shape[-1], self.base, pos.device)[:kept]
        cos, sin = (
            wave + wave @ weight.to(wave.dtype)
            for wave, weight in zip(waves(angles, like), (self.cosines, self.sines), strict=True)
        )
        rest = (0, pairs - kept)
        return nn.functional.pad(cos, rest, value=1.0), nn.functional.pad(sin, rest)
