"""What happened in a training run, step by step, as plain values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headway.shapes import HeadwayError

STATUSES = ("running", "done", "interrupted", "diverged")


@dataclass
class History:
    """The record of a run. A resumed run carries on the record of the run it resumes.

    Args:
        steps: finished steps, 1 … n.
        loss: training loss of each, in nats per token.
        lr: learning rate of each.
        grad_norm: gradient norm of each, before clipping.
        validation_steps: finished steps when validated.
        validation_loss: the loss found there.
        status: ``"done"``, ``"interrupted"``, ``"diverged"``; ``"running"`` until then.
        reason: why it diverged, in one sentence; else None.
        seconds: training time, without validation and saving.
        tokens: tokens trained on.

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
        if not isinstance(values, Mapping):
            raise HeadwayError(f"expected a history as a JSON object, got {type(values).__name__}")
        plain = {name: value for name, value in values.items() if name != "tokens_per_second"}
        expected = {f.name for f in dataclasses.fields(cls)}
        if set(plain) != expected:
            raise HeadwayError(f"expected a history with {sorted(expected)}, got {sorted(map(str, plain))}")
        for name, kinds in _LISTS.items():
            value = plain[name]
            if not isinstance(value, list) or not all(_is(v, *kinds) for v in value):
                raise HeadwayError(f"expected history.{name} to be a list of finite numbers, got something else")
            plain[name] = list(value)
        lengths = {len(plain[name]) for name in ("steps", "loss", "lr", "grad_norm")}
        if len(lengths) > 1 or len(plain["validation_steps"]) != len(plain["validation_loss"]):
            raise HeadwayError("expected history lists of equal length, got different ones: the record is damaged")
        if plain["status"] not in STATUSES or not (plain["reason"] is None or isinstance(plain["reason"], str)):
            raise HeadwayError(f"expected history.status of {', '.join(STATUSES)}, got {plain['status']!r}")
        if not _is(plain["seconds"], int, float) or not _is(plain["tokens"], int):
            raise HeadwayError("expected history.seconds and history.tokens to be numbers, got something else")
        return cls(**plain)


_LISTS: dict[str, tuple[type, ...]] = {
    "steps": (int,),
    "loss": (int, float),
    "lr": (int, float),
    "grad_norm": (int, float),
    "validation_steps": (int,),
    "validation_loss": (int, float),
}


def _is(value: object, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)  # type: ignore[arg-type]
