"""The header of a safetensors file, read and checked before anything opens the file.

    8 bytes: n, the length of the header, little-endian      n bytes: JSON      data: the tensors, one after the other

The JSON has, for each tensor, its dtype, its shape, and where in the data it begins and ends.
"""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.shapes import HeadwayError, brief
from headway.strict_json import parse_json
from headway.training.files import explained

MOST = 25 * 2**20
"""Bytes of a header: those of the largest models have about five million."""
BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8}
BITS |= dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8) | dict.fromkeys(("I16", "U16", "F16", "BF16"), 16)
BITS |= dict.fromkeys(("I32", "U32", "F32"), 32) | dict.fromkeys(("C64", "F64", "I64", "U64"), 64)
"""Bits of an entry of each dtype."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, by its header.

    Args:
        dtype: by the format's name, e.g. "BF16".
        shape: its sizes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many entries it has."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, by name; only the header is read.

    Args:
        path: the file.

    Raises:
        HeadwayError: when it is no regular file, is cut off, or its header is too long, no JSON, or names bytes that
            are not there, overlap, leave holes or do not fit dtype and shape.
    """
    with explained(f"reading {path}"):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise HeadwayError(f"expected a regular file at {path}, got something else")
            length = int.from_bytes(file.read(8), "little")
            room = found.st_size - 8
            if not 2 <= length <= min(MOST, room):
                raise HeadwayError(
                    f"expected a safetensors header of 2 to {min(MOST, max(room, 0)):,} bytes in {path}, which has "
                    f"{found.st_size:,}, got a length of {length:,}: the file is truncated or damaged"
                )
            data = file.read(length)
    values = parse_json(data, f"the header of {path}")
    if not isinstance(values, dict):
        raise HeadwayError(f"expected an object in the header of {path}, got {brief(type(values).__name__)}")
    values.pop("__metadata__", None)
    tensors = {name: _stored(path, name, value) for name, value in values.items()}
    end = 0
    for name, value in sorted(values.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = value["data_offsets"]
        if begin != end:
            raise HeadwayError(
                f"expected tensors one after the other in {path}, got {brief(name)} at byte {begin:,} instead of "
                f"{end:,}: they overlap or leave a hole"
            )
        end = stop
    if end != room - length:
        raise HeadwayError(
            f"expected {end:,} bytes of tensors in {path}, as its header says, got {room - length:,}: it is truncated "
            f"or damaged"
        )
    return tensors


def _stored(path: Path, name: str, value: Any) -> Stored:
    """A tensor of a header, after a check of its own numbers."""
    numbers = isinstance(value, dict) and [value.get("shape"), value.get("data_offsets")]
    if not (
        numbers
        and all(isinstance(each, list) and all(type(n) is int and n >= 0 for n in each) for each in numbers)
        and len(value["data_offsets"]) == 2
        and isinstance(value.get("dtype"), str)
        and value["dtype"] in BITS
    ):
        raise HeadwayError(
            f"expected dtype, shape and data_offsets of {brief(name)} in the header of {path}, got {brief(str(value))}"
        )
    found = Stored(value["dtype"], tuple(value["shape"]))
    begin, stop = value["data_offsets"]
    if found.count * BITS[found.dtype] != 8 * (stop - begin):
        raise HeadwayError(
            f"expected {found.count * BITS[found.dtype] // 8:,} bytes of {brief(name)}, {found.dtype} of shape "
            f"{list(found.shape)}, in {path}, got {stop - begin:,}"
        )
    return found
