"""Whole models whose layers differ: logits, and the gradient of every parameter, in float64.

A Transformer with a ``pattern`` and the weights of a model: Gemma 3 (windows and a rotary base of their own in five of
six layers, sandwich norms, QK-norm), SmolLM3 (every fourth layer without position), Cohere 2 (windows and rotary in
local layers, no position in global ones, attention beside the MLP), ModernBERT (an encoder with windows to both sides);
and one whose layers are alike, DeepSeek-V3 with latent attention, here with an MLP in place of each mixture of experts.
Texts are longer than the windows, padded on the left, or packed. MLPs are gated by silu, the one gate Transformer has.

Held against: transformers. Its models compute norms, angles and softmax in float32 in every dtype; here, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from common import randomise, same_with_gradients
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    ModernBertConfig,
    ModernBertModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from headway import Documents, Transformer
from headway.masks import Mask
from headway.positions import layers_from_hf

VOCAB, DIM, N = 11, 48, 13
WINDOW = 4
"""Tokens that a local layer sees, the query's own among them."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "pad_token_id": None,
    "hidden_size": DIM,
    "intermediate_size": 20,
    "num_attention_heads": 6,
    "attn_implementation": "eager",
}
DECODER = {**SIZES, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None, "use_cache": False}
OURS: dict[str, Any] = {"vocab": VOCAB, "dim": DIM, "heads": 6, "hidden": 20, "activation": "swiglu", "tie": False}

Weights = dict[str, Tensor]


class Pair(NamedTuple):
    """Their model, ours, and our weights, which theirs are mapped to: gradients are compared by theirs."""

    theirs: nn.Module
    ours: Transformer
    weights: Callable[[Weights], Weights]


class InFloat64(TorchFunctionMode):
    """Computes in float64 whatever asks for float32."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Change each dtype that is asked for."""

        def wide(x: Any) -> Any:
            return torch.float64 if x is torch.float32 else x

        function = torch.Tensor.double if function is torch.Tensor.float else function
        return function(*map(wide, args), **{name: wide(x) for name, x in (kwargs or {}).items()})


