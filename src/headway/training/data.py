"""What a run trains on: a text for a decoder, pairs for an encoder-decoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from headway.shapes import HeadwayError
from headway.training.batches import AnyBatches, TextBatches, TextValidation
from headway.training.pairs import EncodedPairs, PairBatches, Pairs, PairValidation, read_pairs
from headway.training.settings import TrainSettings
from headway.training.text import Split, Text, read_text
from headway.training.vocabulary import Delimited, Vocabulary
from headway.training.watching import fixed_window


@dataclass(frozen=True)
class Prepared:
    """Data as a trainer takes it.

    Args:
        batches: training data.
        validation: mean loss on the held-out part.
        window: ids of its beginning, (1, N), for observers; None for pairs.
    """

    batches: AnyBatches
    validation: Callable[[nn.Module], float]
    window: Tensor | None


class Data(Protocol):
    """What a run trains on."""

    @property
    def text(self) -> Text:
        """What was read."""
        ...

    @property
    def trained_on(self) -> bytes:
        """The training part, from which a vocabulary may be learned."""
        ...

    def vocabulary(self, words: Vocabulary) -> Vocabulary:
        """A vocabulary with the further ids that the data need."""
        ...

    def prepare(self, words: Vocabulary, settings: TrainSettings) -> Prepared:
        """Batches and validation."""
        ...


def read_data(kind: str, path: Path | str | None, *, length: int, most: int | None = None) -> Data:
    """Read what a Transformer of a kind trains on.

    Args:
        kind: "decoder" or "encoder-decoder".
        path: a text, see :func:`headway.training.text.read_text`; or pairs, see
            :func:`headway.training.pairs.read_pairs`.
        length: tokens per window.
        most: maximum bytes; None is :data:`headway.training.text.MAX_TEXT`.

    Raises:
        HeadwayError: when they cannot be read, or an encoder is to be trained.
    """
    if kind == "encoder-decoder":
        return PairData(read_pairs(path, most=most))
    if kind != "decoder":
        raise HeadwayError(
            f"expected kind to be decoder, for a text, or encoder-decoder, for pairs, got {kind!r}: "
            f"an {kind} predicts no next token"
        )
    text = read_text(path, most=most)
    return TextData(text, Split.of(text, length=length))


@dataclass(frozen=True)
class TextData:
    """A text and its two parts."""

    text: Text
    split: Split

    @property
    def trained_on(self) -> bytes:
        """See :class:`Data`."""
        return self.split.train

    def vocabulary(self, words: Vocabulary) -> Vocabulary:
        """See :class:`Data`."""
        return words

    def prepare(self, words: Vocabulary, settings: TrainSettings) -> Prepared:
        """See :class:`Data`."""
        held_out = words.encode(self.split.validation)
        return Prepared(
            TextBatches(words.encode(self.split.train), settings.length, settings.batch, settings.seed),
            TextValidation(held_out, settings.length, settings.batch),
            fixed_window(held_out, settings.length),
        )


@dataclass(frozen=True)
class PairData:
    """Pairs of a source and a target."""

    pairs: Pairs

    @property
    def text(self) -> Text:
        """See :class:`Data`."""
        return self.pairs.text

    @property
    def trained_on(self) -> bytes:
        """See :class:`Data`."""
        return self.pairs.trained_on

    def vocabulary(self, words: Vocabulary) -> Vocabulary:
        """See :class:`Data`."""
        return Delimited(words)

    def prepare(self, words: Vocabulary, settings: TrainSettings) -> Prepared:
        """See :class:`Data`."""
        assert isinstance(words, Delimited)
        encoded = EncodedPairs(self.pairs, words, settings.length)
        batches = PairBatches(encoded, settings.batch, settings.seed)
        return Prepared(batches, PairValidation(encoded, settings.batch), None)


def described(text: Text) -> dict[str, Any]:
    """What identifies a text."""
    return {"name": text.name, "bytes": len(text.data), "sha256": hashlib.sha256(text.data).hexdigest()}
