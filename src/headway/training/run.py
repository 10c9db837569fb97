"""A run folder: everything needed to go on with a training, or to use what it made.

settings.json    the model's config, the training settings, the vocabulary, the text's name and SHA-256, versions;
                 sealed, and every checkpoint names the seal
history.json     what happened so far, sealed
checkpoints/     the last ones, each whole or absent
watch/           how the matrices learned, where asked for, see watching.py
tokenizer.json   the vocabulary, where it was a file
checkpoint/      where the run continued a checkpoint of transformers: the result, in its format
.lock            held while a process trains here
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headway._version import __version__
from headway.config import TransformerConfig
from headway.parallel.process import World, launched, processes
from headway.schema import PLAIN, Anything, Either, Many, Named, Number, Record, Whole, Words
from headway.shapes import HeadwayError, brief
from headway.sizes import check_size
from headway.training.checkpoint import Checkpoint, Checkpoints
from headway.training.content import Tell
from headway.training.data import Data, Paths, read_data
from headway.training.documents import COLUMN
from headway.training.execution import Execution, check_watched
from headway.training.files import (
    FolderLock,
    clean_leftovers,
    dump_json,
    explained,
    is_leftover,
    make_folder,
    read_json,
    read_sealed,
    write_json_atomic,
)
from headway.training.history import HISTORY, History
from headway.training.loop import Observer, Progress, Trainer, check_extra, differences, is_longer
from headway.training.models import CHECKPOINT, Base, base_of, for_length, new_model, plain, saved_model
from headway.training.ours import MARKER, mark
from headway.training.settings import TrainSettings
from headway.training.tensorboard import TensorBoard
from headway.training.vocabularies import Wanted, keep, vocabulary_from_json
from headway.training.vocabulary import Vocabulary
from headway.training.watching import FOLDER, FolderWatcher

_FORMAT = 1
SETTINGS_SEAL = "settings.json"
"""Under this name a checkpoint of a run keeps the seal of its settings."""
_MOVES = (("text", "name"), ("model", "from"))
"""What a run records and resuming does not compare."""
_SETTINGS = Record(
    {
        "format": Whole(),
        "model": Named(Either((PLAIN, Many(Named(PLAIN))))),
        "train": Named(Anything()),  # TrainSettings checks it
        "vocabulary": Named(Anything()),  # vocabulary_from_json checks it
        "vocabulary_request": Record({"kind": Words()}, optional={"size": Whole(), "sha256": Words()}),
        "text": Record(
            {"name": Words(), "bytes": Whole(), "sha256": Words()},
            optional={"column": Words(), "weights": Many(Number(above=0))},
        ),
        "versions": Named(Words()),
    }
)


@dataclass(frozen=True)
class Run:
    """What a run folder says about itself.

    Args:
        path: the folder.
        config: the model's config, for ``Transformer.from_config``.
        settings: how it was trained.
        vocabulary: how its text becomes ids.
        text: name, bytes and SHA-256 of the text it was trained on.
        versions: of headway, torch and python.
        history: what happened so far.
        seal: of its settings, which its checkpoints name; None in a run of headway 0.1.0.
        notes: one sentence each on what is worth knowing (a damaged checkpoint passed over, a file without checksum).
    """

    path: Path
    config: dict[str, Any]
    settings: TrainSettings
    vocabulary: Vocabulary
    text: dict[str, Any]
    versions: dict[str, Any]
    history: History
    seal: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunResult:
    """What `train` returns.

    Args:
        run: the run folder's content at the end.
        model: the trained model.
        resumed_from: finished steps found at the start; None for a new run.
        notes: one sentence each on what is worth knowing (resumed, already finished, damaged checkpoints skipped).
    """

    run: Run
    model: nn.Module
    resumed_from: int | None
    notes: tuple[str, ...]

    @property
    def history(self) -> History:
        """The record of the whole run."""
        return self.run.history


def train(
    text: Paths = None,
    *,
    out: Path | str,
    model_config: Mapping[str, Any],
    settings: TrainSettings | None = None,
    vocabulary: Path | str = "bytes",
    vocabulary_size: int = 4096,
    on_progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    device: torch.device | str = "cpu",
    watch: int | None = None,
    log_dir: Path | str | None = None,
    max_text: int | None = None,
    weights: Sequence[float] | None = None,
    column: str = COLUMN,
    on_reading: Tell | None = None,
    execution: Execution | None = None,
) -> RunResult:
    """Train a Transformer on a text, in a folder; the same call again resumes it.

    Under torchrun every process makes this call, and all of them train together; see :class:`Execution`. The first one
    alone writes files and calls ``on_progress``.

    Args:
        text: a file, a folder, or None for the built-in text, of any size (see
            :func:`headway.training.sources.open_source`), or a list of them; for ``kind="encoder-decoder"`` a file of
            pairs, see :func:`headway.training.pairs.read_pairs`.
        out: the run folder. New or empty: a run starts. A run with the same settings: it is resumed, or, when it is
            finished, reported as such. Anything else is an error.
        model_config: the model's config without ``vocab``, which the vocabulary decides. What its position method has
            as the length it is trained at becomes ``settings.length``, unless its text sets it (see
            :func:`headway.training.lengths.trained_at`). ``{"from": folder}`` continues a checkpoint of transformers
            with its own vocabulary instead, and ``{"from": folder, "lora": 8}`` trains adapters of this rank; the
            result is in ``out/checkpoint`` when the run is done.
        settings: how to train; None takes the defaults.
        vocabulary: ``"bytes"``, ``"bpe"`` (trained on the training part of the text), or the path of a
            ``tokenizer.json``, see :class:`headway.training.TokenizerJson`; it is copied into the folder.
        vocabulary_size: ids wanted, for bpe.
        on_progress: called with a `Progress` now and then.
        stop: asked after every step; True saves and stops.
        device: where to train; under torchrun "cuda" is a GPU for each process.
        watch: record W_Q, W_K and W_V every so many steps, for :func:`headway.training.load_watch`; the training's
            numbers stay the same, and a resumed run may be watched otherwise. Not for pairs, as the next.
        log_dir: write event files for TensorBoard there, see :class:`headway.training.tensorboard.TensorBoard`.
        max_text: bytes that a text may have; None is any number, or :data:`headway.training.text.MAX_TEXT` for pairs.
        weights: how much of each batch comes from each of several texts, on average; their sum need not be 1. None is
            by their tokens, as if they were one text.
        column: the column of documents in JSONL, parquet and saved data sets.
        on_reading: called with a :class:`headway.training.content.Reading` while a large text is prepared.
        execution: how to compute: kind of parallelism, gradient accumulation, compilation.

    Returns:
        The run, its model, and notes. Under fsdp each process holds a share of the model: `load_model` reads all of it.

    Raises:
        HeadwayError: on a bad text, setting or folder, with one sentence that says what to do.
    """
    settings, execution, folder = settings or TrainSettings(), execution or Execution(), Path(out)
    if (base := base_of(model_config)) is None:
        wanted = Wanted.of(str(vocabulary), vocabulary_size)
    else:
        _check_base(execution, vocabulary, watch, log_dir)
        model_config, settings, wanted = base.config, base.settings(settings), base.wanted
    kind = str(model_config.get("kind", "decoder"))
    if not (folder / "settings.json").exists():  # an older run may go on with what it once ignored
        settings.check_used(kind)
    with processes(execution.parallel, device) as world, contextlib.ExitStack() as held:
        check_watched(world, watch, log_dir)
        data = read_data(
            kind,
            text,
            length=settings.length,
            weights=weights,
            column=world.tell(None if world.first and _is_plain(folder) else column),
            most=max_text,
            tell=on_reading if world.first else None,
        )
        notes: list[str] = [*data.notes, *execution.said(world)]
        lock, existing, seal = _folder(folder, world, held, notes)
        model_config = for_length(model_config, settings.length, existing, notes)
        words = _vocabulary(wanted, data, existing, folder, world)
        if base is None:
            _check_size(model_config, words, settings)
        model = new_model(model_config, words, settings.seed, base)
        if world.kind != "fsdp":  # which moves one block at a time, when it is sharded
            model.to(world.device)
        record = _recorded(plain(getattr(model, "config", model_config)), settings, words, wanted, data)
        world.same("text, model and settings", _number_of(record))
        if existing is not None:
            _check_same(folder, existing, record)
        ready = data.prepare(words, settings)
        trainer = Trainer(
            model,
            ready.batches,
            settings,
            validation=ready.validation,
            folder=folder,
            on_progress=on_progress,
            observers=_observers(folder, ready.window, record, watch, log_dir) if world.first else (),
            execution=execution,
            world=world,
        )
        if world.first:
            if existing is None or existing["train"]["steps"] != settings.steps:  # new, or continued to more steps
                seal = write_json_atomic(folder / "settings.json", {**(existing or record), "train": record["train"]})
            if existing is None:
                keep(words, folder)
        trainer.extra = {SETTINGS_SEAL: world.tell(seal)}
        trainer.run(stop, lock=lock)
        if trainer.resumed_from == settings.steps:
            notes.append(f"the run in {folder} is already finished: {settings.steps} of {settings.steps} steps")
        elif trainer.resumed_from is not None:
            notes.append(f"resumed the run in {folder} after step {trainer.resumed_from} of {settings.steps}")
        model = _given_back(base, trainer, folder, notes)
        run = open_run(folder) if world.first else _unread(folder, record, settings, words, trainer.history)
    return RunResult(run, model, trainer.resumed_from, (*notes, *trainer.notes))


def _check_base(execution: Execution, vocabulary: Path | str, watch: int | None, log_dir: Path | str | None) -> None:
    """Refuse what only headway's own models have."""
    if str(vocabulary) != "bytes":
        raise HeadwayError(
            f"expected no vocabulary beside a checkpoint, which has its own, got {brief(str(vocabulary))}"
        )
    if watch is not None or log_dir is not None:
        raise HeadwayError("expected no watch and no log_dir for a checkpoint, which they cannot show: leave them out")
    if execution.parallel is not None or launched():
        raise HeadwayError("expected one process to continue a checkpoint, got torchrun or parallel: run it alone")


