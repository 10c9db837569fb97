"""Attention in plain torch operations, a block of queries at a time: every term, every mask, any device and dtype.

    S = scale · Q_b Kᵀ + terms        one block of queries against the keys it may see
    P = softmax(S),  out_b = P V
    dV += Pᵀ dO_b,  dP = dO_b Vᵀ,  dS = P ∘ (dP − Σ_j P dP),  dQ_b = scale · dS K,  dK += scale · dSᵀ Q_b

A block holds all keys it sees, so the softmax is torch's own and nothing but the inputs is kept for the backward pass,
which computes S and P again: memory is O(queries + keys). Scores are float32, or float64 for float64.

Where positions go up by one, terms by distance are strided views (see :mod:`headway.backends.skew`). Other positions,
and terms only known as a function, are evaluated tile by tile and differentiated by autograd, one block at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from headway.backends import reference
from headway.backends.base import Call
from headway.backends.skew import Band, diagonal_sums, reach, straight, strip
from headway.masks import And, Dense, Documents, Mask, Or, Prefix
from headway.terms import ByDistance, ByDistancePerKey, ByDistancePerQuery, Pairwise, PerKey

ROWS = 64
"""Queries in a block: enough for a matrix product, few enough for a tile to stay in the cache."""
FEWEST_ROWS = 16
ROOM = {"cpu": 2**19}
"""Scores held at once; on a CPU as many as its cache holds. One head's block of queries is held even if it is more."""
ROOM_ELSEWHERE = 2**25


def refuses(call: Call) -> str | None:
    """See :class:`headway.backends.base.Backend`."""
    if call.normalise != "softmax":
        return f"normalise={call.normalise!r} is not known, only 'softmax'"
    return None


def describe(call: Call) -> tuple[str, str]:
    """See :class:`headway.backends.base.Backend`."""
    return "exact", "O(queries + keys): a block of queries at a time"


