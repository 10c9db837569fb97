"""Forgetting gates. Lin et al. 2025, "Forgetting Transformer: Softmax Attention with a Forget Gate", arXiv:2503.02130.

    score(i, j) = q_i·k_j / √d_k + Σ_{t=j+1…i} log f_t           f_t = σ(w_h·x_t + b_h)

With c the running sum of log f, what is added is c_i − c_j. Softmax does not see the c_i that a whole row shares, so
one number per key is enough: −c_j.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.positions.base import Look, Position, angle_dtype
from headway.shapes import HeadShape
from headway.terms import AnyTerm, PerKey


def forgetting(log_gates: Float[Tensor, "batch heads keys"]) -> PerKey:
    """−c_j for log f of each key in the order of time, c its running sum up to a constant.

    >>> forgetting(torch.tensor([[[-9.0, -1.0, -2.0]]])).bias.tolist()
    [[[-3.0, -2.0, 0.0]]]
    """
    # summed in float64, and 0 at the newest key, so that the keys which weigh most are the most exact in float32
    total = log_gates.to(angle_dtype(log_gates.device)).cumsum(-1)
    # softmax does not see the constant either: its gradient is rounding alone, and a mean takes that out of all evenly
    mean = total.mean(-1, keepdim=True)
    return PerKey((mean - total + (total[..., -1:] - mean).detach()).to(log_gates.dtype))


@dataclass(eq=False)
class Fox(Position):
    """A gate per token and head says how much of the past to forget (FoX, arXiv:2503.02130).

    Formula: Σ_{t=j+1…i} log f_t is added to the scores, f_t = σ(w_h·x_t + b_h); never above 0 for keys of the past.
    Learned: w (H, d_model) ~ N(0, 0.02²) and b (H) = 0, each layer its own. log f (B, N, H) is cached beside k and v.

    Pitfalls: for causal attention; keys of the future would gain what those of the past lose. Positions are not looked
    at: gates are multiplied in the order tokens lie in memory, padding aside, so rows must not be shuffled, and a cache
    that drops tokens drops their forgetting too. The paper's "Pro" block also has an output gate, output norm, QK-norm
    and shifts of keys and values, which are not position.

    >>> sorted(name for name, _ in Fox().attach(HeadShape.of(64, heads=4)).named_parameters())
    ['gate.bias', 'gate.weight']
    """

    title: ClassVar[str] = "Forgetting gates"
    paper: ClassVar[str] = "arXiv:2503.02130"
    summary: ClassVar[str] = "Each token's gates lower the scores of all keys before it, as much as its content says."
    summary_zh: ClassVar[str] = "每个词元的遗忘门按内容降低其之前所有键的分数。"
    per_layer: ClassVar[bool] = True

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

    def terms(self, look: Look) -> tuple[AnyTerm, ...]:
        """−c per key; padding forgets nothing."""
        assert look.marks is not None
        log_gates = look.of_heads(look.marks.movedim(-1, 0)).masked_fill(look.k_pos < 0, 0.0)  # (H, B, K)
        return (forgetting(log_gates.transpose(0, 1)),)
