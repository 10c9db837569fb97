"""torch's fused scaled-dot-product attention, for all it computes without holding a number per pair of tokens.

Plain and causal attention run as they are. Terms and masks go in as one ``attn_mask`` that is a view of few numbers:
per key, a row that every query shares (row stride 0); by distance, and Causal and Window, a table that moves one entry
per row (row stride 1, queries from the last to the first, see :mod:`headway.backends.diagonal_views`). torch's CPU
kernel reads such a view in place, forward and backward. It gives no gradient for it, so what is learned is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from headway.backends.base import GRAD, VMAP, Call, transforms
from headway.backends.diagonal_views import strip
from headway.integers import FAR
from headway.masks import Causal, Dense, is_distance_only, reach
from headway.terms import ByDistance, PerKey

FEW = 16
"""Queries for which all scores take O(keys) memory: a step of decoding."""
ROWS = 256
"""Queries in a block where a mask hides distances: enough for the kernel, few enough to skip what they do not see."""

TRANSFORMS = (GRAD, VMAP)


def refuses(call: Call) -> str | None:
    """See :class:`headway.backends.base.Backend`."""
    if call.device == "cpu" and VMAP in transforms():
        return "torch has no rule for it under torch.func.vmap on a CPU"
    if call.whole_rows is not None:
        return f"{call.whole_rows} is not known to torch's fused attention"
    if call.dropout:
        return "torch's fused attention drops other pairs, and without a function of a seed"
    if call.value_terms:
        return f"{type(call.value_terms[0]).__name__} needs the attention weights, which fused attention never holds"
    if call.device == "cuda" and call.q.dtype is torch.float64:
        return "torch has no fused kernel for float64 on cuda"
    if _few(call) or _plain(call):
        return None
    if not call.default_positions:
        return "explicit positions would make the mask a tensor of queries · keys numbers"
    if call.device != "cpu":
        return f"terms and masks other than Causal run fused on a CPU only, not on {call.device}"
    return _view_refuses(call)


def _view_refuses(call: Call) -> str | None:
    """Why terms and mask have no view of few numbers."""
    if call.row is not None:
        return "distances in an image would be a tensor of queries · keys numbers"
    for term in call.score_terms:
        if not isinstance(term, PerKey | ByDistance):
            return f"{type(term).__name__} would be a tensor of queries · keys numbers"
        tensors = (term.bias,) if isinstance(term, PerKey) else (term.table, term.tails)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
            return f"{type(term).__name__} is learned, and torch's fused kernel gives no gradient for what is added"
    kinds = {type(term) for term in call.score_terms}
    if isinstance(call.mask, Dense) and not kinds:
        return "torch would keep the mask as floats for the backward pass" if call.training else None
    if not is_distance_only(call.mask):
        return f"the mask {type(call.mask).__name__} would be a tensor of queries · keys numbers"
    if PerKey in kinds and (len(kinds) > 1 or call.mask is not None):
        return "PerKey together with a mask or a term by distance would be a tensor of queries · keys numbers"
    return None


def _plain(call: Call) -> bool:
    # torch's causal CPU kernel gives NaN for a scale of 0 or below: it scales the −inf of what is masked
    known = call.mask is None or (isinstance(call.mask, Causal) and call.scale > 0)
    return len(call.terms) == 0 and call.default_positions and known


def _few(call: Call) -> bool:
    return call.q.shape[2] <= FEW


def describe(call: Call) -> tuple[str, str]:
    """See :class:`headway.backends.base.Backend`."""
    if _plain(call):
        return "exact", "O(queries + keys): fused"
    what = "terms and mask" if call.terms and call.mask is not None else "terms" if call.terms else "the mask"
    if _few(call):
        return "exact", f"O(keys): {what} held as one tensor, for {FEW} queries at most"
    if isinstance(call.mask, Dense):
        return "exact", "O(queries + keys): fused, a block of the mask at a time"
    return "exact", f"O(queries + keys): fused, {what} as a view of few numbers"


def run(call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
    """See :class:`headway.backends.base.Backend`."""
    if _plain(call):
        return _fused(call, call.q, call.k, call.v, causal=call.mask is not None)
    if _few(call):
        return _held(call)
    if isinstance(call.mask, Dense):
        return torch.cat([_held(call, rows) for rows in _blocks(call.q.shape[2])], 2)
    return _per_key(call) if any(isinstance(term, PerKey) for term in call.terms) else _by_distance(call)


def _fused(
    call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Float[Tensor, "batch heads queries dim_v"]:
    """torch's attention, of tensors as its fused kernels want them: one width, numbers of a row side by side."""
    width, dim_v = max(q.shape[3], v.shape[3]), v.shape[3]
    q, k, v = (x if x.shape[3] == width else pad(x, (0, width - x.shape[3])) for x in (q, k, v))
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    out: Tensor = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=call.scale, enable_gqa=call.groups > 1
    )
    return out[..., :dim_v]


def _held(call: Call, rows: slice = slice(None)) -> Tensor:
    """Some queries, their terms and mask held as one tensor."""
    q, mask, seen = call.q[:, :, rows], call.bias(rows), call.visible(rows)
    if seen is not None:
        alive = seen.any(-1, keepdim=True)
        # rows that see nothing attend to everything with a zero query, so that no NaN is made, and are zeroed after
        shown = seen | ~alive
        q = q.masked_fill(~alive, 0.0)
        mask = shown if mask is None else mask.masked_fill(~shown, -torch.inf)
    if mask is not None and mask.dtype is not torch.bool:
        mask = mask.to(q.dtype)
    out = _fused(call, q, call.k, call.v, mask)
    return out if seen is None else out.masked_fill(~alive, 0.0)


def _per_key(call: Call) -> Tensor:
    """Terms per key: one row of numbers that all queries share."""
    biases = [term.bias for term in call.terms if isinstance(term, PerKey)]
    row = sum(biases[1:], start=biases[0]).to(torch.promote_types(call.q.dtype, torch.float32))
    return _fused(call, call.q, call.k, call.v, _as_mask(call, row[:, :, None].expand(-1, -1, call.q.shape[2], -1)))


def _by_distance(call: Call) -> Tensor:
    """Terms by distance, Causal and Window: one table that moves an entry per row."""
    queries, keys = call.q.shape[2], call.k.shape[2]
    past, future = reach(call.mask)
    terms = [term for term in call.terms if isinstance(term, ByDistance)]
    table = strip(terms, 1 - queries, keys, past, future, call.q)  # distance 0 is entry queries − 1
    if table is None:
        return _fused(call, call.q, call.k, call.v)
    # a copy, because views are laid over it: numbers side by side, from the start of their memory
    table = table.clone(memory_format=torch.contiguous_format)
    out = []
    for rows in _blocks(queries) if (past, future) != (FAR, FAR) else (slice(0, queries),):
        cols = slice(max(rows.start - past, 0), min(rows.stop + future, keys))
        size = (1, table.shape[0], rows.stop - rows.start, cols.stop - cols.start)
        view = table.as_strided(size, (0, table.shape[1], 1, 1), queries - rows.stop + cols.start)
        q = call.q[:, :, rows].flip(2)
        out.append(_fused(call, q, call.k[:, :, cols], call.v[:, :, cols], _as_mask(call, view)).flip(2))
    return torch.cat(out, 2)


def _as_mask(call: Call, view: Tensor) -> Tensor:
    return call._fitting(view, type(call.terms[0]).__name__ if call.terms else "a mask")


def _blocks(queries: int) -> Iterator[slice]:
    ends = [*range(0, queries, ROWS), queries]
    return (slice(start, stop) for start, stop in pairwise(ends))
