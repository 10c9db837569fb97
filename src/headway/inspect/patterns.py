"""What heads do, measured on random tokens that repeat, where nothing but the repetition can be predicted.

tokens  r_1 … r_P r_1 … r_P r_1 … r_P

previous   mean of α(i, i − 1): the head reads the token before
local      mean of Σ_{d < 8} α(i, i − d): the head stays near
induction  mean of α(i, i − P + 1) over the repeated tokens: the head finds the same token earlier, and reads the
           one after it (Olsson et al. 2022, arXiv:2209.11895)

An encoder that learned masked tokens reads the same, with tokens of the second period masked:

following  mean of α(i, i + 1)
local      mean of Σ_{|d| < 8} α(i, i + d)
elsewhere  mean of α(i, i − P) + α(i, i + P) over masked i: the head finds the hidden token in the other periods
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.inspect.record import full_precision, recorded
from headway.shapes import HeadwayError
from headway.transformer import Transformer

NEAR = 8
"""Tokens that count as near, the query itself included."""
COPIES = 3


@dataclass(frozen=True)
class Patterns:
    """Shares of each head's attention, 0 … 1, and what the repetition is worth to the model.

    Args:
        previous: on the token before, as the next two (layers, heads).
        local: on the last :data:`NEAR` tokens.
        induction: of repeated tokens, on the token after the same token one period before.
        new: mean loss in nats of tokens read for the first time.
        repeated: mean loss of tokens read for the second and third time.
    """

    previous: Float[Tensor, "layers heads"]
    local: Float[Tensor, "layers heads"]
    induction: Float[Tensor, "layers heads"]
    new: float
    repeated: float


@torch.no_grad()
def patterns(model: Transformer, *, period: int = 24, texts: int = 16, lowest: int = 0, seed: int = 0) -> Patterns:
    """Measure the heads of a decoder on random tokens, read three times.

    Args:
        model: a decoder, in evaluation mode.
        period: P, tokens until the text repeats.
        texts: how many texts are averaged over.
        lowest: smallest id drawn, e.g. 256 to leave single bytes out.
        seed: of the tokens.

    Raises:
        HeadwayError: on a model that sees later tokens, or no ids to draw from.

    >>> found = patterns(Transformer(vocab=32, dim=32, layers=2, heads=4).eval(), period=8)
    >>> found.induction.shape, bool((found.local >= found.previous).all())
    (torch.Size([2, 4]), True)
    """
    if model.config.kind != "decoder":
        raise HeadwayError(f"expected a decoder, which predicts the next token, got an {model.config.kind}")
    ids = _drawn(model.config.vocab, period, texts, lowest, seed)
    tokens = torch.arange(ids.shape[1])
    near = tokens[:, None] - tokens < NEAR

    def of(weights: Tensor) -> dict[str, Tensor]:
        return {
            "previous": weights.diagonal(-1, -2, -1),
            "local": (weights * near)[:, :, 1:].sum(-1),
            "induction": weights.diagonal(1 - period, -2, -1)[..., 1:],
        }

    with full_precision():
        loss = F.cross_entropy(model(ids)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(0)
        shares = _shares(model, ids, of)
    return Patterns(**shares, new=float(loss[: period - 1].mean()), repeated=float(loss[period:].mean()))


@dataclass(frozen=True)
class MaskedPatterns:
    """Shares of each head's attention, 0 … 1, and what the repetition is worth to an encoder.

    Args:
        previous: on the token before, as the next three (layers, heads).
        following: on the token after.
        local: on fewer than :data:`NEAR` tokens to either side, and the query itself.
        elsewhere: of masked tokens, on the same place of the other two periods.
        new: mean loss in nats of masked tokens that stand nowhere else.
        repeated: mean loss of masked tokens that do.
    """

    previous: Float[Tensor, "layers heads"]
    following: Float[Tensor, "layers heads"]
    local: Float[Tensor, "layers heads"]
    elsewhere: Float[Tensor, "layers heads"]
    new: float
    repeated: float


@torch.no_grad()
def masked_patterns(
    model: Transformer, mask: int, *, period: int = 24, texts: int = 16, lowest: int = 0, seed: int = 0
) -> MaskedPatterns:
    """Measure the heads of an encoder on random tokens, three times the same, every eighth of the second masked.

    Args:
        model: an encoder, in evaluation mode.
        mask: id of the mask; smaller ones are drawn.
        period: P, tokens until the text repeats; at least 9, so that one of them is masked.
        texts: how many texts are averaged over.
        lowest: smallest id drawn, e.g. 256 to leave single bytes out.
        seed: of the tokens.

    Raises:
        HeadwayError: on a model that sees no later tokens, or no ids to draw from.

    >>> model = Transformer(vocab=33, dim=32, layers=2, heads=4, kind="encoder").eval()
    >>> found = masked_patterns(model, mask=32)
    >>> found.elsewhere.shape, bool((found.local >= found.previous + found.following).all())
    (torch.Size([2, 4]), True)
    """
    if model.config.kind != "encoder":
        raise HeadwayError(f"expected an encoder, which predicts masked tokens, got {model.config.kind}")
    ids = _drawn(mask, period, texts, lowest, seed, least=NEAR + 1)
    places = torch.arange(NEAR // 2, period, NEAR)
    hidden = ids.index_fill(1, period + places, mask)
    tokens = torch.arange(ids.shape[1])
    near = (tokens[:, None] - tokens).abs() < NEAR

    def of(weights: Tensor) -> dict[str, Tensor]:
        others = weights[..., period + places, places] + weights[..., period + places, 2 * period + places]
        return {
            "previous": weights.diagonal(-1, -2, -1),
            "following": weights.diagonal(1, -2, -1),
            "local": (weights * near).sum(-1),
            "elsewhere": others,
        }

    with full_precision():
        repeated = _loss(model, hidden, ids, period + places)
        new = _loss(model, hidden[:, period : 2 * period], ids[:, :period], places)
        shares = _shares(model, hidden, of)
    return MaskedPatterns(**shares, new=new, repeated=repeated)


def _shares(model: Transformer, ids: Tensor, of: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What is measured of the weights (B, H, N, N), each (B, H, places), averaged over texts and places: (L, H)."""
    found = [of(layer.weights().double()) for layer in recorded(model, ids)]
    return {name: torch.stack([one[name].mean((0, 2)) for one in found]) for name in found[0]}


def _loss(model: Transformer, hidden: Tensor, ids: Tensor, places: Tensor) -> float:
    """Mean loss in nats at some places."""
    return float(F.cross_entropy(model(hidden)[:, places].transpose(1, 2), ids[:, places]))


def _drawn(vocab: int, period: int, texts: int, lowest: int, seed: int, least: int = 2) -> Tensor:
    """Random tokens, three times the same."""
    if not 0 <= lowest < vocab or period < least:
        raise HeadwayError(
            f"expected a period of at least {least} and lowest below the vocabulary's {vocab} ids, "
            f"got period={period} and lowest={lowest}"
        )
    drawn = torch.randint(lowest, vocab, (texts, period), generator=torch.Generator().manual_seed(seed))
    return drawn.repeat(1, COPIES)
