"""Masked-token training: which tokens are chosen, what becomes of them, runs of encoders, and what they learn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import tiny_settings
from torch import Tensor, nn
from typer.testing import CliRunner

from headway.cli import app
from headway.shapes import HeadwayError
from headway.training import (
    Bpe,
    Bytes,
    TextBatches,
    TrainSettings,
    load_model,
    load_watch,
    train,
    vocabulary_from_json,
)
from headway.training.batches import IGNORED
from headway.training.data import read_data
from headway.training.execution import Execution
from headway.training.masking import MaskedBatches, MaskedValidation, mask_tokens
from headway.training.vocabularies import Wanted
from headway.training.vocabulary import Delimited, Masked

WORDS = Masked(Bytes())
TOKENS = torch.arange(5000) * 7919 % 256
MODEL = {"kind": "encoder", "position": "sinusoidal", "dim": 16, "layers": 1, "heads": 2}
TEXT = b"to be or not to be, that is the question. " * 60


class OneByte(Bytes):
    size = 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("length", "share", "count"), [(128, 0.15, 19), (7, 0.15, 1), (1, 0.15, 1), (9, 1.0, 9)])
def test_every_row_has_its_share_and_only_chosen_places_are_targets(length: int, share: float, count: int) -> None:
    tokens = torch.randint(256, (50, length), generator=seeded())
    inputs, targets = mask_tokens(tokens, WORDS.mask, share, seeded(1))
    chosen = targets != IGNORED
    assert chosen.sum(1).tolist() == [count] * 50
    assert torch.equal(targets[chosen], tokens[chosen])
    assert torch.equal(inputs[~chosen], tokens[~chosen])
    assert inputs.dtype == targets.dtype == torch.long


def test_of_the_chosen_eight_in_ten_are_masked_and_one_is_random() -> None:
    tokens = torch.full((2000, 100), 7)
    inputs, targets = mask_tokens(tokens, WORDS.mask, 0.2, seeded())
    found = inputs[targets != IGNORED]
    assert len(found) == 40_000
    shares = {"mask": found == WORDS.mask, "same": found == 7}
    shares["random"] = ~(shares["mask"] | shares["same"])
    # a random token is the old one in 1 of 256 cases; four standard deviations are 0.008 and 0.006
    for name, share, bound in (("mask", 0.8, 0.008), ("same", 0.1, 0.006), ("random", 0.1, 0.006)):
        assert float(shares[name].double().mean()) == pytest.approx(share, abs=bound), name
    assert set(found[shares["random"]].tolist()) == {*range(256)} - {7}
    few = mask_tokens(tokens % 1, Masked(OneByte()).mask, 1.0, seeded())[0]  # a random token is never the mask
    assert float((few == 1).double().mean()) == pytest.approx(0.8, abs=0.005)
    places = (targets != IGNORED).double().mean(0)
    assert float((places - 0.2).abs().max()) < 4.5 * math.sqrt(0.16 / 2000)  # no place is preferred


def test_batches_are_of_seed_and_step_alone() -> None:
    def made(seed: int = 0) -> MaskedBatches:
        return MaskedBatches(TextBatches(TOKENS, 16, 4, seed), WORDS, 0.3, seed)

    batches = made()
    forwards = [batches(step) for step in range(4)]
    torch.manual_seed(99)  # the global generator decides nothing
    for step in (3, 1, 0, 2):
        assert all(torch.equal(a, b) for a, b in zip(made()(step), forwards[step], strict=True))
    places = [targets != IGNORED for _, targets in [*forwards, made(1)(0)]]
    assert all(not torch.equal(a, b) for i, a in enumerate(places) for b in places[:i])
    assert len({tuple(row) for row in places[1].tolist()}) == 4  # rows differ
    windows = TextBatches(TOKENS, 16, 4, 0)(2)[0]
    assert torch.equal(forwards[2][1].where(places[2], windows), windows)


class Spy(nn.Module):
    """Scores that depend on the token read there; keeps what it read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Tensor] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.read.append(tokens)
        return nn.functional.one_hot(tokens, WORDS.size).double()


def test_validation_masks_the_same_tokens_at_every_call_and_size_of_batch() -> None:
    spies, losses = [], []
    for batch in (1, 5, 5):
        spy = Spy()
        losses.append(MaskedValidation(TOKENS, 16, batch, windows=12, words=WORDS, share=0.25)(spy))
        spies.append(torch.cat(spy.read))
    assert torch.equal(spies[0], spies[1])
    assert torch.equal(spies[1], spies[2])
    assert losses[0] == pytest.approx(losses[1])
    assert (spies[0] == WORDS.mask).any(1).all()
    # each loss is log(Σ exp) of 257 scores, of which one is 1, minus the score of the target: 1 where it was left
    inputs, targets = mask_tokens(TOKENS[:16][None], WORDS.mask, 0.25, seeded(3))
    one = MaskedValidation(TOKENS[:17], 16, 1, words=WORDS, share=0.25)
    one._inputs, one._targets = (inputs,), (targets,)
    right = int((inputs == targets).sum())
    assert one(Spy()) == pytest.approx(math.log(256 + math.e) - right / 4)


