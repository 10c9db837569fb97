"""The effect of a position method, as curves by distance, computed by the method itself.

All tokens have the same content: queries and keys are one vector whose score with itself is 1 (or zero, if the method
adds position to the embedding). So keys differ only in position.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from headway.backends import reference
from headway.inspect.probe import alike
from headway.positions import Position
from headway.shapes import HeadShape, HeadwayError

TOKENS = 256
"""Number of tokens; the query is the last one."""
SHAPE = HeadShape.of(256, heads=4)
SEED = 0
DRAWS = 3


def method_curves(position: Position) -> dict[str, Any]:
    """Curves of a method's effect.

    Args:
        position: the method, attached or not; it is not changed.

    Returns:
        ``kind``, what the curves show: "score", what position adds to the score of a key at a distance; "weight", the
        attention weight of a key, if weights are not a softmax; "numbers", the positions assigned in training; "none"
        with a ``reason``, if nothing can be drawn. ``curves``: for each its ``heads`` (those it is valid for, from 1)
        or ``draw``, and ``values`` at x = 0, 1, 2 …. ``drawn``: whether parameters were drawn at random, because their
        initial values have no effect.

    >>> from headway.positions import Alibi
    >>> found = method_curves(Alibi())
    >>> found["kind"], [curve["values"][8] for curve in found["curves"]]
    ('score', [-2.0, -0.5, -0.125, -0.03125])
    """
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(SEED)
        try:
            return _drawn(position.fresh().attach(SHAPE).double())
        except HeadwayError as error:
            return {"kind": "none", "reason": str(error), "curves": [], "drawn": False, "tokens": TOKENS}


def _drawn(position: Position) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": "score", "reason": None, "curves": [], "drawn": False, "tokens": TOKENS}
    if type(position).renumber is not Position.renumber:
        pos = torch.arange(TOKENS)[None]
        curves = [{"draw": n + 1, "values": _plain(position.renumber(pos)[0])} for n in range(DRAWS)]
        return found | {"kind": "numbers", "curves": curves}
    kind, values = _by_distance(position)
    if not values.any() and any(True for _ in position.parameters()):
        for parameter in position.parameters():
            parameter.normal_()
        kind, values = _by_distance(position)
        found["drawn"] = True
    heads: dict[tuple[float | None, ...], list[int]] = {}
    for number, curve in enumerate(values, 1):
        heads.setdefault(tuple(_plain(curve)), []).append(number)
    curves = [{"heads": those, "values": list(curve)} for curve, those in heads.items()]
    return found | {"kind": kind, "curves": curves}


def _by_distance(position: Position) -> tuple[str, Tensor]:
    """The scores or weights of the last query for the keys at distance 0, 1, 2 …, for each head."""
    call = alike(position, torch.arange(TOKENS)[None])
    if position.normalise != "softmax":
        return "weight", reference.weights(call)[0, :, -1].flip(-1)
    added = reference.scores(call)[0, :, -1].flip(-1) - (0.0 if position.embeds else 1.0)
    return "score", added.masked_fill(added.abs() < 1e-9, 0.0)


def _plain(values: Tensor) -> list[float | None]:
    """Values rounded to six digits; None if not finite."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
