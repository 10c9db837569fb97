"""Maps, curves, bars and dials for print; each is drawn into a given width and returns its lower end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from headway.figures.values import Bars, Dials, Heatmap, Lines, evenly
from headway.figures.words import number
from headway.plot.sheet import QUIET, RULE, SMALL, TEXT, TITLE, Sheet, clean, fit, text_width
from headway.web.colours import colour_table, dashes, hues, line_styles, style_of

_CELL = 24.0
"""The largest side of a cell of a map."""
_TALLEST = 280.0
"""The largest height of a map."""
_MARKERS = 5
"""Number of markers along a line."""
_SHAPES = "os^DosD"
"""Markers by dash, as in assets/styles.js: filled, then hollow."""
HOLLOW = 4
"""Dashes from this number on have hollow markers."""
_LABEL = 48.0
"""The longest vertical label below a panel."""

Look = tuple[int, int]
"""The colour and dash of a line, as :func:`headway.web.colours.line_styles` gives them."""


# --- maps -----------------------------------------------------------------------------------------------------------


def _floats(values: Sequence[float | None]) -> np.ndarray[Any, Any]:
    """Values as an array, NaN where missing."""
    return np.array([math.nan if value is None else value for value in values], float)


def numbers_of(figure: Heatmap) -> np.ma.MaskedArray[Any, Any]:
    """The values of a map as a masked array, NaN where missing."""
    values = _floats(figure.values.values).reshape(figure.values.shape)
    values[~np.isfinite(values)] = math.nan
    hidden = False if figure.hidden is None else np.array(figure.hidden.values, bool).reshape(figure.values.shape)
    return np.ma.masked_array(values, hidden)


def scale_of(*maps: Heatmap) -> tuple[Normalize, bool, bool]:
    """The colour scale of maps: their own limits, or those of all unmasked values.

    Returns:
        The scale, and whether there are values below and above it.
    """
    found = np.concatenate([np.ma.masked_invalid(numbers_of(one)).compressed() for one in maps])
    least, most = (float(found.min()), float(found.max())) if found.size else (0.0, 1.0)
    if (limits := maps[0].fit or maps[0].limits) is not None:
        low, high = limits
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
    return Normalize(low, high, clip=True), least < low - slack, most > high + slack


def palette(scale: str) -> ListedColormap:
    """The page's colours of a map; masked cells are transparent, matplotlib's default."""
    return ListedColormap(np.array(colour_table(scale)) / 255)


def heatmap(
    sheet: Sheet,
    figure: Heatmap,
    x: float,
    y: float,
    width: float,
    scale: tuple[Normalize, bool, bool] | None = None,
    bare: bool = False,
    size: float | None = None,
) -> float:
    """A matrix as colours, with labels, the names of both axes and a colour bar.

    Args:
        sheet: the sheet to draw on.
        figure: the map.
        x: its left end.
        y: its top.
        width: the total width.
        scale: the colour scale; default the map's own.
        bare: omit labels and colour bar, for one of many maps with a common scale.
        size: of its title; default that of titles, or small where bare.
    """
    rows, columns = figure.values.shape
    y = sheet.title(figure.title, x, y, width, size or (SMALL if bare else TITLE))
    scale = scale_of(figure) if scale is None else scale
    if not rows or not columns:
        return y
    marks = [] if bare else _bar_ticks(scale, figure.unit)
    bar = 20 + max(text_width(text, TEXT) for _, text in marks) if marks else 1.0
    widest = max((text_width(label, TEXT) for label in figure.rows), default=0.0)
    left = 1.0 if bare else 16 + min(widest, 0.24 * width)
    room = width - left - bar
    cell = min(_CELL, room / columns, _TALLEST / rows if max(rows, columns) <= 2 * min(rows, columns) else math.inf)
    wide, tall = cell * columns, cell * rows
    if tall > min(1.1 * room, _TALLEST):  # tall maps are compressed, nearly square ones keep their aspect ratio
        tall = min(1.1 * room, _TALLEST)
    elif not bare and tall < 36:
        tall = min(36.0, _CELL * rows)
    axes = sheet.axes(x + left, y, wide, tall)
    image(axes, figure, scale[0])
    if bare:
        axes.set(xticks=[], yticks=[])
        return y + tall + 4
    colour_bar(sheet, figure, scale, x + left + wide + 7, y, tall)
    chosen = _chosen(figure.rows, tall / rows, TEXT * 1.3)
    axes.set_yticks(list(chosen), [clean(fit(figure.rows[n], left - 14.5, TEXT)) for n in chosen])
    _below(axes, figure.columns, wide / columns)
    axes.tick_params(length=0, pad=3)
    _name(axes, sheet.said(figure.axes[0]), max(tall, 60), "y")
    _name(axes, sheet.said(figure.axes[1]), wide + 30, "x")
    return sheet.settle(axes, x, y, left + wide + (0 if bare else 2), tall)[3] + 4


def image(axes: Axes, figure: Heatmap, norm: Normalize) -> None:
    """The cells of a map, one pixel each; masked cells are hatched, missing values white."""
    values = numbers_of(figure)
    if np.ma.getmaskarray(values).any():
        hatch = Rectangle(
            (0, 0), 1, 1, transform=axes.transAxes, facecolor="#fff", edgecolor=RULE, linewidth=0, zorder=-1
        )
        hatch.set_hatch("//////")
        axes.add_patch(hatch)
    cells = palette(figure.scale)(norm(values))
    cells[np.isnan(values.data) & ~np.ma.getmaskarray(values)] = 1.0
    axes.imshow(cells, aspect="auto", interpolation="none")


def _chosen(labels: Sequence[str], room: float, need: float) -> range:
    """Which labels to show, so that each has room: every n-th, with a round n if labels are numbers."""
    least = max(1, math.ceil(need / room)) if room > 0 else len(labels)
    if labels and all(label.isdigit() for label in labels):
        power = 10 ** math.floor(math.log10(least))
        least = next(factor * power for factor in (1, 2, 4, 5, 8, 10) if factor * power >= least)
    return range(0, len(labels), max(least, 1))


def _below(axes: Axes, labels: Sequence[str], room: float) -> None:
    """Labels below a panel, vertical if they are wider than their columns."""
    widest = max((text_width(label, TEXT) for label in labels), default=0.0)
    upright = widest + 4 > room and not all(label.isdigit() for label in labels)
    chosen = _chosen(labels, room, TEXT * 1.1 if upright else widest + 4)
    shown = [clean(fit(labels[n], _LABEL, TEXT) if upright else labels[n]) for n in chosen]
    axes.set_xticks(list(chosen), shown, rotation=90 if upright else 0)


def _name(axes: Axes, text: str, room: float, side: str) -> None:
    """Name an axis."""
    name = axes.set_xlabel if side == "x" else axes.set_ylabel
    name(fit(text, room, TEXT), fontsize=TEXT, color=QUIET, labelpad=2)


def _bar_ticks(scale: tuple[Normalize, bool, bool], unit: str) -> list[tuple[float, str]]:
    """The tick labels of a colour bar: both ends, marked if values lie beyond them, and one in between."""
    norm, below, above = scale
    low, high = float(norm.vmin or 0.0), float(norm.vmax or 0.0)
    middle = 0.0 if low < 0 < high else (low + high) / 2
    after = f" {unit}" if unit else ""
    ends = (low, "≤ " if below else ""), (middle, ""), (high, "≥ " if above else "")
    return [(value, f"{before}{number(value)}{after}") for value, before in ends]


def colour_bar(
    sheet: Sheet, figure: Heatmap, scale: tuple[Normalize, bool, bool], x: float, y: float, tall: float
) -> None:
    """Draw a vertical colour bar, lowest value at the bottom."""
    height = min(tall, 120.0)
    axes = sheet.axes(x, y, 7, height)
    sheet.figure.colorbar(ScalarMappable(scale[0], palette(figure.scale)), cax=axes)
    marks = _bar_ticks(scale, figure.unit)
    marks = marks if height >= 30 else [marks[0], marks[-1]]
    axes.set_yticks([value for value, _ in marks], [text for _, text in marks])
    axes.minorticks_off()
    axes.get_yticklabels()[0].set_verticalalignment("bottom")  # not beyond the bar's ends
    axes.get_yticklabels()[-1].set_verticalalignment("top")


# --- curves, bars and dials -----------------------------------------------------------------------------------------


def lines(sheet: Sheet, figure: Lines, x: float, y: float, width: float) -> float:
    """Curves over one axis, with bands, dashes and markers; each one's name is beside its end or below."""
    y = sheet.title(figure.title, x, y, width)
    curves = [_floats(line.values) for line in figure.lines]
    shown = [n for n, values in enumerate(curves) if np.isfinite(values).any()]
    if not shown:
        sheet.text(x + width / 2, y + 20, sheet.word("empty"), ha="center", color=QUIET)
        return y + 36
    look = line_styles([(line.label["en"], line.style) for line in figure.lines])
    named = len(figure.lines) > 1 or any(sheet.said(line.label) for line in figure.lines)
    widest = max(text_width(sheet.said(figure.lines[n].label), TEXT) for n in shown) + 36 if named else 0.0
    beside = named and widest <= 0.4 * width
    tall = max(0.55 * min(width, 300.0), len(shown) * TEXT * 1.3 if beside else 0.0)
    y = sheet.lines(x, y - 3, fit(sheet.said(figure.axes[1]), width, TEXT), width, TEXT, color=QUIET) + 3
    axes = sheet.axes(x, y, width, tall)
    for n in shown:
        _curve(axes, figure, n, look[n], len(shown) > 1)
    _ticks(axes, figure)
    _name(axes, sheet.said(figure.axes[0]), width, "x")
    if beside:  # from top to bottom, in the order of the curves' ends
        shown.sort(key=lambda n: -curves[n][np.isfinite(curves[n])][-1])
    if named:
        handles = [Line2D([], [], **_style(look[n])) for n in shown]
        _legend(axes, handles, [sheet.said(figure.lines[n].label) for n in shown], width, tall, beside)
    _marks(sheet, axes, figure, sheet.settle(axes, x, y, width, tall), x + width)
    return sheet.settle(axes, x, y, width, tall)[3] + 4


