"""Models that use transformers' attention interface: the same numbers, masks as data, what is unknown left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from models import accelerated, as_exact, far, padding, randomised, same, same_generation, tokens
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

import headway.hf
from headway.hf.forms import eager_of, form_of
from headway.hf.lazy_mask import LazyMask, headway_eager_mask, headway_mask
from headway.shapes import HeadwayError

BASE = {"vocab_size": 96, "hidden_size": 42, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
BASE |= {"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPS = {"num_key_value_heads": 3, "head_dim": 8}
LATENT = {"q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 5}
LATENT |= {"first_k_dense_replace": 2, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
DECODERS = {
    "gpt2": (hf.GPT2Config, {"n_embd": 42, "n_head": 6, "n_layer": 2, "n_positions": 64, "attn_pdrop": 0.0}),
    "gpt_neox": (hf.GPTNeoXConfig, {"hidden_size": 48, "rotary_pct": 0.25}),
    "llama": (hf.LlamaConfig, GROUPS),
    "mistral": (hf.MistralConfig, GROUPS | {"sliding_window": 9}),
    "qwen3": (hf.Qwen3Config, GROUPS),
    "gemma2": (
        hf.Gemma2Config,
        GROUPS | {"sliding_window": 9, "query_pre_attn_scalar": 11, "attn_logit_softcapping": 2.0},
    ),
    "gemma3": (
        hf.Gemma3TextConfig,
        GROUPS | {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt_oss": (
        hf.GptOssConfig,
        GROUPS
        | {
            "sliding_window": 9,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi3": (hf.Phi3Config, {"hidden_size": 48, "num_key_value_heads": 3}),
    "glm4": (hf.Glm4Config, GROUPS | {"partial_rotary_factor": 0.5}),
    "deepseek_v3": (hf.DeepseekV3Config, LATENT | {"num_key_value_heads": 6}),
    "cohere2": (
        hf.Cohere2Config,
        {
            "hidden_size": 48,
            "num_key_value_heads": 3,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "llama4": (
        hf.Llama4TextConfig,
        GROUPS
        | {
            "attention_chunk_size": 8,
            "num_local_experts": 2,
            "intermediate_size_mlp": 32,
            "layer_types": ["chunked_attention", "full_attention"],
        },
    ),
}
ENCODERS = {
    "bert": (
        hf.BertConfig,
        hf.BertModel,
        {"hidden_size": 42, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
    "modernbert": (hf.ModernBertConfig, hf.ModernBertModel, {"hidden_size": 48, "local_attention": 8}),
    "albert": (hf.AlbertConfig, hf.AlbertModel, {"hidden_size": 42, "embedding_size": 12}),
}


def decoder(name, **more):
    config, options = DECODERS[name]
    made = config(**BASE | options | more)
    if hasattr(made, "_experts_implementation"):
        made._experts_implementation = "eager"  # grouped products take no float64
    return randomised(hf.AutoModelForCausalLM.from_config(made))


def text(side="right", n=31, **more):
    real = torch.ones(2, n, dtype=torch.long) if side == "none" else padding(2, n, side)

    def run(model):
        given = {"input_ids": tokens(2, n), "attention_mask": real} | more
        out = model(**given)
        found = out.logits if "logits" in out else out[0]
        return found * real[..., None]  # what a padded query sees is not defined

    return run


WITHIN = {"gemma2": 1e-5, "gpt_oss": 1e-10}
"""Gemma 2's own code rounds the weights to float32."""


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name):
    model = decoder(name)
    # Gemma 2's own code gives NaN for padded queries in float64
    for side in ("none",) if name == "gemma2" else ("left", "right"):
        same(model, text(side), WITHIN.get(name, 1e-10))
    same(model, lambda m: m(input_ids=tokens(2, 1)).logits, WITHIN.get(name, 1e-10))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_encoders(name, side):
    config, kind, options = ENCODERS[name]
    same(randomised(kind(config(**BASE | options))), text(side))


