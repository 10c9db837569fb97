"""How much memory a process takes for a sequence spread over several: ``python tests/parallel/memory.py``.

One layer of attention, forward and backward. What counts is the process's peak above what it held before.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from spreading import together

from headway import Attention, Window
from headway.parallel import Ranks, context_parallel, shard_tokens

TOKENS, DIM, HEADS = 32768, 256, 8
MIB = 2**20


def status(name: str) -> int:
    """Bytes of this process, VmRSS or its peak, VmHWM."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def measure(folder: str, how: str, kv_heads: int) -> None:
    """Write the peak of this rank into the folder."""
    torch.manual_seed(0)
    # few pairs, because memory is what is measured
    layer = Attention(DIM, HEADS, kv_heads=kv_heads, position="alibi", mask=Window(256))
    with context_parallel(layer, how=how):
        for tokens in (256, TOKENS):
            x, pos = shard_tokens(torch.randn(1, tokens, DIM))
            x = x.clone().requires_grad_()
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            layer(x, pos=pos).sum().backward()
    peak = status("VmHWM") - before
    Path(folder, f"peak{Ranks.of(None).rank}").write_text(str(peak))


def peaks(how: str, size: int, kv_heads: int = 2) -> list[int]:
    """The peak of every rank, in bytes."""
    # each tensor in memory of its own, given back when freed: what counts is tensors, not how malloc keeps small ones
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with tempfile.TemporaryDirectory() as folder:
        together(Path(folder), size, measure, folder, how, kv_heads)
        return [int(Path(folder, f"peak{rank}").read_text()) for rank in range(size)]


if __name__ == "__main__":
    for how in sys.argv[1:] or ("all-gather", "ulysses", "ring"):
        found = {size: round(max(peaks(how, size)) / MIB) for size in (1, 2, 4)}
        print(json.dumps({"how": how, "MiB": found}), flush=True)
