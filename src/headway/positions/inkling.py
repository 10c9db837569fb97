"""Inkling's bias: learned profiles over distance, mixed by each token. Published in 2026 with the models Inkling and
Inkling 2 of Thinking Machines, without a paper; as a bias by query and distance it derives from arXiv:1803.02155.

    score(i, j) = τ_i · ( q_i·k_j · scale + r_{h,i}·Bank[n] )       n = pos_i − pos_j; no bias unless 0 ≤ n < extent
    r_{h,i} = W_h x_i
    τ_i = 1 + alpha · ln max(1, (pos_i + 1) / floor)                1 without a floor
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.positions.base import Position, TermInputs, angle_dtype
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, ProductPerQuery


@dataclass(eq=False)
class Inkling(Position):
    """Each token mixes learned profiles over distance into a bias of its own (huggingface.co/thinkingmachines/Inkling).

    Formula: r_{h,i}·Bank[n] is added to the scores for 0 ≤ n < extent, r = W x of width ``rank`` in each head. Learned,
    separate for each layer: W (H·rank, d_model) and Bank (extent, rank), N(0, 0.02²). r is cached with k and v,
    although only queries need it: H·rank values per token.

    Pitfalls: distances from ``extent`` on, and the future, get no bias, not the last profile. Inkling scales scores by
    1/d_k, because its queries and keys are normalised: ``Attention(scale=1/d_k, qk_norm=True)``. Five of six layers
    have a window as wide as ``extent``; τ is for the others. It counts from position 0, so that with a floor the method
    is not relative. Self attention only: the r of a query is that of its own token's key.

    Args:
        rank: number of mixed profiles.
        extent: number of distances with a bias, including 0; 1024 in full layers of Inkling, 512 in others.
        floor: length from which scores are multiplied by τ; 0 is never.
        alpha: growth rate of τ.
        clip: maximum norm of r, which is first multiplied by a learned vector per head, initialised to ones; 8 in
            Inkling 2. 0 does neither.

    >>> sorted((name, *p.shape) for name, p in Inkling().attach(HeadShape.of(64, heads=4)).named_parameters())
    [('bank', 1024, 16), ('weight', 64, 64)]
    """

    title: ClassVar[str] = "Inkling bias"
    paper: ClassVar[str] = "huggingface.co/thinkingmachines/Inkling"
    summary: ClassVar[str] = "Each token mixes learned profiles over near distances into its own bias."
    summary_zh: ClassVar[str] = "每个词元把若干可学习的距离曲线混合成自己的偏置，只作用于近处。"
    sharding: ClassVar[dict[str, str]] = {"weight": "hx", "gain": "hx", "marks": "hx"}
    per_layer: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("inkling(rank=3, extent=5, clip=0.5)", "inkling(extent=40, floor=4)")
    exempt: ClassVar[dict[str, str]] = {
        "words": "it was published as a model, without a paper",
        "cross": "the r of a query is that of its own token, which a context does not contain",
        "narrow context": "r is computed from tokens of the model's width",
    }

    rank: int = 16
    extent: int = 1024
    floor: int = 0
    alpha: float = 0.1
    clip: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("extent", 1), ("floor", 0), ("alpha", 0), ("clip", 0)):
            if not getattr(self, name) >= least:
                raise HeadwayError(f"expected inkling {name} of at least {least}, got {getattr(self, name)}")
        if self.floor:
            vars(self)["relative"] = False  # of this object: τ counts from position 0

    def build(self, shape: HeadShape) -> None:
        """Create W and Bank."""
        self.heads = shape.heads
        self.weight = nn.Parameter(torch.empty(shape.heads * self.rank, shape.dim))
        self.bank = nn.Parameter(torch.empty(self.extent, self.rank))
        if self.clip:
            self.gain = nn.Parameter(torch.empty(shape.heads, self.rank))

    def reset_parameters(self) -> None:
        """N(0, 0.02²); the vectors that multiply r are ones."""
        nn.init.normal_(self.weight, std=0.02)
        nn.init.normal_(self.bank, std=0.02)
        if self.clip:
            nn.init.ones_(self.gain)

    def mark(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens heads rank"]:
        """R of every token."""
        r: Tensor = nn.functional.linear(x, self.weight).unflatten(-1, (self.heads, self.rank))
        if not self.clip:
            return r
        scaled = r.to(torch.promote_types(r.dtype, torch.float32)) * self.gain
        length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
        clipped: Tensor = scaled * (self.clip / (length + 1e-6)).clamp(max=1)
        return clipped.to(r.dtype)

    def rotate(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        q_pos: Int[Tensor, "#batch queries"],
        k_pos: Int[Tensor, "#batch keys"],
    ) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        """Scale q by τ."""
        return self._scaled(q, q_pos), k

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """r·Bank for every query and distance."""
        offsets, left = look.offsets(self.extent, 1)
        # a zero before the first entry for the future, and one after the last for distances beyond
        bank = nn.functional.pad(self.bank, (0, 0, 1, 1))[1 - offsets]
        r = look.of_heads(look.own_marks().movedim(2, 0)).transpose(0, 1)  # (B, H, Q, rank)
        return (ProductPerQuery(self._scaled(r, look.q_pos), bank[None].to(r.dtype), left),)

    def _scaled(self, x: Tensor, q_pos: Int[Tensor, "#batch queries"]) -> Tensor:
        """X (B, H, Q, …) times τ."""
        if not self.floor:
            return x
        longer = ((q_pos + 1).to(angle_dtype(x.device)) / self.floor).clamp(min=1)
        return (x * (1 + self.alpha * longer.log())[:, None, :, None]).to(x.dtype)
