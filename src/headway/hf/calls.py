"""The arguments of a call of a transformers module, as its hooks get them: some by place, some by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
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
