"""The live training of the studio: started, played, paused and stepped, and watched by any number of pages."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from headway.shapes import HeadwayError
from headway.studio.fields import Training
from headway.studio.library import LEARNING, checked_size
from headway.training import Bytes, TrainSettings
from headway.training.live import Live
from headway.views import Question

WATCH_EVERY = 5
LENGTH, _BATCH = 64, 8


def repeated(text: str) -> str:
    """A short text, repeated so that the validation split removes none of its content.

    >>> repeated("to be")[:11], len(repeated("to be")) > 1024, repeated("")
    ('to be\\nto be', True, '')
    """
    size = len(text.encode())
    return f"{text}\n" * -(-16 * LENGTH // (size + 1)) if 0 < size < 16 * LENGTH else text


class Stage:
    """Holds the training; a new one replaces the old one.

    ``number`` counts the trainings, so that a page notices that its events are of an older one.
    """

    def __init__(self) -> None:
        self.number = 0
        self._live: Live | None = None
        self._asked: Training | None = None
        self._starting = threading.Lock()

    @property
    def live(self) -> Live:
        """The training.

        Raises:
            HeadwayError: when none was started.
        """
        if self._live is None:
            raise HeadwayError("expected a training in the studio, got none: start one in the panel Live training")
        return self._live

    def start(self, asked: Training) -> None:
        """Start a training, paused before its first step; the one before is stopped."""
        checked_size(asked.model, Bytes.size, LENGTH, batch=_BATCH)
        settings = TrainSettings(
            steps=asked.steps,
            batch=_BATCH,
            length=LENGTH,
            optimizer=asked.optimizer,
            lr=asked.lr,
            warmup=min(10, asked.steps // 10),  # a lesson shows what a step does, so the rate soon is what was chosen
            schedule="constant",
            seed=asked.model.seed,
            validate_every=50,
        )
        config = {name: value for name, value in asked.model.config.plain().items() if name != "vocab"}
        with self._starting:
            made = Live(repeated(asked.text) or None, config, settings, watch_every=WATCH_EVERY)
            self.stop()
            self._live, self._asked = made, asked
            self.number += 1

    def stop(self) -> None:
        """End the training, if there is one; its results remain available."""
        if self._live is not None:
            self._live.stop()

    def still(self) -> contextlib.AbstractContextManager[None]:
        """No training step runs meanwhile, because both would use torch's global random generator."""
        return contextlib.nullcontext() if self._live is None else self._live.still()

    def question(self, text: str, view: str) -> Question:
        """A question about the current model."""
        model, ids, labels = self.live.question(text)
        learning = view in LEARNING
        return Question.of(
            model,
            ids,
            labels,
            vocabulary=self.live.vocabulary,
            name="live",
            watched=self.live.watched if learning else None,
            history=self.live.history if learning else None,
        )

    def plain(self, since: int = 0) -> dict[str, Any]:
        """The update for a page: the state, and its missing events."""
        if self._live is None or self._asked is None:
            return {"session": self.number, "state": "none", "events": []}
        events = self._live.events(since)
        model = self._asked.model
        return {
            "session": self.number,
            "state": self._live.state,
            "finished": self._live.finished,
            "steps": self._asked.steps,
            "model": {name: getattr(model.config, name) for name in ("position", "dim", "heads", "layers")},
            "events": events,
        }
