"""Code of a model that computes parts in float32, whatever its dtype, run in float64 throughout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn


@contextmanager
def in_float64() -> Iterator[None]:
    """Lets softmax and ``Tensor.float`` keep float64.

    BLOOM, MPT and DeBERTa narrow their softmax or norms to float32. In a model in float64 that costs nine digits, and a
    row whose keys are all masked by float64's least number becomes NaN.

    >>> with in_float64():
    ...     torch.zeros(1, dtype=torch.float64).float().dtype
    torch.float64
    """
    narrowed, softmax = Tensor.float, nn.functional.softmax

    def kept(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x if x.dtype is torch.float64 else narrowed(x, *args, **kwargs)

    def own_softmax(x: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
        return softmax(x, dim, dtype=None if x.dtype is torch.float64 else dtype)

    with patch.object(Tensor, "float", kept), patch.object(nn.functional, "softmax", own_softmax):
        yield
