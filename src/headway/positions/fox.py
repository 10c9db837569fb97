"""Forgetting gates. Lin et al. 2025, "Forgetting Transformer: Softmax Attention with a Forget Gate", arXiv:2503.02130.

    score(i, j) = q_i·k_j / √d_k + Σ_{t=j+1…i} log f_t           f_t = σ(w_h·x_t + b_h)

With c the running sum of log f, what is added is c_i − c_j. Softmax does not see the c_i that a whole row shares, so
one number per key is enough: −c_j. A sink does see it, and then both are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.positions.along import Before, running_sum
from headway.positions.base import Position, TermInputs
from headway.shapes import HeadShape
from headway.terms import AnyTerm, Difference, PerKey


def forgetting(
    total: Float[Tensor, "batch heads keys"],
    dtype: torch.dtype,
    own: Float[Tensor, "batch heads queries"] | None = None,
) -> PerKey | Difference:
    """c_i − c_j, or −c_j up to a constant.

    Args:
        total: c of each key, in float64.
        dtype: of what is added.
        own: c of each query, where what a row shares counts; None leaves it to softmax.

    >>> forgetting(torch.tensor([[[-9.0, -10.0, -12.0]]]), torch.float32).bias.tolist()
    [[[-3.0, -2.0, 0.0]]]
    """
    if own is not None:
        return Difference(own, total, dtype)
    # 0 at the newest key, so that the keys which weigh most are the most exact in float32. Softmax does not see the
    # constant: its gradient is rounding alone, and a mean takes that out of all evenly
    mean = total.mean(-1, keepdim=True)
    return PerKey((mean - total + (total[..., -1:] - mean).detach()).to(dtype))


@dataclass(eq=False)
class Fox(Position):
    """A gate per token and head says how much of the past to forget (FoX, arXiv:2503.02130).

    Formula: Σ_{t=j+1…i} log f_t is added to the scores, f_t = σ(w_h·x_t + b_h); never above 0 for keys of the past.
    Learned: w (H, d_model) ~ N(0, 0.02²) and b (H) = 0, each layer its own. The running sum of log f, (B, N, H) in
    float64, is cached beside k and v, so that a cache may drop tokens without their forgetting.

    Pitfalls: for causal attention; keys of the future would gain what those of the past lose. Positions are not looked
    at: gates are multiplied in the order tokens lie in memory, padding aside, so rows must not be shuffled. The paper's
    "Pro" block also has an output gate, output norm, QK-norm and shifts of keys and values, which are not position.

    >>> sorted(name for name, _ in Fox().attach(HeadShape.of(64, heads=4)).named_parameters())
    ['gate.bias', 'gate.weight']
    """

    title: ClassVar[str] = "Forgetting gates"
    paper: ClassVar[str] = "arXiv:2503.02130"
    summary: ClassVar[str] = "Each token's gates lower the scores of all keys before it, as much as its content says."
    summary_zh: ClassVar[str] = "每个词元的遗忘门按内容降低其之前所有键的分数。"
    per_layer: ClassVar[bool] = True
    sequential: ClassVar[bool] = True
    contiguous: ClassVar[bool] = True

    exempt: ClassVar[dict[str, str]] = {
        "order": "gates are multiplied in the order tokens lie in memory",
        "narrow context": "gates are computed from tokens as wide as the model",
    }

    def build(self, shape: HeadShape) -> None:
        """Make w and b."""
        self.gate = nn.Linear(shape.dim, shape.heads)

    def reset_parameters(self) -> None:
        """W ~ N(0, 0.02²), b = 0."""
        nn.init.normal_(self.gate.weight, std=0.02)
        nn.init.zeros_(self.gate.bias)

    def mark(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens heads"]:
        """Log f of every token and head, in float32 or better."""
        # NaN in a token reaches those who see it through its key and value, and must not reach all through the sum
        logits: Tensor = self.gate(x.nan_to_num(0.0, 0.0, 0.0))
        return nn.functional.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))

    def carry(
        self, marks: Float[Tensor, "batch tokens heads"], pos: Int[Tensor, "#batch tokens"], before: Before | None
    ) -> Float[Tensor, "batch tokens heads"]:
        """c of every token and head; padding forgets nothing."""
        return running_sum(marks, pos, None if before is None else before.marks)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """−c per key, or c_i − c_j."""
        assert look.marks is not None
        dtype = torch.promote_types(look.q.dtype, torch.float32)
        total = look.of_heads(look.marks.movedim(-1, 0)).transpose(0, 1)  # (B, H, K)
        own = look.of_heads(look.own_marks().movedim(-1, 0)).transpose(0, 1) if look.absolute else None
        return (forgetting(total, dtype, own),)
