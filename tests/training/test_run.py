from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_model import Tiny, tiny_settings
from torch import nn

import headway.training.run as run_module
from headway.shapes import HeadwayError
from headway.training import models as models_module
from headway.training.checkpoint import model_tensors
from headway.training.run import load_model, open_run, train
from headway.training.text import read_text


class Configured(Tiny):
    def __init__(self, config: Mapping[str, Any]) -> None:
        if unknown := set(config) - {"vocab", "width"}:
            raise HeadwayError(f"expected a config of vocab and width, got {unknown}")
        super().__init__(config["width"], config["vocab"])
        self.config = dict(config)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_module, "build_model", Configured)
    for module in (run_module, models_module):
        monkeypatch.setattr(module, "check_size", lambda *_, **__: None)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(read_text().data[:4000])
    return path


CONFIG = {"width": 8}


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = model_tensors(a), model_tensors(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("vocabulary", ["bytes", "bpe"])
def test_train_stop_resume_load(tmp_path: Path, text: Path, vocabulary: str) -> None:
    arguments: dict[str, Any] = {
        "model_config": CONFIG,
        "settings": tiny_settings(),
        "vocabulary": vocabulary,
        "vocabulary_size": 300,
    }
    torch.manual_seed(1)
    whole = train(text, out=tmp_path / "whole", **arguments)
    assert (whole.history.status, whole.resumed_from, whole.notes) == ("done", None, ())
    torch.manual_seed(2)
    count = [0]

    def stop() -> bool:
        count[0] += 1
        return count[0] == 2

    cut = train(text, out=tmp_path / "cut", stop=stop, **arguments)
    assert (cut.history.status, cut.history.steps) == ("interrupted", [1, 2])
    assert open_run(tmp_path / "cut").history.status == "interrupted"
    resumed = train(text, out=tmp_path / "cut", **arguments)
    assert resumed.notes == (f"resumed the run in {tmp_path / 'cut'} after step 2 of 6",)
    assert same(resumed.model, whole.model)
    again = train(text, out=tmp_path / "cut", **arguments)
    assert again.notes == (f"the run in {tmp_path / 'cut'} is already finished: 6 of 6 steps",)
    assert again.history.loss == whole.history.loss == resumed.history.loss
    model, words, run = load_model(tmp_path / "cut")
    assert same(model, whole.model)
    assert not model.training
    assert words.to_json() == whole.run.vocabulary.to_json()
    assert run.config == {"width": 8, "vocab": words.size}
    assert (run.text["name"], run.text["bytes"]) == (str(text), 4000)
    assert set(run.versions) == {"headway", "torch", "python"}
    assert run.settings == tiny_settings()


def test_weights_depend_on_the_seed_only_and_global_randomness_is_untouched(tmp_path: Path, text: Path) -> None:
    before = torch.get_rng_state()
    a = train(text, out=tmp_path / "a", model_config=CONFIG, settings=tiny_settings())
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    b = train(text, out=tmp_path / "b", model_config=CONFIG, settings=tiny_settings())
    c = train(text, out=tmp_path / "c", model_config=CONFIG, settings=tiny_settings(seed=1))
    assert same(a.model, b.model)
    assert not same(a.model, c.model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": tiny_settings(lr=0.5)}, r"expected the train of the run .* \(lr was None, is 0.5\): repeat"),
        ({"model_config": {"width": 4}}, r"expected the model of the run in .* \(width was 8, is 4\)"),
        ({"vocabulary": "bpe"}, r"expected the vocabulary_request of the run .* \(kind was 'bytes', is 'bpe'"),
    ],
)
def test_other_settings_in_the_same_folder(tmp_path: Path, text: Path, changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"out": tmp_path / "r", "model_config": CONFIG, "settings": tiny_settings()}
    first = train(text, **arguments)
    with pytest.raises(HeadwayError, match=message):
        train(text, **{**arguments, **changes})
    assert same(load_model(tmp_path / "r")[0], first.model)


