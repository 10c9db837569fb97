"""The examples in the docstrings run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_examples_in_docstrings() -> None:
    """In a process without shape checks, which would hide the examples of the functions they wrap."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--doctest-modules", "src/headway", "-p", "no:cacheprovider", "--tb=short"],
        cwd=ROOT,
        env={**os.environ, "HEADWAY_CHECKED": "none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
