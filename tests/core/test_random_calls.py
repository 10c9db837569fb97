"""Random calls of attend against a formula in float64; 10,000 of them are a proof (tests/proofs)."""

from __future__ import annotations

import pytest
from random_calls import check_call


@pytest.mark.parametrize("part", range(3))
def test_random_calls(part: int) -> None:
    for seed in range(50 * part, 50 * part + 50):
        check_call(seed)


@pytest.mark.parametrize("seed", [4975, 5003])
def test_calls_that_were_judged_wrongly(seed: int) -> None:
    """Images of two widths, which no kernel takes together; distances of 10^5 in bfloat16."""
    check_call(seed)
