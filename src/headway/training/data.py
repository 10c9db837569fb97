"""What a run trains on: a text or several for a decoder or an encoder, pairs for an encoder-decoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from headway.shapes import HeadwayError, brief
from headway.training.batches import AnyBatches, TextBatches, TextValidation
from headway.training.content import Tell
from headway.training.documents import COLUMN
from headway.training.files import dump_json
from headway.training.masking import MaskedBatches, MaskedValidation
from headway.training.mixture import MakesValidation, MixedBatches, MixedValidation, shares_of
from headway.training.pairs import EncodedPairs, PairBatches, Pairs, PairValidation, read_pairs
from headway.training.settings import TrainSettings
from headway.training.sources import Source, learned, open_source, sha256_of, tokenised
from headway.training.text import Split, Text
from headway.training.vocabularies import Wanted
from headway.training.vocabulary import Delimited, Masked, Vocabulary
from headway.training.watching import fixed_window

Paths = Path | str | Sequence[Path | str] | None
"""What is trained on: one file or folder, several, or None for the built-in text."""


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
    def notes(self) -> tuple[str, ...]:
        """One sentence for each kind of content that was skipped."""
        ...

    def described(self) -> dict[str, Any]:
        """What identifies it: name, bytes and SHA-256."""
        ...

    def vocabulary(self, wanted: Wanted) -> Vocabulary:
        """The vocabulary that is wanted, learned from the training part, with the further ids that the data need."""
        ...

    def prepare(self, words: Vocabulary, settings: TrainSettings) -> Prepared:
        """Batches and validation."""
        ...


def read_data(
    kind: str,
    paths: Paths,
    *,
    length: int,
    weights: Sequence[float] | None = None,
    column: str | None = COLUMN,
    most: int | None = None,
    tell: Tell | None = None,
) -> Data:
    """Read what a Transformer of a kind trains on.

    Args:
        kind: "decoder", "encoder" or "encoder-decoder".
        paths: texts, see :func:`headway.training.sources.open_source`; or a file of pairs, see
            :func:`headway.training.pairs.read_pairs`.
        length: tokens per window.
        weights: shares of several texts; None is by their tokens, as if they were one.
        column: the column of documents; None reads files as they are.
        most: maximum bytes of each; None is any number for texts, :data:`headway.training.text.MAX_TEXT` for pairs.
        tell: is called with the progress of preparing a large text.

    Raises:
        HeadwayError: when they cannot be read, the weights do not fit, or the kind is none of them.
    """
    several = [paths] if paths is None or isinstance(paths, Path | str) else list(paths)
    if weights is not None and (len(weights) != len(several) or len(several) < 2):
        raise HeadwayError(f"expected a weight for each of several texts, got {len(weights)} for {len(several)}")
    if kind == "encoder-decoder":
        if len(several) != 1:
            raise HeadwayError(f"expected one file of pairs for an encoder-decoder, got {len(several)}: join them")
        return PairData(read_pairs(several[0], most=most))
    if kind not in ("decoder", "encoder"):
        raise HeadwayError(
            f"expected kind to be decoder or encoder, for a text, or encoder-decoder, for pairs, got {brief(kind)}"
        )
    if not several:
        raise HeadwayError("expected at least one text, got none: None is the built-in one")
    shares = [None] * len(several) if weights is None else shares_of(weights)
    texts = [open_source(path, column=column, most=most, tell=tell) for path in several]
    data = TextData.of(texts, length=length, weights=shares, tell=tell)
    return MaskedData(data) if kind == "encoder" else data


@dataclass(frozen=True)
class TextData:
    """Texts, each with its two parts.

    Args:
        sources: the texts.
        tell: is called with the progress of preparing large ones.
    """

    sources: tuple[Source, ...]
    tell: Tell | None = None

    @classmethod
    def of(
        cls,
        texts: Sequence[Text],
        *,
        length: int,
        weights: Sequence[float | None] = (None,),
        tell: Tell | None = None,
    ) -> TextData:
        """Divide texts for windows of a length.

        Raises:
            HeadwayError: when one of them is too short.
        """
        pairs = zip(texts, weights, strict=True)
        return cls(tuple(Source(text, Split.of(text, length=length), weight) for text, weight in pairs), tell)

    @property
    def notes(self) -> tuple[str, ...]:
        """See :class:`Data`."""
        return tuple(note for source in self.sources for note in source.text.notes)

    def described(self) -> dict[str, Any]:
        """See :class:`Data`; of several texts with a hash of their hashes, and the weights."""
        each = [described(source.text, self.tell) for source in self.sources]
        if len(each) == 1:
            return each[0]
        hashes = [[one["sha256"], one.get("column")] for one in each]
        columns = {name: one[name] for one in each for name in ("column",) if name in one}
        weights = [source.weight for source in self.sources if source.weight is not None]
        return {
            "name": ", ".join(one["name"] for one in each),
            "bytes": sum(one["bytes"] for one in each),
            "sha256": hashlib.sha256(dump_json(hashes)).hexdigest(),
            **columns,
            **({"weights": weights} if weights else {}),
        }

    def vocabulary(self, wanted: Wanted) -> Vocabulary:
        """See :class:`Data`."""
        return learned(self.sources, wanted, self.tell)

    def prepare(
        self, words: Vocabulary, settings: TrainSettings, validate: MakesValidation = TextValidation
    ) -> Prepared:
        """See :class:`Data`; ``validate`` makes the validation of one text."""
        length, batch = settings.length, settings.batch
        train, held_out = zip(*(tokenised(source, words, self.tell) for source in self.sources), strict=True)
        window = fixed_window(held_out[0], length)
        if len(self.sources) == 1:
            batches = TextBatches(train[0], length, batch, settings.seed)
            return Prepared(batches, validate(held_out[0], length, batch), window)
        weights = [source.weight or len(tokens) for source, tokens in zip(self.sources, train, strict=True)]
        mixed = MixedBatches(train, weights, length, batch, settings.seed)
        return Prepared(mixed, MixedValidation(held_out, weights, length, batch, validate), window)


@dataclass(frozen=True)
class MaskedData:
    """Texts for an encoder.

    Args:
        text: the same texts for a decoder.
    """

    text: TextData

    @property
    def notes(self) -> tuple[str, ...]:
        """See :class:`Data`."""
        return self.text.notes

    def described(self) -> dict[str, Any]:
        """See :class:`Data`."""
        return self.text.described()

    def vocabulary(self, wanted: Wanted) -> Vocabulary:
        """See :class:`Data`."""
        return Masked(self.text.vocabulary(wanted))

    def prepare(self, words: Vocabulary, settings: TrainSettings) -> Prepared:
        """See :class:`Data`."""
        assert isinstance(words, Masked)
        share = settings.mask_share
        validation = partial(MaskedValidation, words=words, share=share)
        ready = self.text.prepare(words.words, settings, validation)
        return replace(ready, batches=MaskedBatches(ready.batches, words, share, settings.seed))


@dataclass(frozen=True)
class PairData:
    """Pairs of a source and a target."""

    pairs: Pairs

    @property
    def notes(self) -> tuple[str, ...]:
        """See :class:`Data`."""
        return self.pairs.text.notes

    def described(self) -> dict[str, Any]:
        """See :class:`Data`."""
        return described(self.pairs.text)

    def vocabulary(self, wanted: Wanted) -> Vocabulary:
        """See :class:`Data`."""
        return Delimited(wanted.make(self.pairs.trained_on))

    def prepare(self, words: Vocabulary, settings: TrainSettings) -> Prepared:
        """See :class:`Data`."""
        assert isinstance(words, Delimited)
        encoded = EncodedPairs(self.pairs, words, settings.length)
        batches = PairBatches(encoded, settings.batch, settings.seed)
        return Prepared(batches, PairValidation(encoded, settings.batch), None)


def described(text: Text, tell: Tell | None = None) -> dict[str, Any]:
    """What identifies a text."""
    column = {} if text.column is None else {"column": text.column}
    return {"name": text.name, "bytes": len(text.data), "sha256": sha256_of(text, tell), **column}
