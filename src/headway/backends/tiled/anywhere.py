"""Any positions and any term: each block of queries by the specification, differentiated by autograd.

A block's intermediate results are recomputed in the backward pass (checkpointing), so only one block's scores exist at
a time, and gradients reach whatever a Pairwise function captures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from headway.backends import rows as whole
from headway.backends.base import Call
from headway.backends.rows import by_key_head
from headway.backends.tiled import blocks
from headway.backends.tiled.blocks import hull
from headway.integers import readable
from headway.terms import ProductPerKey, ProductPerQuery


def any_positions(call: Call) -> Tensor:
    """Attention of a call with any positions, masks and terms."""
    call, q, k, v = prepared(call)
    out = [computed_again(_attend, call, rows, q[:, :, rows], k, v) for rows in row_blocks(call)]
    return torch.cat(out, 2).to(call.v.dtype)


def prepared(call: Call) -> tuple[Call, Tensor, Tensor, Tensor]:
    """The call with products of tokens and distances computed once, not again for each block; and q, k and v in the
    scores' dtype.
    """
    terms = tuple(term.given() if isinstance(term, ProductPerQuery | ProductPerKey) else term for term in call.terms)
    wide = torch.promote_types(call.q.dtype, torch.float32)
    return replace(call, terms=terms), call.q.to(wide), call.k.to(wide), call.v.to(wide)


def row_blocks(call: Call) -> list[slice]:
    """The queries of each block; at least one block."""
    size, queries = max(1, blocks.ROWS // call.groups), call.q.shape[2]
    return [slice(start, min(start + size, queries)) for start in range(0, queries, size)] or [slice(0, 0)]


def computed_again(function: Callable[..., Tensor], *given: object) -> Tensor:
    """A function of tensors, recomputed in the backward pass instead of saved.

    The checkpoint of torch 2.11 leaves its hooks active when the function it runs raises, and they then affect later
    computations for as long as the exception is referenced: so the error is raised after the checkpoint has ended.
    """
    if torch.compiler.is_compiling():
        return _checkpoint(function, *given)
    error: BaseException | None = None
    over = False

    def attend(*given: object) -> Tensor:
        nonlocal error
        try:
            return function(*given)
        except BaseException as raised:
            if over:
                raise
            error = raised
            return next(x for x in given if isinstance(x, Tensor))

    out = _checkpoint(attend, *given)
    over = True
    if error is not None:
        raise error
    return out


def _checkpoint(function: Callable[..., Tensor], *given: object) -> Tensor:
    out: Tensor = checkpoint(function, *given, use_reentrant=False)
    return out


def _attend(call: Call, rows: slice, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the queries ``rows``, which are q."""
    seen, cols = call.visible(rows), slice(0, k.shape[2])
    if seen is not None and readable(q):
        cols = hull(seen)
        seen = seen[..., cols]
    part = replace(call, q=q, k=k[:, :, cols], v=v[:, :, cols], q_pos=call.q_pos[:, rows], k_pos=call.k_pos[:, cols])
    weights = whole.weights(call, q, part.k, seen, rows, cols)
    weights = call.dropped(weights.to(q.dtype), rows, cols)
    out = (by_key_head(weights, call) @ part.v).reshape(*q.shape[:3], -1)
    for term in call.value_terms:
        out = out + term.add(weights, part.q_pos, part.k_pos)
    return out.to(q.dtype)
