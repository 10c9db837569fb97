"""SpeechT5's encoder: Shaw's scores of relative positions (arXiv:1803.02155), q_i·k_j + q_i·a(i − j), a learned.

The vectors stay one for each distance, the same beyond each end; a tensor of all pairs is not made. The decoder, which
has no relative positions, keeps the model's own code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headway.hf.families.conformer import Products
from headway.hf.forms import Form
from headway.hf.interface import headway_attention
from headway.hf.lazy_mask import as_added


@dataclass(frozen=True, eq=False)
class RelativeKeys:
    """Handed from the encoder to its layers in place of a vector for each pair of tokens.

    Args:
        owner: the module that has the vectors.
    """

    owner: Any

    def bias(self, q: Tensor) -> Products:
        """The bias for queries (B, H, N, D), which are also as many keys."""
        far, last = self.owner.max_length, q.shape[2] - 1
        nearest = min(last, far - 1)
        rows = torch.arange(far + nearest, far - min(last, far) - 1, -1, device=q.device)  # the last key comes first
        vectors: Tensor = self.owner.pe_k(rows)
        return Products(q, vectors[None].to(q.dtype), nearest)


class RelativeEncoding:
    """Put before ``SpeechT5RelativePositionalEncoding``."""

    position = "a vector for each distance, not for each pair"

    def forward(self, hidden_states: Tensor) -> RelativeKeys:
        """What the layers get."""
        return RelativeKeys(self)

    def of_pairs(self, hidden_states: Tensor) -> Tensor:
        """What the model's own layers get, (N, N, D)."""
        made: Tensor = super().forward(hidden_states)  # type: ignore[misc]
        return made


class RelativeAttention:
    """Put before SpeechT5's attention."""

    position = "products of queries with vectors by distance in the encoder; the decoder's is the model's own"
    headway_form = Form()

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        cache: Any = None,
        attention_mask: Any = None,
        position_bias: Any = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As of the class, which computes the decoder, and attentions where they are asked for."""
        own: Any = self
        if output_attentions or not isinstance(position_bias, RelativeKeys) or cache is not None:
            if isinstance(position_bias, RelativeKeys):
                position_bias = position_bias.owner.of_pairs(hidden_states)
            mask = as_added(attention_mask, hidden_states.dtype)
            return super().forward(  # type: ignore[misc, no-any-return]
                hidden_states, key_value_states, cache, mask, position_bias, output_attentions, **kwargs
            )
        q, k, v = (
            x(hidden_states).unflatten(-1, (own.num_heads, -1)).transpose(1, 2)
            for x in (own.q_proj, own.k_proj, own.v_proj)
        )
        q = q * own.scaling
        passed: dict[str, Any] = {"dropout": own.dropout if own.training else 0.0, "scaling": 1.0, "is_causal": False}
        out, _ = headway_attention(own, q, k, v, attention_mask, **passed, position_bias=position_bias.bias(q))
        return own.out_proj(out.flatten(2)), None


ATTENTIONS = {
    "SpeechT5Attention": RelativeAttention,
    "SpeechT5RelativePositionalEncoding": RelativeEncoding,
}
