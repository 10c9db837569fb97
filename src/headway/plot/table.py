"""The values that a figure or a view shows, as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from headway.figures.values import (
    Bars,
    Block,
    Columns,
    Dials,
    Figure,
    Film,
    Grid,
    Heatmap,
    Lines,
    Product,
    Steps,
    Tiles,
    Turns,
    View,
    Wall,
    Worked,
)
from headway.results.tables import sheet as table


def to_csv(figure: View | Figure, language: str = "en") -> str:
    """The values that a figure or a view shows, as CSV: one per row, after the name of its figure.

    Args:
        figure: the figure or view.
        language: language of the names.

    >>> from headway.figures.values import Bars, same
    >>> print(to_csv(Bars(same("Weights"), ["a"], [(same("head 0"), [0.25])], same("α"))).replace("\\r", ""))
    figure,row,column,value
    Weights,head 0,a,0.25
    <BLANKLINE>
    """
    return table(("figure", "row", "column", "value"), _cells(figure, language))


def _cells(figure: Any, language: str, path: str = "") -> Iterator[tuple[Any, ...]]:
    if isinstance(figure, View):
        for one in figure.figures:
            yield from _cells(one, language)
        return
    name = " / ".join(part for part in (path, figure.title[language]) if part)
    match figure:
        case Heatmap():
            yield from _matrix(name, figure.values, figure.rows, figure.columns, figure.hidden)
        case Tiles():
            one = figure.overview
            yield from _matrix(name, one.values, one.rows, one.columns, one.hidden)
        case Lines():
            for line in figure.lines:
                label = line.label[language]
                for what, held in ((label, line.values), (f"{label} low", line.low), (f"{label} high", line.high)):
                    yield from ((name, what, *pair) for pair in zip(figure.x, held or (), strict=False))
        case Bars() | Dials():
            for said, held in figure.series if isinstance(figure, Bars) else figure.hands:
                yield from ((name, said[language], *pair) for pair in zip(figure.labels, held, strict=True))
        case Grid():
            heads = [column[language] for column in figure.columns[1:]]
            for said, cells in figure.rows:
                yield from ((name, said[language], *pair) for pair in zip(heads, cells, strict=False))
        case Wall():
            for said, one, _ in figure.tiles:
                yield from _matrix(f"{name} / {said[language]}", one.values, one.rows, one.columns, one.hidden)
        case Product():
            for what, block in zip(figure.names, (figure.left, figure.right, figure.out), strict=True):
                yield from _matrix(f"{name} / {what}", block, (), (), None)
        case Steps():
            for stage in figure.stages:
                for one in stage.figures:
                    yield from _cells(one, language, f"{name} / {stage.label[language]}")
        case Worked() | Turns():
            yield from _cells(figure.printed(), language, path)
        case Film() | Columns():
            for said, figures in figure.frames if isinstance(figure, Film) else figure.columns:
                for one in figures:
                    yield from _cells(one, language, f"{name} / {said[language]}")


def _matrix(
    name: str, block: Block, rows: Sequence[str], columns: Sequence[str], hidden: Block | None
) -> Iterator[tuple[Any, ...]]:
    height, width = block.shape
    for i in range(height):
        for j in range(width):
            at = i * width + j
            value = None if hidden is not None and hidden.values[at] else block.values[at]
            yield name, rows[i] if i < len(rows) else i, columns[j] if j < len(columns) else j, value
