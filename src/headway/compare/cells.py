"""The folder of one cell of a comparison, and the schemas of a comparison's files.

OUT/results.json       all results, from which the report is made
OUT/cells/…/cell.json  how one model was trained, and its results
OUT/cells/…/views.json its views
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headway.compare.claims import Claim
from headway.schema import (
    PLAIN,
    Anything,
    Either,
    Many,
    Maybe,
    Named,
    Number,
    Record,
    Schema,
    Truth,
    Whole,
    Words,
)
from headway.shapes import HeadwayError
from headway.training.files import explained, make_folder, read_json, set_aside, write_json_atomic

_COUNT, _TIME = Maybe(Whole()), Maybe(Number(0))
_CURVE = Record({"steps": Many(Whole()), "loss": Many(Number())})
_DISTANCES = Many(Record({"length": Whole(1), "distance": Whole(1), "accuracy": Number(0), "count": Whole()}))
_FOUND: dict[str, Schema] = {name: Number() for name in ("loss", "accuracy", "bits_per_byte")}
_STATUS: dict[str, Schema] = {"length": Whole(1), "status": Words(("ok", "cannot", "diverged"))}
_TEST = Record(_STATUS, optional={"message": Maybe(Words()), **_FOUND, "tokens": Whole(), "by_distance": _DISTANCES})
_OUTCOME = Words(("ok", "diverged", "failed"))
_ROW: dict[str, Schema] = {
    "status": _OUTCOME,
    "message": Maybe(Words()),
    "parameters": _COUNT,
    "position_parameters": _COUNT,
    "peak_memory_bytes": Maybe(Number(0)),
    "seconds": _TIME,
    "tokens_per_second": _TIME,
    "train": _CURVE,
    "validation": _CURVE,
}
IDENTITY = Record(
    {
        "format": Whole(),
        "spec": Words(),
        "task": Words(),
        "data": Named(PLAIN),
        "train": Named(Anything()),  # only compared, or passed to TrainSettings
        "model": Either((Many(Whole(1)), Record({"sha256": Words(), "transformers": Words()}))),
        "torch": Words(),
        "headway": Words(),
    }
)
CELL = Record(
    {"identity": IDENTITY},
    optional={**_ROW, "threads": Whole(1), "tests": Named(_TEST), "extended": Named(Named(_TEST))},
)
"""cell.json: everything that decides its training, and the results so far."""
_VIEWS = Many(Named(Anything()))  # figures as plain values, drawn by a page
VIEWS = Either((_VIEWS, Record({"views": _VIEWS})))
"""views.json; a bare list in comparisons of headway 0.1.0."""
RESULTS = Record(
    {
        "format": Whole(1, 1),
        "created": Words(),
        "command": Maybe(Words()),
        "task": Words(),
        "settings": Named(Either((PLAIN, Many(PLAIN)))),
        "environment": Named(PLAIN),
        "complete": Truth(),
        "methods": Many(
            Record({n: Words() for n in ("spec", "name", "title", "summary", "summary_zh", "paper")}),
        ),
        "cells": Many(
            Record({"method": Words(), "seed": Whole(), **_ROW, "tests": Many(_TEST), "by_distance": _DISTANCES})
        ),
        "views": Named(_VIEWS),
    },
    optional={"notes": Many(Words())},
)
"""results.json."""


@dataclass
class Cell:
    """One method and seed: its folder, and its results so far."""

    folder: Path
    spec: str
    seed: int
    identity: dict[str, Any]
    known: dict[str, Any] = field(default_factory=dict)
    claim: Claim | None = None

    @property
    def name(self) -> str:
        """Its name among the cells, whichever copy of its folder counts."""
        return self.folder.name.partition(".")[0]

    def read(self, notes: list[str]) -> bool:
        """Read the results so far and change nothing, because another worker may have the cell; False if damaged."""
        self.known = {"identity": self.identity}
        try:
            if self.views.exists():
                read_json(self.views, VIEWS, notes)
            if (self.folder / "cell.json").exists():
                found = read_json(self.folder / "cell.json", CELL, notes)
                self.known = found if found["identity"] == self.identity else self.known
        except HeadwayError:
            return False
        return True

    def open(self, notes: list[str]) -> None:
        """Read the results so far; damaged files are renamed, and their results computed again from the checkpoint."""
        make_folder(self.folder)
        self.known = {}
        for path, schema in ((self.folder / "cell.json", CELL), (self.views, VIEWS)):
            if not path.exists() and not path.is_symlink():
                continue
            try:
                found = read_json(path, schema, notes)
            except HeadwayError as error:
                with explained(f"setting {path} aside"):
                    aside = set_aside(path)
                notes.append(f"{error}; set aside as {aside.name}, and made anew")
                continue
            if schema is CELL and found["identity"] == self.identity:
                self.known = found
        self.known["identity"] = self.identity

    def extended(self, way: str) -> dict[str, Any]:
        """The tests of its model after this extension."""
        tests: dict[str, Any] = self.known.setdefault("extended", {}).setdefault(way, {})
        return tests

    @property
    def views(self) -> Path:
        """The file of its views, which exists for one cell per method."""
        return self.folder / "views.json"

    def save(self, **found: Any) -> None:
        """Add results to the known ones and write them."""
        self.known.update(found)
        write_json_atomic(self.folder / "cell.json", self.known)

    def keep(self, views: list[dict[str, Any]]) -> None:
        """Write the cell's views."""
        write_json_atomic(self.views, {"views": views})

    def kept(self) -> list[dict[str, Any]]:
        """The cell's saved views."""
        found = read_json(self.views, VIEWS)
        views: list[dict[str, Any]] = found if isinstance(found, list) else found["views"]
        return views
