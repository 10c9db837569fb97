"""Bytes of files that are read when they are needed, a few MB at a time, so that a text of any size takes no memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, overload

from headway.shapes import HeadwayError
from headway.training.files import explained

CHUNK = 2**22
"""Bytes that are read at once."""
State = tuple[int, int, int, int, int]
"""Device, inode, size, and the times of the last changes of a file's content and of its entry, in ns."""


def state_of(handle: int | Path) -> State:
    """What changes when a file does, of an open file or of a path."""
    found = os.stat(handle)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file to read from; one that was replaced by a pipe in the meantime does not block."""
    with (
        explained(f"reading the text {path}"),
        os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file,
    ):
        yield file


@dataclass(frozen=True)
class Part:
    """A file of a text, in the state in which it was found."""

    path: Path
    state: State

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.state[2]

    @contextlib.contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file to read from.

        Raises:
            HeadwayError: when it cannot be read, or was changed since it was found.
        """
        with opened(self.path) as file:
            if state_of(file.fileno()) != self.state:
                raise HeadwayError(
                    f"expected {self.path} to stay as it is while it is read, but it was changed: "
                    f"repeat the command when it is complete, or give a copy of it"
                )
            yield file


def signature(parts: Iterable[Part], *more: object) -> str:
    """What changes when one of the files does, or their order; with whatever else the content depends on."""
    told = repr([(str(part.path.absolute()), part.state) for part in parts]) + repr(more)
    return hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()


class Joined:
    """The bytes of files, joined by newlines, or a range of them; nothing is read before it is needed.

    Args:
        parts: the files; those without content are left out.
        begin: first byte.
        end: the byte after the last one; None is the end of the last file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in "ab":
    ...         _ = Path(folder, name).write_bytes(name.encode() * 3)
    ...     joined = Joined([Part(Path(folder, name), state_of(Path(folder, name))) for name in "ab"])
    ...     len(joined), joined[3], bytes(joined[2:5])
    (7, 10, b'a\\nb')
    """

    def __init__(self, parts: Iterable[Part], begin: int = 0, end: int | None = None) -> None:
        self.parts = tuple(part for part in parts if part.size)
        self._starts = list(accumulate((part.size + 1 for part in self.parts), initial=0))
        whole = max(self._starts[-1] - 1, 0)
        self.begin, self.end = begin, whole if end is None else end
        self.sha256: str | None = None
        """Of the content, once it was found."""

    def __len__(self) -> int:
        return self.end - self.begin

    @overload
    def __getitem__(self, at: int) -> int: ...

    @overload
    def __getitem__(self, at: slice) -> Joined: ...

    def __getitem__(self, at: int | slice) -> int | Joined:
        if isinstance(at, slice):
            begin, end, _ = at.indices(len(self))
            return Joined(self.parts, self.begin + begin, self.begin + max(begin, end))
        at = range(len(self))[at]
        return bytes(self[at : at + 1])[0]

    def __bytes__(self) -> bytes:
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """The content, about :data:`CHUNK` bytes at a time.

        Raises:
            HeadwayError: when a file cannot be read, or was changed since it was found.
        """
        return gathered(self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        first = max(bisect_right(self._starts, self.begin) - 1, 0)
        for part, start in zip(self.parts[first:], self._starts[first:], strict=False):
            if start > self.end:
                return
            if self.begin < start:
                yield b"\n"  # before every file but the first
            at, end = max(self.begin - start, 0), min(self.end - start, part.size)
            if at < end:
                with part.opened() as file:
                    file.seek(at)
                    while at < end:
                        piece = file.read(min(CHUNK, end - at))
                        if not piece:
                            raise HeadwayError(
                                f"expected {part.size:,} bytes in {part.path}, got {at:,}: it was cut while it was read"
                            )
                        yield piece
                        at += len(piece)


Content = bytes | Joined
"""The bytes of a text: in memory, or read when they are needed."""


def chunks_of(content: Content) -> Iterable[bytes]:
    """A content a chunk at a time; one in memory is one chunk."""
    return (content,) if isinstance(content, bytes) else content.chunks()


def gathered(pieces: Iterable[bytes], size: int = CHUNK) -> Iterator[bytes]:
    """Small pieces joined to chunks of at least this size; the last one may be smaller."""
    held: list[bytes] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count >= size:
            yield b"".join(held)
            held, count = [], 0
    if held:
        yield b"".join(held)


@dataclass(frozen=True)
class Reading:
    """How far the preparation of a text is.

    Args:
        what: "reading", "learning" a vocabulary, "tokenising", or "waiting" for another process that does.
        name: the text.
        done: bytes done.
        total: bytes in all; None where they are not known.
    """

    what: str
    name: str
    done: int
    total: int | None


Tell = Callable[[Reading], None]
"""Is called with the progress."""


def told(
    chunks: Iterable[bytes], tell: Tell | None, what: str, name: str, total: int | None, done: int = 0
) -> Iterator[bytes]:
    """The same chunks; ``tell`` hears of each, which come after so many bytes."""
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        if tell is not None:
            tell(Reading(what, name, done, total))
