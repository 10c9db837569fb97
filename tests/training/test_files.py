"""Files are sealed, bounded and checked; damage is reported; headway's own files are not read as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headway.schema import Anything, Many, Named, Number, Record, Whole, Words, check
from headway.shapes import HeadwayError
from headway.training import TrainSettings, load_model, load_watch, open_run, train
from headway.training.files import MOST, make_folder, parse_json, read_json, write_json_atomic
from headway.training.lengths import trained_at
from headway.training.ours import mark
from headway.training.run import train as train_run
from headway.training.text import read_text

SETTINGS = TrainSettings(steps=4, batch=2, length=8, checkpoint_every=2, validate_every=2)
MODEL = {"dim": 16, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "text").write_bytes(b"to be or not to be " * 40)
    train(folder / "text", out=folder / "run", model_config=MODEL, settings=SETTINGS, watch=1)
    return folder / "run"


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(run, tmp_path / "run")
    shutil.copy(run.parent / "text", tmp_path / "text")
    return tmp_path / "run"


def test_every_bit_of_a_sealed_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json_atomic(path, {"base": 500.0, "name": "x"})
    whole, schema = path.read_bytes(), Record({"base": Number(), "name": Words()})
    for at in range(len(whole) - 1):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            with pytest.raises(HeadwayError):
                read_json(path, schema)
    path.write_bytes(whole)
    assert read_json(path, schema) == {"base": 500.0, "name": "x"}
    notes: list[str] = []
    path.write_text('{"base": 1, "name": "y"}')
    assert read_json(path, schema, notes) == {"base": 1, "name": "y"}
    assert notes == [f"{path} has no checksum, as files of headway 0.1.0 have none: its content was not verified"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a":' + b"9" * 400 + b"}", "a whole number of 400 digits"),
        (b'{"a":1e999}', "1e999 is too large"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'{"a":1,"a":2}', "the name 'a' comes twice"),
        (b"[" * 50_000, "does not parse"),
        (b"[" * 1_100_000, "more than 1,048,576 lists"),
        (b"\xff", "does not parse"),
    ],
    ids=range(7),
)
def test_hostile_json_is_one_sentence(data: bytes, message: str) -> None:
    with pytest.raises(HeadwayError, match=message):
        parse_json(data, "x.json")


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(MOST + 1)  # sparse
    with pytest.raises(HeadwayError, match=r"expected a file of at most 100,663,296 bytes"):
        read_json(tmp_path / "a.json", Anything())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"n": 10**30}, "expected n to be a whole number from 0 to .*, got 1000"),
        ({"n": True}, "expected n to be a whole number .*, got True"),
        ({"n": 1, "x": [1, "a"]}, "expected x to be a finite number, got 'a', in f.json"),
        ({"n": 1, "x": [], "m": {"k": 5}}, "expected m.k to be a text, got 5"),
        ({"n": 1, "other": 5}, "expected only n, x, m, got 'other'"),
        ({}, "expected n, which is missing"),
        (5, "expected its content to be an object, got 5"),
    ],
)
def test_a_schema_names_file_and_field(value: Any, message: str) -> None:
    schema = Record({"n": Whole()}, optional={"x": Many(Number()), "m": Named(Words())})
    with pytest.raises(HeadwayError, match=message):
        check(value, schema, "f.json")


def resealed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_bytes())
    del value["sha256"]
    change(value)
    write_json_atomic(path, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s["model"].update(position="rotary(base=500.0)"),
            "expected the settings.json that .* was saved with",
        ),
        (lambda s: s["model"].update(layers=10**5), "expected the settings.json"),
        (lambda s: s.update(vocabulary=5), "expected vocabulary to be an object, got 5"),
        (lambda s: s["text"].pop("bytes"), "expected text.bytes, which is missing"),
    ],
)
def test_settings_that_fit_their_seal_but_not_the_checkpoints(
    copied: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    resealed(copied / "settings.json", change)
    with pytest.raises(HeadwayError, match=message):
        load_model(copied)


@pytest.mark.parametrize("config", [{"dim": 10**9}, {"layers": 10**5}, {"position": "learned(max_length=1000000000)"}])
def test_a_run_of_0_1_0_cannot_ask_for_more_than_its_checkpoint_holds(
    copied: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]
) -> None:
    monkeypatch.setattr("headway.training.run.check_extra", lambda *_: None)  # it names no settings
    resealed(copied / "settings.json", lambda s: s["model"].update(config))
    with pytest.raises(HeadwayError, match=r"expected settings of the model in .*step-00000004, got others"):
        load_model(copied)


def test_a_damaged_newest_checkpoint_is_named(copied: Path) -> None:
    (copied / "checkpoints/step-00000004/state.json").write_bytes(b"no")
    _, _, found = load_model(copied)
    (note,) = found.notes
    assert note.startswith("skipped checkpoint step-00000004")
    assert note.endswith("used step-00000002 instead")


def test_damaged_readings_do_not_stop_a_resume(copied: Path) -> None:
    (copied / "watch/readings.json").write_bytes(b"5")
    with pytest.raises(HeadwayError, match=r"expected its content to be an object, got 5"):
        load_watch(copied)
    done = train(copied.parent / "text", out=copied, model_config=MODEL, settings=SETTINGS, watch=1)
    assert done.history.status == "done"
    assert any("set aside as readings.json.damaged-" in note for note in done.notes)
    file = copied / "watch/step-00000001.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(HeadwayError, match=r"expected .*01.safetensors to match its own sha256"):
        load_watch(copied)[1]


def test_leftovers_of_a_kill_are_removed_and_fewer_steps_name_a_way(copied: Path) -> None:
    left = copied / "history.json.tmp-12-0123abcd"
    left.write_bytes(b"half")
    arguments: dict[str, Any] = {"out": copied, "model_config": MODEL}
    train(copied.parent / "text", settings=SETTINGS, **arguments)
    assert not left.exists()
    with pytest.raises(HeadwayError, match=r"steps was 4, is 3.* with more steps to continue it, or choose another"):
        train(copied.parent / "text", settings=TrainSettings(**{**vars(SETTINGS), "steps": 3}), **arguments)


def test_training_lengths_are_set_as_compare_does(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"to be or not to be " * 200)
    settings = TrainSettings(steps=1, batch=1, length=600)
    made = train_run(
        tmp_path / "text", out=tmp_path / "a", model_config={**MODEL, "position": "learned"}, settings=settings
    )
    assert made.run.config["position"] == "learned(max_length=600)"
    assert made.notes == ("learned: max_length is the training length, 600",)
    assert trained_at("yarn(original=128)", 600)[0].hyperparameters()["original"] == 128
    assert trained_at("rotary", 600)[1] is None


@pytest.mark.parametrize("kind", ["run", "comparison", "bench", "methods"])
def test_results_are_left_out_of_a_text_by_their_marker(tmp_path: Path, kind: str) -> None:
    (tmp_path / "own.txt").write_bytes(b"words")
    out = tmp_path / "out"
    (out / "cells").mkdir(parents=True)
    for name in ("results.json", "report.html", "samples.csv", "settings.json", "t5.md", "cells/x.txt"):
        (out / name).write_bytes(b"ours")
    before = read_text(tmp_path).data
    mark(out, kind)
    text = read_text(tmp_path)
    assert len(text.data) < len(before)
    assert text.notes == (f"left out of the text: {out} (results of headway)",)
    for other in ("run", "comparison", "bench", "methods"):
        mark(out, other)
    assert read_text(tmp_path).data == b"words"
    (out / ".headway").write_bytes(b"no")
    with pytest.raises(HeadwayError, match=r"\.headway"):
        read_text(tmp_path)


def test_texts_are_bounded_before_they_are_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.write(b"x" * 9000)
        file.truncate(40 * 10**9)
    for path in (tmp_path, tmp_path / "sparse"):
        with pytest.raises(HeadwayError, match=r"expected a text of at most 134,217,728 bytes.*--max-text"):
            read_text(path)
    (tmp_path / "sparse").write_bytes(b"x" * 10)
    with pytest.raises(HeadwayError, match=r"at most 9 bytes"):
        read_text(tmp_path, most=9)
    assert read_text(tmp_path, most=10).data == b"x" * 10
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(HeadwayError, match=r"loop"):
        read_text(tmp_path / "loop")


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(HeadwayError, match=r"expected a folder at .*/out, got a link to .*/gone, where there is none"):
        make_folder(tmp_path / "out")


def test_a_run_without_seals_opens_and_says_so(copied: Path) -> None:
    for name in ("settings.json", "history.json"):
        value = json.loads((copied / name).read_bytes())
        del value["sha256"]
        (copied / name).write_text(json.dumps(value))
    assert all("has no checksum" in note for note in open_run(copied).notes)
    assert len(open_run(copied).notes) == 2