def _check_size(model_config: Mapping[str, Any], words: Vocabulary, settings: TrainSettings) -> None:
    whole = {**model_config, "vocab": words.size}
    check_size(whole, tokens=settings.length, batch=settings.batch, training=True)


def _given_back(base: Base | None, trainer: Trainer, folder: Path, notes: list[str]) -> nn.Module:
    """The trained model; of a checkpoint that was continued the other library's, written when the training is done."""
    if base is None:
        return trainer.model
    # also when nothing was left to train: a process may have been killed before it wrote
    done = trainer.history.status == "done"
    model, said = base.give_back(trainer.model, folder / CHECKPOINT if done else None)
    notes += said
    return model


def _recorded(
    model: Mapping[str, Any], settings: TrainSettings, words: Vocabulary, wanted: Wanted, data: Data
) -> dict[str, Any]:
    """What settings.json holds."""
    return {
        "format": _FORMAT,
        "model": model,
        "train": settings.plain(),
        "vocabulary": words.to_json(),
        "vocabulary_request": wanted.plain(),
        "text": data.described(),
        "versions": {"headway": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _folder(
    folder: Path, world: World, held: contextlib.ExitStack, notes: list[str]
) -> tuple[FolderLock | None, dict[str, Any] | None, str | None]:
    """Lock a run's folder, in the first process, and tell all what it holds: its settings and their seal."""
    lock, existing, seal = None, None, None
    if world.first:
        make_folder(folder)
        _refuse_foreign(folder)
        lock = held.enter_context(FolderLock(folder))
        clean_leftovers(folder)
        existing, seal = _existing(folder, notes)
        mark(folder, "run")
    existing, seal = world.tell((existing, seal))
    return lock, existing, seal


def _vocabulary(
    wanted: Wanted, data: Data, existing: Mapping[str, Any] | None, folder: Path, world: World
) -> Vocabulary:
    """The run's vocabulary, or a new one, which the first process makes."""
    words = None
    if world.first and existing is None:
        words = data.vocabulary(wanted)
    elif world.first and existing is not None:
        words = vocabulary_from_json(existing["vocabulary"], folder)
    plain = world.tell(words.to_json() if words is not None else None)
    if words is not None:
        return words
    # a tokenizer's file need not be where the first process keeps its copy
    if wanted.tokenizer is not None:
        return data.vocabulary(wanted)
    return vocabulary_from_json(plain, folder)


def _number_of(record: Mapping[str, Any]) -> int:
    """A number that only the same text, wherever it lies, the same model and settings have."""
    text = {name: value for name, value in record["text"].items() if name != "name"}
    alike = {field: record[field] for field in ("model", "train", "vocabulary")} | {"text": text}
    return int(hashlib.sha256(dump_json(alike)).hexdigest()[:13], 16)


def _unread(
    folder: Path, record: Mapping[str, Any], settings: TrainSettings, words: Vocabulary, history: History
) -> Run:
    """What a folder says that only the first process can read."""
    return Run(folder, record["model"], settings, words, record["text"], record["versions"], history)


def _observers(
    folder: Path, window: Tensor | None, record: Mapping[str, Any], watch: int | None, log_dir: Path | str | None
) -> list[Observer]:
    """What watches the training, as asked for."""
    if watch is None and log_dir is None:
        return []
    if window is None:
        raise HeadwayError("expected no watch and no log_dir for pairs, which they cannot show yet: leave them out")
    found: list[Observer] = [] if watch is None else [FolderWatcher(folder / FOLDER, watch, window)]
    if log_dir is not None:
        found.append(TensorBoard(log_dir, window, {field: record[field] for field in ("model", "text")}))
    return found


def _existing(folder: Path, notes: list[str]) -> tuple[dict[str, Any] | None, str | None]:
    """Return the settings in a folder and their seal, or None when it is free for a new run."""
    if (folder / "settings.json").exists():
        # Before its first checkpoint a run holds nothing to lose: it may start anew with other settings.
        return _read_settings(folder, notes) if Checkpoints(folder / "checkpoints").steps() else (None, None)
    return None, None


def _is_plain(folder: Path) -> bool:
    """Whether a folder holds a run that read no column, as headway 0.1.0 read documents' files as they are."""
    if not Checkpoints(folder / "checkpoints").steps() or not (folder / "settings.json").exists():
        return False
    return "column" not in _read_settings(folder)[0]["text"]


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds something and is no run, before anything is written into it, the lock included."""
    if (folder / "settings.json").exists():
        return
    # A start that was killed leaves the lock, the marker and half-written files.
    with explained(f"reading {folder}"):
        foreign = sorted(p.name for p in folder.iterdir() if p.name not in (".lock", MARKER) and not is_leftover(p))
    if foreign:
        raise HeadwayError(
            f"expected a new, empty or run folder, got {folder}, which holds {', '.join(foreign[:3])} "
            f"and no settings.json: choose another folder"
        )


def _read_settings(folder: Path, notes: list[str] | None = None) -> tuple[dict[str, Any], str | None]:
    record, seal = read_sealed(folder / "settings.json", _SETTINGS, notes)
    if record["format"] != _FORMAT:
        raise HeadwayError(
            f"expected run format {_FORMAT} in {folder}/settings.json, got {record['format']!r}: "
            f"use the version of headway that wrote it ({record['versions'].get('headway')})"
        )
    return record, seal


def _check_same(folder: Path, existing: dict[str, Any], record: dict[str, Any]) -> None:
    # The text, and a checkpoint that is continued, may have moved; what counts is that they are the same.
    # And options that an older headway did not have are as they were without them.
    usual = {
        "model": TransformerConfig(1).plain() if "vocab" in record["model"] else {},
        "train": TrainSettings().plain(),
    }

    def comparable(values: dict[str, Any], field: str) -> dict[str, Any]:
        given = {**usual.get(field, {}), **values[field]}
        return {name: value for name, value in given.items() if (field, name) not in _MOVES}

    for field in ("model", "train", "vocabulary_request", "text"):
        was, now = comparable(existing, field), comparable(record, field)
        if field == "train" and now["steps"] > was["steps"]:  # a run can be continued
            was["steps"] = now["steps"]
        found = differences(was, now)
        if found:
            raise HeadwayError(
                f"expected the {field} of the run in {folder}, got another ({found}): "
                f"repeat the run's own command to resume it, with more steps to continue it, or choose another folder"
            )


def open_run(path: Path | str) -> Run:
    """Read a run folder without changing it; it may be training at the moment.

    Args:
        path: a folder that `train` made.

    Raises:
        HeadwayError: when it is not a run folder or is damaged.
    """
    folder = Path(path)
    if not (folder / "settings.json").exists():
        raise HeadwayError(f"expected a run folder with settings.json, got {folder}: make one with `headway train`")
    notes: list[str] = []
    record, seal = _read_settings(folder, notes)
    history = History()
    if (folder / "history.json").exists():
        history = History.from_json(read_json(folder / "history.json", HISTORY, notes))
    return Run(
        folder,
        record["model"],
        TrainSettings.of(record["train"]),
        vocabulary_from_json(record["vocabulary"], folder),
        record["text"],
        record["versions"],
        history,
        seal,
        tuple(notes),
    )


def load_model(path: Path | str) -> tuple[nn.Module, Vocabulary, Run]:
    """Load the model of a run's latest whole checkpoint, in evaluation mode on the CPU.

    Args:
        path: a folder that `train` made.

    Returns:
        The model, its vocabulary, and what the run says about itself; its ``notes`` name damaged checkpoints.

    Raises:
        HeadwayError: when there is no run or no whole checkpoint.
    """
    run = open_run(path)
    if "from" in run.config:
        raise HeadwayError(
            f"expected a run of headway's own model, got {run.path}, which continues a checkpoint of transformers: "
            f"open {run.path / CHECKPOINT}, which is written when the run is done"
        )
    checkpoint, skipped = Checkpoints(run.path / "checkpoints").latest()
    if checkpoint is None:
        raise HeadwayError(
            f"expected a whole checkpoint in {run.path}/checkpoints, got none"
            f"{' (' + '; '.join(skipped) + ')' if skipped else ''}: train the run until it has saved one"
        )
    saved = checkpoint.values.get("settings")
    # a run that is being continued to more steps has the settings of before in its checkpoints until the next one
    if not (isinstance(saved, dict) and is_longer(run.settings, TrainSettings.of(saved))):
        check_extra(checkpoint, {SETTINGS_SEAL: run.seal})
    model = saved_model(run.config, checkpoint)
    checkpoint.restore(model)
    if checkpoint.step > run.settings.positioned:
        model.drop_position()  # type: ignore[operator]
    return model.eval(), run.vocabulary, replace(run, notes=(*run.notes, *passed_over(checkpoint, skipped)))


def passed_over(checkpoint: Checkpoint, skipped: Sequence[str]) -> list[str]:
    """What to say when newer checkpoints than this one are damaged."""
    return [f"{'; '.join(skipped)}: used {checkpoint.path.name} instead"] if skipped else []