def test_the_vocabulary_has_one_more_id_and_comes_back() -> None:
    for words in (Bytes(), Bpe.train(TEXT, size=270)):
        masked = Masked(words)
        assert masked.mask == words.size == masked.size - 1
        ids = masked.encode("to 猫".encode())
        assert int(ids.max()) < masked.mask
        assert masked.decode([masked.mask, *ids.tolist(), masked.mask]).decode() == "to 猫"
        back = vocabulary_from_json(json.loads(json.dumps(masked.to_json())))
        assert isinstance(back, Masked)
        assert back.to_json() == masked.to_json()
        with pytest.raises(HeadwayError, match=rf"ids in 0 … {masked.mask}, got {masked.size}"):
            back.decode([masked.size])
    for inner in (Masked(Bytes()), Delimited(Bytes())):
        with pytest.raises(HeadwayError, match=r"it is damaged|the vocabulary"):
            vocabulary_from_json({"kind": "masked", "words": inner.to_json()})


def test_a_run_resumes_to_the_bit_on_several_texts(tmp_path: Path) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, text in zip(paths, (TEXT, b"0123456789" * 40), strict=True):
        path.write_bytes(text)
    config = {**MODEL, "dropout": 0.2}
    settings = tiny_settings(length=16, validate_every=2, mask_share=0.3)
    given: dict[str, Any] = {"model_config": config, "settings": settings, "weights": [0.7, 0.3]}
    whole = train(paths, out=tmp_path / "whole", **given)
    stops = iter([False, False, True])
    cut = {"out": tmp_path / "cut", **given}
    assert train(paths, stop=lambda: next(stops), **cut).history.status == "interrupted"
    resumed = train(paths, **cut)
    assert resumed.resumed_from == 3
    assert resumed.history.loss == whole.history.loss
    assert resumed.history.validation_loss == whole.history.validation_loss
    model, words, _ = load_model(tmp_path / "cut")
    assert isinstance(words, Masked)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.model.parameters(), strict=True))
    parts = train(paths, out=tmp_path / "parts", execution=Execution(accumulate=2), **{**given, "model_config": MODEL})
    one = train(paths, out=tmp_path / "one", watch=3, **{**given, "model_config": MODEL})
    assert len(load_watch(tmp_path / "one").readings) > 0
    assert parts.history.loss == pytest.approx(one.history.loss, rel=1e-5)
    with pytest.raises(HeadwayError, match=r"mask_share was 0.3, is 0.4"):
        train(paths, **{**cut, "settings": tiny_settings(length=16, validate_every=2, mask_share=0.4)})


def test_the_loss_falls_below_guessing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"0123456789" * 300)
    settings = TrainSettings(steps=100, batch=8, length=16, lr=0.02, mask_share=0.3, validate_every=None)
    run = train(
        tmp_path / "a.txt",
        out=tmp_path / "run",
        model_config={**MODEL, "dim": 32, "heads": 4, "hidden": 32},
        settings=settings,
    )
    assert run.history.validation_loss[-1] < 0.9 * math.log(10)  # knowing no neighbour


def test_the_command_trains_an_encoder_and_says_what_it_cannot_do(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    sizes = ["--dim", "16", "--layers", "1", "--heads", "2", "--steps", "2", "--batch", "2", "--length", "8"]
    out = str(tmp_path / "run")
    made = CliRunner().invoke(app, ["train", str(tmp_path / "a.txt"), "--kind", "encoder", "--out", out, *sizes])
    assert made.exit_code == 0, made.output
    assert "headway draw prediction --model" in made.output.replace("\n", " ")
    written = CliRunner().invoke(app, ["generate", out, "to be"])
    assert isinstance(written.exception, HeadwayError)
    assert "got an encoder, which predicts no next token" in str(written.exception)
    with pytest.raises(HeadwayError, match=r"^expected mask_share to be .*, got 0"):
        TrainSettings(mask_share=0)
    share = ["train", str(tmp_path / "a.txt"), "--mask-share", "0.2", "--out", str(tmp_path / "other"), *sizes]
    ignored = CliRunner().invoke(app, share)
    assert str(ignored.exception).startswith("expected mask_share with kind encoder only, got 0.2 with decoder")
    assert not (tmp_path / "other").exists()
    with pytest.raises(HeadwayError, match=r"^expected kind to be decoder or encoder, .* got 'rnn'$"):
        read_data("rnn", None, length=8)


def test_several_texts_and_their_vocabulary_are_those_of_a_decoder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    one, other = (read_data(kind, tmp_path / "a.txt", length=8) for kind in ("encoder", "decoder"))
    assert one.described() == other.described()
    assert one.notes == other.notes
    words = one.vocabulary(Wanted.of("bytes"))
    assert words.to_json() == {"kind": "masked", "words": other.vocabulary(Wanted.of("bytes")).to_json()}
