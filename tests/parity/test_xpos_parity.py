"""xPos against rotary-embedding-torch, and against the paper's formula written anew, one pair of tokens at a time.

Only scores can be compared: queries and keys depend on a centre, which cancels.

Held against: rotary-embedding-torch.
"""

from __future__ import annotations

import cmath
import copy
import itertools

import pytest
import torch
from common import attention, refusal
from rotary_embedding_torch import RotaryEmbedding
from torch import Tensor

from headway import Attention, Causal, KVCache
from headway.positions import XPos

HEADS, TOKENS, WIDTH = 3, 40, 16


def formula(position: XPos, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """Each score as Σ_i ζ_i^(n/S) · Re(q_i · conj(k_i) · e^(inω_i)), with pairs as complex numbers."""
    r = int(position.fraction * q.shape[-1]) // 2 * 2
    out = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.float64)
    for batch, head, i, j in itertools.product(*map(range, out.shape)):
        x, y = q[batch, head, i].tolist(), k[batch, head, j].tolist()
        n = int(q_pos[0, i] - k_pos[0, j])
        total = sum(a * b for a, b in zip(x[r:], y[r:], strict=True))
        for pair in range(r // 2):
            a, b = (pair, pair + r // 2) if position.pairing == "half" else (2 * pair, 2 * pair + 1)
            zeta = (2 * pair / r + 0.4) / 1.4
            turn = cmath.exp(1j * n * position.base ** (-2 * pair / r))
            if n > -2000:  # towards the future it grows, out of a float's range at last
                total += zeta ** (n / position.scale_base) * (complex(x[a], x[b]) * complex(y[a], -y[b]) * turn).real
        out[batch, head, i, j] = total
    return out


def scores(position: XPos, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    q, k = position.rotate(q, k, q_pos, k_pos)
    q, k, terms = position.prepare(q, k, q_pos, k_pos, 1.0)
    assert terms == ()
    return q @ k.transpose(-1, -2)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("scale_base", [512, 50])
def test_scores_and_gradients_of_rotary_embedding_torch(scale_base: int, fraction: float) -> None:
    r = int(WIDTH * fraction)
    theirs = RotaryEmbedding(dim=r, use_xpos=True, xpos_scale_base=scale_base, cache_if_possible=False).double()
    theirs.freqs.data = torch.tensor([10000.0 ** (-2 * i / r) for i in range(r // 2)], dtype=torch.float64)
    theirs.scale = torch.tensor([(2 * i + 0.4 * r) / (1.4 * r) for i in range(r // 2)], dtype=torch.float64)
    # theirs sizes a vector as a whole, so the rest of a partly rotated head is cut off
    q, k = torch.randn(2, 2, HEADS, TOKENS, r, dtype=torch.float64, requires_grad=True)
    whole = [torch.cat((x, x.new_zeros(2, HEADS, TOKENS, WIDTH - r)), -1) for x in (q, k)]
    ours = XPos(fraction=fraction, pairing="interleaved", scale_base=float(scale_base))
    pos = torch.arange(TOKENS)[None]
    got = scores(ours, *whole, pos, pos)
    turned = theirs.rotate_queries_and_keys(q, k)
    expected = turned[0] @ turned[1].transpose(-1, -2)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(got)
    for g, e in zip(
        torch.autograd.grad((got * weight).sum(), (q, k)),
        torch.autograd.grad((expected * weight).sum(), (q, k)),
        strict=True,
    ):
        torch.testing.assert_close(g, e, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("start", [0, 10**6])
def test_the_formula_of_the_paper(start: int, pairing: str) -> None:
    q_pos, k_pos = torch.tensor([[3, 700, 12]]) + start, torch.tensor([[0, 3, 950, 12, 11]]) + start
    q, k = torch.randn(1, 2, 3, 10, dtype=torch.float64), torch.randn(1, 2, 5, 10, dtype=torch.float64)
    position = XPos(base=500.0, fraction=0.8, pairing=pairing, scale_base=300.0)
    got = scores(position, q, k, q_pos, k_pos)
    torch.testing.assert_close(got, formula(position, q, k, q_pos, k_pos), rtol=1e-9, atol=1e-9)


def test_far_decoding_is_finite_and_exact() -> None:
    """In float32, a million tokens from the beginning, with a cache that reaches back to it."""
    module = attention("xpos", mask=Causal()).float()
    x = torch.randn(1, 8, 48)
    pos = torch.tensor([[0, 1, 500_000, 500_001, 999_998, 999_999, 1_000_000, 1_000_001]])
    for pieces in ([1] * 8, [2, 2, 4], [8]):
        cache, done, out = KVCache(), 0, []
        for piece in x.split(pieces, 1):
            out.append(module(piece, pos=pos[:, done : done + piece.shape[1]], cache=cache))
            done += piece.shape[1]
        exact = copy.deepcopy(module).double()
        q, k, v = (getattr(exact, name)(x.double()).view(1, 8, -1, 8).transpose(1, 2) for name in "qkv")
        k, v = k.repeat_interleave(3, 1), v.repeat_interleave(3, 1)
        score = formula(exact.position, q, k, pos, pos) * 8**-0.5
        weight = score.masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf).softmax(-1)
        expected = exact.o((weight @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(torch.cat(out, 1).double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_call_over_any_span_in_any_dtype(dtype: torch.dtype) -> None:
    """Blocks of queries, each with its own centre, against the formula: in order, shuffled, padded, packed."""
    position = XPos(pairing="interleaved")
    q_pos = torch.tensor([[300_000, 0, 5_000, -1, 40_000, 999_999, 16_000, 300_100, 1_000_000]])
    q, k = torch.randn(1, 2, 9, 6).to(dtype), torch.randn(1, 2, 9, 6).to(dtype)
    expected = formula(position, q.double(), k.double(), q_pos, q_pos)
    got = scores(position, q.float(), k.float(), q_pos, q_pos)
    past = (q_pos[0, :, None] >= q_pos[0]) & (q_pos[0] >= 0) & (q_pos[0, :, None] >= 0)
    torch.testing.assert_close(got[..., past].double(), expected[..., past], rtol=1e-5, atol=1e-5)
    assert got.isfinite().all()
    wide_q, wide_k, _ = position.prepare(*position.rotate(q, k, q_pos, q_pos), q_pos, q_pos, 1.0)
    assert wide_q.dtype is dtype
    assert wide_q.isfinite().all()
    assert wide_k.isfinite().all()
    rough = (wide_q.double() @ wide_k.double().mT)[..., past]
    torch.testing.assert_close(rough, expected[..., past], rtol=0.0, atol=20 * torch.finfo(dtype).eps)


def test_a_text_of_40_000_tokens_in_one_call() -> None:
    """Causal attention of far more tokens than one centre serves, in a wide stride; NaN before."""
    module = attention("xpos", mask=Causal())
    x, pos = torch.randn(1, 60, 48).double(), torch.arange(0, 60_000, 1000)[None]
    expected = module(x, pos=pos)
    got = copy.deepcopy(module).float()(x.float(), pos=pos)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_what_overflows_is_refused_with_the_limit() -> None:
    q, far = torch.randn(1, 2, 3, 8), torch.tensor([[0, 100, 50_000]])
    with refusal(
        "expected keys at most 28608 tokens after the first query, because xpos lets scores grow towards the future, "
        "got one 50000 after: use a causal mask, or a larger scale_base"
    ):
        Attention(8, 2, position="xpos")(torch.randn(1, 3, 8), pos=far)
    assert Attention(8, 2, position="xpos")(torch.randn(1, 3, 8), pos=far // 2).isfinite().all()
    many = torch.arange(65)[None] * 30_000
    with refusal(
        "expected the queries of one call in at most 64 stretches of 28608 tokens, beyond which xpos overflows, got "
        "65: process the text in pieces, with a cache"
    ):
        scores(XPos(), q[:, :, :1].expand(-1, -1, 65, -1), q[:, :, :1].expand(-1, -1, 65, -1), many, many)
    module, cache, x = attention("xpos", mask=Causal()), KVCache(), torch.randn(1, 65, 48).double()
    parts = [module(part, pos=at, cache=cache) for part, at in zip(x.split(40, 1), many.split(40, 1), strict=True)]
    assert torch.cat(parts, 1).isfinite().all()


def test_a_sequence_whose_queries_are_padding_gives_no_nan() -> None:
    module = attention("xpos", mask=Causal()).float()
    cache = KVCache()
    module(torch.randn(2, 3, 48), pos=torch.arange(10**6, 10**6 + 3), cache=cache)
    out = module(torch.randn(2, 1, 48), pos=torch.tensor([[-1], [10**6 + 3]]), cache=cache)
    assert out.isfinite().all()
    assert not out[0].any()
