"""Maps and their colour bars, for print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headway.figures.values import Heatmap
from headway.plot.sheet import Sheet
from headway.plot.svg import (
    QUIET,
    SMALL,
    TEXT,
    TITLE,
    fit,
    number,
    png,
    text_width,
)
from headway.web.colours import STEPS, palette

_CELL = 24.0
"""The largest side of a cell of a map."""
_TALLEST = 280.0
"""The largest height of a map."""
_MISSING = (255, 255, 255)
"""The colour of a cell without a number: the paper's own."""


@dataclass(frozen=True)
class Scale:
    """What numbers the colours of a map stand for.

    Args:
        low: the number of the first colour.
        high: that of the last.
        below: whether there are lower numbers, which get the first colour.
        above: whether there are higher ones.
    """

    low: float
    high: float
    below: bool = False
    above: bool = False

    @classmethod
    def of(cls, *maps: Heatmap) -> Scale:
        """The scale that maps share: their limits, or those of all numbers that no mask hides."""
        found = [value for one in maps for value in _shown(one) if value is not None]
        least, most = (min(found), max(found)) if found else (0.0, 1.0)
        if maps[0].limits is not None:
            low, high = maps[0].limits
        elif maps[0].scale == "diverging":
            high = max(abs(least), abs(most))
            low = -high
        elif maps[0].scale == "cyclic":
            low, high = -math.pi, math.pi
        else:
            low, high = least, most
        if not high > low:
            low, high = low - 0.5, low + 0.5
        slack = 1e-6 * (high - low)
        return cls(low, high, least < low - slack, most > high + slack)

    def step(self, value: float) -> int:
        """Which colour a number gets."""
        return min(STEPS - 1, max(0, math.floor((value - self.low) / (self.high - self.low) * STEPS)))


def _shown(figure: Heatmap) -> list[float | None]:
    """The numbers of a map, None where it is hidden or has none."""
    hidden = figure.hidden.values if figure.hidden is not None else [0] * len(figure.values.values)
    return [
        None if away or value is None or not math.isfinite(value) else value
        for value, away in zip(figure.values.values, hidden, strict=True)
    ]


def pixels(figure: Heatmap, scale: Scale) -> bytes:
    """A map as a PNG of one pixel a cell; hidden cells are transparent, those without a number grey."""
    hidden = figure.hidden.values if figure.hidden is not None else [0] * len(figure.values.values)
    indices = bytes(
        255 if away else STEPS if value is None else scale.step(value)
        for value, away in zip(_shown(figure), hidden, strict=True)
    )
    columns = figure.values.shape[1]
    rows = [indices[start : start + columns] for start in range(0, len(indices), columns)]
    return png(rows, [*palette(figure.scale), _MISSING])


def heatmap(
    sheet: Sheet, figure: Heatmap, x: float, y: float, width: float, scale: Scale | None = None, bare: bool = False
) -> float:
    """A matrix as colours, with labels, both axes' names and a colour bar.

    Args:
        sheet: where.
        figure: what.
        x: its left end.
        y: its top.
        width: of all of it.
        scale: what the colours stand for; default its own.
        bare: without labels and colour bar, as one of many on one scale.
    """
    pen, (rows, columns) = sheet.pen, figure.values.shape
    y = sheet.title(figure.title, x, y, width, SMALL if bare else TITLE)
    scale = Scale.of(figure) if scale is None else scale
    if not rows or not columns:
        return y
    bar = 0.0 if bare else 18 + max(text_width(text, TEXT) for _, text in _bar_ticks(scale, figure.unit))
    widest = max((text_width(label, TEXT) for label in figure.rows), default=0.0)
    left = 0.0 if bare else 15 + min(widest, 0.24 * width)
    room = width - left - bar
    cell = min(_CELL, room / columns, _TALLEST / rows if max(rows, columns) <= 2 * min(rows, columns) else math.inf)
    wide, tall = cell * columns, cell * rows
    if tall > min(1.1 * room, _TALLEST):  # a tower is pressed, a map that is nearly square keeps its shape
        tall = min(1.1 * room, _TALLEST)
    elif not bare and tall < 36:
        tall = min(36.0, _CELL * rows)
    x0 = x + left
    if figure.hidden is not None and any(figure.hidden.values):
        pen.box(x0, y, wide, tall, fill="url(#hatch)")
    pen.picture(x0, y, wide, tall, pixels(figure, scale))
    pen.box(x0, y, wide, tall, edge=QUIET)
    if bare:
        return y + tall + 4
    _row_labels(sheet, figure, x0, y, left, tall)
    colour_bar(sheet, figure, scale, x0 + wide + 7, y, tall)
    return _column_labels(sheet, figure, x0, y + tall, wide)


