"""Plans of training on many devices, against a real model: parameters, operations, memory; and docs/scale.md."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from headway import Transformer
from headway.masks import Causal, Window
from headway.memory import peak_memory
from headway.parallel.plan import Setup, Step, count, pairs, plan
from headway.parallel.plan_command import command
from headway.positions import methods
from headway.shapes import HeadwayError

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
SMALL: dict[str, Any] = {"length": 512, "devices": 1, "vocab": 64, "dim": 128, "layers": 3, "heads": 8, "kv_heads": 2}
SMALL |= {"head_dim": 16, "hidden": 384, "tie": True, "loss_chunk": 0, "parallel": "ddp"}


def small(**changes: Any) -> Step:
    return plan(Setup(**{**SMALL, **changes}))


@pytest.mark.parametrize("name", methods())
def test_parameters_are_those_of_a_real_model(name: str) -> None:
    setup = Setup(**{**SMALL, "position": name})
    try:
        model = Transformer.from_config(setup.model())
    except HeadwayError as error:
        with pytest.raises(HeadwayError, match=re.escape(str(error))):
            plan(setup)
    else:
        found = plan(setup).counted
        assert found.parameters == sum(p.numel() for p in model.parameters())
        assert found.layer == sum(p.numel() for p in model.stack.blocks[0].parameters())


def test_the_default_is_the_8_billion_model_of_its_sizes() -> None:
    assert count(Setup(length=1, devices=1).model()).parameters == 8_030_261_248  # as published for Llama 3 8B


@pytest.mark.parametrize(("activation", "position"), [("gelu", "rotary"), ("swiglu", "fox")])
def test_operations_are_those_that_torch_counts(activation: str, position: str) -> None:
    length = 48
    step = small(length=length, activation=activation, position=position, checkpointing=False)
    model = Transformer.from_config({**step.setup.model(), "backend": "reference"})
    ids = torch.randint(64, (1, length))
    with FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    # torch counts all pairs, masked ones too, and a backward pass that keeps the scores: 3 times forward, not 3.5
    attention = step.flops["attention"] * 6 // 7 * length * length // pairs(length, None)
    assert counter.get_total_flops() == step.flops["products"] + attention
    again = small(length=length, activation=activation, position=position)
    assert again.flops["products"] * 3 == step.flops["products"] * 4
    assert again.flops["attention"] * 7 == step.flops["attention"] * 9


@pytest.mark.parametrize("window", [None, 0, 3, 50])
def test_pairs_are_those_of_the_mask(window: int | None) -> None:
    mask = Causal() if window is None else Window(window, 0)
    at = torch.arange(17)[None]
    evaluated = mask.tile(at, at)
    assert isinstance(evaluated, torch.Tensor)
    assert pairs(17, window) == int(evaluated.sum())


@pytest.mark.parametrize(
    "options",
    [
        {"position": "rotary", "activation": "gelu", "dtype": "float32", "checkpointing": False},
        {"position": "fox", "activation": "swiglu", "dtype": "bf16", "checkpointing": False},
        {"position": "t5", "activation": "swiglu", "dtype": "bf16", "checkpointing": True},
        {"position": "fox", "activation": "gelu", "dtype": "float32", "checkpointing": True, "kv_heads": 8},
    ],
    ids=lambda options: options["position"],
)
def test_memory_of_a_step_is_within_a_tenth_of_what_is_measured(options: dict[str, Any]) -> None:
    step = small(length=1024, **options)
    model = Transformer.from_config(step.setup.model())
    model.stack.checkpointed = step.setup.checkpointing
    ids = torch.randint(64, (1, step.setup.length))

    def train() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=step.setup.dtype == "bf16"):
            out = model(ids)
        cross_entropy(out.flatten(0, 1).float(), ids.flatten()).backward()
        model.zero_grad()

    train()  # what is made once
    planned = step.held - step.memory["optimizer"] - 4 * step.counted.parameters  # weights are there already
    assert planned == pytest.approx(peak_memory(train), rel=0.1)


def test_a_share_of_a_sequence_takes_a_share_of_memory_and_work() -> None:
    whole, quarter = (plan(Setup(length=1 << 20, devices=64, context=n)) for n in (1, 4))
    assert quarter.memory["activations"] * 4 == pytest.approx(whole.memory["activations"])
    assert quarter.flops["attention"] * 4 == pytest.approx(whole.flops["attention"])
    assert whole.exchanged["attention"] == whole.memory["exchange"] == 0
    # 3/4 of keys and values of 8 heads of 128 in bf16, 32 layers, there, back, and their gradients
    assert quarter.exchanged["attention"] == 3 * (3 * (1 << 20) // 4) * 2 * 8 * 128 * 2 * 32
    ring = plan(Setup(length=1 << 20, devices=64, context=4, exchange="ring"))
    assert ring.memory["exchange"] * 2 == quarter.memory["exchange"]
    assert ring.seconds["exchange"] == 0  # hidden behind attention
    ddp = plan(Setup(length=8192, devices=64, parallel="ddp"))
    assert ddp.memory["optimizer"] == 8 * ddp.counted.parameters
    assert not ddp.fits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 3, "devices": 8}, "expected context to divide the 8 devices, got 3"),
        ({"context": 4, "devices": 8, "exchange": "ulysses"}, "expected context to divide the 2 key and value heads"),
        ({"position": "rotari"}, "did you mean rotary"),
        ({"head_dim": 15}, "expected an even head width"),
        ({"mfu": 0.0}, "expected mfu to be a number in"),
    ],
)
def test_what_cannot_be_planned_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadwayError, match=message):
        small(**changes)


def test_the_tables_of_the_page_are_what_the_command_says(capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    from headway.console import Checked

    app = typer.Typer()
    app.command(cls=Checked)(command)
    found = re.findall(r"```sh\n\.venv/bin/headway plan (.*?)\n```\n\n(\|.*?)\n\n", PAGE.read_text(), re.DOTALL)
    assert len(found) == 2
    for line, table in found:
        app(shlex.split(line), standalone_mode=False)
        assert capsys.readouterr().out.startswith(table + "\n"), f"make scale writes it anew: {line}"
