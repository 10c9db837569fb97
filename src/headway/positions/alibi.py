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
from torch import Tensor

from headway.positions.base import Look, Position
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


@dataclass(eq=False)
class Alibi(Position):
    """A penalty linear in the distance, with a fixed slope per head (ALiBi, arXiv:2108.12409).

    Formula: −m_h·|pos_i − pos_j| is added to the scores, m_h = 2^(−8h/H). The one formula serves causal attention and,
    without a causal mask, its symmetric two-sided form. Nothing learned; any number of heads; any length.

    Pitfalls: the plain formula is wrong for H = 12 and all H that are not powers of two (see the module); far tokens
    are out of reach for steep heads, so low perplexity at great length can be mere recency.

    >>> from headway import HeadShape
    >>> Alibi().attach(HeadShape.of(64, heads=8)).slope[:2].tolist()
    [0.5, 0.25]
    """

    title: ClassVar[str] = "ALiBi"
    paper: ClassVar[str] = "arXiv:2108.12409"
    summary: ClassVar[str] = "Scores lose a fixed amount per token of distance, at a different rate in each head."
    summary_zh: ClassVar[str] = "分数按距离逐词元扣减，每个头的速率不同。"

    @property
    def slope(self) -> Float[Tensor, " heads"]:
        """The slope of each head."""
        return slopes(self.heads)

    @property
    def heads(self) -> int:
        """How many heads it was attached to."""
        return 1 if self.shape is None else self.shape.heads

    def terms(self, look: Look) -> tuple[AnyTerm, ...]:
        """−m_h · distance."""
        # computed here and not kept as a buffer: a model made on the meta device would lose it
        slope = slopes(self.heads, look.q.device).to(torch.promote_types(look.q.dtype, torch.float32))
        return (ByDistance.linear(-look.of_heads(slope)),)
