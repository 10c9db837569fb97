"""The specification: attention as its formula reads, in plain torch, any float dtype, differentiable twice.

    out_i = Σ_j softmax_j( scale · q_i·k_j + terms(i, j) under mask(i, j) ) · v_j

It holds all n² scores. Every other backend is compared with it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from headway.backends.base import Call


def refuses(call: Call) -> str | None:
    """See :class:`headway.backends.base.Backend`."""
    if call.normalise != "softmax":
        return f"normalise={call.normalise!r} is not known, only 'softmax'"
    return None


def describe(call: Call) -> tuple[str, str]:
    """See :class:`headway.backends.base.Backend`."""
    return "exact (the specification)", "O(queries · keys): all scores are held"


def scores(call: Call) -> Float[Tensor, "batch heads queries keys"]:
    """Scores before the mask: scale · q·k plus every term, (B, H, Q, K)."""
    k = call.k.repeat_interleave(call.groups, 1)
    total = (call.q * call.scale) @ k.transpose(-1, -2)
    bias = call.bias()
    return total if bias is None else total + bias


def weights(call: Call) -> Float[Tensor, "batch heads queries keys"]:
    """Attention weights: softmax of the scores over the keys a query may see; a row that sees none is all zeros."""
    seen = call.visible()
    if seen is None:
        return scores(call).softmax(-1)
    # a row that sees nothing attends to everything with a zero query, so that no NaN is made, and is zeroed after
    alive = seen.any(-1, keepdim=True)
    total = scores(replace(call, q=call.q.masked_fill(~alive, 0.0))).masked_fill(~(seen | ~alive), -torch.inf)
    return total.softmax(-1).masked_fill(~alive, 0.0)


def run(call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
    """See :class:`headway.backends.base.Backend`."""
    alpha = weights(call)
    # terms may be wider than bf16 queries: the result keeps the width of the values
    v = call.v.repeat_interleave(call.groups, 1).to(alpha.dtype)
    out = alpha @ v
    for term in call.value_terms:
        out = out + term.add(alpha, call.q_pos, call.k_pos)
    return out.to(call.v.dtype)
