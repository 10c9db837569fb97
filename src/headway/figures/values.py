"""Figures as plain values: the content of a view, for the page's script, for print and for tables.

A view has figures; a figure has values, labels and words in both languages, independent of pixels. Values are encoded
as base64 of little-endian float32, or of one byte or bit each: a map of 1,024 tokens with its mask is 1.6 MB instead of
20.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headway.display import Displayed
from headway.figures.block import Block as Block
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
        links: whether a screen may also show it as lines between two columns of tokens; print shows the map.
        tokens: the first token of each row and column, where they are groups or part of a text; None numbers from 0.
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
    links: bool = False
    fit: tuple[float, float] | None = None
    tokens: Sequence[int] | None = None


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
        deeper: the views that go deeper: (name, title).
    """

    label: Said
    shape: str
    formula: str
    said: Said
    figures: Sequence[Any]
    deeper: Sequence[tuple[str, Said]] = ()


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
class Track:
    """One quantity of a flow, for each row a vector as coloured cells or a number as a bar.

    Args:
        label: its name, e.g. "k" or "α".
        stage: the stage that computes it.
        column: where it is drawn; tracks of one column have different rows.
        values: (rows, width), width 1 for numbers; None where a row has none.
        width: the whole width of the vector, of which the first dimensions are there.
        scale: tracks of one name have one scale.
        opens: the view that a cell opens, e.g. "projection:q"; "" for none.
        hides: whether masked rows are hatched.
    """

    label: Said
    stage: int
    column: int
    values: Block
    width: int
    scale: str
    opens: str = ""
    hides: bool = False


@dataclass(frozen=True)
class Flow(Steps):
    """Stages that can be played, with the numbers of one query: rows are tokens, columns are quantities.

    Args:
        rows: (kind, label): the "query", its "key"s, the "rest" of them as a sum, what is "added", and the "sum".
        tokens: the index of each row's token; -1 for none.
        masked: rows of masked keys.
        tracks: from left to right.
        ends: what follows from the sum, one row each.
    """

    rows: Sequence[tuple[str, Said]]
    tokens: Sequence[int]
    masked: Sequence[int]
    tracks: Sequence[Track]
    ends: Sequence[Track]


@dataclass(frozen=True)
class Working:
    """One line of a calculation, for each row of a figure.

    Args:
        name: symbol of its result, e.g. "ω".
        formulas: its formula, one for each row or one for all.
        values: its result likewise, (rows,) or (1,).
        said: instead of a formula, what the value is, e.g. that it is learned.
    """

    name: str
    formulas: Sequence[str]
    values: Block
    said: Said | None = None

    def formula(self, row: int) -> str:
        """Its formula for a row."""
        return self.formulas[row if len(self.formulas) > 1 else 0]

    def value(self, row: int) -> float:
        """Its value for a row; NaN for none."""
        found = self.values.values[row if len(self.values.values) > 1 else 0]
        return math.nan if found is None else found


@dataclass(frozen=True)
class Worked:
    """How one number is worked out, with the numbers put into its formula.

    Args:
        title: what it is.
        symbol: symbol of the row, e.g. "p".
        rows: the numbers it can be.
        columns: for each column the lines of the calculation, the result last.
        axis: what the rows are.
        cell: (row, column) initially.
        follows: a cell of the map before it is chosen there; else a slider chooses the row of its only column.
    """

    title: Said
    symbol: str
    rows: Sequence[int]
    columns: Sequence[Sequence[Working]]
    axis: Said
    cell: tuple[int, int] = (0, 0)
    follows: bool = False

    def printed(self) -> Grid:
        """The calculation of the initial cell as a table."""
        row, column = self.cell
        lines = self.columns[column]
        name = same(f"{self.symbol} = {self.rows[row]}")
        said = [(same(line.name), [line.formula(row), f"{line.value(row):.6g}"]) for line in lines]
        return Grid(self.title, [name, same(""), same("")], said)


@dataclass(frozen=True)
class Turns:
    """A query and a key in the planes that position rotates, whose positions can be moved.

    Args:
        title: what it is.
        labels: one for each plane.
        rates: radians per token of each plane.
        q: the query in each plane before it is rotated, (planes, 2).
        k: the key likewise.
        names: of the query and the key.
        positions: theirs.
        still: the part of q·k that is not rotated.
        most: the largest position.
    """

    title: Said
    labels: Sequence[str]
    rates: Sequence[float]
    q: Block
    k: Block
    names: tuple[Said, Said]
    positions: tuple[int, int]
    still: float
    most: int

    def printed(self) -> Dials:
        """The angles of both at their positions."""

        def angles(parts: Block, position: int) -> list[float]:
            pairs = (complex(x or 0, y or 0) for x, y in parts.rows())
            return [cmath.phase(z) + position * rate for z, rate in zip(pairs, self.rates, strict=True)]

        hands = zip(self.names, (self.q, self.k), self.positions, strict=True)
        return Dials(self.title, self.labels, [(name, angles(parts, at)) for name, parts, at in hands])


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


Figure = Heatmap | Lines | Bars | Dials | Grid | Wall | Product | Steps | Film | Columns | Tiles | Worked | Turns


@dataclass(frozen=True)
class View(Displayed):
    """The content of one view.

    Args:
        key: its name, e.g. "split"; its title and question are ``view.<key>.title`` and ``view.<key>.question``.
        finding: one sentence computed from the data.
        figures: from top to bottom.
        formula: as text, or "".
        notes: notes for the reader.
        mark: what the reader must know of the model first, in a few words beside the title; None is nothing.
    """

    key: str
    finding: Said
    figures: Sequence[Figure]
    formula: str = ""
    notes: Sequence[Said] = ()
    mark: Said | None = None

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
            "mark": None if self.mark is None else dict(self.mark),
            "figures": [plain(figure) for figure in self.figures],
        }


def plain(figure: Any) -> Any:
    """A figure as JSON values; ``kind`` is its class name in lower case."""
    if isinstance(figure, Block):
        return figure.plain()
    if isinstance(figure, Figure | Line | Stage | Track | Working):
        values = {name: plain(getattr(figure, name)) for name in figure.__dataclass_fields__}
        return {"kind": type(figure).__name__.lower(), **values}
    if isinstance(figure, Mapping):
        return {key: plain(value) for key, value in figure.items()}
    if isinstance(figure, list | tuple):
        return [plain(value) for value in figure]
    if isinstance(figure, float) and not math.isfinite(figure):
        return None
    return figure