def made(kind: Any, config: Any) -> nn.Module:
    """Their model with random weights, in float64 throughout."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with InFloat64():
            model: nn.Module = kind(config).eval()
    finally:
        torch.set_default_dtype(before)
    randomise(model)
    return model


def projections(theirs: Weights, at: str, to: str) -> Weights:
    """Of attention and of the MLP of one layer, by our names."""
    return {f"{to}.attention.part.{x}.weight": theirs[f"{at}.self_attn.{x}_proj.weight"] for x in "qkvo"} | {
        f"{to}.mlp.part.{x}.weight": theirs[f"{at}.mlp.{x}_proj.weight"] for x in ("up", "gate", "down")
    }


def gemma3() -> Pair:
    """Its norms are stored as their difference from 1, and its embedding is scaled, as ours is."""
    config = Gemma3TextConfig(
        **DECODER,
        num_hidden_layers=6,
        head_dim=10,
        sliding_window=WINDOW,
        query_pre_attn_scalar=7,
        hidden_activation="silu",
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
        },
    )
    local, glob = {"window": WINDOW - 1, "position": "rotary(base=100)"}, {"position": "interpolated(factor=8)"}
    own = {"head_dim": 10, "scale": 7**-0.5, "qk_norm": True, "sandwich_norm": True, "pattern": 5 * [local] + [glob]}

    def weights(theirs: Weights) -> Weights:
        found = {"embedding.weight": theirs["model.embed_tokens.weight"], "head.weight": theirs["lm_head.weight"]}
        norms = {"stack.norm": "model.norm"}
        for n in range(6):
            at, to = f"model.layers.{n}", f"stack.blocks.{n}"
            found |= projections(theirs, at, to)
            norms |= {f"{to}.attention.part.{x}_norm": f"{at}.self_attn.{x}_norm" for x in "qk"}
            norms |= {
                f"{to}.attention.norm": f"{at}.input_layernorm",
                f"{to}.mlp.norm": f"{at}.pre_feedforward_layernorm",
            }
            norms |= {f"{to}.attention.after": f"{at}.post_attention_layernorm"}
            norms |= {f"{to}.mlp.after": f"{at}.post_feedforward_layernorm"}
        return found | {f"{to}.weight": 1 + theirs[f"{at}.weight"] for to, at in norms.items()}

    return Pair(made(Gemma3ForCausalLM, config), Transformer(**OURS, layers=6, kv_heads=2, **own), weights)


def smollm3() -> Pair:
    config = SmolLM3Config(
        **DECODER,
        num_hidden_layers=4,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    pattern = 3 * [{"position": "rotary(base=100)"}] + [{"position": "none"}]

    def weights(theirs: Weights) -> Weights:
        found = {"head.weight": theirs["lm_head.weight"], "stack.norm.weight": theirs["model.norm.weight"]}
        found["embedding.weight"] = theirs["model.embed_tokens.weight"] / DIM**0.5  # which is not scaled
        for n in range(4):
            at, to = f"model.layers.{n}", f"stack.blocks.{n}"
            found |= projections(theirs, at, to)
            found[f"{to}.attention.norm.weight"] = theirs[f"{at}.input_layernorm.weight"]
            found[f"{to}.mlp.norm.weight"] = theirs[f"{at}.post_attention_layernorm.weight"]
        return found

    return Pair(made(SmolLM3ForCausalLM, config), Transformer(**OURS, layers=4, kv_heads=2, pattern=pattern), weights)


def cohere2() -> Pair:
    """Its layer norms have no bias, and its logits are scaled."""
    config = Cohere2Config(
        **DECODER,
        num_hidden_layers=4,
        sliding_window=WINDOW,
        layer_norm_eps=1e-6,
        logit_scale=0.25,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    local = {"window": WINDOW - 1, "position": "rotary(base=100, pairing='interleaved')"}
    own = {"norm": "layer", "parallel": True, "pattern": 3 * [local] + [{"position": "none"}]}

    def weights(theirs: Weights) -> Weights:
        found = {"head.weight": theirs["lm_head.weight"] * 0.25, "stack.norm.weight": theirs["model.norm.weight"]}
        found["embedding.weight"] = theirs["model.embed_tokens.weight"] / DIM**0.5
        found["stack.norm.bias"] = torch.zeros(DIM)
        for n in range(4):
            at, to = f"model.layers.{n}", f"stack.blocks.{n}"
            found |= projections(theirs, at, to)
            found[f"{to}.attention.norm.weight"] = theirs[f"{at}.input_layernorm.weight"]
            found[f"{to}.attention.norm.bias"] = torch.zeros(DIM)
        return found

    return Pair(made(Cohere2ForCausalLM, config), Transformer(**OURS, layers=4, kv_heads=2, **own), weights)


def modernbert() -> Pair:
    """Its embedding is normed, as a table of normed rows is; its first layer has no norm, so that of ours is taken out;
    and it has no logits, so what they would be made from is compared.
    """
    config = ModernBertConfig(
        **{**SIZES, "vocab_size": DIM},
        num_hidden_layers=4,
        local_attention=6,
        norm_eps=1e-6,
        hidden_activation="silu",
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    pattern = [{"position": "rotary"}] + 2 * [{"window": 3, "position": "rotary(base=100)"}]
    ours = Transformer(**{**OURS, "vocab": DIM}, layers=4, kind="encoder", norm="layer", pattern=pattern)
    first = ours.stack.blocks[0].attention
    first.norm = nn.Identity()

    def weights(theirs: Weights) -> Weights:
        norm, zeros = theirs["embeddings.norm.weight"], torch.zeros(DIM)
        table = nn.functional.layer_norm(theirs["embeddings.tok_embeddings.weight"], (DIM,), norm, eps=1e-6)
        found = {"embedding.weight": table / DIM**0.5, "head.weight": torch.eye(DIM), "stack.norm.bias": zeros}
        found["stack.norm.weight"] = theirs["final_norm.weight"]
        for n in range(4):
            at, to = f"layers.{n}", f"stack.blocks.{n}"
            parts = zip("qkv", theirs[f"{at}.attn.Wqkv.weight"].chunk(3), strict=True)
            found |= {f"{to}.attention.part.{x}.weight": part for x, part in parts}
            found[f"{to}.attention.part.o.weight"] = theirs[f"{at}.attn.Wo.weight"]
            gate, up = theirs[f"{at}.mlp.Wi.weight"].chunk(2)
            found |= {f"{to}.mlp.part.gate.weight": gate, f"{to}.mlp.part.up.weight": up}
            found[f"{to}.mlp.part.down.weight"] = theirs[f"{at}.mlp.Wo.weight"]
            found |= {f"{to}.mlp.norm.weight": theirs[f"{at}.mlp_norm.weight"], f"{to}.mlp.norm.bias": zeros}
            if n > 0:
                found[f"{to}.attention.norm.weight"] = theirs[f"{at}.attn_norm.weight"]
                found[f"{to}.attention.norm.bias"] = zeros
        return found

    return Pair(made(ModernBertModel, config), ours, weights)


def deepseek_v3() -> Pair:
    """Keys and values of all heads come from one matrix; all but the first layers of the model have experts."""
    config = DeepseekV3Config(
        **{**DECODER, "num_key_value_heads": 6},
        num_hidden_layers=2,
        first_k_dense_replace=2,
        tie_word_embeddings=True,
        q_lora_rank=14,
        kv_lora_rank=10,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=5,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    sizes = {"latent_dim": 10, "query_latent_dim": 14, "head_dim": 6, "position_dim": 4, "value_dim": 5}
    ours = Transformer(**OURS, layers=2, position="rotary(base=100, pairing='interleaved')", **sizes)
    parts = {"q_down": "q_a_proj", "q_norm": "q_a_layernorm", "q": "q_b_proj", "o": "o_proj"}
    parts |= {"kv_down": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm"}

    def weights(theirs: Weights) -> Weights:
        found = {"head.weight": theirs["lm_head.weight"], "stack.norm.weight": theirs["model.norm.weight"]}
        found["embedding.weight"] = theirs["model.embed_tokens.weight"] / DIM**0.5
        for n in range(2):
            at, to = f"model.layers.{n}", f"stack.blocks.{n}"
            mlp = {f"{to}.mlp.part.{x}.weight": theirs[f"{at}.mlp.{x}_proj.weight"] for x in ("up", "gate", "down")}
            own = {f"{to}.attention.part.{x}.weight": theirs[f"{at}.self_attn.{y}.weight"] for x, y in parts.items()}
            k, v = theirs[f"{at}.self_attn.kv_b_proj.weight"].view(6, 11, 10).split((6, 5), 1)
            found |= {f"{to}.attention.part.{x}.weight": up.flatten(0, 1) for x, up in (("k", k), ("v", v))} | mlp | own
            found[f"{to}.attention.norm.weight"] = theirs[f"{at}.input_layernorm.weight"]
            found[f"{to}.mlp.norm.weight"] = theirs[f"{at}.post_attention_layernorm.weight"]
        return found

    return Pair(made(DeepseekV3ForCausalLM, config), ours, weights)


FAMILIES = {one.__name__: one for one in (gemma3, smollm3, cohere2, modernbert, deepseek_v3)}
PLAIN = torch.arange(N).expand(2, -1)
LEFT = (torch.arange(N) - torch.tensor([[5], [0]])).clamp(min=-1)
LENGTHS = (3, 8, 2)
PACKED = torch.cat([torch.arange(n) for n in LENGTHS])[None]
IDS = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))[None]


def check(family: str, pos: Tensor, given: dict[str, Any], mask: Mask | None = None) -> None:
    """Logits of the tokens at these positions, those of padding left out, and gradients by all their parameters."""
    theirs, ours, weights = FAMILIES[family]()
    tokens = torch.randint(VOCAB, pos.shape)
    leaves = dict(theirs.named_parameters())
    tied = {"lm_head.weight": leaves["model.embed_tokens.weight"]} if "model.embed_tokens.weight" in leaves else {}
    with InFloat64():
        out = theirs(input_ids=tokens, position_ids=pos.clamp(min=0), **given)
    expected = out.logits if hasattr(out, "logits") else out.last_hidden_state
    own = {name: weight.double() for name, weight in weights(leaves | tied).items()}
    assert own.keys() == dict(ours.named_parameters()).keys()
    got = functional_call(ours.eval(), own, (tokens,), {"pos": pos, "mask": mask}, tie_weights=False)
    real = pos >= 0
    same_with_gradients(got[real], expected[real], list(leaves.values()))


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_longer_than_windows(family: str) -> None:
    check(family, PLAIN, {})


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding(family: str) -> None:
    check(family, LEFT, {"attention_mask": (LEFT >= 0).long()})


@pytest.mark.parametrize("family", ["gemma3", "smollm3", "cohere2", "deepseek_v3"])
def test_packed_documents(family: str) -> None:
    """Documents begin where positions do, which ModernBERT does not look at."""
    check(family, PACKED, {}, Documents(IDS))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "deepseek_v3"])
def test_the_pattern_is_what_its_configuration_says(family: str) -> None:
    theirs, ours, _ = FAMILIES[family]()
    layers = layers_from_hf(theirs.config)
    found = [(layer.position.spec(), layer.mask) for layer in ours.stack.attentions()]
    assert found == [(layer.position.spec(), layer.mask) for layer in layers]
