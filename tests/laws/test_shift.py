"""Relative methods see differences of positions only: moving all positions changes nothing."""

from __future__ import annotations

import pytest
import torch
from common import attention, every_method

from headway import Causal, Window

POS = torch.tensor([[0, 1, 2, 3, 5, 8, 9, 30, 31, 200], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])


@every_method("shift", layers=True, relative=True)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 2e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("mask", [None, Causal(), Window(3, 2)], ids=["full", "causal", "window"])
def test_relative_methods_do_not_change(spec: str, dtype: torch.dtype, tolerance: float, mask: object) -> None:
    module = attention(spec, mask=mask).to(dtype)
    x = torch.randn(2, 10, 48, dtype=dtype)
    still = module(x, pos=POS)
    for shift in (1, 17, 10**6):
        torch.testing.assert_close(module(x, pos=POS + shift), still, rtol=tolerance, atol=tolerance)


@every_method("shift", layers=True, relative=False)
def test_absolute_methods_do(spec: str) -> None:
    module = attention(spec)
    x, pos = torch.randn(2, 10, 48).double(), torch.arange(10)
    # below the length it begins from, a method may be relative yet
    shift = 17 + 4 * getattr(module.position, "original", 0)
    assert not torch.allclose(module(x, pos=pos), module(x, pos=pos + shift), atol=1e-3)
