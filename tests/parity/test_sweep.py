"""Every rotary family of the installed transformers, layer by layer: what its forward pass does to queries and keys,
and whom it lets see whom, is what :func:`headway.positions.layers_from_hf` says, or that refuses by name.

Held against: every rotary family of the installed transformers.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from observed import TOKENS, observe, small
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES, model_type_to_module_name
from transformers.utils import logging

from headway.positions import LayerPosition, Position, layers_from_hf
from headway.positions.interchange.families import FAMILIES, PARTIAL, REFUSED
from headway.positions.interchange.values import names
from headway.shapes import HeadwayError

MROPE = {"rope_type": "default", "rope_theta": 4321.0, "mrope_section": [2, 3, 3]}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16}
GIVEN: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "attn_layer_indices": [1, 4]},
    "codegen": {"rotary_dim": 6},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8}},
    "dots1": {"first_k_dense_replace": 8},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 128},
    "gptj": {"rotary_dim": 6},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"] * 4},
    "mimo_v2_flash": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.375},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        }
    },
    "gpt_oss": {"rope_parameters": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 30}},
    "exaone4": {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 321.0}},
    "granite_swa": {"layer_rope_theta": [1e3, 1e3, 0.0, 1e3, 77.0, 1e3, 0.0, 1e3]},
    "olmo3": {
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 30},
        "rope_theta": 321.0,
    },
    "gemma3_text": {
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_theta": 4321.0,
        "rope_local_base_freq": 123.0,
    },
    "smollm3": {"no_rope_layers": [1, 0, 1, 1, 0, 1, 1, 1]},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 16.0,
            "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.1,
        }
    },
    **{f"{kind}_text": {"rope_parameters": MROPE} for kind in ("glm4v", "glm_image", "glm_ocr")},
    "glm4v_moe_text": {"rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]}},
    **{f"{kind}_text": {"rope_parameters": MROPE} for kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")},
    "qwen3_vl_moe_text": {"rope_parameters": MROPE, "sliding_window": None},
    **{
        kind: {"head_dim": 32, "rope_parameters": {**MROPE, "partial_rotary_factor": 0.5}}
        for kind in ("qwen3_5_text", "qwen3_5_moe_text")
    },
    "chameleon": {"vocabulary_map": {"<image>": 1}},
    "cosmos3_edge_text": {"rope_parameters": MROPE},
    "granitemoehybrid": {**MAMBA, "layer_types": ["full_attention"] * 8, "position_embedding_type": "rope"},
    "hunyuan_v1_dense": {
        "rope_parameters": {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 4321.0}
    },
    "mllama_text_model": {"cross_attention_layers": []},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "nemotron_h": {"sliding_window": None},
    "paddleocr_vl_text": {"rope_parameters": MROPE},
    "phi4_multimodal": {
        "vision_config": {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32},
        "audio_config": {"num_blocks": 1, "hidden_size": 32},
    },
    "qwen2_5_omni_text": {"rope_parameters": MROPE},
    "qwen3_omni_moe_text": {"rope_parameters": MROPE, "sliding_window": None},
}
"""Odd values of what is particular to a family, and what its smallest configuration needs."""
ELSEWHERE = {
    "esm": "a learned table unless it says so: test_families",
    **dict.fromkeys(
        (kind for kind, family in FAMILIES.items() if family.latent), "latent attention: test_latent_families"
    ),
    "falcon": "its attention has no interface: test_families",
    "gpt_neo": "a learned table: test_families",
    "gpt_neox_japanese": "its attention has no interface: test_families",
    "inkling_text": "a bias: test_relative_parity",
    "roformer": "its attention has no interface: test_families",
}
"""Families that cannot be run here, and where else they are tested."""
SCALED_BEFORE = ("openai_privacy_filter",)
"""Families that multiply queries and keys by the root of the scale before, and score by 1."""
OFTEN = names(
    "llama glm glm4 cohere cohere2 gemma2 gemma3_text gemma3n_text gemma4_text gptj gpt_neox gpt_oss "
    "llama4_text minimax_m2 ministral3 mistral modernbert olmo2 olmo3 phi phi3 qwen2 qwen2_moe qwen3 "
    "qwen3_next qwen2_5_vl_text qwen3_vl_text glm4v_text smollm3 stablelm starcoder2 exaone4 granite "
    "granite_swa helium ernie4_5 nomic_bert"
)
"""Families of every test run; all others are a proof."""


@functools.cache
def rotary_kinds() -> list[str]:
    """Model types whose file speaks of rotation, found by its text."""
    folder, found = Path(transformers.__file__).parent / "models", []
    for kind in CONFIG_MAPPING_NAMES:
        files = list((folder / model_type_to_module_name(kind)).glob("modeling_*.py"))
        if any(re.search("rotary|rope", file.read_text(), re.I) for file in files):
            found.append(kind)
    return found


def place(position: Position, q: torch.Tensor, k: torch.Tensor, pos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return position.prepare(*position.rotate(q, k, pos, pos), pos, pos, 1.0)[:2]


def temperature(layer: LayerPosition, pos: torch.Tensor) -> torch.Tensor | float:
    """What queries are multiplied with besides, by the facts that stand beside a layer's position."""
    beside = layer.beside
    if "floor_scale" in beside:
        return torch.log1p(((pos + 1.0) / beside["floor_scale"]).floor()) * beside["attn_scale"] + 1
    if "llama_4_scaling_beta" in beside:
        longer = (pos / beside["original_max_position_embeddings"]).floor()
        return 1 + beside["llama_4_scaling_beta"] * torch.log1p(longer)
    return 1.0


