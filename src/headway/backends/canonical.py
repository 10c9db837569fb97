"""A call in canonical form for fused kernels: whatever masks and terms were given, at most one tensor of each kind.

    score(i, j) = scale · q_i·k_j + keys[j] + table(k_pos − q_pos) + rows[i](k_pos − q_pos)
    visible(i, j): −past <= k_pos − q_pos <= future, the same document, no padding, and what `mask` shows

Terms of a kind are summed and masks intersected here, in differentiable plain torch on O(queries + keys) values, so a
kernel implements each kind once. :func:`unfit` names what has no canonical form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from headway.backends.base import Call
from headway.integers import FAR
from headway.masks import Causal, Documents, Mask, Steps, is_distance_only, parts, reach, stepless, steps
from headway.terms import (
    Boost,
    ByDistance,
    ChannelDecay,
    CurveByDistance,
    DenseBias,
    PerKey,
    ProductPerKey,
    ProductPerQuery,
    SlopePerToken,
    TablePerKey,
    TablePerQuery,
    raster,
)


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
        cols: added by distance, a table per key, (B, H, K, W''), or None.
        cols_left: the entry of distance 0 in cols.
        query_products: x (B, H, Q, X) and vectors whose products are added instead of rows, or None.
        key_products: likewise instead of cols, x (B, H, K, X).
        values: added to the values by distance, (H or 1, W, D_v), or None.
        values_left: the entry of distance 0 in values.
        q_slopes: added per query and step of distance, (B, H, Q), or None.
        k_slopes: added per key and step of distance, (B, H, K), or None.
        sinks: the score of one more key without a value, (H,), or None.
        curve: a piecewise linear function of the scaled distance, all tensors in the accumulator's dtype, or None.
        scale: multiplies q·k.
        pairs: added per pair, (B or 1, H or 1, Q, K), in its own dtype if that is q's or the accumulator's; or None.
        rates: how fast each product of q·k decays per step of distance, (D,), or None.
        decays: what each product of q·k is multiplied by, e^{own − c}: own (B, H, Q, D) and c (B, H, K, D), float64, or
            None. H_kv is H then.
        mask: the masks that are neither a reach nor documents, or None.
        row: tokens are those of an image with rows this long, and the table is by distances of raster(); 0 if not.
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
    cols: Float[Tensor, "batch heads keys width_cols"] | None = None
    cols_left: int = 0
    query_products: ProductPerQuery | None = None
    key_products: ProductPerKey | None = None
    values: Float[Tensor, "#heads width_values dim_v"] | None = None
    values_left: int = 0
    q_slopes: Float[Tensor, "batch heads queries"] | None = None
    k_slopes: Float[Tensor, "batch heads keys"] | None = None
    curve: CurveByDistance | None = None
    pairs: Float[Tensor, "#batch #heads queries keys"] | None = None
    sinks: Float[Tensor, " heads"] | None = None
    rates: Float[Tensor, " dim"] | None = None
    decays: tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch heads keys dim"]] | None = None
    mask: Steps | None = None
    row: int = 0


TERMS: tuple[type, ...] = (PerKey, ByDistance, TablePerQuery)


def unfit(
    call: Call, also: tuple[type, ...] = (), modified: bool = False, masked: bool = False, by_head: bool = False
) -> str | None:
    """Why a call has no canonical form, or None when it has one. Depends on kinds, never on values.

    Args:
        call: the call.
        also: terms that the kernel supports besides :data:`TERMS`.
        modified: whether it supports a softcap and sinks.
        masked: whether it supports masks other than a conjunction of Causal, Window and Documents.
        by_head: whether these may differ between heads.
    """
    if (reason := call.by_rows if modified else call.whole_rows) is not None:
        return f"fused kernels do not support {reason}"
    known = (*TERMS, *also)
    for term in call.terms:
        if not isinstance(term, known):
            return f"the term {type(term).__name__} is none of {', '.join(one.__name__ for one in known)}"
    _, _, others = _masks(call)
    if others and not masked:
        return f"the mask {type(others[0]).__name__} is not a conjunction of Causal, Window and Documents"
    if (reason := stepless(others, by_head)) is not None:
        return reason
    rows = {getattr(term, "row", None) for term in call.terms if not isinstance(term, PerKey)}
    if call.row is not None and len(rows) > 1:
        return f"a term by distance in rows of {call.row} is combined with a term by another distance"
    if sum(isinstance(term, CurveByDistance) for term in call.terms) > 1:
        return "more than one term is a curve by distance"
    if len(call.value_terms) > 1:
        return "more than one term is added to values"
    products = [term for term in call.terms if isinstance(term, Boost | ChannelDecay)]
    if len(products) > 1:
        return "two terms replace the product of queries and keys"
    for term in products:
        if call.softcap is not None:
            return f"a softcap is combined with the term {type(term).__name__}"
        if isinstance(term, Boost) and torch.is_grad_enabled() and term.rates.requires_grad:
            return "it gives no gradient for the rates of Boost"
    return None


def _masks(call: Call) -> tuple[list[Mask], Documents | None, list[Mask]]:
    """Masks that are a reach, the first Documents, and all other masks of a conjunction."""
    near: list[Mask] = []
    documents: Documents | None = None
    others: list[Mask] = []
    row = call.row
    for part in parts(call.mask):
        if isinstance(part, Documents) and documents is None:
            documents = part
        elif is_distance_only(part) and (row is None or isinstance(part, Causal)):
            near.append(part)  # distances in an image have the same sign, not the same size
        else:
            others.append(part)
    return near, documents, others


def canonical(call: Call, products: bool = False, images: bool = False) -> Canonical:
    """The canonical form of a call that :func:`unfit` accepts.

    Args:
        call: the call.
        products: whether the kernel multiplies vectors of tokens and distances itself; otherwise their products are
            materialised as rows and cols.
        images: whether the kernel reads a table by distances in an image at positions as they are; otherwise they
            become those of :func:`headway.terms.raster`.
    """
    batch, heads, queries, _ = call.q.shape
    keys = call.k.shape[2]
    wide = torch.promote_types(call.q.dtype, torch.float32)
    row, (near, documents, others) = call.row, _masks(call)
    reaches = [reach(part) for part in (near if row is not None else [*near, *others])]
    past, future = (min([FAR, *sides]) for sides in zip(*reaches, strict=True)) if reaches else (FAR, FAR)
    q_docs, k_docs = None, None
    if documents is not None:
        ids, key_ids = documents.of(call.q_pos, call.k_pos)
        call.fits("a mask", max(len(ids), len(key_ids)), 1, queries, keys)
        q_docs, k_docs = ids.expand(batch, -1), key_ids.expand(batch, -1)
    call.check_terms()
    table, left, tails = _one_table([term for term in call.terms if isinstance(term, ByDistance)])
    rows, rows_left, query_products = _tables([t for t in call.terms if isinstance(t, TablePerQuery)], products)
    cols, cols_left, key_products = _tables([t for t in call.terms if isinstance(t, TablePerKey)], products)
    curve = next((term for term in call.terms if isinstance(term, CurveByDistance)), None)
    value = call.value_terms[0] if call.value_terms else None
    slopes = [term for term in call.terms if isinstance(term, SlopePerToken)]

    def summed(parts: Sequence[Tensor | None], *shape: int) -> Tensor | None:
        there = [x.to(wide) for x in parts if x is not None]
        return sum(there[1:], start=there[0]).expand(batch, heads, *shape) if there else None

    q_pos, k_pos = call.q_pos, call.k_pos
    if row is not None and not images:
        q_pos, k_pos = raster(q_pos, row), raster(k_pos, row)
    (q, k, v), scale, rates, decays = _products(call, wide)
    return Canonical(
        q,
        k,
        v,
        q_pos.expand(batch, -1),
        k_pos.expand(batch, -1),
        past,
        future,
        q_docs,
        k_docs,
        summed([term.bias for term in call.terms if isinstance(term, PerKey)], keys),
        None if table is None else table.to(wide).expand(heads, -1),
        left,
        None if tails is None else tails.to(wide).expand(heads, -1),
        None if rows is None else rows.to(wide).expand(batch, heads, queries, -1),
        rows_left,
        scale,
        None if cols is None else cols.to(wide).expand(batch, heads, keys, -1),
        cols_left,
        _wide(query_products, batch, wide),
        _wide(key_products, batch, wide),
        None if value is None else value.table.to(wide),
        0 if value is None else value.left,
        summed([term.q for term in slopes], queries),
        summed([term.k for term in slopes], keys),
        curve,
        _one_dense([term.bias for term in call.terms if isinstance(term, DenseBias)], (call.q.dtype, wide)),
        None if call.sinks is None else call.sinks.to(wide),
        rates,
        decays,
        _steps(call, others) if others else None,
        (row or 0) if images else 0,
    )


def _steps(call: Call, masks: Sequence[Mask]) -> Steps:
    """The masks for all sequences and heads."""
    (batch, heads, queries, _), keys = call.q.shape, call.k.shape[2]
    found = steps(masks, call.q_pos, call.k_pos)
    size, of_heads = found.q.shape[1], 1
    if found.table is not None:
        size, of_heads = max(size, found.table.shape[0]), found.table.shape[1]
    call.fits("a mask", max(size, found.k.shape[1]), of_heads, queries, keys)
    q, k = found.q.expand(-1, batch, -1), found.k.expand(-1, batch, -1)
    return Steps(found.steps, q, k, None if found.table is None else found.table.expand(batch, heads, -1, -1))


def _products(call: Call, wide: torch.dtype) -> tuple[tuple[Tensor, Tensor, Tensor], float, Tensor | None, Any]:
    """q, k and v, the scale, and what multiplies products of q·k: rates or decays, see :class:`Canonical`."""
    term = next((term for term in call.terms if isinstance(term, Boost | ChannelDecay)), None)
    if term is None:
        return (call.q, call.k, call.v), call.scale, None, None
    factors: list[Tensor]
    if isinstance(term, Boost):
        q, k, fixed = term.coordinates(term.q, wide), term.coordinates(term.k, wide), not term.basis.requires_grad
        heads, factors = math.lcm(call.k.shape[1], k.shape[1]), [term.rates.detach().to(wide)]
    else:
        q, k, fixed = term.q.to(wide), term.k.to(wide), True
        heads, factors = call.q.shape[1], [term.own.double(), term.c.double()]

    def of_heads(x: Tensor) -> Tensor:
        return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)

    k, v, scale = of_heads(k), of_heads(call.v.to(wide)), call.scale
    if not (term.q is call.q and term.k is call.k and term.scale == call.scale and fixed):
        still = call.q.shape[3] + q.shape[3]
        q = torch.cat((call.q.to(wide) * call.scale, -term.scale * q, term.scale * q), -1)
        k, scale = torch.cat((of_heads(call.k.to(wide)), k, k), -1), 1.0
        factors = [pad(x, (still, 0)) for x in factors]
    # otherwise its q·k cancels the call's
    if isinstance(term, Boost):
        return (q, k, v), scale, factors[0], None
    return (q, k, v), scale, None, tuple(factors)


def _one_dense(biases: Sequence[Tensor], known: tuple[torch.dtype, ...]) -> Tensor | None:
    """One tensor that adds what all the biases add, in a dtype that the kernel reads."""
    if not biases:
        return None
    total = sum(biases[1:], start=biases[0])
    total = total if total.dtype in known else total.to(known[-1])
    return total if total.stride(-1) == 1 else total.contiguous()


def _reach(tables: Sequence[tuple[Tensor, int]]) -> tuple[int, Int[Tensor, " distances"]]:
    """The entry of distance 0, and all distances, of the shortest table that covers each; given with theirs."""
    left = max(entry for _, entry in tables)
    right = max(table.shape[-1] - 1 - entry for table, entry in tables)
    return left, torch.arange(-left, right + 1, device=tables[0][0].device)


def _one_table(terms: Sequence[ByDistance]) -> tuple[Tensor | None, int, Tensor | None]:
    """One table that adds what all the terms add, its entry of distance 0 and its tails."""
    if not terms:
        return None, 0, None
    tails = [term.tails for term in terms if term.tails is not None]
    tail = sum(tails[1:], start=tails[0]) if tails else None
    if len(terms) == 1:
        return terms[0].table, terms[0].left, tail
    left, distances = _reach([(term.table, term.left) for term in terms])
    origin = torch.zeros_like(distances[:1])[None]
    tables = [replace(term, row=None).tile(origin, distances[None])[0, :, 0] for term in terms]
    return sum(tables[1:], start=tables[0]), left, tail


Tables = TypeVar("Tables", TablePerQuery, TablePerKey)


def _tables(terms: Sequence[Tables], products: bool) -> tuple[Tensor | None, int, Any]:
    """One table per token that adds what all the terms add, and its entry of distance 0; or one term of products."""
    if not terms:
        return None, 0, None
    if len(terms) == 1:
        if products and isinstance(terms[0], ProductPerQuery | ProductPerKey):
            return None, terms[0].left, terms[0]
        return terms[0].tables(), terms[0].left, None
    tables = [(term.tables(), term.left) for term in terms]
    left, distances = _reach(tables)
    every = [table[..., (distances + entry).clamp(0, table.shape[-1] - 1)] for table, entry in tables]
    return sum(every[1:], start=every[0]), left, None


def _wide(term: Any, batch: int, wide: torch.dtype) -> Any:
    """The same products in the accumulator's dtype, for all sequences."""
    if term is None:
        return None
    x = term.x.to(wide).expand(batch, -1, -1, -1)
    return replace(term, x=x, vectors=term.vectors.to(wide))
