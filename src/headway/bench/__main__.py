"""``python -m headway.bench gpu``: the benchmark of a GPU, on a machine with torch and Triton and nothing else.

Everything else is ``headway bench``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

NEEDS = (2, 11)
"""The oldest torch."""


def problem() -> str | None:
    """Why nothing can be measured here, in one sentence; None if it can."""
    # torch's profiler, which counts memory, reads this when torch is loaded; otherwise it writes to the terminal
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    try:
        import jaxtyping
        import numpy
        import torch
    except ModuleNotFoundError as missing:
        return f"expected torch, numpy and jaxtyping, got no {missing.name}: install it with pip"
    assert jaxtyping is not None
    assert numpy is not None
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < NEEDS:
        return f"expected torch {NEEDS[0]}.{NEEDS[1]} or newer, got {torch.__version__}: install a newer one"
    return None


def main(given: list[str]) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m headway.bench", description="Benchmark an NVIDIA GPU.")
    parser.add_argument("what", choices=["gpu"], help="what to measure; everything else is `headway bench`")
    parser.add_argument("--out", type=Path, default=Path("headway-gpu"), help="folder for report.html and results.json")
    parser.add_argument("--minutes", type=float, default=8.5, help="time after which it leaves the rest out")
    options = parser.parse_args(given)
    reason = problem()
    if reason is None:
        from headway.bench.gpu import run
        from headway.shapes import HeadwayError

        try:
            return run(options.out, options.minutes)
        except HeadwayError as error:
            reason = str(error)
    print(f"headway: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
