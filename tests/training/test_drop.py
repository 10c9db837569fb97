"""DroPE: position is dropped for the last steps, the rate begins anew, and a resume lands in the right phase."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headway import Transformer
from headway.shapes import HeadwayError
from headway.training.loop import Trainer
from headway.training.optimizer import learning_rate
from headway.training.run import load_model, train
from headway.training.settings import TrainSettings

MODEL = {"dim": 16, "layers": 2, "heads": 2, "position": "rotary"}
TEXT = "It was the best of times, it was the worst of times. " * 40


def settings(**given: object) -> TrainSettings:
    return TrainSettings(
        **{"steps": 10, "drop_position": 4, "batch": 2, "length": 16, "checkpoint_every": None, "lr": 1e-3, **given}
    )


def test_two_courses_of_the_learning_rate() -> None:
    both = TrainSettings(steps=300, drop_position=100, lr=1.0)
    apart = [TrainSettings(steps=steps, lr=1.0) for steps in (200, 100)]
    expected = [learning_rate(step, each) for each in apart for step in range(each.steps)]
    assert [learning_rate(step, both) for step in range(300)] == expected


def text(folder: Path) -> Path:
    (folder / "text.txt").write_text(TEXT)
    return folder / "text.txt"


def test_a_run_ends_without_position(tmp_path: Path) -> None:
    result = train(text(tmp_path), out=tmp_path / "run", model_config=MODEL, settings=settings())
    loaded, _, run = load_model(tmp_path / "run")
    assert run.config["position"] == "rotary"
    for model in (result.model, loaded):
        assert model.position.method_name() == "none"
        assert all(a.position.method_name() == "none" for a in model.stack.attentions())
    tokens = torch.randint(200, (1, 12))
    assert torch.equal(loaded(tokens), result.model.eval()(tokens))
    with_position = Transformer(**{**MODEL, "vocab": 256})
    with_position.load_state_dict(loaded.state_dict())
    assert not torch.allclose(with_position(tokens), loaded(tokens), atol=1e-4)


def test_position_is_there_until_it_is_dropped(tmp_path: Path) -> None:
    """As many steps with position as without the setting, bit for bit, then others."""
    given = {"schedule": "constant", "warmup": 0}
    dropped, kept = (
        train(text(tmp_path), out=tmp_path / f"{n}", model_config=MODEL, settings=settings(drop_position=n, **given))
        for n in (4, 0)
    )
    same = [a == b for a, b in zip(dropped.history.loss, kept.history.loss, strict=True)]
    assert same == [True] * 6 + [False] * 4


@pytest.mark.parametrize("at", [3, 6, 7])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, at: int) -> None:
    source = text(tmp_path)
    whole = train(source, out=tmp_path / "whole", model_config=MODEL, settings=settings())
    steps = iter(range(1, 100))
    train(source, out=tmp_path / "cut", model_config=MODEL, settings=settings(), stop=lambda: next(steps) == at)
    again = train(source, out=tmp_path / "cut", model_config=MODEL, settings=settings())
    assert again.resumed_from == at
    assert again.history.loss == whole.history.loss
    state, expected = again.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_what_cannot_be_dropped() -> None:
    with pytest.raises(
        HeadwayError, match=r"^expected drop_position below steps=10, got 10: position is dropped at the end"
    ):
        settings(drop_position=10)
    with pytest.raises(
        HeadwayError, match=r"^expected a position method without parameters to drop, as rotary, got t5$"
    ):
        Transformer(vocab=9, dim=16, heads=2, position="t5").drop_position()
    with pytest.raises(
        HeadwayError, match=r"^expected a model with drop_position\(\), .*, got Linear: set drop_position"
    ):
        Trainer(torch.nn.Linear(2, 2), lambda step: (torch.zeros(1, 1), torch.zeros(1, 1)), settings())
