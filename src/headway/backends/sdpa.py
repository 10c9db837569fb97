"""torch's fused scaled-dot-product attention, for all that acts on scores.

Without terms, plain and causal attention run fused in O(n) memory. Terms, other masks and explicit positions go in as
one materialised mask: exact, but O(n²) memory.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from headway.backends.base import Call
from headway.masks import Causal


def refuses(call: Call) -> str | None:
    """See :class:`headway.backends.base.Backend`."""
    if call.normalise != "softmax":
        return f"normalise={call.normalise!r} is not known to torch's fused attention, only 'softmax'"
    if call.value_terms:
        return f"{type(call.value_terms[0]).__name__} needs the attention weights, which fused attention never holds"
    return None


def _plain(call: Call) -> bool:
    # torch's causal CPU kernel gives NaN for a scale of 0 or below: it scales the −inf of what is masked
    known = call.mask is None or (isinstance(call.mask, Causal) and call.scale > 0)
    return len(call.terms) == 0 and call.aligned and known


def describe(call: Call) -> tuple[str, str]:
    """See :class:`headway.backends.base.Backend`."""
    if _plain(call):
        return "exact", "O(queries + keys): fused"
    what = "terms and mask" if call.terms else "the mask"
    return "exact", f"O(queries · keys): {what} held as one tensor"


def run(call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
    """See :class:`headway.backends.base.Backend`."""
    gqa = call.groups > 1
    if _plain(call):
        return scaled_dot_product_attention(
            call.q, call.k, call.v, is_causal=call.mask is not None, scale=call.scale, enable_gqa=gqa
        )
    q, mask, seen = call.q, call.bias(), call.visible()
    if seen is not None:
        alive = seen.any(-1, keepdim=True)
        # rows that see nothing attend to everything with a zero query, so that no NaN is made, and are zeroed after
        shown = seen | ~alive
        q = q.masked_fill(~alive, 0.0)
        mask = shown if mask is None else mask.masked_fill(~shown, -torch.inf)
    if mask is not None and mask.dtype is not torch.bool:
        mask = mask.to(q.dtype)
    out = scaled_dot_product_attention(q, call.k, call.v, attn_mask=mask, scale=call.scale, enable_gqa=gqa)
    return out if seen is None else out.masked_fill(~alive, 0.0)
