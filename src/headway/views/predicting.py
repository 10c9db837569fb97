"""What a model predicts: the probability of each token given those before it, and what sampling makes of it.

An encoder that learned masked tokens predicts each token from all others, with a mask in its place. Row r of the
logits is of token r + 1 of a decoder, and of token r of such an encoder (:attr:`Predictor.ahead`).

p = softmax(logits) in float64;  temperature → softmax(logits / T);  top-k → the k likeliest;  top-p → the likeliest
whose total reaches p. All three are those of :class:`headway.training.generation.Sampling`, which draws.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from headway.figures.values import Bars, Grid, Said, View, both, same
from headway.figures.words import LANGUAGES, number, percent
from headway.schema import Maybe, Number, Schema, Whole, require
from headway.shapes import HeadwayError
from headway.training.generation import Sampling, probabilities
from headway.views.predictor import Predictor
from headway.views.question import Question
from headway.views.to_figures import refuse_beyond

VIEWS = ("prediction",)

LONGEST = 1024
"""Maximum tokens of the text."""
MASKED = 256
"""Maximum tokens of a text of which each is masked in turn: as many passes."""
TOP = 12
"""The likeliest tokens that are shown."""
ROWS = 64
"""Maximum tokens of the table, up to the query."""
SAME = 1e-4
"""Changes of a probability up to this are rounding."""
FARTHEST = 100_000
"""Maximum shift of all positions."""
NONE = {
    "trace": "a recorded pass, of which only the attentions are known",
    "headless": "a checkpoint without a language-model head",
    "encoder": "an encoder, which predicts no next token",
    "masked": "an encoder, which predicts masked tokens and no next one",
    "encoder-decoder": "an encoder-decoder, which continues nothing without a source",
}
"""Why nothing predicts the next token; the page's line about it is ``prediction.none.<key>``."""
MOST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Predicted:
    """What a model predicts after each token of a text, or in its place.

    Args:
        logits: of the token after each, or of each, (N, vocab), in float64.
        p: their softmax.
        ids: of the text.
        ahead: 1 where row r predicts token r + 1, 0 where it predicts token r.
        around: ids that are no part of the text.
        mask: the id of a mask, which nothing stands behind where the text itself has it.
    """

    logits: Float64[Tensor, "tokens vocab"]
    p: Float64[Tensor, "tokens vocab"]
    ids: Sequence[int]
    ahead: int = 1
    around: Collection[int] = ()
    mask: int | None = None

    @classmethod
    def of(cls, predictor: Predictor, shift: int = 0) -> Predicted:
        """Of one pass, all positions shifted by so many.

        Raises:
            HeadwayError: on logits that are not finite.
        """
        logits = checked(predictor.logits(shift))
        ids: list[int] = predictor.ids[0].tolist()
        return cls(logits, logits.softmax(-1), ids, predictor.ahead, predictor.around, predictor.mask)

    @property
    def true(self) -> Float64[Tensor, "tokens-ahead"]:
        """The probability of each token that is predicted: all, or those after the first."""
        true = torch.tensor(self.ids[self.ahead :], dtype=torch.long)
        return self.p[: len(true)].gather(1, true[:, None])[:, 0]

    @property
    def rows(self) -> list[int]:
        """The rows that predict a token of the text: not one that stands around it, unless it has no others."""
        rows = range(len(self.ids) - self.ahead)
        return [row for row in rows if self.ids[row + self.ahead] not in self.around] or [*rows]

    @property
    def asked(self) -> list[int]:
        """The rows of masks in the text itself, whose token nobody knows."""
        return [row for row in self.rows if self.token(row) is None]

    def nearest(self, row: int) -> int:
        """The row to show for a query: of one around the text the nearest mask in it, or else the nearest token."""
        return row if row in self.rows else min(self.asked or self.rows, key=lambda one: abs(one - row))

    @property
    def bits(self) -> float:
        """The mean of −log₂ p of the text's tokens."""
        return float(-self.true.log2()[[row for row in self.rows if self.token(row) is not None]].mean())

    @property
    def ranks(self) -> list[int]:
        """The rank of each of them, 1 for the likeliest; equal ones share the better rank."""
        true = self.true
        ranks: list[int] = ((self.p[: len(true)] > true[:, None]).sum(1) + 1).tolist()
        return ranks

    def before(self, row: int) -> Sequence[int]:
        """The tokens before that which a row predicts."""
        return self.ids[: row + self.ahead]

    def token(self, row: int) -> int | None:
        """The token of the text that a row predicts; None at the end, and at a mask in the text."""
        found = self.ids[row + self.ahead] if row + self.ahead < len(self.ids) else None
        return None if found == self.mask else found

    def say(self, key: str, **values: object) -> Said:
        """A sentence on the next token, or on a masked one."""
        return both(f"{'prediction' if self.ahead else 'masked'}.{key}", **values)

    def likeliest(self, row: int, count: int) -> list[int]:
        """The likeliest tokens of a row."""
        ids: list[int] = self.p[row].sort(descending=True, stable=True).indices[:count].tolist()
        return ids


