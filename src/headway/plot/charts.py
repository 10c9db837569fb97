"""Curves, bars and dials for print, each drawn into a width and telling where it ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from headway.figures.values import Bars, Dials, Line, Lines, evenly
from headway.plot.maps import chosen
from headway.plot.sheet import Sheet
from headway.plot.svg import (
    QUIET,
    RULE,
    SMALL,
    TEXT,
    Pen,
    fit,
    log_ticks,
    marker,
    number,
    points,
    spread,
    text_width,
    ticks,
)
from headway.web.colours import by_place, dashes, hues, looks

_MARKERS = 5
"""Markers along a line."""
HOLLOW = 4
"""Dashes from here have outlines as markers, as in assets/styles.js."""
Look = tuple[int, int]
"""The colour and dash of a line, as :func:`headway.web.colours.looks` gives them."""


@dataclass(frozen=True)
class Axis:
    """Where numbers lie along an axis.

    Args:
        low: the number at its beginning.
        high: that at its end.
        start: where it begins, in points.
        end: where it ends.
        log: whether equal ratios are equally far apart; then what is not above 0 lies at the beginning.
        zero: whether the beginning stands for 0 on a logarithmic axis.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    zero: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, log: bool, margin: float = 0.0) -> Axis:
        """An axis for these numbers, with a margin as a share of its length."""
        if log and any(value > 0 for value in values):
            positive = [value for value in values if value > 0]
            zero = len(positive) < len(values)
            low, high = min(positive) / (2 if zero else 1), max(positive)
            return cls(low, high if high > low else 2 * low, start, end, True, zero)
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if not high > low:
            low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
        room = margin * (high - low)
        return cls(low - room, high + room, start, end)

    def at(self, value: float) -> float:
        """Where a number lies."""
        share = (value - self.low) / (self.high - self.low)
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """Numbers to write beside it."""
        if not self.log:
            return ticks(self.low, self.high, count)
        return [0.0, *log_ticks(2 * self.low, self.high, count)] if self.zero else log_ticks(self.low, self.high, count)


def lines(sheet: Sheet, figure: Lines, x: float, y: float, width: float) -> float:
    """Curves over one axis: bands, dashes and markers of their own, each one's name at its end."""
    pen = sheet.pen
    y = sheet.title(figure.title, x, y, width)
    shown = [(n, line) for n, line in enumerate(figure.lines) if any(_finite(v) for v in line.values)]
    if not shown:
        pen.text(x + width / 2, y + 20, sheet.word("empty"), anchor="middle", fill=QUIET)
        return y + 36
    look = looks([(line.label["en"], line.style) for line in figure.lines])
    named = len(figure.lines) > 1 or any(sheet.said(line.label) for line in figure.lines)
    widest = max(text_width(sheet.said(line.label), TEXT) for _, line in shown) + 12 if named else 6
    beside = widest <= 0.36 * width
    values = _numbers(v for _, line in shown for one in (line.values, line.low or (), line.high or ()) for v in one)
    tall = max(0.55 * min(width, 300.0), len(shown) * TEXT * 1.15 if beside else 0.0)
    pen.text(x, y + TEXT, fit(sheet.said(figure.axes[1]), width, TEXT), fill=QUIET)
    y += TEXT + 5
    down = Axis.over(values, tall, 0.0, figure.log_y, 0.04)
    left = max(text_width(_position(tick), TEXT) for tick in down.ticks(5)) + 6
    last = text_width(_position(max(figure.x)), TEXT) / 2 + 1
    right = x + width - (widest if beside else last)
    across = Axis.over(_numbers(figure.x), x + left, right, figure.log_x)
    top = _marks(sheet, figure, across, y, tall, x + width)
    _grid(sheet, across, down, top, tall)
    for n, line in shown:
        _curve(pen, look[n], line, figure.x, across, down, top, len(shown) > 1)
    bottom = top + tall + TEXT + 4
    pen.text((x + left + right) / 2, bottom + TEXT, sheet.said(figure.axes[0]), anchor="middle", fill=QUIET)
    bottom += TEXT + 6
    if beside:
        if named:
            _names(sheet, figure, [(look[n], line) for n, line in shown], across, down, top, tall)
        return bottom
    return _legend(sheet, [(look[n], sheet.said(line.label)) for n, line in shown], x, bottom, width)


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _marks(sheet: Sheet, figure: Lines, across: Axis, y: float, tall: float, end: float) -> float:
    """Vertical lines with their names above them, one over the other where they would touch; returns the plot's top."""
    free: list[float] = []  # where each row of names ends
    placed = []
    for value, said in sorted(figure.marks, key=lambda mark: mark[0]):
        if _finite(value):
            text, at = sheet.said(said), across.at(value)
            start = max(across.start, min(at - text_width(text, SMALL) / 2, end - text_width(text, SMALL)))
            row = next((n for n, taken in enumerate(free) if taken + 4 < start), len(free))
            free[row : row + 1] = [start + text_width(text, SMALL)]
            placed.append((at, start, row, text))
    top = y + len(free) * SMALL * 1.25 + (2 if free else 0)
    for at, _, row, _ in placed:
        base = y + (row + 1) * SMALL * 1.25
        sheet.pen.path(points([(at, base), (at, top + tall)]), QUIET, 0.6, dash="2 2")
    for _, start, row, text in placed:
        sheet.pen.text(start, y + (row + 1) * SMALL * 1.25 - 2, text, SMALL, fill=QUIET, halo=True)
    return top


