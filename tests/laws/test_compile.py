"""The compiled laws (compiled.py), some at a time, in processes without shape checks: methods that act at
scores, or on queries and keys by what tokens say, and one with the graphs of gradients; in the long proofs all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from common import named, specs
from options import layers, models

HERE = Path(__file__).parent
SOME = 4

SHORT = [
    "test_lengths_that_change[eager]",
    "test_transformer[t5]",
    "test_attend_by_itself",
    "test_masks_that_meet_tensors",
    "test_masks_of_native",
    "test_one_step_of_decoding_for_all_lengths[rotary]",
    "test_a_compiled_call_runs_the_kernel_and_an_exported_one_does_not",
    "test_attention_traced[latent-rotary]",
    "test_attention_traced[latent-fox]",
    "test_one_step_of_decoding_for_all_lengths[latent-rotary]",
]
STEPS = ("t5", "selectiverotary", *(named(spec) for spec in models() if named(spec) != "latent-rotary"))
LONG = [f"test_one_step_of_decoding_for_all_lengths[{spec}]" for spec in STEPS]
LONG += [
    "test_generated_code",
    "test_hidden_nan_in_generated_code",
    "test_one_query_in_generated_code[2]",
    "test_attention_traced[cope]",
    "test_attention_traced[selectiverotary]",
    "test_one_query_in_generated_code[1]",
    "test_lengths_that_change[aot_eager]",
    *(f"test_attention[{spec}]" for spec in specs()),
    *(f"test_attention[{named(spec)}]" for spec in layers() if spec.only is None),
    *(f"test_model[{named(spec)}]" for spec in models()),
]
LONG += [f"test_transformer[{spec}]" for spec in specs() if spec != "t5"]


def groups(tests: list[str]) -> list[list[str]]:
    """Tests distributed round-robin, because the expensive ones are adjacent."""
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
