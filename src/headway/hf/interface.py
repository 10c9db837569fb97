"""The attention that transformers' models call by the name "headway", through its ``AttentionInterface``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.output_capturing import _active_collector

from headway.hf.forms import Form, eager_of, formula, with_token_sinks
from headway.hf.lazy_mask import LazyMask, SpreadMask, as_added, headway_eager_mask, headway_mask
from headway.hf.watching import attend, replaced, watched
from headway.integers import Positions
from headway.masks import Causal, Dense, KeyPadding, Mask
from headway.shapes import HeadwayError
from headway.terms import AnyTerm, DenseBias

NAMES = {"sdpa": "headway", "eager": "headway_eager"}
"""What each of transformers' implementations is replaced by: they differ in what a call without a mask means."""


class Bias:
    """A position bias handed through a model in place of its (1, H, Q, K) tensor; key j is at position j.

    Attributes:
        start: position of the first query: how many tokens a cache holds.
    """

    start: int | Tensor

    @property
    def moved(self) -> bool:
        """Whether the first query is anywhere but at position 0."""
        return isinstance(self.start, Tensor) or self.start != 0

    def terms(self) -> tuple[AnyTerm, ...]:
        """It, as terms of headway."""
        raise NotImplementedError

    def dense(self, queries: int, keys: int) -> Tensor:
        """It, for all pairs, (1, H, Q, K)."""
        raise NotImplementedError

    def to(self, *args: Any, **kwargs: Any) -> Bias:
        """It, on another device."""
        raise NotImplementedError


def form(module: nn.Module) -> Form:
    """The formula of an attention, see :mod:`headway.hf.forms`.

    Raises:
        HeadwayError: when it is not known.
    """
    known: Form | None = getattr(module, "headway_form", None)
    if known is None:
        known = formula(type(module))
        if known is None:
            raise HeadwayError(
                f"expected an attention whose formula headway knows, got {type(module).__name__}: call "
                f"headway.hf.accelerate(model), which leaves such attentions alone"
            )
        module.headway_form = known  # type: ignore[assignment]
    return known


def headway_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Any = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers calls it: its arguments and results are those of ``sdpa_attention_forward``.

    Weights are returned only when the model was asked for attentions; they are then computed by the model's own code.
    """
    if isinstance(attention_mask, SpreadMask):  # from an attention of a family, which calls this one by itself
        passed = {"scaling": scaling, "softcap": softcap, "position_bias": position_bias, **kwargs}
        return attention_mask.spread.attention(module, query, key, value, attention_mask, dropout, **passed)
    what = form(module)
    query, key, value = in_one_dtype(query, key, value)
    causal = _causal(module, is_causal, query.shape[2])
    softcap, sinks = softcap if what.softcap else None, sinks if what.token_sinks else None
    if asked_for_weights(kwargs) and not watched():
        if replaced(module):
            raise HeadwayError(
                "expected no output_attentions, because the position method was swapped and the model's own code does "
                "not know it, got a call that asks for them: headway.inspect.record(model) has them"
            )
        extras = {"softcap": softcap} if what.softcap else {"sinks": sinks} if what.token_sinks else {}
        passed = {"scaling": scaling, "dropout": dropout, **extras, **kwargs}
        return _by_the_model(module, query, key, value, attention_mask, causal, position_bias, **passed)
    scaling = scale_of(module, what, scaling)
    taken = getattr(module, "sinks", None) if what.sinks else sinks
    plain = query.shape[2] == 1 and softcap is None and taken is None and not isinstance(attention_mask, LazyMask)
    if plain and not watched() and not replaced(module):
        # one query: torch's operator is as fast, and what is made for it grows with the keys alone
        if isinstance(position_bias, Bias):
            position_bias = position_bias.dense(1, key.shape[2]).to(query.dtype)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, False, position_bias=position_bias
        )
    if attention_mask is None and causal and key.shape[2] > query.shape[2]:
        # the first pass over an empty static cache
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    mask, added, q_pos, k_pos = _placed(query, key, attention_mask, causal, position_bias)
    terms: tuple[AnyTerm, ...] = () if added is None else (DenseBias(added),)
    if taken is sinks:
        terms, taken = with_token_sinks(terms, sinks)
    out = attend(
        module,
        query,
        key,
        value,
        position=_terms(position_bias),
        mask=mask,
        terms=terms,
        q_pos=q_pos,
        k_pos=k_pos,
        scale=scaling,
        softcap=softcap,
        sinks=taken,
        dropout=dropout,
    )
    return out.transpose(1, 2).contiguous(), None


def scale_of(module: nn.Module, what: Form, scaling: float | None) -> float | None:
    """What q·k is multiplied by, of the call or of the formula; None is 1/√D."""
    if scaling is None and what.scale == "head_dim":
        scaling = float(module.head_dim) ** -0.5  # type: ignore[arg-type]
    return scaling


def in_one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values as autocast hands them to torch's attention: rotated ones are wider than others."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or tensors[0].dtype is torch.float64:
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


def asked_for_weights(kwargs: dict[str, Any]) -> bool:
    """Whether a model was asked for its attentions, by an argument or by what collects its outputs."""
    # a ContextVar cannot be traced; while compiling, transformers keeps what it collects in a plain variable
    compiling, active = torch.compiler.is_compiling(), _active_collector
    collected: Any = active.global_var if compiling else active.get()  # type: ignore[no-untyped-call]
    return bool(kwargs.get("output_attentions")) or any("attentions" in key for key in collected or ())


def _terms(position_bias: Any) -> tuple[AnyTerm, ...]:
    if position_bias is None:
        return ()
    return position_bias.terms() if isinstance(position_bias, Bias) else (DenseBias(position_bias),)


def _causal(module: nn.Module, is_causal: bool | None, queries: int) -> bool:
    """Whether a call without a mask is causal: never in transformers' eager attention, by a flag with SDPA."""
    name = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if queries == 1 or name == NAMES["eager"]:
        return False
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


