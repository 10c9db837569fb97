"""Where attention goes: one row of weights, one head, and all heads of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from headway.figures.values import Bars, Grid, Heatmap, Said, View, Wall, both, same
from headway.figures.words import number, percent
from headway.inspect.head import Head
from headway.inspect.record import ROWS, Layer, attention_totals
from headway.schema import Words, require
from headway.views.grouping import Groups
from headway.views.question import Question
from headway.views.softmax_steps import softmax_steps
from headway.views.to_figures import Window, fitting, pairs, refuse_beyond, spans, stepped, told

VIEWS = ("softmax", "wall", "head")

LONGEST = 1024
"""Maximum tokens of a head's map."""
KEYS = 64
"""Maximum number of bars; for longer texts, the keys with the largest weights."""
SIDE = 64
"""Rows and columns of a tile of the wall; longer texts are pooled."""
FINE = 2**20
"""Maximum bytes of a head's map that is sent as float32."""
CELLS = 500_000
"""Total cells of all tiles of the wall, so that it stays below 2 MB."""
LOOKS = ("previous", "first", "self", "entropy", "distance")
WHAT = ("weights", "scores")
FORMULAS = {
    "softmax": "α_j = exp(s_j) / Σ_t exp(s_t)",
    "sinks": "α_j = exp(s_j) / (exp(sink) + Σ_t exp(s_t))",
    "stickbreaking": "α_j = σ(s_j) · Π_{t > j} σ(−s_t)",
    "stickbreaking+remainder": "α_j = σ(s_j) · Π_{j < t < i} σ(−s_t),  α_i = Π_{t < i} σ(−s_t)",
}


def softmax(question: Question) -> View:
    """How the scores of one query become weights: a bar for each key, masked keys without.

    >>> softmax(Question.fresh("the cat sat")).finding["en"]
    '“sat” attends most to “the”, with 66 %; its weights sum to 1.0000.'
    """
    row = question.row
    head = Head(question.seen, question.head, slice(row, row + 1))
    seen, weights = head.seen[0], head.weights[0]
    kept = _kept(weights, seen)
    labels = [question.of_keys[key] for key in kept]
    scores = [float(head.scores[0, key]) if seen[key] else None for key in kept]
    shares = [float(weights[key]) if seen[key] else None for key in kept]
    query = question.labels[row]
    figures = (
        softmax_steps(question, head),
        Bars(both("softmax.scores", query=query), labels, [(both("attending.score"), scores)], both("attending.score")),
        Bars(
            both("softmax.weights", query=query), labels, [(both("attending.weight"), shares)], both("attending.weight")
        ),
    )
    notes = [both("softmax.masked")] if not bool(seen.all()) else []
    if len(kept) < len(weights):
        notes.append(both("softmax.kept", kept=len(kept), keys=len(weights), rest=percent(_left(weights, kept))))
    return View("softmax", _spent(question, head), figures, formula(head.layer), notes)


def way(layer: Layer) -> str:
    """The normalisation of a layer: "softmax", "sinks" or "stickbreaking"."""
    return "sinks" if layer.call.sinks is not None else layer.call.normalise.partition("+")[0]


def formula(layer: Layer) -> str:
    """The normalisation of a layer, as a formula."""
    return FORMULAS["sinks" if layer.call.sinks is not None else layer.call.normalise]


def _kept(weights: Tensor, seen: Tensor) -> list[int]:
    """The keys with bars, in order: all, or those with the largest weights."""
    if len(weights) <= KEYS:
        return list(range(len(weights)))
    kept: list[int] = weights.masked_fill(~seen, -1.0).topk(KEYS).indices.sort().values.tolist()
    return kept


def _left(weights: Tensor, kept: list[int]) -> float:
    return max(0.0, float(weights.double().sum() - weights[kept].double().sum()))


def _spent(question: Question, head: Head) -> Said:
    """The key a query attends to most, and the sum of its weights."""
    weights, query = head.weights[0], question.labels[question.row]
    if not bool(head.seen.any()):
        return both("softmax.blind", query=query)
    most = int(weights.argmax())
    total = float(weights.double().sum())
    told_sum = both(f"softmax.sum.{way(head.layer)}", sum=f"{total:.4f}", rest=percent(1 - total))
    top = {"query": query, "key": question.of_keys[most], "weight": percent(float(weights[most]))}
    return told("softmax.finding", **top, sum=told_sum)


