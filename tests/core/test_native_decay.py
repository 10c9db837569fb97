"""Dimensions that are forgotten at their own pace, natively: exact on awkward calls, whatever the gates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import assert_as_exact, on_two_threads, refusal
from torch import Tensor
from torch.nn.functional import logsigmoid

from headway import Causal, Documents, Window, attend
from headway.backends import native
from headway.terms import Boost, ByDistance, ChannelDecay, PerKey

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernel here: {native.unavailable()}")

WIDTH, SCALE = 20, 0.3
MASKS = {
    "full": lambda n: None,
    "causal": lambda n: Causal(),
    "both sides": lambda n: Window(90, 70),
    "documents": lambda n: Causal() & Documents((torch.arange(n) // 41)[None]),
}
GATES = {"hardly": 8.0, "some": 2.0, "strongly": -2.0, "all at once": -40.0}
"""The mean of what a gate is the sigmoid of; they differ by dimension and token, so that some channels last."""


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def drawn(queries: int, gate: float, keys: int | None = None, heads: int = 4, kv_heads: int = 2) -> dict[str, Tensor]:
    """What a call has: queries are the last of as many tokens as keys."""
    tokens = keys or queries
    q, (k, v) = normal(2, heads, queries, WIDTH), normal(2, 2, kv_heads, tokens, WIDTH)
    return {
        "q": q,
        "k": k,
        "v": v,
        "gates": gate + 2 * normal(1, heads, 1, WIDTH) + 2 * normal(2, heads, tokens, WIDTH),
    }


def run(inputs: dict[str, Tensor], backend: str, *more: Any, scale: float = SCALE, **given: Any) -> dict[str, Tensor]:
    """The output and the gradients of q, k, v and what gates are made from; of the term's own, if it has some."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    of = [leaves.get(f"own_{name}", leaves[name]) for name in "qk"]
    total = logsigmoid(leaves["gates"]).double().cumsum(2)
    terms = (ChannelDecay(*of, total[:, :, -of[0].shape[2] :], total, scale), *more)
    out = attend(leaves["q"], leaves["k"], leaves["v"], terms=terms, backend=backend, scale=SCALE, **given)
    weight = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape).to(out.dtype)
    gradients = torch.autograd.grad((out * weight).sum(), list(leaves.values()))
    return {"out": out.detach()} | {f"d{name}": x for name, x in zip(leaves, gradients, strict=True)}


