"""The compiled laws (compiled.py), some at a time, in processes without shape checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from common import specs

from headway.positions import methods

HERE = Path(__file__).parent


TESTS = [f"test_attention_with_positions_and_documents[{spec}]" for spec in specs()]
TESTS += [f"test_transformer[{spec}]" for spec in methods()]
TESTS += ["test_generated_code", "test_lengths_that_change", "test_attend_by_itself"]
SOME = 16


@pytest.mark.parametrize("start", range(0, len(TESTS), SOME))
def test_compiled_is_eager(start: int) -> None:
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--show-capture=no", "--tb=short"]
    some = [f"{HERE / 'compiled.py'}::{test}" for test in TESTS[start : start + SOME]]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *some, *options],
        cwd=HERE.parents[1],
        env={**os.environ, "HEADWAY_UNCHECKED": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
