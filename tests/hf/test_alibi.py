"""BLOOM, MPT and Falcon: ALiBi as a value per key, and Falcon's rotary models, against their own code in float64."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import family_laws
import pytest
import torch
from models import accelerated, as_exact, far, padding, randomised, same, tokens
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    MptConfig,
    MptForCausalLM,
)

import headway.hf
from headway.hf.float64 import in_float64
from headway.shapes import HeadwayError

DRY = {"attention_dropout": 0.0, "hidden_dropout": 0.0}


def bloom(**more: Any) -> Any:
    config = {"vocab_size": 90, "hidden_size": 30, "n_layer": 2, "n_head": 5, **DRY}
    return BloomForCausalLM(BloomConfig(**{**config, **more}))


def mpt(**more: Any) -> Any:
    config = {"vocab_size": 90, "d_model": 30, "n_layers": 2, "n_heads": 5, "max_seq_len": 80}
    return MptForCausalLM(MptConfig(**{**config, **more}))


def falcon(kind: str = "sdpa", **more: Any) -> Any:
    config = {"vocab_size": 90, "hidden_size": 60, "num_hidden_layers": 2, "num_attention_heads": 6, **DRY}
    return FalconForCausalLM(FalconConfig(attn_implementation=kind, **{**config, **more}))


MODELS: dict[str, Any] = {
    "bloom": bloom,
    "bloom-post": lambda: bloom(apply_residual_connection_post_layernorm=True, pretraining_tp=2),
    "mpt": mpt,
    "mpt-clipped": lambda: mpt(attn_config={"clip_qkv": 0.7, "softmax_scale": 0.3}),
    "falcon-alibi": lambda: falcon(alibi=True, bias=True),
    "falcon-alibi-mha": lambda: falcon(alibi=True, multi_query=False, parallel_attn=False),
    "falcon": falcon,
    "falcon-grouped": lambda: falcon(new_decoder_architecture=True, num_kv_heads=3),
    "falcon-mha-eager": lambda: falcon("eager", multi_query=False),
}
ONE_OF_EACH = ["bloom", "mpt", "falcon-alibi", "falcon"]


@cache
def made(name: str) -> Any:
    torch.manual_seed(0)
    return randomised(MODELS[name]())


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    with in_float64():
        yield


def logits(model: Any, n: int = 41) -> torch.Tensor:
    real = padding(3, n, "left")
    found: torch.Tensor = model(tokens(3, n), attention_mask=real).logits[real.bool()]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients(name: str) -> None:
    family_laws.same_with_padding(made(name))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_hidden_tokens_in_between_do_not_count(name: str) -> None:
    real = torch.ones(2, 31, dtype=torch.long)
    real[0, 7:15] = 0
    same(made(name), lambda m: m(tokens(2, 31), attention_mask=real).logits[real.bool()])


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_training_and_copies(name: str, tmp_path: Path) -> None:
    model = made(name)
    family_laws.same_in_training(model, logits)
    family_laws.same_copies(model, logits)
    family_laws.same_files(model, tmp_path)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_narrow_dtypes(name: str) -> None:
    as_exact(made(name), logits, torch.bfloat16)
    family_laws.autocast_as_exact(made(name), logits)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_decoding(name: str) -> None:
    family_laws.same_decoding(made(name), static=name != "falcon-alibi")  # whose own code needs a mask of tokens


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_nothing_per_pair(name: str) -> None:
    long = randomised(mpt(max_seq_len=600) if name == "mpt" else MODELS[name](), torch.float32)
    ids = tokens(1, 600)
    family_laws.nothing_quadratic(long, lambda m: m(ids).logits, 600)


@pytest.mark.parametrize(
    ("name", "linears"),
    [("bloom", ["query_key_value"]), ("mpt", ["Wqkv", "out_proj"]), ("falcon-alibi", ["query_key_value"])],
)
def test_adapters_and_hooks(name: str, linears: list[str]) -> None:
    family_laws.same_with_lora(made(name), logits, linears)
    family_laws.hooks_fire(made(name), logits, tuple(linears))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_attentions_are_the_models_own(name: str) -> None:
    model, ids = made(name), tokens(2, 9)
    with torch.no_grad():
        expected = model(ids, output_attentions=True)
        with accelerated(model):
            found = model(ids, output_attentions=True)
    # without ALiBi, Falcon's own code for SDPA returns attentions to the future too
    if name != "falcon":
        assert all(far(*pair) < 1e-12 for pair in zip(found.attentions, expected.attentions, strict=True))
        assert far(found.logits, expected.logits) < 1e-12
    assert all(not float(one.triu(1).abs().max()) for one in found.attentions)


def test_a_static_cache_where_falcon_has_none() -> None:
    model, ids = made("falcon-alibi"), tokens(3, 12)
    asked = {"attention_mask": padding(3, 12, "left"), "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    expected = model.generate(ids, pad_token_id=0, **asked)
    with accelerated(model):
        assert torch.equal(model.generate(ids, pad_token_id=0, cache_implementation="static", **asked), expected)


def test_packed_documents() -> None:
    positions = torch.cat((torch.arange(9), torch.arange(14)))[None]
    for name in ("falcon-alibi", "falcon"):
        same(made(name), lambda m: m(tokens(1, 23), position_ids=positions, use_cache=False).logits)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: bloom(slow_but_exact=True, pretraining_tp=2), "slow_but_exact"),
        (lambda: falcon("eager", alibi=True), "adds ALiBi twice"),
    ],
)
def test_left_alone(model: Any, why: str) -> None:
    with pytest.raises(HeadwayError, match=why):
        headway.hf.accelerate(model(), quiet=True)


def test_inputs_that_the_formula_cannot_take() -> None:
    with accelerated(made("mpt")) as done, pytest.raises(HeadwayError, match="at most max_seq_len=80 keys"):
        done.model(tokens(1, 81))
    with accelerated(made("falcon-alibi")) as done, pytest.raises(HeadwayError, match="one value per token"):
        done.model(tokens(1, 5), attention_mask=torch.ones(1, 1, 5, 5))
