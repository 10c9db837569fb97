"""A live training: the values of `train`, however it is played, paused, stepped, queried or stopped meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import headway.training.live as live_module
from headway import HeadwayError
from headway.inspect.watch import entropies
from headway.training import Live, TrainSettings, train
from headway.training.checkpoint import model_tensors

TEXT = "the cat sat on the mat. 猫坐在垫子上。" * 30
MODEL = {"dim": 16, "layers": 2, "heads": 4, "kv_heads": 2, "dropout": 0.1}


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**{"steps": 12, "batch": 2, "length": 8, "validate_every": 5, **changes})


def until(live: Live, state: str, timeout: float = 20) -> None:
    assert eventually(lambda: live.state == state, timeout), live.state


def eventually(true: Callable[[], bool], timeout: float = 20) -> bool:
    end = time.monotonic() + timeout
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def steps(live: Live) -> list[int]:
    return [event["step"] for event in live.events() if event["kind"] == "step"]


def test_it_is_the_training_of_train(tmp_path: Any) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    run = train(tmp_path / "text.txt", out=tmp_path / "run", model_config=MODEL, settings=settings())
    with Live(TEXT, MODEL, settings(), watch_every=3) as live:
        assert (live.state, live.finished, live.events()) == ("paused", 0, [])
        live.step(2)
        until(live, "paused")
        assert live.finished == 2
        live.step()
        live.step()
        assert eventually(lambda: live.finished == 4)
        live.play()
        until(live, "done")
        model, _, _ = live.question("x")
        saved = model_tensors(run.model)
        assert all(torch.equal(x, saved[name]) for name, x in model_tensors(model).items())
        found = [event for event in live.events() if event["kind"] == "step"]
        assert [event["step"] for event in found] == list(range(1, 13))
        assert [event["loss"] for event in found] == run.history.loss == live.history.loss
        assert [event["grad_norm"] for event in found] == run.history.grad_norm
        validated = {event["step"]: event["validation_loss"] for event in found if event["validation_loss"] is not None}
        assert validated == dict(zip(run.history.validation_steps, run.history.validation_loss, strict=True))
        assert live.watched.steps == [0, 3, 6, 9]
        looked = {event["step"]: event for event in found if event["ratios"] is not None}
        assert list(looked) == [1, 4, 7, 10]
        name = "stack.blocks.1.attention.part"
        taken = live.watched[3][name, "v"]
        assert looked[4]["ratios"][1]["v"] == pytest.approx((taken.update.norm() / taken.weight.norm()).item())
        states = [event["state"] for event in live.events() if event["kind"] == "state"]
        assert (states[0], states[-1]) == ("playing", "done")
    assert live.state == "done"


def test_events_are_numbered_and_read_by_many() -> None:
    with Live(TEXT, MODEL, settings()) as live:
        assert not live.wait(0, timeout=0.01)
        seen: list[list[int]] = [[], []]

        def read(mine: list[int]) -> None:
            while len(mine) < 14:
                live.wait(mine[-1] if mine else 0, timeout=5)
                mine += [event["number"] for event in live.events(mine[-1] if mine else 0)]

        readers = [threading.Thread(target=read, args=(mine,)) for mine in seen]
        for reader in readers:
            reader.start()
        live.play()
        for reader in readers:
            reader.join(20)
        assert seen == [list(range(1, 15))] * 2  # playing, 12 steps, done
        assert live.events(13) == [{"number": 14, "kind": "state", "state": "done"}]
        assert live.events(99) == []


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "EVENTS", 5)
    with Live(TEXT, MODEL, settings()) as live:
        live.play()
        until(live, "done")
        assert [event["number"] for event in live.events(0)] == [10, 11, 12, 13, 14]
        assert [event["number"] for event in live.events(12)] == [13, 14]
        assert live.history.steps == list(range(1, 13))


def test_a_pause_holds_and_a_slow_training_answers_at_once() -> None:
    with Live(TEXT, MODEL, settings(steps=100_000)) as live:
        live.play()
        assert eventually(lambda: live.finished > 3)
        live.pause()
        assert live.state == "paused"
        with live.still():
            here = live.finished
        time.sleep(0.05)
        assert live.finished == here
        live.speed = 0.5
        live.step(3)
        assert eventually(lambda: live.finished == here + 1)
        begin = time.monotonic()
        live.question("abc")
        live.speed = None
        assert eventually(lambda: live.finished == here + 3)
        live.play()
        live.stop()
        assert time.monotonic() - begin < 5
        assert live.state == "done"
        end = live.finished
        live.play()
        live.step()
        assert (live.finished, live.state) == (end, "done")
        for wrong in (0, -1, float("inf"), float("nan")):
            with pytest.raises(HeadwayError, match=r"^expected a speed above 0 steps per second, or None, got"):
                live.speed = wrong


def test_nobody_changes_weights_while_somebody_looks() -> None:
    with Live(TEXT, MODEL, settings(steps=100_000)) as live:
        live.play()
        for _ in range(20):
            with live.still():
                model = live._model
                before = {name: x.clone() for name, x in model_tensors(model).items()}
                step = live.finished
                time.sleep(0.002)
                assert all(torch.equal(x, before[name]) for name, x in model_tensors(model).items())
                assert live.finished == step
        copied, ids, labels = live.question("a 猫")
        assert labels == ["a", "␣", "猫₁", "猫₂", "猫₃"]
        assert ids.shape == (1, 5)
        assert not copied.training
        first = copied(ids)
        assert eventually(lambda: live.finished > step + 5)
        assert torch.equal(copied(ids), first)
        assert len(entropies(copied, ids)) == 2
        with pytest.raises(HeadwayError, match=r"^expected a text with at least one character, got none$"):
            live.question("")


def test_errors_reach_the_reader() -> None:
    with Live(TEXT, MODEL, settings(steps=400, lr=1e20, optimizer="sgd", warmup=0, clip=None)) as live:
        live.play()
        until(live, "failed")
        error = next(event for event in live.events() if event["kind"] == "error")
        assert "try a lower learning rate" in error["message"]
        live.play()
        assert live.state == "failed"
    assert live.state == "failed"
    with Live(TEXT, MODEL, settings()) as live:

        def broken(step: int) -> None:
            raise RuntimeError("no more text")

        live._trainer.batches = broken  # type: ignore[assignment]
        live.play()
        until(live, "failed")
        assert live.events()[-2]["message"] == "RuntimeError: no more text"
        assert live.events()[-1]["state"] == "failed"
        live.question("still there")


def test_stopping_before_it_began_and_no_thread_is_left() -> None:
    before = threading.active_count()
    live = Live(TEXT, MODEL, settings())
    live.stop()
    assert (live.state, live.finished) == ("done", 0)
    live = Live(TEXT, MODEL, settings(steps=100_000))
    live.play()
    live.stop()
    live.stop()
    assert threading.active_count() == before


def test_what_cannot_be_trained() -> None:
    with pytest.raises(HeadwayError, match=r"^expected a text of at least 18 bytes .* from your text: give more"):
        Live("short", MODEL, settings())
    with pytest.raises(
        HeadwayError,
        match=r"^expected vocabulary to be bytes, bpe or the path of a tokenizer.json, got 'words', which is no file$",
    ):
        Live(TEXT, MODEL, settings(), vocabulary="words")
    with pytest.raises(HeadwayError, match=r"^expected watch_every of at least 1 step, got 0$"):
        Live(TEXT, MODEL, settings(), watch_every=0)
    with (
        Live(TEXT, MODEL, settings()) as live,
        pytest.raises(HeadwayError, match=r"^expected at least 1 step, got 0$"),
    ):
        live.step(0)
