"""Files that are whole or absent: durable writes, strict JSON, and a lock the kernel releases at death.

A write that is interrupted must never leave half a file under the name a reader trusts. So content goes to a new
name, is flushed to the disk (fsync), renamed over the trusted name in one step, and the folder is flushed so that the
rename itself survives a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from headway.shapes import HeadwayError


@contextlib.contextmanager
def explained(doing: str, advice: str = "") -> Iterator[None]:
    """Turn an operating-system error into one sentence that says what was being done and what to do.

    >>> try:
    ...     with explained("reading /nowhere"):
    ...         open("/nowhere")
    ... except HeadwayError as error:
    ...     print(error)
    could not finish reading /nowhere: No such file or directory
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = f"free some space and run again{', ' + advice if advice else ''}"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "choose a place you may read and write"
        raise HeadwayError(f"could not finish {doing}: {reason}{'; ' + advice if advice else ''}") from error


def temporary(path: Path) -> Path:
    """Return a fresh sibling name, ``NAME.tmp-PID-RANDOM``, that nobody else writes."""
    return path.with_name(f"{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def write_new(path: Path, data: bytes) -> None:
    """Write a new file and flush it to the disk; its mode follows the umask; an existing file is an error (OSError)."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_folder(path: Path) -> None:
    """Flush a folder's list of names, so that a rename inside it survives a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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


def write_atomic(path: Path, data: bytes, advice: str = "") -> None:
    """Write a file that appears whole or not at all, and is on the disk afterwards.

    Args:
        path: an existing file is replaced.
        data: all of it.
        advice: for the user, should that fail.
    """
    fresh = temporary(path)
    with explained(f"writing {path}", advice):
        try:
            write_new(fresh, data)
            os.replace(fresh, path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


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