def checked(logits: Tensor) -> Tensor:
    """Refuse logits that are not finite."""
    if not bool(logits.isfinite().all()):
        raise HeadwayError("expected finite logits, got NaN or infinity: the model's weights are damaged or diverged")
    return logits


def prediction(question: Question) -> View:
    """What the model predicts at each token, and what temperature, top-k and top-p make of it at the query.

    ``options["temperature"]`` (1), ``["top_k"]`` and ``["top_p"]`` are those of :func:`headway.generate`; with
    ``options["shift"]`` all positions are shifted by so many, and predictions are compared. Of an encoder that learned
    masked tokens each token is masked in turn.

    Raises:
        HeadwayError: on a model that predicts no token, a text of more than 1,024 tokens, or 256 that are masked, other
            options, and positions that the method cannot serve.

    >>> view = prediction(Question.fresh("the cat sat on the mat"))
    >>> [type(figure).__name__ for figure in view.figures]
    ['Bars', 'Bars', 'Grid', 'Grid']
    """
    predictor, sampling = predictor_of(question, masked=True), sampling_of(question)
    refuse_beyond(question, LONGEST if predictor.ahead else MASKED, "prediction")
    shift = question.options.get("shift", 0)
    require(shift, Whole(0, FARTHEST), "the option 'shift'")
    found = Predicted.of(predictor)
    if found.around:
        question = replace(question, query=found.nearest(question.row))
    bars, kept = _sampled(question, predictor, found, sampling)
    figures: list[Bars | Grid] = [bars]
    finding = _finding(question, predictor, found)
    if shift:
        moved, said = _shifted(question, predictor, found, shift)
        figures.append(moved)
        finding = {language: f"{finding[language]}{_GAP[language]}{said[language]}" for language in LANGUAGES}
    notes = [_cut(found, question.row, sampling), both("prediction.note", vocab=f"{found.p.shape[1]:,}")]
    if outside := [one for one, token in zip(question.labels, found.ids, strict=True) if token in found.around]:
        notes.append(both("masked.around", tokens=" ".join(f"“{one}”" for one in dict.fromkeys(outside))))
    along = _along(question, predictor, found) if len(question.labels) > found.ahead else ()
    figures += [*along[:1], kept, *along[1:]]
    formula = "p = softmax(logits / T),  top-k,  top-p"
    return View("prediction", finding, figures, formula, notes)


_GAP = {"en": " ", "zh": ""}


def predictor_of(question: Question, *, masked: bool = False) -> Predictor:
    """What predicts the next token of a question's text, or with ``masked`` maybe masked ones.

    Raises:
        HeadwayError: where nothing does.
    """
    found, why = _predictor(question, masked)
    if found is None:
        raise HeadwayError(f"expected a decoder for this view, got {NONE[why]}: choose another model")
    return found


def _predictor(question: Question, masked: bool = False) -> tuple[Predictor | None, str]:
    """What predicts the next token, or why nothing does."""
    found = question.predictor
    if found is None and question.recording.model is not None:
        found = Predictor.of_labels(question.model, question.ids, question.labels)
    if found is None:
        return None, "trace"
    why = found.lacks()
    return (found, "") if why is None or (masked and why == "masked") else (None, why)


