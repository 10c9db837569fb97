"""Families with latent attention: ours, made of what ``layers_from_hf`` reads, is their attention with their weights.

Held against: the forward pass of each family in transformers, and its gradients.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from common import follows, refusal
from observed import model_of, small
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from headway import LatentAttention
from headway.positions import from_hf, layers_from_hf

SIZES = {
    "kv_lora_rank": 20,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "num_key_value_heads": 4,
    "num_hidden_layers": 1,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1234.0,
    "factor": 8.0,
    "original_max_position_embeddings": 40,
    "beta_fast": 4.0,
    "mscale": 0.7,
    "mscale_all_dim": 1.3,
}
PLAIN = {"rope_type": "default", "rope_theta": 321.0}
BEFORE = {"rope_theta": 77.0, "rope_scaling": {**{key: YARN[key] for key in YARN if key[:4] != "rope"}, "type": "yarn"}}
MISTRAL = {**YARN, "llama_4_scaling_beta": 0.0}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("deepseek_v2", {"rope_parameters": YARN}),
    ("deepseek_v2", {"rope_parameters": PLAIN, "q_lora_rank": None}),
    ("deepseek_v3", {"rope_parameters": YARN, "attention_bias": True}),
    ("deepseek_v3", {"rope_parameters": PLAIN, "rope_interleave": False}),
    ("deepseek_v3", BEFORE),
    ("axk1", {"rope_parameters": YARN}),
    ("glm4_moe_lite", {"rope_parameters": YARN}),
    ("kimi_linear", {"layer_types": ["full_attention"], "q_lora_rank": None}),
    ("minicpm3", {"rope_parameters": YARN}),
    ("mistral4", {"rope_parameters": MISTRAL}),
    ("sarvam_mla", {"rope_parameters": YARN}),
    ("youtu", {"rope_parameters": YARN, "rope_interleave": None}),
]


def tiny(kind: str, **given: Any) -> transformers.PreTrainedConfig:
    if kind not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    width = 20 if kind == "mistral4" else 8  # which their rotation reads
    return small(CONFIG_MAPPING[kind], **{**SIZES, "head_dim": width, **json.loads(json.dumps(given))})


@pytest.mark.parametrize(("kind", "given"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_it_is_their_attention(kind: str, given: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = tiny(kind, **given)
    (layer,) = layers_from_hf(json.loads(config.to_json_string()))
    assert layer.latent is not None
    assert layer.latent["latent_dim"] == 20
    model = model_of(config)._from_config(config, attn_implementation="eager").double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=0.3)
    bias = bool(given.get("attention_bias"))
    ours = LatentAttention(
        64, 4, **layer.latent, bias=bias, position=layer.position, mask=layer.mask, scale=layer.scale
    ).double()
    theirs = dict(model.get_submodule("layers.0.self_attn").named_parameters())
    up = theirs["kv_b_proj.weight"].view(4, 22, 20)
    weights = {"k.weight": up[:, :12].flatten(0, 1), "v.weight": up[:, 12:].flatten(0, 1)}
    names = {"kv_a_proj_with_mqa": "kv_down", "kv_a_layernorm": "kv_norm", "o_proj": "o", "q_proj": "q"}
    names |= {"q_a_proj": "q_down", "q_a_layernorm": "q_norm", "q_b_proj": "q"}
    for name, weight in theirs.items():
        part, _, which = name.partition(".")
        if part in names:
            weights[f"{names[part]}.{which}"] = weight
    follows(ours, model, "layers.0.self_attn", weights)


def test_what_cannot_be_said_of_it_is_refused() -> None:
    for kind in ("deepseek_v32", "glm_moe_dsa"):
        config = tiny(kind, rope_parameters=PLAIN)
        assert from_hf(config).spec() == "rotary(base=321.0, pairing='interleaved')"
        with refusal(
            "expected queries that see all keys before them, got index_topk=2048: a learned index picks which; "
            "take from_hf for the positions"
        ):
            layers_from_hf(config)
    rope = {**PLAIN, "partial_rotary_factor": 0.5}
    with refusal("expected a decoupled part that rotates whole, qk_rope_head_dim=8, got partial_rotary_factor=0.5"):
        from_hf({"model_type": "deepseek_v3", **SIZES, "rope_parameters": rope})
    with refusal(
        "expected a model_type whose latent attention is known",
        whole=False,
    ):
        from_hf({"model_type": "longcat_flash", **SIZES, "rope_theta": 1e4})


def test_queries_scaled_by_position_are_said() -> None:
    config = tiny("mistral4", rope_parameters={**YARN, "llama_4_scaling_beta": 0.2})
    assert layers_from_hf(config)[0].beside["llama_4_scaling_beta"] == 0.2
