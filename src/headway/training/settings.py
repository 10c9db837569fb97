"""The settings of a training run: plain values, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from headway.config import MOST, OPTIMIZERS, STEPS
from headway.schema import Number, Whole, Words, require
from headway.settings import Settings
from headway.shapes import HeadwayError

SCHEDULES = ("cosine", "constant")
USED = {
    "mask_share": ("kind", ("encoder",)),
    "momentum": ("optimizer", ("sgd",)),
    "betas": ("optimizer", ("adam", "adamw")),
    "floor": ("schedule", ("cosine",)),
}
"""Settings that only some choices use: the name of the choice, and which."""
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainSettings(Settings):
    """Settings of a training run: all values that determine the result, and how often to validate and save.

    Args:
        steps: total optimizer steps, at most a million; more than a run had continue it.
        batch: windows per batch, or pairs.
        length: tokens per window; of pairs, the most that a source or target may have.
        optimizer: the optimizer: adamw, adam or sgd (with momentum).
        lr: peak learning rate; default the optimizer's own, see :func:`headway.training.optimizer.peak_rate`.
        momentum: momentum of sgd, in [0, 1).
        betas: decay rates of adam's and adamw's first and second moments, each in [0, 1).
        weight_decay: weight decay, on matrices only; default 0.1 for adamw and 0 for the others.
        warmup: steps of linear warm-up; default a tenth of the steps, at most 100.
        schedule: learning-rate schedule: cosine decays to ``floor`` after the warm-up, constant does not.
        floor: final learning rate as a share of the peak, in [0, 1].
        clip: maximum gradient norm; 0 disables clipping.
        dtype: what matrix products are computed in: float32, or bfloat16 with weights, sums and loss in float32.
        seed: random seed of the initial weights, the data order and dropout.
        validate_every: steps between validations. The last step always validates; with None, only the last.
        checkpoint_every: steps between checkpoints. The last step always saves; with None, only the last.
        drop_position: final steps without position (DroPE, arXiv:2512.12167, which uses 0.5 to 2 % of the training).
            The position method is dropped, the learning rate warms up and decays once more, and the model can then
            read texts longer than its training length.
        mask_share: share of the tokens that an encoder is to predict, in (0, 1]; see
            :mod:`headway.training.masking`. Other models have none.
        keep: checkpoints to keep, at least 2, so that an older one is left if the newest is damaged.

    Raises:
        HeadwayError: on a value out of range.

    >>> TrainSettings(steps=200, optimizer="sgd").momentum
    0.9
    """

    steps: Annotated[int, Whole(1, STEPS)] = 1000
    batch: Annotated[int, Whole(1, MOST)] = 16
    length: Annotated[int, Whole(1, MOST)] = 256
    optimizer: Annotated[str, Words(OPTIMIZERS)] = "adamw"
    lr: Annotated[float | None, Number(above=0)] = None
    momentum: Annotated[float, Number(0, below=1)] = 0.9
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: Annotated[float | None, Number(0)] = None
    warmup: Annotated[int | None, Whole(0)] = None
    schedule: Annotated[str, Words(SCHEDULES)] = "cosine"
    floor: Annotated[float, Number(0, most=1)] = 0.1
    drop_position: Annotated[int, Whole(0)] = 0
    clip: Annotated[float | None, Number(0)] = 1.0
    dtype: Annotated[str, Words(DTYPES)] = "float32"
    seed: Annotated[int, Whole(0)] = 0
    validate_every: Annotated[int | None, Whole(1)] = 100
    checkpoint_every: Annotated[int | None, Whole(1)] = 100
    mask_share: Annotated[float, Number(above=0, most=1)] = 0.15
    keep: Annotated[int, Whole(2)] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip == 0:
            object.__setattr__(self, "clip", None)
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise HeadwayError(f"expected betas to be two numbers, got {self.betas!r}: the default is (0.9, 0.95)")
        for value in self.betas:
            require(value, Number(0, below=1), "betas")
        if self.warmup is not None and self.warmup > self.steps:
            raise HeadwayError(
                f"expected warmup of at most steps={self.steps}, got {self.warmup}: train longer or warm up less"
            )
        if self.drop_position >= self.steps:
            raise HeadwayError(
                f"expected drop_position below steps={self.steps}, got {self.drop_position}: "
                f"position is dropped at the end of training"
            )

    @property
    def positioned(self) -> int:
        """Number of steps with position: all before the last ``drop_position``."""
        return self.steps - self.drop_position

    def check_used(self, kind: str) -> None:
        """Refuse settings that training a model of a kind would not use, unless they have their default.

        Raises:
            HeadwayError: on one.

        >>> TrainSettings(momentum=0.5).check_used("decoder")
        Traceback (most recent call last):
            ...
        headway.shapes.HeadwayError: expected momentum with optimizer sgd only, got 0.5 with adamw: leave one out
        """
        for name, (choice, users) in USED.items():
            value, chosen = getattr(self, name), kind if choice == "kind" else getattr(self, choice)
            if chosen not in users and value != getattr(type(self), name):
                raise HeadwayError(
                    f"expected {name} with {choice} {' or '.join(users)} only, got {value} with {chosen}: leave one out"
                )

    @classmethod
    def of(cls, values: Mapping[str, Any], what: str = "training settings") -> Self:
        """From plain values, as :meth:`plain` gives them.

        Raises:
            HeadwayError: on an unknown name or a bad value.

        >>> TrainSettings.of(TrainSettings(steps=5).plain()) == TrainSettings(steps=5)
        True
        """
        betas = isinstance(values, Mapping) and isinstance(values.get("betas"), list)
        return super().of({**values, "betas": tuple(values["betas"])} if betas else values, what)
