"""Where training text comes from, and what becomes of it: its hash, its vocabulary, its tokens, each made once.

A text of at most :data:`headway.training.text.IN_MEMORY` bytes is held in memory. Of a larger one, all that takes long
is kept in the cache: see :mod:`headway.training.corpus` and :mod:`headway.training.known`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from headway.schema import Anything, Named
from headway.shapes import HeadwayError
from headway.training import text as texts
from headway.training.content import Content, Joined, Part, Tell, chunks_of, state_of, told
from headway.training.corpus import Tokens, corpus
from headway.training.documents import COLUMN, Documents, find_documents
from headway.training.files import read_json, write_json_atomic
from headway.training.known import folder_of, known, writing
from headway.training.text import MAX_TEXT, Split, Text, open_text
from headway.training.vocabularies import Wanted, vocabulary_from_json
from headway.training.vocabulary import LONGEST, Bytes, Vocabulary, library

LEARNED = MAX_TEXT
"""Bytes from which a vocabulary is learned at most; of a larger text, pieces spread evenly through it."""
_PIECE = 2**20
_VOCABULARY = "vocabulary.json"


@dataclass(frozen=True)
class Source:
    """A text, its division, and its weight among several.

    Args:
        text: what was found.
        split: what is trained on and what is held out.
        weight: share of the windows that come from it; None is its share of the tokens.
    """

    text: Text
    split: Split
    weight: float | None = None

    @property
    def in_memory(self) -> bool:
        """Whether it is small."""
        return isinstance(self.text.data, bytes)


def open_source(
    path: Path | str | None, *, column: str | None = COLUMN, most: int | None = None, tell: Tell | None = None
) -> Text:
    """Find a text, or documents joined to one (see :mod:`headway.training.documents`).

    Args:
        path: a file, a folder, or None for the built-in text.
        column: the column of documents; None reads files as they are.
        most: maximum bytes; None is any number.
        tell: is called with the progress.

    Raises:
        HeadwayError: when there is none, it cannot be read, or is too large.
    """
    if path is None or column is None:
        return open_text(path, most=most)
    documents = find_documents(Path(path), column)
    return open_text(path, most=most) if not isinstance(documents, Documents) else _joined(documents, most, tell)


def _joined(documents: Documents, most: int | None, tell: Tell | None) -> Text:
    begin, chunks = b"", documents.chunks()
    for chunk in chunks:
        begin += chunk
        if len(begin) > texts.IN_MEMORY:
            break
    if not begin:
        raise HeadwayError(f"expected documents in {documents.name}, got none: give a file with content")
    data: Content = begin if len(begin) <= texts.IN_MEMORY else _flat(documents, tell)
    if most is not None and len(data) > most:
        raise texts.too_large(str(documents.name), len(data), most)
    found = documents.found
    return Text(data, documents.name, len(found.parts), found.skipped, found.results, found.elsewhere, documents.column)


def _flat(documents: Documents, tell: Tell | None) -> Joined:
    """Documents in one file of the cache: as the tokens of a text of bytes, which they are."""

    def find() -> dict[str, Any]:
        return _hashed(documents.chunks(tell))

    sha256: str = known("documents", documents.found.parts, find, documents.kind, documents.column)["sha256"]
    chunks = documents.chunks(tell, "copying")
    flat = corpus(sha256, [chunks], Bytes(), cut=None, name=documents.name, tell=tell)
    joined = Joined([Part(flat.path, state_of(flat.path))])
    joined.sha256 = sha256
    return joined


def _hashed(chunks: Iterable[bytes]) -> dict[str, Any]:
    found = hashlib.sha256()
    for chunk in chunks:
        found.update(chunk)
    return {"sha256": found.hexdigest()}


def sha256_of(text: Text, tell: Tell | None = None) -> str:
    """SHA-256 of a text; of a large one as it was found before, if its files have not changed."""
    data = text.data
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()

    def find() -> dict[str, Any]:
        return _hashed(told(data.chunks(), tell, "reading", text.name, len(data)))

    data.sha256 = data.sha256 or known("sha256", data.parts, find, data.begin, data.end)["sha256"]
    return data.sha256


def tokenised(source: Source, words: Vocabulary, tell: Tell | None = None) -> tuple[Tokens, Tokens]:
    """The tokens to train on and those held out.

    Raises:
        HeadwayError: when the text cannot be read or tokenised, or the cache cannot be written.
    """
    train, held_out = source.split.train, source.split.validation
    if isinstance(train, bytes) and isinstance(held_out, bytes):
        return words.encode(train), words.encode(held_out)
    cut, name, size = len(train), source.text.name, len(source.text.data)
    parts = [
        told(chunks_of(part), tell, "tokenising", name, size, before) for part, before in ((train, 0), (held_out, cut))
    ]
    sha256 = sha256_of(source.text, tell)
    if isinstance(words, Bytes):  # where it is divided changes no token
        whole = corpus(sha256, [chain(*parts)], words, cut=None, name=name, tell=tell)
        return whole.part(0, cut), whole.part(cut, size)
    divided = corpus(sha256, parts, words, cut=cut, name=name, tell=tell)
    return divided.part(0, divided.ends[0]), divided.part(*divided.ends)


def learned(sources: Sequence[Source], wanted: Wanted, tell: Tell | None = None) -> Vocabulary:
    """The vocabulary that is wanted; what is learned from large texts is kept in the cache.

    From several texts it sees as much of each as its weight says, of all at most :data:`LEARNED` bytes.

    Raises:
        HeadwayError: as :meth:`headway.training.vocabularies.Wanted.make`; when the cache cannot be written.
    """
    trained = [source.split.train for source in sources]
    if len(trained) == 1 and isinstance(trained[0], bytes):
        return wanted.make(trained[0])
    weights = [source.weight or len(source.split.train) for source in sources]
    shares = [int(LEARNED * weight / sum(weights)) for weight in weights]
    seen = [_spread(content, share) for content, share in zip(trained, shares, strict=True)]
    pieces = chain.from_iterable(
        chain([b"\n"] if number else [], *map(chunks_of, one)) for number, one in enumerate(seen)
    )
    chunks = told(pieces, tell, "learning", wanted.kind, sum(len(piece) for one in seen for piece in one))
    if wanted.kind != "bpe" or all(source.in_memory for source in sources):
        return wanted.make(chunks)
    about = [
        [sha256_of(source.text, tell), len(source.split.train), share]
        for source, share in zip(sources, shares, strict=True)
    ]
    identity = {"format": 1, **wanted.plain(), "longest": LONGEST, "from": about, "tokenizers": library().__version__}
    folder = folder_of(identity)
    with writing(folder, wanted.kind, tell):
        with contextlib.suppress(HeadwayError):  # not there yet, or damaged
            return vocabulary_from_json(read_json(folder / _VOCABULARY, Named(Anything())))
        words = wanted.make(chunks)
        write_json_atomic(folder / _VOCABULARY, words.to_json())
    return words


def _spread(content: Content, most: int) -> list[Content]:
    """A content, or pieces spread evenly through it that have about so many bytes."""
    if len(content) <= most:
        return [content]
    count = max(most // _PIECE, 1)
    size = min(_PIECE, most)
    return [
        content[at : at + size]
        for at in (number * (len(content) - size) // max(count - 1, 1) for number in range(count))
    ]
