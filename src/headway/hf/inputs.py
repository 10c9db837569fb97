"""Random inputs for a model, and models of a known size, for checks and measurements."""

from __future__ import annotations

import inspect
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

from headway.shapes import HeadwayError, brief

SIDES = ("none", "right", "left")


def random_inputs(
    model: PreTrainedModel, tokens: int, *, rows: int = 2, side: str = "none", seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs of this many tokens: text, or an image or sound of the model's own size.

    Args:
        model: the model.
        tokens: length of each sequence; at most what the model's learned positions allow.
        rows: number of sequences.
        side: "none", or the side on which all sequences but the last are padded, "left" or "right".
        seed: of the generator.

    Raises:
        HeadwayError: when the model reads something else than text, images or sound.
    """
    draw = torch.Generator().manual_seed(seed)
    config, name = model.config, model.main_input_name
    dtype = next(model.parameters()).dtype
    if name == "input_ids":
        words = _words(model)
        made = {"input_ids": torch.randint(min(4, words - 1), words, (rows, tokens), generator=draw)}
        if side != "none" and rows > 1:
            real = torch.ones(rows, tokens, dtype=torch.long)
            hidden = max(1, tokens // 3) if tokens > 1 else 0
            real[:-1, slice(tokens - hidden, None) if side == "right" else slice(hidden)] = 0
            made["attention_mask"] = real
        if config.is_encoder_decoder:
            made["decoder_input_ids"] = torch.randint(
                min(4, words - 1), words, (rows, max(1, tokens // 2)), generator=draw
            )
        if "bbox" in inspect.signature(model.forward).parameters:
            made["bbox"] = _boxes(model, rows, tokens, draw).to(model.device)
    elif name == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (rows, getattr(config, "num_channels", 3), height, width)
        made = {name: torch.randn(shape, generator=draw).to(dtype)}
    elif name == "input_values" and config.model_type == "audio-spectrogram-transformer":
        made = {name: torch.randn(rows, config.max_length, config.num_mel_bins, generator=draw).to(dtype)}
    elif name == "input_values":
        made = {name: torch.randn(rows, 400 + 320 * tokens, generator=draw).to(dtype)}
    elif name == "input_features" and hasattr(config, "feature_projection_input_dim"):
        made = {name: torch.randn(rows, tokens, config.feature_projection_input_dim, generator=draw).to(dtype)}
    elif name == "input_features" and config.model_type == "whisper":
        made = {name: torch.randn(rows, config.num_mel_bins, 2 * config.max_source_positions, generator=draw).to(dtype)}
        made["decoder_input_ids"] = torch.randint(0, _words(model), (rows, tokens), generator=draw)
    else:
        raise HeadwayError(
            f"expected a model that reads text, images or sound, got {type(model).__name__}, which reads {name}: "
            "pass inputs="
        )
    return {key: value.to(model.device) for key, value in made.items()}


def _boxes(model: PreTrainedModel, rows: int, tokens: int, draw: torch.Generator) -> Tensor:
    """Where each token stands on its page: left, upper, right and lower ends, as shares or in the model's units."""
    config, dtype = model.config, next(model.parameters()).dtype
    if config.model_type == "bros":  # four corners
        corners: Tensor = torch.rand(rows, tokens, config.dim_bbox, generator=draw)
        return corners.to(dtype)
    boxes: Tensor = torch.rand(rows, tokens, 2, 2, generator=draw).sort(2).values.flatten(2)
    if config.model_type == "udop":
        return boxes.to(dtype)
    units: Tensor = boxes * (min(1001, config.max_2d_position_embeddings) - 1)
    return units.long()


def _words(model: PreTrainedModel) -> int:
    embedding: nn.Module | None = model.get_input_embeddings()
    found = getattr(embedding, "num_embeddings", None) or getattr(model.config, "vocab_size", None)
    if not isinstance(found, int):
        raise HeadwayError(f"expected a model with a vocabulary, got {type(model).__name__} without: pass inputs=")
    return found


def longest(model: PreTrainedModel) -> int | None:
    """The number of tokens that a model's configuration allows; None where it sets no limit."""
    found = getattr(model.config, "max_position_embeddings", None)
    # RoBERTa's positions begin after the one of padding
    return found - 2 if isinstance(found, int) and found > 2 else None


def result(output: Any) -> Tensor:
    """A model's logits, or its last hidden state where it has none."""
    found = output.logits if "logits" in output else output[0]
    assert isinstance(found, Tensor)
    return found


SIZES: dict[str, int] = dict.fromkeys(
    ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers"), 4
)
SIZES |= dict.fromkeys(("n_layer", "n_layers", "num_layers"), 4)
SIZES |= dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size"), 512)
SIZES |= dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads", "num_key_value_heads"), 8)
SIZES |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 8)
SIZES |= dict.fromkeys(("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim"), 2048)
SIZES |= {"head_dim": 64, "d_kv": 64, "max_position_embeddings": 16_384, "max_seq_len": 16_384, "n_positions": 16_384}
SIZES |= {"vocab_size": 4096}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""How many experts a layer has, which become at most 16."""
MOST = 1_500_000_000
"""Parameters; a model with more has parts of sizes of their own."""


def of_family(name: str) -> PreTrainedModel:
    """A model of a family of transformers with 4 layers, width 512 and 8 heads, its parameters random.

    Vision models keep the size of their default configuration.

    Args:
        name: the family as transformers writes it, e.g. "t5" or "deberta-v2".

    Raises:
        HeadwayError: when transformers has no such family, or it cannot be made at this size.
    """
    if name not in CONFIG_MAPPING:
        raise HeadwayError(
            f"expected a folder or a family of transformers such as t5, deberta-v2 or llama, got {brief(name)}"
        )
    try:
        return _made(name, CONFIG_MAPPING[name])
    except Exception as error:  # whatever another library's code raises
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HeadwayError(
            f"expected a family that can be made with 4 layers of width 512, got {name}: {shorten(why, 200)}"
        ) from error


def _made(name: str, kind: Any) -> PreTrainedModel:
    plain = kind()
    told = plain.to_dict()
    pages = "max_2d_position_embeddings" in told  # UDOP reads them
    sizes = {} if "image_size" in told and not pages else _sizes(plain)
    if isinstance(getattr(plain, "text_config", None), PreTrainedConfig):  # what reads the text beside images or sound
        sizes["text_config"] = {**told["text_config"], **_sizes(plain.text_config), "layer_types": None}
    if getattr(plain, "pad_token_id", None) is not None:
        sizes["pad_token_id"] = 0
    if name == "deberta-v2":  # DeBERTa-v3's settings
        sizes |= {"relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm"}
        sizes |= {"share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
    if name == "layoutlmv3":  # four coordinates and two sizes of a box side by side
        sizes |= {"coordinate_size": 86, "shape_size": 84}
    auto: Any = AutoModel
    config = kind(**sizes)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in auto.from_config(config).parameters())
    if parameters > MOST:
        raise HeadwayError(f"it would have {parameters:,} parameters, because its parts have sizes of their own")
    torch.manual_seed(0)
    model = encoder_of(auto.from_config(config))
    training = model.training
    with torch.no_grad():
        model.train(False)(**random_inputs(model, 8))
    model.train(training)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def _sizes(plain: PreTrainedConfig) -> dict[str, Any]:
    """The sizes of a configuration that are reduced."""
    told: dict[str, Any] = {key: getattr(plain, key, None) for key in (*SIZES, *EXPERTS)}
    found = {key: size for key, size in SIZES.items() if type(told[key]) is int}
    found |= {key: 16 for key in EXPERTS if type(told[key]) is int and told[key] > 16}
    return {key: size for key, size in found.items() if not isinstance(getattr(type(plain), key, None), property)}


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder of an encoder-decoder, which reads the long text; other models as they are."""
    if not model.config.is_encoder_decoder:
        return model
    found: PreTrainedModel = model.get_encoder()
    found.config.is_encoder_decoder = False
    return found
