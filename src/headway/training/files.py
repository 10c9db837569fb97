"""Files of runs: strict JSON with a seal, written whole or not at all, and a lock the kernel releases at death.

A JSON file carries its own seal: ``"sha256"`` comes first in it and is the SHA-256 of the file's bytes with 64 zeros in
its place. A list of checksums beside the files could not be replaced in the same step as they are; a kill between the
two would leave whole files that look damaged. What must not change after it was written (a run's settings) is named by
its seal in every checkpoint, so that the checkpoint's manifest covers it too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from headway.output import explained as explained
from headway.output import fsync_folder as fsync_folder
from headway.output import temporary as temporary
from headway.output import write_atomic as write_atomic
from headway.output import write_new as write_new
from headway.schema import Schema, check
from headway.shapes import HeadwayError
from headway.strict_json import dump_json as dump_json
from headway.strict_json import parse_json as parse_json

MOST = 96 * 2**20
"""Bytes of a JSON file: the history of a million steps fits, and parsing takes less than 2 GB."""
SEAL = "sha256"
_BLANK = b"0" * 64
_SEALED = b'{"sha256":"'
_LEFTOVER = re.compile(r".+\.tmp-\d+-[0-9a-f]+|\..+\.part")


def clean_leftovers(folder: Path) -> None:
    """Remove the files that killed writers left half-written in a folder; only while holding its lock."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if is_leftover(path):
                path.unlink()


def is_leftover(path: Path) -> bool:
    """Whether a killed writer left it half-written."""
    return _LEFTOVER.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()


def set_aside(path: Path) -> Path:
    """Rename what is damaged, for whoever wants to look into it; returns the new name. Raises OSError."""
    aside = temporary(path)
    aside = aside.with_name(aside.name.replace(".tmp-", ".damaged-"))
    os.rename(path, aside)
    return aside


def read_regular(path: Path, most: int | None = None) -> bytes:
    """Read a whole regular file; a link, pipe or device (which could lead elsewhere or never end) is an error.

    Args:
        path: the file.
        most: bytes it may have; None is any number.

    Raises:
        HeadwayError: when it cannot be read, is not a regular file, or is larger.
    """
    with explained(f"reading {path}"):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise HeadwayError(f"expected a regular file at {path}, got something else: replace it by a plain file")
            if most is not None and found.st_size > most:
                raise HeadwayError(
                    f"expected a file of at most {most:,} bytes at {path}, got {found.st_size:,}: it is damaged"
                )
            return file.read() if most is None else file.read(found.st_size)


def sealed(data: bytes, at: int) -> bytes:
    """Put the SHA-256 of ``data``, which has 64 zeros at ``at``, in their place."""
    assert data[at : at + 64] == _BLANK
    return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + 64 :]


def check_seal(data: bytes, at: int, name: str) -> str:
    """Return the seal at ``at`` after making sure that it is that of the bytes around it.

    Raises:
        HeadwayError: when it is not.
    """
    found, view = data[at : at + 64], memoryview(data)
    digest = hashlib.sha256(view[:at])
    digest.update(_BLANK)
    digest.update(view[at + 64 :])
    if digest.hexdigest().encode() != found:
        raise HeadwayError(f"expected {name} to match its own {SEAL}, got other content: it is damaged")
    return found.decode()


def read_json(path: Path | str, schema: Schema | None = None, notes: list[str] | None = None) -> Any:
    """Read a JSON file of ours: its size, its seal, its syntax and its fields are checked, in this order.

    Args:
        path: the file.
        schema: what it may hold; None leaves that to the caller.
        notes: is told when the file has no seal, as those of headway 0.1.0 have none.

    Returns:
        What was written, without the seal.

    Raises:
        HeadwayError: when it is missing, unreadable, damaged or not what the schema says.
    """
    return read_sealed(path, schema, notes)[0]


