"""A text tokenised once: its ids in one file of the cache, from which a training reads windows.

texts/KEY/tokens        the ids, uint8, uint16 or uint32 as the vocabulary's size needs, little-endian
texts/KEY/corpus.json   their type, number and SHA-256; sealed, and written last: without it there is no corpus
texts/KEY/.lock         held while a process writes here

KEY is a hash of the text's content, of the vocabulary, and of where validation begins. So nothing stale is read, and
the folder may be deleted at any time. Whoever comes second waits for the first; a killed writer leaves no corpus.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from headway.schema import Many, Record, Whole, Words
from headway.shapes import HeadwayError
from headway.training.content import CHUNK, Part, Tell, state_of
from headway.training.files import (
    explained,
    fsync_folder,
    read_json,
    temporary,
    write_json_atomic,
)
from headway.training.known import folder_of, keep, known, writing
from headway.training.vocabulary import Bytes, Vocabulary

_FORMAT = 1
_RECORD = Record(
    {
        "format": Whole(_FORMAT, _FORMAT),
        "dtype": Words(("uint8", "uint16", "uint32")),
        "ends": Many(Whole()),
        "hash": Words(),
    }
)
_ROOM = "set HEADWAY_CACHE to a folder with more room"


class Stored:
    """Token ids in a file, of which only what is asked for is read into memory.

    Args:
        path: the file, which may be deleted while it is open.
        dtype: type of an id, e.g. "uint16".
        begin: first token.
        end: the token after the last one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "tokens").write_bytes(bytes(range(100)))
    ...     tokens = Stored(Path(folder, "tokens"), "uint8", 10, 100)
    >>> len(tokens), tokens[torch.tensor([[0, 89]])].tolist(), tokens[:3].tolist()
    (90, [[10, 99]], [10, 11, 12])
    """

    def __init__(self, path: Path, dtype: str, begin: int, end: int) -> None:
        self.path, self.dtype, self.begin, self.end = path, np.dtype(dtype).newbyteorder("<"), begin, end
        with explained(f"reading {path}"):
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def __reduce__(self) -> tuple[Any, ...]:  # another process opens the file itself
        return Stored, (self.path, self.dtype.str, self.begin, self.end)

    def __len__(self) -> int:
        return self.end - self.begin

    def __getitem__(self, at: Int64[Tensor, "*some"] | slice) -> Int64[Tensor, "*some"]:
        """The ids at some indices, each at least 0."""
        # Pages that were read count as memory of the process until they are unmapped, so each call maps the file anew.
        with mmap.mmap(self._file, 0, access=mmap.ACCESS_READ) as pages:
            ids = np.frombuffer(pages, self.dtype, len(self), self.begin * self.dtype.itemsize)
            found = ids[at if isinstance(at, slice) else at.numpy()].astype(np.int64)
            del ids  # pages are unmapped when nothing refers to them
        return torch.from_numpy(found)


Tokens = Tensor | Stored
"""Token ids (N,), in memory or in a file."""


def digest(*tokens: Tokens) -> str:
    """A hash of ids, the same wherever and however they are stored."""

    def find() -> dict[str, Any]:
        found = hashlib.blake2b(digest_size=8)
        for some in tokens:
            for at in range(0, len(some), CHUNK):
                found.update(some[at : at + CHUNK].long().numpy().data)
        return {"blake2b": found.hexdigest()}

    files = [Part(some.path, state_of(some.path)) for some in tokens if isinstance(some, Stored) and some.path.exists()]
    ranges = [(some.begin, some.end) for some in tokens if isinstance(some, Stored)]
    whole = known("digest", files, find, *ranges) if len(files) == len(tokens) else find()
    return str(whole["blake2b"])


@dataclass(frozen=True)
class Corpus:
    """A tokenised text.

    Args:
        path: the file of its ids.
        dtype: their type.
        ends: the token after the last one of each of its parts.
    """

    path: Path
    dtype: str
    ends: tuple[int, ...]

    def part(self, begin: int, end: int) -> Stored:
        """Some of its tokens."""
        return Stored(self.path, self.dtype, begin, end)


def corpus(
    sha256: str, parts: Sequence[Iterable[bytes]], words: Vocabulary, *, cut: int | None, name: str, tell: Tell | None
) -> Corpus:
    """The tokens of a text, from the cache, or made now.

    Args:
        sha256: of the text.
        parts: the text in chunks; each part is tokenised on its own.
        words: the vocabulary.
        cut: the byte at which the second part begins; None where the division does not matter.
        name: what to call the text when ``tell`` hears that another process is waited for.
        tell: is called with the progress.

    Raises:
        HeadwayError: when the text cannot be read or tokenised, or the cache cannot be written.
    """
    identity = {"format": _FORMAT, "text": sha256, "vocabulary": identity_of(words), "cut": cut}
    folder = folder_of(identity)
    if (found := _read(folder)) is not None:
        return found
    with writing(folder, name, tell):
        return _read(folder) or _write(folder, parts, words)


def identity_of(words: Vocabulary) -> dict[str, Any]:
    """What decides how a vocabulary divides a text; another version of the library may do it otherwise."""
    values = {name: value for name, value in words.to_json().items() if name != "bytes_per_token"}
    if isinstance(words, Bytes):
        return values
    import tokenizers

    return {**values, "tokenizers": tokenizers.__version__}


def _read(folder: Path) -> Corpus | None:
    """The corpus in a folder, or None where there is none, or a damaged one."""
    path = folder / "tokens"
    try:
        record = read_json(folder / "corpus.json", _RECORD)
        state = state_of(path)
    except (HeadwayError, OSError):
        return None
    dtype, ends = record["dtype"], tuple(record["ends"])
    if not ends or state[2] != ends[-1] * np.dtype(dtype).itemsize:
        return None
    found = known("tokens", [Part(path, state)], lambda: {"sha256": _sha256(path)})
    return Corpus(path, dtype, ends) if found["sha256"] == record["hash"] else None


def _sha256(path: Path) -> str:
    with explained(f"reading {path}"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, parts: Sequence[Iterable[bytes]], words: Vocabulary) -> Corpus:
    dtype = "uint8" if words.size <= 2**8 else "uint16" if words.size <= 2**16 else "uint32"
    path, hashed, ends = folder / "tokens", hashlib.sha256(), [0]

    def pieces() -> Iterator[bytes]:
        for part in parts:
            ends.append(ends[-1])
            for ids in words.encode_stream(part):
                piece = ids.numpy().astype(np.dtype(dtype).newbyteorder("<")).tobytes()
                ends[-1] += len(ids)
                hashed.update(piece)
                yield piece

    with explained(f"writing {path}", _ROOM):
        fresh = temporary(path)
        try:
            with fresh.open("xb") as file:
                for piece in pieces():
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        fsync_folder(folder)
    record = {"format": _FORMAT, "dtype": dtype, "ends": ends[1:], "hash": hashed.hexdigest()}
    keep("tokens", [Part(path, state_of(path))], {"sha256": record["hash"]})
    write_json_atomic(folder / "corpus.json", record)
    return Corpus(path, dtype, tuple(ends[1:]))
