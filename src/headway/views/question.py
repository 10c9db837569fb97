"""The subject of a view: the inputs of attention for a text, and a layer, head and query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from headway.attending import Attending
from headway.characters import Piece, label
from headway.figures.values import Said
from headway.inspect.explain import fresh_model, words
from headway.inspect.record import Layer, Trace, recorded
from headway.inspect.watch import Watch
from headway.positions import Position
from headway.shapes import HeadwayError
from headway.training.vocabulary import Masked, Vocabulary
from headway.transformer import Transformer
from headway.views.predictor import OfVocabulary, Predictor


class Changes(Protocol):
    """A text recorded anew after a change, by a model that is not headway's own."""

    def shifted(self, by: int) -> Trace:
        """All positions + ``by``."""

    def shuffled(self, order: Tensor) -> Trace:
        """The tokens in another order, (N,)."""

    def swapped(self, spec: str) -> tuple[Trace, bool]:
        """Another position method, and whether it has (untrained) parameters."""


class Recording:
    """The inputs of attention for one text: of a model, recorded on first use, or of a recorded pass alone.

    Args:
        model: a decoder or an encoder; None for a recorded pass alone.
        ids: token ids, (1, N).
        trace: the pass, if already recorded.
        changes: how the pass is recorded anew after a change, without a model of headway's own.
    """

    def __init__(
        self,
        model: Transformer | None = None,
        ids: Tensor | None = None,
        trace: Trace | None = None,
        changes: Changes | None = None,
    ) -> None:
        if model is None and not trace:
            raise HeadwayError("expected a trace of a pass, got an empty one: call the model while it records")
        if model is not None and (ids is None or ids.ndim != 2 or len(ids) != 1 or ids.shape[1] < 1):
            got = None if ids is None else tuple(ids.shape)
            raise HeadwayError(f"expected token ids of one text, (1, N), got {got}")
        self.model, self.ids, self._trace, self.changes = model, ids, trace, changes

    @property
    def trace(self) -> Trace:
        """The pass."""
        if self._trace is None:
            assert self.model is not None
            assert self.ids is not None
            self._trace = recorded(self.model, self.ids)
        return self._trace

    @property
    def tokens(self) -> int:
        """Number of tokens of the text."""
        return self.trace[0].keys if self.ids is None else self.ids.shape[1]

    @property
    def attentions(self) -> list[Attending]:
        """The attention of each layer."""
        return [layer.attention for layer in self.trace] if self.model is None else self.model.stack.attentions()

    def forget(self) -> None:
        """Drop the recorded pass, which a model can run again."""
        if self.model is not None:
            self._trace = None


@dataclass(eq=False)
class Question:
    """A recorded pass over a text, with a layer, head and query; some views also need the model.

    Args:
        recording: recording of a model or a pass.
        labels: display text of each token; invisible characters are named, see :func:`headway.characters.label`.
        name: name of the model, e.g. its run folder or its method.
        layer: which layer, from 0.
        head: which head, from 0.
        query: which query; negative counts from the end.
        column: which column of q.
        others: further models to compare with, on the same text.
        watched: a recorded training, for the views of learning.
        history: history of a training, see ``training.History``.
        results: results of ``headway compare``.
        options: options of single views, by name; see each view's docstring.
        notes: notes on the model, e.g. that its newest checkpoint is damaged; every view shows them.
        keys: in cross attention, display text of each token of the context; None where tokens attend to themselves.
        predictor: what predicts the next token, for a vocabulary that the labels do not tell, or another's model.
        untrained: whether the model has random weights; every view says so beside its title.

    Raises:
        HeadwayError: on a layer, head or query that does not exist, or a wrong number of labels.
    """

    recording: Recording
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
    notes: Sequence[str | Said] = ()
    keys: Sequence[str] | None = None
    predictor: Predictor | None = None
    untrained: bool = False

    def __post_init__(self) -> None:
        found = len(self.labels) if self.keys is None else len(self.keys)
        if found != self.recording.tokens:
            raise HeadwayError(f"expected a label for each of {self.recording.tokens} tokens, got {found}")
        self.labels = [one if isinstance(one, Piece) else label(one) for one in self.labels]
        self.keys = None if self.keys is None else [one if isinstance(one, Piece) else label(one) for one in self.keys]
        limits = {
            "layer": (self.layer, len(self.attentions)),
            "head": (self.head, self.attentions[0].shape.heads),
            "query": (self.query % len(self.labels), len(self.labels)),
        }
        for what, (index, count) in limits.items():
            if not 0 <= index < count:
                raise HeadwayError(f"expected {what} from 0 to {count - 1}, got {index}")

    @classmethod
    def of(
        cls,
        model: Transformer,
        ids: Tensor,
        labels: Sequence[str],
        *,
        vocabulary: Vocabulary | None = None,
        **where: Any,
    ) -> Question:
        """About a model and a text.

        Args:
            model: a decoder or an encoder.
            ids: token ids, (1, N).
            labels: display text of each token.
            vocabulary: what ids stand for; default what the labels tell.
            where: the other fields.
        """
        if vocabulary is not None:
            mask = vocabulary.mask if isinstance(vocabulary, Masked) else None
            where["predictor"] = Predictor(model, ids, OfVocabulary(vocabulary), mask=mask)
        return cls(Recording(model, ids), labels, **where)

    @classmethod
    def fresh(cls, text: str, *, position: str = "rotary", dim: int = 64, heads: int = 4, seed: int = 0) -> Question:
        """About a small untrained model, whose vocabulary is the words of the text.

        >>> Question.fresh("the cat sat").labels
        ['the', 'cat', 'sat']
        """
        labels = words(text)
        model, ids = fresh_model(labels, position=position, dim=dim, heads=heads, seed=seed)
        return cls.of(model, ids, labels, name=position, untrained=True)

    @property
    def model(self) -> Transformer:
        """The model.

        Raises:
            HeadwayError: when only a pass was recorded.
        """
        if self.recording.model is None:
            raise HeadwayError(
                "expected a model of headway's own for this view, which runs it anew, got a checkpoint or a recorded "
                "pass: choose another view"
            )
        return self.recording.model

    @property
    def ids(self) -> Tensor:
        """Token ids of the text, (1, N); errors as of :attr:`model`."""
        assert self.model is not None
        assert self.recording.ids is not None
        return self.recording.ids

    @property
    def attentions(self) -> list[Attending]:
        """The attention of each layer."""
        return self.recording.attentions

    @property
    def trace(self) -> Trace:
        """The recorded inputs of every attention for this text."""
        return self.recording.trace

    @property
    def seen(self) -> Layer:
        """The recorded layer."""
        return self.trace[self.layer]

    @property
    def position(self) -> Position:
        """The position method of the layer."""
        return self.attentions[self.layer].position

    @property
    def of_keys(self) -> Sequence[str]:
        """Display text of each key."""
        return self.labels if self.keys is None else self.keys

    @property
    def row(self) -> int:
        """The index of the query, from 0."""
        return self.query % len(self.labels)
