"""The training loop: deterministic, resumable to the bit, stoppable at any moment, and as fast as bare PyTorch."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor, nn

from headway.parallel.process import LostProcess, World, is_lost
from headway.shapes import HeadwayError
from headway.training.batches import IGNORED, AnyBatches
from headway.training.checkpoint import Checkpoint, Checkpoints, not_finite, share
from headway.training.execution import Engine, Execution
from headway.training.files import FolderLock, clean_leftovers, make_folder, write_json_atomic
from headway.training.history import History
from headway.training.optimizer import learning_rate
from headway.training.settings import TrainSettings
from headway.training.validation import validated


@dataclass(frozen=True)
class Progress:
    """Progress of a run, passed to ``on_progress`` at most ten times a second, at every validation, and at the end.

    Args:
        step: completed steps.
        steps: total steps.
        loss: training loss of the last step, in nats per token.
        tokens_per_second: training speed since this process started.
        seconds_left: remaining training time at that speed.
        validation_loss: the new loss, when a validation has just run.
    """

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float
    validation_loss: float | None = None


class Observer:
    """Observes a training without changing it: no weights, gradients, modes or random numbers.

    A subclass overrides what it needs; an exception it raises ends the run.
    """

    def begin(self, trainer: Trainer) -> None:
        """Before the first step of this process, after resuming; ``len(trainer.history.steps)`` are completed."""

    def after(self, trainer: Trainer, finished: int) -> None:
        """After each applied step, and its validation if there was one; ``trainer.history`` has the values."""

    def settle(self, trainer: Trainer) -> None:
        """Before a checkpoint is saved: data of the steps so far must be on disk by then."""

    def end(self, trainer: Trainer) -> None:
        """When the run ends, for whatever reason."""


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and restore the mode of every module afterwards.

    >>> model = nn.Dropout()
    >>> with evaluating(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class Handlers:
    """Hands ctrl-C and SIGTERM to ``handle`` while it is entered, and gives them back to whoever had them."""

    def __init__(self) -> None:
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python allows handlers only in the main thread; elsewhere `stop` is the way to stop.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # getsignal is None for a handler that was not set from Python: it could not be put back.
                if signal.getsignal(number) is not None:
                    self._old[number] = signal.signal(number, self.handle)
        return self

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Called with each of these signals."""
        raise NotImplementedError

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def __exit__(self, *_: object) -> None:
        self.restore()


class _Signals(Handlers):
    """Defers ctrl-C or SIGTERM until the current step is finished; a second one acts at once.

    In a group of processes only one that comes later does: the first may come from the terminal and from torchrun.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.received = False
        self._patience, self._since = (5.0 if world.many else 0.0), 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first, act on the second."""
        if not self.received:
            self.received, self._since = True, time.monotonic()
        elif time.monotonic() - self._since >= self._patience:
            self.restore()
            signal.raise_signal(number)


