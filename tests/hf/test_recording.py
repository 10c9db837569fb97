"""Models of transformers, recorded: weights, parts of scores, matrices of heads and position are those of the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from common import close, refusal
from models import far, padding, randomised, tokens
from torch import Tensor
from torch.nn.functional import linear

import headway.hf
from headway.hf.float64 import in_float64
from headway.hf.inputs import random_inputs
from headway.inspect import Layer, Trace, record, recorded, split
from headway.inspect.split import maps
from headway.positions import Position

N = 13
SMALL: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1}
SMALL |= {"eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
MIXED: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5, **GROUPED}
GPT: dict[str, Any] = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 4, "num_decoder_layers": 2}
BOTH: dict[str, Any] = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
BOTH |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 1}
LATENT: dict[str, Any] = {"q_lora_rank": 16, "kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6}
LATENT |= {
    "v_head_dim": 10,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 2,
}
EXPERTS: dict[str, Any] = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
DEBERTA: dict[str, Any] = {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"}
DEBERTA |= {"share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 4}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.5] * 4, "long_factor": [3.0] * 4}
LEARNED = "learned(max_length=64)"
INTERLEAVED = "rotary(pairing='interleaved')"
FAMILIES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "gpt2": (GPT, {LEARNED}),
    "gpt_neox": ({}, {"rotary(fraction=0.25)"}),
    "llama": (GROUPED, {"rotary"}),
    "mistral": (GROUPED | {"sliding_window": 5}, {"rotary"}),
    "qwen2": (MIXED | {"use_sliding_window": True}, {"rotary"}),
    "qwen3": (MIXED | {"use_sliding_window": True}, {"rotary"}),
    "gemma2": (MIXED | {"query_pre_attn_scalar": 7, "attn_logit_softcapping": 2.0}, {"rotary"}),
    "gemma3_text": (MIXED, {"rotary", "rotary(base=1000000.0)"}),
    "phi3": (
        {"original_max_position_embeddings": 32, "rope_parameters": LONG | {"original_max_position_embeddings": 32}},
        {"longrope(factor=2.0, original=32, short=(1.5, 1.5, 1.5, 1.5), long=(3.0, 3.0, 3.0, 3.0))"},
    ),
    "glm4": (GROUPED, {"rotary(fraction=0.5, pairing='interleaved')"}),
    "deepseek_v3": (LATENT | {"head_dim": 4}, {INTERLEAVED}),
    "olmo": ({"clip_qkv": 0.8}, {"rotary"}),
    "olmo2": (GROUPED, {"rotary"}),
    "cohere": ({"use_qk_norm": True}, {"rotary(base=500000.0, pairing='interleaved')"}),
    "cohere2": (MIXED, {"none", INTERLEAVED}),
    "smollm3": ({"no_rope_layers": [1, 0], **GROUPED}, {"none", "rotary(base=2000000.0)"}),
    "bloom": (GPT, {"alibi"}),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}, {"alibi"}),
    "falcon": ({"alibi": False}, {"rotary"}),
    "t5": (T5, {"none", "t5", "t5(bidirectional=True)"}),
    "mt5": (T5, {"none", "t5", "t5(bidirectional=True)"}),
    "umt5": (T5, {"none", "t5", "t5(bidirectional=True)"}),
    "bert": ({}, {LEARNED}),
    "roberta": ({"pad_token_id": 1}, {"learned(max_length=62)"}),
    "albert": ({"embedding_size": 16}, {LEARNED}),
    "electra": ({"embedding_size": 16}, {LEARNED}),
    "deberta-v2": (DEBERTA | {"max_relative_positions": 20}, {"deberta(clip=20, buckets=8, reverse=False)"}),
    "modernbert": ({"local_attention": 6}, {"rotary", "rotary(base=160000.0)"}),
    "vit": (IMAGE, {"learned(max_length=17)"}),
    "bart": (BOTH, {LEARNED, "none"}),
    "opt": ({"ffn_dim": 24, "word_embed_proj_dim": 32}, {LEARNED}),
    "mixtral": (GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 1}, {"rotary(base=1000000.0)"}),
    "qwen3_moe": (GROUPED | EXPERTS, {"rotary"}),
    "whisper": (
        BOTH | {"max_source_positions": 20, "max_target_positions": 20, "num_mel_bins": 8},
        {"learned(max_length=20)", "none"},
    ),
    "swin": (
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4},
        {"swin(height=4, width=4)"},
    ),
}
OTHERWISE = {"falcon": "its output_attentions are scores", "swin": "its output_attentions are those of some layers"}
"""Families whose own weights cannot be compared, and why."""


def made(name: str) -> Any:
    """A tiny model of a family, all parameters random, in float64."""
    kind = hf.CONFIG_MAPPING[name]
    config = kind(**(FAMILIES[name][0] if name == "swin" else SMALL | FAMILIES[name][0]))
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "eager"  # grouped products take no float64
    return randomised(hf.AutoModel.from_config(config))


def inputs(model: Any, side: str) -> dict[str, Tensor]:
    if model.config.model_type == "whisper":
        sound = torch.randn(2, 8, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return {"input_features": sound, "decoder_input_ids": tokens(2, 7)}
    return random_inputs(model, N, side=side)


def own_weights(model: Any, given: dict[str, Tensor]) -> list[Tensor]:
    """The weights that the model's own eager attention returns, in the order of the layers."""
    model.set_attn_implementation("eager")
    with torch.no_grad(), in_float64():
        out = model(**given, output_attentions=True)
    if out.get("decoder_attentions") is None:
        return list(out.attentions)
    pairs = zip(out.decoder_attentions, out.cross_attentions, strict=True)
    return [*out.encoder_attentions, *(x for pair in pairs for x in pair)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name: str) -> None:
    model = made(name)
    for side in ("none", "left", "right") if model.main_input_name == "input_ids" else ("none",):
        given = inputs(model, side)
        with torch.no_grad(), in_float64():
            expected = model(**given)[0]
            with record(model) as trace:
                found = model(**given)[0]
        real = given.get("attention_mask", torch.ones(found.shape[:2])).bool()
        if real.shape == found.shape[:2]:
            assert far(found[real], expected[real]) < 1e-10
        positions = {layer.attention.position.spec() for layer in trace}
        assert positions == FAMILIES[name][1]
        for layer in trace:
            look(layer)
        if name not in OTHERWISE:
            weights(trace, own_weights(model, given))
            model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")


