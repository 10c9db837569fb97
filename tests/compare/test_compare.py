"""The main job: fair, resumable, and honest about what did not work."""

import json
import math
import shutil

import pytest
import torch

from headway.compare import compute as module
from headway.compare.cells import RESULTS
from headway.compare.run import Comparison, compare
from headway.config import CORE
from headway.figures.words import LANGUAGES, strings
from headway.positions import Position, methods
from headway.shapes import HeadwayError
from headway.training.files import read_json
from headway.transformer import Transformer

SMALL = {"train_length": 8, "test_lengths": (8, 16), "seeds": (0,), "steps": 3, "batch": 16, "dim": 16, "layers": 1}
SMALL |= {"heads": 2}


def small(**changes):
    return Comparison(**{**SMALL, "positions": ("rotary", "learned"), **changes})


def without_time(results):
    cells = [{k: v for k, v in cell.items() if k not in ("seconds", "tokens_per_second")} for cell in results["cells"]]
    return [*cells, results["methods"], results["settings"], results["complete"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small comparison that went through: its folder, of which tests take a copy, and its results."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, compare(small(), folder)


@pytest.fixture
def finished(whole, tmp_path):
    """A folder of one's own with that comparison in it, and its results."""
    folder, results = whole
    shutil.copytree(folder, tmp_path / "finished")
    return tmp_path / "finished", results


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A comparison of all methods: its folder, its results, and the weights that each started from, position aside."""
    started = {}

    class Recorder(module.Trainer):
        def run(self, *args, **kwargs):
            assert isinstance(self.model, Transformer)
            own = {p for m in self.model.modules() if isinstance(m, Position) for p in m.parameters()}
            started[self.model.config.position] = {
                name: p.detach().clone() for name, p in self.model.named_parameters() if p not in own
            }
            return super().run(*args, **kwargs)

    folder = tmp_path_factory.mktemp("everything")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Trainer", Recorder)
        results = compare(small(positions=("all",)), folder, command="headway compare")
    return folder, results, started


def test_all_methods_give_a_complete_result(everything):
    """Every method trains from its start without NaN, and is tested beyond, or says in a sentence why it cannot be."""
    folder, results, _ = everything
    assert results["complete"]
    assert [cell["method"].partition("(")[0] for cell in results["cells"]] == list(methods())
    for cell in results["cells"]:
        assert cell["status"] == "ok", cell
        assert cell["train"]["steps"] == [1, 2, 3]
        assert all(map(math.isfinite, cell["train"]["loss"]))
        assert cell["parameters"] > 0
        assert cell["peak_memory_bytes"] > 0
        assert cell["tokens_per_second"] > 0
        for test in cell["tests"]:
            if test["status"] == "cannot":
                assert test["length"] == 16
                assert "max_length=8" in test["message"]
            else:
                assert test["status"] == "ok", test
                assert test["bits_per_byte"] == pytest.approx(test["loss"] / math.log(2))
                assert 0 <= test["accuracy"] <= 1
    cannot = {cell["method"] for cell in results["cells"] for test in cell["tests"] if test["status"] == "cannot"}
    assert "learned(max_length=8)" in cannot
    assert results == read_json(folder / "results.json", RESULTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", methods())
def test_every_method_learns_at_the_size_of_a_real_comparison(tmp_path, name):
    results = compare(Comparison(positions=(name,), seeds=(0,), steps=60, test_lengths=(64, 256)), tmp_path)
    (cell,) = results["cells"]
    assert cell["status"] == "ok", cell
    loss = cell["train"]["loss"]
    assert all(map(math.isfinite, loss))
    # text of bytes: 5.5 nats at random, about 3.1 by the frequency of letters alone
    assert sum(loss[-5:]) / 5 < 3.2
    assert cell["tests"][0]["status"] == "ok"
    assert cell["tests"][1]["status"] in ("ok", "cannot")


def test_all_is_every_method_and_the_default_a_few():
    assert [spec.partition("(")[0] for spec in Comparison(positions=("all",)).specs()] == list(methods())
    assert [spec.partition("(")[0] for spec in Comparison().specs()] == list(CORE)
    assert set(CORE) < set(methods())


def test_methods_learn_the_training_length_unless_told():
    found = Comparison(train_length=128, positions=("learned", "learned(max_length=512)", "rotary", "hope")).specs()
    assert found == ["learned(max_length=128)", "learned", "rotary", "hope(original=128)"]


def test_every_setting_has_its_name_in_both_languages(everything):
    _, results, _ = everything
    for language in LANGUAGES:
        missing = [
            key for key in (*results["settings"], *results["environment"]) if f"setting.{key}" not in strings(language)
        ]
        assert missing == []


def test_all_methods_of_a_seed_start_from_the_same_weights(everything):
    _, _, started = everything
    assert len(started) == len(methods())
    first = started["none"]
    for weights in started.values():
        assert weights.keys() == first.keys()
        assert all(torch.equal(weights[name], first[name]) for name in first)


def test_finished_cells_are_not_trained_again(finished, monkeypatch):
    folder, first = finished
    monkeypatch.setattr(module, "Trainer", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(module, "_test", lambda *_: pytest.fail("tested again"))
    assert compare(small(), folder)["cells"] == first["cells"]


def test_more_lengths_and_seeds_compute_only_what_is_new(finished):
    folder, _ = finished
    events = []
    results = compare(small(test_lengths=(8, 16, 32), seeds=(0, 5)), folder, on_event=events.append)
    assert {event.seed for event in events if event.what == "train"} == {5}
    assert [test["length"] for test in results["cells"][0]["tests"]] == [8, 16, 32]


@pytest.mark.parametrize("when", range(1, 12, 2))
def test_interrupted_comparison_goes_on_to_the_same_result(whole, tmp_path, when):
    seen = []

    def interrupt(event):
        seen.append(event)
        if len(seen) == when:
            raise KeyboardInterrupt

    part = compare(small(), tmp_path / "part", on_event=interrupt)
    assert not part["complete"] or len(seen) < when
    again = compare(small(), tmp_path / "part")
    assert without_time(again) == without_time(whole[1])


def test_a_table_size_that_is_given_is_kept_even_if_it_is_the_default(tmp_path):
    results = compare(small(positions=("learned(max_length=512)",)), tmp_path)
    (cell,) = results["cells"]
    assert [test["status"] for test in cell["tests"]] == ["ok", "ok"]
    assert cell["position_parameters"] == 512 * SMALL["dim"]


def test_diverged_run_is_shown_as_such(tmp_path):
    results = compare(small(lr=1e30, optimizer="sgd", steps=20, positions=("none",)), tmp_path)
    (cell,) = results["cells"]
    assert cell["status"] == "diverged"
    assert "lower learning rate" in cell["message"]
    assert cell["tests"] == []
    assert results["complete"]


def test_method_that_cannot_be_built_is_a_failed_cell_and_the_others_go_on(tmp_path):
    results = compare(small(dim=15, heads=3, positions=("rotary", "alibi")), tmp_path)
    assert [cell["status"] for cell in results["cells"]] == ["failed", "ok"]
    assert "expected an even head width" in results["cells"][0]["message"]


def test_retrieval_tasks_report_by_distance(tmp_path):
    for task in ("recall", "copy"):
        results = compare(
            small(task=task, train_length=16, test_lengths=(16, 32), positions=("none",)), tmp_path / task
        )
        (cell,) = results["cells"]
        assert {row["length"] for row in cell["by_distance"]} == {16, 32}
        for test in cell["tests"]:
            rows = [row["accuracy"] for row in cell["by_distance"] if row["length"] == test["length"]]
            assert test["accuracy"] == pytest.approx(sum(rows) / len(rows))


def test_damaged_cell_record_is_made_anew(finished):
    folder, first = finished
    for path in folder.glob("cells/*/cell.json"):
        path.write_text(path.read_text()[:100])
    assert without_time(compare(small(), folder)) == without_time(first)


def test_results_hold_no_nan(tmp_path):
    compare(small(lr=1e30, optimizer="sgd", steps=20), tmp_path)
    json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda text: pytest.fail(text))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "sing"}, "expected task to be one of text, recall, copy, got 'sing'"),
        ({"positions": ("rotari",)}, "expected a position method, got 'rotari': did you mean rotary?"),
        ({"positions": ("rotary", "rotary(base=10000)")}, "expected positions that differ"),
        ({"positions": ("t5", "all")}, "expected positions that differ"),
        ({"positions": ()}, "expected at least one position method, got none: 'all' is every method"),
        ({"positions": ("t5(buckets=3)",)}, "expected an even number of t5 buckets"),
        ({"seeds": (1, 1)}, "expected seeds that differ"),
        ({"test_lengths": (4, 8)}, "expected test lengths of at least the training length 8, got 4"),
        (
            {"train_length": 1, "test_lengths": (1,)},
            "expected train_length to be a whole number from 2 to",
        ),
        ({"steps": 0}, "expected steps to be a whole number from 1 to 1,000,000, got 0"),
        ({"optimizer": "lion"}, "expected optimizer to be one of sgd, adam, adamw, got 'lion'"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_trained(changes, message):
    with pytest.raises(HeadwayError, match=message):
        small(**changes)
