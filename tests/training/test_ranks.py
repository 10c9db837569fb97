"""Trainings of several processes: equal to one, resumed with any number, ended together; see ranks.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import TOKENS, tiny, tiny_batches, tiny_settings
from torch import nn

from headway.parallel.process import World
from headway.shapes import HeadwayError
from headway.training.batches import TextBatches, TextValidation
from headway.training.execution import Engine, Execution, rows_of
from headway.training.files import read_json, write_json_atomic
from headway.training.loop import Trainer
from headway.training.run import train
from headway.training.settings import TrainSettings
from headway.training.validation import mean_loss

COMPILER = ("ignore:`torch.jit", "ignore:The .grad attribute")
"""What torch's compiler warns about itself."""


def ranks(*arguments: object, warnings: Sequence[str] = ()) -> str:
    script = Path(__file__).with_name("ranks.py")
    options = [option for one in ("error", *warnings) for option in ("-W", one)]
    done = subprocess.run(
        [sys.executable, *options, script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_piece_that_is_computed_twice_counts_once() -> None:
    """Three pieces in two processes: in the last turn both compute the third."""

    class Three:
        pieces = 3

        def piece(self, number: int, model: nn.Module, /) -> tuple[float, int]:
            return (1.0, 20.0, 300.0)[number], 1

    class Two(World):
        size, rank = 2, 0

        def all_of(self, own: Any) -> list[Any]:
            self.turns = getattr(self, "turns", 0) + 1
            return [own, Three().piece(min(2 * self.turns - 1, 2), nn.Identity())]

    assert mean_loss(Three(), nn.Identity(), Two()) == 107.0
    assert mean_loss(Three(), nn.Identity()) == 107.0


def test_two_processes_equal_one_resume_and_end_together(tmp_path: Path) -> None:
    assert ranks("equal,resumed,ends", tmp_path, 0).split() == ["equal", "resumed", "ends"]


@pytest.mark.slow
def test_every_way_equals_one_resumes_and_ends(tmp_path: Path) -> None:
    assert ranks("equal,resumed,ends", tmp_path, 1).split() == ["equal", "resumed", "ends"]


@pytest.mark.slow
def test_curves_of_fifty_steps_equal_one_process(tmp_path: Path) -> None:
    assert ranks("curves", tmp_path).count("curve") == 12


@pytest.mark.slow
def test_killed_at_random_times_and_resumed_with_any_number(tmp_path: Path) -> None:
    assert int(ranks("killed", tmp_path, 10, 0).split()[-1]) >= 10


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    assert ranks("compiled", tmp_path, warnings=COMPILER).split() == ["compiled"]


@pytest.mark.slow
def test_torchrun_prints_an_error_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "headway", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for bad in (["nowhere.txt"], ["--stepz", "3"]):
        done = subprocess.run(
            [*command, *bad, "--out", str(tmp_path / "run")],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.count("\nerror: ") + done.stderr.startswith("error: ") == 1, done.stderr


@pytest.mark.parametrize("rows", [7, 8, 9])
def test_parts_cover_the_rows_once(rows: int) -> None:
    for parts in range(1, rows + 1):
        slices = [rows_of(part, parts, rows) for part in range(parts)]
        assert [row for one in slices for row in range(rows)[one]] == list(range(rows))
        assert max(len(range(rows)[one]) for one in slices) - min(len(range(rows)[one]) for one in slices) <= 1


def curve(execution: Execution | None = None, **changes: object) -> list[float]:
    settings = tiny_settings(**{"batch": 5, "checkpoint_every": None, **changes})
    return Trainer(tiny(), tiny_batches(settings), settings, execution=execution).run().loss


def test_accumulation_drops_the_same_entries_and_differs_by_rounding() -> None:
    whole = curve()
    for accumulate in (2, 3, 5):
        assert curve(Execution(accumulate=accumulate)) == pytest.approx(whole, abs=2e-6)
    with pytest.raises(HeadwayError, match="batch of at least 6 for 1 processes × accumulate=6"):
        curve(Execution(accumulate=6))


def test_one_pass_has_the_bits_of_the_mean_loss() -> None:
    settings = tiny_settings(dtype="float32")
    engine = Engine(tiny().eval(), settings, Execution(), World())
    inputs, targets = TextBatches(TOKENS, settings.length, settings.batch)(0)
    targets = targets.masked_fill(targets % 3 == 0, -100)
    loss, _ = engine.backward(0, inputs, targets)
    model = tiny().eval()
    expected = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    assert loss == expected.item()
    expected.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    gradients = zip(engine.model.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in gradients if a.grad is not None and b.grad is not None)


def test_dropout_is_taken_back() -> None:
    settings = tiny_settings()
    trainer = Trainer(tiny(), tiny_batches(settings), settings, execution=Execution(accumulate=2))
    trainer.run()
    assert not any("forward" in vars(module) for module in trainer.model.modules())


def test_inputs_that_are_not_divided_by_rows_are_refused() -> None:
    def batches(step: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return {"tokens": torch.zeros(8, 4, dtype=torch.long)}, torch.zeros(4, 8, dtype=torch.long)

    settings = tiny_settings(batch=4)
    with pytest.raises(HeadwayError, match=r"tokens with 4 rows, or 1, in its first dimension.*shape \(8, 4\)"):
        Trainer(tiny(), batches, settings, execution=Execution(accumulate=2)).run()


def test_bfloat16_computes_products_in_it_and_keeps_weights() -> None:
    model = tiny()
    found = []
    model.inner.register_forward_hook(lambda module, given, out: found.append(out.dtype))
    settings = tiny_settings(dtype="bfloat16")
    validation = TextValidation(TOKENS[:100], settings.length, 2)
    history = Trainer(model, tiny_batches(settings), settings, validation=validation).run()
    assert set(found) == {torch.bfloat16}
    assert all(p.dtype is torch.float32 for p in model.parameters())
    assert history.loss == pytest.approx(curve(batch=2), abs=0.02)
    assert history.loss != curve(batch=2)


def test_a_run_without_dtype_is_one_in_float32(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 20)
    given = {"out": tmp_path / "run", "model_config": {"dim": 16, "layers": 1, "heads": 2}}
    settings = TrainSettings(steps=2, batch=2, length=8)
    train(text, settings=settings, **given)
    record = read_json(tmp_path / "run" / "settings.json")
    del record["train"]["dtype"]
    write_json_atomic(tmp_path / "run" / "settings.json", record)
    with pytest.raises(HeadwayError, match="dtype was 'float32', is 'bfloat16'"):
        train(text, settings=TrainSettings(**{**vars(settings), "dtype": "bfloat16"}), **given)


def test_torchrun_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(HeadwayError, match="expected torchrun for parallel=fsdp, got one process alone: run `torchrun"):
        train(out=tmp_path, model_config={}, execution=Execution(parallel="fsdp"))