def weights(trace: Trace, own: list[Tensor]) -> None:
    """Recorded weights are the model's own, where a query is no padding."""
    assert len(trace) == len(own)
    for layer, theirs in zip(trace, own, strict=True):
        seen = layer.seen()
        alive = torch.ones(1, 1, 1, 1).bool() if seen is None else seen.any(-1, keepdim=True)
        alive = alive & (layer.call.q_pos >= 0)[:, None, :, None]
        assert float(((layer.weights() - theirs) * alive).abs().max()) < 1e-10


def look(layer: Layer) -> None:
    """What is recorded of a layer fits together: parts add up, Q, K and V are made by the matrices of heads."""
    attention = layer.attention
    parts = split(layer)
    assert far(parts.total, layer.scores()) < 1e-10
    turned = layer.q.shape == layer.call.q.shape and not torch.equal(layer.q, layer.call.q)
    assert turned == maps(attention.position)
    assert layer.k is not None
    clip = 0.8 if "olmo" in type(attention.__dict__["module"]).__module__.split(".") else None
    sources = {"q": layer.x if layer.latents is None else layer.latents.q}
    sources |= dict.fromkeys("kv", layer.source if layer.latents is None else layer.latents.kv)
    for which, heads in (("q", layer.q), ("k", layer.k), ("v", layer.call.v)):
        for number in range(layer.heads):
            group = number if which == "q" else number // layer.call.groups
            matrix = getattr(attention.head(number), which)
            made = sources[which] @ matrix
            bias = getattr(attention, which).bias
            if bias is not None:
                made = made + bias.view(-1, matrix.shape[1])[group]
            made = made if clip is None else made.clamp(-clip, clip)
            if not (attention.qk_norm and which in "qk"):
                assert far(made, heads[:, group, :, : matrix.shape[1]]) < 1e-9, which
    concat = layer.output().transpose(1, 2).flatten(2)
    by_head = sum(layer.output()[:, h] @ attention.head(h).o for h in range(layer.heads))
    whole = linear(concat, attention.o.weight)
    assert far(torch.as_tensor(by_head), whole) < 1e-10


