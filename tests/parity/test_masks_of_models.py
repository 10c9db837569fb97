"""Who sees whom in models that do not rotate: what a token's output depends on, through as many layers as there are, is
what the masks of :func:`headway.positions.layers_from_hf` let reach it.

Held against: the forward passes of transformers' models.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from observed import model_of, small
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.utils import logging

from headway.masks import Mask
from headway.positions import LayerPosition, layers_from_hf
from headway.positions.interchange.families import FAMILIES
from headway.positions.interchange.others import KNOWN

N = 12
ONE_STACK = ("bart", "longt5", "mbart", "mt5", "mvp", "plbart", "switch_transformers", "t5", "umt5")
"""Models of an encoder and a decoder, looked at one by one."""
COUNTS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
GIVEN: dict[str, dict[str, Any]] = {
    "big_bird": {"attention_type": "original_full"},
    "data2vec-text": {"pad_token_id": 1},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    "gpt_neo": {"attention_types": [[["local"], 2]], "window_size": 3},
    "longt5": {"local_radius": 2},
    "plbart": {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    "squeezebert": {"embedding_size": 64},
    "xlm-roberta-xl": {"pad_token_id": 1},
}
"""What is particular to a family, and what its smallest configuration needs."""
ELSEWHERE = {
    "ibert": "its numbers are whole ones, which have no gradients",
    "longformer": "its windows are refused",
    "mpnet": "its two methods are refused",
    "pix2struct_text_model": "part of a model of two, whose configuration it is built from",
    "pix2struct_vision_model": "it reads patches",
    "pop2piano": "it is T5 behind a spectrogram",
    "udop": "it reads pages",
    "xmod": "it asks for a language: XLM-RoBERTa with adapters",
}
"""Families that are not run here, each with the reason."""


OFTEN = ("bert", "gpt2", "gpt_neo", "imagegpt", "longt5-encoder", "opt", "t5-decoder")
"""Of every test run; the others are a proof."""


def cases() -> list[Any]:
    there = {kind for kind in CONFIG_MAPPING_NAMES if kind.replace("-", "_") in KNOWN - (FAMILIES.keys() - {"gpt_neo"})}
    halves = [(kind, half) for kind in ONE_STACK for half in ("encoder", "decoder")]
    return [
        pytest.param(kind, half, id=name, marks=() if name in OFTEN else pytest.mark.slow)
        for kind, half in [*((kind, "") for kind in sorted(there - ELSEWHERE.keys() - {*ONE_STACK})), *halves]
        for name in ["-".join(filter(None, (kind, half)))]
    ]


def reach(layers: tuple[LayerPosition, ...]) -> Tensor:
    """Which tokens reach which, (N, N), through layers of given masks: a token keeps what it had."""
    found, pos = torch.eye(N, dtype=torch.bool), torch.arange(N)[None]
    for layer in layers:
        sees = layer.mask.tile(pos, pos)[0, 0] if isinstance(layer.mask, Mask) else torch.ones(N, N, dtype=torch.bool)
        found = found | (sees.double() @ found.double() > 0)
    return found


def dependence(config: transformers.PreTrainedConfig, half: str) -> Tensor:
    """Which inputs each output of a model depends on, by its gradients."""
    torch.manual_seed(0)
    model: Any = model_of(config)._from_config(config).eval()
    if half:
        model = getattr(model, f"get_{half}")()
    embedding = model.get_input_embeddings()
    x = torch.randn(1, N, embedding.weight.shape[1], requires_grad=True)
    embedding.register_forward_hook(lambda module, given, usual: x.view(usual.shape))
    out = model(torch.arange(3, N + 3)[None])
    weight, rows = torch.randn_like(out[0][0, 0]), []
    for i in range(N):
        (gradient,) = torch.autograd.grad((out[0][0, i] * weight).sum(), x, retain_graph=True)
        rows.append(gradient[0].abs().sum(1) > 0)
    return torch.stack(rows)


@pytest.mark.parametrize(("kind", "half"), cases())
def test_tokens_see_whom_the_model_lets_them_see(kind: str, half: str) -> None:
    logging.set_verbosity_error()
    usual = CONFIG_MAPPING[kind]()
    config = small(CONFIG_MAPPING[kind], **{key: 2 for key in COUNTS if hasattr(usual, key)}, **GIVEN.get(kind, {}))
    said = {"is_encoder_decoder": False, "is_decoder": half == "decoder"} if half else {}
    layers = layers_from_hf({**config.to_dict(), **said})
    assert len(layers) == 2
    assert torch.equal(dependence(config, half), reach(layers))
