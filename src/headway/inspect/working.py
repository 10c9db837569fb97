"""Every number of every position method, worked out: by the method itself, else by its formula and what it computes."""

from __future__ import annotations

import torch
from torch import Tensor

from headway.init import seeded
from headway.inspect.probe import alike, attached, in_float64
from headway.positions import Position
from headway.positions.docstring import formula_of
from headway.positions.working import Line, Lines, Number
from headway.terms import AnyTerm, ByDistance, CurveByDistance, Pairwise

NAMES = {"vector": "P[p, {index}]", "bias": "b", "angle": "φ"}


def worked(position: Position, number: Number, value: Tensor | float | None = None) -> Lines:
    """How a number is worked out, the result last.

    Args:
        position: an attached method in float64, see :func:`headway.inspect.probe.in_float64`.
        number: which one.
        value: what the method computes, for methods that do not tell how; without it they have no lines.

    >>> from headway import HeadShape
    >>> from headway.positions import Alibi
    >>> number = Number("bias", torch.tensor(3), index=1, width=8)
    >>> [(line.name, line.formula, float(line.value)) for line in worked(Alibi().attach(HeadShape.of(32, 4)), number)]
    [('m', '2^(−8 · 2 / 4)', 0.0625), ('b', '−m · n', -0.1875)]
    """
    with torch.no_grad():
        told = position.worked(number)
    if told or value is None:
        return told
    return by_formula(position, NAMES[number.kind].format(index=number.index), value)


def by_formula(position: Position, name: str, value: Tensor | float) -> Lines:
    """A number of a method that does not tell how it is worked out: the method's formula, and the value."""
    method: Position = getattr(position, "inside", position)
    return (Line(name, formula_of(type(method)), value, "method"),)


def by_position(position: Position) -> bool:
    """Whether all that a method adds to scores depends on positions alone."""
    terms = _terms(position, 1)
    return bool(terms) and all(isinstance(term, ByDistance | Pairwise) for term in terms)


def bias_at(position: Position, head: int, distance: int) -> float:
    """What a method adds to the score of a query and the key a distance before it, in float64."""
    pos = torch.arange(distance + 1)[None]
    heads = attached(position).heads
    terms = [
        term for term in _terms(position, distance + 1) if isinstance(term, ByDistance | CurveByDistance | Pairwise)
    ]
    tiles = [term.tile(pos, pos, slice(distance, distance + 1)) for term in terms]
    return float(sum(tile.double()[0].expand(heads, 1, -1)[head, 0, 0] for tile in tiles))


def _terms(position: Position, tokens: int) -> tuple[AnyTerm, ...]:
    with seeded(0), torch.no_grad():
        return tuple(alike(in_float64(position), torch.arange(tokens)[None]).terms)