def test_a_finished_run_is_continued_to_more_steps(tmp_path: Path, text: Path) -> None:
    """With a constant learning rate as if it had been that long from the start, to the bit."""
    steady = {"schedule": "constant", "warmup": 2}
    given: dict[str, Any] = {"model_config": CONFIG}
    long = tiny_settings(**steady)
    short = tiny_settings(**steady, steps=long.steps // 2)
    whole = train(text, out=tmp_path / "whole", settings=long, **given)
    assert train(text, out=tmp_path / "run", settings=short, **given).history.status == "done"
    stopped = train(text, out=tmp_path / "run", settings=long, stop=lambda: True, **given)
    assert (stopped.history.status, len(stopped.history.steps)) == ("interrupted", short.steps + 1)
    done = train(text, out=tmp_path / "run", settings=long, **given)
    assert done.history.status == "done"
    assert done.history.loss == whole.history.loss
    assert same(done.model, whole.model)
    assert open_run(tmp_path / "run").settings == long
    assert stopped.notes == (
        f"resumed the run in {tmp_path / 'run'} after step {short.steps} of {long.steps}",
        f"continued a run of {short.steps} steps to {long.steps}: from step {short.steps + 1} on, the learning rate is "
        f"that of a run of {long.steps} steps",
    )
    assert not any("continued" in note for note in done.notes)
    with pytest.raises(HeadwayError, match=f"steps was {long.steps}, is {short.steps}"):
        train(text, out=tmp_path / "run", settings=short, **given)


def test_a_kill_before_the_first_checkpoint_of_a_continued_run_loses_nothing(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"model_config": CONFIG, "out": tmp_path / "run"}
    long = tiny_settings()
    first = train(text, settings=tiny_settings(steps=long.steps // 2), **given)

    class Killed(BaseException):
        """What nobody catches."""

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", kill)
        with pytest.raises(Killed):
            train(text, settings=long, **given)
    model, _, run = load_model(tmp_path / "run")
    assert same(model, first.model)
    assert run.settings == long
    done = train(text, settings=long, **given)
    assert done.history.steps == list(range(1, long.steps + 1))
    assert done.history.lr[-1] == train(text, **{**given, "out": tmp_path / "b"}, settings=long).history.lr[-1]


def test_a_run_that_dropped_its_position_is_not_continued(tmp_path: Path) -> None:
    from headway.training.loop import _checked, is_longer

    saved, longer = tiny_settings(drop_position=2), tiny_settings(drop_position=2, steps=99)
    assert is_longer(longer, saved)
    assert not is_longer(saved, longer)
    assert not is_longer(tiny_settings(lr=0.5, steps=99), saved)
    history = {**run_module.History().to_json(), "steps": list(range(1, saved.steps + 1))}
    for name in ("loss", "lr", "grad_norm"):
        history[name] = [0.0] * saved.steps
    values = {"history": history, "settings": saved.plain(), "environment": {}, "extra": {}}
    checkpoint = SimpleNamespace(values=values, step=saved.steps, path=tmp_path / "a" / "b" / "c")
    with pytest.raises(HeadwayError, match="to be continued to 99 steps, got one that dropped it after step"):
        _checked(checkpoint, longer, {})  # type: ignore[arg-type]


def test_changed_text_is_refused_and_a_moved_one_is_not(tmp_path: Path, text: Path) -> None:
    arguments: dict[str, Any] = {"out": tmp_path / "r", "model_config": CONFIG, "settings": tiny_settings()}
    train(text, **arguments)
    moved = text.rename(tmp_path / "moved.txt")
    train(moved, **arguments)
    moved.write_bytes(moved.read_bytes()[:-1] + b"!")
    with pytest.raises(HeadwayError, match=r"expected the text of the run in .* \(sha256 was"):
        train(moved, **arguments)


def test_foreign_folder_and_file_are_left_alone(tmp_path: Path, text: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(HeadwayError, match=r"which holds thesis.tex and no settings.json: choose another folder"):
        train(text, out=tmp_path / "mine", model_config=CONFIG, settings=tiny_settings())
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(HeadwayError, match=r"expected a folder at .*, got a file: choose another place"):
        train(text, out=text, model_config=CONFIG, settings=tiny_settings())


def test_bad_arguments_leave_no_run_behind(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "r"
    with pytest.raises(HeadwayError, match=r"at least 10002 bytes .*, got 4000 bytes"):
        train(text, out=out, model_config=CONFIG, settings=tiny_settings(length=5000))
    with pytest.raises(
        HeadwayError,
        match=r"expected vocabulary to be bytes, bpe or the path of a tokenizer.json, got 'words', which is no file",
    ):
        train(text, out=out, model_config=CONFIG, vocabulary="words", settings=tiny_settings())
    with pytest.raises(HeadwayError, match=r"without vocab, or with vocab=256 .*, got vocab=9"):
        train(text, out=out, model_config={"vocab": 9, "width": 8}, settings=tiny_settings())
    with pytest.raises(HeadwayError, match=r"expected a config of vocab and width"):
        train(text, out=out, model_config={"colour": 9}, settings=tiny_settings())
    assert train(text, out=out, model_config=CONFIG, settings=tiny_settings()).history.status == "done"


def test_run_that_failed_before_its_first_checkpoint_may_start_anew(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limit(self: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        raise HeadwayError("expected at most 4 positions, got 8")

    with monkeypatch.context() as patched:
        patched.setattr(Configured, "forward", limit)
        with pytest.raises(HeadwayError, match=r"at most 4 positions"):
            train(text, out=tmp_path / "r", model_config=CONFIG, settings=tiny_settings())
    with pytest.raises(HeadwayError, match=r"expected a whole checkpoint in .*, got none: train the run until"):
        load_model(tmp_path / "r")
    done = train(text, out=tmp_path / "r", model_config=CONFIG, settings=tiny_settings(lr=0.01))
    assert done.history.status == "done"
    assert done.run.settings.lr == 0.01


def test_text_folder_may_hold_the_run_itself(tmp_path: Path, text: Path) -> None:
    arguments: dict[str, Any] = {"out": tmp_path / "r", "model_config": CONFIG, "settings": tiny_settings()}
    train(tmp_path, **arguments)
    left_out, finished = train(tmp_path, **arguments).notes
    assert left_out == f"left out of the text: {tmp_path / 'r'} (results of headway)"
    assert "already finished" in finished


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: b"",
        lambda r: b"[]",
        lambda r: json.dumps({**r, "format": 2}).encode(),
        lambda r: json.dumps({**r, "model": "os.system"}).encode(),
        lambda r: json.dumps({**r, "train": {"steps": -1}}).encode(),
        lambda r: json.dumps({**r, "train": {"__class__": "x"}}).encode(),
        lambda r: json.dumps({**r, "vocabulary": {"kind": "pickle"}}).encode(),
        lambda r: json.dumps({k: v for k, v in r.items() if k != "text"}).encode(),
    ],
)
def test_damaged_settings_are_refused(tmp_path: Path, text: Path, spoil: Callable[[dict[str, Any]], bytes]) -> None:
    train(text, out=tmp_path / "r", model_config=CONFIG, settings=tiny_settings())
    path = tmp_path / "r" / "settings.json"
    path.write_bytes(spoil(json.loads(path.read_bytes())))
    with pytest.raises(HeadwayError, match=r"expected"):
        open_run(tmp_path / "r")
    with pytest.raises(HeadwayError, match=r"expected"):
        load_model(tmp_path / "r")


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(HeadwayError, match=r"expected a run folder with settings.json, got .*: make one with"):
        open_run(tmp_path / "no")


def test_damaged_newest_checkpoint_still_loads_the_older_one(tmp_path: Path, text: Path) -> None:
    train(text, out=tmp_path / "r", model_config=CONFIG, settings=tiny_settings())
    (tmp_path / "r/checkpoints/step-00000006/state.json").unlink()
    model, _, _ = load_model(tmp_path / "r")
    assert model.calls == 4
    (tmp_path / "r/checkpoints/step-00000004/state.json").unlink()
    with pytest.raises(HeadwayError, match=r"got none \(skipped checkpoint step-00000006: .*No such file"):
        load_model(tmp_path / "r")


SCRIPT = """
import sys
from pathlib import Path
from headway.training import TrainSettings, train
settings = TrainSettings(steps=40, batch=16, length=16, checkpoint_every=None, validate_every=20)
config = {"dim": 16, "layers": 1, "heads": 2}
tell = lambda p: print("step", p.step, flush=True)
for out in sys.argv[1:]:
    result = train(None, out=out, model_config=config, settings=settings, on_progress=tell)
    print("status", result.history.status, len(result.history.steps), flush=True)
"""


def test_end_to_end_with_the_transformer_and_sigterm_from_outside(tmp_path: Path) -> None:
    pytest.importorskip("headway.transformer")

    def start(*names: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, *(tmp_path / name for name in names)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1)

    cut = start("cut")
    assert cut.stdout is not None
    assert cut.stdout.readline().startswith("step")
    os.kill(cut.pid, signal.SIGTERM)
    rest = cut.communicate(timeout=100)[0]
    # A fast machine may have finished before the signal came.
    assert "status interrupted" in rest or "status done" in rest
    assert cut.returncode == 0
    assert start("cut", "whole").communicate(timeout=100)[0].count("status done 40") == 2
    left, right = (
        (tmp_path / name / "checkpoints/step-00000040/model.safetensors").read_bytes() for name in ("whole", "cut")
    )
    assert left == right
