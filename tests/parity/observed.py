"""What attention in transformers' models is given, layer by layer: seen through their public forward pass.

A model is run twice with its attention function replaced by one that keeps queries, keys and mask and returns zeros,
so that nothing a layer does reaches the next: at positions 0, 1, 2 … and with every position 0. What position did to
queries and keys is the difference.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.models.auto.modeling_auto import MODEL_MAPPING

TOKENS = 40
SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd"), 64),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads"), 4),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "intermediate_size_mlp", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_shared_experts", "bos_token_id", "num_kv_shared_layers"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "kv_channels"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_head", "head_dim"), 16),
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "vocab_size_per_layer_input": 99,
    "hidden_size_per_layer_input": 8,
    "sliding_window": 7,
    "local_attention": 14,
    "attention_chunk_size": 7,
    "use_sliding_window": True,
    "max_window_layers": 4,
    "max_position_embeddings": 333,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "num_kv_shared_layers": 0,
    "mamba_n_heads": 8,
    "first_k_dense_replace": 0,
}
"""Small values, odd where position is concerned, by the names families give them."""
ALWAYS = ("sliding_window", "head_dim")
"""Keys that are set where a family has them, whatever their default."""


@dataclass
class Seen:
    """One call of attention.

    Args:
        q: queries, (1, H, N, D).
        k: keys.
        mask: true where a query may see a key, (N, N); None is everybody.
        scale: what q·k is multiplied with.
        softcap: what bounds scores.
    """

    q: Tensor
    k: Tensor
    mask: Tensor | None
    scale: float | None
    softcap: float | None


_calls: list[Seen] = []


def _record(
    module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Any, scaling: Any = None, **rest: Any
) -> tuple[Tensor, None]:
    mask = None
    if attention_mask is not None:
        mask = attention_mask[0, 0] if attention_mask.dtype == torch.bool else attention_mask[0, 0] > -1
        mask = None if mask.all() else mask
    _calls.append(Seen(q.double(), k.double(), mask, scaling, rest.get("softcap")))
    return q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[-1]), None


AttentionInterface.register("recorded", _record)
AttentionMaskInterface.register("recorded", eager_mask)


def small(kind: type[PreTrainedConfig], **given: Any) -> PreTrainedConfig:
    """A configuration with small sizes."""
    known = kind().to_dict()
    values = {
        key: value
        for key, value in SMALL.items()
        if key in known and (key in ALWAYS or known[key] is not None) and not isinstance(known[key], dict | list)
    }
    return kind(**{**values, **given})


def model_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The model of a configuration; of a part of a model, the one in its file that takes such a configuration."""
    if type(config) in MODEL_MAPPING:
        found = MODEL_MAPPING[type(config)]
        return found[0] if isinstance(found, tuple | list) else found
    module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, PreTrainedModel)]
    kinds = [kind for kind in kinds if kind.config_class is type(config) and kind.__name__.endswith("Model")]
    return next(kind for kind in kinds if "PreTrained" not in kind.__name__)


def observe(config: PreTrainedConfig) -> tuple[list[Seen], list[Seen]]:
    """What each layer's attention was given at positions 0, 1, 2 …, and with every position 0."""
    torch.manual_seed(0)
    model = model_of(config)._from_config(config, attn_implementation="recorded").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # norms stay at ones, so that one after a rotation is the same as one before
                parameter.copy_(0.3 * torch.randn_like(parameter))
        ids, pos = torch.randint(3, 90, (1, TOKENS)), torch.arange(TOKENS)[None]
        found = []
        for positions in (pos, torch.zeros_like(pos)):
            _calls.clear()
            model(input_ids=ids, position_ids=positions, use_cache=False)
            found.append(list(_calls))
    return found[0], found[1]
