"""A C++ kernel as one differentiable step of autograd, and as operators of torch wherever these are observed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from headway.backends import operators
from headway.backends.base import transforms
from headway.shapes import HeadwayError

Forward = Callable[..., tuple[Tensor, ...]]
Backward = Callable[..., Sequence[Tensor | None]]


class Operation:
    """A pair of functions: ``forward(*given)`` returns the output and what backward needs besides what was given;
    ``backward(grad, *results, needed, *given)`` returns the gradients of the first inputs, anything for one that is not
    needed.

    Args:
        name: of the operators, ``headway::NAME_forward`` and ``headway::NAME_backward``.
        given: the schema of what forward is given, all tensors first.
        results: number of tensors that forward returns.
        differentiable: how many of the inputs have gradients.
        forward: see above.
        backward: see above.
        empty: what forward returns, uninitialised, in the shapes and strides of its results.
        gradients: likewise of backward, tensors without entries where none are needed.
        products: matrix products over all pairs of query and key, forward and backward, see
            :func:`headway.backends.operators.count`.
    """

    def __init__(
        self,
        name: str,
        given: str,
        results: int,
        differentiable: int,
        forward: Forward,
        backward: Backward,
        empty: Forward,
        gradients: Backward,
        products: tuple[int, int] = (2, 5),
    ) -> None:
        self._name, self._results, self._differentiable, self._products = name, results, differentiable, products
        self._tensors, self._inputs = given.count("Tensor"), given.count(",") + 1
        kept = "".join(f", Tensor kept_{i}" for i in range(1, results))
        returned = f"({', '.join(['Tensor'] * results)})"
        self._forward_op = torch.library.custom_op(
            f"headway::{name}_forward", forward, mutates_args=(), schema=f"({given}) -> {returned}"
        )
        self._backward_op = torch.library.custom_op(
            f"headway::{name}_backward",
            _all_tensors(backward),
            mutates_args=(),
            schema=f"(Tensor grad, Tensor out{kept}, bool[] needed, {given}) -> Tensor[]",
        )
        self._forward_op.register_fake(empty)
        self._forward_op.register_autograd(self._differentiate, setup_context=self._keep)
        self._backward_op.register_fake(gradients)
        self._backward = backward
        self._step, self._step_back = _step(forward, self._keep, self._differentiate), _step_back(backward)

    def __call__(self, *given: Any, at: int = 0) -> Tensor:
        """The output, differentiable.

        Args:
            given: what forward is given.
            at: which of them is q; k and v follow.
        """
        if operators.are_seen(*given[at : at + 3]):
            operators.count(getattr(torch.ops.headway, f"{self._name}_forward"), at, self._products[0])
            out: Tensor = self._forward_op(*given)[0]
        elif transforms():
            out = self._step.apply(*given)[0]
        else:  # what its apply does then, which would bind the many arguments by name first
            function: Any = torch.autograd.Function
            inputs = (*_alive(given[: self._tensors]), *given[self._tensors :])
            out = super(function, self._step).apply(*inputs)[0]  # type: ignore[misc]
        return out

    def _keep(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[: self._tensors], *output)
        ctx.numbers = inputs[self._tensors :]

    def _differentiate(self, ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = _alive(ctx.saved_tensors)
        needed = list(ctx.needs_input_grad[: self._differentiable])
        compute: Any = self._backward
        if operators.are_seen(grad, *saved[:3]):
            operators.count(getattr(torch.ops.headway, f"{self._name}_backward"), self._results + 2, self._products[1])
            compute = self._backward_op
        elif transforms():
            compute = self._step_back.apply
        gradients = compute(grad, *saved[self._tensors :], needed, *saved[: self._tensors], *ctx.numbers)
        rest = self._inputs - self._differentiable
        return (*(g if need else None for g, need in zip(gradients, needed, strict=True)), *(None,) * rest)


def _alive(tensors: Sequence[Tensor | None]) -> list[Any]:
    """The tensors inside those of transforms of ``torch.func`` that have ended."""
    return [None if x is None else torch._C._functorch.unwrap_if_dead(x) for x in tensors]


def _step(forward: Forward, keep: Callable[..., None], differentiate: Callable[..., Any]) -> Any:
    """The kernel as one step of autograd."""

    def vmap(info: Any, in_dims: tuple[Any, ...], *given: Any) -> Any:
        return _one_by_one(step.apply, info, in_dims, given)

    members = {"forward": forward, "setup_context": keep, "backward": differentiate, "vmap": vmap}
    step: Any = type("Attention", (torch.autograd.Function,), {k: staticmethod(f) for k, f in members.items()})
    return step


def _step_back(backward: Backward) -> Any:
    """The backward pass under ``torch.func.grad``, which unwraps the tensors of a function's forward pass."""

    complete = _all_tensors(backward)

    def forward(*given: Any) -> tuple[Tensor, ...]:
        return tuple(complete(*given))

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise HeadwayError(
            "expected one backward pass, because backend 'native' cannot be differentiated twice, got a gradient of a "
            "gradient: use backend='reference'"
        )

    return _step(forward, keep, refuse)


def _all_tensors(backward: Backward) -> Callable[..., list[Tensor]]:
    """A backward pass that returns a tensor without entries instead of None, as torch's operators must."""

    def complete(grad: Tensor, *given: Any) -> list[Tensor]:
        return [grad.new_empty(0) if x is None else x for x in backward(grad, *given)]

    return complete


def _one_by_one(apply: Any, info: Any, in_dims: Sequence[Any], given: Sequence[Any]) -> Any:
    """The rule for ``vmap``: run the kernel once per entry of the mapped dimension."""

    def entry(at: int) -> Any:
        return apply(*(x.select(dim, at) if isinstance(dim, int) else x for x, dim in zip(given, in_dims, strict=True)))

    results = zip(*(entry(at) for at in range(info.batch_size)), strict=True)
    stacked = tuple(torch.stack(tensors) for tensors in results)
    return stacked, (0,) * len(stacked)
