"""The bias that a method adds to scores, by distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headway.figures.values import Block, Figure, Grid, Heatmap, Line, Lines, View, Wall, both, same
from headway.figures.words import number
from headway.init import seeded
from headway.inspect.head import Head
from headway.inspect.probe import alike, in_float64
from headway.inspect.record import Layer
from headway.inspect.split import CONTENT, PRODUCTS, split
from headway.shapes import HeadwayError, brief
from headway.terms import ByDistance, Pairwise, PerKey, Term
from headway.views.distances import EVERY, Spread, by_distance, drawn, points, some
from headway.views.question import Question
from headway.views.view_helpers import CURVES, ROUNDING, Unsuited, instead
from headway.views.worked_out import added_worked, bias_worked

VIEWS = ("bias",)

REACH = 512
"""Default maximum distance of the bias curve."""
LINEAR = 1e-6
"""Differences between the slopes of a straight line are at most this."""
STEPS = 96
"""With fewer changes than this, bias is drawn as steps."""


def bias(question: Question) -> View:
    """View 10: the bias by distance. For a method whose term is a table by distance, the table itself, far beyond the
    text, with steps for buckets. For a bias that depends on the tokens, its mean over this text, with a band.

    Args:
        question: ``options["reach"]`` is the maximum distance of the table, default 512 tokens.

    Raises:
        HeadwayError: when the method adds nothing to scores.

    >>> view = bias(Question.fresh("the cat sat", position="alibi"))
    >>> round(view.figures[0].lines[0].values[7], 4)  # 2⁻² for each of 8 tokens
    -2.0
    """
    terms = (*question.seen.call.score_terms, *question.seen.call.row_terms)
    if not terms:
        raise Unsuited(
            "bias",
            f"expected a method that adds something to scores (alibi, t5, shaw, fire), got {question.position.spec()}: "
            f"look at {instead(question, 'bias')}",
        )
    if any(isinstance(term, ByDistance) and term.row is not None for term in terms):
        return _by_offset(question, [term for term in terms if isinstance(term, ByDistance)])
    if all(isinstance(term, ByDistance | Pairwise) for term in terms):
        return _by_table(question)
    return _by_text(question)


def _sees_future(layer: Layer) -> bool:
    seen = layer.seen(slice(0, 1))
    return seen is None or bool(seen[..., 1:].any())


def _by_table(question: Question) -> View:
    """A bias that depends on positions alone."""
    reach = question.options.get("reach", max(REACH, len(question.labels)))
    if not isinstance(reach, int) or not 2 <= reach <= 65536:
        raise HeadwayError(f"expected options reach, a distance in tokens, from 2 to 65536, got {brief(reach)}")
    position, heads = question.position, question.seen.heads
    with seeded(0), torch.no_grad():
        call = alike(in_float64(position), torch.arange(reach + 1)[None])
        ends = (slice(reach, reach + 1), slice(0, 1)) if _sees_future(question.seen) else (slice(reach, reach + 1),)
        past, *future = (_total(call.score_terms, call.q_pos, call.k_pos, rows, heads)[:, 0] for rows in ends)
    past = past.flip(-1)  # (H, distances), from 0
    shown = some(heads, CURVES, first=question.head)
    finding, notes = _finding_of_table(question, past), [both("bias.note.table", reach=f"{reach:,}")]
    if reach > EVERY:
        notes.append(both("bias.note.some", n=f"{EVERY:,}"))
    if not position.relative:
        notes.append(both("bias.note.query", n=f"{reach:,}"))
    figures: list[Figure] = [_curves(both("bias.table"), past, shown), bias_worked(question, past)]
    if future and not torch.allclose(future[0], past):
        figures.append(_curves(both("bias.future"), future[0], shown))
    at = [n for n in (0, 1, 2, 8, 64, reach) if n <= reach]
    levels = (past.diff(dim=1).abs() > ROUNDING).sum(1) + 1
    columns = [both("head.word"), *(same(f"{n:,}") for n in at), both("bias.slope"), both("bias.levels")]
    rows = [
        (same(str(head)), [*map(number, row[at].tolist()), number(float(row[2] - row[1])), str(int(levels[head]))])
        for head, row in enumerate(past)
    ]
    figures.append(Grid(both("bias.numbers"), columns, rows))
    return View("bias", finding, figures, "score(i, j) = q_i·k_j / √d_k + b(pos_i − pos_j)", notes)


def _total(terms: Sequence[Term], q_pos: Tensor, k_pos: Tensor, rows: slice, heads: int) -> Tensor:
    """The sum of some terms for some queries, (H, rows, keys)."""
    tiles = [term.tile(q_pos, k_pos, rows).double() for term in terms]
    return torch.stack([tile[0].expand(heads, *tile.shape[2:]) for tile in tiles]).sum(0)


def _finding_of_table(question: Question, past: Tensor) -> dict[str, str]:
    own = past[question.head]
    changes = (own.diff().abs() > ROUNDING).nonzero()[:, 0] + 1
    slopes = own.diff()
    said: dict[str, Any] = {"head": question.head, "one": number(float(own[1])), "far": number(float(own[-1]))}
    said |= {"reach": f"{len(own) - 1:,}", "slope": number(float(slopes[0]))}
    if len(changes) and _linear(own[None]):
        return both("bias.finding.linear", **said)
    if 0 < len(changes) < STEPS:
        return both("bias.finding.steps", levels=len(changes) + 1, last=f"{int(changes[-1]):,}", **said)
    return both("bias.finding.curve", **said)


def _curves(title: dict[str, str], values: Tensor, heads: Sequence[int]) -> Lines:
    """Curves by distance from 1 on; as steps where there are few changes."""
    changes = ((values.diff(dim=1).abs() > ROUNDING).any(0).nonzero()[:, 0] + 1).tolist()
    steps = 0 < len(changes) < STEPS
    last = values.shape[1] - 1
    xs = sorted({1, *changes, last} - {0}) if steps else drawn(range(1, last + 1))
    lines = [Line(both("head", n=head), points(values[head, xs]), steps=steps) for head in heads]
    marks = [(float(changes[-1]), both("bias.last"))] if steps and changes[-1] > 1 else []
    axes = (both("place.distance"), both("place.added"))
    return Lines(title, [float(x) for x in xs], lines, axes, log_x=not _linear(values), marks=marks)


def _linear(values: Tensor) -> bool:
    """Whether each curve, (curves, distances), is a straight line: a logarithmic axis would bend it."""
    slopes = values.diff(dim=1)
    return bool(((slopes - slopes[:, :1]).abs() < LINEAR).all())


def _by_offset(question: Question, terms: Sequence[ByDistance]) -> View:
    """Bias by rows and columns of an image."""
    term, heads = terms[0], question.seen.heads
    wide = int(term.row or 1)
    tall = ((term.table.shape[1] - 2) // (2 * wide - 1) + 1) // 2
    # the query stands in the middle row, the keys in all rows of the two windows around it
    k_pos = torch.arange((2 * tall - 1) * wide)[None]
    q_pos = k_pos[:, (tall - 1) * wide : tall * wide]
    tile = _total(terms, q_pos, k_pos, slice(None), heads).unflatten(-1, (2 * tall - 1, wide))  # (H, x_q, y_k, x_k)
    columns = [tile[:, max(0, -dx), :, max(0, dx)] for dx in range(1 - wide, wide)]  # Δx = key − query
    maps = torch.stack(columns, -1)
    end = float(maps.abs().max()) or 1.0
    rows, names = ([str(d) for d in range(1 - size, size)] for size in (tall, wide))
    axes = (both("bias.axis.row"), both("bias.axis.column"))
    tiles = [
        (
            both("head", n=head),
            Heatmap(both("head", n=head), Block.of(maps[head].tolist()), rows, names, axes, "diverging", (-end, end)),
            {"spread": float(maps[head].std())},
        )
        for head in range(heads)
    ]
    own = maps[question.head]
    at = divmod(int(own.argmax()), own.shape[1])
    finding = both(
        "bias.finding.offset",
        head=question.head,
        highest=number(float(own.max())),
        row=number(at[0] - tall + 1),
        column=number(at[1] - wide + 1),
        lowest=number(float(own.min())),
    )
    wall = Wall(both("bias.offset"), tiles, min(4, heads), {"spread": both("bias.sort.spread")})
    return View(
        "bias",
        finding,
        [wall, added_worked(question, _added_to(question))],
        "score(i, j) = q_i·k_j / √d_k + B[Δy, Δx]",
        [both("bias.note.offset", wide=wide)],
    )


def _by_text(question: Question) -> View:
    """A bias that depends on the tokens: its values in this text."""
    found = added_by_distance(question.seen)
    own, heads = question.head, some(question.seen.heads, CURVES, first=question.head)
    xs = found.axis
    axes = (both("place.distance"), both("place.added"))
    finding = both(
        "bias.finding.text",
        head=own,
        one=number(float(found.middle[own, min(1, len(xs))])),
        far=number(float(found.middle[own, -1])),
        last=found.distances[-1],
        width=number(float((found.high - found.low)[own].mean())),
    )
    return View(
        "bias",
        finding,
        [
            Lines(both("bias.text", head=own), xs, [found.line(own, both("head", n=own), band=True)], axes, log_x=True),
            added_worked(question, _added_to(question)),
            Lines(both("bias.text.all"), xs, [found.line(h, both("head", n=h)) for h in heads], axes, log_x=True),
        ],
        "score(i, j) = q_i·k_j / √d_k + b(i, j)",
        [
            both("bias.note.text", queries=int(found.counts.min())),
            *([both("place.own")] if _per_key(question.seen) else []),
        ],
    )


def _added_to(question: Question) -> Tensor:
    """What is added to each score of the question's query in its head, (keys,)."""
    head = Head(question.seen, question.head, slice(question.row, question.row + 1))
    return torch.stack([part[0] for name, part in head.parts.items() if name not in (*PRODUCTS, "softcap")]).sum(0)


