"""The one call of attention in other people's models, and those who look on while it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from headway import functional
from headway.terms import AnyTerm

Look = Callable[[nn.Module, Tensor, Tensor, Tensor, dict[str, Any]], None]
"""Called with an attention's module, its queries, keys and values, and the other arguments of ``attend``."""
PLACED = "headway_placed"
"""Where an attention has it."""
FEW = 2**24
"""Scores of a call, of all heads, up to which the reference computes them while somebody looks on."""
_LOOKING: list[Look] = []


class Placed(Protocol):
    """Gives an attention another position method, see :func:`headway.hf.swap_position`."""

    def __call__(self, q: Tensor, k: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Queries, keys and the other arguments of ``attend``."""
        ...

    def turn_values(self, v: Tensor, pos: Tensor | None, *, back: bool = False) -> Tensor:
        """Values or outputs, see :meth:`headway.positions.Position.turn_values`."""
        ...


def watched() -> bool:
    """Whether somebody looks on, so that every attention has to be computed here."""
    return bool(_LOOKING)


def replaced(module: nn.Module) -> bool:
    """Whether an attention has another position method than its model."""
    return PLACED in module.__dict__


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
    *,
    position: tuple[AnyTerm, ...] = (),
    **given: Any,
) -> Float[Tensor, "batch heads queries dim_v"]:
    """:func:`headway.functional.attend` for an attention of a model, which those who look on see too.

    Args:
        module: the attention.
        q: queries.
        k: keys, with those of a cache.
        v: values.
        position: the terms by which the model's own position enters, which another method may replace.
        given: the other arguments of ``attend``.
    """
    placed: Placed | None = module.__dict__.get(PLACED)
    if placed is None:
        given["terms"] = (*position, *given.get("terms", ()))
    else:
        q, k, given = placed(q, k, given)
    for look in tuple(_LOOKING):
        look(module, q, k, v, given)
    if watched() and q.shape[:3].numel() * k.shape[2] <= FEW:
        given.setdefault("backend", "reference")  # who looks at a short text need not wait for a compiler
    if placed is None:
        return functional.attend(q, k, v, **given)
    out = functional.attend(q, k, placed.turn_values(v, given.get("k_pos")), **given)
    return placed.turn_values(out, given.get("q_pos"), back=True)