class Trainer:
    """Trains a model to predict targets, and saves it so that at most the steps since the last checkpoint are lost.

    The same build, device kind and thread count give the same bits, also after a resume, with dropout: before each step
    the global random generator is seeded from (seed, step). So its state need not be saved, one integer suffices on
    every device, and a validation that uses random numbers changes nothing. The generator is restored afterwards.

    Args:
        model: ``model(tokens (B, N)) -> logits (B, N, vocabulary)``; it is trained in place, on the device it is on.
        batches: ``batches(step) -> (inputs (B, N), targets (B, N))``, a pure function; targets of -100 are ignored. A
            model of several arguments gets a dict of them as inputs.
        settings: how to train.
        validation: ``validation(model) -> float``, called in evaluation mode without gradients; None for none.
        folder: where to save; a run in it is resumed. None saves nothing.
        on_progress: called with a `Progress`; an exception it raises ends the run.
        extra: plain JSON values stored in each checkpoint; resuming requires the same values.
        observers: notified of every step; results are the same with and without them.
        execution: how to compute, see :class:`headway.training.Execution`; its ``parallel`` is the world's.
        world: the processes that train together, of :func:`headway.parallel.processes`. Each of them makes a trainer
            from the same model, batches and settings; the first one alone writes files, and calls ``on_progress`` and
            the observers. Default: this process alone.

    Raises:
        HeadwayError: when the model has nothing to train, or no position to drop where the settings ask for it.

    >>> from headway.training.batches import TextBatches
    >>> model = nn.Sequential(nn.Embedding(256, 8), nn.Linear(8, 256))
    >>> settings = TrainSettings(steps=3, batch=2, length=4)
    >>> batches = TextBatches(torch.arange(100), settings.length, settings.batch, settings.seed)
    >>> history = Trainer(model, batches, settings).run()
    >>> history.status, history.steps
    ('done', [1, 2, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        batches: AnyBatches,
        settings: TrainSettings,
        *,
        validation: Callable[[nn.Module], float] | None = None,
        folder: Path | str | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        extra: Mapping[str, Any] | None = None,
        observers: Sequence[Observer] = (),
        execution: Execution | None = None,
        world: World | None = None,
    ) -> None:
        if settings.drop_position and not callable(getattr(model, "drop_position", None)):
            raise HeadwayError(
                f"expected a model with drop_position(), such as headway.Transformer, because the settings drop it, "
                f"got {type(model).__name__}: set drop_position=0"
            )
        self.model, self.batches, self.settings = model, batches, settings
        self.world, self.execution = world or World(), execution or Execution()
        first = self.world.first
        self.validation, self.on_progress, self.extra = validation, on_progress if first else None, dict(extra or {})
        self.observers = tuple(observers) if first else ()
        self._engine = Engine(model, settings, self.execution, self.world)
        self.optimizer = self._engine.optimizer
        self.folder = None if folder is None else Path(folder)
        self.history = History()
        self.resumed_from: int | None = None
        self.notes: list[str] = []
        self._checkpoints = None if self.folder is None else Checkpoints(self.folder / "checkpoints", settings.keep)
        self._saved: int | None = None

    def run(self, stop: Callable[[], bool] | None = None, *, lock: object | None = None) -> History:
        """Train until done, stopped or diverged; resume first when the folder holds a checkpoint.

        Args:
            stop: called after every step; True saves and ends the run as ``"interrupted"``. It is for other threads;
                ctrl-C and SIGTERM do the same in the main thread (a second ctrl-C acts at once).
            lock: what the caller holds to be the only writer of ``folder``; None takes a `FolderLock` for the run.

        Returns:
            The history of the whole run, including the part before a resume. ``"diverged"`` means a loss or gradient
            that is not finite: the step was not applied, the weights are those before it, and ``reason`` names it.

        Raises:
            HeadwayError: when another process trains in the folder, a checkpoint there belongs to other settings or
                another model, or saving fails (a full disk); earlier checkpoints are then intact.
        """
        try:
            with contextlib.ExitStack() as held:
                self._run(held, stop, lock)
        except RuntimeError as error:
            if not (self.world.many and is_lost(error)):
                raise
            raise LostProcess(self._lost()) from error
        return self.history

    def _run(self, held: contextlib.ExitStack, stop: Callable[[], bool] | None, lock: object | None) -> None:
        device = self._engine.device
        if self.folder is not None and self.world.first:
            make_folder(self.folder)
            if lock is None:
                held.enter_context(FolderLock(self.folder))
        signals = held.enter_context(_Signals(self.world))
        held.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        self._resume()
        with self._engine.training():
            for observer in self.observers:
                held.callback(observer.end, self)
                observer.begin(self)
            self._loop(lambda: self.world.any(signals.received or (stop is not None and stop())))
        self._write_history()

    def _lost(self) -> str:
        saved = "none was saved" if not self._saved else f"step {self._saved}"
        return (
            f"expected {self.world.size} processes to the end, but one of them ended after step "
            f"{len(self.history.steps)}: what is lost are the steps since the last checkpoint ({saved}); "
            f"run the same command to resume, with any number of processes"
        )

    def _loop(self, stop: Callable[[], bool]) -> None:
        settings, model, optimizer, history = self.settings, self.model, self.optimizer, self.history
        pace = _Pace(self.on_progress, settings.steps)
        first = len(history.steps)
        history.status, history.reason = "running", None
        drops = settings.drop_position > 0
        for step in range(first, settings.steps):
            begin = time.perf_counter()
            if drops and step >= settings.positioned:
                model.drop_position()  # type: ignore[operator]
                drops = False
            inputs, targets = self.batches(step)
            rate = learning_rate(step, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, norm = self._engine.backward(step, inputs, targets)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._diverge(step, _why(loss, norm, targets))
                return
            optimizer.step()
            seconds = time.perf_counter() - begin
            history.steps.append(step + 1)
            history.loss.append(loss)
            history.lr.append(rate)
            history.grad_norm.append(norm)
            history.seconds += seconds
            history.tokens += targets.numel()
            found = None
            last = step + 1 == settings.steps
            if self.validation is not None and _due(step + 1, settings.validate_every, last):
                found = self._validate(step + 1)
                if not math.isfinite(found):
                    self._diverge(step + 1, f"the validation loss after step {step + 1} is {found}")
                    return
            for observer in self.observers:
                observer.after(self, step + 1)
            pace.tell(step + 1, loss, seconds, targets.numel(), found, last)
            if last:
                history.status = "done"
            elif stop():
                history.status = "interrupted"
            if history.status != "running" or _due(step + 1, settings.checkpoint_every, last):
                if name := self._not_finite():
                    self._diverge(step + 1, f"the weights {name} overflowed")
                    return
                self._save(step + 1)
            if history.status == "interrupted":
                return
        history.status = "done"

    def _not_finite(self) -> str | None:
        name = not_finite(self.model)
        return (name or "of another process") if self.world.any(name is not None) else None

    def _validate(self, finished: int) -> float:
        assert self.validation is not None
        self.optimizer.zero_grad(set_to_none=True)
        with evaluating(self.model), torch.no_grad(), self._engine.autocast():
            found = validated(self.validation, self.model, self.world)
        if math.isfinite(found):
            self.history.validation_steps.append(finished)
            self.history.validation_loss.append(found)
        return found

    def _diverge(self, finished: int, why: str) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.history.status = "diverged"
        self.history.reason = f"{why}: try a lower learning rate, a longer warm-up, or gradient clipping"
        # A weight can overflow in a step whose gradient was finite; the checkpoints before it stay the last ones.
        if finished > 0 and self._not_finite() is None:
            self._save(finished)

    def _save(self, finished: int) -> None:
        if self._checkpoints is None or self._saved == finished:
            return
        for observer in self.observers:
            observer.settle(self)
        values = {
            "history": self.history.to_json(),
            "settings": self.settings.plain(),
            "environment": self._environment(),
            "extra": self.extra,
        }
        self._checkpoints.save(finished, self.model, self.optimizer, values, write=self.world.first)
        self._saved = finished
        self._write_history()

    def _write_history(self) -> None:
        if self.folder is not None and self.world.first:
            write_json_atomic(self.folder / "history.json", self.history.to_json())

    def _resume(self) -> None:
        if self._checkpoints is None:
            return
        checkpoint = share(self._latest() if self.world.first else None, self.world)
        if checkpoint is None:
            return
        history, before = _checked(checkpoint, self.settings, self.extra)
        if before < self.settings.steps:
            self.notes.append(
                f"continued a run of {before} steps to {self.settings.steps}: from step {checkpoint.step + 1} on, the "
                f"learning rate is that of a run of {self.settings.steps} steps"
            )
        checkpoint.restore(self.model, self.optimizer, self.world)
        if checkpoint.step > self.settings.positioned:
            self.model.drop_position()  # type: ignore[operator]
        self.history = history
        self.resumed_from = self._saved = checkpoint.step
        here, there = self._environment(), checkpoint.values["environment"]
        if here != there:
            self.notes.append(f"resumed under {here}, saved under {there}: the last bits of results may differ")

    def _latest(self) -> Checkpoint | None:
        assert self.folder is not None
        assert self._checkpoints is not None
        clean_leftovers(self.folder)
        self._checkpoints.clean()
        checkpoint, skipped = self._checkpoints.latest()
        self.notes += skipped
        if checkpoint is None and skipped:
            raise HeadwayError(
                f"expected a whole checkpoint in {self._checkpoints.folder}, got only damaged ones ("
                f"{'; '.join(skipped)}): move the folder away to start again"
            )
        return checkpoint

    def _environment(self) -> dict[str, Any]:
        """What the last bits of results depend on."""
        execution, world = self.execution, self.world
        found = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": self._engine.device.type}
        if world.many:
            found |= {"processes": world.size, "parallel": world.kind}
        if execution.accumulate > 1:
            found["accumulate"] = execution.accumulate
        return {**found, "compile": True} if execution.compile else found


def _checked(checkpoint: Checkpoint, settings: TrainSettings, extra: Mapping[str, Any]) -> tuple[History, int]:
    """The record in a checkpoint and the steps of its run, after making sure that it belongs to these settings.

    Only the number of steps may differ: a run can be continued to more.
    """
    values = checkpoint.values
    if set(values) != {"history", "settings", "environment", "extra"}:
        raise HeadwayError(f"expected a trainer's values in {checkpoint.path}, got {sorted(values)}: not one of ours")
    history = History.from_json(values["history"])
    saved = TrainSettings.of(values["settings"])
    longer = is_longer(settings, saved)
    if longer and saved.drop_position and checkpoint.step > saved.positioned:
        raise HeadwayError(
            f"expected a run with position to be continued to {settings.steps} steps, got one that dropped it after "
            f"step {saved.positioned}: choose another folder"
        )
    if saved != settings and not longer:
        raise HeadwayError(
            f"expected the settings of the run in {checkpoint.path.parent.parent}, got others "
            f"({differences(saved.plain(), settings.plain())}): use its settings or another folder"
        )
    if not longer:  # what it was saved with, the run's settings, has other steps
        check_extra(checkpoint, extra)
    if len(history.steps) != checkpoint.step or checkpoint.step > settings.steps:
        raise HeadwayError(
            f"expected {checkpoint.step} recorded steps in {checkpoint.path}, got {len(history.steps)}: it is damaged"
        )
    return history, saved.steps


def is_longer(settings: TrainSettings, saved: TrainSettings) -> bool:
    """Whether settings differ from saved ones in a larger number of steps only, to which the run is continued."""
    return saved.steps < settings.steps and replace(saved, steps=settings.steps) == settings


def check_extra(checkpoint: Checkpoint, extra: Mapping[str, Any]) -> None:
    """Make sure that a checkpoint was saved with these extra values, as far as it holds them.

    Raises:
        HeadwayError: when it was saved with others.
    """
    kept = checkpoint.values.get("extra")
    for name, value in extra.items():
        if isinstance(kept, dict) and kept.get(name, value) != value:
            raise HeadwayError(
                f"expected the {name} that {checkpoint.path} was saved with, got others: "
                f"one of them is damaged or comes from another run"
            )


def differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Say where two records of plain values differ.

    >>> differences({"lr": 0.1, "steps": 5}, {"lr": 0.2, "steps": 5})
    'lr was 0.1, is 0.2'
    """
    names = [*saved, *(name for name in given if name not in saved)]
    return ", ".join(f"{n} was {saved.get(n)!r}, is {given.get(n)!r}" for n in names if saved.get(n) != given.get(n))


class _Pace:
    """Tells progress without slowing training down."""

    def __init__(self, on_progress: Callable[[Progress], None] | None, steps: int) -> None:
        self._tell, self._steps = on_progress, steps
        self._seconds = self._next = 0.0
        self._count = self._tokens = 0

    def tell(self, step: int, loss: float, seconds: float, tokens: int, found: float | None, last: bool) -> None:
        if self._tell is None:
            return
        self._seconds += seconds
        self._tokens += tokens
        self._count += 1
        now = time.monotonic()
        if now < self._next and not last and found is None:
            return
        self._next = now + 0.1
        left = (self._steps - step) * self._seconds / self._count
        self._tell(Progress(step, self._steps, loss, self._tokens / self._seconds, left, found))


def _due(finished: int, every: int | None, last: bool) -> bool:
    return last or (every is not None and finished % every == 0)


def _why(loss: float, norm: float, targets: Tensor) -> str:
    if not bool((targets != IGNORED).any()):
        return "the batch has no target but -100, so its loss is not defined"
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    return f"the gradient norm is {norm}"