def _style(look: Look) -> dict[str, Any]:
    """Colour, dash and marker of a line."""
    hue, dash = look
    lengths = [float(one) for one in dashes()[dash].split()]
    return {
        "color": hues()[hue],
        "linewidth": 1.2,
        "linestyle": (0, [one / 1.2 for one in lengths]) if lengths else "-",
        "marker": _SHAPES[dash],
        "markersize": 3.6,
        "markeredgewidth": 0.9,
        "markerfacecolor": "#fff" if dash >= HOLLOW else hues()[hue],
    }


def _curve(axes: Axes, figure: Lines, n: int, look: Look, marked: bool) -> None:
    """One curve with its band and a few markers."""
    line, x = figure.lines[n], np.array(figure.x, float)
    values, low, high = (None if held is None else _floats(held) for held in (line.values, line.low, line.high))
    assert values is not None
    if low is not None and high is not None:
        axes.fill_between(x, low, high, color=hues()[look[0]], alpha=0.16, linewidth=0)
    there = np.flatnonzero(np.isfinite(values))
    step = "steps-post" if line.steps else "default"
    style = _style(look) if marked or len(there) == 1 else {**_style(look), "marker": ""}
    axes.plot(x, values, drawstyle=step, markevery=[int(there[i]) for i in evenly(len(there), _MARKERS)], **style)


