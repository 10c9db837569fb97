"""A watched run: the same bits, files that survive a kill and a resume, bounded room, and its size said beforehand."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import headway.output as output
from headway import HeadwayError, cli
from headway.inspect.watch import Reading, Snapshot, Taken
from headway.training import TrainSettings, load_model, load_watch, read_checkpoint, train
from headway.training.checkpoint import model_tensors
from headway.training.text import read_text
from headway.training.train_command import watch_note
from headway.training.watching import FolderWatch, watch_size

MODEL = {"dim": 24, "layers": 2, "heads": 6, "kv_heads": 2, "position": "alibi", "dropout": 0.1}
NAME = "stack.blocks.1.attention.part"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(read_text().data[:4000])
    return path


def settings(**changes: Any) -> TrainSettings:
    usual = {"steps": 12, "batch": 16, "length": 8, "checkpoint_every": 4, "validate_every": 6, "keep": 9}
    return TrainSettings(**{**usual, **changes})


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model_tensors(model).items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "watch").iterdir()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_same_bits_with_and_without(tmp_path: Path, text: Path, optimizer: str) -> None:
    plain = train(text, out=tmp_path / "plain", model_config=MODEL, settings=settings(optimizer=optimizer))
    seen = train(text, out=tmp_path / "seen", model_config=MODEL, settings=settings(optimizer=optimizer), watch=1)
    assert same(weights(plain.model), weights(seen.model))
    assert plain.history.loss == seen.history.loss
    assert plain.history.validation_loss == seen.history.validation_loss
    assert not (tmp_path / "plain" / "watch").exists()


def test_step_k_holds_the_weights_of_checkpoint_k(whole: tuple[Path, Any]) -> None:
    run, result = whole
    watched = load_watch(run)
    assert watched.steps == [0, 2, 4, 6, 8, 10]
    for step in (4, 8):
        saved = read_checkpoint(run / "checkpoints" / f"step-{step:08d}")
        for which in "qkv":
            taken = watched[step][NAME, which]
            assert torch.equal(taken.weight, saved.model[f"{NAME}.{which}.weight"])
            assert taken.gradient is not None
            assert set(taken.state) == {"exp_avg", "exp_avg_sq"}
            before = watched[step - 2][NAME, which]
            assert not torch.equal(before.weight, taken.weight)
    assert list(watched[4]) == sorted(watched[4])  # a file gives them in another order each time
    assert sorted(watched.readings) == [0, 1, 3, 5, 7, 9, 11]
    assert [step for step, one in watched.readings.items() if one.entropies is not None] == [0, 1, 9]
    assert torch.tensor(watched.readings[9].entropies).shape == (2, 6)
    reading = watched.readings[5]
    assert reading.ratios is not None
    taken = watched[4][NAME, "k"]
    assert reading.ratios[1]["k"] == pytest.approx((taken.update.norm() / taken.weight.norm()).item())
    assert watched.readings[0].ratios is None
    assert result.history.status == "done"
    assert watched.copied().steps == watched.steps
    assert repr(watched).startswith("FolderWatch(every 2 steps: 0, 2, 4, 6, 8, 10; 0.")
    with pytest.raises(HeadwayError, match=r"^expected a recorded step \(0, 2, 4, 6, 8, 10\), got 3$"):
        watched[3]


def test_the_size_is_said_beforehand(tmp_path: Path, text: Path) -> None:
    for optimizer in ("sgd", "adam"):
        given = settings(optimizer=optimizer)
        train(text, out=tmp_path / optimizer, model_config=MODEL, settings=given, watch=5)
        files = (tmp_path / optimizer / "watch").glob("*.safetensors")
        written = sum(path.stat().st_size for path in files)
        expected = watch_size(MODEL, given, 5)
        assert expected == 3 * (5 if optimizer == "adam" else 4) * 2 * (24 * 24 + 2 * 8 * 24) * 4
        assert expected < written < expected + 3 * 6000  # names and shapes


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, text: Path) -> tuple[Path, Any]:
    """A run that looked every 2 steps, which no test changes, and what ``train`` returned."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, train(text, out=folder, model_config=MODEL, settings=settings(), watch=2)


@pytest.mark.parametrize("at", [3, 5, 9])
def test_a_killed_run_resumes_to_the_same_files(tmp_path: Path, text: Path, whole: tuple[Path, Any], at: int) -> None:
    arguments: dict[str, Any] = {"model_config": MODEL, "settings": settings(), "watch": 2}
    steps = [0]

    def kill() -> bool:
        steps[0] += 1
        if steps[0] == at:
            raise Killed
        return False

    with pytest.raises(Killed):
        train(text, out=tmp_path / "cut", stop=kill, **arguments)
    if at == 5:  # what a kill in the middle of a write leaves
        (tmp_path / "cut" / "watch" / "step-00000004.safetensors.tmp-1-abcd").write_bytes(b"half")
    train(text, out=tmp_path / "cut", **arguments)
    assert contents(tmp_path / "cut") == contents(whole[0])


