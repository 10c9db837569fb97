"""Random sequences of operations with a cache: a few here, thousands as a proof."""

from __future__ import annotations

import pytest
from operations import run

PROOF, PARTS = 4_800, 48


@pytest.mark.parametrize("part", range(6))
def test_sequences_of_operations(part: int) -> None:
    for number in range(10 * part, 10 * part + 10):
        run(number)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_thousands_of_sequences(part: int) -> None:
    for number in range(1_000 + part, 1_000 + PROOF, PARTS):
        run(number)
