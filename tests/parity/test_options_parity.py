"""Companions of position as whole models compute them: QK-norm of Qwen3, softcap of Gemma 2, sinks of gpt-oss.

Held against: transformers (Qwen3, Gemma 2, gpt-oss).
"""

from __future__ import annotations

from typing import Any

import pytest
from common import follows, randomise
from transformers import Gemma2Config, Gemma2Model, GptOssConfig, GptOssModel, Qwen3Config, Qwen3Model

from headway import Attention, Causal, Rotary, Window

SIZES = {
    "vocab_size": 9,
    "pad_token_id": None,
    "hidden_size": 48,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "attn_implementation": "eager",  # the others leave out softcap and sinks
}
PART = "layers.0.self_attn"


def ours(**given: Any) -> Attention:
    return Attention(48, 6, kv_heads=2, head_dim=10, position=Rotary(), **given).double()


def of(model: Any) -> dict[str, Any]:
    """The weights of its attention by our names."""
    theirs = model.get_submodule(PART).named_parameters()
    return {name.replace("_proj", ""): value for name, value in theirs}


def test_qk_norm_of_qwen3() -> None:
    model = Qwen3Model(Qwen3Config(**SIZES)).double().eval()
    randomise(model)
    follows(ours(mask=Causal(), qk_norm=True), model, PART, of(model))


@pytest.mark.parametrize("cap", [0.7, 5.0, 50.0])
def test_softcap_of_gemma_2(cap: float) -> None:
    config = Gemma2Config(**SIZES, attn_logit_softcapping=cap, query_pre_attn_scalar=7, layer_types=["full_attention"])
    model = Gemma2Model(config).double().eval()
    randomise(model)
    follows(ours(mask=Causal(), softcap=cap, scale=7**-0.5), model, PART, of(model))


@pytest.mark.parametrize("window", [None, 4])
def test_sinks_of_gpt_oss(window: int | None) -> None:
    """Its window counts the token itself."""
    config = GptOssConfig(
        **SIZES,
        num_local_experts=2,
        num_experts_per_tok=1,
        layer_types=["full_attention" if window is None else "sliding_attention"],
        sliding_window=window or 9,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = GptOssModel(config).double().eval()
    randomise(model)
    mask = Causal() if window is None else Causal() & Window(window - 1)
    follows(ours(mask=mask, sinks=True, bias=True), model, PART, of(model))
