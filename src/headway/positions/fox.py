"""Forgetting gates. Lin et al. 2025, "Forgetting Transformer: Softmax Attention with a Forget Gate", arXiv:2503.02130.

    score(i, j) = q_i·k_j / √d_k + Σ_{t=j+1…i} log f_t           f_t = σ(w_h·x_t + b_h)

With c the running sum of log f, c_i − c_j is added. Softmax ignores c_i, which a whole row shares, so one value per key
suffices: −c_j. An attention sink does not ignore it, and then both are added.
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
        dtype: dtype of the bias.
        own: c of each query, where a constant per row matters; None where softmax ignores it.

    >>> forgetting(torch.tensor([[[-9.0, -10.0, -12.0]]]), torch.float32).bias.tolist()
    [[[-3.0, -2.0, 0.0]]]
    """
    if own is not None:
        return Difference(own, total, dtype)
    # 0 at the newest key, so that the keys with most weight are the most exact in float32. Softmax ignores the
    # constant: its gradient is rounding error alone, which subtracting the mean removes evenly
    mean = total.mean(-1, keepdim=True)
    return PerKey((mean - total + (total[..., -1:] - mean).detach()).to(dtype))


@dataclass(eq=False)
class Fox(Position):
    """A gate per token and head controls how much of the past is forgotten (FoX, arXiv:2503.02130).

    Formula: Σ_{t=j+1…i} log f_t is added to the scores, f_t = σ(w_h·x_t + b_h); never above 0 for keys of the past.
    Learned: w (H, d_model) ~ N(0, 0.02²) and b (H) = 0, separate for each layer. The running sum of log f, (B, N, H) in
    float64, is cached with k and v, so that a cache may drop tokens and keep the effect of their gates.

    Pitfalls: for causal attention; future keys would gain what past keys lose. Positions are not used: gates are
    multiplied in the order of tokens in memory, without padding, so rows must not be shuffled. The paper's
    "Pro" block also has an output gate, output norm, QK-norm and shifts of keys and values, which are not position.

    >>> sorted(name for name, _ in Fox().attach(HeadShape.of(64, heads=4)).named_parameters())
    ['gate.bias', 'gate.weight']
    """

    title: ClassVar[str] = "Forgetting gates"
    paper: ClassVar[str] = "arXiv:2503.02130"
    summary: ClassVar[str] = "The gates of each token lower the scores of all earlier keys, depending on its content."
    summary_zh: ClassVar[str] = "每个词元的遗忘门按内容降低其之前所有键的分数。"
    sharding: ClassVar[dict[str, str]] = {"gate.weight": "hx", "gate.bias": "h", "marks": "h"}
    per_layer: ClassVar[bool] = True
    sequential: ClassVar[bool] = True
    contiguous: ClassVar[bool] = True

    exempt: ClassVar[dict[str, str]] = {
        "order": "gates are multiplied in the order of tokens in memory",
        "narrow context": "gates are computed from tokens of the model's width",
    }

    def build(self, shape: HeadShape) -> None:
        """Create w and b."""
        self.gate = nn.Linear(shape.dim, shape.heads)

    def reset_parameters(self) -> None:
        """W ~ N(0, 0.02²), b = 0."""
        nn.init.normal_(self.gate.weight, std=0.02)
        nn.init.zeros_(self.gate.bias)

    def mark(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens heads"]:
        """Log f of every token and head, in float32 or better."""
        # NaN in a token reaches the queries that see its key and value; it must not reach all others through the sum
        logits: Tensor = self.gate(x.nan_to_num(0.0, 0.0, 0.0))
        return nn.functional.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))

    def carry(
        self, marks: Float[Tensor, "batch tokens heads"], pos: Int[Tensor, "#batch tokens"], before: Before | None
    ) -> Float[Tensor, "batch tokens heads"]:
        """c of every token and head; padding has no effect."""
        return running_sum(marks, pos, None if before is None else before.marks)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """−c per key, or c_i − c_j."""
        assert look.marks is not None
        dtype = torch.promote_types(look.q.dtype, torch.float32)
        total = look.of_heads(look.marks.movedim(-1, 0)).transpose(0, 1)  # (B, H, K)
        own = look.of_heads(look.own_marks().movedim(-1, 0)).transpose(0, 1) if look.absolute else None
        return (forgetting(total, dtype, own),)
