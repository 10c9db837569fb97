"""BEiT and Data2Vec-Vision: one number for each head and offset of two patches, and three for the class token.

The models' own code looks it up for all pairs of patches, (1, heads, tokens, tokens), once per forward and layer, or
once per forward where layers share a table, and resizes it to other images; all images of a batch share it. Scores and
weights are not materialised.
"""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask, sdpa_mask

from headway.hf.interface import headway_attention
from headway.hf.watching import attend
from headway.terms import DenseBias

NAMES = {"sdpa": "headway_beit", "eager": "headway_beit_eager"}
"""BEiT adds its bias to its masks, so they stay the tensors of transformers' implementations."""

for own, make_mask in (("sdpa", sdpa_mask), ("eager", eager_mask)):
    AttentionInterface.register(NAMES[own], headway_attention)
    AttentionMaskInterface.register(NAMES[own], make_mask)


class BeitAttention:
    """Put before BEiT's attention, for the masks; the rest is the class's own."""

    position = "BEiT's bias, of all pairs of patches, made once per layer and shared by the batch"
    implementation: ClassVar[dict[str, str]] = NAMES


class Data2VecVisionAttention:
    """Put before the attentions of Data2Vec-Vision."""

    position = BeitAttention.position

    def forward(
        self,
        hidden_states: Tensor,
        output_attentions: bool = False,
        relative_position_bias: Float[Tensor, "1 heads tokens tokens"] | None = None,
        interpolate_pos_encoding: bool = False,
        resolution: Any = None,
    ) -> tuple[Tensor, ...]:
        """As of the class, which computes attentions where they are asked for."""
        own: Any = self
        if output_attentions:
            return super().forward(  # type: ignore[misc, no-any-return]
                hidden_states, True, relative_position_bias, interpolate_pos_encoding, resolution
            )
        q, k, v = (
            x(hidden_states).unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)
            for x in (own.query, own.key, own.value)
        )
        biases = [] if relative_position_bias is None else [relative_position_bias]
        if own.has_relative_position_bias:
            patches = tuple(side // own.config.patch_size for side in resolution)
            tokens = hidden_states.shape[1]
            biases.append(own.relative_position_bias(patches, interpolate_pos_encoding, dim_size=tokens))
        terms = (DenseBias(biases[0] if len(biases) == 1 else biases[0] + biases[1]),) if biases else ()
        dropout = own.dropout.p if own.training else 0.0
        out = attend(own, q, k, v, terms=terms, scale=own.attention_head_size**-0.5, dropout=dropout)
        return (out.transpose(1, 2).flatten(2),)


ATTENTIONS = {
    "BeitAttention": BeitAttention,
    "Data2VecVisionSelfAttention": Data2VecVisionAttention,
    "Data2VecVisionSdpaSelfAttention": Data2VecVisionAttention,
}
