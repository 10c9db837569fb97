"""The smallest language model with everything a checkpoint must hold: tied weights, a buffer that changes, dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headway.training.batches import TextBatches
from headway.training.settings import TrainSettings

TOKENS = torch.arange(2000) * 7919 % 251


class Tiny(nn.Module):
    def __init__(self, width: int = 8, vocab: int = 256) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.inner = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.2)
        self.out = nn.Linear(width, vocab, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        x = self.embed(tokens)
        return self.out(self.norm(x + self.dropout(torch.relu(self.inner(x)))))


def tiny(seed: int = 0, width: int = 8) -> Tiny:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Tiny(width)


def tiny_settings(**changes: object) -> TrainSettings:
    return TrainSettings(**{"steps": 6, "batch": 2, "length": 8, "checkpoint_every": 2, "validate_every": 3, **changes})


def tiny_batches(settings: TrainSettings) -> TextBatches:
    return TextBatches(TOKENS, settings.length, settings.batch, settings.seed)
