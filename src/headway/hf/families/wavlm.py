"""WavLM: one number for each head and bucket of distances, made in the first layer and handed on, times a gate that
each query computes: gate_i · B_h[j − i] is a product of rank 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from headway.hf.interface import asked_for_weights
from headway.hf.watching import attend
from headway.masks import KeyPadding
from headway.terms import ProductPerQuery


class GatedAttention:
    """Put before WavLM's attention; the bias that it hands on is a table by distance, (heads, distances)."""

    position = "buckets times a gate for each query, a table by distance"

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        position_bias: Any = None,
        index: int = 0,
        **kwargs: Any,
    ) -> Any:
        """As of the class, without a tensor of all pairs."""
        own: Any = self
        if asked_for_weights(kwargs):
            return super().forward(hidden_states, attention_mask, position_bias, index, **kwargs)  # type: ignore[misc]
        if position_bias is None:
            position_bias = self.table(hidden_states)
        # its own code hands the weights of the projections to torch, so that adapters around them have no effect
        q, k, v = (
            nn.functional.linear(hidden_states, x.weight, x.bias).unflatten(-1, (own.num_heads, -1)).transpose(1, 2)
            for x in (own.q_proj, own.k_proj, own.v_proj)
        )
        term = ProductPerQuery(
            self.gates(hidden_states).to(v.dtype), position_bias[..., None].to(v.dtype), position_bias.shape[1] // 2
        )
        out = attend(
            own,
            q,
            k,
            v,
            mask=None if attention_mask is None else KeyPadding(attention_mask == 1),
            terms=(term,),
            dropout=own.dropout if own.training else 0.0,
        )
        out = nn.functional.linear(out.transpose(1, 2).flatten(2), own.out_proj.weight, own.out_proj.bias)
        return out, None, position_bias

    def table(self, hidden_states: Tensor) -> Tensor:
        """One value per head and distance, (H, W)."""
        own: Any = self
        far = max(own.max_distance, own.num_buckets // 4)  # distances beyond share the last bucket
        far = min(far, hidden_states.shape[1] - 1)
        distances = torch.arange(-far, far + 1, device=hidden_states.device)
        values: Tensor = own.rel_attn_embed(own._relative_positions_bucket(distances)).T
        return values

    def gates(self, hidden_states: Tensor) -> Tensor:
        """What multiplies each query's bias, (B, H, n, 1)."""
        own: Any = self
        parts = own.gru_rel_pos_linear(hidden_states.unflatten(-1, (own.num_heads, -1)).transpose(1, 2))
        reset, update = parts.unflatten(-1, (2, 4)).sum(-1).sigmoid().chunk(2, -1)
        gates: Tensor = reset * (update * own.gru_rel_pos_const - 1.0) + 2.0
        return gates


ATTENTIONS = {"WavLMAttention": GatedAttention}
