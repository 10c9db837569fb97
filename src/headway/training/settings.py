"""The settings of a training run: plain values, checked once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headway.shapes import HeadwayError
from headway.training.schema import LARGEST, is_number, shown

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "constant")
STEPS = 1_000_000
"""Steps of a run at most: every checkpoint holds the record of all steps so far."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train: every value that decides the result, and how often to look and save.

    Args:
        steps: optimizer steps in all, at most a million.
        batch: windows in a batch.
        length: tokens in a window.
        optimizer: ``"sgd"`` (with momentum), ``"adam"`` or ``"adamw"``.
        lr: peak learning rate; None takes the optimizer's default (see `headway.training.optimizer.peak_rate`).
        momentum: for sgd, in [0, 1).
        betas: for adam and adamw, decay of the first and second moment, each in [0, 1).
        weight_decay: on matrices only; None is 0.1 for adamw and 0 for the others.
        warmup: steps of linear warm-up; None is a tenth of the steps, at most 100.
        schedule: ``"cosine"`` falls to ``floor`` after the warm-up, ``"constant"`` stays.
        floor: the last learning rate as a share of the peak, in [0, 1].
        clip: largest gradient norm; None does not clip.
        seed: of the initial weights, the order of the data, and dropout.
        validate_every: steps between validations (the last step always validates); None only at the end.
        checkpoint_every: steps between checkpoints (the last step always saves); None only at the end.
        drop_position: how many of the last steps are without position (DroPE, arXiv:2512.12167, which takes 0.5 to 2 %
            of the training): the model's method is dropped, the learning rate warms up and falls once more, and the
            model then reads longer texts than it was trained on.
        keep: how many checkpoints stay, at least 2: the older one is there if the newer one is found damaged.

    Raises:
        HeadwayError: when a value is out of its range.

    >>> TrainSettings(steps=200, optimizer="sgd").momentum
    0.9
    """

    steps: int = 1000
    batch: int = 16
    length: int = 256
    optimizer: str = "adamw"
    lr: float | None = None
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float | None = None
    warmup: int | None = None
    schedule: str = "cosine"
    floor: float = 0.1
    drop_position: int = 0
    clip: float | None = 1.0
    seed: int = 0
    validate_every: int | None = 100
    checkpoint_every: int | None = 100
    keep: int = 2

    def __post_init__(self) -> None:
        _whole("steps", self.steps, 1, STEPS)
        for name, least in (("batch", 1), ("length", 1), ("seed", 0), ("drop_position", 0), ("keep", 2)):
            _whole(name, getattr(self, name), least)
        for name, least in (("warmup", 0), ("validate_every", 1), ("checkpoint_every", 1)):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), least)
        for name, choice, choices in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if choice not in choices:
                raise HeadwayError(f"expected {name} to be one of {', '.join(choices)}, got {shown(choice)}")
        _number("momentum", self.momentum, "in [0, 1)", lambda v: 0 <= v < 1)
        _number("floor", self.floor, "in [0, 1]", lambda v: 0 <= v <= 1)
        if self.lr is not None:
            _number("lr", self.lr, "above 0", lambda v: v > 0)
        if self.weight_decay is not None:
            _number("weight_decay", self.weight_decay, "of at least 0", lambda v: v >= 0)
        if self.clip is not None:
            _number("clip", self.clip, "above 0 (or None)", lambda v: v > 0)
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise HeadwayError(f"expected betas to be two numbers, got {self.betas!r}: (0.9, 0.95) is usual")
        for value in self.betas:
            _number("betas", value, "in [0, 1)", lambda v: 0 <= v < 1)
        if self.warmup is not None and self.warmup > self.steps:
            raise HeadwayError(
                f"expected warmup of at most steps={self.steps}, got {self.warmup}: train longer or warm up less"
            )

        if self.drop_position >= self.steps:
            raise HeadwayError(
                f"expected drop_position below steps={self.steps}, got {self.drop_position}: "
                f"position is dropped after most of the training"
            )

    @property
    def positioned(self) -> int:
        """How many steps have position: all before the last ``drop_position``."""
        return self.steps - self.drop_position

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainSettings:
        """Rebuild settings from `to_json`.

        Raises:
            HeadwayError: on an unknown name or a bad value.

        >>> TrainSettings.from_json(TrainSettings(steps=5).to_json()) == TrainSettings(steps=5)
        True
        """
        if not isinstance(values, Mapping):
            raise HeadwayError(f"expected training settings as a JSON object, got {type(values).__name__}")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(str(name) for name in values if name not in known)
        if unknown:
            raise HeadwayError(f"expected only known training settings, got {', '.join(unknown)[:80]}: remove them")
        plain = dict(values)
        if isinstance(plain.get("betas"), list):
            plain["betas"] = tuple(plain["betas"])
        return cls(**plain)


def _whole(name: str, value: object, least: int, most: int = LARGEST) -> None:
    # bool is an int to Python; as a count it is a mistake.
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        large = isinstance(value, int) and value > most
        above = f"from {least:,} to {most:,}" if large or most < LARGEST else f"of at least {least}"
        raise HeadwayError(f"expected {name} to be a whole number {above}, got {shown(value)}")


def _number(name: str, value: object, range_: str, inside: Any) -> None:
    if not is_number(value) or not inside(value):
        raise HeadwayError(f"expected {name} to be a number {range_}, got {shown(value)}")