def tiny(kind: str, **given: Any) -> transformers.PreTrainedConfig:
    return small(CONFIG_MAPPING[kind], **copy.deepcopy({**GIVEN.get(kind, {}), **given}))  # they write into theirs


def check(kind: str, **given: Any) -> None:
    config = tiny(kind, **given)
    layers = [layer for layer in layers_from_hf(config) if layer.position is not None]
    as_file = layers_from_hf(json.loads(config.to_json_string()))  # which omits defaults
    assert [layer.position.spec() for layer in as_file if layer.position] == [layer.position.spec() for layer in layers]
    there, still = observe(config)
    assert len(there) % len(layers) == 0, f"{len(there)} calls of attention, {len(layers)} layers"
    assert there, "attention was not called"
    pos, times = torch.arange(TOKENS)[None], len(there) // len(layers)
    for number, layer in enumerate(layers):
        for seen, start in zip(there[number * times :][:times], still[number * times :][:times], strict=True):
            assert layer.position is not None
            ones = torch.ones_like(start.q[:, :1])
            amplitude = place(layer.position, ones, ones, torch.zeros_like(pos))[0]
            q, k = place(layer.position, start.q / amplitude, start.k / amplitude, pos)
            where = f"{kind}, layer {number}: {layer.position.spec()}"
            for got, wanted in ((q * torch.as_tensor(temperature(layer, pos))[..., None], seen.q), (k, seen.k)):
                assert (got - wanted).abs().max() <= 1e-3 * wanted.abs().max(), where  # their angles are float32
            mask = None if layer.mask is None else layer.mask.tile(pos, pos)[0, 0]
            assert (mask is None) == (seen.mask is None), f"{where}, {layer.mask}"
            assert mask is None or torch.equal(mask, seen.mask), f"{where}, {layer.mask}"
            scale = layer.scale or start.q.shape[-1] ** -0.5
            assert kind in SCALED_BEFORE or abs(scale - seen.scale) < 1e-6, f"{where}, scale {scale}, not {seen.scale}"
            assert (layer.softcap or None) == (seen.softcap or None), where


def installed(kind: str) -> str:
    logging.set_verbosity_error()
    if kind not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    return kind


@pytest.mark.parametrize("kind", OFTEN)
def test_layers_are_placed_as_the_model_places_them(kind: str) -> None:
    check(installed(kind))


@pytest.mark.parametrize("kind", ["llama", "glm", "cohere2", "gpt_neox", "phi", "qwen2", "mistral"])
def test_with_other_rotations(kind: str) -> None:
    installed(kind)
    part = {"rope_theta": 321.0, "partial_rotary_factor": 0.75} if kind in PARTIAL else {"rope_theta": 321.0}
    check(kind, rope_parameters={"rope_type": "default", "rope_theta": 321.0})
    check(kind, rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, **part})
    check(kind, rope_parameters={"rope_type": "dynamic", "factor": 2.0, **part}, max_position_embeddings=16)


@pytest.mark.parametrize(
    "given", [{}, {"sliding_window": 5, "sliding_window_size": 5, "attention_chunk_size": 5, "swa_rope_theta": 1e4}]
)
def test_mimo_without_rope_parameters(given: dict[str, Any]) -> None:
    """As in its published file: the keys of the authors' code, from which transformers has its defaults."""
    pattern = {"hybrid_layer_pattern": [0, 1, 1, 1, 1, 0, 1, 1], "partial_rotary_factor": 0.334} if given else {}
    config = tiny(installed("mimo_v2_flash"), rope_parameters=None, head_dim=32, **given)
    file = {key: value for key, value in config.to_dict().items() if key not in ("rope_parameters", "layer_types")}
    told = [(x.position.spec(), str(x.mask)) for x in layers_from_hf({**file, "rope_theta": 5e6, **given, **pattern})]
    assert told == [(x.position.spec(), str(x.mask)) for x in layers_from_hf(config)]
    check("mimo_v2_flash", rope_parameters=None, head_dim=32, **given)


@pytest.mark.slow
@pytest.mark.parametrize("kind", rotary_kinds())
def test_every_family_is_equal_or_refused(kind: str) -> None:
    """A new family is refused by name until it is in the table of families."""
    installed(kind)
    name = kind.replace("-", "_")
    if kind in ELSEWHERE:
        pytest.skip(ELSEWHERE[kind])
    if name not in FAMILIES and CONFIG_MAPPING[kind].sub_configs:
        pytest.skip("a model of several parts, which have types of their own")
    try:
        layers_from_hf(tiny(kind))
    except Exception as refused:
        if name in FAMILIES:
            raise
        pytest.skip(f"{kind} is in no table: {refused}")
    if name not in FAMILIES:
        pytest.skip(f"{kind} does not rotate: its method has a parity test of its own")
    check(kind)


def test_refusals_name_their_reason() -> None:
    for kind, reason in REFUSED.items():
        with pytest.raises(HeadwayError, match=re.escape(reason)):
            layers_from_hf({"model_type": kind, "rope_theta": 1e4, "num_hidden_layers": 2})


def test_the_tables_name_families_that_there_are() -> None:
    """Model types that transformers has given up are no error, but those that stay should be many."""
    there = {kind.replace("-", "_") for kind in CONFIG_MAPPING_NAMES}
    gone = sorted((FAMILIES.keys() | REFUSED.keys()) - there)
    print("not in transformers", transformers.__version__, ":", *gone)
    assert len(gone) < len(FAMILIES) / 4
