from __future__ import annotations

import math

import pytest
import torch
from tiny_model import TOKENS, tiny
from torch import Tensor, nn

from headway.shapes import HeadwayError
from headway.training.batches import TextBatches, TextValidation, seed_for


def test_batches_are_a_pure_function_of_seed_and_step() -> None:
    one, two = TextBatches(TOKENS, 8, 4, seed=5), TextBatches(TOKENS, 8, 4, seed=5)
    for step in (3, 0, 3, 10**12):
        for a, b in zip(one(step), two(step), strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(one(0)[0], one(1)[0])
    assert not torch.equal(one(0)[0], TextBatches(TOKENS, 8, 4, seed=6)(0)[0])


def test_batches_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    TextBatches(TOKENS, 8, 4)(0)
    assert torch.equal(before, torch.get_rng_state())


def test_targets_follow_inputs_and_windows_reach_every_token() -> None:
    tokens = torch.arange(1000) * 100
    batches = TextBatches(tokens, 4, 64)
    seen = set()
    for step in range(100):
        inputs, targets = batches(step)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(targets, inputs + 100)
        seen |= set(inputs.flatten().tolist()) | set(targets.flatten().tolist())
    assert seen == set(tokens.tolist())


def test_shortest_text_gives_its_one_window() -> None:
    inputs, targets = TextBatches(torch.arange(5), 4, 2)(0)
    assert inputs.tolist() == [[0, 1, 2, 3]] * 2
    assert targets.tolist() == [[1, 2, 3, 4]] * 2


def test_bad_arguments() -> None:
    with pytest.raises(HeadwayError, match=r"expected at least 5 tokens .*, got 4: give more text"):
        TextBatches(torch.arange(4), 4, 2)
    with pytest.raises(HeadwayError, match=r"expected batch of at least 1, got 0"):
        TextBatches(TOKENS, 4, 0)
    with pytest.raises(HeadwayError, match=r"expected integer tokens in one row \(N,\), got torch.float32"):
        TextBatches(torch.zeros(9), 4, 1)


def test_validation_counts_no_target_twice_and_is_the_mean() -> None:
    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []

        def forward(self, tokens: Tensor) -> Tensor:
            self.seen += (tokens + 1).flatten().tolist()
            return torch.zeros(*tokens.shape, 256)

    spy = Spy()
    loss = TextValidation(torch.arange(98), 8, 5)(spy)
    assert sorted(spy.seen) == list(range(1, 97))
    assert loss == pytest.approx(math.log(256))
    few = Spy()
    TextValidation(torch.arange(98), 8, 5, windows=3)(few)
    assert len(few.seen) == len(set(few.seen)) == 24
    assert max(few.seen) > 60


def test_validation_equals_the_plain_mean_whatever_the_batch() -> None:
    model = tiny().eval()
    a, b = (TextValidation(TOKENS, 8, batch)(model) for batch in (1, 7))
    assert a == pytest.approx(b, rel=1e-6)


def test_seeds_do_not_collide() -> None:
    seeds = {seed_for(seed, step, what) & 0xFFFFFFFF for seed in range(20) for step in range(50) for what in "ab"}
    assert len(seeds) == 2000
