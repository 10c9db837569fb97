"""Extend trained models to longer texts; they are tested before and after.

- ``linear``, ``ntk``, ``dynamic``, ``yarn``: the same weights with the frequencies of
  :func:`headway.positions.extend`, without further training;
- ``drope``: without position, after a short further training at the old length (DroPE, arXiv:2512.12167).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from headway.compare.tasks import Task
from headway.positions import Position, Rotary, extend
from headway.shapes import HeadwayError
from headway.training.history import History
from headway.training.loop import Trainer
from headway.training.settings import TrainSettings
from headway.transformer import Transformer


def extends(position: Position, how: str, *, to: int, trained: int) -> bool:
    """Whether a method supports an extension.

    >>> extends(Rotary(), "yarn", to=1024, trained=64)
    True
    """
    if how == "drope":
        return isinstance(position, Rotary)
    try:
        extend(position, to, how, trained)
    except HeadwayError:
        return False
    return True


def recalibrated(
    model: Transformer,
    task: Task,
    settings: TrainSettings,
    steps: int,
    folder: Path,
    *,
    stop: Callable[[], bool] | None = None,
    lock: object | None = None,
) -> tuple[Transformer, History]:
    """A copy of a trained model without position, trained for some more steps on further data.

    Args:
        model: the trained model.
        task: what it was trained on.
        settings: how it was trained.
        steps: training steps without position.
        folder: folder of its checkpoints; an interrupted recalibration there is resumed.
        stop: see :meth:`headway.training.Trainer.run`.
        lock: see there.
    """
    batches = task.batches(settings.length, settings.batch, settings.seed)
    other = copy.deepcopy(model)
    other.drop_position()
    again = replace(settings, steps=steps, warmup=None, drop_position=0)
    trainer = Trainer(other, lambda step: batches(settings.steps + step), again, folder=folder)
    return other, trainer.run(stop, lock=lock)
