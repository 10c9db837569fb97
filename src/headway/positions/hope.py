"""Two methods named HoPE.

High-frequency rotary position encoding, Chen et al. 2024, "HoPE: A Novel Positional Encoding Without Long-Term Decay
for Enhanced Context Awareness and Extrapolation", arXiv:2410.21216: rotary whose slow pairs are not rotated,

    ω_i = base^(−2i/r)  where that is at least 2π/L, else 0        L  the training length

Hyperbolic rotary positional encoding, Dai et al. 2025, "HoPE: Hyperbolic Rotary Positional Encoding for Stable
Long-Range Dependency Modeling in Large Language Models", arXiv:2509.05218: pairs are boosted instead of rotated,

    score(i, j) = Σ_p e^{−nθ'} q_pᵀ [cosh nω_p, sinh nω_p; sinh nω_p, cosh nω_p] k_p        n = pos_i − pos_j, θ' > ω_p
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from headway.positions.base import Position, TermInputs, frequencies
from headway.positions.rotary import Rotary
from headway.positions.working import Line, Lines, Number
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, Boost


@dataclass(eq=False)
class Hope(Rotary):
    """Rotary whose slow pairs are not rotated (high-frequency HoPE, arXiv:2410.21216).

    Formula: pair i rotates by pos·base^(−2i/r) if that frequency makes a full rotation within the training length,
    base^(−2i/r) ≥ 2π/original; the others are unrotated and carry content only. Nothing is learned. Shapes: q
    (B, H, Q, d_k), k (B, H_kv, K, d_k) unchanged.

    Pitfalls: which pairs are rotated depends on ``original``, which is part of the model and must not be changed after
    training. Not to be confused with :class:`HopeLorentz`.

    Args:
        base: see :class:`Rotary`.
        fraction: see :class:`Rotary`.
        pairing: see :class:`Rotary`.
        original: the training length, L; at least 7, so that one pair is rotated.

    >>> Hope(original=64).rates(8, torch.device("cpu")).tolist()
    [1.0, 0.1, 0.0, 0.0]
    """

    title: ClassVar[str] = "HoPE (high-frequency)"
    paper: ClassVar[str] = "arXiv:2410.21216"
    summary: ClassVar[str] = "Rotary without its slow pairs: those without a full rotation in training are not rotated."
    summary_zh: ClassVar[str] = "去掉慢频率的旋转编码：训练长度内旋转不满一周的维度对不再旋转。"
    variants: ClassVar[tuple[str, ...]] = ("hope(pairing='interleaved', original=20)",)

    original: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.original < 7:
            raise HeadwayError(f"expected hope original, the training length, of at least 7, got {self.original}")

    def rates(self, width: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """Radians per token of each pair; 0 where rotary makes no full rotation within the training length."""
        rates = super().rates(width, device)
        return rates * (rates * self.original >= 2 * math.pi)

    def rate_lines(self, number: Number, width: int) -> Lines:
        """ω_i, or 0 where it makes no full rotation within the training length."""
        first, own = self._unscaled(number, width), self.rates(width, number.at.device)[number.index]
        turns = self.original * first.value / (2 * math.pi)
        full = Line("N", f"{self.original} · ω0 / (2 · π)", turns)
        return first, full, Line("ω", "ω0" if own else "0 · ω0", own)


@dataclass(eq=False)
class HopeLorentz(Position):
    """Pairs of queries and keys are boosted, not rotated: scores decay (hyperbolic HoPE, arXiv:2509.05218).

    Formula: the query at m is multiplied by e^{−mθ'}·B(mω) and the key at n by e^{nθ'}·B(−nω), where
    B(φ) = [cosh φ, sinh φ; sinh φ, cosh φ]; their product is e^{−(m−n)θ'}·qᵀB((m−n)ω)k. Nothing is learned. In the
    coordinates u = (a + b)/√2 and w = (a − b)/√2 of a pair a boost is diagonal, so that the score is

        Σ_p u_q u_k e^{−(θ' − ω_p)|m−n|} + w_q w_k e^{−(θ' + ω_p)|m−n|}

    which is how it is computed: each factor alone overflows any float within a few hundred tokens. Future keys, which
    the paper does not have, decay like past ones.

    Pitfalls: the score of far tokens goes to 0, not to −∞, so each keeps some attention. The score is not a plain
    product of a query and a key; ``native`` computes blocks of scores as such products, all other backends with
    O(queries · keys · d_k) exponentials.

    Args:
        base: base of ω_p = base^(−2p/d_k).
        damping: θ', above the largest ω, which is 1; the closer to it, the more slowly the first pair decays.
        pairing: which dimensions form pairs, see :class:`Rotary`.

    >>> HopeLorentz(base=100.0, damping=1.5).rates(4, torch.device("cpu")).tolist()
    [0.5, 1.4, 1.6, 2.5]
    """

    title: ClassVar[str] = "HoPE (hyperbolic)"
    paper: ClassVar[str] = "arXiv:2509.05218"
    summary: ClassVar[str] = (
        "Pairs of queries and keys undergo Lorentz boosts: scores decay monotonically with distance."
    )
    summary_zh: ClassVar[str] = "用双曲（洛伦兹）变换代替旋转，分数随距离单调衰减。"
    variants: ClassVar[tuple[str, ...]] = ("hopelorentz(damping=1.5, pairing='interleaved')",)

    base: float = 10000.0
    damping: float = 1.01
    pairing: str = "half"

    def __post_init__(self) -> None:
        Rotary(base=self.base, pairing=self.pairing)  # checks them
        if not self.base >= 1:
            raise HeadwayError(f"expected a hopelorentz base of at least 1, got {self.base}")
        if not 1 < self.damping < math.inf:
            raise HeadwayError(f"expected hopelorentz damping above 1, the largest frequency, got {self.damping}")

    def build(self, shape: HeadShape) -> None:
        """Check that the head divides into pairs."""
        Rotary().width(shape.head_dim)

    def rates(self, width: int, device: torch.device) -> Float[Tensor, " {width}"]:
        """Decay rate of each u, then of each w in reverse order, per token, float64: the slowest first."""
        speed = frequencies(width, self.base, device)
        return torch.cat((self.damping - speed, self.damping + speed.flip(0)))

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """The difference of the boosted product from q·k."""
        precise, width = torch.promote_types(look.q.dtype, torch.float32), look.q.shape[-1]
        rates = self.rates(width, look.q.device).to(precise)
        basis = self._basis(torch.eye(width, dtype=precise, device=look.q.device))
        return (Boost(look.q, look.k, basis, rates, look.scale),)

    def _basis(self, unit: Float[Tensor, "width width"]) -> Float[Tensor, "width width"]:
        """u of every pair as rows, then w in reverse order."""
        a, b = unit.chunk(2) if self.pairing == "half" else (unit[0::2], unit[1::2])
        rows: Tensor = torch.cat((a + b, (a - b).flip(0))) * 0.5**0.5
        return rows
