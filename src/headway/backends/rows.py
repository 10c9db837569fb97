"""Attention weights of whole rows of scores, as the specification says; for ``reference`` and ``tiled``.

content = scale · q·k, or c·tanh(scale · q·k / c) with a softcap c (Gemma 2, arXiv:2408.00118)
scores  = content + terms
softmax:        α_j = exp(s_j) / (Σ_t exp(s_t) + exp(sink))      a sink (arXiv:2309.17453, gpt-oss) takes its share
stickbreaking:  α_j = σ(s_j) · Π_{t > j} σ(−s_t)                  over the unmasked keys after j, in memory order
                                                                 (arXiv:2410.17980); attend masks the query's own key
stickbreaking+remainder: the same, and what is left, Π_t σ(−s_t), is the weight of the query's own key
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from headway.backends.base import Call
from headway.masks import ALL, Before
from headway.terms import from_the_end

NORMALISE = ("softmax", "stickbreaking", "stickbreaking+remainder")
"""Ways to turn scores into weights."""


def refuses(call: Call) -> str | None:
    """Why weights cannot be computed, or None when they can."""
    if call.normalise not in NORMALISE:
        return f"normalise={call.normalise!r} is not known, only {', '.join(map(repr, NORMALISE))}"
    return None


def scores(
    call: Call,
    q: Float[Tensor, "batch heads rows dim"],
    k: Float[Tensor, "batch kv_heads cols dim"],
    seen: Bool[Tensor, "#batch #heads rows cols"] | None,
    rows: slice = ALL,
    cols: slice = ALL,
) -> Float[Tensor, "batch heads rows cols"]:
    """Scores before the mask, for q, the call's queries ``rows``, and k, its keys ``cols``."""
    content = (by_key_head(q * call.scale, call) @ k.mT).reshape(*q.shape[:3], k.shape[2])
    if call.softcap is not None:
        content = call.softcap * (content / call.softcap).tanh()
    bias = call.bias(rows, cols)
    total = content if bias is None else content + bias
    for term in call.row_terms:
        total = total + term.rows(content, seen, call.q_pos, call.k_pos, rows, cols)
    return total


def weights(
    call: Call,
    q: Float[Tensor, "batch heads rows dim"],
    k: Float[Tensor, "batch kv_heads cols dim"],
    seen: Bool[Tensor, "#batch #heads rows cols"] | None,
    rows: slice = ALL,
    cols: slice = ALL,
) -> Float[Tensor, "batch heads rows cols"]:
    """Attention weights of queries ``rows``; a fully masked row is all zeros."""
    if call.normalise == "stickbreaking":
        return _stick_breaking(scores(call, q, k, seen, rows, cols), seen)[0]
    if call.normalise == "stickbreaking+remainder":
        before = Before().tile(call.q_pos, call.k_pos, rows, cols)
        alpha, left = _stick_breaking(scores(call, q, k, seen, rows, cols), before if seen is None else seen & before)
        own = _own(call, rows, cols)
        return alpha + left * (own if seen is None else seen & own)
    if seen is None:
        return _normalised(call, scores(call, q, k, None, rows, cols))
    # a fully masked row attends to everything with a zero query, so that no NaN arises, and is zeroed afterwards
    alive = seen.any(-1, keepdim=True)
    total = scores(call, q.masked_fill(~alive, 0.0), k, seen, rows, cols)
    return _normalised(call, total.masked_fill(~(seen | ~alive), -torch.inf)).masked_fill(~alive, 0.0)


def by_key_head(x: Tensor, call: Call) -> Tensor:
    """Queries of all heads that share a key head, one after the other, (B, H_kv, G · q, …)."""
    return x.reshape(x.shape[0], call.k.shape[1], call.groups * x.shape[2], x.shape[-1])


def _normalised(call: Call, total: Tensor) -> Tensor:
    if call.sinks is None:
        return total.softmax(-1)
    sink = call.sinks.to(total.dtype)[:, None, None].expand(*total.shape[:-1], 1)
    return torch.cat((total, sink), -1).softmax(-1)[..., :-1]


def _own(call: Call, rows: slice, cols: slice) -> Bool[Tensor, "queries keys"]:
    """Which key is the query's own: the queries are the last of the tokens that have keys."""
    queries, keys = call.q.shape[2], call.k.shape[2]
    query = torch.arange(keys - queries, keys, device=call.q.device)[rows]
    return query[:, None] == torch.arange(keys, device=call.q.device)[cols]


def _stick_breaking(total: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weights, and the remainder of each row's stick, (B, H, q, 1)."""
    # logarithms in float32: a product of hundreds of factors below 1 would underflow, a sum in bfloat16 lose terms
    total = total.to(torch.promote_types(total.dtype, torch.float32))
    if seen is not None:
        total = total.masked_fill(~seen, 0.0)
    kept = logsigmoid(-total)
    left_over = from_the_end(kept, seen, inclusive=False)
    alpha = (logsigmoid(total) + left_over).exp()
    if seen is not None:
        kept, alpha = kept.masked_fill(~seen, 0.0), alpha.masked_fill(~seen, 0.0)
    return alpha, kept.sum(-1, keepdim=True).exp()
