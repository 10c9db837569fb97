"""A mixture of several texts: each window of a batch comes from one of them, drawn by weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from headway.shapes import HeadwayError
from headway.training.batches import TextValidation, TokenStore, check_tokens, held, seed_for

WINDOWS = 64
"""Validation windows of all texts together, about."""
_DRAWS = 2**62
MakesValidation = Callable[..., Callable[[nn.Module], float]]
"""Called with tokens, length, batch and maybe ``windows``, as :class:`TextValidation`."""


def shares_of(weights: Sequence[float]) -> list[float]:
    """Weights divided by their sum.

    Raises:
        HeadwayError: when one is not a finite number above 0.

    >>> shares_of([3, 1])
    [0.75, 0.25]
    """
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise HeadwayError(f"expected weights above 0, got {list(weights)}: leave a text out to give it none")
    return [weight / sum(weights) for weight in weights]


class MixedBatches:
    """Random windows of several texts; the targets are the inputs moved by one.

    inputs[b, i] = tokens_k[s_b + i],  targets[b, i] = tokens_k[s_b + i + 1],  k_b drawn with probability w_k / Σ w,
    s_b uniform on 0 … len(tokens_k) − length − 1, all from a generator seeded by (seed, step).

    Args:
        tokens: the texts, integers (N_k,) each.
        weights: one for each text; their sum need not be 1.
        length: tokens in a window.
        batch: windows in a batch.
        seed: which sequence of batches.

    Raises:
        HeadwayError: when a text has too few tokens for one window, or the weights do not fit.

    >>> batches = MixedBatches([torch.arange(100), torch.arange(100, 200)], [0.9, 0.1], length=4, batch=8)
    >>> (batches(0)[0][:, 0] >= 100).tolist()
    [True, False, False, False, False, False, False, False]
    """

    def __init__(
        self, tokens: Sequence[TokenStore], weights: Sequence[float], length: int, batch: int, seed: int = 0
    ) -> None:
        if len(tokens) != len(weights):
            raise HeadwayError(f"expected a weight for each of {len(tokens)} texts, got {len(weights)} weights")
        for one in tokens:
            check_tokens(one, length, batch)
        self.length, self.batch, self.seed = length, batch, seed
        self._tokens = [held(one) for one in tokens]
        self._weights = torch.tensor(shares_of(weights), dtype=torch.float64)
        self._window = torch.arange(length + 1)

    def __call__(self, step: int, /) -> tuple[Int64[Tensor, "batch length"], Int64[Tensor, "batch length"]]:
        """Return inputs and targets of one step, both (batch, length)."""
        generator = torch.Generator().manual_seed(seed_for(self.seed, step, "mixture"))
        of = torch.multinomial(self._weights, self.batch, replacement=True, generator=generator)
        draws = torch.randint(_DRAWS, (self.batch, 1), generator=generator)
        windows = torch.empty(self.batch, self.length + 1, dtype=torch.long)
        for k, tokens in enumerate(self._tokens):
            rows = of == k
            windows[rows] = tokens[draws[rows] % (len(tokens) - self.length) + self._window].long()
        return windows[:, :-1], windows[:, 1:]


class MixedValidation:
    """Σ w_k · (mean loss of text k), the texts' held-out parts weighted as in training.

    Args:
        tokens: the validation texts, integers (N_k,) each.
        weights: one for each text.
        length: tokens in a window.
        batch: windows computed at once.
        validate: makes the validation of each text.

    Returns (when called with a model):
        The mean cross-entropy in nats.
    """

    def __init__(
        self,
        tokens: Sequence[TokenStore],
        weights: Sequence[float],
        length: int,
        batch: int,
        validate: MakesValidation = TextValidation,
    ) -> None:
        self.shares = shares_of(weights)
        self.parts = [
            validate(one, length, batch, windows=math.ceil(WINDOWS * share))
            for one, share in zip(tokens, self.shares, strict=True)
        ]

    def __call__(self, model: nn.Module, /) -> float:
        """Return the model's mean loss per token, in nats."""
        return sum(share * part(model) for share, part in zip(self.shares, self.parts, strict=True))
