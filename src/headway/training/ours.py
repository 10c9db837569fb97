"""Folders of our own results, known by a marker in them, so that no command ever reads them as text.

A comparison of ``.`` that writes to ``./headway-compare`` would otherwise read its own report the next time, find
another text than before, and train everything anew. Every command that makes a folder of results puts the sealed file
``.headway`` in it, which names what kinds of results lie there. What else lies in such a folder is a person's own.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from headway.schema import Many, Record, Whole, Words
from headway.training.files import read_json, write_json_atomic

MARKER = ".headway"
OURS = {
    "run": ("settings.json", "history.json", "checkpoints", "watch", "tokenizer.json", "checkpoint"),
    "comparison": ("cells", "claims", "results.json", "report.html"),
    "bench": ("samples.csv", "results.json", "report.html"),
    "methods": ("*.md",),
}
"""What each kind of results consists of."""
GENERATORS = (b'<meta name="generator" content="headway">', b'data-generator="headway"')
"""One of them stands at the beginning of every page and picture."""
_SCHEMA = Record({"format": Whole(1, 1), "kinds": Many(Words(tuple(OURS)))})
_COMPARED = re.compile(rb'\{("sha256":"[0-9a-f]{64}",)?"format":1,"created"')
_MEASURED = re.compile(rb'\{\s*"format": 1,\s*"kind": "bench"')


def mark(folder: Path, kind: str) -> None:
    """Say in a folder that it holds results of this kind, one of :data:`OURS`.

    Raises:
        HeadwayError: when the folder cannot be written to, or its marker is damaged.
    """
    kinds = set(read_json(folder / MARKER, _SCHEMA)["kinds"]) if (folder / MARKER).exists() else set()
    if kind not in kinds:
        write_json_atomic(folder / MARKER, {"format": 1, "kinds": sorted({*kinds, kind})})


def own_results(folder: Path, names: Collection[str]) -> set[str]:
    """Those of the names in a folder that are results of ours.

    Raises:
        HeadwayError: when the marker is damaged: whether the rest is text cannot be known.
    """
    kinds: set[str] = set()
    if MARKER in names:
        kinds |= set(read_json(folder / MARKER, _SCHEMA)["kinds"])
    # those of 0.1.0 have no marker
    if {"settings.json", "checkpoints"} <= set(names):
        kinds.add("run")
    if {"results.json", "cells"} <= set(names) and _begins(folder / "results.json", _COMPARED):
        kinds.add("comparison")
    if {"results.json", "samples.csv"} <= set(names) and _begins(folder / "results.json", _MEASURED):
        kinds.add("bench")
    return {name for name in names for kind in kinds for pattern in OURS[kind] if fnmatch(name, pattern)}


def _begins(path: Path, pattern: re.Pattern[bytes]) -> bool:
    try:
        with path.open("rb") as file:
            return pattern.match(file.read(256)) is not None
    except OSError:
        return False