def by_the_formula(inputs: dict[str, Tensor]) -> Tensor:
    """Causal attention as the authors write it, all products of gates at once."""
    total = logsigmoid(inputs["gates"]).cumsum(2)
    k, v = (inputs[name].repeat_interleave(inputs["q"].shape[1] // inputs[name].shape[1], 1) for name in "kv")
    gates = total[:, :, :, None] - total[:, :, None]
    hidden = torch.ones(gates.shape[2:4], dtype=torch.bool).triu(1)
    products = gates.masked_fill(hidden[..., None], -torch.inf).exp()
    scores = SCALE * torch.einsum("bhid,bhjd,bhijd->bhij", inputs["q"], k, products)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


def same(inputs: dict[str, Tensor], *more: Any, **given: Any) -> None:
    got, again, expected = (run(inputs, which, *more, **given) for which in ("native", "native", "reference"))
    for name, exact in expected.items():
        torch.testing.assert_close(got[name], exact, rtol=1e-9, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")
        assert torch.equal(got[name], again[name])


@pytest.mark.parametrize("gate", GATES)
def test_it_is_the_formula(gate: str) -> None:
    inputs = drawn(150, GATES[gate])
    for backend in ("native", "tiled", "reference"):
        got = run(inputs, backend, mask=Causal())["out"]
        torch.testing.assert_close(got, by_the_formula(inputs), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["near", "left padded", "packed"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("tokens", [1, 113, 300])
def test_exact_in_float64(tokens: int, mask: str, kind: str) -> None:
    pos = torch.arange(tokens).repeat(2, 1)
    if kind == "left padded":
        pos[0] = (pos[0] - tokens // 3).clamp(min=-1)
    if kind == "packed":
        pos = pos % 41
    # where a query sees what is less forgotten than it, strong gates would multiply beyond any bound
    for gate in ("some", "strongly") if mask in ("causal", "documents") and kind != "packed" else ("hardly",):
        same(drawn(tokens, GATES[gate]), mask=MASKS[mask](tokens), q_pos=pos, k_pos=pos)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("queries", [1, 3, 70])
def test_new_queries_and_a_cache(queries: int, gate: str) -> None:
    keys = torch.arange(300)
    same(drawn(queries, GATES[gate], 300), mask=Causal(), q_pos=keys[-queries:], k_pos=keys)
    same(drawn(queries, GATES[gate], 300), mask=Window(150, 0), q_pos=keys[-queries:], k_pos=keys)


def test_of_other_queries_and_keys_than_the_call_has() -> None:
    """As in latent attention, where the term's are a part, its keys shared by all heads, the scale another."""
    inputs = drawn(130, 2.0) | {"own_q": normal(2, 4, 130, WIDTH), "own_k": normal(2, 1, 130, WIDTH)}
    same(inputs, mask=Causal(), scale=0.2)
    same(inputs | {"own_k": normal(2, 4, 130, WIDTH)}, mask=Causal())
    same(drawn(130, 2.0), mask=Causal(), scale=0.2)


def test_with_other_terms_sinks_and_dropout() -> None:
    more = (ByDistance(normal(4, 9), 8), PerKey(normal(2, 4, 150)))
    same(drawn(150, 2.0), *more, mask=Causal(), sinks=normal(4))
    same(drawn(150, 2.0), *more, mask=Causal(), dropout=0.3, seed=5)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_as_exact_as_plain_pytorch(dtype: torch.dtype, gate: str) -> None:
    inputs = {name: x.to(dtype).double() for name, x in drawn(500, GATES[gate], heads=2).items()}
    low = {name: x.to(dtype) for name, x in inputs.items()}
    truth = run(inputs, "reference", mask=Causal())
    plain, got = (run(low, which, mask=Causal()) for which in ("reference", "native"))
    assert_as_exact([got], [plain], [truth])


def test_nan_reaches_only_those_who_see_it() -> None:
    inputs = {name: x.float() for name, x in drawn(300, 2.0).items()}
    clean = run(inputs, "native", mask=Causal())
    for name in ("k", "v"):
        spoiled = {**inputs, name: inputs[name].clone()}
        spoiled[name][:, :, 120] = torch.nan
        out = run(spoiled, "native", mask=Causal())["out"]
        assert out[:, :, 120:].isnan().all()
        torch.testing.assert_close(out[:, :, :120], clean["out"][:, :, :120])


def test_two_threads_give_the_same_bits_every_time() -> None:
    inputs = {name: x.float() for name, x in drawn(700, 0.0, heads=1, kv_heads=1).items()}
    on_two_threads(lambda: run(inputs, "native", mask=Causal()))


def test_what_is_refused() -> None:
    x = drawn(5, 2.0)
    total = x["gates"]
    q, k, v = (x[name] for name in "qkv")
    with refusal("expected the c of ChannelDecay for 20 dimensions, got shape (2, 4, 5, 19)"):
        ChannelDecay(q, k, total, total[..., 1:], SCALE)
    with refusal("expected the own of ChannelDecay for 5 queries, got shape (2, 4, 4, 20)"):
        attend(q, k, v, terms=(ChannelDecay(q, k, total[:, :, 1:], total, SCALE),))
    with refusal("expected the k of ChannelDecay for 4 or 1 heads, got shape (2, 3, 5, 20)"):
        attend(q, k, v, terms=(ChannelDecay(q, normal(2, 3, 5, WIDTH), total, total, SCALE),))
    two = (
        ChannelDecay(q, k, total, total, SCALE),
        Boost(q, k, torch.eye(WIDTH).double(), torch.ones(WIDTH).double(), 1.0),
    )
    with refusal("two terms replace the product of queries and keys", whole=False):
        attend(q, k, v, terms=two, backend="native")
    with refusal("a softcap is combined with the term ChannelDecay", whole=False):
        attend(q, k, v, terms=two[:1], softcap=2.0, backend="native")
