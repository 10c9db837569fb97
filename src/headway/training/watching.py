"""How a run's matrices learn, kept while it trains: in memory for a live training, in the run folder for a saved one.

watch/readings.json               how often was looked, update/weight ratios, entropies; sealed like all our files
watch/step-00000010.safetensors   W_Q, W_K and W_V after 10 finished steps, and what step 11 did to them

A file is written under another name, flushed and renamed, by a second thread while training goes on; before a
checkpoint is saved all files before it are on the disk. A resumed run takes anew what lies behind its checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headway.inspect.watch import (
    MATRICES,
    ROOM,
    Reading,
    Snapshot,
    Taken,
    Watch,
    entropies,
    looking,
    size_beforehand,
    update_ratios,
)
from headway.schema import Many, Maybe, Number, Record, Whole
from headway.shapes import HeadwayError
from headway.sizes import memory
from headway.training.batches import TokenStore
from headway.training.files import (
    SEAL,
    check_seal,
    clean_leftovers,
    explained,
    make_folder,
    read_json,
    read_regular,
    sealed,
    set_aside,
    write_atomic,
    write_json_atomic,
)
from headway.training.loop import Observer, Trainer
from headway.training.settings import TrainSettings

WINDOW = 64
"""Tokens of the text on which entropies are measured at most, always the same ones."""
SPARING = 4
"""A saved training looks at entropies so much more seldom than at matrices: small models would feel it."""
FOLDER = "watch"
"""Where in a run's folder its watch lies."""
_FORMAT = 1
_NAME = re.compile(r"step-(\d{8,18})\.safetensors")
_READINGS = "readings.json"
_SEALED = b'{"__metadata__":{"sha256":"'
_SCHEMA = Record(
    {
        "format": Whole(_FORMAT, _FORMAT),
        "asked": Whole(1),
        "every": Whole(1),
        "readings": Many(
            Record(
                {
                    "step": Whole(),
                    "ratios": Maybe(Many(Record({which: Number(0) for which in MATRICES}))),
                    "entropies": Maybe(Many(Many(Number()))),
                }
            )
        ),
    }
)


def fixed_window(tokens: TokenStore, length: int) -> Tensor:
    """The beginning of a text, (1, N), short enough for a model trained at a length.

    >>> fixed_window(torch.arange(100), length=8).shape
    torch.Size([1, 8])
    """
    return tokens[: min(WINDOW, length)][None]


def watch_size(model_config: Mapping[str, Any], settings: TrainSettings, every: int) -> int:
    """Bytes that ``train(…, watch=every)`` would write without its limit of :data:`headway.inspect.watch.ROOM`.

    >>> watch_size({"dim": 64, "layers": 2, "heads": 4}, TrainSettings(steps=100), every=10)
    4915200
    """
    from headway.transformer import Transformer

    with torch.device("meta"):
        model = Transformer.from_config({**model_config, "vocab": 1})
    tensors = 5 if settings.optimizer != "sgd" else 4 if settings.momentum else 3
    return size_beforehand(model, settings.steps, every, tensors)


class Watcher(Observer):
    """Looks at the matrices around every so many optimizer steps, and at the heads' entropies after them.

    Args:
        watched: where to keep what is seen; its ``every`` says how often.
        window: token ids to measure entropies on, (1, N).
        sparing: entropies at every so many looks only: they take a forward pass.
    """

    def __init__(self, watched: Watch, window: Tensor, sparing: int = 1) -> None:
        self.watched, self.window, self.sparing = watched, window, sparing
        self._hooks = contextlib.ExitStack()
        self._ratios: list[dict[str, float]] | None = None

    def begin(self, trainer: Trainer) -> None:
        """Start to look."""
        finished = len(trainer.history.steps)
        self._hooks.enter_context(looking(trainer.model, self._due, self._keep, first=finished))
        if finished == 0:
            self.watched.read(0, Reading(entropies=self._entropies(trainer)))

    def after(self, trainer: Trainer, finished: int) -> None:
        """Read the small numbers of a step that was looked at."""
        if self._ratios is not None:
            seldom = (finished - 1) % (self.sparing * self.watched.every)
            self.watched.read(finished, Reading(self._ratios, None if seldom else self._entropies(trainer)))
            self._ratios = None

    def end(self, trainer: Trainer) -> None:
        """Stop to look."""
        self._hooks.close()

    def _due(self, step: int) -> bool:
        return step % self.watched.every == 0

    def _keep(self, step: int, taken: Taken) -> None:
        self._ratios = update_ratios(taken)
        self.watched.add(step, taken)

    def _entropies(self, trainer: Trainer) -> list[list[float]]:
        device = next(trainer.model.parameters()).device
        return entropies(trainer.model, self.window.to(device))


