"""The kernel for gradients of a layer's matrix: more exact than torch's product, whatever the shape and the layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headway.backends.native.library import unavailable
from headway.backends.native.weights import SOURCE, fits, gradient_of_weights

pytestmark = pytest.mark.skipif(unavailable(SOURCE) is not None, reason=f"no kernel here: {unavailable(SOURCE)}")

SHAPES = [
    (1, 1, 1),
    (7, 5, 3),
    (300, 48, 64),
    (257, 49, 65),
    (2049, 97, 130),
    (5000, 200, 16),
    (31, 6, 200),
    (4096, 1, 7),
]


def drawn(tokens: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(tokens, width, dtype=dtype, generator=torch.Generator().manual_seed(tokens + width))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("tokens", "out", "width"), SHAPES)
def test_values(tokens: int, out: int, width: int, dtype: torch.dtype) -> None:
    grad, x = drawn(tokens, out, dtype), drawn(tokens, width, dtype) + 0.5
    got, usual = gradient_of_weights(grad, x), grad.mT @ x
    assert got.shape == (out, width)
    assert got.dtype == dtype
    assert torch.equal(got, gradient_of_weights(grad, x))
    if dtype == torch.float64:
        torch.testing.assert_close(got, usual, rtol=1e-13, atol=1e-11)
        return
    exact = grad.double().mT @ x.double()
    off, fair = ((each.double() - exact).norm() / exact.norm() for each in (got, usual))
    assert off <= max(1.1 * fair, 6e-8)


def test_long_sums_are_more_exact_than_torchs() -> None:
    grad, x = drawn(40_000, 12), drawn(40_000, 64)
    exact = grad.double().mT @ x.double()
    off, fair = ((each.double() - exact).norm() for each in (gradient_of_weights(grad, x), grad.mT @ x))
    assert off <= 0.9 * fair


def test_layouts() -> None:
    wide, x = drawn(300, 90), drawn(300, 40)
    expected = gradient_of_weights(wide[:, 7:60].contiguous(), x)
    for grad, given in (
        (wide[:, 7:60], x),  # a part of wider rows
        (wide[:, 7:60].mT.contiguous().mT, x),  # columns
        (wide[:, 7:60], torch.cat((x, x), 1)[:, 40:]),
    ):
        assert torch.equal(gradient_of_weights(grad, given), expected)
    ones = torch.ones(1).expand(300, 53)  # the gradient of a sum
    torch.testing.assert_close(gradient_of_weights(ones, x), x.sum(0).expand(53, 40))


def test_bits_do_not_depend_on_threads() -> None:
    grad, x, threads = drawn(700, 130), drawn(700, 130), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(gradient_of_weights(grad, x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_token_that_is_not_finite_reaches_its_own_rows_and_columns_only() -> None:
    grad, x = drawn(300, 70), drawn(300, 70)
    expected = gradient_of_weights(grad, x)
    grad[5, 60] = torch.nan
    got = gradient_of_weights(grad, x)
    assert got[60].isnan().all()
    rest = [i for i in range(70) if i != 60]
    assert torch.equal(got[rest], expected[rest])


def test_what_it_takes() -> None:
    grad, x = drawn(3, 2), drawn(3, 4)
    assert fits(grad, x)
    assert fits(grad.double(), x.double())
    assert not fits(grad.double(), x)
    assert not fits(grad.bfloat16(), x.bfloat16())
    assert not fits(grad.to("meta"), x.to("meta"))
