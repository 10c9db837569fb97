"""The processes that torchrun starts: one group of them, what they agree on, and how they end together.

    with processes("ddp") as world:      # one process without torchrun
        world.rank, world.size
        world.sum([1.0])                 # the same numbers in every process
        world.tell(values)               # plain values of the first one

What is agreed on travels as numbers and JSON through gloo, beside the gradients, which use NCCL on GPUs. Waiting has no
time limit: a slow first process is no error. When a process ends, in whatever way, its connections are closed: the
others' next exchange fails, and all end. Of all processes one says why: the first to count up a number in torchrun's
store.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from headway.shapes import HeadwayError, brief

KINDS = ("ddp", "fsdp")
_LONG = datetime.timedelta(days=365)
_ENDED = "headway/ended"
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
T = TypeVar("T")


class LostProcess(HeadwayError):
    """Another process of the group has ended."""

    status = 1
    """Exit status of a command: the machine failed, not its arguments."""


@dataclass(frozen=True)
class World:
    """A group of processes, or one process alone.

    Args:
        rank: number of this process, from 0.
        size: number of processes.
        kind: how they share a training: "ddp" (each has the whole model), "fsdp" (each has a share); "one" if alone.
        device: where this process computes.

    >>> World().first, World().sum([0.5]), World().tell({"loss": 1.0})
    (True, [0.5], {'loss': 1.0})
    """

    rank: int = 0
    size: int = 1
    kind: str = "one"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _group: Any = None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and talks to the user."""
        return self.rank == 0

    @property
    def many(self) -> bool:
        """Whether there is a group."""
        return self._group is not None

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, in float64, the same bits everywhere."""
        if not self.many:
            return list(values)
        import torch.distributed as dist

        total = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        summed: list[float] = total.tolist()
        return summed

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return self.sum([float(flag)])[0] > 0

    def all_of(self, values: Sequence[float]) -> list[list[float]]:
        """The numbers of each process, as many in each, by rank."""
        if not self.many:
            return [list(values)]
        own = [0.0] * (len(values) * self.size)
        own[self.rank * len(values) : (self.rank + 1) * len(values)] = values
        found = self.sum(own)
        return [found[i : i + len(values)] for i in range(0, len(found), len(values))] if values else []

    def tell(self, value: T) -> T:
        """The plain JSON values that the first process has."""
        if not self.many:
            return value
        data = torch.frombuffer(bytearray(json.dumps(value).encode() if self.first else b"\0"), dtype=torch.uint8)
        size = self.spread(torch.tensor([len(data)]))
        data = self.spread(data if self.first else torch.empty(int(size), dtype=torch.uint8))
        told: T = json.loads(data.numpy().tobytes())
        return told

    def spread(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, on the CPU; others give one of its shape and dtype, e.g. on the meta device."""
        if not self.many:
            return tensor
        import torch.distributed as dist

        whole = tensor.detach().contiguous() if self.first else torch.empty(tensor.shape, dtype=tensor.dtype)
        if whole.numel():
            dist.broadcast(whole.view(-1).view(torch.uint8), 0, group=self._group)  # gloo does not know every dtype
        return whole

    def same(self, what: str, number: int) -> None:
        """Make sure that all processes have the same number, e.g. a hash.

        Raises:
            HeadwayError: when they have not.
        """
        number %= 2**53  # what a float64 holds exactly
        if any(other != [float(number)] for other in self.all_of([float(number)])):
            raise HeadwayError(f"expected the same {what} in every process, got others: start all of them alike")


def launched() -> bool:
    """Whether torchrun, or something like it, started this process as one of a group."""
    return all(os.environ.get(name) for name in _LAUNCHED)


def is_first() -> bool:
    """Whether this process is alone, or the first of those that torchrun started."""
    return not launched() or os.environ["RANK"] == "0"


