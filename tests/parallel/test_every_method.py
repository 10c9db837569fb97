"""Long proofs: every method, spread over four ranks in every way that takes it, is as exact as in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from common import specs
from memory import peaks
from spreading import divided, exact, together

from headway import Causal, Window

pytestmark = pytest.mark.slow

OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {},
    "packed": {"packed": True},
    "window": {"mask": Causal() & Window(7), "padded": 3},
    "full": {"mask": None},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("part", range(4))
def test_every_method_on_four_ranks(part: int, options: str, tmp_path: Path) -> None:
    given = {"heads": 8, "kv_heads": 2, **OPTIONS[options]}
    together(tmp_path, 4, exact, specs()[part::4], given)


@pytest.mark.parametrize("part", range(4))
def test_heads_divided_among_four_ranks(part: int, tmp_path: Path) -> None:
    together(tmp_path, 4, divided, specs()[part::4])


def test_memory_in_a_ring_falls_with_the_number_of_ranks() -> None:
    """At 32,768 tokens; above 1/P are the keys and values on their way."""
    one, two, four = (max(peaks("ring", size)) for size in (1, 2, 4))
    assert four <= 0.6 * two
    assert four <= 0.37 * one