def _placed(
    query: Tensor, key: Tensor, attention_mask: Any, causal: bool, position_bias: Any
) -> tuple[Mask | None, Tensor | None, Positions | None, Positions | None]:
    """The mask, the bias added by a float mask, and the positions of queries and keys; None where they are 0, 1, 2 …"""
    queries, keys = query.shape[2], key.shape[2]
    if isinstance(attention_mask, LazyMask):
        lazy = attention_mask
        if lazy.shape[3] > keys:
            lazy = lazy.first(keys)
        return (lazy.mask, None, None, None) if lazy.plain else (lazy.mask, None, lazy.q_pos, lazy.k_pos)
    q_pos = k_pos = None
    if queries != keys or (isinstance(position_bias, Bias) and position_bias.moved):
        start = position_bias.start if isinstance(position_bias, Bias) else 0
        q_pos = torch.arange(queries, device=query.device)[None] + start
        k_pos = torch.arange(keys, device=query.device)[None]
    if attention_mask is None:
        return Causal() if causal else None, None, q_pos, k_pos
    if attention_mask.dtype is torch.bool and attention_mask.shape[1:3] == (1, 1):
        return KeyPadding(attention_mask[:, 0, 0]), None, q_pos, k_pos
    whole = attention_mask.expand(-1, -1, queries, -1)
    return (Dense(whole), None, q_pos, k_pos) if whole.dtype is torch.bool else (None, whole, q_pos, k_pos)


def _by_the_model(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    causal: bool,
    position_bias: Any,
    **passed: Any,
) -> tuple[Tensor, Tensor | None]:
    """The model's own attention, which returns its weights."""
    queries, keys = query.shape[2], key.shape[2]
    if attention_mask is None and causal:
        attention_mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()[None, None]
    attention_mask = as_added(attention_mask, query.dtype)
    if isinstance(position_bias, Bias):
        position_bias = position_bias.dense(queries, keys).to(query.dtype)
    if position_bias is not None:
        passed["position_bias"] = position_bias
    eager = eager_of(type(module))
    assert eager is not None
    result: tuple[Tensor, Tensor | None] = eager(module, query, key, value, attention_mask, **passed)
    return result


for name in NAMES.values():
    AttentionInterface.register(name, headway_attention)
AttentionMaskInterface.register(NAMES["sdpa"], headway_mask)
AttentionMaskInterface.register(NAMES["eager"], headway_eager_mask)
