"""Positions and other whole numbers as people give them: tensors, arrays or lists, looked at where it costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from headway.shapes import HeadwayError, brief

Positions = Int[Tensor, "#batch _"]
FAR = 2**40
"""A distance no pair of tokens has, because positions are below it."""


@runtime_checkable
class Array(Protocol):
    """What NumPy and its kin hand over."""

    def __array__(self, *_: Any, **__: Any) -> Any: ...


Integers = Int[Tensor, "..."] | Array | Sequence[Any]
"""Integers as a user has them: a tensor, a NumPy array, or a list (of lists)."""


def as_integers(given: Integers, name: str, device: torch.device | None = None) -> Int[Tensor, "..."]:
    """Integers as an int64 tensor; a tensor stays where it is, what is none yet goes to ``device``.

    Raises:
        HeadwayError: when they are not integers.
    """
    if not isinstance(given, Tensor):
        if not isinstance(given, Array | Sequence) or isinstance(given, str | bytes):
            raise HeadwayError(
                f"expected {name} as an integer tensor, array or list, got {type(given).__name__} {brief(given)}"
            )
        try:
            made = torch.as_tensor(given, device=device)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise HeadwayError(f"expected {name} as an integer tensor, array or list, got {brief(given)}") from error
        given = made if made.numel() else made.long()  # an empty list has no dtype of its own
    if given.dtype is torch.bool or given.is_floating_point() or given.is_complex():
        few = {torch.float16: 2048, torch.bfloat16: 256}.get(given.dtype)
        why = "" if few is None else f", which cannot count past {few}"
        raise HeadwayError(f"expected integer {name}, got {given.dtype}{why}")
    return given.long()


def readable(x: Tensor, *, anywhere: bool = False) -> bool:
    """Whether the numbers of a tensor may be looked at: not while torch traces, transforms or only plans a computation.

    Args:
        x: what would be looked at.
        anywhere: on a GPU too, which has to finish first; otherwise only where a look is nearly free.
    """
    if torch.compiler.is_compiling() or not (anywhere or x.device.type == "cpu"):
        return False
    return not x.is_meta and type(x) in _PLAIN and not torch._C._functorch.is_functorch_wrapped_tensor(x)


_PLAIN = (Tensor, nn.Parameter)


def in_range(pos: Int[Tensor, "..."], name: str, least: int = -1) -> Int[Tensor, "..."]:
    """The positions themselves, looked at where that is nearly free: on a CPU and not under torch.compile.

    Raises:
        HeadwayError: when one is below ``least``, or so large that sums of them could overflow.
    """
    if readable(pos) and pos.numel():
        low, high = (int(end) for end in torch.aminmax(pos))
        if low < least or high >= FAR:
            allowed = "0 to 2^40 - 1, or -1 for padding" if least == -1 else "-2^40 + 1 to 2^40 - 1"
            got = low if low < least else high
            raise HeadwayError(f"expected {name} from {allowed}, got {got}: shift all by the same number")
    return pos


def as_positions(
    pos: Integers | None, x: Shaped[Tensor, "batch tokens *rest"], name: str = "positions", looked_at: bool = False
) -> Positions:
    """Positions of the tokens x as int64 of shape (B or 1, N) on its device; 0 … N−1 when none are given.

    Args:
        pos: integers, one per token, (B or 1, N) or (N,); -1 is padding.
        x: the tokens.
        name: what messages call them.
        looked_at: whether their values are known to be in range.

    Raises:
        HeadwayError: when they are not integers, not one per token, elsewhere, or (on a CPU) out of range.
    """
    batch, tokens = x.shape[:2]
    if pos is None:
        return torch.arange(tokens, device=x.device)[None]
    if isinstance(pos, Tensor) and pos.dtype is torch.bool:
        raise HeadwayError(
            f"expected integer {name}, got torch.bool: of a mask that is True at tokens and False at padding pass "
            f"(mask.cumsum(-1) - 1).masked_fill(~mask, -1)"
        )
    pos = as_integers(pos, name, x.device)
    pos = pos[None] if pos.ndim == 1 else pos
    if pos.ndim != 2 or pos.shape[1] != tokens or pos.shape[0] not in (1, batch):
        raise HeadwayError(f"expected {name} of shape ({batch} or 1, {tokens}), got {tuple(pos.shape)}")
    if pos.device != x.device:
        raise HeadwayError(f"expected {name} on {x.device}, got {pos.device}")
    return pos if looked_at else in_range(pos, name)
