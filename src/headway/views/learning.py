"""How matrices learn: their film through training, one step under the microscope, and the training's curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from headway.attending import Attending
from headway.figures.values import (
    Bars,
    Columns,
    Film,
    Grid,
    Heatmap,
    Line,
    Lines,
    Said,
    Stage,
    Steps,
    View,
    both,
    evenly,
    plain,
    same,
)
from headway.figures.words import number, percent
from headway.inspect.step import RATES, Move, Step, one_step
from headway.inspect.watch import MATRICES, Snapshot, Watch
from headway.positions import Position
from headway.schema import Number, require
from headway.shapes import HeadwayError
from headway.views.attending import choice_of
from headway.views.question import Question, Recording
from headway.views.to_figures import SIDE, Window, block, matrix, pairs, stepped, vectors

VIEWS = ("film", "step", "board")

LONGEST = 128
"""Maximum tokens of a training step's maps."""
PAYLOAD = 1_850_000
"""Bytes of a film's frames, so that the view with its labels stays below 2 MB."""
FRAMES = 12
"""Minimum frames of a film; for fewer, its values are quantised to 255 steps to save space."""
FINE = 2**16
"""Maximum bytes of a step's matrix that is sent as float32."""
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
    notes += _pooled_note(first.weight)
    if type(question.position).rotate is not Position.rotate:
        notes.append(both("film.rotated"))
    figures = (Film(title, frames), _values_lines(values))
    return View("film", _film_finding(which, question, moments, values), figures, _FILM, notes)


_FILM = "ΔW = W − W_start        W ← W + update        q_i·k_j = x_i W_Q W_Kᵀ x_jᵀ"


def step(question: Question) -> View:
    """Back-propagation through a head in one step on this text, and the updates of SGD and Adam, side by side.

    Args:
        question: ``options``: "matrix" is "q" (default), "k" or "v"; "lr_sgd" and "lr_adam" are their learning
            rates, 0.1 and 0.003 by default; "targets", (1, N), for an encoder; "optimizer", the run's own, shown too.

    Raises:
        HeadwayError: when the text has nothing to predict, or on a rate that is not above 0. A longer text is cut to
            its first 128 tokens, with a note.
    """
    which, given = choice_of(question, "matrix", MATRICES), len(question.labels)
    if given > LONGEST:
        targets = question.options.get("targets")
        cut = {} if targets is None else {"targets": targets[:, :LONGEST]}
        question = replace(
            question,
            recording=Recording(question.model, question.ids[:, :LONGEST]),
            labels=question.labels[:LONGEST],
            query=-1,
            others=(),
            options={**question.options, **cut},
        )
    options = question.options
    taken = one_step(
        question.model,
        question.ids,
        targets=options.get("targets"),
        layer=question.layer,
        head=question.head,
        lr={name: _rate(options, name) for name in RATES},
        optimizer=options.get("optimizer"),
    )
    stages = _stages(taken, which, question)
    notes: list[Said] = [both("step.cut", shown=LONGEST, count=f"{given:,}")] if given > LONGEST else []
    notes += [both("step.mode"), both("step.rates"), both("step.scales")]
    if taken.layer.heads != taken.layer.call.k.shape[1]:
        notes.append(both("step.shared", heads=taken.layer.call.groups))
    notes += _pooled_note(taken.moves["sgd"][which].before)
    steps = Steps(both("step.title", layer=question.layer, head=question.head), stages)
    return View("step", _step_finding(taken, which), (steps, _summary(taken, which)), "", notes)


def _rate(options: Mapping[str, Any], name: str) -> float:
    require(rate := options.get(f"lr_{name}", RATES[name]), Number(above=0, most=10), f"the option 'lr_{name}'")
    return float(rate)


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
    return {name: _span([x for moment in moments if (x := moment[name]) is not None]) for name in moments[0]}


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


def _span(xs: Sequence[Tensor]) -> tuple[float, float]:
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


def _pooled_note(x: Tensor) -> list[Said]:
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


