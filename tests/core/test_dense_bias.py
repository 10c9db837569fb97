"""A dense bias and dropout: values and gradients against the reference in float64, in every backend that takes them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from common import refusal
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from headway import Attention, Causal, Documents, Prefix, Window, attend
from headway.backends.dropout import kept
from headway.masks import Mask
from headway.terms import AnyTerm, ByDistance, ByDistancePerQuery, DenseBias, LowRankBias, PerKey, ValuesByDistance

B, H, KV = 2, 4, 2
SHAPES = [(1, 1), (7, 7), (70, 70), (5, 300), (300, 5), (300, 300)]
MASKS: dict[str, Mask | None] = {"none": None, "causal": Causal(), "window": Window(20, 3)}
BROADCAST = list(itertools.product((1, B), (1, H)))


def inputs(queries: int, keys: int, dtype: torch.dtype, lead: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries * 1000 + keys)
    shapes = (B, H, queries, 16), (B, KV, keys, 16), (B, KV, keys, 24), (*lead, queries, keys)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def outcome(given: list[Tensor], dtype: torch.dtype, terms: tuple[AnyTerm, ...] = (), **options: Any) -> list[Tensor]:
    leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in given]
    q, k, v, bias = leaves
    if "mask" in options and q.shape[2] != k.shape[2]:
        keys, queries = k.shape[2], q.shape[2]
        options |= {"k_pos": torch.arange(keys), "q_pos": torch.arange(max(keys - queries, 0), max(keys, queries))}
        options["q_pos"] = options["q_pos"][-queries:] if queries <= keys else torch.arange(queries)
    out = attend(q, k, v, terms=(DenseBias(bias), *terms), **options)
    generator = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype))
    gradients = [leaf.grad for leaf in leaves]
    assert all(g is not None for g in gradients)
    return [out.detach(), *(g for g in gradients if g is not None)]


def close(found: list[Tensor], expected: list[Tensor], eps: float) -> None:
    for got, wanted in zip(found, expected, strict=True):
        assert got.shape == wanted.shape
        assert (got.double() - wanted).abs().max() <= eps * wanted.abs().max().clamp(min=1)


@pytest.mark.parametrize("backend", ["native", "tiled"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_values_and_gradients_are_the_references(
    queries: int, keys: int, mask: str, dropout: float, backend: str
) -> None:
    options: dict[str, Any] = {"mask": MASKS[mask], "dropout": dropout, "seed": 5}
    for lead in BROADCAST:
        given = inputs(queries, keys, torch.float64, lead)
        expected = outcome(given, torch.float64, backend="reference", **options)
        close(outcome(given, torch.float64, backend=backend, **options), expected, 1e-12)
        close(outcome(given, torch.float32, backend=backend, **options), expected, 2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lead", BROADCAST)
def test_narrow_numbers(dtype: torch.dtype, lead: tuple[int, int]) -> None:
    given = inputs(70, 70, dtype, lead)
    expected = outcome(given, torch.float64, backend="reference", mask=Causal())
    found = outcome(given, dtype, backend="native", mask=Causal())
    assert [x.dtype for x in found] == [dtype] * 5
    close(found, expected, 4 * torch.finfo(dtype).eps)
    wide = [x.detach().requires_grad_() for x in given]
    wide[3] = wide[3].float().detach().requires_grad_()  # a bias may be wider than the queries
    attend(*wide[:3], terms=(DenseBias(wide[3]),), backend="native").sum().backward()
    assert wide[3].grad is not None
    assert wide[3].grad.dtype is torch.float32


def test_other_terms_documents_padding_and_positions_join_it() -> None:
    queries = 90
    given = inputs(queries, queries, torch.float64, (1, H))
    generator = torch.Generator().manual_seed(3)
    terms = (
        ByDistance(torch.randn(H, 9, generator=generator, dtype=torch.float64), 4),
        PerKey(torch.randn(B, H, queries, generator=generator, dtype=torch.float64)),
        ByDistancePerQuery(torch.randn(B, H, queries, 5, generator=generator, dtype=torch.float64), 2),
    )
    ids = torch.arange(queries)[None] // 40
    pos = torch.randint(-1, 200, (B, queries), generator=generator)
    places: dict[str, Any] = {"q_pos": pos, "k_pos": pos}
    for options in ({"mask": Documents(ids) & Causal()}, places, {**places, "dropout": 0.5, "seed": 1}):
        expected = outcome(given, torch.float64, terms, backend="reference", **options)
        close(outcome(given, torch.float64, terms, backend="native", **options), expected, 1e-12)
    prefix = outcome(given, torch.float64, backend="reference", mask=Prefix(9))
    close(outcome(given, torch.float64, backend="auto", mask=Prefix(9)), prefix, 1e-12)


def test_minus_infinity_hides_and_a_row_that_sees_nothing_is_zero() -> None:
    given = inputs(70, 70, torch.float64, (1, 1))
    given[3][0, 0, 3] = -torch.inf
    given[3][0, 0, :, 60:] = -torch.inf
    for backend in ("reference", "native", "tiled"):
        found = outcome(given, torch.float64, backend=backend)
        assert all(x.isfinite().all() for x in found)
        assert not found[0][:, :, 3].any()
        assert not found[2][:, :, 60:].any()
        close(found, outcome(given, torch.float64, backend="reference"), 1e-12)
    q, k, v, bias = given
    seen = bias.clone()
    seen[0, 0, 3] = 0
    theirs = scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    assert torch.allclose(attend(q, k, v, terms=(DenseBias(seen),), backend="native"), theirs, atol=1e-12)


def test_the_same_bits_twice() -> None:
    given = inputs(300, 300, torch.float32, (1, 1))
    for options in ({}, {"dropout": 0.1, "seed": 3}):
        first, second = (outcome(given, torch.float32, backend="native", **options) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_bias_is_not_copied() -> None:
    from headway.memory import peak_memory

    q, k, v, bias = inputs(1024, 1024, torch.float32, (1, 1))
    bias.requires_grad_()
    held = peak_memory(lambda: attend(q, k, v, terms=(DenseBias(bias),), backend="native").sum().backward())
    assert held < 2.5 * 4 * bias.numel()  # its gradient, and one more for autograd's sum


# --- of low rank ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "tiled", "sdpa", "auto"])
@pytest.mark.parametrize("lead", [(1, 1), (B, KV), (1, KV), (B, H)])
def test_a_bias_of_low_rank_is_the_dense_one(lead: tuple[int, int], backend: str) -> None:
    q, k, v, _ = inputs(70, 70, torch.float64, (1, 1))
    generator = torch.Generator().manual_seed(8)
    left = torch.randn(1, H, 70, 3, generator=generator, dtype=torch.float64)
    right = torch.randn(*lead, 70, 3, generator=generator, dtype=torch.float64)
    # keys of every query head cannot be appended to shared ones: tiled computes them
    options: dict[str, Any] = {"mask": Causal(), "backend": backend if lead[1] != H else "tiled"}
    found = leaves(q, k, v, left, right)
    attend(*found[:3], terms=(LowRankBias(*found[3:]),), **options).square().sum().backward()
    expected = leaves(q, k, v, left, right)
    wide = expected[4].repeat_interleave(H // lead[1], 1) if lead[1] > 1 else expected[4]
    dense = DenseBias(expected[3] @ wide.mT)
    attend(*expected[:3], terms=(dense,), mask=Causal(), backend="reference").square().sum().backward()
    for got, wanted in zip(found, expected, strict=True):
        assert got.grad is not None
        assert wanted.grad is not None
        assert torch.allclose(got.grad, wanted.grad, atol=1e-10)


def leaves(*given: Tensor) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in given]


def test_a_bias_of_low_rank_joins_a_softcap_as_a_term() -> None:
    q, k, v, _ = inputs(40, 40, torch.float64, (1, 1))
    term = LowRankBias(torch.randn(1, H, 40, 2, dtype=torch.float64), torch.randn(1, 1, 40, 2, dtype=torch.float64))
    dense = DenseBias(term.q @ term.k.mT)
    for options in ({"softcap": 2.0}, {"sinks": torch.zeros(H, dtype=torch.float64)}):
        expected = attend(q, k, v, terms=(dense,), backend="reference", **options)
        assert torch.allclose(attend(q, k, v, terms=(term,), **options), expected, atol=1e-10)


# --- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "native", "tiled"])
def test_dropout_is_right_on_average_and_keeps_its_share(backend: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 48, 16) for _ in range(3))
    plain = attend(q, k, v, mask=Causal(), backend="reference")
    drawn = torch.stack([attend(q, k, v, mask=Causal(), dropout=0.2, seed=s, backend=backend) for s in range(300)])
    error = drawn.std(0) / 300**0.5
    assert ((drawn.mean(0) - plain).abs() <= 5 * error + 1e-6).all()
    assert drawn[0].ne(drawn[1]).any()
    ones = attend(q, k, torch.ones_like(v), dropout=0.2, seed=1, backend=backend)  # what is left of each row
    assert abs(float(ones.mean()) - 1) < 0.05
    assert ones.std() > 0


def test_the_hash_keeps_its_share_everywhere() -> None:
    number = torch.arange(256)
    for share in (0.1, 0.5, 0.9):
        stays = kept(torch.tensor([2**61 + 12345]), share, torch.arange(8).view(2, 4), number, number).double()
        sigma = (share * (1 - share)) ** 0.5
        assert abs(stays.mean() - (1 - share)) < 5 * sigma / stays.numel() ** 0.5
        for axis in range(4):  # along no axis do rows follow each other
            lead = stays.movedim(axis, 0).flatten(1)
            assert (lead.mean(1) - (1 - share)).abs().max() < 5 * sigma / lead.shape[1] ** 0.5
            together = ((lead[1:] - (1 - share)) * (lead[:-1] - (1 - share))).mean() / sigma**2
            assert abs(together) < 6 / stays.numel() ** 0.5
    one = kept(torch.tensor([1]), 0.5, torch.tensor([[0]]), number, number)
    other = kept(torch.tensor([2]), 0.5, torch.tensor([[0]]), number, number)
    assert abs(float((one == other).double().mean()) - 0.5) < 0.02


def test_attention_drops_while_training_only_and_follows_torchs_seed() -> None:
    attention = Attention(dim=32, heads=4, position="alibi", mask=Causal(), dropout=0.5)
    x = torch.randn(2, 20, 32)
    quiet = attention.eval()(x)
    assert torch.equal(quiet, attention(x))
    attention.train()
    torch.manual_seed(7)
    first, second = attention(x), attention(x)
    torch.manual_seed(7)
    assert torch.equal(first, attention(x))
    assert not torch.equal(first, second)
    assert not torch.allclose(first, quiet)


def test_dropout_on_values_by_distance() -> None:
    given = inputs(40, 40, torch.float64, (1, 1))
    terms = (ValuesByDistance(torch.randn(H, 7, 24, dtype=torch.float64), 3),)
    options: dict[str, Any] = {"dropout": 0.4, "seed": 9}
    expected = outcome(given, torch.float64, terms, backend="reference", **options)
    close(outcome(given, torch.float64, terms, backend="tiled", **options), expected, 1e-12)


def test_dropout_compiles_whole_and_drops_what_its_seed_says() -> None:
    program = """
