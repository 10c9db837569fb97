"""Conformers for speech: Transformer-XL's or Shaw's scores of relative positions, a product of each query with a vector
for each distance.

    relative      (q + u)·k + (q + v)·(W e(j − i))        e a sinusoidal embedding of the distance
    relative_key  q·k + q·a(j − i)                        a learned, the same beyond each end
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway.hf.interface import Bias, headway_attention
from headway.hf.lazy_mask import LazyMask
from headway.masks import Blocks
from headway.terms import ProductPerQuery


@dataclass(frozen=True, eq=False)
class Products(Bias):
    """x_i · vectors[j − i], the same beyond the ends.

    Args:
        x: a vector for each query, (B, H, Q, D).
        vectors: one for each distance, (H or 1, W, D).
        left: the entry of distance 0.
        start: see :class:`headway.hf.interface.Bias`.
    """

    x: Float[Tensor, "batch heads queries dim"]
    vectors: Float[Tensor, "#heads width dim"]
    left: int
    start: int | Tensor = 0

    def terms(self) -> tuple[ProductPerQuery, ...]:
        """See :meth:`headway.hf.interface.Bias.terms`."""
        return (ProductPerQuery(self.x, self.vectors, self.left),)

    def dense(self, queries: int, keys: int) -> Tensor:
        """See :meth:`headway.hf.interface.Bias.dense`."""
        q_pos, k_pos = (torch.arange(n, device=self.x.device)[None] for n in (queries, keys))
        return self.terms()[0].tile(q_pos + self.start, k_pos)

    def to(self, *args: Any, **kwargs: Any) -> Products:
        """See :meth:`headway.hf.interface.Bias.to`."""
        return replace(self, x=self.x.to(*args, **kwargs), vectors=self.vectors.to(*args, **kwargs))


class ConformerAttention:
    """Put before a conformer's attention; one with rotary or no positions is left to its own code."""

    position = "products of queries with vectors by distance"

    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, relative_position_embeddings: Any = None, **kwargs: Any
    ) -> Any:
        """As of the class, without a tensor of all pairs."""
        own: Any = self
        kind = own.position_embeddings_type
        if kind not in ("relative", "relative_key") or (kind == "relative" and relative_position_embeddings is None):
            if relative_position_embeddings is not None:
                kwargs["relative_position_embeddings"] = relative_position_embeddings
            return super().forward(hidden_states, attention_mask, **kwargs)  # type: ignore[misc]
        q, k, v = (
            x(hidden_states).unflatten(-1, (-1, own.head_size)).transpose(1, 2)
            for x in (own.linear_q, own.linear_k, own.linear_v)
        )
        if kind == "relative":
            vectors = own.linear_pos(relative_position_embeddings)[0].unflatten(-1, (-1, own.head_size)).transpose(0, 1)
            left, placed = vectors.shape[1] // 2, q + own.pos_bias_v[:, None]
            q = q + own.pos_bias_u[:, None]
        else:
            every = torch.arange(own.distance_embedding.num_embeddings, device=q.device)
            vectors, left, placed = own.distance_embedding(every)[None], own.left_max_position_embeddings, q
        q, k, placed = (x.to(v.dtype) for x in (q, k, placed))  # under autocast u and v are float32
        bias = Products(placed * own.scaling, vectors.to(v.dtype), left)
        dropout = own.dropout.p if own.training else 0.0
        out, weights = headway_attention(
            own, q, k, v, attention_mask, dropout, own.scaling, position_bias=bias, **kwargs
        )
        return own.linear_out(out.flatten(2)), weights


class ChunkedEncoder:
    """Put before the encoder of SeamlessM4T v2, whose queries see their own chunk and some before it."""

    position = "chunks, not a mask of all pairs"

    @staticmethod
    def unfit(module: Any) -> str | None:
        """Why it must be left alone."""
        if module.config._attn_implementation == "eager" and module.config.speech_encoder_chunk_size is not None:
            return "its eager implementation adds 1 to visible scores instead of hiding others: use 'sdpa'"
        return None

    def _apply_chunk_attention(self, attention_mask: Tensor | None, hidden_states: Tensor) -> LazyMask:
        """The mask of the layers."""
        own: Any = self
        size, before = own.config.speech_encoder_chunk_size, own.config.speech_encoder_left_chunk_num
        batch, tokens = hidden_states.shape[:2]
        pos = torch.arange(tokens, device=hidden_states.device)[None]
        mask = None
        if tokens > size:
            chunk = torch.arange(-(-tokens // size), device=pos.device)
            away = chunk[:, None] - chunk
            mask = Blocks((away >= 0) & (away <= (before if before >= 0 else tokens)), size)
        keys = pos if attention_mask is None else pos.masked_fill(~attention_mask.bool(), -1)
        return LazyMask(mask, pos, keys, attention_mask is None, batch)


ATTENTIONS = {
    "Wav2Vec2ConformerSelfAttention": ConformerAttention,
    "Wav2Vec2BertSelfAttention": ConformerAttention,
    "SeamlessM4TConformerSelfAttention": ConformerAttention,
    "SeamlessM4Tv2ConformerSelfAttention": ConformerAttention,
    "SeamlessM4Tv2ConformerEncoder": ChunkedEncoder,
}