def _stages(taken: Step, which: str, question: Question) -> list[Stage]:
    window = Window.of(question, LONGEST)
    tokens, width = len(window.labels), taken.d_q.shape[1]
    losses = [None if value != value else value for value in taken.losses.tolist()]
    gradients = {name: taken.moves["sgd"][name].gradient for name in MATRICES}
    sizes = " × ".join(map(str, gradients[which].shape))

    def stage(key: str, shape: str, formula: str, figures: Sequence[object]) -> Stage:
        return Stage(both(f"step.{key}.label"), shape, formula, both(f"step.{key}.said"), figures)

    square, rows = f"{tokens} × {tokens}", f"{tokens} × {width}"
    formula = "dS = A ∘ (dA − Σ_j A dA)" if taken.layer.call.normalise == "softmax" else "dS = ∂loss/∂S"
    weights = f"d{TITLES[which]} = Xᵀ d{which.upper()}"
    moved = {"Q": taken.d_q, "K": taken.d_k, "V": taken.d_v}
    back = {f"d{name}": vectors(both(f"step.d{name.lower()}"), x, window) for name, x in moved.items()}
    matrices = {
        f"d{TITLES[name]}": matrix(both("step.matrix", matrix=TITLES[name]), x, fine=FINE)
        for name, x in gradients.items()
    }
    return [
        stage(
            "loss",
            str(tokens),
            "loss_i = −ln p(target_i)",
            [Bars(both("step.losses"), window.labels, [(both("step.loss.one"), losses)], both("board.nats"))],
        ),
        stage(
            "weights",
            square,
            "dA = dO Vᵀ",
            [
                _beside(
                    both("step.weights.title"),
                    {
                        "A": pairs(both("step.a"), taken.weights, window, seen=taken.seen, scale="sequential"),
                        "dA": pairs(both("step.da"), taken.d_weights, window, seen=taken.seen),
                    },
                )
            ],
        ),
        stage("scores", square, formula, [pairs(both("step.ds"), taken.d_scores, window, seen=taken.seen)]),
        stage(
            "vectors",
            rows,
            "dQ = scale · dS K,  dK = scale · dSᵀ Q,  dV = Aᵀ dO",
            [_beside(both("step.vectors.title"), back)],
        ),
        stage("matrices", sizes, weights, [_beside(both("step.matrices.title"), matrices)]),
        stage(
            "update",
            sizes,
            "SGD: −lr · g,  Adam: −lr · m̂ / (√v̂ + ε)",
            [
                Columns(
                    both("step.update.title", matrix=TITLES[which]),
                    [(_optimiser(name, taken), _moved(moves[which], which)) for name, moves in taken.moves.items()],
                )
            ],
        ),
    ]


def _beside(title: Said, maps: Mapping[str, Heatmap]) -> Columns:
    return Columns(title, [(same(name), [one]) for name, one in maps.items()])


def _optimiser(name: str, taken: Step) -> Said:
    return both(f"step.{name}", lr=number(taken.rates[name]))


def _moved(move: Move, which: str) -> list[Heatmap]:
    name = TITLES[which]
    span = _span([move.before, move.after])
    maps = [
        matrix(both("step.before", matrix=name), move.before, span, fine=FINE),
        matrix(both("step.gradient", matrix=name), move.gradient, fine=FINE),
        matrix(both("step.moved", matrix=name), move.update, fine=FINE),
        matrix(both("step.after", matrix=name), move.after, span, fine=FINE),
    ]
    return maps + [matrix(both(f"step.state.{kind}"), x, fine=FINE) for kind, x in move.state.items()]


def _summary(taken: Step, which: str) -> Grid:
    def row(key: str, cells: Sequence[float]) -> tuple[Said, list[str]]:
        return both(f"step.row.{key}", matrix=TITLES[which]), [number(cell) for cell in cells]

    moves = [one[which] for one in taken.moves.values()]
    rows = [
        row("rate", list(taken.rates.values())),
        row("gradient", [move.gradient.norm().item() for move in moves]),
        row("largest", [move.update.abs().max().item() for move in moves]),
        row("ratio", [(move.update.norm() / move.before.norm()).item() for move in moves]),
        row("before", [taken.loss] * len(moves)),
        row("after", list(taken.losses_after.values())),
    ]
    heads = [both(f"step.{name}.short") for name in taken.moves]
    return Grid(both("step.summary"), [both("step.quantity"), *heads], rows)


def _step_finding(taken: Step, which: str) -> Said:
    largest = {name: moves[which].update.abs().max().item() for name, moves in taken.moves.items()}
    return both(
        "step.finding",
        matrix=TITLES[which],
        sgd=number(largest["sgd"]),
        adam=number(largest["adam"]),
        loss=number(taken.loss),
        sgd_loss=number(taken.losses_after["sgd"]),
        adam_loss=number(taken.losses_after["adam"]),
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
