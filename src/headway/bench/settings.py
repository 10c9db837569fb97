"""What a benchmark measures; plain values, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headway.arguments import numbers, split
from headway.shapes import HeadShape, HeadwayError

MODES = ("forward+backward", "forward", "decode")
MASKS = ("causal", "full")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Bench:
    """What to measure.

    Args:
        methods: position methods, and ``rows``, ``table``; see :mod:`headway.bench.cases`.
        lengths: tokens.
        modes: of :data:`MODES`.
        masks: of :data:`MASKS`; decode knows no difference and is measured once.
        backends: ("auto",), ("all",) or names of :data:`headway.backends.BACKENDS`.
        baselines: whether torch's own ways and other libraries are measured too.
        batch: sequences.
        heads: query heads.
        kv_heads: key heads; None is as many.
        head_dim: width of a head.
        dtype: of :data:`DTYPES`.
        device: "cpu" or "cuda".
        rounds: of each measurement; None is :func:`rounds_for`.
        bars: measure the project's own bars instead; methods, lengths and the like are then fixed.

    Raises:
        HeadwayError: on values that do not fit.
    """

    methods: tuple[str, ...] = ("none", "t5", "alibi", "rotary", "shaw", "fox", "rows")
    lengths: tuple[int, ...] = (512, 2048)
    modes: tuple[str, ...] = MODES
    masks: tuple[str, ...] = ("causal",)
    backends: tuple[str, ...] = ("auto",)
    baselines: bool = True
    batch: int = 1
    heads: int = 8
    kv_heads: int | None = None
    head_dim: int = 64
    dtype: str = "float32"
    device: str = "cpu"
    rounds: int | None = None
    bars: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Bench:
        """From a command line's options: lists are text with commas, None is the default."""
        values: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        for name in ("methods", "modes", "masks", "backends"):
            if name in values:
                values[name] = tuple(split(values[name]))
        if "lengths" in values:
            values["lengths"] = tuple(numbers("--lengths", values["lengths"]))
        return cls(**values)

    def __post_init__(self) -> None:
        from headway.backends import BACKENDS
        from headway.bench.cases import check_method

        for name in ("methods", "lengths", "modes", "masks", "backends"):
            values = getattr(self, name)
            if not values:
                raise HeadwayError(f"expected at least one of {name}, got none")
            if len(set(values)) < len(values):
                raise HeadwayError(f"expected {name} that differ, got {', '.join(map(str, values))}")
        for what, values, known in (
            ("mode", self.modes, MODES),
            ("mask", self.masks, MASKS),
            ("dtype", (self.dtype,), DTYPES),
            ("device", (self.device,), ("cpu", "cuda")),
            ("backend", self.backends, ("auto", "all", *BACKENDS)),
        ):
            for value in values:
                if value not in known:
                    raise HeadwayError(f"expected {what} one of {', '.join(known)}, got {value!r}")
        if len(self.backends) > 1 and {"auto", "all"} & set(self.backends):
            raise HeadwayError(f"expected backends auto, all or names, got {', '.join(self.backends)}")
        for what, number in (("lengths", min(self.lengths)), ("batch", self.batch), ("rounds", self.rounds)):
            if number is not None and number < 1:
                raise HeadwayError(f"expected {what} of at least 1, got {number}")
        for method in self.methods:
            check_method(method)
        HeadShape.of(self.heads * self.head_dim, self.heads, self.kv_heads, self.head_dim)
        if self.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise HeadwayError("expected a CUDA device for device cuda, got none: use device cpu")


def rounds_for(length: int) -> int:
    """How many rounds a length gets: few where each takes seconds and noise matters less."""
    return 9 if length <= 1024 else 5 if length <= 4096 else 3
