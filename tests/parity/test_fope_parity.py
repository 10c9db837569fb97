"""FoPE against its formula reimplemented in loops, and against the rotaries that it equals without its coefficients.

No implementation of it is installed. The loops follow the paper, where unrotated pairs stay unchanged (the authors'
first code pads their sines with 1).

Held against: the formula written anew; the authors' code gives its coefficients' start and its cap.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from common import make

from headway import HeadShape, Rotary
from headway.positions import FoPE, Proportional


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("start", [0, 10**6])
def test_the_formula_of_the_paper(start: int, pairing: str) -> None:
    base, original, width, heads, kv_heads = 300.0, 40, 12, 6, 2
    position = make(f"fope(base={base}, original={original}, pairing='{pairing}')", heads, kv_heads, width).double()
    q = torch.randn(2, heads, 3, width, dtype=torch.float64, requires_grad=True)
    k = torch.randn(2, kv_heads, 4, width, dtype=torch.float64, requires_grad=True)
    q_pos, k_pos = torch.tensor([[5, 0, 77], [1, 2, 3]]) + start, torch.tensor([[2, 77, 5, 6]]) + start
    got = position.rotate(q, k, q_pos, k_pos)
    rates = [base ** (-2 * i / width) for i in range(width // 2)]
    kept = [i for i, rate in enumerate(rates) if 2 * math.pi / rate <= original]
    assert kept == [0, 1]
    leaves = [q, k, position.cosines, position.sines]
    weights = [torch.randn_like(x) for x in got]
    gradients = torch.autograd.grad(sum((x * w).sum() for x, w in zip(got, weights, strict=True)), leaves)
    loss = torch.zeros((), dtype=torch.float64)
    for x, pos, turned, weight in zip((q, k), (q_pos, k_pos.expand(2, -1)), got, weights, strict=True):
        expected = x.clone()
        for batch, head, token in itertools.product(*map(range, x.shape[:3])):
            p, of = int(pos[batch, token]), head * kv_heads // x.shape[1]
            for i in kept:
                cos, sin = math.cos(p * rates[i]), math.sin(p * rates[i])
                for j in kept:
                    cos = cos + position.cosines[of, j, i] * math.cos(p * rates[j])
                    sin = sin + position.sines[of, j, i] * math.sin(p * rates[j])
                a, b = (i, i + width // 2) if pairing == "half" else (2 * i, 2 * i + 1)
                y, z = x[batch, head, token, a], x[batch, head, token, b]
                expected[batch, head, token, a] = y * cos - z * sin
                expected[batch, head, token, b] = z * cos + y * sin
        torch.testing.assert_close(turned, expected, rtol=1e-9, atol=1e-9)
        loss = loss + (expected * weight).sum()
    for g, e in zip(gradients, torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_without_coefficients_it_is_rotary_without_the_waves_that_are_too_long(pairing: str) -> None:
    q, pos = torch.randn(2, 3, 50, 16, dtype=torch.float64), torch.arange(50)[None]
    shape = HeadShape.of(48, 3)
    short = FoPE(sigma=0.0, original=512, pairing=pairing).attach(shape)
    whole = FoPE(sigma=0.0, original=10**6, pairing=pairing).attach(shape)
    kept = Proportional(fraction=0.5, pairing=pairing)  # 4 of 8 pairs rotate within 512 tokens
    for ours, other in ((short, kept), (whole, Rotary(pairing=pairing))):
        for got, expected in zip(ours.rotate(q, q, pos, pos), other.rotate(q, q, pos, pos), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_it_starts_as_the_authors_code_draws_it() -> None:
    """xavier_normal_ of a tensor (H, m, m) takes m·m for its fan in and H·m for its fan out."""
    position = FoPE(original=512, sigma=0.3).attach(HeadShape.of(8 * 64, 8))
    assert position.cosines.shape == (8, 16, 16)
    torch.manual_seed(5)
    position.reset_parameters()
    torch.manual_seed(5)
    expected = torch.randn(8, 16, 16) * 0.3 * math.sqrt(2 / (16 * 16 + 8 * 16))
    torch.testing.assert_close(position.cosines.detach(), expected)
    assert 0.021 < position.sines.std().item() < 0.0225


def test_the_authors_code_turns_a_quarter_of_the_head_at_most() -> None:
    for width, pairs, capped in ((16, 8, 4), (8, 4, 2), (6, 3, 1)):
        shape = HeadShape.of(width, 1)
        assert FoPE(base=100.0).attach(shape).cosines.shape[-1] == pairs
        short = FoPE(base=100.0, capped=True, sigma=0.0).attach(shape)
        assert short.cosines.shape[-1] == capped
        q, pos = torch.randn(2, 1, 50, width, dtype=torch.float64), torch.arange(50)[None]
        kept = Proportional(base=100.0, fraction=2 * capped / width)
        for got, expected in zip(short.rotate(q, q, pos, pos), kept.rotate(q, q, pos, pos), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
