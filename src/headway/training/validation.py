"""Validation, divided among processes where it consists of pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from headway.parallel.process import World


@runtime_checkable
class Pieces(Protocol):
    """A validation that consists of pieces, which processes may share."""

    @property
    def pieces(self) -> int:
        """How many."""
        ...

    def piece(self, number: int, model: nn.Module, /) -> tuple[float, int]:
        """Sum of the loss over one of them, and how many tokens it counts."""
        ...


def mean_loss(pieces: Pieces, model: nn.Module, world: World | None = None) -> float:
    """Mean loss over all pieces, which are computed by turns and added in order: the same bits as in one process.

    Args:
        pieces: what to compute.
        model: in evaluation mode; under fsdp all processes call it equally often.
        world: the processes; default one.
    """
    world = world or World()
    found: list[tuple[float, int]] = []
    with torch.no_grad():
        for begin in range(0, pieces.pieces, world.size):
            number = begin + world.rank
            own = pieces.piece(min(number, pieces.pieces - 1), model)  # one too many is computed and left out
            here = min(world.size, pieces.pieces - begin)
            found += [(total, int(count)) for total, count in world.all_of(own)[:here]]
    return sum(total for total, _ in found) / sum(count for _, count in found)


def validated(validation: Callable[[nn.Module], float], model: nn.Module, world: World) -> float:
    """The loss of a validation, the same number in all processes: by pieces, or else computed by each of them."""
    if world.many and isinstance(validation, Pieces):
        return mean_loss(validation, model, world)
    found = float(validation(model))
    return world.sum([found if world.first else 0.0])[0] if world.many else found
