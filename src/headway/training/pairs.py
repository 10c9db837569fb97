"""Pairs of a source and a target, for encoder-decoders: their files, batches and validation.

A file has one pair per line: ``source<tab>target`` in a ``.tsv``, ``{"source": "…", "target": "…"}`` in a ``.jsonl``.

encoder  s_1 … s_m end                 decoder  start t_1 … t_n  →  t_1 … t_n end

Sources are padded on the right at position −1, which attention does not see. Targets are padded on the right too: the
decoder is causal, so that nothing before sees the padding, and the loss leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from headway.schema import shown
from headway.shapes import HeadwayError
from headway.training.batches import IGNORED, compact, seed_for, summed_loss
from headway.training.files import parse_json
from headway.training.text import Text, read_text
from headway.training.validation import mean_loss
from headway.training.vocabulary import Delimited

SUFFIXES = (".tsv", ".jsonl")
VALIDATED = 512
"""Pairs that a validation looks at, at most."""
Example = tuple[dict[str, Tensor], Int64[Tensor, "batch length"]]


@dataclass(frozen=True)
class Pairs:
    """Pairs as bytes, with their source.

    Args:
        sources: what the encoder reads.
        targets: what the decoder writes, as many.
        text: the file they were read from.
        held_out: how many of them, at the end, are for validation.
    """

    sources: Sequence[bytes]
    targets: Sequence[bytes]
    text: Text
    held_out: int

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def trained_on(self) -> bytes:
        """Sources and targets of the training part, a line each."""
        many = len(self) - self.held_out
        return b"\n".join((*self.sources[:many], *self.targets[:many]))


def read_pairs(path: Path | str | None, *, most: int | None = None, fraction: float = 0.1) -> Pairs:
    """Read pairs; the last of them, a tenth unless told otherwise and at least one, are held out for validation.

    Args:
        path: a ``.tsv`` or ``.jsonl`` file.
        most: maximum bytes; None is :data:`headway.training.text.MAX_TEXT`.
        fraction: share to validate on, in (0, 1).

    Raises:
        HeadwayError: when the file is none of them, cannot be read, or a line of it is no pair.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "pairs.tsv")
    ...     _ = file.write_text("one\\tuno\\ntwo\\tdue\\n")
    ...     pairs = read_pairs(file)
    >>> pairs.sources, pairs.targets, pairs.held_out
    ([b'one', b'two'], [b'uno', b'due'], 1)
    """
    if path is None or Path(path).suffix.lower() not in SUFFIXES or Path(path).is_dir():
        got = "none" if path is None else str(path)
        raise HeadwayError(
            f"expected a file of pairs for an encoder-decoder, {' or '.join(SUFFIXES)}, got {got}: "
            f"write a source, a tab and a target on each line"
        )
    text = read_text(path, most=most)
    split = _columns if Path(path).suffix.lower() == ".tsv" else _fields
    lines = bytes(text.data).removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")
    pairs = [split(line, f"line {number} of {path}") for number, line in enumerate(lines, 1)]
    if len(pairs) < 2:
        raise HeadwayError(f"expected at least two pairs, one to train on and one to validate on, got 1 in {path}")
    held_out = min(max(1, int(len(pairs) * fraction)), len(pairs) - 1)
    return Pairs([source for source, _ in pairs], [target for _, target in pairs], text, held_out)


def _columns(line: bytes, where: str) -> tuple[bytes, bytes]:
    columns = line.split(b"\t")
    if len(columns) != 2:
        raise HeadwayError(f"expected a source, a tab and a target in {where}, got {len(columns)} columns")
    return columns[0], columns[1]


def _fields(line: bytes, where: str) -> tuple[bytes, bytes]:
    value = parse_json(line, where)
    if not isinstance(value, dict) or set(value) != {"source", "target"}:
        raise HeadwayError(f'expected {{"source": "…", "target": "…"}} in {where}, got {_names(value)}')
    for name, text in value.items():
        if not isinstance(text, str):
            raise HeadwayError(f"expected {name} to be a text in {where}, got {shown(text)}")
    return value["source"].encode("utf-8", "surrogatepass"), value["target"].encode("utf-8", "surrogatepass")


def _names(value: object) -> str:
    return f"an object of {shown(', '.join(value))}" if isinstance(value, dict) else shown(value)


class EncodedPairs:
    """Pairs as ids, padded when they are asked for.

    Args:
        pairs: what was read.
        words: their vocabulary.
        length: tokens that a source with its end, and a target with its start or end, may have.

    Raises:
        HeadwayError: when a pair has more.

    >>> from headway.training.vocabulary import Bytes
    >>> pairs = Pairs([b"ab", b"c"], [b"d", b"ef"], Text(b"", "example"), 1)
    >>> inputs, targets = EncodedPairs(pairs, Delimited(Bytes()), length=9).examples(torch.tensor([0, 1]))
    >>> inputs["source"].tolist(), inputs["source_pos"].tolist()
    ([[97, 98, 257], [99, 257, 0]], [[0, 1, 2], [0, 1, -1]])
    >>> inputs["tokens"].tolist(), targets.tolist()
    ([[256, 100, 257], [256, 101, 102]], [[100, 257, -100], [101, 102, 257]])
    """

    def __init__(self, pairs: Pairs, words: Delimited, length: int) -> None:
        self.trained_on, self.held_out = len(pairs) - pairs.held_out, pairs.held_out
        self._sources = _Ragged(map(words.source, pairs.sources))
        self._targets = _Ragged(map(words.target, pairs.targets))
        for what, rows, more in (("source", self._sources, 0), ("target", self._targets, 1)):
            found, number = rows.lengths.max(0)
            if int(found) - more > length:
                raise HeadwayError(
                    f"expected at most length={length} tokens, start or end included, got a {what} of "
                    f"{int(found) - more} in line {int(number) + 1} of {pairs.text.name}: set a larger length"
                )

    def examples(self, index: Int64[Tensor, "batch"]) -> Example:
        """What a model is called with, by name, and its targets."""
        source, real = self._sources.padded(index)
        whole, counted = self._targets.padded(index)
        source_pos = torch.arange(source.shape[1]).where(real, -1)
        inputs = {"tokens": whole[:, :-1], "source": source, "source_pos": source_pos}
        return inputs, whole[:, 1:].masked_fill(~counted[:, 1:], IGNORED)


class _Ragged:
    """Sequences of different lengths in one tensor, which takes less memory than a tensor each."""

    def __init__(self, rows: Iterable[Tensor]) -> None:
        held = [compact(row) for row in rows]
        self.lengths = torch.tensor([len(row) for row in held])
        self._tokens, self._begin = torch.cat(held), self.lengths.cumsum(0) - self.lengths

    def padded(
        self, index: Int64[Tensor, "batch"]
    ) -> tuple[Int64[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
        """Some of them, filled up with zeros on the right, and which tokens are real."""
        at = torch.arange(int(self.lengths[index].max()))
        real = at < self.lengths[index][:, None]
        places = (self._begin[index][:, None] + at).where(real, 0)
        return self._tokens[places].long().where(real, 0), real


class PairBatches:
    """Random pairs of the training part, a pure function of (seed, step)."""

    def __init__(self, pairs: EncodedPairs, batch: int, seed: int = 0) -> None:
        self.pairs, self.batch, self.seed = pairs, batch, seed

    def __call__(self, step: int, /) -> Example:
        """Return inputs and targets of one step."""
        generator = torch.Generator().manual_seed(seed_for(self.seed, step, "pairs"))
        return self.pairs.examples(torch.randint(self.pairs.trained_on, (self.batch,), generator=generator))


class PairValidation:
    """Mean loss per target token, end included, over the held-out pairs or :data:`VALIDATED` of them, always the same.

    Returns (when called with a model):
        The mean cross-entropy in nats.
    """

    def __init__(self, pairs: EncodedPairs, batch: int) -> None:
        count = min(VALIDATED, pairs.held_out)
        self.pairs, self.batch = pairs, batch
        self.index = pairs.trained_on + torch.arange(count) * pairs.held_out // count

    def __call__(self, model: nn.Module, /) -> float:
        """Return the model's mean loss per token, in nats."""
        return mean_loss(self, model)

    @property
    def pieces(self) -> int:
        """Batches, which processes may share."""
        return -(-len(self.index) // self.batch)

    def piece(self, number: int, model: nn.Module, /) -> tuple[float, int]:
        """Sum of the loss over one batch, and the targets that count."""
        return summed_loss(model, *self.pairs.examples(self.index[number * self.batch : (number + 1) * self.batch]))
