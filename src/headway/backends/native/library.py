"""Calls to the C++ of ``csrc``: its compiled libraries, and arguments laid out as its headers declare them."""

from __future__ import annotations

import ctypes
import logging
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headway.backends import compiler
from headway.backends.canonical import Canonical
from headway.masks.steps import COMPARE, LOOK_UP
from headway.shapes import HeadwayError

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
"""The dtypes of q, k and v, numbered as in C++."""
SOURCES = Path(__file__).parent.parent / "csrc"


def fields(header: str) -> list[tuple[str, Any]]:
    """The fields of ``Call`` as a C++ header declares them, the only description of what Python passes.

    >>> fields("struct Call {\\n  int64_t batch;\\n  const void *q, *k;  // pointers\\n};")[-1][0]
    'k'
    """
    (body,) = re.findall(r"struct Call \{\n(.*?)\n\};", header, re.DOTALL)
    numbers = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}
    found: list[tuple[str, Any]] = []
    for line in body.split("\n"):
        code = line.partition("//")[0].strip()
        if code:
            declared = re.fullmatch(r"(?:const )?(void|int64_t|double)(\*?) ([\w*, ]+);", code)
            assert declared, f"csrc has a declaration that Python cannot parse: {code}"
            kind, star, names = declared.groups()
            for name in names.split(", "):
                pointer = bool(star) or name.startswith("*")
                found.append((name.removeprefix("*"), ctypes.c_void_p if pointer else numbers[kind]))
    return found


@cache
def struct(header: str) -> Any:
    """A call, with the layout of ``Call`` in this header of ``csrc``."""
    declared = fields((SOURCES / header).read_text(encoding="utf-8"))
    return type("Call", (ctypes.Structure,), {"_fields_": declared})


@cache
def loaded(source: str) -> ctypes.CDLL | str:
    """The compiled library of this source file of ``csrc``, or the reason why there is none."""
    try:
        return ctypes.CDLL(str(compiler.library(SOURCES / source)))
    except (HeadwayError, OSError) as error:
        _tell(str(error))
        return str(error)


@cache
def _tell(reason: str) -> None:
    """Say once that another backend will be chosen."""
    logging.getLogger("headway").warning("attention is slower than it could be, without the CPU kernel: %s", reason)


def unavailable(source: str = "attention.cpp") -> str | None:
    """Why there is no such kernel on this machine, or None if there is one; compiles it if needed."""
    found = loaded(source)
    return found if isinstance(found, str) else None


# what torch.compiler.assume_constant_result sets; calling it would load all of torch.compile, more than a second
unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def kernel_of(source: str, header: str) -> Any:
    """The library, once both sides are known to lay out a call alike."""
    kernel: Any = loaded(source)
    assert getattr(kernel, f"{Path(header).stem}_size")() == ctypes.sizeof(struct(header)), (
        "Python and the C++ compiler lay out a call differently"
    )
    return kernel


def wide_of(x: Tensor) -> torch.dtype:
    """The dtype of sums."""
    return torch.promote_types(x.dtype, torch.float32)


def by_token(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """The shape (B, H, N, D) as (B, N, H, D), the layout in which W_O reads heads: those of a token side by side."""
    return shape[0], shape[2], shape[1], shape[3]


def splits_of(tasks: int, keys: int) -> int:
    """Number of tasks that share the keys of a head, so that all threads have work until the end.

    Each costs a copy of dQ; the order of summation, and with it the last bit, depends on their number.
    """
    threads, most = torch.get_num_threads(), max(1, keys // 256)
    for splits in range(1, most + 1):
        turns = math.ceil(tasks * splits / threads)
        if tasks * splits >= 0.9 * turns * threads:
            return splits
    return most


def even(x: Tensor) -> Tensor:
    """The same values with the last dimension contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def mask_of(c: Canonical) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[int]]:
    """A call's mask as arguments of an operator: a number per query and per key for each leaf, the table, and steps."""
    return (None, None, None, []) if c.mask is None else (c.mask.q, c.mask.k, c.mask.table, c.mask.steps)


class Arguments:
    """The arguments of a C++ function; keeps alive the tensors that it reads.

    Args:
        source: the file of ``csrc`` that defines the function.
        header: the file of ``csrc`` that declares its ``Call``.
        dtype: of q, k and v.
    """

    def __init__(self, source: str, header: str, dtype: torch.dtype) -> None:
        self.source, self.header, self.kind, self.call = source, header, KINDS[dtype], struct(header)()
        self._kept: list[Tensor] = []

    def put(self, name: str, x: Tensor, *strides: str) -> None:
        """Pass a tensor: its address, and the strides of its first dimensions by name ("" is left 0)."""
        self._kept.append(x)
        setattr(self.call, name, x.data_ptr())
        for stride, size in zip(strides, x.stride(), strict=False):
            if stride:
                setattr(self.call, f"{name}_{stride}", size)

    def put_rows(self, name: str, x: Tensor | None, *strides: str) -> None:
        """Pass a tensor whose last dimension the function reads as contiguous; None is a null pointer."""
        if x is not None:
            self.put(name, even(x), *strides)

    def put_mask(self, steps: list[int], q: Tensor | None, k: Tensor | None, table: Tensor | None) -> None:
        """Pass a mask, see :class:`headway.masks.Steps`.

        Raises:
            HeadwayError: when a token lies outside the table.
        """
        if q is None or k is None:
            return
        self.put("mask", torch.tensor(steps))
        self.call.mask_steps = len(steps) // 3
        self.put_rows("mask_q", q, "leaf", "batch")
        self.put_rows("mask_k", k, "leaf", "batch")
        if table is None:
            return
        self.put_rows("mask_table", table, "batch", "head", "row")
        leaf = [kind for kind in steps[::3] if kind in (COMPARE, LOOK_UP)].index(LOOK_UP)
        for numbers, size in ((q[leaf], table.shape[2]), (k[leaf], table.shape[3])):
            if numbers.numel() and int(numbers.max()) >= size:
                raise HeadwayError(
                    f"expected positions in {size} blocks of the mask, got one in block {int(numbers.max())}"
                )

    def run(self, function: str) -> None:
        """Call the function.

        Raises:
            MemoryError: when it reports an error.
        """
        kernel = kernel_of(self.source, self.header)
        message = ctypes.create_string_buffer(256)
        if getattr(kernel, function)(ctypes.byref(self.call), self.kind, message):
            raise MemoryError(f"the CPU kernel failed: {message.value.decode()}")
