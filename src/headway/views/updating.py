"""One step of training under the microscope: back-propagation through a head, and the updates of SGD and Adam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from headway.figures.values import Bars, Columns, Grid, Heatmap, Said, Stage, Steps, View, both, same
from headway.figures.words import number
from headway.inspect.step import IGNORED, RATES, Move, Step, one_step
from headway.inspect.watch import MATRICES
from headway.schema import Number, require
from headway.training.masking import mask_tokens
from headway.training.settings import TrainSettings
from headway.views.attending import choice_of
from headway.views.learning import TITLES, pooled_note, span_of
from headway.views.question import Question, Recording
from headway.views.to_figures import Window, matrix, pairs, vectors

VIEWS = ("step",)

LONGEST = 128
"""Maximum tokens of a training step's maps."""
FINE = 2**16
"""Maximum bytes of a step's matrix that is sent as float32."""
MASK_LABEL = "[MASK]"


def step(question: Question) -> View:
    """Back-propagation through a head in one step on this text, and the updates of SGD and Adam, side by side.

    Args:
        question: ``options``: "matrix" is "q" (default), "k" or "v"; "lr_sgd" and "lr_adam" are their learning
            rates, 0.1 and 0.003 by default; "targets", (1, N), for an encoder, of which else some tokens are masked as
            in its training, see :mod:`headway.training.masking`; "optimizer", the run's own, shown too.

    Raises:
        HeadwayError: when the text has nothing to predict, or on a rate that is not above 0. A longer text is cut to
            its first 128 tokens, with a note.
    """
    which, given = choice_of(question, "matrix", MATRICES), len(question.labels)
    if given > LONGEST:
        question = _cut(question)
    question, hidden = _masked(question)
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
    stages = _stages(taken, which, question, "masked" if hidden else "loss")
    notes: list[Said] = [both("step.cut", shown=LONGEST, count=f"{given:,}")] if given > LONGEST else []
    if hidden:
        notes.append(both("step.hidden", tokens=hidden))
    notes += [both("step.mode"), both("step.rates"), both("step.scales")]
    if taken.layer.heads != taken.layer.call.k.shape[1]:
        notes.append(both("step.shared", heads=taken.layer.call.groups))
    notes += pooled_note(taken.moves["sgd"][which].before)
    steps = Steps(both("step.title", layer=question.layer, head=question.head), stages)
    return View("step", _step_finding(taken, which), (steps, _summary(taken, which)), "", notes)


def _cut(question: Question) -> Question:
    """The question on the first tokens of its text."""
    targets = question.options.get("targets")
    cut = {} if targets is None else {"targets": targets[:, :LONGEST]}
    return replace(
        question,
        recording=Recording(question.model, question.ids[:, :LONGEST]),
        labels=question.labels[:LONGEST],
        query=-1,
        others=(),
        options={**question.options, **cut},
    )


def _masked(question: Question) -> tuple[Question, str]:
    """The question of an encoder that learned masked tokens, with some of them hidden to be predicted, and which."""
    predictor = question.predictor
    if predictor is None or predictor.mask is None or question.options.get("targets") is not None:
        return question, ""
    dice = torch.Generator().manual_seed(0)
    ids, targets = mask_tokens(question.ids.cpu(), predictor.mask, TrainSettings.mask_share, dice)
    hidden = targets[0] != IGNORED
    labels = [
        old if token == before else MASK_LABEL if token == predictor.mask else predictor.spelling.name(token)
        for old, before, token in zip(question.labels, question.ids[0].tolist(), ids[0].tolist(), strict=True)
    ]
    options = {**question.options, "targets": targets.to(question.ids.device)}
    recording = Recording(question.model, ids.to(question.ids.device))
    said = " ".join(f"“{question.labels[row]}”" for row in hidden.nonzero()[:, 0].tolist())
    return replace(question, recording=recording, labels=labels, others=(), options=options), said


def _rate(options: Mapping[str, Any], name: str) -> float:
    require(rate := options.get(f"lr_{name}", RATES[name]), Number(above=0, most=10), f"the option 'lr_{name}'")
    return float(rate)


def _stages(taken: Step, which: str, question: Question, loss: str) -> list[Stage]:
    window = Window.of(question, LONGEST)
    tokens, width = len(window.labels), taken.d_q.shape[1]
    losses = [None if value != value else value for value in taken.losses.tolist()]
    gradients = {name: taken.moves["sgd"][name].gradient for name in MATRICES}
    sizes = " × ".join(map(str, gradients[which].shape))

    def stage(key: str, shape: str, formula: str, figures: Sequence[object], said: str = "") -> Stage:
        return Stage(both(f"step.{key}.label"), shape, formula, both(f"step.{said or key}.said"), figures)

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
            said=loss,
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
    span = span_of([move.before, move.after])
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
