"""Terms that the native kernel computes: tables per token and their products, values by distance, slopes, curves,
softcap and sinks. As exact as plain PyTorch, the same bits twice, in memory that does not grow with the pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import judge_draws
from torch import Tensor

from headway import Causal, Documents, Window, attend
from headway.backends import native
from headway.positions import parse
from headway.positions.base import TermInputs
from headway.shapes import HeadShape
from headway.terms import (
    AnyTerm,
    ByDistancePerKey,
    ByDistancePerQuery,
    CurveByDistance,
    PerKey,
    ProductPerKey,
    ProductPerQuery,
    SlopePerToken,
    ValuesByDistance,
)

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernel here: {native.unavailable()}")
Leaves = dict[str, Tensor]
W, X = 23, 11
INDEX = torch.arange(W) * 7 // 9
WIDE = 256
# neighbours that go down by one, stay, and jump
DOWN = torch.cat((torch.arange(99, 49, -1), torch.full((80,), 49), torch.arange(126) * 37 % 100))


def curve(x: Leaves) -> CurveByDistance:
    return CurveByDistance.of_network(x["level"], x["rate"], (x["w1"], x["b1"]), (x["w2"], x["b2"]))


TERMS: dict[str, Callable[[Leaves], tuple[AnyTerm, ...]]] = {
    "products per query": lambda x: (ProductPerQuery(x["xq"], x["eq"], W // 2),),
    "products per key": lambda x: (ProductPerKey(x["xk"], x["ek"], W // 2),),
    "both, vectors shared": lambda x: (
        ProductPerQuery(x["xq"], x["eq"][:1], W // 2, INDEX),
        ProductPerKey(x["xk"], x["ek"], W // 3, INDEX),
    ),
    "as wide as the text": lambda x: (
        ProductPerQuery(x["xq"], x["wide"], WIDE // 2),
        ProductPerKey(x["xk"], x["wide"], WIDE - 40),
    ),
    "index in runs": lambda x: (
        ProductPerQuery(x["xq"], x["wide"], WIDE // 2, DOWN),
        ProductPerKey(x["xk"], x["wide"][:1], WIDE // 3, DOWN),
    ),
    "a table per key": lambda x: (ByDistancePerKey(x["cols"], 3),),
    "slopes": lambda x: (SlopePerToken(x["sq"], x["sk"]),),
    "values": lambda x: (ProductPerQuery(x["xq"], x["eq"], W // 3), ValuesByDistance(x["values"], W // 2)),
    "a curve": lambda x: (curve(x),),
    "all": lambda x: (
        ByDistancePerQuery(x["rows"], 3),
        ByDistancePerKey(x["cols"], W // 2),
        ProductPerKey(x["xk"], x["ek"], W // 2, INDEX),
        SlopePerToken(None, x["sk"]),
        PerKey(x["sk"]),
        ValuesByDistance(x["values"][:1], 2),
        curve(x),
    ),
}


def draw(queries: int, keys: int, heads: int = 4, kv_heads: int = 2, dim: int = 17, dim_v: int = 9) -> Leaves:
    def r(*shape: int) -> Tensor:
        return torch.randn(shape)

    return {
        "q": r(2, heads, queries, dim),
        "k": r(2, kv_heads, keys, dim),
        "v": r(2, kv_heads, keys, dim_v),
        "xq": 0.3 * r(2, heads, queries, X),
        "eq": r(heads, W, X),
        "rows": r(2, heads, queries, W),
        "xk": 0.3 * r(2, heads, keys, X),
        "ek": r(heads, W, X),
        "cols": r(2, heads, keys, W),
        "wide": r(heads, WIDE, X),
        "sq": -0.1 * r(2, heads, queries).abs(),
        "sk": -0.1 * r(2, heads, keys).abs(),
        "values": r(heads, W, dim_v),
        "level": torch.log1p(0.1 * torch.arange(200)),
        "rate": 0.2 + torch.rand(1, queries),
        "w1": torch.rand(8) * 2 - 1,
        "b1": torch.rand(8) * 2 - 1,
        "w2": r(heads, 8),
        "b2": r(heads),
    }


def run(leaves: Leaves, weight: Tensor, backend: str, make: Any, **given: Any) -> Leaves:
    x = {name: one.clone().requires_grad_() for name, one in leaves.items()}
    options = {name: x[name] for name in ("sinks",) if name in x}
    out = attend(x["q"], x["k"], x["v"], terms=make(x), backend=backend, **options, **given)
    (out.double() * weight).sum().backward()
    return {f"d{name}": one.grad for name, one in x.items() if one.grad is not None} | {"out": out.detach()}


def compare(leaves: Leaves, make: Any, **given: Any) -> None:
    weight = torch.randn(*leaves["q"].shape[:3], leaves["v"].shape[3], dtype=torch.float64)
    draws = itertools.chain([leaves], (shuffled(leaves) for _ in itertools.count()))
    judge_draws(lambda: found_by_each(next(draws), weight, make, **given), atom=2**-21)


def shuffled(leaves: Leaves) -> Leaves:
    """Another draw; levels must stay in order."""
    return {
        name: x if name == "level" else x.flatten()[torch.randperm(x.numel())].view_as(x) for name, x in leaves.items()
    }


def found_by_each(leaves: Leaves, weight: Tensor, make: Any, **given: Any) -> tuple[Leaves, Leaves, Leaves]:
    truth = run({name: one.double() for name, one in leaves.items()}, weight, "reference", make, **given)
    plain, got, again = (run(leaves, weight, way, make, **given) for way in ("reference", "native", "native"))
    assert all(torch.equal(got[name], again[name]) for name in got)
    # softmax ignores what is added to all scores of a row: such gradients are zero, and what is left is rounding
    zero = [name for name in got if truth[name].abs().max() < 1e-10]
    assert all(some.pop(name).abs().max() < 1e-3 for some in (got, plain, truth) for name in zero)
    return got, plain, truth


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("mask", [Causal(), None, Window(30, 12)], ids=str)
def test_exactness(name: str, mask: Any) -> None:
    compare(draw(113, 113), TERMS[name], mask=mask)


@pytest.mark.parametrize("name", TERMS)
def test_documents_padding_and_other_queries_than_keys(name: str) -> None:
    documents = Causal() & Documents((torch.arange(70) // 40)[None])
    compare(draw(70, 70), TERMS[name], mask=documents)
    k_pos = torch.cat((torch.full((9,), -1), torch.arange(121)))
    compare(draw(37, 130), TERMS[name], mask=Causal(), q_pos=k_pos[-37:], k_pos=k_pos)
    for few in (1, 3):
        compare(draw(few, 130), TERMS[name], mask=Causal(), q_pos=k_pos[-few:], k_pos=k_pos)


DIVIDED = ["both, vectors shared", "as wide as the text", "index in runs", "values", "a curve", "slopes"]


@pytest.mark.parametrize("name", DIVIDED)
def test_keys_divided_among_threads(name: str) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        compare(draw(600, 600, 1, 1), TERMS[name], mask=Causal())
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", TERMS)
def test_nothing_that_is_read_stays_unwritten(name: str) -> None:
    """New tensors begin as NaN, also for queries that see no key and for distances that no pair has."""
    leaves = draw(7, 9)
    given: dict[str, Any] = {"mask": Causal(), "q_pos": torch.arange(-2, 5).clamp(min=-1), "k_pos": 1 + torch.arange(9)}
    weight = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    expected = run(leaves, weight, "native", TERMS[name], **given)
    torch.use_deterministic_algorithms(True)  # which fills them, see torch.utils.deterministic
    try:
        got = run(leaves, weight, "native", TERMS[name], **given)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(got[one], expected[one]) for one in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    leaves = draw(75, 75)
    leaves |= {name: leaves[name].to(dtype) for name in "qkv"}
    compare(leaves, TERMS["both, vectors shared"], mask=Causal())


@pytest.mark.parametrize("name", ["products per key", "all"])
def test_softcap_and_sinks(name: str) -> None:
    leaves = draw(113, 113) | {"sinks": 2 * torch.randn(4)}
    compare(leaves, TERMS[name], mask=Causal(), softcap=2.5)


def test_a_softcap_of_large_scores_is_exact() -> None:
    leaves = {name: 6 * x if name in "qk" else x for name, x in draw(40, 40).items()}
    compare(leaves, lambda x: (), softcap=3.0)


def test_fire_beyond_its_length_is_the_network_of_each_pair() -> None:
    torch.manual_seed(0)
    fire = parse("fire(original=20)").attach(HeadShape.of(32, heads=4)).double()
    q = torch.randn(1, 4, 90, 8, dtype=torch.float64)
    pos = torch.arange(90)[None]
    look = TermInputs(q, q, pos, pos, 1.0)
    (term,) = fire.terms(look)
    assert isinstance(term, CurveByDistance)
    share = fire.share((pos[:, :, None] - pos[:, None]).abs(), pos[:, :, None])
    wanted = fire.bias(share, look).permute(0, 3, 1, 2)
    torch.testing.assert_close(term.tile(pos, pos), wanted, rtol=0, atol=1e-12)
    parameters = list(fire.parameters())
    weight = torch.randn_like(wanted)
    for one, other in zip(
        torch.autograd.grad((term.tile(pos, pos) * weight).sum(), parameters),
        torch.autograd.grad((wanted * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_memory_of_products_does_not_grow_with_the_tables_of_all_heads() -> None:
    """DeBERTa's tables of all queries and keys would be 2 · 8 · 2,048 · 1,024 values, as many as all scores."""
    deberta = parse("deberta").attach(HeadShape.of(64, heads=8))
    q = torch.randn(1, 8, 2048, 8)
    pos = torch.arange(2048)[None]
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        terms = deberta.terms(TermInputs(q, q, pos, pos, 1.0))
        out = attend(q, q, q, terms=terms, mask=Causal(), backend="native")
        out.sum().backward()
    most = max(event.cpu_memory_usage for event in profile.events())
    assert most < 2048 * 1024 * 4
