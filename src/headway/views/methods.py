"""Methods side by side: models on the same text, with heads matched by what they attend to.

Head 3 of one model is unrelated to head 3 of another. Heads are described by five values, each divided by its standard
deviation over all these heads, and paired so that the sum of their distances is smallest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from headway.figures.values import Block, Columns, Figure, Grid, Heatmap, Lines, View, both, same
from headway.figures.words import LANGUAGES, Clause, Listed, fill, number
from headway.inspect.record import Layer
from headway.shapes import HeadwayError
from headway.views.biasing import added_by_distance
from headway.views.distances import by_distance, second_half
from headway.views.grouping import Groups
from headway.views.question import Question
from headway.views.reaching import FLOOR
from headway.views.to_figures import fitting

VIEWS = ("sidebyside",)

MEASURES = ("entropy", "self", "previous", "first", "distance")
TOKENS = 96
"""Maximum tokens of a map; a longer text is cut."""
EXACT = 12
"""Maximum heads for an exact matching, which takes 2^heads steps."""


def sidebyside(question: Question) -> View:
    """View 13: a head of one model and the most similar head of each other model, in columns: the effect of position on
    the scores by distance, attention by distance, and the attention map; and which heads were matched, and why.

    Args:
        question: ``others`` are further models on the same text; ``options["group"]`` as of
            :func:`headway.views.head`.

    Raises:
        HeadwayError: without others, or when they have another text.

    >>> from dataclasses import replace
    >>> beside = replace(Question.fresh("the cat sat"), others=[Question.fresh("the cat sat", position="alibi")])
    >>> [label["en"].partition(",")[0] for label, _ in sidebyside(beside).figures[0].columns]
    ['rotary', 'alibi']
    """
    _check_others(question)
    asked = [question, *question.others]
    layers = [one.trace[min(question.layer, len(one.trace) - 1)] for one in asked]
    described = [_described(layer) for layer in layers]
    units = torch.cat(described).std(0, correction=0).clamp(min=1e-9)
    costs = [torch.cdist(described[0] / units, other / units) for other in described[1:]]
    pairs = [match(cost) for cost in costs]
    heads = [question.head, *(pair[question.head] for pair in pairs)]
    names = [_name(one) for one in asked]
    said = [both("sidebyside.column", name=name, head=head) for name, head in zip(names, heads, strict=True)]
    means = [number(float(each[head, -1])) for each, head in zip(described, heads, strict=True)]
    others = [
        Clause("sidebyside.other", {"name": name, "head": head, "mean": mean})
        for name, head, mean in zip(names[1:], heads[1:], means[1:], strict=True)
    ]
    told = {"name": names[0], "head": question.head, "mean": means[0], "others": Listed(others)}
    rule = "sidebyside.rule" if max(map(len, described)) <= EXACT else "sidebyside.rule.greedy"
    groups = Groups.of(question)
    notes = [both(rule, name=names[0]), *([groups.note] if groups else [])]
    if any(one.position.embeds for one in asked) and question.layer > 0:
        notes.append(both("sidebyside.estimate"))
    return View(
        "sidebyside",
        {language: fill("sidebyside.finding", told, language) for language in LANGUAGES},
        [
            Columns(
                both("sidebyside.columns", name=names[0], head=question.head, layer=question.layer),
                list(zip(said, _figures(question, layers, heads, names, groups), strict=True)),
            ),
            _matched(names, costs, pairs),
            Grid(
                both("sidebyside.numbers"),
                [
                    same(""),
                    both("sidebyside.entropy"),
                    *(both(f"distance.{key}") for key in ("self", "previous", "first", "mean")),
                ],
                [
                    (label, [number(value) for value in each[head].tolist()])
                    for label, each, head in zip(said, described, heads, strict=True)
                ],
            ),
        ],
        notes=notes,
    )


def _check_others(question: Question) -> None:
    if not question.others:
        raise HeadwayError("expected others, further models to compare with this one, got none: give at least one")
    for other in question.others:
        if list(other.labels) != list(question.labels):
            raise HeadwayError(
                f"expected others to be asked about the same {len(question.labels)} tokens, got another text for "
                f"{_name(other)}: give all models the same tokens"
            )


def _matched(names: list[str], costs: list[Tensor], pairs: list[list[int]]) -> Grid:
    """For each head its match in every other model, and their distance."""
    columns = [
        both("sidebyside.pair", name=names[0]),
        *(both(f"sidebyside.{what}", name=name) for name in names[1:] for what in ("pair", "apart")),
    ]
    rows = []
    for head in range(len(costs[0])):
        found = [(pair[head], cost[head, pair[head]]) for cost, pair in zip(costs, pairs, strict=True)]
        rows.append((same(str(head)), [text for one, apart in found for text in (str(one), number(float(apart)))]))
    return Grid(both("sidebyside.matched"), columns, rows)


def match(cost: Float[Tensor, "rows columns"]) -> list[int]:
    """A column for each row, so that their costs have the smallest sum; no column twice while there are enough.

    Up to :data:`EXACT` columns by going through all subsets of them; with more, the cheapest pair first.

    >>> match(torch.tensor([[1.0, 2.0], [0.0, 5.0]]))  # 2 + 0 is less than 1 + 5
    [1, 0]
    """
    rows, columns = cost.shape
    often = math.ceil(rows / columns)
    cost = cost.repeat(1, often)  # each column may be taken so often
    found = _exactly(cost.tolist()) if columns * often <= EXACT else _greedily(cost)
    return [column % columns for column in found]


def _exactly(cost: Sequence[Sequence[float]]) -> list[int]:
    """Row by row, the cheapest way to have used each subset of the columns."""
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for row in cost:
        longer: dict[int, tuple[float, list[int]]] = {}
        for used, (total, taken) in best.items():
            for column, price in enumerate(row):
                after = used | 1 << column
                if after != used and (after not in longer or total + price < longer[after][0]):
                    longer[after] = (total + price, [*taken, column])
        best = longer
    return min(best.values())[1]


def _greedily(cost: Tensor) -> list[int]:
    cost = cost.clone()
    found = [0] * len(cost)
    for _ in range(len(cost)):
        row, column = divmod(int(cost.argmin()), cost.shape[1])
        found[row] = column
        cost[row], cost[:, column] = torch.inf, torch.inf
    return found


def _described(layer: Layer) -> Float[Tensor, "heads measures"]:
    """The five values of each head, over the queries of its curves."""
    summary = layer.summary(second_half(layer.queries))
    return torch.stack([summary[name].mean(0) for name in MEASURES], 1)


def _name(question: Question) -> str:
    return question.name or question.position.spec()


def _figures(
    question: Question, layers: Sequence[Layer], heads: Sequence[int], names: Sequence[str], groups: Groups | None
) -> list[list[Figure]]:
    """A column of figures for each model."""
    groups = groups and groups.first(TOKENS)
    shown = slice(0, groups.count if groups else min(TOKENS, len(question.labels)))
    maps = [layer.weights(shown)[0, head, :, shown] for layer, head in zip(layers, heads, strict=True)]
    masks = [
        None if (seen := layer.seen(shown)) is None else seen.expand(1, layer.heads, -1, -1)[0, head, :, shown]
        for layer, head in zip(layers, heads, strict=True)
    ]
    if groups:
        maps = [groups.weights(one) for one in maps]
        masks = [None if one is None else groups.seen(one) for one in masks]
    top = max(float(each.max()) for each in maps)
    widest = max((fit[1] if (fit := fitting(*each)) else top for each in zip(maps, masks, strict=True)), default=top)
    labels = groups.labels if groups else question.labels[shown]
    columns: list[list[Figure]] = []
    for layer, head, name, weights, seen in zip(layers, heads, names, maps, masks, strict=True):
        added, share = added_by_distance(layer, every=True), by_distance(layer, layer.weights)
        hidden = None if seen is None else Block.of((~seen).int().tolist(), "bits")
        columns.append(
            [
                Lines(
                    both("sidebyside.added"),
                    added.axis,
                    [added.line(head, same(name), band=True)],
                    (both("place.distance"), both("place.added")),
                    log_x=True,
                ),
                Lines(
                    both("sidebyside.weights"),
                    share.axis,
                    [share.line(head, same(name), band=True, floor=FLOOR)],
                    (both("place.distance"), both("place.weight")),
                    log_x=True,
                    log_y=True,
                ),
                Heatmap(
                    both("sidebyside.map", layer=question.layer, head=head),
                    Block.of(weights.tolist()),
                    labels,
                    labels,
                    (both("place.query"), both("place.key")),
                    limits=(0.0, top),
                    hidden=hidden,
                    fit=(0.0, widest) if widest < top / 2 else None,
                ),
            ]
        )
    return columns
