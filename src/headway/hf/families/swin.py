"""Swin and its relatives: attention in windows of an image, with one number for each head and offset in two dimensions.

The bias stays a table by distance, (heads, offsets of rows and columns). Tokens of shifted windows that come from
different edges of the image do not see each other: they are masked as documents, where the models' own code adds −100
(V2: −200) to their scores, which leaves them a share of e^−100.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.functional import attend
from headway.hf.interface import asked_for_weights
from headway.masks import Documents
from headway.positions.swin import by_offset


def in_windows(
    q: Float[Tensor, "batch heads tokens dim"],
    k: Float[Tensor, "batch heads tokens dim"],
    v: Float[Tensor, "batch heads tokens dim"],
    table: Float[Tensor, "offsets heads"],
    window: tuple[int, int],
    mask: Float[Tensor, "windows tokens tokens"] | None,
    scale: float,
    dropout: float,
) -> Float[Tensor, "batch tokens width"]:
    """Attention in windows, all heads side by side.

    Args:
        q: queries; the windows of an image are consecutive in the batch.
        k: keys.
        v: values.
        table: one value per offset, query minus key, and head.
        window: rows and columns of a window.
        mask: of each window of an image: 0 where a pair of tokens sees each other, an equivalence; None is everywhere.
        scale: multiplies q·k.
        dropout: share of the weights that are dropped.
    """
    height, width = window
    bias = by_offset(table.T.unflatten(1, (2 * height - 1, 2 * width - 1)))
    documents = None
    if mask is not None:
        first = (mask == 0).to(torch.uint8).argmax(-1)  # the first token that each token sees names its region
        documents = Documents(first.repeat(len(q) // len(first), 1))
    q, k = q.to(v.dtype), k.to(v.dtype)
    return attend(q, k, v, mask=documents, terms=(bias,), scale=scale, dropout=dropout).transpose(1, 2).flatten(2)


def _heads(x: Tensor, dim: int) -> Tensor:
    """(B, n, H·dim) → (B, H, n, dim)."""
    return x.unflatten(-1, (-1, dim)).transpose(1, 2)


def _fits(hidden_states: Tensor, window: tuple[int, int]) -> bool:
    return hidden_states.shape[1] == window[0] * window[1]


class TableAttention:
    """Put before a ``SwinSelfAttention`` of the older kind: its own table of biases."""

    position = "Swin's bias, a table by offset in two dimensions"

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, output_attentions: Any = False) -> Any:
        """As of the class, without a tensor of all pairs."""
        own: Any = self
        if output_attentions or not _fits(hidden_states, own.window_size):
            return super().forward(hidden_states, attention_mask, output_attentions)  # type: ignore[misc]
        q, k, v = (_heads(x(hidden_states), own.attention_head_size) for x in (own.query, own.key, own.value))
        table, scale = own.relative_position_bias_table, own.attention_head_size**-0.5
        dropout = own.dropout.p if own.dropout.training else 0.0
        return (in_windows(q, k, v, table, own.window_size, attention_mask, scale, dropout),)


class CosineAttention:
    """Put before an attention of Swin V2: cosines times a learned scale, and a bias from a network of the offset."""

    position = "Swin V2's continuous bias, a table by offset in two dimensions"

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, output_attentions: Any = False) -> Any:
        """As of the class, without a tensor of all pairs."""
        own: Any = self
        if output_attentions or not _fits(hidden_states, own.window_size):
            return super().forward(hidden_states, attention_mask, output_attentions)  # type: ignore[misc]
        q, k, v = (_heads(x(hidden_states), own.attention_head_size) for x in (own.query, own.key, own.value))
        q = nn.functional.normalize(q, dim=-1) * own.logit_scale.clamp(max=math.log(100)).exp()
        k = nn.functional.normalize(k, dim=-1)
        table = 16 * own.continuous_position_bias_mlp(own.relative_coords_table).flatten(0, 2).sigmoid()
        dropout = own.dropout.p if own.dropout.training else 0.0
        return (in_windows(q, k, v, table, own.window_size, attention_mask, 1.0, dropout),)


class SwinAttention:
    """Put before a ``SwinAttention`` that uses transformers' interface: the table of its submodule."""

    position = TableAttention.position

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        """As of the class, without a tensor of all pairs."""
        own: Any = self
        bias = own.relative_position_bias
        if asked_for_weights(kwargs) or not _fits(hidden_states, bias.window_size):
            return super().forward(hidden_states, attention_mask, **kwargs)  # type: ignore[misc]
        q, k, v = (_heads(x(hidden_states), own.head_dim) for x in (own.q_proj, own.k_proj, own.v_proj))
        table, dropout = bias.relative_position_bias_table, own.attention_dropout if own.training else 0.0
        out = in_windows(q, k, v, table, bias.window_size, attention_mask, own.scaling, dropout)
        return own.o_proj(out), None


ATTENTIONS = {
    "SwinAttention": SwinAttention,
    "DonutSwinSelfAttention": TableAttention,
    "MaskFormerSwinSelfAttention": TableAttention,
    "Swinv2SelfAttention": CosineAttention,
    "Swin2SRSelfAttention": CosineAttention,
}
