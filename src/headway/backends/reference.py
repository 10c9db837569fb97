"""The specification: attention as the formula says, in plain torch, any float dtype, differentiable twice.

    out_i = Σ_j softmax_j( scale · q_i·k_j + terms(i, j) under mask(i, j) ) · v_j

It materialises all n² scores. Every other backend is compared with it.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from headway.backends import rows
from headway.backends.base import GRAD, JVP, TWICE, VMAP, Call

TRANSFORMS = (GRAD, VMAP, JVP, TWICE)
EXPORTS = True


def refuses(call: Call) -> str | None:
    """See :class:`headway.backends.base.Backend`."""
    return rows.refuses(call)


def describe(call: Call) -> tuple[str, str]:
    """See :class:`headway.backends.base.Backend`."""
    return "exact (the specification)", "O(queries · keys): all scores are held"


def scores(call: Call) -> Float[Tensor, "batch heads queries keys"]:
    """Scores before the mask: scale · q·k plus every term, (B, H, Q, K)."""
    return rows.scores(call, call.q, call.k, call.visible())


def weights(call: Call) -> Float[Tensor, "batch heads queries keys"]:
    """Attention weights: softmax of the scores over the keys a query may see; a row that sees none is all zeros."""
    return rows.weights(call, call.q, call.k, call.visible())


def run(call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
    """See :class:`headway.backends.base.Backend`."""
    return mix(call, weights(call))


def mix(call: Call, alpha: Float[Tensor, "batch heads queries keys"]) -> Float[Tensor, "batch heads queries dim_v"]:
    """The output of each query under these weights: Σ_j α_ij v_j, and what terms add to values."""
    # terms may have a wider dtype than bf16 queries: the result has that of the values
    alpha = call.dropped(alpha)
    v = call.v.repeat_interleave(call.groups, 1).to(alpha.dtype)
    out = alpha @ v
    for term in call.value_terms:
        out = out + term.add(alpha, call.q_pos, call.k_pos)
    return out.to(call.v.dtype)
