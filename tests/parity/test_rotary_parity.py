"""Rotary against independent implementations: Llama, GPT-NeoX, GPT-J and rotary-embedding-torch.

They make their angles in float32, where position·frequency errs by 3e-5 at position 300. So they are followed at that
coarser tolerance, in their models' own forward passes, and the formula, written anew in complex numbers, exactly.

Held against: transformers (Llama, GPT-NeoX, GPT-J) and rotary-embedding-torch.
"""

from __future__ import annotations

import pytest
import torch
from common import close, follows, randomise, same_with_gradients
from rotary_embedding_torch import RotaryEmbedding
from torch import Tensor
from transformers import GPTJConfig, GPTJModel, GPTNeoXConfig, GPTNeoXModel, LlamaConfig, LlamaModel

from headway import Attention, Causal, Rotary

TOKENS, DIM, HEADS, WIDTH = 300, 64, 4, 16
POS = torch.arange(TOKENS)[None]


def formula(x: Tensor, pos: Tensor, base: float, width: int, pairing: str) -> Tensor:
    """The first ``width`` entries in pairs (a, b): (a + ib)·e^(i·pos·ω), ω = base^(−2i/width)."""
    rates = torch.tensor([base ** (-2 * i / width) for i in range(width // 2)], dtype=torch.float64)
    part, rest = x[..., :width], x[..., width:]
    a, b = part.chunk(2, -1) if pairing == "half" else (part[..., 0::2], part[..., 1::2])
    rotated = torch.complex(a, b) * torch.exp(1j * pos[:, None, :, None] * rates)
    pairs = (rotated.real, rotated.imag)
    return torch.cat([*pairs, rest] if pairing == "half" else [torch.stack(pairs, -1).flatten(-2), rest], -1)


@pytest.mark.parametrize(("fraction", "pairing"), [(1.0, "half"), (0.25, "half"), (0.5, "interleaved")])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("start", [0, 10**6])
def test_the_formula_of_the_paper(base: float, start: int, fraction: float, pairing: str) -> None:
    q, k = (torch.randn(2, n, TOKENS, WIDTH, dtype=torch.float64, requires_grad=True) for n in (HEADS, 2))
    pos = POS + start
    got = Rotary(base=base, fraction=fraction, pairing=pairing).rotate(q, k, pos, pos)
    for g, x in zip(got, (q, k), strict=True):
        same_with_gradients(g, formula(x, pos, base, int(WIDTH * fraction), pairing), [x])


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_of_llama(kv_heads: int) -> None:
    config = LlamaConfig(
        vocab_size=9,
        hidden_size=DIM,
        intermediate_size=DIM,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    model = LlamaModel(config).double().eval()
    randomise(model)
    weights = {f"{name}.weight": model.get_parameter(f"layers.0.self_attn.{name}_proj.weight") for name in "qkvo"}
    ours = Attention(DIM, HEADS, kv_heads=kv_heads, position=Rotary(base=500000.0), mask=Causal()).double()
    follows(ours, model, "layers.0.self_attn", weights)


@pytest.mark.parametrize("bias", [True, False])
def test_partial_rotary_of_gpt_neox(bias: bool) -> None:
    """Its q, k and v lie head by head in one matrix."""
    config = GPTNeoXConfig(
        vocab_size=9,
        hidden_size=DIM,
        intermediate_size=DIM,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        attention_bias=bias,
    )
    model = GPTNeoXModel(config).double().eval()
    randomise(model)
    theirs = dict(model.get_submodule("layers.0.attention").named_parameters())
    weights = {name.replace("dense", "o"): value for name, value in theirs.items() if name.startswith("dense")}
    for index, name in enumerate("qkv"):
        weights[f"{name}.weight"] = theirs["query_key_value.weight"].view(HEADS, 3, WIDTH, DIM)[:, index].flatten(0, 1)
        if bias:
            weights[f"{name}.bias"] = theirs["query_key_value.bias"].view(HEADS, 3, WIDTH)[:, index].flatten()
    ours = Attention(DIM, HEADS, position=Rotary(fraction=0.25), mask=Causal(), bias=bias).double()
    follows(ours, model, "layers.0.attention", weights)


@pytest.mark.parametrize("rotary_dim", [16, 8])
def test_interleaved_pairs_of_gpt_j(rotary_dim: int) -> None:
    config = GPTJConfig(vocab_size=9, n_embd=DIM, n_head=HEADS, n_layer=1, rotary_dim=rotary_dim, n_positions=TOKENS)
    model = GPTJModel(config).double().eval()
    randomise(model)
    theirs = {
        name: model.get_parameter(f"h.0.attn.{name}.weight") for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    }
    position = Rotary(fraction=rotary_dim / WIDTH, pairing="interleaved")
    ours = Attention(DIM, HEADS, position=position, mask=Causal()).double()
    weights = {f"{name}.weight": value for name, value in zip("qkvo", theirs.values(), strict=True)}
    follows(ours, model, "h.0.attn", weights)


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
