"""Positions as group actions (GRAPE). Zhang et al. 2025, "Group Representational Position Encoding", arXiv:2512.07805.

Multiplicative, GRAPE-M: exp(pos·L) rotates queries and keys, L = Σ_p ω_p (b_p a_pᵀ − a_p b_pᵀ) over orthonormal a, b.
Each plane (a_p, b_p) rotates by pos·ω_p and what is orthogonal to all planes stays, so no matrix exponential is needed:

    exp(pos·L) x = x + F (R(pos·ω) − 1) Fᵀ x              F = [a b],  R rotates each pair of coordinates in its plane

Additive, GRAPE-A: a unipotent action whose rate the content gates adds a penalty linear in the distance:

    score(i, j) = q_i·k_j / √d_k − |pos_i − pos_j| · ω_h · ( softplus(v_h·q_i / √d_k) + softplus(u_h·k_j / √d_k) )
    ω_h = softplus(w_h) · m_h            m  the slopes of ALiBi

ALiBi is the additive one with constant gates; FoX (:mod:`headway.positions.fox`) sums gates along the text instead, and
so does the path-integral GRAPE-AP (:mod:`headway.positions.grapeap`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize, pad, softplus

from headway.integers import exporting
from headway.positions.alibi import slopes
from headway.positions.base import Position, TermInputs, angle_dtype, frequencies
from headway.positions.rotary import PAIRINGS, rotate_pairs, waves
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, SlopePerToken

HALVINGS, ORDER = 10, 18
"""Of a matrix with a norm up to 1,000, halved so often, this many terms of the series are exact to 12 digits."""


@dataclass(eq=False)
class GrapeM(Position):
    """Queries and keys are rotated in planes, learned or those of rotary, at learned rates (GRAPE-M, arXiv:2512.07805).

    Formula: q and k become exp(pos·L) q and exp(pos·L) k, L = Σ_p ω_p (b_p a_pᵀ − a_p b_pᵀ), which rotates a towards b,
    as rotary does, so that scores depend on differences of positions only. Shapes: q (B, H, Q, d_k), k (B, H_kv, K,
    d_k) unchanged.

    Learned, in each layer: the rates ω_p = base^(−2p/r)·exp(δ_p/slowness), one δ for all heads or for each key head,
    initialised to zeros, over r rotated dimensions; and with ``planes`` the planes of each key head, the first r
    columns of exp(S − Sᵀ), S (H_kv, d_k, r), also zeros. So it starts exactly as rotary.

    Pitfalls: ``planes=0`` with learned rates is what the authors trained. A full set of learned planes is a change of
    basis, which W_Q and W_K can learn as well, except with QK-norm or with fewer planes than pairs. The authors store
    16·ln ω instead of δ; weight decay would pull that to ω = 1 instead of to rotary, and bfloat16 rounds it by 3 %.
    Their L has the other sign, so that b rotates towards a: to load their weights, negate b, which with pairing "half"
    is the second half of each head's rows in W_Q and W_K.

    Args:
        base: base of the initial rates.
        planes: number of learned planes, at most d_k/2; 0 rotates the pairs of rotary.
        shared: whether all heads rotate at the same rates.
        slowness: divides δ, so that rates change by this factor more slowly than other parameters.
        pairing: which dimensions form pairs, also for the initial planes; see :class:`headway.positions.Rotary`.

    >>> sorted((name, *p.shape) for name, p in GrapeM(planes=1).attach(HeadShape.of(64, heads=4)).named_parameters())
    [('basis', 4, 16, 2), ('rate', 1, 1)]
    """

    title: ClassVar[str] = "GRAPE-M"
    paper: ClassVar[str] = "arXiv:2512.07805"
    summary: ClassVar[str] = (
        "Queries and keys are rotated at learned rates, in the planes of rotary or in learned planes."
    )
    summary_zh: ClassVar[str] = "查询和键以可学习的速率旋转，旋转平面取 RoPE 的坐标平面或由学习得到。"
    sharding: ClassVar[dict[str, str]] = {"rate": "gx", "basis": "gxx"}
    per_layer: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("grapem(planes=4, pairing='interleaved')", "grapem(planes=1, shared=False)")

    base: float = 10000.0
    planes: int = 0
    shared: bool = True
    slowness: float = 16.0
    pairing: str = "half"

    def __post_init__(self) -> None:
        for name in ("base", "slowness"):
            if not 0 < getattr(self, name) < math.inf:
                raise HeadwayError(f"expected a finite grapem {name} above 0, got {getattr(self, name)}")
        if self.planes < 0:
            raise HeadwayError(f"expected grapem planes of at least 1, or 0 for those of rotary, got {self.planes}")
        if self.pairing not in PAIRINGS:
            raise HeadwayError(f"expected grapem pairing {' or '.join(PAIRINGS)}, got {self.pairing!r}")

    def build(self, shape: HeadShape) -> None:
        """Create δ and S."""
        width = shape.head_dim
        if self.planes > width // 2 or (not self.planes and width % 2):
            raise HeadwayError(
                f"expected grapem planes from 1 to {width // 2}, or 0 in a head of even width, got {self.planes} in a "
                f"head of width {width}"
            )
        pairs = self.planes or width // 2
        self.rate = nn.Parameter(torch.empty(1 if self.shared else shape.kv_heads, pairs))
        if self.planes:
            self.basis = nn.Parameter(torch.empty(shape.kv_heads, width, 2 * pairs))

    def reset_parameters(self) -> None:
        """Zeros: rotary."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def rates(self) -> Float[Tensor, "#kv_heads pairs"]:
        """ω, radians per token, float64.

        >>> GrapeM().attach(HeadShape.of(16, heads=4)).rates().tolist()
        [[1.0, 0.01]]
        """
        start = frequencies(2 * self.rate.shape[1], self.base, self.rate.device)
        return start * (self.rate.to(start) / self.slowness).exp()

    def frame(self) -> Float[Tensor, "kv_heads dim rotated"]:
        """F, whose columns a and b are orthonormal."""
        # in float64, which autocast does not round to bfloat16 within the exponential
        basis = self.basis.to(angle_dtype(self.basis.device))
        square = pad(basis, (0, basis.shape[1] - basis.shape[2]))
        turned = _exponential(square - square.mT)
        return turned[..., : basis.shape[2]]

    def rotate(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        q_pos: Int[Tensor, "#batch queries"],
        k_pos: Int[Tensor, "#batch keys"],
    ) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        """Rotate q and k by their positions."""
        rates, frame, groups = self.rates(), self.frame() if self.planes else None, q.shape[1] // k.shape[1]
        of_keys = self._turned(k, k_pos, rates, frame)
        if groups > 1:
            rates = rates if self.shared else rates.repeat_interleave(groups, 0)
            frame = None if frame is None else frame.repeat_interleave(groups, 0)
        return self._turned(q, q_pos, rates, frame), of_keys

    def _turned(self, x: Tensor, pos: Tensor, rates: Tensor, frame: Tensor | None) -> Tensor:
        cos, sin = waves(pos[:, None, :, None] * rates[:, None], x)
        if frame is None:
            return rotate_pairs(x, cos, sin, self.pairing)
        wide = x.to(cos.dtype)
        inside = wide @ frame.to(wide)
        turned = rotate_pairs(inside, cos, sin, self.pairing)
        if frame.shape[1] == frame.shape[2]:
            return turned.to(x.dtype)  # in the basis of the planes, which q and k share: scores are the same
        return (wide + (turned - inside) @ frame.mT.to(wide)).to(x.dtype)


