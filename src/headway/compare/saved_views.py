"""What a comparison keeps of a trained model, for its report: the views of position and a film of one head."""

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
"""Times that the matrices are looked at during training, at most one more."""
WINDOWS = 16
"""Windows of which attention is shown by distance: with 64 tokens 512 queries."""
SEED = 1_000_003
"""Of the windows: others than any that the model was trained on by its own seed's order."""
POSITIONS = 64
"""Rows of the maps of positions."""


def kept_views(model: Transformer, task: Task, length: int, watched: Watch | None) -> list[Plain]:
    """The views of a trained model's first layer and head that its method has, as plain values.

    Args:
        model: trained.
        task: what it was trained on.
        length: tokens of a training window.
        watched: how its matrices learned, if that was watched.

    Returns:
        Those that apply of vectors, similarity (of vectors), bias, rotation and distance; and the film.
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
                continue  # it does not apply to the method, which the views say in words
    return found
