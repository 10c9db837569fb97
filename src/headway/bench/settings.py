"""Settings of a benchmark: plain values, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from headway.config import MOST, MaybeWidth, Width
from headway.schema import Whole, Words, require
from headway.settings import Settings
from headway.shapes import HeadShape, HeadwayError

MODES = ("forward+backward", "forward", "decode", "decode-static")
MASKS = ("causal", "full")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Bench(Settings):
    """What to measure.

    Args:
        methods: position methods, e.g. none,t5,rotary(base=500000), or all, and single terms: rows, table.
        lengths: sequence lengths in tokens.
        modes: passes to time: forward+backward, forward, decode (the last of so many tokens, with the rest cached),
            and decode-static (the same in a cache of fixed size).
        masks: causal, full; decoding is the same under both and is measured once.
        backends: auto (the one attention would choose), all (each that accepts the call), or names.
        baselines: also measure torch's own implementations and other libraries.
        batch: sequences per batch.
        heads: query heads.
        kv_heads: key and value heads; default as many as query heads.
        head_dim: width of a head.
        dtype: float32, bfloat16 or float16.
        device: cpu or cuda.
        rounds: rounds per measurement; default 99 in decoding, else 9 up to 1024 tokens, 5 up to 4096, then 3.
        bars: measure this project's own speed targets instead; exit status 1 if one fails.

    Raises:
        HeadwayError: on invalid values.
    """

    methods: tuple[str, ...] = ("none", "t5", "alibi", "rotary", "shaw", "fox", "rows")
    lengths: tuple[int, ...] = (512, 2048)
    modes: tuple[str, ...] = MODES
    masks: tuple[str, ...] = ("causal",)
    backends: tuple[str, ...] = ("auto",)
    baselines: bool = True
    batch: Annotated[int, Whole(1, MOST)] = 1
    heads: Width = 8
    kv_heads: MaybeWidth = None
    head_dim: Width = 64
    dtype: Annotated[str, Words(DTYPES)] = "float32"
    device: Annotated[str, Words(("cpu", "cuda"))] = "cpu"
    rounds: Annotated[int | None, Whole(1, MOST)] = None
    bars: bool = False

    def __post_init__(self) -> None:
        from headway.backends import BACKENDS
        from headway.bench.cases import check_method
        from headway.positions import methods

        super().__post_init__()
        asked = [name for spec in self.methods for name in (methods() if spec == "all" else [spec])]
        object.__setattr__(self, "methods", tuple(dict.fromkeys(asked) if "all" in self.methods else asked))
        for name in ("methods", "lengths", "modes", "masks", "backends"):
            values = getattr(self, name)
            if not values:
                raise HeadwayError(f"expected at least one of {name}, got none")
            if len(set(values)) < len(values):
                raise HeadwayError(f"expected {name} that differ, got {', '.join(map(str, values))}")
        for what, values, known in (
            ("mode", self.modes, MODES),
            ("mask", self.masks, MASKS),
            ("backend", self.backends, ("auto", "all", *BACKENDS)),
        ):
            for value in values:
                require(value, Words(known), what)
        if len(self.backends) > 1 and {"auto", "all"} & set(self.backends):
            raise HeadwayError(f"expected backends auto, all or names, got {', '.join(self.backends)}")
        for length in self.lengths:
            require(length, Whole(1, MOST), "lengths")
        for method in self.methods:
            check_method(method)
        HeadShape.of(self.heads * self.head_dim, self.heads, self.kv_heads, self.head_dim)
        if self.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise HeadwayError("expected a CUDA device for device cuda, got none: use device cpu")
