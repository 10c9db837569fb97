"""All vocabularies by name: which one is wanted, made from a text, or rebuilt from a run's files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.schema import Anything, Many, Named, Number, Record, Whole, Words, check
from headway.shapes import HeadwayError, brief
from headway.training.files import write_atomic
from headway.training.tokenizer_json import TOKENIZER, TokenizerJson
from headway.training.vocabulary import Bpe, Bytes, Delimited, Extended, Masked, Vocabulary, beginning

_BPE = Record(
    {
        "kind": Words(("bpe",)),
        "tokens": Many(Words()),
        "merges": Many(Many(Words())),
        "bytes_per_token": Number(0),
    },
    optional={"longest": Whole(16, 2**16)},
)
EXTENDED: dict[str, type[Delimited | Masked]] = {one.kind: one for one in (Delimited, Masked)}
"""Vocabularies made of another one."""
_TOKENIZER = Record({"kind": Words(("tokenizer",)), "sha256": Words(), "bytes_per_token": Number(0)})


@dataclass(frozen=True)
class Wanted:
    """The vocabulary that was asked for.

    Args:
        kind: "bytes", "bpe" or "tokenizer".
        size: ids of a BPE vocabulary.
        tokenizer: the vocabulary itself, if it is a file's.

    >>> Wanted.of("bytes").make(b"to be or not to be").size
    256
    """

    kind: str
    size: int = 4096
    tokenizer: TokenizerJson | None = None

    @classmethod
    def of(cls, vocabulary: str, size: int = 4096) -> Wanted:
        """From "bytes", "bpe", or the path of a ``tokenizer.json``; a file is read at once.

        Raises:
            HeadwayError: when it is none of them, or the file is no tokenizer that can be used.
        """
        if vocabulary in ("bytes", "bpe"):
            return cls(vocabulary, size)
        if not os.path.exists(vocabulary):  # Path.exists raises on names that are too long
            raise HeadwayError(
                f"expected vocabulary to be bytes, bpe or the path of a tokenizer.json, got {brief(vocabulary)}, "
                f"which is no file"
            )
        return cls("tokenizer", tokenizer=TokenizerJson.read(vocabulary))

    def plain(self) -> dict[str, Any]:
        """Plain values that are the same when the same is asked for again; a file may have moved."""
        if self.tokenizer is not None:
            return {"kind": self.kind, "sha256": self.tokenizer.seal}
        return {"kind": self.kind, **({"size": self.size} if self.kind == "bpe" else {})}

    def make(self, data: bytes | Iterable[bytes]) -> Vocabulary:
        """The vocabulary, made from the training part of a text, whole or in chunks, or read from its file.

        Raises:
            HeadwayError: when a tokenizer does not give the text back, or a BPE vocabulary cannot have this size.
        """
        if self.tokenizer is None:
            return Bytes() if self.kind == "bytes" else Bpe.train(data, size=self.size)
        head = beginning((data,) if isinstance(data, bytes) else data)
        sample = head.decode("utf-8", "ignore").encode()  # it may end within a character
        self.tokenizer.bytes_per_token = len(sample) / max(len(self.tokenizer.encode(sample)), 1) or 1.0
        return self.tokenizer


def keep(vocabulary: Vocabulary, folder: Path) -> None:
    """Write into a run's folder what its `to_json` leaves out: the tokenizer's file.

    Raises:
        HeadwayError: when it cannot be written.
    """
    words = vocabulary.words if isinstance(vocabulary, Extended) else vocabulary
    if isinstance(words, TokenizerJson):
        write_atomic(folder / TOKENIZER, words.data)


def vocabulary_from_json(values: Any, folder: Path | None = None) -> Vocabulary:
    """Rebuild a vocabulary from its `to_json`; every value is checked, nothing is executed.

    Args:
        values: what `to_json` returned.
        folder: where :func:`keep` wrote.

    Raises:
        HeadwayError: when the values are not those of a vocabulary.

    >>> vocabulary_from_json({"kind": "bytes"}).size
    256
    """
    if values == {"kind": "bytes"}:
        return Bytes()
    kind = values.get("kind") if isinstance(values, dict) else None
    if kind in EXTENDED:
        check(values, Record({"kind": Words(), "words": Named(Anything())}), "the vocabulary")
        if values["words"].get("kind") not in EXTENDED:
            return EXTENDED[kind](vocabulary_from_json(values["words"], folder))
    check(values, _TOKENIZER if kind == "tokenizer" else _BPE, "the vocabulary")
    mean = float(values["bytes_per_token"])
    if kind == "tokenizer":
        return _kept(values["sha256"], mean, folder)
    merges = values["merges"]
    if mean <= 0 or any(len(pair) != 2 for pair in merges):
        raise HeadwayError("expected BPE merges of two tokens each and a mean above 0, got others: it is damaged")
    return Bpe(values["tokens"], [(left, right) for left, right in merges], mean, values.get("longest"))


def _kept(seal: str, mean: float, folder: Path | None) -> TokenizerJson:
    if folder is None:
        raise HeadwayError(f"expected the folder with the vocabulary's {TOKENIZER}, got none")
    words = TokenizerJson.read(folder / TOKENIZER)
    if words.seal != seal:
        raise HeadwayError(
            f"expected {folder / TOKENIZER} as the run was trained with it, got another file: put the old one back"
        )
    words.bytes_per_token = mean
    return words
