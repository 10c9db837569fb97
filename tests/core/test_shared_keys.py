"""Layers that attend to the keys and values of another layer (cross-layer attention, arXiv:2405.12981)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from common import close, randomise, refusal
from torch import Tensor

from headway import Attention, Causal, Transformer, attend
from headway.attention import SharedKV
from headway.config import TransformerConfig
from headway.inspect import record, split
from headway.inspect.head import Head

PAIRS: list[dict[str, Any]] = [{}, {"kv_from": 1}]
LAST: list[dict[str, Any]] = [{"window": 3}, {}, {"kv_from": 2, "window": 3}, {"kv_from": 2}]
METHODS = [
    "none",
    "sinusoidal",
    "rotary",
    "alibi",
    "t5",
    "shaw",
    "fox",
    "selectiverotary",
    "rotatedvalues",
    "cope",
]
BASE: dict[str, Any] = {"vocab": 11, "dim": 32, "layers": 4, "heads": 4, "kv_heads": 2}
TOKENS = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))


def made(position: str = "rotary", pattern: list[dict[str, Any]] = PAIRS, **options: Any) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(**{**BASE, **options}, position=position, pattern=pattern).double().eval()
    randomise(model)
    return model


def test_the_keys_are_those_of_the_owner() -> None:
    """By hand: queries of the second layer, keys and values of the first; values and every gradient."""
    first, second = (Attention(32, 4, kv_heads=2, position="rotary", mask=Causal()).double() for _ in "ab")
    second.share_kv(first)
    x, y = torch.randn(2, 2, 7, 32).double().unbind()
    shared, pos = SharedKV(), torch.arange(7)[None]
    got = second(y + first(x, shared=shared), shared=shared)

    def heads(linear: torch.nn.Linear, given: Tensor) -> Tensor:
        return linear(given).unflatten(-1, (-1, 8)).transpose(1, 2)

    _, k = first.position.rotate(heads(first.k, x), heads(first.k, x), pos, pos)
    q, _ = first.position.rotate(heads(second.q, z := y + first(x)), heads(second.q, z), pos, pos)
    out = attend(q, k, heads(first.v, x), mask=Causal(), backend="reference")
    expected = second.o(out.transpose(1, 2).flatten(2))
    close(got, expected)
    parameters = list({id(p): p for layer in (first, second) for p in layer.parameters()}.values())
    assert len(parameters) == 6
    results = [torch.autograd.grad(one.square().sum(), parameters, retain_graph=True) for one in (got, expected)]
    for one, other in zip(*results, strict=True):
        close(one, other)


@pytest.mark.parametrize("pattern", [PAIRS, LAST], ids=["pairs", "last"])
@pytest.mark.parametrize("position", METHODS)
def test_decoding_is_the_full_pass_and_causal(position: str, pattern: list[dict[str, Any]]) -> None:
    model = made(position, pattern)
    whole = model(TOKENS)
    changed = TOKENS.clone()
    changed[:, 6:] = 0
    close(model(changed)[:, :6], whole[:, :6])
    pos = (torch.arange(9) - torch.tensor([[3], [0]])).clamp(min=-1)
    padded = model(TOKENS, pos=pos)
    close(padded[1], whole[1])
    close(padded[0, 3:], model(TOKENS[:1, 3:])[0])
    for size in (None, 12):
        for pieces in ([4, 1, 1, 3], [1] * 9):
            cache = model.new_cache(size)
            close(torch.cat([model(part, cache=cache) for part in TOKENS.split(pieces, 1)], 1), whole)
        cache.crop(5)
        close(model(TOKENS[:, 5:], cache=cache), whole[:, 5:])
        cache.reorder([1, 0])
        assert torch.equal(cache.layers[0].pos[0], cache.layers[0].pos[1])
        cache.keep(range(8))


def test_a_model_saves_parameters_and_memory() -> None:
    plain, pairs = Transformer(**BASE), Transformer(**BASE, pattern=PAIRS)
    counts = [sum(p.numel() for p in model.parameters()) for model in (plain, pairs)]
    assert counts[0] - counts[1] == 2 * 2 * 32 * 16
    caches = [model.new_cache() for model in (plain, pairs)]
    with torch.no_grad():
        for model, cache in zip((plain, pairs), caches, strict=True):
            model(TOKENS, cache=cache)
    assert caches[1].nbytes == caches[0].nbytes / 2
    assert TransformerConfig(9, layers=4, pattern=LAST).owners() == [0, 1, 0, 1]


def test_it_is_saved_loaded_and_trained_as_it_is(tmp_path: Path) -> None:
    model = made("t5")
    model.save(tmp_path / "model")
    again = Transformer.load(tmp_path / "model").double()
    assert again.config == model.config
    close(again(TOKENS), model(TOKENS), 1e-6)
    first, second = again.stack.attentions()[:2]
    assert second.k is first.k
    assert second.position is first.position
    results = []
    for checkpointed in (False, True):
        model.train().checkpoint_layers(checkpointed)
        found = torch.autograd.grad(model(TOKENS).square().sum(), list(model.parameters()))
        results.append(found)
    for one, other in zip(*results, strict=True):
        close(one, other)
        assert bool(one.any())


@pytest.mark.parametrize("position", ["sinusoidal", "rotary", "selectiverotary", "rotatedvalues"])
def test_what_is_recorded_is_what_was_computed(position: str) -> None:
    model = made(position, qk_norm=True)
    with record(model) as trace:
        model(TOKENS)
    first, second = trace[0], trace[1]
    assert second.k is not None
    assert torch.equal(second.k, first.k)
    assert torch.equal(second.source, first.x)
    assert not torch.equal(second.x, first.x)
    cell = Head(second, 1).cell("k", 3, 2)
    assert abs(float(cell.products.sum()) + cell.bias - cell.sum) < 1e-9
    for layer in (first, second):
        found = split(layer)
        close(sum(found.parts.values()), found.total)


def test_refusals() -> None:
    first, second = Attention(32, 4), Attention(32, 4)
    x = torch.randn(1, 3, 32)
    with refusal(
        "expected a layer of as many key heads and heads and the same widths to share keys and values, (4, 4, 8, 32), "
        "got (2, 4, 8, 32)"
    ):
        second.share_kv(Attention(32, 4, kv_heads=2))
    second.share_kv(first)
    with refusal("expected a layer with keys and values of its own to share, got one without"):
        Attention(32, 4).share_kv(second)
    for shared in (None, SharedKV()):
        with refusal(
            "expected the keys and values of the layer that this one shares them with, got none: run that layer first, "
            "and pass the same headway.attention.SharedKV() to both as `shared`"
        ):
            second(x, shared=shared)
    first(x, shared=(shared := SharedKV()))
    with refusal("expected x of (1, 3) tokens, as that of the layer with the keys, got (1, 2)"):
        second(x[:, :2], shared=shared)
    with refusal("expected no context, because this layer shares another's keys and values, got one"):
        second(x, context=x, shared=shared)
    for pattern, why in (
        (
            [{"kv_from": 1}],
            "expected kv_from of layer 0 to name a layer with keys and values of its own, got 1, layer -1: "
            "there is none",
        ),
        (
            [{}, {"kv_from": 1}, {"kv_from": 1}],
            "expected kv_from of layer 2 to name a layer with keys and values of its own, got 1, layer 1: it uses "
            "those of another",
        ),
        (
            [{}, {"kv_from": 1, "position": "alibi"}],
            "expected no position of its own for layer 1, which has that of the layer whose keys it uses (kv_from), "
            "got alibi",
        ),
    ):
        with refusal(why):
            Transformer(**BASE, pattern=pattern)
