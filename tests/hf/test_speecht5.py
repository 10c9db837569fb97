"""SpeechT5 with headway's kernels: values and gradients are the model's own, and nothing n² is made in its encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from family_laws import hooks_fire, nothing_quadratic, same_files, same_in_training
from models import accelerated, as_exact, padding, randomised, same, tokens
from torch import Tensor

SIZES: dict[str, Any] = {"vocab_size": 93, "hidden_size": 36, "encoder_max_relative_position": 4}
SIZES |= {"num_mel_bins": 10, "speech_decoder_prenet_units": 12, "speech_decoder_prenet_layers": 1}
SIZES |= {"conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3), "num_conv_pos_embeddings": 5}
SIZES |= {"num_conv_pos_embedding_groups": 3, "mask_time_prob": 0.0, "apply_spec_augment": False}
for side in ("encoder", "decoder"):
    SIZES |= {f"{side}_layers": 2, f"{side}_attention_heads": 3, f"{side}_ffn_dim": 40, f"{side}_layerdrop": 0.0}
STILL = ("hidden_dropout", "attention_dropout", "activation_dropout", "positional_dropout", "feat_proj_dropout")
SIZES |= dict.fromkeys(STILL, 0.0)


def built(dtype: torch.dtype = torch.float64, **more: Any) -> Any:
    """A tiny model that writes what it hears."""
    return randomised(hf.SpeechT5ForSpeechToText(hf.SpeechT5Config(**SIZES | more)), dtype)


def run(rows: int = 2, n: int = 23, padded: bool = False, words: int = 7) -> Any:
    """A function of a model: its logits."""
    sound = torch.randn(rows, 4 * n + 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = padding(rows, sound.shape[1], "right") if padded else None

    def logits(model: Any) -> Tensor:
        heard = sound.to(next(model.parameters()).dtype)
        out: Tensor = model(heard, attention_mask=mask, decoder_input_ids=tokens(rows, words)).logits
        return out

    return logits


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("far", [4, 1, 160])
def test_values_and_gradients(padded: bool, far: int) -> None:
    """Output and all gradients are the model's own, for distances that reach past the ends of the table and not."""
    same(built(encoder_max_relative_position=far), run(padded=padded))


def test_training(tmp_path: Any) -> None:
    """In training, with gradient checkpointing; one token; files and hooks."""
    model = built()
    same_in_training(model, run())
    same(model, run(n=1))
    same_files(model, tmp_path)
    hooks_fire(model, run(), ("q_proj", "k_proj", "out_proj"))


def test_exact() -> None:
    """In bfloat16 as exact as the model's own code."""
    as_exact(built(torch.float32), run(), torch.bfloat16)


def test_attentions_and_generation() -> None:
    """Attentions, where asked for, and generation with a cache are those of the model's own code."""
    model, sound = built(), torch.randn(2, 95, dtype=torch.float64)
    given: dict[str, Any] = {"decoder_input_ids": tokens(2, 5), "output_attentions": True}
    expected = model(sound, **given)
    asked: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    words = model.generate(sound, **asked)
    with accelerated(model):
        found = model(sound, **given)
        assert torch.equal(model.generate(sound, **asked), words)
    for kind in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
        assert len(found[kind]) == len(expected[kind]) == 2
        for a, b in zip(found[kind], expected[kind], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_nothing_quadratic() -> None:
    """No tensor of all pairs is made in the encoder."""
    nothing_quadratic(built(torch.float32), run(rows=1, n=180), 180)
