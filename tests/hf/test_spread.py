"""Other people's models with their tokens spread over two processes are the models alone, or refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from parallel.spreading import together
from spread import every_family, proof


def test_two_processes_are_one(tmp_path: Path) -> None:
    together(tmp_path, 2, proof)


@pytest.mark.slow
def test_every_family(tmp_path: Path) -> None:
    together(tmp_path, 2, every_family)
