"""Under bfloat16 autocast far positions are as exact as near ones: angles and distances are never rounded."""

from __future__ import annotations

import pytest
import torch
from common import attention, every_method

from headway import Causal


def error(spec: str, start: int) -> float:
    torch.manual_seed(1)
    module, x, pos = attention(spec, mask=Causal()), torch.randn(2, 12, 48), torch.arange(start, start + 12)
    truth = module(x.double(), pos=pos)
    with torch.autocast("cpu", torch.bfloat16):
        got = module.float()(x, pos=pos)
    # of the largest number: a method that is not relative may stretch far tokens more than near ones
    return ((got.double() - truth).abs().max() / truth.abs().max().clamp(min=1.0)).item()


@every_method("autocast")
@pytest.mark.parametrize("start", [15960, 10**6])
def test_far_is_as_exact_as_near(spec: str, start: int) -> None:
    assert error(spec, start) <= 2 * error(spec, 0) + 2**-8


@every_method("autocast gradients", variants=False, layers=True)
def test_gradients_flow(spec: str) -> None:
    module, x = attention(spec, mask=Causal()).float(), torch.randn(2, 12, 48, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        module(x).float().square().sum().backward()
    gradients = [p.grad for p in module.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
