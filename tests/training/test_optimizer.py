from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tiny_model import tiny
from torch import nn

from headway.shapes import HeadwayError
from headway.training.optimizer import build_optimizer, learning_rate
from headway.training.settings import OPTIMIZERS, TrainSettings


def test_warmup_then_cosine_to_the_floor() -> None:
    settings = TrainSettings(steps=110, lr=2.0, warmup=10, floor=0.25)
    rates = [learning_rate(step, settings) for step in range(110)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0
    assert rates[-1] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    middle = 10 + 99 / 4
    assert learning_rate(34, settings) == pytest.approx(
        2 * (0.25 + 0.75 * (1 + math.cos(math.pi * (34 - 10) / 99)) / 2)
    )
    assert rates[math.floor(middle)] > 1.25


def test_constant_and_shortest_runs() -> None:
    constant = TrainSettings(steps=50, lr=1.0, schedule="constant")
    assert [learning_rate(step, constant) for step in (0, 4, 5, 49)] == [0.2, 1.0, 1.0, 1.0]
    for steps in (1, 2, 3):
        for warmup in range(steps + 1):
            rates = [learning_rate(s, TrainSettings(steps=steps, warmup=warmup)) for s in range(steps)]
            assert all(0 < rate <= 3e-3 + 1e-12 for rate in rates)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_acts_on_matrices_only_and_shared_weights_are_there_once(name: str) -> None:
    model = tiny()
    optimizer = build_optimizer(model, TrainSettings(optimizer=name, weight_decay=0.3))
    matrices, others = optimizer.param_groups
    assert {id(p) for p in matrices["params"]} == {id(model.embed.weight), id(model.inner.weight)}
    assert matrices["weight_decay"] == 0.3
    assert others["weight_decay"] == 0
    assert len(others["params"]) == 3
    assert optimizer.defaults["fused"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update_equals_plain_torch(name: str) -> None:
    settings = TrainSettings(optimizer=name, lr=0.01, weight_decay=0.1, momentum=0.8, betas=(0.8, 0.9))
    a, b = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    b.load_state_dict(a.state_dict())
    plain: torch.optim.Optimizer
    if name == "sgd":
        plain = torch.optim.SGD(b.parameters(), lr=0.01, momentum=0.8, weight_decay=0.1, foreach=False)
    else:
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        plain = kind(b.parameters(), lr=0.01, betas=(0.8, 0.9), weight_decay=0.1, foreach=False)
    ours = build_optimizer(a, settings)
    for step in range(5):
        x = torch.full((4, 3), float(step + 1))
        for model, optimizer in ((a, ours), (b, plain)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(a.weight, b.weight)


def test_frozen_parameters_stay_out() -> None:
    model = tiny()
    model.inner.requires_grad_(False)
    assert sum(len(g["params"]) for g in build_optimizer(model, TrainSettings()).param_groups) == 3
    model.requires_grad_(False)
    with pytest.raises(HeadwayError, match=r"trainable parameters, got none"):
        build_optimizer(model, TrainSettings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"expected steps to be a whole number from 1 to 1,000,000, got 0"),
        ({"steps": True}, r"expected steps to be a whole number from 1 to 1,000,000, got True"),
        ({"batch": 2.0}, r"expected batch to be a whole number from 1 to 16,777,216, got 2.0"),
        ({"seed": -1}, r"expected seed to be a whole number of at least 0, got -1"),
        ({"seed": 2**63}, r"expected seed"),
        ({"keep": 1}, r"expected keep to be a whole number of at least 2, got 1"),
        ({"optimizer": "lion"}, r"expected optimizer to be one of sgd, adam, adamw, got 'lion'"),
        ({"schedule": "step"}, r"expected schedule to be one of cosine, constant, got 'step'"),
        ({"lr": 0.0}, r"expected lr to be a number above 0, got 0.0"),
        ({"lr": math.nan}, r"expected lr to be a number above 0, got nan"),
        ({"lr": "1"}, r"expected lr to be a number above 0, got '1'"),
        ({"momentum": 1.0}, r"expected momentum to be a number in \[0, 1\), got 1.0"),
        ({"betas": (0.9, 1.0)}, r"expected betas to be a number in \[0, 1\), got 1.0"),
        ({"betas": (0.9,)}, r"expected betas to be two numbers, got \(0.9,\)"),
        ({"weight_decay": -0.1}, r"expected weight_decay to be a number of at least 0, got -0.1"),
        ({"warmup": 20, "steps": 10}, r"expected warmup of at most steps=10, got 20"),
        ({"floor": 2}, r"expected floor to be a number in \[0, 1\], got 2"),
        ({"clip": -1}, r"expected clip to be a number of at least 0, got -1"),
        ({"validate_every": 0}, r"expected validate_every to be a whole number of at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(HeadwayError, match=message):
        TrainSettings(**changes)


def test_settings_roundtrip_and_unknown_names() -> None:
    settings = TrainSettings(steps=7, optimizer="sgd", betas=(0.5, 0.6), clip=None)
    assert TrainSettings.of(settings.plain()) == settings
    with pytest.raises(HeadwayError, match=r"expected training settings of known names, got 'colour'"):
        TrainSettings.of({"colour": 1})
    with pytest.raises(HeadwayError, match=r"as a JSON object, got a list of 0"):
        TrainSettings.of([])
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.steps = 3
