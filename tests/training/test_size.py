"""What a model and a step take is counted before anything is allocated."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from headway.positions import methods
from headway.shapes import HeadwayError
from headway.training.size import LAYERS, check_size, estimate
from headway.transformer import Transformer


def built(config: dict[str, Any]) -> int:
    with torch.device("meta"):
        model = Transformer(**config)
    return sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in model.buffers())


@pytest.mark.parametrize("method", methods())
def test_every_method_is_counted_exactly(method: str) -> None:
    config = {"vocab": 11, "dim": 32, "layers": 3, "heads": 2, "position": method}
    assert estimate(config).parameters == built(config)


@pytest.mark.parametrize(
    "config",
    [
        {"kv_heads": 1, "head_dim": 24, "hidden": 7, "tie": False},
        {"activation": "swiglu", "bias": True, "norm": "layer"},
        {"post_norm": True, "qk_norm": True, "sinks": True, "position": "shaw"},
        {"kind": "encoder-decoder", "position": "t5", "bias": True},
        {"kind": "encoder-decoder", "position": "t5", "share_position": False, "norm": "layer"},
        {"kind": "encoder", "position": "kerple", "share_position": False},
    ],
    ids=str,
)
def test_every_option_is_counted_exactly(config: dict[str, Any]) -> None:
    whole = {"vocab": 300, "dim": 32, "layers": 2, "heads": 4, **config}
    assert estimate(whole).parameters == built(whole)


@pytest.mark.parametrize(
    ("config", "step", "message"),
    [
        ({"dim": 10**9}, {}, r"expected a model of at most .* GB, got .* parameters"),
        ({"dim": 2**31}, {}, r"choose a smaller dim"),
        ({"dim": 10**400, "heads": 1}, {}, r"choose a smaller dim"),
        ({"layers": 10**5}, {}, rf"expected at most {LAYERS:,} layers, got 100,000"),
        ({"layers": 10**30}, {}, r"expected at most"),
        ({"vocab": 10**11}, {}, r"expected a model of at most"),
        ({"position": "learned(max_length=2000000000)"}, {}, r"expected a model of at most"),
        ({"position": "learned(max_length=10000000000000000000000)"}, {}, r"max_length of at most 2,147,483,647"),
        ({"position": "dynamicbias(depth=2000000000)"}, {}, r"that can be made, got dynamicbias"),
        ({"position": "swin(height=40960, width=40960)"}, {}, r"expected a model of at most"),
        ({"position": "shaw(clip=2000000000)"}, {}, r"expected a model of at most"),
        ({}, {"batch": 10**12, "length": 64}, r"expected a training step of at most .*: choose a smaller batch"),
        ({}, {"batch": 1, "length": 10**12}, r"expected a training step of at most"),
        ({"heads": 3}, {}, r"expected heads to divide dim"),
        ({"dim": "64"}, {}, r"expected model configuration dim of type int, got '64'"),
        ({"colour": 1}, {}, r"expected model configuration keys among"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_refused_at_once(config: dict[str, Any], step: dict[str, int], message: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(HeadwayError, match=message):
        check_size({"vocab": 256, "dim": 64, "layers": 2, "heads": 4, **config}, room=2**34, **step)
    assert time.perf_counter() - begin < 5


def test_a_step_is_a_lower_bound_that_grows_with_its_parts() -> None:
    config = {"vocab": 256, "dim": 64, "layers": 2, "heads": 4}
    alone, small, large = (estimate(config, batch=b, length=n) for b, n in ((0, 0), (2, 8), (4, 8)))
    assert alone.weights == alone.parameters * 4
    assert alone.step == alone.parameters * 16  # weight, gradient, two moments
    assert estimate(config, optimizer="sgd").step == alone.parameters * 12
    assert large.step - alone.step == 2 * (small.step - alone.step) > 0
    check_size(config, batch=4, length=8, room=large.step)
    with pytest.raises(HeadwayError, match=r"expected a training step"):
        check_size(config, batch=4, length=8, room=large.step - 1)
