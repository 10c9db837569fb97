"""Attention by distance."""

from __future__ import annotations

import torch
from torch import Tensor

from headway.figures.values import Grid, Lines, View, both, same
from headway.figures.words import number, percent
from headway.inspect.record import Layer, record
from headway.shapes import HeadwayError
from headway.training.loop import evaluating
from headway.views.distances import by_distance, second_half, some
from headway.views.question import Question
from headway.views.view_helpers import CURVES

VIEWS = ("distance",)

FLOOR = 1e-6
"""Shares of attention below this are not drawn."""


def distance(question: Question) -> View:
    """View 12: attention by distance: the mean over many queries with a 10–90 % band, and uniform attention for the
    same queries. The table and the sentence are means over these queries too.

    Args:
        question: ``options["windows"]`` are ids of several texts, (windows, N), to use instead of the single one.

    Raises:
        HeadwayError: when the text has a single token, or two of which the second sees no other.

    >>> view = distance(Question.fresh("the cat sat on the mat"))
    >>> [line.label["en"] for line in view.figures[0].lines]
    ['head 0', 'uniform attention']
    """
    if len(question.labels) < 2:
        raise HeadwayError("expected a text of at least 2 tokens, because distance is between two, got 1")
    layer = _windows(question)
    found = by_distance(layer, layer.weights)
    if found.first == len(found.distances):  # a query that does not see itself has no keys at the start
        raise HeadwayError(f"expected a text in which queries see some distance, got {len(question.labels)} tokens")
    uniform = by_distance(layer, lambda rows: _uniform(layer, rows))
    heads = some(layer.heads, CURVES, first=question.head)
    axes = (both("place.distance"), both("place.weight"))
    xs = found.axis
    summary = {name: values.mean(0) for name, values in layer.summary(second_half(layer.queries)).items()}
    last = found.distances[-1]
    finding = both(
        "distance.finding",
        head=question.head,
        mean=number(float(summary["distance"][question.head])),
        one=percent(float(found.middle[question.head, found.first])),
        even=percent(float(uniform.middle[0, uniform.first])),
        far=percent(float(found.middle[question.head, -1])),
        last=last,
    )
    return View(
        "distance",
        finding,
        [
            Lines(
                both("distance.one", head=question.head),
                xs,
                [
                    found.line(question.head, both("head", n=question.head), band=True, floor=FLOOR),
                    uniform.line(0, both("distance.uniform"), floor=FLOOR),
                ],
                axes,
                log_x=True,
                log_y=True,
            ),
            Lines(
                both("distance.all"),
                xs,
                [found.line(head, both("head", n=head), floor=FLOOR) for head in heads],
                axes,
                log_x=True,
                log_y=True,
            ),
            _table(summary, found.middle[:, -1]),
        ],
        notes=[
            both(
                "distance.note",
                looked=f"{found.looked:,}",
                queries=f"{int(found.counts.min()):,}",
                windows=len(layer.x),
                tokens=layer.queries,
            ),
            both("distance.note.floor", last=last),
        ],
    )


def _table(summary: dict[str, Tensor], far: Tensor) -> Grid:
    """Attention of each head to itself, the previous and the first token, its mean distance, and the farthest keys."""
    shares = ("self", "previous", "first")
    heads = [
        [
            *(percent(float(summary[key][head])) for key in shares),
            number(float(summary["distance"][head])),
            percent(one),
        ]
        for head, one in enumerate(far.tolist())
    ]
    columns = [both("head.word"), *(both(f"distance.{key}") for key in (*shares, "mean", "far"))]
    return Grid(both("distance.numbers"), columns, [(same(str(head)), cells) for head, cells in enumerate(heads)])


def _windows(question: Question) -> Layer:
    """The layer, for one text or for all of ``options["windows"]``."""
    windows = question.options.get("windows")
    if windows is None:
        return question.seen
    if not isinstance(windows, Tensor) or windows.ndim != 2 or windows.is_floating_point():
        raise HeadwayError(
            "expected options windows to be token ids of several texts, (windows, N), got something else"
        )
    with evaluating(question.model), record(question.model) as trace, torch.no_grad():
        question.model(windows)
    return trace[question.layer]


def _uniform(layer: Layer, rows: slice) -> Tensor:
    """Uniform attention: 1/(i + 1) for query i of a text."""
    seen = layer.seen(rows)
    shape = (1, 1, len(range(*rows.indices(layer.queries))), layer.keys)
    shown = torch.ones(shape, dtype=torch.float64) if seen is None else seen.double()
    return (shown / shown.sum(-1, keepdim=True).clamp(min=1)).expand(len(layer.x), *shown.shape[1:])
