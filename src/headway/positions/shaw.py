"""Relative position representations. Shaw et al. 2018, "Self-Attention with Relative Position Representations",
arXiv:1803.02155.

    score(i, j) = q_i·(k_j + a^K[n]) / √d_k          n = clip(pos_j − pos_i, −c, c)
    out_i = Σ_j α_ij (v_j + a^V[n])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from headway.positions.base import Position, TermInputs
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, ProductPerQuery, ValuesByDistance


@dataclass(eq=False)
class Shaw(Position):
    """Learned vectors by clipped distance, added to keys and to values (arXiv:1803.02155).

    Formula: score += q_i·a^K[n]/√d_k and out_i += Σ_j α_ij a^V[n], n = clip(pos_j − pos_i, −clip, clip).
    Learned: a^K and a^V (2·clip+1, d_k), shared by the heads of a layer, separate for each layer; Glorot uniform.

    Pitfalls: the sign is key minus query; many implementations drop the value side.

    Args:
        clip: distances beyond this one count as this one; 16 in the paper.
        values: whether vectors are also added to the values.

    >>> sorted(n for n, _ in Shaw().attach(HeadShape.of(64, heads=4)).named_parameters())
    ['key_table', 'value_table']
    """

    title: ClassVar[str] = "Shaw relative"
    paper: ClassVar[str] = "arXiv:1803.02155"
    summary: ClassVar[str] = "Learned vectors by clipped distance are added to keys and values."
    summary_zh: ClassVar[str] = "按截断的距离学习向量，加到键和值上。"
    steady: ClassVar[bool] = True
    per_layer: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("shaw(clip=2)", "shaw(values=False)")

    clip: int = 16
    values: bool = True

    def __post_init__(self) -> None:
        if self.clip < 1:
            raise HeadwayError(f"expected shaw clip of at least 1, got {self.clip}")

    def build(self, shape: HeadShape) -> None:
        """Create a^K and a^V."""
        self.key_table = nn.Parameter(torch.empty(2 * self.clip + 1, shape.head_dim))
        if self.values:
            self.value_table = nn.Parameter(torch.empty(2 * self.clip + 1, shape.head_dim))

    def reset_parameters(self) -> None:
        """Glorot uniform."""
        for parameter in self.parameters():
            nn.init.xavier_uniform_(parameter)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """q·a^K for every query and distance, and a^V on the values."""
        keys = ProductPerQuery(look.q, self.key_table[None].to(look.q.dtype) * look.scale, self.clip)
        if not self.values:
            return (keys,)
        return (keys, ValuesByDistance(self.value_table[None], self.clip))
