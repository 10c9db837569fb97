"""Any figure, or a whole view, as a matplotlib figure for print.

Sizes are in points: a single column is 3.4 inches wide, two columns 7. White background, the page's colours and dashes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from headway.figures.values import (
    Bars,
    Columns,
    Dials,
    Figure,
    Film,
    Grid,
    Heatmap,
    Lines,
    Product,
    Said,
    Steps,
    Tiles,
    Turns,
    View,
    Wall,
    Worked,
    evenly,
    same,
)
from headway.figures.words import LANGUAGES, number
from headway.plot.panels import bars, colour_bar, dials, heatmap, lines, scale_of
from headway.plot.sheet import INK, QUIET, RULE, SMALL, TEXT, TITLE, Drawing, Sheet, for_print, text_width, wrapped
from headway.schema import Words, require

WIDTHS = {"single": 3.4, "double": 7.0}
"""Widths of a column in inches."""
_GAP = 10.0
_TWO = 400.0
"""Width in points from which simple figures are placed two in a row."""
_SIMPLE = (Heatmap, Tiles, Lines, Bars, Dials)
_SMALLEST = 5.5
"""Font size of a table that would otherwise be too wide."""
_FRAMES = 4
"""Number of a film's frames that are shown side by side."""
_INNER = 3
"""Number of products of a sum that are written out, and of table rows that fit side by side."""


def picture(figure: View | Figure, *, language: str = "en", width: str = "single", caption: bool = True) -> Drawing:
    """Draw a figure or a view for print.

    Args:
        figure: the figure or view.
        language: "en" or "zh".
        width: "single" or "double" column.
        caption: whether to write a view's title above it, and its finding, formula and notes below; omit it for a paper
            with its own caption.

    Returns:
        A matplotlib figure.

    Raises:
        HeadwayError: on an unknown width or language.

    >>> from headway.figures.values import Bars, same
    >>> made = picture(Bars(same("Weights"), ["a", "b"], [(same("head 0"), [0.25, 0.75])], same("α")))
    >>> len(made.axes), float(made.get_size_inches()[0])
    (1, 3.4)
    """
    for what, given, known in (("language", language, LANGUAGES), ("width", width, tuple(WIDTHS))):
        require(given, Words(tuple(known)), what)
    wide = 72 * WIDTHS[width]
    with for_print():
        sheet = Sheet(language, wide)
        if isinstance(figure, View):
            bottom = _view(sheet, figure, 2.0, 0.0, wide - 4, caption)
        else:
            bottom = draw(sheet, figure, 2.0, 0.0, wide - 4)
        return sheet.finish(math.ceil(bottom + 4))


def draw(sheet: Sheet, figure: Figure, x: float, y: float, width: float) -> float:
    """Draw any figure with its upper left corner at (x, y); returns its lower end."""
    match figure:
        case Heatmap():
            return heatmap(sheet, figure, x, y, width)
        case Lines():
            return lines(sheet, figure, x, y, width)
        case Bars():
            return bars(sheet, figure, x, y, width)
        case Dials():
            return dials(sheet, figure, x, y, width)
        case Grid():
            return _grid(sheet, figure, x, y, width)
        case Wall():
            return _wall(sheet, figure, x, y, width)
        case Product():
            return _product(sheet, figure, x, y, width)
        case Steps():
            return _steps(sheet, figure, x, y, width)
        case Film():
            frames = [figure.frames[n] for n in evenly(len(figure.frames), _FRAMES if width > 300 else 2)]
            return _beside(sheet, figure.title, frames, x, y, width)
        case Columns():
            return _beside(sheet, figure.title, figure.columns, x, y, width)
        case Tiles():
            return heatmap(sheet, replace(figure.overview, title=figure.title), x, y, width)
        case Worked() | Turns():
            return draw(sheet, figure.printed(), x, y, width)


