"""Trained models made to read longer: the same weights before and after, one training for all ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from common import refusal

from headway import Transformer
from headway.compare import run as module
from headway.compare.extending import extends
from headway.compare.run import Comparison, compare
from headway.compare.settings import WAYS
from headway.positions import parse
from headway.training.loop import Trainer

SMALL = {"train_length": 8, "test_lengths": (8, 16, 32), "seeds": (0,), "steps": 3, "batch": 2, "dim": 16, "layers": 1}
SMALL |= {"heads": 2, "positions": ("rotary", "alibi"), "extend": WAYS, "recalibrate": 2}


def losses(results: dict, method: str) -> list[float]:
    (cell,) = (cell for cell in results["cells"] if cell["method"] == method)
    return [test["loss"] for test in cell["tests"]]


def test_every_way_is_measured_beside_the_model_as_trained(tmp_path: Path) -> None:
    results = compare(Comparison(**SMALL), tmp_path)
    names = ["rotary", *(f"rotary + {how}" for how in WAYS), "alibi"]
    assert [method["spec"] for method in results["methods"]] == names
    assert [cell["method"] for cell in results["cells"]] == names
    assert all([test["length"] for test in cell["tests"]] == [8, 16, 32] for cell in results["cells"])
    before, drope = losses(results, "rotary"), losses(results, "rotary + drope")
    assert losses(results, "rotary + dynamic")[0] == before[0]  # which changes nothing up to the training length
    assert losses(results, "rotary + linear")[0] != before[0]
    assert drope != before
    (parameters,) = {cell["parameters"] for cell in results["cells"]}
    assert parameters > 0


def test_what_is_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare(Comparison(**{**SMALL, "extend": ("yarn",)}), tmp_path)
    trained = []
    monkeypatch.setattr(Trainer, "_loop", lambda self, *args: trained.append(self.settings.steps))
    second = compare(Comparison(**{**SMALL, "extend": ("yarn", "linear")}), tmp_path)
    # the trainer opens the finished run again, and trains nothing
    assert losses(second, "rotary + yarn") == losses(first, "rotary + yarn")
    assert losses(second, "rotary") == losses(first, "rotary")
    assert len(trained) == 1
    third = compare(Comparison(**{**SMALL, "extend": ("yarn", "linear")}), tmp_path)
    assert len(trained) == 1
    assert third["cells"] == second["cells"]


def test_a_recalibration_goes_on_in_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same sequence of batches, after those of the training; another length of it is another recalibration."""
    seen: list[int] = []
    make = module.make_task

    def spy(*args: object, **given: object) -> object:
        task = make(*args, **given)
        batches = task.batches

        def watched(*sizes: int) -> object:
            inner = batches(*sizes)
            return lambda step: seen.append(step) or inner(step)

        task.batches = watched
        return task

    monkeypatch.setattr(module, "make_task", spy)
    compare(Comparison(**{**SMALL, "positions": ("rotary",), "extend": ("drope",)}), tmp_path)
    assert seen[-2:] == [3, 4]
    assert max(seen[:-2]) == 2
    again = compare(Comparison(**{**SMALL, "positions": ("rotary",), "extend": ("drope",), "recalibrate": 4}), tmp_path)
    assert again["complete"]
    assert seen[-4:] == [3, 4, 5, 6]


def test_which_methods_can_be_extended() -> None:
    can = {spec: [how for how in WAYS if extends(parse(spec), how, to=64, trained=8)] for spec in ("rotary", "t5")}
    assert can == {"rotary": list(WAYS), "t5": []}
    with refusal("expected a method that yarn can extend, e.g. rotary, got alibi"):
        Comparison(**{**SMALL, "positions": ("alibi",), "extend": ("yarn",)})
    with refusal("expected extend among linear, ntk, dynamic, yarn, drope, got 'more'"):
        Comparison(**{**SMALL, "extend": ("more",)})


def test_a_transformer_is_extended_as_a_copy() -> None:
    model = Transformer(9, 16, 2, 2, position="rotary").eval()
    longer = model.extended(64, "yarn", trained=8)
    assert model.position.spec() == "rotary"
    assert longer.config.position == longer.position.spec() == "yarn(factor=8.0, original=8)"
    assert all(attention.position is longer.position for attention in longer.stack.attentions())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), longer.parameters(), strict=True))
    tokens = torch.randint(9, (1, 20))
    again = Transformer.from_config(longer.config).eval()
    again.load_state_dict(longer.state_dict())
    assert torch.equal(again(tokens), longer(tokens))
    assert not torch.equal(model(tokens), longer(tokens))


def test_a_table_is_extended_with_its_weights() -> None:
    model = Transformer(9, 16, 1, 2, position="learned(max_length=8)")
    longer = model.extended(16)
    assert longer.position.hyperparameters() == {"max_length": 16}
    first, last = longer.position.weight[[0, -1]], model.position.weight[[0, -1]]
    torch.testing.assert_close(first, last)
    assert longer(torch.randint(9, (1, 16))).shape == (1, 16, 9)
