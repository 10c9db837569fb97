"""Trainings of several processes, each of them a fork; run by test_ranks.py in a process of its own.

The parent never computes with torch, so that forking it is safe.
Usage: python ranks.py SCENARIO FOLDER [ARGUMENTS]
"""

from __future__ import annotations

import hashlib
import json
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
import torch._dynamo  # with fsdp what optimizers and sharded models load, here once instead of in every process
import torch.distributed as dist
import torch.distributed.fsdp
from tiny_model import TOKENS, tiny, tiny_batches, tiny_settings
from torch import Tensor

from headway.parallel import World, processes
from headway.parallel.process import LostProcess
from headway.shapes import HeadwayError
from headway.training import vocabulary
from headway.training.batches import IGNORED, TextBatches, TextValidation
from headway.training.checkpoint import Checkpoints, read_checkpoint
from headway.training.execution import Execution
from headway.training.history import History
from headway.training.loop import Observer, Trainer
from headway.training.masking import MaskedBatches, MaskedValidation
from headway.training.settings import TrainSettings
from headway.transformer import Transformer

LOST = 77


def store() -> tuple[int, str]:
    """A process that hosts a store, as torchrun does, and its port; in the parent it would be a thread."""
    reader, writer = os.pipe()
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        hosted = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(writer, str(hosted.port).encode())
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)
    port = os.read(reader, 16).decode()
    os.close(reader)
    os.close(writer)
    return pid, port


class Group:
    """Processes that run the same action with a world of theirs; each ends with a JSON value."""

    def __init__(self, size: int, kind: str | None, action: Callable[[World], Any]) -> None:
        self._store, port = store()
        self.pids: list[int] = []
        self._pipes: list[int] = []
        for rank in range(size):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
                self._child(kind, action, writer)
            os.close(writer)
            self.pids.append(pid)
            self._pipes.append(reader)

    def _child(self, kind: str | None, action: Callable[[World], Any], writer: int) -> None:
        status = 1
        try:
            with processes(kind) as world:
                found = action(world)
            os.write(writer, json.dumps(found).encode())
            status = 0
        except LostProcess as error:
            os.write(writer, json.dumps([str(error), error.repeated]).encode())  # type: ignore[attr-defined]
            status = LOST
        except HeadwayError as error:
            os.write(writer, json.dumps([str(error), error.repeated]).encode())  # type: ignore[attr-defined]
            status = 2
        except BaseException:
            import traceback

            traceback.print_exc()
        os._exit(status)

    def end(self) -> list[tuple[int, Any]]:
        """Exit status, and what it said, of each process; after a failure the others get SIGTERM, as of torchrun."""
        status: dict[int, int] = {}
        told = False
        while len(status) < len(self.pids):
            for pid in self.pids:
                if pid not in status and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                    status[pid] = os.waitstatus_to_exitcode(ended[1])
            if any(status.values()) and not told:
                told = True
                time.sleep(0.1)
                for pid in self.pids:
                    if pid not in status:
                        os.kill(pid, signal.SIGTERM)
            time.sleep(0.005)
        os.kill(self._store, signal.SIGKILL)
        os.waitpid(self._store, 0)
        said = []
        for pipe in self._pipes:
            with os.fdopen(pipe) as reader:
                text = reader.read()
            said.append(json.loads(text) if text else None)
        return list(zip((status[pid] for pid in self.pids), said, strict=True))


def together(size: int, kind: str | None, action: Callable[[World], Any]) -> list[Any]:
    found = Group(size, kind, action).end()
    assert all(status == 0 for status, _ in found), found
    return [said for _, said in found]


