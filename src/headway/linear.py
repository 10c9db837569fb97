"""Products with a layer's matrix, X Wᵀ + b, by the faster of the two libraries that torch brings.

torch multiplies float32 matrices on a CPU by MKL. On AMD's processors MKL uses AVX2 only, which is half the speed of
those that have AVX-512: 225 against 500 GFLOP/s on two cores of Zen 5. oneDNN, which torch has for other dtypes, uses
AVX-512. Nothing else changes: both sum in float32, long sums in parts, and so err alike. The gradient of W, a sum over
all tokens that suits neither, has a kernel of its own.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear as torchs
from torch.nn.modules.module import _has_any_global_hook

from headway.backends import operators
from headway.backends.base import transforms

OUTPUTS, PRODUCTS = 2**16, 2**23
"""Below so many outputs, or multiply-adds, oneDNN is no faster."""
WIDTH = 256
"""Terms that one sum of oneDNN takes. MKL divides longer ones, too; in one sum, 2,048 terms err 2.3 times as much."""
_PLAIN = (Tensor, nn.Parameter)


def project(layer: nn.Module, x: Float[Tensor, "*tokens width"]) -> Float[Tensor, "*tokens out"]:
    """``layer(x)``; of a plain ``nn.Linear`` that nothing watches or replaces, by the faster library.

    >>> layer = nn.Linear(3, 2)
    >>> torch.equal(project(layer, torch.ones(1, 3)), layer(torch.ones(1, 3)))
    True
    """
    if type(layer) is nn.Linear and _is_worth_it(x, layer.weight) and _is_bare(layer):
        return _multiplied(x, layer.weight, layer.bias)
    out: Tensor = layer(x)
    return out


def linear(
    x: Float[Tensor, "*tokens width"], weight: Float[Tensor, "out width"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*tokens out"]:
    """x Wᵀ + b, as :func:`torch.nn.functional.linear`, by the faster library.

    Args:
        x: (..., D).
        weight: W, (E, D).
        bias: b, (E,).
    """
    return _multiplied(x, weight, bias) if _is_worth_it(x, weight) else torchs(x, weight, bias)


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`linear` of a product that is worth it."""
    if not _is_plain(x, weight, bias):
        return torchs(x, weight, bias)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (x, weight, bias)):
        out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return out
    return _onednn(x, weight, bias)


@cache
def halved() -> bool:
    """Whether torch's float32 products run at half this processor's speed."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _vendor()


def _vendor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()  # not Linux


def _is_worth_it(x: Tensor, weight: Tensor) -> bool:
    """Whether the product is large enough here; what is traced has no sizes to decide by."""
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    if traced or not halved() or x.shape[-1] != weight.shape[1]:
        return False
    outputs = x.numel() // max(1, x.shape[-1]) * weight.shape[0]
    return outputs >= OUTPUTS and outputs * x.shape[-1] >= PRODUCTS


def _is_bare(layer: nn.Linear) -> bool:
    """Whether a call of the layer is its product and nothing else."""
    watched = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    replaced = "forward" in layer.__dict__ or layer._compiled_call_impl is not None
    return not (watched or replaced or _has_any_global_hook())


def _is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are float32 on the CPU, and torch is doing nothing with them but computing."""
    given = [x for x in tensors if x is not None]
    if any(type(x) not in _PLAIN or x.dtype is not torch.float32 or not x.is_cpu for x in given):
        return False
    if operators.are_followed() or transforms() or torch.is_autocast_enabled("cpu"):
        return False
    return bool(torch.backends.mkldnn.enabled)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product in parts of :data:`WIDTH` entries, of which oneDNN sums each from its first term to its last."""
    width = x.shape[-1]
    if width <= WIDTH:
        return _part(x, weight, bias)
    out = _part(x[..., :WIDTH].contiguous(), weight[:, :WIDTH].contiguous(), bias)
    for begin in range(WIDTH, width, WIDTH):  # slices as they lie would be multiplied a thousand times as slowly
        end = begin + WIDTH
        out += _part(x[..., begin:end].contiguous(), weight[:, begin:end].contiguous(), None)
    return out


def _part(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _gradient(grad: Tensor, x: Tensor) -> Tensor:
    """gradᵀ x, the gradient of W."""
    from headway.backends.native import weights

    large = grad.numel() * x.shape[1] >= PRODUCTS
    if large and not torch.is_grad_enabled() and _is_plain(grad, x) and weights.fits(grad, x):
        return weights.gradient_of_weights(grad, x)
    return linear(grad.mT, x.mT)  # differentiable once more


class _Linear(torch.autograd.Function):
    """The product with gradients, which are products, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        rows = grad.flatten(0, -2)
        for_x = linear(grad, weight.mT) if ctx.needs_input_grad[0] else None
        for_weight = _gradient(rows, x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        return for_x, for_weight, rows.sum(0) if ctx.needs_input_grad[2] else None
