"""Masked-token training of encoders: some tokens of a text are hidden, and predicted from those on both sides.

Devlin et al. 2018, "BERT", arXiv:1810.04805. Of each window, a share s of the tokens is chosen. A chosen token becomes

    mask          with probability 0.8
    random token  with probability 0.1, so that the model cannot tell which tokens to predict
    itself        with probability 0.1

and the loss is the mean cross-entropy of the chosen tokens alone. A decoder sees the tokens before; this sees all.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from headway.training.batches import IGNORED, AnyBatches, TokenStore, seed_for, spread, summed_loss
from headway.training.validation import mean_loss
from headway.training.vocabulary import Masked

MASK, RANDOM = 0.8, 0.1
"""Probabilities of a chosen token to become the mask, or a random token."""
Masking = tuple[Int64[Tensor, "batch length"], Int64[Tensor, "batch length"]]


def mask_tokens(tokens: Int64[Tensor, "batch length"], mask: int, share: float, generator: torch.Generator) -> Masking:
    """What an encoder reads, and what it shall predict there: max(1, round(share · length)) tokens of each row.

    Args:
        tokens: the text.
        mask: its id, the last of the vocabulary.
        share: of the tokens that are chosen, in (0, 1].
        generator: draws which, and what becomes of them.

    Returns:
        Inputs and targets, both (B, N); targets of tokens that were not chosen are -100.

    >>> inputs, targets = mask_tokens(torch.arange(8)[None], 256, 0.25, torch.Generator().manual_seed(0))
    >>> inputs.tolist(), targets.tolist()
    ([[0, 1, 256, 256, 4, 5, 6, 7]], [[-100, -100, 2, 3, -100, -100, -100, -100]])
    """
    draw = partial(torch.rand, tokens.shape, generator=generator)
    count = max(1, round(share * tokens.shape[1]))
    places = draw().argsort(dim=1, stable=True)[:, :count]
    chosen = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, places, True)
    becomes, random = draw(), torch.randint(mask, tokens.shape, generator=generator)
    inputs = tokens.where(becomes >= MASK + RANDOM, random).where(becomes >= MASK, mask)
    return inputs.where(chosen, tokens), tokens.where(chosen, IGNORED)


class MaskedBatches:
    """Windows of text with tokens to predict, a pure function of (seed, step).

    Args:
        windows: the windows, as a decoder reads them.
        words: their vocabulary.
        share: of the tokens that are chosen.
        seed: which tokens.
    """

    def __init__(self, windows: AnyBatches, words: Masked, share: float, seed: int = 0) -> None:
        self.windows, self.words, self.share, self.seed = windows, words, share, seed

    def __call__(self, step: int, /) -> Masking:
        """Return inputs and targets of one step."""
        generator = torch.Generator().manual_seed(seed_for(self.seed, step, "mask"))
        tokens, _ = self.windows(step)
        assert isinstance(tokens, Tensor)
        return mask_tokens(tokens, self.words.mask, self.share, generator)


class MaskedValidation:
    """Mean loss of chosen tokens in windows spread evenly through the validation text, the same ones every time.

    Args:
        tokens: the validation text, integers (N,).
        length: tokens in a window.
        batch: windows computed at once.
        windows: how many windows at most.
        words: the vocabulary.
        share: of the tokens that are chosen.

    Returns (when called with a model):
        The mean cross-entropy in nats.
    """

    def __init__(
        self, tokens: TokenStore, length: int, batch: int, windows: int = 64, *, words: Masked, share: float
    ) -> None:
        generator = torch.Generator().manual_seed(seed_for(0, 0, "masked validation"))
        found = mask_tokens(spread(tokens, length, batch, windows)[:, :-1].long(), words.mask, share, generator)
        self._inputs, self._targets = (x.split(batch) for x in found)

    def __call__(self, model: nn.Module, /) -> float:
        """Return the model's mean loss per chosen token, in nats."""
        return mean_loss(self, model)

    @property
    def pieces(self) -> int:
        """Batches, which processes may share."""
        return len(self._inputs)

    def piece(self, number: int, model: nn.Module, /) -> tuple[float, int]:
        """Sum of the loss over one batch, and its chosen tokens."""
        return summed_loss(model, self._inputs[number], self._targets[number])
