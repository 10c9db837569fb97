"""Swin and its relatives: attention in windows of an image, with one number for each head and offset in two dimensions.

Windows are small: the bias of the pairs of tokens of one window, (heads, tokens, tokens), and for shifted windows the
−100 that the models add between tokens from different edges of the image, (windows, heads, tokens, tokens), are made
once per layer and shared by all images of a batch. A kernel reads them faster than it looks up offsets, and the formula
stays the models' own; scores and weights are not materialised, unless they are so few that a kernel gains nothing.
"""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.hf.interface import asked_for_weights
from headway.hf.watching import attend, replaced, watched
from headway.terms import DenseBias

FEW = 2**19
"""Scores of a layer, of all windows and heads, below which torch's own products take less time than a kernel's call."""
_SMALL = f"fewer than {FEW:,} scores by torch's own products"


def in_windows(
    module: nn.Module,
    q: Float[Tensor, "batch heads tokens dim"],
    k: Float[Tensor, "batch heads tokens dim"],
    v: Float[Tensor, "batch heads tokens dim"],
    table: Float[Tensor, "offsets heads"],
    index: Int[Tensor, " pairs"],
    mask: Float[Tensor, "windows tokens tokens"] | None,
    scale: float,
    dropout: float,
) -> Float[Tensor, "batch tokens width"]:
    """Attention in windows, all heads side by side.

    Args:
        module: the attention.
        q: queries; the windows of an image are consecutive in the batch.
        k: keys.
        v: values.
        table: one value per offset and head.
        index: the offset of each pair of tokens.
        mask: what is added in each window of an image; None is nothing.
        scale: multiplies q·k.
        dropout: share of the weights that are dropped.
    """
    batch, heads, tokens, _ = q.shape
    # embedding's backward sums equal entries densely; indexing's would sort them first
    bias = nn.functional.embedding(index, table).T.unflatten(1, (tokens, tokens))
    q, k = q.to(v.dtype), k.to(v.dtype)
    bias = bias[None] if mask is None else bias + mask[:, None]
    if batch * heads * tokens**2 < FEW and not (watched() or replaced(module)):
        scores = (q @ k.mT * scale).unflatten(0, (-1, len(bias))) + bias
        weights = nn.functional.dropout(scores.softmax(-1).flatten(0, 1), dropout)
        return (weights @ v).transpose(1, 2).flatten(2)
    if len(bias) > 1 and watched():  # heads stay heads
        bias = bias.repeat(batch // len(bias), 1, 1, 1)
    elif 1 < len(bias) < batch:  # the windows of an image as more heads
        q, k, v = (x.unflatten(0, (-1, len(bias))).flatten(1, 2) for x in (q, k, v))
        bias = bias.flatten(0, 1)[None]
    out = attend(module, q, k, v, terms=(DenseBias(bias),), scale=scale, dropout=dropout)
    return out.reshape(batch, heads, tokens, -1).transpose(1, 2).flatten(2)


def _heads(x: Tensor, dim: int) -> Tensor:
    """(B, n, H·dim) → (B, H, n, dim)."""
    split: Tensor = x.unflatten(-1, (-1, dim)).transpose(1, 2)
    return split


def _fits(hidden_states: Tensor, index: Tensor) -> bool:
    return hidden_states.shape[1] ** 2 == index.numel()


class _WindowAttention:
    """What the attentions with projections ``query``, ``key`` and ``value`` share."""

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, output_attentions: Any = False) -> Any:
        """As of the class, without scores of all pairs."""
        own: Any = self
        if output_attentions or not _fits(hidden_states, own.relative_position_index):
            return super().forward(hidden_states, attention_mask, output_attentions)  # type: ignore[misc]
        q, k, v = (_heads(x(hidden_states), own.attention_head_size) for x in (own.query, own.key, own.value))
        q, k, table, mask, scale = self.scored(q, k, attention_mask)
        dropout = own.dropout.p if own.dropout.training else 0.0
        return (in_windows(own, q, k, v, table, own.relative_position_index.flatten(), mask, scale, dropout),)

    def scored(self, q: Tensor, k: Tensor, mask: Any) -> tuple[Tensor, Tensor, Tensor, Any, float]:
        """Queries, keys, table, mask and scale as the class has them."""
        raise NotImplementedError


class TableAttention(_WindowAttention):
    """Put before a ``SwinSelfAttention`` of the older kind: its own table of biases."""

    position = f"Swin's bias, of the pairs of a window, once per layer; {_SMALL}"

    def scored(self, q: Tensor, k: Tensor, mask: Any) -> tuple[Tensor, Tensor, Tensor, Any, float]:
        """See :meth:`_WindowAttention.scored`."""
        own: Any = self
        return q, k, own.relative_position_bias_table, mask, own.attention_head_size**-0.5


class CosineAttention(_WindowAttention):
    """Put before an attention of Swin V2: cosines times a learned scale, and a bias from a network of the offset."""

    position = f"Swin V2's continuous bias, of the pairs of a window, once per layer; {_SMALL}"

    def scored(self, q: Tensor, k: Tensor, mask: Any) -> tuple[Tensor, Tensor, Tensor, Any, float]:
        """See :meth:`_WindowAttention.scored`."""
        own: Any = self
        q = nn.functional.normalize(q, dim=-1) * own.logit_scale.clamp(max=math.log(100)).exp()
        table = 16 * own.continuous_position_bias_mlp(own.relative_coords_table).flatten(0, 2).sigmoid()
        twice = None if mask is None else 2 * mask  # its own code adds it twice
        return q, nn.functional.normalize(k, dim=-1), table, twice, 1.0


class SwinAttention:
    """Put before a ``SwinAttention`` that uses transformers' interface: the table of its submodule."""

    position = TableAttention.position

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        """As of the class, without scores of all pairs."""
        own: Any = self
        bias = own.relative_position_bias
        if asked_for_weights(kwargs) or not _fits(hidden_states, bias.relative_position_index):
            return super().forward(hidden_states, attention_mask, **kwargs)  # type: ignore[misc]
        q, k, v = (_heads(x(hidden_states), own.head_dim) for x in (own.q_proj, own.k_proj, own.v_proj))
        table, dropout = bias.relative_position_bias_table, own.attention_dropout if own.training else 0.0
        out = in_windows(own, q, k, v, table, bias.relative_position_index, attention_mask, own.scaling, dropout)
        return own.o_proj(out), None


ATTENTIONS = {
    "SwinAttention": SwinAttention,
    "DonutSwinSelfAttention": TableAttention,
    "MaskFormerSwinSelfAttention": TableAttention,
    "Swinv2SelfAttention": CosineAttention,
    "Swin2SRSelfAttention": CosineAttention,
}
