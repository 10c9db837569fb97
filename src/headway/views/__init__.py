"""The views of attention, composed from a model, a text, a training or a comparison.

Each view is a function of a :class:`Question` and returns a :class:`headway.figures.values.View`, plain values that the
page, the studio, the notebook and ``headway draw`` all show. Nothing here depends on pixels.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from headway.figures.values import View, both, same
from headway.figures.words import add_words
from headway.shapes import HeadwayError, brief
from headway.views.grouping import divided
from headway.views.question import Question

ORDER = (
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
    "prediction",
    "generation",
    "sidebyside",
    "longer",
    "film",
    "step",
    "board",
    "long",
    "whatif",
)
"""Views in display order; others follow."""
CROSS = ("wall", "head", "softmax")
"""The views that cross attention has."""
OF_POSITION = ("vectors", "similarity", "bias", "rotation")
"""The views of a position method, which random weights elsewhere do not change."""
OF_TOKENS = ("stepper", "projection", "softmax", "split", "step", "long")
"""The views that show single tokens, also where several make one character."""
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "projection": ("matrix",),
    "scaling": ("dim",),
    "wall": ("group",),
    "head": ("what", "group"),
    "split": ("key",),
    "vectors": ("positions",),
    "similarity": ("positions",),
    "bias": ("reach",),
    "rotation": ("positions",),
    "prediction": ("temperature", "top_k", "top_p", "shift"),
    "generation": ("tokens", "temperature", "top_k", "top_p", "seed", "heads"),
    "sidebyside": ("group",),
    "film": ("matrix",),
    "step": ("matrix", "lr_sgd", "lr_adam"),
    "long": ("reach",),
    "whatif": ("change", "by", "seed", "position", "what", "group"),
}
"""The options of each view that a reader chooses; each view checks their values, see its docstring."""
_VIEWS = re.compile(r"^VIEWS = (\(.*?\)|\{.*?^\})$", re.MULTILINE | re.DOTALL)


def _found() -> dict[str, str]:
    """The file of each view, from the ``VIEWS`` of files in this folder, read without importing them.

    ``VIEWS`` is a tuple of names, whose words are in ``figures/strings``, or maps each name to its title and question
    by language: ``{"mine": {"en": ("Mine", "What is mine?"), "zh": ("我的", "什么是我的？")}}``.
    """
    files = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if named := _VIEWS.search(path.read_text(encoding="utf-8")):
            views: Any = ast.literal_eval(named[1])
            files.update(dict.fromkeys(views, path.stem))
            if isinstance(views, Mapping):
                for name, words in views.items():
                    for language, (title, question) in words.items():
                        add_words(language, {f"view.{name}.title": title, f"view.{name}.question": question})
    return files


_FILES = _found()
NAMES = (*[name for name in ORDER if name in _FILES], *sorted(_FILES.keys() - set(ORDER)))
"""All views by name."""

__all__ = ["NAMES", "OPTIONS", "Question", "View", "view"]


def view(name: str, question: Question) -> View:
    """Compose one view.

    Args:
        name: one of :data:`NAMES`.
        question: the subject of the view.

    Raises:
        HeadwayError: when the question lacks what the view needs; it says what to pass.
    """
    if question.keys is not None and name not in CROSS:
        raise HeadwayError(
            f"expected one of the views of cross attention ({', '.join(CROSS)}), got {brief(name)}, which compares "
            f"tokens of one text"
        )
    composed: Callable[[Question], View] = getattr(importlib.import_module(f"headway.views.{_FILES[name]}"), name)
    shown = composed(question)
    if name in OF_TOKENS and divided(question):
        shown = replace(shown, notes=(*shown.notes, both("grouping.parts")))
    notes = (same(note) if isinstance(note, str) else note for note in question.notes)
    mark = both("view.untrained") if question.untrained and _is_random(name, question) else None
    return replace(shown, notes=(*shown.notes, *notes), mark=mark)


def _is_random(name: str, question: Question) -> bool:
    """Whether a view of an untrained model shows what random weights made."""
    if name in OF_POSITION:
        return any(True for _ in question.position.parameters())
    return name != "longer"
