"""Windows of text for training and for validation, chosen as a pure function of (seed, step)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn

from headway.shapes import HeadwayError
from headway.training.validation import mean_loss

IGNORED = -100
"""Targets with this value are ignored in the loss."""


@runtime_checkable
class Batches(Protocol):
    """Training data: any object that maps a step number to inputs and targets.

    It must be a pure function of the step, so that a resumed run sees the same batches as an uninterrupted one.
    Targets of -100 are ignored in the loss.
    """

    def __call__(self, step: int, /) -> tuple[Int64[Tensor, "batch length"], Int64[Tensor, "batch length"]]:
        """Return inputs and targets of one step."""
        ...


Inputs = Tensor | Mapping[str, Tensor]
"""What a model is called with: its tokens, or several arguments by name."""
AnyBatches = Callable[[int], tuple[Inputs, Tensor]]
"""Batches for any model: inputs and targets of a step."""


def predict(model: nn.Module, inputs: Inputs, device: torch.device) -> Tensor:
    """Call a model with inputs, which are moved to its device."""
    if isinstance(inputs, Tensor):
        logits: Tensor = model(inputs.to(device, non_blocking=True))
    else:
        logits = model(**{name: part.to(device, non_blocking=True) for name, part in inputs.items()})
    return logits


def seed_for(seed: int, step: int, purpose: str) -> int:
    """Return a 63-bit seed that depends on all three, so that neighbours are unrelated.

    `seed + step` is not enough: step 1 of seed 0 would repeat step 0 of seed 1; and PyTorch's CPU generator looks only
    at the low 32 bits.

    >>> seed_for(0, 1, "batches") == seed_for(1, 0, "batches")
    False
    """
    digest = hashlib.blake2b(f"{purpose}:{seed}:{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def compact(tokens: Int64[Tensor, "tokens"]) -> Tensor:
    """Hold tokens in the smallest integer type that fits: a text of bytes then takes one byte each, not eight."""
    largest = int(tokens.max()) if tokens.numel() else 0
    return tokens.to(torch.uint8 if largest < 256 else torch.int32)


class TokenStore(Protocol):
    """Token ids (N,), wherever they are: a tensor, or :class:`headway.training.corpus.Stored`, which is a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: Any, /) -> Tensor:
        """The ids at some indices or in a slice."""
        ...


def held(tokens: TokenStore) -> TokenStore:
    """Tokens as windows are taken from them: a tensor in the smallest type, a file as it is."""
    return compact(tokens) if isinstance(tokens, Tensor) else tokens


def check_tokens(tokens: TokenStore, length: int, batch: int) -> None:
    """Refuse tokens of which no window can be taken.

    Raises:
        HeadwayError: when they are too few, or no integers in one row.
    """
    for name, value in (("length", length), ("batch", batch)):
        if value < 1:
            raise HeadwayError(f"expected {name} of at least 1, got {value}")
    if isinstance(tokens, Tensor) and (tokens.ndim != 1 or tokens.is_floating_point()):
        raise HeadwayError(
            f"expected integer tokens in one row (N,), got {tokens.dtype} of shape {tuple(tokens.shape)}"
        )
    if len(tokens) < length + 1:
        raise HeadwayError(
            f"expected at least {length + 1} tokens (a window of length {length} and its last target), "
            f"got {len(tokens)}: give more text or a shorter length"
        )


class TextBatches:
    """Random windows of a text; the targets are the inputs moved by one.

    inputs[b, i] = tokens[s_b + i],  targets[b, i] = tokens[s_b + i + 1],  s_b uniform on 0 … len(tokens) − length − 1,
    drawn from a generator seeded by (seed, step).

    Args:
        tokens: the text, integers (N,), in memory or in a file.
        length: tokens in a window.
        batch: windows in a batch.
        seed: which sequence of batches.

    Raises:
        HeadwayError: when there are too few tokens for one window.

    >>> batches = TextBatches(torch.arange(100), length=4, batch=2, seed=0)
    >>> inputs, targets = batches(7)
    >>> inputs.shape, bool((targets == inputs + 1).all()), bool((batches(7)[0] == inputs).all())
    (torch.Size([2, 4]), True, True)
    """

    def __init__(self, tokens: TokenStore, length: int, batch: int, seed: int = 0) -> None:
        check_tokens(tokens, length, batch)
        self.length, self.batch, self.seed = length, batch, seed
        self._tokens = held(tokens)
        self._window = torch.arange(length + 1)

    def __call__(self, step: int, /) -> tuple[Int64[Tensor, "batch length"], Int64[Tensor, "batch length"]]:
        """Return inputs and targets of one step, both (batch, length)."""
        generator = torch.Generator().manual_seed(seed_for(self.seed, step, "batches"))
        starts = torch.randint(len(self._tokens) - self.length, (self.batch, 1), generator=generator)
        windows = self._tokens[starts + self._window].long()  # (B, N + 1)
        return windows[:, :-1], windows[:, 1:]


def spread(tokens: TokenStore, length: int, batch: int, windows: int) -> Int64[Tensor, "windows length+1"]:
    """Windows spread evenly through a text, which do not overlap but in one token; so many at most.

    >>> spread(torch.arange(10), 3, 1, windows=2)
    tensor([[0, 1, 2, 3],
            [3, 4, 5, 6]])

    Raises:
        HeadwayError: when there are too few tokens for one window.
    """
    check_tokens(tokens, length, batch)
    if windows < 1:
        raise HeadwayError(f"expected windows of at least 1, got {windows}")
    # A window's last target may be the next window's first input: no token is a target twice.
    possible = (len(tokens) - 1) // length
    count = min(windows, possible)
    starts = torch.arange(count) * possible // count * length
    return tokens[starts[:, None] + torch.arange(length + 1)].long()


def summed_loss(model: nn.Module, inputs: Inputs, targets: Int64[Tensor, "batch length"]) -> tuple[float, int]:
    """Sum of the cross-entropy in nats, and the targets that count."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    targets = targets.flatten().to(device)
    logits = predict(model, inputs, device).flatten(0, 1).float()
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    return loss.item(), int((targets != IGNORED).sum())


class TextValidation:
    """Mean loss per token over windows spread evenly through the validation text: the same ones every time.

    Args:
        tokens: the validation text, integers (N,), in memory or in a file.
        length: tokens in a window.
        batch: windows computed at once.
        windows: how many windows at most; they do not overlap.

    Returns (when called with a model):
        The mean cross-entropy in nats.

    >>> class Uniform(nn.Module):
    ...     def forward(self, tokens):
    ...         return torch.zeros(*tokens.shape, 256)
    >>> round(TextValidation(torch.arange(100), length=8, batch=2)(Uniform()), 4)
    5.5452
    """

    def __init__(self, tokens: TokenStore, length: int, batch: int, windows: int = 64) -> None:
        self.batch, self._windows = batch, compact(spread(tokens, length, batch, windows))

    def __call__(self, model: nn.Module, /) -> float:
        """Return the model's mean loss per token, in nats."""
        return mean_loss(self, model)

    @property
    def pieces(self) -> int:
        """Batches, which processes may share."""
        return -(-len(self._windows) // self.batch)

    def piece(self, number: int, model: nn.Module, /) -> tuple[float, int]:
        """Sum of the loss over one batch, and its tokens."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        windows = self._windows[number * self.batch : (number + 1) * self.batch].to(device).long()
        logits = model(windows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten(), reduction="sum")
        return loss.item(), windows[:, 1:].numel()
