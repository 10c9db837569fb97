"""Speech models with headway's kernels: values and gradients are the model's own, and nothing n² is made."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from models import accelerated, as_exact, padding, randomised, same
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TSpeechEncoder as SPEECH
from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder as SPEECH_2

import headway.hf
from headway.shapes import HeadwayError

SMALL: dict[str, Any] = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
STILL = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop")
STILL += ("speech_encoder_dropout", "conformer_conv_dropout", "final_dropout", "ffn_dropout", "adaptor_dropout")
SMALL |= dict.fromkeys(STILL, 0.0) | {"mask_time_prob": 0.0, "apply_spec_augment": False}
CONV = {"conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3), "num_conv_pos_embeddings": 5}
CONV |= {"num_conv_pos_embedding_groups": 3, "conv_depthwise_kernel_size": 5}
FRAMES = {"feature_projection_input_dim": 10, "conv_depthwise_kernel_size": 5}
SEAMLESS = {"speech_encoder_layers": 2, "speech_encoder_attention_heads": 3, "speech_encoder_intermediate_size": 40}
SEAMLESS |= {"speech_encoder_layerdrop": 0.0, "adaptor_kernel_size": 3, "adaptor_stride": 2, "max_source_positions": 30}
SEAMLESS |= SMALL | FRAMES
KEYS = {
    "left_max_position_embeddings": 5,
    "right_max_position_embeddings": 3,
    "position_embeddings_type": "relative_key",
}
KINDS: dict[str, tuple[type, Any]] = {
    "conformer": (
        hf.Wav2Vec2ConformerModel,
        hf.Wav2Vec2ConformerConfig(**SMALL | CONV, position_embeddings_type="relative"),
    ),
    "rotary": (
        hf.Wav2Vec2ConformerModel,
        hf.Wav2Vec2ConformerConfig(**SMALL | CONV, position_embeddings_type="rotary"),
    ),
    "bert": (hf.Wav2Vec2BertModel, hf.Wav2Vec2BertConfig(**SMALL | FRAMES | KEYS)),
    "bert relative": (
        hf.Wav2Vec2BertModel,
        hf.Wav2Vec2BertConfig(**SMALL | FRAMES | {"position_embeddings_type": "relative"}),
    ),
    "wavlm": (hf.WavLMModel, hf.WavLMConfig(**SMALL | CONV, num_buckets=12, max_bucket_distance=9)),
    "wavlm stable": (
        hf.WavLMModel,
        hf.WavLMConfig(**SMALL | CONV, do_stable_layer_norm=True, feat_extract_norm="layer"),
    ),
    "seamless": (SPEECH, hf.SeamlessM4TConfig(**SEAMLESS)),
    "seamless rotary": (SPEECH, hf.SeamlessM4TConfig(**SEAMLESS, position_embeddings_type="rotary")),
    "seamless 2": (SPEECH_2, hf.SeamlessM4Tv2Config(**SEAMLESS | KEYS)),
    "seamless 2 chunks": (
        SPEECH_2,
        hf.SeamlessM4Tv2Config(
            **SEAMLESS | KEYS, speech_encoder_chunk_size=4, speech_encoder_left_chunk_num=2, add_adapter=False
        ),
    ),
    "seamless 2 plain": (SPEECH_2, hf.SeamlessM4Tv2Config(**SEAMLESS, position_embeddings_type="none")),
}
FRAMED = ("bert", "seamless")
every_kind = pytest.mark.parametrize("kind", KINDS)


def built(kind: str, dtype: torch.dtype = torch.float64, **more: Any) -> Any:
    """A tiny model."""
    made, config = KINDS[kind]
    return randomised(made(copy.deepcopy(config)), dtype)


def run(kind: str, rows: int = 2, n: int = 23, padded: bool = False) -> Any:
    """A function of a model: the hidden states of the tokens that are no padding."""
    generator = torch.Generator().manual_seed(1)
    frames = kind.startswith(FRAMED)
    size = (rows, n, 10) if frames else (rows, 4 * n + 3)
    sound = torch.randn(size, generator=generator, dtype=torch.float64)
    mask = padding(rows, size[1], "right") if padded else None

    def states(model: Any) -> Tensor:
        heard = sound.to(next(model.parameters()).dtype)
        out = model(heard, attention_mask=mask).last_hidden_state
        return out if mask is None else out[:, : n // (4 if out.shape[1] < n else 2)]  # an adapter halves them

    return states


@every_kind
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # of WavLM's own code
def test_values_and_gradients(kind: str, padded: bool) -> None:
    """Output and all gradients are the model's own, with and without padding, past every bucket and clamp."""
    same(built(kind), run(kind, padded=padded))


