"""The models that ship: small, complete, what their page says of them, and worth looking at."""

from __future__ import annotations

import pytest

import headway
from headway import HeadwayError, Transformer
from headway.inspect import patterns, recorded
from headway.shipped import FOLDER, NAMES, OPENING, load_shipped, measured, path_of
from headway.training import load_model, open_run
from headway.views.questions import about_saved

BARS = {
    "decoder-rotary": {"previous": 0.2, "local": 0.8, "induction": 0.2},
    "decoder-t5": {"previous": 0.4, "local": 0.8, "induction": 0.05},
    "decoder-sinusoidal": {"previous": 0.06, "local": 0.4, "induction": 0.02},
}
"""Least share of the strongest head of each kind."""


def test_they_are_small() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert {file.relative_to(FOLDER).parts[0] for file in files} == {*NAMES, "README.md"}


@pytest.mark.parametrize("name", NAMES)
def test_they_do_what_is_said_of_them(name: str) -> None:
    model, _, run = load_model(path_of(name))
    assert isinstance(model, Transformer)
    assert run.notes == ()
    assert run.text["name"] == "english.txt, chinese.txt, repeated.txt"  # no path of a machine
    said, found = measured(name), patterns(model, lowest=256)
    for what, bar in BARS[name].items():
        share = getattr(found, what)
        assert float(share.max()) >= bar, what
        assert share.tolist() == [pytest.approx(row, abs=0.005) for row in said["heads"][what]], what
        assert said["strongest"][what] == list(divmod(int(share.argmax()), share.shape[1]))
    assert found.repeated < found.new - 0.2
    assert said["loss"] == pytest.approx({"new": found.new, "repeated": found.repeated}, abs=0.01)
    assert f"| {name} | 1 |" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_head_of_the_first_screen_looks_at_what_came_next(language: str) -> None:
    model, vocabulary = headway.load_shipped()
    ids = vocabulary.encode(OPENING[language].encode())
    assert vocabulary.decode(ids).decode() == OPENING[language]
    layer, head = measured()["strongest"]["induction"]
    weights = recorded(model, ids[None])[layer].weights()[0, head]
    earlier = {int(token): number for number, token in enumerate(ids[: len(ids) // 2])}
    pairs = [(i, earlier[int(ids[i])] + 1) for i in range(len(ids) * 2 // 3, len(ids)) if int(ids[i]) in earlier]
    share = sum(float(weights[i, j]) for i, j in pairs) / len(pairs)
    assert share > 3 / len(ids)  # three times as much as from uniform attention


def test_they_open_by_name() -> None:
    question = about_saved("decoder-t5", "one two one")
    assert question.name == "decoder-t5"
    assert not question.untrained
    with pytest.raises(HeadwayError, match="expected one of the models that ship, decoder-rotary, decoder-t5"):
        load_shipped("decoder")
    assert open_run(path_of("decoder-t5")).history.status == "done"
