"""MPNet: buckets of distances as a table, against its own code in float64."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import family_laws
import torch
from models import accelerated, as_exact, far, padding, randomised, same, tokens
from transformers import MPNetConfig, MPNetForMaskedLM, MPNetModel

CONFIG = {
    "vocab_size": 90,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "intermediate_size": 40,
    "max_position_embeddings": 610,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@cache
def made() -> Any:
    torch.manual_seed(0)
    return randomised(MPNetModel(MPNetConfig(**CONFIG)))


def states(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(tokens(3, 61), attention_mask=padding(3, 61, "left"))[0]
    return found


def test_states_and_gradients() -> None:
    family_laws.same_with_padding(made(), 150)  # beyond every bucket
    same(randomised(MPNetForMaskedLM(made().config)), lambda m: m(tokens(2, 31), labels=tokens(2, 31)).loss)


def test_copies_files_and_hooks(tmp_path: Path) -> None:
    family_laws.same_copies(made(), states)
    family_laws.same_files(made(), tmp_path)
    family_laws.hooks_fire(made(), states, ("attn.q", "attn.o", "relative_attention_bias"))
    family_laws.same_with_lora(made(), states, ["attn.q", "attn.k", "attn.v"])


def test_narrow_dtypes() -> None:
    as_exact(made(), states, torch.bfloat16)
    family_laws.autocast_as_exact(made(), states)


def test_nothing_per_pair() -> None:
    long = randomised(MPNetModel(MPNetConfig(**CONFIG)), torch.float32)
    family_laws.nothing_quadratic(long, lambda m: m(tokens(1, 600))[0], 600)


def test_attentions_are_the_models_own() -> None:
    real = padding(2, 19, "right")
    with torch.no_grad():
        expected = made()(tokens(2, 19), attention_mask=real, output_attentions=True)
        with accelerated(made()):
            found = made()(tokens(2, 19), attention_mask=real, output_attentions=True)
    assert all(far(*pair) < 1e-12 for pair in zip(found.attentions, expected.attentions, strict=True))


def test_a_mask_for_each_pair() -> None:
    mask = torch.randn(2, 1, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    same(made(), lambda m: m(tokens(2, 9), attention_mask=mask)[0])
