"""Tensors as figures small enough to send: maps of tokens by tokens and by numbers, and how much of a text is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headway.figures.values import Block, Heatmap, Said, both, same
from headway.figures.words import LANGUAGES, number, strings
from headway.shapes import HeadwayError
from headway.views.question import Question

FINE = 2**18
"""Bytes of a map up to which its numbers are sent as float32; a larger one is sent in 255 steps."""
SIDE = 256
"""Rows and columns of a weight matrix that are shown; of a larger one the largest numbers of each square."""


@dataclass(frozen=True)
class Window:
    """Some neighbouring tokens of a text.

    Args:
        labels: how they are written.
        start: the first of them.
        tokens: of the whole text.
    """

    labels: Sequence[str]
    start: int
    tokens: int

    @classmethod
    def of(cls, question: Question, size: int) -> Window:
        """At most ``size`` tokens, those before the query in question and itself.

        >>> Window.of(Question.fresh("a b c d e"), 2).labels
        ['d', 'e']
        """
        tokens = len(question.labels)
        start = min(max(0, question.row - size + 1), max(0, tokens - size))
        return cls(list(question.labels[start : start + size]), start, tokens)

    @property
    def rows(self) -> slice:
        """Where they stand in the text."""
        return slice(self.start, self.start + len(self.labels))

    @property
    def notes(self) -> list[Said]:
        """That not the whole text is shown, if so."""
        if len(self.labels) == self.tokens:
            return []
        last = self.start + len(self.labels) - 1
        return [both("attending.window", first=self.start, last=last, tokens=self.tokens)]


def told(key: str, /, **values: object) -> dict[str, str]:
    """As :func:`headway.figures.values.both`, with values that may be told in every language themselves."""
    return {
        language: strings(language)[key].format(
            **{name: value[language] if isinstance(value, Mapping) else value for name, value in values.items()}
        )
        for language in LANGUAGES
    }


def part_name(name: str, method: str) -> Said:
    """What a part of the scores is called; a method may have a word of its own for it.

    >>> part_name("content", "alibi")["zh"], part_name("Mine", "mine")["en"]
    ('内容', 'Mine')
    """
    known = strings("en")
    for key in (f"part.{name}.{method}", f"part.{name}"):
        if key in known:
            return both(key)
    return same(name)


def spans(x: Tensor, scale: str) -> tuple[float, float]:
    """The numbers at the ends of the colours: from 0 to the largest, or symmetric about 0 if ``diverging``."""
    finite = x[x.isfinite()]
    top = float(finite.abs().max()) if len(finite) else 0.0
    top = top or 1.0
    return (-top, top) if scale == "diverging" else (0.0, top)


def block(x: Tensor, span: tuple[float, float] | None = None, *, fine: int = FINE) -> Block:
    """A matrix as numbers to send: float32, or in 255 steps over ``span`` where that takes more than ``fine`` bytes."""
    values = x.detach().double().flatten().tolist()
    values = [value if math.isfinite(value) else None for value in values]
    if span is None or 4 * x.numel() <= fine:
        return Block(tuple(x.shape), values)
    return Block(tuple(x.shape), values, "uint8", span)


def stepped(values: Block) -> list[Said]:
    """That numbers are sent in steps, and how wide they are, if so."""
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
    fine: int = FINE,
) -> Heatmap:
    """A map of queries by keys.

    Args:
        title: what it is.
        x: numbers of these tokens, (rows, keys).
        window: which tokens.
        seen: which keys the queries may see; the others are hatched.
        scale: of the colours.
        limits: at their ends; default those of the numbers.
        fine: see :func:`block`.
    """
    shown = x if seen is None else x.masked_fill(~seen, 0.0)
    span = limits or spans(shown, scale)
    hidden = None
    if seen is not None and not bool(seen.all()):
        hidden = Block(tuple(seen.shape), (~seen).int().flatten().tolist(), "bits")
    axes = (both("attending.query"), both("attending.key"))
    return Heatmap(title, block(shown, span, fine=fine), window.labels, window.labels, axes, scale, span, hidden)


def vectors(title: Said, x: Tensor, window: Window, limits: tuple[float, float] | None = None) -> Heatmap:
    """A map of tokens by numbers of their vectors."""
    span = limits or spans(x, "diverging")
    x, columns = _pooled(x)
    axes = (both("attending.token"), both("attending.column"))
    return Heatmap(title, block(x, span), window.labels, columns, axes, "diverging", span)


def matrix(title: Said, x: Tensor, limits: tuple[float, float] | None = None, *, fine: int = FINE) -> Heatmap:
    """A map of a weight matrix: rows are what comes in, columns what goes out."""
    span = limits or spans(x, "diverging")
    narrow, columns = _pooled(x)
    turned, rows = _pooled(narrow.mT)
    axes = (both("attending.in"), both("attending.out"))
    return Heatmap(title, block(turned.mT, span, fine=fine), rows, columns, axes, "diverging", span)


def _pooled(x: Tensor) -> tuple[Tensor, list[str]]:
    """At most :data:`SIDE` columns, each the number of largest size among its neighbours, and their labels."""
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
            f"take a part of it, or the view 'long'"
        )
