"""Positions and other integers given as tensors, arrays or lists; values are checked where reading them is free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

from headway.shapes import HeadwayError, brief, broadcasts

Positions = Int[Tensor, "#batch _"]
FAR = 2**40
"""Larger than any distance, because positions are below it."""


@runtime_checkable
class Array(Protocol):
    """Anything that NumPy can convert to an array."""

    def __array__(self, *_: Any, **__: Any) -> Any: ...


Integers = Int[Tensor, "..."] | Array | Sequence[Any]
"""Integers as users pass them: a tensor, a NumPy array, or a list (of lists)."""


def as_integers(given: Integers, name: str, device: torch.device | None = None) -> Int[Tensor, "..."]:
    """Integers as an int64 tensor; a tensor stays on its device, anything else goes to ``device``.

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
    """Whether a tensor's values may be read: not while torch traces or transforms, nor on the meta device.

    Args:
        x: the tensor.
        anywhere: also on a GPU, which has to be waited for; otherwise only where reading is nearly free.
    """
    if torch.compiler.is_compiling() or not (anywhere or x.device.type == "cpu"):
        return False
    return not x.is_meta and type(x) in _PLAIN and not torch._C._functorch.is_functorch_wrapped_tensor(x)


_PLAIN = (Tensor, nn.Parameter)


def exporting() -> bool:
    """Whether ``torch.export`` traces, also for ONNX: its program serves every length, so nothing may depend on one."""
    return torch.compiler.is_exporting()


# torch 2.11 says under torch.compile that it exports, unless the function is called while it traces
exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def assure(holds: bool | Bool[Tensor, ""], message: str) -> None:
    """Raise unless it holds; on a GPU, which is not waited for, the device stops with the message.

    Raises:
        HeadwayError: with the message.
    """
    if isinstance(holds, Tensor) and not readable(holds):
        torch._assert_async(holds, message)
    elif not holds:
        raise HeadwayError(message)


def in_range(pos: Int[Tensor, "..."], name: str, least: int = -1) -> Int[Tensor, "..."]:
    """Check positions and return them; values are checked only where reading is nearly free: on a CPU, uncompiled.

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
        name: their name in messages.
        looked_at: whether their values are known to be in range.

    Raises:
        HeadwayError: when they are not integers, not one per token, on another device, or (on a CPU) out of range.
    """
    batch, tokens = x.shape[:2]
    if pos is None:
        return torch.arange(tokens, device=x.device)[None]
    if isinstance(pos, Tensor) and pos.dtype is torch.bool:
        raise HeadwayError(
            f"expected integer {name}, got torch.bool: for a mask that is True at tokens and False at padding pass "
            f"(mask.cumsum(-1) - 1).masked_fill(~mask, -1)"
        )
    pos = as_integers(pos, name, x.device)
    pos = pos[None] if pos.ndim == 1 else pos
    if pos.ndim != 2 or pos.shape[1] != tokens or not broadcasts(pos.shape[0], batch):
        raise HeadwayError(f"expected {name} of shape ({batch} or 1, {tokens}), got {tuple(pos.shape)}")
    if pos.device != x.device:
        raise HeadwayError(f"expected {name} on {x.device}, got {pos.device}")
    return pos if looked_at else in_range(pos, name)