import torch
from headway import attend
q, k, v = (torch.randn(1, 2, 16, 8) for _ in range(3))
seed = torch.tensor([4])
compiled = torch.compile(lambda seed: attend(q, k, v, dropout=0.5, seed=seed), fullgraph=True, backend="eager")
print(torch.equal(compiled(seed), attend(q, k, v, dropout=0.5, seed=4)))
drawn = torch.compile(lambda: attend(q, k, v, dropout=0.5), fullgraph=True, backend="eager")
print(torch.equal(drawn(), drawn()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_refusals() -> None:
    q = torch.randn(1, 2, 5, 8)
    with refusal("expected dropout to be a number in [0, 1), got 1.0"):
        attend(q, q, q, dropout=1.0)
    with refusal("expected a seed of at least 0, a whole number, got 0.5"):
        attend(q, q, q, dropout=0.5, seed=0.5)  # type: ignore[arg-type]
    with refusal(
        "expected the bias of DenseBias over 5 queries and 5 keys, including cached ones, got shape (1, 1, 5, 6)"
    ):
        attend(q, q, q, terms=(DenseBias(torch.zeros(5, 6)),))
    with refusal(
        "expected the bias of DenseBias as a float tensor, (batch or 1, heads or 1, queries, keys) or (queries, "
        "keys), got torch.float32 of shape (2, 5, 5): pass bias[:, None] if it is (batch, queries, keys), "
        "bias[None] if it is (heads, queries, keys)"
    ):
        DenseBias(torch.zeros(2, 5, 5))
    with refusal("expected DenseBias of shape (1 or 1, 2 or 1, queries, keys), got (1, 3, 5, 5)"):
        attend(q, q, q, terms=(DenseBias(torch.zeros(1, 3, 5, 5)),))
    with refusal("expected dropout to be a number in [0, 1), got -0.1"):
        Attention(8, 2, dropout=-0.1)