@contextlib.contextmanager
def processes(kind: str | None = None, device: torch.device | str = "cpu") -> Iterator[World]:
    """Join the group that torchrun started, and leave it at the end; a group that exists already is used and left.

    Args:
        kind: "ddp" or "fsdp"; None is ddp under torchrun, and one process without it.
        device: "cpu", or "cuda", of which each process gets its own.

    Raises:
        HeadwayError: when a kind is asked for without torchrun, or a process has no GPU of its own.

    >>> with processes() as world:
    ...     world.size
    1
    """
    device = torch.device(device)
    if kind is not None and kind not in KINDS:
        raise HeadwayError(f"expected parallel to be {' or '.join(KINDS)}, got {brief(kind)}")
    if not launched():
        if kind is not None:
            raise HeadwayError(
                f"expected torchrun for parallel={kind}, got one process alone: "
                f"run `torchrun --nproc-per-node 2 -m headway train …`"
            )
        yield World(device=device)
        return
    if kind != "fsdp" and os.environ["WORLD_SIZE"] == "1":
        yield World(device=device)
        return
    device = _own(device)
    import torch.distributed as dist

    joined = not dist.is_initialized()
    if joined:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_LONG)
    group: Any = dist.new_group(backend="gloo", timeout=_LONG)
    failed = False
    try:
        yield World(dist.get_rank(), dist.get_world_size(), kind or "ddp", device, group)
    except BaseException as error:
        failed = True
        _note(error)  # before the connections close, so that what the others see is not the first error
        if is_lost(error):
            lost = LostProcess(f"expected {dist.get_world_size()} processes, but one of them ended: start them again")
            lost.repeated = error.repeated  # type: ignore[attr-defined]
            raise lost from error
        raise
    finally:
        if _commands:
            _ignore_termination()
        _leave(joined, group, failed)


def _leave(joined: bool, group: Any, failed: bool) -> None:
    """Give a group up.

    Its destructor waits for torch's threads while it holds Python's lock, which such a thread may want for giving back
    what its last exchange held: after a failure, when exchanges are pending, that is forever. Then the group is kept,
    and its connections are closed when the process ends.
    """
    import torch.distributed as dist

    if failed:
        for one in (group, dist.group.WORLD):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))
        return
    time.sleep(0.1)  # without the lock: every exchange is over, and the threads can finish
    dist.destroy_process_group(None if joined else group)


def _own(device: torch.device) -> torch.device:
    """The device of this process among those of its kind."""
    if device.type == "cpu":
        return device
    number, have = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device.type != "cuda" or device.index is not None:
        raise HeadwayError(
            f"expected device cpu or cuda under torchrun, where each process has a GPU of its own, got {device}"
        )
    if number >= have:
        raise HeadwayError(
            f"expected a GPU for each process, got process {number} on a machine with {have}: "
            f"run `torchrun --nproc-per-node {max(have, 1)} …`"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


_LOST = ("gloo", "nccl", "connection reset", "connection closed", "broken pipe")


def is_lost(error: BaseException) -> bool:
    """Whether an exchange failed because another process has ended."""
    import torch.distributed as dist

    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or any(word in str(error).lower() for word in _LOST)
    )


_commands: list[None] = []


@contextlib.contextmanager
def as_command() -> Iterator[None]:
    """Around what a command does: when its group has ended, in whatever way, the process ignores SIGTERM.

    torchrun sends it as soon as one process has ended, while another still says what came of it.
    """
    _commands.append(None)
    try:
        yield
    finally:
        _commands.pop()


def is_repeated(error: BaseException) -> bool:
    """Whether another process of the group was the first to have an error, and prints it."""
    _note(error)
    return bool(getattr(error, "repeated", False))


def _note(error: BaseException) -> None:
    if launched() and not hasattr(error, "repeated"):
        error.repeated = not _claim()  # type: ignore[attr-defined]


def _claim() -> bool:
    """Whether this is the first process of the group to say why it ends; without a store, each says it."""
    import torch.distributed as dist
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    key = f"headway/ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun's, which outlives every process
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store: Any = TCPStore(address, port, is_master=False, timeout=datetime.timedelta(seconds=10))
        elif dist.is_initialized():
            store = dist.distributed_c10d._get_default_store()
        else:
            return True
        return bool(store.add(key, 1) == 1)
    except (RuntimeError, ValueError, OSError):
        return True


def _ignore_termination() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
