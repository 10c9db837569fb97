"""The triton backend: its kernels in Triton's interpreter (interpreted.py), each group in a process of its own; and
what it says where it cannot run.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from headway.backends import triton as backend
from headway.backends.base import Call

HERE = Path(__file__).parent
PROOFS = ("test_few or test_positions", "test_awkward or test_compiled")
OFTEN = f"not ({' or '.join(PROOFS)})"
"""Of every test run; the interpreter takes its time for the others, which are a proof with all slow cases."""
CASES = [(group, "not slow") for group in PROOFS] + [
    (g, "slow") for g in (*PROOFS, "test_kinds", f"{OFTEN} and not test_kinds")
]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is published for Linux only")
@pytest.mark.parametrize(
    ("group", "which"),
    [
        (OFTEN, "not slow"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES),
    ],
)
def test_interpreted_is_as_exact_as_plain_pytorch(group: str, which: str) -> None:
    options = [
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "--show-capture=no",
        "--tb=short",
        "-W",
        "ignore:Conversion of an array:DeprecationWarning",  # Triton's interpreter, with NumPy 1
        "-k",
        group,
        "-m",
        which,
    ]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(HERE / "interpreted.py"), *options],
        cwd=HERE.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "HEADWAY_CHECKED": "none", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def test_on_a_cpu_it_refuses_without_importing_triton() -> None:
    code = """
import sys, torch, headway
from headway import attend
q = torch.randn(1, 1, 3, 16)
try:
    from headway.backends import triton
    from headway.backends.base import Call
    pos = torch.arange(3)[None]
    print(triton.refuses(Call(q, q, q, pos, pos, None, (), 1.0, "softmax", True, "cpu")))
finally:
    print("triton" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.splitlines() == ["its kernels run on NVIDIA GPUs, not on 'cpu'", "False"]


def test_a_planned_call_has_no_device_yet() -> None:
    q, pos = torch.empty(1, 2, 3, 16, device="meta"), torch.arange(3, device="meta")[None]
    assert backend.refuses(Call(q, q, q, pos, pos, None, (), 1.0, "softmax", True, "cuda")) is None
