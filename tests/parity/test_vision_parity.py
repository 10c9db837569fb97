"""Biases by offset in an image, against transformers' Swin and Swin V2, and how fast they run.

Held against: transformers (Swin, Swin V2).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import close, randomise, same_with_gradients
from torch import Tensor
from torch.func import functional_call
from transformers import Swinv2Config
from transformers.models.swin.configuration_swin import SwinConfig
from transformers.models.swin.modeling_swin import SwinAttention, SwinRelativePositionBias
from transformers.models.swinv2.modeling_swinv2 import Swinv2SelfAttention

from headway import Attention, Causal, Documents, HeadShape, HeadwayError, Window, attend, plan
from headway.positions import Swin, SwinV2, TermInputs
from headway.terms import ByDistance, raster

SIZES = [(7, 7), (3, 5), (6, 2), (1, 4), (4, 1)]


def term(position: Any, tokens: int) -> Any:
    """The only term of a method, which does not depend on queries."""
    q = torch.zeros(1, position.shape.heads, tokens, position.shape.head_dim, dtype=torch.float64)
    pos = torch.arange(tokens)[None]
    return position.terms(TermInputs(q, q, pos, pos, 1.0))[0]


def same_bias(ours: Any, theirs: Tensor, pairs: dict[Any, Any]) -> None:
    """The bias of a whole window, and its gradients: ``pairs`` maps our parameters to theirs."""
    tokens = theirs.shape[-1]
    pos = torch.arange(tokens)[None]
    got = term(ours, tokens).tile(pos, pos)[0]
    close(got, theirs)
    weight = torch.randn_like(got)
    mine = torch.autograd.grad((got * weight).sum(), list(pairs))
    for gradient, (parameter, expected) in zip(
        mine, zip(pairs, torch.autograd.grad((theirs * weight).sum(), list(pairs.values())), strict=True), strict=True
    ):
        close(gradient, expected if expected.shape == parameter.shape else expected.T.reshape(parameter.shape))


@pytest.mark.parametrize("size", SIZES)
def test_swin_bias(size: tuple[int, int]) -> None:
    theirs = SwinRelativePositionBias(3, size).double()
    ours = Swin(*size).attach(HeadShape.of(12, 3)).double()
    randomise(ours)
    table = theirs.relative_position_bias_table
    with torch.no_grad():
        table.copy_(ours.weight.flatten(1).T)
    same_bias(ours, theirs()[0], {ours.weight: table})


def test_swin_attention() -> None:
    """Windows with the mask of shifted ones, whose regions are our documents; transformers takes softmax in float32."""
    config = SwinConfig(attention_probs_dropout_prob=0.0, qkv_bias=True, attn_implementation="eager")
    theirs = SwinAttention(config, 24, 3, 4).double()
    randomise(theirs)
    ours = Attention(24, 3, position=Swin(4, 4), bias=True).double()
    with torch.no_grad():
        for name in "qkvo":
            getattr(ours, name).load_state_dict(getattr(theirs, f"{name}_proj").state_dict())
        ours.position.weight.copy_(theirs.relative_position_bias.relative_position_bias_table.T.view(3, 7, 7))
    x = torch.randn(6, 16, 24, dtype=torch.float64)
    region = torch.randint(3, (3, 16))
    hidden = (region[:, :, None] != region[:, None]) * -1e9
    expected, got = theirs(x, hidden.double())[0], ours(x, mask=Documents(region.repeat(2, 1)))
    close(got, expected, 1e-5)
    weight = torch.randn_like(got)
    (expected * weight).sum().backward()
    (got * weight).sum().backward()
    for name in "qkvo":
        close(getattr(ours, name).weight.grad, getattr(theirs, f"{name}_proj").weight.grad, 1e-4)
    table = theirs.relative_position_bias.relative_position_bias_table
    close(ours.position.weight.grad, table.grad.T.view(3, 7, 7), 1e-4)


@pytest.mark.parametrize("size", SIZES[:3])
@pytest.mark.parametrize("trained", [(0, 0), (5, 4)])
def test_swinv2_attention(size: tuple[int, int], trained: tuple[int, int]) -> None:
    """With the cosine of q and k, and a temperature per head, by hand; their table of coordinates is float32."""
    theirs = Swinv2SelfAttention(Swinv2Config(attention_probs_dropout_prob=0.0), 24, 3, size, trained).double()
    randomise(theirs)
    ours = SwinV2(*size, *trained).attach(HeadShape.of(24, 3)).double()
    inner, _, outer = theirs.continuous_position_bias_mlp
    weights = {"inner.weight": inner.weight, "inner.bias": inner.bias, "outer.weight": outer.weight}
    tokens = size[0] * size[1]
    x, pos = torch.randn(2, tokens, 24, dtype=torch.float64), torch.arange(tokens)[None]
    q, k, v = (f(x).view(2, tokens, 3, 8).transpose(1, 2) for f in (theirs.query, theirs.key, theirs.value))
    q, k = (torch.nn.functional.normalize(y, dim=-1) for y in (q, k))
    bias = functional_call(Terms(ours), {f"position.{name}": one for name, one in weights.items()}, (tokens,))
    scores = (q * theirs.logit_scale.clamp(max=100.0).exp()) @ k.mT + bias.tile(pos, pos)
    got = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    leaves = [*weights.values(), theirs.query.weight, theirs.key.weight, theirs.value.weight]
    same_with_gradients(got, theirs(x)[0], leaves, 1e-5)


class Terms(torch.nn.Module):
    """The one term of a method as a module."""

    def __init__(self, position: Any) -> None:
        super().__init__()
        self.position = position

    def forward(self, tokens: int) -> Any:
        return term(self.position, tokens)


def test_a_table_for_another_window_is_resampled() -> None:
    ours = Swin(4, 6).attach(HeadShape.of(12, 3)).double()
    randomise(ours)
    close(ours.resized(4, 6).weight, ours.weight)
    larger = ours.resized(8, 9)
    assert larger.spec() == "swin(height=8, width=9)"
    # bicubic weights: the table's centre stays where it is, and so does a table that does not vary
    close(larger.weight[:, 7, 8], ours.weight[:, 3, 5], 0.3)
    with torch.no_grad():
        ours.weight.fill_(0.25)
    close(ours.resized(8, 9).weight, torch.full((3, 15, 17), 0.25).double())


# --- in the fused kernel ----------------------------------------------------------------------------------------------


def both(position: Any, tokens: int, dtype: torch.dtype = torch.float64, **given: Any) -> list[list[Tensor]]:
    """Output and gradients of the fused kernel and of the reference."""
    torch.manual_seed(3)
    position = position.to(dtype)
    inputs = [torch.randn(1, position.shape.heads, tokens, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    weight, pos = torch.randn_like(inputs[0]), given.get("q_pos", torch.arange(tokens)[None])
    results = []
    for backend in ("native", "reference"):
        terms = position.terms(TermInputs(*inputs[:2], pos, pos, 1.0))
        out = attend(*inputs, terms=terms, backend=backend, **given)
        found = torch.autograd.grad((out * weight).sum(), [*inputs, *position.parameters()])
        results.append([out, *found])
    return results


def made(position: Any, heads: int = 2) -> Any:
    position = position.attach(HeadShape.of(8 * heads, heads))
    randomise(position)
    return position


def test_an_image_of_64_by_64_runs_in_the_fused_kernel() -> None:
    position = made(Swin(64, 64), heads=1)
    chosen = plan(position, tokens=4096, heads=1, head_dim=8)
    assert (chosen.route, chosen.memory) == ("native", "O(queries + keys): fused")
    got, expected = both(position, 4096, torch.float32)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask", [None, Causal(), Causal() & Documents((torch.arange(90) // 30)[None])])
@pytest.mark.parametrize("position", [Swin(9, 10), Swin(4, 10), SwinV2(9, 10)], ids=lambda position: position.spec())
def test_it_is_the_reference(position: Any, mask: Any) -> None:
    pos = torch.randperm(120)[None, :90]
    pos[0, [3, 40]] = -1
    for given in ({}, {"q_pos": pos, "k_pos": pos}):
        for g, e in zip(*both(made(position.fresh()), 90, mask=mask, **given), strict=True):
            close(g, e)


def test_two_biases_of_one_image_are_one() -> None:
    def terms(table: Tensor, smaller: Tensor) -> tuple[ByDistance, ...]:
        return ByDistance(table, 10, row=4), ByDistance(smaller, 3, row=4)

    tables = [torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (21, 9)]
    q, k, v, weight = torch.randn(4, 1, 2, 24, 8).double()
    results = []
    for backend in ("native", "reference"):
        out = attend(q, k, v, terms=terms(*tables), backend=backend)
        results.append([out, *torch.autograd.grad((out * weight).sum(), tables)])
    for g, e in zip(*results, strict=True):
        close(g, e)


def test_what_another_distance_stands_beside_is_not_fused() -> None:
    q = torch.randn(1, 2, 24, 8)
    image, text = ByDistance(torch.randn(2, 21), 10, row=4), ByDistance(torch.randn(2, 9), 3)
    with pytest.raises(HeadwayError, match="a term by distance in rows of 4 is combined with a term by another"):
        attend(q, q, q, backend="native", terms=(image, text))
    for given in ({"terms": (image, text)}, {"terms": (image,), "mask": Window(3)}):
        with pytest.raises(HeadwayError, match="distances in an image would need a queries × keys tensor"):
            attend(q, q, q, backend="sdpa", **given)
        reference = attend(q, q, q, backend="reference", **given)
        for backend in ("auto", "tiled"):
            close(attend(q, q, q, backend=backend, **given), reference, 1e-5)


def test_padding_stays_and_order_is_kept() -> None:
    pos = torch.arange(-1, 50)[None]
    placed = raster(pos, 7)
    assert placed[0, 0] == -1
    assert (placed.diff() > 0).all()
