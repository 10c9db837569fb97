"""A call with consecutive positions, as plain values and tensors, from which blocks are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headway.backends.base import Call
from headway.backends.diagonal_views import strip
from headway.masks import is_distance_only, reach
from headway.terms import ByDistance, PerKey, TablePerKey, TablePerQuery


@dataclass(frozen=True)
class Job:
    """The plain values of a call; its tensors are passed separately.

    Args:
        call: the call, for its mask.
        shift: position of the first key minus that of the first query.
        past: how far into the past a query sees.
        future: how far into the future.
        spotted: whether the mask hides more than ``past`` and ``future`` say, so it must be evaluated.
        varies: the range of distances in which the strip varies; outside, all distances have the entry of one end.
        rows: the entry of distance 0 in each table per query.
        columns: the entry of distance 0 in each table per key.
        values: the entry of distance 0 in each table of values.
    """

    call: Call
    shift: int
    past: int
    future: int
    spotted: bool
    varies: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    values: tuple[int, ...]


class Tables(NamedTuple):
    """The tensors of terms, in the scores' dtype.

    Args:
        strip: added by distance for all queries, and −inf where the mask hides a distance, (H, Q + K − 1); entry e is
            distance e − (Q − 1) + shift.
        keys: added per key, (B, H, K).
        rows: by distance for each query, (B, H, Q, W).
        columns: by distance for each key, (B, H, K, W).
        values: vectors by distance, (H, W, D_v).
    """

    strip: Tensor | None
    keys: Tensor | None
    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def flat(self) -> tuple[Tensor | None, ...]:
        """As a flat tuple, for autograd."""
        return (self.strip, self.keys, *self.rows, *self.columns, *self.values)

    @classmethod
    def of(cls, flat: Sequence[Any], job: Job) -> Tables:
        """The inverse of :meth:`flat`, for the tensors or their gradients."""
        first, second = 2 + len(job.rows), 2 + len(job.rows) + len(job.columns)
        return cls(flat[0], flat[1], tuple(flat[2:first]), tuple(flat[first:second]), tuple(flat[second:]))


def job_of(call: Call, shift: int) -> tuple[Job, Tables]:
    """The plain values and the tensors of a call; the tensors are computed by plain torch, so gradients reach terms.

    Args:
        call: the call.
        shift: position of the first key minus that of the first query; both are consecutive.

    Raises:
        HeadwayError: when a term was made for another batch size or number of heads.
    """
    (batch, heads, queries, _), keys = call.q.shape, call.k.shape[2]
    wide = torch.promote_types(call.q.dtype, torch.float32)
    call.check_terms()
    by_distance = [term for term in call.terms if isinstance(term, ByDistance)]
    per_key = [term.bias for term in call.terms if isinstance(term, PerKey)]
    rows = [term for term in call.terms if isinstance(term, TablePerQuery)]
    columns = [term for term in call.terms if isinstance(term, TablePerKey)]
    past, future = reach(call.mask)
    job = Job(
        # needed only for its mask: tensors of the right shape that keep no memory alive
        call=replace(call, terms=(), **{x: getattr(call, x).new_empty(()).expand_as(getattr(call, x)) for x in "qkv"}),
        shift=shift,
        past=past,
        future=future,
        spotted=not is_distance_only(call.mask),
        varies=_varies(by_distance, -past, future),
        rows=tuple(term.left for term in rows),
        columns=tuple(term.left for term in columns),
        values=tuple(term.left for term in call.value_terms),
    )
    line = strip(by_distance, shift - queries + 1, shift + keys, past, future, call.q)
    tables = Tables(
        None if line is None else line.expand(heads, -1),
        sum(per_key[1:], start=per_key[0]).to(wide).expand(batch, heads, -1) if per_key else None,
        tuple(term.tables().to(wide).expand(batch, heads, -1, -1) for term in rows),
        tuple(term.tables().to(wide).expand(batch, heads, -1, -1) for term in columns),
        tuple(term.table.to(wide).expand(heads, -1, -1) for term in call.value_terms),
    )
    return job, tables


def _varies(terms: Sequence[ByDistance], low: int, high: int) -> tuple[int, int]:
    """The range within the visible distances, low … high, in which the sum of the terms varies."""
    if any(term.tails is not None for term in terms):
        return low, high
    first = min((-term.left for term in terms), default=0)
    last = max((term.table.shape[1] - 1 - term.left for term in terms), default=0)
    return min(max(first, low), high), min(max(last, low), high)
