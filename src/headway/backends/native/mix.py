"""Softmax attention whose heads a small network mixes before the softmax: :class:`headway.terms.MixHeads`.

    scores = A + B + second ∗ LeakyReLU(first ∗ (A, B) + first_bias)      A = scale · q·k

B depends on the distance alone, so ``first`` is applied to B once per distance, and only to A per pair. A tile of
scores of all heads is held at once. Backward recomputes it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway.backends import canonical, operators
from headway.backends.base import Call, transforms
from headway.backends.canonical import Canonical
from headway.backends.native.library import Arguments, even, mask_of, wide_of
from headway.backends.native.operation import Operation
from headway.integers import FAR, readable
from headway.terms import ByDistance, MixHeads

SOURCE, MEMORY = "mix.cpp", "O(queries + keys): fused"

_GIVEN = (
    "Tensor q, Tensor k, Tensor v, Tensor table, Tensor tails, Tensor first, Tensor first_bias, Tensor second, "
    "Tensor q_pos, Tensor k_pos, Tensor? q_docs, Tensor? k_docs, Tensor? order, Tensor? seed, "
    "Tensor? mask_q, Tensor? mask_k, Tensor? mask_table, int[] mask, "
    "int past, int future, int left, float scale, float dropout"
)
"""Arguments of forward and backward, named as in ``mix.h``."""
_TENSORS, _DIFFERENTIABLE = _GIVEN.count("Tensor"), 8


def fits(call: Call) -> bool:
    """Whether a call is of this kind."""
    return any(isinstance(term, MixHeads) for term in call.terms)


def unfit(call: Call) -> str | None:
    """See :class:`headway.backends.native.Part`."""
    if len(call.terms) > 1:
        return "the kernel of MixHeads does not support other terms besides it"
    term = _mixed(call)
    for bias in term.bias:
        if not isinstance(bias, ByDistance):
            return f"the kernel of MixHeads mixes biases of the kind ByDistance, not {type(bias).__name__}"
    if call.dropout and term.order is not None and term.first.shape[-1] > 1:
        return "the kernel of MixHeads does not support dropout where tokens are not in the order of the text"
    return canonical.unfit(replace(call, terms=term.bias), masked=True)


def run(call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
    """See :class:`headway.backends.base.Backend`."""
    term, heads, wide = _mixed(call), call.q.shape[1], wide_of(call.q)
    first, first_bias, second = (x.to(wide) for x in (term.first, term.first_bias, term.second))
    c, order = canonical.canonical(replace(call, terms=term.bias)), None
    if term.order is not None and term.first.shape[-1] > 1:
        call.fits("the order of MixHeads", len(term.order), 1, call.q.shape[2], call.k.shape[2])
        c, order = _in_order(c, term.order.long().expand(call.k.shape[0], -1))
    table = first.new_zeros(heads, 1) if c.table is None else c.table
    tails = first.new_zeros(heads, 2) if c.tails is None else c.tails
    # what each hidden unit's taps make of B is a table by distance as well
    taps = first[:, heads:].permute(2, 0, 1).flatten(0, 1)
    table, tails = (torch.cat((x, taps @ x)) for x in (table, tails))
    given = (
        *(c.q, c.k, c.v, table, tails, first[:, :heads], first_bias, second),
        *(c.q_pos, c.k_pos, c.q_docs, c.k_docs, order, call.seed, *mask_of(c)),
        *(c.past, c.future, c.left, c.scale, call.dropout),
    )
    if call.training or transforms() or operators.are_seen(c.q, c.k, c.v):
        return _attention(*given)
    return _compute(given, inference=True)[0]


def _mixed(call: Call) -> MixHeads:
    (term,) = (term for term in call.terms if isinstance(term, MixHeads))
    return term


def _in_order(c: Canonical, order: Tensor | None) -> tuple[Canonical, Tensor | None]:
    """The call with its keys in the order of the text, padding last, and their order."""
    if order is None:
        return c, None
    order = order.masked_fill(c.k_pos < 0, FAR)
    if readable(order) and bool((order.diff(dim=1) >= 0).all()):
        return c, order
    order, index = order.sort(stable=True, dim=1)
    k, v = (x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])) for x in (c.k, c.v))
    k_docs = None if c.k_docs is None else c.k_docs.gather(1, index)
    mask = None if c.mask is None else replace(c.mask, k=c.mask.k.gather(2, index.expand_as(c.mask.k)))
    return replace(c, k=k, v=v, k_pos=c.k_pos.gather(1, index), k_docs=k_docs, mask=mask), order


def _arguments(*given: Any) -> Arguments:
    """The arguments that forward and backward share; q, k and v in the accumulator's dtype and :func:`_padded`."""
    q, k, v, table, tails, first, first_bias, second, q_pos, k_pos, q_docs, k_docs, order, seed, *mask = given[
        :_TENSORS
    ]
    steps, past, future, left, scale, dropout = given[_TENSORS:]
    arguments = Arguments(SOURCE, "mix.h", q.dtype)
    call = arguments.call
    call.batch, call.heads, call.queries, call.dim = q.shape
    call.kv_heads, call.keys, call.dim_v = v.shape[1:]
    call.past, call.future, call.left, call.scale, call.dropout = past, future, left, scale, dropout
    arguments.put_mask(steps, *mask)
    call.hidden, call.taps, call.width = second.shape[1], second.shape[2], table.shape[1]
    for name, x in (("q", q), ("k", k), ("v", v)):
        arguments.put_rows(name, x, "batch", "head", "row")
    for name, ids in (("q_pos", q_pos), ("k_pos", k_pos), ("q_docs", q_docs), ("k_docs", k_docs), ("order", order)):
        arguments.put_rows(name, ids, "batch")
    weights = {"table": table, "tails": tails, "first": first, "first_bias": first_bias, "second": second, "seed": seed}
    for name, weight in weights.items():
        arguments.put_rows(name, None if weight is None else weight.contiguous())
    return arguments


