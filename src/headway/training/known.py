"""Facts about files that took long to find, kept in the cache for as long as the files do not change.

A file is taken as unchanged while its device, inode, size and times of change are the same. One that was changed in
the last two seconds could change again without another time, so nothing is kept about it yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from headway.backends.compiler import cache_folder
from headway.schema import Anything, Named, Record, Words
from headway.shapes import HeadwayError
from headway.training.content import Part, Reading, Tell, signature
from headway.training.files import FolderLock, clean_leftovers, dump_json, make_folder, read_json, write_json_atomic

_FACT = Record({"signature": Words(), "values": Named(Anything())})
_SETTLED = 2 * 10**9
"""Nanoseconds: more than the finest step of the times of any file system (FAT's is two seconds)."""


def texts_folder() -> Path:
    """Where tokenised texts, vocabularies and facts are: ``texts`` in the cache, which may be deleted at any time."""
    return cache_folder() / "texts"


def folder_of(identity: Mapping[str, Any]) -> Path:
    """The folder of the cache for what depends on these plain values alone."""
    return texts_folder() / hashlib.sha256(dump_json(identity)).hexdigest()[:32]


@contextlib.contextmanager
def writing(folder: Path, name: str, tell: Tell | None) -> Iterator[None]:
    """Be the only one to write in a folder of the cache; another one is waited for, and what killed ones left removed.

    Args:
        folder: the folder, made if needed.
        name: what it is for.
        tell: hears "waiting" while another one is waited for, with a total of 0 when that is over.

    Raises:
        HeadwayError: when the folder cannot be made or locked.
    """
    waited: list[str] = []

    def wait() -> None:
        waited.append(name)
        if tell is not None:
            tell(Reading("waiting", name, 0, None))

    make_folder(folder)
    with FolderLock(folder, wait):
        if waited and tell is not None:
            tell(Reading("waiting", name, 0, 0))
        clean_leftovers(folder)
        yield


def known(what: str, parts: Iterable[Part], find: Callable[[], dict[str, Any]], *more: object) -> dict[str, Any]:
    """Plain values that are a function of files: as they were found before, or found now and kept.

    Args:
        what: the kind of fact.
        parts: the files.
        find: finds the values.
        more: what they depend on besides.
    """
    parts = tuple(parts)
    seal, file = signature(parts, *more), _file(what, parts, *more)
    with contextlib.suppress(HeadwayError):  # missing, or damaged: it is found again
        fact = read_json(file, _FACT)
        if fact["signature"] == seal:
            values: dict[str, Any] = fact["values"]
            return values
    values = find()
    if time.time_ns() - max(max(part.state[3:]) for part in parts) > _SETTLED:
        keep(what, parts, values, *more)
    return values


def keep(what: str, parts: Iterable[Part], values: dict[str, Any], *more: object) -> None:
    """Keep a fact about files that nobody else changes."""
    parts = tuple(parts)
    file = _file(what, parts, *more)
    # where nothing can be kept it is found again
    with contextlib.suppress(HeadwayError), writing(file.parent, what, None):
        write_json_atomic(file, {"signature": signature(parts, *more), "values": values})


def _file(what: str, parts: tuple[Part, ...], *more: object) -> Path:
    """One file for each set of paths: another state of them replaces the fact."""
    told = repr((what, [str(part.path.absolute()) for part in parts], more))
    return texts_folder() / "known" / f"{hashlib.sha256(told.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.json"
