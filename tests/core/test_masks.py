"""Masks against their definitions, pair by pair."""

from __future__ import annotations

import pytest
import torch
from common import refusal

from headway import Causal, Dense, Documents, Prefix, Window, attend
from headway.masks import Mask, as_positions

Q_POS = torch.tensor([[3, 0, 7, 100], [1, 1, 2, 50]])
K_POS = torch.tensor([[0, 3, 4, 7, 99, 100], [0, 1, 1, 2, 49, 60]])
Q_IDS = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 3]])
K_IDS = torch.tensor([[0, 0, 1, 1, 1, 0], [2, 3, 3, 2, 2, 2]])
DENSE = torch.rand(2, 3, 4, 6) > 0.5

RULES = {
    "causal": (Causal(), lambda q, k, **_: k <= q),
    "window": (Window(3, 1), lambda q, k, **_: q - 3 <= k <= q + 1),
    "prefix": (Prefix(4), lambda q, k, **_: k < 4),
    "prefixes": (Prefix(torch.tensor([1, 50])), lambda q, k, b, **_: k < (1, 50)[b]),
    "documents": (Documents(Q_IDS, K_IDS), lambda q, k, b, i, j: Q_IDS[b, i] == K_IDS[b, j]),
    "and": (Causal() & Window(3), lambda q, k, **_: q - 3 <= k <= q),
    "or": (Causal() | Prefix(5), lambda q, k, **_: k <= q or k < 5),
    "nested": ((Causal() | Prefix(5)) & Documents(Q_IDS, K_IDS), None),
}


@pytest.mark.parametrize("name", [name for name, (_, rule) in RULES.items() if rule])
def test_a_mask_is_its_rule(name: str) -> None:
    mask, rule = RULES[name]
    seen = mask.tile(Q_POS, K_POS).expand(2, 1, 4, 6)
    for b in range(2):
        for i, q in enumerate(Q_POS[b].tolist()):
            for j, k in enumerate(K_POS[b].tolist()):
                assert seen[b, 0, i, j].item() == bool(rule(q, k, b=b, i=i, j=j))


@pytest.mark.parametrize("name", [*RULES, "dense"])
def test_tiles_are_the_whole(name: str) -> None:
    mask: Mask = Dense(DENSE) if name == "dense" else RULES[name][0]
    whole = mask.tile(Q_POS, K_POS)
    for rows in (slice(0, 1), slice(1, 4)):
        for cols in (slice(0, 2), slice(2, 5), slice(5, 6)):
            assert torch.equal(mask.tile(Q_POS, K_POS, rows, cols), whole[:, :, rows, cols])


@pytest.mark.parametrize("name", list(RULES))
def test_moving_positions_moves_no_relative_mask(name: str) -> None:
    mask = RULES[name][0]
    still = mask.tile(Q_POS, K_POS)
    moved = mask.tile(Q_POS + 10**6, K_POS + 10**6)
    assert torch.equal(moved, still) == (name in ("causal", "window", "documents", "and"))


def test_masks_say_what_they_are() -> None:
    assert repr(Causal() & Window(128)) == "And(first=Causal(), second=Window(left=128, right=0))"
    assert Window(3) == Window(3, 0) != Window(4)
    assert Causal() == Causal()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int16])
def test_positions_of_any_integer_kind(dtype: torch.dtype) -> None:
    pos = as_positions(torch.arange(5, dtype=dtype), torch.zeros(2, 5, 3))
    assert pos.dtype == torch.int64
    assert pos.shape == (1, 5)


def test_refusals() -> None:
    with refusal("expected window sides of at least 0 tokens, got left=-1, right=0"):
        Window(-1)
    with refusal("expected window sides of at least 0 tokens, got left=2, right=-3"):
        Window(2, -3)
    with refusal("expected Documents ids of shape (batch, 4), got (1, 3): give one document id per token"):
        Documents(Q_IDS[:1, :3]).tile(Q_POS, Q_POS)
    with refusal("expected Documents key_ids of shape (batch, 6), got (2, 4): give one document id per token"):
        Documents(Q_IDS).tile(Q_POS, K_POS)
    with refusal("expected Documents ids of shape (batch, 4), got (4,): give one document id per token"):
        Documents(Q_IDS[0]).tile(Q_POS, Q_POS)
    with refusal("expected a mask over 4 queries and 4 keys, got one of shape (2, 3, 4, 6)"):
        Dense(DENSE).tile(Q_POS, Q_POS)
    for value, got in (
        (DENSE.float(), "torch.float32 of shape (2, 3, 4, 6)"),
        (DENSE[0], "torch.bool of shape (3, 4, 6)"),
        (3, "3"),
    ):
        with refusal(
            "expected a boolean mask of shape (batch or 1, heads or 1, queries, keys), True = may see, "
            f"got {got}: what is added to scores is a term, see headway.terms"
        ):
            Dense(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.bool])
def test_positions_that_are_not_integers(dtype: torch.dtype) -> None:
    with refusal(f"expected integer q_pos, got {dtype}: bf16, for one, cannot count past 256"):
        as_positions(torch.zeros(5, dtype=dtype), torch.zeros(2, 5), "q_pos")


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 5, 1), (), (5, 2)])
def test_positions_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    got = (1, *shape) if len(shape) == 1 else shape
    with refusal(f"expected positions of shape (2 or 1, 5), got {got}"):
        as_positions(torch.zeros(shape, dtype=torch.long), torch.zeros(2, 5))


def test_positions_elsewhere() -> None:
    with refusal("expected positions on cpu, got meta"):
        as_positions(torch.zeros(5, dtype=torch.long, device="meta"), torch.zeros(2, 5))


def test_a_mask_acts_alike_in_every_backend() -> None:
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 8)
    for mask, _ in RULES.values():
        runs = [
            attend(q, k, v, mask=mask, q_pos=Q_POS, k_pos=K_POS, backend=backend) for backend in ("reference", "sdpa")
        ]
        torch.testing.assert_close(*runs)