def _padded(x: Tensor) -> Tensor:
    """In the accumulator's dtype, with zeros up to a width that is a multiple of 16."""
    x = x.to(wide_of(x))
    missing = -x.shape[-1] % 16 if x.shape[-1] else 16
    return even(torch.nn.functional.pad(x, (0, missing)) if missing else x)


def _results(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Empty tensors for what forward returns."""
    sums = q.new_empty(*q.shape[:3], 2, dtype=wide_of(q))
    return q.new_empty(*q.shape[:3], v.shape[3]), sums


def forward(*given: Any) -> tuple[Tensor, Tensor]:
    """The output, and each row's greatest score and 1 / its sum of exponentials, (B, H, Q, 2)."""
    return _compute(given, inference=False)


def _compute(given: tuple[Any, ...], inference: bool) -> tuple[Tensor, Tensor]:
    q, k, v = (_padded(x) for x in given[:3])
    arguments = _arguments(q, k, v, *given[3:])
    arguments.call.decoding = inference
    out, sums = _results(q, v)
    arguments.put("out", out, "batch", "head", "row")
    arguments.put("sums", sums)
    arguments.run("headway_mix_forward")
    return out[..., : given[2].shape[3]].to(given[0].dtype).contiguous(), sums


def backward(grad: Tensor, out: Tensor, sums: Tensor, needed: list[bool], *given: Any) -> list[Tensor | None]:
    """The gradients of the first of what was given."""
    q, k, v = (_padded(x) for x in given[:3])
    arguments = _arguments(q, k, v, *given[3:])
    call, batch = arguments.call, q.shape[0]
    call.splits = splits = min(-(-torch.get_num_threads() // max(batch, 1)), max(1, q.shape[2] // 32))
    for name, x in (("out", out), ("grad", grad)):
        arguments.put_rows(name, _padded(x), "batch", "head", "row")
    arguments.put("sums", sums)
    shared = [q.new_zeros(splits, *x.shape) for x in (k, v)]
    weights = [q.new_zeros(splits, batch, *x.shape, dtype=torch.float64) for x in given[3:_DIFFERENTIABLE]]
    d_q = torch.zeros_like(q, memory_format=torch.contiguous_format)
    names = ("d_q", "d_k", "d_v", "d_table", "d_tails", "d_first", "d_first_bias", "d_second")
    for name, x in zip(names, (d_q, *shared, *weights), strict=True):
        arguments.put(name, x)
    arguments.run("headway_mix_backward")
    found = [d_q, *(x[0] if splits == 1 else x.sum(0) for x in shared), *(x.sum((0, 1)) for x in weights)]
    found = [x[..., : y.shape[-1]].to(y.dtype) for x, y in zip(found, given, strict=False)]
    return [x.contiguous() if need else None for x, need in zip(found, needed, strict=True)]


def _gradients(grad: Tensor, out: Tensor, sums: Tensor, needed: list[bool], *given: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) if need else x.new_empty(0) for x, need in zip(given, needed, strict=False)]


_attention = Operation(
    *("native_mix", _GIVEN, 2, _DIFFERENTIABLE, forward, backward),
    *(lambda *given: _results(given[0], given[2]), _gradients),
)
