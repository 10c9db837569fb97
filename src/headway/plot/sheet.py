"""Paper for one drawing: a matplotlib figure that is filled from top to bottom, in points of 1/72 inch.

The height of the figure is known only at the end. So panels are put on a long sheet, each is fitted by matplotlib's own
measurements, and :meth:`Sheet.finish` cuts the sheet off below the last one.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

from headway.figures.values import Said
from headway.figures.words import join, strings

INK, QUIET, RULE = "#1b1d20", "#4a4e55", "#d0d0ca"
SMALL, TEXT, TITLE = 6.5, 7.0, 8.0
"""Font sizes in points; journals ask for at least 6."""
_LATIN = ("Arial", "Helvetica", "Liberation Sans", "Noto Sans", "DejaVu Sans")
_CHINESE = (
    *("PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC"),
    "WenQuanYi Micro Hei",
)
_LONG = 14_400.0
"""Height of the sheet in points before it is cut."""


class Drawing(Figure):
    """A matplotlib figure that a notebook shows without pyplot, and that is saved ready for print.

    PDF embeds fonts, SVG keeps text as text, PNG has 300 dots per inch; the same figure gives the same file.
    """

    def savefig(self, fname: Any, **more: Any) -> None:
        """As matplotlib's own, with settings for print."""
        kind = str(more.get("format") or Path(str(fname)).suffix[1:]).lower()
        date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        with for_print():
            super().savefig(fname, **{"dpi": 300, "metadata": date, **more})

    def data(self, kind: str) -> bytes:
        """A file's content: "svg", "pdf" or "png"."""
        held = io.BytesIO()
        self.savefig(held, format=kind)
        return held.getvalue()

    def _repr_svg_(self) -> str:
        return self.data("svg").decode()


@contextmanager
def for_print() -> Iterator[None]:
    """Matplotlib's settings while drawing or saving, independent of the caller's session."""
    ours: Any = {
        "font.family": fonts(),
        "text.parse_math": False,
        "pdf.fonttype": 42,
        "svg.fonttype": "none",
        "svg.hashsalt": "headway",
        "hatch.color": RULE,
        "hatch.linewidth": 1.0,
    }
    with warnings.catch_warnings(), style.context(["default", ours]):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # reported once, by Sheet.finish
        yield


@cache
def fonts() -> list[str]:
    """The installed fonts in order of preference; a letter that one lacks is taken from the next."""
    here = {font.name for font in fontManager.ttflist}
    return list(dict.fromkeys(name for name in (*_LATIN, *_CHINESE) if name in here))


def text_width(text: str, size: float) -> float:
    """The width of a text in points.

    >>> text_width("MM", 7.0) > text_width("ii", 7.0) > 0 == text_width("", 7.0)
    True
    """
    return size * sum(_letter(letter)[0] for letter in text)


@cache
def _letter(letter: str) -> tuple[float, bool]:
    """The width of a letter at size 1, and whether a font has it."""
    font = FontProperties(family=fonts(), size=100)
    with warnings.catch_warnings(record=True) as missing:
        warnings.filterwarnings("always", "Glyph .* missing")
        width, _, _ = text_to_path.get_text_width_height_descent(clean(letter), font, ismath=False)
    return float(width) / 100, not missing