def _ticks(axes: Axes, figure: Lines) -> None:
    """Scales, a light grid, and round tick labels; a logarithmic axis has 0 at its start."""
    values = [
        v for line in figure.lines for held in (line.values, line.low, line.high) for v in held or () if v is not None
    ]
    for axis, rescale, log, known in (
        (axes.xaxis, axes.set_xscale, figure.log_x, figure.x),
        (axes.yaxis, axes.set_yscale, figure.log_y, values),
    ):
        above = [value for value in known if math.isfinite(value) and value > 0]
        axis.set_major_locator(MaxNLocator(6 if axis is axes.xaxis else 5, steps=[1, 2, 5, 10]))
        if log and above:
            base = 10.0 if max(above) > 5000 * min(above) else 2.0
            if len(above) < len(known):
                rescale("symlog", linthresh=min(above), linscale=0.5, base=base)
            else:
                rescale("log", base=base)
                axis.set_major_locator(LogLocator(base, numticks=7))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.grid(True, axis="y", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.01, y=0.04)


def _legend(axes: Axes, handles: Sequence[Any], names: Sequence[str], width: float, tall: float, beside: bool) -> None:
    """A legend beside a panel, or below it, with as many entries in a row as fit."""
    widest = max(text_width(name, TEXT) for name in names) + 36
    columns = 1 if beside else min(len(names), max(1, int((width - 20) / widest)))
    axes.legend(
        handles,
        [clean(fit(name, width - 60, TEXT)) for name in names],
        loc="center left" if beside else "upper left",
        bbox_to_anchor=(1.0, 0.5) if beside else (0.0, -3.4 * TEXT / tall),
        ncols=columns,
        frameon=False,
        borderpad=0,
        borderaxespad=0.8 if beside else 0.0,
        handlelength=2.6,
        labelspacing=0.25,
        fontsize=TEXT,
    )


