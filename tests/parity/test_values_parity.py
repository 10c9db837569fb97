"""Values that position rotates: DeepSeek-V4's own functions, its formula, and what it promises.

Held against: transformers (the rotations of DeepSeek-V4), and the formula, value by value.
"""

from __future__ import annotations

import pytest
import torch
from common import close, refusal, same_with_gradients
from transformers.models.deepseek_v4.modeling_deepseek_v4 import apply_rotary_pos_emb

from headway import Attention, Causal, KVCache, LatentAttention, Window
from headway.inspect import recorded
from headway.inspect.head import Head
from headway.positions import parse
from headway.positions.base import frequencies

HEADS, WIDTH = 3, 16


def layer(spec: str = "rotatedvalues", kv_heads: int = HEADS, **options) -> Attention:
    return Attention(48, HEADS, kv_heads=kv_heads, head_dim=WIDTH, position=spec, **options).double()


def made(module: Attention, x: torch.Tensor) -> list[torch.Tensor]:
    """Queries, keys and values of every query head."""
    heads = (linear(x).unflatten(-1, (-1, WIDTH)).transpose(1, 2) for linear in (module.q, module.k, module.v))
    return [each.repeat_interleave(HEADS // each.shape[1], 1) for each in heads]


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_the_rotations_of_deepseek_v4(fraction: float) -> None:
    """Its rotated dimensions are the last of a head, ours the first; float32 inside."""
    module = layer(f"rotatedvalues(fraction={fraction}, pairing='interleaved')", 1, mask=Causal())
    x, width = torch.randn(2, 21, 48).double(), int(fraction * WIDTH)
    order = [*range(width, WIDTH), *range(width)]
    angles = torch.arange(21)[None, :, None] * frequencies(width, 10000.0, x.device)
    cos, sin = angles.cos().float(), angles.sin().float()
    q, k, v = (apply_rotary_pos_emb(part[..., order], cos, sin) for part in made(module, x))
    hidden = torch.ones(21, 21, dtype=torch.bool).triu(1)
    weights = (q @ k.mT * WIDTH**-0.5).masked_fill(hidden, -torch.inf).softmax(-1)
    out = apply_rotary_pos_emb((weights @ v).transpose(1, 2), cos[:, :], -sin, unsqueeze_dim=2)
    heads = out[..., torch.tensor(order).argsort()].flatten(2)
    torch.testing.assert_close(module(x), module.o(heads), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [HEADS, 1])
@pytest.mark.parametrize("spec", ["rotatedvalues", "rotatedvalues(fraction=0.5, pairing='interleaved', base=100.0)"])
def test_each_value_arrives_rotated_by_its_distance(spec: str, kv_heads: int) -> None:
    module, x = layer(spec, kv_heads, mask=Window(7, 3)), torch.randn(2, 19, 48).double().requires_grad_()
    position = module.position
    q, k, v = made(module, x)
    pos = torch.arange(19)[None]
    q, k = position.rotate(q, k, pos, pos)
    distance = pos[0, :, None] - pos[0]
    hidden = (distance > 7) | (distance < -3)
    weights = (q @ k.mT * WIDTH**-0.5).masked_fill(hidden, -torch.inf).softmax(-1)
    arrive = torch.stack([position.turn_values(v, pos - i) for i in range(19)], 2)  # (B, H, queries, keys, d)
    out = torch.einsum("bhij,bhijd->bihd", weights, arrive).flatten(2)
    same_with_gradients(module(x), module.o(out), [x, *module.parameters()])


def test_a_cache_holds_rotated_values() -> None:
    module, x, cache = layer(mask=Causal()).eval(), torch.randn(2, 12, 48).double(), KVCache()
    with torch.no_grad():
        parts = [module(part, cache=cache) for part in x.split([5, 1, 1, 5], 1)]
        close(torch.cat(parts, 1), module(x))
        later = torch.arange(1000, 1012)[None]
        close(module(x, pos=later), module(x))


def test_what_is_recorded_sums_to_the_output() -> None:
    module, x = layer(mask=Causal()), torch.randn(1, 9, 48).double()
    (seen,) = recorded(module, x)
    whole = module.o(seen.output().transpose(1, 2).flatten(2))
    close(whole, module(x))
    head = Head(seen, 1, slice(6, 7))
    close(head.v, made(module, x)[2][0, 1])
    close(head.weights @ head.received(6), head.output)


def test_a_method_around_it_turns_values_too() -> None:
    module, x = layer(mask=Causal()).eval(), torch.randn(1, 9, 48).double()
    around = layer("randomized(method='rotatedvalues')", mask=Causal()).eval()
    around.load_state_dict(module.state_dict(), strict=False)
    close(around(x), module(x))
    assert around.position.turns_values
    assert not parse("randomized(method='rotary')").turns_values


def test_who_cannot_take_it() -> None:
    with refusal(
        "expected a method that leaves values as they are, because latent attention makes them of latent", False
    ):
        LatentAttention(48, 3, latent_dim=8, position="rotatedvalues")
    assert parse("rotatedvalues").turns_values
    assert not parse("rotary").turns_values
