"""Sandwich. Chi et al. 2023, "Dissecting Transformer Length Extrapolation via the Lens of Receptive Field Analysis",
arXiv:2212.10356.

    score(i, j) = q_i·k_j / √d_k + (H / 8h) · Σ_m cos(n · 10000^(−2m/w))          n = pos_i − pos_j, m = 0 … w/2−1
    h = 1 … H

The sum is the product of the sinusoidal vectors of both positions, P[pos_i]·P[pos_j]: what remains of sinusoidal
embeddings without their products with content. It falls roughly with the logarithm of the distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.positions.base import Position, TermInputs, angle_dtype, frequencies
from headway.positions.working import Line, Lines, Number
from headway.shapes import HeadwayError
from headway.terms import AnyTerm, ByDistance


@dataclass(eq=False)
class Sandwich(Position):
    """The product of two sinusoidal vectors, added to the scores at a fixed rate per head (arXiv:2212.10356).

    Formula: (H/8h)·Σ_m cos(n·10000^(−2m/width)), h = 1 … H, n = pos_i − pos_j, is added to the scores. Nothing is
    learned; the same for past and future.

    Pitfalls: ``width`` is independent of the width of model and heads; frequencies start at m = 0, as in the sinusoids
    of Vaswani et al.; the bias is up to H·width/16, far larger than initial scores.

    Args:
        width: w, twice the number of cosines; even, 128 in the paper.
        clip: longer distances count as this one; memory and time depend on the actual distances only.

    >>> from headway import HeadShape
    >>> position = Sandwich(width=4).attach(HeadShape.of(64, heads=8))
    >>> position.bias(torch.tensor([0, 1]))[0].float()  # cos 0 + cos 0, cos 1 + cos 0.01
    tensor([2.0000, 1.5403])
    """

    title: ClassVar[str] = "Sandwich"
    paper: ClassVar[str] = "arXiv:2212.10356"
    summary: ClassVar[str] = "Scores add the dot product of the two positions' sinusoidal vectors, scaled per head."
    summary_zh: ClassVar[str] = "分数加上两个位置正弦向量的内积，每个头按固定比例缩放。"
    steady: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("sandwich(width=8, clip=3)",)

    width: int = 128
    clip: int = 16384

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2:
            raise HeadwayError(f"expected an even sandwich width of at least 2, got {self.width}")
        if self.clip < 1:
            raise HeadwayError(f"expected sandwich clip of at least 1, got {self.clip}")

    def bias(self, n: Int[Tensor, " distances"]) -> Float[Tensor, "heads distances"]:
        """The bias at each distance, float64."""
        product = (n[:, None] * frequencies(self.width, 10000.0, n.device)).cos().sum(1)
        heads = 1 if self.shape is None else self.shape.heads
        head = torch.arange(1, heads + 1, device=n.device, dtype=angle_dtype(n.device))
        return product * (heads / (8 * head))[:, None]

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """The table over the current distances."""
        offset, left = look.offsets(self.clip, self.clip)
        table = look.of_heads(self.bias(offset)).to(torch.promote_types(look.q.dtype, torch.float32))
        return (ByDistance(table, left),)

    def worked(self, number: Number) -> Lines:
        """The sum of cosines of a distance, and the rate of a head."""
        if number.kind != "bias":
            return ()
        n, heads = number.at.clamp(max=self.clip), 1 if self.shape is None else self.shape.heads
        far = (Line("n", f"min(n, {self.clip})", n),) if int(n) < int(number.at) else ()
        value = self.bias(n[None])[number.index, 0]
        total = Line("S", f"Σ_m cos(n · 10000^(−2m/{self.width}))", value * 8 * (number.index + 1) / heads, "sum")
        return *far, total, Line("b", f"{heads} / (8 · {number.index + 1}) · S", value)