def next_tokens(question: Question, most: int = 5) -> dict[str, Any]:
    """The likeliest next tokens of a text, as plain values for the strip beside it.

    Returns:
        ``vocab`` and ``tokens``, each with its label, its probability, and what it adds to the text (None where that is
        no whole character), and ``masked`` where they are those of a mask after the text; or ``none``, a sentence in
        every language, where the model predicts none.

    >>> found = next_tokens(Question.fresh("the cat sat"), 2)
    >>> found["vocab"], sorted(found["tokens"][0])
    (3, ['added', 'label', 'p'])
    """
    predictor, why = _predictor(question, masked=True)
    if predictor is None:
        return {"none": both(f"prediction.none.{why}")}
    p, ids = checked(predictor.following()).softmax(-1), predictor.text
    tokens = [
        {"label": predictor.shown(ids, token), "added": predictor.spelling.added(ids, token), "p": float(p[token])}
        for token in p.sort(descending=True, stable=True).indices[:most].tolist()
    ]
    return {"vocab": len(p), "tokens": tokens, **({} if predictor.ahead else {"masked": True})}


def sampling_of(question: Question) -> Sampling:
    """The options temperature, top_k, top_p and seed of a view.

    Raises:
        HeadwayError: on values that :func:`headway.generate` refuses.
    """
    schemas: dict[str, Schema] = {
        "temperature": Number(0, most=100),
        "top_k": Maybe(Whole(1)),
        "top_p": Maybe(Number(above=0, most=1)),
        "seed": Whole(0, MOST_SEED),
    }
    given = {name: question.options[name] for name in schemas if name in question.options}
    for name, value in given.items():
        require(value, schemas[name], f"the option {name!r}")
    return Sampling(**given)


def ways(sampling: Sampling) -> list[tuple[Said, Sampling]]:
    """The model's own probabilities, and those after temperature, then top-k, then top-p, as far as these do anything.

    >>> [name["en"] for name, _ in ways(Sampling(temperature=0.5, top_p=0.9))]
    ["the model's own", 'temperature 0.5', 'then top-p 0.9']
    """
    found: list[tuple[Said, Sampling]] = [(both("prediction.own"), Sampling())]
    if sampling.temperature != 1:
        found.append(
            (
                both("prediction.temperature", value=number(sampling.temperature)),
                Sampling(temperature=sampling.temperature),
            )
        )
    if sampling.top_k is not None:
        now = replace(found[-1][1], top_k=sampling.top_k)
        found.append((both("prediction.top_k", value=f"{sampling.top_k:,}"), now))
    if sampling.top_p is not None:
        now = replace(found[-1][1], top_p=sampling.top_p)
        found.append((both("prediction.top_p", value=number(sampling.top_p)), now))
    return found


def bars_of(title: Said, labels: Sequence[str], tokens: Sequence[int], logits: Tensor, sampling: Sampling) -> Bars:
    """The probabilities of some tokens, before and after each way of sampling."""
    series = [(name, [float(x) for x in probabilities(logits, way)[list(tokens)]]) for name, way in ways(sampling)]
    return Bars(title, labels, series, both("prediction.axis"))


def _sampled(question: Question, predictor: Predictor, found: Predicted, sampling: Sampling) -> tuple[Bars, Grid]:
    """The likeliest tokens after the query, before and after sampling, as bars and in words."""
    row, true = question.row, found.token(question.row)
    tokens = found.likeliest(row, TOP)
    if true is not None and true not in tokens:
        tokens[-1] = true
    labels = [predictor.shown(found.before(row), token) for token in tokens]
    after = probabilities(found.logits[row], sampling)
    title = found.say("next", token=question.labels[row], place=row)
    rows = [
        (
            found.say("true", token=name) if token == true else same(name),
            [percent(float(found.p[row, token])), percent(float(after[token])), _verdict(found, row, token, sampling)],
        )
        for name, token in zip(labels, tokens, strict=True)
    ]
    names = [both(f"prediction.column.{name}") for name in ("token", "own", "after", "kept")]
    return bars_of(title, labels, tokens, found.logits[row], sampling), Grid(both("prediction.kept"), names, rows)


def _verdict(found: Predicted, row: int, token: int, sampling: Sampling) -> str:
    """Whether a token may be drawn, or what cuts it off."""
    for _, way in ways(sampling)[1:]:
        if float(probabilities(found.logits[row], way)[token]) == 0:
            return f"✗ {'top-p' if way.top_p is not None else 'top-k' if way.top_k is not None else 'T = 0'}"
    return "✓"