def _view(sheet: Sheet, view: View, x: float, y: float, width: float, caption: bool) -> float:
    if caption:
        y = sheet.title(view.title, x, y, width, TITLE + 1.5) + 2
        if view.mark is not None:
            y = sheet.lines(x, y, sheet.said(view.mark), width, TEXT, color=QUIET)
    y = _arranged(sheet, view.figures, x, y, width)
    if caption:
        y = sheet.lines(x, y, sheet.said(view.finding), width, TEXT + 0.5) + 2
        if view.formula:
            for line in view.formula.splitlines():
                y = sheet.lines(x, y, line, width, TEXT)
            y += 2
        for note in view.notes:
            y = sheet.lines(x, y, sheet.said(note), width, SMALL, color=QUIET)
    return y


def _stacked(sheet: Sheet, figures: Sequence[Figure], x: float, y: float, width: float) -> float:
    for figure in figures:
        y = draw(sheet, figure, x, y, width) + _GAP
    return y


def _arranged(sheet: Sheet, figures: Sequence[Figure], x: float, y: float, width: float) -> float:
    """Stack figures; if there is room, simple ones two in a row, others over the whole width."""
    if width < _TWO:
        return _stacked(sheet, figures, x, y, width)
    half, waiting = (width - 2 * _GAP) / 2, list(figures)
    while waiting:
        count = 2 if len(waiting) > 1 and all(isinstance(one, _SIMPLE) for one in waiting[:2]) else 1
        row, waiting = waiting[:count], waiting[count:]
        places = [(x, width)] if count == 1 else [(x, half), (x + half + 2 * _GAP, half)]
        y = _GAP + max(draw(sheet, one, left, y, wide) for one, (left, wide) in zip(row, places, strict=True))
    return y


def _beside(
    sheet: Sheet, title: Said, columns: Sequence[tuple[Said, Sequence[Any]]], x: float, y: float, width: float
) -> float:
    """Columns of figures, as many side by side as stay readable, the others below."""
    y = sheet.title(title, x, y, width)
    across = max(1, min(len(columns), int(width / 115)))
    each = (width - _GAP * (across - 1)) / across
    for start in range(0, len(columns), across):
        ends = []
        for n, (label, figures) in enumerate(columns[start : start + across]):
            left = x + n * (each + _GAP)
            known = any(dict(one.title) == dict(label) for one in figures[:1])
            top = y if known else sheet.title(label, left, y, each, TEXT)
            ends.append(_stacked(sheet, figures, left, top, each))
        y = max(ends)
    return y


def _grid(sheet: Sheet, figure: Grid, x: float, y: float, width: float) -> float:
    """A table whose columns share the width by need; the font shrinks before words are broken."""
    y = sheet.title(figure.title, x, y, width)
    head = [sheet.said(column) for column in figure.columns]
    rows = [[sheet.said(name), *cells] for name, cells in figure.rows]
    words = [[max(name.split(), key=len, default="") for name in head], *rows]  # headings wrap at spaces
    need = [max(text_width(row[n], TEXT) for row in words if n < len(row)) + 8 for n in range(len(head))]
    size = TEXT
    if sum(need) > width:
        size = max(_SMALLEST, TEXT * width / sum(need))
        need = [one * size / TEXT for one in need]
    if sum(need) > width:  # wide columns shrink before narrow ones
        fair = width / len(need)
        spare, wide = width - sum(one for one in need if one <= fair), sum(one for one in need if one > fair)
        need = [one if one <= fair else spare * one / wide for one in need]
    for n, row in enumerate([head, *rows]):
        broken = [wrapped(cell, room - 5, size) for cell, room in zip(row, need, strict=False)]
        left = x
        for column, (text, room) in enumerate(zip(broken, need, strict=False)):
            for depth, line in enumerate(text):
                at, anchor = (left, "left") if column == 0 else (left + room - 2, "right")
                sheet.text(at, y + size + depth * size * 1.25, line, size, ha=anchor, color=INK if n else QUIET)
            left += room
        y += max(map(len, broken)) * size * 1.25 + 3
        sheet.rule(x, y - 0.5, left - x, RULE if n else QUIET)
    return y + 2


