"""Transformer-XL's relative attention. Dai et al. 2019, "Transformer-XL: Attentive Language Models Beyond a
Fixed-Length Context", arXiv:1901.02860.

    score(i, j) = ((q_i + u)·k_j + (q_i + v)·W r_n) / √d_k          n = pos_i − pos_j
    r_n = [sin(n ω_0) … sin(n ω_(d/2−1)), cos(n ω_0) … ]            ω_m = 10000^(−2m/d), d the model's width

u and v are learned vectors per head that stand for "any query", W a learned matrix per head. XLNet (arXiv:1906.08237)
uses the same with keys on both sides, n negative for the future.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from headway.positions.base import Position, TermInputs, frequencies
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, ByDistancePerQuery, PerKey


@dataclass(eq=False)
class TransformerXL(Position):
    """Queries meet a sinusoid of the distance through a learned matrix (Transformer-XL, arXiv:1901.02860).

    Formula: score = ((q_i + u)·k_j + (q_i + v)·W r_n)/√d_k, n = pos_i − pos_j, r_n sines then cosines of width d_model.
    Learned, all N(0, 0.02²), each layer its own: u and v (H, d_k), W (H, d_k, d_model). The paper writes one u and v
    for all layers; its code has both ways (``untie_r``), and XLNet gives each layer its own, as here.

    Pitfalls: holds one number per query, head and distance at hand; r_n is sines ‖ cosines, not interleaved; with keys
    on both sides set ``bidirectional``, or all of the future looks like distance 0.

    Args:
        clip: distances beyond it count as this one (``clamp_len`` in the authors' code, where 0 or less is none).
        bidirectional: tell keys of the future apart too (XLNet).

    >>> position = TransformerXL().attach(HeadShape.of(64, heads=4))
    >>> [tuple(p.shape) for p in (position.u, position.v, position.weight)]
    [(4, 16), (4, 16), (4, 16, 64)]
    """

    title: ClassVar[str] = "Transformer-XL"
    paper: ClassVar[str] = "arXiv:1901.02860"
    summary: ClassVar[str] = "Queries meet sinusoids of the distance through a learned matrix; keys a learned query."
    summary_zh: ClassVar[str] = "查询经学习的矩阵与距离的正弦向量相乘，每个键另与一个学习的全局查询相乘。"
    per_layer: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("transformerxl(bidirectional=True)", "transformerxl(clip=3)")

    clip: int = 1024
    bidirectional: bool = False

    def __post_init__(self) -> None:
        if self.clip < 1:
            raise HeadwayError(f"expected transformerxl clip of at least 1, got {self.clip}")

    def build(self, shape: HeadShape) -> None:
        """Make u, v and W."""
        self.u = nn.Parameter(torch.empty(shape.heads, shape.head_dim))
        self.v = nn.Parameter(torch.empty(shape.heads, shape.head_dim))
        self.weight = nn.Parameter(torch.empty(shape.heads, shape.head_dim, shape.dim))

    def reset_parameters(self) -> None:
        """All ~ N(0, 0.02²)."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """u·k for every key; (q + v)·W r for every query and distance."""
        q, dtype = look.q, look.q.dtype
        u, v, weight = (look.of_heads(parameter).to(dtype) for parameter in (self.u, self.v, self.weight))
        keys = look.k.repeat_interleave(q.shape[1] // look.k.shape[1], 1)  # (B, H, K, D)
        offset, left = look.offsets(self.clip, self.clip if self.bidirectional else 0)
        angles = -offset[:, None] * frequencies(weight.shape[2], 10000.0, q.device)
        waves = torch.cat((angles.sin(), angles.cos()), 1)[:, : weight.shape[2]].T.to(dtype)  # (d_model, W)
        rows = (q + v[:, None]) * look.scale
        # few queries, as in decoding, are mapped to the sinusoids' width; many let each distance be mapped once
        few = q.shape[0] * q.shape[2] < q.shape[3]
        table = rows @ weight @ waves if few else rows @ (weight @ waves)
        return PerKey((keys @ (u * look.scale)[..., None])[..., 0]), ByDistancePerQuery(table, left)
