"""Draw curves by distance as braille dots in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headway.figures.words import number

Values = Sequence[float | None]
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # bit of each dot of a braille cell, by column and row
HUES = (0, 1, 2, 4)
"""Numbers N of the report's colours --hue-N in style.css, for the first curves."""


@dataclass(frozen=True)
class Cell:
    """One character of a drawing.

    Args:
        text: the character.
        curve: index of its curve; None for axes and background.
    """

    text: str
    curve: int | None = None


def limits(curves: Sequence[Values]) -> tuple[float, float]:
    """The range of all finite values and 0, never empty.

    >>> limits([[-1.0, None]]), limits([[0.0]])
    ((-1.0, 0.0), (-1.0, 1.0))
    """
    found = [value for values in curves for value in values if value is not None]
    low, high = min([0.0, *found]), max([0.0, *found])
    return (low, high) if high > low else (-1.0, 1.0)


def braille(curves: Sequence[Values], labels: Sequence[str], width: int, height: int = 12) -> list[list[Cell]]:
    """Draw curves over x = 0, 1, 2 … as lines of cells, with a vertical axis, and each curve's label at its end.

    Args:
        curves: for each curve, a value per x.
        labels: the label of each curve.
        width: total columns.
        height: lines of the drawing; the labels of the horizontal axis need one more.
    """
    low, high = limits(curves)
    ticks = {0: high, height - 1: low}
    ticks.setdefault(round((height - 1) * high / (high - low)), 0.0)
    margin = max(len(number(tick)) for tick in ticks.values())
    across = max(8, width - margin - 2 - 1 - max(map(len, labels)))
    dots = [[0] * across for _ in range(height)]
    owners: dict[tuple[int, int], int] = {}
    ends: list[tuple[int, int]] = []
    for curve, values in enumerate(curves):
        before: int | None = None
        for column in range(2 * across):
            value = values[round(column * (len(values) - 1) / max(1, 2 * across - 1))]
            if value is None:
                before = None
                continue
            dot = round((4 * height - 1) * (high - value) / (high - low))
            # also draw the dots between two neighbouring points
            first = dot if before is None or before == dot else before + (1 if dot > before else -1)
            for y in range(min(first, dot), max(first, dot) + 1):
                dots[y // 4][column // 2] |= _DOTS[column % 2][y % 4]
                owners[y // 4, column // 2] = curve
            before = dot
        if before is not None:
            ends.append((before // 4, curve))
    placed = _places([row for row, _ in ends], height)
    named = {row: curve for row, (_, curve) in zip(placed, ends, strict=True)}
    lines = []
    for y, row in enumerate(dots):
        axis = f"{number(ticks[y]):>{margin}} ┤" if y in ticks else " " * (margin + 1) + "│"
        rest = "┄" if ticks.get(y) == 0.0 else " "
        drawn = [Cell(chr(0x2800 + bits), owners[y, x]) if bits else Cell(rest) for x, bits in enumerate(row)]
        label = [Cell(f" {labels[named[y]]}", named[y])] if y in named else []
        lines.append([Cell(axis), *drawn, *label])
    last = max(map(len, curves)) - 1
    lines.append([Cell(f"{'':>{margin}}  0{last:>{across - 1},}")])
    return lines


def _places(wishes: Sequence[int], lines: int) -> list[int]:
    """A separate line for each label, as near to its preferred line as the order from top to bottom allows.

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
