"""Masks as others give them, and what can be said of one: its parts, how far it reaches, whether it fits a call."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from headway.integers import FAR, Array, readable
from headway.masks.base import And, Causal, Dense, Mask, Or, Window, as_mask
from headway.masks.patterns import KeyPadding
from headway.shapes import HeadwayError, brief, contents


def parts(mask: Mask | None) -> list[Mask]:
    """The masks whose conjunction ``mask`` is."""
    own = [] if mask is None else [mask]
    return [*parts(mask.first), *parts(mask.second)] if isinstance(mask, And) else own


def reach(mask: Mask | None) -> tuple[int, int]:
    """How far behind and before a query a mask may let it see; all between, if :func:`is_distance_only`.

    Each range holds distance 0, so that ranges that meet or join are ranges again.
    """
    match mask:
        case Causal():
            return FAR, 0
        case Window(left, right):
            return min(left, FAR), min(right, FAR)
        case And(first, second) | Or(first, second):
            choose = min if isinstance(mask, And) else max
            (past, future), (other_past, other_future) = reach(first), reach(second)
            return choose(past, other_past), choose(future, other_future)
        case _:
            return FAR, FAR


def is_distance_only(mask: Mask | None) -> bool:
    """Whether a mask hides by distance alone."""
    if isinstance(mask, And | Or):
        return is_distance_only(mask.first) and is_distance_only(mask.second)
    return mask is None or isinstance(mask, Causal | Window)


def padding(mask: Mask | None) -> tuple[Mask | None, Bool[Tensor, "#batch keys"] | None]:
    """A mask without the :class:`KeyPadding` in its conjunction, and which keys that leaves, None for all."""
    found = [part for part in parts(mask) if isinstance(part, KeyPadding)]
    if not found:
        return mask, None
    rest: Mask | None = None
    for part in parts(mask):
        if not isinstance(part, KeyPadding):
            rest = part if rest is None else And(rest, part)
    real = found[0].real
    for part in found[1:]:
        real = real & part.real
    return rest, real


def divided(given: Mask | Tensor | Array | None) -> tuple[Mask | None, Tensor | None]:
    """What is given as a mask: the mask, or numbers to add to scores, as torch's ``attn_mask`` takes both."""
    if isinstance(given, Tensor) and given.is_floating_point():
        return None, given
    return as_mask(given), None


def fitted(mask: Mask | None, batch: int, queries: int, keys: int, device: torch.device) -> Mask | None:
    """The mask for tokens of these numbers on this device, a Dense one with all four axes.

    Raises:
        HeadwayError: when a dense mask is of another size, or could be (queries, keys) as well as (batch, keys); when
            a tensor it holds is elsewhere.
    """
    match mask:
        case None | Causal() | Window():
            return mask
        case And(first, second) | Or(first, second):
            sides = tuple(fitted(side, batch, queries, keys, device) for side in (first, second))
            same = sides[0] is first and sides[1] is second
            return mask if same else type(mask)(*sides)  # type: ignore[arg-type]
        case Dense(Tensor() as visible) if visible.ndim == 2 and visible.shape == (queries, keys):
            if batch == queries and batch > 1:
                raise HeadwayError(
                    f"expected a mask whose axes are plain, got {tuple(visible.shape)}, which is (queries, keys) as "
                    f"well as (batch, keys): pass mask[None, None] if it is the first; a mask of padding is given as "
                    f"positions, -1 at padding"
                )
            mask = Dense(visible[None, None])
        case Dense(visible) if visible.shape[-2:] != (queries, keys):
            mask.tile(visible.new_empty(1, queries), visible.new_empty(1, keys))  # which refuses it
    for name, held in contents(mask).items():
        if isinstance(held, Tensor) and held.device != device:
            raise HeadwayError(f"expected the {name} of {type(mask).__name__} on {device}, got {held.device}")
    return mask


def from_hf(attention_mask: Tensor) -> Mask:
    """The ``attention_mask`` of transformers as a mask, to be combined with others by ``&``.

    Args:
        attention_mask: (batch, keys) of 1 and 0 or True and False, which says what is padding; or what a model makes of
            it, (batch, 1 or heads, queries, keys): True and False, or numbers to add, 0 where a key is seen and the
            lowest number, or -inf, where not.

    Raises:
        HeadwayError: on other numbers: those are a bias, :class:`headway.terms.DenseBias`.

    >>> from_hf(torch.tensor([[1, 1, 0]]))
    KeyPadding(real=(1, 3))
    """
    given: Any = attention_mask
    if not isinstance(given, Tensor) or given.ndim not in (2, 3, 4):
        got = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else brief(given)
        raise HeadwayError(f"expected an attention_mask of 2 to 4 axes, got {got}")
    if given.ndim == 2:
        known = (given == 0) | (given == 1)
        if readable(known) and not bool(known.all()):
            raise HeadwayError("expected an attention_mask (batch, keys) of 1 and 0, got other numbers")
        return KeyPadding(given.bool())
    if given.dtype is torch.bool:
        return Dense(given)
    if not given.is_floating_point():
        return Dense(given != 0)
    hidden = given <= torch.finfo(given.dtype).min / 2
    if readable(given) and bool((given.masked_fill(hidden, 0) != 0).any()):
        raise HeadwayError(
            "expected an attention_mask to add that is 0 or the lowest number, got others: that is a bias, pass "
            "headway.terms.DenseBias(attention_mask)"
        )
    return Dense(~hidden)
