"""PaTH in the native backend: exact in float64 on awkward calls, in O(n) memory, the same bits every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import assert_as_exact, on_two_threads, refusal
from torch import Tensor

from headway import Causal, Documents, Window, attend
from headway.backends import native
from headway.memory import peak_memory
from headway.plans import plan
from headway.positions import Path
from headway.terms import ByDistance, PathProduct, PerKey

pytestmark = pytest.mark.skipif(native.unavailable("path.cpp") is not None, reason="no kernel here")

MASKS = {
    "full": lambda n: None,
    "causal": lambda n: Causal(),
    "both sides": lambda n: Window(90, 70),
    "documents": lambda n: Causal() & Documents((torch.arange(n) // 41)[None]),
}


def drawn(keys: int, queries: int | None = None, heads: tuple[int, int, int] = (4, 2, 2)) -> dict[str, Tensor]:
    """q, k, v, directions w, reflections beta, and a bias per key for FoX; heads of queries, of w and of keys."""

    def normal(heads: int, tokens: int, *width: int) -> Tensor:
        return torch.randn(2, heads, tokens, *width, dtype=torch.float64)

    w = torch.nn.functional.normalize(normal(heads[1], keys, 20), dim=-1)
    found = {
        "q": normal(heads[0], queries or keys, 20),
        "k": normal(heads[2], keys, 20),
        "v": normal(heads[2], keys, 12),
    }
    return {**found, "w": w, "beta": 2 * torch.rand(2, heads[1], keys).double(), "per_key": normal(heads[0], keys)}


def run(inputs: dict[str, Tensor], backend: str, scale: float = 0.25, **given: Any) -> dict[str, Tensor]:
    """The output and every gradient."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    q, k, v, w, beta, per_key = leaves.values()
    terms = (PerKey(per_key), PathProduct(q, k, w, beta, scale))
    out = attend(q, k, v, terms=terms, backend=backend, scale=0.25, **given)
    weight = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape).to(out.dtype)
    gradients = torch.autograd.grad((out * weight).sum(), list(leaves.values()))
    return {"out": out.detach()} | {f"d{name}": x for name, x in zip(leaves, gradients, strict=True)}


def same(inputs: dict[str, Tensor], **given: Any) -> None:
    got, again, expected = (run(inputs, which, **given) for which in ("native", "native", "reference"))
    for name, exact in expected.items():
        torch.testing.assert_close(got[name], exact, rtol=1e-9, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")
        assert torch.equal(got[name], again[name])


@pytest.mark.parametrize("kind", ["near", "left padded", "holes", "evicted", "packed"])
@pytest.mark.parametrize("mask", list(MASKS))
@pytest.mark.parametrize("tokens", [1, 65, 193])
def test_exact_in_float64(tokens: int, mask: str, kind: str) -> None:
    pos = torch.arange(tokens).repeat(2, 1)
    if kind == "left padded":
        pos[0] = (pos[0] - tokens // 3).clamp(min=-1)
    if kind == "holes":
        pos = pos.masked_fill(torch.rand(2, tokens) < 0.2, -1)
    if kind == "evicted":
        pos = torch.sort(torch.randperm(3 * tokens)[:tokens]).values.expand(2, -1)
    if kind == "packed":
        pos = pos % 41
    same(drawn(tokens, heads=(4, 4 - tokens % 2 * 2, 2)), mask=MASKS[mask](tokens), q_pos=pos, k_pos=pos)


@pytest.mark.parametrize("queries", [1, 3, 70, 150])
def test_new_queries_and_a_cache(queries: int) -> None:
    keys = torch.arange(300)
    same(drawn(300, queries), mask=Causal(), q_pos=keys[-queries:], k_pos=keys)
    same(drawn(300, queries), mask=Window(150, 100), q_pos=keys[100 : 100 + queries], k_pos=keys)


def test_dropout() -> None:
    same(drawn(150), mask=Causal(), dropout=0.3, seed=5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_as_exact_as_plain_pytorch(dtype: torch.dtype) -> None:
    """Over several blocks; beta = 2 reflects, so that no rounding error dies out."""
    draws = []
    for _ in range(3):
        inputs = {name: x.to(dtype).double() for name, x in drawn(400, heads=(2, 2, 1)).items()}
        low = {name: x.to(dtype) for name, x in inputs.items()}
        draws.append(
            (
                *(run(low, which, mask=Causal()) for which in ("native", "reference")),
                run(inputs, "reference", mask=Causal()),
            )
        )
    got, plain, truth = (list(some) for some in zip(*draws, strict=True))
    assert_as_exact(got, plain, truth)


def test_two_threads_give_the_same_bits_every_time() -> None:
    inputs = {name: x.float() for name, x in drawn(600, heads=(1, 1, 1)).items()}
    found = on_two_threads(lambda: run(inputs, "native", mask=Causal()))
    truth = run(inputs, "native", mask=Causal())
    for name, x in found.items():
        torch.testing.assert_close(x, truth[name], rtol=1e-4, atol=1e-5)


def test_nan_reaches_only_those_who_see_it() -> None:
    inputs = {name: x.float() for name, x in drawn(150).items()}
    clean = run(inputs, "native", mask=Causal())["out"]
    inputs["w"][:, :, 120] = torch.nan
    out = run(inputs, "native", mask=Causal())["out"]
    assert out[:, :, 120:].isnan().all()
    torch.testing.assert_close(out[:, :, :120], clean[:, :, :120])


def test_rows_that_see_nothing_are_zero() -> None:
    inputs, pos = drawn(70), torch.arange(70)
    got = run(inputs, "native", mask=Causal(), q_pos=pos, k_pos=pos + 10)
    assert not got["out"][:, :, :10].any()
    assert got["out"][:, :, 10:].all()
    assert not got["dq"][:, :, :10].any()


def test_memory_grows_with_tokens_and_not_with_pairs() -> None:
    def work(n: int) -> Any:
        inputs = {name: x.float() for name, x in drawn(n).items()}
        return lambda: run(inputs, "native", mask=Causal())

    short, long = (peak_memory(work(n)) for n in (256, 1024))
    assert long < 4.1 * short


def test_what_is_refused() -> None:
    x = drawn(5)
    q, k, v, w, beta, _ = x.values()
    with refusal("the queries, keys and scale of PathProduct are not those of the call", whole=False):
        attend(q, k, v, terms=(PathProduct(q.clone(), k, w, beta, 0.25),), scale=0.25, backend="native")
    with refusal("supports no other term besides it but PerKey, not ByDistance", whole=False):
        slope = ByDistance.linear(torch.ones(4).double())
        attend(q, k, v, terms=(slope, PathProduct(q, k, w, beta, 0.25)), scale=0.25, backend="native")
    assert plan(Path(), tokens=64, heads=4, head_dim=16).route == "native"
