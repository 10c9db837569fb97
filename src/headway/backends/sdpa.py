"""torch's fused scaled-dot-product attention, for calls that need no n × n tensor.

Plain and causal attention are passed on directly. Terms and masks become one ``attn_mask`` that is a view of O(n)
values: terms per key, a row that all queries share (row stride 0); terms by distance, Causal and Window, a table
shifted by one entry per row (row stride 1, queries from the last to the first, see
:mod:`headway.backends.diagonal_views`). torch's CPU kernel reads such a view in place, forward and backward. It gives
no gradient for it, so learned terms are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from headway.backends.base import GRAD, VMAP, Call, bad_tokens, transforms
from headway.backends.diagonal_views import strip
from headway.integers import FAR, exporting
from headway.masks import Causal, Dense, is_distance_only, reach
from headway.terms import ByDistance, PerKey

FEW = 16
"""Up to this many queries, as in decoding, all scores take O(keys) memory."""
ROWS = 256
"""Queries per block when a mask hides distances: enough for the kernel, few enough to skip keys they do not see."""

TRANSFORMS = (GRAD, VMAP)
EXPORTS = True


def refuses(call: Call) -> str | None:
    """See :class:`headway.backends.base.Backend`."""
    if call.device == "cpu" and VMAP in transforms():
        return "torch has no rule for it under torch.func.vmap on a CPU"
    if call.whole_rows is not None:
        return f"torch's fused attention does not support {call.whole_rows}"
    if call.dropout:
        return "dropout of torch's fused attention does not follow headway's seeds"
    if call.value_terms:
        return f"{type(call.value_terms[0]).__name__} needs the attention weights, which are not materialised"
    if call.device == "cuda" and call.q.dtype is torch.float64:
        return "torch has no fused kernel for float64 on cuda"
    if _few(call) or _plain(call):
        return None
    if not call.default_positions:
        return "explicit positions would need a queries × keys mask"
    if call.device != "cpu":
        return f"terms and masks other than Causal run fused on a CPU only, not on {call.device}"
    return _view_refuses(call)


def _view_refuses(call: Call) -> str | None:
    """Why terms and mask cannot be a view of O(queries + keys) values."""
    if call.row is not None:
        return "distances in an image would need a queries × keys tensor"
    for term in call.score_terms:
        if not isinstance(term, PerKey | ByDistance):
            return f"{type(term).__name__} would need a queries × keys tensor"
        tensors = (term.bias,) if isinstance(term, PerKey) else (term.table, term.tails)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
            return f"{type(term).__name__} is learned, and torch's fused kernel gives no gradient for what is added"
    kinds = {type(term) for term in call.score_terms}
    if isinstance(call.mask, Dense) and not kinds:
        return "torch would keep the mask as floats for the backward pass" if call.training else None
    if not is_distance_only(call.mask):
        return f"the mask {type(call.mask).__name__} would need a queries × keys tensor"
    if PerKey in kinds and (len(kinds) > 1 or call.mask is not None):
        return "PerKey together with a mask or a term by distance would need a queries × keys tensor"
    return None


def _plain(call: Call) -> bool:
    # torch's causal CPU kernel gives NaN for a scale of 0 or below: it scales the −inf of masked pairs
    known = call.mask is None or (isinstance(call.mask, Causal) and call.scale > 0)
    return len(call.terms) == 0 and call.default_positions and known


def _few(call: Call) -> bool:
    # an exported program serves every length, and runs where views that overlap may be unknown
    return exporting() or call.q.shape[2] <= FEW


def describe(call: Call) -> tuple[str, str]:
    """See :class:`headway.backends.base.Backend`."""
    if _plain(call):
        return "exact", "O(queries + keys): fused"
    what = "terms and mask" if call.terms and call.mask is not None else "terms" if call.terms else "the mask"
    if _few(call):
        return "exact", f"O(keys): {what} as one tensor, for at most {FEW} queries"
    if isinstance(call.mask, Dense):
        return "exact", "O(queries + keys): fused, the mask in blocks"
    return "exact", f"O(queries + keys): fused, {what} as a strided view"


def isolates(call: Call) -> bool:
    """One query in compiled code: see :func:`_isolated`."""
    one = torch.compiler.is_compiling() and call.q.shape[2] == 1 and call.device == "cpu"
    return one and not call.training and not call.default_positions and not exporting()


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
    """torch's attention on tensors as its fused kernels require: q, k and v of one width, with contiguous rows."""
    width, dim_v = max(q.shape[3], v.shape[3]), v.shape[3]
    q, k, v = (x if x.shape[3] == width else pad(x, (0, width - x.shape[3])) for x in (q, k, v))
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    out: Tensor
    if isolates(call):
        out = torch.ops.headway.sdpa_isolated(q, k, v, mask, call.scale)
    else:
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=call.scale, enable_gqa=call.groups > 1
        )
    return out[..., :dim_v]


