"""Boosts in the native backend: exact in float64 on awkward calls, and where far tokens' dimensions are left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import assert_as_exact, on_two_threads, refusal
from torch import Tensor

from headway import Causal, Documents, Window, attend
from headway.backends import native
from headway.terms import Boost, ByDistance

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernel here: {native.unavailable()}")

WIDTH = 20
MASKS = {
    "full": lambda n: None,
    "causal": lambda n: Causal(),
    "both sides": lambda n: Window(90, 70),
    "documents": lambda n: Causal() & Documents((torch.arange(n) // 41)[None]),
}


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def drawn(queries: int, keys: int | None = None, heads: int = 4, kv_heads: int = 2) -> dict[str, Tensor]:
    q, (k, v) = normal(2, heads, queries, WIDTH), normal(2, 2, kv_heads, keys or queries, WIDTH)
    rates = torch.cat((torch.tensor([0.0, 0.01]), 2 * torch.rand(WIDTH - 2).sort().values)).double()
    return {"q": q, "k": k, "v": v, "basis": torch.linalg.qr(normal(WIDTH, WIDTH))[0], "rates": rates}


def run(inputs: dict[str, Tensor], backend: str, *more: Any, scale: float = 0.3, **given: Any) -> dict[str, Tensor]:
    """The output and the gradients of q, k and v; of the term's own, if it has some."""
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in inputs if name not in ("basis", "rates")}
    of = [leaves.get(f"own_{name}", leaves[name]) for name in "qk"]
    terms = (Boost(*of, inputs["basis"], inputs["rates"], scale), *more)
    out = attend(leaves["q"], leaves["k"], leaves["v"], terms=terms, backend=backend, scale=0.3, **given)
    weight = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape).to(out.dtype)
    gradients = torch.autograd.grad((out * weight).sum(), list(leaves.values()))
    return {"out": out.detach()} | {f"d{name}": x for name, x in zip(leaves, gradients, strict=True)}


def same(inputs: dict[str, Tensor], *more: Any, **given: Any) -> None:
    got, again, expected = (run(inputs, which, *more, **given) for which in ("native", "native", "reference"))
    for name, exact in expected.items():
        torch.testing.assert_close(got[name], exact, rtol=1e-9, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")
        assert torch.equal(got[name], again[name])


@pytest.mark.parametrize("kind", ["near", "left padded", "evicted", "packed"])
@pytest.mark.parametrize("mask", list(MASKS))
@pytest.mark.parametrize("tokens", [1, 113, 300])
def test_exact_in_float64(tokens: int, mask: str, kind: str) -> None:
    pos = torch.arange(tokens).repeat(2, 1)
    if kind == "left padded":
        pos[0] = (pos[0] - tokens // 3).clamp(min=-1)
    if kind == "evicted":
        pos = torch.sort(torch.randperm(3 * tokens)[:tokens]).values.expand(2, -1)
    if kind == "packed":
        pos = pos % 41
    same(drawn(tokens), mask=MASKS[mask](tokens), q_pos=pos, k_pos=pos)


@pytest.mark.parametrize("queries", [1, 3, 70])
def test_new_queries_and_a_cache(queries: int) -> None:
    keys = torch.arange(300)
    same(drawn(queries, 300), mask=Causal(), q_pos=keys[-queries:], k_pos=keys)
    same(drawn(queries, 300), mask=None, q_pos=keys[:queries], k_pos=keys)  # all others are in the future
    same(drawn(queries, 300), mask=Window(150, 100), q_pos=keys[100 : 100 + queries], k_pos=keys)


def test_of_other_queries_and_keys_than_the_call_has() -> None:
    """As in latent attention, where the term's are a part, its keys shared by all heads, the scale another."""
    inputs = drawn(130) | {"own_q": normal(2, 4, 130, WIDTH), "own_k": normal(2, 1, 130, WIDTH)}
    same(inputs, mask=Causal(), scale=0.2)
    same(inputs | {"own_k": normal(2, 4, 130, WIDTH)}, mask=Causal())


def test_with_another_term_and_dropout() -> None:
    bias = ByDistance(normal(4, 9), 8)
    same(drawn(150), bias, mask=Causal())
    same(drawn(150), bias, mask=Causal(), dropout=0.3, seed=5)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, 1.0), (torch.float32, 30.0), (torch.bfloat16, 1.0), (torch.float16, 1.0)],
    ids=str,
)
def test_as_exact_as_plain_pytorch(dtype: torch.dtype, size: float) -> None:
    """Where a dimension has decayed below what a rounding is, it is left out: the later, the larger q and k are."""
    inputs = {
        name: x if name in ("basis", "rates") else x.to(dtype).double() for name, x in drawn(500, heads=2).items()
    }
    inputs["q"] = inputs["q"] * size
    low = {name: x.float() if name in ("basis", "rates") else x.to(dtype) for name, x in inputs.items()}
    truth = run(inputs, "reference", mask=Causal())
    plain, got = (run(low, which, mask=Causal()) for which in ("reference", "native"))
    assert_as_exact([got], [plain], [truth])


