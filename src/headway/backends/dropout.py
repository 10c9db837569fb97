"""Which pairs attention dropout drops: a function of the seed and the indices of a pair alone.

So forward and backward, every backend and every run drop the same pairs, in whatever order they are computed; no
pattern is stored. The hash is two rounds of multiply and xor-shift on 32 bits (C. Wellons' lowbias32), one round per
pair; csrc/tile.h has the same.
"""

from __future__ import annotations

from jaxtyping import Bool, Int64
from torch import Tensor

_LOW = 0xFFFFFFFF
_STEP = 0x9E3779B9
"""2^32 divided by the golden ratio; a key's index is multiplied by it."""


def _mixed(x: Tensor) -> Tensor:
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW  # a product wraps at 2^64, which does not change its low 32 bits
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _LOW
    return x ^ (x >> 16)


def kept(
    seed: Int64[Tensor, "1"],
    share: float,
    heads: Int64[Tensor, "batch heads"],
    queries: Int64[Tensor, " queries"],
    keys: Int64[Tensor, " keys"],
) -> Bool[Tensor, "batch heads queries keys"]:
    """Which pairs are kept.

    Args:
        seed: any whole number.
        share: share of pairs to drop, from 0 to below 1.
        heads: b · H + h of every head of every sequence.
        queries: indices of the queries, from 0.
        keys: indices of the keys, from 0.

    >>> import torch
    >>> one = torch.arange(1)
    >>> kept(torch.tensor([7]), 0.5, one[None], one, torch.arange(8)).int()[0, 0, 0].tolist()
    [1, 1, 1, 0, 0, 1, 1, 1]
    """
    seed = seed.to(heads.device)
    row = _mixed(_mixed(heads) ^ (seed & _LOW))[..., None] ^ ((queries + (seed >> 32)) & _LOW)
    return _mixed((_mixed(row)[..., None] + keys * _STEP) & _LOW) >= int(share * 2**32)
