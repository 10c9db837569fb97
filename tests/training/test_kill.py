"""kill −9: at every write, flush and rename, and at random times; the run that is resumed ends in the same bits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def killed_runs(*arguments: object) -> str:
    script = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)], capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder in memory where there is one: kill −9 loses nothing that was written, flushed or not."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def at_every_call(folder: Path, twice: int) -> None:
    found = re.search(r"points (\d+)", killed_runs("points", folder, twice))
    assert found is not None
    # Three saves of four files with their flushes and renames, histories, and the removal of an old checkpoint.
    assert int(found[1]) >= 60


def at_random_times(folder: Path, kills: int) -> None:
    found = re.search(r"kills (\d+) inside (\d+)", killed_runs("random", folder, kills, 0))
    assert found is not None
    assert int(found[1]) >= kills
    # Saves fill nearly all of the time; a fair share of the kills must have hit one.
    assert int(found[2]) >= kills // 5


def test_killed_at_every_single_call_that_changes_the_disk(in_memory: Path) -> None:
    at_every_call(in_memory, 8)


@pytest.mark.slow
def test_killed_at_random_times(in_memory: Path) -> None:
    at_random_times(in_memory, 25)


@pytest.mark.slow
def test_killed_at_every_single_call_on_the_disk(tmp_path: Path) -> None:
    at_every_call(tmp_path, 1)


@pytest.mark.slow
def test_killed_a_thousand_times_on_the_disk(tmp_path: Path) -> None:
    at_random_times(tmp_path, 1000)
