"""Views in a notebook cell: the complete page in a sandboxed iframe without network access.

The page in the frame reports its height; a short script next to the frame sets it, and tells the page whether the
notebook is dark. Where a notebook does not run the script (a static copy), the frame scrolls. An untrusted
notebook takes the frame out and keeps the text inside it, which says what is shown and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from itertools import islice
from typing import Any

from headway.figures.values import Said, View, both, same
from headway.figures.words import LANGUAGES
from headway.inspect.record import Layer, Trace
from headway.positions import Position
from headway.shapes import HeadwayError
from headway.views.question import Question
from headway.views.questions import OF_METHODS, about_position, about_trace, composed
from headway.web.page import asset
from headway.web.views_page import views_page

LARGEST = 2_000_000
"""Maximum bytes of a cell; views beyond are omitted."""
FIGURES = 2
"""Maximum figures of a method or a pass in a cell."""
HEIGHT = 640
"""Default height of a frame in pixels."""
SIZED = 64
"""Maximum heads of a trace that are shown as a wall."""


def cell(shown: Any) -> str | None:
    """The notebook cell of a method, a recorded pass, a layer of one, or a view, as HTML; None where no view applies.

    >>> from headway.positions import Alibi
    >>> cell(Alibi())[:7]
    '<iframe'
    """
    try:
        title, facts, views = _content(shown)
    except HeadwayError:
        return None
    return frame(title, views, facts) if views else None


def frame(title: Said, views: Sequence[View], facts: Sequence[Said] = ()) -> str:
    """Views as a frame for a notebook's cell, at most 2 MB of them.

    Args:
        title: title of the page.
        views: from top to bottom; the last ones are omitted where they would be too large.
        facts: facts about what is shown.
    """
    for count in range(len(views), 0, -1):
        page = views_page(title, views[:count], facts)
        # inside single quotes only these two characters need escaping
        source = page.replace("&", "&amp;").replace("'", "&#39;")
        text = (
            f'<iframe data-headway title="{escape(title["en"])}" sandbox="allow-scripts allow-downloads" '
            f"style=\"width:100%;height:{HEIGHT}px;border:0;display:block\" srcdoc='{source}'>"
            f"{_instead(title, views)}</iframe><script>{asset('cell.js')}</script>"
        )
        if len(text.encode()) <= LARGEST:
            break
    return text


def _instead(title: Said, views: Sequence[View]) -> str:
    """What an untrusted notebook shows in place of the frame."""
    said = (both("cell.untrusted", title=title[one], finding=views[0].finding[one])[one] for one in LANGUAGES)
    return escape(" ".join(said))


def _content(shown: Any) -> tuple[Said, list[Said], list[View]]:
    """The title, the facts, and the views."""
    facts: list[Said]
    if isinstance(shown, View):
        return shown.title, [], [shown]
    if isinstance(shown, Position):
        question = about_position(shown)
        widths = question.position.shape
        assert widths is not None
        facts = [same(shown.spec()), both("cell.widths", heads=widths.heads, dim=widths.dim)]
        return same(type(shown).title or type(shown).__name__), facts, _first(question, OF_METHODS)
    if isinstance(shown, Trace | Layer):
        question = about_trace(shown)
        first = question.seen
        layers = len(question.trace)
        facts = [
            both("cell.layers", layers=layers, heads=first.heads),
            both("cell.tokens", tokens=first.queries),
            same(question.position.spec()),
        ]
        title = same(first.name) if layers == 1 else both("cell.trace")
        return (
            title,
            facts,
            _first(question, ("wall", "head", "long") if first.heads * layers <= SIZED else ("head", "long")),
        )
    raise HeadwayError(f"expected a method, a trace, a layer or a view, got {type(shown).__name__}")


def _first(question: Question, names: Sequence[str]) -> list[View]:
    """The first of these views that applies, with its first figures only, to keep the cell short."""
    return [replace(view, figures=view.figures[:FIGURES]) for view in islice(composed(question, names), 1)]
