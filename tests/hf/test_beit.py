"""BEiT, Data2Vec-Vision and LayoutLMv3 with headway's kernels: values and gradients are the models' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from family_laws import autocast_as_exact, same_copies, same_in_training
from models import accelerated, as_exact, padding, randomised, same, tokens
from torch import Tensor

from headway.hf.float64 import in_float64

SMALL: dict[str, Any] = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "drop_path_rate": 0.0}
IMAGE = SMALL | STILL | {"image_size": 24, "patch_size": 4}
OWN, SHARED = {"use_relative_position_bias": True}, {"use_shared_relative_position_bias": True}
MODELS: dict[str, Any] = {
    "beit": (hf.BeitModel, hf.BeitConfig, OWN),
    "beit shared": (hf.BeitModel, hf.BeitConfig, SHARED),
    "data2vec": (hf.Data2VecVisionModel, hf.Data2VecVisionConfig, OWN),
    "data2vec both": (hf.Data2VecVisionModel, hf.Data2VecVisionConfig, OWN | SHARED),
    "data2vec none": (hf.Data2VecVisionModel, hf.Data2VecVisionConfig, {"use_absolute_position_embeddings": True}),
}
every_model = pytest.mark.parametrize("name", MODELS)
every_way = pytest.mark.parametrize("way", ["sdpa", "eager"])


def built(name: str, way: str = "sdpa", dtype: torch.dtype = torch.float64) -> Any:
    """A tiny model."""
    made, config, more = MODELS[name]
    return randomised(made(config(**IMAGE | more, attn_implementation=way)), dtype)


def seen(model: Any, side: int = 24, **more: Any) -> Tensor:
    """The hidden states of two images."""
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    states: Tensor = model(images.to(next(model.parameters()).dtype), **more).last_hidden_state
    return states


@every_way
@every_model
def test_values_and_gradients(name: str, way: str) -> None:
    """Output and all gradients, in both implementations, which Data2Vec's code has a class each for."""
    with in_float64():
        same(built(name, way), seen)


@every_model
def test_training(name: str) -> None:
    """In training, with gradient checkpointing, and in copies."""
    with in_float64():
        same_in_training(built(name), seen)
    same_copies(built(name, dtype=torch.float32), seen)


@every_model
def test_exact(name: str) -> None:
    """In bfloat16 and under autocast as exact as the model's own code."""
    as_exact(built(name, dtype=torch.float32), seen, torch.bfloat16)
    autocast_as_exact(built(name), seen)


def test_other_sizes() -> None:
    """An image of another size has another grid of offsets, read from the table resized."""
    with in_float64():
        same(built("beit"), lambda m: seen(m, 32))


@every_way
def test_masks_of_beit(way: str) -> None:
    """Its own code adds its bias to its mask, whatever that is."""
    real = padding(2, 37, "right")
    with in_float64():
        same(built("beit", way), lambda m: seen(m, attention_mask=real))
        same(built("beit shared", way), lambda m: seen(m, attention_mask=real))


@pytest.mark.parametrize("name", ["beit", "data2vec"])
def test_attentions(name: str) -> None:
    """Attentions, where asked for, are those of the model's own code."""
    model = built(name, "eager")
    images = torch.randn(1, 3, 24, 24, dtype=torch.float64)
    expected = model(images, output_attentions=True).attentions
    with accelerated(model) as done:
        found = model(images, output_attentions=True).attentions
        assert all(part.reason is None and "shared by the batch" in part.position for part in done.parts)
    assert len(found) == len(expected) == 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@every_way
@pytest.mark.parametrize("biases", [{}, {"has_spatial_attention_bias": False}, {"has_relative_attention_bias": False}])
def test_layoutlmv3(biases: dict[str, bool], way: str) -> None:
    """LayoutLMv3 hands its biases of one and two dimensions on as a tensor; text beside an image, padded."""
    sizes = SMALL | STILL | {"vocab_size": 93, "coordinate_size": 6, "shape_size": 6, "input_size": 16, "patch_size": 8}
    sizes |= {"rel_pos_bins": 8, "max_rel_pos": 9, "rel_2d_pos_bins": 8, "max_rel_2d_pos": 12, "pad_token_id": 1}
    model = randomised(hf.LayoutLMv3Model(hf.LayoutLMv3Config(**sizes | biases, attn_implementation=way)))
    generator = torch.Generator().manual_seed(2)
    boxes = torch.randint(0, 40, (2, 23, 4), generator=generator).sort(-1).values[..., [0, 1, 2, 3]]
    image = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    real = padding(2, 23, "right")

    def run(m: Any) -> Tensor:
        out = m(tokens(2, 23), bbox=boxes, attention_mask=real, pixel_values=image).last_hidden_state
        return torch.cat([out[:, :23][real.bool()], out[:, 23:].flatten(0, 1)])

    same(model, run)
    with accelerated(model) as done:
        assert [part.reason for part in done.parts] == [None]
        assert "once per forward by the model's own code" in done.parts[0].position