def added_by_distance(layer: Layer, *, every: bool = False) -> Spread:
    """The mean of what terms add to scores by distance, over the text of a layer.

    Args:
        layer: a layer of a trace.
        every: include all effects of position, also rotation and position vectors, see :func:`headway.inspect.split`.
    """

    # a value per key leaves a constant per row undetermined, which softmax ignores: the query's own token is zero
    per_key = _per_key(layer)

    def added(rows: slice) -> Tensor:
        parts = split(layer, rows)
        if every:
            return parts.position - _of_own_key(layer, rows, parts.position) if per_key else parts.position
        names = [name for name in parts.parts if "·" not in name and name not in (*CONTENT, "rotation", "softcap")]
        total = torch.stack([parts.parts[name] for name in names]).sum(0)
        return total - _of_own_key(layer, rows, total) if per_key else total

    return by_distance(layer, added)


def _per_key(layer: Layer) -> bool:
    return any(isinstance(term, PerKey) for term in layer.call.score_terms)


def _of_own_key(layer: Layer, rows: slice, values: Tensor) -> Tensor:
    """The value of each query at its own token, (B, H, rows, 1)."""
    own = torch.arange(layer.keys - layer.queries, layer.keys)[rows]
    return values.gather(-1, own[:, None].expand(*values.shape[:3], 1))
