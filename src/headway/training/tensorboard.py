"""A training's numbers as event files for TensorBoard: curves, attention as pictures, settings as text."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headway.inspect.record import recorded
from headway.inspect.watch import Taken, looking, update_ratios
from headway.shapes import HeadwayError
from headway.training.loop import Observer, Trainer
from headway.web.colours import colour_table

SCALE = 4
"""Pixels of a pair of tokens, in each direction."""
GAP = 4
"""White pixels between two heads."""


class TensorBoard(Observer):
    """Writes what happens to a folder that ``tensorboard --logdir`` shows.

    Every step: ``loss/training``, ``learning rate``, ``gradient norm``. At every validation also ``loss/validation``,
    ``update by weight/layer 0 W_Q`` …, ``attention entropy/layer 0 head 0`` … and a picture of each layer's attention
    on a text that stays the same, its heads side by side, each in colours from 0 to its own largest weight.

    A resumed run goes on in the same folder; steps it takes again replace those written before.

    Args:
        folder: where to write.
        window: token ids of that text, (1, N).
        described: plain values to show as text besides the settings.

    Raises:
        HeadwayError: when the library tensorboard is missing.
    """

    def __init__(self, folder: Path | str, window: Tensor, described: Mapping[str, Any]) -> None:
        self._writer_class = _library()
        self.folder, self.window, self.described = Path(folder), window, described
        self._held = contextlib.ExitStack()
        self._writer: Any = None
        self._ratios: list[dict[str, float]] | None = None

    def begin(self, trainer: Trainer) -> None:
        """Open a new event file, which replaces what lies behind the finished steps."""
        finished = len(trainer.history.steps)
        try:
            self._writer = self._writer_class(str(self.folder), purge_step=finished + 1)
        except OSError as error:
            raise HeadwayError(
                f"could not finish writing event files to {self.folder}: {error.strerror}; choose another --log-dir"
            ) from error
        for name, values in {**self.described, "train": trainer.settings.plain()}.items():
            self._writer.add_text(name, _table(values), finished)
        self._held.enter_context(
            looking(trainer.model, lambda step: self._due(trainer, step), self._keep, first=finished)
        )

    def after(self, trainer: Trainer, finished: int) -> None:
        """Write the step's numbers."""
        history = trainer.history
        self._scalar("loss/training", history.loss[-1], finished)
        self._scalar("learning rate", history.lr[-1], finished)
        self._scalar("gradient norm", history.grad_norm[-1], finished)
        if history.validation_steps[-1:] == [finished]:
            self._scalar("loss/validation", history.validation_loss[-1], finished)
        if self._ratios is not None:
            for layer, ratios in enumerate(self._ratios):
                for which, ratio in ratios.items():
                    self._scalar(f"update by weight/layer {layer} W_{which.upper()}", ratio, finished)
            self._ratios = None
            self._attention(trainer, finished)

    def settle(self, trainer: Trainer) -> None:
        """Nothing before a checkpoint is left to write."""
        self._writer.flush()

    def end(self, trainer: Trainer) -> None:
        """Close the file."""
        self._held.close()
        if self._writer is not None:
            self._writer.close()

    def _due(self, trainer: Trainer, step: int) -> bool:
        every = trainer.settings.validate_every
        return step + 1 == trainer.settings.steps or (every is not None and (step + 1) % every == 0)

    def _keep(self, step: int, taken: Taken) -> None:
        self._ratios = update_ratios(taken)

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def _attention(self, trainer: Trainer, finished: int) -> None:
        device = next(trainer.model.parameters()).device
        with torch.no_grad():
            for number, layer in enumerate(recorded(trainer.model, self.window.to(device))):
                for head, entropy in enumerate(layer.summary()["entropy"][0].tolist()):
                    self._scalar(f"attention entropy/layer {number} head {head}", entropy, finished)
                self._writer.add_image(
                    f"attention/layer {number}", picture(layer.weights()[0]), finished, dataformats="HWC"
                )


def picture(weights: Tensor) -> Tensor:
    """The heads of a layer side by side, in colours from 0 to the largest weight of each head.

    Args:
        weights: attention weights, (H, Q, K).

    Returns:
        Red, green and blue as uint8, (4 · Q, H · (4 · K + 4) − 4, 3).

    >>> picture(torch.eye(3).expand(2, 3, 3)).shape
    torch.Size([12, 28, 3])
    """
    colours = torch.tensor(colour_table("sequential"), dtype=torch.uint8)
    weights = weights.detach().float().cpu()
    shares = weights / weights.amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    large = shares.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2)
    maps = colours[(large * (len(colours) - 1)).round().long()]  # (H, height, width, 3)
    spaced = torch.nn.functional.pad(maps, (0, 0, 0, GAP), value=255)
    return spaced.transpose(0, 1).flatten(1, 2)[:, :-GAP]


def _table(values: Mapping[str, Any]) -> str:
    """Plain values as a table in Markdown."""
    rows = [f"| {name} | {json.dumps(value, ensure_ascii=False)} |" for name, value in values.items()]
    return "\n".join(["| setting | value |", "| --- | --- |", *rows])


def _library() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise HeadwayError(
            "expected the library tensorboard for --log-dir, got none: pip install 'headway[tensorboard]'"
        ) from error
    return SummaryWriter
