"""Implementations of attention, one per file or folder: ``refuses``, ``run``, ``describe``; imported when first needed.

An added file names the backend it takes precedence over: ``BEFORE = "tiled"``.
"""

from __future__ import annotations

import re
from pathlib import Path

SHIPPED = ("native", "sdpa", "triton", "flex", "tiled", "reference")


def _listed() -> tuple[str, ...]:
    names = list(SHIPPED)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if place := re.search(r'^BEFORE = "(\w+)"$', path.read_text(encoding="utf-8"), re.MULTILINE):
            names.insert(names.index(place[1]), path.stem)
    return tuple(names)


BACKENDS = _listed()
"""What ``backend="auto"`` tries, in this order; the first that does not refuse runs."""
