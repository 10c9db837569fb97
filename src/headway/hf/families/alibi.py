"""ALiBi as BLOOM, MPT and Falcon compute it: slope × position of the key is added to the scores (arXiv:2108.12409).

    score(i, j) = scale · q_i·k_j + slope_h · p_j

Softmax is invariant to slope_h · p_i, so a value per key does what a value per distance would. The positions p_j are
those of the real tokens; the slopes are the model's own. Falcon's rotary models, which do not go through transformers'
attention interface either, are here too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from headway.hf.forms import Form
from headway.hf.interface import Bias, headway_attention
from headway.hf.lazy_mask import LazyMask, SpreadMask, as_added, headway_mask
from headway.hf.watching import replaced
from headway.shapes import HeadwayError, kind_of
from headway.terms import PerKey

POSITION = "ALiBi, a value per key"


@dataclass(frozen=True, eq=False)
class KeyBias(Bias):
    """A value per key, the same for every query.

    Args:
        bias: (B or 1, H, K).
    """

    bias: Float[Tensor, "#batch heads keys"]
    start = 0

    def terms(self) -> tuple[PerKey, ...]:
        """See :meth:`headway.hf.interface.Bias.terms`."""
        return (PerKey(self.bias),)

    def dense(self, queries: int, keys: int) -> Tensor:
        """See :meth:`headway.hf.interface.Bias.dense`."""
        return self.bias[:, :, None].expand(-1, -1, queries, -1)

    def to(self, *args: Any, **kwargs: Any) -> KeyBias:
        """See :meth:`headway.hf.interface.Bias.to`."""
        return replace(self, bias=self.bias.to(*args, **kwargs))


def key_bias_of(whole: Tensor, mask: SpreadMask) -> KeyBias:
    """That of the tokens on a process, from the bias of a whole text, (H, 1, L)."""
    return KeyBias(whole[:, 0, mask.pos.clamp(min=0)].transpose(0, 1))


def spread_key_bias(own: Any, mask: SpreadMask, dtype: torch.dtype) -> KeyBias:
    """That of the tokens on a process, from the function of the model's own file, for a text of real tokens."""
    file: Any = sys.modules[type(own).__module__]
    return key_bias_of(file.build_alibi_tensor(mask.pos.new_ones(1, mask.greatest + 1), own.num_heads, dtype), mask)


class BloomAttention:
    """Put before BLOOM's attention."""

    position = POSITION
    like = "alibi"
    headway_form = Form()

    @staticmethod
    def unfit(module: Any) -> str | None:
        """Why it must be left alone."""
        if module.slow_but_exact and module.pretraining_tp > 1:
            return "its configuration has slow_but_exact, which sums the output projection in parts"
        return None

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        alibi: Tensor,
        attention_mask: Any,
        layer_past: Any = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the model's own, which computes one query, and attentions where they are asked for."""
        own: Any = self
        if output_attentions or not isinstance(attention_mask, LazyMask | SpreadMask):
            mask = as_added(attention_mask, hidden_states.dtype)
            passed = {"layer_past": layer_past, "use_cache": use_cache, "output_attentions": output_attentions}
            return super().forward(hidden_states, residual, alibi, mask, **passed, **kwargs)  # type: ignore[misc, no-any-return]
        q, k, v = own._reshape(own.query_key_value(hidden_states))
        if layer_past is not None:
            k, v = layer_past.update(k, v, own.layer_idx)
        if isinstance(attention_mask, SpreadMask):
            bias = spread_key_bias(own, attention_mask, alibi.dtype)
        else:
            bias = KeyBias(alibi.view(len(q), own.num_heads, -1))
        dropout = own.attention_dropout.p if own.training else 0.0
        passed = {"dropout": dropout, "scaling": own.inv_norm_factor, "position_bias": bias}
        out, _ = headway_attention(own, q, k, v, attention_mask, **passed)
        out = nn.functional.dropout(own.dense(out.flatten(2)), own.hidden_dropout, own.training)
        return residual + out, None


MPT = "headway_mpt"


def mpt_mask(*args: Any, **kwargs: Any) -> LazyMask | Tensor:
    """A mask of MPT's: a :class:`LazyMask`; for one query, or where it is not known, a tensor, True where hidden."""
    made = headway_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})
    assert made is not None
    return made if isinstance(made, LazyMask) else ~made


AttentionInterface.register(MPT, headway_attention)
AttentionMaskInterface.register(MPT, mpt_mask)


