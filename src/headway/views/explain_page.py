"""A text through one head, as a page: the stages, one entry, one row, the whole head, and the effect of position."""

from __future__ import annotations

from headway.figures.values import Said, View, both
from headway.shapes import HeadwayError
from headway.views import view
from headway.views.question import Question
from headway.web.views_page import views_page

ALWAYS = ("stepper", "projection", "softmax", "head", "split")
PLACING = ("vectors", "similarity", "bias", "rotation", "distance")
"""The views of the position method; which of them apply depends on the method."""


def walk(question: Question) -> list[View]:
    """The views of a walk through one head, those of its position method included.

    Raises:
        HeadwayError: as the views of attention do, e.g. on a text of more than 1,024 tokens.

    >>> [view.key for view in walk(Question.fresh("the cat sat", position="none"))][:5]
    ['stepper', 'projection', 'softmax', 'head', 'split']
    """
    views = [view(name, question) for name in ALWAYS]
    for name in PLACING:
        try:
            views.append(view(name, question))
        except HeadwayError:
            continue  # a method that rotates nothing has no angles to show: that view does not apply
    return views


def walk_page(question: Question, language: str | None = None) -> str:
    """The walk as one HTML file that opens without a network; in a language until the reader chooses one; errors
    as of :func:`walk`.
    """
    shape = question.attentions[question.layer].shape
    facts: list[Said] = [
        both("walk.page.model", name=question.name) if question.name else both("walk.page.untrained"),
        both("walk.page.method", title=question.position.title, spec=question.position.spec()),
        both("walk.page.tokens", tokens=len(question.labels)),
        both("walk.page.place", layer=question.layer, head=question.head),
        both("walk.page.shape", layers=len(question.attentions), heads=shape.heads, dim=shape.dim),
    ]
    return views_page(both("walk.page.title", text=_shortened(question)), walk(question), facts, language=language)


def _shortened(question: Question) -> str:
    shown = " ".join(question.labels[:8])
    return shown if len(question.labels) <= 8 else f"{shown} …"