def test_watching_may_begin_and_change_when_a_run_goes_on(tmp_path: Path, text: Path) -> None:
    count = [0]

    def stop() -> bool:
        count[0] += 1
        return count[0] % 4 == 0

    arguments: dict[str, Any] = {"model_config": MODEL, "settings": settings(), "out": tmp_path / "run", "stop": stop}
    train(text, **arguments)
    with pytest.raises(HeadwayError, match=r"^expected a watched run, got .*run without watch/: train with"):
        load_watch(tmp_path / "run")
    train(text, **arguments, watch=3)
    assert load_watch(tmp_path / "run").steps == [6]
    train(text, **arguments, watch=5)
    assert load_watch(tmp_path / "run").steps == [6, 10]
    assert load_model(tmp_path / "run")[2].history.status == "done"


def look(value: float) -> Taken:
    return {("", "q"): Snapshot(torch.full((4, 4), value), None, torch.zeros(4, 4), {})}


def test_room_is_kept_to_across_a_resume(tmp_path: Path) -> None:
    watched = FolderWatch(tmp_path / "watch", 2, room=5 * 128)
    watched.resume(0)
    for step in range(0, 20, 2):
        if step % watched.every == 0:
            watched.add(step, look(step))
            watched.read(step + 1, Reading())
    assert (watched.every, watched.steps) == (4, [0, 4, 8, 12, 16])
    assert watched[12]["", "q"].weight[0, 0] == 12
    watched.close()
    assert [path.name[5:13] for path in sorted((tmp_path / "watch").glob("*.safetensors"))] == [
        f"{step:08d}" for step in watched.steps
    ]
    again = FolderWatch(tmp_path / "watch", 2)
    again.resume(10)
    assert (again.every, again.steps, sorted(again.readings)) == (4, [0, 4, 8], [1, 3, 5, 7, 9])
    again.close()
    other = FolderWatch(tmp_path / "watch", 3)
    other.resume(10)
    assert other.every == 3
    other.close()
    anew = FolderWatch(tmp_path / "watch", 2)
    anew.resume(0)
    assert (anew.every, anew.steps, anew.readings) == (2, [], {})
    anew.close()


def test_a_write_that_fails_ends_the_run_with_one_sentence(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes, mode: int | None = None) -> None:
        if path.name.startswith("step-00000006.safetensors"):
            raise OSError(28, "No space left on device")
        real(path, data, mode)

    real = output.write_new
    monkeypatch.setattr(output, "write_new", full)
    message = r"^could not finish writing .*step-00000006.safetensors: No space left on device; free some space and run"
    with pytest.raises(HeadwayError, match=message):
        train(text, out=tmp_path / "run", model_config=MODEL, settings=settings(), watch=2)
    monkeypatch.undo()
    resumed = train(text, out=tmp_path / "run", model_config=MODEL, settings=settings(), watch=2)
    assert resumed.resumed_from == 4
    assert load_watch(tmp_path / "run").steps == [0, 2, 4, 6, 8, 10]


def test_damage_is_named(tmp_path: Path, text: Path) -> None:
    train(text, out=tmp_path / "run", model_config=MODEL, settings=settings(), watch=5)
    folder = tmp_path / "run" / "watch"
    (folder / "step-00000005.safetensors").write_bytes(b"no")
    with pytest.raises(HeadwayError, match=r"^expected what was watched in .*05.safetensors, got content that does"):
        load_watch(tmp_path / "run")[5]
    (folder / "readings.json").write_text('{"format":2}')
    with pytest.raises(
        HeadwayError,
        match=r"^expected format to be a whole number from 1 to 1, got 2, in .*readings.json: it is damaged",
    ):
        load_watch(tmp_path / "run")
    with pytest.raises(HeadwayError, match=r"^expected watch of at least 1 step, or None, got 0$"):
        train(text, out=tmp_path / "other", model_config=MODEL, settings=settings(), watch=0)


def test_the_command_says_how_much_it_will_write(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--dim 24 --layers 2 --heads 6 --kv-heads 2 --steps 4 --length 8 --batch 2 --watch 2"
    command = ["headway", "train", str(text), *options.split(), "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main()
    written = 2 * 5 * 2 * (24 * 24 + 2 * 8 * 24) * 4
    said = f"Watching W_Q, W_K and W_V every 2 steps: {written / 1e6:.1f} MB in {tmp_path / 'run' / 'watch'}"
    assert capsys.readouterr().out.startswith(said + "\n")
    assert load_watch(tmp_path / "run").steps == [0, 2]
    assert watch_note(10**9, 1, Path("run")).endswith(
        "1,000.0 MB in run/watch would be more than 268 MB, so it will record less often"
    )


@pytest.mark.slow
def test_watching_costs_little(tmp_path: Path) -> None:
    """The promise is 5 % of the training; processor time of rounds that alternate, and a generous bound."""
    model = {"dim": 128, "layers": 3, "heads": 4}
    given = TrainSettings(steps=20, batch=16, length=256, validate_every=None, checkpoint_every=None)
    ratios = []
    for round_ in range(3):
        seconds = []
        for watch in (None, 10):
            begin = time.process_time()
            train(None, out=tmp_path / f"{watch}-{round_}", model_config=model, settings=given, watch=watch)
            seconds.append(time.process_time() - begin)
        ratios.append(seconds[1] / seconds[0])
    assert statistics.median(ratios) < 1.15
