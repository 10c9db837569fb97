"""T5 and its relatives: one number for each head and bucket of distances, made in the first block and handed on.

The bias stays a table by distance, (heads, distances up to the last bucket); the zeros that cross-attention hands from
block to block are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.hf.interface import Bias
from headway.terms import ByDistance


@dataclass(frozen=True, eq=False)
class Buckets(Bias):
    """A value per head and distance, the same beyond the table's ends.

    Args:
        owner: the module that has the buckets' values.
        table: its values by distance, (H, W).
        left: the entry of distance 0.
        start: see :class:`headway.hf.interface.Bias`.
    """

    owner: BucketOwner
    table: Float[Tensor, "heads width"]
    left: int
    start: int | Tensor

    def _by_distance(self) -> ByDistance:
        table = self.table
        if torch.is_grad_enabled() and not table.requires_grad and self.owner.trained():
            # made under no_grad, in the first of the two passes of a reentrant checkpoint
            table = self.owner.by_distance(table.device).to(table)
        return ByDistance(table, self.left)

    def terms(self) -> tuple[ByDistance, ...]:
        """See :meth:`headway.hf.interface.Bias.terms`."""
        return (self._by_distance(),)

    def dense(self, queries: int, keys: int) -> Tensor:
        """See :meth:`headway.hf.interface.Bias.dense`."""
        q_pos, k_pos = (torch.arange(n, device=self.table.device)[None] for n in (queries, keys))
        return self._by_distance().tile(q_pos + self.start, k_pos)

    def to(self, *args: Any, **kwargs: Any) -> Buckets:
        """See :meth:`headway.hf.interface.Bias.to`."""
        return replace(self, table=self.table.to(*args, **kwargs))


class BucketOwner:
    """A module that has one value for each head and bucket of distances."""

    relative_attention_bias: nn.Module

    def trained(self) -> bool:
        """Whether the values of the buckets get gradients."""
        return any(parameter.requires_grad for parameter in self.relative_attention_bias.parameters())

    def by_distance(self, device: Any) -> Float[Tensor, "heads width"]:
        """The bias for every distance up to the largest; those beyond share the last bucket."""
        raise NotImplementedError


class BucketAttention(BucketOwner):
    """Put before an attention of T5's kind: its ``compute_bias`` returns a table instead of a tensor (1, H, Q, K)."""

    position = "T5 buckets, a table by distance"
    like = "t5"
    relative_attention_max_distance: int

    @property
    def has_relative_attention_bias(self) -> bool:
        """True, so that an attention without a bias asks for one too, and gets none instead of zeros."""
        return True

    @has_relative_attention_bias.setter
    def has_relative_attention_bias(self, value: bool) -> None:
        self.__dict__["has_relative_attention_bias"] = value

    @staticmethod
    def memory(module: Any, tokens: int) -> tuple[int, int]:
        """Bytes of the bias of a text, before and after."""
        number = next(module.parameters()).element_size()
        width = 2 * module.relative_attention_max_distance + 1
        return module.n_heads * tokens**2 * number, module.n_heads * width * number

    def by_distance(self, device: Any) -> Float[Tensor, "heads width"]:
        """See :meth:`BucketOwner.by_distance`."""
        far = self.relative_attention_max_distance
        own: Any = super()
        row: Tensor = own.compute_bias(1, 2 * far + 1, device=device, past_seen_tokens=far)
        return row[0, :, 0]

    def compute_bias(self, query_length: int, key_length: int, device: Any = None, past_seen_tokens: Any = 0) -> Any:
        """The bias of this attention; None where it has none."""
        if not self.__dict__["has_relative_attention_bias"]:
            return None
        return Buckets(self, self.by_distance(device), self.relative_attention_max_distance, past_seen_tokens)


class UdopAttention(BucketAttention):
    """UDOP's decoder is T5's; its encoder sums distances in the text and between boxes on the page, for all pairs of
    tokens, once per forward and for all layers.
    """

    position = (
        "T5 buckets, a table by distance, in the decoder; in the encoder the model's own sum of distances in the text "
        "and on the page, of all pairs"
    )

    @staticmethod
    def memory(module: Any, tokens: int) -> tuple[int, int]:
        """See :meth:`BucketAttention.memory`."""
        before, after = BucketAttention.memory(module, tokens)
        return before, after if module.is_decoder else before


ATTENTIONS = {
    "T5Attention": BucketAttention,
    "MT5Attention": BucketAttention,
    "UMT5Attention": BucketAttention,
    "LongT5Attention": BucketAttention,
    "SwitchTransformersAttention": BucketAttention,
    "UdopAttention": UdopAttention,
    "Pix2StructTextAttention": BucketAttention,
    "Pop2PianoAttention": BucketAttention,
}
