"""Why scores are divided by √d_k: their spread grows with it, and softmax of widely spread scores picks one key."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headway.backends.rows import by_key_head
from headway.figures.values import Bars, Grid, Line, Lines, View, both, same
from headway.figures.words import number
from headway.inspect.record import Layer
from headway.shapes import HeadwayError, brief
from headway.views.distances import point, second_half
from headway.views.question import Question

VIEWS = ("scaling",)

WIDTHS = (8, 16, 32, 64, 128, 256, 512)
QUERIES, KEYS = 128, 256
SEED = 0
BINS = 31
"""Odd, so that one of them is centred at 0."""
WIDEST = 4096


def scaling(question: Question) -> View:
    """View 3: the spread of q·k and of q·k/√d_k over d_k, the softmax of both, and the same for the text itself.

    Queries and keys of the experiment are sampled from N(0, 1) with a fixed seed; the text's are the model's own.

    Args:
        question: ``options["dim"]`` is the d_k of the histogram, default the model's.

    Raises:
        HeadwayError: when ``dim`` is not a width from 1 to 4096.

    >>> view = scaling(Question.fresh("the cat sat on the mat"))
    >>> [type(figure).__name__ for figure in view.figures]
    ['Lines', 'Lines', 'Bars', 'Bars', 'Grid']
    """
    layer = question.seen
    width = question.options.get("dim", layer.attention.shape.head_dim)
    if not isinstance(width, int) or not 1 <= width <= WIDEST:
        raise HeadwayError(f"expected options dim, a width of a head, from 1 to {WIDEST}, got {brief(width)}")
    widths = sorted({*WIDTHS, width})
    drawn = {dim: _drawn(dim) for dim in widths}
    spread = {dim: float(raw.std()) for dim, raw in drawn.items()}
    entropy = {dim: (_entropy(raw), _entropy(raw / math.sqrt(dim))) for dim, raw in drawn.items()}
    raw, scaled, seen = _own(layer, question.head)
    at = {"dim": width, "raw": number(spread[width]), "root": number(math.sqrt(width))}
    at |= {"scaled": number(spread[width] / math.sqrt(width)), "most": number(math.log(KEYS)), "keys": KEYS}
    finding = both(
        "scaling.finding", **at, sharp=number(entropy[width][0]), soft=number(entropy[width][1]), head=question.head
    )
    raw_line, scaled_line = both("scaling.raw"), both("scaling.scaled")
    return View(
        "scaling",
        finding,
        [
            *_curves(spread, entropy, width),
            _histogram(both("scaling.histogram", dim=width), drawn[width].flatten(), 1 / math.sqrt(width)),
            _histogram(both("scaling.own", layer=question.layer, head=question.head), raw, layer.call.scale),
            Grid(
                both("scaling.numbers"),
                [same(""), raw_line, scaled_line],
                [
                    (
                        both("scaling.drawn", dim=width),
                        [number(spread[width]), number(spread[width] / math.sqrt(width))],
                    ),
                    (both("scaling.drawn.entropy"), [number(value) for value in entropy[width]]),
                    (both("scaling.text"), [number(float(x.std(correction=0))) for x in (raw, scaled)]),
                    (both("scaling.text.entropy"), [number(value) for value in seen]),
                ],
            ),
        ],
        formula="sd(q·k) = √d_k  →  sd(q·k / √d_k) = 1,  q, k ~ N(0, 1)",
        notes=[both("scaling.note", queries=QUERIES, keys=KEYS, scale=number(layer.call.scale))],
    )


def _curves(spread: dict[int, float], entropy: dict[int, tuple[float, float]], width: int) -> list[Lines]:
    """The spread of q·k over d_k, and the entropy of its softmax, both with and without the factor 1/√d_k."""
    names, mark = (both("scaling.raw"), both("scaling.scaled")), ((float(width), same(f"d_k = {width}")),)
    found = {
        "spread": [(value, value / math.sqrt(dim), math.sqrt(dim)) for dim, value in spread.items()],
        "entropy": [(*values, math.log(KEYS)) for values in entropy.values()],
    }
    thirds = {"spread": same("√d_k"), "entropy": both("scaling.uniform")}
    return [
        Lines(
            both(f"scaling.{what}", keys=KEYS),
            [float(dim) for dim in spread],
            [
                Line(name, [point(one) for one in values])
                for name, values in zip((*names, thirds[what]), zip(*rows, strict=True), strict=True)
            ],
            (same("d_k"), both(f"scaling.axis.{what}")),
            log_x=True,
            log_y=what == "spread",
            marks=mark,
        )
        for what, rows in found.items()
    ]


def _drawn(width: int) -> Tensor:
    """q·k of random queries and keys of this width, (queries, keys)."""
    generator = torch.Generator().manual_seed(SEED)
    q, k = (torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (QUERIES, KEYS))
    return q @ k.T


def _entropy(scores: Tensor) -> float:
    """Mean entropy of the softmax of each row, in nats."""
    return float(-torch.special.xlogy(weights := scores.softmax(-1), weights).sum(-1).mean())


def _own(layer: Layer, head: int) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """q·k of a head after rotation by position, for unmasked pairs, raw and scaled; and both entropies."""
    rows = second_half(layer.queries)
    call = layer.call
    q, k = call.q[:, :, rows].double(), call.k.double()
    raw = (by_key_head(q, call) @ k.mT).reshape(*q.shape[:3], -1)[:, head]
    seen = layer.seen(rows)
    shown = torch.ones_like(raw, dtype=torch.bool)
    if seen is not None:
        shown = seen.expand(len(raw), layer.heads, -1, -1)[:, head]
    alive = shown.any(-1)
    sharp, soft = (_entropy((raw * scale).masked_fill(~shown, -torch.inf)[alive]) for scale in (1.0, call.scale))
    return raw[shown], raw[shown] * call.scale, (sharp, soft)


def _histogram(title: dict[str, str], raw: Tensor, scale: float) -> Bars:
    """Shares of raw and scaled scores in the same bins, around multiples of a round number."""
    least = max(float(raw.abs().max()), 1e-6) / (BINS // 2)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= least)

    def share(values: Tensor) -> list[float | None]:
        counts = torch.bincount((values / step).round().long() + BINS // 2, minlength=BINS)
        return [point(float(count) / len(values)) for count in counts]

    labels = [number(step * (i - BINS // 2)) for i in range(BINS)]
    series = [(both("scaling.raw"), share(raw)), (both("scaling.scaled"), share(raw * scale))]
    return Bars(title, labels, series, both("scaling.axis.share"))
