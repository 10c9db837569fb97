"""The views of a trained model that a comparison saves for its report: views of position and a film of one head."""

from __future__ import annotations

import torch
from torch import nn

from headway.compare.tasks import Task
from headway.figures.downsample import Plain, rounded
from headway.inspect.record import recorded
from headway.inspect.watch import Watch
from headway.shapes import HeadwayError
from headway.training.loop import evaluating
from headway.transformer import Transformer
from headway.views import Question, view
from headway.views.question import Recording

LOOKS = 8
"""How often the matrices are recorded during training, plus at most one."""
WINDOWS = 16
"""Number of windows over which attention by distance is averaged: 512 queries with 64 tokens."""
SEED = 1_000_003
"""Seed of the windows, which differs from those of training."""
POSITIONS = 64
"""Rows of maps of positions."""


def kept_views(model: nn.Module, task: Task, length: int, watched: Watch | None) -> list[Plain]:
    """The views of a trained model's first layer and head that apply to its method, as plain values.

    Args:
        model: the trained model: headway's own, or one whose ``model`` is of transformers, which is looked at in a
            recorded pass, without what needs headway's own.
        task: what it was trained on.
        length: tokens of a training window.
        watched: the recorded learning of its matrices, if any.

    Returns:
        Those of vectors, similarity (of vectors), bias, rotation and distance that apply; and the film.
    """
    windows, _ = task.batches(length, WINDOWS, SEED)(0)
    labels, options = [str(token) for token in windows[0].tolist()], {"positions": POSITIONS}
    found = []
    with evaluating(model), torch.no_grad():
        if isinstance(model, Transformer):
            question = Question.of(model, windows[:1], labels, watched=watched, options={**options, "windows": windows})
        else:
            trace = recorded(model.model, input_ids=windows)  # type: ignore[arg-type]
            question = Question(Recording(trace=trace), labels, options=options)
        names = ("vectors", "similarity") if question.position.embeds else ()
        for name in (*names, "bias", "rotation", "distance", "film"):
            try:
                found.append(rounded(view(name, question)).plain())
            except HeadwayError:
                continue  # the view does not apply to the method
    return found