def _marks(sheet: Sheet, axes: Axes, figure: Lines, place: tuple[float, float, float, float], end: float) -> None:
    """Vertical lines with their names above them, stacked if they would overlap."""
    left, _, wide, _ = place
    free: list[float] = []  # where each row of names ends
    for value, said in sorted(figure.marks, key=lambda mark: mark[0]):
        if not math.isfinite(value):
            continue
        text = fit(sheet.said(said), 0.6 * wide, SMALL)
        half = text_width(text, SMALL) / 2
        at = float(axes.transAxes.inverted().transform(axes.transData.transform((value, 1.0)))[0]) * wide + left
        middle = min(max(at, left + half), end - half)
        row = next((n for n, taken in enumerate(free) if taken + 5 < middle - half), len(free))
        free[row : row + 1] = [middle + half]
        axes.axvline(value, color=QUIET, linewidth=0.6, linestyle=(0, (2, 2)), zorder=1)
        axes.annotate(
            clean(text),
            (value, 1.0),
            (middle - at, 2 + row * SMALL * 1.3),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="center",
            fontsize=SMALL,
            color=QUIET,
        )


def bars(sheet: Sheet, figure: Bars, x: float, y: float, width: float) -> float:
    """Groups of bars; a dash replaces a missing bar, e.g. of a masked key."""
    y = sheet.title(figure.title, x, y, width)
    y = sheet.lines(x, y - 3, fit(sheet.said(figure.axis), width, TEXT), width, TEXT, color=QUIET) + 3
    tall, count = 0.4 * min(width, 260.0), max(len(figure.labels), 1)
    axes = sheet.axes(x, y, width, tall)
    group = (width - 30) / count
    each = min(0.8 / max(len(figure.series), 1), 18.0 / group)
    handles = []
    for n, (_, held) in enumerate(figure.series):
        at = np.arange(len(held)) + (n - (len(figure.series) - 1) / 2) * each
        values = _floats(held)
        handles.append(axes.bar(at, values, 0.92 * each, color=hues()[style_of(n)[0]]))
        if (none := at[~np.isfinite(values)]).size:
            axes.plot(none, 0 * none, linestyle="", marker="_", markersize=4, color=QUIET, clip_on=False)
    axes.axhline(0, color=QUIET, linewidth=0.5)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.grid(True, axis="y", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlim(-0.5, count - 0.5)
    _below(axes, figure.labels, group)
    if len(figure.series) > 1:
        under = _LABEL + TEXT if axes.get_xticklabels() and axes.get_xticklabels()[0].get_rotation() else 2 * TEXT
        names = [sheet.said(name) for name, _ in figure.series]
        _legend(axes, handles, names, width, tall * 3.4 * TEXT / (under + 4), False)
    return sheet.settle(axes, x, y, width, tall)[3] + 4


def dials(sheet: Sheet, figure: Dials, x: float, y: float, width: float) -> float:
    """Angles as hands on circles, 0 to the right, counterclockwise."""
    r = 14.0
    y = sheet.title(figure.title, x, y, width)
    step = max(2 * r + 8, min(64.0, max((text_width(label, SMALL) for label in figure.labels), default=0.0) + 6))
    across = max(1, int(width / step))
    high = 2 * r + SMALL + 8
    tall = max(math.ceil(len(figure.labels) / across), 1) * high
    axes = sheet.axes(x, y, across * step, tall)
    axes.set(xlim=(0, across * step), ylim=(tall, 0), xticks=[], yticks=[], aspect="equal", anchor="NW")
    axes.spines[:].set_visible(False)
    for i, label in enumerate(figure.labels):
        cx, cy = (i % across + 0.5) * step, (i // across) * high + r + 2
        axes.add_patch(Circle((cx, cy), r, fill=False, edgecolor=RULE, linewidth=0.8))
        axes.plot([cx + r - 2, cx + r + 2], [cy, cy], color=QUIET, linewidth=0.5)
        for n, (_, angles) in enumerate(figure.hands):
            tip = (cx + (r - 1) * math.cos(angles[i]), cy - (r - 1) * math.sin(angles[i]))
            axes.plot(*zip((cx, cy), tip, strict=True), **_style(style_of(n)), markevery=[1])
        name = fit(label, step - 2, SMALL)
        axes.text(cx, cy + r + SMALL + 2, clean(name), fontsize=SMALL, ha="center")
    if len(figure.hands) > 1:
        handles = [Line2D([], [], **_style(style_of(n))) for n in range(len(figure.hands))]
        names = [sheet.said(name) for name, _ in figure.hands]
        _legend(axes, handles, names, width, tall * 3.4 * TEXT / 4, False)
    return sheet.settle(axes, x, y, width, tall)[3] + 4