def _grid(sheet: Sheet, across: Axis, down: Axis, top: float, tall: float) -> None:
    pen = sheet.pen
    for tick in down.ticks(5):
        at = top + down.at(tick)
        pen.line(across.start, at, across.end, at, QUIET if tick == 0 else RULE)
        pen.text(across.start - 4, at + TEXT * 0.35, _position(tick), anchor="end")
    pen.line(across.start, top + tall, across.end, top + tall, QUIET)
    taken = -math.inf
    for tick in across.ticks(max(3, int((across.end - across.start) / 28))):
        text, at = _position(tick), across.at(tick)
        pen.line(at, top + tall, at, top + tall + 2.5, QUIET)
        if at - text_width(text, TEXT) / 2 > taken:
            pen.text(at, top + tall + TEXT + 3, text, anchor="middle")
            taken = at + text_width(text, TEXT) / 2 + 3


def _position(value: float) -> str:
    """A number of an axis: lengths and steps are whole."""
    return f"{value:,.0f}".replace("-", "−") if value == int(value) and abs(value) < 1e7 else number(value)


def _curve(
    pen: Pen, look: Look, line: Line, xs: Sequence[float], across: Axis, down: Axis, top: float, marked: bool
) -> None:
    colour, dash = hues()[look[0]], look[1]

    def place(x: float, value: float | None) -> tuple[float, float] | None:
        return None if value is None or not math.isfinite(value) else (across.at(x), top + down.at(value))

    if line.low is not None and line.high is not None:
        edges = zip(xs, line.low, line.high, strict=True)
        for known, run in groupby(edges, key=lambda one: _finite(one[1]) and _finite(one[2])):
            held = list(run)
            if known and len(held) > 1:
                rim = [place(x, high) for x, _, high in held] + [place(x, low) for x, low, _ in reversed(held)]
                pen.path(points(rim) + "Z", "none", fill=colour, fill_opacity="0.16")
    places = [place(x, value) for x, value in zip(xs, line.values, strict=True)]
    if line.steps:
        pen.path(points(_steps(places)), colour, 1.2, dash=dashes()[dash])
    else:
        pen.path(points(places), colour, 1.2, dash=dashes()[dash], stroke_linejoin="round")
    known_places = [place for place in places if place]
    if marked:
        for n in evenly(len(known_places), _MARKERS):
            _marker(pen, look, *known_places[n])
    elif len(known_places) == 1:
        _marker(pen, look, *known_places[0])


def _steps(places: Sequence[tuple[float, float] | None]) -> list[tuple[float, float] | None]:
    """The same as flat steps: each value holds until the next x."""
    found: list[tuple[float, float] | None] = []
    for here, after in pairwise([*places, None]):
        found.append(here)
        if here and after:
            found.append((after[0], here[1]))
    return found


def _names(
    sheet: Sheet,
    figure: Lines,
    shown: Sequence[tuple[Look, Line]],
    across: Axis,
    down: Axis,
    top: float,
    tall: float,
) -> None:
    """Each line's name at its right, in its colour, joined to the line's end where it had to move."""
    ends = []
    for _, line in shown:
        last = max(i for i, value in enumerate(line.values) if _finite(value))
        value = line.values[last]
        assert value is not None
        ends.append((across.at(figure.x[last]), top + down.at(value)))
    places = spread([at for _, at in ends], TEXT * 1.15, top, top + tall)
    for ((hue, _), line), (x, at), place in zip(shown, ends, places, strict=True):
        colour = hues()[hue]
        if x < across.end - 1 or abs(place - at) > 2:
            sheet.pen.path(
                points([(x + 2, at), (max(x + 3, across.end + 2), at), (across.end + 7, place)]), colour, 0.4
            )
        sheet.pen.text(across.end + 9, place + TEXT * 0.35, sheet.said(line.label), fill=colour)


