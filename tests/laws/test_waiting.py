"""No call waits for a GPU: neither a method nor attention reads a value from a tensor there, forward or backward.

Tensors on torch's meta device have no values to read, so a call that would wait fails on them. Reading is offered as on
a GPU, where it is possible; backends are chosen as for one, and the kernels of ``triton`` are only their shapes.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from common import every_method, refusal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headway import Attention, KVCache, attend, functional
from headway.backends import SHIPPED, flex
from headway.backends.base import Call
from headway.masks import Blocks, Causal, Chunks, Dense, Documents, KeyPadding, Mask, Prefix, Strided, Window
from headway.positions.base import TermInputs
from headway.terms import ByDistance, DenseBias, PerKey

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is published for Linux only")
TOKENS = 30
META = {"device": "meta"}


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Meta tensors as if they were on a GPU; the backends that ran."""
    for name in SHIPPED:
        importlib.import_module(f"headway.backends.{name}")

    def readable(x: Tensor, *, anywhere: bool = False) -> bool:
        return anywhere

    for name, module in list(sys.modules.items()):
        if name.startswith("headway.") and hasattr(module, "readable"):
            monkeypatch.setattr(module, "readable", readable)
    folded, choose, ran = functional.folded, functional.choose, list[str]()

    def chosen(call: Call, backend: str) -> str:
        ran.append(choose(call, backend))
        return ran[-1]

    monkeypatch.setattr(functional, "folded", lambda call: folded(replace(call, device="cuda")))
    monkeypatch.setattr(functional, "choose", chosen)
    # it compiles, and torch.compile needs the GPU itself
    monkeypatch.setattr(flex, "refuses", lambda call: "it compiles")
    return ran


def layer(spec: str) -> Attention:
    with torch.device("meta"):
        return Attention(32, 4, kv_heads=2, position=spec, mask=Causal())


def tokens(count: int = TOKENS) -> Tensor:
    return torch.randn(2, count, 32, **META, requires_grad=True)


@pytest.mark.usefixtures("routes", "unchecked")
@every_method("waiting", variants=False)
def test_no_call_waits(spec: str) -> None:
    module = layer(spec)
    module(tokens()).sum().backward()
    cache = KVCache()
    with torch.no_grad():
        for count in (9, 1, 1):
            module.eval()(tokens(count), cache=cache)


@pytest.mark.usefixtures("routes", "unchecked")
@every_method("waiting for positions", variants=False)
def test_no_call_waits_for_its_positions(spec: str) -> None:
    pos, ids = (torch.zeros(2, TOKENS, **META, dtype=torch.long) for _ in range(2))
    layer(spec)(tokens(), pos=pos, mask=Documents(ids)).sum().backward()


@pytest.mark.usefixtures("routes", "unchecked")
def test_what_is_known_of_positions_that_nobody_gave_needs_no_look() -> None:
    x, pos = torch.empty(1, 1, TOKENS, 8, **META), torch.empty(1, TOKENS, **META, dtype=torch.long)
    known = TermInputs(x, x, pos, pos, 1.0, below=TOKENS)
    assert [len(known.offsets(512, 0)[0]), len(known.offsets(7, 3)[0])] == [TOKENS, 11]
    assert len(replace(known, below=None).offsets(512, 0)[0]) == 513
    for module, given in ((layer("learned(max_length=29)"), tokens()), (layer("randomized(longest=29)"), tokens())):
        with refusal("got 29", whole=False):
            module(given)


MASKS: dict[str, Callable[[], Mask | None]] = {
    "none": lambda: None,
    "causal": Causal,
    "window": lambda: Window(5, 3),
    "chunks": lambda: Causal() & Chunks(8),
    "prefix": lambda: Causal() | Prefix(torch.zeros(2, dtype=torch.long)),
    "strided": lambda: Window(3) | Strided(4),
    "blocks": lambda: Blocks(torch.ones(4, 4, dtype=torch.bool), 8),
    "dense": lambda: Dense(torch.ones(2, 1, TOKENS, TOKENS, dtype=torch.bool)),
    "documents": lambda: Causal() & Documents(torch.zeros(2, TOKENS, dtype=torch.long)),
    "padding": lambda: Causal() & KeyPadding(torch.ones(2, TOKENS, dtype=torch.bool)),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("mask", MASKS)
def test_no_mask_waits(mask: str, routes: list[str]) -> None:
    with torch.device("meta"):
        q, k, v = (torch.empty(2, heads, TOKENS, 16, requires_grad=True) for heads in (4, 2, 2))
        biases = torch.empty(4, 7), torch.empty(2, 4, TOKENS), torch.empty(1, 4, TOKENS, TOKENS)
        table, keys, pairs = (x.requires_grad_() for x in biases)
        terms = (ByDistance(table, 5), PerKey(keys), DenseBias(pairs))
        for pos in (None, torch.zeros(2, TOKENS, dtype=torch.long)):
            out = attend(q, k, v, mask=MASKS[mask](), terms=terms, q_pos=pos, k_pos=pos, dropout=0.1, seed=7)
            out.sum().backward()
    fused = mask in ("none", "causal", "window", "documents", "padding")
    assert ("triton" in routes) == fused


LINEAR = (
    "alibi",
    "t5",
    "kerple",
    "sandwich",
    "dynamicbias",
    "fox",
    "music(clip=3)",
    "transformerxl(clip=3)",
    "shaw(values=False)",
)


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that an operator made."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.entries = max([self.entries, *(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))])
        return out


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("spec", LINEAR)
def test_memory_grows_with_the_tokens_not_with_their_pairs(spec: str, routes: list[str]) -> None:
    largest = []
    for count in (4096, 8192):
        module, x = layer(spec), tokens(count)
        with Largest() as mode:
            module(x).sum().backward()
        largest.append(mode.entries)
    assert set(routes) == {"triton"}
    assert largest[1] <= 2.1 * largest[0]
