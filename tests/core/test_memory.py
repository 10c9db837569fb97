"""What a process does with the memory that it frees."""

import os
import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
from headway.memory import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        held = [bytearray(2**20) for _ in range(20)]  # as a step: tensors that are freed at its end
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(kept, faults())
"""


def _run(how: str, **environment: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, how], env=clean | environment, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    kept, faults = _run("keep")
    assert kept == "True"
    _, otherwise = _run("leave", MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert faults < otherwise / 10  # pages that the system cleared anew


def test_what_the_environment_says_of_memory_stays() -> None:
    assert _run("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
    assert _run("keep", GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072")[0] == "False"
