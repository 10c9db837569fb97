"""Common initialisations of a weight matrix that maps ``fan_in`` inputs to ``fan_out`` outputs."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from headway.config import INITS
from headway.schema import Words, require

_DRAWING = threading.RLock()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's CPU random generator, seeded, for one thread at a time; its state is restored afterwards.

    >>> with seeded(3):
    ...     first = torch.rand(2)
    >>> with seeded(3):
    ...     bool((torch.rand(2) == first).all())
    True
    """
    with _DRAWING, torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would walk through every accelerator too
        yield


def initialise(
    weight: Tensor, how: str, *, parts: int = 1, by_input: bool = False, residual_depth: int = 0, gain: float = 1.0
) -> None:
    """Initialise the weight of an ``nn.Linear``, (fan_out, fan_in), in place, separately for each head's part.

    - xavier: uniform in ±√(6 / (fan_in + fan_out)) (Glorot & Bengio 2010), fans of one part.
    - normal: N(0, 0.02²).
    - gpt2: the same, and matrices that write into the residual stream are divided by √(2·layers).
    - t5: N(0, 1/fan_in), times ``gain`` (arXiv:1910.10683's query matrices also fold 1/√d_k in).
    - orthogonal: orthonormal rows or columns (Saxe et al., arXiv:1312.6120).

    Args:
        weight: changed in place.
        how: one of :data:`INITS`.
        parts: number of heads; each part is sampled independently.
        by_input: parts are along the input (W_O) instead of the output (W_Q, W_K, W_V).
        residual_depth: layers of the model if this matrix writes into the residual stream, else 0.
        gain: extra factor of "t5".
    """
    check_init(how)
    if weight.is_meta:  # nothing to sample, and torch 2.11 fails to make orthonormal rows of an empty matrix
        return
    with torch.no_grad():
        for part in weight.chunk(parts, 1 if by_input else 0):
            if how == "xavier":
                nn.init.xavier_uniform_(part)
            elif how == "orthogonal":
                drawn = torch.empty(
                    part.shape, dtype=torch.promote_types(part.dtype, torch.float32), device=part.device
                )
                part.copy_(nn.init.orthogonal_(drawn))
            elif how == "t5":
                nn.init.normal_(part, std=gain / math.sqrt(weight.shape[1]))
            else:
                deep = how == "gpt2" and residual_depth > 0
                nn.init.normal_(part, std=0.02 / math.sqrt(2 * residual_depth) if deep else 0.02)


def check_init(how: str) -> None:
    """Raise unless ``how`` names an initialisation."""
    require(how, Words(INITS), "init")
