"""Terms against their definitions, entry by entry; and their tiles against the whole."""

from __future__ import annotations

import pytest
import torch
from common import refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headway.terms import (
    ByDistance,
    ByDistancePerKey,
    ByDistancePerQuery,
    Pairwise,
    PerKey,
    Term,
    ValuesByDistance,
)

Q_POS = torch.tensor([[4, 0, 9], [2, 3, 500]])
K_POS = torch.tensor([[0, 4, 5, 9, 30], [0, 1, 2, 3, 4]])
TABLE, TAILS = torch.randn(2, 6), torch.randn(2, 2)
ROWS, COLUMNS, BIAS = torch.randn(2, 2, 3, 6), torch.randn(2, 2, 5, 6), torch.randn(2, 2, 5)
LEFT = 3


def clamp(n: int) -> int:
    return min(max(n + LEFT, 0), 5)


def beyond(n: int, h: int) -> Tensor:
    over, under = max(n + LEFT - 5, 0), max(-n - LEFT, 0)
    return TAILS[h, 0] * under + TAILS[h, 1] * over


TERMS = {
    "per key": (PerKey(BIAS), lambda b, h, i, j, n: BIAS[b, h, j]),
    "by distance": (ByDistance(TABLE, LEFT), lambda b, h, i, j, n: TABLE[h, clamp(n)]),
    "by distance, with tails": (
        ByDistance(TABLE, LEFT, TAILS),
        lambda b, h, i, j, n: TABLE[h, clamp(n)] + beyond(n, h),
    ),
    "linear": (ByDistance.linear(TAILS[:, 0]), lambda b, h, i, j, n: TAILS[h, 0] * abs(n)),
    "per query": (ByDistancePerQuery(ROWS, LEFT), lambda b, h, i, j, n: ROWS[b, h, i, clamp(n)]),
    "per key and distance": (ByDistancePerKey(COLUMNS, LEFT), lambda b, h, i, j, n: COLUMNS[b, h, j, clamp(n)]),
    "pairwise": (
        Pairwise(lambda q, k: (q[:, None, :, None] * k[:, None, None]).float().cos()),
        lambda b, h, i, j, n: (Q_POS[b, i] * K_POS[b, j]).float().cos(),
    ),
}


@pytest.mark.parametrize("name", list(TERMS))
def test_a_term_is_its_definition(name: str) -> None:
    term, rule = TERMS[name]
    tile = term.tile(Q_POS, K_POS).expand(2, 2, 3, 5)
    for b, h, i, j in torch.cartesian_prod(*(torch.arange(n) for n in tile.shape)).tolist():
        n = int(K_POS[b, j] - Q_POS[b, i])
        torch.testing.assert_close(tile[b, h, i, j], torch.as_tensor(rule(b, h, i, j, n)))


@pytest.mark.parametrize("name", list(TERMS))
@given(row=st.integers(1, 2), col=st.integers(1, 4))
@settings(max_examples=8, deadline=None)
def test_tiles_are_the_whole(name: str, row: int, col: int) -> None:
    term: Term = TERMS[name][0]
    whole = term.tile(Q_POS, K_POS)
    for rows in (slice(0, row), slice(row, 3)):
        for cols in (slice(0, col), slice(col, 5)):
            assert torch.equal(term.tile(Q_POS, K_POS, rows, cols), whole[:, :, rows, cols])


def test_per_key_and_distance_with_one_batch_of_positions() -> None:
    whole = ByDistancePerKey(COLUMNS, LEFT).tile(Q_POS[:1], K_POS[:1])
    assert torch.equal(whole[0], ByDistancePerKey(COLUMNS, LEFT).tile(Q_POS, K_POS)[0])
    assert torch.equal(
        ByDistancePerQuery(ROWS[:1, :1], LEFT).tile(Q_POS, K_POS)[1],
        ByDistancePerQuery(ROWS[:1, :1].expand(2, 1, 3, 6), LEFT).tile(Q_POS, K_POS)[1],
    )


def test_values_by_distance() -> None:
    weights, table = torch.rand(2, 2, 3, 5), torch.randn(2, 6, 4)
    got = ValuesByDistance(table, LEFT).add(weights, Q_POS, K_POS)
    for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)).tolist():
        expected = sum(weights[b, h, i, j] * table[h, clamp(int(K_POS[b, j] - Q_POS[b, i]))] for j in range(5))
        torch.testing.assert_close(got[b, h, i], expected)


def test_a_table_far_away_keeps_integer_exactness() -> None:
    """Distances are compared as integers: 10⁹ and 10⁹ + 1 are distinguished, which float32 cannot do."""
    pos = torch.tensor([[10**9, 10**9 + 1]])
    tile = ByDistance(torch.tensor([[1.0, 2.0, 3.0]]), 1).tile(pos, pos)
    assert tile[0, 0].tolist() == [[2.0, 3.0], [1.0, 2.0]]


def test_refusals() -> None:
    wrong = Pairwise(lambda q, k: torch.zeros(1, 3, 4))
    with refusal("expected Pairwise fn to return (batch or 1, heads or 1, 3, 5), got (1, 3, 4)"):
        wrong.tile(Q_POS, K_POS)
