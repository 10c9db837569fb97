"""Methods that add to scores, against independent implementations: T5, ALiBi, Shaw.

Held against: transformers (T5, Bloom, MPT), x-transformers, and torch for no position. Shaw against its paper's
formula, which the published code equals.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from common import close, make, randomise
from torch import Tensor, nn
from transformers import MptConfig, T5Config
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import MptAttention, build_mpt_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention
from x_transformers.x_transformers import AlibiPositionalBias, RelativePositionBias

from headway import T5, Alibi, Attention, Causal, HeadShape, Shaw, attend
from headway.positions import TermInputs
from headway.positions.alibi import slopes

BUCKETS = [(32, 128, False), (32, 128, True), (256, 512, False), (256, 512, True), (8, 20, True), (64, 77, False)]
BUCKETS += [(32, 100, True), (16, 1000, False), (12, 31, False), (48, 300, True)]


def bias(position: Any, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """What a method of no query adds to the scores, (1, H, Q, K)."""
    q, k = (torch.zeros(1, position.shape.heads, pos.shape[1], position.shape.head_dim) for pos in (q_pos, k_pos))
    (term,) = position.terms(TermInputs(q, k, q_pos, k_pos, 1.0))
    return term.tile(q_pos, k_pos)


# --- T5 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("buckets", "far", "two_sided"), BUCKETS)
def test_t5_buckets(buckets: int, far: int, two_sided: bool) -> None:
    """A table that holds each bucket's number tells which bucket x-transformers adds at a distance."""
    position = T5(buckets=buckets, max_distance=far, bidirectional=two_sided)
    theirs = RelativePositionBias(scale=1, causal=not two_sided, num_buckets=buckets, max_distance=far, heads=1)
    with torch.no_grad():
        theirs.relative_attention_bias.weight.copy_(torch.arange(buckets)[:, None])
        assert torch.equal(position.bucket(torch.arange(-4000, 1)), theirs(1, 4001)[0, 0].long())
        n = torch.arange(1100)
        assert torch.equal(position.bucket(n - n[:, None]), theirs(1100, 1100)[0].long())


@pytest.mark.parametrize(("buckets", "far", "two_sided"), BUCKETS)
def test_t5_bias_at_every_distance(buckets: int, far: int, two_sided: bool) -> None:
    """The table saturates where the buckets do, not before: what is added is w[bucket] at any distance."""
    position = T5(buckets=buckets, max_distance=far, bidirectional=two_sided).attach(HeadShape.of(12, 3))
    randomise(position)
    k_pos = torch.arange(0, 8001)[None]
    got = bias(position, torch.tensor([[4000]]), k_pos)[0, :, 0]
    assert torch.equal(got, position.weight[:, position.bucket(k_pos[0] - 4000)])


@pytest.mark.parametrize("causal", [True, False])
def test_t5_bias_of_x_transformers(causal: bool) -> None:
    """It multiplies its bias by √d_head, because it scales scores afterwards; with scale=1 it is ours."""
    position = T5(bidirectional=not causal).attach(HeadShape.of(24, 3))
    randomise(position)
    theirs = RelativePositionBias(scale=1, causal=causal, heads=3)
    with torch.no_grad():
        theirs.relative_attention_bias.weight.copy_(position.weight.T)
    pos = torch.arange(300)[None]
    assert torch.equal(bias(position, pos[:, 150:], pos)[0], theirs(150, 300))


