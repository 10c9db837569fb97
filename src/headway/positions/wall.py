"""Wall attention: a forgetting gate for each dimension of each head. Published by Tilde Research in June 2026 with code
and a blog post, no paper; with one gate per head it is FoX, arXiv:2503.02130.

    score(i, j) = Σ_c q_ic k_jc Π_{t=j+1…i} f_tc / √d_k           f_tc = σ(w_c·x_t + b_c)

With P_c the running sum of log f_c, the product of gates is e^{P_ic − P_jc}. e^{−P} alone overflows along a text; see
``backends/csrc/decay.h`` for how the difference is kept small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.positions.along import Before, running_sum
from headway.positions.base import Position, TermInputs
from headway.positions.fox import forgetting
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, ChannelDecay


@dataclass(eq=False)
class Wall(Position):
    """Each dimension of q·k has a forgetting gate of its own (Wall attention, Tilde Research 2026; FoX with one gate
    per head is arXiv:2503.02130).

    Formula: q·k/√d_k becomes Σ_c q_ic k_jc Π_{t=j+1…i} f_tc/√d_k, f_t = σ(W x_t + b). Learned: W (H·d_k, d_model) ~
    N(0, 0.02²) and b (H·d_k) = ``bias``, separate for each layer and each query head, also where heads share keys. The
    running sum of log f, (B, N, H·d_k) in float64, is cached with k and v, so that a cache may drop tokens and keep the
    effect of their gates. ``forget`` adds w (H, d_model) and b (H), initialised likewise, and H cached values.

    Pitfalls: for causal attention; future keys would gain what past keys lose. A forgotten key's score goes to 0, not
    to −∞, so it keeps some attention; ``forget`` takes that away too. Positions are not used: gates are multiplied in
    the order of tokens in memory, without padding, so rows must not be shuffled. The cache holds a double for every
    dimension of every query head, besides keys and values. ``native`` has a kernel; all other backends compute
    O(queries · keys · d_k) exponentials.

    Args:
        bias: b at the start; at 8 a token forgets 0.03 %, nearly nothing.
        forget: add the gates of :class:`headway.positions.Fox`, one per head, as the authors' code can.

    >>> sorted(name for name, _ in Wall(forget=True).attach(HeadShape.of(64, heads=4)).named_parameters())
    ['forget_gate.bias', 'forget_gate.weight', 'gate.bias', 'gate.weight']
    """

    title: ClassVar[str] = "Wall attention"
    paper: ClassVar[str] = "blog.tilderesearch.com/blog/wall-attn"
    summary: ClassVar[str] = (
        "Each dimension of a head forgets the past at its own pace, computed from each token's content."
    )
    summary_zh: ClassVar[str] = "每个头的每一维按各词元的内容，以各自的速度遗忘过去。"
    sharding: ClassVar[dict[str, str]] = {
        "gate.weight": "hx",
        "gate.bias": "h",
        "forget_gate.weight": "hx",
        "forget_gate.bias": "h",
        "marks": "h",
    }
    per_layer: ClassVar[bool] = True
    sequential: ClassVar[bool] = True
    contiguous: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("wall(bias=0.0)", "wall(forget=True)")
    exempt: ClassVar[dict[str, str]] = {
        "order": "gates are multiplied in the order of tokens in memory",
        "cross": "the gates of a query are those of its own token, which a context does not contain",
        "narrow context": "gates are computed from tokens of the model's width",
        "words": "it was published with code and a blog post, without a paper",
    }

    bias: float = 8.0
    forget: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.bias):
            raise HeadwayError(f"expected the bias of wall's gates as a finite number, got {self.bias}")

    def build(self, shape: HeadShape) -> None:
        """Create W and b, and w and b per head."""
        self.head_dim = shape.head_dim
        self.gate = nn.Linear(shape.dim, shape.heads * shape.head_dim)
        if self.forget:
            self.forget_gate = nn.Linear(shape.dim, shape.heads)

    def reset_parameters(self) -> None:
        """W ~ N(0, 0.02²), b = ``bias``."""
        for gate in (self.gate, self.forget_gate) if self.forget else (self.gate,):
            nn.init.normal_(gate.weight, std=0.02)
            nn.init.constant_(gate.bias, self.bias)

    def mark(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens width"]:
        """Log f of every dimension of a head, then of the head itself, head by head, in float32 or better."""
        # NaN in a token reaches the queries that see its key and value; it must not reach all others through the sum
        x = x.nan_to_num(0.0, 0.0, 0.0)
        logits = self.gate(x).unflatten(-1, (-1, self.head_dim))
        if self.forget:
            logits = torch.cat((logits, self.forget_gate(x)[..., None]), -1)
        gates: Tensor = nn.functional.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        return gates.flatten(2)

    def carry(
        self, marks: Float[Tensor, "batch tokens width"], pos: Int[Tensor, "#batch tokens"], before: Before | None
    ) -> Float[Tensor, "batch tokens width"]:
        """P of every token, dimension and head; padding has no effect."""
        return running_sum(marks, pos, None if before is None else before.marks)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """The difference of the gated product from q·k, and what FoX adds."""
        assert look.marks is not None
        own, c = self._sums(look.own_marks(), look), self._sums(look.marks, look)
        decay = ChannelDecay(look.q, look.k, own[..., : self.head_dim], c[..., : self.head_dim], look.scale)
        if not self.forget:
            return (decay,)
        dtype = torch.promote_types(look.q.dtype, torch.float32)
        return decay, forgetting(c[..., -1], dtype, own[..., -1] if look.absolute else None)

    def _sums(
        self, marks: Float[Tensor, "batch tokens width"], look: TermInputs
    ) -> Float[Tensor, "batch heads n each"]:
        """P of the current heads, and with ``forget`` the running sum of their own gates behind it."""
        return look.of_heads(marks.unflatten(-1, (-1, self.head_dim + self.forget)).movedim(2, 0)).transpose(0, 1)
