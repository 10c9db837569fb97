"""The floor of a tax: what a method's own matrix products would cost at plain attention's speed.

    floor = (products of the method ÷ products of plain attention) · tax of ``none`` by the same backend

Products are the multiply-adds of matrix products. Inside attention they are counted from the terms, as the formula
demands them: over the pairs that the mask leaves, and for tables only over the distances that occur.

    q·k and α·v           pairs · (D + D_v)                 D as wide as the method makes queries and keys
    table per token       entries · D                       entries that a query's keys (or a key's queries) reach
    values by distance    entries · D_v
    gates left·right      pairs · D
    path products         2 · pairs · D                     w·u, and the update of u by it
    mixed heads           pairs of one head · 3 F H · kernel

What a method computes before attention (rotations, gates, networks, projected vectors) is counted by torch while it
runs, less the vectors of distances that do not occur. A product has two gradients of its own size, so that backward
takes twice as many; scores that a kernel computes again are not counted, on either side. A tax below the floor is
possible: weights that vanish need no products.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from headway.bench.cases import Built, Case, CoreCall
from headway.terms import (
    AnyTerm,
    LowRankBias,
    MixHeads,
    PathProduct,
    ProductPerKey,
    ProductPerQuery,
    Scan,
    ValuesByDistance,
)

Product = ProductPerQuery | ProductPerKey | ValuesByDistance
"""Terms of products with a vector per distance."""


def products(built: Built) -> int:
    """Multiply-adds that a method demands on a case, those before attention included.

    >>> from headway.bench.cases import Case, build
    >>> case = Case(4, "forward", heads=1, kv_heads=1, head_dim=8)  # 10 pairs of a query and a key that it sees
    >>> products(build("none", case)), products(build("shaw(clip=1)", case)) - products(build("none", case))
    (160, 112)
    """
    seen: list[CoreCall] = []

    def look(call: CoreCall) -> Tensor:
        seen.append(call)
        return call.empty()

    step = built.runs(look)
    seen.clear()  # in decoding the cached tokens ran
    counter, leaves = _Counter(), list(built.leaves.values())
    with counter, torch.set_grad_enabled(built.case.backward):
        step()
        (call,) = seen
        _backward([call.q, call.k, *_tensors(call.terms)], leaves)
    return inside(call, built.case) * (3 if built.case.backward else 1) + counter.flops // 2


def inside(call: CoreCall, case: Case) -> int:
    """Multiply-adds of attention itself, forward."""
    pairs, dim, dim_v = visible_pairs(case), call.q.shape[-1], call.v.shape[-1]
    return pairs * (dim + dim_v) + sum(_of_term(term, case, pairs, dim_v) for term in call.terms)


def visible_pairs(case: Case) -> int:
    """Pairs of a query and a key that it sees, in all heads."""
    q_pos, _ = case.positions()
    each = int((q_pos + 1).sum()) if case.mask == "causal" else case.queries * case.length
    return case.batch * case.heads * each


def _of_term(term: AnyTerm, case: Case, pairs: int, dim_v: int) -> int:
    match term:
        case ProductPerQuery() | ProductPerKey():
            return term.x.shape[0] * term.x.shape[1] * term.x.shape[3] * entries(term, case)
        case ValuesByDistance():
            return case.batch * case.heads * dim_v * entries(term, case)
        case LowRankBias():
            return pairs * term.q.shape[-1]
        case Scan(left=Tensor() as left):
            return pairs * int(left.shape[-1])
        case PathProduct():
            return 2 * pairs * term.q.shape[-1]
        case MixHeads():
            return pairs // case.heads * (term.first.numel() + term.second.numel())
    return 0  # numbers that are added, and Boost, whose products take the place of q·k


def entries(term: Product, case: Case) -> int:
    """Entries of a table by distance that occur, summed over the tokens it is for, in one head.

    >>> entries(ValuesByDistance(torch.zeros(1, 3, 8), 1), Case(4))  # a query reaches itself and all before it
    7
    """
    first, last = _reached(term, case)
    return int((last - first + 1).sum())


def _reached(term: Product, case: Case) -> tuple[Tensor, Tensor]:
    """The first and the last entry that each token reaches, numbered without the distances that share one."""
    q_pos, k_pos = (pos[0] for pos in case.positions())
    causal = case.mask == "causal"
    if isinstance(term, ProductPerKey):
        low = k_pos - q_pos[-1]
        high = k_pos - (k_pos.clamp(min=q_pos[0]) if causal else q_pos[0])
    else:
        low = k_pos[0] - q_pos
        high = torch.zeros_like(q_pos) if causal else k_pos[-1] - q_pos
    index = None if isinstance(term, ValuesByDistance) else term.index
    vectors = term.table if isinstance(term, ValuesByDistance) else term.vectors
    index = torch.arange(vectors.shape[1], device=low.device) if index is None else index
    number = torch.cat((index.new_zeros(1), (index.diff() != 0).cumsum(0)))
    first, last = (number[(x + term.left).clamp(0, len(index) - 1)] for x in (low, high))
    return first, last


class _Counter(TorchDispatchMode):
    """Adds up the operations of matrix products by torch's own formulas.

    FlopCounterMode would, but its hooks on modules fail where gradients of tensors inside one are asked for.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _backward(made: list[Tensor], leaves: list[Tensor]) -> None:
    """Run backward from what the method hands to attention."""
    made = [x for x in made if x.grad_fn is not None]
    if made:
        torch.autograd.grad(made, leaves, [torch.zeros_like(x) for x in made], retain_graph=True, allow_unused=True)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of terms."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
