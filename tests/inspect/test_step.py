"""The microscope: gradients against autograd in float64 for every method, updates against the optimisers' own."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from common import refusal, specs, transformer
from torch import Tensor

from headway import Transformer
from headway.inspect import one_step
from headway.positions import methods
from headway.training import TrainSettings, build_optimizer

WIDE = {"heads": 6, "kv_heads": 2, "dim": 48}
LAYER, HEAD = 1, 3


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max().item() <= tolerance


def loss_of(model: Transformer, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids)[0, :-1], ids[0, 1:])


@pytest.mark.parametrize("name", methods())
def test_gradients_are_those_of_the_model(name: str) -> None:
    model = transformer(name, **WIDE)
    ids = torch.randint(17, (1, 7))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step = one_step(model, ids, layer=LAYER, head=HEAD, lr=0.05)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    attention = model.stack.attentions()[LAYER]
    assert attention.q.weight.grad is None
    # the model's own backend, and its own matrices by the public way
    loss = loss_of(model, ids)
    loss.backward()
    assert abs(loss.item() - step.loss) < 1e-9
    weights = attention.head(HEAD)
    for which, gradient in zip("qkv", attention.head(HEAD, grad=True)[:3], strict=True):
        move = step.moves["sgd"][which]
        close(move.gradient, gradient, 1e-9)
        close(move.before, getattr(weights, which), 0.0)
    # dW_Q = Xᵀ dQ
    x = step.layer.x[0]
    for which, d in (("q", step.d_q), ("k", step.d_k), ("v", step.d_v)):
        close(x.T @ d, step.moves["sgd"][which].gradient)
    through = step.weights * (step.d_weights - (step.weights * step.d_weights).sum(-1, keepdim=True))
    if model.position.normalise == "softmax":
        close(through, step.d_scores)
    else:
        assert (through - step.d_scores).abs().max() > 1e-4
    assert not step.d_scores[~step.seen].any()
    if not step.layer.call.value_terms:
        close(step.d_out @ step.layer.call.v[0, step.kv_head].T, step.d_weights)


def test_every_spec_is_a_method_that_is_tested() -> None:
    assert {spec.partition("(")[0] for spec in specs()} <= set(methods())


def test_scores_gradient_is_the_slope_of_the_loss() -> None:
    """Without autograd: change one score slightly and compare the loss."""
    from headway.terms import Pairwise

    model = transformer("t5", heads=3)
    ids = torch.randint(17, (1, 5))
    step = one_step(model, ids, layer=0, head=2)
    attention = model.stack.attentions()[0]
    core = attention.core

    def bent(by: float) -> float:
        bias = torch.zeros(1, 3, 5, 5, dtype=torch.double)
        bias[0, 2, 3, 1] = by

        def forward(q: Tensor, k: Tensor, v: Tensor, mask: object, terms: tuple, *rest: object) -> Tensor:
            return type(core).forward(core, q, k, v, mask, (*terms, Pairwise(lambda *_: bias)), *rest)

        core.forward = forward
        try:
            with torch.no_grad():
                return loss_of(model, ids).item()
        finally:
            del core.forward

    slope = (bent(1e-4) - bent(-1e-4)) / 2e-4
    assert abs(slope) > 1e-6
    assert abs(slope - step.d_scores[3, 1].item()) < 1e-8


def test_updates_are_those_of_the_formulas_in_single_precision() -> None:
    model = transformer("rotary", **WIDE).float()
    ids = torch.randint(17, (1, 9))
    step = one_step(model, ids, layer=LAYER, head=HEAD, lr=0.02)
    for moves in step.moves.values():
        for move in moves.values():
            close(move.after - move.before, move.update, 1e-6)
            assert move.update.abs().max() > 0
    for which in "qkv":
        sgd, adam = step.moves["sgd"][which], step.moves["adam"][which]
        close(sgd.update, -0.02 * sgd.gradient, 1e-6)
        close(adam.update, -0.02 * adam.gradient / (adam.gradient.abs() + 1e-8), 1e-6)
        close(adam.state["exp_avg"], 0.1 * adam.gradient, 1e-7)
        close(adam.state["exp_avg_sq"], 0.001 * adam.gradient.square(), 1e-7)
        assert not sgd.state
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.02)
    loss_of(twin, ids).backward()
    optimizer.step()
    assert abs(loss_of(twin, ids).item() - step.losses_after["sgd"]) < 1e-5
    assert step.losses_after["sgd"] < step.loss


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_the_runs_own_optimiser_goes_on_with_its_state(kind: str) -> None:
    model = transformer("alibi", **WIDE).float()
    ids = torch.randint(17, (1, 9))
    optimizer = build_optimizer(model, TrainSettings(optimizer=kind, lr=0.01))
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model, ids).backward()
        optimizer.step()
    step = one_step(model, ids, layer=LAYER, head=HEAD, optimizer=optimizer)
    again = one_step(model, ids, layer=LAYER, head=HEAD, optimizer=optimizer)
    close(again.moves["own"]["k"].update, step.moves["own"]["k"].update, 0.0)  # it changed nothing
    optimizer.zero_grad()
    loss_of(model, ids).backward()
    optimizer.step()
    for which, now in zip("qkv", model.stack.attentions()[LAYER].head(HEAD)[:3], strict=True):
        close(step.moves["own"][which].after, now, 2e-6)
    assert step.rates["own"] == 0.01
    if kind != "sgd":
        assert (step.moves["own"]["q"].update - step.moves["adam"]["q"].update).abs().max() > 1e-4


def test_an_encoder_a_frozen_model_and_targets() -> None:
    model = transformer("shaw", kind="encoder", heads=3)
    model.requires_grad_(False)
    model.stack.attentions()[0].q.weight.requires_grad_(True)
    ids = torch.randint(17, (1, 4))
    targets = torch.tensor([[-100, 3, -100, 5]])
    step = one_step(model, ids, targets=targets)
    expected = F.cross_entropy(model(ids)[0, [1, 3]], targets[0, [1, 3]])
    assert abs(step.loss - expected.item()) < 1e-9
    assert step.losses.isnan().tolist() == [True, False, True, False]
    assert step.seen.all()
    assert not model.stack.attentions()[0].k.weight.requires_grad


def test_what_cannot_be_asked() -> None:
    model = transformer("none", heads=3)
    with refusal("expected something to predict, got a text without a target: give at least two tokens"):
        one_step(model, torch.zeros(1, 1, dtype=torch.long))
    ids = torch.zeros(1, 4, dtype=torch.long)
    with refusal("expected a layer from 0 to 1, got 2"):
        one_step(model, ids, layer=2)
    with refusal("expected a head from 0 to 2, got -1"):
        one_step(model, ids, head=-1)
    with refusal("expected token ids of one text, (1, N), got (2, 4)"):
        one_step(model, ids.expand(2, -1))
    with refusal("expected targets of shape (1, 4), like ids, got (1, 3)"):
        one_step(model, ids, targets=ids[:, :3])
    with refusal("expected targets, because an encoder predicts no next token, got none"):
        one_step(transformer("alibi", kind="encoder", heads=3), ids)
    both = transformer("alibi", kind="encoder-decoder", heads=3)
    with refusal("expected a decoder or an encoder, got an encoder-decoder, which also needs a source"):
        one_step(both, ids)
