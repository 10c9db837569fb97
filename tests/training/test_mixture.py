"""A mixture of texts: shares, order, validation, runs and the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headway.cli import app
from headway.console import run
from headway.shapes import HeadwayError
from headway.training import TextValidation, TrainSettings, known, open_run, sources, train
from headway.training import text as texts
from headway.training.data import read_data
from headway.training.mixture import MixedBatches, MixedValidation
from headway.training.vocabularies import Wanted

A, B = torch.arange(1000), torch.arange(1000, 1050)
MODEL = {"dim": 8, "layers": 1, "heads": 1}


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**{"steps": 3, "batch": 4, "length": 8, **changes})


def two(folder: Path) -> list[Path]:
    for name, data in (("a.txt", b"to be or not to be " * 50), ("b.txt", b"0123456789" * 30)):
        (folder / name).write_bytes(data)
    return [folder / "a.txt", folder / "b.txt"]


def test_windows_are_of_the_texts_by_weight_and_of_seed_and_step_alone() -> None:
    batches = MixedBatches([A, B], [3, 1], 8, 2000, seed=1)
    inputs, targets = batches(4)
    assert torch.equal(targets, inputs + 1)
    of_b = (inputs >= 1000).all(1)
    assert torch.equal(of_b, (inputs >= 1000).any(1))
    assert 0.2 < float(of_b.float().mean()) < 0.3
    assert {int(x) for x in inputs[of_b, 0]} == set(range(1000, 1042))  # each place of B where a window fits
    assert torch.equal(MixedBatches([A, B], [0.75, 0.25], 8, 2000, seed=1)(4)[0], inputs)
    assert not torch.equal(batches(5)[0], inputs)
    assert not torch.equal(MixedBatches([A, B], [3, 1], 8, 2000, seed=2)(4)[0], inputs)


def test_validation_is_the_weighted_mean() -> None:
    class Scores(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return torch.nn.functional.one_hot((tokens + (tokens < 1000)) % 1050, 1050).float()  # knows A

    one, other = TextValidation(A, 8, 3, windows=48)(Scores()), TextValidation(B, 8, 3, windows=16)(Scores())
    assert one != other
    assert MixedValidation([A, B], [3, 1], 8, 3)(Scores()) == pytest.approx(0.75 * one + 0.25 * other)


def test_a_run_on_several_texts_resumes_to_the_bit_and_knows_its_weights(tmp_path: Path) -> None:
    paths = two(tmp_path)
    given: dict[str, Any] = {"model_config": MODEL, "weights": [0.7, 0.3], "settings": settings(checkpoint_every=1)}
    whole = train(paths, out=tmp_path / "whole", **given)
    assert whole.run.text["weights"] == [0.7, 0.3]
    assert whole.run.text["bytes"] == 950 + 300
    train(paths, out=tmp_path / "cut", stop=lambda: True, **given)
    resumed = train(paths, out=tmp_path / "cut", **given)
    assert resumed.resumed_from == 1
    assert resumed.history.loss == whole.history.loss
    assert resumed.history.validation_loss == whole.history.validation_loss
    for changes in ({"weights": [0.6, 0.4]}, {"weights": None}):
        with pytest.raises(HeadwayError, match=r"expected the text of the run .*weights"):
            train(paths, out=tmp_path / "cut", **{**given, **changes})
    with pytest.raises(HeadwayError, match=r"expected the text of the run"):
        train(paths[::-1], out=tmp_path / "cut", **given)


@pytest.mark.parametrize("vocabulary", ["bytes", "bpe"])
def test_large_texts_are_mixed_as_small_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: str
) -> None:
    paths = two(tmp_path)

    def batches() -> list[list[int]]:
        data = read_data("decoder", paths, length=8, weights=[1, 2])
        words = data.vocabulary(Wanted.of(vocabulary, 270))
        return data.prepare(words, settings()).batches(0)[0].tolist()

    small = batches()
    monkeypatch.setattr(known, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(texts, "IN_MEMORY", 0)
    assert batches() == small == batches()


def test_a_vocabulary_sees_texts_by_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    monkeypatch.setattr(sources, "LEARNED", 40)
    monkeypatch.setattr(sources, "_PIECE", 10)
    monkeypatch.setattr(Wanted, "make", lambda self, chunks: seen.append(b"".join(chunks)))
    split = texts.Split
    both = [
        sources.Source(texts.Text(b"", name), split(letter * 100, letter), weight)
        for name, letter, weight in (("a", b"a", 0.75), ("b", b"b", 0.25))
    ]
    sources.learned(both, Wanted.of("bytes"))
    assert seen == [b"a" * 30 + b"\n" + b"b" * 10]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [1]}, "expected a weight for each of several texts, got 1 for 2"),
        ({"weights": [1, 0]}, r"expected weights above 0, got \[1, 0\]: leave a text out"),
        ({"weights": [1, float("nan")]}, "expected weights above 0"),
        ({"text": []}, "expected at least one text, got none"),
        ({"model_config": {**MODEL, "kind": "encoder-decoder"}}, "expected one file of pairs .*, got 2"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    given = {"text": two(tmp_path), "out": tmp_path / "run", "model_config": MODEL, "settings": settings(), **changes}
    with pytest.raises(HeadwayError, match=message):
        train(**given)
    assert not (tmp_path / "run").exists()


def test_the_command_mixes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = two(tmp_path)
    (tmp_path / "c.jsonl").write_text('{"body": "' + "a document " * 40 + '"}\n')
    values = {"steps": 2, "batch": 2, "length": 8, "dim": 8, "layers": 1, "heads": 1, "column": "body"}
    given = [word for name, value in {**values, "out": tmp_path / "r"}.items() for word in (f"--{name}", str(value))]
    line = ["train", str(paths[0]), str(tmp_path / "c.jsonl"), *given, "--weights"]
    assert run(app, [*line, "2,1"]) == 0
    told = open_run(tmp_path / "r").text
    assert (told["weights"], told["column"]) == ([2 / 3, 1 / 3], "body")
    assert run(app, [*line, "2;1"]) == 2
    assert "error: expected --weights as numbers like 0.7,0.3, got '2;1'" in capsys.readouterr().err