def test_every_chunk_before() -> None:
    """A negative number of chunks before a query's own is all of them."""
    model = built("seamless 2 chunks")
    model.config.speech_encoder_left_chunk_num = -1
    same(model, run("seamless 2 chunks", padded=True))


@every_kind
def test_training(kind: str) -> None:
    """In training, with gradient checkpointing; and a single token."""
    model = built(kind).train()
    model.activation_checkpointing_enable()
    same(model, run(kind))
    same(model.eval(), run(kind, n=1))


@every_kind
def test_exact(kind: str) -> None:
    """In bfloat16 as exact as the model's own code."""
    as_exact(built(kind, torch.float32), run(kind), torch.bfloat16)


@pytest.mark.parametrize("kind", ["conformer", "bert", "wavlm", "seamless"])
def test_attentions(kind: str) -> None:
    """Attentions, where asked for, are those of the model's own code."""
    model = built(kind)
    model.set_attn_implementation("eager")
    sound = torch.randn(2, 40, *([10] if kind.startswith(FRAMED) else []), dtype=torch.float64)
    expected = model(sound, output_attentions=True).attentions
    with accelerated(model):
        found = model(sound, output_attentions=True).attentions
    assert len(found) == len(expected) == 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


class NoPairs(TorchDispatchMode):
    """Fails on any tensor of 61 × 61."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, Tensor):
                assert tuple(x.shape[-2:]) not in ((61, 61), (61, 121)), function
        return out


@pytest.mark.parametrize("kind", ["conformer", "bert", "wavlm", "seamless", "seamless 2", "seamless 2 chunks"])
def test_no_pairs(kind: str) -> None:
    """No bias of all pairs of tokens is made; the model's own code makes some."""
    model = built(kind, torch.float32)
    with pytest.raises(AssertionError), NoPairs():
        run(kind, n=61)(model)
    with accelerated(model), NoPairs():
        run(kind, n=61)(model).sum().backward()


def test_eager_seamless() -> None:
    """SeamlessM4T v2's eager code adds its boolean mask to scores: it is left alone by name."""
    model = built("seamless 2")
    model.set_attn_implementation("eager")
    with pytest.raises(HeadwayError, match="adds 1 to visible scores"):
        headway.hf.accelerate(model)


def test_all_of_seamless() -> None:
    """In the whole model, every attention is accelerated: those of texts and units too."""
    layers = ("encoder_layers", "decoder_layers", "t2u_encoder_layers", "t2u_decoder_layers")
    heads = ("encoder_attention_heads", "decoder_attention_heads")
    sizes = dict.fromkeys(layers, 1) | dict.fromkeys(heads, 3) | {"vocab_size": 50}
    config = hf.SeamlessM4TConfig(**SEAMLESS | sizes)
    with accelerated(hf.SeamlessM4TForSpeechToText(config)) as done:
        assert all(part.reason is None for part in done.parts)
        assert {part.kind for part in done.parts} == {"SeamlessM4TConformerSelfAttention", "SeamlessM4TAttention"}


def test_the_mean_of_all_heads_is_compared_where_its_own_code_returns_no_more() -> None:
    frame = {"conv_dim": (8,), "conv_stride": (320,), "conv_kernel": (400,)}  # as random_inputs counts samples
    model = randomised(hf.WavLMModel(hf.WavLMConfig(**SMALL | CONV | frame, num_buckets=12, max_bucket_distance=9)))
    found = headway.hf.verify(model, lengths=(25,))
    assert found.weights.layers == 2
    assert found.passed
