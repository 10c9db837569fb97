"""Atomic file writes, and one function that writes whatever an output option names.

An interrupted write must never leave a partial file under the final name. So content goes to a new name, is flushed to
disk (fsync) and renamed to the final name in one step, and the folder is flushed so that the rename itself survives a
power failure. Devices and pipes are written to, never replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

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
    except BrokenPipeError:  # the reader of a pipe has closed it, which is not an error
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = f"free some space and run again{', ' + advice if advice else ''}"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "choose a place you may read and write"
        raise HeadwayError(f"could not finish {doing}: {reason}{'; ' + advice if advice else ''}") from error


def write_output(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write what an output option names: a page, a picture, a table.

    - A regular file, or a new one in a folder that is created if needed, appears whole or not at all and keeps its
      mode; a new file's mode follows the umask.
    - A symbolic link stays a link: its target is written, which need not exist yet.
    - A device, a pipe, an open descriptor such as ``/dev/stdout``, and ``-``, which is standard output, are written to.

    Args:
        path: the path.
        content: the whole content; text is written as UTF-8.

    Returns:
        The path.

    Raises:
        HeadwayError: on a folder, a file without write permission, or any error of the system.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_output(f"{folder}/new/page.html", "<p>").read_text()
    '<p>'
    """
    # a lone surrogate, e.g. from a file name that is not UTF-8, cannot be encoded
    data = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    target = Path(path)
    with explained(f"writing {target}"):
        handle = _descriptor(target)
        if handle is not None:
            _to_descriptor(handle, data)
            return target
        end = Path(os.path.realpath(target))
        if end.is_symlink():  # the link is circular
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if end.is_dir():
            raise HeadwayError(f"expected a file to write to, got the folder {target}: name a file in it")
        mode = end.stat().st_mode if end.exists() else None
        if mode is not None and not stat.S_ISREG(mode):
            opened = os.open(end, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
            try:
                _write(opened, data)
            finally:
                os.close(opened)
            return target
        if mode is not None and not os.access(end, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(end))
        end.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(end, data, mode=mode)
    return target


def streamed(*paths: str | os.PathLike[str] | None) -> bool:
    """Whether any of these outputs is a stream, not a file, so that messages belong on standard error.

    >>> streamed("page.html", None), streamed("-"), streamed("/dev/null")
    (False, True, True)
    """
    given = [Path(path) for path in paths if path is not None]
    return any(
        _descriptor(path) is not None or (path.exists() and not (path.is_file() or path.is_dir())) for path in given
    )


def _descriptor(path: Path) -> int | None:
    """The open descriptor that a path such as /dev/stdout or /dev/fd/3 refers to.

    Opening such a path again would overwrite a file that the shell has opened for appending, or replace it.
    """
    if str(path) == "-":
        return 1
    own = rf"/(dev|proc/(self|{os.getpid()})(/task/\d+)?)/fd/(\d+)"
    for _ in range(40):  # as many links as Linux follows
        here = Path(os.path.realpath(path.parent), path.name)
        if found := re.fullmatch(own, str(here), re.ASCII):
            return int(found[4])
        if not here.is_symlink():
            return None
        path = here.parent / os.readlink(here)
    return None


def _to_descriptor(handle: int, data: bytes) -> None:
    for stream in (sys.stdout, sys.stderr):  # earlier printed output comes first
        if stream is not None:
            stream.flush()
    _write(handle, data)


def _write(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def temporary(path: Path) -> Path:
    """A new sibling path, ``NAME.tmp-PID-RANDOM``, that no other process writes."""
    ending = f".tmp-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f"{_beginning(path.name, 255 - len(ending))}{ending}")


def _beginning(name: str, size: int) -> str:
    """As much of a file's name as fits into this many bytes."""
    return os.fsencode(name)[:size].decode(errors="ignore")


def write_new(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a new file and flush it to the disk; an existing file is an error (OSError).

    Args:
        path: a path that does not exist.
        data: the whole content.
        mode: permissions; None follows the umask.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        if mode is not None:
            os.fchmod(handle, stat.S_IMODE(mode))
        _write(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_folder(path: Path) -> None:
    """Flush a folder's directory entries, so that a rename inside it survives a power failure."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes, advice: str = "", mode: int | None = None) -> None:
    """Write a file that appears whole or not at all, and is on disk afterwards.

    Args:
        path: the path; an existing file is replaced.
        data: the whole content.
        advice: advice for the user in case of failure.
        mode: permissions; None follows the umask.
    """
    fresh = temporary(path)
    with explained(f"writing {path}", advice):
        try:
            write_new(fresh, data, mode)
            os.replace(fresh, path)
        except BaseException:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
        fsync_folder(path.parent)
