"""Time of a layer on a long text, forward and backward, over two processes with a thread each against one with two.

python tests/parallel/speed.py [all-gather] [ulysses] [ring]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from spreading import together

from headway import Attention, Causal
from headway.parallel import context_parallel, shard_tokens

TOKENS, ROUNDS = 16_384, 3


def layer() -> Attention:
    torch.manual_seed(0)
    return Attention(256, 4, kv_heads=2, position="rotary", mask=Causal())


def median(attention: Attention, x: torch.Tensor, pos: torch.Tensor | None = None) -> float:
    found = []
    for _ in range(ROUNDS + 1):  # the first compiles and warms up
        begin = time.perf_counter()
        attention(x, pos=pos).sum().backward()
        if pos is not None:
            dist.barrier()
        found.append(time.perf_counter() - begin)
    return statistics.median(found[1:])


def rank(how: str, folder: str) -> None:
    attention = layer()
    context_parallel(attention, how=how)
    seconds = median(attention, *shard_tokens(torch.randn(1, TOKENS, 256)))
    if dist.get_rank() == 0:
        Path(folder, "seconds").write_text(str(seconds))


def main() -> None:
    for how in sys.argv[1:] or ["all-gather", "ulysses", "ring"]:
        torch.set_num_threads(2)
        alone = median(layer(), torch.randn(1, TOKENS, 256))
        with tempfile.TemporaryDirectory() as folder:
            together(Path(folder), 2, rank, how, folder)
            seconds = float(Path(folder, "seconds").read_text())
        print(f"{how}: {seconds:.2f} s, one process {alone:.2f} s, ratio {seconds / alone:.2f}", flush=True)


if __name__ == "__main__":
    main()
