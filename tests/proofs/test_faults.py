"""Faults injected: kill −9, full disks and damaged files lose nothing, and nothing is silently different."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


def fault_runs(what: str, folder: Path, count: int, *more: str) -> str:
    script = Path(__file__).with_name("fault_runs.py")
    command = [sys.executable, script, what, folder, str(count), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    print(done.stdout)
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "compare"])
def test_kills(tmp_path: Path, command: str) -> None:
    found = re.search(r"kills (\d+)", fault_runs("kills", tmp_path, 150, command))
    assert found is not None
    assert int(found[1]) >= 150


@pytest.mark.slow
def test_full_disks_in_train_and_compare(tmp_path: Path) -> None:
    found = re.search(r"full (\d+)", fault_runs("disks", tmp_path, 150))
    assert found is not None
    assert int(found[1]) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_damaged_files_of_every_kind(tmp_path: Path, seed: int) -> None:
    assert "damaged 260" in fault_runs(f"damage{seed}", tmp_path, 260)
