"""Figures of one number of position worked out, and of a query and a key whose positions can be moved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from headway.figures.values import Block, Said, Turns, Worked, Working, both
from headway.figures.words import number as written
from headway.inspect.probe import Planes, in_float64
from headway.inspect.working import by_formula, worked
from headway.positions import Position
from headway.positions.working import Line, Lines, Number
from headway.views.question import Question

CHOSEN = (7, 4)
"""The cell that is worked out initially: row and column, if there are as many."""
DISTANCES = 64
"""Maximum number of distances to choose from."""


def vector_worked(position: Position, added: Tensor, shown: Sequence[int]) -> Worked:
    """An entry of the vectors that a method adds, (positions, dim), chosen in a map of the dimensions shown."""
    (count, dim), exact = added.shape, in_float64(position)
    where = torch.arange(count)
    columns = [worked(exact, Number("vector", where, index, dim), added[:, index]) for index in shown]
    return _of_map(both("worked.vector"), count, columns)


def angle_worked(position: Position, angles: Tensor, width: int) -> Worked:
    """An angle, chosen in a map of positions by planes, (positions, planes)."""
    count, exact = len(angles), in_float64(position)
    told = _declared(exact, count, width)
    # the planes were found by applying the method: the pair that a plane is rotates by the same angles
    turned = [torch.as_tensor(lines[-1].value).double().expand(count) for lines in told]
    columns: list[Lines] = []
    for plane in range(angles.shape[1]):
        own = angles[:, plane]
        off = [float(_wrapped(angle - own).abs().max()) for angle in turned]
        if not float(own.abs().max()):
            columns.append((Line("φ", "0", 0.0, "still"),))
        elif off and min(off) < 1e-6:
            columns.append(told[off.index(min(off))])
        else:
            columns.append(by_formula(position, "φ", torch.remainder(own, 2 * math.pi)))
    still = [lines[0].kind == "still" for lines in columns]
    first = next((f for f in (CHOSEN[1], *range(len(still))) if f < len(still) and not still[f]), 0)
    return _of_map(both("worked.angle"), count, columns, first)


def _declared(position: Position, count: int, width: int) -> list[Lines]:
    """How the angles of each pair are worked out, where the method tells."""
    found: list[Lines] = []
    try:
        for pair in range(width):
            found.append(worked(position, Number("angle", torch.arange(count), pair, width, length=count)))
    except IndexError:  # there are no more pairs
        pass
    return [lines for lines in found if lines]


def bias_worked(question: Question, past: Tensor) -> Worked:
    """The bias of the chosen head at a distance, of a method whose bias is a table by distance, (heads, reach + 1)."""
    exact, head, reach = in_float64(question.position), question.head, past.shape[1] - 1
    width, scale = question.seen.attention.shape.head_dim, question.seen.call.scale
    rows = _distances(reach)
    numbers = [Number("bias", torch.tensor(n), head, width, scale, reach + 1) for n in rows]
    lines = [worked(exact, number, past[head, n]) for n, number in zip(rows, numbers, strict=True)]
    return _of_distances(both("worked.bias", head=head), rows, lines)


def added_worked(question: Question, added: Tensor) -> Worked:
    """What is added to the score of the chosen query and the key at a distance before it, (keys,)."""
    row = question.row
    rows = _distances(row)
    lines = [by_formula(question.position, "b", added[row - n]) for n in rows]
    title = both("worked.bias.text", head=question.head, query=question.labels[row])
    return _of_distances(title, rows, lines)


def _distances(last: int) -> list[int]:
    """Distances to choose from: near ones, then ever fewer, up to the last."""
    wanted = {round(x) for x in torch.logspace(0, math.log10(max(last, 1)), DISTANCES).tolist()}
    return sorted({0, *range(min(last, DISTANCES // 2) + 1), *(n for n in wanted if n <= last), last})


def _of_map(title: Said, count: int, columns: Sequence[Lines], column: int = CHOSEN[1]) -> Worked:
    cell = (min(CHOSEN[0], count - 1), min(column, len(columns) - 1))
    made = [[_line(line) for line in lines] for lines in columns]
    return Worked(title, "p", list(range(count)), made, both("place.position"), cell, follows=True)


def _of_distances(title: Said, rows: Sequence[int], lines: Sequence[Lines]) -> Worked:
    """A calculation whose lines may differ from distance to distance."""
    depth = max(map(len, lines))
    padded = [(*[Line("", "", 0.0, "none")] * (depth - len(each)), *each) for each in lines]
    column = []
    for same_line in zip(*padded, strict=True):
        last = same_line[-1]
        kinds = {line.kind for line in same_line} - {"none"}
        values = Block((len(rows),), [float(line.value) for line in same_line])
        said = both(f"worked.{last.kind}") if kinds and last.kind else None
        column.append(Working(last.name, [line.formula for line in same_line], values, said))
    at = min(CHOSEN[0], len(rows) - 1)
    return Worked(title, "n", rows, [column], both("place.distance"), (at, 0))


def _line(line: Line) -> Working:
    values = torch.as_tensor(line.value, dtype=torch.float64).flatten()
    said = both(f"worked.{line.kind}") if line.kind else None
    return Working(line.name, [line.formula], Block((len(values),), values.tolist()), said)


def _wrapped(angles: Tensor) -> Tensor:
    return torch.remainder(angles + math.pi, 2 * math.pi) - math.pi


def movable_planes(question: Question, found: Planes) -> Turns | None:
    """The chosen query and its strongest key in the planes that position rotates; None where it does more than that.

    Args:
        question: its query is the one that is drawn.
        found: the planes of its head, of a method with one coordinate per token.
    """
    layer, row, first = question.seen, question.row, question.seen.attention.content_dim
    weights = layer.row(row, question.head)
    others = weights.clone()
    if row < len(others):
        others[row] = -1.0
    key = int(others.argmax()) if float(others.max()) > 0 else row
    if layer.k is None or found.basis is None:
        return None
    group = question.head // layer.call.groups
    before = (layer.q[0, question.head, row, first:].double(), layer.k[0, group, key, first:].double())
    after = layer.call.q[0, question.head, row, first:], layer.call.k[0, group, key, first:]
    true = float(after[0].double() @ after[1].double()) if after[0].shape == before[0].shape else math.nan
    parts = [math.sqrt(2) * (x.to(found.basis.dtype) @ found.basis.conj().mT) for x in before]
    still = float(before[0] @ before[1]) - float((parts[0].conj() * parts[1]).real.sum())
    at = (int(layer.call.q_pos[0, row]), int(layer.call.k_pos[0, key]))
    turned = (parts[0].conj() * parts[1] * torch.exp(1j * (at[1] - at[0]) * found.rates)).real.sum()
    factor = (true - still) / float(turned) if float(turned) else math.nan
    # a constant factor of cosines and sines, as YaRN has, multiplies all planes
    if not abs(factor - _factor(question.position) ** 2) < 1e-4:
        return None
    parts = [part * _factor(question.position) for part in parts]
    labels = [f"{f}: {written(2 * math.pi / abs(r))}" if r else str(f) for f, r in enumerate(found.rates.tolist())]
    blocks = [Block((len(part), 2), torch.view_as_real(part).flatten().tolist()) for part in parts]
    names = (both("turns.query", token=question.labels[row]), both("turns.key", token=question.of_keys[key]))
    title = both("turns.title", query=question.labels[row], key=question.of_keys[key])
    most = max(64, 2 * len(question.labels))
    return Turns(title, labels, found.rates.tolist(), blocks[0], blocks[1], names, at, still, most)


def _factor(position: Position) -> float:
    """What a method multiplies cosines and sines by."""
    own = getattr(getattr(position, "inside", position), "amplitude", None)
    return float(own()) if callable(own) else 1.0
