"""Kernelised relative position bias (KERPLE). Chi et al. 2022, "KERPLE: Kernelized Relative Positional Embedding for
Length Extrapolation", arXiv:2205.09921.

    score(i, j) = q_i·k_j / √d_k − r1 · ln(1 + r2 · |n|)          "log",    r1, r2 > 0
    score(i, j) = q_i·k_j / √d_k − r1 · |n|^r2                    "power",  r1 > 0, 0 < r2 < 2

n = pos_i − pos_j; r1 and r2 are learned for each head. Both are conditionally positive definite kernels of distance,
which is what bounds r2; ALiBi is the power kernel with r2 = 1 and a fixed r1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.positions.base import Position, TermInputs, angle_dtype
from headway.positions.working import Line, Lines, Number
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, ByDistance

KINDS = ("log", "power")
LEAST = 0.01
"""Smallest initial value of r1 and r2, as in the authors' code, and margin of the exponent below 2."""


@dataclass(eq=False)
class Kerple(Position):
    """A penalty that grows with distance at a learned rate per head (KERPLE, arXiv:2205.09921).

    Formula: −r1·ln(1 + r2·|n|) or −r1·|n|^r2 is added to the scores, n = pos_i − pos_j. Learned, two values per head,
    one set for all layers as in the authors' code: r1 = softplus of a parameter; r2 likewise, or 2·sigmoid for "power".
    They start uniform: log r1 in (0, 2), r2 in (0, 1); power r1 in (0, 1), r2 in (0, 2); none below 0.01.

    Pitfalls: the authors' code keeps r1 and r2 positive by clamping, which cuts off their gradients at 0.01; here the
    parametrisation does so, and :meth:`assign` loads rates from the authors' checkpoints.

    Args:
        kind: "log", which extrapolates best in the paper, or "power".
        clip: longer distances count as this one; memory and time depend on the actual distances only.

    >>> position = Kerple().attach(HeadShape.of(64, heads=4))
    >>> position.assign(0.5 * torch.ones(4), torch.ones(4))
    >>> position.bias(torch.tensor([1, -3]))[0].detach()
    tensor([-0.3466, -0.6931])
    """

    title: ClassVar[str] = "KERPLE"
    paper: ClassVar[str] = "arXiv:2205.09921"
    summary: ClassVar[str] = "Scores fall with the logarithm or a power of the distance, at learned rates per head."
    summary_zh: ClassVar[str] = "分数减去距离的对数或幂，每个头学习各自的速率。"
    steady: ClassVar[bool] = True
    sharding: ClassVar[dict[str, str]] = {"first": "h", "second": "h"}

    variants: ClassVar[tuple[str, ...]] = ("kerple(kind='power')", "kerple(clip=3)")

    kind: str = "log"
    clip: int = 16384

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise HeadwayError(f"expected kerple kind {' or '.join(KINDS)}, got {self.kind!r}")
        if self.clip < 1:
            raise HeadwayError(f"expected kerple clip of at least 1, got {self.clip}")

    def build(self, shape: HeadShape) -> None:
        """Create the parameters of r1 and r2."""
        self.first = nn.Parameter(torch.empty(shape.heads))
        self.second = nn.Parameter(torch.empty(shape.heads))

    def reset_parameters(self) -> None:
        """r1 and r2 uniform."""
        tops = (2, 1) if self.kind == "log" else (1, 2)
        self.assign(*((torch.rand_like(self.first) * top).clamp(LEAST, 2 - LEAST) for top in tops))

    @torch.no_grad()
    def assign(self, r1: Float[Tensor, " heads"], r2: Float[Tensor, " heads"]) -> None:
        """Set r1 and r2 to these values above 0, an exponent below 2."""
        self.first.copy_(_inverse_softplus(r1))
        self.second.copy_(_inverse_softplus(r2) if self.kind == "log" else (r2 / 2).logit())

    def rates(self) -> tuple[Float[Tensor, " heads"], Float[Tensor, " heads"]]:
        """r1 and r2, in float64."""
        # float64, because the gradient of a rate is a sum over distances of large numbers that nearly cancel
        first, second = (p.to(angle_dtype(p.device)) for p in (self.first, self.second))
        softplus = nn.functional.softplus
        return softplus(first), softplus(second) if self.kind == "log" else 2 * second.sigmoid()

    def bias(self, n: Int[Tensor, " width"]) -> Float[Tensor, "heads width"]:
        """The bias at each distance."""
        r1, r2 = (rate[:, None] for rate in self.rates())
        n = n.abs()
        if self.kind == "log":
            bias = -r1 * torch.log1p(r2 * n)
        else:
            # as exp of a logarithm, because the derivative of 0^r2 by r2, and its own, are 0 and not NaN
            bias = -r1 * (r2 * n.clamp(min=1).to(r2.dtype).log()).exp() * (n > 0)
        return bias.to(torch.promote_types(self.first.dtype, torch.float32))

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """The table over the current distances."""
        offset, left = look.offsets(self.clip, self.clip)
        return (ByDistance(look.of_heads(self.bias(offset)), left),)

    def worked(self, number: Number) -> Lines:
        """The rates of a head, and the kernel of a distance."""
        if number.kind != "bias":
            return ()
        r1, r2 = (float(rate[number.index]) for rate in self.rates())
        n = min(int(number.at), self.clip)
        formula = "−r1 · ln(1 + r2 · n)" if self.kind == "log" else "−r1 · n^r2"
        value = self.bias(torch.tensor([n], device=number.at.device))[number.index, 0].detach()
        far = (Line("n", f"min(n, {self.clip})", float(n)),) if n < int(number.at) else ()
        return Line("r1", "r1", r1, "learned"), Line("r2", "r2", r2, "learned"), *far, Line("b", formula, value)


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))
