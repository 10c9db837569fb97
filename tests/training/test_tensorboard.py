"""Event files, read back by tensorboard itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from headway import HeadwayError
from headway.inspect import recorded
from headway.training import TrainSettings, load_model, train
from headway.training.tensorboard import picture
from headway.training.text import Split, read_text
from headway.training.watching import fixed_window

pytest.importorskip("tensorboard", reason="tensorboard is not installed: event files are not read back")
MODEL = {"dim": 24, "layers": 2, "heads": 3, "position": "t5"}


def settings() -> TrainSettings:
    return TrainSettings(steps=8, batch=16, length=8, checkpoint_every=2, validate_every=3)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(read_text().data[:4000])
    return path


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def curve(read: Any, tag: str) -> dict[int, float]:
    found = read.Scalars(tag)
    assert len({event.step for event in found}) == len(found)
    return {event.step: event.value for event in found}


def test_everything_is_there_and_a_resumed_run_goes_on(tmp_path: Path, text: Path) -> None:
    class Killed(BaseException):
        pass

    count = [0]

    def kill() -> bool:
        count[0] += 1
        if count[0] == 5:
            raise Killed
        return False

    arguments: dict[str, Any] = {"out": tmp_path / "run", "model_config": MODEL, "settings": settings()}
    with pytest.raises(Killed):
        train(text, **arguments, log_dir=tmp_path / "log", stop=kill)
    assert list(curve(events(tmp_path / "log"), "loss/training")) == [1, 2, 3, 4, 5]
    result = train(text, **arguments, log_dir=tmp_path / "log")
    assert result.resumed_from == 4
    read, history = events(tmp_path / "log"), result.history
    near = {"rel": 1e-6}
    assert curve(read, "loss/training") == pytest.approx(dict(zip(history.steps, history.loss, strict=True)), **near)
    assert curve(read, "learning rate") == pytest.approx(dict(zip(history.steps, history.lr, strict=True)), **near)
    norms = dict(zip(history.steps, history.grad_norm, strict=True))
    assert curve(read, "gradient norm") == pytest.approx(norms, **near)
    validated = dict(zip(history.validation_steps, history.validation_loss, strict=True))
    assert list(validated) == [3, 6, 8]
    assert curve(read, "loss/validation") == pytest.approx(validated, **near)
    for layer in range(2):
        for which in "QKV":
            ratios = curve(read, f"update by weight/layer {layer} W_{which}")
            assert list(ratios) == [3, 6, 8]
            assert all(0 < ratio < 1 for ratio in ratios.values())
        assert [event.step for event in read.Images(f"attention/layer {layer}")] == [3, 6, 8]
        assert read.Images(f"attention/layer {layer}")[0].encoded_image_string[:4] == b"\x89PNG"
    # the last entropies are those of the finished model
    model, words, _ = load_model(tmp_path / "run")
    held_out = words.encode(Split.of(read_text(text), length=8).validation)
    for layer, seen in enumerate(recorded(model, fixed_window(held_out, 8))):
        for head, entropy in enumerate(seen.summary()["entropy"][0].tolist()):
            found = curve(read, f"attention entropy/layer {layer} head {head}")
            assert list(found) == [3, 6, 8]
            assert found[8] == pytest.approx(entropy, rel=1e-5)
    texts = {tag: read.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in read.Tags()["tensors"]}
    assert '| optimizer | "adamw" |' in texts["train/text_summary"]
    assert '| position | "t5' in texts["model/text_summary"]


def test_the_numbers_are_the_same_with_it(tmp_path: Path, text: Path) -> None:
    a = train(text, out=tmp_path / "a", model_config={**MODEL, "dropout": 0.2}, settings=settings())
    b = train(
        text, out=tmp_path / "b", model_config={**MODEL, "dropout": 0.2}, settings=settings(), log_dir=tmp_path / "l"
    )
    assert a.history.loss == b.history.loss
    assert a.history.validation_loss == b.history.validation_loss


def test_without_the_library(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        HeadwayError, match=r"^expected the library tensorboard for --log-dir, got none: pip install 'headway\[tensor"
    ):
        train(text, out=tmp_path / "run", model_config=MODEL, settings=settings(), log_dir=tmp_path / "log")
    assert not (tmp_path / "run" / "settings.json").exists()


def test_a_folder_that_cannot_be(tmp_path: Path, text: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadwayError, match=r"^could not finish writing event files to .*; choose another --log-dir$"):
        train(text, out=tmp_path / "run", model_config=MODEL, settings=settings(), log_dir=tmp_path / "file")


def test_a_picture_is_the_weights_in_colours() -> None:
    from headway.web.colours import colour_table

    weights = torch.zeros(2, 3, 5)
    weights[0, 1, 2], weights[1, 0, 0], weights[1, 2, 4] = 0.5, 1.0, 0.5
    image = picture(weights)
    assert image.shape == (12, 2 * 20 + 4, 3)
    table = colour_table("sequential")
    assert tuple(image[5, 9].tolist()) == table[255]
    assert tuple(image[0, 0].tolist()) == table[0]
    assert tuple(image[0, 21].tolist()) == (255, 255, 255)
    assert tuple(image[0, 24].tolist()) == table[255]
    assert tuple(image[-1, -1].tolist()) == table[128]
