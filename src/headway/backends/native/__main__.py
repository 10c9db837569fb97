"""Compile the kernels, or report why that fails: ``python -m headway.backends.native``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from headway.backends.native.library import SOURCES, unavailable

with ThreadPoolExecutor() as pool:
    problems = list(pool.map(unavailable, sorted(source.name for source in SOURCES.glob("*.cpp"))))
print(next(filter(None, problems), "the CPU kernels are ready"))
