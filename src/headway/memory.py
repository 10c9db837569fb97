"""Peak memory of a computation, as allocated by torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch


def peak_memory(work: Callable[[], object], device: str = "cpu") -> int:
    """Peak bytes that ``work`` allocates beyond what was allocated before.

    On a GPU torch counts them itself. On a CPU the profiler reports every allocation and release in order; the peak of
    their running sum is exact, whereas the size of the process depends on what ran before.

    >>> peak_memory(lambda: torch.ones(1000))
    4000
    """
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some builds of the profiler warn about parts that are not requested
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            work()
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