def head(question: Question) -> View:
    """The attention map of one head over the whole text, up to 1,024 tokens.

    ``options["what"]`` is "weights" (default) or "scores". ``options["group"]`` is "characters" (default): weights of
    tokens that are parts of a character are shown together; or "words" or "tokens".

    Raises:
        HeadwayError: on a longer text, or another ``what``.

    >>> head(Question.fresh("the cat sat")).figures[0].values.shape
    (3, 3)
    """
    refuse_beyond(question, LONGEST, "head")
    what = choice_of(question, "what", WHAT)
    one, window = Head(question.seen, question.head), Window.of(question, LONGEST)
    groups = Groups.of(question)
    scale = "sequential" if what == "weights" else "diverging"
    title = both(f"head.{what}", layer=question.layer, head=question.head)
    values, seen, notes = getattr(one, what), one.seen, []
    if groups is not None and what == "weights":
        values, seen, notes = groups.weights(values), groups.seen(seen), [groups.note]
        window = Window.grouped(groups)
    elif groups is not None:
        notes = [both("grouping.scores")]
    shown = replace(pairs(title, values, window, seen=seen, scale=scale, fine=FINE), links=what == "weights")
    summary = one.layer.summary()
    average = {name: float(summary[name][0, question.head]) for name in _looked(question)}
    finding = _linked(question, one, what, average, groups)
    return View("head", finding, (shown, _looks(one, average)), "", [*notes, *stepped(shown.values)])


def choice_of(question: Question, name: str, choices: tuple[str, ...]) -> str:
    """An option with several choices, by default the first.

    Raises:
        HeadwayError: on any other value.
    """
    given = question.options.get(name, choices[0])
    require(given, Words(choices), f"the option {name!r}")
    return str(given)


def strongest(values: Tensor, seen: Tensor) -> tuple[int, int] | None:
    """The pair of different tokens with the largest value; None where no token sees another.

    >>> strongest(torch.tensor([[9.0, 0.0], [0.5, 9.0]]), torch.ones(2, 2, dtype=torch.bool))
    (1, 0)
    """
    others = seen & ~torch.eye(*seen.shape, dtype=torch.bool, device=seen.device)
    if not bool(others.any()):
        return None
    return divmod(int(values.masked_fill(~others, -torch.inf).argmax()), values.shape[1])


def link(question: Question, pair: tuple[int, int], groups: Groups | None = None) -> Said:
    """A query and a key, formatted for a sentence; of groups of tokens if there are some."""
    query, key = pair
    labels = {"query_label": question.labels[query], "key_label": question.of_keys[key]}
    if groups is not None:
        labels = {"query_label": groups.labels[query], "key_label": groups.labels[key]}
    return both("attending.link", query=query, key=key, **labels)


def _looked(question: Question) -> tuple[str, ...]:
    """What is said of heads: in cross attention there is no token itself, and no previous one."""
    return LOOKS if question.keys is None else ("first", "entropy")


def _linked(
    question: Question, one: Head, what: str, average: Mapping[str, float], groups: Groups | None = None
) -> Said:
    """The most prominent link, and what a query attends to on average."""
    shares = {name: percent(average[name]) for name in ("self", "previous", "first") if name in average}
    # early queries see few keys, so that their weights are always large: compare with the uniform share
    times = one.weights * one.seen.sum(-1, keepdim=True)
    values = times if what == "weights" else one.scores
    if question.keys is not None:
        best = divmod(int(values.masked_fill(~one.seen, -torch.inf).argmax()), values.shape[1])
        value = percent(float(one.weights[best])) if what == "weights" else number(float(one.scores[best]))
        entropy = number(average["entropy"])
        return told(f"head.finding.cross.{what}", link=link(question, best), value=value, entropy=entropy, **shares)
    weights, seen = one.weights, one.seen
    if groups is not None and what == "weights":
        even = one.seen.to(times) / one.seen.sum(-1, keepdim=True).clamp(min=1)
        weights, seen = groups.weights(weights), groups.seen(seen)
        times = values = weights / groups.weights(even).clamp(min=1e-12)
    pair = strongest(values, seen)
    if pair is None:
        return both("head.alone", share=shares["self"])
    said = {"value": percent(float(weights[pair])), "times": number(float(times[pair]))}
    if what == "scores":
        said = {"value": number(float(one.scores[pair]))}
    return told(
        f"head.finding.{what}", link=link(question, pair, groups if what == "weights" else None), **said, **shares
    )


def _looks(one: Head, average: Mapping[str, float]) -> Grid:
    """What a head attends to on average, compared with uniform attention."""
    call, seen = one.layer.call, one.seen.double()
    uniform = seen / seen.sum(-1, keepdim=True).clamp(min=1)
    alike = attention_totals(uniform[None, None], call.q_pos[:1], call.k_pos[:1])
    queries = alike["queries"].clamp(min=1)
    columns = (both("head.average"), both("head.here"), both("head.uniform"))
    rows = []
    for name, value in average.items():
        said = percent if name in ("previous", "first", "self") else number
        rows.append((both(f"wall.{name}"), [said(value), said(float(alike[name] / queries))]))
    return Grid(both("head.looks"), columns, rows)