def alone(action: Callable[[World], Any]) -> Any:
    """One process without torchrun's variables."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.write(writer, json.dumps(action(World())).encode())
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        os._exit(status)
    os.close(writer)
    text = b""
    while part := os.read(reader, 65536):
        text += part
    os.close(reader)
    assert os.waitpid(pid, 0)[1] == 0
    return json.loads(text)


class Masked:
    """Batches some of whose targets do not count, more in some rows than in others."""

    def __init__(self, settings: TrainSettings) -> None:
        self.batches = TextBatches(TOKENS, settings.length, settings.batch, settings.seed)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batches(step)
        counts = torch.arange(targets.shape[1]) > (torch.arange(len(targets))[:, None] * 3 + step) % targets.shape[1]
        return inputs, targets.where(counts, IGNORED)


def settings_of(**changes: Any) -> TrainSettings:
    usual = {"steps": 6, "batch": 5, "length": 12, "lr": 0.01, "clip": 0.5, "checkpoint_every": 3, "validate_every": 3}
    return TrainSettings(**{**usual, **changes})


def model_of(position: str = "t5", seed: int = 0, **options: Any) -> Transformer:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Transformer(**{"vocab": 256, "dim": 16, "layers": 2, "heads": 2, "position": position, **options})


def trained(
    world: World, folder: Path | None = None, execution: Execution | None = None, model: Any = None, **changes: Any
) -> dict[str, Any]:
    """Train, and return what happened."""
    settings = settings_of(**changes)
    made = model_of(dropout=0.2) if model is None else model
    trainer = Trainer(
        made,
        Masked(settings),
        settings,
        validation=TextValidation(TOKENS[:200], settings.length, 3),
        folder=folder,
        execution=execution,
        world=world,
    )
    history = trainer.run()
    return {**history.to_json(), "notes": trainer.notes, "resumed": trainer.resumed_from}


def of_masks(world: World) -> dict[str, Any]:
    """Train an encoder on masked tokens."""
    settings, words = settings_of(), vocabulary.Masked(vocabulary.Bytes())
    batches = TextBatches(TOKENS, settings.length, settings.batch, settings.seed)
    validation = MaskedValidation(TOKENS[:200], settings.length, 3, words=words, share=0.3)
    made = model_of("sinusoidal", vocab=words.size, kind="encoder")
    trainer = Trainer(made, MaskedBatches(batches, words, 0.3), settings, validation=validation, world=world)
    return trainer.run().to_json()


def close(one: dict[str, Any], other: dict[str, Any], bound: float = 2e-6) -> None:
    assert one["steps"] == other["steps"]
    assert one["validation_steps"] == other["validation_steps"]
    for name in ("loss", "grad_norm", "validation_loss"):
        for a, b in zip(one[name], other[name], strict=True):
            assert abs(a - b) <= bound * max(abs(a), 1), (name, one[name], other[name])


def digest(folder: Path) -> str:
    checkpoints = Checkpoints(folder / "checkpoints")
    path = read_checkpoint(checkpoints.path(checkpoints.steps()[-1])).path
    both = (path / "model.safetensors").read_bytes() + (path / "optimizer.safetensors").read_bytes()
    return hashlib.sha256(both).hexdigest()


def same_everywhere(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Every process has the same history, times aside."""
    timed = ("seconds", "tokens_per_second", "notes")
    plain = [{name: value for name, value in one.items() if name not in timed} for one in found]
    assert all(one == plain[0] for one in plain), plain
    return found[0]


def equal(root: Path, thorough: int) -> None:
    """Loss, gradient norm and validation of one process, in every way to compute them."""
    whole = alone(lambda world: trained(world, root / "one"))
    assert whole["loss"][0] > whole["loss"][-1]
    for kind in ("ddp", "fsdp"):
        for accumulate in (1, 2) if thorough else (1 + (kind == "fsdp"),):
            folder = root / f"{kind}{accumulate}"
            execution = Execution(accumulate=accumulate)
            found = together(2, kind, lambda w, f=folder, e=execution: trained(w, f, e))
            close(whole, same_everywhere(found))
        names = "one", f"{kind}{accumulate}"
        one, other = (read_checkpoint(root / name / "checkpoints" / "step-00000006") for name in names)
        for part in ("model", "optimizer"):
            a, b = getattr(one, part), getattr(other, part)
            assert a.keys() == b.keys()
            assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a), part
        if thorough:
            halves = together(2, kind, lambda world: trained(world, dtype="bfloat16"))
            close(whole, same_everywhere(halves), 0.02)
            assert halves[0]["loss"] != whole["loss"]
    close(alone(of_masks), same_everywhere(together(2, "ddp", of_masks)))
    print("equal")


def resumed(root: Path, thorough: int) -> None:
    """The same number of processes gives the same bits; another number, and another kind, nearly."""
    whole = {}
    for kind in ("ddp", "fsdp") if thorough else ("fsdp",):
        whole[kind] = together(2, kind, lambda world, kind=kind: trained(world, root / kind))[0]
        together(2, kind, lambda world, kind=kind: stopped(world, root / f"{kind}-cut"))
        for copy in ("other", "one"):
            shutil.copytree(root / f"{kind}-cut", root / f"{kind}-{copy}")
        found = together(2, kind, lambda world, kind=kind: trained(world, root / f"{kind}-cut"))
        assert found[0]["resumed"] == found[1]["resumed"] == 2
        assert found[0]["loss"] == whole[kind]["loss"]
        assert digest(root / kind) == digest(root / f"{kind}-cut")
        other = together(2, "ddp" if kind == "fsdp" else "fsdp", lambda w, k=kind: trained(w, root / f"{k}-other"))[0]
        close(whole[kind], other)
        assert f"'processes': 2, 'parallel': '{kind}'" in other["notes"][0], other["notes"]
        last = alone(lambda world, kind=kind: trained(world, root / f"{kind}-one"))
        close(whole[kind], last)
        assert last["resumed"] == other["resumed"] == 2
    print("resumed")


