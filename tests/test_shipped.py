"""The models that ship: small, complete, what their page says of them, and worth looking at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import headway
from headway import HeadwayError, Transformer
from headway.cli import app
from headway.inspect import masked_patterns, patterns
from headway.shipped import FOLDER, NAMES, OPENING, load_shipped, measured, named, path_of
from headway.training import load_model, open_run
from headway.training.vocabulary import Masked
from headway.views.predicting import Predicted, predictor_of
from headway.views.questions import about_saved

BARS = {
    "decoder-rotary": {"previous": 0.8, "local": 0.9, "induction": 0.35},
    "decoder-t5": {"previous": 0.4, "local": 0.8, "induction": 0.4},
    "encoder-sinusoidal": {"previous": 0.5, "following": 0.4, "local": 0.9, "elsewhere": 0.6},
}
"""Least share of the strongest head of each kind."""


def test_they_are_small() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert {file.relative_to(FOLDER).parts[0] for file in files} == {*NAMES, "README.md"}


@pytest.mark.parametrize("name", NAMES)
def test_they_do_what_is_said_of_them(name: str) -> None:
    model, words, run = load_model(path_of(name))
    assert isinstance(model, Transformer)
    assert run.notes == ()
    assert run.text["name"] == "english.txt, chinese.txt, repeated.txt"  # no path of a machine
    said = measured(name)
    masked = isinstance(words, Masked)
    found: Any = masked_patterns(model, words.mask, lowest=256) if masked else patterns(model, lowest=256)
    assert set(said["heads"]) == {"previous", "local", *(("following", "elsewhere") if masked else ("induction",))}
    for what in said["heads"]:
        share = getattr(found, what)
        assert float(share.max()) >= BARS[name].get(what, 0), what
        assert share.tolist() == [pytest.approx(row, abs=0.005) for row in said["heads"][what]], what
        assert said["strongest"][what] == list(divmod(int(share.argmax()), share.shape[1]))
    assert found.repeated < found.new - 3  # nats
    assert said["loss"] == pytest.approx({"new": found.new, "repeated": found.repeated}, abs=0.01)
    assert f"| {name} | 1 |" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("language", "following"), [("en", " tired"), ("zh", "累")])
def test_a_repetition_is_continued(language: str, following: str) -> None:
    model, vocabulary = headway.load_shipped()
    ids = vocabulary.encode(OPENING[language].encode())
    assert vocabulary.decode(ids).decode() == OPENING[language]
    with torch.no_grad():
        best = int(model(ids[None])[0, -1].argmax())
    assert following.encode().startswith(vocabulary.decode([best]))


@pytest.mark.parametrize(("language", "least"), [("en", 14), ("zh", 15)])
def test_a_masked_token_is_found_where_it_stands_again(language: str, least: int) -> None:
    question = about_saved("encoder-sinusoidal", OPENING[language])
    found = Predicted.of(predictor_of(question, masked=True))
    first = [label for label, rank in zip(question.labels, found.ranks, strict=True) if rank == 1]
    assert len(first) >= least
    assert not {"␣tired", "累"} & set(first)  # which stand nowhere else


def test_they_open_by_name() -> None:
    question = about_saved("decoder-t5", "one two one")
    assert question.name == "decoder-t5"
    assert not question.untrained
    with pytest.raises(HeadwayError, match="expected one of the models that ship, decoder-rotary, decoder-t5"):
        load_shipped("decoder")
    assert open_run(path_of("decoder-t5")).history.status == "done"
    written = CliRunner().invoke(app, ["generate", "decoder-t5", "one two one", "--tokens", "3"])
    assert written.exit_code == 0, written.output
    assert written.output.startswith("one two one")
    assert len(written.output) > len("one two one\n")


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named("decoder-t5") == path_of("decoder-t5")
    (tmp_path / "decoder-t5").mkdir()
    assert named("decoder-t5") == Path("decoder-t5")
