"""Values of a figure, encoded as base64 of little-endian float32, or of one byte or bit each."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any


@dataclass(frozen=True)
class Block:
    """Values of any shape, row by row.

    Args:
        shape: size of each dimension.
        values: all of them, flat; None is a missing value.
        kind: encoding: "float32"; "uint8", one byte each; or "bits", for 0 and 1, eight per byte, the first the
            highest.
        span: with "uint8", the values of bytes 0 and 254, the others evenly between, so that the middle of the span is
            exactly 127; 255 is a missing value. None sends integers 0 … 255 unchanged.
    """

    shape: tuple[int, ...]
    values: Sequence[float | None]
    kind: str = "float32"
    span: tuple[float, float] | None = None

    @classmethod
    def of(cls, rows: Sequence[Any], kind: str = "float32") -> Block:
        """A block from nested lists; values that are not finite become NaN.

        >>> Block.of([[1.0, 2.0], [3.0, 4.0]]).shape
        (2, 2)
        """
        shape: list[int] = []
        flat: Sequence[Any] = rows
        level: Any = rows
        while isinstance(level, list | tuple):
            shape.append(len(level))
            level = level[0] if level else None
        for _ in shape[1:]:
            flat = list(chain.from_iterable(flat))
        if len(flat) != math.prod(shape):
            raise ValueError(f"rows of unequal length: {len(flat)} numbers for shape {tuple(shape)}")
        return cls(tuple(shape), flat, kind)

    def rows(self) -> list[Sequence[float | None]]:
        """A matrix row by row."""
        width = self.shape[-1]
        return [self.values[start : start + width] for start in range(0, len(self.values), width)]

    def plain(self) -> dict[str, Any]:
        """As JSON values: shape, kind, span if there is one, and base64."""
        if self.kind == "bits":
            digits = "".join("1" if value else "0" for value in self.values)
            data = int(digits.ljust(-(-len(digits) // 8) * 8, "0") or "0", 2).to_bytes(-(-len(digits) // 8))
        elif self.kind == "uint8" and self.span is not None:
            data = _steps(self.values, self.span)
        elif self.kind == "uint8":
            data = bytes(int(value or 0) for value in self.values)
        else:
            numbers = array("f", (math.nan if value is None else value for value in self.values))
            data = numbers.tobytes()  # little-endian on every machine that torch runs on
        span = {} if self.span is None else {"span": list(self.span)}
        return {"shape": list(self.shape), "kind": self.kind, **span, "data": base64.b64encode(data).decode()}


def _steps(values: Sequence[float | None], span: tuple[float, float]) -> bytes:
    """Values quantised to 255 steps over a span; 255 is a missing value."""
    low, high = span
    per = 254 / (high - low) if high > low else 0.0
    return bytes(
        255 if value is None or value != value else min(254, max(0, round((value - low) * per))) for value in values
    )
