"""Inkling's models with headway's kernels: values and gradients are the models' own, and no bias n² is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from family_laws import same_copies, same_decoding, same_in_training
from models import accelerated, as_exact, padding, randomised, same, tokens

from headway.hf.float64 import in_float64

SMALL: dict[str, Any] = {"vocab_size": 93, "hidden_size": 24, "num_hidden_layers": 3, "intermediate_size": 20}
SMALL |= {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "unpadded_vocab_size": 91}
SMALL |= {"swa_num_attention_heads": 3, "swa_num_key_value_heads": 3, "swa_head_dim": 6, "d_rel": 5, "rel_extent": 11}
SMALL |= {"layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"], "sliding_window_size": 7}
SMALL |= {"moe_intermediate_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0}
SMALL |= {"eos_token_id": 2, "log_scaling_n_floor": 9}
TWO = {"n_layers_per_attn_res_block": 2, "rel_l2_clip_threshold": 1.5, "qk_l2_clip_threshold": 2.5}
KINDS: dict[str, Any] = {
    "inkling": (hf.InklingForCausalLM, hf.InklingTextConfig, SMALL | {"n_shared_experts": 1}),
    "inkling2": (hf.Inkling2ForCausalLM, hf.Inkling2TextConfig, SMALL | TWO),
    "inkling2_loop": (hf.Inkling2LoopForCausalLM, hf.Inkling2LoopTextConfig, SMALL | TWO),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def built(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    """A tiny model."""
    made, config, sizes = KINDS[kind]
    model = made(config(**sizes))
    model.set_experts_implementation("eager")  # the other has no float64
    return randomised(model, dtype)


@every_kind
def test_values_and_gradients(kind: str) -> None:
    """With and without padding on either side, past the window and the extent, and of one token."""
    model = built(kind)
    with in_float64():
        same(model, lambda m: m(tokens(2, 29)).logits)
        for side in ("left", "right"):
            real = padding(3, 29, side)
            same(model, lambda m, real=real: m(tokens(3, 29), attention_mask=real).logits[real.bool()])
        same(model, lambda m: m(tokens(1, 1)).logits)
