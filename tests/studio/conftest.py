"""One studio for all tests of a module, over a tiny run and a tiny comparison."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra studio is not installed")
pytest.importorskip("uvicorn", reason="the extra studio is not installed")

from served import Client, studio

TEXT = "the cat sat on the mat and the dog lay on the log. " * 60


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run of three heads and a comparison of two methods, as small as they can be."""
    from headway.compare.run import Comparison, compare
    from headway.training import TrainSettings, train

    root = tmp_path_factory.mktemp("secret-place")
    text = root / "text.txt"
    text.write_text(TEXT)
    settings = TrainSettings(steps=4, batch=2, length=16, checkpoint_every=2, validate_every=2)
    config = {"dim": 24, "layers": 2, "heads": 3}
    train(text, out=root / "my run", model_config=config, settings=settings, watch=2)
    small = Comparison(
        text=str(text), positions=("rotary", "alibi"), train_length=16, test_lengths=(16, 32), seeds=(0,), steps=3,
        batch=2, dim=16, layers=1, heads=2,
    )  # fmt: skip
    compare(small, root / "compared", command="headway compare text.txt")
    return [root / "my run", root / "compared"]


@pytest.fixture(scope="module")
def client(folders: list[Path]) -> Iterator[Client]:
    """In a studio, after entering it."""
    with studio(folders) as found:
        found.enter()
        yield found