@pytest.mark.parametrize(("buckets", "far", "two_sided"), BUCKETS[:5])
def test_t5_attention(buckets: int, far: int, two_sided: bool) -> None:
    tokens, heads, width, dim = 200, 3, 8, 20
    config = T5Config(
        d_model=dim,
        d_kv=width,
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=far,
        dropout_rate=0.0,
        is_decoder=not two_sided,
        attn_implementation="eager",
    )
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double()
    randomise(theirs)
    ours = Attention(
        dim,
        heads,
        head_dim=width,
        position=T5(buckets=buckets, max_distance=far, bidirectional=two_sided),
        scale=1.0,
        mask=None if two_sided else Causal(),
    ).double()
    with torch.no_grad():
        for name in "qkvo":
            getattr(ours, name).weight.copy_(getattr(theirs, name).weight)
        ours.position.weight.copy_(theirs.relative_attention_bias.weight.T)
    x = torch.randn(2, tokens, dim, dtype=torch.float64)
    hidden = None
    if not two_sided:
        hidden = torch.full((1, 1, tokens, tokens), -torch.inf).double().triu(1)
    expected, got = theirs(x, mask=hidden)[0], ours(x)
    close(got, expected)
    weight = torch.randn_like(got)
    (expected * weight).sum().backward()
    (got * weight).sum().backward()
    for name in "qkvo":
        close(getattr(ours, name).weight.grad, getattr(theirs, name).weight.grad)
    close(ours.position.weight.grad, theirs.relative_attention_bias.weight.grad.T)


# --- ALiBi --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16, 20, 71, 128])
def test_alibi_slopes(heads: int) -> None:
    theirs = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)[:, 0, 1]
    close(slopes(heads).float(), theirs, 2e-6)
    close(slopes(heads).float(), AlibiPositionalBias(heads).slopes.flatten(), 2e-6)


@pytest.mark.parametrize("heads", [8, 12, 16, 6])
def test_alibi_of_bloom(heads: int) -> None:
    """BLOOM adds m·k_pos, which differs from −m·(q_pos − k_pos) by a constant per row that softmax ignores."""
    position, pos = Alibi().attach(HeadShape.of(8 * heads, heads)), torch.arange(300)[None]
    theirs = build_alibi_tensor(torch.ones(1, 300, dtype=torch.long), heads, torch.float32)[:, 0]  # (H, K)
    ours = bias(position, pos, pos)[0]
    for row in (0, 1, 130, 299):
        past = slice(0, row + 1)
        close(ours[:, row, past] - ours[:, row, :1], theirs[:, past] - theirs[:, :1], 2e-5)


@pytest.mark.parametrize("heads", [8, 16])
def test_alibi_of_mpt(heads: int) -> None:
    """MPT adds m·(k_pos − last position); where H is not a power of two it orders its slopes otherwise."""
    position, pos = Alibi().attach(HeadShape.of(8 * heads, heads)), torch.arange(300)[None]
    theirs = build_mpt_alibi_tensor(heads, 300)
    close(bias(position, pos[:, -1:], pos)[0].double(), theirs.double(), 1e-5)


@pytest.mark.parametrize("heads", [6, 12])
def test_alibi_of_mpt_has_the_same_slopes_in_another_order(heads: int) -> None:
    theirs = build_mpt_alibi_tensor(heads, 2)[:, 0, 0]
    if heads == 12:
        close(torch.sort(-theirs).values.double(), torch.sort(slopes(heads)).values, 1e-6)
    # of 8 slopes 2^(-h), MPT takes 2, 4, 6, 8, 1, 3 and the authors' code 2, 4, 6, 8, 1, 3 as well
    close(-theirs.double(), torch.cat([slopes(16 if heads == 12 else 8)[i::2] for i in (1, 0)])[:heads], 1e-6)


@pytest.mark.parametrize("heads", [8, 12, 6])
def test_alibi_attention_of_mpt(heads: int) -> None:
    dim, tokens = 8 * heads, 140
    theirs = MptAttention(MptConfig(d_model=dim, n_heads=heads), layer_idx=0).double()
    randomise(theirs)
    ours = Attention(dim, heads, position="alibi", mask=Causal()).double()
    with torch.no_grad():
        for linear, weight in zip((ours.q, ours.k, ours.v), theirs.Wqkv.weight.chunk(3), strict=True):
            linear.weight.copy_(weight)
        ours.o.weight.copy_(theirs.out_proj.weight)
    x = torch.randn(2, tokens, dim, dtype=torch.float64)
    hidden = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).triu(1)
    alibi = build_mpt_alibi_tensor(heads, tokens).double()
    expected, got = theirs(x, position_bias=alibi, attention_mask=hidden)[0], ours(x)
    close(got, expected, 1e-4)  # MPT takes softmax in float32
    weight = torch.randn_like(got)
    (expected * weight).sum().backward()
    (got * weight).sum().backward()
    close(torch.cat([ours.q.weight.grad, ours.k.weight.grad, ours.v.weight.grad]), theirs.Wqkv.weight.grad, 1e-2)
    close(ours.o.weight.grad, theirs.out_proj.weight.grad, 1e-2)


