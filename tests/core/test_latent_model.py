"""Latent attention in a Transformer: which layers have it, what they share, caches, sizes and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import close, named, refusal, transformer
from options import models
from torch import Tensor

from headway import Attention, Causal, LatentAttention, Transformer, Window
from headway.config import LATENT, LayerConfig, TransformerConfig
from headway.sizes import check_size

BASE: dict[str, Any] = {"vocab": 11, "dim": 32, "layers": 4, "heads": 4}
SIZES = {"latent_dim": 12, "position_dim": 8}
TOKENS = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))


def test_options_reach_every_layer() -> None:
    more = {"query_latent_dim": 14, "value_dim": 6, "softcap": 5.0, "sinks": True, "log_scale": 64, "scale": 0.5}
    model = Transformer(**BASE, **SIZES, **more, bias=True, backend="reference", attention_dropout=0.1)
    for layer in model.stack.attentions():
        assert isinstance(layer, LatentAttention)
        assert (layer.latent_dim, layer.position_dim, layer.value_dim, layer.head_dim) == (12, 8, 6, 8)
        assert layer.q_down is not None
        assert layer.q_down.out_features == 14
        assert (layer.softcap, layer.log_scale, layer.scale, layer.dropout) == (5.0, 64, 0.5, 0.1)
        assert layer.sinks is not None
        assert layer.kv_down.bias is not None
        assert layer.core.backend == "reference"
        assert layer.mask == Causal()
    said = "latent_dim=12, head_dim=8, position_dim=8, value_dim=6, query_latent_dim=14, softcap=5.0, log_scale=64"
    assert said in repr(model)
    assert "latent_dim=12, query_latent_dim=14, position_dim=8, value_dim=6" in repr(model)


def test_layers_may_differ() -> None:
    pattern = [{**SIZES, "window": 3}, {**SIZES, "position_dim": 4, "position": "alibi"}, {}]
    model = Transformer(**BASE, pattern=pattern, position="t5", kv_heads=2, qk_norm=False)
    first, second, third, fourth = model.stack.attentions()
    assert [type(layer) for layer in (first, second, third, fourth)] == [
        LatentAttention,
        LatentAttention,
        Attention,
        LatentAttention,
    ]
    assert first.mask == Window(3, 0)
    assert model.position is first.position is fourth.position
    assert third.position is not first.position  # of other widths
    assert (third.position.spec(), second.position.spec()) == ("t5", "alibi")
    shapes = [(one.position.shape.kv_heads, one.position.shape.head_dim) for one in (first, second, third)]
    assert shapes == [(1, 8), (1, 4), (2, 8)]
    assert TransformerConfig.of(model.config.plain()) == model.config
    separate = Transformer(**BASE, **SIZES, position="t5", share_position=False)
    assert len({id(layer.position) for layer in separate.stack.attentions()}) == 4
    later = Transformer(**BASE, pattern=[{**SIZES, "position": "alibi"}, {}], position="t5")
    assert later.position is later.stack.attentions()[1].position
    shared = Transformer(**BASE, pattern=[{}, SIZES], position="t5")
    found = [id(layer.position) for layer in shared.stack.attentions()]
    assert found[:2] == found[2:]
    assert found[0] != found[1]


def test_the_one_list_of_options() -> None:
    for config in (TransformerConfig(9), LayerConfig()):
        assert set(LATENT) <= set(vars(config))


@pytest.mark.parametrize("pattern", [(), [{}, SIZES]], ids=["all", "some"])
def test_positions_are_replaced_where_they_are(pattern: list[dict[str, Any]]) -> None:
    config = BASE | ({"pattern": pattern} if pattern else SIZES)
    longer = Transformer(**config).extended(4096, "linear", trained=64)
    for layer in longer.stack.attentions():
        assert "interpolated" in layer.position.spec()
        assert layer.position.shape.head_dim == 8
    assert longer(TOKENS).shape == (2, 9, 11)
    longer.drop_position()
    assert {layer.position.spec() for layer in longer.stack.attentions()} == {"none"}
    assert longer(TOKENS).shape == (2, 9, 11)


def test_an_encoder_decoder_decodes_as_one_pass() -> None:
    model = transformer("t5", kind="encoder-decoder", **SIZES)
    assert model.encoder is not None
    assert all(isinstance(layer, LatentAttention) for layer in model.encoder.attentions())
    source, tokens = torch.randint(17, (2, 5)), torch.randint(17, (2, 9))
    whole, cache = model(tokens, source=source), model.new_cache()
    close(torch.cat([model(part, source=source, cache=cache) for part in tokens.split([4, 1, 4], 1)], 1), whole)


# --- caches -----------------------------------------------------------------------------------------------------------


def test_a_cache_is_smaller() -> None:
    """Latent vectors and one rotated key for all heads: 20 numbers per token and layer, instead of 64."""
    sizes = []
    for options in ({}, SIZES):
        model = Transformer(**BASE, **options).double()
        cache = model.new_cache(size=9)
        model(TOKENS, cache=cache)
        sizes.append(cache.nbytes - 4 * 2 * 9 * 8)  # positions
    assert sizes == [4 * 2 * 9 * 64 * 8, 4 * 2 * 9 * 20 * 8]


@pytest.mark.parametrize("size", [None, 9])
def test_an_8_bit_cache_errs_by_its_rounding(size: int | None) -> None:
    """As by hand: each latent vector with its rotated key rounded to 255 steps of its largest entry."""
    model = transformer("rotary", **SIZES)
    tokens = torch.randint(17, (2, 9))
    cache, exact = model.new_cache(size=size, dtype=torch.int8), model.new_cache()
    with torch.no_grad():
        model(tokens[:, :8], cache=cache)
        model(tokens[:, :8], cache=exact)
        for rounded, own in zip(cache.layers, exact.layers, strict=True):
            k = own.k
            step = k.abs().amax(-1, keepdim=True) / 127
            close(rounded.k[:, :, :8], (k / step).round() * step, 1e-6)
            assert rounded.nbytes < own.nbytes
        got, expected = (model(tokens[:, 8:], cache=one) for one in (cache, exact))
    error = (got - expected).abs().max()
    assert 0 < error < 0.2 * expected.abs().max()


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", models(), ids=named)
def test_layers_computed_again_give_the_same_gradients(spec: str) -> None:
    model = transformer(spec).train()
    tokens, results = torch.randint(17, (2, 9)), []
    for on in (False, True):
        model.checkpoint_layers(on)
        torch.manual_seed(5)
        found = torch.autograd.grad(model(tokens).square().sum(), list(model.parameters()), allow_unused=True)
        results.append([torch.zeros(()) if g is None else g for g in found])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_it_is_the_layer_by_itself() -> None:
    """A block by hand; and every parameter has a gradient."""
    model = transformer("alibi", **SIZES, query_latent_dim=9)
    tokens = torch.randint(17, (2, 9))
    block = model.stack.blocks[0]
    own = LatentAttention(24, 3, **SIZES, query_latent_dim=9, position="alibi", mask=Causal()).double()
    own.load_state_dict(block.attention.part.state_dict())
    seen: list[Tensor] = []
    hook = block.attention.part.register_forward_hook(lambda m, args, out: seen.extend((args[0], out)))
    model(tokens).square().sum().backward()
    hook.remove()
    close(own(seen[0]), seen[1])
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


# --- what is refused --------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    with refusal(
        "expected no qk_norm in layer 0, because latent attention normalises its latent vectors instead, got qk_norm: "
        "leave it or latent_dim out"
    ):
        Transformer(**BASE, **SIZES, qk_norm=True)
    with refusal("expected no qk_norm in layer 1, because", whole=False):
        Transformer(**BASE, pattern=[{}, SIZES], qk_norm=True)
    with refusal(
        "expected no kv_heads, because latent attention makes the keys of all heads from one latent vector, got 2: "
        "leave kv_heads or latent_dim out"
    ):
        Transformer(**BASE, **SIZES, kv_heads=2)
    for name, value in (("query_latent_dim", 8), ("value_dim", 8), ("position_dim", 8)):
        expected = f"expected {name} with latent_dim, because only latent attention has it, got it without"
        with refusal(expected):
            Transformer(**BASE, **{name: value})
        with refusal(expected):
            Transformer(**BASE, pattern=[SIZES, {name: value}])
    for pattern in ([SIZES, {"kv_from": 1}], [{}, {"kv_from": 1, **SIZES}]):
        with refusal(
            "expected kv_from between layers with keys and values, got layers 0 and 1, of which one has latent "
            "attention: leave kv_from or latent_dim out"
        ):
            Transformer(**BASE, pattern=pattern)
    with refusal(
        "expected latent_dim in all layers or in none, because learned acts on the embedding, once for all layers, got "
        "it in some"
    ):
        Transformer(**BASE, pattern=[{}, SIZES], position="learned")
    with refusal("expected latent_dim to be a whole number from 1 to 65,536, got 0"):
        Transformer(**BASE, latent_dim=0)


def test_its_size_is_known_before_it_is_made() -> None:
    for config in (BASE | SIZES, BASE | {"pattern": [{}, SIZES]}, BASE | SIZES | {"head_dim": 1, "value_dim": 1}):
        counted = check_size(config, parameters=10**6).parameters
        assert counted == sum(p.numel() for p in Transformer(**config).parameters())
        check_size(config, parameters=counted)
        with refusal("expected a model of at most", whole=False):
            check_size(config, parameters=counted - 1)
    pattern = [{}, {"latent_dim": 9}, {"latent_dim": 2000}]  # the widest is the last of a pattern, and of the model
    for layers in (2, 3, 8, 12):
        config = BASE | {"pattern": pattern, "layers": layers}
        assert check_size(config).parameters == sum(p.numel() for p in Transformer(**config).parameters())
    wide = BASE | SIZES | {"query_latent_dim": 2000, "value_dim": 500}
    held = check_size(wide, tokens=64).held
    assert held > 4 * 64 * (2000 + 4 * 500)
