"""Initialisation: the statistics of every head, and their independence."""

from __future__ import annotations

import math

import pytest
import torch
from common import refusal

from headway import Attention, Causal, Transformer
from headway.init import INITS, initialise

DIM, HEADS, WIDTH = 384, 6, 64


def matrices(init: str, **given: object) -> dict[str, torch.Tensor]:
    """W_Q, W_K, W_V (H, d_k, dim) and W_O (H, dim, d_k) of a fresh Attention."""
    module = Attention(DIM, HEADS, init=init, **given)
    parts = {name: getattr(module, name).weight.detach().view(HEADS, WIDTH, DIM) for name in "qkv"}
    return parts | {"o": module.o.weight.detach().view(DIM, HEADS, WIDTH).transpose(0, 1)}


STD = {
    "xavier": dict.fromkeys("qkvo", math.sqrt(2 / (DIM + WIDTH))),
    "normal": dict.fromkeys("qkvo", 0.02),
    "gpt2": dict.fromkeys("qkv", 0.02) | {"o": 0.02 / math.sqrt(2 * 12)},
    "t5": dict.fromkeys("qkvo", DIM**-0.5),
    # orthonormal rows of a (64, 384) matrix
    "orthogonal": dict.fromkeys("qkvo", DIM**-0.5),
}


@pytest.mark.parametrize("init", INITS)
def test_spread_of_every_head(init: str) -> None:
    for name, parts in matrices(init, depth=12).items():
        for part in parts:
            # 24576 entries: the standard deviation is known to 0.5 %, the mean to 0.6 % of it
            assert part.std().item() == pytest.approx(STD[init][name], rel=0.03)
            assert abs(part.mean().item()) < 0.03 * STD[init][name]
            if init == "xavier":
                bound = math.sqrt(6 / (DIM + WIDTH))
                assert 0.99 * bound < part.abs().max() <= bound


@pytest.mark.parametrize("init", INITS)
def test_heads_are_drawn_independently(init: str) -> None:
    drawn = torch.cat([parts.reshape(HEADS, -1) for parts in matrices(init).values()])
    correlation = torch.corrcoef(drawn)
    assert (correlation - torch.eye(len(drawn))).abs().max() < 0.04


def test_orthogonal_heads_have_orthonormal_rows() -> None:
    for name, parts in matrices("orthogonal").items():
        for part in parts:
            product = part @ part.T if name != "o" else part.T @ part
            torch.testing.assert_close(product, torch.eye(WIDTH), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_orthogonal_in_any_dtype(dtype: torch.dtype) -> None:
    weight = torch.empty(32, 64, dtype=dtype)
    initialise(weight, "orthogonal")
    torch.testing.assert_close(weight.float() @ weight.float().T, torch.eye(32), atol=0.03, rtol=0)


def test_t5_goes_by_the_width_that_is_read() -> None:
    weight = torch.empty(64, 400)
    initialise(weight, "t5", parts=4)
    assert weight.std().item() == pytest.approx(400**-0.5, rel=0.03)


def test_t5_folds_the_scale_into_its_queries() -> None:
    unscaled, scaled = (matrices("t5", scale=scale) for scale in (1.0, None))
    assert unscaled["q"].std().item() == pytest.approx((DIM * WIDTH) ** -0.5, rel=0.02)
    assert scaled["q"].std().item() == pytest.approx(DIM**-0.5, rel=0.02)
    assert unscaled["k"].std().item() == pytest.approx(DIM**-0.5, rel=0.02)


def test_gpt2_divides_what_writes_into_the_residual_stream() -> None:
    model = Transformer(vocab=32, dim=128, layers=8, heads=4, init="gpt2")
    for block in model.stack.blocks:
        for linear, expected in (
            (block.attention.part.q, 0.02),
            (block.attention.part.o, 0.02 / 4),
            (block.mlp.part.up, 0.02),
            (block.mlp.part.down, 0.02 / 4),
        ):
            assert linear.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_the_embedding_has_unit_rows() -> None:
    model = Transformer(vocab=500, dim=128, layers=1, heads=4)
    assert model.embedding.weight.norm(dim=1).mean().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("init", INITS)
def test_biases_start_at_zero(init: str) -> None:
    module = Attention(32, 4, bias=True, init=init)
    assert not any(getattr(module, name).bias.any() for name in "qkvo")
    module = Attention(32, 4, out_bias=True)
    assert module.q.bias is None
    assert module.o.bias is not None


def test_scaled_scores_have_unit_variance() -> None:
    """q·k of unit-variance entries has variance d_k: dividing by √d_k makes it 1 at every width."""
    for width in (16, 64, 256):
        q, k = torch.randn(2, 400, width)
        scores = q @ k.T
        assert scores.std().item() == pytest.approx(width**0.5, rel=0.05)
        assert (scores * width**-0.5).std().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("width", [16, 64, 128])
def test_an_attention_starts_with_scores_of_size_one(width: int) -> None:
    """Each head's q and k have unit variance when W_Q, W_K are N(0, 1/dim), as t5 draws them."""
    from headway.backends.reference import scores
    from headway.functional import check

    def spread(scale: float) -> float:
        q, k = (linear(x).unflatten(-1, (4, width)).transpose(1, 2) for linear in (module.q, module.k))
        return scores(check(q, k, k, None, (), None, None, scale, "softmax")).std().item()

    module = Attention(4 * width, 4, init="t5")
    x = torch.randn(1, 200, 4 * width)
    assert spread(module.scale) == pytest.approx(1, rel=0.1)
    assert spread(1.0) == pytest.approx(width**0.5, rel=0.1)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_each_head_gets_its_own_gradient(optimizer: type[torch.optim.Optimizer], kv_heads: int) -> None:
    """A loss that sees head h only moves W_Q, W_K, W_V and W_O of head h only (and of its group)."""
    for h in range(4):
        module = Attention(32, 4, kv_heads=kv_heads, mask=Causal())
        seen = torch.zeros(32)
        seen[8 * h : 8 * h + 8] = 1
        module.o.register_forward_pre_hook(lambda _, inputs, seen=seen: inputs[0] * seen)
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        module(torch.randn(2, 7, 32)).square().sum().backward()
        heads = [module.head(i, grad=True) for i in range(4)]
        group = h // (4 // kv_heads)
        for i, gradient in enumerate(heads):
            assert bool(gradient.q.any()) == bool(gradient.o.any()) == (i == h)
            assert bool(gradient.k.any()) == bool(gradient.v.any()) == (i // (4 // kv_heads) == group)
        step = optimizer(module.parameters(), lr=0.1)
        step.step()
        for name, parameter in module.named_parameters():
            changed, heads_of = parameter.detach() != before[name], kv_heads if name[0] in "kv" else 4
            moved = changed.T if name.startswith("o") else changed
            for i, part in enumerate(moved.chunk(heads_of)):
                own = i == (group if name[0] in "kv" else h)
                assert bool(part.any()) == own


def test_refusals() -> None:
    with refusal("expected init to be one of xavier, normal, gpt2, t5, orthogonal, got 'kaiming'"):
        Attention(32, 4, init="kaiming")
    with refusal("expected init to be one of xavier, normal, gpt2, t5, orthogonal, got 'glorot'"):
        Transformer(vocab=8, init="glorot")
    with refusal("expected init to be one of xavier, normal, gpt2, t5, orthogonal, got ''"):
        initialise(torch.zeros(2, 2), "")
