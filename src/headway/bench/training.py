"""Whole training steps: ``headway bench --training`` runs our decoder beside others of its size.

Each contender does the same work on the same batches: embedding, layers, output matrix tied to the embedding,
cross-entropy, backward, gradient clipping, fused AdamW. Rounds are interleaved, because a machine's speed drifts, and
medians are compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headway.bench.measure import interleaved, median_ratio
from headway.config import DEEPEST, MOST, Width
from headway.schema import Whole
from headway.settings import Settings
from headway.shapes import HeadwayError
from headway.transformer import Transformer

REPEATS = 5
"""Steps per measurement."""


class TorchDecoder(nn.Module):
    """A decoder built from ``nn.TransformerEncoder``: pre-norm, GELU, causal mask, tied output."""

    def __init__(self, vocab: int, dim: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.stack = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch length vocab"]:
        """Logits of the next token."""
        x = self.stack(self.embedding(tokens), mask=self.mask, is_causal=True)
        out: Tensor = x @ self.embedding.weight.T
        return out


def contenders(vocab: int, dim: int, layers: int, heads: int, length: int) -> dict[str, nn.Module]:
    """Decoders of one size, without position, by name; x-transformers only if it is installed."""
    models: dict[str, nn.Module] = {
        "headway": Transformer(vocab, dim, layers, heads, position="none", norm="layer", bias=True),
        "nn.TransformerEncoder": TorchDecoder(vocab, dim, layers, heads, length),
    }
    try:
        from x_transformers import Decoder, TransformerWrapper
    except ImportError:
        return models
    models["x-transformers"] = TransformerWrapper(
        num_tokens=vocab,
        max_seq_len=length,
        use_abs_pos_emb=False,
        tie_embedding=True,
        attn_layers=Decoder(dim=dim, depth=layers, heads=heads, attn_dim_head=dim // heads, attn_flash=True),
    )
    return models


def train_step(model: nn.Module, batch: Int64[Tensor, "batch length_1"]) -> Callable[[], object]:
    """A function that makes one optimizer step of a model on windows of length + 1 tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs, targets = batch[:, :-1], batch[:, 1:].flatten()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(inputs).flatten(0, 1), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()

    return step


@dataclass(frozen=True)
class Steps(Settings):
    """The training steps to measure.

    Args:
        dim: width of the decoders.
        layers: number of layers.
        heads: number of heads.
        length: tokens per window.
        batch: windows per step.
        rounds: interleaved rounds of :data:`REPEATS` steps each.

    Raises:
        HeadwayError: on values below 1.
    """

    dim: Width = 128
    layers: Annotated[int, Whole(1, DEEPEST)] = 3
    heads: Width = 4
    length: Annotated[int, Whole(1, MOST)] = 64
    batch: Annotated[int, Whole(1, MOST)] = 32
    rounds: Annotated[int, Whole(1, MOST)] = 15

    @classmethod
    def like(cls, options: Mapping[str, Any]) -> Steps:
        """From the given options of :class:`headway.bench.settings.Bench`."""
        given = {name: options[name] for name in ("heads", "batch", "rounds") if name in options}
        if "lengths" in options:
            if len(options["lengths"]) != 1:
                raise HeadwayError(f"expected one of --lengths with --training, got {list(options['lengths'])}")
            given["length"] = options["lengths"][0]
        head_dim = options.get("head_dim", cls.dim // cls.heads)
        return cls(dim=head_dim * options.get("heads", cls.heads), **given)


@dataclass(frozen=True)
class Measured:
    """One decoder's speed.

    Args:
        name: name of the decoder.
        parameters: number of parameters.
        tokens_per_second: median over the rounds.
        ratio: ours ÷ theirs, median over the rounds.
    """

    name: str
    parameters: int
    tokens_per_second: float
    ratio: float


def time_steps(steps: Steps) -> list[Measured]:
    """Measure a training step of every decoder, in interleaved rounds; ours comes first."""
    torch.manual_seed(0)
    windows = torch.randint(256, (steps.batch, steps.length + 1))
    models = contenders(256, steps.dim, steps.layers, steps.heads, steps.length)
    work = {name: train_step(model, windows) for name, model in models.items()}
    for step in work.values():
        step()  # the first call includes one-time work
    seconds = interleaved(work, steps.rounds, REPEATS)
    return [
        Measured(
            name,
            sum(p.numel() for p in model.parameters()),
            steps.batch * steps.length / statistics.median(seconds[name]),
            median_ratio(seconds[name], seconds["headway"]),
        )
        for name, model in models.items()
    ]


def steps_text(found: Sequence[Measured]) -> str:
    """The measured decoders as a table, with the version of torch and its threads."""
    lines = [
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians",
        "",
        f"{'decoder':<24}{'parameters':>12}{'tokens/s':>12}{'ours ÷ theirs':>16}",
    ]
    rows = [f"{one.name:<24}{one.parameters:>12,}{one.tokens_per_second:>12,.0f}{one.ratio:>16.3f}" for one in found]
    return "\n".join([*lines, *rows])
