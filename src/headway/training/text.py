"""Training text: a file, a folder, or the text that ships with Python, and its split for validation."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from headway.shapes import HeadwayError
from headway.training.files import explained
from headway.training.ours import GENERATORS, own_results

# Folders that tools fill, not people. Hidden ones (.git, .hg, .venv) are skipped by their dot.
_TOOL_FOLDERS = frozenset({"CVS", "__pycache__", "node_modules"})
_SNIFF = 8192
MAX_TEXT = 2**27
"""Default maximum size of a text in bytes: training on more takes several GB of memory."""
MAX_FILES = 100_000
"""Maximum files in a folder: more than anybody's texts, fewer than a whole disk."""


@dataclass(frozen=True)
class Text:
    """Training text as bytes, with its source.

    Args:
        data: the content, arbitrary bytes.
        name: the path it was read from, or ``"built-in"``.
        files: number of files used.
        skipped: number of files of a folder that were skipped (binary, hidden, or not regular).
        results: folders and files skipped because headway wrote them.
        elsewhere: folders skipped because they are on another file system, e.g. /proc.
    """

    data: bytes
    name: str
    files: int = 1
    skipped: int = 0
    results: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for each kind of skipped content."""
        told = (
            (self.results, "results of headway"),
            (self.elsewhere, "on another file system; give that folder itself to read it"),
        )
        return tuple(
            f"left out of the text: {', '.join(names[:3])}{f' and {len(names) - 3} more' if names[3:] else ''} ({why})"
            for names, why in told
            if names
        )

    def __str__(self) -> str:
        return f"{self.name}: {len(self.data):,} bytes from {self.files} files, {self.skipped} skipped"


def read_text(path: Path | str | None = None, *, most: int | None = None) -> Text:
    """Read the text to train on.

    A single file is read as bytes, binary or not: bytes are the default alphabet. A folder is read recursively in
    sorted order, its files joined by a newline; skipped are binary files (a NUL in the first 8 KiB), hidden files and
    folders, links to folders, other file systems, and everything headway itself wrote (see
    :mod:`headway.training.ours`).

    Args:
        path: a file, a folder, or None for the text of Python's own language reference (`pydoc_data.topics`).
        most: maximum bytes; None is :data:`MAX_TEXT`. Sizes are checked before anything is read.

    Returns:
        The text, with the number of files used and skipped.

    Raises:
        HeadwayError: when the path does not exist, cannot be read, holds no text, or too much.

    >>> print(read_text().data[:46].decode().splitlines()[0])
    The "assert" statement
    """
    if path is None:
        from pydoc_data.topics import topics

        return Text("\n".join(topics[name] for name in sorted(topics)).encode(), "built-in")
    most = MAX_TEXT if most is None else most
    if most < 1:
        raise HeadwayError(f"expected a limit of at least 1 byte for the text, got {most}")
    path = Path(path)
    with explained(f"reading the text {path}"):
        kind = _mode(path)
    if kind is None:
        raise HeadwayError(f"expected a text file or a folder, got {path}, which does not exist: check the path")
    if stat.S_ISDIR(kind):
        return _read_folder(path, most)
    if not stat.S_ISREG(kind):
        raise HeadwayError(f"expected a text file or a folder, got {path}, which is neither: give a regular file")
    with explained(f"reading the text {path}"), _opened(path) as (file, size):
        data = b"" if size > most else file.read(most + 1)
    if max(size, len(data)) > most:
        raise _too_large(path, most)
    if not data:
        raise HeadwayError(f"expected text in {path}, got an empty file: give a file with content")
    return Text(data, str(path))


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A file and its size; a file replaced by a pipe in the meantime does not block."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        yield file, os.fstat(file.fileno()).st_size


def _too_large(path: Path, most: int) -> HeadwayError:
    return HeadwayError(
        f"expected a text of at most {most:,} bytes, got more in {path}: give a smaller file or folder, or raise the "
        f"limit with --max-text (max_text in Python); memory is needed for several times the text"
    )


def _read_folder(root: Path, most: int) -> Text:
    parts: list[bytes] = []
    skipped = seen = 0
    room = most
    results: list[str] = []
    elsewhere: list[str] = []

    def fail(error: OSError) -> None:
        raise HeadwayError(
            f"could not finish reading the texts in {root}: {error.strerror} ({error.filename}); "
            f"choose a place you may read and write, or move that folder away"
        ) from error

    device = root.stat().st_dev
    for name, folders, names in os.walk(root, onerror=fail):
        folder = Path(name)
        if own := own_results(folder, [*folders, *names]):
            results.append(str(folder))
        # os.walk visits the remaining entries, in this order.
        inside = sorted(n for n in folders if not n.startswith(".") and n not in _TOOL_FOLDERS and n not in own)
        folders[:] = [n for n in inside if _on(device, folder / n)]
        elsewhere += [str(folder / n) for n in inside if n not in folders and not (folder / n).is_symlink()]
        for name in sorted(set(names) - own):
            file = folder / name
            seen += 1
            if seen > MAX_FILES:
                raise HeadwayError(
                    f"expected at most {MAX_FILES:,} files in {root}, got more: give the folder that holds the texts"
                )
            with explained(f"reading the text {file}"):
                if name.startswith(".") or not file.is_file():
                    skipped += 1
                    continue
                with _opened(file) as (opened, size):
                    if not size:  # empty, or a virtual file of the kernel, which may never end
                        continue
                    begin = opened.read(min(_SNIFF, room + 1))
                    if b"\0" in begin:
                        skipped += 1
                        continue
                    if any(marker in begin for marker in GENERATORS):
                        results.append(str(file))
                        continue
                    if size > room:
                        raise _too_large(root, most)
                    data = begin + opened.read(room + 1 - len(begin))
            room -= len(data) + 1
            if room < -1:
                raise _too_large(root, most)
            parts.append(data)
    if not parts:
        raise HeadwayError(
            f"expected text files in the folder {root}, got none ({skipped} binary or hidden files skipped"
            f"{', results of headway left out' if results else ''}): "
            f"give a folder with text, or one file, which is read as bytes whatever it holds"
        )
    return Text(b"\n".join(parts), str(root), len(parts), skipped, tuple(results), tuple(elsewhere))


def _on(device: int, folder: Path) -> bool:
    try:
        return folder.lstat().st_dev == device
    except OSError:
        return True  # os.walk says why it cannot be read


@dataclass(frozen=True)
class Split:
    """Two contiguous parts of a text that never overlap: one to train on, the end of it to validate on.

    Args:
        train: the first part.
        validation: the last part. Its windows never reach back into ``train``.
    """

    train: bytes
    validation: bytes

    @classmethod
    def of(cls, text: Text, *, length: int, fraction: float = 0.1) -> Split:
        """Divide a text, keeping at least one window of ``length + 1`` bytes in each part.

        Args:
            text: the text to divide.
            length: tokens in a training window; a window needs one byte more, the last target.
            fraction: share of the text to validate on, in (0, 1). A short text gives more: one whole window.

        Raises:
            HeadwayError: when the text is too short for one window in each part.

        >>> split = Split.of(Text(b"0123456789" * 10, "digits"), length=4)
        >>> len(split.train), len(split.validation)
        (90, 10)
        """
        if not 0 < fraction < 1:
            raise HeadwayError(f"expected a validation fraction between 0 and 1, got {fraction}: the default is 0.1")
        data, window = text.data, length + 1
        if len(data) < 2 * window:
            raise HeadwayError(
                f"expected a text of at least {2 * window} bytes (two windows of length {length} and a target), "
                f"got {len(data)} bytes from {text.name}: give more text or a shorter length"
            )
        cut = len(data) - max(window, int(len(data) * fraction))
        # Do not cut a UTF-8 character in two: step back over its continuation bytes, at most three.
        for back in range(4):
            if cut - back >= window and data[cut - back] & 0xC0 != 0x80:
                cut -= back
                break
        return cls(data[:cut], data[cut:])
