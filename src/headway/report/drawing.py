"""Curves by distance as braille dots for a terminal, and as SVG that needs no program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Values = Sequence[float | None]
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # bit of each dot of a braille cell, by column and row
HUES = (0, 1, 2, 4)
"""The report's colours, --hue-N in style.css, that the first curves get."""
_DASHES = ("", "7 4", "2 3.5", "9 3.5 2 3.5")


@dataclass(frozen=True)
class Cell:
    """One character of a drawing.

    Args:
        text: what stands there.
        curve: which curve it belongs to; None for axes and background.
    """

    text: str
    curve: int | None = None


def limits(curves: Sequence[Values]) -> tuple[float, float]:
    """The range of all finite values, with 0 in it, never empty.

    >>> limits([[-1.0, None]]), limits([[0.0]])
    ((-1.0, 0.0), (-1.0, 1.0))
    """
    found = [value for values in curves for value in values if value is not None]
    low, high = min([0.0, *found]), max([0.0, *found])
    return (low, high) if high > low else (-1.0, 1.0)


def braille(curves: Sequence[Values], labels: Sequence[str], width: int, height: int = 12) -> list[list[Cell]]:
    """Draw curves over x = 0, 1, 2 … as lines of cells, with a vertical axis, and each curve's label at its end.

    Args:
        curves: one value for each x.
        labels: one for each curve.
        width: columns in all.
        height: lines of the drawing; the numbers of the horizontal axis need one more.
    """
    low, high = limits(curves)
    ticks = {0: high, height - 1: low}
    ticks.setdefault(round((height - 1) * high / (high - low)), 0.0)
    margin = max(len(_number(tick)) for tick in ticks.values())
    across = max(8, width - margin - 2 - 1 - max(map(len, labels)))
    dots = [[0] * across for _ in range(height)]
    owners: dict[tuple[int, int], int] = {}
    ends: list[tuple[int, int]] = []
    for number, values in enumerate(curves):
        before: int | None = None
        for column in range(2 * across):
            value = values[round(column * (len(values) - 1) / max(1, 2 * across - 1))]
            if value is None:
                before = None
                continue
            dot = round((4 * height - 1) * (high - value) / (high - low))
            # the dots between two neighbours belong to the line too
            first = dot if before is None or before == dot else before + (1 if dot > before else -1)
            for y in range(min(first, dot), max(first, dot) + 1):
                dots[y // 4][column // 2] |= _DOTS[column % 2][y % 4]
                owners[y // 4, column // 2] = number
            before = dot
        if before is not None:
            ends.append((before // 4, number))
    placed = _places([row for row, _ in ends], height)
    named = {row: number for row, (_, number) in zip(placed, ends, strict=True)}
    lines = []
    for y, row in enumerate(dots):
        axis = f"{_number(ticks[y]):>{margin}} ┤" if y in ticks else " " * (margin + 1) + "│"
        rest = "┄" if ticks.get(y) == 0.0 else " "
        drawn = [Cell(chr(0x2800 + bits), owners[y, x]) if bits else Cell(rest) for x, bits in enumerate(row)]
        label = [Cell(f" {labels[named[y]]}", named[y])] if y in named else []
        lines.append([Cell(axis), *drawn, *label])
    last = max(map(len, curves)) - 1
    lines.append([Cell(f"{'':>{margin}}  0{last:>{across - 1},}")])
    return lines


def svg(curves: Sequence[Values], labels: Sequence[str], caption: str, axis: str) -> str:
    """Draw the same as an SVG file that follows the reader's light or dark theme.

    Args:
        curves: one value for each x = 0, 1, 2 ….
        labels: one for each curve.
        caption: what the curves show, above them.
        axis: what x is.
    """
    low, high = limits(curves)
    wide, tall, left, right, top, bottom = 720, 300, 56, 120, 34, 44
    last = max(map(len, curves)) - 1

    def x(value: float) -> float:
        return left + (wide - left - right) * value / max(1, last)

    def y(value: float) -> float:
        return top + (tall - top - bottom) * (high - value) / (high - low)

    parts = [f'<text class="title" x="4" y="16">{escape(caption)}</text>']
    for tick in dict.fromkeys((low, 0.0, high)):
        crowded = tick == 0.0 and min(abs(y(0.0) - y(low)), abs(y(0.0) - y(high))) < 14 and 0.0 not in (low, high)
        parts.append(f'<path class="rule" d="M{left} {y(tick):.1f}H{wide - right}"/>')
        if not crowded:
            parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in (0, last):
        parts.append(f'<text x="{x(tick):.1f}" y="{tall - bottom + 18}" text-anchor="middle">{tick:,}</text>')
    parts.append(f'<text x="{(x(0) + x(last)) / 2:.1f}" y="{tall - 8}" text-anchor="middle">{escape(axis)}</text>')
    shown = [(n, values) for n, values in enumerate(curves) if any(value is not None for value in values)]
    ends = [next(value for value in reversed(values) if value is not None) for _, values in shown]
    # labels a line apart, in lines of 16 pixels from the top
    places = _places([round((y(end) - top) / 16) for end in ends], math.ceil((tall - top - bottom) / 16) + 1)
    for (n, values), place in zip(shown, places, strict=True):
        hue, dash = f"c{n % len(HUES)}", _DASHES[n % len(_DASHES)]
        d, pen = [], "M"
        for at, value in enumerate(values):
            if value is None:
                pen = "M"
                continue
            d.append(f"{pen}{x(at):.1f} {y(value):.1f}")
            pen = "L"
        parts.append(f'<path class="line {hue}" stroke-dasharray="{dash}" d="{"".join(d)}"/>')
        parts.append(
            f'<text class="{hue}" x="{wide - right + 8}" y="{top + 16 * place + 4}">{escape(labels[n])}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" role="img" '
        f'aria-label="{escape(caption)}">\n<style>{_STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


_LIGHT, _DARK = ("#1861d8", "#842106", "#147a47", "#c4188a"), ("#6da9f9", "#d9824c", "#a6f2bf", "#cf3fa9")


def _colours(colours: Sequence[str]) -> str:
    return "".join(f".c{n}{{stroke:{c}}}text.c{n}{{fill:{c};stroke:none}}" for n, c in enumerate(colours))


_STYLE = (
    "text{font:12px sans-serif;fill:#5a5e66}.title{font-size:13px;fill:#1b1d20}.rule{stroke:#d9d9d3}"
    f".line{{fill:none;stroke-width:2}}{_colours(_LIGHT)}"
    "@media (prefers-color-scheme:dark){text{fill:#a6aab1}.title{fill:#e9e9e4}.rule{stroke:#34383d}"
    f"{_colours(_DARK)}}}"
)


def _number(value: float) -> str:
    """Three digits, with a minus as long as a digit.

    >>> _number(-63.75), _number(0.0), _number(1234.0)
    ('−63.8', '0', '1,230')
    """
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{abs(float(f'{value:.3g}')):,.{digits}f}" if digits < 5 else f"{abs(value):.1e}"
    text = text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
    return ("−" if value < 0 else "") + text


def _places(wishes: Sequence[int], lines: int) -> list[int]:
    """A line of its own for each label, as near to its wish as the order from top to bottom allows.

    >>> _places([3, 3, 0, 11], 12)
    [3, 4, 0, 11]
    """
    order = sorted(range(len(wishes)), key=lambda i: (wishes[i], i))
    found = [0] * len(wishes)
    least = 0
    for rank, i in enumerate(order):
        least = found[i] = min(max(wishes[i], least), lines - (len(order) - rank))
        least += 1
    return found
