"""The cache returns what was appended, in whatever pieces."""

from __future__ import annotations

import pytest
import torch
from common import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from headway import Attention, Causal, KVCache, Transformer


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


# --- a cache with a size ----------------------------------------------------------------------------------------------


def test_a_cache_with_a_size_keeps_its_shapes_and_its_place_in_memory() -> None:
    cache = KVCache(6)
    k = torch.randn(2, 3, 9, 4)
    cache.append(k[:, :, :2], k[:, :, :2], torch.arange(2)[None])
    there, most = cache.k.data_ptr(), cache.nbytes
    with torch.no_grad():
        for n in range(2, 6):
            tokens = cache.append(k[:, :, n : n + 1], k[:, :, n : n + 1], cache.next_pos(1))
            assert tokens.k.shape == (2, 3, 6, 4)
            assert tokens.pos.tolist() == [[*range(n + 1), *[-1] * (5 - n)]] * 2
    assert (cache.k.data_ptr(), cache.nbytes, len(cache)) == (there, most, 6)
    assert torch.equal(cache.k, k[:, :, :6])
    with refusal("expected at most 6 tokens, the size of the cache, got 7: make it larger, or keep() fewer"):
        cache.append(k[:, :, :1], k[:, :, :1], cache.next_pos(1))
    assert len(cache) == 6
    with refusal("expected at most 6 tokens, the size of the cache, got 9: make it larger, or keep() fewer"):
        KVCache(6).append(k, k, torch.arange(9)[None])


