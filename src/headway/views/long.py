"""Attention in a text of thousands of tokens, too long to show every pair."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headway.figures.values import Block, Figure, Heatmap, Line, Lines, Tiles, View, both
from headway.figures.words import number
from headway.inspect.tiles import HOW, TILE, TileSource
from headway.shapes import HeadwayError, brief
from headway.views.question import Question

VIEWS = ("long",)

POINTS = 512
"""Maximum points of the curve of received attention."""


def long(question: Question) -> View:
    """View 18: the whole attention map of one head at any length, as overviews of maxima and means; the attention from
    queries to the last tokens; and the attention that each key receives.

    Args:
        question: ``options["reach"]`` is the width of the band in tokens, default 256; ``options["tiles"]`` the
            :class:`headway.inspect.tiles.TileSource` of the head, if it exists already, and ``options["source"]`` its
            name on a server.

    Raises:
        HeadwayError: when the text has fewer than 2 tokens.

    >>> view = long(Question.fresh("the cat sat " * 200))
    >>> [type(figure).__name__ for figure in view.figures], view.figures[0].levels
    (['Tiles', 'Tiles', 'Heatmap', 'Lines'], 3)
    """
    if len(question.labels) < 2:
        raise HeadwayError("expected a text of at least 2 tokens, got 1: a map of one cell shows nothing")
    source = question.options.get("tiles") or TileSource(question.seen, question.head, reach=_reach(question))
    side = 2 ** (source.levels - 1)
    figures: list[Figure] = [*(_map(question, source, how) for how in HOW), _band(source, side), _received(source)]
    notes = [both("long.pooled", side=side)] if side > 1 else []
    return View("long", _finding(question, source), figures, "", [*notes, both("long.note")])


def _reach(question: Question) -> int:
    reach = question.options.get("reach", TILE)
    if not isinstance(reach, int) or not 1 <= reach <= 4 * TILE:
        raise HeadwayError(f"expected options reach, a number of tokens, from 1 to {4 * TILE}, got {brief(reach)}")
    return reach


def _map(question: Question, source: TileSource, how: str) -> Tiles:
    side = 2 ** (source.levels - 1)
    cells = source.overview[how]
    rows, columns = (_starts(count, side) for count in source.size(0))
    axes = (both("long.query"), both("long.key"))
    overview = _heatmap(both(f"long.{how}"), cells, rows, columns, axes)
    title = both(f"long.{how}.of", layer=question.layer, head=question.head)
    called = str(question.options.get("source", ""))
    return Tiles(title, overview, source.size(0), source.levels, TILE, how, called)


def _band(source: TileSource, side: int) -> Heatmap:
    columns = [str(back) for back in range(source.reach)]
    axes = (both("long.query"), both("long.back"))
    title = both("long.band", reach=source.reach)
    return _heatmap(title, source.band["mean"], _starts(source.queries, side), columns, axes)


def _heatmap(
    title: dict[str, str],
    cells: Tensor,
    rows: list[str],
    columns: list[str],
    axes: tuple[dict[str, str], dict[str, str]],
) -> Heatmap:
    """A map whose colour scale is clipped below its few largest values, so that all others remain distinguishable."""
    away = cells.isnan()
    found = cells[~away]
    most = float(found.max()) if len(found) else 0.0
    usual = float(found.quantile(0.99)) if len(found) else 0.0
    high = usual if 0 < usual < most / 2 else most or 1.0
    shape = (cells.shape[0], cells.shape[1])
    hidden = Block(shape, away.int().flatten().tolist(), "bits") if bool(away.any()) else None
    return Heatmap(
        title,
        Block(shape, cells.nan_to_num().flatten().tolist()),
        rows,
        columns,
        axes,
        "sequential",
        (0.0, high),
        hidden,
    )


def _received(source: TileSource) -> Lines:
    """The attention that keys receive, in runs where there are many."""
    run = max(1, math.ceil(source.keys / POINTS))
    whole = torch.nn.functional.pad(source.received, (0, -source.keys % run), value=math.nan).unflatten(0, (-1, run))
    most = [float(f"{value:.6g}") for value in whole.nan_to_num(-1.0).amax(1).tolist()]
    lines = [Line(both("long.received.max" if run > 1 else "long.received"), [v if v > 0 else None for v in most])]
    if run > 1:
        mean = [float(f"{value:.6g}") for value in whole.nanmean(1).tolist()]
        lines.append(Line(both("long.received.mean"), [value if value > 0 else None for value in mean]))
    x = [float(start) for start in range(0, source.keys, run)]
    title = both("long.received.title" if run == 1 else "long.received.runs", run=run)
    return Lines(title, x, lines, (both("long.key"), both("long.received.axis")), log_y=True)


def _finding(question: Question, source: TileSource) -> dict[str, str]:
    """The share of near attention, the strongest link farther back, and the key that receives most."""
    key = int(source.received.argmax())
    told = {
        "near": f"{100 * source.near:.1f} %",
        "reach": f"{source.reach:,}",
        "tokens": f"{source.keys:,}",
        "top": f"{key:,}",
        "top_label": question.labels[key],
        "times": number(float(source.received[key] / source.received.mean().clamp(min=1e-30))),
    }
    far = _strongest_far(source)
    if far is None:
        return both("long.finding.near", **told)
    query, back, weight = far
    return both(
        "long.finding",
        **told,
        query=f"{query:,}",
        query_label=question.labels[query],
        key_at=f"{back:,}",
        key_label=question.labels[back],
        weight=f"{number(100 * weight)} %",
    )


def _strongest_far(source: TileSource) -> tuple[int, int, float] | None:
    """The query and key at least ``reach`` apart with the largest weight; None where none are.

    Found in the overview, then in the strip of fine tiles that contains its cell.
    """
    side, reach = 2 ** (source.levels - 1), source.reach
    cells = source.overview["max"]
    rows, columns = torch.arange(cells.shape[0])[:, None], torch.arange(cells.shape[1])
    # a cell counts if its last query and its first key are that far apart; finer cells tell which pair it is
    far = (rows * side + side - 1 + source.keys - source.queries - columns * side >= reach) & ~cells.isnan()
    candidates = cells.masked_fill(~far, -1.0).flatten()
    for at in candidates.topk(min(8, len(candidates))).indices.tolist():
        row, column = divmod(at, cells.shape[1])
        if candidates[at] < 0:
            return None
        found = _pair(source, row * side, column * side, side)
        if found is not None:
            return found
    return None


def _pair(source: TileSource, query: int, key: int, side: int) -> tuple[int, int, float] | None:
    """The strongest far link among ``side`` queries and keys from these on."""
    tile = source.cells(0, query // TILE, key // TILE)
    top, left = query % TILE, key % TILE
    part = tile[top : top + side, left : left + side]
    rows, columns = (torch.arange(size) for size in part.shape)
    apart = query + rows[:, None] + source.keys - source.queries - (key + columns)
    part = part.masked_fill((apart < source.reach) | part.isnan(), -1.0)
    row, column = divmod(int(part.argmax()), part.shape[1])
    weight = float(part[row, column])
    return None if weight < 0 else (query + row, key + column, weight)


def _starts(tokens: int, side: int) -> list[str]:
    """The first token of each cell along a side."""
    return [str(start) for start in range(0, tokens, side)]
