"""Whole training steps: ``python -m headway.experiments.bench train`` runs our decoder beside others of its size.

Each contender does the same work on the same batches: embedding, layers, output matrix tied to the embedding,
cross-entropy, backward, gradient clipping, fused AdamW. Rounds are interleaved, because a machine's speed drifts, and
medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headway.experiments.bench.measure import interleaved, median_ratio
from headway.shapes import HeadwayError
from headway.transformer import Transformer


class TorchDecoder(nn.Module):
    """A decoder as people build it from ``nn.TransformerEncoder``: pre-norm, GELU, causal mask, tied output."""

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
    """Decoders of one size, without position, by name; x-transformers only where it is installed."""
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
    """One optimizer step of a model on windows of length + 1 tokens, to be called again and again."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs, targets = batch[:, :-1], batch[:, 1:].flatten()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(inputs).flatten(0, 1), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()

    return step


def bench_train(
    *, dim: int, layers: int, heads: int, length: int, batch: int, rounds: int, repeats: int = 5
) -> dict[str, float]:
    """Print tokens per second of every contender and the ratio to ours; returns ours ÷ theirs by name."""
    torch.manual_seed(0)
    windows = torch.randint(256, (batch, length + 1))
    models = contenders(256, dim, layers, heads, length)
    steps = {name: train_step(model, windows) for name, model in models.items()}
    for step in steps.values():
        step()  # the first call also builds what is built once
    seconds = interleaved(steps, rounds, repeats)
    tokens = batch * length
    print(f"{layers} layers, width {dim}, {heads} heads, {batch} windows of {length} tokens, fp32")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds of {repeats}, medians\n")
    print(f"{'decoder':<24}{'parameters':>12}{'tokens/s':>12}{'ours ÷ theirs':>16}")
    ratios = {}
    for name, model in models.items():
        median = statistics.median(seconds[name])
        ratios[name] = median_ratio(seconds[name], seconds["headway"])
        count = sum(p.numel() for p in model.parameters())
        print(f"{name:<24}{count:>12,}{tokens / median:>12,.0f}{ratios[name]:>16.3f}")
    return ratios


def main(arguments: list[str]) -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(prog="python -m headway.experiments.bench train", description=__doc__)
    for name, default in (
        ("dim", 128),
        ("layers", 3),
        ("heads", 4),
        ("length", 64),
        ("batch", 32),
        ("rounds", 15),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--threads", type=int, default=None, help="default: torch's own choice")
    given = vars(parser.parse_args(arguments))
    threads = given.pop("threads")
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        bench_train(**given)
    except HeadwayError as error:
        parser.error(str(error))
