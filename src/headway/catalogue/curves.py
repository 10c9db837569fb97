"""What a position method does, as curves by distance: not drawn by hand, but read off the method itself.

All tokens say the same: queries and keys are one vector whose score with itself is 1 (or no vector at all, where the
method adds position to the embedding). What is left to differ between keys is what position does to them.
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
"""How many tokens are looked at; the query is the last of them."""
SHAPE = HeadShape.of(256, heads=4)
SEED = 0
DRAWS = 3


def portrait(position: Position) -> dict[str, Any]:
    """Curves of what a method does.

    Args:
        position: the method, attached or not; it is not changed.

    Returns:
        ``kind``, what the curves show: "score", what position adds to the score of a key at a distance; "weight", the
        share of attention a key gets, where weights are no softmax; "numbers", the positions that training hands out;
        "none" with a ``reason``, where nothing can be drawn. ``curves``: for each its ``heads`` (those it holds for,
        from 1) or ``draw``, and ``values`` at x = 0, 1, 2 …. ``drawn``: whether parameters were drawn at random,
        because at their initial values they do nothing.

    >>> from headway.positions import Alibi
    >>> found = portrait(Alibi())
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
    """What the last query makes of the keys at distance 0, 1, 2 …, for each head."""
    call = alike(position, torch.arange(TOKENS)[None])
    if position.normalise != "softmax":
        return "weight", reference.weights(call)[0, :, -1].flip(-1)
    added = reference.scores(call)[0, :, -1].flip(-1) - (0.0 if position.embeds else 1.0)
    return "score", added.masked_fill(added.abs() < 1e-9, 0.0)


def _plain(values: Tensor) -> list[float | None]:
    """Numbers of six digits; None for what is not finite."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
