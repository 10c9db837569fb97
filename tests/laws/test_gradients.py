"""Gradients are right to the last digit, on every backend and of every module, and once more differentiable on the
reference.
"""

from __future__ import annotations

import torch
from common import attention, every_method, make, through
from signatures import every_pair, every_signature
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from headway import Causal, Window, attend

POS = torch.tensor([[-1, 0, 1, 2, 5], [0, 1, 2, 3, 4]])


class Through(torch.nn.Module):
    """Attention with a method as a module, so that its parameters can be handed in."""

    def __init__(self, position: torch.nn.Module, **given: object) -> None:
        super().__init__()
        self.position, self.given = position, given

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return through(self.position, q, k, v, attend, **self.given)


def problem(spec: str, backend: str, mask: object) -> tuple[object, list[torch.Tensor]]:
    module = Through(make(spec, heads=2, kv_heads=1), q_pos=POS, k_pos=POS, mask=mask, backend=backend)
    module.double()
    names = [name for name, _ in module.named_parameters()]
    shapes = ((2, 2, 5, 8), (2, 1, 5, 8), (2, 1, 5, 8))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    inputs += [p.detach().clone().requires_grad_() for p in module.parameters()]

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return functional_call(module, dict(zip(names, parameters, strict=True)), (q, k, v))

    return call, inputs


@every_pair("gradcheck", 5, None, Causal(), Window(1, 1), start=1)  # as far as the last of POS
def test_gradcheck(spec: str, backend: str, mask: object) -> None:
    call, inputs = problem(spec, backend, mask)
    assert gradcheck(call, inputs, fast_mode=True)


@every_signature("gradcheck")
def test_gradgradcheck_on_the_reference(spec: str) -> None:
    call, inputs = problem(spec, "reference", Causal())
    assert gradgradcheck(call, inputs, fast_mode=True)


@every_method("gradcheck", variants=False, layers=True)
def test_gradcheck_of_the_module(spec: str) -> None:
    module = attention(spec, 2, 1, mask=Causal())
    names, parameters = zip(*module.named_parameters(), strict=True)
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)

    def call(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return functional_call(module, dict(zip(names, parameters, strict=True)), (x,), {"pos": POS})

    assert gradcheck(call, (x, *(p.detach().clone().requires_grad_() for p in parameters)), fast_mode=True)


@every_signature("gradcheck")
def test_forward_mode_on_the_reference(spec: str) -> None:
    call, inputs = problem(spec, "reference", Causal())
    assert gradcheck(call, inputs, check_forward_ad=True, check_backward_ad=False, fast_mode=True)
