"""Pairs of a vector's entries turned by angles (rotary methods), in one pass over memory, forward and backward.

(a, b) → (a cos − b sin, b cos + a sin); and cos and sin of many angles, where each token and head has its own.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway.backends import operators
from headway.backends.base import transforms
from headway.backends.native.library import KINDS, Arguments, even, unavailable, wide_of

SOURCE = "rotate.cpp"


def fits(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether the kernel can turn these: on a CPU, and where no tool of torch follows single operations."""
    return x.dtype in KINDS and cos.dtype is wide_of(x) and sin.dtype is cos.dtype and _takes(x, cos, sin)


def fits_waves(angles: Tensor) -> bool:
    """Whether the kernel can take cos and sin of these angles."""
    return angles.dtype is torch.float64 and _takes(angles)


def _takes(first: Tensor, *more: Tensor) -> bool:
    """Whether the kernel takes tensors like these, whatever their dtypes."""
    return (
        first.device.type == "cpu"
        and first.numel() > 0
        and not operators.are_followed(first, *more)
        and torch._C._get_tracing_state() is None
        and not transforms()
        and unavailable(SOURCE) is None
    )


def waves(angles: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """cos and sin of angles in float64, rounded to float32; the kernel must fit."""
    found: tuple[Tensor, Tensor] = _Waves.apply(angles)  # type: ignore[no-untyped-call]
    return found


class _Waves(torch.autograd.Function):
    """Of the angles' gradient too neither is computed twice."""

    @staticmethod
    def forward(ctx: Any, angles: Tensor) -> tuple[Tensor, Tensor]:
        given = angles.contiguous()
        cos, sin = (torch.empty_like(given, dtype=torch.float32) for _ in range(2))
        arguments = Arguments(SOURCE, "waves.h", torch.float32)
        arguments.call.count = given.numel()
        for name, x in (("angles", given), ("cos", cos), ("sin", sin)):
            arguments.put(name, x)
        arguments.run("headway_waves")
        if angles.requires_grad:
            ctx.save_for_backward(angles, cos, sin)
        return cos, sin

    @staticmethod
    def backward(ctx: Any, d_cos: Tensor, d_sin: Tensor) -> Tensor:
        angles, cos, sin = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            cos, sin = waves(angles)
        d_angles: Tensor = cos * d_sin - sin * d_cos
        return d_angles.double()


def rotate(
    x: Float[Tensor, "batch heads tokens dim"],
    cos: Float[Tensor, "#batch #heads #tokens pairs"],
    sin: Float[Tensor, "#batch #heads #tokens pairs"],
    interleaved: bool,
) -> Float[Tensor, "batch heads tokens dim"]:
    """Turn the first pairs of x: entries p and P + p, or 2p and 2p + 1; the kernel must fit."""
    if torch.is_grad_enabled() and (x.requires_grad or cos.requires_grad or sin.requires_grad):
        turned: Tensor = _Rotate.apply(x, cos, sin, interleaved)  # type: ignore[no-untyped-call]
        return turned
    return _turned(x, cos, sin, interleaved)


def _arguments(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Arguments, Tensor]:
    arguments = Arguments(SOURCE, "rotate.h", x.dtype)
    call, x = arguments.call, even(x)
    call.batch, call.heads, call.tokens, call.dim = x.shape
    call.pairs, call.interleaved, call.sign = cos.shape[-1], interleaved, 1.0
    out = torch.empty_like(x)
    for name, rows in (("x", x), ("out", out)):
        arguments.put(name, rows, "batch", "head", "row")
    for name, rows in (("cos", cos), ("sin", sin)):
        arguments.put_rows(name, rows.expand(*x.shape[:3], -1), "batch", "head", "row")
    return arguments, out


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    arguments, out = _arguments(x, cos, sin, interleaved)
    arguments.run("headway_rotate")
    return out


class _Rotate(torch.autograd.Function):
    """The kernel, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.waves = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ctx.save_for_backward(x if ctx.waves else None, cos, sin)
        ctx.interleaved = interleaved
        return _turned(x, cos, sin, interleaved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, cos, sin = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return (*_gradients(grad, x, cos, sin, ctx.interleaved), None)
        arguments, d_x = _arguments(grad, cos, sin, ctx.interleaved)
        arguments.call.sign = -1.0
        if not ctx.waves:
            arguments.run("headway_rotate")
            return d_x, None, None, None
        waves = [cos.new_empty(*grad.shape[:3], cos.shape[-1]) for _ in range(2)]
        arguments.put_rows("given", x, "batch", "head", "row")
        for name, empty in zip(("d_cos", "d_sin"), waves, strict=True):
            arguments.put(name, empty)
        arguments.run("headway_rotate")
        d_cos, d_sin = (d.sum_to_size(wave.shape) for d, wave in zip(waves, (cos, sin), strict=True))
        return d_x, d_cos, d_sin, None


def _gradients(
    grad: Tensor, x: Tensor | None, cos: Tensor, sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients, as functions that have gradients themselves."""
    d_x = rotate(grad, cos, -sin, interleaved)
    if x is None:
        return d_x, None, None
    (a, b), (g, h) = (_pairs(y, cos, interleaved) for y in (x, grad))
    return d_x, (a * g + b * h).sum_to_size(cos.shape), (a * h - b * g).sum_to_size(sin.shape)


def _pairs(x: Tensor, cos: Tensor, interleaved: bool) -> tuple[Tensor, ...]:
    """The first and the second entries of pairs, in the dtype of cos."""
    turned = x[..., : 2 * cos.shape[-1]].to(cos.dtype)
    return (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
