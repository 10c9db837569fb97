"""Which worker computes which cell, decided by renames alone, so that a folder shared by several machines will do.

OUT/claims/CELL/1/owner.json   who took the cell up first
OUT/claims/CELL/1/beat         what it is doing, rewritten all the time: a sign of life
OUT/claims/CELL/1/end.json     how it ended; absent while it works, and for good if it was killed
OUT/claims/CELL/2/…            who took it up next

A claim is prepared under another name and renamed to the next number: no file system renames a folder onto one that
holds something, so exactly one of several workers succeeds. Neither locks nor equal clocks are needed. A worker whose
beat does not change for a *lease*, as timed by whoever waits for it, is taken for lost, and its cell is free.

Such a worker may only have been cut off, and come back. So its successor works in a copy of the cell's folder,
``cells/CELL.2``, of which the lost worker knows nothing: whatever it still writes, however late, lands in a folder that
nobody reads any more. Only if every worker that may still hold the folder has ended, or is known to be dead because
its process was on this machine and is gone, the successor goes on in the same folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import threading
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from headway.output import explained, temporary
from headway.schema import Many, Maybe, Number, Record, Whole, Words
from headway.shapes import HeadwayError
from headway.training.files import is_leftover, make_folder, read_json, write_json_atomic

LEASE = 30.0
"""Seconds without a sign of life after which a worker is taken for lost."""
_BEATS, _SLOWEST = 6, 0.5  # signs of life per lease, at most this many seconds apart
_ROOM = 512  # bytes of a sign of life: one write in place, which readers on other machines see as soon as they open it
_OWNER = Record(
    {
        "token": Words(),
        "host": Maybe(Words()),
        "pid": Whole(),
        "started": Words(),
        "threads": Whole(1),
        "lease": Number(above=0),
    }
)
_END = Record(
    {
        "outcome": Words(("done", "failed", "interrupted")),
        "error": Maybe(Words()),
        "notes": Many(Words()),
        "trained": Many(Whole()),
    }
)


@dataclass
class Claims:
    """The claims of a comparison's cells, as one process sees them.

    Args:
        out: the comparison's folder.
        lease: see :data:`LEASE`; each worker promises its own, and others wait as long.
        threads: threads per worker, told to the others.
    """

    out: Path
    lease: float = LEASE
    threads: int = 1
    _seen: dict[Path, tuple[bytes, float]] = field(default_factory=dict)

    def numbers(self, cell: str) -> list[int]:
        """The numbers of a cell's claims, in order."""
        return _numbers(self.out / "claims" / cell, "")

    def latest(self) -> dict[str, int]:
        """The number of the last claim of each cell that has one."""
        folder = self.out / "claims"
        if not folder.is_dir():
            return {}
        return {path.name: numbers[-1] for path in folder.iterdir() if (numbers := self.numbers(path.name))}

    def end(self, cell: str, number: int) -> dict[str, Any] | None:
        """How a claim ended; None if it has not, or its worker was killed."""
        path = self._path(cell, number) / "end.json"
        with contextlib.suppress(HeadwayError):
            return dict(read_json(path, _END)) if path.exists() else None
        return None

    def ends(self, cell: str, after: int) -> list[dict[str, Any] | None]:
        """How the claims of a cell with numbers above ``after`` ended; None for each that did not."""
        return [self.end(cell, number) for number in self.numbers(cell) if number > after]

    def held(self, cell: str) -> dict[str, Any] | None:
        """What the worker of a cell does now, its last sign of life; None if no live worker has it."""
        numbers = self.numbers(cell)
        if not numbers or self._ended(cell, numbers[-1]) or self._lost(cell, numbers[-1]):
            return None
        with contextlib.suppress(ValueError):
            found = json.loads(self._seen[self._path(cell, numbers[-1])][0])
            return found if isinstance(found, dict) else {}
        return {}  # read while it was being written

    def owner(self, cell: str) -> dict[str, Any] | None:
        """Who made the last claim of a cell."""
        return self._owner(cell, numbers[-1]) if (numbers := self.numbers(cell)) else None

    def take(self, cell: str, copies: bool = True) -> Claim | None:
        """Claim a cell that no live worker has; None if one has it, or was faster.

        Args:
            cell: the cell's name.
            copies: whether to copy its folder if a lost worker may still write into it.

        Raises:
            HeadwayError: when the folder cannot be written to.
        """
        number = max(self.numbers(cell), default=0)
        if number and not self._ended(cell, number) and not self._lost(cell, number):
            return None
        path, token = self._path(cell, number + 1), secrets.token_hex(8)
        owner = {"token": token, **_this_process(), "threads": self.threads, "lease": self.lease}
        make_folder(path.parent)
        fresh = temporary(path)
        with explained(f"claiming {path}"):
            try:
                fresh.mkdir()
                write_json_atomic(fresh / "owner.json", owner)
                (fresh / "beat").write_bytes(b"{}".ljust(_ROOM))
                os.rename(fresh, path)
            except (OSError, HeadwayError):
                if not path.exists():
                    raise
        # someone was faster; or it was done, and said over a network to have failed
        if (self._owner(cell, number + 1) or {}).get("token") != token:
            shutil.rmtree(fresh, ignore_errors=True)
            return None
        for late in path.parent.glob("*.tmp-*"):  # of workers that were slower, or killed as they began
            shutil.rmtree(late, ignore_errors=True)
        folder = self._folder_for(cell, number + 1) if copies else self.out
        return Claim(path, folder, self.lease)

    def _path(self, cell: str, number: int) -> Path:
        return self.out / "claims" / cell / str(number)

    def _owner(self, cell: str, number: int) -> dict[str, Any] | None:
        with contextlib.suppress(HeadwayError):
            return dict(read_json(self._path(cell, number) / "owner.json", _OWNER))
        return None

    def _ended(self, cell: str, number: int) -> bool:
        """Whether a claim's worker will write no more: it said so, or its process is known to be gone."""
        if (self._path(cell, number) / "end.json").exists():
            return True
        owner = self._owner(cell, number)
        return owner is not None and _is_gone(owner)

    def _lost(self, cell: str, number: int) -> bool:
        """Whether a claim has shown no new sign of life for its lease, on this process's clock."""
        path, now, beat = self._path(cell, number), time.monotonic(), b""
        with contextlib.suppress(OSError):
            beat = (path / "beat").read_bytes()
        before, since = self._seen.get(path, (None, now))
        if beat != before:
            self._seen[path] = beat, now
            return False
        owner = self._owner(cell, number)
        return now - since > (self.lease if owner is None else owner["lease"])

    def _folder_for(self, cell: str, number: int) -> Path:
        """The folder that a new claim works in: the cell's own, or a copy if someone else may still write into it."""
        folder = current_folder(self.out / "cells", cell)
        since = int(folder.name.partition(".")[2] or 0)
        if all(self._ended(cell, one) for one in self.numbers(cell) if since <= one < number):
            return folder
        copy = folder.with_name(f"{cell}.{number}")
        fresh = temporary(copy)
        with explained(f"copying {folder} to {copy}"):
            fresh.mkdir()
            _copy(folder, fresh)
            os.rename(fresh, copy)
        return copy


