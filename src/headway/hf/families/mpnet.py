"""MPNet: T5's buckets of distances, whose bias its encoder makes once and hands to all layers (arXiv:2004.09297)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway.hf.families.t5 import BucketOwner, Buckets
from headway.hf.forms import Form
from headway.hf.interface import Bias, headway_attention
from headway.hf.lazy_mask import as_added

POSITION = "T5 buckets, a table by distance"
FAR = 128  # distances from here on share a bucket: the model's own code takes this for every configuration


class MPNetEncoder(BucketOwner):
    """Put before MPNet's encoder: its bias is a table instead of a tensor (B, H, N, N)."""

    position = POSITION
    like = "t5"

    def by_distance(self, device: Any) -> Float[Tensor, "heads width"]:
        """See :meth:`headway.hf.families.t5.BucketOwner.by_distance`."""
        own: Any = self
        away = torch.arange(-FAR, FAR + 1, device=device)
        row: Tensor = own.relative_attention_bias(own.relative_position_bucket(away, num_buckets=32))
        return row.T

    def compute_position_bias(self, x: Tensor, position_ids: Any = None, num_buckets: int = 32) -> Any:
        """The bias of all layers."""
        if position_ids is not None or num_buckets != 32:
            return super().compute_position_bias(x, position_ids, num_buckets)  # type: ignore[misc]
        return Buckets(self, self.by_distance(x.device), FAR, 0)


class MPNetSelfAttention:
    """Put before MPNet's attention."""

    position = POSITION
    like = "t5"
    headway_form = Form()

    @staticmethod
    def memory(module: Any, tokens: int) -> tuple[int, int]:
        """See :class:`headway.hf.families.t5.BucketAttention`."""
        number = next(module.parameters()).element_size() * module.num_attention_heads
        return tokens**2 * number, (2 * FAR + 1) * number

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        position_bias: Any = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As the model's own, which computes attentions where they are asked for."""
        own: Any = self
        if output_attentions:
            if isinstance(position_bias, Bias):
                position_bias = position_bias.dense(hidden_states.shape[1], hidden_states.shape[1])
            passed = (as_added(attention_mask, hidden_states.dtype), position_bias, output_attentions)
            return super().forward(hidden_states, *passed, **kwargs)  # type: ignore[misc]
        q, k, v = (
            project(hidden_states).unflatten(-1, (-1, own.attention_head_size)).transpose(1, 2)
            for project in (own.q, own.k, own.v)
        )
        more = {"scaling": own.attention_head_size**-0.5, "is_causal": False, "position_bias": position_bias}
        dropout = own.dropout.p if own.training else 0.0
        out, _ = headway_attention(own, q, k, v, attention_mask, dropout, **more)
        return (own.o(out.flatten(2)),)


ATTENTIONS = {"MPNetSelfAttention": MPNetSelfAttention, "MPNetEncoder": MPNetEncoder}
