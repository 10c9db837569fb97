"""What two processes do with other people's models whose tokens are spread over them; :func:`proof` is all of it."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
import transformers as hf
from common import refusal
from models import far, randomised, tokens
from torch import Tensor
from torch.nn.functional import cross_entropy

import headway.hf
from headway.hf.spread import CAUSAL_HEADS, PAIRS, TYPES
from headway.parallel import Ranks, shard, shard_tokens, sum_gradients, unshard
from headway.parallel.context import WAYS

SMALL: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
SMALL |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sliding_window": 5, "local_attention": 6}
SMALL |= {"num_local_experts": 2, "num_experts_per_tok": 1, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
SMALL |= {"attn_logit_softcapping": 2.0, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 32}
SMALL |= {"d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 4, "n_heads": 4, "n_layers": 2}
SMALL |= {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4, "attention_dropout": 0.0}
SMALL |= {"max_relative_positions": 9, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL |= {"dropout_rate": 0.0, "hidden_dropout": 0.0, "num_experts": 2, "n_routed_experts": 2}
SMALL |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_layers": 2, "decoder_layers": 2}
SMALL |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "dropout": 0.0, "activation_dropout": 0.0}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
MIXED = ("cohere2", "gemma3_text", "gpt_oss", "qwen2", "qwen3", "smollm3", "modernbert")
N = 13


def made(name: str, **more: Any) -> Any:
    """A tiny model of a family, in float64; of "t5 encoder" T5's encoder alone, of "bart decoder" BART's decoder."""
    name, _, alone = name.partition(" ")
    kind = hf.CONFIG_MAPPING[name]
    options = SMALL | (LAYERS if name in MIXED else {}) | ({"use_sliding_window": True} if "qwen" in name else {})
    if name == "falcon":
        options.pop("head_dim")  # which it computes
    config = kind(**options | more)
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "eager"  # grouped products take no float64
    if alone == "encoder":
        return randomised(hf.AutoModelForTextEncoding.from_config(config))
    if alone == "decoder":
        return randomised(hf.AutoModelForCausalLM.from_config(config))
    if name in PAIRS:
        return randomised(hf.AutoModelForSeq2SeqLM.from_config(config))
    auto = hf.AutoModelForMaskedLM if masked(config) else hf.AutoModelForCausalLM
    return randomised(auto.from_config(config))


def masked(config: Any) -> bool:
    """Whether it is a family of encoders."""
    return type(config) in hf.AutoModelForMaskedLM._model_mapping


FIVE = torch.arange(N) >= 5


def followers(ids: Tensor) -> Tensor:
    """What each token should predict; the last one nothing."""
    return torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)


def two_texts(model: Any) -> dict[str, Tensor]:
    """Two texts for an encoder, and two others, of another length, for its decoder."""
    ids = tokens(2, N + 7)
    return {"input_ids": ids[:, :N], "decoder_input_ids": ids[:, 4:]} if is_pair(model) else {"input_ids": ids[:, :N]}


def is_pair(model: Any) -> bool:
    """Whether it has an encoder and a decoder."""
    return hasattr(model.base_model, "encoder") and hasattr(model.base_model, "decoder")


def shares(texts: dict[str, Tensor]) -> dict[str, Tensor]:
    """What this process gives to the model."""
    given = {}
    for name, ids in texts.items():
        given[name], given[name.replace("input", "position")] = shard_tokens(ids)
    return given


def measured(model: Any, how: str | None, packed: bool) -> dict[str, Tensor]:
    """What a model makes of two texts, and the gradients of a loss of every token's follower."""
    texts = two_texts(model)
    ids = texts.get("decoder_input_ids", texts["input_ids"])  # of which it predicts the followers
    targets, length = followers(ids), ids.shape[1]
    pos = torch.arange(N).expand(2, -1)
    pos = torch.where(FIVE, pos - 5, pos)
    model.zero_grad()
    if how is None:
        # transformers looks for documents where there is no cache
        out = model(**texts, **{"use_cache": False, "position_ids": pos} if packed else {})[0]
    else:
        given, targets = shares(texts), shard(targets, fill=-100)
        if packed:
            given["position_ids"] = shard(pos, fill=-1)
            given["documents"] = shard(FIVE.long().expand(2, -1), fill=-1)
        out = model(**given)[0]
    targets = targets.clamp(max=out.shape[2] - 1)  # where it has no head
    (cross_entropy(out.flatten(0, 1), targets.flatten(), reduction="sum") / (2 * length - 2)).backward()
    if how is not None:
        sum_gradients(model)
        out = unshard(out, length=length)
    return {"out": out.detach()} | {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def exact(*names: str) -> None:
    """Outputs and all gradients are those of the model alone, in every way, and its own again after undo."""
    for name in names:
        packed = name == "mistral"
        model = made(name)
        expected = measured(model, None, packed)
        for how in WAYS:
            done = headway.hf.accelerate(model, mesh=dist.group.WORLD, how=how, quiet=True)
            if packed:  # layers are computed again, with the positions of their call
                model.train().activation_checkpointing_enable()
            found = measured(model, how, packed)
            if packed:
                model.eval().activation_checkpointing_disable()
            done.undo()
            assert found.keys() == expected.keys()
            largest = max(float(x.abs().max()) for x in expected.values())
            most = 1e-5 if name in ROUNDED else 1e-9
            for part, x in expected.items():  # the gradient of BERT's bias of keys is zero but for rounding
                off = float((found[part] - x).abs().max()) / max(float(x.abs().max()), 1e-3 * largest)
                assert off < most, (name, how, packed, part, off)
        assert torch.equal(measured(model, None, packed)["out"], expected["out"])


ROUNDED = ("bloom", "falcon", "gemma2", "mpt", "vaultgemma")
"""Families whose own code rounds weights to float32."""


def families(*names: str) -> None:
    """The output of each family, and its own loss, which is in float32."""
    for name in names:
        model = made(name)
        texts = two_texts(model)
        causal = type(model).__name__.endswith(CAUSAL_HEADS) and not name.endswith(" decoder")
        targets = followers(texts["input_ids"])
        own = shard(targets, fill=-100)
        given = {"labels": own, "shift_labels": own, "num_items_in_batch": 2 * N - 2} if causal else {}
        with torch.no_grad():
            expected = model(**texts)[0]
            headway.hf.accelerate(model, mesh=dist.group.WORLD, quiet=True)
            found = model(**shares(texts), **given)
        off = far(unshard(found[1 if causal else 0], length=expected.shape[1]), expected)
        assert off < (1e-5 if name in ROUNDED else 1e-9), (name, off)
        if causal:
            loss = cross_entropy(expected.flatten(0, 1), targets.flatten())
            assert abs(float(Ranks.of(None).summed(found.loss) - loss)) < 1e-5, name


def packed_pairs(*names: str) -> None:
    """Several texts for an encoder and a decoder in one row are what each is by itself."""
    for name in names:
        model, ids = made(name), tokens(1, N + 7)
        rows = {"input_ids": ids[:, :N], "decoder_input_ids": ids[:, 4:]}
        cuts = {"input_ids": [5, 8], "decoder_input_ids": [9, 7]}
        parts = {key: rows[key].split(sizes, 1) for key, sizes in cuts.items()}
        given: dict[str, Tensor] = {}
        for key, sizes in cuts.items():
            pos = torch.cat([torch.arange(size) for size in sizes])[None]
            given[key], given[key.replace("input", "position")] = shard_tokens(rows[key], pos=pos)
            documents = torch.arange(2).repeat_interleave(torch.tensor(sizes))[None]
            given[key.replace("input_ids", "documents")] = shard(documents, fill=-1)
        with torch.no_grad():
            expected = [model(**{key: parts[key][i] for key in cuts})[0] for i in range(2)]
            headway.hf.accelerate(model, mesh=dist.group.WORLD, quiet=True)
            found = unshard(model(**given)[0], length=16)
        assert far(found, torch.cat(expected, 1)) < 1e-9, name
        with refusal("expected documents and decoder_documents,", whole=False):
            model(**{key: x for key, x in given.items() if key != "documents"})
        with refusal("expected decoder_input_ids, this process's tokens", whole=False):
            model(**{key: x for key, x in given.items() if key != "decoder_input_ids"})
        with refusal("expected no encoder_outputs", whole=False):
            model(**given, encoder_outputs=(given["input_ids"],))


def every_family() -> None:
    """All of them, in one start, with the gradients of those whose positions are learned or rotary."""
    exact("llama", "gpt2", "bert", "t5 encoder", "bart")
    decoders = [f"{name} decoder" for name in PAIRS if "t5" not in name]
    families(*TYPES, "t5 encoder", "mt5 encoder", "umt5 encoder", *decoders)


def padded(*names: str) -> None:
    """Padding at the start of a text."""
    for name in names:
        ids, real, model = tokens(2, N), torch.ones(2, N, dtype=torch.long), made(name)
        real[1, :4] = 0
        ids = ids.masked_fill(real == 0, model.config.pad_token_id)
        pos = (real.cumsum(1) - 1).masked_fill(real == 0, -1)
        alone = {"position_ids": pos.clamp(min=0)} if name == "llama" else {}
        texts = two_texts(model) | {"input_ids": ids}
        with torch.no_grad():
            expected = model(**texts, attention_mask=real, **alone).logits
            headway.hf.accelerate(model, mesh=dist.group.WORLD, quiet=True)
            given = shares(texts)
            given["position_ids"] = shard(pos, fill=-1)
            found = unshard(model(**given).logits, length=expected.shape[1])
        if not is_pair(model):  # otherwise each token of the decoder sees the tokens of the encoder, padding aside
            found, expected = found[real > 0], expected[real > 0]
        assert far(found, expected) < (1e-5 if name in ROUNDED else 1e-9), name


def refused() -> None:
    """Models that count their own tokens, and calls that would be wrong in silence, are refused in a sentence."""

    def spread(model: Any, **more: Any) -> headway.hf.Accelerated:
        return headway.hf.accelerate(model, mesh=dist.group.WORLD, quiet=True, **more)

    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    models = {
        "EsmModel (esm): this is tested only for afmoe, albert": hf.EsmModel(
            hf.EsmConfig(**SMALL), add_pooling_layer=False
        ),
        "it has layers of convolutions": hf.DebertaV2Model(hf.DebertaV2Config(**SMALL, conv_kernel_size=3)),
        "its pooler reads the first token": hf.BertModel(hf.BertConfig(**SMALL)),
        "its head reads some tokens": hf.LlamaForSequenceClassification(hf.LlamaConfig(**SMALL)),
        "(dynamic) goes by the length": hf.LlamaModel(hf.LlamaConfig(**SMALL, rope_parameters=rope)),
        "drops layers at random (LayerDrop), on each process others; set config.decoder_layerdrop = 0": hf.BartModel(
            hf.BartConfig(**SMALL, decoder_layerdrop=0.1)
        ),
        "balances experts": hf.MixtralForCausalLM(hf.MixtralConfig(**SMALL, output_router_logits=True)),
    }
    for text, model in models.items():
        with refusal(text, whole=False):
            spread(model)
        assert not model.config._attn_implementation.startswith("headway")
    model = made("llama")
    with refusal("expected how as one of 'all-gather', 'ulysses', 'ring', got 'tree'"):
        spread(model, how="tree")
    done, (ids, pos) = spread(model), shard_tokens(tokens(2, N))
    assert "its tokens spread over 2 processes by all-gather" in str(done)
    with refusal("accelerated already", whole=False):
        headway.hf.accelerate(model, quiet=True)
    held = hf.DynamicCache(config=model.config)
    calls: dict[str, Any] = {
        "expected position_ids, its own tokens' positions": lambda: model(ids),
        "expected position_ids,": lambda: model(ids, position_ids=pos[:, 1:]),
        "expected no cache,": lambda: model(ids, position_ids=pos, cache=held),
        "expected no past_key_values,": lambda: model(ids, position_ids=pos, past_key_values=held),
        "expected no use_cache,": lambda: model(ids, position_ids=pos, use_cache=True),
        "got some: give padding the position −1": lambda: model(ids, torch.ones_like(ids), pos),
        "got some: decode in one process": lambda: model.generate(ids, max_new_tokens=2),
        "expected no output_attentions,": lambda: model(ids, position_ids=pos, output_attentions=True),
        "expected no logits_to_keep,": lambda: model(ids, position_ids=pos, logits_to_keep=1),
        "expected no labels,": lambda: model(ids, position_ids=pos, labels=ids),
        "got one twice: of a text packed": lambda: model(ids, position_ids=pos % 5),
        "got one of a part of it": lambda: model.model(ids, position_ids=pos),
    }
    for text, call in calls.items():
        with refusal(text, whole=False):
            call()
    for name, room in (("roberta", 63), ("gpt2", 64), ("opt", 64)):
        short = made(name)
        spread(short)
        short(ids, position_ids=pos.where(pos < 0, pos + (room - N)))
        with refusal(f"expected positions below {room},", whole=False):
            short(ids, position_ids=pos.where(pos < 0, pos + (room - N + 1)))
    alone = made("bart decoder")  # its own loss is the mean over the tokens it is given
    spread(alone)
    with refusal("expected no labels,", whole=False):
        alone(ids, position_ids=pos, labels=ids, shift_labels=ids, num_items_in_batch=24)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(ids, position_ids=pos).logits, model(ids, position_ids=pos).logits)
    done.undo()
    assert model(ids, attention_mask=torch.ones_like(ids)).logits.shape == (2, ids.shape[1], 96)


def proof() -> None:
    """All of it, in one start."""
    exact("t5", "bloom", "mistral", "deberta-v2")
    families("llama", "roberta", "gpt2", "modernbert", "mpt", "falcon", "bart", "bart decoder", "t5 encoder")
    packed_pairs("t5", "bart")
    padded("llama", "falcon", "roberta", "t5")
    refused()
