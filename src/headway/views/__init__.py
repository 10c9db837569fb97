"""The views: what people see of attention, composed from a model, a text, a training or a comparison.

Each view is a function of a :class:`Question` and answers with a :class:`headway.report.figures.View`, plain values
that the page, the studio, the notebook and ``headway draw`` show alike. Nothing here knows of pixels.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace

from headway.report.figures import View, same
from headway.views.question import Question

_HOMES = {
    "stepping": ("stepper", "projection"),
    "attending": ("softmax", "wall", "head"),
    "splitting": ("split",),
    "changing": ("whatif",),
    "scaling": ("scaling",),
    "placing": ("vectors", "similarity"),
    "biasing": ("bias",),
    "turning": ("rotation",),
    "reaching": ("distance",),
    "methods": ("sidebyside",),
    "longer": ("longer",),
    "learning": ("film", "step", "board"),
    "long": ("long",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

NAMES = (
    "stepper",
    "projection",
    "scaling",
    "softmax",
    "wall",
    "head",
    "split",
    "vectors",
    "similarity",
    "bias",
    "rotation",
    "distance",
    "sidebyside",
    "longer",
    "film",
    "step",
    "board",
    "long",
    "whatif",
)
"""All views by name, in the order people meet them."""

__all__ = ["NAMES", "Question", "View", "view"]


def view(name: str, question: Question) -> View:
    """Compose one view.

    Args:
        name: one of :data:`NAMES`.
        question: about what.

    Raises:
        HeadwayError: when the question lacks what the view shows, with what to give.
    """
    composed: Callable[[Question], View] = getattr(importlib.import_module(f"headway.views.{_HOME[name]}"), name)
    shown = composed(question)
    return replace(shown, notes=(*shown.notes, *map(same, question.notes))) if question.notes else shown
