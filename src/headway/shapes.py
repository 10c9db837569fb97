"""The width of attention and of its heads, the library's error type, and checks of single arguments."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, fields, is_dataclass
from numbers import Real
from typing import Any

from headway.characters import shortened


class HeadwayError(ValueError):
    """An error the caller can correct: the message says what was expected, what it got, and what to do."""


def contents(of: object) -> dict[str, Any]:
    """An object's attributes by name, like ``vars``, which torch 2.11 cannot compile for a frozen dataclass."""
    return {field.name: getattr(of, field.name) for field in fields(of)} if is_dataclass(of) else vars(of)


def brief(given: Any) -> str:
    """A value as shown in messages: on one line, shortened if long."""
    try:
        text = " ".join(repr(given).split())
    except ValueError:  # Python writes no integer of more than 4,300 digits
        text = type(given).__name__
    return shortened(text, 60)


def kind_of(given: Any) -> str:
    """An argument as shown in messages: dtype and shape of a tensor, anything else as by :func:`brief`."""
    from torch import Tensor  # only then: importing shapes need not load torch

    return f"{given.dtype} of shape {tuple(given.shape)}" if isinstance(given, Tensor) else brief(given)


def broadcasts(size: int, to: int) -> bool:
    """Whether a dimension has a size, or 1 for all. Where sizes are symbols of torch.compile, ``in`` would be wrong."""
    return size == 1 or size == to


def as_count(given: Any, expected: str, least: int = 0) -> int:
    """A whole number of at least ``least`` as an int; NumPy integers are accepted, booleans are not.

    Raises:
        HeadwayError: otherwise; ``expected`` describes a valid value.
    """
    try:
        count = None if isinstance(given, bool) else operator.index(given)
    except (TypeError, RuntimeError):
        count = None
    if count is None or not least <= count < 2**63:
        whole = "" if count is not None else ", a whole number"
        raise HeadwayError(f"expected {expected}{whole}, got {brief(given)}")
    return count


def as_number(given: Any, expected: str, above: float = -math.inf) -> float:
    """A finite number greater than ``above`` as a float.

    Raises:
        HeadwayError: otherwise; ``expected`` describes a valid value.
    """
    try:
        number = float(given) if isinstance(given, Real) and not isinstance(given, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not above < number < math.inf:
        raise HeadwayError(f"expected {expected}, got {brief(given)}")
    return number


@dataclass(frozen=True)
class HeadShape:
    """Width of the model and of its attention heads.

    Args:
        dim: width of the model, d_model.
        heads: number of query heads, H.
        kv_heads: number of key and value heads; ``heads`` is multi-head, 1 multi-query, between the two grouped-query.
        head_dim: width of one head, d_k.

    >>> HeadShape.of(512, heads=8)
    HeadShape(dim=512, heads=8, kv_heads=8, head_dim=64)
    """

    dim: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, dim: int, heads: int = 1, kv_heads: int | None = None, head_dim: int | None = None) -> HeadShape:
        """Fill in defaults (kv_heads = heads; head_dim = dim / heads) and check that the widths fit.

        Raises:
            HeadwayError: when heads do not divide the width, or kv_heads do not divide heads.
        """
        dim, heads = as_count(dim, "dim of at least 1", 1), as_count(heads, "heads of at least 1", 1)
        if kv_heads is not None:
            kv_heads = as_count(kv_heads, "kv_heads of at least 1", 1)
        if head_dim is not None:
            head_dim = as_count(head_dim, "head_dim of at least 1", 1)
        if head_dim is None:
            if dim % heads:
                raise HeadwayError(
                    f"expected heads to divide dim, got dim={dim} and heads={heads}: "
                    f"choose heads that divide {dim}, or give head_dim"
                )
            head_dim = dim // heads
        kv_heads = heads if kv_heads is None else kv_heads
        if heads % kv_heads:
            raise HeadwayError(
                f"expected kv_heads to divide heads, got heads={heads} and kv_heads={kv_heads}: "
                f"each key head serves the same number of query heads"
            )
        return cls(dim, heads, kv_heads, head_dim)

    def numbers(self, index: int) -> tuple[int, int]:
        """The numbers of a query head and of the key and value head that it uses.

        Raises:
            HeadwayError: when there is no such head.

        >>> HeadShape.of(64, heads=8, kv_heads=2).numbers(5)
        (5, 1)
        """
        index = as_count(index, f"a head from 0 to {self.heads - 1}")
        if index >= self.heads:
            raise HeadwayError(f"expected a head from 0 to {self.heads - 1}, got {index}")
        return index, index // (self.heads // self.kv_heads)