def chosen(labels: Sequence[str], room: float, need: float) -> range:
    """Which labels stand there, so that each has room: every n-th, n round where labels are numbers."""
    least = max(1, math.ceil(need / room)) if room > 0 else len(labels)
    if labels and all(label.isdigit() for label in labels):
        power = 10 ** math.floor(math.log10(least))
        least = next(factor * power for factor in (1, 2, 4, 5, 8, 10) if factor * power >= least)
    return range(0, len(labels), least)


def _row_labels(sheet: Sheet, figure: Heatmap, x: float, y: float, left: float, tall: float) -> None:
    room = tall / max(len(figure.rows), 1)
    for n in chosen(figure.rows, room, TEXT * 1.3):
        label = fit(figure.rows[n], left - 14.5, TEXT)
        sheet.pen.text(x - 3, y + (n + 0.5) * room + TEXT * 0.35, label, anchor="end")
    name = fit(sheet.said(figure.axes[0]), max(tall, 60), TEXT)
    sheet.pen.text(x - left + TEXT, y + tall / 2, name, anchor="middle", fill=QUIET, turned=True)


def _column_labels(sheet: Sheet, figure: Heatmap, x: float, y: float, wide: float) -> float:
    labels = figure.columns
    room = wide / max(len(labels), 1)
    widest = max((text_width(label, TEXT) for label in labels), default=0.0)
    turned = widest + 4 > room and not all(label.isdigit() for label in labels)
    for n in chosen(labels, room, TEXT * 1.1 if turned else widest + 4):
        middle = x + (n + 0.5) * room
        if turned:
            sheet.pen.text(middle + TEXT * 0.35, y + 3, fit(labels[n], 48, TEXT), anchor="end", turned=True)
        else:
            sheet.pen.text(middle, y + TEXT + 2, labels[n], anchor="middle")
    y += min(widest, 48) + 5 if turned else TEXT + 4
    sheet.pen.text(
        x + wide / 2, y + TEXT, fit(sheet.said(figure.axes[1]), wide + 30, TEXT), anchor="middle", fill=QUIET
    )
    return y + TEXT + 6


def _bar_ticks(scale: Scale, unit: str) -> list[tuple[float, str]]:
    """The numbers beside a colour bar: both ends, marked where numbers lie beyond them, and one between."""
    middle = 0.0 if scale.low < 0 < scale.high else (scale.low + scale.high) / 2
    after = f" {unit}" if unit else ""
    ends = (scale.low, "≤ " if scale.below else ""), (middle, ""), (scale.high, "≥ " if scale.above else "")
    return [(value, f"{before}{number(value)}{after}") for value, before in ends]


def colour_bar(sheet: Sheet, figure: Heatmap, scale: Scale, x: float, y: float, tall: float) -> None:
    """What numbers the colours stand for, from below to above."""
    height = min(tall, 120.0)
    sheet.pen.picture(x, y, 7, height, png([bytes([n]) for n in reversed(range(STEPS))], palette(figure.scale)))
    sheet.pen.box(x, y, 7, height, edge=QUIET)
    told = _bar_ticks(scale, figure.unit)
    for value, text in told if height >= 30 else (told[0], told[-1]):
        at = y + height * (scale.high - value) / (scale.high - scale.low)
        sheet.pen.line(x + 7, at, x + 9, at, QUIET)
        sheet.pen.text(x + 11, min(max(at + TEXT * 0.35, y + TEXT * 0.7), y + height), text)


# --- curves ---------------------------------------------------------------------------------------------------------
