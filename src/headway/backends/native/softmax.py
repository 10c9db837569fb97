"""Softmax attention with position terms.

    out_i = Σ_j softmax_j( scale · q_i·k_j + keys[j] + table(k_pos − q_pos) + rows[i](k_pos − q_pos)
                          + pairs[i, j] ) · v_j

Unmasked tiles are skipped if their weights are so small that all of them together change no row by more than 1/256 of
its own rounding: the steeper a bias decays, the faster.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from headway.backends import canonical, operators
from headway.backends.base import Call, Partial, bad_tokens, full_precision, transforms
from headway.backends.native.library import KINDS, Arguments, by_token, even, mask_of, splits_of, wide_of
from headway.backends.native.operation import Operation
from headway.terms import (
    Boost,
    ChannelDecay,
    CurveByDistance,
    DenseBias,
    ProductPerKey,
    ProductPerQuery,
    SlopePerToken,
    TablePerKey,
    ValuesByDistance,
)

SOURCE, MEMORY = "attention.cpp", "O(queries + keys): fused"


class Given(NamedTuple):
    """Arguments of forward and backward, see :class:`headway.backends.canonical.Canonical`; first those with gradients.

    ``rows`` are given as such or as products of ``rows_x`` and ``rows_vectors``, and so are ``cols``.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    keys: Tensor | None
    table: Tensor | None
    tails: Tensor | None
    rows: Tensor | None
    rows_x: Tensor | None
    rows_vectors: Tensor | None
    cols: Tensor | None
    cols_x: Tensor | None
    cols_vectors: Tensor | None
    values: Tensor | None
    q_slopes: Tensor | None
    k_slopes: Tensor | None
    curve_level: Tensor | None
    curve_rate: Tensor | None
    curve_base: Tensor | None
    curve_slope: Tensor | None
    pairs: Tensor | None
    sinks: Tensor | None
    q_decay: Tensor | None
    k_decay: Tensor | None
    q_pos: Tensor
    k_pos: Tensor
    q_docs: Tensor | None
    k_docs: Tensor | None
    curve_breaks: Tensor | None
    rows_index: Tensor | None
    cols_index: Tensor | None
    rates: Tensor | None
    seed: Tensor | None
    mask_q: Tensor | None
    mask_k: Tensor | None
    mask_table: Tensor | None
    mask: list[int]
    past: int
    future: int
    left: int
    rows_left: int
    cols_left: int
    values_left: int
    row: int
    scale: float
    softcap: float
    dropout: float

    @classmethod
    def schema(cls) -> str:
        """These arguments as torch declares an operator's."""
        kinds = {"Tensor": "Tensor", "Tensor | None": "Tensor?", "list[int]": "int[]", "int": "int", "float": "float"}
        given = {name: str(getattr(kind, "__forward_arg__", kind)) for name, kind in cls.__annotations__.items()}
        return ", ".join(f"{kinds[kind]} {name}" for name, kind in given.items())


_TERMS = (Boost, ChannelDecay, CurveByDistance, DenseBias, SlopePerToken, TablePerKey, ValuesByDistance)
_DIFFERENTIABLE = Given._fields.index("q_pos")
_AXES = {
    "keys": "bhk",
    "table": "hw",
    "tails": "he",
    "q_slopes": "bhq",
    "k_slopes": "bhk",
    "values": "hwx",
    "rows": "bhqw",
    "rows_x": "bhqx",
    "rows_vectors": "hwx",
    "cols": "bhkw",
    "cols_x": "bhkx",
    "cols_vectors": "hwx",
    "curve_level": "w",
    "curve_rate": "bq",
    "curve_base": "hp",
    "curve_slope": "hp",
    "q_decay": "bhqx",
    "k_decay": "bhkx",
}
"""The axes of the inputs whose gradients are sums, b for sequences and h for heads. Each task has its own part of them,
(splits, B, H, …), unless one task alone adds to it; the parts are summed over the axes that the input does not have."""
_STRIDES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("q", "k", "v", "rows", "rows_x", "cols", "cols_x", "pairs", "q_decay", "k_decay"), ("batch", "head", "row")
    ),
    **dict.fromkeys(("q_pos", "k_pos", "q_docs", "k_docs"), ("batch",)),
    **dict.fromkeys(("q_slopes", "k_slopes"), ("batch", "head")),
}
"""The inputs of which the kernel reads rows, and the strides that it is told of each."""
_OF_ONE_TASK = ("keys", "cols", "cols_x", "k_slopes", "k_decay")
_WHOLE = ("values", "rows_vectors", "cols_vectors")  # every entry is written, the others are added to
_IN_DOUBLE = ("keys", "table", "tails", "curve_level", "curve_rate", "curve_base", "curve_slope", "q_decay", "k_decay")


