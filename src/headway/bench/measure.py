"""Measure time, memory, error and repeatability."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from headway._version import __version__

Name = TypeVar("Name", bound=Hashable)

SAMPLE = {"cpu": 0.01, "cuda": 0.02}
"""Minimum seconds per sample; shorter work is repeated within it."""


def interleaved(
    work: Mapping[Name, Callable[[], object]], rounds: int, repeats: int | Mapping[Name, int], device: str = "cpu"
) -> dict[Name, list[float]]:
    """Seconds per call of each piece of work, one sample per round; within a round they take turns.

    Each should have run once before, because the first call includes one-time work.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, step in work.items():
            count = repeats if isinstance(repeats, int) else repeats[name]
            seconds[name].append(timed(step, count, device) / count)
    return seconds


def timed(step: Callable[[], object], repeats: int, device: str) -> float:
    """Seconds for this many calls; on a GPU until they are finished."""
    wait(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        step()
    wait(device)
    return time.perf_counter() - begin


def wait(device: str) -> None:
    """Wait for the GPU, if any."""
    if device != "cpu":
        torch.cuda.synchronize()


def repeats_for(step: Callable[[], object], device: str) -> int:
    """Number of calls per sample, so that it is long enough to time."""
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
    """Whether the results of two runs are bitwise equal."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def matmul_peak(dtype: torch.dtype, device: str) -> float:
    """GFLOP/s of the fastest of five large matrix products: the peak of this machine in the same run.

    On a CPU the products grow until one takes 50 ms: without instructions for bfloat16 larger ones would take minutes.
    """
    for size in (256, 512, 1024, 2048) if device == "cpu" else (8192,):
        one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        one @ other
        seconds = min(timed(partial(torch.matmul, one, other), 1, device) for _ in range(5))
        if seconds > 0.05:
            break
    return 2 * size**3 / seconds / 1e9


def available_memory(device: str) -> int:
    """Free memory in bytes."""
    if device != "cpu":
        return int(torch.cuda.mem_get_info()[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2)


def processor() -> str:
    """The name of the CPU, as the system tells it."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None  # not Linux
    return found[1].strip() if found else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment(dtype: torch.dtype, device: str) -> dict[str, Any]:
    """The machine and the versions that affect speed."""
    found: dict[str, Any] = {
        "headway": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    if device == "cpu":
        found |= {
            "processor": processor(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
        }
    else:
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "triton": _version("triton")}
    return found | {"matmul_gflops": round(matmul_peak(dtype, device), 1)}


def median_ratio(one: list[float], other: list[float]) -> float:
    """The median over rounds of one ÷ other: within a round both ran under the same conditions."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))
