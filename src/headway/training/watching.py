"""How a run's matrices learn, kept while it trains: in memory for a live training, in the run folder for a saved one.

watch/readings.json               how often was looked, update/weight ratios, entropies
watch/step-00000010.safetensors   W_Q, W_K and W_V after 10 finished steps, and what step 11 did to them

A file is written under another name, flushed and renamed, by a second thread while training goes on; before a
checkpoint is saved all files before it are on the disk. A resumed run takes anew what lies behind its checkpoint.
"""

from __future__ import annotations

import contextlib
import re

from torch import Tensor

from headway.inspect.watch import Reading, Taken, Watch, entropies, looking, update_ratios
from headway.training.loop import Observer, Trainer

WINDOW = 64
"""Tokens of the text on which entropies are measured, always the same ones."""
_FORMAT = 1
_NAME = re.compile(r"step-(\d{8,18})\.safetensors")


class Watcher(Observer):
    """Looks at the matrices around every so many optimiser steps, and at the heads' entropies after them.

    Args:
        watched: where to keep what is seen; its ``every`` says how often.
        window: token ids to measure entropies on, (1, N).
    """

    def __init__(self, watched: Watch, window: Tensor) -> None:
        self.watched, self.window = watched, window
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
            self.watched.read(finished, Reading(self._ratios, self._entropies(trainer)))
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
