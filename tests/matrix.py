"""Methods × laws × parity: every process that runs tests notes what it ran, the first writes it all down at its end.

A law's test names its law by a mark (``common.every_method``) and its method by the parameter ``spec``. A parity test
names nothing: the methods that are made while it runs are those it is about.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FOLDER = "HEADWAY_RECORDS"
"""The environment variable that names the folder of the records, for all processes of one run."""
PARITY = Path(__file__).parent / "parity"

Record = Mapping[str, Any]


@contextmanager
def made() -> Iterator[set[str]]:
    """The names of the position methods that are made meanwhile."""
    from headway.positions import Position

    names: set[str] = set()
    ordinary = Position.__new__

    def noting(cls: type[Position], *args: Any, **kwargs: Any) -> Position:
        names.add(cls.method_name())
        return ordinary(cls, *args, **kwargs)

    Position.__new__ = staticmethod(noting)  # type: ignore[method-assign, assignment]
    try:
        yield names
    finally:
        Position.__new__ = staticmethod(ordinary)  # type: ignore[method-assign]


def note(item: pytest.Item, report: pytest.TestReport, methods: set[str]) -> None:
    """Write down how a law's or a parity test ended: its call, or what kept it from being called."""
    folder = os.environ.get(FOLDER)
    if folder is None or (report.when != "call" and report.passed):
        return
    law = item.get_closest_marker("law")
    parity = item.path.parent == PARITY
    if law is None and not parity:
        return
    exempt = hasattr(report, "wasxfail") and report.skipped
    record = {
        "law": law.args[0] if law else None,
        "file": item.path.name,
        "test": item.originalname if isinstance(item, pytest.Function) else item.name,
        "methods": sorted(methods) if law is None else law.args[1],
        "outcome": "exempt" if exempt else report.outcome,
    }
    with open(Path(folder) / f"{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def records(folder: str | Path) -> list[Record]:
    """What all processes noted."""
    lines = (line for path in sorted(Path(folder).glob("*.jsonl")) for line in path.read_text("utf-8").splitlines())
    return [json.loads(line) for line in lines]


def without_parity(found: Iterable[Record], names: Iterable[str]) -> list[str]:
    """The methods that no passed parity test was about."""
    proven = {name for one in found if one["law"] is None and one["outcome"] == "passed" for name in one["methods"]}
    return [name for name in names if name not in proven]


def matrix(found: Iterable[Record], exempt: Mapping[str, Mapping[str, str]], partial: str | None = None) -> str:
    """The matrix as Markdown.

    Args:
        found: the records.
        exempt: for each method, in order, the laws that do not bind it, with the reasons.
        partial: why this is not all there is, if so.
    """
    laws: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    parity: dict[str, Counter[str]] = defaultdict(Counter)
    for one in found:
        for name in one["methods"]:
            if one["law"] is not None:
                laws[name][one["law"]][one["outcome"]] += 1
            elif one["outcome"] == "passed":
                parity[name][f"{one['file']}::{one['test']}"] += 1
    columns = sorted({law for held in laws.values() for law in held})
    lines = ["# What each method passed", ""]
    lines += [f"**Partial**: {partial}", ""] if partial else []
    lines += [
        "Written by the test run. A number counts the cases of a law that passed, exempt: all cases fail, and are "
        "expected to, for the reason below; –: the law has no case for the method.",
        "",
        "| method | " + " | ".join(columns) + " | parity |",
        "|---|" + "---:|" * (len(columns) + 1),
    ]
    for name in exempt:
        cells = [_cell(laws[name][law]) for law in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {parity[name].total() or '**none**'} |")
    reasons = [f"- `{name}` from *{law}*: {why}." for name, held in exempt.items() for law, why in held.items()]
    lines += ["", "## Exemptions", "", *(reasons or ["None."])]
    lines += ["", "## Parity tests", "", "Cases that passed, by the methods that were made in them.", ""]
    for name in exempt:
        told = ", ".join(f"{test} ({count})" if count > 1 else test for test, count in sorted(parity[name].items()))
        lines.append(f"- `{name}`: {told or '**none**'}")
    return "\n".join(lines) + "\n"


def _cell(cases: Counter[str]) -> str:
    parts = [str(cases["passed"])] if cases["passed"] else []
    parts += ["exempt"] if cases["exempt"] else []
    parts += [f"**{cases['failed']} failed**"] if cases["failed"] else []
    parts += [f"{cases['skipped']} skipped"] if cases["skipped"] else []
    return ", ".join(parts) or "–"