def test_the_matrices_of_a_head_are_views() -> None:
    for name in ("gpt2", "llama", "bloom"):
        model = made(name)
        trace = recorded(model, tokens(1, 5))
        head = trace[1].attention.head(2)
        before = {key: x.clone() for key, x in model.state_dict().items()}
        with torch.no_grad():
            head.q.add_(1.0)
        changed = [key for key, x in model.state_dict().items() if not torch.equal(x, before[key])]
        assert len(changed) == 1
        again = recorded(model, tokens(1, 5))
        assert not torch.equal(again[1].q[:, 2], trace[1].q[:, 2])
        assert torch.equal(again[1].q[:, 1], trace[1].q[:, 1])


TABLES = {
    "gpt2": ("wpe", 0),
    "bert": ("embeddings.position_embeddings", 0),
    "roberta": ("embeddings.position_embeddings", 2),
    "opt": ("decoder.embed_positions", 2),
}


@pytest.mark.parametrize("name", TABLES)
def test_position_vectors_are_those_of_the_table(name: str) -> None:
    model, (table, first) = made(name), TABLES[name]
    trace = recorded(model, tokens(1, N))
    for layer in trace:
        assert layer.stream is not None
        expected = model.get_submodule(table).weight[first : first + N]
        if layer.stream.norm is None:  # the part that is left of them behind the norm of the embedding
            assert far(layer.stream.tokens + layer.stream.position, layer.x) < 1e-12 or not layer.stream.first
        else:
            assert far(layer.stream.position[0], expected) < 1e-12
    assert trace[0].stream is not None
    first_norm = trace[0].stream.norm
    before = trace[0].stream.tokens + trace[0].stream.position
    assert far(before if first_norm is None else first_norm(before), trace[0].x) < 1e-12
    assert [layer.stream.first for layer in trace if layer.stream is not None] == [True, False]


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_verify_takes_experts_whose_grouped_products_know_no_float64(name: str) -> None:
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    torch.manual_seed(0)
    config = hf.AutoConfig.for_model(name, **sizes, num_local_experts=4, num_experts=4)
    model = hf.AutoModelForCausalLM.from_config(config)
    model.set_experts_implementation("grouped_mm")
    assert headway.hf.verify(model, lengths=(9,)).passed
    assert model.config._experts_implementation == "grouped_mm"


