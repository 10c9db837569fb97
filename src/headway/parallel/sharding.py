"""Which tokens of a text each process has: pieces of equal length, so that all have the same amount of work.

    zigzag, for causal attention:  rank r has the pieces r and 2P − 1 − r of 2P       an early one and a late one
    otherwise:                     rank r has piece r of P

A query that sees the past has the more to do the later it stands; an early piece and a late one together have the same
work on every rank. A text of any length is filled up with padding at its end, so that all pieces are equally long.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from headway.integers import Integers, as_positions
from headway.parallel.ranks import Mesh, Ranks
from headway.shapes import HeadwayError, as_count


@dataclass(frozen=True)
class Layout:
    """How a text lies on the processes.

    Args:
        ranks: the processes.
        zigzag: whether a rank has an early and a late piece; else one piece.
    """

    ranks: Ranks
    zigzag: bool = True

    @property
    def pieces(self) -> int:
        """How many pieces a rank has."""
        return 2 if self.zigzag and self.ranks.size > 1 else 1

    def own(self, rank: int | None = None) -> tuple[int, ...]:
        """The numbers of a rank's pieces in the text; default this rank's."""
        rank = self.ranks.rank if rank is None else rank
        return (rank,) if self.pieces == 1 else (rank, 2 * self.ranks.size - 1 - rank)

    def size(self, length: int) -> int:
        """Tokens in a piece of a text of this length."""
        return -(-length // (self.pieces * self.ranks.size))

    def mine(self, whole: Tensor, dim: int) -> Tensor:
        """This rank's part of a tensor over the whole text, padding included."""
        size = whole.shape[dim] // (self.pieces * self.ranks.size)
        parts = [whole.narrow(dim, number * size, size) for number in self.own()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)

    def whole(self, parts: tuple[Tensor, ...], dim: int) -> Tensor:
        """The text from the parts of all ranks."""
        if len(parts) == 1:
            return parts[0]
        if self.pieces == 1:
            return torch.cat(parts, dim)
        pairs = [self._halves(part, dim) for part in parts]
        return torch.cat([*(first for first, _ in pairs), *(second for _, second in reversed(pairs))], dim)

    def together(self, x: Tensor, dim: int) -> Tensor:
        """A tensor over the whole text from this rank's part of it, whose number of tokens all ranks share."""
        return self.whole(self.ranks.gathered(x), dim)

    def _halves(self, part: Tensor, dim: int) -> tuple[Tensor, ...]:
        if part.shape[dim] % 2:
            raise HeadwayError(
                f"expected an even number of tokens on each rank, an early and a late piece, got {part.shape[dim]}: "
                f"use headway.parallel.shard, or zigzag=False"
            )
        return part.chunk(2, dim) if part.shape[dim] else (part, part)


def shard(x: Tensor, mesh: Mesh | None = None, *, dim: int = 1, fill: float = 0, zigzag: bool = True) -> Tensor:
    """This process's part of a tensor that all processes have: tokens, document ids, labels.

    Args:
        x: the whole text, on every process; differentiable.
        mesh: the processes, see :class:`headway.parallel.Ranks`.
        dim: the axis of the tokens.
        fill: what stands at the end of a text that does not divide; give positions −1, which is padding.
        zigzag: an early and a late piece, for causal attention; else one piece.

    Raises:
        HeadwayError: when x has no such axis.

    >>> shard(torch.tensor([[3, 1, 2]])).tolist()
    [[3, 1, 2]]
    """
    if not isinstance(x, Tensor) or not -x.ndim <= dim < x.ndim:
        raise HeadwayError(f"expected a tensor with an axis {dim}, got {getattr(x, 'shape', type(x).__name__)}")
    layout, dim = Layout(Ranks.of(mesh), zigzag), dim % x.ndim
    missing = layout.size(x.shape[dim]) * layout.pieces * layout.ranks.size - x.shape[dim]
    if missing:
        x = pad(x, (*[0, 0] * (x.ndim - 1 - dim), 0, missing), value=fill)
    return layout.mine(x, dim)


def shard_tokens(
    tokens: Tensor, mesh: Mesh | None = None, *, pos: Integers | None = None, zigzag: bool = True
) -> tuple[Tensor, Tensor]:
    """This process's part of tokens, and their positions in the whole text; padding has position −1.

    Args:
        tokens: ids (B, N), or vectors (B, N, …).
        mesh: the processes, see :class:`headway.parallel.Ranks`.
        pos: positions, (B or 1, N) or (N,); −1 is padding. Default 0 … N−1.
        zigzag: as of :func:`shard`.

    Raises:
        HeadwayError: when positions do not fit the tokens.

    >>> tokens, pos = shard_tokens(torch.tensor([[7, 8, 9]]))
    >>> pos.tolist()
    [[0, 1, 2]]
    """
    pos = as_positions(pos, tokens)
    return shard(tokens, mesh, zigzag=zigzag), shard(pos, mesh, fill=-1, zigzag=zigzag)


def unshard(
    x: Tensor, mesh: Mesh | None = None, *, length: int | None = None, dim: int = 1, zigzag: bool = True
) -> Tensor:
    """The whole text on every process, from each one's part; the inverse of :func:`shard`.

    Differentiable: the gradient of a part is the sum of what all processes did with it.

    Args:
        x: this process's part; all have the same shape.
        mesh: the processes, see :class:`headway.parallel.Ranks`.
        length: tokens of the text, without what it was filled up with; default all.
        dim: the axis of the tokens.
        zigzag: as of :func:`shard`.

    Raises:
        HeadwayError: when the length is more than there is.

    >>> unshard(shard(torch.tensor([[3, 1, 2]])), length=3).tolist()
    [[3, 1, 2]]
    """
    dim %= x.ndim
    whole = Layout(Ranks.of(mesh), zigzag).together(x, dim)
    length = whole.shape[dim] if length is None else as_count(length, "a length of at least 0 tokens")
    if length > whole.shape[dim]:
        raise HeadwayError(f"expected a length of at most {whole.shape[dim]} tokens, got {length}")
    return whole.narrow(dim, 0, length)
