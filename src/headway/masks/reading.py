"""Analyse masks (their parts, their reach, whether they fit a call), and convert those of other libraries."""

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
    """The masks that ``mask`` combines by ``&``."""
    own = [] if mask is None else [mask]
    return [*parts(mask.first), *parts(mask.second)] if isinstance(mask, And) else own


def reach(mask: Mask | None) -> tuple[int, int]:
    """How far into the past and the future a query may see; if :func:`is_distance_only`, it sees everything in between.

    Every range contains distance 0, so intersections and unions of ranges are ranges too.
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
    """Whether a mask depends on distance alone."""
    if isinstance(mask, And | Or):
        return is_distance_only(mask.first) and is_distance_only(mask.second)
    return mask is None or isinstance(mask, Causal | Window)


def padding(mask: Mask | None) -> tuple[Mask | None, Bool[Tensor, "#batch keys"] | None]:
    """A mask without its :class:`KeyPadding` parts, and which keys those leave visible; None for all."""
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
    """Split a ``mask`` argument into a mask and a bias: a float tensor is a bias, as in torch's ``attn_mask``."""
    if isinstance(given, Tensor) and given.is_floating_point():
        return None, given
    return as_mask(given), None


def fitted(mask: Mask | None, batch: int, queries: int, keys: int, device: torch.device) -> Mask | None:
    """Check a mask against a call's sizes and device; a Dense mask gets all four axes.

    Raises:
        HeadwayError: when a dense mask has another size, or could be (queries, keys) as well as (batch, keys); when
            one of its tensors is on another device.
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
                    f"expected a mask with unambiguous axes, got {tuple(visible.shape)}, which fits (queries, keys) as "
                    f"well as (batch, keys): pass mask[None, None] if it is the former; mark padding by position -1 "
                    f"instead of by a mask"
                )
            mask = Dense(visible[None, None])
        case Dense(visible) if visible.shape[-2:] != (queries, keys):
            mask.tile(visible.new_empty(1, queries), visible.new_empty(1, keys))  # raises
    for name, held in contents(mask).items():
        if isinstance(held, Tensor) and held.device != device:
            raise HeadwayError(f"expected the {name} of {type(mask).__name__} on {device}, got {held.device}")
    return mask


def from_hf(attention_mask: Tensor) -> Mask:
    """The ``attention_mask`` of transformers as a mask, to be combined with others by ``&``.

    Args:
        attention_mask: a padding mask (batch, keys) of 1 and 0 or True and False; or the expanded mask (batch, 1 or
            heads, queries, keys), boolean or additive: 0 for visible keys, the dtype's minimum or -inf for hidden ones.

    Raises:
        HeadwayError: on other values: those are a bias, :class:`headway.terms.DenseBias`.

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
            raise HeadwayError("expected an attention_mask (batch, keys) of 1 and 0, got other values")
        return KeyPadding(given.bool())
    if given.dtype is torch.bool:
        return Dense(given)
    if not given.is_floating_point():
        return Dense(given != 0)
    hidden = given <= torch.finfo(given.dtype).min / 2
    if readable(given) and bool((given.masked_fill(hidden, 0) != 0).any()):
        raise HeadwayError(
            "expected an additive attention_mask of 0 and the dtype's minimum or -inf, got other values: to add a bias "
            "pass headway.terms.DenseBias(attention_mask)"
        )
    return Dense(~hidden)
