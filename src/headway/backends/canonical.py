"""A call in canonical form for fused kernels: whatever masks and terms were given, at most one tensor of each kind.

    score(i, j) = scale · q_i·k_j + keys[j] + table(k_pos − q_pos) + rows[i](k_pos − q_pos)
    visible(i, j): −past <= k_pos − q_pos <= future, the same document, no padding

Terms of a kind are summed and masks intersected here, in differentiable plain torch on O(queries + keys) values, so a
kernel implements each kind once. :func:`unfit` names what has no canonical form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.backends.base import Call
from headway.masks import Causal, Documents, Window, parts, reach
from headway.terms import ByDistance, ByDistancePerQuery, DenseBias, PerKey, raster


@dataclass(frozen=True, eq=False)
class Canonical:
    """What a fused kernel computes. Tensors of terms have the accumulator's dtype: float32, or float64 for float64.

    Args:
        q: (B, H, Q, D).
        k: (B, H_kv, K, D).
        v: (B, H_kv, K, D_v).
        q_pos: (B, Q); -1 is padding.
        k_pos: (B, K); -1 is padding.
        past: how far into the past a query sees; :data:`headway.integers.FAR` is without limit.
        future: how far into the future; 0 is causal.
        q_docs: the document of each query, (B, Q), or None.
        k_docs: the document of each key, (B, K), or None.
        keys: added per key, (B, H, K), or None.
        table: added by distance, (H, W), or None; see :class:`headway.terms.ByDistance`.
        left: the table's entry of distance 0.
        tails: added per step beyond the table's left and right end, (H, 2), or None.
        rows: added by distance, a table per query, (B, H, Q, W'), or None.
        rows_left: the entry of distance 0 in rows.
        pairs: added per pair, (B or 1, H or 1, Q, K), in its own dtype if that is q's or the accumulator's; or None.
        scale: multiplies q·k.
    """

    q: Float[Tensor, "batch heads queries dim"]
    k: Float[Tensor, "batch kv_heads keys dim"]
    v: Float[Tensor, "batch kv_heads keys dim_v"]
    q_pos: Int[Tensor, "batch queries"]
    k_pos: Int[Tensor, "batch keys"]
    past: int
    future: int
    q_docs: Int[Tensor, "batch queries"] | None
    k_docs: Int[Tensor, "batch keys"] | None
    keys: Float[Tensor, "batch heads keys"] | None
    table: Float[Tensor, "heads width"] | None
    left: int
    tails: Float[Tensor, "heads 2"] | None
    rows: Float[Tensor, "batch heads queries width_rows"] | None
    rows_left: int
    scale: float
    pairs: Float[Tensor, "#batch #heads queries keys"] | None = None


TERMS: tuple[type, ...] = (PerKey, ByDistance, ByDistancePerQuery)


def unfit(call: Call, also: tuple[type, ...] = ()) -> str | None:
    """Why a call has no canonical form, or None when it has one. Depends on kinds, never on values.

    Args:
        call: the call.
        also: terms that the kernel supports besides :data:`TERMS`.
    """
    if call.whole_rows is not None:
        return f"fused kernels do not support {call.whole_rows}"
    known = (*TERMS, *also)
    for term in call.terms:
        if not isinstance(term, known):
            return f"the term {type(term).__name__} is none of {', '.join(one.__name__ for one in known)}"
    masks = parts(call.mask)
    for part in masks:
        if not isinstance(part, Causal | Window | Documents):
            return f"the mask {type(part).__name__} is not a conjunction of Causal, Window and Documents"
    rows = {getattr(term, "row", None) for term in call.terms if not isinstance(term, PerKey)}
    if call.row is not None and (len(rows) > 1 or any(isinstance(part, Window) for part in masks)):
        return f"a term by distance in rows of {call.row} is combined with a term or mask by another distance"
    if sum(isinstance(part, Documents) for part in masks) > 1:
        return "the mask contains Documents twice"
    return None


def canonical(call: Call) -> Canonical:
    """The canonical form of a call that :func:`unfit` accepts."""
    batch, heads, queries, _ = call.q.shape
    keys = call.k.shape[2]
    wide = torch.promote_types(call.q.dtype, torch.float32)
    past, future = reach(call.mask)
    q_docs, k_docs = None, None
    for part in parts(call.mask):
        if isinstance(part, Documents):
            ids, key_ids = part.of(call.q_pos, call.k_pos)
            call.fits("a mask", max(len(ids), len(key_ids)), 1, queries, keys)
            q_docs, k_docs = ids.expand(batch, -1), key_ids.expand(batch, -1)
    for term in call.terms:
        if isinstance(term, PerKey):
            call.fits("PerKey", term.bias.shape[0], term.bias.shape[1], queries, keys)
        elif isinstance(term, ByDistance):
            call.fits("ByDistance", 1, len(term.table), queries, keys)
        elif isinstance(term, ByDistancePerQuery):
            call.fits("ByDistancePerQuery", term.table.shape[0], term.table.shape[1], queries, keys)
    pairs = [term.bias for term in call.terms if isinstance(term, DenseBias)]
    for bias in pairs:
        call.fits("DenseBias", *bias.shape)
    per_key = [term.bias for term in call.terms if isinstance(term, PerKey)]
    table, left, tails = _one_table([term for term in call.terms if isinstance(term, ByDistance)])
    rows, rows_left = _one_bank([term for term in call.terms if isinstance(term, ByDistancePerQuery)])
    q_pos, k_pos = call.q_pos, call.k_pos
    if call.row is not None:
        q_pos, k_pos = raster(q_pos, call.row), raster(k_pos, call.row)
    return Canonical(
        call.q,
        call.k,
        call.v,
        q_pos.expand(batch, -1),
        k_pos.expand(batch, -1),
        past,
        future,
        q_docs,
        k_docs,
        sum(per_key[1:], start=per_key[0]).to(wide).expand(batch, heads, keys) if per_key else None,
        None if table is None else table.to(wide).expand(heads, -1),
        left,
        None if tails is None else tails.to(wide).expand(heads, -1),
        None if rows is None else rows.to(wide).expand(batch, heads, queries, -1),
        rows_left,
        call.scale,
        _one_dense(pairs, (call.q.dtype, wide)),
    )


def _one_dense(biases: Sequence[Tensor], known: tuple[torch.dtype, ...]) -> Tensor | None:
    """One tensor that adds what all the biases add, in a dtype that the kernel reads."""
    if not biases:
        return None
    total = sum(biases[1:], start=biases[0])
    total = total if total.dtype in known else total.to(known[-1])
    return total if total.stride(-1) == 1 else total.contiguous()


def _reach(terms: Sequence[ByDistance] | Sequence[ByDistancePerQuery]) -> tuple[int, Int[Tensor, " distances"]]:
    """The entry of distance 0, and all distances, of the shortest table that covers every term's."""
    left = max(term.left for term in terms)
    right = max(term.table.shape[-1] - 1 - term.left for term in terms)
    return left, torch.arange(-left, right + 1, device=terms[0].table.device)


def _one_table(terms: Sequence[ByDistance]) -> tuple[Tensor | None, int, Tensor | None]:
    """One table that adds what all the terms add, its entry of distance 0 and its tails."""
    if not terms:
        return None, 0, None
    tails = [term.tails for term in terms if term.tails is not None]
    tail = sum(tails[1:], start=tails[0]) if tails else None
    if len(terms) == 1:
        return terms[0].table, terms[0].left, tail
    left, distances = _reach(terms)
    origin = torch.zeros_like(distances[:1])[None]
    tables = [replace(term, row=None).tile(origin, distances[None])[0, :, 0] for term in terms]
    return sum(tables[1:], start=tables[0]), left, tail


def _one_bank(terms: Sequence[ByDistancePerQuery]) -> tuple[Tensor | None, int]:
    """One table per query that adds what all the terms add, and its entry of distance 0."""
    if not terms:
        return None, 0
    if len(terms) == 1:
        return terms[0].table, terms[0].left
    left, distances = _reach(terms)
    banks = [term.table[..., (distances + term.left).clamp(0, term.table.shape[-1] - 1)] for term in terms]
    return sum(banks[1:], start=banks[0]), left