def test_a_cache_with_a_size_drops_and_reorders_as_one_that_grows() -> None:
    k, steps = torch.randn(2, 3, 8, 4), {}
    for size in (None, 10):
        cache = KVCache(size)
        cache.append(k[:, :, :5], k[:, :, :5], torch.arange(5)[None], k[:, 0, :5])
        for change in (lambda c: c.keep([0, 2, 4]), lambda c: c.reorder([1, 1]), lambda c: c.keep([1, 2])):
            change(cache)
            cache.append(k[:, :, 5:6], k[:, :, 5:6], cache.next_pos(1), k[:, 0, 5:6])
            real = len(cache)
            found = (cache.k, cache.v, cache.pos[:, None], cache.marks[:, None], cache.order[:, None])
            steps.setdefault(size, []).append([x[:, :, :real] for x in found])
            assert bool((cache.pos[:, real:] == -1).all())
            assert cache.k.shape[2] == (size or real)
    for one, other in zip(steps[None], steps[10], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_cache_with_a_size_is_cropped() -> None:
    module, x = Attention(32, 4, position="rotary", mask=Causal()), torch.randn(2, 6, 32)
    cache = KVCache(8)
    with torch.inference_mode():
        module(x, cache=cache)
    cache.crop(4)
    assert (len(cache), cache.pos.tolist()[0]) == (4, [0, 1, 2, 3, -1, -1, -1, -1])
    with torch.no_grad():  # what inference mode made is written to outside of it
        torch.testing.assert_close(module(x[:, 4:], cache=cache), module(x)[:, 4:])
    cache.crop(0)
    assert not cache.begun
    with refusal("expected a number of tokens from 0 to 0, got 1"):
        cache.crop(1)


@pytest.mark.usefixtures("unchecked")
def test_sizes_and_dtypes_that_are_none() -> None:
    for wrong, got in ((0, ", got 0"), (-1, ", got -1"), (2.5, ", a whole number, got 2.5")):
        with refusal(f"expected a cache's size of at least 1 token{got}"):
            KVCache(wrong)
    for wrong in (torch.int32, "int8", int):
        with refusal(f"expected dtype as torch.int8, a floating dtype or None, got {wrong!r}"):
            KVCache(dtype=wrong)


def test_stick_breaking_with_the_remainder_needs_a_cache_that_grows() -> None:
    module, x = Attention(16, 2, position="stickbreaking(remainder=True)", mask=Causal()), torch.randn(1, 3, 16)
    cache = KVCache(8)
    module(x, cache=cache)
    with refusal(
        "expected a cache that grows, because stickbreaking(remainder=True) looks for the query's own key at the end, "
        "got one with a size: make it without size"
    ):
        module(x, cache=cache)


# --- a cache with a dtype of its own ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 80])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float64])
def test_eight_bits_are_as_exact_as_they_say(given: torch.dtype, size: int | None) -> None:
    k = (torch.randn(2, 3, 70, 16) * torch.logspace(-20, 10, 70)[:, None]).to(given)
    cache, plain = KVCache(size, torch.int8), KVCache()
    for held in (cache, plain):
        held.append(k[:, :, :69], -k[:, :, :69], torch.arange(69)[None])
    tokens = cache.append(k[:, :, 69:], -k[:, :, 69:], torch.tensor([[69]]))
    plain.append(k[:, :, 69:], -k[:, :, 69:], torch.tensor([[69]]))
    assert tokens.k.dtype is cache.k.dtype is given
    bound = k.abs().amax(-1, keepdim=True).double() / 254
    rounding = torch.finfo(given).eps
    for found, expected in ((cache.k[:, :, :70], k), (cache.v[:, :, :70], -k), (tokens.k[:, :, :70], k)):
        error = (found.double() - expected.double()).abs()
        assert bool((error <= bound * (1 + 1e-5) + rounding * expected.double().abs()).all())
        assert bool((error[:, :, :69].amax(-1) > 0).all())  # it was rounded
    assert torch.equal(tokens.k[:, :, 69], k[:, :, 69])  # tokens count in their own call as they came
    if given is torch.float32 and size is None:  # 16 numbers and a scale, positions beside
        assert cache.nbytes < 0.35 * plain.nbytes


def test_zeros_and_what_is_not_finite_survive_eight_bits() -> None:
    k = torch.zeros(1, 1, 3, 4)
    k[0, 0, 1, 2], k[0, 0, 2, 0] = torch.nan, torch.inf
    cache = KVCache(dtype=torch.int8)
    cache.append(k, k, torch.arange(3)[None])
    assert torch.equal(cache.k[0, 0, 0], torch.zeros(4))
    assert not bool(cache.k[0, 0, 1:].isfinite().any())


def test_a_model_decodes_from_eight_bits_nearly_as_from_all() -> None:
    torch.manual_seed(0)
    model = Transformer(50, 64, 3, 4, position="rotary").eval()
    tokens = torch.randint(50, (2, 40))
    logits = {}
    with torch.no_grad():
        for dtype in (None, torch.bfloat16, torch.int8):
            cache = model.new_cache(dtype=dtype)
            parts = [model(part, cache=cache) for part in tokens.split([20] + [1] * 20, 1)]
            logits[dtype] = torch.cat(parts, 1).log_softmax(-1)
            assert torch.equal(parts[0], model(tokens[:, :20]))
    for dtype in (torch.bfloat16, torch.int8):
        assert 0 < float((logits[dtype] - logits[None]).abs().mean()) < 0.01
    assert model.new_cache(dtype=torch.int8).layers[0].dtype is torch.int8


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
@pytest.mark.parametrize("size", [None, 12])
def test_gradients_of_the_tokens_of_a_call(dtype: torch.dtype, size: int | None) -> None:
    """What is cached is a constant, the tokens of the call are exact: as if the constant had been given."""
    module = Attention(32, 4, position="alibi", mask=Causal())
    x = torch.randn(2, 9, 32)
    cache = KVCache(size, dtype)
    with torch.no_grad():
        module(x[:, :6], cache=cache)
    k, v = cache.k[:, :, :6].clone(), cache.v[:, :, :6].clone()
    plain = KVCache()
    plain.append(k, v, torch.arange(6)[None])
    results = []
    for held in (cache, plain):
        new = x[:, 6:].clone().requires_grad_()
        out = module(new, cache=held)
        results.append((out, *torch.autograd.grad(out.square().sum(), [new, *module.parameters()])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
