"""A cache changes nothing but the work: gradients of the new tokens, padding anywhere, and tokens that were dropped."""

from __future__ import annotations

import pytest
import torch
from common import attention, close, every_method, every_place, transformer
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import functional_call

from headway import Attention, Causal, HeadwayError, KVCache, Transformer
from headway.masks import Dense
from headway.positions import parse

N, OLD = 10, 6


def filled(module: Attention | Transformer, old: Tensor, pos: Tensor | None = None) -> object:
    """A cache filled by the module with these tokens."""
    cache = module.new_cache() if isinstance(module, Transformer) else KVCache()
    module(old, pos=pos, cache=cache)
    return cache


def gradients(module: torch.nn.Module, out: Tensor) -> list[Tensor]:
    """Those of one weighted sum, by every parameter."""
    weight = torch.linspace(-1.0, 2.0, out.numel(), dtype=out.dtype).view(out.shape)
    parameters = list(module.parameters())
    found = torch.autograd.grad((out * weight).sum(), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


# --- gradients --------------------------------------------------------------------------------------------------------


def check_gradients(module: Attention | Transformer, given: Tensor, *inputs: Tensor) -> None:
    """By differences: the tokens before come from the module as it is, those of the call from changed parameters.

    All parameters and inputs change at once, along one random direction: a gradient that is missing is missed there.
    """
    parameters = list(module.parameters())
    # torch finds tied weights by itself too, but puts them back in the order of a set: one that is reached through two
    # names of a module then stays changed, or does not, as the hashes of names happen to be
    places = {
        f"{at}.{name}".removeprefix("."): next(i for i, each in enumerate(parameters) if each is own)
        for at, part in module.named_modules()
        for name, own in part.named_parameters(recurse=False)
    }
    leaves = [p.detach() for p in (*parameters, *inputs)]
    directions = [torch.randn_like(leaf) for leaf in leaves]

    def call(step: Tensor) -> Tensor:
        changed = [leaf + step * direction for leaf, direction in zip(leaves, directions, strict=True)]
        weights, x = changed[: len(parameters)], changed[len(parameters) :] or [given[:, OLD:]]
        cache = filled(module, given[:, :OLD])
        named = {name: weights[i] for name, i in places.items()}
        return functional_call(module, named, tuple(x), {"cache": cache}, tie_weights=False)

    assert gradcheck(call, torch.zeros((), dtype=torch.float64, requires_grad=True), fast_mode=True)


@every_method("gradients through a filled cache", layers=True)
def test_new_tokens_have_their_gradients(spec: str) -> None:
    module, x = attention(spec, 2, 1, mask=Causal()), torch.randn(2, N, 16).double()
    check_gradients(module, x, x[:, OLD:])


@every_place("gradients through a filled cache", models=True)
def test_those_of_a_transformer(spec: str) -> None:
    check_gradients(transformer(spec, dim=8, heads=1, vocab=5, hidden=8), torch.randint(5, (1, 8)))


@every_method("gradients through a filled cache", variants=False, layers=True)
def test_segments_in_a_row(spec: str) -> None:
    """A backward pass after all segments is the sum of one after each: no later call changes what an earlier saved."""
    module, x = attention(spec, mask=Causal()), torch.randn(2, N, 48).double()
    results = []
    for at_once in (True, False):
        cache, outs, sums = KVCache(), [], []
        for part in x.split([4, 1, 1, 4], 1):
            outs.append(module(part, cache=cache))
            if not at_once:
                sums.append(gradients(module, outs[-1]))
        sums = [gradients(module, out) for out in outs] if at_once else sums
        results.append([sum(each) for each in zip(*sums, strict=True)])
        close(torch.cat(outs, 1), module(x))
    for one, other in zip(*results, strict=True):
        close(one, other)


@every_method("gradients through a filled cache", variants=False, layers=True)
@pytest.mark.parametrize("trained", ["q", "position"])
def test_a_module_that_is_trained_in_part(spec: str, trained: str) -> None:
    """What is saved for a backward pass is no view of memory that later calls write to."""
    module, x = attention(spec, mask=Causal()).requires_grad_(False), torch.randn(1, N, 48).double()
    getattr(module, trained).requires_grad_(True)
    if not any(p.requires_grad for p in module.parameters()):
        return
    cache = filled(module, x[:, :OLD])
    out = module(x[:, OLD:8], cache=cache)
    module(x[:, 8:], cache=cache)
    if out.requires_grad:
        out.sum().backward()


def test_keys_values_and_marks_are_those_of_the_full_pass() -> None:
    """By hand: the cached part of keys and values detached in one call of attend."""
    from headway import attend

    module, x = attention("rotary", mask=Causal()), torch.randn(2, N, 48).double()
    pos = torch.arange(N)[None]
    q, k, v = (f(x).unflatten(-1, (-1, 8)).transpose(1, 2) for f in (module.q, module.k, module.v))
    q, k = module.position.rotate(q, k, pos, pos)
    k, v = (torch.cat((y[:, :, :OLD].detach(), y[:, :, OLD:]), 2) for y in (k, v))
    heads = attend(q[:, :, OLD:], k, v, mask=Causal(), q_pos=pos[:, OLD:], k_pos=pos)
    expected = module.o(heads.transpose(1, 2).flatten(2))
    got = module(x[:, OLD:], cache=filled(module, x[:, :OLD]))
    close(got, expected)
    for one, other in zip(gradients(module, got), gradients(module, expected), strict=True):
        close(one, other)
        assert one.any()


def test_without_gradients_a_cache_is_not_copied() -> None:
    module, x = attention("rotary", mask=Causal()), torch.randn(1, N, 48).double()
    with torch.no_grad():
        cache = filled(module, x[:, :OLD])
        k, v = torch.randn(2, 1, 2, 1, 8).double()
        tokens = cache.append(k, v, torch.tensor([[OLD]]))
        assert tokens.k.data_ptr() == cache.k.data_ptr()


def test_what_inference_mode_cached_goes_on_outside_of_it() -> None:
    module, x = attention("fox", mask=Causal()), torch.randn(1, N, 48).double()
    with torch.inference_mode():
        cache = filled(module, x[:, :5])
        module(x[:, 5:OLD], cache=cache)
    out = module(x[:, OLD:], cache=cache)
    close(out, module(x)[:, OLD:])
    out.sum().backward()


# --- padding ----------------------------------------------------------------------------------------------------------

LENGTHS = (3, 7)


@every_method("right padding", variants=False, layers=True)
def test_right_padding_then_decoding_is_the_text_without_padding(spec: str) -> None:
    module, x = attention(spec, mask=Causal()), torch.randn(2, 12, 48).double()
    pos = torch.stack([torch.where(torch.arange(7) < n, torch.arange(7), -1) for n in LENGTHS])
    cache = filled(module, x[:, :7], pos)
    got = torch.cat([module(part, cache=cache) for part in x[:, 7:].split([1, 3, 1], 1)], 1)
    found = gradients(module, got)
    texts = [torch.cat((x[b : b + 1, :n], x[b : b + 1, 7:]), 1) for b, n in enumerate(LENGTHS)]
    outs = []
    for text, n in zip(texts, LENGTHS, strict=True):
        close(got[len(outs)], module(text)[0, n:])
        own = filled(module, text[:, :n])
        outs.append(torch.cat([module(part, cache=own) for part in text[:, n:].split([1, 3, 1], 1)], 1))
    for g, e in zip(found, gradients(module, torch.cat(outs)), strict=True):
        close(g, e, 1e-8)


@every_method("right padding", layers=True)
def test_padding_anywhere_is_none(spec: str) -> None:
    module = attention(spec, mask=Causal())
    x = torch.randn(1, 9, 48, dtype=torch.float64, requires_grad=True)
    pos = torch.tensor([[-1, 0, 1, -1, -1, 2, 3, -1, 4]])
    real = pos[0] >= 0
    got, expected = module(x, pos=pos)[:, real], module(x[:, real])
    close(got, expected)
    for g, e in zip(gradients(module, got), gradients(module, expected), strict=True):
        close(g, e, 1e-8)


@every_place("right padding", models=True)
def test_a_transformer_s_right_padding(spec: str) -> None:
    model, tokens = transformer(spec, dim=8, heads=1), torch.randint(17, (2, 10))
    pos = torch.stack([torch.where(torch.arange(7) < n, torch.arange(7), -1) for n in LENGTHS])
    cache = filled(model, tokens[:, :7], pos)
    got = torch.cat([model(part, cache=cache) for part in tokens[:, 7:].split([1, 2], 1)], 1)
    for b, n in enumerate(LENGTHS):
        close(got[b], model(torch.cat((tokens[b : b + 1, :n], tokens[b : b + 1, 7:]), 1))[0, n:])


@every_method("documents", variants=False, layers=True)
def test_packed_documents_go_on_from_a_cache(spec: str) -> None:
    """The second document begins in the first call or in the second; padding lies between the calls."""
    from headway import Documents

    module, x = attention(spec, mask=Causal()), torch.randn(1, 9, 48).double()
    for first in (3, 4, 6):
        pos = torch.cat((torch.arange(first), torch.arange(9 - first)))[None]
        ids = torch.tensor([[0] * first + [1] * (9 - first)])
        padded, padded_ids = torch.cat((pos[:, :5], torch.full((1, 2), -1)), 1), ids[:, [0, 1, 2, 3, 4, 4, 4]]
        cache = KVCache()
        module(torch.cat((x[:, :5], x[:, :2]), 1), pos=padded, mask=Documents(padded_ids), cache=cache)
        mask = Documents(ids[:, 5:], torch.cat((padded_ids, ids[:, 5:]), 1))
        got = module(x[:, 5:], pos=pos[:, 5:], mask=mask, cache=cache)
        close(got, torch.cat((module(x[:, :first]), module(x[:, first:])), 1)[:, 5:])


# --- dropped tokens ---------------------------------------------------------------------------------------------------

EVICTIONS = {
    # which of 8 cached tokens are kept, and the position at which the text continues
    "oldest": ([3, 4, 5, 6, 7], 8),
    "middle": ([0, 1, 4, 5, 6, 7], 8),
    "all but the ends": ([0, 7], 8),
    "newest": ([0, 1, 2, 3, 4], 8),
    "oldest and newest": ([2, 3, 4, 5], 8),
    "all": ([], 8),
    "to the future": ([5, 6, 7], 11),
}
REFUSED = {"path": ("middle", "all but the ends", "newest", "oldest and newest")}
"""What a method cannot be right about, and therefore refuses: the product of PaTH would miss a reflection."""


def refused(spec: str, eviction: str) -> bool:
    return eviction in REFUSED.get(parse(spec).method_name(), ())


@every_method("eviction", layers=True)
@pytest.mark.parametrize("eviction", ["oldest and newest"])
def test_a_dropped_token_is_a_hidden_one(spec: str, eviction: str) -> None:
    evicted(spec, eviction)


@every_method("eviction", variants=False, layers=True)
@pytest.mark.parametrize("eviction", [name for name in EVICTIONS if name != "oldest and newest"])
def test_a_dropped_token_is_a_hidden_one_wherever_it_was(spec: str, eviction: str) -> None:
    evicted(spec, eviction)


def evicted(spec: str, eviction: str) -> None:
    """The rest is as in one pass in which the later queries do not see the dropped keys, which were there before."""
    kept, start = EVICTIONS[eviction]
    padded = 2 * (len(eviction) % 2)  # sometimes behind left padding
    module, x = attention(spec, mask=Causal()), torch.randn(2, padded + 12, 48).double()
    pos = torch.cat((torch.full((padded,), -1), torch.arange(8), torch.arange(start, start + 4)))[None]
    old = padded + 8
    cache = filled(module, x[:, :old], pos[:, :old])
    cache.keep(torch.tensor([padded + i for i in kept], dtype=torch.long))

    def go_on() -> Tensor:
        first, rest = slice(old, old + 1), slice(old + 1, old + 4)  # with positions, and as they go on
        return torch.cat([module(x[:, first], pos=pos[:, first], cache=cache), module(x[:, rest], cache=cache)], 1)

    if refused(spec, eviction):
        with pytest.raises(HeadwayError, match=r"^expected a cache that dropped the oldest tokens, or the newest that"):
            go_on()
        return
    seen = torch.ones(old + 4, old + 4, dtype=torch.bool)
    seen[old:, :old] = False
    seen[old:, [padded + i for i in kept]] = True
    close(go_on(), module(x, pos=pos, mask=Dense(seen[None, None]))[:, old:])


@every_method("eviction", variants=False, layers=True)
def test_rolling_back_is_the_text_without_its_end(spec: str) -> None:
    module, x = attention(spec, mask=Causal()), torch.randn(2, 12, 48).double()
    pads = torch.tensor([[2], [0]])
    cache = filled(module, x[:, :9], (torch.arange(9) - pads).clamp(min=-1))
    for index in (range(7), torch.arange(7) < 5):  # twice, without a call between
        cache.keep(index)
    got = torch.cat([module(part, cache=cache) for part in x[:, 9:].split([1, 2], 1)], 1)
    text = torch.cat((x[:, :5], x[:, 9:]), 1)
    close(got, module(text, pos=(torch.arange(8) - pads).clamp(min=-1))[:, 5:])
    cache.keep([])
    close(module(x, cache=cache), module(x))


@every_method("eviction", variants=False, layers=True)
def test_a_sliding_cache_is_a_window(spec: str) -> None:
    from headway import Window

    module, x = attention(spec, mask=Causal()), torch.randn(1, 10, 48).double()
    cache, out = KVCache(), []
    for i in range(10):
        out.append(module(x[:, i : i + 1], cache=cache))
        cache.keep(range(max(len(cache) - 3, 0), len(cache)))
    close(torch.cat(out, 1), module(x, mask=Window(3)))


@every_method("eviction", variants=False, layers=True)
def test_dropped_by_and_by(spec: str) -> None:
    """Tokens dropped at several times: the newest, then some that came after, then one before."""
    module, x = attention(spec, mask=Causal()), torch.randn(1, 12, 48).double()
    cache, seen, at = KVCache(), torch.ones(12, 12, dtype=torch.bool), list(range(12))
    held: list[int] = []
    out = []
    for calls, drop in ((at[:4], [3]), (at[4:7], [4, 6]), (at[7:8], [0]), (at[8:12], [])):
        part = slice(calls[0], calls[-1] + 1)
        try:
            out.append(module(x[:, part], pos=torch.arange(12)[part], cache=cache))
        except HeadwayError:
            assert refused(spec, "newest")
            return
        held += calls
        cache.keep([i for i, token in enumerate(held) if token not in drop])
        held = [token for token in held if token not in drop]
        seen[calls[-1] + 1 :, drop] = False
    close(torch.cat(out, 1), module(x, mask=Dense(seen[None, None])))


@every_place("eviction", models=True)
def test_a_transformer_s_dropped_tokens(spec: str) -> None:
    model, tokens, kept = transformer(spec), torch.randint(17, (2, 9)), [3, 4, 5]
    cache = filled(model, tokens[:, :6])
    cache.keep(kept)
    seen = torch.ones(9, 9, dtype=torch.bool)
    seen[6:, [0, 1, 2]] = False
    got = torch.cat([model(part, cache=cache) for part in tokens[:, 6:].split([1, 2], 1)], 1)
    close(got, model(tokens, mask=Dense(seen))[:, 6:])


# --- cropped and reordered --------------------------------------------------------------------------------------------

PADS = torch.tensor([[2], [0], [4]])


@every_method("crop", variants=False, layers=True)
def test_a_cropped_cache_is_one_that_never_saw_more(spec: str) -> None:
    module, x = attention(spec, mask=Causal()), torch.randn(3, 12, 48).double()
    pos = (torch.arange(12) - PADS).clamp(min=-1)
    cache = filled(module, x[:, :9], pos[:, :9])
    cache.crop(5)
    got = torch.cat([module(part, cache=cache) for part in x[:, 5:].split([3, 4], 1)], 1)
    close(got, module(x, pos=pos)[:, 5:])
    cache.crop(0)
    assert len(cache) == 0
    close(module(x, cache=cache), module(x))


@every_method("reorder", variants=False, layers=True)
def test_a_reordered_cache_goes_on_as_the_other_sequence(spec: str) -> None:
    """Also after it lost tokens, and before it loses them."""
    module, x = attention(spec, mask=Causal()), torch.randn(3, 12, 48).double()
    pos, order = (torch.arange(12) - PADS).clamp(min=-1), [2, 0, 0, 1]
    seen = torch.ones(12, 12, dtype=torch.bool)
    for when in ("never", "before", "after"):
        cache = filled(module, x[:, :8], pos[:, :8])
        if when == "before":
            cache.keep(range(5, 8))
        cache.reorder(order)
        if when == "after":
            cache.keep(range(5, 8))
        seen[8:, :5] = when == "never"
        close(module(x[order][:, 8:], cache=cache), module(x[order], pos=pos[order], mask=Dense(seen))[:, 8:])


@every_place("crop", models=True)
def test_a_transformer_s_cropped_and_reordered_cache(spec: str) -> None:
    model, tokens, order = transformer(spec), torch.randint(17, (3, 12)), [2, 0, 0, 1]
    whole, cache = model(tokens), filled(model, tokens[:, :9])
    cache.crop(5)
    close(model(tokens[:, 5:8], cache=cache), whole[:, 5:8])
    cache.reorder(order)
    close(model(tokens[order][:, 8:], cache=cache), whole[order][:, 8:])
    cache.crop(0)
    close(model(tokens, cache=cache), whole)


@pytest.mark.parametrize("spec", ["path", "dapev2", "fox", "selectiverotary"])
def test_padding_hides_no_dropped_token(spec: str) -> None:
    """Padding beside the dropped token, in the middle or at the end, stays in the cache."""
    module, x = attention(spec, mask=Causal()), torch.randn(1, 7, 48).double()
    for pos, kept in (([0, 1, -1, 2, 3, 4, 5], [0, 2, 3]), ([0, 1, 2, -1, 3, 4, 5], [0, 1, 3])):
        cache = filled(module, x[:, :4], torch.tensor(pos[:4]))
        cache.keep(kept)
        if refused(spec, "middle"):
            with pytest.raises(HeadwayError, match=r"^expected a cache that dropped the oldest"):
                module(x[:, 4:], pos=torch.tensor(pos[4:]), cache=cache)
            continue
        seen = torch.ones(7, 7, dtype=torch.bool)
        seen[4:, [i for i in range(4) if i not in kept]] = False
        got = module(x[:, 4:], pos=torch.tensor(pos[4:]), cache=cache)
        close(got, module(x, pos=torch.tensor(pos), mask=Dense(seen[None, None]))[:, 4:])
