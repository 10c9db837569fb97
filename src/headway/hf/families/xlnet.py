"""XLNet's attention (arXiv:1906.08237): Transformer-XL's relative positions, and whether two tokens share a segment.

    score(i, j) = ((q_i + w)·k_j + (q_i + u)·R[i − j] + (q_i + s)·e[segment_i ≠ segment_j]) / √d

R has a row per distance, so its products stay by distance. Of the two embeddings e only their difference counts, for
softmax is invariant to what all keys of a query share; and "the same segment" is a product of one-hot vectors. One
stream over whole texts is computed here. The second stream (``target_mapping``), ``perm_mask``, memories that are
given, and attentions that are asked for are left to the model's own code. A padded query does not see itself here;
no real token sees it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headway.hf.watching import attend
from headway.integers import readable
from headway.terms import AnyTerm, LowRankBias, ProductPerQuery


@dataclass(frozen=True, eq=False)
class Text:
    """Stands for the masks and the segments of every pair of tokens.

    Args:
        real: which tokens are real, (B, N); None where all are.
        segments: the segment of each token, one-hot, (B, N, S); None without segments.
    """

    real: Bool[Tensor, "batch tokens"] | None
    segments: Float[Tensor, "batch tokens segments"] | None


class XLNetModel:
    """Put before XLNet's model, whose forward makes masks and segments for every pair of tokens."""

    position = "masks and segments, not one per pair"
    like = "transformerxl"

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        mems: Any = None,
        perm_mask: Any = None,
        target_mapping: Any = None,
        token_type_ids: Any = None,
        input_mask: Any = None,
        inputs_embeds: Any = None,
        use_mems: Any = None,
        output_attentions: Any = None,
        output_hidden_states: Any = None,
        return_dict: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As the model's own."""
        own: Any = self
        given = (mems, perm_mask, target_mapping, None if input_mask is None else attention_mask)
        asked = own.config.output_attentions if output_attentions is None else output_attentions
        known = own.attn_type == "bi" and not own.bi_data and (input_ids is None) is not (inputs_embeds is None)
        if asked or not known or any(one is not None for one in given):
            passed = (input_ids, attention_mask, mems, perm_mask, target_mapping, token_type_ids, input_mask)
            ways = (inputs_embeds, use_mems, output_attentions, output_hidden_states, return_dict)
            return super().forward(*passed, *ways, **kwargs)  # type: ignore[misc]
        if use_mems is None:
            use_mems = own.config.use_mems_train if own.training else own.config.use_mems_eval
        embedded = (
            own.word_embedding(input_ids.T.contiguous()) if inputs_embeds is None else inputs_embeds.transpose(0, 1)
        )
        h = own.dropout(embedded)  # (N, B, …)
        tokens, batch = h.shape[:2]
        each = batch if own.training and own.dropout.p > 0 else None  # dropped differently for each text
        r = own.dropout(own.relative_positional_encoding(tokens, tokens, bsz=each, device=h.device))
        text = Text(_real(attention_mask, input_mask), _segments(token_type_ids, h.dtype))
        states, memories = [h], []
        for layer in own.layer:
            if use_mems:
                memories.append(own.cache_mem(h, None))
            h = layer(h, None, text, None, r, None)[0]
            states.append(h)
        if output_hidden_states is None:
            output_hidden_states = own.config.output_hidden_states
        file: Any = sys.modules[type(own).__module__]
        found = file.XLNetModelOutput(
            last_hidden_state=own.dropout(h).transpose(0, 1).contiguous(),
            mems=tuple(memories) if use_mems else None,
            hidden_states=tuple(x.transpose(0, 1).contiguous() for x in states) if output_hidden_states else None,
        )
        return found if own.config.return_dict in (None, True) and return_dict in (None, True) else found.to_tuple()


class XLNetRelativeAttention:
    """Put before XLNet's attention."""

    position = "Transformer-XL's products by distance, and segments"
    like = "transformerxl"

    def forward(self, h: Tensor, g: Any, attn_mask_h: Any, *args: Any, **kwargs: Any) -> Any:
        """As the model's own."""
        own: Any = self
        if not isinstance(attn_mask_h, Text):
            return super().forward(h, g, attn_mask_h, *args, **kwargs)  # type: ignore[misc]
        q, k, v = (torch.einsum("ibh,hnd->bnid", h, weight) for weight in (own.q, own.k, own.v))
        rows = torch.einsum("tbh,hnd->bntd", args[1].type(own.r.dtype), own.r)
        out = torch.cat(
            [_attended(own, *some, rows[b]) for b, some in enumerate(_texts(len(rows), q, k, v, attn_mask_h))]
        )
        return own.post_attention(h, out.permute(2, 0, 1, 3)), None


def _texts(parts: int, q: Tensor, k: Tensor, v: Tensor, text: Text) -> list[tuple[Tensor, Tensor, Tensor, Text]]:
    """All texts of a batch at once, or one by one."""
    if parts == 1:
        return [(q, k, v, text)]
    of = [slice(b, b + 1) for b in range(parts)]
    picked = [Text(*(None if x is None else x[b] for x in (text.real, text.segments))) for b in of]
    return [(q[b], k[b], v[b], one) for b, one in zip(of, picked, strict=True)]


def _attended(
    own: Any, q: Tensor, k: Tensor, v: Tensor, text: Text, rows: Float[Tensor, "heads distances dim"]
) -> Tensor:
    """What the heads make of some texts, (B, H, N, D)."""
    by_head = [bias[:, None] for bias in (own.r_w_bias, own.r_r_bias, own.r_s_bias)]
    tokens = q.shape[2]
    terms: list[AnyTerm] = [ProductPerQuery((q + by_head[1]) * own.scale, rows, tokens)]  # row t: distance t − N
    if text.segments is not None:
        other = own.seg_embed[1] - own.seg_embed[0]
        less = torch.einsum("bnid,nd->bni", q + by_head[2], other) * own.scale  # for a key of the same segment
        segments = text.segments[:, None]
        terms.append(LowRankBias(-less[..., None] * segments, segments))
    pos = torch.arange(tokens, device=q.device)[None]
    k_pos = None if text.real is None else pos.masked_fill(~text.real, -1)
    dropout = own.dropout.p if own.training else 0.0
    where: dict[str, Any] = {"q_pos": None if k_pos is None else pos, "k_pos": k_pos}
    return attend(own, q + by_head[0], k, v, terms=terms, **where, scale=own.scale, dropout=dropout)


def _real(attention_mask: Any, input_mask: Any) -> Tensor | None:
    if attention_mask is None and input_mask is None:
        return None
    real: Tensor = (1.0 - attention_mask if input_mask is None else input_mask) <= 0
    return None if readable(real) and bool(real.all()) else real


def _segments(ids: Any, dtype: torch.dtype) -> Tensor | None:
    if ids is None:
        return None
    kinds, own = ids.unique(return_inverse=True)
    return torch.nn.functional.one_hot(own, len(kinds)).to(dtype)


ATTENTIONS = {"XLNetRelativeAttention": XLNetRelativeAttention, "XLNetModel": XLNetModel}
