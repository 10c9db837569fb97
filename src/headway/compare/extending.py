"""Trained models made to read longer texts: measured before and after.

- ``linear``, ``ntk``, ``dynamic``, ``yarn``: the same weights with the frequencies of
  :func:`headway.positions.extend`, without further training;
- ``drope``: position dropped, and a short training at the old length (DroPE, arXiv:2512.12167).
"""

from __future__ import annotations

import copy
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
    """Whether a method can be extended so.

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
    model: Transformer, task: Task, settings: TrainSettings, steps: int, folder: Path
) -> tuple[Transformer, History]:
    """A copy of a trained model without position, after a training of so many steps that goes on in the data.

    Args:
        model: as trained.
        task: what it was trained on.
        settings: how it was trained.
        steps: of the training without position.
        folder: where its checkpoints go; a recalibration that was interrupted there goes on.
    """
    batches = task.batches(settings.length, settings.batch, settings.seed)
    other = copy.deepcopy(model)
    other.drop_position()
    again = replace(settings, steps=steps, warmup=None, drop_position=0)
    trainer = Trainer(other, lambda step: batches(settings.steps + step), again, folder=folder)
    return other, trainer.run()
