"""What is shown of a model in half precision is what ran: softmax and sums in float32 of the q, k and v it had."""

from __future__ import annotations

import pytest
import torch

from headway import Attention, Causal, Transformer
from headway.backends.reference import weights as specified
from headway.inspect import record, split
from headway.inspect.explain import explain, fresh_model
from headway.inspect.head import Head
from headway.inspect.record import recorded
from headway.inspect.step import one_step
from headway.positions import methods, parse
from headway.shapes import HeadwayError

HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("position", ["none", "rotary", "alibi", "sinusoidal"])
def test_weights_are_the_softmax_of_the_q_and_k_that_ran(dtype: torch.dtype, position: str) -> None:
    attention = Attention(64, 4, position=position, mask=Causal()).to(dtype).eval()
    x = 3 * torch.randn(1, 40, 64).to(dtype)
    with record(attention) as trace, torch.no_grad():
        out = attention(x)
    layer = trace[0]
    scores = layer.call.scale * layer.call.q.double() @ layer.call.k.double().mT
    pos = torch.arange(40)
    if position == "alibi":
        slopes = 2.0 ** -torch.arange(2, 9, 2).double()
        scores = scores - slopes[:, None, None] * (pos[:, None] - pos).double().to(dtype)
    expected = scores.masked_fill(pos > pos[:, None], -torch.inf).softmax(-1)
    assert (layer.weights() - expected).abs().max() < (1e-5 if position != "alibi" else 1e-3)
    torch.testing.assert_close(split(layer).total, layer.scores(), atol=1e-5, rtol=1e-5)
    head = Head(layer, 1)
    torch.testing.assert_close(sum(head.parts.values()), head.scores, atol=1e-5, rtol=1e-5)
    # what the heads hand on is what W_O was given, but for its rounding
    handed = layer.output().transpose(1, 2).flatten(-2).to(dtype)
    torch.testing.assert_close(attention.o(handed), out, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", list(methods()))
def test_every_method_is_shown_in_full_precision(name: str) -> None:
    position = parse(name)
    try:
        model = Transformer(16, 32, layers=2, heads=4, position=position).to(torch.bfloat16).eval()
        layer = recorded(model, torch.arange(9)[None])[0]
    except HeadwayError as error:
        pytest.skip(str(error))
    weights = layer.weights()
    assert weights.dtype == torch.float32
    total = weights.sum(-1)
    assert (total < 1 + 1e-5).all()
    if layer.call.normalise == "softmax":
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights, specified(layer.call), atol=1e-6, rtol=0)
    torch.testing.assert_close(split(layer).total, layer.scores(), atol=1e-4, rtol=1e-4)


def test_the_callers_autocast_changes_nothing_of_what_is_shown() -> None:
    model, ids = fresh_model(["the", "cat", "sat", "on", "the", "mat"])
    with torch.autocast("cpu", torch.bfloat16):
        layer = recorded(model, ids)[0]
        inside = layer.scores(), layer.weights(), layer.output(), split(layer).total
    outside = layer.scores(), layer.weights(), layer.output(), split(layer).total
    for one, other in zip(inside, outside, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
    labels = list("abcdef")
    plain = explain(model, ids, labels)
    with torch.autocast("cpu", torch.bfloat16):
        cast = explain(model, ids, labels)
    weights = torch.tensor(cast["weights"])
    assert (weights.sum(-1) - 1).abs().max() < 1e-6
    assert (weights - torch.tensor(plain["weights"])).abs().max() < 0.05


def test_a_number_of_q_adds_up_and_a_step_is_seen() -> None:
    model, ids = fresh_model(["the", "cat", "sat", "on"])
    model = model.to(torch.bfloat16)
    cell = explain(model, ids, list("abcd"))["cell"]
    assert abs(sum(cell["products"]) + cell["bias"] - cell["sum"]) < 0.01 * max(1, abs(cell["sum"]))
    step = one_step(model, ids)
    assert step.weights.dtype == torch.float32
    assert (step.weights.sum(-1) - 1).abs().max() < 1e-6
