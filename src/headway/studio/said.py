"""Errors as a reader of the page meets them: in the page's language, with what to do there.

An error of headway speaks to whoever calls it: "expected a method that rotates …, got alibi: look at bias instead". The
page's reader chose a view and a method, and may read another language.
"""

from __future__ import annotations

import re

from headway.figures.values import Said, both

_COUNT, _REST = r"([\d,]+)", r".*"
PATTERNS: tuple[tuple[str, str], ...] = (
    ("empty", r"expected a text.*, got (?:none|an empty one)"),
    ("long", rf"expected at most {_COUNT} tokens here, got {_COUNT}"),
    ("two", r"expected a text of at least 2 tokens"),
    ("parameters", rf"expected a model of at most {_COUNT} parameters"),
    ("memory", r"expected a model and a text that take at most (\S+ \w+) of memory"),
    ("gone", r"expected the id of a (?:run|comparison) that the studio shows"),
    ("training", r"expected a training in the studio|expected a training with at least one step"),
    ("watch", r"expected a watched training"),
    ("encoder", r"expected a decoder for this view, got an encoder|expected targets, because an encoder"),
    ("own", r"expected a model of headway's own for this view"),
    ("other", rf"expected ({_REST}?), got ({_REST})"),
)
"""Names of sentences in the strings, and what they are about; the first that fits counts."""


def said(message: str) -> Said | None:
    """A message in both languages, or None where there are no words for it.

    >>> said("expected at most 1,024 tokens here, got 2,000: shorten the text")["en"]
    'The text has 2,000 tokens; this view shows at most 1,024. Shorten it, or open the map of a long text.'
    """
    for name, pattern in PATTERNS:
        if found := re.match(pattern, message, re.DOTALL):
            return both(f"studio.error.{name}", **{f"v{n}": value for n, value in enumerate(found.groups(), 1)})
    return None