def _wall(sheet: Sheet, figure: Wall, x: float, y: float, width: float) -> float:
    """Small maps with a common scale and one colour bar."""
    y = sheet.title(figure.title, x, y, width)
    if not figure.tiles:
        return y
    maps = [one for _, one, _ in figure.tiles]
    scale, across, room = scale_of(*maps), max(1, figure.columns), 44.0
    each = (width - room - 4 * (across - 1)) / across
    top = y
    words = {word for label, _, _ in figure.tiles for word in sheet.said(label).split()}
    widest = 1.1 * max((text_width(word, SMALL) for word in words), default=1.0)  # in bold, and a little room
    size = SMALL * min(1.0, each / widest)
    for start in range(0, len(figure.tiles), across):
        ends = []
        for n, (label, one, _) in enumerate(figure.tiles[start : start + across]):
            bare = Heatmap(label, one.values, (), (), one.axes, one.scale, one.limits, one.hidden, one.unit)
            ends.append(heatmap(sheet, bare, x + n * (each + 4), y, each, scale, bare=True, size=size))
        y = max(ends)
    colour_bar(sheet, maps[0], scale, x + width - room + 8, top + 12, min(80.0, y - top - 16))
    return y


def _product(sheet: Sheet, figure: Product, x: float, y: float, width: float) -> float:
    """The three matrices side by side, and one entry computed in full."""
    y = sheet.title(figure.title, x, y, width)
    blocks = (figure.left, figure.right, figure.out)
    sides = [max(block.shape[1], 2) for block in blocks]
    each = [(width - 2 * _GAP) * side / sum(sides) for side in sides]
    each = [max(one, 0.2 * width) for one in each]
    each = [one * (width - 2 * _GAP) / sum(each) for one in each]
    axes = (same(""), same(""))
    left, ends = x, []
    for name, block, wide in zip(figure.names, blocks, each, strict=True):
        one = Heatmap(same(f"{name}  {block.shape[0]} × {block.shape[1]}"), block, (), (), axes, "diverging")
        ends.append(heatmap(sheet, one, left, y, wide, bare=True))
        left += wide + _GAP
    return sheet.lines(x, max(ends) + 2, worked_out(figure), width) + 2


def worked_out(figure: Product) -> str:
    """One entry of a product as a sum: its largest parts, and the total of the others."""
    row, column = figure.cell
    inner = figure.left.shape[1]
    values = [
        (figure.left.values[row * inner + k] or 0.0) * (figure.right.values[k * figure.right.shape[1] + column] or 0.0)
        for k in range(inner)
    ]
    bias = 0.0 if figure.bias is None else figure.bias.values[column] or 0.0
    largest = sorted(range(inner), key=lambda k: -abs(values[k]))[:_INNER]
    parts = [f"{number(values[k])} (k={k})" for k in sorted(largest)]
    if inner > len(largest):
        parts.append(f"{number(sum(values) - sum(values[k] for k in largest))} (…)")
    if figure.bias is not None:
        parts.append(f"{number(bias)} (b)")
    made = figure.out.values[row * figure.out.shape[1] + column]
    label = figure.rows[row] if row < len(figure.rows) else row
    return f"{figure.names[2]}[{label}, {column}] = {' + '.join(parts)} = {number(made or 0.0)}"


def _steps(sheet: Sheet, figure: Steps, x: float, y: float, width: float) -> float:
    """A strip of the stages, then each with its formula, its shape and its result."""
    y = sheet.title(figure.title, x, y, width)
    strip = " → ".join(sheet.said(stage.label) for stage in figure.stages)
    y = sheet.lines(x, y, strip, width, color=QUIET) + 4
    for stage in figure.stages:
        told = f"{stage.formula}   {stage.shape}".strip()
        y = sheet.title(stage.label, x, y, width)
        if told:
            y = sheet.lines(x, y - 2, told, width, color=QUIET)
        y = sheet.lines(x, y, sheet.said(stage.said), width) + 4
        y = _arranged(sheet, stage.figures, x, y, width)
    return y
