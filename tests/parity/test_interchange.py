"""Configurations of transformers' own models, read here, rotate and bias as those models do.

Held against: transformers (Llama, GLM).
"""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from common import randomise, refusal
from torch import Tensor
from transformers.models.glm.modeling_glm import GlmAttention, GlmRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from headway import T5, Alibi, Attention, Causal, Learned, Rotary, Shaw
from headway.positions import convert_pairing, from_hf, methods, parse, to_hf

SIZE = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "attn_implementation": "eager",
}
SCALINGS = [
    {"rope_type": "default", "rope_theta": 1000.0},
    {"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0},
    {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0},
    {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    {
        "rope_type": "yarn",
        "rope_theta": 1000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "truncate": False,
    },
    {
        "rope_type": "longrope",
        "rope_theta": 1000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        "long_factor": [1.0, 2.1, 3.2, 3.3, 3.4, 4.5, 4.6, 5.7],
    },
    {
        "rope_type": "llama3",
        "rope_theta": 1000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "proportional", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
]


def hidden(tokens: int) -> Tensor:
    return torch.full((1, 1, tokens, tokens), -torch.inf, dtype=torch.float64).triu(1)


def copied(ours: Attention, theirs: torch.nn.Module) -> Attention:
    with torch.no_grad():
        for name in "qkvo":
            getattr(ours, name).weight.copy_(getattr(theirs, f"{name}_proj").weight)
    return ours


@pytest.mark.parametrize("tokens", [40, 100])
@pytest.mark.parametrize("old", [False, True], ids=["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("given", SCALINGS, ids=lambda given: given["rope_type"])
def test_a_llama_as_its_config_says(given: dict, old: bool, tokens: int) -> None:
    """Read from the JSON text that config.json would hold, in the format before transformers 5 and after it."""
    config = transformers.LlamaConfig(**SIZE, max_position_embeddings=64, rope_parameters=dict(given))
    values = json.loads(config.to_json_string(use_diff=False))
    if old:
        values["rope_scaling"] = values.pop("rope_parameters")
        values["rope_theta"] = values["rope_scaling"].pop("rope_theta")
        values["rope_scaling"]["type"] = values["rope_scaling"].pop("rope_type")
    theirs = LlamaAttention(config, 0).double()
    randomise(theirs)
    ours = copied(Attention(64, 4, kv_heads=2, position=from_hf(values), mask=Causal()).double(), theirs)
    x, pos = torch.randn(1, tokens, 64).double(), torch.arange(tokens)[None]
    angles = LlamaRotaryEmbedding(config)(x, pos)
    if given["rope_type"] == "proportional":  # as wide as the head, where this model's are as wide as the part
        assert ours.position.spec() == "proportional(base=1000.0, fraction=0.5)"
    expected = theirs(x, position_embeddings=angles, attention_mask=hidden(tokens))[0]
    torch.testing.assert_close(ours(x), expected, rtol=1e-3, atol=1e-3)  # their angles are float32
    assert from_hf(config).spec() == ours.position.spec()


def test_pairing_follows_the_model_and_weights_convert() -> None:
    config = transformers.GlmConfig(**SIZE, partial_rotary_factor=0.5, attention_bias=False)
    theirs = GlmAttention(config, 0).double()
    randomise(theirs)
    position = from_hf(config)
    assert position.spec() == "rotary(fraction=0.5, pairing='interleaved')"
    ours = copied(Attention(64, 4, kv_heads=2, position=position, mask=Causal()).double(), theirs)
    x, pos = torch.randn(1, 30, 64).double(), torch.arange(30)[None]
    expected = theirs(x, position_embeddings=GlmRotaryEmbedding(config)(x, pos), attention_mask=hidden(30))[0]
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)
    half = copied(Attention(64, 4, kv_heads=2, position=Rotary(fraction=0.5), mask=Causal()).double(), theirs)
    with torch.no_grad():
        for linear, heads in ((half.q, 4), (half.k, 2)):
            linear.weight.copy_(convert_pairing(linear.weight, heads, "half", fraction=0.5))
    torch.testing.assert_close(half(x), ours(x), rtol=1e-9, atol=1e-9)
    for linear, heads in ((half.q, 4), (half.k, 2)):
        back = convert_pairing(linear.weight, heads, "interleaved", fraction=0.5)
        assert torch.equal(back, getattr(ours, "q" if linear is half.q else "k").weight)


def test_a_bias_converts_like_its_weight() -> None:
    linear = torch.nn.Linear(8, 12)
    x = torch.randn(5, 8)
    half = torch.nn.Linear(8, 12)
    with torch.no_grad():
        half.weight.copy_(convert_pairing(linear.weight, 2, "half"))
        half.bias.copy_(convert_pairing(linear.bias, 2, "half"))
    whole = linear(x).unflatten(-1, (2, 6))
    assert torch.allclose(half(x).unflatten(-1, (2, 6)), torch.cat((whole[..., 0::2], whole[..., 1::2]), -1))


CONFIGS = {
    "gpt2": (transformers.GPT2Config(n_positions=77), Learned(max_length=77)),
    "bert": (transformers.BertConfig(max_position_embeddings=50), Learned(max_length=50)),
    "roberta": (transformers.RobertaConfig(max_position_embeddings=514), Learned(max_length=512)),
    "opt": (transformers.OPTConfig(max_position_embeddings=99), Learned(max_length=99)),
    "bloom": (transformers.BloomConfig(), Alibi()),
    "mpt": (transformers.MptConfig(), Alibi()),
    "falcon": (transformers.FalconConfig(alibi=True), Alibi(scaled=True)),
    "falcon rotary": (transformers.FalconConfig(), Rotary()),
    "t5": (transformers.T5Config(relative_attention_num_buckets=16), T5(buckets=16, bidirectional=True)),
    "gptj": (
        transformers.GPTJConfig(n_embd=64, n_head=4, rotary_dim=8),
        Rotary(fraction=0.5, pairing="interleaved"),
    ),
    "gpt_neox": (transformers.GPTNeoXConfig(), Rotary(fraction=0.25)),
    "phi": (transformers.PhiConfig(), Rotary(fraction=0.5)),
    "relative_key": ({"position_embedding_type": "relative_key", "max_position_embeddings": 9}, Shaw(8, False)),
    "qwen2-vl": (
        {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
        parse("mrope(base=1000000, sections=(16, 24, 24))"),
    ),
    "qwen3-vl": (
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            }
        },
        parse("mrope(base=5000000, sections=(24, 20, 20), layout='interleaved')"),
    ),
    "by itself": ({"type": "linear", "factor": 2}, parse("interpolated(factor=2)")),
    "deberta": (
        transformers.DebertaV2Config(
            relative_attention=True,
            position_buckets=256,
            max_relative_positions=-1,
            pos_att_type="p2c|c2p",
            position_biased_input=False,
        ),
        parse("deberta(buckets=256, reverse=False)"),
    ),
    "xlnet": (transformers.XLNetConfig(clamp_len=60), parse("transformerxl(clip=60, bidirectional=True)")),
    "xlnet without": (transformers.XLNetConfig(), parse("transformerxl(bidirectional=True)")),
    "swin": (transformers.SwinConfig(window_size=5), parse("swin(height=5, width=5)")),
    "swinv2": (transformers.Swinv2Config(window_size=5), parse("swinv2(height=5, width=5)")),
    "su": (
        {
            "rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [2.0]},
            "max_position_embeddings": 400,
            "original_max_position_embeddings": 100,
        },
        parse("longrope(factor=4.0, original=100, short=(1.0,), long=(2.0,))"),
    ),
    "deepseek": (
        {"rope_interleave": True, "rope_theta": 1e4, "model_type": "anything"},
        Rotary(pairing="interleaved"),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(name: str) -> None:
    config, expected = CONFIGS[name]
    assert from_hf(config).spec() == expected.spec()


def test_layers_that_rotate_differently() -> None:
    config = transformers.Gemma3TextConfig()
    specs = {kind: from_hf(config, layer_type=kind).spec() for kind in ("full_attention", "sliding_attention")}
    assert specs == {"full_attention": "rotary(base=1000000.0)", "sliding_attention": "rotary"}
    with refusal(
        "expected layer_type one of sliding_attention, full_attention, because they are placed differently, got None: "
        "or take layers_from_hf for all layers"
    ):
        from_hf(config)


KNOWN = [
    "rotary",
    "rotary(base=500000.0, fraction=0.25, pairing='interleaved')",
    "interpolated(factor=2.0)",
    "ntk(factor=2.0)",
    "dynamicntk(factor=2.0, original=100)",
    "yarn",
    "yarn(factor=16.0, original=4096, beta_fast=16.0, attention_factor=1.5, truncate=False)",
    "yarn(mscale=0.5, mscale_all_dim=1.0)",
    "longrope(factor=8.0, original=100, short=(1.0, 2.0), long=(3.0, 4.0))",
    "llama3(low=2.0)",
    "proportional(fraction=0.5)",
    "mrope(sections=(8, 12, 12), layout='interleaved')",
    "t5",
    "t5(buckets=8, max_distance=9, bidirectional=True)",
    "alibi",
    "learned(max_length=33)",
    "shaw(clip=5, values=False)",
    "deberta(clip=100, reverse=False)",
    "deberta(buckets=32, reverse=False)",
    "transformerxl(bidirectional=True)",
]


@pytest.mark.parametrize("spec", KNOWN)
def test_round_trips(spec: str) -> None:
    values = json.loads(json.dumps(to_hf(parse(spec))))
    assert from_hf(values).spec() == parse(spec).spec()


def test_transformers_takes_what_is_written() -> None:
    for spec in KNOWN[:12]:
        given = to_hf(parse(spec))["rope_parameters"]
        if "mrope_section" in given or "ntk" in spec.split("(")[0][:3]:
            continue  # keys and kinds that LlamaConfig does not know
        longest = to_hf(parse(spec)).get("max_position_embeddings", 1_000_000)
        kind = transformers.GlmConfig if "interleaved" in spec else transformers.LlamaConfig
        again = from_hf(kind(**SIZE, max_position_embeddings=longest, rope_parameters=given))
        assert again.spec() == parse(spec).spec()


def test_what_is_not_known_is_named() -> None:
    with refusal(
        "expected rope_type one of default, linear, ntk, dynamic, yarn, longrope, llama3, proportional, got 'x'"
    ):
        from_hf({"rope_theta": 1e4, "rope_scaling": {"type": "x"}})
    with refusal(
        "expected keys of rope_type 'linear' among factor, partial_rotary_factor, rope_theta, rope_type, type, "
        "got beta_fast, extra"
    ):
        from_hf({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta_fast": 1, "extra": 2}})
    with refusal("expected factor beside rope_type 'linear', got none"):
        from_hf({"rope_parameters": {"rope_type": "linear"}})
    with refusal(
        "expected original_max_position_embeddings or max_position_embeddings, the length it was trained at, got none"
    ):
        from_hf({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}})
    with refusal("expected alibi_bias_max of 8, as in the paper, got 16"):
        from_hf({"attn_config": {"alibi": True, "alibi_bias_max": 16}})
    with refusal(
        "expected position_embedding_type absolute, relative_key, rotary or alibi, got 'relative_key_query': see "
        "`headway methods` for what there is"
    ):
        from_hf({"position_embedding_type": "relative_key_query", "max_position_embeddings": 9})
    with refusal(
        "expected a model_type whose latent attention is known, as deepseek_v3, beside qk_rope_head_dim, got None: "
        "build the method yourself, see `headway methods`"
    ):
        from_hf({"qk_rope_head_dim": 64, "rope_theta": 1e4})
    with refusal(
        "expected rope_parameters, rope_scaling, rope_theta or a known model_type, got a configuration with none: see "
        "headway.positions for the methods it could be"
    ):
        from_hf({"hidden_size": 3})
    with refusal("expected a configuration, as a dictionary or an object with to_dict(), got str"):
        from_hf("config.json")
    with refusal("expected rope_parameters to be a dictionary, got 'yarn'"):
        from_hf({"rope_parameters": "yarn"})
    with refusal("expected rope_parameters.factor as a finite number, got 'two'"):
        from_hf({"rope_parameters": {"rope_type": "linear", "factor": "two"}})
    with refusal("expected pos_att_type of c2p and p2c, as in DeBERTa's models, got ['p2c']"):
        from_hf({"relative_attention": True, "pos_att_type": "p2c"})
    with refusal("expected rows for 3 heads of one width, got 8 rows"):
        convert_pairing(torch.zeros(8, 2), 3, "half")
    with refusal("expected pairing half or interleaved, got 'other'"):
        convert_pairing(torch.zeros(8, 2), 2, "other")
    with refusal(
        "expected a method that Hugging Face configurations know (rotary and its scalings, mrope, t5, alibi, learned, "
        "deberta(reverse=False), transformerxl(bidirectional=True), shaw without values), got shaw"
    ):
        to_hf(parse("shaw"))
    assert "interchange" not in methods()