def _legend(
    sheet: Sheet, entries: Sequence[tuple[Look, str]], x: float, y: float, width: float, *, bars: bool = False
) -> float:
    """Names with samples, as many beside each other as fit; returns where it ends."""
    pen, at = sheet.pen, x
    for (hue, dash), name in entries:
        text = fit(name, width - 24, TEXT)
        need = 22 + text_width(text, TEXT) + 8
        if at > x and at + need > x + width:
            at, y = x, y + TEXT * 1.4
        colour, middle = hues()[hue], y + TEXT * 0.65
        if bars:
            pen.box(at + 8, y + 1, 7, 6, fill=colour)
        else:
            pen.path(points([(at, middle), (at + 17, middle)]), colour, 1.2, dash=dashes()[dash])
            _marker(pen, (hue, dash), at + 8.5, middle)
        pen.text(at + 21, y + TEXT, text)
        at += need
    return y + TEXT * 1.4 + 4


def _marker(pen: Pen, look: Look, x: float, y: float) -> None:
    colour, dash = hues()[look[0]], look[1]
    pen.path(marker(dash, x, y, 2.0), colour, 0.9, fill="#fff" if dash >= HOLLOW else colour)


# --- bars and dials -------------------------------------------------------------------------------------------------


def bars(sheet: Sheet, figure: Bars, x: float, y: float, width: float) -> float:
    """Groups of bars; a dash stands where there is none, as for a masked key."""
    pen = sheet.pen
    y = sheet.title(figure.title, x, y, width)
    if len(figure.series) > 1:
        y = _legend(
            sheet,
            [(by_place(n), sheet.said(name)) for n, (name, _) in enumerate(figure.series)],
            x,
            y,
            width,
            bars=True,
        )
    pen.text(x, y + TEXT, fit(sheet.said(figure.axis), width, TEXT), fill=QUIET)
    y += TEXT + 8
    values = _numbers(v for _, held in figure.series for v in held)
    tall = 0.4 * min(width, 260.0)
    down = Axis.over([0.0, *values], tall, 0.0, False)
    left = max(text_width(number(tick), TEXT) for tick in down.ticks(4)) + 6
    x0, wide = x + left, width - left - 2
    for tick in down.ticks(4):
        pen.line(x0, y + down.at(tick), x0 + wide, y + down.at(tick), QUIET if tick == 0 else RULE)
        pen.text(x0 - 4, y + down.at(tick) + TEXT * 0.35, number(tick), anchor="end")
    group = wide / max(len(figure.labels), 1)
    each = min(0.8 * group / max(len(figure.series), 1), 18.0)
    for n, (_, held) in enumerate(figure.series):
        for i, value in enumerate(held):
            at = x0 + (i + 0.5) * group + (n - len(figure.series) / 2) * each
            if value is None or not math.isfinite(value):
                pen.line(at + 0.2 * each, y + down.at(0) - 1.5, at + 0.8 * each, y + down.at(0) - 1.5, QUIET, 0.8)
            else:
                top, foot = sorted((down.at(value), down.at(0)))
                pen.box(at + 0.04 * each, y + top, 0.92 * each, foot - top, fill=hues()[by_place(n)[0]])
    widest = max((text_width(label, TEXT) for label in figure.labels), default=0.0)
    turned = widest + 3 > group
    for i in chosen(figure.labels, group, TEXT * 1.1 if turned else widest + 3):
        middle = x0 + (i + 0.5) * group
        if turned:
            pen.text(middle + TEXT * 0.35, y + tall + 3, fit(figure.labels[i], 48, TEXT), anchor="end", turned=True)
        else:
            pen.text(middle, y + tall + TEXT + 3, figure.labels[i], anchor="middle")
    return y + tall + (min(widest, 48) if turned else TEXT) + 8


def dials(sheet: Sheet, figure: Dials, x: float, y: float, width: float) -> float:
    """Angles as hands on circles, 0 to the right, counted against the clock."""
    pen, r = sheet.pen, 14.0
    y = sheet.title(figure.title, x, y, width)
    if len(figure.hands) > 1:
        y = _legend(sheet, [(by_place(n), sheet.said(name)) for n, (name, _) in enumerate(figure.hands)], x, y, width)
    step = max(2 * r + 8, min(64.0, max((text_width(label, SMALL) for label in figure.labels), default=0.0) + 6))
    across = max(1, int(width / step))
    for i, label in enumerate(figure.labels):
        cx, cy = x + (i % across + 0.5) * step, y + (i // across) * (2 * r + SMALL + 8) + r + 2
        pen.path(f"M{cx - r:.2f} {cy:.2f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z", RULE, 0.8)
        pen.line(cx + r - 2, cy, cx + r + 2, cy, QUIET)
        for n, (_, angles) in enumerate(figure.hands):
            tip = (cx + (r - 1) * math.cos(angles[i]), cy - (r - 1) * math.sin(angles[i]))
            hue, dash = by_place(n)
            pen.path(points([(cx, cy), tip]), hues()[hue], 1.4, dash=dashes()[dash])
            _marker(pen, (hue, dash), *tip)
        pen.text(cx, cy + r + SMALL + 2, fit(label, step - 2, SMALL), SMALL, anchor="middle")
    return y + math.ceil(len(figure.labels) / across) * (2 * r + SMALL + 8) + 4
