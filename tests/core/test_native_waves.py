"""cos and sin of many angles in C++: those of torch, wherever the angles lie, with derivatives of both orders."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from headway.backends.native import rotate
from headway.positions.rotary import many_waves, rotate_pairs


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, 1e12, 1e18])
@pytest.mark.parametrize("count", [1, 7, 5001])
def test_they_are_torchs(size: float, count: int) -> None:
    quarters = (torch.arange(count).double() - count // 2) * math.pi / 2  # where waves are 0 or 1
    for angles in (torch.randn(count, dtype=torch.float64) * size, quarters, torch.nextafter(quarters, quarters + 1)):
        assert rotate.fits_waves(angles)
        for got, exact in zip(rotate.waves(angles), (angles.cos(), angles.sin()), strict=True):
            # rounded once: the nearest number, or its neighbour where the exact one lies in the middle
            assert got.dtype == torch.float32
            assert (got.double() - exact).abs().max() <= 0.5000001 * 2**-24
            assert (got != exact.float()).sum() <= count / 1000


def test_what_has_no_waves_has_none() -> None:
    angles = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-300], dtype=torch.float64)
    for got, exact in zip(rotate.waves(angles), (angles.cos(), angles.sin()), strict=True):
        torch.testing.assert_close(got, exact.float(), rtol=0, atol=0, equal_nan=True)
        assert torch.equal(got.signbit()[:2], exact.signbit()[:2])


def test_gradients_of_both_orders() -> None:
    angles = (torch.randn(3, 40, dtype=torch.float64) * 30).requires_grad_()
    weights = torch.randn(2, 3, 40)

    def slopes(waves: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        loss = sum((wave * weight).sum() for wave, weight in zip(waves, weights, strict=True))
        (first,) = torch.autograd.grad(loss, angles, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), angles)
        return first, second

    for got, exact in zip(slopes(rotate.waves(angles)), slopes((angles.cos(), angles.sin())), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-5)
    assert not rotate.waves(angles.detach())[0].requires_grad


def test_every_other_way_gives_the_same() -> None:
    angles, like = torch.randn(2, 9, 4, dtype=torch.float64) * 100, torch.empty(0)
    transposed = angles.mT
    for got, exact in zip(rotate.waves(transposed), (transposed.cos(), transposed.sin()), strict=True):
        assert torch.equal(got, exact.float())
    plain = many_waves(angles, like)
    together = torch.func.vmap(lambda x: torch.stack(many_waves(x, like)), out_dims=1)(angles)
    assert torch.equal(together, torch.stack(plain))
    assert {wave.dtype for wave in many_waves(angles, like.double())} == {torch.float64}
    _, tangent = torch.func.jvp(lambda x: many_waves(x, like)[0], (angles,), (torch.ones_like(angles),))
    torch.testing.assert_close(tangent, -angles.sin().float())


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_plain_torch_rotates_as_the_kernel_does(pairing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, angles = torch.randn(2, 3, 5, 10).double(), torch.randn(1, 1, 5, 4).double()
    turned = rotate_pairs(x, angles.cos(), angles.sin(), pairing)
    monkeypatch.setattr(rotate, "fits", lambda *given: False)
    torch.testing.assert_close(rotate_pairs(x, angles.cos(), angles.sin(), pairing), turned)
