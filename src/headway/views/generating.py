"""How a text is generated: at each step the distribution, the token drawn from it, attention, and the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from headway.figures.values import Bars, Block, Film, Grid, Heatmap, Line, Lines, Said, View, both, same
from headway.figures.words import number, percent
from headway.inspect.record import record
from headway.schema import Whole, require
from headway.training.generation import Sampling, probabilities, steps
from headway.views.attending import choice_of
from headway.views.predicting import bars_of, predictor_of, sampling_of
from headway.views.predictor import Held, Predictor
from headway.views.question import Question
from headway.views.to_figures import refuse_beyond

VIEWS = ("generation",)

LONGEST = 1024
"""Maximum tokens of the prompt."""
MOST, USUAL = 64, 12
"""Maximum and default tokens to write."""
TOP = 8
"""The likeliest tokens shown at each step."""
KEYS = 96
"""Maximum keys of the maps of attention, the newest."""
HEADS = ("all", "chosen")


@dataclass(frozen=True)
class Written:
    """One step of generation.

    Args:
        token: what was drawn.
        logits: what it was drawn from, (vocab,).
        weights: attention of the newest token in one layer, (heads, tokens of the text so far); 0 where it sees none.
        held: what the cache holds after the step's pass.
    """

    token: int
    logits: Float[Tensor, "vocab"]
    weights: Float[Tensor, "heads tokens"]
    held: Held


def written(question: Question, predictor: Predictor, tokens: int, sampling: Sampling) -> list[Written]:
    """Continue a question's text as :func:`headway.generate` does, and look into each step.

    >>> question = Question.fresh("the cat sat")
    >>> found = written(question, predictor_of(question), 2, Sampling())
    >>> [one.held.tokens for one in found], [one.weights.shape[1] for one in found]
    ([3, 4], [3, 4])
    """
    found: list[Written] = []
    with record(predictor.attentions) as trace:
        for step in steps(predictor.model, predictor.ids[0], tokens, sampling):
            layer = trace.layers[question.layer]
            row = layer.weights(slice(layer.queries - 1, None))[0, :, 0].double().cpu()
            pos = layer.call.k_pos[0].cpu()
            seen = pos >= 0
            weights = row.new_zeros(len(row), predictor.ids.shape[1] + len(found))
            weights[:, pos[seen]] = row[:, seen]
            found.append(Written(step.token, step.logits.double(), weights, predictor.held(step.cache)))
            trace.layers.clear()
            trace.tokens.clear()
    return found


def generation(question: Question) -> View:
    """How the model continues the text, token by token.

    ``options["tokens"]`` (12, at most 64), ``["temperature"]`` (1), ``["top_k"]``, ``["top_p"]`` and ``["seed"]`` (0)
    are those of :func:`headway.generate`, and give the tokens it gives; ``options["heads"]`` is "all" of the layer
    (default), or "chosen".

    Raises:
        HeadwayError: on a model that predicts no next token, a text of more than 1,024 tokens, other options, and
            where the position method cannot go on.

    >>> view = generation(Question.fresh("the cat sat"))
    >>> [type(figure).__name__ for figure in view.figures], len(view.figures[0].frames)
    (['Film', 'Lines', 'Grid'], 12)
    """
    refuse_beyond(question, LONGEST, "generation")
    predictor, sampling = predictor_of(question), sampling_of(question)
    count = question.options.get("tokens", USUAL)
    require(count, Whole(1, MOST), "the option 'tokens'")
    which = choice_of(question, "heads", HEADS)
    found = written(question, predictor, count, sampling)
    ids = predictor.ids[0].tolist()
    labels = list(question.labels)
    for one in found:
        labels.append(predictor.shown(ids, one.token))
        ids.append(one.token)
    frames = [_frame(question, predictor, found, labels, ids, step, sampling, which) for step in range(len(found))]
    chosen = [float(probabilities(one.logits, sampling)[one.token]) for one in found]
    own = [float(probabilities(one.logits, Sampling())[one.token]) for one in found]
    last = found[-1].held
    finding = both(
        "generation.finding",
        text=_text(predictor, ids, len(found)),
        tokens=len(found),
        bits=number(sum(-math.log2(p) if p else math.inf for p in own) / len(own)),
        entries=f"{last.tokens:,}",
        layers=last.layers,
        bytes=f"{last.needed:,}",
    )
    film = Film(both("generation.film", layer=question.layer), frames)
    notes = [both("generation.note"), both("generation.cache.note")]
    if len(labels) - 1 > KEYS:
        notes.append(both("generation.window", keys=KEYS))
    return View("generation", finding, [film, _growth(found), _table(labels, found, own, chosen)], "", notes)


def _text(predictor: Predictor, ids: Sequence[int], tokens: int) -> str:
    """The text that was written; parts of characters by name."""
    before = len(ids) - tokens
    pieces = [
        predictor.spelling.added(ids[:at], ids[at]) or predictor.shown(ids[:at], ids[at])
        for at in range(before, len(ids))
    ]
    return "".join(pieces).strip() or " ".join(predictor.shown(ids[:at], ids[at]) for at in range(before, len(ids)))


Frame = tuple[Said, Sequence[Bars | Heatmap | Grid]]


def _frame(
    question: Question,
    predictor: Predictor,
    found: Sequence[Written],
    labels: Sequence[str],
    ids: Sequence[int],
    step: int,
    sampling: Sampling,
    which: str,
) -> Frame:
    """One step: the likeliest tokens and the one drawn, attention, and the cache."""
    one, now = found[step], len(question.labels) + step
    likeliest = one.logits.sort(descending=True, stable=True).indices[:TOP].tolist()
    if one.token not in likeliest:
        likeliest[-1] = one.token
    names = [predictor.shown(ids[:now], token) for token in likeliest]
    names = [f"▶ {name}" if token == one.token else name for name, token in zip(names, likeliest, strict=True)]
    bars = bars_of(both("generation.next"), names, likeliest, one.logits, sampling)
    cache = Grid(
        both("generation.cache"),
        [same(""), both("generation.now"), both("generation.more")],
        [
            (both("generation.entries"), _change([each.held.tokens for each in found], step)),
            (both("generation.needed"), _change([each.held.needed for each in found], step)),
            (both("generation.reserved"), _change([each.held.reserved for each in found], step)),
            (both("generation.shape", layers=one.held.layers), [" × ".join(map(str, one.held.shape)), ""]),
        ],
    )
    label = both("generation.step", step=step + 1, token=labels[now])
    return label, [bars, _attention(question, one, labels, now, which), cache]


def _change(values: Sequence[int], step: int) -> list[str]:
    """A value of a step, and what it has grown by."""
    return [f"{values[step]:,}", f"+ {values[step] - (values[step - 1] if step else 0):,}"]


def _attention(question: Question, one: Written, labels: Sequence[str], now: int, which: str) -> Heatmap:
    """What the newest token attends to; tokens that are not in the cache yet have no value."""
    heads = list(range(len(one.weights))) if which == "all" else [question.head]
    stop = len(labels) - 1  # the last token drawn is never read
    start = max(0, stop - KEYS)
    rows: list[list[float | None]] = [
        [float(one.weights[head, key]) if key < now else None for key in range(start, stop)] for head in heads
    ]
    names = [str(head) for head in heads]
    axes = (both("head.word"), both("attending.key"))
    title = both(f"generation.attention.{which}", layer=question.layer, head=question.head)
    return Heatmap(title, Block.of(rows), names, labels[start:stop], axes, "sequential", (0.0, 1.0))


def _growth(found: Sequence[Written]) -> Lines:
    """Bytes of the cache over the steps."""
    held = [one.held for one in found]
    lines = [
        Line(both("generation.needed"), [float(one.needed) for one in held]),
        Line(both("generation.reserved"), [float(one.reserved) for one in held], steps=True),
    ]
    x = [float(step + 1) for step in range(len(held))]
    return Lines(both("generation.growth"), x, lines, (both("generation.axis.step"), both("generation.axis.bytes")))


def _table(labels: Sequence[str], found: Sequence[Written], own: Sequence[float], chosen: Sequence[float]) -> Grid:
    """The tokens written, with their probabilities and ranks."""
    new = labels[len(labels) - len(found) :]
    rows = [
        (
            same(f"{step + 1} · {label}"),
            [percent(p), percent(after), f"{int((one.logits > one.logits[one.token]).sum()) + 1:,}"],
        )
        for step, (label, one, p, after) in enumerate(zip(new, found, own, chosen, strict=True))
    ]
    names = [both(f"generation.column.{name}") for name in ("token", "own", "drawn", "rank")]
    return Grid(both("generation.table"), names, rows)
