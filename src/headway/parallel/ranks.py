"""The processes that share a sequence, and what they exchange: differentiable, and with the same bits in every run.

Data moves as bytes, so that every dtype can, whatever the backend of the process group adds up. Where gradients of
several ranks meet, they are summed in rank order, in float32 or better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh

from headway.shapes import HeadwayError, brief

Mesh = DeviceMesh | dist.ProcessGroup
"""Processes as users name them: a mesh of one dimension, e.g. ``mesh["context"]``, or a process group."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes of a mesh.

    Args:
        group: their process group; None where there is one process alone.
        rank: which of them this one is, from 0.
        size: how many there are.
    """

    group: dist.ProcessGroup | None
    rank: int
    size: int

    @classmethod
    def of(cls, mesh: Mesh | None) -> Ranks:
        """The processes of a mesh or group; None is all there are, or this one alone where no group was started.

        Raises:
            HeadwayError: on a mesh of several dimensions, or that this process is not part of, and on anything else.

        >>> Ranks.of(None).size
        1
        """
        if mesh is None:
            if not dist.is_available() or not dist.is_initialized():
                return cls(None, 0, 1)
            mesh = dist.group.WORLD
        if isinstance(mesh, DeviceMesh):
            if mesh.ndim != 1:
                raise HeadwayError(
                    f"expected a mesh of one dimension, got one of {mesh.ndim}: name it, as in mesh['context']"
                )
            mesh = mesh.get_group()
        if not isinstance(mesh, dist.ProcessGroup):
            raise HeadwayError(f"expected a DeviceMesh or a ProcessGroup that holds this process, got {brief(mesh)}")
        return cls(mesh, dist.get_rank(mesh), dist.get_world_size(mesh))

    def __deepcopy__(self, memo: Any) -> Ranks:
        return self  # a process group cannot be copied

    def gathered(self, x: Tensor) -> tuple[Tensor, ...]:
        """x of every rank; all have the same shape. A rank's gradient is the sum of what all ranks did with its x."""
        if self.size == 1:
            return (x,)
        parts: tuple[Tensor, ...] = _Gathered.apply(x, self).unbind(0)  # type: ignore[no-untyped-call]
        return parts

    def exchanged(self, x: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """What all ranks send to this one: ``receive[r]`` entries of the first axis from rank r, for ``send[r]``."""
        if self.size == 1:
            return x
        moved: Tensor = _Exchanged.apply(x, self, list(send), list(receive))  # type: ignore[no-untyped-call]
        return moved

    def summed(self, x: Tensor) -> Tensor:
        """The sum of x of every rank, in rank order, in x's dtype; not differentiable."""
        if self.size == 1:
            return x
        return _in_order(_all_gather(x, self), x.dtype)

    def passed(self, tensors: Sequence[Tensor]) -> Passing:
        """Start to send tensors to the next rank, and to receive those of the one before."""
        return Passing(self, tensors)


class Passing:
    """Tensors on their way around the ring; :meth:`arrived` waits for those of the rank before."""

    def __init__(self, ranks: Ranks, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._pending: list[Any] = []
        if ranks.size == 1:
            return
        assert ranks.group is not None
        sent = [x.contiguous() for x in self._tensors]
        self._tensors = [torch.empty_like(x) for x in sent]
        after, before = ((ranks.rank + step) % ranks.size for step in (1, -1))
        after, before = (dist.get_global_rank(ranks.group, rank) for rank in (after, before))
        moves: list[tuple[Any, Tensor, int]] = [(dist.isend, _bytes(x), after) for x in sent if x.numel()]
        moves += [(dist.irecv, _bytes(x), before) for x in self._tensors if x.numel()]
        self._kept = sent  # until they have left
        if moves:
            self._pending = dist.batch_isend_irecv([dist.P2POp(how, x, peer, ranks.group) for how, x, peer in moves])

    def arrived(self) -> list[Tensor]:
        """The tensors of the rank before."""
        for work in self._pending:
            work.wait()
        return self._tensors


def _bytes(x: Tensor) -> Tensor:
    """A contiguous tensor as bytes, a view."""
    return x.view(-1).view(torch.uint8)


def _all_gather(x: Tensor, ranks: Ranks) -> Tensor:
    """(P, …)."""
    x = x.contiguous()
    out = x.new_empty(ranks.size, *x.shape)
    if x.numel():
        gather: Any = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # renamed in torch 2.13
        gather(_bytes(out), _bytes(x), group=ranks.group)
    return out


def _all_to_all(x: Tensor, ranks: Ranks, send: list[int], receive: list[int]) -> Tensor:
    x = x.contiguous()
    out = x.new_empty(sum(receive), *x.shape[1:])
    size = x[:1].numel() * x.element_size()
    if size and (sum(send) or sum(receive)):
        here, there = ([entries * size for entries in counts] for counts in (receive, send))
        dist.all_to_all_single(_bytes(out), _bytes(x), here, there, group=ranks.group)
    return out


def _in_order(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the first axis, one after the other."""
    if not parts.is_floating_point():
        return parts.sum(0).to(dtype)
    total = parts[0].to(torch.promote_types(dtype, torch.float32))
    for part in parts[1:]:
        total = total + part
    return total.to(dtype)


class _Gathered(torch.autograd.Function):
    """All-gather; backward is a reduce-scatter that adds in rank order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        """(P, …)."""
        ctx.ranks = ranks
        return _all_gather(x, ranks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """What all ranks found for this rank's x."""
        ones = [1] * ctx.ranks.size
        return _in_order(_all_to_all(grad, ctx.ranks, ones, ones), grad.dtype), None


class _Exchanged(torch.autograd.Function):
    """All-to-all; backward is the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, send: list[int], receive: list[int]) -> Tensor:
        """What the others sent."""
        ctx.ranks, ctx.send, ctx.receive = ranks, send, receive
        return _all_to_all(x, ranks, send, receive)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to those who sent the values."""
        return _all_to_all(grad, ctx.ranks, ctx.receive, ctx.send), None, None, None
