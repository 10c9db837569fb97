"""The views of a trained model that a comparison saves for its report: views of position and a film of one head."""

from __future__ import annotations

import torch

from headway.compare.tasks import Task
from headway.figures.downsample import Plain, rounded
from headway.inspect.watch import Watch
from headway.shapes import HeadwayError
from headway.training.loop import evaluating
from headway.transformer import Transformer
from headway.views import Question, view

LOOKS = 8
"""How often the matrices are recorded during training, plus at most one."""
WINDOWS = 16
"""Number of windows over which attention by distance is averaged: 512 queries with 64 tokens."""
SEED = 1_000_003
"""Seed of the windows, which differs from those of training."""
POSITIONS = 64
"""Rows of maps of positions."""


def kept_views(model: Transformer, task: Task, length: int, watched: Watch | None) -> list[Plain]:
    """The views of a trained model's first layer and head that apply to its method, as plain values.

    Args:
        model: the trained model.
        task: what it was trained on.
        length: tokens of a training window.
        watched: the recorded learning of its matrices, if any.

    Returns:
        Those of vectors, similarity (of vectors), bias, rotation and distance that apply; and the film.
    """
    windows, _ = task.batches(length, WINDOWS, SEED)(0)
    options = {"windows": windows, "positions": POSITIONS}
    question = Question.of(
        model, windows[:1], [str(token) for token in windows[0].tolist()], watched=watched, options=options
    )
    names = ("vectors", "similarity") if model.stack.position.embeds else ()
    found = []
    with evaluating(model), torch.no_grad():
        for name in (*names, "bias", "rotation", "distance", "film"):
            try:
                found.append(rounded(view(name, question)).plain())
            except HeadwayError:
                continue  # the view does not apply to the method
    return found
