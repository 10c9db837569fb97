"""Rotary against independent implementations: Llama, GPT-NeoX, GPT-J and rotary-embedding-torch.

They make their angles in float32, where position·frequency errs by 3e-5 at position 300. So their arithmetic is
compared with exact angles handed to them, in float64, and their own angles at that coarser tolerance.
"""

from __future__ import annotations

import pytest
import torch
from common import close, randomise
from rotary_embedding_torch import RotaryEmbedding
from torch import Tensor
from transformers import GPTJConfig, GPTNeoXConfig, LlamaConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention, GPTNeoXRotaryEmbedding
from transformers.models.gptj.modeling_gptj import GPTJAttention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding, apply_rotary_pos_emb

from headway import Attention, Causal, Rotary

TOKENS, DIM, HEADS, WIDTH = 300, 64, 4, 16
POS = torch.arange(TOKENS)[None]


def exact(width: int, base: float, pos: Tensor = POS) -> tuple[Tensor, Tensor]:
    """cos and sin for half-split pairs, both halves alike, float64."""
    rates = torch.tensor([base ** (-2 * i / width) for i in range(width // 2)], dtype=torch.float64)
    angles = (pos[..., None] * rates).repeat(1, 1, 2)
    return angles.cos(), angles.sin()


def hidden() -> Tensor:
    return torch.full((1, 1, TOKENS, TOKENS), -torch.inf, dtype=torch.float64).triu(1)


def compare(got: Tensor, expected: Tensor, pairs: list[tuple[Tensor, Tensor]], tolerance: float = 1e-9) -> None:
    """Values, and the gradients of pairs of parameters, by the same random loss."""
    close(got, expected, tolerance)
    weight = torch.randn_like(got)
    ours = torch.autograd.grad((got * weight).sum(), [pair[0] for pair in pairs])
    theirs = torch.autograd.grad((expected * weight).sum(), [pair[1] for pair in pairs])
    for g, e in zip(ours, theirs, strict=True):
        close(g, e, 100 * tolerance)


@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("start", [0, 10**6])
def test_half_split_pairs_of_llama(base: float, start: int) -> None:
    q, k = torch.randn(2, 2, HEADS, TOKENS, WIDTH, dtype=torch.float64)
    pos = POS + start
    got = Rotary(base=base).rotate(q, k, pos, pos)
    for g, e in zip(got, apply_rotary_pos_emb(q, k, *exact(WIDTH, base, pos)), strict=True):
        close(g, e)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_of_llama(kv_heads: int) -> None:
    config = LlamaConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        attn_implementation="sdpa",
    )
    theirs = LlamaAttention(config, 0).double()
    randomise(theirs)
    ours = Attention(DIM, HEADS, kv_heads=kv_heads, position=Rotary(base=500000.0), mask=Causal()).double()
    linears = [(getattr(ours, name).weight, getattr(theirs, f"{name}_proj").weight) for name in "qkvo"]
    with torch.no_grad():
        for own, other in linears:
            own.copy_(other)
    x = torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    expected = theirs(x, position_embeddings=exact(WIDTH, 500000.0), attention_mask=hidden())[0]
    compare(ours(x), expected, linears)
    own_angles = LlamaRotaryEmbedding(config)(x, POS)
    close(ours(x), theirs(x, position_embeddings=own_angles, attention_mask=hidden())[0], 1e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_partial_rotary_of_gpt_neox(bias: bool) -> None:
    """Its q, k and v lie head by head in one matrix."""
    config = GPTNeoXConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        attention_bias=bias,
        attn_implementation="sdpa",
        attention_dropout=0.0,
    )
    theirs = GPTNeoXAttention(config, layer_idx=0).double()
    randomise(theirs)
    ours = Attention(DIM, HEADS, position=Rotary(fraction=0.25), mask=Causal(), bias=bias).double()
    with torch.no_grad():
        by_head = theirs.query_key_value.weight.view(HEADS, 3, WIDTH, DIM)
        for index, name in enumerate("qkv"):
            getattr(ours, name).weight.copy_(by_head[:, index].reshape(DIM, DIM))
            if bias:
                own = theirs.query_key_value.bias.view(HEADS, 3, WIDTH)[:, index]
                getattr(ours, name).bias.copy_(own.reshape(DIM))
        ours.o.load_state_dict(theirs.dense.state_dict())
    x = torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    expected = theirs(x, hidden(), position_embeddings=exact(WIDTH // 4, 10000.0))[0]
    got = ours(x)
    compare(got, expected, [(ours.o.weight, theirs.dense.weight)])
    weight = torch.randn_like(got)
    (gradient,) = torch.autograd.grad(
        (theirs(x, hidden(), position_embeddings=exact(4, 10000.0))[0] * weight).sum(), theirs.query_key_value.weight
    )
    own = torch.autograd.grad((ours(x) * weight).sum(), [ours.q.weight, ours.k.weight, ours.v.weight])
    for index in range(3):
        close(own[index], gradient.view(HEADS, 3, WIDTH, DIM)[:, index].reshape(DIM, DIM), 1e-7)
    angles = GPTNeoXRotaryEmbedding(config)(x, POS)
    assert angles[0].shape[-1] == 4
    close(ours(x), theirs(x, hidden(), position_embeddings=angles)[0], 1e-3)


@pytest.mark.parametrize("rotary_dim", [16, 8])
def test_interleaved_pairs_of_gpt_j(rotary_dim: int) -> None:
    """GPT-J takes scores and softmax in float32 whatever its weights are."""
    config = GPTJConfig(
        n_embd=DIM, n_head=HEADS, rotary_dim=rotary_dim, n_positions=TOKENS, attn_pdrop=0.0, resid_pdrop=0.0
    )
    theirs = GPTJAttention(config, layer_idx=0).double()
    randomise(theirs)
    half = rotary_dim // 2
    cos, sin = exact(rotary_dim, 10000.0)
    close(theirs.embed_positions, torch.cat([sin[0, :, :half], cos[0, :, :half]], -1), 1e-4)
    theirs.embed_positions = torch.cat([sin[0, :, :half], cos[0, :, :half]], -1)
    ours = Attention(
        DIM, HEADS, position=Rotary(fraction=rotary_dim / WIDTH, pairing="interleaved"), mask=Causal()
    ).double()
    linears = [(getattr(ours, name).weight, getattr(theirs, f"{name}_proj").weight) for name in "qkv"]
    linears.append((ours.o.weight, theirs.out_proj.weight))
    with torch.no_grad():
        for own, other in linears:
            own.copy_(other)
    ours.o.bias = (
        torch.nn.Parameter(theirs.out_proj.bias.detach().clone()) if theirs.out_proj.bias is not None else None
    )
    x = torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    expected = theirs(x, attention_mask=hidden(), position_ids=POS.expand(2, -1))[0]
    compare(ours(x), expected, linears, 1e-4)


@pytest.mark.parametrize("offset", [0, 700])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_interleaved_pairs_of_rotary_embedding_torch(offset: int, fraction: float) -> None:
    theirs = RotaryEmbedding(dim=int(WIDTH * fraction), cache_if_possible=False)
    theirs.freqs.data = torch.tensor([10000.0 ** (-2 * i / (WIDTH * fraction)) for i in range(len(theirs.freqs))])
    theirs = theirs.double()
    q = torch.randn(2, HEADS, TOKENS, WIDTH, dtype=torch.float64)
    got = Rotary(pairing="interleaved", fraction=fraction).rotate(q, q, POS + offset, POS + offset)
    for each in got:
        close(each, theirs.rotate_queries_or_keys(q, offset=offset), 1e-4)


def test_gradients_of_rotary_embedding_torch() -> None:
    """A rotation's gradient is the rotation back."""
    theirs = RotaryEmbedding(dim=WIDTH, cache_if_possible=False)
    q = torch.randn(2, HEADS, 20, WIDTH, requires_grad=True)
    weight = torch.randn_like(q)
    pos = torch.arange(20)[None]
    got = Rotary(pairing="interleaved").rotate(q, q, pos, pos)[0]
    (ours,) = torch.autograd.grad((got * weight).sum(), q)
    (other,) = torch.autograd.grad((theirs.rotate_queries_or_keys(q) * weight).sum(), q)
    close(ours, other, 1e-5)
    close(Rotary(pairing="interleaved").rotate(weight, weight, -pos, -pos)[0], ours, 1e-5)


def test_a_fraction_of_two_widths_is_exactly_that_part() -> None:
    """As configurations give it: rotary_dim / head_dim."""
    sizes = [(part, whole) for whole in range(3, 257) for part in range(2, whole, 2)]
    assert [Rotary(fraction=part / whole).width(whole) for part, whole in sizes] == [part for part, _ in sizes]