def read_sealed(
    path: Path | str, schema: Schema | None = None, notes: list[str] | None = None
) -> tuple[Any, str | None]:
    """As :func:`read_json`, and the file's seal; None where it has none."""
    data = read_regular(Path(path), MOST)
    seal = check_seal(data, len(_SEALED), str(path)) if data.startswith(_SEALED) else None
    value = parse_json(data, str(path))
    if seal is not None:
        del value[SEAL]
    if schema is not None:
        check(value, schema, str(path))
    if seal is None and notes is not None:
        notes.append(f"{path} has no checksum, as files of headway 0.1.0 have none: its content was not verified")
    return value, seal


def write_json_atomic(path: Path | str, value: Mapping[str, Any]) -> str:
    """Write plain values as JSON so that a reader sees the old file or the new one, never a part.

    Args:
        path: the file; its folder must exist.
        value: plain values: dicts with text keys, lists, text, finite numbers, booleans, None.

    Returns:
        The file's seal.

    Raises:
        HeadwayError: when a value is not plain, or the file cannot be written (the old one is then untouched).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_json_atomic(f"{folder}/a.json", {"loss": 2.5})
    ...     read_json(f"{folder}/a.json")
    {'loss': 2.5}
    """
    data = sealed(dump_json({SEAL: _BLANK.decode(), **value}), len(_SEALED))
    write_atomic(Path(path), data)
    return data[len(_SEALED) : len(_SEALED) + 64].decode()


def make_folder(path: Path) -> None:
    """Create a folder and its parents; raises HeadwayError when that is impossible."""
    for part in (path, *path.parents):
        with contextlib.suppress(OSError):
            if part.is_dir():
                break
            if part.is_symlink():
                raise HeadwayError(
                    f"expected a folder at {part}, got a link to {os.readlink(part)}, where there is none: "
                    f"make that folder, or remove the link"
                )
            if part.exists() and not part.is_dir():  # another process may have made it just now
                raise HeadwayError(f"expected a folder at {part}, got a file: choose another place")
    with explained(f"creating the folder {path}"):
        path.mkdir(parents=True, exist_ok=True)


class FolderLock:
    """Let one process at a time write in a folder.

    The lock is ``flock`` on the file ``.lock``: the kernel releases it when the process ends, however it ends, so there
    is never a stale one to remove by hand. The file itself stays; deleting it would let two processes hold two locks.

    Args:
        folder: an existing folder.
        wait: is called when another process holds the lock; then it is waited for. None does not wait.
        shared: let others that share it hold it too; where the file system has no locks, there is none.

    Raises:
        HeadwayError: on entering, when another process holds the lock and is not waited for.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, FolderLock(folder):
    ...     pass
    """

    def __init__(self, folder: Path | str, wait: Callable[[], object] | None = None, shared: bool = False) -> None:
        self.folder, self.wait, self.shared = Path(folder), wait, shared
        self._handle: int | None = None

    def __enter__(self) -> FolderLock:
        with explained(f"locking {self.folder}"):
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                self._take(handle)
            except BlockingIOError:
                owner = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
                os.close(handle)
                raise HeadwayError(
                    f"expected to be the only writer in {self.folder}, but another process"
                    f"{f' (id {owner})' if owner.isdigit() else ''} is training there: "
                    f"wait for it, stop it, or choose another folder"
                ) from None
            except BaseException as error:  # waiting can be interrupted
                if not (self.shared and isinstance(error, OSError)):
                    os.close(handle)
                    raise
            self._handle = handle
            if self.shared:
                return self
            # A full disk must not keep a run from being locked: the id only makes the message better.
            with contextlib.suppress(OSError):
                os.ftruncate(handle, 0)
                os.pwrite(handle, str(os.getpid()).encode(), 0)
        return self

    def _take(self, handle: int) -> None:
        # Unix only, and not needed to read a run.
        import fcntl

        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if self.wait is None:
                raise
            self.wait()
            fcntl.flock(handle, fcntl.LOCK_EX)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