class Claim:
    """A cell that this process computes; shows signs of life from a thread of its own.

    Args:
        path: the claim's folder.
        folder: the cell's folder, which no other live worker has.
        lease: see :data:`LEASE`.
    """

    def __init__(self, path: Path, folder: Path, lease: float) -> None:
        self.path, self.folder = path, folder
        self.doing: dict[str, Any] = {}
        """What others are told, as plain values."""
        self.outcome = "interrupted"
        self.error: str | None = None
        self.notes: list[str] = []
        self.trained: tuple[int, ...] = ()
        """The finished steps before and after it trained; empty if it did not."""
        self.lost = False
        """Whether another worker has taken the cell up, because this one had not been heard of for a lease."""
        self._every, self._ended = min(lease / _BEATS, _SLOWEST), threading.Event()
        self._thread = threading.Thread(target=self._live, name="headway-claim", daemon=True)

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def check(self) -> bool:
        """Look whether it is lost."""
        self.lost = self.lost or self.path.with_name(str(int(self.path.name) + 1)).exists()
        return self.lost

    def fail(self, error: str) -> None:
        """Note why the cell cannot be finished."""
        self.outcome, self.error = "failed", error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        # what cannot be written any more is found out by the others when the lease ends
        with contextlib.suppress(HeadwayError, OSError):
            notes, trained = list(dict.fromkeys(self.notes)), list(self.trained)
            end = {"outcome": self.outcome, "error": self.error, "notes": notes, "trained": trained}
            write_json_atomic(self.path / "end.json", end)

    def _live(self) -> None:
        beat = 0
        while not self._ended.wait(self._every):
            beat += 1
            with contextlib.suppress(OSError):
                said = json.dumps({"beat": beat, **self.doing}).encode()[:_ROOM].ljust(_ROOM)
                handle = os.open(self.path / "beat", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(handle, said)
                finally:
                    os.close(handle)
                self.check()


def current_folder(cells: Path, cell: str) -> Path:
    """The folder of a cell that counts: the copy with the highest number, or the first.

    >>> current_folder(Path("nowhere"), "rotary-seed0-0a1b").name
    'rotary-seed0-0a1b'
    """
    numbers = _numbers(cells, f"{cell}.")
    return cells / (f"{cell}.{numbers[-1]}" if numbers else cell)


def superseded(cells: Path) -> list[Path]:
    """The folders of cells that no longer count, because a lost worker's cell went on in a copy."""
    folders = [path for path in cells.iterdir() if path.is_dir()] if cells.is_dir() else []
    return [path for path in folders if path != current_folder(cells, path.name.partition(".")[0])]


def _numbers(folder: Path, before: str) -> list[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    ends = (name.removeprefix(before) for name in names if name.startswith(before))
    return sorted(int(end) for end in ends if end.isascii() and end.isdigit())


def _copy(folder: Path, to: Path) -> None:
    """Copy a folder into which a lost worker may still write; what it removes meanwhile is left out."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_symlink() or is_leftover(path) or ".tmp-" in path.name:
            continue
        try:
            if path.is_dir():
                (to / path.name).mkdir()
                _copy(path, to / path.name)
            else:
                shutil.copyfile(path, to / path.name)
        except FileNotFoundError:
            pass
        if not path.exists():  # a checkpoint that was being removed would be a part of one
            shutil.rmtree(to / path.name, ignore_errors=True)


def _this_process() -> dict[str, Any]:
    """This process, such that another one on the same machine can tell whether it is gone."""
    return {"host": _this_host(), "pid": os.getpid(), "started": _started(os.getpid()) or ""}


@cache
def _this_host() -> str | None:
    """Where a process number means something: one boot of one machine, and one namespace of processes in it."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    return None


def _started(pid: int) -> str | None:
    """When a process started, which tells it from a later one of the same number; None if it is gone or unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the process of an owner has certainly ended; of other machines nothing is certain."""
    host = _this_host()
    return host is not None and owner["host"] == host and _started(owner["pid"]) != owner["started"]
