"""T5's relative position buckets. Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer", arXiv:1910.10683.

    score(i, j) = q_i·k_j · scale + w_h[bucket(pos_i − pos_j)]
    bucket(n) = n                                             for 0 ≤ n < E            E = buckets/2
              = E + ⌊ln(n/E) / ln(max_distance/E) · (B−E)⌋    from there, at most B−1   B = buckets

for causal attention, where future keys fall into bucket 0. If bidirectional, B and E are halved, and future keys use
the upper half of the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from headway.positions.base import Position, TermInputs
from headway.positions.working import Line, Lines, Number
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, ByDistance


@dataclass(eq=False)
class T5(Position):
    """A learned bias per head and bucket of distance (T5, arXiv:1910.10683).

    Formula: w_h[bucket(pos_i − pos_j)] is added to the scores; near distances have one bucket each, far ones share
    buckets that widen logarithmically up to ``max_distance``. Learned: w (H, buckets), initialised N(0, 0.02²).

    Pitfalls: T5 itself scales scores by 1, not 1/√d_k (pass ``scale=1.0`` to Attention to run its checkpoints), and all
    layers of a stack share one table, as layers do here when they share the object.

    Args:
        buckets: biases per head; even, at least 4 if bidirectional.
        max_distance: distances from here on share the last bucket.
        bidirectional: distinguish past from future (encoders); False is for causal attention (decoders).

    >>> T5().bucket(torch.tensor([0, -1, -15, -16, -127, -128, -4000, 3])).tolist()
    [0, 1, 15, 16, 31, 31, 31, 0]
    """

    title: ClassVar[str] = "T5 buckets"
    paper: ClassVar[str] = "arXiv:1910.10683"
    summary: ClassVar[str] = (
        "A learned bias per head and distance bucket is added to scores; far distances share buckets."
    )
    summary_zh: ClassVar[str] = "按距离分桶，为每个头和每个桶学习一个偏置，加到分数上；远距离共用桶。"
    steady: ClassVar[bool] = True
    sharding: ClassVar[dict[str, str]] = {"weight": "hx"}

    variants: ClassVar[tuple[str, ...]] = ("t5(bidirectional=True)", "t5(buckets=8, max_distance=9)")

    buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = False

    def __post_init__(self) -> None:
        least = 4 if self.bidirectional else 2
        if self.buckets < least or self.buckets % 2:
            raise HeadwayError(f"expected an even number of t5 buckets of at least {least}, got {self.buckets}")
        if self.max_distance <= self._exact():
            raise HeadwayError(f"expected t5 max_distance above {self._exact()}, got {self.max_distance}")

    def _side(self) -> int:
        return self.buckets // 2 if self.bidirectional else self.buckets

    def _exact(self) -> int:
        return self._side() // 2

    def build(self, shape: HeadShape) -> None:
        """Create w."""
        self.weight = nn.Parameter(torch.empty(shape.heads, self.buckets))

    def reset_parameters(self) -> None:
        """W ~ N(0, 0.02²)."""
        nn.init.normal_(self.weight, std=0.02)

    def bucket(self, offset: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The bucket of each offset, key position minus query position."""
        n, side, exact = -offset, self._side(), self._exact()
        upper = torch.zeros_like(n)
        if self.bidirectional:
            upper, n = (n < 0) * side, n.abs()
        n = n.clamp(min=0)
        # float32, in this order of operations, as the checkpoints were trained: it decides on which side
        # of a boundary a distance falls
        log = (n.clamp(min=1).float() / exact).log() / math.log(self.max_distance / exact) * (side - exact)
        far = (exact + log.long()).clamp(max=side - 1)
        return upper + torch.where(n < exact, n, far)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """The table over distances, saturating at ±max_distance."""
        right = self.max_distance if self.bidirectional else 0
        offset = torch.arange(-self.max_distance, right + 1, device=self.weight.device)
        return (ByDistance(look.of_heads(self.weight)[:, self.bucket(offset)], self.max_distance),)

    def worked(self, number: Number) -> Lines:
        """The bucket of a distance, and its bias."""
        if number.kind != "bias":
            return ()
        n, side, exact = int(number.at), self._side(), self._exact()
        bucket = int(self.bucket(-number.at))
        lines: Lines = (Line("E", f"{side} / 2", float(exact)),)
        if n < exact:
            lines += (Line("bucket", "n", float(bucket)),)
        else:
            last, far = side - 1, f"ln(n / E) / ln({self.max_distance} / E) · {side - exact}"
            lines += (Line("bucket", f"min({last}, E + ⌊{far}⌋)", float(bucket)),)
        return *lines, Line("b", f"w[{bucket}]", self.weight.detach()[number.index, bucket], "learned")
