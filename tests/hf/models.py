"""What the tests of other people's models share: tiny models with random weights, and comparisons before and after."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import headway.hf

T5_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "d_kv": 12,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_max_distance": 20,
    "relative_attention_num_buckets": 8,
    "dropout_rate": 0.0,
}
"""What tiny T5 and its relatives are made with."""


def randomised(model: nn.Module, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """Every parameter random, because transformers initialises most to constants; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            wide = parameter.ndim > 1
            parameter.copy_(drawn * parameter.shape[-1] ** -0.5 if wide else 1 + 0.1 * drawn)
    return model.to(dtype).eval()


def tokens(rows: int, n: int, words: int = 90, seed: int = 0) -> Tensor:
    """Random ids above the special ones."""
    return torch.randint(3, words, (rows, n), generator=torch.Generator().manual_seed(seed))


def padding(rows: int, n: int, side: str) -> Tensor:
    """An attention mask in which every sequence but the last is shorter, padded on this side."""
    real = torch.ones(rows, n, dtype=torch.long)
    for row in range(rows - 1):
        hidden = n // 3 - row
        real[row, slice(n - hidden, None) if side == "right" else slice(hidden)] = 0
    return real


@contextmanager
def accelerated(model: Any) -> Iterator[headway.hf.Accelerated]:
    """Accelerate, and undo."""
    done = headway.hf.accelerate(model, quiet=True)
    try:
        yield done
    finally:
        done.undo()


Run = Callable[[Any], Tensor]


def gradients(model: nn.Module, run: Run) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradient of every parameter of a fixed random combination of it."""
    model.zero_grad()
    out = run(model)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (out.double() * weights).sum().backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def far(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest entry expected."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def same(model: Any, run: Run, within: float = 1e-10) -> None:
    """Output and every gradient are the model's own, and its own again, to the bit, after ``undo``."""
    expected, grads = gradients(model, run)
    with accelerated(model):
        found, new = gradients(model, run)
    assert far(found, expected) <= within, far(found, expected)
    assert new.keys() == grads.keys()
    largest = max(float(g.abs().max()) for g in grads.values())
    for name, grad in grads.items():
        off = float((new[name] - grad).abs().max())
        assert off <= within * max(float(grad.abs().max()), 1e-3 * largest), (name, off)
    again, restored = gradients(model, run)
    assert torch.equal(again, expected)
    assert all(torch.equal(restored[name], grad) for name, grad in grads.items())


def same_generation(model: Any, n: int, side: str, new: int, **how: Any) -> None:
    """Tokens equal, and scores too, of texts padded on a side."""
    given = {"input_ids": tokens(2, n), "attention_mask": padding(2, n, side), "max_new_tokens": new}
    given |= {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True, "output_scores": True}
    expected = model.generate(**given, **how)
    with accelerated(model):
        found = model.generate(**given, **how)
    assert torch.equal(found.sequences, expected.sequences)
    assert far(torch.stack(found.scores), torch.stack(expected.scores)) < 1e-10


def as_exact(model: Any, run: Run, dtype: torch.dtype, times: float = 2.0) -> None:
    """In a narrower dtype: at most twice the error of the model's own code, against float64."""
    truth = run(copy.deepcopy(model).double()).detach()
    narrow = copy.deepcopy(model).to(dtype)
    own = far(run(narrow).detach(), truth)
    with accelerated(narrow):
        found = far(run(narrow).detach(), truth)
    assert found <= times * own + 1e-9, (found, own)
