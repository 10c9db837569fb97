"""Softmax attention with a :class:`headway.terms.PathProduct`: tokens between a query and a key act on their product.

    out_i = Σ_j softmax_j( scale · q_iᵀ H_r ⋯ H_{j+1} k_j + keys[j] ) · v_j        H_t = I − β_t w_t w_tᵀ

For each block of 64 keys the kernel computes once, in O(keys), the keys as seen from the block's right border and the
product of its H, so that a query from behind the block crosses it with one matrix product more than in plain attention.
Backward keeps each query at the borders of blocks, for 128 queries at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from headway.backends import canonical
from headway.backends.base import Call
from headway.backends.native.library import Arguments, mask_of, splits_of, wide_of
from headway.backends.native.operation import Operation
from headway.terms import PATH_BLOCK, PathProduct, PerKey, finite

SOURCE, MEMORY = "path.cpp", "O(queries + keys): fused"
QUERIES = 128
"""Queries of a task, as in C++."""

_GIVEN = (
    "Tensor q, Tensor k, Tensor v, Tensor w, Tensor beta, Tensor? per_key, "
    "Tensor q_pos, Tensor k_pos, Tensor? q_docs, Tensor? k_docs, Tensor? seed, "
    "Tensor? mask_q, Tensor? mask_k, Tensor? mask_table, int[] mask, int past, int future, float dropout"
)
"""Arguments of forward and backward; all contiguous, keys and widths padded, q times the scale."""
_TENSORS, _DIFFERENTIABLE = _GIVEN.count("Tensor"), 6


def fits(call: Call) -> bool:
    """Whether a call is of this kind."""
    return any(isinstance(term, PathProduct) for term in call.terms)


def unfit(call: Call) -> str | None:
    """See :class:`headway.backends.native.Part`."""
    term, *others = sorted(call.terms, key=lambda term: not isinstance(term, PathProduct))
    assert isinstance(term, PathProduct)
    for other in others:
        if not isinstance(other, PerKey):
            return f"the kernel of PathProduct supports no other term besides it but PerKey, not {type(other).__name__}"
    if not (term.q is call.q and term.k is call.k and term.scale == call.scale):
        return "the queries, keys and scale of PathProduct are not those of the call"
    return canonical.unfit(replace(call, terms=tuple(others)), masked=True)


def run(call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
    """See :class:`headway.backends.base.Backend`."""
    (term,) = (term for term in call.terms if isinstance(term, PathProduct))
    c = canonical.canonical(replace(call, terms=tuple(term for term in call.terms if isinstance(term, PerKey))))
    wide = wide_of(call.q)
    lanes = 64 // wide.itemsize
    rest = -call.k.shape[2] % PATH_BLOCK

    def rows(x: Tensor, heads: int) -> Tensor:
        """Keys of so many heads, in whole blocks, their width padded."""
        return pad(finite(x, wide).repeat_interleave(heads // x.shape[1], 1), (0, -x.shape[-1] % lanes, 0, rest))

    w_heads = term.w.shape[1]
    k, w, v = rows(term.k, w_heads), rows(term.w, w_heads), rows(call.v, call.v.shape[1])
    q = pad(finite(term.q, wide) * call.scale, (0, -term.q.shape[-1] % lanes))
    beta = finite(term.beta, wide) * (c.k_pos[:, None] >= 0)
    per_key = None if c.keys is None else pad(c.keys, (0, rest)).contiguous()
    k_docs = None if c.k_docs is None else pad(c.k_docs, (0, rest)).contiguous()
    q_docs = None if c.q_docs is None else c.q_docs.contiguous()
    tensors = (
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        w.contiguous(),
        pad(beta, (0, rest)).contiguous(),
        per_key,
    )
    mask_q, mask_k, mask_table, steps = mask_of(c)
    mask = (mask_q, None if mask_k is None else pad(mask_k, (0, rest)), mask_table, steps)
    masks = (c.q_pos.contiguous(), pad(c.k_pos, (0, rest), value=-1).contiguous(), q_docs, k_docs, call.seed)
    out: Tensor = _attention(*tensors, *masks, *mask, c.past, c.future, call.dropout)
    return out[..., : call.v.shape[-1]].to(call.q.dtype)


def _arguments(*given: Any) -> Arguments:
    """The arguments that forward and backward share."""
    q, k, v, w, beta, per_key, q_pos, k_pos, q_docs, k_docs, seed, *mask = given[:_TENSORS]
    arguments = Arguments(SOURCE, "path.h", q.dtype)
    call = arguments.call
    call.batch, call.heads, call.queries, call.dim = q.shape
    call.w_heads, call.kv_heads, call.dim_v = w.shape[1], v.shape[1], v.shape[3]
    call.blocks, call.whole = k.shape[2] // PATH_BLOCK, q.shape[2] > PATH_BLOCK
    steps, call.past, call.future, call.dropout = given[_TENSORS:]
    arguments.put_mask(steps, *mask)
    for name, x in (("q", q), ("k", k), ("v", v), ("w", w), ("beta", beta)):
        arguments.put(name, x.contiguous())
    masks = (("q_pos", q_pos), ("k_pos", k_pos), ("q_docs", q_docs), ("k_docs", k_docs), ("seed", seed))
    for name, x in (("per_key", per_key), *masks):
        arguments.put_rows(name, None if x is None else x.contiguous())
    return arguments


def _results(*given: Any) -> tuple[Tensor, Tensor]:
    """Empty tensors for what forward returns."""
    q, v = given[0], given[2]
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(*q.shape[:3], 2)


def forward(*given: Any) -> tuple[Tensor, Tensor]:
    """The output, and each row's greatest score and 1 / its sum of exponentials, (B, H, Q, 2)."""
    arguments, (out, sums) = _arguments(*given), _results(*given)
    arguments.put("out", out)
    arguments.put("sums", sums)
    arguments.run("path_forward")
    return out, sums


def backward(grad: Tensor, out: Tensor, sums: Tensor, needed: list[bool], *given: Any) -> list[Tensor | None]:
    """The gradients of the first six inputs."""
    arguments, per_key = _arguments(*given), given[5]
    q, k, v, w, beta = given[:5]
    splits = arguments.call.splits = splits_of(q.shape[0] * v.shape[1], q.shape[2])
    for name, x in (("out", out), ("grad", grad), ("sums", sums)):
        arguments.put(name, x.contiguous())
    d_q, d_k, d_w, d_beta = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, w, beta))
    for name, x in (("d_q", d_q), ("d_k", d_k), ("d_w", d_w), ("d_beta", d_beta)):
        arguments.put(name, x)
    d_v = v.new_zeros(splits, *v.shape)
    arguments.put("d_v", d_v)
    d_per_key = None if per_key is None else per_key.new_zeros(splits, *per_key.shape, dtype=torch.float64)
    arguments.put_rows("d_per_key", d_per_key)
    arguments.run("path_backward")
    return [d_q, d_k, d_v.sum(0), d_w, d_beta, None if d_per_key is None else d_per_key.sum(0).to(q.dtype)]


def _gradients(grad: Tensor, out: Tensor, sums: Tensor, needed: list[bool], *given: Any) -> list[Tensor]:
    return [given[0].new_empty(0) if x is None else torch.empty_like(x) for x in given[:_DIFFERENTIABLE]]


_attention = Operation("native_path", _GIVEN, 2, _DIFFERENTIABLE, forward, backward, _results, _gradients)
