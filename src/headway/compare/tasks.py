"""What models are compared on: a given text, or synthetic sequences that test retrieval by distance.

A task makes training batches at one length and tests a model at any length. Low loss on text may need only nearby
tokens; the retrieval tasks ask for one item at a known distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headway.shapes import HeadwayError
from headway.training.batches import IGNORED, Batches, TextBatches, TextValidation, seed_for
from headway.training.content import Tell
from headway.training.corpus import digest
from headway.training.documents import COLUMN
from headway.training.sources import Source, learned, open_source, tokenised
from headway.training.text import Split
from headway.training.tokenizer_json import TokenizerJson
from headway.training.vocabularies import Wanted

Example = tuple[Int64[Tensor, "batch length"], Int64[Tensor, "batch length"]]


class Task(Protocol):
    """The interface of a task."""

    vocab: int

    def batches(self, length: int, batch: int, seed: int) -> Batches:
        """Training batches, a pure function of the step."""
        ...

    def validation(self, length: int, batch: int) -> Callable[[nn.Module], float]:
        """Mean loss at the training length on held-out data."""
        ...

    def test(self, model: nn.Module, length: int) -> dict[str, Any]:
        """Loss and accuracy at a length: ``loss`` (nats per target), ``accuracy``, ``tokens`` and ``by_distance``."""
        ...

    def describe(self) -> dict[str, Any]:
        """What identifies the data; ``chance`` is the accuracy of guessing."""
        ...


class TextTask:
    """Predict the next token of a text, with longer and longer contexts.

    At every length the same tokens are predicted: ``block`` tokens at the end of each window, which reaches back
    ``length`` tokens. Differences between lengths are then due to the context alone.

    Args:
        path: a file or folder; None for the text that comes with Python.
        train_length: tokens of a training window, and of the predicted block.
        longest: the longest test length; the windows of all lengths end at the same positions in the text.
        vocabulary: "bytes", "bpe", the path of a ``tokenizer.json``, or what was read from one.
        vocabulary_size: tokens of a BPE vocabulary.
        windows: maximum number of windows to test.
        most: maximum bytes of the text; None is any number.
        column: the column of documents in JSONL, parquet and saved data sets.
        tell: is called with the progress of preparing a large text.

    Raises:
        HeadwayError: when the text cannot be read or is too short for the lengths.
    """

    def __init__(
        self,
        path: str | None,
        *,
        train_length: int,
        longest: int,
        vocabulary: str | Wanted = "bytes",
        vocabulary_size: int = 1024,
        windows: int = 32,
        most: int | None = None,
        column: str = COLUMN,
        tell: Tell | None = None,
    ) -> None:
        wanted = vocabulary if isinstance(vocabulary, Wanted) else Wanted.of(vocabulary, vocabulary_size)
        text = open_source(path, column=column, most=most, tell=tell)
        self.notes = text.notes
        # other tokens are a few bytes each, so its validation part must be longer to hold the longest window
        need = longest if wanted.kind == "bytes" else longest * 4
        fraction = min(0.5, max(0.1, 1.5 * (need + train_length) / max(len(text.data), 1)))
        split = Split.of(text, length=train_length, fraction=fraction)
        source = Source(text, split)
        self.vocabulary = learned([source], wanted, tell)
        self.name = "Python documentation (built in)" if path is None else text.name
        self.bytes, self.block, self.windows = len(text.data), train_length, windows
        self.vocab = self.vocabulary.size
        self.train, self.held_out = tokenised(source, self.vocabulary, tell)
        self.bytes_per_token = len(split.validation) / max(len(self.held_out), 1)
        spare = len(self.held_out) - longest - 1
        if len(self.train) <= train_length or spare < 0:
            raise HeadwayError(
                f"expected a text whose held-out part has {longest + 1} tokens for test length {longest}, got "
                f"{len(self.held_out)} (of {self.bytes} bytes): give more text, or smaller test lengths"
            )
        # ends spread evenly; blocks do not overlap
        count = min(windows, spare // train_length + 1)
        self.ends = longest + 1 + (torch.arange(count) * spare // max(count - 1, 1))

    def describe(self) -> dict[str, Any]:
        """See :meth:`Task.describe`."""
        return {
            "text": self.name,
            "text_bytes": self.bytes,
            "text_hash": digest(self.train, self.held_out),
            "vocabulary_size": self.vocab,
            **({"tokenizer": self.vocabulary.seal} if isinstance(self.vocabulary, TokenizerJson) else {}),
        }

    def batches(self, length: int, batch: int, seed: int) -> Batches:
        """See :meth:`Task.batches`."""
        return TextBatches(self.train, length, batch, seed)

    def validation(self, length: int, batch: int) -> Callable[[nn.Module], float]:
        """See :meth:`Task.validation`."""
        return TextValidation(self.held_out, length, batch, windows=128)

    def test(self, model: nn.Module, length: int) -> dict[str, Any]:
        """See :meth:`Task.test`."""

        def examples() -> Iterator[Example]:
            most = max(1, _LOGITS // (length * self.vocab))
            for ends in torch.split(self.ends, min(_batch_for(length), most)):
                window = self.held_out[ends[:, None] - length - 1 + torch.arange(length + 1)]
                targets = window[:, 1:].clone()
                targets[:, : -self.block] = IGNORED
                yield window[:, :-1], targets

        found = _score(model, examples())
        return {**found, "bits_per_byte": found["loss"] / math.log(2) / self.bytes_per_token, "by_distance": []}


class RecallTask:
    """Associative recall: a sequence of key, value, key, value …; each sequence has its own value for each key.

    Trained to predict the value whenever a key occurs again. Tested on the last key of a sequence, which occurred
    exactly once before, at a known distance, among other keys.

    >>> task = RecallTask()
    >>> inputs, targets = task.batches(length=64, batch=2, seed=0)(0)
    >>> inputs.shape, bool((targets[:, 1::2] == IGNORED).all())
    (torch.Size([2, 64]), True)
    """

    keys = 8
    values = 8
    vocab = keys + values

    def describe(self) -> dict[str, Any]:
        """See :meth:`Task.describe`."""
        return {"text": f"recall: {self.keys} keys, {self.values} values", "chance": 1 / self.values}

    def _pairs(self, keys: Tensor, generator: torch.Generator) -> Tensor:
        """Sequences key, value, … from keys (B, P): (B, 2P)."""
        value_of = torch.randint(self.values, (keys.shape[0], self.keys), generator=generator) + self.keys
        return torch.stack((keys, value_of.gather(1, keys)), -1).flatten(1)

    def batches(self, length: int, batch: int, seed: int) -> Batches:
        """See :meth:`Task.batches`."""

        def make(step: int, /) -> Example:
            generator = torch.Generator().manual_seed(seed_for(seed, step, "recall"))
            # keys differ widely in frequency: frequent ones make the task easy enough to discover, rare ones occur
            # twice, at any distance, as in the test
            often = (2 * torch.randn(batch, self.keys, generator=generator)).exp()
            keys = torch.multinomial(often, length // 2 + 1, replacement=True, generator=generator)
            sequence = self._pairs(keys, generator)[:, : length + 1]
            targets = torch.full((batch, length), IGNORED)
            again = (keys[:, :, None] == keys[:, None, :]).tril(-1).any(-1)[:, : (length + 1) // 2]
            # at a key (even indices) the next token is its value, predictable if the key occurred before
            targets[:, 0::2] = torch.where(again, sequence[:, 1::2][:, : again.shape[1]], IGNORED)
            return sequence[:, :length], targets

        return make

    def validation(self, length: int, batch: int) -> Callable[[nn.Module], float]:
        """See :meth:`Task.validation`."""
        return _held_out(self.batches(length, batch, seed=_HELD_OUT))

    def test(self, model: nn.Module, length: int) -> dict[str, Any]:
        """See :meth:`Task.test`."""

        def example(distance: int, count: int, generator: torch.Generator) -> Example:
            pairs = length // 2  # the answer is the last token, so keys have even indices, as in training
            keys = torch.randint(1, self.keys, (count, pairs), generator=generator)  # key 0 is planted
            keys[:, -1] = keys[:, -1 - distance // 2] = 0
            keys = (keys + torch.randint(self.keys, (count, 1), generator=generator)) % self.keys
            sequence = self._pairs(keys, generator)
            targets = torch.full((count, sequence.shape[1] - 1), IGNORED)
            targets[:, -1] = sequence[:, -1]
            return sequence[:, :-1], targets

        # a key recurs after an even number of tokens, at most from the first pair to the last
        return _by_distance(model, length, [d for d in _doubling(2) if d <= length // 2 * 2 - 2], example)


class CopyTask:
    """Copy: random letters, a separator, and the same letters again, to be predicted.

    Each letter's source lies exactly letters + 1 tokens back. Training packs copies of random sizes into a window;
    tests end with one copy of a known size, after other copies.

    >>> inputs, targets = CopyTask().batches(length=64, batch=2, seed=0)(0)
    >>> bool(((targets == inputs.roll(-1, 1)) | (targets == IGNORED))[:, :-1].all())
    True
    """

    letters = 24
    vocab = letters + 1
    smallest = 3

    def describe(self) -> dict[str, Any]:
        """See :meth:`Task.describe`."""
        return {"text": f"copy: {self.letters} letters", "chance": 1 / self.letters}

    def _copy(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One copy: tokens (2·size + 2,), and whether each is to be predicted."""
        letters = torch.randint(self.letters, (size,), generator=generator)
        separator = torch.tensor([self.letters])
        tokens = torch.cat((letters, separator, letters, separator))
        asked = torch.arange(len(tokens)) > size
        asked[-1] = False
        return tokens, asked

    def _sequence(self, length: int, generator: torch.Generator, last: int | None = None) -> tuple[Tensor, Tensor]:
        """Copies packed to ``length`` + 1 tokens; given ``last``, the size of the last one, only that one counts."""
        largest = max((length - 1) // 2, self.smallest)
        tokens, asked = self._copy(last, generator) if last is not None else (torch.empty(0).long(), torch.empty(0))
        tokens, asked = tokens[:-1], asked[:-1].bool()  # ends with the last letter
        while len(tokens) < length + 1:
            # sizes are log-uniform: most copies are short, which makes the task easy enough to discover
            share = float(torch.rand(1, generator=generator))
            size = int(self.smallest * ((largest + 1) / self.smallest) ** share)
            more, more_asked = self._copy(size, generator)
            if last is not None:
                more_asked = torch.zeros_like(more_asked)
            tokens, asked = torch.cat((more, tokens)), torch.cat((more_asked, asked))
        if last is None:  # whole copies from the start, cut off at the end
            return tokens[: length + 1], asked[: length + 1]
        return tokens[-length - 1 :], asked[-length - 1 :]

    def _examples(self, sequences: list[tuple[Tensor, Tensor]]) -> Example:
        tokens, asked = (torch.stack(part) for part in zip(*sequences, strict=True))
        return tokens[:, :-1], tokens[:, 1:].masked_fill(~asked[:, 1:], IGNORED)

    def batches(self, length: int, batch: int, seed: int) -> Batches:
        """See :meth:`Task.batches`."""

        def make(step: int, /) -> Example:
            generator = torch.Generator().manual_seed(seed_for(seed, step, "copy"))
            return self._examples([self._sequence(length, generator) for _ in range(batch)])

        return make

    def validation(self, length: int, batch: int) -> Callable[[nn.Module], float]:
        """See :meth:`Task.validation`."""
        return _held_out(self.batches(length, batch, seed=_HELD_OUT))

    def test(self, model: nn.Module, length: int) -> dict[str, Any]:
        """See :meth:`Task.test`."""

        def example(distance: int, count: int, generator: torch.Generator) -> Example:
            return self._examples([self._sequence(length, generator, distance - 1) for _ in range(count)])

        return _by_distance(model, length, [d for d in _doubling(4) if 2 * d - 1 <= length], example)


_HELD_OUT = 2**31  # differs from every seed of training
_LOGITS = 2**27  # of a batch of a text, 512 MiB
_SAMPLES = 32  # test sequences per length and distance


def make_task(
    task: str,
    path: str | None,
    *,
    train_length: int,
    longest: int,
    vocabulary: str | Wanted = "bytes",
    vocabulary_size: int = 1024,
    most: int | None = None,
    column: str = COLUMN,
    tell: Tell | None = None,
) -> Task:
    """The task of this name: "text", "recall" or "copy"; see :class:`TextTask` for the other arguments.

    Raises:
        HeadwayError: on a text for a task that makes its own data, or unsuitable lengths.
    """
    if task == "text":
        return TextTask(
            path,
            train_length=train_length,
            longest=longest,
            vocabulary=vocabulary,
            vocabulary_size=vocabulary_size,
            most=most,
            column=column,
            tell=tell,
        )
    if path is not None:
        raise HeadwayError(f"expected no text for task {task}, which makes its own sequences, got {path}")
    if train_length < 16:
        raise HeadwayError(f"expected a train length of at least 16 tokens for task {task}, got {train_length}")
    return RecallTask() if task == "recall" else CopyTask()


def _doubling(first: int) -> list[int]:
    return [first * 2**i for i in range(20)]


def _batch_for(length: int) -> int:
    """Sequences per batch, so that tests at long lengths take no more memory than at short ones."""
    return max(1, min(64, 8192 // length))


def _held_out(batches: Batches, count: int = 4) -> Callable[[nn.Module], float]:
    def validation(model: nn.Module) -> float:
        return float(_score(model, (batches(step) for step in range(count)))["loss"])

    return validation


def _by_distance(
    model: nn.Module,
    length: int,
    distances: list[int],
    example: Callable[[int, int, torch.Generator], Example],
) -> dict[str, Any]:
    """Test retrieval at each distance; the totals weight all distances equally."""
    rows, batch = [], _batch_for(length)
    for distance in distances:
        generator = torch.Generator().manual_seed(seed_for(length, distance, "test"))
        counts = [min(batch, _SAMPLES - done) for done in range(0, _SAMPLES, batch)]
        rows.append((distance, _score(model, (example(distance, count, generator) for count in counts))))
    return {
        "loss": sum(found["loss"] for _, found in rows) / len(rows),
        "accuracy": sum(found["accuracy"] for _, found in rows) / len(rows),
        "tokens": sum(found["tokens"] for _, found in rows),
        "by_distance": [
            {"length": length, "distance": distance, "accuracy": found["accuracy"], "count": found["tokens"]}
            for distance, found in rows
        ],
    }


def _score(model: nn.Module, examples: Iterator[Example]) -> dict[str, Any]:
    """Mean loss in nats and accuracy over all targets."""
    loss, right, count = 0.0, 0, 0
    with torch.inference_mode():
        for inputs, targets in examples:
            # a long window needs logits only from its first target on
            first = int((targets != IGNORED).any(0).nonzero()[0])
            logits, wanted = model(inputs)[:, first:].flatten(0, 1).float(), targets[:, first:].flatten()
            loss += cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum").item()
            right += int((logits.argmax(-1) == wanted).sum())
            count += int((wanted != IGNORED).sum())
    return {"loss": loss / count, "accuracy": right / count, "tokens": count}
