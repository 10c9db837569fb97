"""How matrices learn: their film through training, and the training's curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headway.attending import Attending
from headway.figures.values import (
    Columns,
    Film,
    Heatmap,
    Line,
    Lines,
    Said,
    View,
    both,
    evenly,
    plain,
    same,
)
from headway.figures.words import number, percent
from headway.inspect.watch import MATRICES, Snapshot, Watch
from headway.positions import Position
from headway.shapes import HeadwayError
from headway.views.attending import choice_of
from headway.views.question import Question
from headway.views.to_figures import SIDE, block, matrix, stepped

VIEWS = ("film", "board")

PAYLOAD = 1_850_000
"""Bytes of a film's frames, so that the view with its labels stays below 2 MB."""
FRAMES = 12
"""Minimum frames of a film; for fewer, its values are quantised to 255 steps to save space."""
COARSE = 2**14
"""Maximum bytes of a map of W_Q W_Kᵀ that is sent as float32; it is the largest map of a frame."""
VALUES = 8
"""Maximum singular values with a line."""
POINTS = 500
"""Maximum points of a line; in a longer training each is the mean of several steps."""
TITLES = {"q": "W_Q", "k": "W_K", "v": "W_V"}


def film(question: Question) -> View:
    """How a head's W_Q, W_K or W_V changed through a watched training, frame by frame.

    Each frame shows W, ΔW since the first frame, the gradient and the update of the next step, and W_Q W_Kᵀ, whose
    singular values are drawn over the whole training. Frame k holds the weights after k completed steps.

    Args:
        question: with ``watched``; ``options["matrix"]`` is "q" (default), "k" or "v".

    Raises:
        HeadwayError: without a watched training, or when there is no such matrix.
    """
    which = choice_of(question, "matrix", MATRICES)
    head = _Watched(question, _watched(question))
    steps = head.watched.steps
    first, sample = head.matrix(steps[0], which), head.moment(steps[0], which)
    # the size of a frame does not depend on its values: the first determines how many fit
    for fine in (4 * first.weight.numel(), 0):
        size = len(json.dumps(plain(_frame(which, steps[0], sample, _limits([sample]), fine))))
        most = max(2, PAYLOAD // size)
        if most >= min(FRAMES, len(steps)):
            break
    moments = {step: head.moment(step, which) for step in _spread(steps, most)}
    limits = _limits(list(moments.values()))
    frames = [_frame(which, step, moment, limits, fine) for step, moment in moments.items()]
    values = {step: head.values(step) for step in _spread(steps, POINTS // 5)}
    title = both("film.title", matrix=TITLES[which], layer=question.layer, head=question.head)
    notes: list[Said] = [both("film.start", step=steps[0])] if steps[0] else []
    if len(frames) < len(steps):
        notes.append(both("film.thinned", shown=len(frames), frames=len(steps)))
    notes += stepped(block(first.weight, limits["weight"], fine=fine))
    notes += pooled_note(first.weight)
    if type(question.position).rotate is not Position.rotate:
        notes.append(both("film.rotated"))
    figures = (Film(title, frames), _values_lines(values))
    return View("film", _film_finding(which, question, moments, values), figures, _FILM, notes)


_FILM = "ΔW = W − W_start        W ← W + update        q_i·k_j = x_i W_Q W_Kᵀ x_jᵀ"


def board(question: Question) -> View:
    """The curves of a training: loss, gradient norm, update ratio of each matrix, and attention entropy of each head.

    Args:
        question: with ``history``; with ``watched``, also update/weight ratios and entropies of the layer in question.

    Raises:
        HeadwayError: when there is no history, or no step in it.
    """
    history = question.history
    if history is None or not history.steps:
        raise HeadwayError(
            "expected a training with at least one step, got none: give history=open_run(…).history, or a live one's"
        )
    size = -(-len(history.steps) // POINTS)
    steps = both("learning.steps")
    loss = [_curve(both("board.training"), history.loss, size)]
    figures = [Lines(both("board.loss"), _means(history.steps, size), loss, (steps, both("board.nats")))]
    if history.validation_steps:
        found = Line(both("board.validation"), history.validation_loss)
        figures.append(
            Lines(both("board.validation.title"), history.validation_steps, [found], (steps, both("board.nats")))
        )
    norm = [_curve(both("board.norm"), history.grad_norm, size)]
    figures.append(
        Lines(both("board.norm.title"), _means(history.steps, size), norm, (steps, both("board.norm")), log_y=True)
    )
    notes = [both("board.means", steps=size)] if size > 1 else []
    if question.watched is None or not question.watched.readings:
        notes.append(both("board.unwatched"))
    else:
        figures += _readings(question, question.watched)
    return View("board", _board_finding(history), figures, "", notes)


def singular_values(q: Tensor, k: Tensor) -> Tensor:
    """Singular values of W_Q W_Kᵀ, (d_k,), largest first, without forming the product, whose rank is at most d_k.

    Args:
        q: W_Q, (d_model, d_k).
        k: W_K, likewise.

    >>> singular_values(torch.eye(3, 2), 2 * torch.eye(3, 2)).tolist()
    [2.0, 2.0]
    """
    left, right = torch.linalg.qr(q).R, torch.linalg.qr(k).R
    values: Tensor = torch.linalg.svdvals(left @ right.mT)
    return values


@dataclass(frozen=True)
class _Watched:
    """A head's part of a watched matrix, as (d_model, d_k)."""

    question: Question
    watched: Watch

    @property
    def name(self) -> str:
        """Name of the attention in the watch."""
        attention = self.question.attentions[self.question.layer]
        names: dict[object, str] = {module: name for name, module in self.question.model.named_modules()}
        return names[attention]

    def matrix(self, step: int, which: str) -> Snapshot:
        """W_Q, W_K or W_V of the head at a step."""
        taken = self.watched[step]
        if (self.name, which) not in taken:
            raise HeadwayError(f"expected a watch of this model, with {self.name!r}, got one of another model")
        shape = self.question.attentions[self.question.layer].shape
        count = shape.heads if which == "q" else shape.kv_heads
        part = taken[self.name, which].head(self.question.head * count // shape.heads, count)
        gradient = None if part.gradient is None else part.gradient.mT
        return Snapshot(part.weight.mT, gradient, part.update.mT, {n: x.mT for n, x in part.state.items()})

    def moment(self, step: int, which: str) -> _Moment:
        """The maps of a frame at a step."""
        taken = self.matrix(step, which)
        q, k = self.compared(step)
        return {
            "weight": taken.weight,
            "change": taken.weight - self.matrix(self.watched.steps[0], which).weight,
            "gradient": taken.gradient,
            "update": taken.update,
            "product": q @ k.mT,
        }

    def values(self, step: int) -> Tensor:
        """The singular values of W_Q W_Kᵀ at a step."""
        return singular_values(*self.compared(step))

    def compared(self, step: int) -> tuple[Tensor, Tensor]:
        """W_Q and W_K at a step; of W_Q the columns that are compared with W_K's, without a decoupled part."""
        q, k = (self.matrix(step, which).weight for which in "qk")
        return q[:, : k.shape[1]], k


_Moment = dict[str, Tensor | None]
"""The tensors of a frame, by name; None where missing."""


def _limits(moments: Sequence[_Moment]) -> dict[str, tuple[float, float]]:
    """The limits of the colour scales, the same in every frame."""
    return {name: span_of([x for moment in moments if (x := moment[name]) is not None]) for name in moments[0]}


def _frame(
    which: str, step: int, moment: _Moment, limits: Mapping[str, tuple[float, float]], fine: int
) -> tuple[Said, Sequence[Columns | Heatmap]]:
    """The label of the slider at a step."""
    name = TITLES[which]
    heads = {
        "weight": same(name),
        "change": same(f"Δ{name}"),
        "gradient": both("film.gradient.short"),
        "update": both("film.update.short"),
    }

    def beside(key: str, parts: Sequence[str]) -> Columns:
        maps = {part: x for part in parts if (x := moment[part]) is not None}
        columns = [
            (heads[part], [matrix(both(f"film.{part}", matrix=name), x, limits[part], fine=fine)])
            for part, x in maps.items()
        ]
        return Columns(both(key, matrix=name, step=step, next=step + 1), columns)

    product = moment["product"]
    assert product is not None
    square = matrix(both("film.product"), product, limits["product"], fine=COARSE)
    here, ahead = beside("film.here", ("weight", "change")), beside("film.ahead", ("gradient", "update"))
    return both("film.frame", step=step), [here, ahead, square]


def span_of(xs: Sequence[Tensor]) -> tuple[float, float]:
    """Symmetric limits of a colour scale that all of them fit into."""
    top = max((float(x.abs().max()) for x in xs), default=0.0) or 1.0
    return -top, top


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """At most this many of them, evenly spaced, including the first and the last."""
    return [steps[i] for i in evenly(len(steps), most)]


def _watched(question: Question) -> Watch:
    if question.watched is None or not question.watched.steps:
        raise HeadwayError(
            "expected a watched training, got none: train with `headway train --watch 10` and give "
            "watched=headway.training.load_watch(run)"
        )
    return question.watched


def pooled_note(x: Tensor) -> list[Said]:
    """A note on a matrix that is too large to be drawn entry by entry."""
    return [both("learning.pooled", rows=x.shape[0], columns=x.shape[1])] if max(x.shape) > SIDE else []


def _values_lines(values: dict[int, Tensor]) -> Lines:
    steps = _spread(list(values), POINTS)
    count = min(VALUES, len(values[steps[0]]))
    lines = [Line(same(f"σ{_subscript(n + 1)}"), [values[step][n].item() for step in steps]) for n in range(count)]
    return Lines(both("film.values"), steps, lines, (both("learning.steps"), both("film.value")))


def _subscript(n: int) -> str:
    return str(n).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _film_finding(which: str, question: Question, moments: Mapping[int, _Moment], values: dict[int, Tensor]) -> Said:
    first, last = min(moments), max(moments)
    if first == last:
        return both("film.finding.one", step=first)
    start, change = moments[first]["weight"], moments[last]["change"]
    assert start is not None
    assert change is not None
    return both(
        "film.finding",
        matrix=TITLES[which],
        layer=question.layer,
        head=question.head,
        first=first,
        last=last,
        moved=percent((change.norm() / start.norm()).item()),
        before=number(values[first][0].item()),
        after=number(values[last][0].item()),
    )


def _means(values: Sequence[float], size: int) -> list[float]:
    """The mean of each group of neighbours."""
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return [sum(part) / len(part) for part in parts]


def _curve(label: Said, values: Sequence[float], size: int) -> Line:
    """A line of means with the range of each group."""
    if size == 1:
        return Line(label, values)
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return Line(label, _means(values, size), [min(part) for part in parts], [max(part) for part in parts])


def _readings(question: Question, watched: Watch) -> list[Lines]:
    layer = question.layer
    names = [name for name, module in question.model.named_modules() if isinstance(module, Attending)]
    read = {step: watched.readings[step] for step in sorted(watched.readings)}
    sizes = {len(one.ratios) for one in read.values() if one.ratios is not None}
    if sizes - {len(names)}:
        raise HeadwayError(f"expected a watch of this model, of {len(names)} attentions, got one of {max(sizes)}")
    steps = both("learning.steps")
    figures = []
    ratios = {step: one.ratios[layer] for step, one in read.items() if one.ratios is not None}
    if ratios:
        chosen = _spread(list(ratios), POINTS)
        lines = [Line(same(TITLES[name]), [ratios[step][name] or None for step in chosen]) for name in MATRICES]
        figures.append(
            Lines(both("board.ratios", layer=layer), chosen, lines, (steps, both("board.ratio")), log_y=True)
        )
    entropies = {step: one.entropies[layer] for step, one in read.items() if one.entropies is not None}
    if entropies:
        chosen = _spread(list(entropies), POINTS)
        count = len(entropies[chosen[0]])
        lines = [Line(both("board.head", head=n), [entropies[step][n] for step in chosen]) for n in range(count)]
        figures.append(Lines(both("board.entropies", layer=layer), chosen, lines, (steps, both("board.entropy"))))
    return figures


def _board_finding(history: object) -> Said:
    steps, loss, norm = history.steps, history.loss, history.grad_norm  # type: ignore[attr-defined]
    values = {"steps": steps[-1], "first": number(loss[0]), "last": number(loss[-1])}
    peak = max(range(len(norm)), key=norm.__getitem__)
    key = "board.finding" if len(steps) > 1 else "board.finding.one"
    return both(key, **values, norm=number(norm[peak]), at=steps[peak])
