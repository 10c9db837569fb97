"""Figures as plain values: the content of a view, for the page's script, for print and for tables.

A view has figures; a figure has values, labels and words in both languages, independent of pixels. Values are encoded
as base64 of little-endian float32, or of one byte or bit each: a map of 1,024 tokens with its mask is 1.6 MB instead of
20.
"""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from headway.display import Displayed
from headway.figures.words import LANGUAGES, strings


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` indices, evenly spaced, including the first and the last.

    >>> evenly(10, 4), evenly(2, 4)
    ([0, 3, 6, 9], [0, 1])
    """
    shown = min(count, most)
    return list(dict.fromkeys(round(i * (count - 1) / max(shown - 1, 1)) for i in range(shown)))


Said = Mapping[str, str]
"""A text in every language, as :func:`both` makes it."""


def both(key: str, /, **values: object) -> dict[str, str]:
    """A sentence of the strings in every language, filled in.

    >>> both("table.method")["zh"]
    '方法'
    """
    return {language: strings(language)[key].format(**values) for language in LANGUAGES}


def same(text: str) -> dict[str, str]:
    """A text that is the same in every language: a formula, a token, a name."""
    return dict.fromkeys(LANGUAGES, text)


@dataclass(frozen=True)
class Block:
    """Values of any shape, row by row.

    Args:
        shape: size of each dimension.
        values: all of them, flat; None is a missing value.
        kind: encoding: "float32"; "uint8", one byte each; or "bits", for 0 and 1, eight per byte, the first the
            highest.
        span: with "uint8", the values of bytes 0 and 254, the others evenly between, so that the middle of the span is
            exactly 127; 255 is a missing value. None sends integers 0 … 255 unchanged.
    """

    shape: tuple[int, ...]
    values: Sequence[float | None]
    kind: str = "float32"
    span: tuple[float, float] | None = None

    @classmethod
    def of(cls, rows: Sequence[Any], kind: str = "float32") -> Block:
        """A block from nested lists; values that are not finite become NaN.

        >>> Block.of([[1.0, 2.0], [3.0, 4.0]]).shape
        (2, 2)
        """
        shape: list[int] = []
        flat: Sequence[Any] = rows
        level: Any = rows
        while isinstance(level, list | tuple):
            shape.append(len(level))
            level = level[0] if level else None
        for _ in shape[1:]:
            flat = list(chain.from_iterable(flat))
        if len(flat) != math.prod(shape):
            raise ValueError(f"rows of unequal length: {len(flat)} numbers for shape {tuple(shape)}")
        return cls(tuple(shape), flat, kind)

    def rows(self) -> list[Sequence[float | None]]:
        """A matrix row by row."""
        width = self.shape[-1]
        return [self.values[start : start + width] for start in range(0, len(self.values), width)]

    def plain(self) -> dict[str, Any]:
        """As JSON values: shape, kind, span if there is one, and base64."""
        if self.kind == "bits":
            digits = "".join("1" if value else "0" for value in self.values)
            data = int(digits.ljust(-(-len(digits) // 8) * 8, "0") or "0", 2).to_bytes(-(-len(digits) // 8))
        elif self.kind == "uint8" and self.span is not None:
            data = _steps(self.values, self.span)
        elif self.kind == "uint8":
            data = bytes(int(value or 0) for value in self.values)
        else:
            numbers = array("f", (math.nan if value is None else value for value in self.values))
            data = numbers.tobytes()  # little-endian on every machine that torch runs on
        span = {} if self.span is None else {"span": list(self.span)}
        return {"shape": list(self.shape), "kind": self.kind, **span, "data": base64.b64encode(data).decode()}


def _steps(values: Sequence[float | None], span: tuple[float, float]) -> bytes:
    """Values quantised to 255 steps over a span; 255 is a missing value."""
    low, high = span
    per = 254 / (high - low) if high > low else 0.0
    return bytes(
        255 if value is None or value != value else min(254, max(0, round((value - low) * per))) for value in values
    )


@dataclass(frozen=True)
class Heatmap:
    """A matrix as colours.

    Args:
        title: what it is.
        values: (rows, columns).
        rows: a label for each row.
        columns: a label for each column.
        axes: what rows and columns are.
        scale: "sequential" for shares, "diverging" for signed numbers around 0, "cyclic" for angles.
        limits: limits of the colour scale; None is those of the values (symmetric if diverging).
        fit: narrower limits, in which most cells can be distinguished, used unless the reader chooses ``limits``; the
            cells beyond are counted below the map. None where ``limits`` do.
        hidden: 1 where a cell is masked, (rows, columns); None masks nothing.
        unit: unit of the values, e.g. "%" or "rad".
    """

    title: Said
    values: Block
    rows: Sequence[str]
    columns: Sequence[str]
    axes: tuple[Said, Said]
    scale: str = "sequential"
    limits: tuple[float, float] | None = None
    hidden: Block | None = None
    unit: str = ""
    fit: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """One curve.

    Args:
        label: its name, shown at its end.
        values: one value for each x; None is a gap.
        low: the lower end of its band, or None.
        high: the upper end of its band, or None.
        style: n for colour n % 8 and dash n % 7; None is by index, or by method where all lines are methods.
        steps: draw flat steps from x to x, as buckets are.
    """

    label: Said
    values: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    style: int | None = None
    steps: bool = False


@dataclass(frozen=True)
class Lines:
    """Curves over one axis.

    Args:
        title: what it is.
        x: their common x.
        lines: the curves.
        axes: what x and y are.
        log_x: a logarithmic x axis.
        log_y: a logarithmic y axis.
        marks: vertical lines: (x, label).
    """

    title: Said
    x: Sequence[float]
    lines: Sequence[Line]
    axes: tuple[Said, Said]
    log_x: bool = False
    log_y: bool = False
    marks: Sequence[tuple[float, Said]] = ()


@dataclass(frozen=True)
class Bars:
    """Groups of bars: for each label one bar of each series.

    Args:
        title: what it is.
        labels: the groups.
        series: (name, one value for each label); None is no bar, e.g. for a masked key.
        axis: title of the value axis.
    """

    title: Said
    labels: Sequence[str]
    series: Sequence[tuple[Said, Sequence[float | None]]]
    axis: Said


@dataclass(frozen=True)
class Dials:
    """Angles as hands on circles.

    Args:
        title: what it is.
        labels: one for each dial.
        hands: (name, an angle in radians for each dial).
    """

    title: Said
    labels: Sequence[str]
    hands: Sequence[tuple[Said, Sequence[float]]]


@dataclass(frozen=True)
class Grid:
    """A small table of values or words.

    Args:
        title: what it is.
        columns: column headers, the first for the row names.
        rows: (name, its cells as text).
    """

    title: Said
    columns: Sequence[Said]
    rows: Sequence[tuple[Said, Sequence[str]]]


@dataclass(frozen=True)
class Wall:
    """Small multiples on one scale.

    Args:
        title: what it is.
        tiles: (label, a figure of one kind, values to sort by).
        columns: tiles per row.
        sorts: the values to sort by: key to its name.
    """

    title: Said
    tiles: Sequence[tuple[Said, Heatmap, Mapping[str, float]]]
    columns: int
    sorts: Mapping[str, Said] = field(default_factory=dict)


@dataclass(frozen=True)
class Product:
    """A product of two matrices whose entries can be inspected: out = left @ right + bias.

    Args:
        title: what it is.
        left: (rows, inner).
        right: (inner, columns).
        bias: (columns,), or None.
        out: (rows, columns), as the model computed it.
        rows: a label for each row.
        names: names of left, right and out, e.g. "X", "W_Q" and "Q".
        cell: (row, column) that is inspected initially.
    """

    title: Said
    left: Block
    right: Block
    bias: Block | None
    out: Block
    rows: Sequence[str]
    names: tuple[str, str, str]
    cell: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Stage:
    """One stage of a computation.

    Args:
        label: its short name, e.g. "Q" or "softmax".
        shape: shape of its result, e.g. "5 × 16".
        formula: its formula, e.g. "Q = X W_Q".
        said: a description in a sentence or two.
        figures: its results.
    """

    label: Said
    shape: str
    formula: str
    said: Said
    figures: Sequence[Any]


@dataclass(frozen=True)
class Steps:
    """A strip of stages; one of them is open.

    Args:
        title: what they make together.
        stages: from left to right.
    """

    title: Said
    stages: Sequence[Stage]


@dataclass(frozen=True)
class Film:
    """The same figures at several times, with a slider.

    Args:
        title: what changes.
        frames: (label, figures), the same kinds and limits in each.
    """

    title: Said
    frames: Sequence[tuple[Said, Sequence[Any]]]


@dataclass(frozen=True)
class Columns:
    """Several columns side by side, each row with the same kind of figure; pointing at one points at all.

    Args:
        title: what is compared.
        columns: (label, figures).
    """

    title: Said
    columns: Sequence[tuple[Said, Sequence[Any]]]


@dataclass(frozen=True)
class Tiles:
    """A map too large to send at once: an overview, and the source of finer tiles.

    Args:
        title: what it is.
        overview: the coarsest level, the only one on a page without a server.
        size: rows and columns of the finest level.
        levels: number of levels, each half as fine as the previous one; the overview is the last.
        side: cells along each side of a tile.
        how: pooling of pairs into a cell, "max" or "mean".
        source: name of the map on the server; "" without one.
    """

    title: Said
    overview: Heatmap
    size: tuple[int, int]
    levels: int
    side: int
    how: str
    source: str = ""


Figure = Heatmap | Lines | Bars | Dials | Grid | Wall | Product | Steps | Film | Columns | Tiles


@dataclass(frozen=True)
class View(Displayed):
    """The content of one view.

    Args:
        key: its name, e.g. "split"; its title and question are ``view.<key>.title`` and ``view.<key>.question``.
        finding: one sentence computed from the data.
        figures: from top to bottom.
        formula: as text, or "".
        notes: notes for the reader.
    """

    key: str
    finding: Said
    figures: Sequence[Figure]
    formula: str = ""
    notes: Sequence[Said] = ()

    def __repr__(self) -> str:
        return f"View({self.key!r}: {len(self.figures)} figures; {self.finding['en']})"

    @property
    def title(self) -> dict[str, str]:
        """Its title."""
        return both(f"view.{self.key}.title")

    @property
    def question(self) -> dict[str, str]:
        """The question it answers."""
        return both(f"view.{self.key}.question")

    def plain(self) -> dict[str, Any]:
        """As JSON values, which ``render(element, payload)`` draws."""
        return {
            "key": self.key,
            "title": self.title,
            "question": self.question,
            "finding": dict(self.finding),
            "formula": self.formula,
            "notes": [dict(note) for note in self.notes],
            "figures": [plain(figure) for figure in self.figures],
        }


def plain(figure: Any) -> Any:
    """A figure as JSON values; ``kind`` is its class name in lower case."""
    if isinstance(figure, Block):
        return figure.plain()
    if isinstance(figure, Figure | Line | Stage):
        values = {name: plain(getattr(figure, name)) for name in figure.__dataclass_fields__}
        return {"kind": type(figure).__name__.lower(), **values}
    if isinstance(figure, Mapping):
        return {key: plain(value) for key, value in figure.items()}
    if isinstance(figure, list | tuple):
        return [plain(value) for value in figure]
    if isinstance(figure, float) and not math.isfinite(figure):
        return None
    return figure
