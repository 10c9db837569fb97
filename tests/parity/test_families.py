"""Configurations of real models, as config.json has them: the method of each layer, or a refusal that names a key.

Held against: what the modelling code of transformers does with each configuration, and its Falcon.
"""

from __future__ import annotations

import importlib
import json
import random
import re
from pathlib import Path

import pytest
import torch
import transformers
from common import randomise, refusal
from transformers.models.falcon.modeling_falcon import FalconAttention, build_alibi_tensor
from transformers.models.roformer import modeling_roformer

from headway import Attention, Causal, HeadwayError, NoPosition, Window
from headway.masks import Chunks
from headway.positions import from_hf, interchange, layers_from_hf, parse, to_hf
from headway.positions.interchange.families import FAMILIES
from headway.positions.interchange.keys import READ
from headway.positions.interchange.values import names

FULL, SLIDING = "full_attention", "sliding_attention"
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GEMMA3 = {
    "model_type": "gemma3_text",
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "sliding_window": 1024,
    "query_pre_attn_scalar": 168,
}
GLM4V = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]}
ONE: dict[str, tuple[dict, str | None, str]] = {
    "minimax m2": (
        {
            "model_type": "minimax_m2",
            "hidden_size": 3072,
            "num_attention_heads": 48,
            "head_dim": 128,
            "rotary_dim": 64,
            "rope_theta": 5e6,
        },
        None,
        "rotary(base=5000000.0, fraction=0.5)",
    ),
    "gemma 3, sliding": (GEMMA3, SLIDING, "rotary"),
    "gemma 3, full": (GEMMA3, FULL, "interpolated(base=1000000.0, factor=8.0)"),
    "gemma 3 of several parts": ({"model_type": "gemma3", "text_config": GEMMA3}, SLIDING, "rotary"),
    "gemma 3 n": ({"model_type": "gemma3n_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4}, SLIDING, "rotary"),
    "olmo 3, sliding": (
        {"model_type": "olmo3", "rope_theta": 5e5, "sliding_window": 4096, "rope_scaling": YARN},
        SLIDING,
        "rotary(base=500000.0)",
    ),
    "olmo 3, full": (
        {"model_type": "olmo3", "rope_theta": 5e5, "sliding_window": 4096, "rope_scaling": YARN},
        FULL,
        "yarn(base=500000.0, factor=8.0, original=8192)",
    ),
    "cohere 2, full": ({"model_type": "cohere2", "rope_theta": 5e4, "sliding_window": 4096}, FULL, "none"),
    "cohere 2, sliding": (
        {"model_type": "cohere2", "rope_theta": 5e4, "sliding_window": 4096},
        SLIDING,
        "rotary(base=50000.0, pairing='interleaved')",
    ),
    "glm 4 v": (
        {"model_type": "glm4v_text", "rope_parameters": GLM4V},
        None,
        "mrope(fraction=0.5, pairing='interleaved', sections=(8, 12, 12))",
    ),
    "xlm-roberta": (
        {"model_type": "xlm-roberta", "max_position_embeddings": 514, "position_embedding_type": "absolute"},
        None,
        "learned",
    ),
    "xlm_roberta": ({"model_type": "xlm_roberta", "max_position_embeddings": 514}, None, "learned"),
    "camembert": ({"model_type": "camembert", "max_position_embeddings": 514, "pad_token_id": 1}, None, "learned"),
    "longformer": ({"model_type": "longformer", "max_position_embeddings": 4098}, None, "learned(max_length=4096)"),
    "esm, absolute": ({"model_type": "esm", "max_position_embeddings": 1026}, None, "learned(max_length=1024)"),
    "esm 2": (
        {"model_type": "esm", "max_position_embeddings": 1026, "position_embedding_type": "rotary"},
        None,
        "rotary",
    ),
    "bart": ({"model_type": "bart", "max_position_embeddings": 1024}, None, "learned(max_length=1024)"),
    "albert": ({"model_type": "albert", "max_position_embeddings": 512}, None, "learned"),
    "llama 3.1": (
        {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3, "max_position_embeddings": 131072},
        None,
        "llama3(base=500000.0)",
    ),
    "llama 3.2 vision": (
        {"model_type": "mllama", "text_config": {"model_type": "mllama_text_model", "rope_scaling": LLAMA3}},
        None,
        "llama3(base=500000.0)",
    ),
    "llama 4, chunked": ({"model_type": "llama4_text", "attention_chunk_size": 8192}, "chunked_attention", ""),
    "gpt-oss": (
        {
            "model_type": "gpt_oss",
            "rope_theta": 150000,
            "rope_scaling": {**YARN, "truncate": False},
            "sliding_window": 128,
        },
        None,
        "yarn(base=150000.0, factor=8.0, original=8192, truncate=False)",
    ),
    "glm 4 as it is": ({"model_type": "glm4", "head_dim": 128}, None, "rotary(fraction=0.5, pairing='interleaved')"),
    "stablelm as it is": ({"model_type": "stablelm", "head_dim": 80}, None, "rotary(fraction=0.25)"),
    "phi 2": ({"model_type": "phi", "partial_rotary_factor": 0.4, "rope_theta": 1e4}, None, "rotary(fraction=0.4)"),
    "pythia": ({"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 10000}, None, "rotary(fraction=0.25)"),
    "gpt-j": (
        {"model_type": "gptj", "n_embd": 4096, "n_head": 16, "rotary_dim": 64},
        None,
        "rotary(fraction=0.25, pairing='interleaved')",
    ),
    "codegen": (
        {"model_type": "codegen", "n_embd": 1024, "n_head": 16, "rotary_dim": 32},
        None,
        "rotary(fraction=0.5, pairing='interleaved')",
    ),
    "command r": ({"model_type": "cohere", "rope_theta": 8e6}, None, "rotary(base=8000000.0, pairing='interleaved')"),
    "dbrx": ({"model_type": "dbrx", "attn_config": {"rope_theta": 5e5, "clip_qkv": 8}}, None, "rotary(base=500000.0)"),
    "falcon 7b": ({"model_type": "falcon", "alibi": False, "hidden_size": 4544}, None, "rotary"),
    "falcon rw": ({"model_type": "falcon", "alibi": True}, None, "alibi(scaled=True)"),
    "mpt 7b": (
        {"model_type": "mpt", "attn_config": {"alibi": True, "alibi_bias_max": 8}, "learned_pos_emb": True},
        None,
        "alibi",
    ),
    "bloom": ({"model_type": "bloom", "n_layer": 30}, None, "alibi"),
    "qwen 2.5 vl": (
        {
            "model_type": "qwen2_5_vl",
            "hidden_size": 3584,
            "num_attention_heads": 28,
            "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "sliding_window": 32768,
            "use_sliding_window": False,
            "max_window_layers": 28,
        },
        None,
        "mrope(base=1000000.0)",
    ),
    "qwen 3 vl": (
        {
            "model_type": "qwen3_vl",
            "text_config": {
                "model_type": "qwen3_vl_text",
                "rope_theta": 5e6,
                "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [24, 20, 20]},
            },
        },
        None,
        "mrope(base=5000000.0, sections=(24, 20, 20), layout='interleaved')",
    ),
    "qwen 3 next": (
        {"model_type": "qwen3_next", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "full_attention_interval": 4},
        None,
        "rotary(base=10000000.0, fraction=0.25)",
    ),
    "hunyuan": (
        {
            "model_type": "hunyuan_v1_dense",
            "rope_theta": 1e4,
            "max_position_embeddings": 32768,
            "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1},
        },
        None,
        "ntk(factor=1000.0)",
    ),
    "gemma 4, full": (
        {
            "model_type": "gemma4_text",
            "global_head_dim": 512,
            "rope_parameters": {
                FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
                SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        FULL,
        "proportional(base=1000000.0)",
    ),
    "modernbert": (
        {
            "model_type": "modernbert",
            "global_rope_theta": 160000.0,
            "local_rope_theta": 10000.0,
            "local_attention": 128,
        },
        FULL,
        "rotary(base=160000.0)",
    ),
    "modernbert, as its file has it": (
        {
            "model_type": "modernbert",
            "position_embedding_type": "absolute",
            "local_rope_theta": 1e4,
            "max_position_embeddings": 8192,
        },
        SLIDING,
        "rotary",
    ),
    "command r 7b": (
        {"model_type": "cohere2", "position_embedding_type": "rope_gptj", "rotary_pct": 1.0, "rope_theta": 5e4},
        SLIDING,
        "rotary(base=50000.0, pairing='interleaved')",
    ),
    "exaone 4, 1.2 b": (
        {"model_type": "exaone4", "sliding_window": None, "rope_theta": 1e6},
        None,
        "rotary(base=1000000.0)",
    ),
    "llama 4 scout": (
        {"model_type": "llama4_text", "rope_scaling": {**LLAMA3, "factor": 16.0, "high_freq_factor": 1.0}},
        "chunked_attention",
        "llama3(base=500000.0, pairing='interleaved', factor=16.0, high=1.0)",
    ),
    "jamba": ({"model_type": "jamba", "attn_layer_period": 8, "attn_layer_offset": 4}, None, "none"),
    "granite 4": (
        {"model_type": "granitemoehybrid", "position_embedding_type": "nope", "rope_theta": 1e4},
        None,
        "none",
    ),
    "granite 4, rope": (
        {"model_type": "granitemoehybrid", "position_embedding_type": "rope", "rope_theta": 1e4},
        None,
        "rotary",
    ),
    "phi 3 mini": (
        {
            "model_type": "phi3",
            "rope_scaling": {"type": "su", "short_factor": [1.0, 1.0], "long_factor": [2.0, 3.0]},
            "original_max_position_embeddings": 4096,
            "max_position_embeddings": 131072,
        },
        None,
        "longrope(factor=32.0, short=(1.0, 1.0), long=(2.0, 3.0))",
    ),
    "dynamic": (
        {"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 4096},
        None,
        "dynamicntk(factor=2.0, original=4096)",
    ),
    "t5": (
        {"model_type": "t5", "is_encoder_decoder": True, "relative_attention_num_buckets": 32},
        None,
        "t5(bidirectional=True)",
    ),
    "deberta v3": (
        {
            "model_type": "deberta-v2",
            "relative_attention": True,
            "position_buckets": 256,
            "max_relative_positions": -1,
            "pos_att_type": "p2c|c2p",
            "position_biased_input": False,
            "max_position_embeddings": 512,
        },
        None,
        "deberta(buckets=256, reverse=False)",
    ),
    "an unknown one, told": ({"model_type": "mine", "rope_theta": 1e4}, None, "rotary"),
}


@pytest.mark.parametrize("name", [name for name, (_, _, spec) in ONE.items() if spec])
def test_the_method_of_a_real_configuration(name: str) -> None:
    config, layer_type, spec = ONE[name]
    told = {"pairing": "half"} if name.endswith("told") else {}
    assert from_hf(json.loads(json.dumps(config)), layer_type=layer_type, **told).spec() == spec


def specs(config: dict) -> list[tuple[str, object]]:
    return [(layer.position and layer.position.spec(), layer.mask) for layer in layers_from_hf(config)]


def test_smollm3_says_which_layers_do_not_rotate() -> None:
    config = {"model_type": "smollm3", "rope_theta": 5e6, "no_rope_layers": [1, 1, 1, 0] * 9}
    with refusal(
        "expected layers of type full_attention that are placed alike, got rotary(base=5000000.0) and, in layers 3, 7, "
        "11, 15, 19, 23, 27, 31, 35, none: take layers_from_hf, which has one position for each layer"
    ):
        from_hf(config)
    assert specs(config) == [*[("rotary(base=5000000.0)", Causal())] * 3, ("none", Causal())] * 9
    same = {**config, "no_rope_layers": None, "num_hidden_layers": 36}
    assert specs(same) == specs(config)


def test_gemma3_by_layer() -> None:
    layers = layers_from_hf({**GEMMA3, "num_hidden_layers": 12, "attn_logit_softcapping": 50.0})
    assert [layer.layer_type for layer in layers] == [*[SLIDING] * 5, FULL] * 2
    assert {layer.mask for layer in layers} == {Window(1023), Causal()}
    assert layers[0].position is layers[6].position, "layers that are placed alike share one object"
    assert layers[0].scale == 168**-0.5
    assert layers[0].softcap == 50.0
    Attention(64, 4, position=layers[0].position, mask=layers[0].mask, scale=layers[0].scale, softcap=layers[0].softcap)


def test_llama4_has_chunks_and_a_temperature() -> None:
    config = {"model_type": "llama4_text", "num_hidden_layers": 4, "attention_chunk_size": 8192, "rope_scaling": LLAMA3}
    layers = layers_from_hf(config)
    rotary = "llama3(base=500000.0, pairing='interleaved')"
    assert [layer.position.spec() for layer in layers] == [rotary, rotary, rotary, "none"]
    assert layers[0].mask.second == Chunks(8192)
    assert layers[3].mask == Causal()
    assert layers[3].beside == {"attn_temperature_tuning": True, "floor_scale": 8192.0, "attn_scale": 0.1}
    assert not layers[0].beside
    with refusal(
        "expected layers placed by one method alone, got attn_temperature_tuning, floor_scale, attn_scale, by which "
        "they scale their queries too: take layers_from_hf, which says it of each layer"
    ):
        from_hf(config, layer_type=FULL)


def test_chunks_are_seen_by_attention() -> None:
    at = Attention(16, 2, mask=Causal() & Chunks(4)).double()
    x = torch.randn(1, 10, 16).double()
    parts = torch.cat(
        [at(part, pos=pos) for part, pos in zip(x.split(4, 1), torch.arange(10).split(4), strict=True)], 1
    )
    torch.testing.assert_close(at(x), parts)
    with refusal("expected chunks of at least 1 token, got 0"):
        Chunks(0)


def test_layers_that_are_no_attention_have_no_position() -> None:
    config = {"model_type": "qwen3_next", "num_hidden_layers": 8, "rope_theta": 1e7, "partial_rotary_factor": 0.25}
    assert [layer.position is None for layer in layers_from_hf(config)] == [True, True, True, False] * 2
    jamba = {"model_type": "jamba", "num_hidden_layers": 8, "attn_layer_period": 8, "attn_layer_offset": 4}
    assert [spec for spec, _ in specs(jamba)] == [None] * 4 + ["none"] + [None] * 3


def test_windows_count_the_token_itself() -> None:
    mistral = {"model_type": "mistral", "rope_theta": 1e4, "sliding_window": 4096, "num_hidden_layers": 2}
    assert specs(mistral) == [("rotary", Window(4095))] * 2
    assert specs({**mistral, "sliding_window": None}) == [("rotary", Causal())] * 2
    qwen = {
        "model_type": "qwen2",
        "rope_theta": 1e6,
        "num_hidden_layers": 3,
        "max_window_layers": 1,
        "sliding_window": 9,
    }
    assert [mask for _, mask in specs({**qwen, "use_sliding_window": True})] == [Causal(), Window(8), Window(8)]
    assert [mask for _, mask in specs({**qwen, "use_sliding_window": False})] == [Causal()] * 3
    bert = {"model_type": "modernbert", "num_hidden_layers": 4, "local_attention": 128}
    assert [mask for _, mask in specs(bert)] == [None, Window(64, 64), Window(64, 64), None]
    neo = {"model_type": "gpt_neo", "num_layers": 4, "max_position_embeddings": 64, "window_size": 256}
    layers = layers_from_hf({**neo, "attention_types": [[["global", "local"], 2]]})
    assert [layer.mask for layer in layers] == [Causal(), Window(255)] * 2
    assert layers[0].scale == 1.0


def test_inkling_by_layer_type() -> None:
    config = {"model_type": "inkling_text", "num_hidden_layers": 6, "log_scaling_n_floor": 128000, "d_rel": 16}
    layers = layers_from_hf({**config, "sliding_window_size": 512})
    assert layers[0].position.spec() == "inkling(extent=512)"
    assert layers[0].mask == Window(511)
    assert layers[5].position.spec() == "inkling(floor=128000)"
    assert layers[5].mask == Causal()


def test_methods_whose_layers_have_parameters_of_their_own_are_made_anew() -> None:
    umt5 = {"model_type": "umt5", "num_layers": 2, "is_encoder_decoder": False}
    one, two = layers_from_hf(umt5)
    assert one.position is not two.position
    assert one.scale == 1.0
    one, two = layers_from_hf({**umt5, "model_type": "t5"})
    assert one.position is two.position


def test_falcon_scales_its_bias() -> None:
    """Against transformers' own attention, whose slopes and distances are rounded to bfloat16."""
    config = transformers.FalconConfig(
        hidden_size=64, num_attention_heads=4, alibi=True, multi_query=False, bias=False, attn_implementation="eager"
    )
    theirs = FalconAttention(config, 0).double()
    randomise(theirs)
    ours = Attention(64, 4, position=from_hf(config), mask=Causal()).double()
    with torch.no_grad():
        fused = theirs.query_key_value.weight.unflatten(0, (4, 3, 16))
        for number, linear in enumerate((ours.q, ours.k, ours.v)):
            linear.weight.copy_(fused[:, number].flatten(0, 1))
        ours.o.weight.copy_(theirs.dense.weight)
    x = torch.randn(1, 30, 64).double()
    alibi = build_alibi_tensor(torch.ones(1, 30), 4, torch.float64)
    hidden = torch.full((1, 1, 30, 30), -1e9, dtype=torch.float64).triu(1)
    bias = hidden + alibi.reshape(1, 4, 1, 30) / 4 if theirs.config._attn_implementation == "sdpa" else hidden
    expected = theirs(x, alibi=alibi, attention_mask=bias)[0]
    torch.testing.assert_close(ours(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["falcon", "gpt_neox_japanese"])
def test_families_whose_attention_has_no_interface(kind: str) -> None:
    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    name = {"falcon": "Falcon", "gpt_neox_japanese": "GPTNeoXJapanese"}[kind]
    config = getattr(transformers, f"{name}Config")(hidden_size=64, num_attention_heads=4)
    q, k, pos = torch.randn(1, 4, 30, 16), torch.randn(1, 4, 30, 16), torch.arange(30)[None]
    expected = module.apply_rotary_pos_emb(q, k, *getattr(module, f"{name}RotaryEmbedding")(config)(q, pos))
    torch.testing.assert_close(from_hf(config).rotate(q, k, pos, pos), expected, rtol=1e-4, atol=1e-4)


def test_roformer() -> None:
    config = transformers.RoFormerConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2, embedding_size=64)
    table = modeling_roformer.RoFormerSinusoidalPositionalEmbedding(64, 16)
    table.weight = torch.nn.Parameter(table.create_weight(), requires_grad=False)
    q, k, pos = torch.randn(1, 4, 30, 16), torch.randn(1, 4, 30, 16), torch.arange(30)[None]
    turn = modeling_roformer.RoFormerSelfAttention.apply_rotary_position_embeddings
    expected = turn(table(torch.Size((1, 30)))[None, None], q, k)
    torch.testing.assert_close(from_hf(config).rotate(q, k, pos, pos), expected, rtol=1e-4, atol=1e-4)


WRONG: list[tuple[dict, str]] = [
    ({"model_type": "llama", "rope_theta": "1e4"}, "expected rope_theta as a finite number, got '1e4'"),
    ({"model_type": "llama", "rope_theta": float("nan")}, "expected rope_theta as a finite number, got nan"),
    ({"model_type": "llama", "rope_theta": 10**400}, "expected rope_theta as a finite number, got 1000"),
    ({"model_type": "llama", "rope_theta": [1e4]}, "expected rope_theta as a finite number, got [10000.0]"),
    ({"model_type": "llama", "rope_theta": True}, "expected rope_theta as a finite number, got True"),
    ({"model_type": "llama", "rope_theta": -5}, "expected a finite rotary base above 0, got -5.0"),
    ({"model_type": "llama", "rope_parameters": [1]}, "expected rope_parameters to be a dictionary, got [1]"),
    ({"model_type": 7}, "expected model_type to be a name, got 7"),
    (
        {"model_type": "llama", "num_hidden_layers": 10**9},
        "expected num_hidden_layers of at most 10000, got 1000000000",
    ),
    ({"model_type": "llama", "num_hidden_layers": 2.5}, "expected num_hidden_layers as a whole number"),
    ({"model_type": "llama", "layer_types": "full_attention"}, "expected layer_types as a list of names"),
    ({"model_type": "llama", "layer_types": ["odd"]}, "expected layer_types among full_attention"),
    ({"model_type": "llama", "num_hidden_layers": 3, "layer_types": [FULL]}, "expected layer_types of 3 layers, got 1"),
    ({"model_type": "llama", "use_logn_attn": True}, "expected keys about position that are known, got use_logn_attn"),
    ({"model_type": "llama", "rope_ratio": 500}, "expected keys about position that are known, got rope_ratio"),
    ({"model_type": "llama", "no_rope_layers": [1, 0]}, "expected no_rope_layers in a model known to have it"),
    ({"model_type": "llama", "partial_rotary_factor": 0.5}, "expected heads that rotate whole"),
    ({"model_type": "llama", "rope_interleave": True}, "expected one pairing, got half from model_type 'llama'"),
    ({"model_type": "mine", "rope_theta": 1e4}, "expected pairing='half' or pairing='interleaved', because"),
    ({"architectures": ["Mine"], "rope_theta": 1e4}, "expected pairing='half' or pairing='interleaved', because"),
    ({"model_type": "gpt_oss"}, "expected rope_parameters or rope_scaling, because gpt_oss has no usual rotation"),
    ({"model_type": "gptj", "rotary_dim": 8}, "expected head_dim, or hidden_size and num_attention_heads, beside"),
    ({"model_type": "longcat_flash", "qk_rope_head_dim": 64}, "expected a model_type whose latent attention is known"),
    (
        {"model_type": "nanochat"},
        "expected a rotation that headway has, got model_type 'nanochat': it rotates in reverse",
    ),
    ({"model_type": "mpnet", "max_position_embeddings": 514}, "expected one method, got model_type 'mpnet'"),
    ({"model_type": "t5", "encoder": {}, "decoder": {}}, "expected the configuration of one stack of layers"),
    ({"rope_theta": 1e4, "alibi": "yes"}, "expected alibi to be true or false, got 'yes'"),
    (
        {"model_type": "gemma3_text", "rope_parameters": {"rope_type": "default"}},
        "expected rope_parameters by layer type",
    ),
    (
        {
            "model_type": "llama",
            "rope_parameters": {"rope_type": "default"},
            "rope_scaling": {"type": "linear", "factor": 2},
        },
        "expected rope_parameters or rope_scaling, got both",
    ),
    (
        {"model_type": "minimax_m2", "head_dim": 128, "rotary_dim": 64, "partial_rotary_factor": 0.25},
        "expected rotary_dim and partial_rotary_factor to agree",
    ),
    (
        {"model_type": "gpt_neox", "rope_theta": 5e5},
        "expected one base, got rope_theta=500000.0, rotary_emb_base=10000.0",
    ),
    (
        {"model_type": "dbrx", "rope_parameters": {"rope_theta": 1e4}, "attn_config": {"rope_theta": 5e5}},
        "expected one base, got attn_config.rope_theta=500000.0, rope_parameters.rope_theta=10000.0",
    ),
    ({"model_type": "phi", "head_dim": 80, "partial_rotary_factor": 0.2625}, "expected an even number of entries"),
]


@pytest.mark.parametrize(("config", "text"), WRONG, ids=[text[:40] for _, text in WRONG])
def test_one_sentence_for_what_does_not_read(config: dict, text: str) -> None:
    with pytest.raises(HeadwayError) as error:
        from_hf(config)
    assert str(error.value).startswith(text), error.value
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_key_that_another_family_reads_is_refused_where_nothing_reads_it() -> None:
    usual = {"rope_theta": 1e4, "num_hidden_layers": 4}
    for kind, key, value in (
        ("roformer", "rotary_value", True),  # it rotates values too
        ("llama", "global_rope_theta", 1e6),
        ("llama", "local_layer_ids", [0, 2]),
        ("llama", "full_attn_idxs", [1]),
        ("llama", "clamp_len", 8),
        ("mistral", "cross_attention_layers", [1]),
        ("qwen2", "learned_pos_emb", True),
        ("llama", "sinusoidal_pos_embds", True),
        ("llama", "hybrid_override_pattern", "M-M*"),
        ("llama", "theta", 1e4),
        ("lfm2", "hybrid_layer_pattern", [0, 1, 0, 1]),
    ):
        for reads in (from_hf, layers_from_hf):
            reads({"model_type": kind, **usual})
            with pytest.raises(HeadwayError, match=rf"^expected keys about position that are known, got {key}: "):
                reads({"model_type": kind, **usual, key: value})
    window = {"model_type": "mistral", "sliding_window": 8, **usual}
    assert layers_from_hf({**window, "sliding_window_size": 8})[0].mask == Window(7)
    with pytest.raises(HeadwayError, match="got sliding_window_size: "):
        layers_from_hf({**window, "sliding_window_size": 9})
    assert from_hf({"model_type": "lfm2", "theta": 1e4, **usual}).base == 1e4
    with pytest.raises(HeadwayError, match=r"^expected one base, got rope_theta=10000\.0, theta=9\.0"):
        from_hf({"model_type": "lfm2", "theta": 9, **usual})
    for kind in ("gpt2", "bert", "opt"):
        with pytest.raises(HeadwayError, match="got rope_theta: "):
            from_hf({"model_type": kind, "max_position_embeddings": 9, "rope_theta": 1e4})


def test_every_key_that_is_said_to_be_read_is_asked_for_somewhere() -> None:
    folder = Path(interchange.__file__).parent
    code = "".join(file.read_text("utf-8") for file in folder.glob("*.py") if file.name != "keys.py")
    assert not [key for key in READ if not re.search(rf"\b{key}\b", code)]


def test_layers_of_other_types_by_their_numbers() -> None:
    def types(**config: object) -> str:
        layers = layers_from_hf({"num_hidden_layers": 6, "rope_theta": 1e4, **config})
        return " ".join("-" if layer.position is None else type(layer.mask).__name__ for layer in layers)

    assert types(model_type="lfm2", full_attn_idxs=[2, 5]) == "- - Causal - - Causal"
    assert types(model_type="lfm2") == " ".join(["Causal"] * 6)
    assert types(model_type="mllama_text_model", cross_attention_layers=[1]) == "Causal - Causal Causal Causal Causal"
    assert types(model_type="mllama_text_model") == "Causal Causal Causal - Causal Causal"
    letters = {"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*E*"}
    assert types(**letters) == "- - - Causal - Causal"
    assert [layer.position is None for layer in layers_from_hf(letters)] == [True, True, True, False, True, False]
    for wrong in ("M-M*", "M-M*Ex", 7):
        with pytest.raises(HeadwayError, match=r"^expected hybrid_override_pattern of 6 letters among M \* - E, got"):
            types(model_type="nemotron_h", hybrid_override_pattern=wrong)
    local = {"model_type": "inkling_text", "local_layer_ids": [0, 4], "sliding_window_size": 8}
    assert types(**local) == "Window Causal Causal Causal Window Causal"
    with pytest.raises(HeadwayError, match=r"^expected full_attn_idxs of layers from 0 to 5, got \[6\]"):
        types(model_type="lfm2", full_attn_idxs=[6])


def test_tables_beside_tables_and_sums_of_blocks_are_refused() -> None:
    table = {"max_position_embeddings": 512, "num_hidden_layers": 2}
    for kind in ("layoutlm", "lilt", "markuplm"):
        with pytest.raises(HeadwayError, match=f"^expected one method, got model_type '{kind}'"):
            from_hf({"model_type": kind, **table})
    with pytest.raises(HeadwayError, match="got max_2d_position_embeddings"):
        from_hf(transformers.LayoutLMConfig())
    with pytest.raises(HeadwayError, match="num_conv_pos_embeddings"):
        from_hf(transformers.SEWDConfig())
    assert from_hf({"model_type": "distilbert", "sinusoidal_pos_embds": True, **table}).spec() == "sinusoidal"
    assert from_hf({"model_type": "distilbert", "sinusoidal_pos_embds": False, **table}).spec() == "learned"
    with pytest.raises(HeadwayError, match=r"^expected attention_type 'original_full', because .* got 'block_sparse'"):
        layers_from_hf(transformers.BigBirdConfig())
    long = {"model_type": "longt5", "num_layers": 2, "local_radius": 3}
    assert [layer.mask for layer in layers_from_hf(long)] == [Window(3, 3)] * 2
    assert [layer.mask for layer in layers_from_hf({**long, "is_decoder": True})] == [Causal()] * 2
    with pytest.raises(HeadwayError, match=r"^expected encoder_attention_type 'local', got 'transient-global'"):
        from_hf({**long, "encoder_attention_type": "transient-global"})


def test_any_configuration_is_read_or_refused_in_one_sentence() -> None:
    """Keys about position with values of every kind, by chance."""
    chance = random.Random(0)
    keys = [*sorted(READ), *names("num_hidden_layers hidden_size num_attention_heads head_dim is_decoder n_layer")]
    lists: list[object] = [[], [1], [0, 1, 1], [FULL, SLIDING], [None], [[["global"], 2]], [[["global"], 10**9]]]
    ropes: list[object] = [{}, YARN, {FULL: YARN}, {FULL: None}, {"type": "mrope", "mrope_section": [1]}, {"type": [1]}]
    numbers: list[object] = [None, True, False, 0, 1, -1, 64, 1e4, float("nan"), float("inf"), 10**400, 3.5]
    values = [*lists, *ropes, *numbers, "x", "", "absolute", "rotary", "c2p|p2c", b"x", "x" * 1000]
    kinds = [*FAMILIES, "t5", "bert", "gpt2", "swin", "xlnet", "deberta-v2", "roberta", "bloom", "mpt", "mine", None]
    read, refused = 0, []
    for _ in range(400):
        config = {chance.choice(keys): chance.choice(values) for _ in range(chance.randint(0, 5))}
        config["model_type"] = chance.choice(kinds)
        try:
            read += bool(chance.choice((from_hf, layers_from_hf))(config))
        except HeadwayError as error:
            refused.append(str(error))
    assert read > 10
    assert not [text for text in refused if "\n" in text or len(text) > 500]


def test_an_encoder_and_a_decoder_have_their_own_number_of_layers() -> None:
    alone: dict[str, object] = {"is_encoder_decoder": False}
    for config, encoder, decoder in (
        (transformers.T5Config(num_layers=5, num_decoder_layers=3), 5, 3),
        (transformers.BartConfig(encoder_layers=4, decoder_layers=2), 4, 2),
    ):
        assert len(layers_from_hf(config.to_dict() | alone)) == encoder
        assert len(layers_from_hf(config.to_dict() | alone | {"is_decoder": True})) == decoder


def test_what_is_not_known_of_masks_is_asked_for() -> None:
    unknown = {"model_type": "mine", "rope_theta": 1e4, "num_hidden_layers": 2}
    with pytest.raises(HeadwayError, match=r"^expected a known model_type, because no key gives the mask"):
        layers_from_hf(unknown, pairing="half")
    with pytest.raises(HeadwayError, match=r"^expected num_hidden_layers, got none"):
        layers_from_hf({"model_type": "llama", "rope_theta": 1e4})
    with pytest.raises(HeadwayError, match=r"^expected the configuration of one stack of layers, got model_type 't5'"):
        layers_from_hf(transformers.T5Config())
    with pytest.raises(HeadwayError, match=r"^expected sliding_window in a model known to have it, got 64"):
        layers_from_hf({"model_type": "llama", "rope_theta": 1e4, "num_hidden_layers": 2, "sliding_window": 64})
    with pytest.raises(HeadwayError, match=r"^expected attn_logit_softcapping, for which model_type 'gemma2' has"):
        layers_from_hf({"model_type": "gemma2", "num_hidden_layers": 2})
    scalars = {"query_pre_attn_scalar": 256, "attn_logit_softcapping": None}
    with pytest.raises(
        HeadwayError, match=r"^expected sliding_window beside layers of type sliding_attention, got none"
    ):
        layers_from_hf({"model_type": "gemma2", "num_hidden_layers": 2, **scalars})
    with pytest.raises(HeadwayError, match=r"^expected causal attention, got use_bidirectional_attention=True"):
        layers_from_hf({**GEMMA3, "num_hidden_layers": 2, "use_bidirectional_attention": True})
    with refusal("expected layer_type full_attention, got 'no_such_layer'"):
        from_hf({"model_type": "llama", "rope_theta": 1e4}, layer_type="no_such_layer")
    with refusal("expected pairing half or interleaved, got 'both'"):
        from_hf({"model_type": "llama", "rope_theta": 1e4}, pairing="both")


def test_objects_of_transformers_and_of_others() -> None:
    config = transformers.Gemma3Config()
    assert from_hf(config, layer_type=SLIDING).spec() == "rotary"
    assert len(layers_from_hf(config)) == config.text_config.num_hidden_layers

    class Broken:
        def to_dict(self) -> dict:
            raise RuntimeError("no")

    with pytest.raises(HeadwayError, match=r"^expected a configuration that to_dict\(\) writes out, got RuntimeError"):
        from_hf(Broken())
    for wrong in (None, 3, ["rope_theta"], {1: 2}, Broken):
        with pytest.raises(HeadwayError, match=r"^expected a configuration, as a dictionary or an object with to_dict"):
            from_hf(wrong)
    cyclic: dict = {"model_type": "gemma3"}
    cyclic["text_config"] = cyclic
    with pytest.raises(HeadwayError, match=r"^expected text_config at most 4 deep"):
        from_hf(cyclic)


def test_round_trips_of_what_is_new() -> None:
    for spec in ("alibi(scaled=True)", "dynamicntk(original=77)", "ntk(factor=3.0)"):
        assert from_hf(json.loads(json.dumps(to_hf(parse(spec))))).spec() == parse(spec).spec()
    assert isinstance(layers_from_hf({"model_type": "nemotron_h", "layer_types": [FULL]})[0].position, NoPosition)
