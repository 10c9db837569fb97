"""A training that one can play, pause, step and stop while looking at it.

It is :class:`headway.training.Trainer` in a thread of its own: the same steps, the same numbers as ``headway train``.
Between two steps it tells what happened and waits its turn.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from headway.inspect.watch import Watch
from headway.shapes import HeadwayError, brief
from headway.training.data import TextData
from headway.training.history import History
from headway.training.loop import Observer, Trainer
from headway.training.models import new_model
from headway.training.settings import TrainSettings
from headway.training.text import Text, read_text
from headway.training.vocabularies import Wanted
from headway.training.vocabulary import token_texts
from headway.training.watching import Watcher
from headway.transformer import Transformer

EVENTS = 10_000
"""Events that are kept; a reader that was away for longer misses the oldest and can ask :attr:`Live.history`."""
ROOM = 2**26
"""Bytes its watch may take."""


class _Stopped(Exception):
    """Leaves the loop of a training that is to stop before its next step."""


class Live:
    """A training in a thread: play, pause, step, look, stop.

    Every event is a dict of plain values with ``number`` (1, 2, 3 …) and ``kind``:

    - ``"step"``: ``step`` (finished steps), ``loss``, ``grad_norm``, ``lr``, ``seconds`` (of this step),
      ``validation_loss`` (None unless validated now), and, at every look, ``ratios`` (a list by layer of
      ``{"q": ‖ΔW‖/‖W‖, "k": …, "v": …}``) and ``entropies`` (layers × heads, in nats); None otherwise.
    - ``"state"``: ``state``, whenever it changes.
    - ``"error"``: ``message``, one sentence; the state is then ``"failed"``.

    The random generator of torch belongs to the process, and each step seeds it: whoever draws numbers elsewhere in the
    process does so within :meth:`still`.

    Args:
        text: what to train on; None is the built-in text.
        model_config: of a :class:`headway.Transformer`, without ``vocab``.
        settings: how to train; nothing is saved.
        vocabulary: "bytes", "bpe", or the path of a ``tokenizer.json``.
        watch_every: steps between two looks at the matrices and entropies.

    Raises:
        HeadwayError: when the text is too short, or the config or the vocabulary is none.

    >>> settings = TrainSettings(steps=3, batch=2, length=8)
    >>> with Live("to be or not to be " * 20, {"dim": 16, "layers": 1, "heads": 2}, settings) as live:
    ...     live.step(2)
    ...     _ = live.wait(since=2, timeout=30)
    ...     [event["step"] for event in live.events(0) if event["kind"] == "step"][:1]
    [1]
    """

    def __init__(
        self,
        text: str | None,
        model_config: Mapping[str, Any],
        settings: TrainSettings,
        *,
        vocabulary: str = "bytes",
        watch_every: int = 10,
    ) -> None:
        if watch_every < 1:
            raise HeadwayError(f"expected watch_every of at least 1 step, got {watch_every}")
        source = read_text() if text is None else Text(text.encode(), "your text")
        data = TextData.of([source], length=settings.length)
        self.settings, self.vocabulary = settings, data.vocabulary(Wanted.of(vocabulary))
        model = new_model(model_config, self.vocabulary, settings.seed)
        assert isinstance(model, Transformer)
        ready = data.prepare(self.vocabulary, settings)
        assert ready.window is not None
        self._watch = Watch(watch_every, ROOM)
        self._trainer = Trainer(
            model,
            ready.batches,
            settings,
            validation=ready.validation,
            observers=(Watcher(self._watch, ready.window), _Turns(self)),
        )
        self._model = model
        # one condition guards everything below; the thread steps without holding it, so that nobody waits to pause
        self._changed = threading.Condition()
        self._state = "paused"
        self._budget: int | None = 0  # steps it may still take; None is as many as there are
        self._speed: float | None = None
        self._next = self._began = 0.0
        self._stepping = self._stopped = False
        self._visitors = 0
        self._count = 0
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._thread: threading.Thread | None = None

    def play(self) -> None:
        """Train on until paused; nothing where it is done or failed."""
        self._allow(None)

    def step(self, n: int = 1) -> None:
        """Train n steps more and pause; it returns at once.

        Raises:
            HeadwayError: when n is below 1.
        """
        if n < 1:
            raise HeadwayError(f"expected at least 1 step, got {n}")
        self._allow(n)

    def pause(self) -> None:
        """Pause before the next step; the one that runs is finished."""
        with self._changed:
            self._budget = 0
            if self._state == "playing":
                self._become("paused")

    def stop(self) -> None:
        """End the training for good, and wait until its thread has ended; what was recorded can still be asked for."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._changed:
            if self._state in ("paused", "playing"):
                self._become("done")

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def state(self) -> str:
        """``"paused"``, ``"playing"``, ``"done"`` (all steps taken, or stopped) or ``"failed"``."""
        return self._state

    @property
    def finished(self) -> int:
        """Finished steps."""
        return len(self._trainer.history.steps)

    @property
    def speed(self) -> float | None:
        """Steps per second at most; None is as fast as it goes. Set it at any time."""
        return self._speed

    @speed.setter
    def speed(self, value: float | None) -> None:
        if value is not None and not 0 < value < float("inf"):
            raise HeadwayError(f"expected a speed above 0 steps per second, or None, got {brief(value)}")
        with self._changed:
            self._speed, self._next = value, 0.0
            self._changed.notify_all()

    def events(self, since: int = 0) -> list[dict[str, Any]]:
        """The events with a number above ``since`` that are still kept, oldest first."""
        with self._changed:
            missing = self._count - max(since, self._count - len(self._events))
            return [self._events[len(self._events) - missing + i] for i in range(missing)]

    def wait(self, since: int = 0, timeout: float | None = None) -> bool:
        """Wait until there is an event with a number above ``since``; False when ``timeout`` seconds went by first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count > since, timeout)

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """No step runs while this block runs; it begins when the present step is finished."""
        with self._changed:
            self._visitors += 1
            self._changed.wait_for(lambda: not self._stepping)
        try:
            yield
        finally:
            with self._changed:
                self._visitors -= 1
                self._changed.notify_all()

    def question(self, text: str) -> tuple[Transformer, Tensor, list[str]]:
        """A copy of the model as it is now, in evaluation mode, and a text as its token ids, (1, N), and their labels.

        They are what :class:`headway.views.Question` takes.

        Raises:
            HeadwayError: when the text is empty.
        """
        if not text:
            raise HeadwayError("expected a text with at least one character, got none")
        ids = self.vocabulary.encode(text.encode())
        with self.still():
            model = copy.deepcopy(self._model)
        return model.eval(), ids[None], token_texts(self.vocabulary, ids)

    @property
    def watched(self) -> Watch:
        """What was recorded of the matrices until now."""
        with self.still():
            return self._watch.copied()

    @property
    def history(self) -> History:
        """The record until now: loss, gradient norm and learning rate of every step."""
        with self.still():
            return History.from_json(self._trainer.history.to_json())

    def _allow(self, steps: int | None) -> None:
        with self._changed:
            if self._stopped or self._state in ("done", "failed"):
                return
            self._budget, self._next = None if steps is None else steps + (self._budget or 0), 0.0
            if self._state != "playing":
                self._become("playing")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="headway-live", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            history = self._trainer.run()
        except _Stopped:
            return
        except BaseException as error:  # whatever it is, the reader must learn of it
            message = str(error) if isinstance(error, HeadwayError) else f"{type(error).__name__}: {error}"
            self._fail(message)
        else:
            if history.status == "diverged":
                self._fail(history.reason or "the training diverged")
            else:
                with self._changed:
                    self._become("done")
        finally:
            with self._changed:
                self._stepping = False
                self._changed.notify_all()

    def _fail(self, message: str) -> None:
        with self._changed:
            self._tell({"kind": "error", "message": message})
            self._become("failed")

    def _become(self, state: str) -> None:
        self._state = state
        self._tell({"kind": "state", "state": state})

    def _tell(self, event: dict[str, Any]) -> None:
        self._count += 1
        self._events.append({"number": self._count, **event})
        self._changed.notify_all()

    def _finished(self, finished: int) -> None:
        history = self._trainer.history
        validated = history.validation_steps[-1:] == [finished]
        reading = self._watch.readings.get(finished)
        event = {
            "kind": "step",
            "step": finished,
            "loss": history.loss[-1],
            "grad_norm": history.grad_norm[-1],
            "lr": history.lr[-1],
            "seconds": time.perf_counter() - self._began,
            "validation_loss": history.validation_loss[-1] if validated else None,
            "ratios": None if reading is None else reading.ratios,
            "entropies": None if reading is None else reading.entropies,
        }
        with self._changed:
            self._stepping = False
            self._tell(event)
            if self._budget == 0 and self._state == "playing" and finished < self.settings.steps:
                self._become("paused")

    def _turn(self) -> None:
        """Wait until the next step may run."""
        with self._changed:
            while not self._stopped:
                late = self._next - time.monotonic()
                if self._budget != 0 and self._visitors == 0 and late <= 0:
                    break
                self._changed.wait(late if late > 0 else None)
            if self._stopped:
                raise _Stopped
            self._stepping = True
            if self._budget is not None:
                self._budget -= 1
            self._next = 0.0 if self._speed is None else time.monotonic() + 1 / self._speed
            self._began = time.perf_counter()


class _Turns(Observer):
    """Tells a live training of each step, and waits for its next turn."""

    def __init__(self, live: Live) -> None:
        self.live = live

    def begin(self, trainer: Trainer) -> None:
        """Wait for the first turn."""
        self.live._turn()

    def after(self, trainer: Trainer, finished: int) -> None:
        """Tell, and wait."""
        self.live._finished(finished)
        if finished < trainer.settings.steps:
            self.live._turn()
