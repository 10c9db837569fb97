"""DistributedDataParallel and FSDP2 over two processes on a CPU: the gradients of one process."""

from __future__ import annotations

from pathlib import Path

import torch.multiprocessing
from two_processes import both


def test_two_processes_compute_the_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(both, (str(tmp_path / "meeting"),), nprocs=2)
