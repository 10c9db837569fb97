"""Music Transformer's relative attention. Huang et al. 2018, "Music Transformer: Generating Music with Long-Term
Structure", arXiv:1809.04281.

    score(i, j) = (q_i·k_j + q_i·E_n) / √d_k          n = min(pos_i − pos_j, clip), causal

E holds a learned vector per head and distance. The paper computes q·E for all distances at once and skews the result
into place, without materialising a vector per pair of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from headway.positions.base import Position, TermInputs
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, ProductPerQuery


@dataclass(eq=False)
class Music(Position):
    """Learned vectors per head and distance, multiplied by the queries (Music Transformer, arXiv:1809.04281).

    Formula: score += q_i·E_h[n]/√d_k, n = pos_i − pos_j from 0 to ``clip``. Learned: E (H, clip+1, d_k), separate for
    each layer, N(0, 1/d_k). It is Shaw's key side (see ``Shaw``) for the past only, with vectors per head.

    Pitfalls: causal; without a causal mask all of the future counts as distance 0. Distances longer than any in
    training have untrained vectors, so choose ``clip`` below the training length to extrapolate.

    Args:
        clip: distances beyond this one count as this one.

    >>> Music(clip=100).attach(HeadShape.of(64, heads=4)).table.shape
    torch.Size([4, 101, 16])
    """

    title: ClassVar[str] = "Music Transformer"
    paper: ClassVar[str] = "arXiv:1809.04281"
    summary: ClassVar[str] = "Scores add the product of the query with a learned vector per head and past distance."
    summary_zh: ClassVar[str] = "每个头、每个过去的距离各学习一个向量，查询与它的乘积加到分数上。"
    steady: ClassVar[bool] = True
    sharding: ClassVar[dict[str, str]] = {"table": "hxx"}
    per_layer: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("music(clip=3)",)

    clip: int = 512

    def __post_init__(self) -> None:
        if self.clip < 1:
            raise HeadwayError(f"expected music clip of at least 1, got {self.clip}")

    def build(self, shape: HeadShape) -> None:
        """Make E."""
        self.table = nn.Parameter(torch.empty(shape.heads, self.clip + 1, shape.head_dim))

    def reset_parameters(self) -> None:
        """E ~ N(0, 1/d_k), so that q·E/√d_k starts smaller than q·k/√d_k."""
        nn.init.normal_(self.table, std=self.table.shape[2] ** -0.5)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """q·E for every query and current distance."""
        offset, left = look.offsets(self.clip, 0)
        vectors = look.of_heads(self.table)[:, -offset].to(look.q.dtype)  # (H, W, D)
        return (ProductPerQuery(look.q, vectors * look.scale, left),)
