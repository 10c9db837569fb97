"""Weights that depend on sums along the keys: stick-breaking, and softmax with a :class:`headway.terms.Scan`.

    stick-breaking:  α_ij = σ(s_ij) · Π_{t > j} σ(−s_it)                     s = scale · q·k
    Scan:            α_ij = softmax_j( s_ij + c_ij )  or  s_ij + table_i(c_ij)   c_ij = Σ_{t > j, or t ≥ j} gate_it

Forward keeps what each query's stick or sum is at the border of each block of 256 keys, for backward to start from:
queries · keys / 256 values. A block of keys is skipped where nothing worth mentioning is left of the sticks, or where
sums have decayed as far: all that is skipped of a row together is less than 1/256 of its own rounding.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway.backends import canonical, operators
from headway.backends.base import Call, transforms
from headway.backends.native.library import Arguments, by_token, even, mask_of, splits_of, wide_of
from headway.backends.native.operation import Operation
from headway.backends.rows import NORMALISE
from headway.masks import Before, Mask, parts
from headway.terms import Scan

SOURCE, MEMORY = "scan.cpp", "O(queries · keys / 256): fused"
BLOCK = 256
"""Keys between two borders, as in C++."""
STICKS = NORMALISE[1:]

_GIVEN = (
    "Tensor q, Tensor k, Tensor v, Tensor? table, Tensor? left, Tensor? right, Tensor? slope, "
    "Tensor q_pos, Tensor k_pos, Tensor? q_docs, Tensor? k_docs, Tensor? seed, "
    "Tensor? mask_q, Tensor? mask_k, Tensor? mask_table, int[] mask, "
    "int past, int future, str normalise, bool inclusive, float scale, float dropout"
)
"""Arguments of forward and backward, named as in :class:`headway.terms.Scan` and
:class:`headway.backends.canonical.Canonical`."""
_TENSORS = _GIVEN.count("Tensor")


def fits(call: Call) -> bool:
    """Whether a call is of this kind."""
    return call.normalise in STICKS or any(isinstance(term, Scan) for term in call.terms)


def unfit(call: Call) -> str | None:
    """See :class:`headway.backends.native.Part`."""
    if call.normalise in STICKS and call.terms:
        return f"the kernel of stick-breaking does not support terms, such as {type(call.terms[0]).__name__}"
    if len(call.terms) > 1:
        return "the kernel of Scan does not support other terms besides it"
    for term in call.terms:
        if isinstance(term, Scan) and term.left is not None and term.table is not None:
            return "the kernel of Scan does not look up sums of log σ, which are below 0, in a table"
    return canonical.unfit(_plain(call), masked=True, by_head=True)


def run(call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
    """See :class:`headway.backends.base.Backend`."""
    c = canonical.canonical(_plain(call))
    stick = call.normalise in STICKS
    future = min(c.future, -1) if stick else c.future
    given = (
        *(c.q, c.k, c.v, *_gates(call)),
        *(c.q_pos, c.k_pos, c.q_docs, c.k_docs, call.seed, *mask_of(c)),
        *(c.past, future, call.normalise, _inclusive(call), c.scale, call.dropout),
    )
    if call.training or transforms() or operators.are_seen(c.q, c.k, c.v):
        return _attention(*given)
    return _compute(given, inference=True)[0]


def _plain(call: Call) -> Call:
    """The call with nothing that needs whole rows."""
    mask: Mask | None = None
    for part in parts(call.mask):
        if not isinstance(part, Before):
            mask = part if mask is None else mask & part
    normalise = "softmax" if call.normalise in STICKS else call.normalise
    terms = tuple(term for term in call.terms if not isinstance(term, Scan))
    return replace(call, mask=mask, terms=terms, normalise=normalise)


def _inclusive(call: Call) -> bool:
    return any(isinstance(term, Scan) and term.inclusive for term in call.terms)


def _gates(call: Call) -> tuple[Tensor | None, ...]:
    """Table, left, right and slope of the Scan, in the accumulator's dtype and as many as there are heads."""
    if call.normalise in STICKS:
        return None, None, None, None
    (term,) = call.terms
    assert isinstance(term, Scan)
    (batch, heads, queries, _), keys, wide = call.q.shape, call.k.shape[2], wide_of(call.q)
    table, left, right, slope = term.table, term.left, term.right, term.slope
    if table is not None:
        call.fits("the table of Scan", table.shape[0], table.shape[1], queries, keys)
        table = table.to(wide).expand(batch, heads, queries, -1)
    if left is None or right is None:
        return table, None, None, None
    call.fits("the gates of Scan", left.shape[0], left.shape[1], queries, keys)
    left = left.to(wide).expand(batch, -1, -1, -1)
    right = right.to(wide).repeat_interleave(heads // right.shape[1], 1).expand(batch, -1, -1, -1)
    return table, left, right, None if slope is None else slope.to(wide).expand(heads)


def _arguments(*given: Any) -> Arguments:
    """The arguments that forward and backward share."""
    q, k, v, table, left, right, slope, q_pos, k_pos, q_docs, k_docs, seed, *mask = given[:_TENSORS]
    steps, past, future, normalise, inclusive, scale, dropout = given[_TENSORS:]
    arguments = Arguments(SOURCE, "scan.h", q.dtype)
    call = arguments.call
    call.batch, call.heads, call.queries, call.dim = q.shape
    call.kv_heads, call.keys, call.dim_v = k.shape[1], k.shape[2], v.shape[3]
    call.past, call.future, call.scale, call.skip, call.dropout = past, future, scale, 1, dropout
    arguments.put_mask(steps, *mask)
    call.stick, call.remainder, call.inclusive = normalise in STICKS, normalise.endswith("+remainder"), inclusive
    if table is not None:
        call.width = table.shape[-1]
    if left is not None:
        call.rank = left.shape[-1]
    for name, x in (("q", q), ("k", k), ("v", v)):
        arguments.put_rows(name, x, "batch", "head", "row")
    for name, x in (("table", table), ("left", left), ("right", right)):
        arguments.put_rows(name, None if x is None else _finite(x), "batch", "head", "row")
    for name, x in (("q_pos", q_pos), ("k_pos", k_pos), ("q_docs", q_docs), ("k_docs", k_docs)):
        arguments.put_rows(name, x, "batch")
    for name, x in (("slope", slope), ("seed", seed)):
        arguments.put_rows(name, None if x is None else x.contiguous())
    return arguments


def _finite(x: Tensor) -> Tensor:
    """Zeros for NaN and inf, see :class:`headway.terms.RowTerm`; the same tensor if there are none."""
    return x if math.isfinite(x.sum()) else x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _results(*given: Any) -> tuple[Tensor, ...]:
    """Empty tensors for what forward returns."""
    (q, k, v), normalise, wide = given[:3], given[_TENSORS + 3], wide_of(given[0])
    batch, heads, queries, _ = q.shape
    shape = (batch, heads, queries, v.shape[3])
    out = q.new_empty(by_token(shape)).transpose(1, 2)
    sums = q.new_empty(batch, heads, 2, queries, dtype=wide)
    borders = q.new_empty(batch, heads, 2, -(-k.shape[2] // BLOCK), queries, dtype=wide)
    # a gate's gradient sums up errors of the mean of a row's gradients, which is computed from the output
    rounded = q.dtype != wide and normalise not in STICKS
    return out, sums, borders, q.new_empty(shape if rounded else 0, dtype=wide)


def forward(*given: Any) -> tuple[Tensor, ...]:
    """The output, and what backward needs: of each row the greatest score and 1 / its sum of exponentials, or of a
    stick nothing and the weight of its own key, (B, H, 2, Q); sums or sticks at the borders of blocks of keys, as two
    numbers each, (B, H, 2, blocks, Q); and the output before it is rounded to a narrow dtype, empty if it is not.
    """
    return _compute(given, inference=False)


def _compute(given: tuple[Any, ...], inference: bool) -> tuple[Tensor, ...]:
    arguments = _arguments(*given)
    out, sums, borders, exact = results = _results(*given)
    arguments.call.decoding = inference
    arguments.put("out", out, "batch", "head", "row")
    arguments.put("sums", sums)
    if not inference:
        arguments.put("borders", borders)
        if exact.numel():
            arguments.put("exact", exact)
    arguments.run("headway_scan_forward")
    return results


def backward(
    grad: Tensor, out: Tensor, sums: Tensor, borders: Tensor, exact: Tensor, needed: list[bool], *given: Any
) -> list[Tensor | None]:
    """The gradients of q, k, v, table, left, right and slope."""
    arguments = _arguments(*given)
    q, k, v, table, left, right, slope = given[:7]
    call, wide = arguments.call, wide_of(q)
    batch, heads, queries, dim = q.shape
    kv_heads, keys, dim_v = k.shape[1], k.shape[2], v.shape[3]
    splits = call.splits = splits_of(batch * kv_heads, queries)
    grad = even(grad)
    for name, x in (("out", out), ("grad", grad)):
        arguments.put(name, x, "batch", "head", "row")
    arguments.put("sums", sums)
    arguments.put("borders", borders)
    if exact.numel():
        arguments.put("exact", exact)
    own: Tensor | None = None
    if call.remainder:
        own = sums[:, :, 1]
        value = v[:, :, None, keys - queries :].to(wide)
        arguments.put("rest", own * (grad.to(wide).unflatten(1, (kv_heads, -1)) * value).sum(-1).flatten(1, 2))

    def padded(width: int) -> int:
        lanes = 64 // wide.itemsize
        return math.ceil(width / lanes) * lanes

    d_q = q.new_empty(batch, queries, heads, padded(dim), dtype=wide).transpose(1, 2)
    d_k, d_v = (
        q.new_empty(splits, batch, keys, kv_heads, padded(width), dtype=wide).transpose(2, 3) for width in (dim, dim_v)
    )
    arguments.put("d_q", d_q, "batch", "head", "row")
    for name, x in (("d_k", d_k), ("d_v", d_v)):
        arguments.put(name, x, "split", "batch", "head", "row")
    call.d_rank = padded(call.rank)
    parts: dict[str, Tensor] = {}
    for name, x, need, shape, dtype in (
        ("d_table", table, needed[3], (batch, heads, queries, call.width), wide),
        ("d_left", left, needed[4], (batch, heads, queries, call.d_rank), wide),
        ("d_right", right, needed[5], (splits, batch, heads, keys, call.d_rank), wide),
        ("d_slope", slope, needed[6], (splits, batch, heads), torch.float64),
    ):
        if x is not None and need:
            parts[name] = q.new_zeros(shape, dtype=dtype)
            arguments.put(name, parts[name])
    arguments.run("headway_scan_backward")
    d_k, d_v = (x[0] if splits == 1 else x.sum(0) for x in (d_k, d_v))
    if own is not None:
        taken = (own[..., None] * grad.to(wide)).unflatten(1, (kv_heads, -1)).sum(2)
        d_v[:, :, keys - queries :, :dim_v] += taken
    if "d_left" in parts:
        parts["d_left"] = parts["d_left"][..., : call.rank]
    if "d_right" in parts:
        parts["d_right"] = parts["d_right"].sum(0)[..., : call.rank]
    if "d_slope" in parts:
        parts["d_slope"] = parts["d_slope"].sum((0, 1)).to(wide)
    return [
        _like(d_q, q),
        _like(d_k, k),
        _like(d_v, v),
        *(parts.get(name) for name in ("d_table", "d_left", "d_right", "d_slope")),
    ]


def _like(x: Tensor, given: Tensor) -> Tensor:
    """Without padding, in the dtype of what was given."""
    if x.shape == given.shape and x.dtype == given.dtype:
        return x
    return given.new_empty(by_token(given.shape)).transpose(1, 2).copy_(x[..., : given.shape[3]])


def _gradients(
    grad: Tensor, out: Tensor, sums: Tensor, borders: Tensor, exact: Tensor, needed: list[bool], *given: Any
) -> list[Tensor]:
    q, k, v = given[:3]
    terms = [
        x.new_empty(x.shape) if need and x is not None else q.new_empty(0)
        for x, need in zip(given[3:7], needed[3:], strict=True)
    ]
    return [*(x.new_empty(by_token(x.shape)).transpose(1, 2) for x in (q, k, v)), *terms]


_attention = Operation(*("native_scan", _GIVEN, 4, 7, forward, backward, _results, _gradients))
