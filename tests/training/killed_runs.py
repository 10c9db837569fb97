"""Kills training processes and checks what they leave; run by test_kill.py in a process of its own.

The parent never computes with torch, so that forking it is safe; every life of a run is one fork.
Usage: python killed_runs.py points FOLDER TWICE | random FOLDER KILLS SEED
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)
# The first optimizer loads this, for more than a second; here once, instead of once in every life.
import torch._dynamo  # noqa: E402
from tiny_model import tiny, tiny_batches, tiny_settings  # noqa: E402

from headway.training.checkpoint import Checkpoints, read_checkpoint  # noqa: E402
from headway.training.files import read_json  # noqa: E402
from headway.training.loop import Trainer  # noqa: E402
from headway.training.settings import TrainSettings  # noqa: E402

KILLED = 99
_write = os.write


def fork(action: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        action()
    except BaseException as error:
        print("child failed:", repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def finish(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


def life(folder: Path, settings: TrainSettings, report: int | None = None) -> None:
    """Train to the end; report every finished save on a pipe."""
    trainer = Trainer(tiny(), tiny_batches(settings), settings, folder=folder)
    if report is not None:
        checkpoints = trainer._checkpoints
        assert checkpoints is not None
        save = checkpoints.save

        def reporting(step: int, *rest: Any, **named: Any) -> Path:
            path = save(step, *rest, **named)
            _write(report, b"%d\n" % step)
            return path

        checkpoints.save = reporting
    assert trainer.run().status == "done"


def digest(folder: Path, steps: int) -> str:
    path = read_checkpoint(folder / "checkpoints" / f"step-{steps:08d}").path
    both = (path / "model.safetensors").read_bytes() + (path / "optimizer.safetensors").read_bytes()
    return hashlib.sha256(both).hexdigest()


def check_after_kill(folder: Path, reported: list[int]) -> None:
    """Nothing that was saved may be lost, nothing under a trusted name may be damaged."""
    checkpoints = Checkpoints(folder / "checkpoints")
    latest, skipped = checkpoints.latest()
    assert not skipped, skipped
    found = latest.step if latest else 0
    assert found >= max(reported, default=0), (found, reported)
    for step in checkpoints.steps():
        read_checkpoint(checkpoints.path(step))
    if (folder / "history.json").exists():
        read_json(folder / "history.json")


def arm(point: int) -> None:
    """Make this process die at the k-th call that changes the disk; a write leaves half of its bytes."""
    count = [0]

    def dying(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            count[0] += 1
            if count[0] == point:
                if name == "write":
                    handle, data = arguments
                    real(handle, data[: len(data) // 2])
                os._exit(KILLED)
            return real(*arguments, **named)

        setattr(os, name, call)

    for name in ("write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "ftruncate", "pwrite"):
        dying(name)


def slow_disk() -> None:
    """Let a flush take two milliseconds, as on a disk: then saves fill nearly all of the time."""
    real = os.fsync

    def fsync(handle: int) -> None:
        time.sleep(0.002)
        real(handle)

    os.fsync = fsync


def reported_steps(pipe: int) -> list[int]:
    text = b""
    while part := os.read(pipe, 65536):
        text += part
    return [int(line) for line in text.split()]


def reference(root: Path, settings: TrainSettings) -> str:
    assert finish(fork(lambda: life(root / "whole", settings))) == 0
    return digest(root / "whole", settings.steps)


def points(root: Path, twice: int) -> None:
    """Kill at every call that changes the disk, and resume; twice at every ``twice``-th."""
    settings = tiny_settings(steps=3, checkpoint_every=1, validate_every=None)
    expected = reference(root, settings)
    point = 0
    while True:
        point += 1
        folder = root / f"point-{point}"
        reader, writer = os.pipe()

        def doomed(folder: Path = folder, point: int = point, writer: int = writer) -> None:
            arm(point)
            life(folder, settings, writer)

        status = os.waitstatus_to_exitcode(finish(fork(doomed)))
        os.close(writer)
        reported = reported_steps(reader)
        os.close(reader)
        assert status in (0, KILLED), (point, status)
        check_after_kill(folder, reported)
        # The second life finds a finished run and must leave it as it is.
        for _ in range(2 if point % twice == 0 else 1):
            assert finish(fork(lambda folder=folder: life(folder, settings))) == 0, point
            assert digest(folder, settings.steps) == expected, point
        leftovers = [p.name for p in folder.rglob("*") if p.name.startswith("step-") and ".tmp-" in p.name]
        assert not leftovers, (point, leftovers)
        shutil.rmtree(folder)
        if status == 0:
            break
    print(f"points {point - 1}")


def at_random(root: Path, kills: int, seed: int) -> None:
    dice = random.Random(seed)
    settings = tiny_settings(steps=40, checkpoint_every=1, validate_every=None)
    expected = reference(root, settings)
    killed = inside = runs = 0
    while killed < kills:
        runs += 1
        folder = root / f"run-{runs}"
        done = False
        while not done:
            reader, writer = os.pipe()

            def slow_life(folder: Path = folder, writer: int = writer) -> None:
                slow_disk()
                life(folder, settings, writer)

            pid = fork(slow_life)
            os.close(writer)
            first = os.read(reader, 16)
            time.sleep(dice.random() * 0.03)
            os.kill(pid, signal.SIGKILL)
            status = finish(pid)
            reported = [int(line) for line in first.split()] + reported_steps(reader)
            os.close(reader)
            if os.WIFSIGNALED(status):
                killed += 1
                inside += any(".tmp-" in p.name for p in folder.rglob("*"))
            else:
                assert os.WEXITSTATUS(status) == 0
                done = True
            check_after_kill(folder, reported)
        assert digest(folder, settings.steps) == expected
        shutil.rmtree(folder)
    print(f"kills {killed} inside {inside} runs {runs}")


if __name__ == "__main__":
    if sys.argv[1] == "points":
        points(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        at_random(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
