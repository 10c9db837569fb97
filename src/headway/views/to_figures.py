"""Tensors as figures small enough to send: maps of tokens by tokens and by dimensions, and windows of a text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headway.figures.values import Block, Heatmap, Said, both, same
from headway.figures.words import LANGUAGES, number, strings
from headway.shapes import HeadwayError
from headway.views.grouping import Groups
from headway.views.question import Question

FINE = 2**18
"""Maximum bytes of a map that is sent as float32; a larger one is quantised to 255 steps."""
MOST = 0.995
"""Share of the weights within the limits of a colour scale that fits them."""
SIDE = 256
"""Maximum rows and columns of a weight matrix; a larger one is pooled to the largest entries of each square."""


@dataclass(frozen=True)
class Window:
    """A window of neighbouring tokens of a text.

    Args:
        labels: their display texts.
        start: the first of them.
        tokens: number of tokens of the whole text.
        keys: display texts of the keys, where they are tokens of another sequence.
        firsts: the first token of each label, where they are groups or part of a text.
    """

    labels: Sequence[str]
    start: int
    tokens: int
    keys: Sequence[str] | None = None
    firsts: Sequence[int] | None = None

    @classmethod
    def of(cls, question: Question, size: int) -> Window:
        """At most ``size`` tokens, ending with the query.

        >>> Window.of(Question.fresh("a b c d e"), 2).labels
        ['d', 'e']
        """
        tokens = len(question.labels)
        start = min(max(0, question.row - size + 1), max(0, tokens - size))
        labels = list(question.labels[start : start + size])
        return cls(labels, start, tokens, question.keys, [*range(start, start + len(labels))] if start else None)

    @classmethod
    def grouped(cls, groups: Groups) -> Window:
        """All groups of a text."""
        return cls(groups.labels, 0, len(groups.labels), firsts=groups.starts)

    @property
    def rows(self) -> slice:
        """Their slice of the text."""
        return slice(self.start, self.start + len(self.labels))

    @property
    def notes(self) -> list[Said]:
        """A note if not the whole text is shown."""
        if len(self.labels) == self.tokens:
            return []
        last = self.start + len(self.labels) - 1
        return [both("attending.window", first=self.start, last=last, tokens=self.tokens)]


def told(key: str, /, **values: object) -> dict[str, str]:
    """As :func:`headway.figures.values.both`, with values that may be translated themselves."""
    return {
        language: strings(language)[key].format(
            **{name: value[language] if isinstance(value, Mapping) else value for name, value in values.items()}
        )
        for language in LANGUAGES
    }


def part_name(name: str, method: str) -> Said:
    """The name of a part of the scores; a method may have its own name for it.

    >>> part_name("content", "alibi")["zh"], part_name("Mine", "mine")["en"]
    ('内容', 'Mine')
    """
    known = strings("en")
    for key in (f"part.{name}.{method}", f"part.{name}"):
        if key in known:
            return both(key)
    return same(name)


def spans(x: Tensor, scale: str) -> tuple[float, float]:
    """The limits of the colour scale: from 0 to the largest value, or symmetric about 0 if ``diverging``."""
    finite = x[x.isfinite()]
    top = float(finite.abs().max()) if len(finite) else 0.0
    top = top or 1.0
    return (-top, top) if scale == "diverging" else (0.0, top)


def fitting(x: Tensor, seen: Tensor | None) -> tuple[float, float] | None:
    """Limits in which most attention weights can be distinguished; None where they are not much narrower.

    They hold 99.5 % of the weights of the queries in the second half: early queries see few keys, so that their weights
    are large whatever a head does. With the first one at 1, a long text would look blank.

    Args:
        x: weights, (…, rows, keys).
        seen: unmasked pairs, likewise; None masks nothing.

    >>> seen = torch.ones(50, 50).tril()
    >>> fitting(seen / seen.sum(-1, keepdim=True), seen.bool())
    (0.0, 0.0384...)
    >>> fitting(torch.eye(50), None) is None
    True
    """
    late = slice(x.shape[-2] // 2, None)
    shown = x[..., late, :].flatten() if seen is None else x[..., late, :][seen.expand(x.shape)[..., late, :]]
    shown = shown[shown.isfinite()].double()
    if not len(shown):
        return None
    high, whole = float(shown.kthvalue(math.ceil(MOST * len(shown))).values), spans(x, "sequential")[1]
    return (0.0, high) if 0 < high < whole / 2 else None


def block(x: Tensor, span: tuple[float, float] | None = None, *, fine: int = FINE) -> Block:
    """A matrix to send: as float32, or quantised to 255 steps over ``span`` where that takes more than ``fine``
    bytes."""
    values = x.detach().double().flatten().tolist()
    values = [value if math.isfinite(value) else None for value in values]
    if span is None or 4 * x.numel() <= fine:
        return Block(tuple(x.shape), values)
    return Block(tuple(x.shape), values, "uint8", span)


def stepped(values: Block) -> list[Said]:
    """A note on the step width, if values are quantised."""
    if values.span is None:
        return []
    low, high = values.span
    return [both("attending.steps", step=number((high - low) / 254))]


def pairs(
    title: Said,
    x: Tensor,
    window: Window,
    *,
    seen: Tensor | None = None,
    scale: str = "diverging",
    limits: tuple[float, float] | None = None,
    fit: tuple[float, float] | None = None,
    fine: int = FINE,
) -> Heatmap:
    """A map of queries by keys.

    Args:
        title: title of the map.
        x: values of these tokens, (rows, keys).
        window: the tokens.
        seen: unmasked pairs; the others are hatched.
        scale: kind of colour scale.
        limits: limits of the colour scale; default those of the values.
        fit: narrower limits, see :class:`headway.figures.values.Heatmap`; default :func:`fitting`, if ``limits`` are
            default too and the scale is sequential.
        fine: see :func:`block`.
    """
    shown = x if seen is None else x.masked_fill(~seen, 0.0)
    span = limits or spans(shown, scale)
    hidden = None
    if seen is not None and not bool(seen.all()):
        hidden = Block(tuple(seen.shape), (~seen).int().flatten().tolist(), "bits")
    axes = (both("attending.query"), both("attending.key"))
    columns = window.labels if window.keys is None else window.keys
    if limits is None and fit is None and scale == "sequential":
        fit = fitting(shown, seen)
    values = block(shown, span, fine=fine)
    return Heatmap(title, values, window.labels, columns, axes, scale, span, hidden, fit=fit, tokens=window.firsts)


def vectors(title: Said, x: Tensor, window: Window, limits: tuple[float, float] | None = None) -> Heatmap:
    """A map of tokens by dimensions of their vectors."""
    span = limits or spans(x, "diverging")
    x, columns = _pooled(x)
    axes = (both("attending.token"), both("attending.column"))
    return Heatmap(title, block(x, span), window.labels, columns, axes, "diverging", span)


def matrix(title: Said, x: Tensor, limits: tuple[float, float] | None = None, *, fine: int = FINE) -> Heatmap:
    """A map of a weight matrix: rows are input dimensions, columns output dimensions."""
    span = limits or spans(x, "diverging")
    narrow, columns = _pooled(x)
    turned, rows = _pooled(narrow.mT)
    axes = (both("attending.in"), both("attending.out"))
    return Heatmap(title, block(turned.mT, span, fine=fine), rows, columns, axes, "diverging", span)


def _pooled(x: Tensor) -> tuple[Tensor, list[str]]:
    """At most :data:`SIDE` columns, each the entry of largest magnitude among its neighbours, and their labels."""
    width = x.shape[1]
    if width <= SIDE:
        return x, [str(column) for column in range(width)]
    every = math.ceil(width / SIDE)
    padded = torch.nn.functional.pad(x, (0, -width % every)).unflatten(1, (-1, every))
    largest = padded.gather(2, padded.abs().argmax(2, keepdim=True))[..., 0]
    starts = range(0, width, every)
    return largest, [f"{start}–{min(start + every, width) - 1}" for start in starts]


def refuse_beyond(question: Question, most: int, view: str) -> None:
    """Refuse a text too long for a view.

    Raises:
        HeadwayError: when it has more than ``most`` tokens.
    """
    if len(question.labels) > most:
        raise HeadwayError(
            f"expected a text of at most {most:,} tokens for the view {view!r}, got {len(question.labels):,}: "
            f"use a part of it, or the view 'long'"
        )
