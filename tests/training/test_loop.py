from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_model import TOKENS, Tiny, tiny, tiny_batches, tiny_settings
from torch import Tensor, nn

from headway.shapes import HeadwayError
from headway.training.batches import TextValidation, seed_for
from headway.training.checkpoint import Checkpoints, model_tensors
from headway.training.files import FolderLock, read_json
from headway.training.history import History
from headway.training.loop import Progress, Trainer
from headway.training.optimizer import learning_rate
from headway.training.settings import OPTIMIZERS


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model_tensors(model).items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_time(history: History) -> dict[str, object]:
    return {k: v for k, v in history.to_json().items() if k not in ("seconds", "tokens_per_second")}


def test_equals_a_bare_torch_loop_bit_for_bit() -> None:
    settings = tiny_settings(steps=5, lr=0.01, weight_decay=0.1, clip=0.5)
    batches = tiny_batches(settings)
    bare = tiny()
    matrices = [bare.embed.weight, bare.inner.weight]
    vectors = [bare.inner.bias, bare.norm.weight, bare.norm.bias]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    losses = []
    with torch.random.fork_rng([]):
        for step in range(5):
            torch.manual_seed(seed_for(0, step, "dropout"))
            inputs, targets = batches(step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            loss = F.cross_entropy(bare(inputs).reshape(-1, 256), targets.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*matrices, *vectors], 0.5)
            optimizer.step()
            losses.append(loss.item())
    trainer = Trainer(tiny(), batches, settings)
    history = trainer.run()
    assert history.loss == losses
    assert same(weights(trainer.model), weights(bare))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loss_falls_on_a_text_that_can_be_learned(name: str) -> None:
    settings = tiny_settings(steps=150, optimizer=name, batch=8, lr={"sgd": 1.0}.get(name, 0.02))
    model = tiny(width=16)
    history = Trainer(
        model, lambda step: (x := torch.arange(step, step + 32).view(4, 8) % 16, (x + 1) % 16), settings
    ).run()
    assert history.status == "done"
    assert history.loss[-1] < 0.4 * history.loss[0]
    assert history.grad_norm[0] > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("cut", [1, 3, 4])
def test_resume_gives_the_same_bits_and_the_whole_record(tmp_path: Path, name: str, cut: int) -> None:
    settings = tiny_settings(optimizer=name)
    validation = TextValidation(TOKENS, 8, 4)

    def trainer(folder: Path, seed: int = 0) -> Trainer:
        return Trainer(tiny(seed), tiny_batches(settings), settings, validation=validation, folder=folder)

    whole = trainer(tmp_path / "whole")
    expected = whole.run()
    count = [0]

    def stop() -> bool:
        count[0] += 1
        return count[0] == cut

    first = trainer(tmp_path / "cut")
    assert first.run(stop).status == "interrupted"
    # Other weights and another state of the global generator: both must come from the checkpoint.
    torch.rand(3)
    second = trainer(tmp_path / "cut", seed=7)
    history = second.run()
    assert second.resumed_from == cut
    assert without_time(history) == without_time(expected)
    assert history.validation_steps == [3, 6]
    assert same(weights(second.model), weights(whole.model))
    assert (tmp_path / "cut/checkpoints/step-00000006/model.safetensors").read_bytes() == (
        tmp_path / "whole/checkpoints/step-00000006/model.safetensors"
    ).read_bytes()


def test_resume_twice_and_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    settings = tiny_settings()
    whole = Trainer(tiny(), tiny_batches(settings), settings)
    whole.run()
    outcomes = ["interrupted"] * 5 + ["done"] * 2
    for life, expected in enumerate(outcomes):
        trainer = Trainer(tiny(life), tiny_batches(settings), settings, folder=tmp_path)
        assert trainer.run(lambda: True).status == expected
    assert trainer.resumed_from == 6
    assert same(weights(trainer.model), weights(whole.model))
    assert Checkpoints(tmp_path / "checkpoints").steps() == [5, 6]


def test_global_generator_and_modes_are_put_back_and_validation_may_draw() -> None:
    settings = tiny_settings(validate_every=1)
    plain, drawing = Trainer(tiny(), tiny_batches(settings), settings), None
    plain.run()

    def validation(model: nn.Module) -> float:
        assert not model.training
        assert not torch.is_grad_enabled()
        return float(torch.rand(()))

    model = tiny()
    model.inner.eval()
    model.dropout.train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    drawing = Trainer(model, tiny_batches(settings), settings, validation=validation)
    drawing.run()
    assert torch.equal(before, torch.get_rng_state())
    assert same(weights(model), weights(plain.model))
    assert model.training
    assert not model.inner.training