def unfit(call: Call) -> str | None:
    """See :class:`headway.backends.native.Part`."""
    return canonical.unfit(call, _TERMS, modified=True, masked=True, by_head=True)


def run(call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
    """See :class:`headway.backends.base.Backend`."""
    given = given_of(call)
    if call.training or transforms():
        out = _attention(*given)
    elif not operators.are_seen(given.q, given.k, given.v):
        out, _ = _compute(given, inference=True)
    else:
        operators.count(torch.ops.headway.native_inference, 0, 2)
        out = cast(Tensor, torch.ops.headway.native_inference(*given))
    return out.to(call.q.dtype)


def partial(call: Call) -> Partial:
    """Attention over these keys alone, to be merged; without gradients."""
    with torch.no_grad(), full_precision(call.device):
        out, sums = forward(*given_of(call))
    greatest, inverse = sums.unbind(-1)
    seen = inverse > 0
    return Partial(out, torch.where(seen, greatest, -torch.inf), torch.where(seen, 1 / inverse, 0.0))


def within(call: Call, whole: Partial) -> Float[Tensor, "batch heads queries dim_v"]:
    """The output over all keys, with the gradients that these keys have in it."""
    out, seen = whole.out, whole.total > 0
    of_rows = (torch.where(seen, whole.greatest, 0.0), torch.where(seen, 1 / whole.total, 0.0))
    sums = torch.stack(of_rows, -1).to(wide_of(call.q))
    with full_precision(call.device):
        made: Tensor = _Within.apply(out.detach(), sums.contiguous(), *given_of(call))  # type: ignore[no-untyped-call]
    return made


class _Within(torch.autograd.Function):
    """The backward pass of some of the keys, for rows that were computed over more."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, sums: Tensor, *given: Any) -> Tensor:
        """The output as it is."""
        tensors = [x for x in given if isinstance(x, Tensor)]
        ctx.save_for_backward(out, sums, *tensors)
        ctx.rest = [None if isinstance(x, Tensor) else (x,) for x in given]
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of what was given."""
        out, sums, *tensors = ctx.saved_tensors
        left = iter(tensors)
        given = [next(left) if rest is None else rest[0] for rest in ctx.rest]
        needed = list(ctx.needs_input_grad[2 : 2 + _DIFFERENTIABLE])
        found = _differentiate(grad, out, sums, needed, given, some_keys=True)
        gradients = [x if need else None for x, need in zip(found, needed, strict=True)]
        return None, None, *gradients, *(None,) * (len(given) - _DIFFERENTIABLE)


def given_of(call: Call) -> Given:
    """The arguments of the kernel."""
    c = canonical.canonical(call, products=True, images=True)
    rows, rows_vectors, rows_index = _product(c.query_products)
    cols, cols_vectors, cols_index = _product(c.key_products)
    level, rate, base, slope, breaks = (None,) * 5 if c.curve is None else _curve(c.curve, c.q)
    return Given._make(
        (
            *(c.q, c.k, c.v, c.keys, c.table, c.tails, c.rows, rows, rows_vectors, c.cols, cols, cols_vectors),
            *(
                c.values,
                c.q_slopes,
                c.k_slopes,
                level,
                rate,
                base,
                slope,
                c.pairs,
                c.sinks,
                *(c.decays or (None, None)),
            ),
            *(c.q_pos, c.k_pos, c.q_docs, c.k_docs, breaks, rows_index, cols_index, c.rates, call.seed),
            *mask_of(c),
            *(c.past, c.future, c.left, c.rows_left, c.cols_left, c.values_left, c.row),
            *(c.scale, call.softcap or 0.0, call.dropout),
        )
    )


def _product(term: ProductPerQuery | ProductPerKey | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return (None, None, None) if term is None else (term.x, term.vectors, term.index)


def _curve(curve: CurveByDistance, q: Tensor) -> tuple[Tensor, ...]:
    """Level, rate, base, slope and breaks, for all sequences and heads, in the accumulator's dtype."""
    (batch, heads), wide = q.shape[:2], wide_of(q)
    base, slope = (x.to(wide).expand(heads, -1) for x in (curve.base, curve.slope))
    rate, breaks = curve.rate.to(wide).expand(batch, -1), curve.breaks().expand(batch, -1, -1)
    return curve.level.to(wide), rate, base, slope, breaks


def arguments_of(given: Given) -> Arguments:
    """The arguments that forward and backward share."""
    arguments, g = Arguments(SOURCE, "call.h", given.q.dtype), given
    call = arguments.call
    call.batch, call.heads, call.queries, call.dim = g.q.shape
    call.kv_heads, call.keys, call.dim_v = g.v.shape[1:]
    call.past, call.future, call.scale, call.dropout = g.past, g.future, g.scale, g.dropout
    call.skip = g.q_decay is None  # with it |q|·|k| bounds no score
    call.left, call.rows_left, call.cols_left, call.values_left = g.left, g.rows_left, g.cols_left, g.values_left
    call.row = g.row
    for name, strides in _STRIDES.items():
        x: Tensor | None = getattr(g, name)
        if x is not None:  # most are not there
            arguments.put_rows(name, x, *strides)
    arguments.put_mask(g.mask, g.mask_q, g.mask_k, g.mask_table)
    arguments.put_rows("per_key", g.keys, "batch", "head")
    call.softcap = g.softcap
    for name in ("table", "tails", "sinks", "seed", "rows_index", "cols_index", "rates"):
        x = getattr(g, name)
        if x is not None:
            arguments.put_rows(name, x.contiguous())
    if g.curve_level is not None and g.curve_breaks is not None:
        for name in ("curve_level", "curve_base", "curve_slope"):
            arguments.put(name, getattr(g, name).contiguous())
        arguments.put_rows("curve_rate", g.curve_rate, "batch")
        arguments.put("curve_breaks", g.curve_breaks.contiguous(), "batch")
        call.curve_width, call.curve_knots = g.curve_level.shape[0], g.curve_breaks.shape[-1]
    if g.table is not None:
        call.width = g.table.shape[-1]
    for name, vectors, index in (
        ("rows", g.rows_vectors, g.rows_index),
        ("cols", g.cols_vectors, g.cols_index),
        ("values", g.values, None),
    ):
        if vectors is not None:
            heads, entries, dim = vectors.shape
            arguments.put_rows(f"{name}_vectors", vectors.contiguous(), "head" if heads > 1 else "")
            width = entries if index is None else index.shape[0]
            for field, size in (("width", width), ("entries", entries), ("dim", dim)):
                setattr(call, f"{name}_{field}", size)
    for name, table in (("rows", g.rows), ("cols", g.cols)):
        if table is not None:
            setattr(call, f"{name}_width", table.shape[-1])
    if g.rates is not None and g.q.numel() and g.k.numel():
        call.bound = abs(g.scale) * float(g.q.abs().max() * g.k.abs().max())
    if g.pairs is not None:
        call.pairs_kind = KINDS[g.pairs.dtype]
        for axis, field in ((0, "pairs_batch"), (1, "pairs_head")):
            if g.pairs.shape[axis] == 1:
                setattr(call, field, 0)
    return arguments


def _results(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Empty tensors for what forward returns."""
    out = q.new_empty(by_token((*q.shape[:3], v.shape[3]))).transpose(1, 2)
    return out, q.new_empty(*q.shape[:3], 2, dtype=wide_of(q))


def forward(*given: Any) -> tuple[Tensor, Tensor]:
    """The output, and each row's greatest score and 1 / its sum of exponentials, (B, H, Q, 2)."""
    return _compute(Given(*given), inference=False)


def inference(*given: Any) -> Tensor:
    """The output, when no backward pass will follow."""
    return _compute(Given(*given), inference=True)[0]


def _compute(given: Given, inference: bool) -> tuple[Tensor, Tensor]:
    # looking at the result instead of at what it was made from reads a long cache once, not twice
    out, sums = _run(given, inference)
    if math.isfinite(out.sum(dtype=wide_of(out))):
        return out, sums
    clean, poisoned = _isolated(given)
    if poisoned is None:
        return out, sums
    out, sums = _run(clean, inference)
    return out.masked_fill_(poisoned[..., None], torch.nan), sums


def _of_tokens(given: Given) -> tuple[list[Tensor], list[Tensor]]:
    """The vectors of every query, (B, H, Q, …), and of every key, (B, H or H_kv, K, …)."""
    q_slopes, k_slopes = (None if x is None else x[..., None] for x in (given.q_slopes, given.k_slopes))
    queries = [x for x in (given.q, given.rows, given.rows_x, q_slopes, given.q_decay) if x is not None]
    keys = (given.k, given.v, given.cols, given.cols_x, k_slopes, given.k_decay)
    return queries, [x for x in keys if x is not None]


def _isolated(given: Given) -> tuple[Given, Tensor | None]:
    """What was given with zeros for tokens whose vectors hold NaN or inf, and which rows, (B, H, Q), see one.

    The kernel multiplies a hidden key's weight, 0, with its value, and 0 · NaN = NaN would reach rows that must not see
    it. Which rows see one, attention with equal weights tells: of a value that is 1 at bad keys it gives more than 0.
    """
    q, k, pairs = given.q, given.k, given.pairs
    queries, keys = _of_tokens(given)
    bad_row, bad_key = torch.zeros_like(q[..., 0], dtype=torch.bool), torch.zeros_like(k[..., 0], dtype=torch.bool)
    for x in queries:
        bad_row = bad_row | bad_tokens(x)
    for x in keys:
        bad_key = bad_key | bad_tokens(x).unflatten(1, (k.shape[1], -1)).any(2)
    if not (bad_row.any() or bad_key.any()):
        return given, None
    share = torch.stack((bad_key, torch.ones_like(bad_key)), -1).to(q.dtype)
    hidden = None if pairs is None else torch.zeros_like(pairs).masked_fill_(pairs == -torch.inf, -torch.inf)
    none: dict[str, Any] = dict.fromkeys(Given._fields[3:_DIFFERENTIABLE])
    equal = Given(*given)._replace(
        **{**none, "q": torch.zeros_like(q), "k": torch.zeros_like(k), "v": share, "pairs": hidden, "dropout": 0.0}
    )
    sees_bad, sees = (_run(equal, inference=True)[0] > 0).unbind(-1)

    def clean(x: Tensor | None, bad: Tensor) -> Tensor | None:
        if x is None:
            return None
        bad = bad.repeat_interleave(x.shape[1] // bad.shape[1], 1)
        return x.masked_fill(bad[..., None] if x.ndim == 4 else bad, 0.0)

    cleaned: dict[str, Any] = {
        name: clean(getattr(given, name), bad_row) for name in ("q", "rows", "rows_x", "q_slopes", "q_decay")
    }
    cleaned |= {
        name: clean(getattr(given, name), bad_key) for name in ("k", "v", "cols", "cols_x", "k_slopes", "k_decay")
    }
    return given._replace(**cleaned), sees_bad | (bad_row & sees)


def _run(given: Given, inference: bool) -> tuple[Tensor, Tensor]:
    arguments = arguments_of(given)
    out, sums = _results(given.q, given.v)
    arguments.call.decoding = inference
    arguments.put("out", out, "batch", "head", "row")
    arguments.put("sums", sums)
    arguments.run("headway_forward")
    return out, sums


def _tasks(q: Tensor, k: Tensor, pairs: Tensor | None) -> int:
    """How many tasks can run at once: one per sequence and key head, fewer if they share a gradient."""
    sequences = q.shape[0] if pairs is None or pairs.shape[0] > 1 else 1
    return sequences * (k.shape[1] if pairs is None or pairs.shape[1] > 1 else 1)


def backward(grad: Tensor, out: Tensor, sums: Tensor, needed: list[bool], *given: Any) -> list[Tensor | None]:
    """The gradients of the first of what was given."""
    return _differentiate(grad, out, sums, needed, given, some_keys=False)


def _differentiate(
    grad: Tensor, out: Tensor, sums: Tensor, needed: list[bool], given: Sequence[Any], *, some_keys: bool
) -> list[Tensor | None]:
    g, needs = Given(*given), dict(zip(Given._fields, needed, strict=False))
    if not math.isfinite(sum(x.sum(dtype=wide_of(x)) for x in itertools.chain(*_of_tokens(g)))):
        g, poisoned = _isolated(g)
        if poisoned is not None:
            grad, out = (x.masked_fill(poisoned[..., None], 0.0) for x in (grad, out))
    arguments, q, wide = arguments_of(g), g.q, wide_of(g.q)
    arguments.call.some_keys = some_keys
    call, (batch, heads, queries, dim) = arguments.call, g.q.shape
    splits = call.splits = splits_of(_tasks(q, g.k, g.pairs if needs["pairs"] else None), g.k.shape[2])
    grad = even(grad)
    for name, given_x in (("out", out), ("grad", grad)):
        arguments.put(name, given_x, "batch", "head", "row")
    arguments.put("sums", sums)
    if g.values is not None:
        arguments.put_rows("values_x", grad.to(wide), "batch", "head", "row")
    lanes = 64 // wide.itemsize
    d_q = q.new_empty(splits, batch, queries, heads, math.ceil(dim / lanes) * lanes, dtype=wide).transpose(2, 3)
    d_k, d_v = (x.new_empty(by_token(x.shape)).transpose(1, 2) for x in (g.k, g.v))
    arguments.put("d_q", d_q, "split", "batch", "head", "row")
    for name, empty in (("d_k", d_k), ("d_v", d_v)):
        arguments.put(name, empty, "batch", "head", "row")
    found: dict[str, Tensor] = {}
    for name, axes in _AXES.items():
        x: Tensor | None = getattr(g, name)
        if x is not None and needs[name]:
            lead = (batch, heads) if name in _OF_ONE_TASK else (splits, batch, heads)
            own = x.shape[sum(axis in "bh" for axis in axes) :]
            made = q.new_empty if name in _WHOLE else q.new_zeros
            found[name] = made(*lead, *own, dtype=torch.float64 if name in _IN_DOUBLE else wide)
            arguments.put({"keys": "d_per_key", "values": "d_values_vectors"}.get(name, f"d_{name}"), found[name])
    d_pairs = None if g.pairs is None or not needs["pairs"] else q.new_zeros(g.pairs.shape, dtype=wide)
    if d_pairs is not None:
        arguments.put("d_pairs", d_pairs)
    arguments.run("headway_backward")
    found = {name: _summed(name, parts, getattr(g, name)) for name, parts in found.items()}
    if d_pairs is not None:
        found["pairs"] = d_pairs
    if g.sinks is not None and needs["sinks"]:
        # a sink's weight is what the keys' weights leave of 1; its value is zero
        mean = (grad.to(wide) * out).sum(-1)
        weight = (g.sinks[:, None] - sums[..., 0]).exp() * sums[..., 1]
        found["sinks"] = -(weight * mean).sum((0, 2))
    whole = d_q[0] if splits == 1 else d_q.sum(0)
    if whole.shape != q.shape or whole.dtype != q.dtype:
        whole = q.new_empty(by_token(q.shape)).transpose(1, 2).copy_(whole[..., :dim])
    rest = Given._fields[3:_DIFFERENTIABLE]
    return [whole, d_k, d_v, *(found[n].to(getattr(g, n).dtype) if n in found else None for n in rest)]


def _summed(name: str, parts: Tensor, x: Tensor) -> Tensor:
    """The gradient of x from its parts."""
    if name not in _OF_ONE_TASK:
        parts = parts[0] if len(parts) == 1 else parts.sum(0)
    over = [dim for dim, axis in enumerate("bh") if axis not in _AXES[name]]
    return (parts.sum(over) if over else parts).sum_to_size(x.shape)  # which may be one for all heads


def _gradients(grad: Tensor, out: Tensor, sums: Tensor, needed: list[bool], *given: Any) -> list[Tensor]:
    q, k, v = given[:3]
    terms = [
        x.new_empty(x.shape) if need and x is not None else q.new_empty(0)
        for x, need in zip(given[3:_DIFFERENTIABLE], needed[3:], strict=True)
    ]
    return [*(x.new_empty(by_token(x.shape)).transpose(1, 2) for x in (q, k, v)), *terms]


_attention = Operation(
    *("native", Given.schema(), 2, _DIFFERENTIABLE, forward, backward),
    *(lambda *given: _results(given[0], given[2]), _gradients),
)
# an operator of its own, as thin as torch allows: a step of decoding takes less time than custom_op's checks
_LIBRARY = torch.library.Library("headway", "FRAGMENT")
_LIBRARY.define(f"native_inference({Given.schema()}) -> Tensor")
_LIBRARY.impl("native_inference", inference, "CPU")
torch.library.register_fake("headway::native_inference", lambda *given: _results(given[0], given[2])[0])
