"""The compiled laws (compiled.py), some at a time, in processes without shape checks: three methods traced that
act at different places, and a few with the graphs of gradients; in the long proofs all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from common import specs

HERE = Path(__file__).parent
SOME = 4

GRAPHS = ("t5", "fox")
"""They differ in what computes them and in what they hand over: a table in a fused kernel, a bias per key."""
SHORT = ["test_lengths_that_change[eager]", "test_attend_by_itself", "test_masks_that_meet_tensors"]
TRACED = ("cope", "selectiverotary", "xpos")
"""They differ in where they act: at scores, on queries and keys by what tokens say, and by their distance."""
SHORT += [f"test_attention_traced[{spec}]" for spec in TRACED] + [f"test_transformer[{spec}]" for spec in GRAPHS]
LONG = ["test_generated_code", "test_lengths_that_change[aot_eager]", *(f"test_attention[{spec}]" for spec in specs())]
LONG += [f"test_transformer[{spec}]" for spec in specs() if spec not in GRAPHS]


def groups(tests: list[str]) -> list[list[str]]:
    """Tests dealt out like cards, because the costly ones stand together."""
    count = -(-len(tests) // SOME)
    return [tests[first::count] for first in range(count)]


@pytest.mark.parametrize("some", groups(SHORT), ids=len)
def test_compiled_is_eager(some: list[str]) -> None:
    run(some)


@pytest.mark.slow
@pytest.mark.parametrize("some", groups(LONG), ids=len)
def test_compiled_is_eager_for_all(some: list[str]) -> None:
    run(some)


def run(some: list[str]) -> None:
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--show-capture=no", "--tb=short"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *(f"{HERE / 'compiled.py'}::{test}" for test in some), *options],
        cwd=HERE.parents[1],
        env={**os.environ, "HEADWAY_CHECKED": "none", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
