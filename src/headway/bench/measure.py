"""Time, memory, error and repeatability of pieces of work."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headway._version import __version__

SAMPLE = {"cpu": 0.01, "cuda": 0.02}
"""Least seconds of one sample; shorter work is repeated within it."""


def interleaved(
    work: Mapping[str, Callable[[], object]], rounds: int, repeats: int | Mapping[str, int], device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds per call of each piece of work, one figure a round, the pieces taking turns within a round.

    Everything should have run once before: the first call also builds what is built once.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, step in work.items():
            count = repeats if isinstance(repeats, int) else repeats[name]
            seconds[name].append(timed(step, count, device) / count)
    return seconds


def timed(step: Callable[[], object], repeats: int, device: str) -> float:
    """Seconds of so many calls; on a GPU until it has done them."""
    wait(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        step()
    wait(device)
    return time.perf_counter() - begin


def wait(device: str) -> None:
    """Let a GPU finish."""
    if device != "cpu":
        torch.cuda.synchronize()


def repeats_for(step: Callable[[], object], device: str) -> int:
    """How many calls make a sample that is long enough to time."""
    once = timed(step, 1, device)
    return max(1, min(1000, round(SAMPLE[device] / max(once, 1e-6))))


def error(got: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    """The largest |got − truth| ÷ max |truth| over the output and every gradient that both have."""
    worst = 0.0
    for name, exact in truth.items():
        if name in got:
            least = torch.finfo(torch.float32).tiny
            off = (got[name].double() - exact).abs().max() / exact.abs().max().clamp(min=least)
            worst = max(worst, float(off))
    return worst


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two runs gave the same bits, everywhere."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def matmul_peak(dtype: torch.dtype, device: str) -> float:
    """GFLOP/s of the fastest of five large matrix products: what this machine can do, in the same run."""
    size = 2048 if device == "cpu" else 8192
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    one @ other
    return 2 * size**3 / min(timed(lambda: one @ other, 1, device) for _ in range(5)) / 1e9


def available_memory(device: str) -> int:
    """Bytes that are free."""
    if device != "cpu":
        return int(torch.cuda.mem_get_info()[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2)


def environment(dtype: torch.dtype, device: str) -> dict[str, Any]:
    """The machine and the versions, as far as they decide speed."""
    found: dict[str, Any] = {
        "headway": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    if device == "cpu":
        found |= {
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
        }
    else:
        found["device"] = torch.cuda.get_device_name()
    return found | {"matmul_gflops": round(matmul_peak(dtype, device), 1)}


def median_ratio(one: list[float], other: list[float]) -> float:
    """The median over rounds of one ÷ other: within a round both met the same weather."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))
