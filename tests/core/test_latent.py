"""Latent attention against DeepSeek-V3 of transformers; absorbed or not, with every method. Its laws are in `laws`."""

from __future__ import annotations

import math

import pytest
import torch
from common import leaving_values
from torch import Tensor, nn

from headway import Causal, HeadwayError, KVCache, LatentAttention
from headway.terms import DenseBias

SIZES = {"latent_dim": 20, "head_dim": 12, "position_dim": 8}


def layer(position: str | None = "rotary", *, value_dim: int = 8, **options: object) -> LatentAttention:
    torch.manual_seed(0)
    made = LatentAttention(48, 4, value_dim=value_dim, position=position, mask=Causal(), **SIZES, **options)
    with torch.no_grad():  # what starts at zero would be tested at zero
        for parameter in made.position.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.double().eval()


def norm(width: int) -> nn.RMSNorm:
    made = nn.RMSNorm(width, eps=1e-6).double()
    nn.init.uniform_(made.weight, 0.5, 1.5)
    return made


@pytest.mark.parametrize("query_latent_dim", [None, 24])
def test_it_is_deepseek_v3(query_latent_dim: int | None) -> None:
    models = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    from transformers import DeepseekV3Config

    torch.manual_seed(0)
    config = DeepseekV3Config(
        hidden_size=48,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=20,
        q_lora_rank=query_latent_dim,
        qk_nope_head_dim=12,
        qk_rope_head_dim=8,
        v_head_dim=10,
        attn_implementation="sdpa",  # eager computes softmax in float32
    )
    theirs = models.DeepseekV3Attention(config, 0).double()
    theirs.kv_a_layernorm = norm(20)  # its own computes in float32
    if query_latent_dim is not None:
        theirs.q_a_layernorm = norm(query_latent_dim)
    ours = layer("rotary(pairing='interleaved')", value_dim=10, query_latent_dim=query_latent_dim)
    up = theirs.kv_b_proj.weight.view(4, 22, 20)
    weights = {
        "kv_down.weight": theirs.kv_a_proj_with_mqa.weight,
        "kv_norm.weight": theirs.kv_a_layernorm.weight,
        "k.weight": up[:, :12].reshape(48, 20),
        "v.weight": up[:, 12:].reshape(40, 20),
        "o.weight": theirs.o_proj.weight,
    }
    if query_latent_dim is None:
        weights["q.weight"] = theirs.q_proj.weight
    else:
        weights["q_down.weight"], weights["q_norm.weight"] = theirs.q_a_proj.weight, theirs.q_a_layernorm.weight
        weights["q.weight"] = theirs.q_b_proj.weight
    ours.load_state_dict({name: weight.detach() for name, weight in weights.items()})
    x = torch.randn(2, 9, 48, dtype=torch.float64, requires_grad=True)
    angles = torch.arange(9.0, dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(0, 8, 2).double() / 8)
    turns = torch.cat((angles, angles), -1)[None]
    hidden = torch.full((9, 9), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    expected = theirs(x, position_embeddings=(turns.cos(), turns.sin()), attention_mask=hidden)[0]
    (slope,) = torch.autograd.grad(expected.square().sum(), x)
    for absorb in (False, True):
        got = ours(x, absorb=absorb)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(got.square().sum(), x)[0], slope, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", leaving_values())
def test_absorbed_cached_and_whole_are_one(name: str) -> None:
    made = layer(name)
    x = torch.randn(2, 11, 48, dtype=torch.float64)
    whole = made(x, absorb=False)
    adds_to_values = name == "shaw"
    for absorb in (False, True, None):
        if not adds_to_values:
            torch.testing.assert_close(made(x, absorb=absorb), whole, rtol=1e-9, atol=1e-10)
        cache = KVCache()
        parts = [made(x[:, :5], cache=cache, absorb=absorb)]
        parts += [made(x[:, at : at + 1], cache=cache, absorb=absorb) for at in range(5, 11)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("absorb", [False, True])
def test_terms_of_a_call_are_added_to_those_of_the_method(absorb: bool) -> None:
    """ALiBi's slopes as a bias per pair, twice, and once as the method."""
    plain, alibi = layer("none"), layer("alibi")
    x, pos = torch.randn(2, 9, 48, dtype=torch.float64), torch.arange(9)[None]
    (slopes,) = alibi.position.prepare(*torch.zeros(2, 1, 4, 9, 8), pos, pos, 1.0)[2]
    bias = DenseBias(slopes.tile(pos, pos).double())
    expected = plain(x, terms=(bias, bias), absorb=absorb)
    torch.testing.assert_close(alibi(x, terms=(bias,), absorb=absorb), expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(alibi(x, mask=bias.bias, absorb=absorb), expected, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(expected, plain(x, absorb=absorb), atol=1e-3)


@pytest.mark.parametrize("absorb", [False, True])
def test_scores_are_capped_sharpened_and_beside_a_sink(absorb: bool) -> None:
    """By hand, from the queries, keys and values of every head."""
    made, x = layer("none", softcap=2.0, sinks=True, log_scale=3), torch.randn(2, 9, 48, dtype=torch.float64)
    assert made.sinks is not None
    nn.init.normal_(made.sinks)
    latent, key = made.kv_down(x).split((20, 8), -1)
    latent = made.kv_norm(latent)
    q = made.q(x).view(2, 9, 4, 20).transpose(1, 2)
    k = torch.cat((made.k(latent).view(2, 9, 4, 12), key[:, :, None].expand(-1, -1, 4, -1)), -1).transpose(1, 2)
    v = made.v(latent).view(2, 9, 4, 8).transpose(1, 2)
    sharp = (torch.arange(1, 10).double().log() / math.log(3)).clamp(min=1)[:, None]
    scores = 2 * ((q * sharp) @ k.mT * 20**-0.5 / 2).tanh()
    scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    beside = torch.cat((scores, made.sinks.view(1, 4, 1, 1).expand(2, -1, 9, 1)), -1)
    expected = made.o((beside.softmax(-1)[..., :-1] @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(made(x, absorb=absorb), expected, rtol=1e-9, atol=1e-10)


def test_absorbing_leaves_gradients_as_they_are() -> None:
    def gradients(absorb: bool) -> dict[str, Tensor]:
        made = layer("alibi", query_latent_dim=16, bias=True)
        made(
            torch.linspace(-1, 1, 2 * 9 * 48, dtype=torch.float64).view(2, 9, 48), absorb=absorb
        ).square().sum().backward()
        return {name: p.grad for name, p in made.named_parameters() if p.grad is not None}

    one, other = gradients(False), gradients(True)
    assert one.keys() == other.keys() == dict(layer("alibi", query_latent_dim=16, bias=True).named_parameters()).keys()
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-8, atol=1e-10)


def test_a_cache_holds_latent_vectors_and_one_key_for_all_heads() -> None:
    cache = KVCache()
    layer()(torch.randn(2, 5, 48, dtype=torch.float64), cache=cache)
    assert cache.k.shape == (2, 1, 5, 20 + 8)
    assert cache.v.shape[-1] == 0


def test_it_absorbs_when_few_queries_meet_many_keys() -> None:
    made = LatentAttention(256, 8, latent_dim=64, head_dim=32, position_dim=16)
    assert made._absorbs(1, 512)
    assert not made._absorbs(512, 512)


def test_dropout_is_of_training_alone() -> None:
    made = layer(dropout=0.5)
    x = torch.randn(1, 9, 48, dtype=torch.float64)
    assert torch.equal(made(x), made(x))
    made.train()
    torch.manual_seed(1)
    one, other = made(x), made(x)
    torch.manual_seed(1)
    assert torch.equal(made(x), one)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "x", "expected"),
    [
        ({"latent_dim": 0}, None, "latent_dim of at least 1, got 0"),
        ({"position_dim": 1.5}, None, "position_dim of at least 1, a whole number, got 1.5"),
        ({"dropout": 1.0}, None, "dropout to be"),
        ({"position_dim": 7}, None, "even"),
        ({}, torch.zeros(1, 3, 47), r"shape \(batch, tokens, 48\), got \(1, 3, 47\)"),
        ({}, torch.zeros(1, 3, 48, dtype=torch.float64), "float32, as the weights are, got torch.float64"),
        ({"position": "shaw", "value_dim": 10, "position_dim": 8}, torch.zeros(1, 3, 48), "value_dim=8"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_gets_one_sentence(options: dict[str, object], x: Tensor | None, expected: str) -> None:
    def use() -> None:
        made = LatentAttention(48, 4, **options)  # type: ignore[arg-type]
        if x is not None:
            made(x)

    with pytest.raises(HeadwayError, match=expected):
        use()
