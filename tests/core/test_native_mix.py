"""The native kernel of a network across heads: exact in float64 on awkward calls, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from common import assert_as_exact, on_two_threads, refusal
from torch import Tensor

from headway import Causal, Documents, Window, attend
from headway.backends.native import unavailable
from headway.masks import Mask
from headway.memory import peak_memory
from headway.terms import ByDistance, MixHeads, PerKey

pytestmark = pytest.mark.skipif(unavailable("mix.cpp") is not None, reason=f"no kernel here: {unavailable('mix.cpp')}")

LEFT = 3
"""The entry of distance 0 in the tables."""


def inputs(
    taps: int, queries: int, keys: int, batch: int = 1, heads: int = 4, kv_heads: int = 2, dim: int = 8, hidden: int = 5
) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    return {
        "q": normal(batch, heads, queries, dim),
        "k": normal(batch, kv_heads, keys, dim),
        "v": normal(batch, kv_heads, keys, dim + 3),
        "table": normal(heads, 7),
        "tails": 0.1 * normal(heads, 2),
        "first": 0.4 * normal(hidden, 2 * heads, taps),
        "first_bias": normal(hidden),
        "second": 0.4 * normal(heads, hidden, taps),
    }


def run(given: dict[str, Tensor], backend: str, order: Tensor | None = None, **call: Any) -> dict[str, Tensor]:
    """The output and every gradient of a fixed weighing of it."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in given.items()}
    bias = ByDistance(leaves["table"], LEFT, leaves["tails"])
    term = MixHeads((bias,), leaves["first"], leaves["first_bias"], leaves["second"], order)
    out = attend(leaves["q"], leaves["k"], leaves["v"], terms=(term,), backend=backend, **call)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).sin_().view(out.shape).to(out.dtype)
    gradients = torch.autograd.grad((out * weight).sum(), list(leaves.values()))
    return {"out": out.detach()} | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}


