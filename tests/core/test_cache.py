"""The cache keeps what it was given, whatever the pieces."""

from __future__ import annotations

import pytest
import torch
from common import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from headway import Attention, Causal, KVCache


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_pieces_of_any_length(lengths: list[int]) -> None:
    total = sum(lengths)
    k, v, pos = torch.randn(2, 3, total, 4), torch.randn(2, 3, total, 6), torch.arange(total)[None]
    marks, cache, done = torch.randn(2, total, 5), KVCache(), 0
    for n in lengths:
        part = slice(done, done + n)
        cache.append(k[:, :, part], v[:, :, part], pos[:, part], marks[:, part])
        done += n
        assert len(cache) == done
    for got, expected in ((cache.k, k), (cache.v, v), (cache.pos, pos.expand(2, -1)), (cache.marks, marks)):
        assert torch.equal(got, expected)


def test_memory_grows_by_doubling() -> None:
    cache, grown = KVCache(), 0
    pointer = None
    for n in range(100):
        cache.append(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), torch.tensor([[n]]))
        grown += pointer != (pointer := cache.k.data_ptr())
    assert grown <= 9


def test_keep() -> None:
    cache = KVCache()
    k, pos = torch.randn(1, 2, 6, 4), torch.arange(6)[None]
    cache.append(k, k, pos)
    cache.keep(torch.tensor([1, 4, 5]))
    assert len(cache) == 3
    assert cache.pos.tolist() == [[1, 4, 5]]
    assert cache.next_pos(2).tolist() == [[6, 7]]
    cache.append(k[:, :, :1], k[:, :, :1], cache.next_pos(1))
    assert torch.equal(cache.k, torch.cat([k[:, :, [1, 4, 5]], k[:, :, :1]], 2))


def test_a_sliding_cache_is_a_window() -> None:
    module, x = Attention(32, 4, position="rotary", mask=Causal()), torch.randn(1, 12, 32)
    from headway import Window

    whole = module(x, mask=Window(3))
    cache, out = KVCache(), []
    for i in range(12):
        out.append(module(x[:, i : i + 1], cache=cache))
        cache.keep(torch.arange(max(len(cache) - 3, 0), len(cache)))
    torch.testing.assert_close(torch.cat(out, 1), whole)


def test_marks_are_none_when_nothing_marks() -> None:
    cache = KVCache()
    cache.append(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.tensor([[0, 1]]))
    assert cache.marks is None


def test_what_is_cached_needs_no_gradient() -> None:
    cache = KVCache()
    k = torch.zeros(1, 1, 2, 2, requires_grad=True)
    cache.append(k, k, torch.tensor([[0, 1]]))
    assert not cache.k.requires_grad


@pytest.mark.usefixtures("unchecked")
def test_refusals() -> None:
    cache = KVCache()
    for name in ("k", "v", "pos"):
        with refusal(f"expected a cache with tokens, got an empty one: it has no {name} yet"):
            getattr(cache, name)
    k = torch.zeros(2, 3, 1, 4)
    cache.append(k, k, torch.tensor([[0]]))
    for wrong, got in (
        (torch.zeros(1, 3, 1, 4), "batch 1 and (3, 4)"),
        (torch.zeros(2, 2, 1, 4), "batch 2 and (2, 4)"),
        (torch.zeros(2, 3, 1, 5), "batch 2 and (3, 5)"),
    ):
        with refusal(
            f"expected keys of the cache's batch 2 and heads and width (3, 4), got {got}: "
            "use a new cache for another batch or model"
        ):
            cache.append(wrong, wrong, torch.tensor([[1]]))
    assert len(cache) == 1
    with refusal("expected tokens with no marks, as those in the cache, got some: use a new cache"):
        cache.append(k, k, torch.tensor([[1]]), torch.zeros(2, 1, 3))
    with refusal("expected k of torch.float32 on cpu, as in the cache, got torch.float64 on cpu: use a new cache"):
        cache.append(k.double(), k, torch.tensor([[1]]))
    fits = "expected keys, values, positions and marks of one batch and as many tokens, in as many heads, got "
    for wrong, got in (
        ((k, k[:, :, :0], torch.tensor([[1]])), "k (2, 1, 3, 4), v (2, 0, 3, 4), pos (2, 1)"),
        ((k, k[:, :2], torch.tensor([[1]])), "k (2, 1, 3, 4), v (2, 1, 2, 4), pos (2, 1)"),
        ((k, k, torch.tensor([[1, 2]])), "k (2, 1, 3, 4), v (2, 1, 3, 4), pos (2, 2)"),
        ((k, k, torch.zeros(3, 1, dtype=torch.long)), "k (2, 1, 3, 4), v (2, 1, 3, 4), pos (3, 1)"),
    ):
        with refusal(f"{fits}{got} in the order batch, tokens, heads, width"):
            cache.append(*wrong)
    with refusal(
        "expected keys and values of shape (batch, heads, tokens, width) and positions (batch or 1, tokens), got "
        "(2, 3, 1, 4), (3, 1, 4) and (1, 1)"
    ):
        cache.append(k, k[0], torch.tensor([[1]]))
    assert len(cache) == 1


@pytest.mark.usefixtures("unchecked")
def test_what_keep_takes_and_refuses() -> None:
    """Lists, tuples, ranges, integer tensors in any order and boolean masks; all else in one sentence."""
    k = torch.randn(1, 2, 6, 4)

    def filled() -> KVCache:
        cache = KVCache()
        cache.append(k, k, torch.arange(6)[None])
        return cache

    mask = torch.tensor([False, True, False, False, True, True])
    for index in ([1, 4, 5], (5, 1, 4), torch.tensor([4, 5, 1], dtype=torch.int32), mask, mask.tolist()):
        cache = filled()
        cache.keep(index)
        assert cache.pos.tolist() == [[1, 4, 5]]
        assert torch.equal(cache.k, k[:, :, [1, 4, 5]])
        assert cache.order.tolist() == [[2, 5, 6]]
    cache = filled()
    cache.keep(range(6))
    assert len(cache) == 6
    cache.keep([])
    assert len(cache) == 0
    assert cache.next_pos(2).tolist() == [[0, 1]]
    KVCache().keep([])
    expected = "expected the indices to keep as whole numbers, or a boolean mask over 6 tokens"
    for wrong, got in (
        ("ab", "'ab'"),
        (3, "3"),
        (None, "None"),
        ([0, [1]], "[0, [1]]"),
        ([0.5], "torch.float32"),
        (torch.zeros(2), "torch.float32"),
    ):
        with refusal(f"{expected}, got {got}"):
            filled().keep(wrong)
    with refusal(f"{expected}, in one dimension, got shape (1, 2)"):
        filled().keep(torch.zeros(1, 2, dtype=torch.long))
    with refusal(f"{expected}, got a mask over 2"):
        filled().keep([True, False])
    for wrong, got in (([0, 6], 6), ([-1, 2], -1), ([7, -2], -2)):
        with refusal(f"expected cache indices from 0 to 5, got {got}"):
            filled().keep(wrong)
    with refusal("expected each cache index once, got one twice: a cache holds a token once"):
        filled().keep([1, 2, 1])
    with refusal("expected nothing to keep, because the cache is empty, got indices"):
        KVCache().keep([0])
