"""Inkling's models with headway's kernels: values and gradients are the models' own, and no bias n² is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from family_laws import Quadratic, autocast_as_exact, same_copies, same_decoding, same_in_training
from models import accelerated, gradients, padding, randomised, same, tokens

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


def built(kind: str, dtype: torch.dtype = torch.float64, **more: Any) -> Any:
    """A tiny model."""
    made, config, sizes = KINDS[kind]
    model = made(config(**sizes | more))
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


@every_kind
def test_training(kind: str) -> None:
    """In training, with gradient checkpointing; copies and files that pickle made compute the same."""
    model = built(kind)
    with in_float64():
        same_in_training(model, lambda m: m(tokens(2, 23)).logits)
        same_copies(model, lambda m: m(tokens(2, 23)).logits)


@every_kind
def test_decoding(kind: str) -> None:
    """With a cache as in one pass; generation as the model's own, left-padded."""
    with in_float64():
        # their own norms narrow to float32, where a token alone is rounded otherwise
        same_decoding(built(kind), static=False, within=1e-5)


@every_kind
def test_exact(kind: str) -> None:
    """Under autocast to bfloat16 as exact as the model's own code."""
    model = built(kind, num_experts_per_tok=4)  # all, lest rounding choose others
    with in_float64():
        autocast_as_exact(model, lambda m: m(tokens(2, 40)).logits)


@every_kind
def test_attentions(kind: str) -> None:
    """Attentions, where asked for, are those of the model's own code."""
    model = built(kind)
    model.set_attn_implementation("eager")
    with in_float64():
        expected = model(tokens(2, 23), output_attentions=True).attentions
        with accelerated(model):
            found = model(tokens(2, 23), output_attentions=True).attentions
    assert len(found) == len(expected) == 3
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@every_kind
def test_no_bias(kind: str) -> None:
    """No bias of all pairs is made; of Inkling 2, the model's own code makes their distances, once for all heads."""
    model, n = built(kind, torch.float32), 160
    largest = n * n * (1 if kind == "inkling" else 2)

    def run(m: Any) -> Any:
        return m(tokens(1, n)).logits

    with Quadratic(largest), pytest.raises(AssertionError, match="made"):
        gradients(model, run)
    with accelerated(model) as done, Quadratic(largest):
        gradients(model, run)
    assert all(part.reason is None for part in done.parts)
    assert any("profiles by distance" in part.position for part in done.parts)