def same(given: dict[str, Tensor], **call: Any) -> None:
    """Native is the reference, and itself."""
    got, again, expected = (run(given, backend, **call) for backend in ("native", "native", "reference"))
    for name, exact in expected.items():
        torch.testing.assert_close(
            got[name], exact, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert torch.equal(got[name], again[name])


def masks(tokens: int) -> dict[str, Mask | None]:
    return {
        "full": None,
        "causal": Causal(),
        "window": Window(13),
        "both sides": Window(90, 70),
        "documents": Causal() & Documents((torch.arange(tokens) // 41)[None]),
    }


@pytest.mark.parametrize("mask", list(masks(1)))
@pytest.mark.parametrize("tokens", [1, 2, 63, 113, 230])
@pytest.mark.parametrize("taps", [1, 3, 7])
def test_exact_in_float64(taps: int, tokens: int, mask: str) -> None:
    same(inputs(taps, tokens, tokens), mask=masks(tokens)[mask])


def placed(kind: str) -> dict[str, Any]:
    """Positions of 130 tokens in two sequences, and their order where neighbours in memory are none in the text."""
    n = torch.arange(130).repeat(2, 1)
    match kind:
        case "far":
            pos, order = n + 10**6, None
        case "left padded":
            pos, order = torch.stack(((n[0] - 40).clamp(min=-1), n[1])), None
        case "right padded":
            pos = torch.stack((n[0].where(n[0] < 100, -1), n[1]))
            order = (pos >= 0).cumsum(1)
        case "padded inside":
            pos = torch.stack((n[0] - 3 * (n[0] > 60), n[1]))
            pos[0, 61:64] = -1
            order = (pos >= 0).cumsum(1)
        case "evicted":
            pos = order = n + (n > 70) + 4 * (n > 99)
        case "shuffled":
            pos = order = n[:, torch.randperm(130)]
        case "shuffled and packed":
            order = n[:, torch.randperm(130)]
            ids = Documents(order // 41)
            return {"q_pos": order % 41, "k_pos": order % 41, "order": order, "mask": Causal() & ids}
        case _:
            return {"q_pos": n[:, :130] % 41, "k_pos": n % 41, "mask": masks(130)["documents"]}
    return {"q_pos": pos, "k_pos": pos, "order": order, "mask": Causal()}


KINDS = ("far", "left padded", "right padded", "padded inside", "evicted", "shuffled", "shuffled and packed", "packed")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("taps", [1, 5])
def test_tokens_anywhere(taps: int, kind: str) -> None:
    same(inputs(taps, 130, 130, batch=2, heads=3, kv_heads=3), **placed(kind))


@pytest.mark.parametrize("queries", [1, 3, 40])
@pytest.mark.parametrize("taps", [1, 3])
def test_the_last_queries(taps: int, queries: int) -> None:
    pos = torch.arange(130)[None]
    same(inputs(taps, queries, 130, dim=16), mask=Causal(), q_pos=pos[:, 130 - queries :], k_pos=pos)


@pytest.mark.parametrize("taps", [1, 3])
def test_many_heads_and_dropout(taps: int) -> None:
    """So many heads that a tile has fewer queries."""
    same(inputs(taps, 120, 120, heads=96, kv_heads=48, hidden=9), mask=Causal(), dropout=0.3, seed=3)


def test_rows_that_see_nothing_are_zero_and_pass_nothing_on() -> None:
    pos = torch.full((1, 9), -1)
    for x in run(inputs(3, 9, 9), "native", q_pos=pos, k_pos=pos, mask=Causal()).values():
        assert not x.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("taps", [1, 3])
def test_as_exact_as_plain_pytorch(taps: int, dtype: torch.dtype) -> None:
    """Errors scatter: in forty draws those of the network's gradients were 0.2 to 3.9 times plain PyTorch's, as often
    smaller as larger, and the worst of all were smaller. So the worst of several draws counts, on both sides.
    """
    found: list[list[dict[str, Tensor]]] = [[], [], []]
    for _ in range(6):
        drawn = inputs(taps, 160, 160, heads=4, kv_heads=4, hidden=32, dim=16)
        given = {name: x.to(dtype) for name, x in drawn.items()}
        found[0].append(run(given, "native", mask=Causal()))
        found[1].append(run(given, "reference", mask=Causal()))
        found[2].append(run({name: x.double() for name, x in given.items()}, "reference", mask=Causal()))
    assert_as_exact(*found, jump=1e-2)


def test_two_threads_give_the_same_bits_every_time() -> None:
    given = inputs(3, 300, 300)
    given = {name: x.float() for name, x in given.items()}
    on_two_threads(lambda: run(given, "native", mask=Causal()))


def test_memory_grows_with_tokens_and_not_with_pairs() -> None:
    def work(n: int) -> Any:
        given = {name: x.float() for name, x in inputs(3, n, n).items()}
        return lambda: run(given, "native", mask=Causal())

    short, long = (peak_memory(work(n)) for n in (512, 2048))
    assert long < 4.1 * short


def test_what_it_does_not_mix_is_refused() -> None:
    given = inputs(3, 6, 6)
    q, k, v, first, first_bias, second = (given[name] for name in ("q", "k", "v", "first", "first_bias", "second"))
    per_key, by_distance = PerKey(torch.zeros(1, 1, 6).double()), ByDistance(given["table"], LEFT)
    whole = MixHeads((by_distance,), first, first_bias, second)

    def refused(reason: str, *terms: Any, **call: Any) -> None:
        with refusal(f"backend 'native' cannot run this call: {reason}; backend='auto' finds one that can"):
            attend(q, k, v, terms=terms, backend="native", **call)

    refused("the kernel of MixHeads does not support other terms besides it", whole, per_key)
    refused(
        "the kernel of MixHeads mixes biases of the kind ByDistance, not PerKey",
        MixHeads((by_distance, per_key), first, first_bias, second),
    )
    refused(
        "the kernel of MixHeads does not support dropout where tokens are not in the order of the text",
        replace(whole, order=torch.arange(6)[None]),
        dropout=0.5,
    )
    refused("fused kernels do not support softcap=2.0", whole, softcap=2.0)
    assert attend(q, k, v, terms=(whole, per_key)).shape == (1, 4, 6, 11)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("first", (5, 6, 3), "first of MixHeads for 8 heads of content and bias"),
        ("first", (5, 8, 2), "first of MixHeads for 3 neighbouring keys (an odd number)"),
        ("first_bias", (4,), "first_bias of MixHeads for 5 hidden units"),
        ("second", (3, 5, 3), "second of MixHeads for 4 heads"),
        ("second", (4, 5, 1), "second of MixHeads for 3 neighbouring keys"),
        ("order", (1, 5), "order of MixHeads for 6 keys"),
    ],
)
def test_a_network_of_other_sizes_is_refused(name: str, shape: tuple[int, ...], expected: str) -> None:
    given = inputs(3, 6, 6)
    parts: dict[str, Any] = {part: given[part] for part in ("first", "first_bias", "second")}
    parts[name] = torch.zeros(shape, dtype=torch.long if name == "order" else torch.float64)
    term = MixHeads((ByDistance(given["table"], LEFT),), **parts)
    with refusal(f"expected the {expected}, got shape {shape}"):
        attend(given["q"], given["k"], given["v"], terms=(term,))


def test_without_a_bias_only_the_content_is_mixed() -> None:
    given = inputs(3, 50, 50)
    term = MixHeads((), given["first"], given["first_bias"], given["second"])
    got, expected = (
        attend(given["q"], given["k"], given["v"], terms=(term,), mask=Causal(), backend=backend)
        for backend in ("native", "reference")
    )
    torch.testing.assert_close(got, expected)
