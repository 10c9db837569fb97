"""The arguments of a call of a transformers module, as its hooks get them: some by place, some by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

CACHES = {"past_key_values", "past_key_value", "layer_past", "cache"}
"""What models call a cache of keys and values."""


def named(module: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by name, those that the module collects in ``kwargs`` too."""
    bound = inspect.signature(module.forward).bind(*args, **given).arguments
    return {**{name: value for name, value in bound.items() if name != "kwargs"}, **bound.get("kwargs", {})}


def input_of(args: tuple[Any, ...], given: Mapping[str, Any]) -> Tensor:
    """The first tensor that a layer is called with."""
    first: Tensor = args[0] if args else next(value for value in given.values() if isinstance(value, Tensor))
    return first


def cache_in(given: Mapping[str, Any]) -> Any:
    """The cache among arguments by name; None without one."""
    return next((given[name] for name in CACHES if given.get(name) is not None), None)


def first_position(model: Any, alike: Callable[[int], bool]) -> int | None:
    """The position that a model gives to the first token of a text: 0, or as RoBERTa's the one after its padding.

    Args:
        model: one that takes ``position_ids``.
        alike: whether the model does as usual with positions from there on.

    Returns:
        The first of them that does; None if neither does.
    """
    likely = dict.fromkeys((0, (model.config.pad_token_id or 0) + 1))
    return next((first for first in likely if alike(first)), None)