def _cut(found: Predicted, row: int, sampling: Sampling) -> Said:
    """How many tokens may be drawn, and what share of the model's own probability is cut off."""
    kept = sampling.likely(found.logits[row])[1]
    cut = float(found.p[row].index_fill(0, kept, 0.0).sum())
    return both("prediction.cut", kept=f"{len(kept):,}", vocab=f"{found.p.shape[1]:,}", share=percent(cut))


def _finding(question: Question, predictor: Predictor, found: Predicted) -> Said:
    """The likeliest token after the query, the true one, and bits per token of the text."""
    row = question.row
    first = found.likeliest(row, 1)[0]
    values: dict[str, object] = {
        "token": question.labels[row],
        "place": row,
        "first": predictor.shown(found.before(row), first),
        "share": percent(float(found.p[row, first])),
    }
    if len(found.ids) <= found.ahead:
        return both("prediction.finding.one", **values)
    if row in found.asked:
        return both("masked.finding.asked", **values)
    values |= {"bits": number(found.bits), "uniform": number(math.log2(found.p.shape[1]))}
    if found.token(row) is None:
        return both("prediction.finding.end", **values)
    values |= {"true": question.labels[row + found.ahead], "rank": f"{found.ranks[row]:,}"}
    return found.say("finding", **values, p=percent(float(found.true[row])))


def _shifted(question: Question, predictor: Predictor, found: Predicted, shift: int) -> tuple[Bars, Said]:
    """The likeliest tokens after the query with all positions shifted, and the largest change anywhere."""
    moved = Predicted.of(predictor, shift)
    row = question.row
    tokens = found.likeliest(row, TOP)
    labels = [predictor.shown(found.before(row), token) for token in tokens]
    series = [
        (both("prediction.shift.before"), [float(x) for x in found.p[row, tokens]]),
        (both("prediction.shift.after", by=shift), [float(x) for x in moved.p[row, tokens]]),
    ]
    change = (moved.p - found.p).abs()
    largest = float(change.max())
    place, token = divmod(int(change.argmax()), change.shape[1])
    values: Mapping[str, object] = {
        "by": f"{shift:,}",
        "method": question.position.spec(),
        "largest": number(largest),
        "after": question.labels[place],
        "token": predictor.shown(found.before(place), token),
        "old": number(float(found.p[place, token])),
        "new": number(float(moved.p[place, token])),
    }
    said = both("prediction.shift.same", **values) if largest <= SAME else found.say("shift.changed", **values)
    title = found.say("shift", by=shift, token=question.labels[row])
    return Bars(title, labels, series, both("prediction.axis")), said


def _along(question: Question, predictor: Predictor, found: Predicted) -> tuple[Bars, Grid]:
    """The probability of each token of the text given those before it, or all others, and a table with ranks."""
    stop = min(len(found.ids), max(question.row + 1 + found.ahead, ROWS))
    start = max(0, stop - ROWS)
    places = range(start, stop)
    true, ranks, shown, asked = found.true.tolist(), found.ranks, set(found.rows), set(found.asked)
    known = shown - asked
    shares = [true[place - found.ahead] if place - found.ahead in known else None for place in places]
    window = found.say("along.part", first=start, last=stop - 1) if stop - start < len(found.ids) else None
    title = window or found.say("along")
    labels = [question.labels[place] for place in places]
    bars = Bars(title, labels, [(found.say("p"), shares)], both("prediction.axis"))
    rows = []
    for place in places:
        row = place - found.ahead
        if row not in shown:
            continue
        first = found.likeliest(row, 1)[0]
        best = f"{predictor.shown(found.ids[:place], first)} {percent(float(found.p[row, first]))}"
        bits = number(-math.log2(true[row])) if true[row] > 0 else "∞"
        own = ["—"] * 3 if row in asked else [percent(true[row]), f"{ranks[row]:,}", bits]
        rows.append((same(f"{place} · {question.labels[place]}"), [*own, best]))
    names = [both(f"prediction.column.{name}") for name in ("token", "p", "rank", "bits", "best")]
    return bars, Grid(both("prediction.table"), names, rows)
