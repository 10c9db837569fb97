"""The tasks ask what they say they ask: every target is checked against the tokens by a plain loop."""

import math

import pytest
import torch
from torch import nn

from headway.compare.tasks import CopyTask, RecallTask, TextTask, make_task
from headway.shapes import HeadwayError
from headway.training.batches import IGNORED


class Oracle(nn.Module):
    """Answers by looking back with a rule; shows that a task can be solved, and where."""

    def __init__(self, vocab, rule):
        super().__init__()
        self.vocab, self.rule, self.seen = vocab, rule, []

    def forward(self, tokens):
        self.seen.append(tokens)
        logits = torch.zeros(*tokens.shape, self.vocab)
        for b, row in enumerate(tokens.tolist()):
            for i in range(len(row)):
                logits[b, i, self.rule(row, i)] = 20.0
        return logits


def recall_rule(row, i):
    earlier = [j for j in range(i) if row[j] == row[i]]
    return row[earlier[-1] + 1] if earlier else 0


@pytest.mark.parametrize("length", [16, 33, 64])
def test_recall_targets_are_what_an_earlier_pair_said(length):
    task = RecallTask()
    inputs, targets = task.batches(length, 8, seed=3)(5)
    assert inputs.shape == targets.shape == (8, length)
    for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        for i in range(length):
            known = i % 2 == 0 and row[i] in row[:i:2]
            assert (wanted[i] != IGNORED) == known
            if known:
                assert wanted[i] == recall_rule(row, i)
    assert (targets != IGNORED).any()


@pytest.mark.parametrize("length", [16, 33, 64])
def test_recall_is_solved_by_looking_back_and_plants_its_key_once_at_the_distance(length):
    oracle = Oracle(RecallTask.vocab, recall_rule)
    found = RecallTask().test(oracle, length)
    assert found["accuracy"] == 1.0
    assert [row["distance"] for row in found["by_distance"]] == [
        d for d in (2, 4, 8, 16, 32, 64) if d <= length // 2 * 2 - 2
    ]
    for row, tokens in zip(found["by_distance"], oracle.seen, strict=True):
        assert row["count"] == len(tokens) == 32
        for sequence in tokens.tolist():
            places = [j for j, token in enumerate(sequence) if token == sequence[-1]]
            last = length // 2 * 2 - 2
            assert len(sequence) == last + 1
            assert places == [last - row["distance"], last]


@pytest.mark.parametrize("length", [16, 31, 64])
def test_copy_targets_repeat_what_came_before_the_separator(length):
    task = CopyTask()
    for step in range(5):
        inputs, targets = task.batches(length, 4, seed=1)(step)
        assert inputs.shape == targets.shape == (4, length)
        for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
            whole = [*row, *([wanted[-1]] if wanted[-1] != IGNORED else [])]
            for i in range(length):
                if wanted[i] != IGNORED:
                    assert wanted[i] == whole[i + 1]
                    # the source is right behind the nearest separator's distance: some earlier place holds it
                    assert wanted[i] in whole[: i + 1]
        assert (targets != IGNORED).float().mean() > 0.2


@pytest.mark.parametrize("length", [16, 31, 64])
def test_copy_asks_one_copy_at_the_distance(length):
    oracle = Oracle(CopyTask.vocab, lambda row, i: 0)
    found = CopyTask().test(oracle, length)
    assert found["accuracy"] < 0.3
    distances = [row["distance"] for row in found["by_distance"]]
    assert distances == [d for d in (4, 8, 16, 32) if 2 * d - 1 <= length]
    for row, tokens in zip(found["by_distance"], oracle.seen, strict=True):
        d = row["distance"]
        assert row["count"] == 32 * (d - 1)
        for sequence in tokens.tolist():
            # the input ends one letter before the end of the copy
            assert sequence[-d + 1 :][1:] == sequence[-2 * d + 2 : -d][: d - 2]
            assert sequence[1 - d] == CopyTask.letters


def test_data_is_a_pure_function_of_seed_and_step():
    for task in (RecallTask(), CopyTask()):
        one, two = task.batches(32, 4, 0), task.batches(32, 4, 0)
        two(7)
        assert all(torch.equal(a, b) for a, b in zip(one(3), two(3), strict=True))
        assert not torch.equal(one(3)[0], one(4)[0])
        assert not torch.equal(one(3)[0], task.batches(32, 4, 1)(3)[0])


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(32, 127)) * 60)
    return str(path)


def test_text_predicts_the_same_tokens_at_every_length(text):
    task = TextTask(text, train_length=8, longest=64)
    oracle = Oracle(256, lambda row, i: 32 + (row[i] - 31) % 95)
    ends = {}
    for length in (8, 16, 64):
        oracle.seen.clear()
        found = task.test(oracle, length)
        assert found["accuracy"] == 1.0
        assert found["tokens"] == 8 * len(task.ends)
        assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2))
        windows = torch.cat(oracle.seen)
        assert windows.shape[1] == length
        ends[length] = windows[:, -8:]
    assert torch.equal(ends[8], ends[16])
    assert torch.equal(ends[8], ends[64])


def test_text_windows_stay_in_the_held_out_part_and_do_not_overlap(text):
    task = TextTask(text, train_length=8, longest=64)
    assert int(task.ends.min()) - 64 - 1 >= 0
    assert int(task.ends.max()) <= len(task.held_out)
    assert int(task.ends.diff().min()) >= 8


def test_text_too_short_says_how_much_is_needed(tmp_path):
    path = tmp_path / "short.txt"
    path.write_bytes(b"hello world, " * 30)
    with pytest.raises(HeadwayError, match=r"held-out part has 1025 tokens .* got \d+ \(of 390 bytes\): give more"):
        TextTask(str(path), train_length=16, longest=1024)


def test_bpe_text(text):
    task = TextTask(text, train_length=8, longest=16, vocabulary="bpe", vocabulary_size=300)
    assert task.vocab <= 300
    found = task.test(Oracle(task.vocab, lambda row, i: 0), 16)
    assert found["bits_per_byte"] < found["loss"] / math.log(2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "copy", "path": "a.txt"}, "expected no text for task copy, which makes its own sequences, got a.txt"),
        ({"task": "recall", "path": None, "train_length": 4}, "expected a train length of at least 16 tokens"),
    ],
)
def test_bad_tasks(given, message):
    with pytest.raises(HeadwayError, match=message):
        make_task(**{"train_length": 64, "longest": 64, **given})
