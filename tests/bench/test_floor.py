"""The floor of a tax: products counted by hand, and the layers that targets compare."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headway.bench import layers
from headway.bench.cases import Case, Unsupported, build
from headway.bench.contenders import ours
from headway.bench.floor import entries, products
from headway.bench.measure import error
from headway.bench.tax import Entry, Group, measured
from headway.terms import ProductPerKey, ProductPerQuery

TOKENS, HEADS, DIM = 7, 2, 8
CAUSAL = Case(TOKENS, "forward", heads=HEADS, kv_heads=HEADS, head_dim=DIM)
PAIRS = TOKENS * (TOKENS + 1) // 2
"""Pairs of one head under the causal mask."""
BY_HAND = {
    "none": 0,
    "alibi": 0,
    "rotary": 0,
    "stickbreaking": 0,
    "shaw(clip=2)": 2 * HEADS * DIM * (1 + 2 + 3 * 5),  # keys and values
    "music(clip=2)": HEADS * DIM * (1 + 2 + 3 * 5),
    "pope": HEADS * DIM * PAIRS,  # q and k twice as wide
    "dape(width=4)": PAIRS * 3 * HEADS * 4,
}


@pytest.mark.parametrize("method", BY_HAND)
def test_products_counted_by_hand(method: str) -> None:
    plain = HEADS * PAIRS * 2 * DIM
    assert products(build(method, CAUSAL)) == plain + BY_HAND[method]
    both = replace(CAUSAL, mode="forward+backward")
    assert products(build(method, both)) == 3 * (plain + BY_HAND[method])


def test_what_precedes_attention_is_counted_too() -> None:
    extra = products(build("fox", CAUSAL)) - products(build("none", CAUSAL))
    assert extra == TOKENS * HEADS * DIM * HEADS  # a gate per token and head, from the whole token
    both = replace(CAUSAL, mode="forward+backward")
    assert products(build("fox", both)) - products(build("none", both)) == 3 * extra
    path = products(build("path", CAUSAL)) - products(build("none", CAUSAL)) - HEADS * 2 * DIM * PAIRS
    assert path > 0


def test_vectors_of_distances_that_do_not_occur_are_not_demanded() -> None:
    both = replace(CAUSAL, mode="forward+backward")
    plain, dim = HEADS * PAIRS * 2 * DIM, HEADS * DIM
    tables = 2 * HEADS * DIM * PAIRS  # of a query or key as many distances as it sees
    for case, times in ((CAUSAL, 1), (both, 3)):
        for method in ("deberta(clip=7)", "deberta(clip=100)"):  # 14 rows or 200, of which 7 occur
            made = 2 * TOKENS * dim * dim
            assert products(build(method, case)) == times * (plain + tables + made)


@pytest.mark.parametrize("mode", ["forward", "decode"])
@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("index", [None, torch.tensor([0, 0, 1, 2, 2])])
def test_entries_are_those_that_occur(mode: str, mask: str, index: torch.Tensor | None) -> None:
    case = replace(CAUSAL, mode=mode, mask=mask)
    vectors = torch.zeros(HEADS, 5 if index is None else 3, DIM)
    q_pos, k_pos = (pos[0].tolist() for pos in case.positions())
    for kind, tokens in ((ProductPerQuery, case.queries), (ProductPerKey, TOKENS)):
        term = kind(torch.zeros(1, HEADS, tokens, DIM), vectors, 3, index)
        found: dict[int, set[int]] = {}
        for q in q_pos:
            for k in k_pos:
                if mask == "full" or k <= q:
                    entry = min(max(k - q + 3, 0), 4)
                    found.setdefault(q if kind is ProductPerQuery else k, set()).add(
                        entry if index is None else int(index[entry])
                    )
        assert entries(term, case) == sum(map(len, found.values()))


def test_the_floor_is_the_share_of_products_at_the_speed_of_none() -> None:
    group = Group(CAUSAL, 1, thorough=False)
    row = measured(Entry("shaw(clip=2)", "headway: tiled", ours("tiled")), group)
    share = 1 + BY_HAND["shaw(clip=2)"] / (HEADS * PAIRS * 2 * DIM)
    assert row.floor == pytest.approx(group.nones["tiled"] * share)
    group.nones["tiled"] = "broken"  # type: ignore[assignment]
    without = measured(Entry("shaw(clip=2)", "headway: tiled", ours("tiled")), group)
    assert (without.status, without.floor) == ("ok", None)
    assert str(without.reason).startswith("without a floor: TypeError")
    none = measured(Entry("none", "headway: tiled", ours("tiled")), group)
    assert [none.floor, none.ratio] == pytest.approx([group.nones["tiled"]] * 2)  # products of quotients


def test_the_layers_compute_the_same() -> None:
    case = Case(9, mask="full", heads=2, kv_heads=2, head_dim=8, dtype="float64")
    method = "deberta(clip=6, reverse=False)"
    mine, other = layers.ours(method, case), layers.theirs(method, case)
    projections = 4 * 9 * 16 * 16
    assert mine.products() == products(build(method, case)) + 3 * projections
    assert (mine.backend, other.backend) == ("native", None)
    given = other.leaves
    with torch.no_grad():
        given["self.pos_key_proj.bias"].zero_()
        given["self.pos_query_proj.bias"].zero_()
        for ours_, theirs_ in (("q", "self.query_proj"), ("k", "self.key_proj"), ("v", "self.value_proj"), ("o", "o")):
            for part in ("weight", "bias"):
                mine.leaves[f"{ours_}.{part}"].copy_(given[f"{theirs_}.{part}"])
        mine.leaves["position.vectors"].copy_(given["vectors"])
        for name in ("key", "query"):
            mine.leaves[f"position.{name}_weight"].copy_(given[f"self.pos_{name}_proj.weight"].view(2, 8, 16))
    names = {"layer out", "layer dx"}
    got, expected = ({name: one for name, one in work.step().items() if name in names} for work in (mine, other))
    assert got.keys() == names
    assert error(got, expected) < 1e-6  # they take the root of the width in float32
    for refused, why in (("t5", "has a layer for"), ("deberta", "has a layer for")):
        with pytest.raises(Unsupported, match=why):
            layers.theirs(refused, case)
    with pytest.raises(Unsupported, match="both sides"):
        layers.theirs(method, replace(case, mask="causal"))