def test_no_mask_is_no_mask_in_eager_attention():
    """Splinter has no flag ``is_causal``, which SDPA would take for true."""
    model = randomised(hf.SplinterModel(hf.SplinterConfig(**BASE)))
    run = lambda m: m(input_ids=tokens(2, 31))[0]  # noqa: E731
    expected = run(model)
    with accelerated(model):
        assert far(run(model), expected) < 1e-6  # its own code rounds the weights to float32


def test_images_and_cross_attention():
    vit = hf.ViTConfig(
        hidden_size=30, num_attention_heads=3, num_hidden_layers=2, intermediate_size=32, image_size=24, patch_size=4
    )
    pixels = torch.randn(2, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    same(randomised(hf.ViTModel(vit)), lambda m: m(pixel_values=pixels)[0])
    bart = hf.BartConfig(
        vocab_size=96,
        d_model=30,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=3,
        decoder_attention_heads=5,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        pad_token_id=0,
        dropout=0.0,
    )
    given = {
        "input_ids": tokens(2, 33),
        "attention_mask": padding(2, 33, "right"),
        "decoder_input_ids": tokens(2, 14, seed=2),
    }
    same(randomised(hf.BartModel(bart)), lambda m: m(**given)[0])


def test_packed_texts():
    ids = tokens(2, 30)
    positions = torch.cat((torch.arange(11), torch.arange(19))).expand(2, -1)
    model = decoder("mistral")
    packed = lambda m: m(input_ids=ids, position_ids=positions, use_cache=False).logits  # noqa: E731
    same(model, packed)
    with accelerated(model):
        alone = torch.cat((model(input_ids=ids[:, :11]).logits, model(input_ids=ids[:, 11:]).logits), 1)
        assert far(packed(model), alone) < 1e-10


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss", "gpt2", "deepseek_v3"])
@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=["greedy", "beams", "static"]
)
def test_generation(name, how):
    same_generation(decoder(name), 20, "left", 15, **how)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_as_exact_as_the_models_own(name, dtype):
    as_exact(decoder(name), text(), dtype)


MASKS = ["causal", "window", "chunks", "packed", "bidirectional", "blocks"]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("side", ["left", "right", None])
def test_masks_read_are_masks_evaluated(kind, side):
    """Every function of transformers that makes a mask, read as data, is the tensor that transformers makes of it."""
    from transformers import masking_utils as m

    real = None if side is None else padding(3, 12, side).bool()
    packed = torch.tensor([0] * 5 + [1] * 7).expand(3, -1)
    places = torch.cat((torch.arange(5), torch.arange(7))).expand(3, -1)
    blocks = torch.tensor([-1, 0, 0, 0, -1, -1, 1, 1, -1, -1, -1, -1]).expand(3, -1)
    function = {
        "causal": m.causal_mask_function,
        "window": m.sliding_window_causal_mask_function(4),
        "chunks": m.chunked_causal_mask_function(5, torch.tensor([0, 1, 3])),
        "packed": m.and_masks(
            m.remap_positions_for_packed_sequence(m.sliding_window_causal_mask_function(3), places),
            m.packed_sequence_mask_function(packed),
        ),
        "bidirectional": m.sliding_window_bidirectional_mask_function(4),
        "blocks": m.or_masks(m.causal_mask_function, m.blockwise_overlay(blocks)),
    }[kind]
    for queries, start in ((12, 0), (5, 7)):
        if kind == "packed" and queries < 12:
            continue  # transformers packs without a cache only
        given = {"batch_size": 3, "q_length": queries, "kv_length": 12, "q_offset": start, "mask_function": function}
        given |= {"attention_mask": real, "allow_is_causal_skip": False}
        lazy = headway_mask(**given)
        assert isinstance(lazy, LazyMask)
        assert torch.equal(lazy.dense(), m.sdpa_mask(**given))
        assert torch.equal(lazy[:, :, 1:, :3], m.sdpa_mask(**given)[:, :, 1:, :3])
        assert torch.equal(torch.logical_not(lazy), ~m.sdpa_mask(**given))
        # where the model's own attention is eager, whatever else reads the mask finds what is added to scores
        added = headway_eager_mask(**given, dtype=torch.float64)
        assert isinstance(added, LazyMask)
        expected = m.eager_mask(**given, dtype=torch.float64)
        assert torch.equal(added[:, :, 1:, :3], expected[:, :, 1:, :3])
        assert torch.equal(added.bool(), expected.bool())
        assert added.dtype == torch.float64
        assert torch.equal(added.dense(), m.sdpa_mask(**given))