def _isolated(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """torch's attention of few queries, in which NaN or inf of a token reaches only the results that see it.

    Generated code cannot look at values and then choose, an operator can: the work is done again where it must be.
    """
    groups = q.shape[1] // k.shape[1]
    out: Tensor = scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=groups > 1)
    if math.isfinite(out.sum(dtype=torch.promote_types(out.dtype, torch.float32))):
        return out
    seen = mask > -torch.inf
    alive = seen.any(-1, keepdim=True)
    bad_row, bad_key = bad_tokens(q), bad_tokens(k) | bad_tokens(v)
    q = q.masked_fill(bad_row[..., None], 0.0)
    k, v = (x.masked_fill(bad_key[..., None], 0.0) for x in (k, v))
    # rows that see nothing attend to everything, so that no NaN is made, and are zeroed after
    clean: Tensor = scaled_dot_product_attention(
        q, k, v, mask.masked_fill(~alive, 0.0), scale=scale, enable_gqa=groups > 1
    )
    sees_bad = (seen & bad_key.repeat_interleave(groups, 1)[:, :, None]).any(-1, keepdim=True)
    return clean.masked_fill(~alive, 0.0).masked_fill(sees_bad | (bad_row[..., None] & alive), torch.nan)


_LIBRARY = torch.library.Library("headway", "FRAGMENT")
_LIBRARY.define("sdpa_isolated(Tensor q, Tensor k, Tensor v, Tensor mask, float scale) -> Tensor")
_LIBRARY.impl("sdpa_isolated", _isolated, "CPU")


def _like_q(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    # in memory as torch's kernel leaves it: heads side by side for each token
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)


torch.library.register_fake("headway::sdpa_isolated", _like_q)


def _held(call: Call, rows: slice = slice(None)) -> Tensor:
    """Attention of some queries, with terms and mask materialised as one tensor."""
    q, mask, seen = call.q[:, :, rows], call.bias(rows), call.visible(rows)
    if seen is not None and isolates(call):
        mask = torch.where(seen, 0.0 if mask is None else mask, -torch.inf).to(q.dtype)
        return _fused(call, q, call.k, call.v, mask)
    if seen is not None:
        alive = seen.any(-1, keepdim=True)
        # fully masked rows attend to everything with a zero query, so that no NaN arises, and are zeroed afterwards
        shown = seen | ~alive
        q = q.masked_fill(~alive, 0.0)
        mask = shown if mask is None else mask.masked_fill(~shown, -torch.inf)
    if mask is not None and mask.dtype is not torch.bool:
        mask = mask.to(q.dtype)
    out = _fused(call, q, call.k, call.v, mask)
    return out if seen is None else out.masked_fill(~alive, 0.0)


def _per_key(call: Call) -> Tensor:
    """Terms per key: one row that all queries share."""
    biases = [term.bias for term in call.terms if isinstance(term, PerKey)]
    row = sum(biases[1:], start=biases[0]).to(torch.promote_types(call.q.dtype, torch.float32))
    return _fused(call, call.q, call.k, call.v, _as_mask(call, row[:, :, None].expand(-1, -1, call.q.shape[2], -1)))


def _by_distance(call: Call) -> Tensor:
    """Terms by distance, Causal and Window: one table, shifted by one entry per row."""
    queries, keys = call.q.shape[2], call.k.shape[2]
    past, future = reach(call.mask)
    terms = [term for term in call.terms if isinstance(term, ByDistance)]
    table = strip(terms, 1 - queries, keys, past, future, call.q)  # distance 0 is entry queries − 1
    if table is None:
        return _fused(call, call.q, call.k, call.v)
    # a copy, because the view needs contiguous values from the start of their storage
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
