"""Transformer-XL's relative attention. Dai et al. 2019, "Transformer-XL: Attentive Language Models Beyond a
Fixed-Length Context", arXiv:1901.02860.

    score(i, j) = ((q_i + u)·k_j + (q_i + v)·W r_n) / √d_k          n = pos_i − pos_j
    r_n = [sin(n ω_0) … sin(n ω_(d/2−1)), cos(n ω_0) … ]            ω_m = 10000^(−2m/d), d the model's width

u and v are learned vectors per head that do not depend on the query, W is a learned matrix per head. XLNet
(arXiv:1906.08237) uses the same with keys on both sides, n negative for the future.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from headway.integers import exporting
from headway.linear import linear
from headway.positions.base import Position, TermInputs, frequencies
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, PerKey, ProductPerQuery


@dataclass(eq=False)
class TransformerXL(Position):
    """Queries are multiplied by sinusoids of the distance through a learned matrix (Transformer-XL, arXiv:1901.02860).

    Formula: score = ((q_i + u)·k_j + (q_i + v)·W r_n)/√d_k, n = pos_i − pos_j, r_n sines then cosines of width d_model.
    Learned, all N(0, 0.02²), separate for each layer: u and v (H, d_k), W (H, d_k, d_model). In the paper all layers
    share u and v; its code supports both (``untie_r``), and in XLNet they are separate, as here.

    Pitfalls: it holds one value per query, head and current distance; r_n is sines ‖ cosines, not interleaved; with
    keys on both sides set ``bidirectional``, or all of the future counts as distance 0.

    Args:
        clip: distances beyond it count as this one (``clamp_len`` in the authors' code, where 0 or less is none).
        bidirectional: also distinguish future keys (XLNet).

    >>> position = TransformerXL().attach(HeadShape.of(64, heads=4))
    >>> [tuple(p.shape) for p in (position.u, position.v, position.weight)]
    [(4, 16), (4, 16), (4, 16, 64)]
    """

    title: ClassVar[str] = "Transformer-XL"
    paper: ClassVar[str] = "arXiv:1901.02860"
    summary: ClassVar[str] = (
        "Scores add products of queries with sinusoids of the distance, and of keys with a learned query."
    )
    summary_zh: ClassVar[str] = "分数加上查询经学习的矩阵与距离正弦向量的乘积，以及键与一个学习的全局查询的乘积。"
    sharding: ClassVar[dict[str, str]] = {"u": "hx", "v": "hx", "weight": "hxx"}
    per_layer: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("transformerxl(bidirectional=True)", "transformerxl(clip=3)")

    clip: int = 1024
    bidirectional: bool = False

    def __post_init__(self) -> None:
        if self.clip < 1:
            raise HeadwayError(f"expected transformerxl clip of at least 1, got {self.clip}")

    def build(self, shape: HeadShape) -> None:
        """Create u, v and W."""
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
        biases = PerKey((keys @ (u * look.scale)[..., None])[..., 0])
        if not exporting() and q.shape[0] * q.shape[2] < q.shape[3]:
            # with few queries, as in decoding, map the queries to the sinusoids' width; with many, map each distance
            return biases, ProductPerQuery(rows @ weight, waves.mT[None], left)
        mapped = linear(waves.mT, weight.flatten(0, 1)).unflatten(1, weight.shape[:2]).transpose(0, 1)
        return biases, ProductPerQuery(rows, mapped, left)
