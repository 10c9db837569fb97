"""Random calls of attend against a formula in float64; 10,000 of them are a proof (tests/proofs)."""

from __future__ import annotations

import pytest
from random_calls import check_call


@pytest.mark.parametrize("part", range(3))
def test_random_calls(part: int) -> None:
    for seed in range(50 * part, 50 * part + 50):
        check_call(seed)