def test_ignored_targets_have_no_part(tmp_path: Path) -> None:
    settings = tiny_settings(steps=1)
    x = torch.arange(16).view(2, 8)
    y = x.clone()
    y[:, :4] = -100
    model = tiny()
    model.dropout.p = 0.0
    expected = F.cross_entropy(model(x)[:, 4:].flatten(0, 1), y[:, 4:].flatten()).item()
    assert Trainer(model, lambda step: (x, y), settings).run().loss[0] == pytest.approx(expected, rel=1e-6)


def test_diverged_run_stops_before_the_step_and_keeps_finite_weights(tmp_path: Path) -> None:
    class Breaks(Tiny):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) * (torch.nan if self.training and self.calls > 3 else 1.0)

    settings = tiny_settings(checkpoint_every=100)
    trainer = Trainer(Breaks(), tiny_batches(settings), settings, folder=tmp_path)
    history = trainer.run()
    assert (history.status, history.steps) == ("diverged", [1, 2, 3])
    assert history.reason == "the loss is nan: try a lower learning rate, a longer warm-up, or gradient clipping"
    assert all(bool(torch.isfinite(t).all()) for t in weights(trainer.model).values())
    assert Checkpoints(tmp_path / "checkpoints").steps() == [3]
    assert read_json(tmp_path / "history.json")["status"] == "diverged"


def test_gradient_that_is_not_finite_and_a_batch_without_targets() -> None:
    class Root(Tiny):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) + (self.inner.bias * 0).abs().sqrt().sum()

    settings = tiny_settings()
    history = Trainer(Root(), tiny_batches(settings), settings).run()
    assert (history.status, history.steps) == ("diverged", [])
    assert history.reason is not None
    assert history.reason.startswith("the gradient norm is nan")
    empty = Trainer(tiny(), lambda step: (torch.zeros(2, 8).long(), torch.full((2, 8), -100)), settings).run()
    assert empty.reason is not None
    assert empty.reason.startswith("the batch has no target but -100")
    bad = Trainer(tiny(), tiny_batches(settings), settings, validation=lambda model: math.inf).run()
    assert bad.reason is not None
    assert bad.reason.startswith("the validation loss after step 3 is inf")


def test_overflowed_weights_are_called_diverged_and_not_saved(tmp_path: Path) -> None:
    class Overflows(Tiny):
        def forward(self, tokens: Tensor) -> Tensor:
            if self.training and self.calls == 3:
                with torch.no_grad():
                    self.inner.bias[0] = torch.inf
                return super().forward(tokens).detach() + self.norm.bias.sum()
            return super().forward(tokens)

    settings = tiny_settings(clip=None)
    history = Trainer(Overflows(), tiny_batches(settings), settings, folder=tmp_path).run()
    assert history.status == "diverged"
    assert all(step <= 3 for step in Checkpoints(tmp_path / "checkpoints").steps())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_finishes_the_step_saves_and_puts_the_old_handler_back(tmp_path: Path, number: int) -> None:
    settings = tiny_settings(checkpoint_every=None)
    batches = tiny_batches(settings)

    def interrupting(step: int) -> tuple[Tensor, Tensor]:
        if step == 2:
            os.kill(os.getpid(), number)
        return batches(step)

    before = signal.getsignal(number)
    history = Trainer(tiny(), interrupting, settings, folder=tmp_path).run()
    assert signal.getsignal(number) is before
    assert (history.status, history.steps) == ("interrupted", [1, 2, 3])
    assert Checkpoints(tmp_path / "checkpoints").steps() == [3]
    resumed = Trainer(tiny(4), batches, settings, folder=tmp_path)
    assert resumed.run().status == "done"
    whole = Trainer(tiny(), batches, settings)
    whole.run()
    assert same(weights(resumed.model), weights(whole.model))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal: where the tests are a shell's job in the background, they ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_second_ctrl_c_acts_at_once(tmp_path: Path) -> None:
    settings = tiny_settings()

    def interrupting(step: int) -> tuple[Tensor, Tensor]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        Trainer(tiny(), interrupting, settings, folder=tmp_path).run()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with FolderLock(tmp_path):
        pass


def test_runs_in_another_thread(tmp_path: Path) -> None:
    settings = tiny_settings()
    trainer = Trainer(tiny(), tiny_batches(settings), settings, folder=tmp_path)
    thread = threading.Thread(target=trainer.run)
    thread.start()
    thread.join()
    assert trainer.history.status == "done"


