"""Files of runs: strict JSON, written whole or not at all, and a lock the kernel releases at death."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from headway.output import explained as explained
from headway.output import fsync_folder as fsync_folder
from headway.output import temporary as temporary
from headway.output import write_atomic as write_atomic
from headway.output import write_new as write_new
from headway.shapes import HeadwayError


def read_regular(path: Path) -> bytes:
    """Read a whole regular file; a link, pipe or device (which could lead elsewhere or never end) is an error.

    Raises:
        HeadwayError: when it cannot be read or is not a regular file.
    """
    with explained(f"reading {path}"):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise HeadwayError(f"expected a regular file at {path}, got something else: replace it by a plain file")
            return file.read()


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def parse_json(data: bytes, name: str) -> Any:
    """Parse strict JSON (no NaN, no Infinity).

    Args:
        data: UTF-8 text.
        name: what to call it in the error, usually its path.

    Raises:
        HeadwayError: when it is not JSON.

    >>> parse_json(b'{"steps": 3}', "settings.json")
    {'steps': 3}
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise HeadwayError(f"expected JSON in {name}, got content that does not parse: {error}") from error


def dump_json(value: Any) -> bytes:
    """Turn plain values into compact JSON that ends with a newline.

    Raises:
        HeadwayError: when a value is not plain (or is NaN or infinite, which JSON does not know).

    >>> dump_json({"loss": [2.5]})
    b'{"loss":[2.5]}\\n'
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise HeadwayError(f"expected plain JSON values (finite numbers, text, lists, dicts), got: {error}") from error


def read_json(path: Path | str) -> Any:
    """Read a JSON file; raises HeadwayError when it is missing, unreadable or not JSON."""
    return parse_json(read_regular(Path(path)), str(path))


def write_json_atomic(path: Path | str, value: Any) -> None:
    """Write plain values as JSON so that a reader sees the old file or the new one, never a part.

    Args:
        path: the file; its folder must exist.
        value: plain values: dicts with text keys, lists, text, finite numbers, booleans, None.

    Raises:
        HeadwayError: when a value is not plain, or the file cannot be written (the old one is then untouched).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json_atomic(f"{folder}/a.json", {"loss": 2.5})
    ...     read_json(f"{folder}/a.json")
    {'loss': 2.5}
    """
    write_atomic(Path(path), dump_json(value))


def make_folder(path: Path) -> None:
    """Create a folder and its parents; raises HeadwayError when that is impossible."""
    with explained(f"creating the folder {path}"):
        path.mkdir(parents=True, exist_ok=True)


class FolderLock:
    """Let one process at a time write in a folder.

    The lock is ``flock`` on the file ``.lock``: the kernel releases it when the process ends, however it ends, so there
    is never a stale one to remove by hand. The file itself stays; deleting it would let two processes hold two locks.

    Args:
        folder: an existing folder.

    Raises:
        HeadwayError: on entering, when another process holds the lock.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, FolderLock(folder):
    ...     pass
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._handle: int | None = None

    def __enter__(self) -> FolderLock:
        # Unix only, and not needed to read a run.
        import fcntl

        with explained(f"locking {self.folder}"):
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
                os.close(handle)
                raise HeadwayError(
                    f"expected to be the only writer in {self.folder}, but another process"
                    f"{f' (id {owner})' if owner.isdigit() else ''} is training there: "
                    f"wait for it, stop it, or choose another folder"
                ) from None
            except OSError:
                os.close(handle)
                raise
            self._handle = handle
            # A full disk must not keep a run from being locked: the id only makes the message better.
            with contextlib.suppress(OSError):
                os.ftruncate(handle, 0)
                os.pwrite(handle, str(os.getpid()).encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
