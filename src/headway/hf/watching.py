"""The one call of attention in other people's models, and those who look on while it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from headway import functional

Look = Callable[[nn.Module, Tensor, Tensor, Tensor, dict[str, Any]], None]
"""Called with an attention's module, its queries, keys and values, and the other arguments of ``attend``."""
_LOOKING: list[Look] = []


def watched() -> bool:
    """Whether somebody looks on, so that every attention has to be computed here."""
    return bool(_LOOKING)


@contextmanager
def looking(look: Look) -> Iterator[None]:
    """Call ``look`` at every attention in this block."""
    _LOOKING.append(look)
    try:
        yield
    finally:
        _LOOKING.remove(look)


def attend(
    module: nn.Module,
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch kv_heads keys dim"],
    v: Float[Tensor, "batch kv_heads keys dim_v"],
    **given: Any,
) -> Float[Tensor, "batch heads queries dim_v"]:
    """:func:`headway.functional.attend` for an attention of a model, which those who look on see too."""
    for look in tuple(_LOOKING):
        look(module, q, k, v, given)
    return functional.attend(q, k, v, **given)
