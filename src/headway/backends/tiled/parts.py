"""Attention over some of the keys, to be merged with others, in plain torch: a block of queries at a time.

    p_ij = exp(s_ij − m_i) / z_i,  z_i = Σ_j exp(s_ij − m_i),  out_i = Σ_j p_ij v_j       over these keys j alone
    ds_ij = p_ij · g_i·(v_j − out_i)                                                      m, z and out over all keys

The second line is the gradient of Σ_j p_ij·(v_j − out_i), where m, z and out are constants.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from headway.backends import rows as whole
from headway.backends.base import Call, Partial, full_precision
from headway.backends.rows import by_key_head
from headway.backends.tiled.anywhere import computed_again, prepared, row_blocks


def partial(call: Call) -> Partial:
    """Attention over these keys alone, to be merged; without gradients."""
    with torch.no_grad(), full_precision(call.device):
        call, q, k, v = prepared(call)
        found = [_partial(call, rows, q[:, :, rows], k, v) for rows in row_blocks(call)]
    return Partial(*(torch.cat(parts, 2) for parts in zip(*found, strict=True)))


def within(call: Call, whole: Partial) -> Float[Tensor, "batch heads queries dim_v"]:
    """A tensor of the output's shape with the gradients that these keys have in the output over all keys; its values
    do not matter.
    """
    with full_precision(call.device):
        call, q, k, v = prepared(call)
        constant = [x.detach().to(q.dtype) for x in whole]
        found = [
            computed_again(_within, call, rows, q[:, :, rows], k, v, *(x[:, :, rows] for x in constant))
            for rows in row_blocks(call)
        ]
    return torch.cat(found, 2)


def _scores(call: Call, rows: slice, q: Tensor, k: Tensor) -> tuple[Call, Tensor]:
    """The scores of a block of queries, −inf where masked."""
    seen, part = call.visible(rows), replace(call, q=q, k=k, q_pos=call.q_pos[:, rows])
    total = whole.scores(call, q, k, seen, rows)
    return part, total if seen is None else total.masked_fill(~seen, -torch.inf)


def _summed(call: Call, part: Call, weights: Tensor, v: Tensor, rows: slice) -> Tensor:
    weights = call.dropped(weights, rows)
    out = (by_key_head(weights, call) @ v).reshape(*weights.shape[:3], -1)
    for term in call.value_terms:
        out = out + term.add(weights, part.q_pos, call.k_pos)
    return out


def _partial(call: Call, rows: slice, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    part, scores = _scores(call, rows, q, k)
    greatest = scores.amax(-1) if k.shape[2] else scores.new_full(scores.shape[:-1], -torch.inf)
    weights = (scores - greatest.masked_fill(greatest == -torch.inf, 0.0)[..., None]).exp()
    total = weights.sum(-1)
    weights = weights / total.masked_fill(total == 0, 1.0)[..., None]
    return _summed(call, part, weights, v, rows), greatest, total


def _within(
    call: Call, rows: slice, q: Tensor, k: Tensor, v: Tensor, out: Tensor, greatest: Tensor, total: Tensor
) -> Tensor:
    part, scores = _scores(call, rows, q, k)
    # where nothing is seen no exponential is taken, so that its gradient is zero and not NaN
    hidden = scores == -torch.inf
    scores = scores.masked_fill(hidden, 0.0) - greatest.masked_fill(greatest == -torch.inf, 0.0)[..., None]
    weights = scores.masked_fill(hidden, -torch.inf).exp() / total.masked_fill(total == 0, 1.0)[..., None]
    return _summed(call, part, weights, v, rows) - weights.sum(-1, keepdim=True) * out
