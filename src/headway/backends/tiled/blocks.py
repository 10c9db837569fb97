"""Split a call into blocks of queries and chunks of heads, and compute the attention weights of a chunk's block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from headway.backends.diagonal_views import Band
from headway.backends.tiled.job import Job, Tables
from headway.masks import And, Dense, Documents, Mask, Or, Prefix

ROWS = 64
"""Queries in a block: enough for a matrix product, few enough for a tile to stay in the cache."""
FEWEST_ROWS = 16
ROOM = {"cpu": 2**19}
"""Scores per tile; on a CPU as many as fit its cache. One head's block of queries is one tile even if it is larger."""
ROOM_ELSEWHERE = 2**25


def hull(seen: Bool[Tensor, "batch heads queries keys"]) -> slice:
    """The shortest range of keys that contains all that any query may see, and at least one key."""
    hits = seen.flatten(0, 2).any(0).nonzero()
    return slice(int(hits[0]), int(hits[-1]) + 1) if len(hits) else slice(0, 1)


class Block(NamedTuple):
    """Queries first … last − 1, against keys start … stop − 1."""

    first: int
    last: int
    start: int
    stop: int

    def band(self, job: Job, left: int, width: int) -> Band:
        """The columns in which a table by distance varies in this block."""
        return Band(self.last - self.first, self.stop - self.start, width, self.first - job.shift - left - self.start)


class Chunk:
    """Some sequences and key heads of a call, few enough for their tile to stay in the cache.

    Queries are numbered from the last to the first, see :mod:`headway.backends.diagonal_views`. Tiles are
    (b, h, G, q, k), for b sequences and h key heads with G query heads each; products take them as (b · h, G · q, k).
    """

    def __init__(
        self, job: Job, q: Tensor, k: Tensor, v: Tensor, tables: Tables, batch: slice, heads: slice, room: Tensor
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
        """This chunk's part of (B, H, Q, …), from the last query to the first, (b, h, G, Q, …)."""
        return self.split(x[self.batch, self.heads].flip(2), 1)

    def rows_of(self, x: Tensor, block: Block) -> Tensor:
        """A block's queries from a tensor in reversed order, (b · h, G · q, D)."""
        queries = x.shape[3]
        return x[..., queries - block.last : queries - block.first, :].reshape(
            self.lead[0] * self.lead[1], -1, x.shape[-1]
        )

    def tile(self, number: int, block: Block) -> Tensor:
        """Memory for a tile, (b · h, G · q, k)."""
        b, h, groups = self.lead
        shape = (b * h, groups * (block.last - block.first), block.stop - block.start)
        return self.room[number, : shape[0] * shape[1] * shape[2]].view(shape)

    def apart(self, tile: Tensor) -> Tensor:
        """A tile, or rows, reshaped to (b, h, G, q, …)."""
        return tile.view(*self.lead, -1, tile.shape[-1])

    def visible(self, block: Block) -> tuple[Block, Tensor | None]:
        """The visible pairs of a block, (b or 1, h or 1, G or 1, q, k), and the block without keys that none sees."""
        if not self.job.spotted:
            return block, None
        seen = self.call.visible(slice(block.first, block.last), slice(block.start, block.stop))
        assert seen is not None
        if seen.shape[1] > 1:
            seen = seen[:, self.heads]
        if seen.device.type == "cpu":
            cols = hull(seen)
            block = block._replace(start=block.start + cols.start, stop=block.start + cols.stop)
            seen = seen[..., cols]
        seen = seen.flip(2)
        return block, self.split(seen, 1) if seen.shape[1] > 1 else seen[:, :, None]

    def weights(self, block: Block, seen: Tensor | None) -> Tensor:
        """The attention weights of a block, (b · h, G · q, k), in tile 1; tile 0 is free afterwards."""
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
        # a fully masked row attends to everything, so that no NaN arises, and is zeroed afterwards
        alive = seen.any(-1, keepdim=True)
        tile.masked_fill_(~(seen | ~alive), -torch.inf)
        torch.softmax(scores, -1, out=weights)
        self.apart(weights).masked_fill_(~alive, 0.0)
        return weights

    def diagonals(self, block: Block) -> Tensor:
        """The strip as a tile, (h, G, q, k): entry u + j of it, a view whose rows overlap."""
        assert self.strip is not None
        _, h, groups = self.lead
        length, queries = self.strip.shape[1], self.q.shape[3]
        size = (h, groups, block.last - block.first, block.stop - block.start)
        first = self.strip.storage_offset() + queries - block.last + block.start
        return self.strip.as_strided(size, (groups * length, length, 1, 1), first)

    def queries_of(self, table: Tensor, block: Block) -> Tensor:
        """The tables of a block's queries, from the last to the first."""
        return table[..., block.first : block.last, :].flip(-2)


def _narrow(mask: Mask, batch: slice) -> Mask:
    """A mask for some sequences of a batch."""

    def of(x: Tensor) -> Tensor:
        return x if x.shape[0] == 1 else x[batch]

    match mask:
        case And(first, second) | Or(first, second):
            return type(mask)(_narrow(first, batch), _narrow(second, batch))
        case Documents(Tensor() as ids, Tensor() | None as key_ids):
            return Documents(of(ids), None if key_ids is None else of(key_ids))
        case Dense(visible):
            return Dense(of(visible))
        case Prefix(Tensor() as length):
            return Prefix(of(length))
        case _:
            return mask


class Work(NamedTuple):
    """How a call is split: chunks of sequences and key heads, blocks of queries, and memory for one chunk's tiles."""

    chunks: list[tuple[slice, slice]]
    blocks: list[Block]
    room: Tensor

    @classmethod
    def of(cls, job: Job, q: Tensor, k: Tensor, tiles: int) -> Work:
        """Split a call, with memory for this many tiles at once."""
        (batch, heads, queries, _), (_, kv_heads, keys, _) = q.shape, k.shape
        groups, room = heads // kv_heads, ROOM.get(q.device.type, ROOM_ELSEWHERE)
        reach = min(keys, ROWS + job.past + job.future)
        rows = min(max(FEWEST_ROWS, min(ROWS, room // reach)) // groups or 1, queries)
        blocks = list(_blocks(job, queries, keys, rows))
        size = max((groups * rows * (block.stop - block.start) for block in blocks), default=1)
        fit = max(1, room // size)  # key heads per chunk: some of one sequence, or all of several
        batches, together = max(1, fit // kv_heads), min(fit, kv_heads)
        chunks = [
            (slice(b, min(b + batches, batch)), slice(h, min(h + together, kv_heads)))
            for b in range(0, batch, batches)
            for h in range(0, kv_heads, together)
        ]
        wide = torch.promote_types(q.dtype, torch.float32)
        return cls(chunks, blocks, q.new_empty(tiles, min(batches, batch) * together * size, dtype=wide))


def _blocks(job: Job, queries: int, keys: int, rows: int) -> Iterator[Block]:
    """Blocks of the queries that see a key, each with the keys in its reach."""
    alive = range(max(0, job.shift - job.future), min(queries, keys + job.shift + job.past))
    for first in alive[::rows]:
        last = min(first + rows, alive.stop)
        start, stop = first - job.past - job.shift, last + job.future - job.shift
        yield Block(first, last, max(start, 0), min(stop, keys))
