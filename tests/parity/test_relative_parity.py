"""Methods that add a function of distance to scores, against independent implementations and their papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from common import randomise
from torch import Tensor, nn
from torch.func import functional_call
from transformers import XLNetConfig
from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetRelativeAttention

from headway import Attention, Causal, HeadShape
from headway.positions import Look, Music, TransformerXL

PADDED = torch.tensor([[-1, -1, 0, 1, 2, 3, 40], [0, 1, 2, 3, 4, 5, 6]])


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def same_with_gradients(got: Tensor, expected: Tensor, leaves: Sequence[Tensor]) -> None:
    """Values, and the gradients of one random loss by all leaves, which both were computed from."""
    close(got, expected)
    weight = torch.randn_like(got)
    found, wanted = (torch.autograd.grad((out * weight).sum(), leaves, retain_graph=True) for out in (got, expected))
    for g, e in zip(found, wanted, strict=True):
        close(g, e)
        assert e.any()


def module(position: Any, heads: int = 3, kv_heads: int | None = None, **given: Any) -> Attention:
    """A float64 Attention of head width 4, all parameters random."""
    ours = Attention(8, heads, kv_heads=kv_heads, head_dim=4, position=position, **given).double()
    randomise(ours)
    return ours


def by_pairs(ours: Attention, x: Tensor, pos: Tensor, causal: bool, score: Callable[..., Tensor]) -> Tensor:
    """Attention written pair by pair: score(h, q_i, k_j, i, j) in loops, for positions pos (B, N), -1 is padding."""
    width, groups = ours.shape.head_dim, ours.shape.heads // ours.shape.kv_heads
    batch = []
    for b in range(len(x)):
        q, k, v = (linear(x[b]).unflatten(-1, (-1, width)) for linear in (ours.q, ours.k, ours.v))
        rows = []
        for i in range(x.shape[1]):
            here = int(pos[b, i])
            seen = [j for j in range(x.shape[1]) if here >= 0 <= pos[b, j] and not (causal and pos[b, j] > here)]
            heads = []
            for h in range(ours.shape.heads):
                if not seen:
                    heads.append(torch.zeros(width).double())
                    continue
                scores = [score(h, q[i, h], k[j, h // groups], here, int(pos[b, j])) for j in seen]
                weights = torch.stack(scores).softmax(0)
                heads.append(torch.stack([v[j, h // groups] for j in seen]).T @ weights)
            rows.append(torch.cat(heads))
        batch.append(torch.stack(rows))
    return ours.o(torch.stack(batch))


def as_written(position: Any, score: Callable[..., Tensor], causal: bool, kv_heads: int = 3) -> None:
    """A method in Attention, padded, with gaps, is its formula pair by pair, in values and all gradients.

    Args:
        position: the method.
        score: of (position, h, q, k, i, j); Attention's scale is 1/√4.
        causal: whether the future is masked.
        kv_heads: key heads, of three.
    """
    ours = module(position, kv_heads=kv_heads, mask=Causal() if causal else None)
    x = torch.randn(2, 7, 8, dtype=torch.float64, requires_grad=True)
    x_zeroed = x.masked_fill((PADDED < 0)[..., None], 0.0)
    expected = by_pairs(ours, x_zeroed, PADDED, causal, lambda *pair: score(ours.position, *pair))
    same_with_gradients(ours(x, pos=PADDED), expected, [x, *ours.parameters()])


# --- Transformer-XL -----------------------------------------------------------------------------------------------


def sinusoid(n: int, dim: int) -> Tensor:
    angles = [n / 10000 ** (2 * m / dim) for m in range(dim // 2)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)


@pytest.mark.parametrize(("causal", "two_sided", "kv_heads"), [(True, False, 3), (True, False, 1), (False, True, 3)])
@pytest.mark.parametrize("clip", [1024, 3])
def test_transformerxl_as_its_paper_writes_it(causal: bool, two_sided: bool, kv_heads: int, clip: int) -> None:
    """A = q·k + q·W r + u·k + v·W r, all divided by √d."""

    def score(position: Any, h: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
        r = position.weight[h] @ sinusoid(max(-clip, min(clip, i - j)), 8)
        return (q @ k + q @ r + position.u[h] @ k + position.v[h] @ r) / 2

    as_written(TransformerXL(clip=clip, bidirectional=two_sided), score, causal, kv_heads)


@pytest.mark.parametrize("clip", [-1, 20])
@pytest.mark.parametrize("memory", [0, 9])
def test_transformerxl_two_sided_is_xlnet(clip: int, memory: int) -> None:
    """XLNet's r_w_bias is u and its r_r_bias v; its sinusoids are made in float32, so exact ones are handed to it."""
    dim, heads, tokens = 24, 3, 37
    config = XLNetConfig(d_model=dim, n_head=heads, clamp_len=clip, dropout=0.0, mem_len=None, n_layer=1, vocab_size=3)
    theirs = XLNetRelativeAttention(config).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    theirs.layer_norm = nn.Identity()
    ours = Attention(dim, heads, position=TransformerXL(clip=clip if clip > 0 else 1000, bidirectional=True)).double()
    weights = {f"{name}.weight": getattr(theirs, name).reshape(dim, dim).T for name in "qkv"}
    weights |= {"o.weight": theirs.o.reshape(dim, dim), "position.weight": theirs.r.permute(1, 2, 0)}
    weights |= {"position.u": theirs.r_w_bias, "position.v": theirs.r_r_bias}
    whole = torch.randn(2, memory + tokens, dim, dtype=torch.float64, requires_grad=True)
    x, length = whole[:, memory:], memory + tokens
    distances = torch.arange(length, -tokens, -1)
    distances = distances.clamp(-clip, clip) if clip > 0 else distances
    r = torch.stack([sinusoid(int(n), dim) for n in distances])[:, None]
    close(r.float(), XLNetModel(config).relative_positional_encoding(tokens, length), 1e-4)
    mems = whole[:, :memory].transpose(0, 1) if memory else None
    expected = theirs(x.transpose(0, 1), None, None, None, r, None, mems=mems)[0].transpose(0, 1) - x
    pos = torch.arange(length)
    got = functional_call(ours, weights, (x,), {"context": whole, "pos": pos[memory:], "context_pos": pos})
    unused = (theirs.r_s_bias, theirs.seg_embed)
    same_with_gradients(got, expected, [whole, *(p for p in theirs.parameters() if all(p is not u for u in unused))])