def test_progress_tells_every_validation_and_the_end() -> None:
    settings = tiny_settings(steps=7, validate_every=2)
    events: list[Progress] = []
    history = Trainer(
        tiny(), tiny_batches(settings), settings, validation=lambda model: 1.5, on_progress=events.append
    ).run()
    assert {2, 4, 6, 7} <= {e.step for e in events}
    assert [e.validation_loss for e in events if e.step in (2, 4, 6, 7)] == [1.5] * 4
    last = events[-1]
    assert (last.step, last.steps, last.loss, last.seconds_left) == (7, 7, history.loss[-1], 0)
    assert last.tokens_per_second > 0
    assert history.tokens == 7 * 2 * 8
    assert history.tokens_per_second == pytest.approx(history.tokens / history.seconds)


def test_other_settings_another_model_and_only_damaged_checkpoints(tmp_path: Path) -> None:
    settings = tiny_settings()
    Trainer(tiny(), tiny_batches(settings), settings, folder=tmp_path).run()
    other = tiny_settings(lr=0.5)
    with pytest.raises(HeadwayError, match=r"got others \(lr was None, is 0.5\): use its settings or another folder"):
        Trainer(tiny(), tiny_batches(other), other, folder=tmp_path).run()
    with pytest.raises(HeadwayError, match=r"expected embed.weight of shape \(256, 4\)"):
        Trainer(tiny(width=4), tiny_batches(settings), settings, folder=tmp_path).run()
    for step in (4, 6):
        (tmp_path / f"checkpoints/step-{step:08d}/state.json").write_bytes(b"{}")
    with pytest.raises(HeadwayError, match=r"got only damaged ones \(skipped checkpoint step-00000006: .*start again"):
        Trainer(tiny(), tiny_batches(settings), settings, folder=tmp_path).run()
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 6]


def test_damaged_newest_checkpoint_is_noted_and_trained_again(tmp_path: Path) -> None:
    settings = tiny_settings()
    whole = Trainer(tiny(), tiny_batches(settings), settings, folder=tmp_path)
    whole.run()
    (tmp_path / "checkpoints/step-00000006/model.safetensors").write_bytes(b"")
    again = Trainer(tiny(5), tiny_batches(settings), settings, folder=tmp_path)
    assert again.run().status == "done"
    assert again.resumed_from == 4
    assert "skipped checkpoint step-00000006" in again.notes[0]
    assert same(weights(whole.model), weights(again.model))


def test_two_writers(tmp_path: Path) -> None:
    settings = tiny_settings()
    with FolderLock(tmp_path) as lock:
        trainer = Trainer(tiny(), tiny_batches(settings), settings, folder=tmp_path)
        with pytest.raises(HeadwayError, match=r"is training there: wait for it, stop it, or choose another folder"):
            trainer.run()
        assert trainer.run(lock=lock).status == "done"


def test_threads_that_differ_are_noted(tmp_path: Path) -> None:
    settings = tiny_settings()
    Trainer(tiny(), tiny_batches(settings), settings, folder=tmp_path).run()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        trainer = Trainer(tiny(), tiny_batches(settings), settings, folder=tmp_path)
        trainer.run()
    finally:
        torch.set_num_threads(threads)
    assert "the last bits of results may differ" in trainer.notes[0]


def test_history_roundtrip() -> None:
    history = History([1, 2], [2.0, 1.0], [0.1, 0.1], [1.0, 2.0], [2], [1.5], "diverged", "why", 2.0, 10)
    assert History.from_json(history.to_json()) == history


@pytest.mark.parametrize(
    "spoil",
    [
        lambda h: [],
        lambda h: {**h, "more": 1},
        lambda h: {**h, "loss": [1.0]},
        lambda h: {**h, "loss": "abc"},
        lambda h: {**h, "steps": [True]},
        lambda h: {**h, "validation_steps": [1]},
        lambda h: {**h, "status": "fine"},
        lambda h: {**h, "status": []},
        lambda h: {**h, "reason": 3},
        lambda h: {**h, "seconds": None},
        lambda h: {**h, "tokens": 1.5},
        lambda h: {**h, "loss": [float("inf")], "steps": [1], "lr": [1.0], "grad_norm": [1.0]},
    ],
)
def test_damaged_history_is_refused(spoil: Callable[[dict[str, object]], object]) -> None:
    with pytest.raises(HeadwayError, match=r"expected"):
        History.from_json(spoil(History().to_json()))
