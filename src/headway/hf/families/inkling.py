"""Inkling's bias: every token mixes learned profiles over distance, see :mod:`headway.positions.inkling`.

    score(i, j) = τ_i · (q_i·k_j · scale + r_i·Bank[i − j])        no bias unless 0 ≤ i − j < extent

The models hand their bias through transformers' attention interface; here it stays r, one per token and head, and the
bank. Inkling 2 and Inkling 2 Loop have a sink for each token besides, and their own code makes the distance of every
pair of tokens once per forward; one per head and layer, the bias, is not made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.hf.families.conformer import Products
from headway.integers import readable


@dataclass(frozen=True, eq=False)
class Profiles(Products):
    """r_i · Bank by distance, which a model may multiply by τ as it does with a tensor."""

    @property
    def dtype(self) -> torch.dtype:
        """As of the tensor."""
        return self.x.dtype

    def float(self) -> Profiles:
        """With r in float32."""
        return replace(self, x=self.x.float())

    def __mul__(self, tau: Float[Tensor, "1 1 queries 1"]) -> Profiles:
        return replace(self, x=self.x * tau)


def profiles(
    r: Float[Tensor, "batch queries heads rank"], bank: Float[Tensor, "rank extent"], start: Tensor, keys: int
) -> Profiles:
    """The bias of a call.

    Args:
        r: what mixes the profiles.
        bank: the profiles.
        start: distance of the first query from the first key.
        keys: number of keys; none is further from its query.
    """
    near = bank[:, :keys].to(r.dtype)
    # a zero before the nearest for later keys, and one after the last for those beyond
    vectors = nn.functional.pad(near.flip(1).T, (0, 0, 1, 1))[None]
    first = int(start) if readable(start) else start
    return Profiles(r.transpose(1, 2), vectors, near.shape[1], first)


class RelativeLogits:
    """Put before Inkling's ``InklingRelativeLogits``."""

    position = "products of each token's r with profiles by distance"
    like = "inkling"
    proj: Tensor

    def forward(self, relative_states: Tensor, query_positions: Tensor, key_positions: Tensor) -> Profiles:
        """The bias."""
        start = query_positions[0] - key_positions[0]
        return profiles(relative_states, self.proj, start, len(key_positions))


class RelativePositionBias:
    """Put before Inkling 2's ``Inkling2RelativePositionBias``."""

    position = f"{RelativeLogits.position}; the distance of each pair, once per forward, by the model's own code"
    like = "inkling"

    def forward(self, hidden_states: Tensor, relative_distance: Tensor, position_ids: Tensor) -> Profiles:
        """The bias."""
        own: Any = self
        r = own.norm(own.linear(hidden_states).unflatten(-1, (own.num_heads, -1)), position_ids)
        return profiles(r, own.proj, relative_distance[0, 0], relative_distance.shape[1])


class Attention:
    """Put before the attentions, which are as the classes' own."""

    position = "the bias of its submodule"
    like = "inkling"


ATTENTIONS = {
    "InklingAttention": Attention,
    "Inkling2SlidingAttention": Attention,
    "Inkling2FullAttention": Attention,
    "Inkling2LoopSlidingAttention": Attention,
    "Inkling2LoopFullAttention": Attention,
    "InklingRelativeLogits": RelativeLogits,
    "Inkling2RelativePositionBias": RelativePositionBias,
    "Inkling2LoopRelativePositionBias": RelativePositionBias,
}
