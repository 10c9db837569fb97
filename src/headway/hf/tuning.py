"""Tune a model of transformers on windows of a text with headway's trainer: seeded, deterministic, resumable."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headway.hf.continuing import Continued
from headway.hf.long_texts import accelerated
from headway.hf.own_text import OwnText
from headway.shapes import HeadwayError
from headway.training.batches import IGNORED, TextBatches
from headway.training.corpus import digest
from headway.training.loop import Progress, Trainer
from headway.training.settings import TrainSettings

TUNING = "tuning"
"""Folder of the checkpoints of a tuning, removed when the tuned model is written."""


def tune(
    model: PreTrainedModel,
    text: OwnText,
    *,
    length: int,
    steps: int,
    lr: float,
    batch: int,
    seed: int,
    folder: Path | None,
    extension: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] | None = None,
) -> PreTrainedModel:
    """A copy of a model, tuned in float32 and given back in its own dtype.

    A tuning that is resumed in a folder must be of the same text and extension.

    Raises:
        HeadwayError: when it was interrupted, or diverged.
    """
    dtype = model.dtype
    tuned: PreTrainedModel = copy.deepcopy(model)
    for parameter in tuned.parameters():
        parameter.data = parameter.data.float() if dtype in (torch.float16, torch.bfloat16) else parameter.data
    before = len(text.prefix)
    windows = TextBatches(text.train, length - before, batch, seed)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = windows(step)
        prefix = torch.tensor([text.prefix] * batch, dtype=torch.long).reshape(batch, -1)
        known = torch.cat((prefix, inputs[:, :1]), 1)[:, 1:].clone()  # targets of the prefix
        known[:, :-1] = IGNORED
        return torch.cat((prefix, inputs), 1), torch.cat((known, targets), 1)

    def say(progress: Progress) -> None:
        if tell is not None:
            tell(f"tuning: step {progress.step} of {steps}, loss {progress.loss:.3f}")

    settings = TrainSettings(
        steps=steps, batch=batch, length=length, lr=lr, weight_decay=0.0, seed=seed, checkpoint_every=100
    )
    with accelerated(tuned):
        extra = {"extension": dict(extension or {}), "text": digest(text.train, text.held_out)}
        history = Trainer(Continued(tuned, None), batches, settings, folder=folder, on_progress=say, extra=extra).run()
    if history.status != "done":
        where = "nothing was saved" if folder is None else f"run the same command to resume from {folder}"
        raise HeadwayError(
            f"expected {steps} steps of tuning, got {len(history.steps)} ({history.reason or 'interrupted'}): {where}"
        )
    for parameter in tuned.parameters():
        parameter.data = parameter.data.to(dtype)
    tuned.train(model.training)
    return tuned
