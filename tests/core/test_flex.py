"""The flex backend: its functions of a pair against masks and terms themselves, and FlexAttention run uncompiled."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from headway import Causal, Dense, Documents, Prefix, Window
from headway.backends import flex, reference
from headway.backends.base import Call
from headway.terms import ByDistance, ByDistancePerKey, ByDistancePerQuery, Pairwise, PerKey, ValuesByDistance

B, H, Q, K = 2, 4, 12, 15
POS = torch.arange(K)
PADDED = torch.cat((torch.full((1, 3), -1), torch.arange(K - 3)[None] * 2), 1)
MASKS = {
    "full": None,
    "causal": Causal(),
    "prefix": Causal() | Prefix(4),
    "prefixes": (Causal() & Window(5)) | Prefix(torch.tensor([2, 7])),
    "documents": Documents((torch.arange(Q) // 5)[None], (torch.arange(K) // 5)[None]) & Window(3, 2),
    "dense": Dense(torch.rand(B, 1, Q, K, generator=torch.Generator().manual_seed(0)) > 0.5) & Causal(),
}


def terms(**given: Any) -> dict[str, Any]:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, **given)

    return {
        "keys": PerKey(random(1, H, K)),
        "table": ByDistance(random(H, 9), 5),
        "tails": ByDistance(random(H, 9), 5, random(1, 2)),
        "slope": ByDistance.linear(random(H)),
        "rows": ByDistancePerQuery(random(B, 1, Q, 7), 4),
        "columns": ByDistancePerKey(random(1, H, K, 7), 2),
    }


def call(mask: Any = None, given: Any = (), default_positions: bool = True, device: str = "cpu") -> Call:
    q, k, v = torch.randn(B, H, Q, 16), torch.randn(B, 2, K, 16), torch.randn(B, 2, K, 16)
    k_pos = POS[None] if default_positions else PADDED
    return Call(q, k, v, k_pos[:, :Q], k_pos, mask, tuple(given), 0.3, "softmax", default_positions, device)


def every_pair() -> tuple[Tensor, ...]:
    return torch.meshgrid(*(torch.arange(n) for n in (B, H, Q, K)), indexing="ij")


@pytest.mark.parametrize("default_positions", [True, False])
@pytest.mark.parametrize("mask", MASKS.values(), ids=list(MASKS))
def test_masks(mask: Any, default_positions: bool) -> None:
    made = call(mask, default_positions=default_positions)
    function, expected = flex.mask_mod(made), made.visible()
    assert (function is None) == (expected is None)
    if function is not None and expected is not None:
        assert torch.equal(function(*every_pair()), expected.expand(B, H, Q, K))


@pytest.mark.parametrize("default_positions", [True, False])
@pytest.mark.parametrize("names", [(name,) for name in terms()] + [("table", "slope", "keys"), ()], ids=str)
def test_terms(names: tuple[str, ...], default_positions: bool) -> None:
    made = call(given=[terms()[name] for name in names], default_positions=default_positions)
    function, expected = flex.score_mod(made), made.bias()
    assert (function is None) == (expected is None)
    if function is not None and expected is not None:
        found = function(torch.zeros(B, H, Q, K), *every_pair())
        torch.testing.assert_close(found, expected.expand(B, H, Q, K))


def test_terms_in_half_precision_are_added_in_float32() -> None:
    made = call(given=terms(dtype=torch.bfloat16).values())
    made = replace(made, q=made.q.bfloat16())
    function = flex.score_mod(made)
    assert function is not None
    assert function(torch.zeros(B, H, Q, K), *every_pair()).dtype is torch.float32


def test_a_table_is_spread_over_distances_and_keeps_its_gradient() -> None:
    table = torch.randn(H, 9, requires_grad=True)
    made = call(given=[ByDistance(table, 5)])
    function, expected = flex.score_mod(made), made.bias()
    assert function is not None
    assert expected is not None
    weight = torch.randn(B, H, Q, K)
    got = torch.autograd.grad((function(torch.zeros(B, H, Q, K), *every_pair()) * weight).sum(), table)
    torch.testing.assert_close(got, torch.autograd.grad((expected * weight).sum(), table))


@pytest.mark.usefixtures("unchecked")  # FlexAttention traces the functions it is given
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("default_positions", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("mask", MASKS.values(), ids=list(MASKS))
def test_attention_uncompiled(mask: Any, default_positions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_compiled", lambda: (flex.flex_attention, flex.create_block_mask))
    made = call(mask, [terms()[name] for name in ("tails", "rows", "columns")], default_positions)
    torch.testing.assert_close(flex.run(made), reference.run(made))


def test_blocks_of_the_same_mask_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_kept", {})
    ids, key_ids = torch.zeros(1, Q, dtype=torch.long), torch.zeros(1, K, dtype=torch.long)
    documents = Documents(ids, key_ids)

    def blocks(mask: Any, **given: Any) -> Any:
        return flex._blocks(call(mask, **given), lambda *_, **__: object())

    causal, packed, prefix = (blocks(mask) for mask in (Causal(), documents & Causal(), Causal() | Prefix(3)))
    assert blocks(Causal()) is causal
    assert blocks(documents & Causal()) is packed
    assert blocks(Causal() | Prefix(3)) is prefix
    assert blocks(Causal() | Prefix(4)) is not prefix
    assert blocks(Documents(ids.clone(), key_ids) & Causal()) is not packed
    assert len(flex._kept) == flex.KEPT
    packed = blocks(documents & Causal())
    key_ids.add_(1)
    assert blocks(documents & Causal()) is not packed
    padded = blocks(Causal(), default_positions=False)
    assert blocks(Causal(), default_positions=False) is padded is not blocks(Causal())
    assert blocks(None) is None


def test_it_says_once_what_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(flex, "_announced", set())
    monkeypatch.setattr(logging.getLogger("headway"), "warning", lambda text, *given: said.append(text % given))
    for mask in (Causal() | Prefix(3), Causal() | Prefix(5), Causal()):
        flex._announce(call(mask, [terms()["table"]]))
    assert said == [
        "flex compiles its kernels for Causal, Prefix, ByDistance, float32, once per process",
        "flex compiles its kernels for Causal, ByDistance, float32, once per process",
    ]


def test_what_it_refuses() -> None:
    made = call(device="cuda")
    assert flex.refuses(made) is None
    assert flex.refuses(call(Causal() | Prefix(3), terms().values(), False, "cuda")) is None
    reasons = {
        "FlexAttention has no backward pass on 'cpu', and forward only if compiled: it is used on CUDA": call(),
        "FlexAttention does not support normalise='sigmoid'": replace(made, normalise="sigmoid"),
        "FlexAttention's kernels support float16, bfloat16 and float32, not torch.float64": replace(
            made, q=made.q.double()
        ),
        "heads are 8 wide, and FlexAttention's kernels need at least 16": replace(made, v=made.v[..., :8]),
        "FlexAttention needs at least one query and one key": replace(
            made, k=made.k[:, :, :0], v=made.v[:, :, :0], k_pos=POS[None, :0]
        ),
        "the term Pairwise is not a function of one pair that torch.compile can trace": replace(
            made, terms=(Pairwise(lambda q, k: torch.zeros(1, 1, Q, K)),)
        ),
        "the term ValuesByDistance is not a function of one pair that torch.compile can trace": replace(
            made, terms=(ValuesByDistance(torch.randn(1, 3, 16), 1),)
        ),
    }
    for reason, refused in reasons.items():
        assert flex.refuses(refused) == reason


def test_it_says_that_learned_terms_are_not_deterministic() -> None:
    learned = ByDistance(torch.zeros(H, 3, requires_grad=True), 1)
    assert flex.describe(call())[0] == "exact"
    assert flex.describe(call(given=[learned]))[0].startswith("exact, not deterministic")
    with torch.no_grad():
        assert flex.describe(call(given=[learned]))[0] == "exact"
