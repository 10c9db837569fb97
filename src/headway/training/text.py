"""Training text: a file, a folder, or the text that ships with Python, and its split for validation."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from headway.shapes import HeadwayError
from headway.training.content import Content, Joined, Part, opened, state_of
from headway.training.files import explained
from headway.training.ours import GENERATORS, own_results

# Folders that tools fill, not people. Hidden ones (.git, .hg, .venv) are skipped by their dot.
_TOOL_FOLDERS = frozenset({"CVS", "__pycache__", "node_modules"})
_SNIFF = 8192
MAX_TEXT = 2**27
"""Default maximum size in bytes of a text that is held in memory as a whole, as pairs are."""
MAX_FILES = 100_000
"""Maximum files in a folder: more than anybody's texts, fewer than a whole disk."""
IN_MEMORY = 2**22
"""Bytes up to which a text is held in memory; a larger one stays in its files."""


@dataclass(frozen=True)
class Text:
    """Training text as bytes, with its source.

    Args:
        data: the content, arbitrary bytes, in memory or read when they are needed.
        name: the path it was read from, or ``"built-in"``.
        files: number of files used.
        skipped: number of files of a folder that were skipped (binary, hidden, or not regular).
        results: folders and files skipped because headway wrote them.
        elsewhere: folders skipped because they are on another file system, e.g. /proc.
        column: the column of documents it consists of, see :mod:`headway.training.documents`; None for a text.
    """

    data: Content
    name: str
    files: int = 1
    skipped: int = 0
    results: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    column: str | None = None

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
    """Read a text into memory, as :func:`open_text` finds it.

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
    text = open_text(path, most=MAX_TEXT if most is None else most)
    return replace(text, data=bytes(text.data))


def open_text(path: Path | str | None = None, *, most: int | None = None) -> Text:
    """Find the text to train on; one above :data:`IN_MEMORY` stays in its files.

    A single file is read as bytes, binary or not: bytes are the default alphabet. A folder is read recursively in
    sorted order, its files joined by a newline; skipped are binary files (a NUL in the first 8 KiB), hidden files and
    folders, links to folders, other file systems, and everything headway itself wrote (see
    :mod:`headway.training.ours`).

    Args:
        path: a file, a folder, or None for the text of Python's own language reference (`pydoc_data.topics`).
        most: maximum bytes; None is any number.

    Returns:
        The text, with the number of files used and skipped.

    Raises:
        HeadwayError: when the path does not exist, cannot be read, holds no text, or too much.
    """
    if most is not None and most < 1:
        raise HeadwayError(f"expected a limit of at least 1 byte for the text, got {most}")
    if path is None:
        from pydoc_data.topics import topics

        return Text("\n".join(topics[name] for name in sorted(topics)).encode(), "built-in")
    found = find(Path(path))
    if found.folder:
        found = _readable(found)
    content = Joined(found.parts)
    if most is not None and len(content) > most:
        raise too_large(str(path), len(content), most)
    if not content.parts:
        raise _nothing(found)
    data = bytes(content) if len(content) <= IN_MEMORY else content
    return Text(data, str(path), len(content.parts), found.skipped, found.results, found.elsewhere)


def too_large(name: str, size: int, most: int) -> HeadwayError:
    """What to say of a text above a limit."""
    return HeadwayError(
        f"expected a text of at most {most:,} bytes, got {size:,} in {name}: give a smaller file or folder, or raise "
        f"the limit with --max-text (max_text in Python)"
    )


@dataclass(frozen=True)
class Found:
    """The files of a text.

    Args:
        path: where they were looked for.
        parts: the files, in order.
        folder: whether it is a folder; then the other fields say what was skipped, see :class:`Text`.
    """

    path: Path
    parts: tuple[Part, ...]
    folder: bool = False
    skipped: int = 0
    results: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()


def find(path: Path) -> Found:
    """Find the files of a text without opening them.

    Raises:
        HeadwayError: when there is nothing at the path, or nothing that can be read.
    """
    with explained(f"reading the text {path}"):
        kind = _mode(path)
    if kind is None:
        raise HeadwayError(f"expected a text file or a folder, got {path}, which does not exist: check the path")
    if stat.S_ISDIR(kind):
        return _walk(path)
    if not stat.S_ISREG(kind):
        raise HeadwayError(f"expected a text file or a folder, got {path}, which is neither: give a regular file")
    with explained(f"reading the text {path}"):
        return Found(path, (Part(path, state_of(path)),))


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _nothing(found: Found) -> HeadwayError:
    if not found.folder:
        return HeadwayError(f"expected text in {found.path}, got an empty file: give a file with content")
    return HeadwayError(
        f"expected text files in the folder {found.path}, got none ({found.skipped} binary or hidden files skipped"
        f"{', results of headway left out' if found.results else ''}): "
        f"give a folder with text, or one file, which is read as bytes whatever it holds"
    )


def _walk(root: Path) -> Found:
    parts: list[Part] = []
    skipped = seen = 0
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
                    f"expected at most {MAX_FILES:,} files in {root}, got more: give the folder that holds the texts, "
                    f"or write them as lines of a .jsonl"
                )
            with explained(f"reading the text {file}"):
                if name.startswith(".") or not file.is_file():
                    skipped += 1
                else:
                    parts.append(Part(file, state_of(file)))
    return Found(root, tuple(parts), True, skipped, tuple(results), tuple(elsewhere))


def _readable(found: Found) -> Found:
    """Without the binary files of a folder, the empty ones, and headway's own pages and pictures."""
    parts: list[Part] = []
    skipped, results = found.skipped, list(found.results)
    for part in found.parts:
        if not part.size:  # empty, or a virtual file of the kernel, which may never end
            continue
        with opened(part.path) as file:
            begin = file.read(_SNIFF)
        if b"\0" in begin:
            skipped += 1
        elif any(marker in begin for marker in GENERATORS):
            results.append(str(part.path))
        else:
            parts.append(part)
    return replace(found, parts=tuple(parts), skipped=skipped, results=tuple(results))


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

    train: Content
    validation: Content

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
