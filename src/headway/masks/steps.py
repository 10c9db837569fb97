"""Masks as steps that kernels evaluate pair by pair: comparisons of a number per query and per key, joined by & and |.

A comparison shows query i key j if low <= key number − query number <= high. Masks by distance compare positions,
Documents ids, Chunks and Strided positions divided by their size and what is left of that. Dense and Blocks look up a
table at (query number, key number) instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headway.integers import FAR, Positions
from headway.masks.base import And, Before, Causal, Dense, Mask, Or, Window
from headway.masks.patterns import Blocks, Chunks, Documents, KeyPadding, Prefix, Strided

COMPARE, LOOK_UP, AND, OR = range(4)


@dataclass(frozen=True, eq=False)
class Steps:
    """A mask in postfix order: each leaf's result, then what joins the two results before it.

    Args:
        steps: (kind, low, high) of each step, one after the other.
        q: each leaf's number of every query, (leaves, B or 1, Q).
        k: each leaf's number of every key, (leaves, B or 1, K).
        table: what LOOK_UP looks up, or None.

    >>> pos = torch.arange(3)[None]
    >>> steps([Causal() | Prefix(2)], pos, pos).steps
    [0, -1099511627776, 0, 0, 0, 0, 3, 0, 0]
    """

    steps: list[int]
    q: Int[Tensor, "leaves #batch queries"]
    k: Int[Tensor, "leaves #batch keys"]
    table: Bool[Tensor, "#batch #heads rows columns"] | None


Leaf = tuple[int, int, Tensor, Tensor]
_LEAVES = (Before, Blocks, Causal, Chunks, Dense, Documents, KeyPadding, Prefix, Strided, Window)


def stepless(masks: Sequence[Mask], by_head: bool) -> str | None:
    """Why masks cannot be steps, or None when they can.

    Args:
        masks: which pairs all of them show is asked.
        by_head: whether heads may see different keys.
    """
    leaves = list(chain.from_iterable(map(_leaves, masks)))
    for leaf in leaves:
        if not isinstance(leaf, _LEAVES):
            return f"the mask {type(leaf).__name__} is none of {', '.join(one.__name__ for one in _LEAVES)}"
    tables = [leaf.visible for leaf in leaves if isinstance(leaf, Dense | Blocks)]
    if len(tables) > 1:
        return "the mask contains more than one boolean tensor or Blocks"
    if tables and not by_head and tables[0].shape[-3] > 1:
        return "the mask differs between heads"
    return None


def _leaves(mask: Mask) -> list[Mask]:
    return [*_leaves(mask.first), *_leaves(mask.second)] if isinstance(mask, And | Or) else [mask]


def steps(masks: Sequence[Mask], q_pos: Positions, k_pos: Positions) -> Steps:
    """The conjunction of masks of which :func:`stepless` says nothing.

    Args:
        masks: one or more.
        q_pos: positions of all queries, (B or 1, Q).
        k_pos: positions of all keys, (B or 1, K).
    """
    found: list[int] = []
    leaves: list[tuple[Tensor, Tensor]] = []
    tables: list[Tensor] = []

    def add(mask: Mask) -> None:
        if isinstance(mask, And | Or):
            add(mask.first)
            add(mask.second)
            found.extend((AND if isinstance(mask, And) else OR, 0, 0))
            return
        if isinstance(mask, Dense | Blocks):
            tables.append(mask.visible if mask.visible.ndim == 4 else mask.visible[None])
            found.extend((LOOK_UP, 0, 0))
            leaves.append(_entries(mask, q_pos, k_pos))
            return
        low, high, of_q, of_k = _compared(mask, q_pos, k_pos)
        found.extend((COMPARE, low, high))
        leaves.append((of_q, of_k))

    for number, mask in enumerate(masks):
        add(mask)
        if number:
            found.extend((AND, 0, 0))
    q, k = (_stacked([leaf[side] for leaf in leaves]) for side in (0, 1))
    table = tables[0] if tables else None
    if table is not None and table.stride(-1) != 1:
        table = table.contiguous()
    return Steps(found, q, k, table)


def _compared(mask: Mask, q_pos: Tensor, k_pos: Tensor) -> Leaf:
    """Low, high, and what is compared of queries and keys."""
    match mask:
        case Causal():
            return -FAR, 0, q_pos, k_pos
        case Before():
            return -FAR, -1, q_pos, k_pos
        case Window(left, right):
            return -min(left, FAR), min(right, FAR), q_pos, k_pos
        case Documents():
            return 0, 0, *mask.of(q_pos, k_pos)
        case Chunks(size):
            return 0, 0, q_pos // size, k_pos // size
        case Strided(stride):
            return 0, 0, q_pos % stride, k_pos % stride
        case Prefix(length):
            given: Any = length
            most = given[:, None] if isinstance(given, Tensor) else min(given, FAR)
            return 0, 0, torch.zeros_like(q_pos), (k_pos >= most).long()
        case KeyPadding():
            return 0, 0, torch.zeros_like(q_pos), (~mask.of(k_pos)).long()
    raise AssertionError(f"{type(mask).__name__} has no steps")


def _entries(mask: Dense | Blocks, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
    """The row of the table for each query, and the column for each key."""
    if isinstance(mask, Blocks):
        return mask.of(q_pos, k_pos)
    mask.tile(q_pos, k_pos)  # checks its size
    return torch.arange(q_pos.shape[1], device=q_pos.device)[None], torch.arange(k_pos.shape[1], device=k_pos.device)[
        None
    ]


def _stacked(numbers: Sequence[Tensor]) -> Tensor:
    batch = max(len(one) for one in numbers)
    return torch.stack([one.long().expand(batch, -1) for one in numbers])
