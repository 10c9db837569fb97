"""DeBERTa's disentangled attention. He et al. 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention",
arXiv:2006.03654.

    score(i, j) = (q_i·k_j + q_i·K^r[δ(i,j)] + k_j·Q^r[δ(j,i)]) / √(3 d_k)
    K^r = P W_K^r,  Q^r = P W_Q^r          P (2c, d) learned vectors of relative positions, c = clip
    δ(i, j) = min(max(n + c, 0), 2c − 1)          n = pos_i − pos_j

The terms are content-to-content, content-to-position and position-to-content. Version 2 first replaces n by its bucket:

    bucket(n) = n                                                             |n| ≤ m, m = b/2
              = sign(n) · (m + ⌈ln(|n|/m) / ln((clip−1)/m) · (m−1)⌉)          beyond; P then has 2b rows, b = buckets
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.linear import linear
from headway.positions.base import Position, TermInputs
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, ProductPerKey, ProductPerQuery


@dataclass(eq=False)
class Deberta(Position):
    """Disentangled attention: content-to-position and position-to-content scores (DeBERTa, arXiv:2006.03654).

    Formula: score = (q_i·k_j + q_i·K^r[δ(i,j)] + k_j·Q^r[δ(j,i)])/√(3 d_k), K^r = P W_K^r, Q^r = P W_Q^r. The 3 is
    applied here: :meth:`rotate` and :meth:`terms` divide by √3, Attention by √d_k as usual. Learned, N(0, 0.02²): P
    (2·clip or 2·buckets, d_model) and W_K^r, W_Q^r (H, d_k, d_model), separate for each layer; DeBERTa shares P among
    layers.

    Pitfalls: buckets round up, unlike T5's; the authors' code indexes the third term by δ(i,j), not by δ(j,i) as in the
    paper, so its checkpoints need ``reverse=False``; from version 2 on the code also takes W_K and W_Q for W_K^r and
    W_Q^r, and its biases on them are left out here. Keys ``clip`` or more before a query share row 2·clip − 1 and those
    as far after it row 0, as in transformers; Microsoft's current code clamps the latter to row 1. It distinguishes
    both sides and was designed for encoders.

    Args:
        clip: distances from here on share one vector; 512 in the paper.
        buckets: 0 for a row of P per distance; otherwise the number of buckets per side, 256 in version 2.
        reverse: index position to content by δ(j,i).

    >>> Deberta(buckets=8, clip=100).row(torch.tensor([-4, -1, 0, 4, 5, 30, 99, 5000])).tolist()
    [4, 7, 8, 12, 13, 14, 15, 15]
    """

    title: ClassVar[str] = "DeBERTa"
    paper: ClassVar[str] = "arXiv:2006.03654"
    summary: ClassVar[str] = "Scores add products of queries with relative position vectors, and of keys likewise."
    summary_zh: ClassVar[str] = "分数加上查询与相对位置向量的乘积，以及键与相对位置向量的乘积。"
    sharding: ClassVar[dict[str, str]] = {"key_weight": "hxx", "query_weight": "hxx"}
    per_layer: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("deberta(clip=3, reverse=False)", "deberta(clip=20, buckets=6)")

    clip: int = 512
    buckets: int = 0
    reverse: bool = True

    def __post_init__(self) -> None:
        if self.clip < 1:
            raise HeadwayError(f"expected deberta clip of at least 1, got {self.clip}")
        if self.buckets and (self.buckets < 4 or self.buckets % 2 or self.clip - 1 <= self.buckets // 2):
            raise HeadwayError(
                f"expected deberta buckets to be 0, or even, at least 4 and below 2·(clip − 1), got buckets="
                f"{self.buckets} with clip={self.clip}"
            )

    def build(self, shape: HeadShape) -> None:
        """Create P, W_K^r and W_Q^r."""
        self.vectors = nn.Parameter(torch.empty(2 * (self.buckets or self.clip), shape.dim))
        self.key_weight = nn.Parameter(torch.empty(shape.heads, shape.head_dim, shape.dim))
        self.query_weight = nn.Parameter(torch.empty(shape.heads, shape.head_dim, shape.dim))

    def reset_parameters(self) -> None:
        """All ~ N(0, 0.02²)."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def row(self, n: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The row of P for each distance n, query position minus key position: δ."""
        side = self.buckets or self.clip
        if self.buckets:
            # float32, in this order of operations, as the checkpoints were trained: it decides where ⌈⌉ falls
            middle = self.buckets // 2
            share = (n.abs().clamp(min=middle) / middle).log() / math.log((self.clip - 1) / middle)
            far = (share * (middle - 1)).ceil().long() + middle
            n = torch.where(n.abs() <= middle, n, n.sign() * far)
        return (n + side).clamp(0, 2 * side - 1)

    def rotate(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        q_pos: Int[Tensor, "#batch queries *axes"],
        k_pos: Int[Tensor, "#batch keys *axes"],
    ) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        """Queries over √3: three terms of equal variance are summed, where attention otherwise has one."""
        return q / math.sqrt(3), k

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """q·K^r for every query and distance, k·Q^r for every key and distance."""
        repeats = look.q.shape[1] // look.k.shape[1]
        k = look.k if repeats == 1 else look.k.repeat_interleave(repeats, 1)
        offset, past = look.offsets(self.clip, 0 if look.sees_future is False else self.clip)
        future = offset.shape[0] - 1 - past
        ends = (past, future) if self.reverse else (future, past)
        # rows are scaled, not queries and keys, which are more
        keys, low = self._rows(look, self.key_weight * look.scale, future, past)
        queries, lowest = self._rows(look, self.query_weight * (look.scale / math.sqrt(3)), *ends)
        return (
            ProductPerQuery(look.q, keys, past, self.row(-offset) - low),
            ProductPerKey(k, queries, past, self.row(offset if self.reverse else -offset) - lowest),
        )

    def _rows(
        self, look: TermInputs, weight: Float[Tensor, "all_heads head_dim dim"], below: int, above: int
    ) -> tuple[Float[Tensor, "heads rows head_dim"], int]:
        """P W of the rows for distances -below ... above, and the first of them."""
        side = self.buckets or self.clip
        exact = self.buckets // 2 if self.buckets else side
        first, last = (side + sign * (n if n <= exact else side) for sign, n in ((-1, below), (1, above)))
        first, last, dtype = max(first, 0), min(last, 2 * side - 1), look.q.dtype
        weight = look.of_heads(weight).to(dtype)
        rows = linear(self.vectors[first : last + 1].to(dtype), weight.flatten(0, 1))
        return rows.unflatten(1, weight.shape[:2]).transpose(0, 1), first
