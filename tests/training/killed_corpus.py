"""Kills a process at every call with which it changes the cache, and checks what the next one finds.

The parent never computes with torch, so that forking it is safe. Usage: python killed_corpus.py FOLDER bytes|bpe
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headway.training import known
from headway.training import text as texts
from headway.training.data import read_data
from headway.training.settings import TrainSettings
from headway.training.vocabularies import Wanted

FOLDER, KIND = Path(sys.argv[1]), sys.argv[2]
TEXT = FOLDER / "text"
CALLS = ("open", "write", "fsync", "replace", "unlink", "mkdir")


def digits() -> str:
    """A hash of what a training takes from the text."""
    data = read_data("decoder", TEXT, length=9)
    ready = data.prepare(data.vocabulary(Wanted.of(KIND, 300)), TrainSettings(length=9, batch=4))
    batches = str([[x.tolist() for x in ready.batches(step)] for step in (0, 1)])
    return hashlib.sha256(f"{batches} {data.described()}".encode()).hexdigest()


def life(cache: Path, kill: int | None) -> str | None:
    """What a process finds, or None when it was killed before its call of this number."""
    reader, writer = os.pipe()
    if pid := os.fork():
        os.close(writer)
        with os.fdopen(reader, "rb") as told:
            found = told.read().decode()
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            return None
        assert status == 0, "the process failed"
        return found
    known.cache_folder = lambda: cache
    count, send = 0, os.write

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **more: Any) -> Any:
            nonlocal count
            if call.__name__ != "open" or given[1] & os.O_CREAT:  # reading changes nothing
                if count == kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
            return call(*given, **more)

        return run

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    send(writer, digits().encode())
    os._exit(0)


def main() -> None:
    """Kill at the first call, the second, … until nothing is left to be killed at."""
    texts.IN_MEMORY = 0
    TEXT.write_bytes(b"to be or not to be, that is the question\n" * 30)
    os.utime(TEXT, (10**9, 10**9))
    whole, point = life(FOLDER / "whole", None), 0
    assert whole
    while (found := life(cache := FOLDER / str(point), point)) is None:
        assert life(cache, None) == whole, f"killed at call {point}: the next process found something else"
        left = [one.name for one in cache.rglob("*") if ".tmp-" in one.name]
        assert not left, f"killed at call {point}: {left} was left"
        point += 1
    assert found == whole
    print("points", point)


main()
