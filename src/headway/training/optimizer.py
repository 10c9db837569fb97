"""Optimizers and the learning rate: SGD with momentum, Adam, AdamW, with warm-up and cosine decay."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from headway.shapes import HeadwayError
from headway.training.settings import TrainSettings
from headway.training.sharding import is_sharded

# For small models, with a width of about 128; wide ones need less.
_PEAK = {"sgd": 0.1, "adam": 3e-3, "adamw": 3e-3}
_DECAY = {"sgd": 0.0, "adam": 0.0, "adamw": 0.1}
# Device kinds for which torch.optim has one fused kernel for the whole update.
_FUSED = frozenset({"cpu", "cuda", "mps", "xpu"})


def peak_rate(settings: TrainSettings) -> float:
    """Return the highest learning rate: the given one, or the optimizer's default (sgd 0.1, adam and adamw 0.003).

    >>> peak_rate(TrainSettings(optimizer="adamw"))
    0.003
    """
    return _PEAK[settings.optimizer] if settings.lr is None else settings.lr


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Return the learning rate of one step, a pure function of the step.

    With peak p, warm-up of w steps, floor f and S steps in all: p·(step + 1)/w while step < w, then for cosine p·(f +
    (1 − f)·(1 + cos πt)/2) with t = (step − w)/(S − 1 − w), which ends at p·f in the last step; for constant p. Where
    position is dropped, the schedule starts again, with S and w of the remaining steps.

    Args:
        step: 0 … S − 1.
        settings: lr, warmup, schedule, floor, steps, drop_position.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983 (cosine, without restarts).

    >>> settings = TrainSettings(steps=101, lr=1.0, warmup=0, floor=0.0)
    >>> [round(learning_rate(step, settings), 3) for step in (0, 50, 100)]
    [1.0, 0.5, 0.0]
    """
    peak = peak_rate(settings)
    steps = settings.positioned
    if step >= steps:
        step, steps = step - steps, settings.drop_position
    warmup = min(100, steps // 10) if settings.warmup is None else min(settings.warmup, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "constant":
        return peak
    along = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return peak * (settings.floor + (1 - settings.floor) * 0.5 * (1 + math.cos(math.pi * along)))


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Build the optimizer over a model's trainable parameters.

    Weight decay acts on tensors of two or more dimensions (projections, embeddings, bias tables), not on norms and
    biases. In adamw it is decoupled (Loshchilov & Hutter 2019, arXiv:1711.05101); in sgd and adam it is added to the
    gradient. Shared parameters are updated once.

    Args:
        model: its parameters with ``requires_grad``.
        settings: optimizer, lr, momentum, betas, weight_decay.

    Returns:
        A `torch.optim` optimizer, fused where PyTorch has such a kernel.

    Raises:
        HeadwayError: when the model has nothing to train.

    >>> optimizer = build_optimizer(nn.Linear(3, 2), TrainSettings())
    >>> [group["weight_decay"] for group in optimizer.param_groups]
    [0.1, 0.0]
    """
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise HeadwayError("expected a model with trainable parameters, got none: set requires_grad on some")
    decay = _DECAY[settings.optimizer] if settings.weight_decay is None else settings.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    # torch updates sharded parameters apart from others
    groups = [{**group, "params": some} for group in groups for some in _by_sharding(group["params"]) if some]
    rate = peak_rate(settings)
    fused = _can_fuse(params)
    if settings.optimizer == "sgd":
        fused = fused and not any(map(is_sharded, params))  # torch has no such kernel
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, fused=fused)
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr=rate, betas=settings.betas, fused=fused)
    return torch.optim.AdamW(groups, lr=rate, betas=settings.betas, fused=fused)


def _by_sharding(params: Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    params = list(params)
    return [p for p in params if not is_sharded(p)], [p for p in params if is_sharded(p)]


def _can_fuse(params: Iterable[nn.Parameter]) -> bool:
    return all(p.device.type in _FUSED and p.is_floating_point() for p in params)
