"""NaN or inf of a token must reach all results that see it, and no other.

A kernel multiplies a hidden key's weight, 0, with its value: 0 · NaN = NaN would reach rows that must not see it. And
torch's fused CPU kernel treats a row of only NaN as fully masked: it would hide a NaN that must show. So tokens that
contain NaN or inf are zeroed before a backend runs, and the rows that see one become NaN afterwards.

Which rows see one is counted, in O((queries + keys) log keys): behind a mask that is a range of positions within a
document, the keys that a query sees lie side by side once they are sorted by document and position. Behind other masks
attention with equal weights tells, from a value that is 1 at such keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from headway.backends.base import Call, bad_tokens
from headway.integers import FAR, exporting, readable
from headway.masks import Before, Causal, Documents, Window, parts, reach
from headway.terms import DenseBias

MOST = 2**21
"""Keys of different documents that can be sorted by one 64-bit number."""


def isolated(call: Call, attend: Callable[[Call], Tensor]) -> tuple[Call, Bool[Tensor, "batch heads queries"] | None]:
    """The call without NaN and inf in q, k and v, and the rows that see some; None if there are none.

    Args:
        call: the call.
        attend: attention, for masks behind which rows cannot be counted.
    """
    if call.device == "meta":
        return call, None
    # on a CPU checking is nearly free; elsewhere it would wait for the device, so the work is done unconditionally
    per_query = [x for term in call.row_terms for x in term.per_query]
    per_key = [x for term in call.row_terms for x in term.per_key]
    if readable(call.q):
        with torch.no_grad():
            if math.isfinite(sum(x.sum() for x in (call.q, call.k, call.v, *per_query, *per_key))):
                return call, None
    elif call.mask is None and call.default_positions and not call.row_terms:
        return call, None
    bad_row = bad_tokens(call.q)  # (B, H, Q)
    bad_key = bad_tokens(call.k) | bad_tokens(call.v)  # (B, H_kv, K)
    for x in per_query:
        bad_row = bad_row | bad_tokens(x)
    for x in per_key:  # their number of heads varies
        bad_key = bad_key | bad_tokens(x).any(1, keepdim=True)
    q = call.q.masked_fill(bad_row[..., None], 0.0)
    k, v = call.k.masked_fill(bad_key[..., None], 0.0), call.v.masked_fill(bad_key[..., None], 0.0)
    with torch.no_grad():
        sees_bad, sees = (
            counted(call, bad_key) if countable(call) and not exporting() else probed(call, bad_key, attend)
        )
    return replace(call, q=q, k=k, v=v), sees_bad | (bad_row & sees)


Rows = tuple[Bool[Tensor, "batch heads queries"], Bool[Tensor, "#batch #heads queries"]]


def countable(call: Call) -> bool:
    """Whether a query sees all keys in a range of positions, of its document if there are documents."""
    masks = parts(call.mask)
    documents = sum(isinstance(part, Documents) for part in masks)
    return (
        all(isinstance(part, Causal | Before | Window | Documents) for part in masks)
        and (documents == 0 or (documents == 1 and call.k.shape[2] <= MOST))
        and not any(isinstance(term, DenseBias) for term in call.terms)
    )


def counted(call: Call, bad_key: Bool[Tensor, "batch kv_heads keys"]) -> Rows:
    """Which rows see a bad key, and which see any key."""
    (past, future), masks = reach(call.mask), parts(call.mask)
    future = -1 if any(isinstance(part, Before) for part in masks) else future
    q_pos, k_pos, keys = call.q_pos, call.k_pos, call.k.shape[2]
    least, most = (q_pos - past).clamp(min=0), (q_pos + future).clamp(max=FAR)
    documents = next((part for part in masks if isinstance(part, Documents)), None)
    if call.default_positions and documents is None:
        start, end = least.clamp(max=keys), (most + 1).clamp(max=keys)
    else:
        lost = k_pos < 0
        if documents is not None:
            least, most, k_pos = _by_document(documents, least, most, q_pos, k_pos)
        k_pos, order = k_pos.masked_fill(lost, torch.iinfo(torch.int64).max).sort(-1)
        batch = max(len(least), len(k_pos))
        k_pos, least, most = (x.expand(batch, -1).contiguous() for x in (k_pos, least, most))
        start, end = torch.searchsorted(k_pos, least), torch.searchsorted(k_pos, most, right=True)
        end = end.masked_fill(q_pos < 0, 0)
        bad_key = bad_key.gather(-1, order[:, None].expand_as(bad_key))
    before = pad(bad_key.cumsum(-1), (1, 0))  # bad keys before each key
    start, end = (x[:, None].expand(*bad_key.shape[:2], -1) for x in (start, torch.maximum(start, end)))
    sees_bad = before.gather(-1, end) > before.gather(-1, start)
    return sees_bad.repeat_interleave(call.groups, 1), (end > start).repeat_interleave(call.groups, 1)


def _by_document(
    documents: Documents, least: Tensor, most: Tensor, q_pos: Int[Tensor, "#b q"], k_pos: Int[Tensor, "#b k"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions as numbers that sort by document first; a query whose document has no key sees nothing."""
    ids, key_ids = documents.of(q_pos, k_pos)
    known = key_ids.sort(-1).values.contiguous()
    batch = max(len(ids), len(known))
    known, ids = known.expand(batch, -1).contiguous(), ids.expand(batch, -1).contiguous()
    rank = torch.searchsorted(known, ids)
    none = known.gather(-1, rank.clamp(max=max(known.shape[1] - 1, 0))) != ids if known.shape[1] else rank == rank
    base = rank * (2 * FAR)
    k_pos = torch.searchsorted(known, key_ids.expand(batch, -1).contiguous()) * (2 * FAR) + k_pos
    return base + least, (base + most).masked_fill(none, -1), k_pos


def probed(call: Call, bad_key: Bool[Tensor, "batch kv_heads keys"], attend: Callable[[Call], Tensor]) -> Rows:
    """The same by attention with equal weights: the share of bad keys among those a query sees, and of any."""
    share = torch.stack((bad_key, torch.ones_like(bad_key)), -1).to(call.q.dtype)
    hiding = tuple(
        DenseBias(torch.zeros_like(term.bias).masked_fill(term.bias == -torch.inf, -torch.inf))
        for term in call.terms
        if isinstance(term, DenseBias)
    )
    plain: dict[str, Any] = {
        "terms": hiding,
        "normalise": "softmax",
        "softcap": None,
        "sinks": None,
        "dropout": 0.0,
        "seed": None,
    }
    probe = replace(call, q=torch.zeros_like(call.q), k=torch.zeros_like(call.k), v=share, **plain)
    sees_bad, sees = (attend(probe) > 0).unbind(-1)
    return sees_bad, sees
