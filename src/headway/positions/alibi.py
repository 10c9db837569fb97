"""Attention with linear biases (ALiBi). Press et al. 2022, "Train Short, Test Long", arXiv:2108.12409.

    score(i, j) = q_i·k_j / √d_k − m_h · |pos_i − pos_j|
    m_h = 2^(−8h/H), h = 1 … H, for H a power of two

For other H, as published in the authors' code: the slopes of the largest power of two below H, then every second slope
of the next one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.positions.base import Position, TermInputs
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, ByDistance


def slopes(heads: int, device: torch.device | None = None) -> Float[Tensor, " heads"]:
    """The slope m of each head, float64.

    >>> slopes(4).tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    whole = 2 ** int(math.log2(heads))
    slope = torch.exp2(-8 / whole * torch.arange(1, whole + 1, device=device).double())
    if whole < heads:
        finer = torch.exp2(-4 / whole * torch.arange(1, 2 * whole + 1, device=device).double())
        slope = torch.cat((slope, finer[0::2][: heads - whole]))
    return slope


SIDES = ("alike", "own", "half")
HIDDEN = -1e30
"""What a head that looks to one side adds on the other: no weight is left, and a row of nothing else is not NaN."""


@dataclass(eq=False)
class Alibi(Position):
    """A penalty linear in the distance, with a slope per head (ALiBi, arXiv:2108.12409).

    Formula: −m_h·|pos_i − pos_j| is added to the scores, m_h = 2^(−8h/H). The one formula serves causal attention and,
    without a causal mask, its symmetric two-sided form. Any number of heads; any length. Nothing is learned, unless
    asked for: then ln m (H, 1 or 2), from the values above.

    Pitfalls: the plain formula is wrong for H = 12 and all H that are not powers of two (see the module); far tokens
    are out of reach for steep heads, so low perplexity at great length can be mere recency.

    Args:
        learned: learn the slopes, as exponentials, so that they stay positive (as in x-transformers).
        sides: how the future differs, in attention without a causal mask, the ways the authors name for encoders:
            "alike" is symmetric; "own" learns other slopes for the future; in "half" the first half of the heads, with
            the slopes of H/2, sees the past only, the second half, with the same slopes, the future only.
        scaled: multiply the penalty by attention's scale too, 1/√d_k unless told otherwise, as Falcon does.

    >>> from headway import HeadShape
    >>> Alibi().attach(HeadShape.of(64, heads=8)).slope[:2].tolist()
    [0.5, 0.25]
    """

    title: ClassVar[str] = "ALiBi"
    paper: ClassVar[str] = "arXiv:2108.12409"
    summary: ClassVar[str] = "Scores lose a fixed amount per token of distance, at a different rate in each head."
    summary_zh: ClassVar[str] = "分数按距离逐词元扣减，每个头的速率不同。"

    variants: ClassVar[tuple[str, ...]] = ("alibi(learned=True, sides='own')", "alibi(scaled=True)")

    learned: bool = False
    sides: str = "alike"
    scaled: bool = False

    def __post_init__(self) -> None:
        if self.sides not in SIDES:
            raise HeadwayError(f"expected alibi sides {', '.join(SIDES)}, got {self.sides!r}")
        if self.sides == "own" and not self.learned:
            raise HeadwayError("expected learned=True with alibi sides='own', because both sides begin alike")

    def build(self, shape: HeadShape) -> None:
        """Make ln m, if it is learned: for the past, and for the future if that has its own."""
        if self.learned:
            self.log_slope = nn.Parameter(torch.empty(shape.heads, 2 if self.sides == "own" else 1))

    def reset_parameters(self) -> None:
        """The published slopes."""
        if self.learned:
            with torch.no_grad():
                self.log_slope.copy_(self._published(self.log_slope.device).log()[:, None])

    @property
    def slope(self) -> Float[Tensor, " heads"]:
        """The slope of each head, that of the past if the future has its own."""
        return self.log_slope.double().exp()[:, 0] if self.learned else self._published()

    @property
    def heads(self) -> int:
        """How many heads it was attached to."""
        return 1 if self.shape is None else self.shape.heads

    def _published(self, device: torch.device | None = None) -> Float[Tensor, " heads"]:
        if self.sides != "half":
            return slopes(self.heads, device)
        first, second = math.ceil(self.heads / 2), self.heads // 2
        return torch.cat([slopes(heads, device) for heads in (first, second) if heads])

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """−m_h · distance."""
        # computed here and not kept as a buffer: a model made on the meta device would lose it
        slope = self.log_slope.double().exp() if self.learned else self._published(look.q.device)[:, None]
        slope = slope * look.scale if self.scaled else slope
        tails = -slope.expand(-1, 2).to(torch.promote_types(look.q.dtype, torch.float32))
        if self.sides != "half":
            tails = look.of_heads(tails)
            return (ByDistance(torch.zeros_like(tails[:, :1]), 0, tails),)
        head = torch.arange(len(tails), device=tails.device)[:, None]
        hidden = (head >= math.ceil(len(tails) / 2)) == torch.tensor([True, False], device=tails.device)
        table = tails.masked_fill(hidden, HIDDEN)
        table = torch.stack((table[:, 0], torch.zeros_like(table[:, 0]), table[:, 1]), 1)
        return (ByDistance(look.of_heads(table), 1, look.of_heads(tails.masked_fill(hidden, 0.0))),)
