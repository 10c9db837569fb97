"""What a view is asked about: a model and a text, and where to look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from headway.characters import label
from headway.inspect.explain import fresh_model, words
from headway.inspect.record import Layer, Trace, recorded
from headway.inspect.watch import Watch
from headway.positions import Position
from headway.shapes import HeadwayError
from headway.transformer import Transformer


@dataclass(eq=False)
class Question:
    """A model, a text, and where to look.

    Args:
        model: a decoder or an encoder.
        ids: token ids, (1, N).
        labels: how each token is written; what shows nothing is named, see :func:`headway.characters.label`.
        name: of the model, as its run's folder or its method.
        layer: which layer, from 0.
        head: which head, from 0.
        query: which query; negative counts from the end.
        column: which column of q.
        others: further models to set beside it, asked about the same text.
        watched: a recorded training, for the views of learning.
        history: what a training wrote down, as ``training.History`` has it.
        results: of ``headway compare``.
        options: what single views ask for besides, by name; each view's docstring tells.
        notes: what to know of the model, as that its newest checkpoint is damaged; every view of it says so.
    """

    model: Transformer
    ids: Tensor
    labels: Sequence[str]
    name: str = ""
    layer: int = 0
    head: int = 0
    query: int = -1
    column: int = 0
    others: Sequence[Question] = ()
    watched: Watch | None = None
    history: Any = None
    results: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or len(self.ids) != 1 or self.ids.shape[1] < 1:
            raise HeadwayError(f"expected token ids of one text, (1, N), got {tuple(self.ids.shape)}")
        if len(self.labels) != self.ids.shape[1]:
            raise HeadwayError(f"expected a label for each of {self.ids.shape[1]} tokens, got {len(self.labels)}")
        self.labels = [label(one) for one in self.labels]
        limits = {
            "layer": (self.layer, len(self.model.stack.blocks)),
            "head": (self.head, self.model.stack.attentions()[0].shape.heads),
            "query": (self.query % len(self.labels), len(self.labels)),
        }
        for what, (index, count) in limits.items():
            if not 0 <= index < count:
                raise HeadwayError(f"expected {what} from 0 to {count - 1}, got {index}")

    @classmethod
    def fresh(cls, text: str, *, position: str = "rotary", dim: int = 64, heads: int = 4, seed: int = 0) -> Question:
        """About a small model that has learned nothing yet, whose vocabulary is the text's words.

        >>> Question.fresh("the cat sat").labels
        ['the', 'cat', 'sat']
        """
        labels = words(text)
        model, ids = fresh_model(labels, position=position, dim=dim, heads=heads, seed=seed)
        return cls(model, ids, labels, name=position)

    @cached_property
    def trace(self) -> Trace:
        """What every attention was given for this text."""
        return recorded(self.model, self.ids)

    @property
    def seen(self) -> Layer:
        """The recorded layer in question."""
        return self.trace[self.layer]

    @property
    def position(self) -> Position:
        """The method of the layer in question."""
        return self.model.stack.attentions()[self.layer].position

    @property
    def row(self) -> int:
        """The query in question, from 0."""
        return self.query % len(self.labels)
