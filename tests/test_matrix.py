"""The matrix of methods, laws and parity tells what ran, and a method without a parity test fails the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from matrix import FOLDER, made, matrix, records, without_parity

from headway.positions import Position, methods, parse

ROOT = Path(__file__).parents[1]


def record(law: str | None, outcome: str, *names: str, test: str = "test_one") -> dict[str, object]:
    return {"law": law, "file": "test_x.py", "test": test, "methods": list(names), "outcome": outcome}


FOUND = [
    *[record("shift", "passed", "rotary")] * 3,
    record("shift", "failed", "t5"),
    record("shift", "passed", "t5"),
    record("decode", "exempt", "t5"),
    record(None, "passed", "rotary"),
    record(None, "passed", "rotary"),
    record(None, "failed", "t5"),
    record(None, "passed"),
]


def test_the_matrix_counts_cases_and_names_reasons() -> None:
    text = matrix(FOUND, {"none": {}, "rotary": {}, "t5": {"decode": "it cannot"}})
    assert "Partial" not in text
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| method | decode | shift | parity |",
        "|---|---:|---:|---:|",
        "| none | – | – | **none** |",
        "| rotary | – | 3 | 2 |",
        "| t5 | exempt | 1, **1 failed** | **none** |",
    ]
    assert "- `t5` from *decode*: it cannot." in text
    assert "- `rotary`: test_x.py::test_one (2)" in text
    assert "**Partial**: why" in matrix(FOUND, {"none": {}}, "why")


def test_only_a_parity_test_that_passed_counts() -> None:
    assert without_parity(FOUND, ["none", "rotary", "t5"]) == ["none", "t5"]


def test_methods_made_in_a_test_are_noticed() -> None:
    ordinary = Position.__new__
    with made() as names:
        assert parse("rotary(base=5)").base == 5
        parse("t5").fresh()
    assert names == {"rotary", "t5"}
    assert Position.__new__ is ordinary
    parse("alibi")
    assert names == {"rotary", "t5"}


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Pytest in its own process, independent of this one."""
    kept = {name: value for name, value in os.environ.items() if name != FOLDER and not name.startswith("PYTEST")}
    kept["HEADWAY_CHECKED"] = "none"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments]
    return subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_writes_what_it_ran(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "deep" / "matrix.md"
    run = ran("tests/laws/test_tiles.py", "-k", "t5 or learned or alibi", "-n", str(workers), "--matrix", str(path))
    assert run.returncode == 0, run.stdout
    text = path.read_text(encoding="utf-8")
    assert "**Partial**: only some tests were run." in text
    assert "| method | tiles | parity |" in text
    cases = 1 + len(methods()["t5"].variants)
    assert f"| t5 | {cases} | **none** |" in text
    assert "| shaw | – | **none** |" in text


def test_records_of_several_processes_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"law": "a"}\n{"law": "b"}\n')
    (tmp_path / "2.jsonl").write_text('{"law": "c"}\n')
    assert [one["law"] for one in records(tmp_path)] == ["a", "b", "c"]