def test_a_model_whose_own_weights_leave_out_its_sink() -> None:
    """GraniteSWA scales the output instead: its weights add to 1, ours with the sink do not."""
    sizes = {"vocab_size": 96, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    more = {"num_key_value_heads": 1, "intermediate_size": 24, "sliding_window": 4}
    model = hf.GraniteSWAModel(hf.GraniteSWAConfig(**sizes, **more))
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.sinks.normal_()
    found = headway.hf.verify(model, lengths=(9,))
    assert found.passed
    assert (found.weights.layers, found.weights.why) == (2, "")


def test_a_norm_of_a_kind_of_its_own_is_not_divided() -> None:
    """MobileBERT's NoNorm has no divisor: what position contributes behind it is not told."""
    sizes = {"vocab_size": 96, "hidden_size": 24, "embedding_size": 24, "num_hidden_layers": 1}
    more = {"num_attention_heads": 3, "intermediate_size": 24, "intra_bottleneck_size": 24, "true_hidden_size": 24}
    model = hf.MobileBertModel(hf.MobileBertConfig(**sizes, **more, use_bottleneck=False))
    assert headway.hf.verify(model, lengths=(9,)).passed
    trace = recorded(model, input_ids=torch.arange(9)[None])
    assert trace[0].stream is None


def test_experts_are_routed_as_by_the_models_own_code() -> None:
    """NLLB-MoE's router reads the mask beside the attention."""
    sizes = {"vocab_size": 96, "d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 3, "encoder_ffn_dim": 24}
    more = {"decoder_layers": 1, "decoder_attention_heads": 3, "decoder_ffn_dim": 24, "num_experts": 4}
    model = hf.NllbMoeModel(hf.NllbMoeConfig(**sizes, **more, encoder_sparse_step=1, decoder_sparse_step=1))
    encoder = model.get_encoder().double().eval()
    ids, seen = torch.randint(4, 96, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    seen[0, 5:] = 0
    own = encoder(input_ids=ids, attention_mask=seen)[0]
    done = headway.hf.accelerate(encoder, quiet=True)
    close(encoder(input_ids=ids, attention_mask=seen)[0][seen.bool()], own[seen.bool()])
    done.undo()


def test_verify_compares_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama")
    model.config.architectures = ["LlamaModel"]
    found = headway.hf.verify(model, lengths=(9,))
    assert found.weights.layers == 2
    assert found.weights.error is not None
    assert found.weights.error < 1e-10
    assert found.passed
    other = headway.hf.verify(made("falcon"), lengths=(9,))
    assert (
        str(other.weights)
        == "attention weights were not compared: asked for weights, its own code gives another output"
    )
    own = Layer.weights
    monkeypatch.setattr(Layer, "weights", lambda layer, *rows: own(layer, *rows) + 1e-3)
    assert not headway.hf.verify(model, lengths=(9,)).passed


def test_norms_are_found() -> None:
    layer = recorded(made("qwen3"), tokens(1, 5))[0]
    attention: Any = layer.attention
    assert attention.qk_norm
    made_q = linear(layer.x, attention.q.weight).unflatten(-1, (4, -1))
    assert far(attention.norms["q"](made_q).transpose(1, 2), layer.q) < 1e-10


def test_a_model_is_left_as_it_was() -> None:
    model = made("llama")
    given = tokens(2, N)
    expected, hooks = model(given)[0], sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    kinds = [type(module) for module in model.modules()]
    recorded(model, given)
    assert torch.equal(model(given)[0], expected)
    assert [type(module) for module in model.modules()] == kinds
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks


def test_an_accelerated_model_stays_so() -> None:
    model = made("llama")
    done = headway.hf.accelerate(model, quiet=True)
    assert len(recorded(model, tokens(1, N))) == 2
    assert model.config._attn_implementation == "headway"
    done.undo()


def test_a_cache_and_one_token() -> None:
    model = made("bloom")
    ids = tokens(1, 7)
    whole = recorded(model, ids)
    with torch.no_grad(), record(model) as trace:
        cache = model(ids[:, :6], use_cache=True).past_key_values
        model(ids[:, 6:], cache=cache)
    assert [layer.queries for layer in trace] == [6, 6, 1, 1]
    assert far(trace[3].weights()[..., 0, :], whole[1].weights()[..., 6, :]) < 1e-10


def test_more_tokens_than_a_window_and_the_original_length() -> None:
    model = made("gemma3_text")
    trace = recorded(model, tokens(1, 80))
    assert int(trace[0].seen(slice(70, 71)).sum()) == 5  # type: ignore[union-attr]
    assert far(split(trace[1]).total, trace[1].scores()) < 1e-10


def test_what_a_text_shows_of_position_in_a_tiny_encoder() -> None:
    layer = recorded(made("bert"), tokens(1, N), padding(1, N, "right"))[0]
    parts = split(layer)
    assert parts.exact
    table: Position = layer.attention.position
    assert set(parts.parts) == {f"{a}·{b}" for a in ("content", "position") for b in ("content", "position")}
    assert table.weight.shape == (64, 32)


def test_refusals() -> None:
    config = hf.BigBirdConfig(**SMALL, attention_type="block_sparse", block_size=4)
    with refusal("its attention is block-sparse", whole=False):
        recorded(hf.BigBirdModel(config), tokens(1, 64))
    model = made("bloom")
    with refusal("leave output_attentions out", whole=False):
        recorded(model, tokens(1, N), output_attentions=True)
    assert model.config._attn_implementation in ("eager", "sdpa")


@pytest.mark.parametrize("shared", [True, False])
def test_both_versions_of_deberta_are_one_method(shared: bool) -> None:
    sizes = SMALL | DEBERTA | {"max_relative_positions": 11}
    first = {name: value for name, value in sizes.items() if name != "position_buckets"}
    for config in (hf.DebertaConfig(**first), hf.DebertaV2Config(**sizes | {"share_att_key": shared})):
        model: Any = randomised(hf.AutoModel.from_config(config))
        layer = recorded(model, tokens(1, 2 * N))[1]
        position = layer.attention.position
        assert position.method_name() == "deberta"
        assert far(position.rotate(layer.q, layer.k, layer.call.q_pos, layer.call.k_pos)[0], layer.call.q) < 1e-7
        made = replace(layer, call=replace(layer.call, terms=tuple(terms_of(layer))))
        assert far(made.scores(), layer.scores()) < 1e-6


def terms_of(layer: Layer) -> Any:
    """The terms of a recorded layer's scores, by its position method."""
    call = layer.call
    assert layer.k is not None
    q, k = layer.attention.position.rotate(layer.q, layer.k, call.q_pos, call.k_pos)
    return layer.attention.position.prepare(q, k, call.q_pos, call.k_pos, call.scale)[2]