def wall(question: Question) -> View:
    """A small map for each layer and head, on one shared scale, sortable.

    The values of a tile include its ``layer`` and ``head``. For a long text each cell is the largest weight of a
    square.

    >>> [tile[0]["en"] for tile in wall(Question.fresh("the cat sat", heads=2)).figures[0].tiles]
    ['L0 H0', 'L0 H1', 'L1 H0', 'L1 H1']
    """
    layers = list(question.trace)
    count = sum(layer.heads for layer in layers)
    side = max(2, min(SIDE, math.isqrt(CELLS // count)))
    groups = Groups.of(question)
    labels = question.labels if groups is None else groups.labels
    every = math.ceil(max(len(labels), 0 if question.keys is None else len(question.keys)) / side)
    maps = [_pooled(layer, every, groups) for layer in layers]
    every_map = torch.cat([weights for weights, _ in maps])
    span, fit = spans(every_map, "sequential"), fitting(every_map, torch.cat([seen for _, seen in maps]))
    window = Window(list(labels), 0, len(labels), question.keys)
    if every > 1:
        rows = _stretches(window.tokens, every)
        columns = None if question.keys is None else _stretches(len(question.keys), every)
        window = Window(rows, 0, len(rows), columns)
    tiles = []
    for number_of, (layer, (weights, seen)) in enumerate(zip(layers, maps, strict=True)):
        summary = layer.summary()
        for index in range(layer.heads):
            name = same(f"L{number_of} H{index}")
            fine = 4 * CELLS // (3 * count)
            tile = pairs(
                name, weights[index], window, seen=seen[index], scale="sequential", limits=span, fit=fit, fine=fine
            )
            average = {key: float(summary[key][0, index]) for key in _looked(question)}
            tiles.append((name, tile, {**average, "layer": float(number_of), "head": float(index)}))
    sorts = {name: both(f"wall.{name}") for name in _looked(question)}
    figure = Wall(both("wall.title"), tiles, layers[0].heads, sorts)
    notes = [] if groups is None else [groups.note]
    notes += [both("wall.pooled", every=every, tokens=len(labels))] if every > 1 else []
    return View("wall", _roles(tiles), (figure,), "", [*notes, *stepped(tiles[0][1].values)])


def _stretches(tokens: int, every: int) -> list[str]:
    """Labels of stretches of so many tokens."""
    return [f"{start}–{min(start + every, tokens) - 1}" for start in range(0, tokens, every)]


def _pooled(layer: Layer, every: int, groups: Groups | None) -> tuple[Tensor, Tensor]:
    """The largest weight of each square of ``every`` × ``every`` pairs, and whether any of them is seen, by head."""
    if groups is not None:
        whole = layer.weights()[0].detach()
        mask = layer.seen()
        shown = torch.ones_like(whole) if mask is None else mask.expand(1, *whole.shape)[0].to(whole)
        return _squares(groups.weights(whole), every), _squares(groups.seen(shown).to(whole), every) > 0
    weights: list[Tensor] = []
    seen: list[Tensor] = []
    rows = max(1, ROWS // every) * every
    for start in range(0, layer.queries, rows):
        part = slice(start, min(start + rows, layer.queries))
        tile = layer.weights(part)[0].detach()
        visible = layer.seen(part)
        shown = torch.ones_like(tile) if visible is None else visible.expand(1, *tile.shape)[0].to(tile)
        weights.append(_squares(tile, every))
        seen.append(_squares(shown, every))
    return torch.cat(weights, 1), torch.cat(seen, 1) > 0


def _squares(x: Tensor, every: int) -> Tensor:
    """The largest value of each square, (H, rows, columns)."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[2] % every, 0, -x.shape[1] % every))
    largest: Tensor = padded.unflatten(2, (-1, every)).unflatten(1, (-1, every)).amax((2, 4))
    return largest


def _roles(tiles: Sequence[tuple[Said, Heatmap, Mapping[str, float]]]) -> Said:
    """The heads that attend most to the previous and to the first token, and the sharpest head."""
    sharp, first = (
        min(tiles, key=lambda tile: tile[2]["entropy"]),
        max(tiles, key=lambda tile: tile[2]["first"]),
    )
    if "previous" not in first[2]:
        said = {"sharp": sharp[0]["en"], "entropy": number(sharp[2]["entropy"]), "first": first[0]["en"]}
        return both("wall.finding.cross", first_share=percent(first[2]["first"]), **said)
    previous = max(tiles, key=lambda tile: tile[2]["previous"])
    return both(
        "wall.finding",
        previous=previous[0]["en"],
        previous_share=percent(previous[2]["previous"]),
        first=first[0]["en"],
        first_share=percent(first[2]["first"]),
        sharp=sharp[0]["en"],
        entropy=number(sharp[2]["entropy"]),
    )