def stopped(world: World, folder: Path) -> dict[str, Any]:
    """End after two steps because the last process, and it alone, is told to."""
    settings = settings_of()
    trainer = Trainer(
        model_of(dropout=0.2),
        Masked(settings),
        settings,
        validation=TextValidation(TOKENS[:200], settings.length, 3),
        folder=folder,
        world=world,
    )
    history = trainer.run(stop=lambda: world.rank == world.size - 1 and len(trainer.history.steps) == 2)
    assert history.status == "interrupted"
    assert len(history.steps) == 2
    return history.to_json()


class Slow(Observer):
    """Lets a step take its time, and tells when it is finished."""

    def __init__(self, root: Path, seconds: float) -> None:
        self.root, self.seconds = root, seconds

    def after(self, trainer: Trainer, finished: int) -> None:
        (self.root / "begun").touch()
        time.sleep(self.seconds)


def long(world: World, root: Path, steps: int = 400, every: int = 1, seconds: float = 0.01) -> dict[str, Any]:
    settings = tiny_settings(steps=steps, batch=5, checkpoint_every=every, validate_every=None)
    observers = [Slow(root, seconds)]
    batches = tiny_batches(settings)
    trainer = Trainer(tiny(), batches, settings, folder=root / "run", world=world, observers=observers)
    return {**trainer.run().to_json(), "resumed": trainer.resumed_from}


def begun(root: Path) -> None:
    (root / "begun").unlink(missing_ok=True)


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.005)


def ends(root: Path, thorough: int) -> None:
    """SIGTERM, divergence, errors and a death in one process end all."""
    for rank in (0, 1) if thorough else (1,):
        begun(root)
        group = Group(2, "ddp", lambda world: long(world, root, 4000))
        wait_for(root / "begun")
        os.kill(group.pids[rank], signal.SIGTERM)
        found = group.end()
        steps = [len(said["steps"]) for _, said in found]
        assert [(status, said["status"]) for status, said in found] == [(0, "interrupted")] * 2, found
        assert steps[0] == steps[1]
        assert Checkpoints(root / "run" / "checkpoints").steps()[-1] == steps[0]
        begun(root)
        group = Group(2, "fsdp" if rank else "ddp", lambda world: long(world, root, 4000))
        wait_for(root / "begun")
        os.kill(group.pids[rank], signal.SIGKILL)
        found = group.end()
        status, (said, repeated) = found[1 - rank]
        assert found[rank] == (-signal.SIGKILL, None)
        assert (status, repeated) == (LOST, False), found
        assert said.startswith("expected 2 processes to the end, but one of them ended after step"), said
        checkpoint, skipped = Checkpoints(root / "run" / "checkpoints").latest()
        assert not skipped
        assert checkpoint is not None
        assert checkpoint.step >= steps[0]
    errors(root, thorough)
    print("ends")


def errors(root: Path, thorough: int) -> None:
    """One sentence from one process."""

    def fails(world: World, bad: int) -> None:
        if world.rank == bad:
            raise HeadwayError("expected a good rank, got a bad one")
        world.sum([1.0])
        Trainer(tiny(), tiny_batches(tiny_settings()), tiny_settings(), world=world).run()

    for bad in (0, 1) if thorough else (0,):
        found = Group(2, "ddp", lambda world, bad=bad: fails(world, bad)).end()
        assert found[bad] == (2, ["expected a good rank, got a bad one", False]), found
        assert found[1 - bad] == (LOST, ["expected 2 processes, but one of them ended: start them again", True]), found
    too_many = Group(2, "ddp", lambda world: trained(world, execution=Execution(accumulate=3))).end()
    assert [status for status, _ in too_many] == [2, 2], too_many
    assert sorted(said[1] for _, said in too_many) == [False, True], too_many
    assert "expected batch of at least 6 for 2 processes × accumulate=3" in too_many[0][1][0]
    diverged = together(2, "fsdp", lambda world: trained(world, lr=1e38, optimizer="sgd", clip=None))
    assert same_everywhere(diverged)["status"] == "diverged", diverged
    if not thorough:
        return
    found = Group(2, "ddp", lambda world: world.same("seed", world.rank)).end()
    assert all("expected the same seed in every process" in said[0] for _, said in found), found
    # a folder is locked by the first process alone, against all others
    group = Group(2, "ddp", lambda world: long(world, root / "locked"))
    wait_for(root / "locked" / "begun")
    second = Group(2, "ddp", lambda world: long(world, root / "locked")).end()
    assert "expected to be the only writer" in second[0][1][0], second
    for pid in group.pids:
        os.kill(pid, signal.SIGTERM)
    assert [status for status, _ in group.end()] == [0, 0]