def fit(text: str, width: float, size: float) -> str:
    """A text cut to a width, with an ellipsis if it was cut."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrapped(text: str, width: float, size: float) -> list[str]:
    """Lines up to a width, broken at spaces, between Chinese characters, and inside words that are too long.

    >>> wrapped("see the 注意力", 35.0, 10.0)
    ['see the', '注意力']
    """
    lines, line = [], ""
    for piece in re.findall(r"\s+|[\u3000-\u9fff\uff00-\uffef]|[^\s\u3000-\u9fff\uff00-\uffef]+", text):
        if text_width(line + piece.rstrip(), size) > width and line.strip():
            lines.append(line.strip())
            line = ""
        line += piece if line else piece.lstrip()
        while text_width(line.rstrip(), size) > width and len(line) > 1:
            keep = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or text_width(line[:n], size) <= width)
            lines.append(line[:keep])
            line = line[keep:]
    return [*lines, line.strip()] if line.strip() or not lines else lines


def clean(text: str) -> str:
    """Text on one line, with control characters as escapes, because tokens may be arbitrary bytes.

    >>> clean("a\\tb")
    'a\\\\tb'
    """
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


class Sheet:
    """A column of paper; ``y`` grows downwards from its top.

    Args:
        language: "en" or "zh".
        width: width in points.
    """

    def __init__(self, language: str, width: float) -> None:
        self.language, self.width = language, width
        self.figure = Drawing(figsize=(width / 72, _LONG / 72), dpi=72)
        self.renderer = FigureCanvasAgg(self.figure).get_renderer()  # type: ignore[no-untyped-call]
        self.rules: list[tuple[Line2D, float]] = []

    def said(self, text: Said) -> str:
        """A text in the sheet's language."""
        return text[self.language]

    def word(self, key: str, **values: object) -> str:
        """A string of the assets with its placeholders filled in."""
        return strings(self.language)[key].format(**values)

    def text(self, x: float, y: float, text: str, size: float = TEXT, **more: Any) -> None:
        """Write one line; y is its baseline."""
        given: dict[str, Any] = {"color": INK, **more}
        self.figure.text(x / self.width, 1 - y / _LONG, clean(text), fontsize=size, va="baseline", **given)

    def lines(self, x: float, y: float, text: str, width: float, size: float = TEXT, **more: Any) -> float:
        """Write a paragraph from y downwards; returns where the next item may begin."""
        bold = 1.08 if more.get("weight") == "bold" else 1.0
        for line in wrapped(text, width / bold, size) if text else ():
            y += size * 1.3
            self.text(x, y - size * 0.3, line, size, **more)
        return y

    def title(self, text: Said, x: float, y: float, width: float, size: float = TITLE) -> float:
        """A panel's title in bold; returns where the panel may begin."""
        return self.lines(x, y, self.said(text), width, size, weight="bold") + 3

    def rule(self, x: float, y: float, width: float, colour: str = RULE) -> None:
        """A thin horizontal line."""
        line = Line2D([x / self.width, (x + width) / self.width], [0, 0], color=colour, linewidth=0.5)
        self.figure.add_artist(line)
        self.rules.append((line, y))

    def axes(self, x: float, y: float, width: float, tall: float) -> Axes:
        """Axes with their upper left corner at (x, y)."""
        made = self.figure.add_axes((0, 0, 1, 1))
        self.move(made, x, y, width, tall)
        made.tick_params(labelsize=TEXT, labelcolor=INK, color=QUIET, length=2.5, width=0.5, pad=2)
        for spine in made.spines.values():
            spine.set(linewidth=0.5, edgecolor=QUIET)
        return made

    def move(self, axes: Axes, x: float, y: float, width: float, tall: float) -> None:
        """Move axes."""
        axes.set_position((x / self.width, 1 - (y + tall) / _LONG, max(width, 1.0) / self.width, tall / _LONG))

    def settle(self, axes: Axes, x: float, y: float, width: float, tall: float) -> tuple[float, float, float, float]:
        """Move axes so that they and their labels lie within a width and below y.

        Returns:
            The axes' own left end, top and width, and the lower end including labels.
        """
        left = right = above = below = 0.0
        for _ in range(2):  # a narrower plot may have other ticks
            self.move(axes, x + left, y + above, width - left - right, tall)
            box, own = axes.get_tightbbox(self.renderer), axes.get_window_extent()
            if box is not None:
                left, right = max(0.0, own.x0 - box.x0), max(0.0, box.x1 - own.x1)
                above, below = max(0.0, box.y1 - own.y1), max(0.0, own.y0 - box.y0)
        self.move(axes, x + left, y + above, width - left - right, tall)
        return x + left, y + above, width - left - right, y + above + tall + below

    def finish(self, bottom: float) -> Drawing:
        """Cut the sheet off."""
        share = _LONG / bottom
        for axes in self.figure.axes:
            place = axes.get_position()
            axes.set_position((place.x0, 1 - (1 - place.y0) * share, place.width, place.height * share))
        for text in self.figure.texts:
            text.set_y(1 - (1 - text.get_position()[1]) * share)
        for line, y in self.rules:
            line.set_ydata([1 - y / bottom] * 2)
        self.figure.set_size_inches(self.width / 72, bottom / 72)
        letters = {letter for text in self.figure.findobj(Text) for letter in text.get_text()}
        if missing := sorted(letter for letter in letters if not _letter(letter)[1]):
            names = join([ascii(letter) for letter in missing[:8]], "en")
            warnings.warn(
                f"expected fonts with the letters {names}, found none: "
                f"install one, e.g. Noto Sans CJK SC, or save SVG, which keeps them as text",
                stacklevel=2,
            )
        return self.figure
