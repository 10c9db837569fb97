"""torch.compile(fullgraph=True) = eager. Run by test_compile.py, in a process of its own without shape checks, which
dynamo cannot follow.
"""

from __future__ import annotations

import pytest
import torch
from common import attention, every_method, named, transformer
from options import Option, models

from headway import Causal, Dense, Documents, HeadwayError, Prefix, Window, attend
from headway.backends import native
from headway.masks import Blocks, Chunks
from headway.terms import ByDistance


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


@every_method("compile", layers=True)
def test_attention(spec: str) -> None:
    padded_and_packed(spec, "aot_eager")


@every_method("compile", layers=True)
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
    for batch, tokens in ((2, 7), (3, 12), (5, 30)):
        x, pos = torch.randn(batch, tokens, 48).double(), torch.arange(tokens).expand(batch, -1).clone()
        pos[0, :2] = -1
        torch.testing.assert_close(compiled(x), module(x))
        torch.testing.assert_close(compiled(x, pos=pos), module(x, pos=pos))


def test_attend_by_itself() -> None:
    q = torch.randn(1, 4, 7, 8)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, q, q, mask=Causal()), attend(q, q, q, mask=Causal()))


@pytest.mark.skipif(native.unavailable() is not None, reason="there is no C++ compiler")
def test_masks_of_native() -> None:
    q = torch.randn(1, 2, 130, 16)
    mask = (Dense(torch.rand(130, 260)[:, ::2] < 0.5) | Prefix(3)) & Chunks(30)
    few = Causal() & Blocks(torch.ones(2, 3, dtype=torch.bool), 64)
    compiled = torch.compile(lambda q, mask: attend(q, q, q, mask=mask, backend="native"), backend="eager")
    torch.testing.assert_close(compiled(q, mask), attend(q, q, q, mask=mask, backend="reference"))
    with pytest.raises(HeadwayError, match="expected positions in 2 blocks of the mask, got one in block 2"):
        compiled(q, few)


@pytest.mark.skipif(native.unavailable() is not None, reason="there is no C++ compiler")
def test_a_compiled_call_runs_the_kernel_and_an_exported_one_does_not() -> None:
    targets: list[str] = []

    def seen(graph: torch.fx.GraphModule, _: object) -> object:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    module, x = attention("t5", mask=Causal()), torch.randn(2, 7, 48).double()
    torch.compiler.reset()
    torch.compile(module, fullgraph=True, backend=seen)(x)
    assert any("native_forward" in target for target in targets)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(module, (x,), dynamic_shapes=(free,), strict=True)
    assert "native_forward" not in str(program.graph)
    x = torch.randn(3, 20, 48).double()
    torch.testing.assert_close(program.module()(x), module(x))


def test_masks_that_meet_tensors() -> None:
    q, seen = torch.randn(1, 4, 7, 8), torch.rand(7, 7) > 0.3
    for meet in (lambda x, seen: Window(3) & seen, lambda x, seen: seen & Window(3), lambda x, seen: seen | Window(1)):
        torch.compiler.reset()
        expected = attend(q, q, q, mask=meet(q, seen))
        compiled = torch.compile(
            lambda x, seen, meet=meet: attend(x, x, x, mask=meet(x, seen)), fullgraph=True, backend="aot_eager"
        )
        torch.testing.assert_close(compiled(q, seen), expected)


@pytest.mark.parametrize("spec", models(), ids=named)
def test_model(spec: str) -> None:
    same(transformer(spec), torch.randint(17, (2, 7)), "eager")


@pytest.mark.parametrize("spec", ["rotary", "t5", "selectiverotary", *models()], ids=named)
def test_one_step_of_decoding_for_all_lengths(spec: str) -> None:
    """With a cache of fixed size nothing is compiled again, not even after it was rolled back."""
    torch.compiler.reset()
    layers = 2 if isinstance(spec, Option) else 1
    model, tokens = transformer(spec, layers=layers), torch.randint(17, (2, 9))
    step = torch.compile(model, fullgraph=True, backend="aot_eager")
    cache, expected = model.new_cache(size=9), model(tokens)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        model(tokens[:, :4], cache=cache)
        for n in (4, 5, 6):
            torch.testing.assert_close(step(tokens[:, n : n + 1], cache=cache)[:, 0], expected[:, n])
        cache.crop(5)
        for n in (5, 6, 7, 8):
            torch.testing.assert_close(step(tokens[:, n : n + 1], cache=cache)[:, 0], expected[:, n])
        with pytest.raises(RuntimeError, match="expected at most 9 tokens, the size of the cache, got more"):
            step(tokens[:, :1], cache=cache)


def test_hidden_nan_in_generated_code() -> None:
    """What the kernel does about NaN happens when it runs, forward and backward."""
    q, k = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
    k[:, :, 4] = torch.nan
    for given in (False, True):
        results = []
        for run in (attend, torch.compile(attend, fullgraph=True, backend="aot_eager")):
            inputs = [x.clone().requires_grad_(given) for x in (q, k, k)]
            out = run(*inputs, mask=Causal())
            assert bool(out[:, :, :4].isfinite().all() and out[:, :, 4:].isnan().all())
            results.append([out, *(torch.autograd.grad(out[:, :, :4].sum(), inputs) if given else ())])
        for expected, got in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("groups", [1, 2])
def test_one_query_in_generated_code(groups: int) -> None:
    """Padding, hidden NaN and NaN that is seen, in the operator that generated code calls for one query."""
    q, k, v = torch.randn(5, 2, 1, 4), torch.randn(5, 2 // groups, 6, 4), torch.randn(5, 2 // groups, 6, 8)
    q_pos = torch.tensor([[3], [3], [-1], [3], [3]])  # plain; hidden NaN; no token; NaN that is seen; a query of NaN
    k_pos = torch.arange(6).expand(5, -1).clone()
    k_pos[:, 5] = -1
    k[1, :, 4:], v[1, :, 5], k[2], v[3, :, 1], q[4] = torch.nan, torch.inf, torch.nan, torch.inf, torch.nan
    given = {"mask": Causal(), "q_pos": q_pos, "k_pos": k_pos, "terms": (ByDistance(torch.randn(2, 9), left=8),)}
    with torch.no_grad():
        expected = attend(q, k, v, **given, backend="reference")
        compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
        got = compiled(q, k, v, **given)
    assert [bool(row.isfinite().all()) for row in got] == [True, True, True, False, False]
    assert not bool(got[2].any())
    torch.testing.assert_close(got, expected, equal_nan=True)
