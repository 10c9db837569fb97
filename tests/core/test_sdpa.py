"""torch's fused attention: accepted calls are exact and need no n × n tensor; refusals give their reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import assert_as_exact, naive, refusal
from torch import Tensor

from headway import Causal, Dense, Documents, Prefix, Window, attend
from headway.backends import sdpa
from headway.functional import check
from headway.masks import Mask
from headway.memory import peak_memory
from headway.terms import AnyTerm, ByDistance, ByDistancePerQuery, PerKey, ValuesByDistance

ATOM = 2**-18  # of torch's own exp, see tests/laws/test_backends.py

SLOPES = -torch.tensor([0.5, 0.25, 0.1, 0.02])
VIEWS: dict[str, tuple[Mask | None, Callable[[int], tuple[AnyTerm, ...]]]] = {
    "plain": (None, lambda n: ()),
    "causal": (Causal(), lambda n: ()),
    "window": (Window(30), lambda n: ()),
    "window on both sides": (Window(30, 9), lambda n: ()),
    "per key": (None, lambda n: (PerKey(torch.randn(2, 4, n)),)),
    "per key, shared": (None, lambda n: (PerKey(torch.randn(1, 1, n)), PerKey(torch.randn(1, 4, n)))),
    "slopes": (None, lambda n: (ByDistance.linear(SLOPES),)),
    "slopes, causal": (Causal(), lambda n: (ByDistance.linear(SLOPES),)),
    "one entry": (None, lambda n: (ByDistance(torch.randn(4, 1), 0),)),
    "table, causal": (Causal(), lambda n: (ByDistance(torch.randn(4, 65), 64),)),
    "table, window": (Window(20, 20), lambda n: (ByDistance(torch.randn(1, 9), 4), ByDistance.linear(SLOPES))),
}


def run(attention: Any, leaves: list[Tensor], weight: Tensor) -> dict[str, Tensor]:
    out = attention(*leaves)
    gradients = torch.autograd.grad((out * weight).sum(), leaves)
    return {"out": out.detach(), **{f"d{name}": g for name, g in zip("qkv", gradients, strict=True)}}


def widened(term: AnyTerm) -> AnyTerm:
    return type(term)(*(x.double() if isinstance(x, Tensor) else x for x in vars(term).values()))


@pytest.mark.parametrize("name", list(VIEWS))
@pytest.mark.parametrize("shape", [(300, 32, 32), (113, 59, 59), (64, 16, 40), (64, 40, 16)], ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow), torch.float64]
)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_as_exact_as_plain_pytorch(name: str, shape: tuple[int, int, int], dtype: torch.dtype, kv_heads: int) -> None:
    tokens, width, width_v = shape
    mask, make = VIEWS[name]
    terms = make(tokens)
    inputs = [torch.randn(2, h, tokens, d) for h, d in ((4, width), (kv_heads, width), (kv_heads, width_v))]
    weight = torch.randn(2, 4, tokens, width_v).to(dtype)
    pos = torch.arange(tokens)[None]
    given = {"mask": mask, "q_pos": pos, "k_pos": pos, "scale": width**-0.5}
    rounded = [x.to(dtype).requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in rounded]
    truth = run(lambda *x: naive(*x, terms=[widened(t) for t in terms], **given), exact, weight.double())
    plain = run(lambda *x: naive(*x, terms=terms, **given), rounded, weight)
    got = run(lambda *x: attend(*x, mask=mask, terms=terms, backend="sdpa"), rounded, weight)
    assert_as_exact([got], [plain], [truth], ATOM)


@pytest.mark.parametrize("name", list(VIEWS))
@pytest.mark.parametrize("scale", [0.0, -0.4])
def test_a_scale_that_is_not_positive(name: str, scale: float) -> None:
    mask, make = VIEWS[name]
    terms = make(40)
    q, k, v = torch.randn(3, 2, 4, 40, 8)
    expected = attend(q, k, v, mask=mask, terms=terms, scale=scale, backend="reference")
    got = attend(q, k, v, mask=mask, terms=terms, scale=scale, backend="sdpa")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_strides_do_not_matter() -> None:
    q, k, v = (
        torch.randn(40, 8, 4, 2).permute(3, 2, 0, 1),
        torch.randn(2, 4, 40, 16)[..., ::2],
        torch.randn(2, 4, 40, 8),
    )
    terms = (ByDistance.linear(torch.cat((SLOPES, SLOPES))[::2]),)
    expected = attend(q, k, v, mask=Causal(), terms=terms, backend="reference")
    torch.testing.assert_close(attend(q, k, v, mask=Causal(), terms=terms, backend="sdpa"), expected)


def test_a_dense_mask_with_rows_that_see_nothing() -> None:
    visible = torch.rand(1, 4, 300, 300) > 0.5
    visible[:, 1, 270] = False
    q, k, v = torch.randn(3, 2, 4, 300, 8)
    out = attend(q, k, v, mask=visible, backend="sdpa")
    assert not out[:, 1, 270].any()
    torch.testing.assert_close(out, attend(q, k, v, mask=visible, backend="reference"))


@pytest.mark.parametrize("mask", [Window(3), Causal() | Prefix(4), None], ids=["window", "prefix", "full"])
def test_a_step_of_decoding_takes_all_that_acts_on_scores(mask: Any) -> None:
    q, k, v = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 50, 8), torch.randn(2, 2, 50, 8)
    table = torch.randn(2, 4, 1, 9, requires_grad=True)
    pos = {"q_pos": torch.tensor([49]), "k_pos": torch.cat((torch.tensor([-1, -1]), torch.arange(2, 50)))}
    terms = (ByDistancePerQuery(table, 8), PerKey(torch.randn(1, 4, 50)))
    results = []
    for backend in ("reference", "sdpa"):
        out = attend(q, k, v, mask=mask, terms=terms, backend=backend, **pos)
        results.append((out, *torch.autograd.grad(out.square().sum(), table)))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


# --- memory -------------------------------------------------------------------------------------------------------


def cost(tokens: int, mask: Any, terms: Any, *, train: bool, queries: int | None = None, **given: Any) -> int:
    shapes = ((4, queries or tokens), (2, tokens), (2, tokens))
    leaves = [torch.randn(1, h, n, 32, requires_grad=train) for h, n in shapes]

    def work() -> None:
        out = attend(*leaves, mask=mask, terms=terms, backend="sdpa", **given)
        if train:
            torch.autograd.grad(out.sum(), leaves)

    return peak_memory(work)


@pytest.mark.parametrize("name", list(VIEWS))
@pytest.mark.parametrize("train", [True, False], ids=["training", "inference"])
def test_no_view_is_made_dense(name: str, train: bool) -> None:
    tokens = 2048
    mask, make = VIEWS[name]
    terms = tuple(PerKey(term.bias[:1]) if isinstance(term, PerKey) else term for term in make(tokens))
    extra = cost(tokens, mask, terms, train=train) - cost(tokens, None, (), train=train)
    assert extra < tokens * tokens * 4 / 4  # a quarter of one head's scores; four heads are there


def test_a_dense_mask_is_never_held_as_floats() -> None:
    visible = torch.rand(1, 1, 2048, 2048) > 0.5
    extra = cost(2048, Dense(visible), (), train=False) - cost(2048, None, (), train=False)
    assert extra < 2048 * 2048 * 4 / 4


def test_a_step_of_decoding_costs_memory_per_key() -> None:
    given = {"q_pos": torch.tensor([2**15 - 1]), "k_pos": torch.arange(2**15), "queries": 1}
    terms = (ByDistance.linear(SLOPES),)
    assert cost(2**15, Causal(), terms, train=False, **given) < 2**15 * 4 * 40


# --- messages -------------------------------------------------------------------------------------------------------

LEARNED = torch.zeros(4, 5, requires_grad=True)
NOT_HELD = "would need a queries × keys tensor"
REFUSED = {
    "learned table": (
        {"terms": (ByDistance(LEARNED, 2),)},
        "ByDistance is learned, and torch's fused kernel gives no gradient for what is added",
    ),
    "learned tails": (
        {"terms": (ByDistance.linear(LEARNED[:, 0]),)},
        "ByDistance is learned, and torch's fused kernel gives no gradient for what is added",
    ),
    "learned per key": (
        {"terms": (PerKey(torch.zeros(1, 4, 20, requires_grad=True)),)},
        "PerKey is learned, and torch's fused kernel gives no gradient for what is added",
    ),
    "per query": ({"terms": (ByDistancePerQuery(torch.zeros(1, 4, 20, 3), 1),)}, f"ByDistancePerQuery {NOT_HELD}"),
    "values": (
        {"terms": (ValuesByDistance(torch.zeros(1, 3, 8), 1),)},
        "ValuesByDistance needs the attention weights, which are not materialised",
    ),
    "prefix": ({"mask": Causal() | Prefix(3)}, f"the mask Or {NOT_HELD}"),
    "documents": ({"mask": Documents(torch.zeros(1, 20, dtype=torch.long))}, f"the mask Documents {NOT_HELD}"),
    "per key, causal": (
        {"mask": Causal(), "terms": (PerKey(torch.zeros(1, 4, 20)),)},
        f"PerKey together with a mask or a term by distance {NOT_HELD}",
    ),
    "positions": (
        {"q_pos": torch.arange(20), "k_pos": torch.arange(20)},
        "explicit positions would need a queries × keys mask",
    ),
    "dense": (
        {"mask": torch.ones(1, 1, 20, 20, dtype=torch.bool)},
        "torch would keep the mask as floats for the backward pass",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_refused_and_why(name: str) -> None:
    given, reason = REFUSED[name]
    q, k, v = torch.randn(3, 1, 4, 20, 8, requires_grad=True)
    with refusal(f"backend 'sdpa' cannot run this call: {reason}; backend='auto' finds one that can"):
        attend(q, k, v, backend="sdpa", **given)
    assert attend(q, k, v, **given).shape == q.shape


def test_what_is_learned_may_run_when_no_gradient_is_asked_for() -> None:
    q, k, v = torch.randn(3, 1, 4, 40, 8)
    with torch.no_grad():
        got = attend(q, k, v, mask=Causal(), terms=(ByDistance(LEARNED + 1, 2),), backend="sdpa")
    torch.testing.assert_close(got, attend(q, k, v, mask=Causal(), backend="reference"))


DESCRIBED = [
    ({}, 40, "O(queries + keys): fused"),
    ({"mask": Causal()}, 40, "O(queries + keys): fused"),
    ({"mask": Window(3)}, 40, "O(queries + keys): fused, the mask as a strided view"),
    ({"terms": (ByDistance.linear(SLOPES),)}, 40, "O(queries + keys): fused, terms as a strided view"),
    (
        {"mask": Causal(), "terms": (ByDistance.linear(SLOPES),)},
        40,
        "O(queries + keys): fused, terms and mask as a strided view",
    ),
    (
        {"mask": torch.ones(1, 1, 40, 40, dtype=torch.bool)},
        40,
        "O(queries + keys): fused, the mask in blocks",
    ),
    (
        {"mask": Causal(), "q_pos": torch.tensor([39]), "k_pos": torch.arange(40)},
        1,
        "O(keys): the mask as one tensor, for at most 16 queries",
    ),
]


@pytest.mark.parametrize(("given", "queries", "memory"), DESCRIBED)
def test_what_it_says_it_does(given: dict[str, Any], queries: int, memory: str) -> None:
    filled = {"mask": None, "terms": (), "q_pos": None, "k_pos": None, **given}
    k = torch.randn(1, 4, 40, 8)
    call = check(k[:, :, :queries], k, k, **filled, scale=None, normalise="softmax")
    assert sdpa.refuses(call) is None
    assert sdpa.describe(call) == ("exact", memory)
