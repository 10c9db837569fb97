"""The history of a training run, step by step, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headway.schema import Many, Maybe, Number, Record, Whole, Words, check
from headway.shapes import HeadwayError

STATUSES = ("running", "done", "interrupted", "diverged")


@dataclass
class History:
    """The history of a run. A resumed run continues the history of the run it resumes.

    Args:
        steps: completed steps, 1 … n.
        loss: training loss of each, in nats per token.
        lr: learning rate of each.
        grad_norm: gradient norm of each, before clipping.
        validation_steps: completed steps at each validation.
        validation_loss: the loss of each validation.
        status: ``"done"``, ``"interrupted"``, ``"diverged"``; ``"running"`` until then.
        reason: why it diverged, in one sentence; else None.
        seconds: training time, without validation and saving.
        tokens: tokens trained on, padding of pairs included.

    >>> History(seconds=2.0, tokens=100).tokens_per_second
    50.0
    """

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    validation_steps: list[int] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    status: str = "running"
    reason: str | None = None
    seconds: float = 0.0
    tokens: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Training speed over the whole run; 0 before the first step."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**plain, "tokens_per_second": self.tokens_per_second}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> History:
        """Rebuild a record from `to_json`.

        Raises:
            HeadwayError: when names, types or lengths are not those of a record.

        >>> History.from_json(History(status="done").to_json()).status
        'done'
        """
        check(values, HISTORY, "the history")
        plain = {name: value for name, value in values.items() if name != "tokens_per_second"}
        lengths = {len(plain[name]) for name in ("steps", "loss", "lr", "grad_norm")}
        if len(lengths) > 1 or len(plain["validation_steps"]) != len(plain["validation_loss"]):
            raise HeadwayError("expected history lists of equal length, got different ones: the record is damaged")
        return cls(**plain)


HISTORY = Record(
    {
        "steps": Many(Whole(1)),
        "loss": Many(Number()),
        "lr": Many(Number()),
        "grad_norm": Many(Number()),
        "validation_steps": Many(Whole()),
        "validation_loss": Many(Number()),
        "status": Words(STATUSES),
        "reason": Maybe(Words()),
        "seconds": Number(0),
        "tokens": Whole(),
    },
    optional={"tokens_per_second": Number(0)},
)
"""What `History.to_json` writes."""
