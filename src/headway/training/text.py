"""Text to train on: a file, a folder, or the text that comes with Python; and its division for honest validation."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from headway.shapes import HeadwayError
from headway.training.files import explained

# Folders that tools fill, not people. Hidden ones (.git, .hg, .venv) are skipped by their dot.
_TOOL_FOLDERS = frozenset({"CVS", "__pycache__", "node_modules"})
_SNIFF = 8192


@dataclass(frozen=True)
class Text:
    """Bytes to train on, and where they come from.

    Args:
        data: the content; any bytes are welcome.
        name: the path it was read from, or ``"built-in"``.
        files: how many files were used.
        skipped: how many files of a folder were left out (binary, hidden, or not regular).
    """

    data: bytes
    name: str
    files: int = 1
    skipped: int = 0

    def __str__(self) -> str:
        return f"{self.name}: {len(self.data):,} bytes from {self.files} files, {self.skipped} skipped"


def read_text(path: Path | str | None = None) -> Text:
    """Read the text to train on.

    A single file is taken as it is, binary or not: bytes are the default alphabet. A folder is read recursively in
    sorted order, its files joined by a newline; it leaves out binary files (a NUL in the first 8 KiB), hidden files and
    folders, links to folders, and the folders of headway's own runs.

    Args:
        path: a file, a folder, or None for the text of Python's own language reference (`pydoc_data.topics`).

    Returns:
        The text, with the number of files used and skipped.

    Raises:
        HeadwayError: when the path does not exist, cannot be read, or holds no text.

    >>> print(read_text().data[:46].decode().splitlines()[0])
    The "assert" statement
    """
    if path is None:
        from pydoc_data.topics import topics

        return Text("\n".join(topics[name] for name in sorted(topics)).encode(), "built-in")
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise HeadwayError(f"expected a text file or a folder, got {path}, which does not exist: check the path")
    with explained(f"reading the text {path}"):
        if not stat.S_ISREG(path.stat().st_mode):
            raise HeadwayError(f"expected a text file or a folder, got {path}, which is neither: give a regular file")
        data = path.read_bytes()
    if not data:
        raise HeadwayError(f"expected text in {path}, got an empty file: give a file with content")
    return Text(data, str(path))


def _read_folder(root: Path) -> Text:
    parts: list[bytes] = []
    skipped = 0

    def fail(error: OSError) -> None:
        raise error

    with explained(f"reading the texts in {root}"):
        for folder, folders, names in os.walk(root, onerror=fail):
            if "settings.json" in names and "checkpoints" in folders:
                # A run of our own: its content changes while it trains.
                folders.clear()
                continue
            # os.walk visits what is left here, in this order.
            folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in _TOOL_FOLDERS)
            for name in sorted(names):
                file = Path(folder, name)
                if name.startswith(".") or not file.is_file():
                    skipped += 1
                    continue
                data = file.read_bytes()
                if b"\0" in data[:_SNIFF]:
                    skipped += 1
                elif data:
                    parts.append(data)
    if not parts:
        raise HeadwayError(
            f"expected text files in the folder {root}, got none ({skipped} binary or hidden files skipped): "
            f"give a folder with text, or one file, which is read as bytes whatever it holds"
        )
    return Text(b"\n".join(parts), str(root), len(parts), skipped)


@dataclass(frozen=True)
class Split:
    """Two contiguous parts of a text that never overlap: one to train on, the end of it to validate on.

    Args:
        train: the beginning.
        validation: the end. Its windows never reach back into ``train``.
    """

    train: bytes
    validation: bytes

    @classmethod
    def of(cls, text: Text, *, length: int, fraction: float = 0.1) -> Split:
        """Divide a text, keeping at least one window of ``length + 1`` bytes in each part.

        Args:
            text: what to divide.
            length: tokens in a training window; a window needs one byte more, the last target.
            fraction: share of the text to validate on, in (0, 1). A short text gives more: one whole window.

        Raises:
            HeadwayError: when the text is too short for one window in each part.

        >>> split = Split.of(Text(b"0123456789" * 10, "digits"), length=4)
        >>> len(split.train), len(split.validation)
        (90, 10)
        """
        if not 0 < fraction < 1:
            raise HeadwayError(f"expected a validation fraction between 0 and 1, got {fraction}: 0.1 is usual")
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