def test_a_dimension_of_large_keys_counts_however_small_the_queries_are() -> None:
    inputs = drawn(500, heads=2)
    inputs["basis"] = torch.eye(WIDTH, dtype=torch.float64)
    inputs["q"][..., 7] *= 1e-6
    inputs["k"][..., 7] *= 1e6
    inputs = {name: x.float() for name, x in inputs.items()}
    truth = run({name: x.double() for name, x in inputs.items()}, "reference", mask=Causal())
    plain, got = (run(inputs, which, mask=Causal()) for which in ("reference", "native"))
    assert_as_exact([got], [plain], [truth])


def test_nan_reaches_only_those_who_see_it() -> None:
    inputs = {name: x.float() for name, x in drawn(300).items()}
    clean = run(inputs, "native", mask=Causal())
    inputs["k"][:, :, 120] = torch.nan
    out = run(inputs, "native", mask=Causal())["out"]
    assert out[:, :, 120:].isnan().all()
    torch.testing.assert_close(out[:, :, :120], clean["out"][:, :, :120])


def test_nan_shows_where_everything_has_decayed() -> None:
    inputs = {name: x.float() for name, x in drawn(6).items()}
    inputs["rates"] = torch.full((WIDTH,), 2.0)
    inputs["k"][:, :, 3] = torch.nan
    out = run(inputs, "native", q_pos=torch.arange(1000, 1006), k_pos=torch.arange(6))["out"]
    assert out.isnan().all()


def test_two_threads_give_the_same_bits_every_time() -> None:
    inputs = {name: x.float() for name, x in drawn(700, heads=1, kv_heads=1).items()}
    on_two_threads(lambda: run(inputs, "native", mask=Causal()))


def test_what_is_refused() -> None:
    x = drawn(5)
    with refusal("expected the rates of Boost of at least 0, got -1.0"):
        Boost(x["q"], x["k"], x["basis"], x["rates"] - 1, 0.3)
    term = Boost(x["q"], x["k"], x["basis"], x["rates"], 0.3)
    with refusal("two terms replace the product of queries and keys", whole=False):
        attend(x["q"], x["k"], x["v"], terms=(term, term), backend="native")
    learned = Boost(x["q"], x["k"], x["basis"], x["rates"].clone().requires_grad_(), 0.3)
    with refusal("it gives no gradient for the rates of Boost", whole=False):
        attend(x["q"], x["k"], x["v"], terms=(learned,), backend="native")
    with refusal("expected the k of Boost for 4 or 1 heads, got shape (2, 3, 5, 20)"):
        attend(x["q"], x["k"], x["v"], terms=(Boost(x["q"], normal(2, 3, 5, WIDTH), x["basis"], x["rates"], 1.0),))
