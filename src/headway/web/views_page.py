"""A page of views as one HTML file, which fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headway._version import __version__
from headway.figures.values import Said, View
from headway.web.page import document, strings_of


def views_page(title: Said, views: Sequence[View], facts: Sequence[Said] = (), *, language: str | None = None) -> str:
    """Views as one HTML file that opens without a network.

    Args:
        title: the page's title, in every language.
        views: the views, from top to bottom.
        facts: the subject, side by side under the title: a model, a text, a head.
        language: "en" or "zh", until the reader chooses; default: the browser's.

    Returns:
        The page's text, ready for :func:`headway.output.write_output`.

    >>> from headway.figures.values import same
    >>> len(views_page(same("An empty page"), [])) > 10_000
    True
    """
    wish = {} if language is None else {"language": language}
    return document(title["en"], {**views_payload(title, views, facts), **wish}, "views")


def empty_page() -> dict[str, Any]:
    """A page of views without data, for a page that saves one of itself: its HTML, and the strings its data hold."""
    return {"html": document("views", {}, "views"), "strings": strings_of("views"), "version": __version__}


def views_payload(title: Said, views: Sequence[View], facts: Sequence[Said] = ()) -> dict[str, Any]:
    """The argument of ``render(element, payload)`` in ``views.js``, ready for JSON; for :func:`views_page`."""
    return {
        "title": dict(title),
        "facts": [dict(fact) for fact in facts],
        "views": [view.plain() for view in views],
        "version": __version__,
        "strings": strings_of("views"),
    }
