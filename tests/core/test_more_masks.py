"""Masks as users of other libraries bring them: each against a dense one that is written out, pair by pair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import refusal
from torch import Tensor

from headway import Attention, Causal, Dense, Transformer, Window, attend
from headway.masks import Blocks, KeyPadding, Mask, Strided, from_hf
from headway.terms import DenseBias

B, H, N, D = 2, 4, 70, 16
ROW, COL = torch.arange(N)[:, None], torch.arange(N)[None]
REAL = torch.rand(B, N, generator=torch.Generator().manual_seed(0)) > 0.3
LAYOUT = torch.rand(H, 5, 5, generator=torch.Generator().manual_seed(1)) > 0.4
PAST = COL <= ROW
BOTH = REAL[:, None, None] & PAST
LOWEST = torch.finfo(torch.float32).min
STRIDES = (((ROW - COL) % 7 == 0) | (ROW - COL <= 7)) & PAST
KINDS: dict[str, tuple[Mask, Tensor]] = {
    "strided": (Strided(7), ((ROW - COL) % 7 == 0)[None, None]),
    "sparse transformer": ((Window(7) | Strided(7)) & Causal(), STRIDES[None, None]),
    "blocks": (Blocks(LAYOUT[0], 16), LAYOUT[0][ROW // 16, COL // 16][None, None]),
    "blocks of heads": (Blocks(LAYOUT, 16), LAYOUT[:, ROW // 16, COL // 16][None]),
    "padding": (KeyPadding(REAL), REAL[:, None, None].expand(-1, -1, N, -1)),
    "padding and causal": (Causal() & KeyPadding(REAL), BOTH),
    "padding or causal": (Causal() | KeyPadding(REAL), REAL[:, None, None] | PAST),
    "padding twice": (KeyPadding(REAL) & Causal() & KeyPadding(REAL.flip(1)), BOTH & REAL.flip(1)[:, None, None]),
    "padding of one sequence": (KeyPadding(REAL[:1]) & Window(9), REAL[:1, None, None] & PAST & (ROW - COL <= 9)),
    "three axes": (Dense(REAL[:, None] & PAST), (REAL[:, None] & PAST)[:, None]),
    "of transformers": (Causal() & from_hf(REAL.long()), BOTH),
    "booleans of transformers": (from_hf(BOTH), BOTH),
    "floats of transformers": (
        from_hf(torch.zeros(B, 1, N, N).masked_fill(~(BOTH), LOWEST)),
        BOTH,
    ),
}  # fmt: skip


def run(backend: str, dtype: torch.dtype, **options: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    leaves = [
        torch.randn(B, H, N, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in "qkv"
    ]
    out = attend(*leaves, backend=backend, **options)
    out.backward(torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_is_what_it_says(kind: str) -> None:
    mask, written_out = KINDS[kind]
    expected = run("reference", torch.float64, mask=Dense(written_out))
    for backend in ("reference", "tiled", "auto"):
        for dtype, eps in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
            for got, wanted in zip(run(backend, dtype, mask=mask), expected, strict=True):
                assert (got.double() - wanted).abs().max() <= eps * wanted.abs().max()


def test_padding_runs_as_fast_as_positions_do() -> None:
    from headway.functional import check, choose

    q = torch.randn(B, H, N, D)
    call = check(q, q, q, Causal() & KeyPadding(REAL), (), None, None, None, "softmax")
    assert choose(call, "auto") == "native"


def test_a_mask_of_floats_is_added() -> None:
    torch.manual_seed(0)
    added = torch.randn(N, N)
    q = torch.randn(B, H, N, D)
    assert torch.equal(attend(q, q, q, mask=added), attend(q, q, q, terms=(DenseBias(added),)))
    x, attention = torch.randn(B, N, 32), Attention(32, 4, position="alibi", mask=Causal())
    assert torch.equal(attention(x, mask=added), attention(x, terms=(DenseBias(added),)))
    assert not torch.equal(attention(x, mask=added), attention(x))
    model = Transformer(vocab=9, dim=32, layers=2)
    tokens = torch.randint(0, 9, (B, N))
    hidden = torch.zeros(N, N).masked_fill(COL > ROW - 3, -torch.inf)
    assert torch.allclose(model(tokens, mask=hidden), model(tokens, mask=COL <= ROW - 3), atol=1e-5)


def test_a_bias_in_a_decoder_covers_what_is_cached() -> None:
    torch.manual_seed(0)
    bias = torch.randn(1, 4, 12, 12)
    attention, x = Attention(32, 4, position="rotary", mask=Causal()), torch.randn(1, 12, 32)
    whole = attention(x, terms=(DenseBias(bias),))
    from headway import KVCache

    cache = KVCache()
    with torch.no_grad():
        steps = [
            attention(x[:, n : n + 1], terms=(DenseBias(bias[:, :, n : n + 1, : n + 1]),), cache=cache)
            for n in range(12)
        ]
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-5)


def test_refusals() -> None:
    q = torch.randn(1, 2, 6, 8)
    with refusal("expected positions in 1 query blocks of 4 tokens, got one in block 1: give Blocks more blocks"):
        attend(q, q, q, mask=Blocks(torch.ones(1, 1, dtype=torch.bool), 4))
    with refusal(
        "expected a boolean tensor of shape (query blocks, key blocks) or (heads, query blocks, key blocks), got 3"
    ):
        Blocks(3, 4)  # type: ignore[arg-type]
    with refusal("expected a stride of at least 1 token, got 0"):
        Strided(0)
    with refusal("expected a boolean tensor of shape (batch, keys), True = a token, got torch.int64 of shape (1, 6)"):
        KeyPadding(torch.ones(1, 6).long())
    with refusal("expected an attention_mask (batch, keys) of 1 and 0, got other values"):
        from_hf(torch.tensor([[1, 2]]))
    with refusal(
        "expected an additive attention_mask of 0 and the dtype's minimum or -inf, got other values", whole=False
    ):
        from_hf(torch.randn(1, 1, 4, 4))
    with refusal("expected an attention_mask of 2 to 4 axes, got None"):
        from_hf(None)  # type: ignore[arg-type]
    with refusal(
        "expected a (batch or 1, keys) KeyPadding over 6 keys, including cached ones, got one of shape (1, 5)"
    ):
        attend(q, q, q, mask=KeyPadding(torch.ones(1, 5, dtype=torch.bool)))
