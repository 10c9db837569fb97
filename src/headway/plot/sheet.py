"""What panels are drawn on: a pen, and words in one language."""

from __future__ import annotations

from dataclasses import dataclass, field

from headway.figures.values import Said
from headway.figures.words import strings
from headway.plot.svg import (
    TITLE,
    Pen,
    wrapped,
)


@dataclass
class Sheet:
    """What the panels are drawn on.

    Args:
        language: of the words.
        pen: what draws.
    """

    language: str
    pen: Pen = field(default_factory=Pen)

    def said(self, text: Said) -> str:
        """A text in the sheet's language."""
        return text[self.language]

    def word(self, key: str, **values: object) -> str:
        """A string of the assets, filled in."""
        return strings(self.language)[key].format(**values)

    def title(self, text: Said, x: float, y: float, width: float, size: float = TITLE) -> float:
        """A panel's title in bold; returns where the panel may begin."""
        for line in _lines(self.said(text), width, size):
            y += size * 1.3
            self.pen.text(x, y - size * 0.3, line, size, bold=True)
        return y + 3


def _lines(text: str, width: float, size: float) -> list[str]:
    return wrapped(text, width / 1.06, size) if text else []  # bold letters are wider
