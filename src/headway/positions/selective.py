"""Selective rotary position embedding. Movahedi et al. 2025, "Selective Rotary Position Embedding", arXiv:2511.17388.

    pair p of q_i and k_j rotates by  τ_p Φ_i,p  and  τ_p Φ_j,p       Φ_i = Σ_{t ≤ i} φ_t
    φ_t = Σ_s c_s ∘ W₂ W₁ x̂_{t−s},   x̂_t = x_t with each head's slice at length 1;   τ_p = base^(−2p/d_k)

The angle φ_t depends on the content of token t; rotary has φ_t = 1. q·k depends on the φ of the tokens after j, up to
i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.positions.along import Before, running_sum, windows
from headway.positions.base import Position, TermInputs, frequencies
from headway.positions.rotary import PAIRINGS, many_waves, rotate_pairs
from headway.shapes import HeadShape, HeadwayError


@dataclass(eq=False)
class SelectiveRotary(Position):
    """Rotary with angles computed from the tokens and summed along the text (Selective RoPE, arXiv:2511.17388).

    Formula: pair p of the query and key of token i rotates by τ_p·Σ_{t ≤ i} φ_t,p. φ_t = Σ_s c_s ∘ W₂ W₁ x̂_{t−s} is a
    causal convolution over ``conv`` tokens (Fig. 4 of the paper), from attention's input, and τ_p = base^(−2p/d_k).
    Shapes: x (B, N, dim), φ (B, N, H_kv, d_k/2), q (B, H, Q, d_k) and k (B, H_kv, K, d_k) unchanged. Learned, in each
    layer: W₁ (rank, dim), W₂ (H_kv·d_k/2, rank), c (conv, H_kv·d_k/2), all N(0, 0.02²) as in the authors' code: it
    starts almost without rotation, with angles of 4·10⁻⁴ per token at width 1024. Query heads of a group share φ.

    Tokens are summed in the order they have in memory, in float64; padding adds no angle. The cache holds the sum and
    W₁ x̂ of the last conv − 1 tokens, in float64, and keys are rotated at every call.

    Pitfalls: for self attention; in cross attention, queries are not rotated. Only the convolution uses positions: it
    covers tokens as long as positions increase, so restart positions in each packed document.

    Args:
        base: 500000 in the authors' code.
        rank: inner width between W₁ and W₂; 32 in the authors' runs.
        pairing: see :class:`Rotary`.
        conv: number of tokens that the convolution covers, 4 in the authors' code; 1 is no convolution.

    >>> position = SelectiveRotary(rank=4).attach(HeadShape.of(64, heads=4))
    >>> position.marked(torch.randn(2, 10, 64), torch.arange(10)[None]).shape
    torch.Size([2, 10, 44])
    """

    title: ClassVar[str] = "Selective RoPE"
    paper: ClassVar[str] = "arXiv:2511.17388"
    summary: ClassVar[str] = (
        "Each token's content gives an angle; queries and keys are rotated by the sum of angles so far."
    )
    summary_zh: ClassVar[str] = "每个词元自行决定旋转多少；查询和键按累计的角度旋转。"
    sharding: ClassVar[dict[str, str]] = {"outer.weight": "gx", "taps": "xg"}
    per_layer: ClassVar[bool] = True
    sequential: ClassVar[bool] = True
    contiguous: ClassVar[bool] = True
    variants: ClassVar[tuple[str, ...]] = ("selectiverotary(rank=3, pairing='interleaved', conv=3)",)
    exempt: ClassVar[dict[str, str]] = {
        "order": "angles are summed in the order of tokens in memory",
        "no restart": "its convolution recognises the ends of documents only by their positions",
        "narrow context": "angles are computed from tokens of the model's width",
    }

    base: float = 500000.0
    rank: int = 32
    pairing: str = "half"
    conv: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.base < math.inf:
            raise HeadwayError(f"expected a finite selectiverotary base above 0, got {self.base}")
        if self.rank < 1:
            raise HeadwayError(f"expected selectiverotary rank of at least 1, got {self.rank}")
        if self.pairing not in PAIRINGS:
            raise HeadwayError(f"expected selectiverotary pairing {' or '.join(PAIRINGS)}, got {self.pairing!r}")
        if self.conv < 1:
            raise HeadwayError(f"expected selectiverotary conv of at least 1 token, got {self.conv}")

    def build(self, shape: HeadShape) -> None:
        """Check that the head divides into pairs, and create W₁, W₂ and c."""
        if shape.head_dim % 2:
            raise HeadwayError(
                f"expected an even head width, because selectiverotary rotates pairs, got {shape.head_dim}: "
                f"change heads or head_dim"
            )
        self.inner = nn.Linear(shape.dim, self.rank, bias=False)
        self.outer = nn.Linear(self.rank, shape.kv_heads * shape.head_dim // 2, bias=False)
        if self.conv > 1:
            self.taps = nn.Parameter(torch.empty(self.conv, shape.kv_heads * shape.head_dim // 2))
        # with a head_dim other than dim/heads, a head has no slice of x: then x as a whole is normalised
        self.slices = shape.heads if shape.dim % shape.heads == 0 else 1

    def reset_parameters(self) -> None:
        """N(0, 0.02²)."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def mark(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens rank"]:
        """W₁ x̂ of each token."""
        assert self.shape is not None
        if x.shape[-1] != self.shape.dim:
            raise HeadwayError(
                f"expected a context as wide as the model, {self.shape.dim}, because selectiverotary makes angles from "
                f"it, got {x.shape[-1]}"
            )
        # NaN in a token reaches the queries that see its key and value; it must not reach all others through the sum
        slices = x.nan_to_num(0.0, 0.0, 0.0).unflatten(-1, (self.slices, -1))
        low: Tensor = self.inner(nn.functional.normalize(slices, dim=-1).flatten(-2))
        return low

    def carry(
        self, marks: Float[Tensor, "batch tokens rank"], pos: Int[Tensor, "#batch tokens"], before: Before | None
    ) -> Float[Tensor, "batch tokens held"]:
        """W₁ x̂ of the last conv − 1 tokens, and Σ φ."""
        earlier, total = (self.conv - 1) * self.rank, None
        window, last, weight = marks[:, :, None], None, self.outer.weight
        if before is not None:
            total = before.marks[:, earlier:]
            last = before.marks[:, :earlier].unflatten(-1, (self.conv - 1, self.rank)) if earlier else None
        if self.conv > 1:
            window = windows(marks, pos, self.conv, last, None if before is None else before.pos)
            # W₂ and the convolution are one map
            weight = (self.taps[..., None] * weight).transpose(0, 1).flatten(1)  # (H_kv·pairs, conv·rank)
        steps = nn.functional.linear(window.flatten(2), weight.to(window.dtype))
        total = running_sum(steps, pos, total)
        return torch.cat((window[:, :, :-1].flatten(2).to(total.dtype), total), -1) if self.conv > 1 else total

    def transform_qk(
        self, look: TermInputs
    ) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        """Rotate queries and all keys by the sums of φ."""
        assert self.shape is not None
        assert look.marks is not None
        rates, repeats = frequencies(look.q.shape[-1], self.base, look.q.device), look.q.shape[1] // look.k.shape[1]
        turns = many_waves(self._angles(look, look.marks, repeats) * rates, look.k)
        k = rotate_pairs(look.k, *turns, self.pairing)
        if look.crosses:
            return look.q, k
        if look.own is None:  # queries turn as the keys of their own tokens
            turns = (look.of_queries(turns[0], 2), look.of_queries(turns[1], 2))
        else:
            turns = many_waves(self._angles(look, look.own, repeats) * rates, look.k)
        cos, sin = turns if repeats == 1 else (x.repeat_interleave(repeats, 1) for x in turns)
        return rotate_pairs(look.q, cos, sin, self.pairing), k

    def _angles(self, look: TermInputs, marks: Tensor, repeats: int) -> Float[Tensor, "batch kv_heads tokens pairs"]:
        """The sums of φ, for the key heads at hand."""
        assert self.shape is not None
        total: Tensor = marks[..., (self.conv - 1) * self.rank :].unflatten(-1, (-1, look.q.shape[-1] // 2))
        total = total.transpose(1, 2)
        if look.heads is None:
            return total
        return total[:, look.heads[::repeats] // (self.shape.heads // self.shape.kv_heads)]