def run(call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
    """See :class:`headway.backends.base.Backend`."""
    if 0 in (*call.q.shape[:3], call.k.shape[2]):
        return reference.run(call)
    with _full_precision(call.device):
        shift = None if torch.compiler.is_compiling() else _shift(call)
        if shift is None or any(isinstance(term, Pairwise) for term in call.terms):
            return _any_positions(call)
        return _unit_steps(call, shift)


def _full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    # autocast would round the scores to bfloat16
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def _shift(call: Call) -> int | None:
    """Position of the first key minus that of the first query, where both go up by one; None where that is unknown."""
    if call.aligned:
        return 0
    if call.q.device.type != "cpu":  # elsewhere a look at positions would wait for the device
        return None
    offset = call.k_pos[:, :1] - call.q_pos[:, :1]
    straight = all(bool((pos.diff() == 1).all() and (pos[:, 0] >= 0).all()) for pos in (call.q_pos, call.k_pos))
    return int(offset[0, 0]) if straight and bool((offset == offset[0, 0]).all()) else None


# --- any positions: each tile as the specification says, differentiated by autograd -------------------------------


def _any_positions(call: Call) -> Tensor:
    wide = torch.promote_types(call.q.dtype, torch.float32)
    q, k, v = (x.to(wide) for x in (call.q, call.k, call.v))
    rows = max(1, ROWS // call.groups)
    blocks = (slice(start, min(start + rows, q.shape[2])) for start in range(0, q.shape[2], rows))
    # what a block computes is thrown away and computed again in the backward pass, also what a Pairwise fn captures
    out = [checkpoint(_block, call, block, q[:, :, block], k, v, use_reentrant=False) for block in blocks]
    return torch.cat(out, 2).to(call.v.dtype)


def _block(call: Call, rows: slice, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the queries ``rows``, which are q."""
    seen, cols = call.visible(rows), slice(0, k.shape[2])
    if seen is not None and q.device.type == "cpu" and not torch.compiler.is_compiling():
        cols = _hull(seen)
        seen = seen[..., cols]
    part = replace(call, q=q, k=k[:, :, cols], v=v[:, :, cols], q_pos=call.q_pos[:, rows], k_pos=call.k_pos[:, cols])
    scores = (_by_key_head(q, call) * call.scale) @ part.k[:, :, None].transpose(-1, -2)  # (B, H_kv, G, q, K)
    scores = scores.flatten(1, 2)
    bias = call.bias(rows, cols)
    if bias is not None:
        scores = scores + bias
    if seen is None:
        weights = scores.softmax(-1)
    else:
        # a row that sees nothing attends to everything, so that no NaN is made, and is zeroed after
        alive = seen.any(-1, keepdim=True)
        weights = scores.masked_fill(~(seen | ~alive), -torch.inf).softmax(-1).masked_fill(~alive, 0.0)
    weights = weights.to(q.dtype)
    out = (_by_key_head(weights, call) @ part.v[:, :, None]).flatten(1, 2)
    for term in call.value_terms:
        out = out + term.add(weights, part.q_pos, part.k_pos)
    return out.to(q.dtype)


def _by_key_head(x: Tensor, call: Call) -> Tensor:
    """Query heads beside the key head they share, (B, H_kv, G, …)."""
    split: Tensor = x.unflatten(1, (call.k.shape[1], call.groups))
    return split


def _hull(seen: Bool[Tensor, "batch heads queries keys"]) -> slice:
    """The shortest range of keys that holds all that any query may see, and one key at least."""
    hits = seen.flatten(0, 2).any(0).nonzero()
    return slice(int(hits[0]), int(hits[-1]) + 1) if len(hits) else slice(0, 1)


# --- positions that go up by one: strided views and a backward pass of our own ------------------------------------


@dataclass(frozen=True)
class _Job:
    """The numbers of a call; its tensors are handed over beside them.

    Args:
        call: the call, for its mask.
        shift: position of the first key minus that of the first query.
        past: how far behind a query its keys may lie.
        future: how far before it.
        spotted: whether the mask hides more than ``past`` and ``future`` say, and must be looked at.
        varies: the distances between which the strip's entries differ; beyond them an end's entry serves all.
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


class _Tables(NamedTuple):
    """The tensors of terms, in the scores' dtype.

    Args:
        strip: what all queries add by distance, and −inf where the mask hides a distance, (H, Q + K − 1);
            entry e is distance e − (Q − 1) + shift.
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
        return (self.strip, self.keys, *self.rows, *self.columns, *self.values)

    @classmethod
    def of(cls, flat: Sequence[Any], job: _Job) -> _Tables:
        first, second = 2 + len(job.rows), 2 + len(job.rows) + len(job.columns)
        return cls(flat[0], flat[1], tuple(flat[2:first]), tuple(flat[first:second]), tuple(flat[second:]))


def _unit_steps(call: Call, shift: int) -> Tensor:
    (batch, heads, queries, _), keys = call.q.shape, call.k.shape[2]
    wide = torch.promote_types(call.q.dtype, torch.float32)
    _check_shapes(call)
    by_distance = [term for term in call.terms if isinstance(term, ByDistance)]
    per_key = [term.bias for term in call.terms if isinstance(term, PerKey)]
    rows = [term for term in call.terms if isinstance(term, ByDistancePerQuery)]
    columns = [term for term in call.terms if isinstance(term, ByDistancePerKey)]
    past, future = reach(call.mask)
    job = _Job(
        # only for its mask: tensors of the right shape that keep nothing alive
        call=replace(call, terms=(), **{x: getattr(call, x).new_empty(()).expand_as(getattr(call, x)) for x in "qkv"}),
        shift=shift,
        past=past,
        future=future,
        spotted=not straight(call.mask),
        varies=_varies(by_distance, -past, future),
        rows=tuple(term.left for term in rows),
        columns=tuple(term.left for term in columns),
        values=tuple(term.left for term in call.value_terms),
    )
    line = strip(by_distance, shift - queries + 1, shift + keys, past, future, call.q)
    tables = _Tables(
        None if line is None else line.expand(heads, -1),
        sum(per_key[1:], start=per_key[0]).to(wide).expand(batch, heads, -1) if per_key else None,
        tuple(term.table.to(wide).expand(batch, heads, -1, -1) for term in rows),
        tuple(term.table.to(wide).expand(batch, heads, -1, -1) for term in columns),
        tuple(term.table.to(wide).expand(heads, -1, -1) for term in call.value_terms),
    )
    out: Tensor = _Blocks.apply(job, call.q, call.k, call.v, *tables.flat())  # type: ignore[no-untyped-call]
    return out


def _check_shapes(call: Call) -> None:
    # a tile of the whole, without memory: the error names it as every backend's does
    for term in call.score_terms:
        lead = (1, term.table.shape[0]) if isinstance(term, ByDistance) else _lead(term)
        call._fitting(call.q.new_empty(()).expand(*lead, call.q.shape[2], call.k.shape[2]), type(term).__name__)


def _lead(term: Any) -> tuple[int, int]:
    tensor = term.bias if isinstance(term, PerKey) else term.table
    return tensor.shape[0], tensor.shape[1]


def _varies(terms: Sequence[ByDistance], low: int, high: int) -> tuple[int, int]:
    """Between which of the visible distances, low … high, the sum of the terms changes from one to the next."""
    if any(term.tails is not None for term in terms):
        return low, high
    first = min((-term.left for term in terms), default=0)
    last = max((term.table.shape[1] - 1 - term.left for term in terms), default=0)
    return min(max(first, low), high), min(max(last, low), high)


class _Block(NamedTuple):
    """Queries first … last − 1, against keys start … stop − 1."""

    first: int
    last: int
    start: int
    stop: int

    def band(self, job: _Job, left: int, width: int) -> Band:
        return Band(self.last - self.first, self.stop - self.start, width, self.first - job.shift - left - self.start)


class _Chunk:
    """Some sequences and key heads of a call, few enough for a tile of them to stay in the cache.

    Queries are numbered from the last to the first, see :mod:`headway.backends.skew`. Tiles are (b, h, G, q, k), for
    b sequences and h key heads with G query heads each; products take them as (b · h, G · q, k).
    """

    def __init__(
        self, job: _Job, q: Tensor, k: Tensor, v: Tensor, tables: _Tables, batch: slice, heads: slice, room: Tensor
    ) -> None:
        self.job, self.room, self.groups = job, room, q.shape[1] // k.shape[1]
        self.batch, self.heads = batch, slice(heads.start * self.groups, heads.stop * self.groups)
        wide = room.dtype
        self.lead = (batch.stop - batch.start, heads.stop - heads.start, self.groups)
        self.q = self.backwards(q).to(wide)
        self.k, self.v = (x[batch, heads].to(wide).flatten(0, 1) for x in (k, v))
        self.strip = None if tables.strip is None else tables.strip[self.heads].contiguous()
        self.keys = None if tables.keys is None else self.split(tables.keys[batch, self.heads], 1)
        self.rows, self.columns = (
            tuple(self.split(table[batch, self.heads].contiguous(), 1) for table in each)
            for each in (tables.rows, tables.columns)
        )
        self.values = tuple(self.split(table[self.heads], 0) for table in tables.values)
        self.call = job.call
        if job.spotted and q.shape[0] != self.lead[0]:
            mask = None if job.call.mask is None else _narrow(job.call.mask, batch)
            q_pos, k_pos = (pos if len(pos) == 1 else pos[batch] for pos in (job.call.q_pos, job.call.k_pos))
            self.call = replace(job.call, mask=mask, q_pos=q_pos, k_pos=k_pos)

    def split(self, x: Tensor, axis: int) -> Tensor:
        """Query heads as (h, G)."""
        split: Tensor = x.unflatten(axis, self.lead[1:])
        return split

    def backwards(self, x: Tensor) -> Tensor:
        """Of (B, H, Q, …) this chunk's part, from the last query to the first, (b, h, G, Q, …)."""
        return self.split(x[self.batch, self.heads].flip(2), 1)

    def rows_of(self, x: Tensor, block: _Block) -> Tensor:
        """The queries of a block, of a tensor that runs backwards, (b · h, G · q, D)."""
        queries = x.shape[3]
        return x[..., queries - block.last : queries - block.first, :].reshape(
            self.lead[0] * self.lead[1], -1, x.shape[-1]
        )

    def tile(self, number: int, block: _Block) -> Tensor:
        """Room for a tile, (b · h, G · q, k)."""
        b, h, groups = self.lead
        shape = (b * h, groups * (block.last - block.first), block.stop - block.start)
        return self.room[number, : shape[0] * shape[1] * shape[2]].view(shape)

    def apart(self, tile: Tensor) -> Tensor:
        """A tile or rows as (b, h, G, q, …)."""
        return tile.view(*self.lead, -1, tile.shape[-1])

    def visible(self, block: _Block) -> tuple[_Block, Tensor | None]:
        """What the mask shows of a block, (b or 1, h or 1, G or 1, q, k), and the block without keys that none sees."""
        if not self.job.spotted:
            return block, None
        seen = self.call.visible(slice(block.first, block.last), slice(block.start, block.stop))
        assert seen is not None
        if seen.shape[1] > 1:
            seen = seen[:, self.heads]
        if seen.device.type == "cpu":
            hull = _hull(seen)
            block = block._replace(start=block.start + hull.start, stop=block.start + hull.stop)
            seen = seen[..., hull]
        seen = seen.flip(2)
        return block, self.split(seen, 1) if seen.shape[1] > 1 else seen[:, :, None]

    def weights(self, block: _Block, seen: Tensor | None) -> Tensor:
        """The attention weights of a block in room 1, (b · h, G · q, k); room 0 is free after."""
        scores, weights, keys = self.tile(0, block), self.tile(1, block), slice(block.start, block.stop)
        tile = self.apart(scores)
        first = [] if self.strip is None else [self.diagonals(block)]
        first += [] if self.keys is None else [self.keys[..., None, keys]]
        if len(first) == 2:
            torch.add(*first, out=tile)
        elif first:
            tile.copy_(first[0])
        scores.baddbmm_(
            self.rows_of(self.q, block), self.k[:, keys].mT, beta=1 if first else 0, alpha=self.job.call.scale
        )
        for left, table in zip(self.job.rows, self.rows, strict=True):
            block.band(self.job, left, table.shape[-1]).add_rows(tile, self.queries_of(table, block))
        for left, table in zip(self.job.columns, self.columns, strict=True):
            block.band(self.job, left, table.shape[-1]).add_columns(tile, table[..., keys, :])
        if seen is None:
            return torch.softmax(scores, -1, out=weights)
        # a row that sees nothing attends to everything, so that no NaN is made, and is zeroed after
        alive = seen.any(-1, keepdim=True)
        tile.masked_fill_(~(seen | ~alive), -torch.inf)
        torch.softmax(scores, -1, out=weights)
        self.apart(weights).masked_fill_(~alive, 0.0)
        return weights

    def diagonals(self, block: _Block) -> Tensor:
        """The strip as a tile, (h, G, q, k): entry u + j of it, a view whose rows overlap."""
        assert self.strip is not None
        _, h, groups = self.lead
        length, queries = self.strip.shape[1], self.q.shape[3]
        size = (h, groups, block.last - block.first, block.stop - block.start)
        first = self.strip.storage_offset() + queries - block.last + block.start
        return self.strip.as_strided(size, (groups * length, length, 1, 1), first)

    def queries_of(self, table: Tensor, block: _Block) -> Tensor:
        """The tables of a block's queries, from the last to the first."""
        return table[..., block.first : block.last, :].flip(-2)


def _narrow(mask: Mask, batch: slice) -> Mask:
    """A mask for some sequences of a batch."""

    def of(x: Tensor) -> Tensor:
        return x if x.shape[0] == 1 else x[batch]

    match mask:
        case And(first, second) | Or(first, second):
            return type(mask)(_narrow(first, batch), _narrow(second, batch))
        case Documents(ids, key_ids):
            return Documents(of(ids), None if key_ids is None else of(key_ids))
        case Dense(visible):
            return Dense(of(visible))
        case Prefix(Tensor() as length):
            return Prefix(of(length))
        case _:
            return mask


class _Work(NamedTuple):
    """How a call is cut: chunks of sequences and key heads, blocks of queries, and room for the tiles of one."""

    chunks: list[tuple[slice, slice]]
    blocks: list[_Block]
    room: Tensor

    @classmethod
    def of(cls, job: _Job, q: Tensor, k: Tensor, tiles: int) -> _Work:
        (batch, heads, queries, _), (_, kv_heads, keys, _) = q.shape, k.shape
        groups, room = heads // kv_heads, ROOM.get(q.device.type, ROOM_ELSEWHERE)
        reach = min(keys, ROWS + job.past + job.future)
        rows = min(max(FEWEST_ROWS, min(ROWS, room // reach)) // groups or 1, queries)
        blocks = list(_blocks(job, queries, keys, rows))
        size = max((groups * rows * (block.stop - block.start) for block in blocks), default=1)
        fit = max(1, room // size)  # key heads at once: some of one sequence, or all of several
        batches, together = max(1, fit // kv_heads), min(fit, kv_heads)
        chunks = [
            (slice(b, min(b + batches, batch)), slice(h, min(h + together, kv_heads)))
            for b in range(0, batch, batches)
            for h in range(0, kv_heads, together)
        ]
        wide = torch.promote_types(q.dtype, torch.float32)
        return cls(chunks, blocks, q.new_empty(tiles, min(batches, batch) * together * size, dtype=wide))


def _blocks(job: _Job, queries: int, keys: int, rows: int) -> Iterator[_Block]:
    """Blocks of the queries that see a key, each with the keys in its reach."""
    alive = range(max(0, job.shift - job.future), min(queries, keys + job.shift + job.past))
    for first in alive[::rows]:
        last = min(first + rows, alive.stop)
        start, stop = first - job.past - job.shift, last + job.future - job.shift
        yield _Block(first, last, max(start, 0), min(stop, keys))


class _Blocks(torch.autograd.Function):
    """Attention block by block. Its backward pass starts from the inputs."""

    @staticmethod
    def forward(ctx: Any, job: _Job, q: Tensor, k: Tensor, v: Tensor, *flat: Tensor | None) -> Tensor:
        """Compute attention."""
        ctx.job = job
        ctx.save_for_backward(q, k, v, *flat)
        out = q.new_zeros(*q.shape[:3], v.shape[3])
        tables, work = _Tables.of(flat, job), _Work.of(job, q, k, tiles=2)
        for part in work.chunks:
            chunk = _Chunk(job, q, k, v, tables, *part, work.room)
            into = chunk.split(out[chunk.batch, chunk.heads], 1)
            for block in work.blocks:
                block, seen = chunk.visible(block)
                weights = chunk.weights(block, seen)
                rows = chunk.apart(weights @ chunk.v[:, block.start : block.stop])
                for left, table in zip(job.values, chunk.values, strict=True):
                    band = block.band(job, left, table.shape[-2])
                    rows += band.collect_rows(chunk.apart(weights)) @ table
                into[..., block.first : block.last, :] = rows.flip(-2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients that are asked for."""
        job: _Job = ctx.job
        q, k, v, *flat = ctx.saved_tensors
        with _full_precision(job.call.device):
            return None, *_gradients(job, grad, q, k, v, flat, ctx.needs_input_grad[1:])


def _gradients(
    job: _Job, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, flat: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    tables, work = _Tables.of(flat, job), _Work.of(job, q, k, tiles=3)
    inputs = (q, k, v, *flat)
    found = [x.new_zeros(x.shape) if x is not None and want else None for x, want in zip(inputs, wanted, strict=True)]
    dq, dk, dv, *rest = found
    sums = _Tables.of(rest, job)
    scale = job.call.scale
    for batch, heads in work.chunks:
        chunk = _Chunk(job, q, k, v, tables, batch, heads, work.room)
        incoming = chunk.backwards(grad).to(chunk.q.dtype)
        dk_sum, dv_sum = torch.zeros_like(chunk.k), torch.zeros_like(chunk.v)
        for block in work.blocks:
            block, seen = chunk.visible(block)
            keys = slice(block.start, block.stop)
            weights = chunk.weights(block, seen)
            rows, out = chunk.rows_of(chunk.q, block), chunk.rows_of(incoming, block)
            if dv is not None:
                dv_sum[:, keys].baddbmm_(weights.mT, out)
            upon = torch.bmm(out, chunk.v[:, keys].mT, out=chunk.tile(2, block))
            for number, (left, table) in enumerate(zip(job.values, chunk.values, strict=True)):
                band = block.band(job, left, table.shape[-2])
                band.add_rows(chunk.apart(upon), chunk.apart(out) @ table.mT)
                total = sums.values[number]
                if total is not None:
                    share = band.collect_rows(chunk.apart(weights))
                    chunk.split(total[chunk.heads], 0).add_((share.mT @ chunk.apart(out)).sum(0))
            scores = chunk.tile(0, block)
            torch._softmax_backward_data(upon, weights, -1, weights.dtype, grad_input=scores)
            if dq is not None:
                product = chunk.apart(torch.bmm(scores, chunk.k[:, keys]).mul_(scale))
                chunk.split(dq[chunk.batch, chunk.heads], 1)[..., block.first : block.last, :] = product.flip(-2)
            if dk is not None:
                dk_sum[:, keys].baddbmm_(scores.mT, rows, alpha=scale)
            _collect(job, chunk, block, chunk.apart(scores), sums)
        for gradient, part in ((dk, dk_sum), (dv, dv_sum)):
            if gradient is not None:
                gradient[batch, heads] = part.view(*chunk.lead[:2], *part.shape[1:])
    return found


def _collect(job: _Job, chunk: _Chunk, block: _Block, scores: Tensor, sums: _Tables) -> None:
    """Add the gradient of a block's scores to those of the terms."""
    keys = slice(block.start, block.stop)
    if sums.strip is not None:
        _collect_strip(job, chunk, block, scores, chunk.split(sums.strip[chunk.heads], 0))
    if sums.keys is not None:
        chunk.split(sums.keys[chunk.batch, chunk.heads], 1)[..., keys].add_(scores.sum(-2))
    for left, table in zip(job.rows, sums.rows, strict=True):
        if table is not None:
            part = block.band(job, left, table.shape[-1]).collect_rows(scores).flip(-2)
            chunk.split(table[chunk.batch, chunk.heads], 1)[..., block.first : block.last, :] = part
    for left, table in zip(job.columns, sums.columns, strict=True):
        if table is not None:
            into = chunk.split(table[chunk.batch, chunk.heads], 1)[..., keys, :]
            block.band(job, left, table.shape[-1]).collect_columns(scores, into)


def _collect_strip(job: _Job, chunk: _Chunk, block: _Block, scores: Tensor, into: Tensor) -> None:
    """Sum the gradient of scores by distance; what lies beyond the varying distances counts for their ends."""
    queries, length = chunk.q.shape[3], into.shape[-1]
    ends = (min(max(distance + queries - 1 - job.shift, 0), length - 1) for distance in job.varies)
    low, high = ends
    top, width = queries - block.last, block.stop - block.start  # entry of (first row, key j) is top + j
    left = min(max(low - (queries - 1 - block.first) - block.start, 0), width)
    right = max(min(high + 1 - top - block.start, width), left)
    if left > 0:
        into[..., low] += scores[..., :left].sum((0, -2, -1))
    if right < width:
        into[..., high] += scores[..., right:].sum((0, -2, -1))
    if left < right:
        entry = top + block.start + left
        part = diagonal_sums(scores[..., left:right]).sum(0)
        into[..., entry : entry + part.shape[-1]] += part
