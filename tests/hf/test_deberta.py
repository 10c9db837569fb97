"""DeBERTa, versions 1 to 3: products with relative embeddings by buckets, against their own code in float64."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import family_laws
import pytest
import torch
from models import accelerated, as_exact, far, padding, randomised, same, tokens
from transformers import DebertaConfig, DebertaModel, DebertaV2Config, DebertaV2ForMaskedLM, DebertaV2Model

import headway.hf
from headway.hf.float64 import in_float64
from headway.shapes import HeadwayError

SHARED = {
    "vocab_size": 90,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "intermediate_size": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
}


def second(**more: Any) -> Any:
    config = {**SHARED, "max_position_embeddings": 33, "position_buckets": 8, "share_att_key": True, **more}
    return DebertaV2Model(DebertaV2Config(norm_rel_ebd="layer_norm", **config))


def first(**more: Any) -> Any:
    return DebertaModel(DebertaConfig(**{**SHARED, "max_position_embeddings": 20, **more}))


MODELS: dict[str, Any] = {
    "v3": second,
    "v2": lambda: second(
        share_att_key=False,
        conv_kernel_size=3,
        position_biased_input=True,
        max_position_embeddings=75,
        max_relative_positions=30,
    ),
    "v2-to-keys": lambda: second(pos_att_type=["c2p"], position_buckets=9),
    "v2-to-queries": lambda: second(pos_att_type=["p2c"], position_buckets=-1, max_relative_positions=11),
    "v2-without": lambda: second(relative_attention=False, type_vocab_size=2),
    "v1": first,
    "v1-to-keys": lambda: first(pos_att_type=["c2p"]),
    "v1-to-queries": lambda: first(pos_att_type=["p2c"], max_relative_positions=7),
    "v1-without": lambda: first(relative_attention=False),
}
ONE_OF_EACH = ["v3", "v2", "v1"]


@cache
def made(name: str) -> Any:
    torch.manual_seed(0)
    return randomised(MODELS[name]())


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    with in_float64():
        yield


def states(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(tokens(3, 61), attention_mask=padding(3, 61, "left"))[0]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_states_and_gradients(name: str) -> None:
    """Longer than every bucket and position."""
    family_laws.same_with_padding(made(name), 71)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_padded_queries_get_the_mean_of_all_values(name: str) -> None:
    same(made(name), states)
    nothing = torch.tensor([[1] * 13, [0] * 13])
    same(made(name), lambda m: m(tokens(2, 13), attention_mask=nothing)[0])


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_training_and_copies(name: str, tmp_path: Path) -> None:
    family_laws.same_in_training(made(name), states)
    family_laws.same_copies(made(name), states)
    family_laws.same_files(made(name), tmp_path)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_narrow_dtypes(name: str) -> None:
    as_exact(made(name), states, torch.bfloat16)
    if name != "v1":  # whose own code cannot run under autocast
        family_laws.autocast_as_exact(made(name), states)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_nothing_per_pair(name: str) -> None:
    long = randomised(second(conv_kernel_size=3) if name == "v2" else MODELS[name](), torch.float32)
    family_laws.nothing_quadratic(long, lambda m: m(tokens(1, 600))[0], 600)


@pytest.mark.parametrize(
    ("name", "linears"),
    [("v3", ["query_proj", "key_proj", "value_proj"]), ("v2", ["pos_key_proj", "pos_query_proj"]), ("v1", ["in_proj"])],
)
def test_adapters_and_hooks(name: str, linears: list[str]) -> None:
    family_laws.same_with_lora(made(name), states, linears)
    family_laws.hooks_fire(made(name), states, (*linears, "pos_dropout"))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_attentions_are_the_models_own(name: str) -> None:
    model, ids = made(name), tokens(2, 9)
    with torch.no_grad():
        expected = model(ids, output_attentions=True)
        with accelerated(model):
            found = model(ids, output_attentions=True)
    assert all(torch.equal(*pair) for pair in zip(found.attentions, expected.attentions, strict=True))


def test_what_is_given_for_each_pair() -> None:
    """A mask or distances of pairs are computed by the model's own code, other queries here."""
    model = made("v3")
    hidden, others = torch.randn(2, 2, 13, 30, dtype=torch.float64)
    apart, real, seen = torch.randint(-7, 8, (1, 13, 13)), torch.ones(2, 13), torch.rand(2, 13, 13) > 0.4
    same(model, lambda m: m.encoder(hidden, seen)[0])
    for given in ({"query_states": others}, {"relative_pos": apart}):
        same(model, lambda m, given=given: m.encoder(hidden, real, **given)[0])


def test_dropout_drops() -> None:
    model = randomised(second(attention_probs_dropout_prob=0.5), torch.float32).train()
    with accelerated(model), torch.no_grad():
        assert far(model(tokens(1, 9))[0], model(tokens(1, 9))[0]) > 1e-3


def test_masked_language_model() -> None:
    model = randomised(DebertaV2ForMaskedLM(made("v3").config))
    same(model, lambda m: m(tokens(2, 31), labels=tokens(2, 31)).loss)


def test_left_alone() -> None:
    with pytest.raises(HeadwayError, match="mixes heads"):
        headway.hf.accelerate(first(talking_head=True), quiet=True)
    with pytest.raises(HeadwayError, match="its position_buckets are 2"):
        headway.hf.accelerate(second(position_buckets=2), quiet=True)
