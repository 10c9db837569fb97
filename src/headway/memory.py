"""Memory: the peak of a computation, as allocated by torch; and what a process does with what it frees."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Callable


def peak_memory(work: Callable[[], object], device: str = "cpu") -> int:
    """Peak bytes that ``work`` allocates beyond what was allocated before.

    On a GPU torch counts them itself. On a CPU the profiler reports every allocation and release in order; the peak of
    their running sum is exact, whereas the size of the process depends on what ran before.

    >>> import torch
    >>> peak_memory(lambda: torch.ones(1000))
    4000
    """
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some builds of the profiler warn about parts that are not requested
        # not torch.profiler, which imports torch's compiler first: a second or more
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            work()
    assert profile.kineto_results is not None
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


_TRIM, _PAD, _MAPPED = -1, -2, -4  # of mallopt, as glibc numbers them
_KEPT = {_MAPPED: 0, _TRIM: 2**31 - 1, _PAD: 64 * 2**20}  # no block of its own; free bytes at the end; more at a time


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its next allocations; returns whether it does.

    A training step allocates and frees the same tensors again and again. Left alone, glibc returns freed memory to the
    system, which clears every page before the next step gets it back: a tenth to a third of the time of a small model's
    step. Once called, free memory is kept, up to 2 GiB at the end of the heap, and the process may hold a third more
    than otherwise. Nothing is set without glibc, or where the environment says how memory is to be handled
    (``MALLOC_…_``, ``GLIBC_TUNABLES``). It holds for the whole process, so commands call it, functions of the library
    do not.
    """
    told = any(name == "GLIBC_TUNABLES" or (name.startswith("MALLOC_") and name.endswith("_")) for name in os.environ)
    if told or not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018
    except (OSError, AttributeError):
        return False
    taken = [libc.mallopt(option, value) for option, value in _KEPT.items()]
    return all(taken)
