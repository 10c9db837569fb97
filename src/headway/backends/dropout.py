"""Which pairs attention dropout leaves out: a function of a seed and a pair's place alone.

So forward and backward, every backend and every run drop the same pairs, whatever is computed in which order; no
pattern is kept. The hash is two rounds of multiply and xor-shift on 32 bits (C. Wellons' lowbias32), one of them for
each pair; csrc/tile.h has the same.
"""

from __future__ import annotations

from jaxtyping import Bool, Int64
from torch import Tensor

_LOW = 0xFFFFFFFF
_STEP = 0x9E3779B9
"""2^32 divided by the golden ratio: what a key's number is multiplied by."""


def _mixed(x: Tensor) -> Tensor:
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW  # a product wraps at 2^64, which leaves its low 32 bits as they are
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
    """Which pairs stay.

    Args:
        seed: any whole number.
        share: of the pairs to drop, from 0 to below 1.
        heads: b · H + h of every head of every sequence.
        queries: numbers of the queries, from 0.
        keys: numbers of the keys, from 0.

    >>> import torch
    >>> one = torch.arange(1)
    >>> kept(torch.tensor([7]), 0.5, one[None], one, torch.arange(8)).int()[0, 0, 0].tolist()
    [1, 1, 1, 0, 0, 1, 1, 1]
    """
    seed = seed.to(heads.device)
    row = _mixed(_mixed(heads) ^ (seed & _LOW))[..., None] ^ ((queries + (seed >> 32)) & _LOW)
    return _mixed((_mixed(row)[..., None] + keys * _STEP) & _LOW) >= int(share * 2**32)
