"""PyTorch's FlexAttention, for what the other fused backends do not support: Prefix, ``|``, Dense, tables per key.

Terms become its ``score_mod`` and masks its ``mask_mod``, functions of one pair that torch.compile turns into a kernel
(https://pytorch.org/docs/stable/nn.attention.flex_attention.html). A table by distance is first expanded to all
distances, so that the kernel needs one look-up, and learned buckets receive their gradient once per distance instead of
once per pair. Gradients of terms still use atomic additions in no fixed order: two runs may differ in the last bits.

Which blocks a mask hides is kept for the next calls with the same mask: the layers of a model, or every step where the
mask compares positions that nobody gave.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from headway.backends.base import Call
from headway.masks import And, Causal, Dense, Documents, Mask, Or, Prefix, Window
from headway.shapes import contents
from headway.terms import ByDistance, PerKey, TablePerKey, TablePerQuery, Term

Index = Tensor
ScoreMod = Callable[[Tensor, Index, Index, Index, Index], Tensor]
MaskMod = Callable[[Index, Index, Index, Index], Tensor]
PairBias = Callable[[Index, Index, Index, Index], Tensor]
NARROWEST = 16
"""The narrowest head of its kernels."""
TERMS = PerKey | ByDistance | TablePerQuery | TablePerKey
MASKS = Causal | Window | Prefix | Documents | Dense | And | Or


def refuses(call: Call) -> str | None:
    """See :class:`headway.backends.base.Backend`."""
    if call.device != "cuda":
        return (
            f"FlexAttention has no backward pass on {call.device!r}, and forward only if compiled: it is used on CUDA"
        )
    if call.whole_rows is not None:
        return f"FlexAttention does not support {call.whole_rows}"
    if call.dropout:
        return "FlexAttention has no dropout"
    if call.q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"FlexAttention's kernels support float16, bfloat16 and float32, not {call.q.dtype}"
    narrow = min(call.q.shape[3], call.v.shape[3])
    if narrow < NARROWEST:
        return f"heads are {narrow} wide, and FlexAttention's kernels need at least {NARROWEST}"
    if 0 in (*call.q.shape, call.k.shape[2]):
        return "FlexAttention needs at least one query and one key"
    for term in call.terms:
        if not isinstance(term, TERMS):
            return f"the term {type(term).__name__} is not a function of one pair that torch.compile can trace"
    if call.row is not None:
        return "it does not support distances in an image"
    for part in _leaves(call.mask):
        if not isinstance(part, MASKS):
            return f"the mask {type(part).__name__} is not a function of one pair that torch.compile can trace"
    return None


def describe(call: Call) -> tuple[str, str]:
    """See :class:`headway.backends.base.Backend`."""
    tensors = [x for term in call.score_terms for x in contents(term).values() if isinstance(x, Tensor)]
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "exact, not deterministic: gradients of terms by atomic addition", "O(queries + keys): FlexAttention"
    return "exact", "O(queries + keys): FlexAttention"


def run(call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
    """See :class:`headway.backends.base.Backend`."""
    attention, block_mask = _compiled()
    if torch.compiler.is_compiling():
        attention, block_mask = flex_attention, create_block_mask
    _announce(call)
    blocks = _blocks(call, block_mask)
    # what terms look up would be staged in shared memory ahead of use, and there is not enough of it
    options = {"num_stages": 1} if call.score_terms else None
    out: Tensor = attention(
        call.q,
        call.k,
        call.v,
        score_mod=score_mod(call),
        block_mask=blocks,
        scale=call.scale,
        enable_gqa=call.groups > 1,
        kernel_options=options,
    )
    return out


KEPT = 4
"""Masks whose blocks are kept."""
_kept: dict[Any, tuple[Any, Any]] = {}


def _blocks(call: Call, block_mask: Callable[..., Any]) -> Any:
    """Which blocks of queries and keys the mask shows, in part or wholly; None when all see all."""
    seen, (batch, heads, queries, _) = mask_mod(call), call.q.shape
    if seen is None:
        return None
    sizes = (batch, heads, queries, call.k.shape[2])
    positions = () if call.default_positions else (call.q_pos, call.k_pos)
    key = None if torch.compiler.is_compiling() else _identity((call.mask, positions, sizes, call.q.device))
    if key is None:
        return block_mask(seen, *sizes, device=str(call.q.device))
    found = _kept.pop(key, None)
    if found is None:
        # tensors that the key knows by their address are held, so that no other can take it over
        found = block_mask(seen, *sizes, device=str(call.q.device)), (call.mask, positions)
    _kept[key] = found
    for oldest in list(_kept)[:-KEPT]:
        _kept.pop(oldest, None)
    return found[0]


def _identity(x: Any) -> Any:
    """Equal for what is equal: tensors by address and version, masks by what they hold; None if it cannot be told."""
    if isinstance(x, Tensor):
        return None if x.is_inference() else (x.data_ptr(), x._version, x.dtype, x.shape, x.stride())
    if isinstance(x, Mask):
        x = (type(x), *vars(x).values())
    if isinstance(x, tuple):
        parts = tuple(_identity(each) for each in x)
        return None if any(part is None for part, each in zip(parts, x, strict=True) if each is not None) else parts
    return x


_announced: set[str] = set()


def _announce(call: Call) -> None:
    """Say once for each combination of mask and terms that it is compiled: that takes a while."""
    if torch.compiler.is_compiling():
        return
    kinds = [type(part).__name__ for part in (*_leaves(call.mask), *call.score_terms)]
    what = f"{', '.join(kinds) or 'neither mask nor terms'}, {str(call.q.dtype).removeprefix('torch.')}"
    if what not in _announced:
        _announced.add(what)
        logging.getLogger("headway").warning("flex compiles its kernels for %s, once per process", what)


@cache
def _compiled() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """FlexAttention and ``create_block_mask``, compiled: uncompiled, both materialise all pairs."""
    return torch.compile(flex_attention), torch.compile(create_block_mask)


def _leaves(mask: Mask | None) -> list[Mask]:
    """The masks that ``&`` and ``|`` combine."""
    if mask is None:
        return []
    return [*_leaves(mask.first), *_leaves(mask.second)] if isinstance(mask, And | Or) else [mask]


def _distance(call: Call) -> PairBias:
    """Key position minus query position of a pair, from indices where positions are known to be indices."""
    if call.default_positions:
        return lambda b, h, i, j: j - i
    q_pos, k_pos = (pos.expand(call.q.shape[0], -1) for pos in (call.q_pos, call.k_pos))
    return lambda b, h, i, j: k_pos[b, j] - q_pos[b, i]


def score_mod(call: Call) -> ScoreMod | None:
    """(score, b, h, i, j) → the score with every term added; None when there are none."""
    parts = [_bias(call, term) for term in call.score_terms]
    if not parts:
        return None

    def modified(score: Tensor, b: Index, h: Index, i: Index, j: Index) -> Tensor:
        for part in parts:
            score = score + part(b, h, i, j)
        return score

    return modified


def _bias(call: Call, term: Term) -> PairBias:
    """One term, as a function of a pair."""
    batch, heads, queries, _ = call.q.shape
    wide = torch.promote_types(call.q.dtype, torch.float32)
    away = _distance(call)
    if isinstance(term, PerKey):
        bias = term.bias.to(wide).expand(batch, heads, -1)
        return lambda b, h, i, j: bias[b, h, j]
    if isinstance(term, ByDistance) and call.default_positions:
        every = torch.arange(1 - queries, call.k.shape[2], device=call.q.device)
        vector = term.tile(torch.zeros_like(every[:1])[None], every[None])[0, :, 0].to(wide).expand(heads, -1)
        return lambda b, h, i, j: vector[h, j - i + (queries - 1)]
    if isinstance(term, ByDistance):
        return _by_distance(term, away, heads, wide)
    assert isinstance(term, TablePerQuery | TablePerKey)  # `refuses` accepts no other kind
    table, left = term.tables().to(wide).expand(batch, heads, -1, -1), term.left
    last = table.shape[-1] - 1
    if isinstance(term, TablePerQuery):
        return lambda b, h, i, j: table[b, h, i, (away(b, h, i, j) + left).clamp(0, last)]
    return lambda b, h, i, j: table[b, h, j, (away(b, h, i, j) + left).clamp(0, last)]


def _by_distance(term: ByDistance, away: PairBias, heads: int, wide: torch.dtype) -> PairBias:
    """A table by distance at arbitrary positions, which may lie any distance apart."""
    table, left, last = term.table.to(wide).expand(heads, -1), term.left, term.table.shape[1] - 1
    if term.tails is None:
        return lambda b, h, i, j: table[h, (away(b, h, i, j) + left).clamp(0, last)]
    # a tensor for each look-up: FlexAttention gives no gradient to a tensor that is indexed twice
    past, future = term.tails.to(wide).expand(heads, -1).unbind(1)

    def bias(b: Index, h: Index, i: Index, j: Index) -> Tensor:
        entry = away(b, h, i, j) + left
        served = entry.clamp(0, last)
        before, after = (served - entry).clamp(min=0), (entry - served).clamp(min=0)
        return table[h, served] + past[h] * before + future[h] * after

    return bias


def mask_mod(call: Call) -> MaskMod | None:
    """(b, h, i, j) → whether the query may see the key, padding excluded; None when all see all."""
    seen = None if call.mask is None else _seen(call, call.mask)
    if call.default_positions:
        return seen
    q_real, k_real = (pos.expand(call.q.shape[0], -1) >= 0 for pos in (call.q_pos, call.k_pos))

    if seen is None:
        return lambda b, h, i, j: q_real[b, i] & k_real[b, j]
    return lambda b, h, i, j: q_real[b, i] & k_real[b, j] & seen(b, h, i, j)


def _seen(call: Call, mask: Mask) -> MaskMod:
    """One mask, as a function of a pair."""
    batch, heads = call.q.shape[:2]
    away = _distance(call)
    match mask:
        case And(first, second):
            one, other = _seen(call, first), _seen(call, second)
            return lambda b, h, i, j: one(b, h, i, j) & other(b, h, i, j)
        case Or(first, second):
            one, other = _seen(call, first), _seen(call, second)
            return lambda b, h, i, j: one(b, h, i, j) | other(b, h, i, j)
        case Causal():
            return lambda b, h, i, j: away(b, h, i, j) <= 0
        case Window(left, right):
            return lambda b, h, i, j: (away(b, h, i, j) >= -left) & (away(b, h, i, j) <= right)
        case Prefix(length):
            k_pos = call.k_pos.expand(batch, -1)
            lengths = torch.as_tensor(length, device=k_pos.device).expand(batch)
            return lambda b, h, i, j: k_pos[b, j] < lengths[b]
        case Documents():
            q_docs, k_docs = (ids.expand(batch, -1) for ids in mask.of(call.q_pos, call.k_pos))
            return lambda b, h, i, j: q_docs[b, i] == k_docs[b, j]
        case _:
            # a Dense mask, whose tile checks its shape: `refuses` accepts no other kind
            visible = mask.tile(call.q_pos, call.k_pos).expand(batch, heads, -1, -1)
            return lambda b, h, i, j: visible[b, h, i, j]