def test_transformerxl_maps_few_queries_as_it_maps_many() -> None:
    position = TransformerXL(bidirectional=True).attach(HeadShape.of(48, 6)).double()
    randomise(position)
    q, k = torch.randn(2, 6, 30, 8).double(), torch.randn(2, 6, 40, 8).double()
    q_pos, k_pos = torch.arange(5, 35)[None], torch.arange(40)[None]
    many = position.terms(Look(q, k, q_pos, k_pos, 0.3))[1].tile(q_pos, k_pos)
    for i in range(0, 30, 7):
        row = slice(i, i + 1)
        few = position.terms(Look(q[:1, :, row], k[:1], q_pos[:, row], k_pos, 0.3))[1].tile(q_pos[:, row], k_pos)
        close(few, many[:1, :, row])


# --- Music Transformer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [100, 2])
@pytest.mark.parametrize("kv_heads", [3, 1])
def test_music_as_its_paper_writes_it(clip: int, kv_heads: int) -> None:
    """q·(k + E_n)/√d, E of each head its own, n clipped."""

    def score(position: Any, h: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
        return q @ (k + position.table[h, min(i - j, clip)]) / 2

    as_written(Music(clip=clip), score, True, kv_heads)


def test_music_is_the_papers_skewing() -> None:
    """S_rel = Skew(Q Eᵀ): pad a column on the left, reshape to (L+1, L), drop the first row."""
    tokens, heads = 50, 3
    position = Music(clip=tokens - 1).attach(HeadShape.of(24, heads)).double()
    randomise(position)
    q, pos = torch.randn(2, heads, tokens, 8).double(), torch.arange(tokens)[None]
    ordered = position.table.flip(1)  # the paper's E runs from the farthest, −L+1, to 0
    skewed = nn.functional.pad(q @ ordered.transpose(1, 2), (1, 0)).view(2, heads, tokens + 1, tokens)[:, :, 1:]
    (term,) = position.terms(Look(q, q, pos, pos, 1.0))
    same_with_gradients(term.tile(pos, pos).tril(), skewed.tril(), [position.table])