GATES = ("both", "query", "key")


@dataclass(eq=False)
class GrapeA(Position):
    """A penalty linear in the distance, at a rate computed from query and key (GRAPE-A, arXiv:2512.07805).

    Formula: −|pos_i − pos_j|·ω_h·(softplus(v_h·q_i/√d_k) + softplus(u_h·k_j/√d_k)) is added to the scores, where v and
    u are normalised to length 1 and ω_h = softplus(w_h)·m_h, m the slopes of ALiBi. Learned, in each layer: v and u
    (H, d_k) ~ N(0, 1/d_k) and w (H), with softplus(w) = 1.

    Pitfalls: the paper's formula leaves the lengths of v and u and the sign of ω free; its authors' code is followed,
    with QK-norm in their models. Both are written for causal attention; future keys are penalised in the same way here,
    as in two-sided ALiBi. The paper says it can be combined with a rotation; its experiments do not do so.

    Args:
        gate: whose content determines the rate: "both" (GRAPE-A-QK in the paper), "query" or "key".
        unit: normalise v and u to length 1.

    >>> sorted(name for name, _ in GrapeA(gate="key").attach(HeadShape.of(64, heads=4)).named_parameters())
    ['key_gate', 'slope']
    """

    title: ClassVar[str] = "GRAPE-A"
    paper: ClassVar[str] = "arXiv:2512.07805"
    summary: ClassVar[str] = "Scores fall linearly with distance, at a rate computed from query and key."
    summary_zh: ClassVar[str] = "分数按距离逐词元扣减，扣减速率由查询和键的内容决定。"
    sharding: ClassVar[dict[str, str]] = {"slope": "h", "query_gate": "hx", "key_gate": "hx"}
    per_layer: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("grapea(gate='query')", "grapea(gate='key', unit=False)")

    gate: str = "both"
    unit: bool = True

    def __post_init__(self) -> None:
        if self.gate not in GATES:
            raise HeadwayError(f"expected grapea gate {', '.join(GATES)}, got {self.gate!r}")

    def build(self, shape: HeadShape) -> None:
        """Create v, u and w."""
        self.heads = shape.heads
        self.slope = nn.Parameter(torch.empty(shape.heads))
        if self.gate != "key":
            self.query_gate = nn.Parameter(torch.empty(shape.heads, shape.head_dim))
        if self.gate != "query":
            self.key_gate = nn.Parameter(torch.empty(shape.heads, shape.head_dim))

    def reset_parameters(self) -> None:
        """V and u ~ N(0, 1/d_k); softplus(w) = 1."""
        nn.init.constant_(self.slope, math.log(math.expm1(1)))
        for name, parameter in self.named_parameters():
            if name != "slope":
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """The penalty."""
        left = None if self.gate == "key" else self._rate(look, look.q, self.query_gate)
        right = None if self.gate == "query" else self._rate(look, look.k, self.key_gate)
        return (SlopePerToken(left, right),)

    def _rate(
        self, look: TermInputs, x: Float[Tensor, "batch kv_heads tokens dim"], gate: Float[Tensor, "all_heads dim"]
    ) -> Float[Tensor, "batch heads tokens"]:
        """−ω·softplus(gate·x/√d_k) for all query heads, of which some may share one of x."""
        gate = look.of_heads(gate).to(torch.promote_types(x.dtype, torch.float32))
        gate = normalize(gate, dim=-1, eps=1e-6) if self.unit else gate
        gate = gate.unflatten(0, (x.shape[1], -1))[:, :, None] * gate.shape[-1] ** -0.5  # (H_kv, G, 1, D)
        # NaN in a token reaches those who see it through q and k, and must reach no gradient where it is hidden; no
        # product of matrices, which autocast would round
        content = (x.nan_to_num(0.0, 0.0, 0.0)[:, :, None] * gate).sum(-1).flatten(1, 2)
        slope = softplus(look.of_heads(self.slope).to(content)) * look.of_heads(slopes(self.heads, x.device)).to(
            content
        )
        return -slope[:, None] * softplus(content)


def _exponential(x: Float[Tensor, "*batch width width"]) -> Float[Tensor, "*batch width width"]:
    """exp(x); in an exported program by products alone, because ONNX has no exponential of matrices."""
    if not exporting():
        found: Tensor = torch.linalg.matrix_exp(x)
        return found
    small, one = x / 2**HALVINGS, torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    total = one
    for order in range(ORDER, 0, -1):  # Taylor's series, from its end
        total = one + small @ total / order
    for _ in range(HALVINGS):
        total = total @ total
    return total