def curves(root: Path) -> None:
    """Fifty steps in one, two and four processes, with every kind."""
    execution = Execution(accumulate=2)
    more = {"steps": 50, "batch": 9, "validate_every": 10}
    # fire has parameters without dimensions; two layers share a method that no other part of the model has
    shared = {"pattern": [{}, {"position": "t5"}, {"position": "t5"}], "layers": 3, "share_position": True}
    ways = {"t5": {}, "fire": {"share_position": False}, "learned": shared}
    for position, options in ways.items():

        def made(position: str = position, options: dict[str, Any] = options) -> Transformer:
            return model_of(position, **options)

        whole = alone(lambda world, made=made: trained(world, model=made(), **more))
        for size in (2, 4):
            for kind in ("ddp", "fsdp"):
                found = together(size, kind, lambda world, made=made: trained(world, None, execution, made(), **more))
                close(whole, same_everywhere(found), 1e-4)
                worst = max(abs(a - b) for a, b in zip(whole["loss"], found[0]["loss"], strict=True))
                print("curve", position, size, kind, f"{worst:.1e}")


def compiled(root: Path) -> None:
    """Compiled, with both kinds."""
    whole = alone(lambda world: trained(world, model=model_of()))
    for kind in ("ddp", "fsdp"):
        execution = Execution(compile=True)
        found = together(2, kind, lambda world, e=execution: trained(world, None, e, model_of()))
        close(whole, same_everywhere(found), 1e-5)
    close(whole, alone(lambda world: trained(world, None, Execution(compile=True), model_of())), 1e-5)
    print("compiled")


def killed(root: Path, kills: int, seed: int) -> None:
    """Kill −9 at random times; resume with the same number of processes, then with others."""
    dice = random.Random(seed)
    whole = together(4, "ddp", lambda world: long(world, root / "whole", 60, seconds=0))[0]
    ways = {"same": [(4, "ddp")], "others": [(1, "fsdp"), (2, "ddp"), (2, "fsdp"), (4, "fsdp")]}
    count = 0
    for name, choice in ways.items():
        runs, killed = 0, 0
        while killed < kills // 2:
            runs += 1
            folder = root / f"{name}-{runs}"
            folder.mkdir()
            killed += one_run(folder, choice, dice)
            history = History.from_json(read_checkpoint(last_of(folder)).values["history"])
            assert history.status == "done"
            if name == "same":
                assert history.loss == whole["loss"]
                assert digest(folder / "run") == digest(root / "whole" / "run")
            assert all(abs(a - b) < 1e-4 for a, b in zip(history.loss, whole["loss"], strict=True))
        count += killed
    print("kills", count)


def last_of(folder: Path) -> Path:
    return folder / "run" / "checkpoints" / "step-00000060"


def one_run(folder: Path, choice: list[tuple[int, str]], dice: random.Random) -> int:
    """Let a run be killed until it is done; returns how often it was."""
    kills = saved = 0
    while not last_of(folder).exists():
        size, kind = dice.choice(choice)
        begun(folder)
        group = Group(size, kind, lambda world: long(world, folder, 60, seconds=0.02))
        if dice.random() < 0.8:  # otherwise it may be killed while it starts
            wait_for(folder / "begun")
        time.sleep(dice.random() * 0.6)
        os.kill(dice.choice(group.pids), signal.SIGKILL)
        statuses = [status for status, _ in group.end()]
        # those that wait for one that died before it joined are ended by torchrun, as one that a signal reaches at once
        assert set(statuses) <= {0, LOST, -signal.SIGKILL, -signal.SIGTERM}, statuses
        kills += -signal.SIGKILL in statuses
        checkpoint, skipped = Checkpoints(folder / "run" / "checkpoints").latest()
        assert not skipped
        step = 0 if checkpoint is None else checkpoint.step  # none if it was killed while it wrote the first
        assert step >= saved
        saved = step
    return kills


if __name__ == "__main__":
    torch.set_num_threads(1)
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name in scenario.split(","):
        (folder / name).mkdir(exist_ok=True)
        globals()[name](folder / name, *map(int, sys.argv[3:]))
