"""How a method rotates queries and keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headway.backends.base import Call
from headway.figures.values import Block, Dials, Figure, Grid, Heatmap, Line, Lines, Said, View, both, same
from headway.figures.words import number
from headway.init import seeded
from headway.inspect.probe import Planes, alike, attached, in_float64, planes
from headway.inspect.record import Layer
from headway.masks import Causal
from headway.positions import Position
from headway.views.distances import point, points, some
from headway.views.question import Question
from headway.views.view_helpers import CURVES, LEAST, MOST, ROUNDING, Unsuited, by_tokens, instead, places, scores
from headway.views.worked_out import angle_worked, movable_planes

VIEWS = ("rotation",)

ALONG = 32
"""Positions along each axis, where there are several axes."""
SHIFT = 1000
"""Shift of the text, in tokens."""


def rotation(question: Question) -> View:
    """View 11: how a method rotates queries and keys: the angle of each plane at each position, how long a full
    rotation takes, the contribution of each plane to each head's queries and keys, and the score of equal content by
    distance.

    The planes are found by applying the method to unit vectors, see :mod:`headway.inspect.probe`. The text is also
    shifted by 1,000 tokens, to measure the change of its scores.

    Args:
        question: ``options["positions"]`` is the number of positions, default those of the text, at least 64.

    Raises:
        HeadwayError: when the method rotates nothing.

    >>> view = rotation(Question.fresh("the cat sat"))
    >>> [type(figure).__name__ for figure in view.figures]
    ['Turns', 'Heatmap', 'Worked', 'Lines', 'Heatmap', 'Lines', 'Grid']
    """
    layer, position = question.seen, question.position
    turning = _turned(question, question.head)
    if turning is None:
        message = f"expected a method that rotates queries and keys (rotary and its kin), got {position.spec()}: "
        raise Unsuited("rotation", message + f"look at {instead(question, 'rotation')}")
    first = layer.attention.content_dim
    found, width, count = turning.planes, layer.attention.shape.head_dim - first, len(turning.planes.rates)
    turns = [2 * math.pi / abs(rate) for axis in turning.rates for rate in axis.tolist() if abs(rate) > ROUNDING]
    change = _moved(layer, position)
    fast, slow, shift = number(min(turns)), number(max(turns)), f"{SHIFT:,}"
    finding = both(
        "rotation.finding" if change < 1e-4 else "rotation.finding.absolute",
        head=question.head,
        planes=count,
        fast=fast,
        slow=slow,
        shift=shift,
        change=number(change),
    )
    axis = [
        both("place.position") if len(turning.rates) == 1 else both("place.coordinate", n=n)
        for n in range(position.axes)
    ]
    own = both("head", n=question.head)
    movable = movable_planes(question, found) if position.axes == 1 and not by_tokens(layer) else None
    figures: list[Figure] = [_dials(turning) if movable is None else movable]
    for angles in _angles(turning, axis):
        figures += [angles, angle_worked(position, turning.angles[len(figures) // 2], width)]
    curve = _equal(position, question)[question.head]
    reach = list(range(1, len(curve)))
    heads, columns = list(map(str, range(layer.heads))), list(map(str, range(count))) + ["–"] * bool(found.still)
    sides = both("place.head"), both("place.plane")
    figures += [
        _wavelengths(turning, axis),
        Heatmap(both("rotation.use"), Block.of(_usage(question, turning)), heads, columns, sides),
        Lines(
            both("rotation.equal"),
            [float(n) for n in reach],
            [Line(own, points(curve[reach]))],
            (both("place.distance"), both("place.score")),
            log_x=True,
        ),
        _numbers(own, str(count), f"{found.still} / {width}", fast, slow, number(change)),
    ]
    notes = [
        both("rotation.note"),
        both("rotation.note.use"),
        *([both("turns.none", title=position.title)] if movable is None else []),
        *([both("rotation.note.marks")] if by_tokens(layer) else []),
        *([both("rotation.note.axes", n=position.axes)] if position.axes > 1 else []),
    ]
    return View("rotation", finding, figures, "q_i·k_j = Σ_f |q_f| |k_f| cos(φ_f + (pos_i − pos_j) ω_f)", notes)


def _angles(turning: Turning, axis: Sequence[Said]) -> list[Heatmap]:
    """The angle of each plane at each position, for each axis."""
    return [
        Heatmap(
            both("rotation.map"),
            Block.of(torch.remainder(angles, 2 * math.pi).tolist()),
            [str(p) for p in range(len(angles))],
            [str(f) for f in range(angles.shape[1])],
            (label, both("place.plane")),
            "cyclic",
            (0.0, 2 * math.pi),
            unit="rad",
        )
        for label, angles in zip(axis, turning.angles, strict=False)
    ]


def _wavelengths(turning: Turning, axis: Sequence[Said]) -> Lines:
    """Tokens per full rotation of each plane."""
    lines = [
        Line(
            both("rotation.full") if len(turning.rates) == 1 else label,
            [point(2 * math.pi / abs(rate)) if abs(rate) > ROUNDING else None for rate in rates.tolist()],
        )
        for label, rates in zip(axis, turning.rates, strict=False)
    ]
    planes, axes = len(turning.planes.rates), (both("place.plane"), both("place.tokens_per_rotation"))
    return Lines(both("rotation.wavelengths"), list(map(float, range(planes))), lines, axes, log_y=True)


def _numbers(own: Said, *cells: str) -> Grid:
    """The number of planes and of unrotated dimensions, tokens per rotation of the fastest and slowest plane, and the
    change of scores when the text is shifted."""
    names = ("planes", "still", "fast", "slow", "shift")
    rows = [(both(f"rotation.{name}", shift=f"{SHIFT:,}"), [cell]) for name, cell in zip(names, cells, strict=True)]
    return Grid(both("rotation.numbers"), [same(""), own], rows)


@dataclass(frozen=True, eq=False)
class Turning:
    """The rotation of one head.

    Args:
        planes: the planes over all positions.
        angles: for each axis, the angle of each plane at each position along it, (positions, planes).
        rates: for each axis, the rotation per step along it, (planes,).
    """

    planes: Planes
    angles: list[Tensor]
    rates: list[Tensor]


def _dials(turning: Turning) -> Dials:
    """Some of the planes that the first axis rotates, at some positions along it."""
    angles, rates = turning.angles[0], turning.rates[0].tolist()
    moving = [f for f, rate in enumerate(rates) if abs(rate) > ROUNDING] or [0]
    shown = [moving[i] for i in some(len(moving), CURVES)]
    at = [p for p in (1, 4, 16, 64) if p < len(angles)] or [0]
    labels = [f"{f}: {number(2 * math.pi / abs(rates[f]))}" if rates[f] else f"{f}" for f in shown]
    title = both("rotation.dials") if len(turning.rates) == 1 else both("rotation.dials.along", n=0)
    return Dials(title, labels, [(both("rotation.at", n=p), angles[p, shown].tolist()) for p in at])


def _turned(question: Question, head: int) -> Turning | None:
    """The rotation of one head, or None."""
    layer, position = question.seen, question.position
    chosen = by_tokens(layer)
    if position.axes == 1:
        where = layer.call.q_pos[:1] if chosen else torch.arange(places(question))[None]
        found = planes(position, where, head=head, x=layer.source[:1] if chosen else None)
        return None if found is None else Turning(found, [found.angles], [found.rates])
    # a line of tokens along each axis in turn
    count = min(places(question), ALONG)
    lines = torch.arange(count)[:, None] * torch.eye(position.axes, dtype=torch.long)[:, None]
    found = planes(position, lines.flatten(0, 1)[None], head=head)
    if found is None:
        return None
    rates = torch.stack([angles[1] for angles in found.angles.split(count)])
    # by the axis that rotates them most, then the fastest first
    most = rates.abs().max(0)
    order = torch.tensor(sorted(range(rates.shape[1]), key=lambda f: (int(most.indices[f]), -float(most.values[f]))))
    basis = None if found.basis is None else found.basis[order]
    ordered = Planes(found.angles[:, order], found.rates[order], basis, found.still)
    return Turning(ordered, list(ordered.angles.split(count)), list(rates[:, order]))


def _usage(question: Question, own: Turning) -> list[list[float]]:
    """The mean of scale · |q_f| |k_f| of each head in each plane, with the unrotated part last, (H, planes)."""
    layer = question.seen
    first = layer.attention.content_dim
    # without parameters all heads rotate in the same way
    alike = not any(True for _ in question.position.parameters())
    rows = []
    for head in range(layer.heads):
        turning = own if alike or head == question.head else _turned(question, head)
        found = own.planes if turning is None else turning.planes
        if found.basis is None:
            q, k = layer.call.q[0, head], layer.call.k[0, head // layer.call.groups]
        else:
            keys = layer.call.k if layer.k is None else layer.k
            q, k = layer.q[0, head], keys[0, head // layer.call.groups]
        q, k = q[..., first:], k[..., first:]
        sizes = [found.sizes(x) for x in (q, k)]
        used = sizes[0].mean(0) * sizes[1].mean(0)
        if found.still and found.basis is not None:
            rest = [
                (x.double().square().sum(-1) - size.square().sum(-1)).clamp(min=0).sqrt().mean()
                for x, size in zip((q, k), sizes, strict=True)
            ]
            used = torch.cat((used, (rest[0] * rest[1])[None]))
        rows.append((used * layer.call.scale).tolist())
    width = len(own.planes.rates) + bool(own.planes.still)
    return [(row + [math.nan] * width)[:width] for row in rows]


def _equal(position: Position, question: Question) -> Tensor:
    """The score of a key equal to the query at each distance, for each head, (H, distances)."""
    with seeded(0), torch.no_grad():
        call = alike(in_float64(position), torch.arange(max(MOST, places(question)))[None])
        return scores(call, slice(-1, None))[0, :, 0].flip(-1)


def _moved(layer: Layer, position: Position) -> float:
    """The largest change of scores when all tokens are shifted by :data:`SHIFT` positions.

    Tokens with several coordinates get random ones, and all coordinates are shifted.
    """
    call, tokens = layer.call, min(layer.queries, LEAST)
    first, groups = layer.attention.content_dim, attached(position).kv_heads
    q, k = layer.q[:1, :, :tokens, first:], (call.k if layer.k is None else layer.k)[:1, :groups, :tokens, first:]
    pos = call.q_pos[:1, :tokens]
    where = pos
    if position.axes > 1:
        where = torch.randint(LEAST, (1, tokens, position.axes), generator=torch.Generator().manual_seed(0))
    marks = position.marked(layer.source[:1, :tokens], pos)
    found = []
    with torch.no_grad():
        for shift in (0, SHIFT):
            turned = position.rotate(q, k, where + shift, where + shift)
            q_there, k_there, terms = position.prepare(*turned, pos + shift, pos + shift, call.scale, marks)
            there = Call(
                q_there, k_there, k, pos + shift, pos + shift, Causal(), terms, call.scale, "softmax", True, "cpu"
            )
            found.append(scores(there).tril())
    return float((found[1] - found[0]).abs().max())