@pytest.mark.parametrize("heads", [8, 12, 6])
def test_two_sided_alibi_of_x_transformers(heads: int) -> None:
    position, pos = Alibi().attach(HeadShape.of(8 * heads, heads)), torch.arange(200)[None]
    close(bias(position, pos[:, 50:], pos), AlibiPositionalBias(heads)(150, 200)[None], 2e-6 * 200)


# --- Shaw ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_shaw_as_its_paper_writes_it(values: bool, causal: bool) -> None:
    """e_ij = x_i W^Q (x_j W^K + a^K_ij)ᵀ / √d_z and z_i = Σ α_ij (x_j W^V + a^V_ij), a_ij = w_clip(j−i, k)."""
    tokens, heads, width, clip = 11, 2, 4, 3
    ours = Attention(
        8, heads, head_dim=width, position=Shaw(clip=clip, values=values), mask=Causal() if causal else None
    ).double()
    randomise(ours)
    x = torch.randn(2, tokens, 8, dtype=torch.float64, requires_grad=True)
    rows = []
    for b in range(2):
        for i in range(tokens):
            parts = []
            for h in range(heads):
                w = ours.head(h)
                part = slice(h * width, h * width + width)
                q, k, v = (x[b] @ linear.weight[part].T for linear in (ours.q, ours.k, ours.v))
                assert torch.equal(w.q, ours.q.weight[part].T)
                seen = range(i + 1) if causal else range(tokens)
                entry = {j: max(-clip, min(clip, j - i)) + clip for j in seen}
                e = torch.stack([q[i] @ (k[j] + ours.position.key_table[entry[j]]) / math.sqrt(width) for j in seen])
                alpha = e.exp() / e.exp().sum()
                z = torch.zeros(width).double()
                for a, j in zip(alpha, seen, strict=True):
                    z = z + a * (v[j] + ours.position.value_table[entry[j]] if values else v[j])
                parts.append(z)
            rows.append(torch.cat(parts) @ ours.o.weight.T)
    expected, got = torch.stack(rows).view(2, tokens, 8), ours(x)
    close(got, expected)
    weight, wanted = torch.randn_like(got), [x, *ours.parameters()]
    for g, e in zip(
        torch.autograd.grad((got * weight).sum(), wanted),
        torch.autograd.grad((expected * weight).sum(), wanted),
        strict=True,
    ):
        close(g, e)


# --- none ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_none_is_torchs_multi_head_attention(causal: bool) -> None:
    theirs = nn.MultiheadAttention(24, 3, batch_first=True, dtype=torch.float64)
    randomise(theirs)
    ours = Attention(24, 3, mask=Causal() if causal else None, bias=True).double()
    with torch.no_grad():
        linears = (ours.q, ours.k, ours.v)
        for linear, weight, b in zip(
            linears, theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3), strict=True
        ):
            linear.weight.copy_(weight)
            linear.bias.copy_(b)
        ours.o.load_state_dict(theirs.out_proj.state_dict())
    x = torch.randn(2, 50, 24, dtype=torch.float64)
    hidden = torch.ones(50, 50, dtype=torch.bool).triu(1) if causal else None
    expected, got = theirs(x, x, x, attn_mask=hidden, need_weights=False)[0], ours(x)
    close(got, expected)
    weight = torch.randn_like(got)
    (expected * weight).sum().backward()
    (got * weight).sum().backward()
    close(torch.cat([linear.weight.grad for linear in linears]), theirs.in_proj_weight.grad)
    close(torch.cat([linear.bias.grad for linear in linears]), theirs.in_proj_bias.grad)
    close(ours.o.weight.grad, theirs.out_proj.weight.grad)


def test_none_is_torchs_function() -> None:
    q, k, v = torch.randn(3, 2, 4, 30, 8).double()
    make("none")
    close(
        attend(q, k, v, mask=Causal(), backend="reference"),
        nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
    )
