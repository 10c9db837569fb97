"""Tables by distance as strided views: for consecutive positions, bias[i, j] = table[j − i + c] needs no gather.

Number the queries of a block from the last to the first, u = i_last − i. Then j − i grows with u + j, and a table
along the keys becomes a tile by shifting it one entry per row: a view whose row stride is one more than the row length.

    tile[u, j] = line[u, u + j + c]        read to add a table to scores; written to collect its gradient

No entry is written twice, so gradients need no atomic adds and are the same in every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from headway.terms import ByDistance


def strip(
    terms: Sequence[ByDistance], first: int, stop: int, past: int, future: int, like: Tensor
) -> Float[Tensor, "#heads distances"] | None:
    """The sum of terms at the distances first … stop − 1, and −inf where masked; None if all of it would be zero.

    Args:
        terms: terms by distance.
        first: the smallest distance, first key − last query.
        stop: one more than the largest.
        past: how far into the past a query sees.
        future: how far into the future.
        like: a tensor for the device and the dtype, which is at least float32.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    distances = torch.arange(first, stop, device=like.device)[None]
    tiles = [term.tile(torch.zeros_like(distances[:, :1]), distances)[0, :, 0].to(wide) for term in terms]
    line = sum(tiles[1:], start=tiles[0]) if tiles else None
    if first >= -past and stop - 1 <= future:
        return line
    line = like.new_zeros(1, 1, dtype=wide) if line is None else line
    return line.masked_fill((distances < -past) | (distances > future), -torch.inf)


def skewed(lines: Float[Tensor, "*lead lines length"], width: int, offset: int) -> Float[Tensor, "*lead lines width"]:
    """The view with view[a, c] = lines[a, a + c + offset], of a tensor whose rows are contiguous.

    >>> skewed(torch.arange(10).view(2, 5), 3, 1)
    tensor([[1, 2, 3],
            [7, 8, 9]])
    """
    stride = lines.stride()
    return lines.as_strided(
        (*lines.shape[:-1], width), (*stride[:-2], stride[-2] + 1, 1), lines.storage_offset() + offset
    )


def unrolled(table: Float[Tensor, "*lead lines width"], margin: int) -> Float[Tensor, "*lead lines length"]:
    """A table with ``margin`` copies of its ends on either side, for the distances beyond it that occur in a block."""
    sides = (*table.shape[:-1], margin)
    return torch.cat((table[..., :1].expand(sides), table, table[..., -1:].expand(sides)), -1)


def folded(lines: Float[Tensor, "*lead lines length"], margin: int) -> Float[Tensor, "*lead lines width"]:
    """The adjoint of :func:`unrolled`: gradients of the copies of an end are added to that of the end."""
    width = lines.shape[-1] - 2 * margin
    table = lines[..., margin : margin + width].clone()
    table[..., 0] += lines[..., :margin].sum(-1)
    table[..., -1] += lines[..., margin + width :].sum(-1)
    return table


def diagonal_sums(tile: Float[Tensor, "*lead queries keys"]) -> Float[Tensor, "*lead diagonals"]:
    """Sums of a tile over u + j = 0, 1, 2 …, (…, queries + keys − 1).

    >>> diagonal_sums(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([1., 5., 4.])
    """
    *lead, queries, keys = tile.shape
    lines = tile.new_zeros(*lead, queries, queries + keys - 1)
    skewed(lines, keys, 0).copy_(tile)
    return lines.sum(-2)


@dataclass(frozen=True)
class Band:
    """The columns of a tile in which a table by distance varies; outside, every key has the entry of one end.

    Args:
        queries: rows of the tile, from the last query to the first.
        keys: columns of the tile.
        width: entries of the table.
        first: the column where the tile's first query, its last row, has entry 0; may lie outside the tile.
    """

    queries: int
    keys: int
    width: int
    first: int

    def _inside(self, column: int) -> int:
        return min(max(column, 0), self.keys)

    @property
    def start(self) -> int:
        """First column of the band."""
        return self._inside(self.first)

    @property
    def stop(self) -> int:
        """One past its last column."""
        return self._inside(self.first + self.width + self.margin)

    @property
    def margin(self) -> int:
        """Number of copies of its ends a table needs, so that it has an entry for every query and key of the band."""
        return self.queries - 1

    def add_rows(self, tile: Float[Tensor, "*lead queries keys"], table: Float[Tensor, "*lead queries width"]) -> None:
        """Add table[u, clamp(distance)] to a tile in place: each query has its own table."""
        start, stop = self.start, self.stop
        tile[..., :start] += table[..., :1]
        tile[..., stop:] += table[..., -1:]
        if start < stop:
            tile[..., start:stop] += skewed(unrolled(table, self.margin), stop - start, start - self.first)

    def collect_rows(self, tile: Float[Tensor, "*lead queries keys"]) -> Float[Tensor, "*lead queries width"]:
        """The adjoint of :meth:`add_rows`: sums[u, w] over the keys for which query u reads entry w."""
        start, stop = self.start, self.stop
        lines = tile.new_zeros(*tile.shape[:-1], self.width + 2 * self.margin)
        if start < stop:
            skewed(lines, stop - start, start - self.first).copy_(tile[..., start:stop])
        sums = folded(lines, self.margin)
        sums[..., 0] += tile[..., :start].sum(-1)
        sums[..., -1] += tile[..., stop:].sum(-1)
        return sums

    def _parts(self) -> Iterator[tuple[slice, bool]]:
        """The band's columns in parts, and whether each reads copies of an end; only those need their tables copied."""
        start, stop = self.start, self.stop
        left = min(max(self.first + self.margin, start), stop)
        right = min(max(self.first + self.width, left), stop)
        for part, ends in ((slice(start, left), True), (slice(left, right), False), (slice(right, stop), True)):
            if part.start < part.stop:
                yield part, ends

    def add_columns(self, tile: Float[Tensor, "*lead queries keys"], table: Float[Tensor, "*lead keys width"]) -> None:
        """Add table[j, clamp(distance)] to a tile in place: each key has its own table."""
        tile[..., : self.start] += table[..., None, : self.start, 0]
        tile[..., self.stop :] += table[..., None, self.stop :, -1]
        for part, ends in self._parts():
            margin = self.margin if ends else 0
            lines = unrolled(table[..., part, :], margin) if ends else table[..., part, :]
            offset = part.start - self.first - self.margin + margin
            tile[..., part] += skewed(lines, self.queries, offset).transpose(-1, -2)

    def collect_columns(
        self, tile: Float[Tensor, "*lead queries keys"], sums: Float[Tensor, "*lead keys width"]
    ) -> None:
        """The adjoint of :meth:`add_columns`, added to ``sums`` in place: sums over the queries that read an entry."""
        sums[..., : self.start, 0] += tile[..., : self.start].sum(-2)
        sums[..., self.stop :, -1] += tile[..., self.stop :].sum(-2)
        for part, ends in self._parts():
            columns = tile[..., part].transpose(-1, -2)
            if ends:
                lines = tile.new_zeros(*columns.shape[:-1], self.width + 2 * self.margin)
                skewed(lines, self.queries, part.start - self.first).copy_(columns)
                sums[..., part, :] += folded(lines, self.margin)
            else:
                # the table itself is long enough: each key's run of entries lies inside its row
                view = skewed(sums[..., part, :], self.queries, part.start - self.first - self.margin)
                view += columns
