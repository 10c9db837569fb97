"""Polar coordinate position embedding (PoPE). Gopalakrishnan et al. 2025, "Decoupling the 'What' and 'Where' With Polar
Coordinate Positional Embeddings", arXiv:2509.10534.

    score(i, j) = Σ_c μ(q_i,c) μ(k_j,c) cos((pos_j − pos_i) ω_c + δ_c)
    μ = softplus,  ω_c = base^(−c/d), c = 0 … d−1,  δ_c ∈ [−2π, 0] learned

Content sets only magnitudes, and position only angles; in rotary the content of a pair also has an angle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.positions.base import Position, frequencies
from headway.positions.rotary import waves
from headway.positions.working import Line, Lines, Number, rate
from headway.shapes import HeadShape, HeadwayError

STARTS = ("zero", "uniform")


@dataclass(eq=False)
class Pope(Position):
    """Content as magnitudes, position as angles (PoPE, arXiv:2509.10534).

    Formula: dimension c of a query becomes softplus(q_c)·e^{i·pos·ω_c}, of a key softplus(k_c)·e^{i(pos·ω_c + δ_c)},
    and the score is the real part of the product of one's conjugate and the other. Shapes: q (B, H, Q, d_k) → (B, H, Q,
    2·d_k), all cosines, then all sines; k likewise; values keep d_k. Learned, in each layer: δ (H_kv, d_k), kept in
    [−2π, 0] by clamping.

    Pitfalls: a cached key takes twice the memory; scores are scaled by 1/√d_k of the original width. There is one
    frequency per dimension, twice as many as in rotary, and no pairs, so that any head width works.

    Args:
        base: nearly the ratio of the fastest frequency to the slowest.
        start: initial δ, "zero" or "uniform" in [−2π, 0].

    >>> q, pos = torch.zeros(1, 1, 1, 3), torch.tensor([[0]])
    >>> q_polar, k_polar = Pope().attach(HeadShape.of(3)).rotate(q, q, pos, pos)
    >>> q_polar.shape, bool((q_polar * k_polar).sum() - 3 * math.log(2) ** 2 < 1e-6)
    (torch.Size([1, 1, 1, 6]), True)
    """

    title: ClassVar[str] = "PoPE"
    paper: ClassVar[str] = "arXiv:2509.10534"
    summary: ClassVar[str] = "Queries and keys in polar coordinates: content gives magnitudes, position gives angles."
    summary_zh: ClassVar[str] = "查询和键采用极坐标：内容决定模长，位置决定相角。"
    sharding: ClassVar[dict[str, str]] = {"phase": "gx"}
    per_layer: ClassVar[bool] = True
    variants: ClassVar[tuple[str, ...]] = ("pope(start='uniform')",)

    base: float = 10000.0
    start: str = "zero"

    def __post_init__(self) -> None:
        if not 0 < self.base < math.inf:
            raise HeadwayError(f"expected a finite pope base above 0, got {self.base}")
        if self.start not in STARTS:
            raise HeadwayError(f"expected pope start {' or '.join(STARTS)}, got {self.start!r}")

    def build(self, shape: HeadShape) -> None:
        """Make δ."""
        self.phase = nn.Parameter(torch.empty(shape.kv_heads, shape.head_dim))

    def reset_parameters(self) -> None:
        """Zeros, or uniform in [−2π, 0]."""
        nn.init.uniform_(self.phase, -2 * math.pi if self.start == "uniform" else 0.0, 0.0)

    def rotate(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim_k"],
        q_pos: Int[Tensor, "#batch queries"],
        k_pos: Int[Tensor, "#batch keys"],
    ) -> tuple[Float[Tensor, "batch heads queries dim_r"], Float[Tensor, "batch kv_heads keys dim_r"]]:
        """q and k as complex numbers, real parts first."""
        k = k[
            ..., : q.shape[-1]
        ]  # with a cached context there are no new keys, and the empty tensor has the width of the cached ones
        rates = frequencies(2 * q.shape[-1], self.base, q.device)
        inside = (self.phase >= -2 * math.pi) & (self.phase <= 0)
        # not clamp alone: from torch 2.14 on it has no gradient at its bounds, where a phase of zeros starts
        phase = torch.where(inside, self.phase, self.phase.clamp(-2 * math.pi, 0.0))[:, None]
        cos, sin = waves(q_pos[:, None, :, None] * rates, q)
        q_polar = self._polar(q, cos, sin)
        if k_pos is not q_pos:
            cos, sin = waves(k_pos[:, None, :, None] * rates, k)
        # cos(a + δ) and sin(a + δ) from those of a and δ, which are fewer
        cos_phase, sin_phase = waves(phase, k)
        return q_polar, self._polar(k, cos * cos_phase - sin * sin_phase, sin * cos_phase + cos * sin_phase)

    def worked(self, number: Number) -> Lines:
        """The frequency of a dimension, and its angle; a key's has the learned δ added."""
        if number.kind != "angle":
            return ()
        value = frequencies(2 * number.width, self.base, number.at.device)[number.index]
        frequency = rate(self.base, f"{number.index} / {number.width}", value)
        return frequency, Line("φ", "p · ω", number.at * value)

    def _polar(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        # softplus by another name: the backward pass of torch's own fails under torch.compile on transposed queries
        size = torch.logaddexp(x.to(cos.dtype), cos.new_zeros(()))
        return torch.cat((size * cos, size * sin), -1).to(x.dtype)
