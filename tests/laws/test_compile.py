"""The compiled laws (compiled.py), each group in a process without shape checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("group", ["test_attention", "test_transformer", "not (test_attention or test_transformer)"])
def test_compiled_is_eager(group: str) -> None:
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--show-capture=no", "--tb=short", "-k", group]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(HERE / "compiled.py"), *options],
        cwd=HERE.parents[1],
        env={**os.environ, "HEADWAY_UNCHECKED": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
