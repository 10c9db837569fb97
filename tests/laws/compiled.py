"""torch.compile(fullgraph=True) = eager. Run by test_compile.py, in a process of its own without shape checks, which
dynamo cannot follow.
"""

from __future__ import annotations

import pytest
import torch
from common import attention, every_method, transformer

from headway import Causal, Documents, Window, attend


def same(module: torch.nn.Module, x: torch.Tensor, backend: str = "aot_eager", **given: object) -> None:
    """Values and gradients.

    Args:
        backend: "eager" traces only, "aot_eager" brings in the graphs of gradients, "inductor" generates code.
    """
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    results = []
    for run in (module, compiled):
        out = run(x, **given)
        # a table of distances that a mask hides has no gradient
        found = torch.autograd.grad(out.square().sum(), list(module.parameters()), allow_unused=True)
        results.append([out, *(g for g in found if g is not None)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def padded_and_packed(spec: str, backend: str) -> None:
    module = attention(spec, mask=Causal() & Window(3))
    pos = torch.tensor([[-1, 0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6]])
    documents = Documents(torch.tensor([[0, 0, 0, 0, 1, 1, 1]]))
    same(module, torch.randn(2, 7, 48).double(), backend, pos=pos, mask=documents)


@every_method("compile")
def test_attention(spec: str) -> None:
    padded_and_packed(spec, "aot_eager")


@every_method("compile")
def test_attention_traced(spec: str) -> None:
    padded_and_packed(spec, "eager")


@every_method("compile")
def test_transformer(spec: str) -> None:
    same(transformer(spec, layers=1), torch.randint(17, (2, 7)))


@pytest.mark.slow  # the C++ compiler takes half a minute
def test_generated_code() -> None:
    same(attention("t5", mask=Causal()), torch.randn(2, 7, 48).double(), backend="inductor")


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_lengths_that_change(backend: str) -> None:
    module = attention("rotary", mask=Causal())
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=True)
    for tokens in (7, 12, 30):
        x = torch.randn(2, tokens, 48).double()
        torch.testing.assert_close(compiled(x), module(x))


def test_attend_by_itself() -> None:
    q = torch.randn(1, 4, 7, 8)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, q, q, mask=Causal()), attend(q, q, q, mask=Causal()))


def test_masks_that_meet_tensors() -> None:
    q, seen = torch.randn(1, 4, 7, 8), torch.rand(7, 7) > 0.3
    for meet in (lambda x, seen: Window(3) & seen, lambda x, seen: seen & Window(3), lambda x, seen: seen | Window(1)):
        torch.compiler.reset()
        expected = attend(q, q, q, mask=meet(q, seen))
        compiled = torch.compile(
            lambda x, seen, meet=meet: attend(x, x, x, mask=meet(x, seen)), fullgraph=True, backend="aot_eager"
        )
        torch.testing.assert_close(compiled(q, seen), expected)