class FolderWatch(Watch):
    """A watch whose matrices lie in a folder, each step in a file of its own, read when asked for.

    Args:
        folder: where; made when :meth:`resume` is called.
        every: steps between two looks.
        room: bytes its matrices may take.
    """

    def __init__(self, folder: Path, every: int, room: int = ROOM) -> None:
        super().__init__(every, room)
        self.folder, self.asked = folder, every
        self._sizes: dict[int, int] = {}
        self._writer: ThreadPoolExecutor | None = None
        self._written: Future[None] | None = None
        self._latest: tuple[int, Taken] | None = None

    def __getitem__(self, step: int) -> Taken:
        if step not in self._sizes:
            return super().__getitem__(step)
        if self._latest is None or self._latest[0] != step:
            self._wait()
            self._latest = step, _read(self._path(step))
        return self._latest[1]

    @property
    def size(self) -> int:
        """Bytes of its matrices."""
        return sum(self._sizes.values())

    def copied(self) -> Watch:
        """What is there now, to read."""
        other = FolderWatch(self.folder, self.every, self.room)
        other.steps, other.readings, other._sizes = list(self.steps), dict(self.readings), dict(self._sizes)
        return other

    def open(self) -> None:
        """Find out what the folder holds.

        Raises:
            HeadwayError: when it is damaged or from another version.
        """
        if (self.folder / _READINGS).exists():
            found = read_json(self.folder / _READINGS, _SCHEMA)
            self.readings = {one["step"]: Reading(one["ratios"], one["entropies"]) for one in found["readings"]}
            layers = {len(part) for one in self.readings.values() for part in (one.ratios, one.entropies) if part}
            if len(layers) > 1:
                raise HeadwayError(f"expected readings of one model in {self.folder}, got several: they are damaged")
            self.asked, self.every = found["asked"], found["every"]
        self._list()

    def resume(self, finished: int, notes: list[str] | None = None) -> None:
        """Go on in the folder after so many finished steps; what lies behind them is given up and will be taken anew.

        The interval is the one asked for now; if that is what the run had been asked for, the one it had come to.
        Readings that are damaged are set aside, and ``notes`` is told: what was watched decides no result.
        """
        asked = self.every
        make_folder(self.folder)
        clean_leftovers(self.folder)
        if finished:
            try:
                self.open()
            except HeadwayError as error:
                with explained(f"setting {self.folder}/{_READINGS} aside"):
                    aside = set_aside(self.folder / _READINGS)
                if notes is not None:
                    notes.append(f"{error}; set aside as {aside.name}, and watched on without them")
                self._list()
            self.every = self.every if self.asked == asked else asked
            self.asked = asked
            self.readings = {step: reading for step, reading in self.readings.items() if step <= finished}
        else:
            self._list()
        self._remove(step for step in list(self._sizes) if step >= finished)
        self._writer = ThreadPoolExecutor(1, "headway-watch")
        self.settle()

    def add(self, step: int, taken: Taken) -> None:
        """Write a look to the folder while training goes on; when the room is full, every second one is removed."""
        assert self._writer is not None
        self._wait()
        tensors = _tensors(taken)
        self._sizes[step] = sum(x.numel() * 4 for x in tensors.values())
        self.steps = sorted(self._sizes)
        self._written = self._writer.submit(_write, self._path(step), tensors)
        if len(self.steps) > 2 and self.size > self.room:
            self.every *= 2
            self.settle()  # the new interval is on the disk before what it gives up is gone
            self._remove(step for step in self.steps if step % self.every)

    def settle(self) -> None:
        """Wait until all files are on the disk, and write the readings."""
        if self._writer is None:
            return
        self._wait()
        readings = [{"step": step, **asdict(one)} for step, one in sorted(self.readings.items()) if _finite(one)]
        write_json_atomic(
            self.folder / _READINGS,
            {"format": _FORMAT, "asked": self.asked, "every": self.every, "readings": readings},
        )

    def close(self) -> None:
        """Write no more."""
        if self._writer is not None:
            try:
                self.settle()
            finally:
                self._writer.shutdown()
                self._writer = None

    def _list(self) -> None:
        with explained(f"reading {self.folder}"):
            found = [(match, path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
            self._sizes = {int(match[1]): path.stat().st_size for match, path in found}
        self.steps = sorted(self._sizes)

    def _wait(self) -> None:
        if self._written is not None:
            written, self._written = self._written, None
            written.result()

    def _remove(self, steps: Iterable[int]) -> None:
        for step in list(steps):
            with contextlib.suppress(OSError):  # what cannot be removed costs space only
                self._path(step).unlink()
            del self._sizes[step]
        self.steps = sorted(self._sizes)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"


class FolderWatcher(Watcher):
    """A :class:`Watcher` that keeps what it sees in a run's folder.

    Args:
        folder: of the watch, in the run's folder.
        every: steps between two looks.
        window: token ids to measure entropies on, (1, N).
    """

    watched: FolderWatch

    def __init__(self, folder: Path, every: int, window: Tensor) -> None:
        if every < 1:
            raise HeadwayError(f"expected watch of at least 1 step, or None, got {every}")
        super().__init__(FolderWatch(folder, every), window, SPARING)

    def begin(self, trainer: Trainer) -> None:
        """Go on where the run goes on."""
        self.watched.resume(len(trainer.history.steps), trainer.notes)
        super().begin(trainer)

    def settle(self, trainer: Trainer) -> None:
        """Nothing before a checkpoint is left to write."""
        self.watched.settle()

    def end(self, trainer: Trainer) -> None:
        """Write what is left."""
        super().end(trainer)
        self.watched.close()


def load_watch(run: Path | str) -> Watch:
    """What ``headway train --watch`` recorded in a run's folder, which may be training at the moment.

    Args:
        run: the run's folder. Matrices are read from it when asked for.

    Raises:
        HeadwayError: when the run was not watched, or what it recorded is damaged.
    """
    folder = Path(run) / FOLDER
    if not (folder / _READINGS).exists():
        raise HeadwayError(
            f"expected a watched run, got {run} without {FOLDER}/: train with `headway train --watch 10`"
        )
    watched = FolderWatch(folder, 1)
    watched.open()
    return watched


def _tensors(taken: Taken) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for (name, which), one in taken.items():
        parts = {"weight": one.weight, "gradient": one.gradient, "update": one.update}
        parts |= {f"state.{kind}": x for kind, x in one.state.items()}
        found |= {f"{name}/{which}/{part}": x.contiguous() for part, x in parts.items() if x is not None}
    return found


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    data = save(tensors, metadata={SEAL: "0" * 64})
    write_atomic(path, sealed(data, 8 + len(_SEALED)), "the run's checkpoints are intact")


def _read(path: Path) -> Taken:
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = read_regular(path, memory())
    if data[8:].startswith(_SEALED):  # the files of headway 0.1.0 have no seal
        check_seal(data, 8 + len(_SEALED), str(path))
    try:
        parts: dict[tuple[str, str], dict[str, Tensor]] = {}
        for key, x in sorted(load(data).items(), key=_in_order):  # safetensors gives them in another order each time
            name, which, part = key.rsplit("/", 2)
            parts.setdefault((name, which), {})[part] = x
        if any(
            which not in MATRICES or len({x.shape for x in part.values()}) > 1 for (_, which), part in parts.items()
        ):
            raise ValueError("matrices that do not fit together")
        if any(x.ndim != 2 for part in parts.values() for x in part.values()):
            raise ValueError("something that is no matrix")
        return {
            key: Snapshot(
                part["weight"],
                part.get("gradient"),
                part["update"],
                {name.removeprefix("state."): x for name, x in part.items() if name.startswith("state.")},
            )
            for key, part in parts.items()
        }
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise HeadwayError(f"expected what was watched in {path}, got content that does not parse: {error}") from error


def _in_order(item: tuple[str, Tensor]) -> list[tuple[int, str]]:
    """Names by their words, numbers in them by their size: layer 2 before layer 10."""
    return [(int(word) if word.isdigit() else -1, word) for word in re.split(r"([0-9]+)", item[0])]


def _finite(reading: Reading) -> bool:
    numbers = [x for layer in reading.ratios or () for x in layer.values()]
    numbers += [x for layer in reading.entropies or () for x in layer]
    return all(map(math.isfinite, numbers))