def test_a_mask_that_is_not_known_is_evaluated():
    odd = lambda batch, head, q, k: (k <= q) & (k % 2 == 0)  # noqa: E731
    found = headway_mask(2, 6, 6, mask_function=odd, allow_is_causal_skip=False)
    assert torch.equal(
        found, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](2, 6, 6, mask_function=odd, allow_is_causal_skip=False)
    )


def test_formulas_are_found_by_running_them():
    for kind, expected in (
        (hf.models.llama.modeling_llama.LlamaAttention, {}),
        (hf.models.gemma2.modeling_gemma2.Gemma2Attention, {"softcap": True, "scale": "head_dim"}),
        (hf.models.gpt_oss.modeling_gpt_oss.GptOssAttention, {"sinks": True}),
        (hf.models.t5.modeling_t5.T5Attention, {"bias": True, "scale": "width"}),
    ):
        form = form_of(eager_of(kind))
        assert form is not None
        assert {name: getattr(form, name) for name in expected} == expected

    def other(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        weights = (query @ key.mT * scaling).sigmoid()
        return (weights @ value).transpose(1, 2), weights

    def more(module, query, key, value, attention_mask, scaling, dropout=0.0, gate=None, **kwargs):
        return None, None

    assert form_of(other) is None
    assert form_of(more) is None


def test_what_is_unknown_is_left_alone_and_named():
    big_bird = hf.BigBirdConfig(
        attention_type="original_full",
        vocab_size=96,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=24,
    )
    with pytest.raises(HeadwayError, match="BigBirdSelfAttention: it does not use transformers' attention interface"):
        headway.hf.accelerate(hf.BigBirdModel(big_bird))
    with pytest.raises(HeadwayError, match="no attention of transformers"):
        headway.hf.accelerate(hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])))
    with pytest.raises(HeadwayError, match="a model of transformers, got Linear"):
        headway.hf.accelerate(nn.Linear(2, 2))
    model = decoder("llama")
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    with pytest.raises(HeadwayError, match="its configuration asks for attentions"):
        headway.hf.accelerate(model)


def test_other_versions_of_transformers_are_refused(monkeypatch):
    model = decoder("llama")
    # models of some files put another object in the place of the package, so that there may be two
    package = sys.modules[headway.hf.accelerate.__module__].transformers
    monkeypatch.setattr(package, "__version__", "4.57.1")
    with pytest.raises(HeadwayError, match=r"expected transformers 5.24.*got 4.57.1: pip install"):
        headway.hf.accelerate(model)


def test_accelerating_twice_says_so():
    model = decoder("llama")
    with accelerated(model), pytest.raises(HeadwayError, match="undo"):
        headway.hf.accelerate(model)


LONG = [("training", name) for name in ("t5", "bloom", "deberta", "llama")]
LONG += [("inference", "t5"), ("inference", "deberta"), ("inference", "bloom")]


def compiled(*what):
    """In a process without shape checks, which torch.compile cannot trace."""
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", Path(__file__).with_name("compiled.py"), *what],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]


@pytest.mark.parametrize("what", [("inference", "llama"), ("step", "llama", "t5")], ids="-".join)
def test_compiled_is_eager(what):
    compiled(*what)


@pytest.mark.slow
@pytest.mark.parametrize("what", LONG, ids="-".join)
def test_compiled_is_eager_for_more(what):
    compiled(*what)
