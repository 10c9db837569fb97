"""The vectors that a method adds to the embedding, and whether nearby positions are similar."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headway.figures.values import Block, Figure, Heatmap, Line, Lines, Said, View, both
from headway.figures.words import number
from headway.init import seeded
from headway.inspect.probe import alike, attached, in_float64
from headway.positions import Position
from headway.shapes import HeadwayError
from headway.terms import PerKey
from headway.views.distances import point, points, some
from headway.views.question import Question
from headway.views.view_helpers import MOST, ROUNDING, Unsuited, instead, places, scores
from headway.views.worked_out import vector_worked

VIEWS = ("vectors", "similarity")

WIDEST = 512
"""Maximum dimensions of a vector that are shown."""
SIDE = 128
"""Maximum rows of a map of positions by positions; curves show all."""
CONSTANT = 1e-6
"""A diagonal that varies less is constant."""
Curves = tuple[list[float], list[float], list[float]]


def vectors(question: Question) -> View:
    """View 8: the vector that a method adds to the embedding at each position: the vectors, some of their dimensions
    over positions, their norms, and the wavelength of each dimension that is a wave.

    A dimension is a wave of frequency ω if x[p−1] + x[p+1] = 2cos ω · x[p] at all positions p, which also gives ω.

    Args:
        question: ``options["positions"]`` is the number of positions, default those of the text, at least 64.

    Raises:
        HeadwayError: when the method adds nothing to the embedding.

    >>> view = vectors(Question.fresh("the cat sat", position="sinusoidal"))
    >>> view.figures[0].values.rows()[0][:4]
    [0.0, 1.0, 0.0, 1.0]
    """
    position = _embedding(question, "vectors")
    added = _added(position, question)
    tokens, dim = added.shape
    shown = some(dim, WIDEST)
    token = _tokens(question, dim)
    lengths, of_tokens = added.norm(dim=1), float(token.norm(dim=1).mean())
    wavelengths = _wavelengths(position, added)
    low, high = number(float(lengths.min())), number(float(lengths.max()))
    finding = both(
        "vectors.finding.same" if low == high else "vectors.finding",
        count=tokens,
        low=low,
        high=high,
        token=number(of_tokens),
        share=number(100 * float(lengths.mean()) / of_tokens),
    )
    at, waves = list(map(float, range(tokens))), sorted({0, dim // 8, dim // 4, dim // 2})
    figures: list[Figure] = [
        Heatmap(
            both("vectors.map"),
            Block.of(added[:, shown].tolist()),
            [str(p) for p in range(tokens)],
            [str(i) for i in shown],
            (both("place.position"), both("place.number")),
            "diverging",
        ),
        vector_worked(position, added, shown),
        Lines(
            both("vectors.waves"),
            at,
            [Line(both("vectors.one", n=i), points(added[:, i])) for i in waves],
            (both("place.position"), both("place.value")),
        ),
        Lines(
            both("vectors.length"),
            at,
            [
                Line(both("vectors.of_position"), points(lengths)),
                Line(both("vectors.of_token"), [point(of_tokens)] * tokens),
            ],
            (both("place.position"), both("vectors.axis.length")),
        ),
    ]
    notes = [both("vectors.note", method=position.spec())]
    table = position.hyperparameters().get("max_length", tokens)
    if table > tokens:
        notes.append(both("vectors.cut", count=tokens, table=table))
    if wavelengths:
        lines = [
            Line(both("vectors.wavelength") if len(wavelengths) == 1 else both("place.coordinate", n=axis), found)
            for axis, found in enumerate(wavelengths)
        ]
        axes = (both("place.number"), both("place.tokens_per_rotation"))
        figures.append(Lines(both("vectors.wavelengths"), list(map(float, range(dim))), lines, axes, log_y=True))
    else:
        notes.append(both("vectors.no_waves"))
    return View("vectors", finding, figures, "X′ = X + P[position]", notes)


def similarity(question: Question) -> View:
    """View 9: whether nearby positions are similar: dot products and cosines of the position vectors, and their profile
    over the offset. For a method that adds no vectors, the score of two equal tokens at each pair of positions.

    Args:
        question: ``options["positions"]`` is the number of positions, default those of the text, at least 64; maps
            show the first 128 of them.

    Raises:
        HeadwayError: when position changes no score of equal tokens.

    >>> view = similarity(Question.fresh("the cat sat", position="sinusoidal"))
    >>> round(view.figures[1].values.rows()[5][5], 6)
    1.0
    """
    if not question.position.embeds:
        return _alike_scores(question)
    added = _added(_adding(question), question)
    unit = added / added.norm(dim=1, keepdim=True).clamp(min=1e-12)
    dot, cosine = added[:SIDE] @ added[:SIDE].T, unit @ unit.T
    names = [str(p) for p in range(len(dot))]
    axes = (both("place.position"), both("place.position"))
    profile, variation = _diagonals(cosine)
    finding = both(
        "similarity.finding.constant" if variation < CONSTANT else "similarity.finding.varies",
        near=number(profile[0][1]),
        far=number(profile[0][-1]),
        offset=len(profile[0]) - 1,
        varies=number(variation),
    )
    near = Block.of(cosine[:SIDE, :SIDE].tolist())
    return View(
        "similarity",
        finding,
        [
            Heatmap(both("similarity.dot"), Block.of(dot.tolist()), names, names, axes, "diverging"),
            Heatmap(both("similarity.cosine"), near, names, names, axes, "diverging", (-1.0, 1.0)),
            _profile(both("similarity.profile"), profile, both("similarity.axis.cosine")),
        ],
        "cos(p_i, p_j) = p_i·p_j / (‖p_i‖ ‖p_j‖)",
        [both("similarity.note"), *_cut(len(added))],
    )


def _cut(positions: int) -> list[Said]:
    """A note where maps show some of the positions."""
    return [both("similarity.cut", shown=SIDE, count=f"{positions:,}")] if positions > SIDE else []


def _adding(question: Question) -> Position:
    """The method that acts on the embedding, if any does."""
    return question.position if question.recording.model is None else question.model.stack.position


def _tokens(question: Question, dim: int) -> Tensor:
    """The embedding of the tokens, (N, dim)."""
    if question.recording.model is not None:
        rows: Tensor = question.model.stack.embedding.weight[question.ids[0]]
        found: Tensor = rows.detach().double() * dim**0.5
        return found
    stream = question.trace[0].stream
    if stream is None:
        raise HeadwayError("expected the embedding of the tokens, got a recorded pass without it")
    return stream.tokens[0].double()


def _embedding(question: Question, view: str) -> Position:
    position = _adding(question)
    if not position.embeds:
        raise Unsuited(
            view,
            f"expected a method that adds vectors to the embedding (sinusoidal, learned), got {position.spec()}: "
            f"look at {instead(question, view)}",
        )
    return position


def _added(position: Position, question: Question) -> Tensor:
    """P, (positions, dim), up to the number of positions shown."""
    table = position.hyperparameters().get("max_length")
    count = places(question) if table is None else min(table, int(question.options.get("positions", MOST)))
    with torch.no_grad():
        try:
            return _embedded(in_float64(position), torch.arange(count)[None])
        except HeadwayError:  # a table inside a wrapping method
            return _embedded(in_float64(position), torch.arange(len(question.labels))[None])


def _embedded(position: Position, where: Tensor) -> Tensor:
    return position.embed(torch.zeros(1, where.shape[1], attached(position).dim, dtype=torch.float64), where)[0]


def _wavelengths(position: Position, added: Tensor) -> list[list[float | None]]:
    """The wavelength of each dimension along each coordinate, where it is a wave; empty where none is."""
    if position.axes == 1:
        found = [_waves(added)]
    else:
        lines = torch.arange(len(added))[:, None] * torch.eye(position.axes, dtype=torch.long)[:, None]
        found = [_waves(_embedded(in_float64(position), line[None])) for line in lines]
    return found if any(wave for axis in found for wave in axis) else []


def _waves(x: Tensor) -> list[float | None]:
    """2π/ω of each column that is a wave."""
    if len(x) < 4:
        return [None] * x.shape[1]
    inside, around = x[1:-1], x[2:] + x[:-2]
    cosine = (inside * around).sum(0) / (2 * inside.square().sum(0)).clamp(min=1e-30)
    off = (around - 2 * cosine * inside).norm(dim=0) / inside.norm(dim=0).clamp(min=1e-15)
    frequency = cosine.clamp(-1, 1).acos()
    real = (off < 1e-7) & (frequency > 1e-6) & (x.std(0) > 1e-6)
    return [point(2 * math.pi / float(f)) if yes else None for f, yes in zip(frequency, real, strict=True)]


def _diagonals(x: Tensor) -> tuple[Curves, float]:
    """Mean, 10th and 90th percentile along each diagonal from the middle one down, and how far one varies at most."""
    size = len(x)
    apart = torch.arange(size)[:, None] - torch.arange(size)
    along = x.gather(1, apart.clamp(min=0)).masked_fill(apart < 0, torch.nan).T.contiguous()  # (offsets, rows)
    shown = torch.arange(size)[:, None] <= torch.arange(size)
    high, low = (along.masked_fill(~shown, sign * torch.inf) for sign in (-1, 1))
    variation = float((high.amax(1) - low.amin(1)).max())
    mean = along.nanmean(1)
    if variation < CONSTANT:
        return (mean.tolist(), mean.tolist(), mean.tolist()), variation
    shares = torch.tensor([0.1, 0.9], dtype=x.dtype)
    lows, highs = torch.stack([row[n:].quantile(shares) for n, row in enumerate(along)]).T.tolist()
    return (mean.tolist(), lows, highs), variation


def _profile(title: Said, curves: Curves, axis: Said) -> Lines:
    """A curve with its band, at every offset."""
    mean, low, high = ([point(value) for value in curve] for curve in curves)
    offsets = [float(n) for n in range(len(mean))]
    return Lines(title, offsets, [Line(both("similarity.mean"), mean, low, high)], (both("place.distance"), axis))


def _alike_scores(question: Question) -> View:
    """The score of equal tokens at each pair of positions."""
    position = question.position
    with seeded(0), torch.no_grad():
        count = places(question)
        call = alike(in_float64(position), torch.arange(count)[None])
        starts = range(0, count, SIDE)
        found = torch.cat([scores(call, slice(n, min(n + SIDE, count)))[0, question.head] for n in starts])
    notes = [both("similarity.score.note", method=position.spec()), *_cut(count)]
    if any(isinstance(term, PerKey) for term in call.terms):  # which leave a constant per row undetermined
        found = found - found.diagonal()[:, None]
        notes.append(both("place.own"))
    past = torch.ones_like(found, dtype=torch.bool).tril()
    if float(found[past].max() - found[past].min()) < ROUNDING:
        raise Unsuited(
            "similarity",
            f"expected a method whose position changes the score of equal tokens, got {position.spec()}, where all "
            f"pairs have the same score: look at distance instead",
        )
    names = [str(p) for p in range(min(SIDE, count))]
    profile, variation = _diagonals(found)
    finding = both(
        "similarity.score.constant" if variation < CONSTANT else "similarity.score.varies",
        head=question.head,
        near=number(profile[0][1]),
        far=number(profile[0][-1]),
        offset=count - 1,
        varies=number(variation),
    )
    return View(
        "similarity",
        finding,
        [
            Heatmap(
                both("similarity.scores", head=question.head),
                Block.of(found[:SIDE, :SIDE].tolist()),
                names,
                names,
                (both("place.query"), both("place.key")),
                "diverging",
                hidden=Block.of((~past[:SIDE, :SIDE]).int().tolist(), "bits"),
            ),
            _profile(both("similarity.score.profile"), profile, both("place.score")),
        ],
        notes=notes,
    )
