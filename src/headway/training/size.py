"""How large a model and a training step would be: counted before anything is allocated.

A number typed by mistake, or written by a stranger, must not take the machine's memory. So what a configuration asks
for is added up first, in whole numbers without a model, and refused in one sentence when it exceeds what is free.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headway.shapes import HeadShape, HeadwayError
from headway.sizes import TooLarge, metered
from headway.sizes import check_size as measured

_BYTES = 4  # of a number in float32
_STATES = {"adamw": 2, "adam": 2, "sgd": 1}
LAYERS = 4096
"""Layers a model may have: each is a Python object that takes time to build, whatever its width."""


@dataclass(frozen=True)
class Size:
    """What a configuration asks for.

    Args:
        parameters: numbers the model learns, shared ones once.
        step: bytes that one training step holds at least: weights, gradients, optimizer state, and activations.
    """

    parameters: int
    step: int

    @property
    def weights(self) -> int:
        """Bytes of the model alone, in float32."""
        return self.parameters * _BYTES


def available_memory(device: str = "cpu") -> int:
    """Bytes that are free.

    >>> available_memory() > 0
    True
    """
    if device != "cpu":
        return int(torch.cuda.mem_get_info()[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2)


def estimate(
    config: Mapping[str, Any], *, batch: int = 0, length: int = 0, optimizer: str = "adamw", position: bool = True
) -> Size:
    """Count the parameters of a Transformer and the least that a training step holds, without building it.

    Parameters are counted exactly, all methods' included. Activations are a lower bound, summed over what backward
    keeps of each token: 6 · dim + 2 · hidden numbers per layer, and logits with their gradient.

    Args:
        config: arguments of :class:`headway.Transformer`, ``vocab`` included; what is left out has its default.
        batch: windows in a step; 0 counts the model alone.
        length: tokens in a window.
        optimizer: "adamw", "adam" or "sgd".
        position: count what the position method learns too; a method may loop over the widths it is given.

    Raises:
        HeadwayError: on values no model has, or a position method that cannot be made.

    >>> estimate({"vocab": 256, "dim": 64, "layers": 2, "heads": 4}).parameters
    115008
    """
    from headway.transformer import Transformer, check_config, hidden_width, two_sided

    check_config(config)
    defaults = {n: p.default for n, p in inspect.signature(Transformer).parameters.items() if n != "vocab"}
    given = {**defaults, **config}
    dim, layers, vocab = (int(given[name]) for name in ("dim", "layers", "vocab"))
    shape = HeadShape.of(dim, given["heads"], given["kv_heads"], given["head_dim"])
    hidden = int(given["hidden"] or 0) or hidden_width(dim, given["activation"])
    options = int(given["sinks"]) * shape.heads + int(given["qk_norm"]) * 2 * shape.head_dim
    bias, norm = int(given["bias"]), dim * (2 if given["norm"] == "layer" else 1)

    def attention(plain: bool) -> int:  # plain: the cross attention, which has no options
        inner, inner_kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        count = 2 * dim * (inner + inner_kv) + bias * (inner + 2 * inner_kv + dim)
        return count + (0 if plain else options)

    wide = 2 if given["activation"] == "swiglu" else 1
    mlp = dim * hidden * (wide + 1) + bias * (wide * hidden + dim)

    def stack(method: Any, cross: bool) -> int:
        layer = attention(plain=False) + mlp + 2 * norm + (attention(plain=True) + norm if cross else 0)
        share = not method.per_layer if given["share_position"] is None else given["share_position"]
        own = _learned(method, shape) * (1 if share else layers) if position else 0
        return layers * layer + (0 if given["post_norm"] else norm) + own

    method = _parsed(given["position"])
    both = given["kind"] == "encoder-decoder"
    parameters = vocab * dim * (1 if given["tie"] else 2) + stack(method, both)
    if both:
        parameters += stack(two_sided(method), False)
    states = 2 + _STATES.get(optimizer, 2)
    tokens = batch * length
    kept = tokens * ((2 if both else 1) * layers * (6 * dim + 2 * hidden) + 2 * vocab)
    return Size(parameters, _BYTES * (states * parameters + kept))


def check_size(
    config: Mapping[str, Any],
    *,
    batch: int = 0,
    length: int = 0,
    optimizer: str = "adamw",
    room: int | None = None,
) -> Size:
    """Refuse a model, or a training step of it, that would not fit; see :func:`estimate` for the arguments.

    Args:
        config: of the model.
        batch: windows in a step; 0 checks the model alone.
        length: tokens in a window.
        optimizer: "adamw", "adam" or "sgd".
        room: bytes it may take; default what is free now.

    Raises:
        HeadwayError: when it takes more, with both numbers.

    >>> check_size({"vocab": 256, "dim": 10**6, "layers": 1, "heads": 1}, room=10**9)
    Traceback (most recent call last):
    headway.shapes.HeadwayError: expected a model of at most 1.0 GB, got 12,000,259,000,000 parameters (48,001.0 GB): \
choose a smaller dim, layers, vocabulary or position method
    """
    limit = available_memory() if room is None else room
    size = estimate(config, position=False)  # which checks the types
    if config.get("layers", 1) > LAYERS:
        raise HeadwayError(f"expected at most {LAYERS:,} layers, got {config['layers']:,}: choose fewer")
    for position in (False, True):  # first without what only building a method can tell
        size = estimate(config, batch=batch, length=length, optimizer=optimizer, position=position)
        if size.weights > limit:
            raise HeadwayError(
                f"expected a model of at most {_gigabytes(limit)}, got {size.parameters:,} parameters "
                f"({_gigabytes(size.weights)}): choose a smaller dim, layers, vocabulary or position method"
            )
        if batch and size.step > limit:
            raise HeadwayError(
                f"expected a training step of at most {_gigabytes(limit)}, got at least {_gigabytes(size.step)} "
                f"({size.parameters:,} parameters, {batch:,} windows of {length:,} tokens): "
                f"choose a smaller batch, length or model"
            )
    if room is None:  # and whatever the method holds besides, at its first use
        measured(config, tokens=max(length, 1), batch=max(batch, 1), training=batch > 0, most=limit)
    return size


def _gigabytes(count: int) -> str:
    # whole numbers: a hostile one may be too large for a float
    return f"{count // 10**9:,}.{count % 10**9 // 10**8} GB"


def _parsed(position: Any) -> Any:
    from headway.positions import parse

    return parse(position) if isinstance(position, str) else position


def _learned(position: Any, shape: HeadShape) -> int:
    """The numbers one object of a method learns."""
    try:
        with metered():
            made = position.fresh()
            made.build(shape)
    except (TooLarge, RuntimeError, OverflowError, TypeError, MemoryError) as error:
        raise HeadwayError(
            f"expected a position method of a size that can be made, got {position.spec():.80}: "
            f"choose smaller hyperparameters"
        ) from error
    return sum(int(p.numel()) for p in (*made.parameters(), *made.buffers()))
