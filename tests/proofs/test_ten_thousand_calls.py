"""10,000 random calls of attend against a formula in float64, in parts of 100: values, gradients, bits, refusals."""

from __future__ import annotations

import pytest
from random_calls import check_call


@pytest.mark.slow
@pytest.mark.parametrize("part", range(100))
def test_random_calls(part: int) -> None:
    for seed in range(1000 + 100 * part, 1100 + 100 * part):
        check_call(seed)