class MptAttention:
    """Put before MPT's attention."""

    position = POSITION
    like = "alibi"
    implementation: ClassVar[dict[str, str]] = {"sdpa": MPT, "eager": MPT}
    headway_form = Form()

    def forward(
        self,
        hidden_states: Tensor,
        position_bias: Any = None,
        cache: Any = None,
        attention_mask: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the model's own, which computes wherever the mask is a tensor."""
        own: Any = self
        if not isinstance(attention_mask, LazyMask | SpreadMask) or kwargs:
            mask = ~attention_mask if isinstance(attention_mask, LazyMask) else attention_mask
            return super().forward(hidden_states, position_bias, cache, mask, **kwargs)  # type: ignore[misc, no-any-return]
        joint = own.Wqkv(hidden_states)
        if own.clip_qkv:
            joint = joint.clamp(-own.clip_qkv, own.clip_qkv)
        q, k, v = joint.unflatten(2, (3, own.n_heads, own.head_dim)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.update(k, v, own.layer_idx)
        bias = None
        if position_bias is not None and not replaced(own):
            spread = attention_mask if isinstance(attention_mask, SpreadMask) else None
            keys = k.shape[2] if spread is None else spread.greatest + 1
            if position_bias.shape[2] < keys:
                raise HeadwayError(
                    f"expected at most max_seq_len={position_bias.shape[2]} keys, for which the model makes its ALiBi, "
                    f"got {keys}: raise config.max_seq_len"
                )
            if spread is None:
                bias = KeyBias(position_bias[None, :, 0, position_bias.shape[2] - keys :])
            else:
                bias = key_bias_of(position_bias, spread)
        dropout = own.attn_dropout_p if own.training else 0.0
        passed = {"dropout": dropout, "scaling": own.softmax_scale, "position_bias": bias}
        out, _ = headway_attention(own, q, k, v, attention_mask, **passed)
        return own.out_proj(out.flatten(2)), None


class MptBlock:
    """Put before MPT's block, which does not tell its attention whether attentions are asked for."""

    position = "attentions, when asked for, by the model's own code"

    def forward(self, hidden_states: Tensor, position_bias: Any, attention_mask: Any, *args: Any, **kwargs: Any) -> Any:
        """As the model's own."""
        asked = kwargs.get("output_attentions", args[2] if len(args) > 2 else False)
        mask = ~attention_mask if asked and isinstance(attention_mask, LazyMask) else attention_mask
        return super().forward(hidden_states, position_bias, mask, *args, **kwargs)  # type: ignore[misc]


class FalconAttention:
    """Put before Falcon's attention, with ALiBi or with rotary positions."""

    position = f"{POSITION}, or rotary"
    like = "alibi"
    headway_form = Form()

    @staticmethod
    def unfit(module: Any) -> str | None:
        """Why it must be left alone."""
        name = module.config._attn_implementation
        if name != "sdpa" and (name != "eager" or module.config.alibi):
            more = ", which adds ALiBi twice" if name == "eager" else ""
            return f"its implementation is {name!r}{more}"
        return None

    def forward(
        self,
        hidden_states: Tensor,
        alibi: Any,
        attention_mask: Any,
        position_ids: Any = None,
        layer_past: Any = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the model's own, which computes attentions where they are asked for; ``alibi`` is made here."""
        own: Any = self
        file: Any = sys.modules[type(own).__module__]
        if own.config.alibi:
            alibi = _falcon_alibi(own, file, hidden_states, attention_mask)
        if output_attentions:
            mask = as_added(attention_mask, hidden_states.dtype)
            if own.config.alibi and mask is not None:  # as FalconModel does
                added = alibi.view(len(hidden_states), own.num_heads, 1, -1) * own.inv_norm_factor
                mask = added.masked_fill(mask < -1, torch.finfo(mask.dtype).min)
            more = {"use_cache": use_cache, "output_attentions": True, "position_embeddings": position_embeddings}
            return super().forward(hidden_states, alibi, mask, position_ids, layer_past, **more, **kwargs)  # type: ignore[misc, no-any-return]
        q, k, v = (x.transpose(1, 2) for x in own._split_heads(own.query_key_value(hidden_states)))
        if alibi is None:
            q, k = file.apply_rotary_pos_emb(q, k, *position_embeddings)
        if layer_past is not None:
            k, v = layer_past.update(k, v, own.layer_idx)
        bias = None if alibi is None else KeyBias(alibi.view(-1, own.num_heads, k.shape[2]) * own.inv_norm_factor)
        dropout = own.attention_dropout.p if own.training and alibi is not None else 0.0  # none with rotary positions
        passed = {"dropout": dropout, "scaling": own.inv_norm_factor, "position_bias": bias}
        out, _ = headway_attention(own, q, k, v, attention_mask, **passed)
        return own.dense(out.flatten(2)), None


def _falcon_alibi(own: Any, file: Any, hidden_states: Tensor, mask: Any) -> Tensor:
    """The model's own ALiBi, (B·H, 1, K), from the mask of its tokens."""
    if isinstance(mask, SpreadMask):
        return spread_key_bias(own, mask, hidden_states.dtype).bias.flatten(0, 1)[:, None]
    if isinstance(mask, LazyMask):
        real = mask.k_pos >= 0
    elif isinstance(mask, Tensor) and mask.dtype is torch.bool and mask.shape[1:3] == (1, 1):
        real = mask[:, 0, 0]
    else:
        raise HeadwayError(
            f"expected Falcon's mask as one value per token, (batch, keys), because its ALiBi counts tokens, got "
            f"{kind_of(mask)}"
        )
    made: Tensor = file.build_alibi_tensor(
        real.long().expand(len(hidden_states), -1), own.num_heads, hidden_states.dtype
    )
    return made


class FalconModel:
    """Put before Falcon's model, which would add ALiBi to an n × n mask."""

    position = "its mask, without ALiBi in it"

    @property
    def use_alibi(self) -> bool:
        """False: the attentions make their ALiBi."""
        return False


ATTENTIONS = {
    "BloomAttention": BloomAttention,
    "MptAttention": MptAttention,
    "MptBlock": MptBlock,
    "FalconAttention": FalconAttention,
    "FalconModel": FalconModel,
}
