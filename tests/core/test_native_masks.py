"""Every kind of mask on the native kernels: exact in float64, forward and backward, the same bits twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import make, refusal, through
from torch import Tensor

from headway import Causal, Documents, Prefix, Window, attend
from headway.backends import native
from headway.masks import Before, Blocks, Chunks, Dense, KeyPadding, Mask, Strided
from headway.memory import peak_memory

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernel here: {native.unavailable()}")

TOKENS = 300
"""More than a tile has queries or keys."""
FEWER = 130
HEADS, KV_HEADS, WIDTH = 4, 2, 16
METHODS = [
    "none",
    "kerple",
    "shaw",
    "fire",
    "hopelorentz",
    "fox",
    "cope",
    "grapeap",
    "stickbreaking",
    "dapev2",
    "path",
    "wall",
]
"""One of each way to compute: tables, products, values, curves, decay, sums and sticks along rows, mixes, paths."""


def masks(tokens: int = TOKENS) -> dict[str, Mask]:
    number = torch.arange(tokens)
    documents = Documents((number // 110)[None])
    seen = torch.rand(tokens, tokens, generator=torch.Generator().manual_seed(3)) < 0.3
    seen[:96, :256], seen[96:192, :256] = False, True  # tiles of which nothing, or all, is seen
    blocks = torch.rand(10, 10, generator=torch.Generator().manual_seed(4)) < 0.4
    return {
        "prefix": Causal() | Prefix(10),
        "a prefix per sequence": (Causal() & documents) | Prefix([0, 130]),
        "strides": Causal() & (Window(20) | Strided(20)),
        "chunks": Causal() & Chunks(70),
        "blocks": Blocks(blocks, 32) & Causal(),
        "a tensor": Dense(seen),
        "a tensor or a window": Dense(seen.mT[None, None]) & Window(200, 100) | Window(9, 4),
        "before": Before() | Prefix(1),
        "documents twice": documents
        & Documents((number // 40)[None])
        & (Causal() | KeyPadding((number % 50 == 7)[None])),
        "nothing": Causal() & Blocks(torch.zeros(1, 1, dtype=torch.bool), tokens),
    }


BY_HEAD = {
    "blocks per head": Blocks(torch.rand(HEADS, 5, 5, generator=torch.Generator().manual_seed(5)) < 0.5, 64),
    "a tensor per head": Dense(torch.rand(2, HEADS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(6)) < 0.2),
}


def run(spec: str, inputs: list[Tensor], backend: str, **given: Any) -> list[Tensor]:
    """The output and the gradients of inputs and parameters."""
    position = make(spec, HEADS, KV_HEADS, WIDTH).to(inputs[0].dtype)
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = through(position, *leaves, attend, backend=backend, **given)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).sin().view(out.shape).to(out.dtype)
    parameters = [x for x in position.parameters() if x.requires_grad]
    found = torch.autograd.grad((out * weight).sum(), [*leaves, *parameters], allow_unused=True)
    return [out.detach(), *(x for x in found if x is not None)]


def same(spec: str, queries: int = TOKENS, keys: int = TOKENS, **given: Any) -> None:
    k_pos = given.pop("k_pos", torch.arange(keys)[None])
    given |= {"q_pos": k_pos[:, keys - queries :], "k_pos": k_pos}
    sizes = ((HEADS, queries), (KV_HEADS, keys), (KV_HEADS, keys))
    inputs = [torch.randn(2, *size, WIDTH, dtype=torch.float64) for size in sizes]
    seed = torch.random.get_rng_state()
    results = []
    for backend in ("native", "native", "reference"):
        torch.random.set_rng_state(seed)
        results.append(run(spec, inputs, backend, **given))
    for got, again, exact in zip(*results, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-8, atol=1e-9)
        assert torch.equal(got, again)


@pytest.mark.parametrize("mask", masks())
def test_exact_in_float64(mask: str) -> None:
    same("none", mask=masks()[mask])


@pytest.mark.parametrize("mask", ["a prefix per sequence", "a tensor or a window", "blocks"])
@pytest.mark.parametrize("spec", METHODS)
def test_with_every_kind_of_term(spec: str, mask: str) -> None:
    tokens = FEWER if spec in ("dapev2", "path") else TOKENS
    same(spec, tokens, tokens, mask=masks(tokens)[mask])


@pytest.mark.parametrize("spec", ["none", "kerple", "cope", "stickbreaking", "stickbreaking(remainder=True)", "dapev2"])
@pytest.mark.parametrize("queries", [1, 3, 40])
def test_new_queries_and_padding(spec: str, queries: int) -> None:
    k_pos = (torch.arange(FEWER).repeat(2, 1) - torch.tensor([[0], [27]])).clamp(min=-1)
    prefix, seen = (Causal() & Chunks(50)) | Prefix([9, 2]), Dense(masks(FEWER)["a tensor"].visible[-queries:])
    for mask in (prefix, seen | Window(3)):
        same(spec, queries, FEWER, mask=mask, k_pos=k_pos)


@pytest.mark.parametrize("name", BY_HEAD)
@pytest.mark.parametrize("spec", ["none", "cope"])
def test_heads_may_see_different_keys(spec: str, name: str) -> None:
    same(spec, mask=BY_HEAD[name] & Causal(), dropout=0.3, seed=5)


@pytest.mark.parametrize("spec", ["dapev2", "path"])
def test_heads_may_not_where_they_are_computed_together(spec: str) -> None:
    with refusal("backend 'native' cannot run this call: the mask differs between heads", whole=False):
        same(spec, mask=BY_HEAD["blocks per head"])


def test_what_it_cannot_look_up_is_refused() -> None:
    class Odd(Mask):
        """One that nobody knows."""

    q, seen = torch.randn(1, 2, 5, 16), Dense(torch.ones(5, 5, dtype=torch.bool))
    with refusal("backend 'native' cannot run this call: the mask contains more than one boolean tensor", whole=False):
        attend(q, q, q, mask=seen | seen, backend="native")
    with refusal("backend 'native' cannot run this call: the mask Odd is none of Before, Blocks, Causal", whole=False):
        attend(q, q, q, mask=Odd() | Causal(), backend="native")
    with refusal("expected positions in 1 key blocks of 4 tokens, got one in block 1", whole=False):
        attend(q, q, q, mask=Blocks(torch.ones(2, 1, dtype=torch.bool), 4), backend="native")


def test_in_images_a_window_counts_tokens() -> None:
    same("swin(height=20, width=10)", 200, 200, mask=Window(13, 5))


def test_two_threads_and_half_precision_give_the_same_bits_every_time() -> None:
    q, k, v = torch.randn(3, 1, 2, 900, 32).bfloat16()
    before, mask = torch.get_num_threads(), masks(900)["a tensor or a window"]
    try:
        torch.set_num_threads(2)
        runs = [gradients(q, k, v, mask, "native") for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(runs[0][n], other[n]) for other in runs[1:] for n in range(4))


def gradients(q: Tensor, k: Tensor, v: Tensor, mask: Mask, backend: str) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attend(*leaves, mask=mask, backend=backend)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


def test_nan_behind_the_mask_stays_there() -> None:
    q, k, v = torch.randn(3, 1, 2, 300, 16)
    mask = Causal() & Chunks(100)
    k[:, 0, 150], v[:, 1, 160] = torch.nan, torch.nan
    for got, expected in zip(gradients(q, k, v, mask, "native"), gradients(q, k, v, mask, "reference"), strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
        assert got[:, :, :100].isfinite().all()


def test_mapped_and_with_strides() -> None:
    q, k, v = torch.randn(3, 1, 2, 130, 16).transpose(2, 3).contiguous().transpose(2, 3)
    mask = (Dense(torch.rand(130, 260)[:, ::2] < 0.5) | Prefix(3)) & Chunks(30)

    def attention(q: Tensor) -> Tensor:
        return attend(q, k, v, mask=mask, backend="native")

    expected = attend(q, k, v, mask=mask, backend="reference")
    torch.testing.assert_close(torch.func.vmap(attention)(q[None])[0], expected)


def test_hidden_tiles_are_skipped_and_memory_does_not_grow_with_pairs() -> None:
    q, k, v = torch.randn(3, 1, 1, 16384, 16)
    seen = torch.zeros(64, 64, dtype=torch.bool)
    seen[range(64), range(64)] = True

    def sparse() -> None:
        attend(q, k, v, mask=Blocks(seen, 256), backend="native")

    sparse()
    assert peak_memory(sparse) < 2**25
