"""What a comparison keeps of its trained models: their views, through interruptions, and at no change of any number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headway.compare import compute as module
from headway.compare.cells import RESULTS
from headway.compare.page import page, payload
from headway.compare.run import Comparison, compare
from headway.training.files import read_json

SMALL: dict[str, Any] = {"train_length": 16, "test_lengths": (16,), "steps": 9, "batch": 16, "dim": 16, "layers": 2}
SMALL |= {"heads": 2, "seeds": (0,)}
KEPT = {
    "none": ["distance", "film"],
    "sinusoidal": ["vectors", "similarity", "distance", "film"],
    "rotary": ["rotation", "distance", "film"],
    "alibi": ["bias", "distance", "film"],
}


def small(**changes: Any) -> Comparison:
    return Comparison(**{**SMALL, "positions": ("rotary",), **changes})


def keys(views: list[dict[str, Any]]) -> list[str]:
    return [view["key"] for view in views]


def test_each_method_keeps_the_views_it_has(tmp_path: Path) -> None:
    results = compare(small(positions=tuple(KEPT)), tmp_path)
    assert {method: keys(views) for method, views in results["views"].items()} == KEPT
    assert results == read_json(tmp_path / "results.json", RESULTS)
    assert not list(tmp_path.glob("cells/*/watch"))
    film = results["views"]["rotary"][-1]["figures"][0]
    assert 5 <= len({label["en"] for label, _ in film["frames"]}) == len(film["frames"]) <= 9
    assert payload(results)["views"].keys() == KEPT.keys()
    assert "views" not in payload(results)["results"]
    assert len(page(results).encode()) < 5_000_000


def test_watching_changes_no_number(tmp_path: Path) -> None:
    watched = compare(small(seeds=(0,)), tmp_path / "one")["cells"][0]
    unwatched = compare(small(seeds=(3, 0)), tmp_path / "two")["cells"][1]
    assert unwatched["seed"] == 0
    assert len(list(tmp_path.glob("two/cells/*/views.json"))) == 1  # of the first seed only
    for key in ("train", "validation", "tests"):
        assert watched[key] == unwatched[key]


def test_an_interrupted_comparison_keeps_what_it_has(tmp_path: Path) -> None:
    def interrupt(event: Any) -> None:
        if event.method == "alibi":
            raise KeyboardInterrupt

    part = compare(small(positions=("rotary", "alibi")), tmp_path, on_event=interrupt)
    assert not part["complete"]
    assert keys(part["views"]["rotary"]) == KEPT["rotary"]
    assert payload(part)["views"]["rotary"] == part["views"]["rotary"]
    assert compare(small(positions=("rotary", "alibi")), tmp_path)["views"].keys() == {"rotary", "alibi"}


def test_a_training_that_was_interrupted_has_its_whole_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(small(), tmp_path / "whole")["views"]["rotary"]
    run = module.Trainer.run

    def stopped(trainer: Any, *_: Any, lock: Any) -> Any:
        return run(trainer, lock=lock, stop=lambda: len(trainer.history.steps) >= 5)

    with monkeypatch.context() as patch:
        patch.setattr(module.Trainer, "run", stopped)
        assert compare(small(), tmp_path / "part")["views"] == {}
    assert compare(small(), tmp_path / "part")["views"]["rotary"] == whole


def test_views_of_an_earlier_version_are_made_from_its_checkpoint(tmp_path: Path) -> None:
    first = compare(small(), tmp_path)
    next(tmp_path.glob("cells/*/views.json")).unlink()
    events: list[Any] = []
    again = compare(small(), tmp_path, on_event=events.append)
    assert keys(again["views"]["rotary"]) == ["rotation", "distance"]  # the training was not watched
    assert again["views"]["rotary"] == first["views"]["rotary"][:2]
    assert again["cells"] == first["cells"]


def test_what_did_not_train_keeps_nothing(tmp_path: Path) -> None:
    results = compare(small(lr=1e30, optimizer="sgd", steps=20), tmp_path)
    assert results["cells"][0]["status"] == "diverged"
    assert results["views"] == {}
