"""One cell of a comparison: a model is trained, tested at each length, extended, and tested again."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from headway.compare.cells import Cell
from headway.compare.extending import recalibrated
from headway.compare.models import New
from headway.compare.saved_views import LOOKS, kept_views
from headway.compare.settings import OWN, Comparison
from headway.compare.tasks import Task
from headway.memory import peak_memory
from headway.positions import Position
from headway.shapes import HeadwayError
from headway.training.batches import IGNORED
from headway.training.history import History
from headway.training.loop import Trainer, evaluating
from headway.training.watching import FOLDER, FolderWatcher
from headway.transformer import Transformer


@dataclass(frozen=True)
class Missing:
    """What is left to do of a cell.

    Args:
        lengths: test lengths.
        ways: extensions.
        views: whether its views are to be kept.
    """

    lengths: list[int]
    ways: list[str]
    views: bool


def missing(comparison: Comparison, cell: Cell) -> Missing | None:
    """What is left to do of a cell; None if it is finished."""
    tests = cell.known.setdefault("tests", {})
    lengths = [length for length in comparison.test_lengths if key(comparison, length) not in tests]
    ways = [
        how
        for how in comparison.ways(cell.spec)
        if any(key(comparison, n) not in cell.extended(way(comparison, how)) for n in comparison.test_lengths)
    ]
    views, status = cell.seed == comparison.seeds[0] and not cell.views.exists(), cell.known.get("status")
    finished = status in ("diverged", "failed") or (status == "ok" and not (lengths or ways or views))
    return None if finished else Missing(lengths, ways, views)


def compute(
    comparison: Comparison,
    task: Task,
    models: New,
    cell: Cell,
    tell: Callable[..., None],
    notes: list[str],
    stop: Callable[[], bool],
) -> bool:
    """Train and test one cell, as far as that is not done; False if it was interrupted.

    Args:
        comparison: what is compared.
        task: its task.
        models: what it trains.
        cell: the cell; only this process writes into its folder.
        tell: called with the progress.
        notes: is told what was noticed.
        stop: whether to stop, asked between steps and tests.
    """
    todo = missing(comparison, cell)
    if todo is None:
        return True
    try:
        model = models.build(cell.spec, cell.seed, task.vocab)
    except HeadwayError as error:
        cell.save(status="failed", message=str(error))
        return True
    settings = comparison.train_settings(cell.seed)
    batches = task.batches(settings.length, settings.batch, settings.seed)
    cell.known.setdefault("threads", torch.get_num_threads())
    if "peak_memory_bytes" not in cell.known:
        cell.save(
            parameters=sum(p.numel() for p in model.parameters()),
            position_parameters=None if cell.spec == OWN else _position_parameters(model),
            peak_memory_bytes=_step_memory(model, batches(0)),
        )
    watcher = None
    if todo.views and isinstance(model, Transformer):
        window = batches(0)[0][:1]
        watcher = FolderWatcher(cell.folder / FOLDER, math.ceil(settings.steps / LOOKS), window)
    trainer = Trainer(
        model,
        batches,
        settings,
        validation=task.validation(settings.length, settings.batch),
        folder=cell.folder,
        on_progress=lambda progress: tell("train", progress),
        observers=[] if watcher is None else [watcher],
    )
    history = trainer.run(stop, lock=cell.claim)
    notes += trainer.notes
    if cell.claim is not None and (before := trainer.resumed_from or 0) < len(history.steps):
        cell.claim.trained = before, len(history.steps)
    if history.status == "interrupted":
        return False
    cell.save(status="ok" if history.status == "done" else "diverged", message=history.reason, **_curves(history))
    if history.status != "done":
        return True
    if todo.views:
        watched = watcher.watched if watcher is not None and watcher.watched.steps else None
        _keep(cell, kept_views(model, task, settings.length, watched))
    for length in todo.lengths:
        if stop():
            return False
        tell("test", length=length)
        cell.known["tests"][key(comparison, length)] = _test(task, model, length)
        cell.save()
    return all(_extend(comparison, task, cell, model, how, tell, stop) for how in todo.ways)


def _keep(cell: Cell, views: list[dict[str, Any]]) -> None:
    """Write the views of a cell; the matrices they were made from are no longer needed."""
    cell.keep(views)
    shutil.rmtree(cell.folder / FOLDER, ignore_errors=True)


def _extend(
    comparison: Comparison,
    task: Task,
    cell: Cell,
    model: nn.Module,
    how: str,
    tell: Callable[..., None],
    stop: Callable[[], bool],
) -> bool:
    """Test a trained model after an extension; False if it was interrupted."""
    assert isinstance(model, Transformer)
    named, failure = way(comparison, how), None
    if how == "drope":
        settings = comparison.train_settings(cell.seed)
        longer, history = recalibrated(
            model, task, settings, comparison.recalibration, cell.folder / named, stop=stop, lock=cell.claim
        )
        if history.status == "interrupted":
            return False
        if history.status == "diverged":
            failure = {"status": "diverged", "message": history.reason}
    else:
        longer = model.extended(max(comparison.test_lengths), how, comparison.train_length)
    for length in comparison.test_lengths:
        if stop():
            return False
        tell("test", length=length)
        found = _test(task, longer, length) if failure is None else {"length": length, **failure}
        cell.extended(named)[key(comparison, length)] = found
        cell.save()
    return True


def way(comparison: Comparison, how: str) -> str:
    """The key under which a cell stores the tests of an extension."""
    return f"drope-{comparison.recalibration}" if how == "drope" else how


def key(comparison: Comparison, length: int) -> str:
    """The key under which a cell stores its test at a length; the tested windows depend on the longest length."""
    return f"{length} of {max(comparison.test_lengths)}"


def _test(task: Task, model: nn.Module, length: int) -> dict[str, Any]:
    try:
        with evaluating(model):
            found = task.test(model, length)
    except HeadwayError as error:
        return {"length": length, "status": "cannot", "message": str(error)}
    if not math.isfinite(found["loss"]):
        return {"length": length, "status": "diverged", "message": "the loss is not finite"}
    return {"length": length, "status": "ok", "message": None, **found}


def _position_parameters(model: nn.Module) -> int:
    found = {
        id(p): p.numel() for module in model.modules() if isinstance(module, Position) for p in module.parameters()
    }
    return sum(found.values())


def _step_memory(model: nn.Module, example: tuple[torch.Tensor, torch.Tensor]) -> int:
    """Peak memory of one forward and backward pass, gradients included, weights not."""

    def step() -> None:
        inputs, targets = example
        cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED).backward()

    peak = peak_memory(step)
    model.zero_grad(set_to_none=True)
    return peak


def _curves(history: History) -> dict[str, Any]:
    return {
        "train": {"steps": history.steps, "loss": history.loss},
        "validation": {"steps": history.validation_steps, "loss": history.validation_loss},
        "seconds": history.seconds,
        "tokens_per_second": history.tokens_per_second,
    }
