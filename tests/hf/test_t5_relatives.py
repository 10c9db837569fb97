"""Relatives of T5 that read more than text: pages (UDOP), pictures (Pix2Struct) and sound (Pop2Piano)."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from common import refusal
from family_laws import same_files, same_in_training
from models import T5_SIZES, accelerated, padding, randomised, same, tokens

from headway.hf.inputs import of_family, random_inputs

STARTS = {"d_model": 36, "decoder_start_token_id": 0, "pad_token_id": 0}
PAIR = {"decoder_input_ids": tokens(2, 31, seed=1)}


def numbers(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def udop():
    buckets = {"relative_attention_num_buckets": 8}
    biases = [{"type": kind, **buckets} for kind in ("horizontal", "vertical")]
    biases.insert(0, {"type": "1d", "max_distance": 20, **buckets})
    config = hf.UdopConfig(**T5_SIZES, **STARTS, image_size=32, patch_size=8, relative_bias_args=biases)
    one, other = numbers(2, 47, 2), numbers(2, 47, 2, seed=1)
    boxes = torch.cat((torch.minimum(one, other), torch.maximum(one, other)), -1)
    given = {"input_ids": tokens(2, 47), "bbox": boxes, "pixel_values": numbers(2, 3, 32, 32), **PAIR}
    return randomised(hf.UdopForConditionalGeneration(config)), given, 47


def pix2struct():
    text = {**T5_SIZES, "hidden_size": 36, "is_decoder": True}
    vision = {"hidden_size": 36, "patch_embed_hidden_size": 48, "d_ff": 48, "d_kv": 12, "seq_len": 64}
    vision |= {"num_hidden_layers": 2, "num_attention_heads": 3, "dropout_rate": 0.0, "attention_dropout": 0.0}
    patches = numbers(2, 20, 50)
    patches[..., 0], patches[..., 1] = torch.arange(20) // 5 + 1, torch.arange(20) % 5 + 1
    config = hf.Pix2StructConfig(text_config=text, vision_config=vision)
    return randomised(hf.Pix2StructForConditionalGeneration(config)), {"flattened_patches": patches, **PAIR}, 20


def pop2piano():
    config = hf.Pop2PianoConfig(**T5_SIZES, **STARTS, composer_vocab_size=5, num_decoder_layers=2)
    return randomised(hf.Pop2PianoForConditionalGeneration(config)), {"inputs_embeds": numbers(2, 47, 36), **PAIR}, 47


RELATIVES = [udop, pix2struct, pop2piano]


@pytest.mark.parametrize("relative", RELATIVES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_every_gradient(relative, side):
    model, given, keys = relative()
    same(model, lambda m: m(**given, attention_mask=padding(2, keys, side)).logits)


@pytest.mark.parametrize("relative", RELATIVES)
def test_in_training_and_in_its_files(relative, tmp_path):
    model, given, keys = relative()
    if relative is not pix2struct:  # transformers offers no gradient checkpointing for it
        same_in_training(model, lambda m: m(**given, attention_mask=padding(2, keys, "right")).logits)
    same_files(model, tmp_path)


@pytest.mark.parametrize("relative", RELATIVES)
def test_the_cache_keeps_the_bias(relative):
    model, given, _ = relative()
    ids = given.pop("decoder_input_ids")
    with torch.no_grad():
        whole = model(**given, decoder_input_ids=ids).logits
        with accelerated(model):
            cache, found = None, []
            for part in ids.split([12, 1, 1, 17], 1):
                out = model(**given, decoder_input_ids=part, cache=cache, use_cache=True)
                cache = out.cache
                found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-10, atol=1e-10)


def test_random_pages_have_boxes():
    encoder = udop()[0].get_encoder()
    given = random_inputs(encoder, 9, side="left")
    left, upper, right, lower = given["bbox"].unbind(-1)
    assert bool((left <= right).all() and (upper <= lower).all() and (right <= 1).all())
    encoder(**given)
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "coordinate_size": 8}
    whole = hf.LayoutLMv3Model(hf.LayoutLMv3Config(**sizes, shape_size=8, intermediate_size=48, vocab_size=96))
    boxes = random_inputs(whole, 9)["bbox"]
    assert boxes.dtype == torch.int64
    assert boxes.max() > 500


def test_a_family_that_cannot_be_made_says_why():
    with refusal("expected a family that can be made with 4 layers of width 512, got lilt: ", whole=False):
        of_family("lilt")


def test_what_each_bias_takes_is_said():
    model, _, _ = udop()
    with accelerated(model) as done:
        encoder, decoder = done.parts
        assert encoder.memory[0] == encoder.memory[1]
        assert decoder.memory[1] < decoder.memory[0] / 1000
        assert "on the page, of all pairs" in str(done)
