"""The scaled rotaries three ways: transformers' frequencies and attention factors, the papers' formulas written anew in
loops, and Llama's attention.

transformers computes frequencies in float32, so it is followed to 2e-5; the formulas, in float64, to 1e-11. Attention
is compared in float64 with angles from the formulas, and with transformers' own angles at a coarser tolerance.

Held against: transformers (its rope functions, Llama) and rotary-embedding-torch.
"""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from common import close, randomise
from rotary_embedding_torch import RotaryEmbedding
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma4.modeling_gemma4 import apply_rotary_pos_emb as turn_whole_head
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb

from headway import Attention, Causal, KVCache, Rotary
from headway.positions import NTK, DynamicNTK, Interpolated, Llama3, LongRope, Position, Proportional, Yarn

CPU = torch.device("cpu")
KINDS = ("linear", "dynamic", "yarn", "longrope", "llama3", "proportional")


def draw(kind: str, seed: int, width: int, **fixed: Any) -> tuple[Rotary, dict[str, Any]]:
    """One of ours and transformers' words for it, its hyperparameters drawn, every switch in some of the draws."""
    rng = random.Random(f"{kind} {seed}")
    base = rng.choice([10000.0, 500000.0, 1000000.0])
    fraction = rng.choice([1.0, 0.5, 0.75]) if kind != "proportional" else rng.choice([0.25, 0.3, 0.5, 1.0])
    factor = rng.choice([1.0, 1.5, 4.0, 32.0])
    original = fixed.get("original", rng.choice([64, 1000, 8192, 131072]))
    common = {"base": base, "fraction": fraction, "factor": factor}
    theirs: dict[str, Any] = {
        "rope_type": kind,
        "rope_theta": base,
        "partial_rotary_factor": fraction,
        "factor": factor,
    }
    if kind == "linear":
        return Interpolated(**common), theirs
    if kind == "proportional":
        return Proportional(**common), theirs
    if kind == "dynamic":
        return DynamicNTK(**common, original=original), theirs
    theirs["original_max_position_embeddings"] = original
    if kind == "llama3":
        low = rng.choice([0.5, 1.0, 2.0])
        high = rng.choice([4.0, 8.0])
        theirs |= {"low_freq_factor": low, "high_freq_factor": high}
        return Llama3(**common, low=low, high=high, original=original), theirs
    attention_factor = rng.choice([None, 0.8])
    if attention_factor is not None:
        theirs["attention_factor"] = attention_factor
    common |= {"original": original, "attention_factor": attention_factor or 0.0}
    if kind == "longrope":
        pairs = int(width * fraction) // 2
        short, long = ([rng.uniform(1, most) for _ in range(pairs)] for most in (2, 60))
        theirs |= {"short_factor": short, "long_factor": long}
        return LongRope(**common, short=tuple(short), long=tuple(long)), theirs
    switches: dict[str, Any] = {}
    for name, value in (("beta_fast", 16.0), ("beta_slow", 2.0), ("truncate", False)):
        if rng.random() < 0.5:
            switches[name] = value
    for name, value in (("mscale", 1.0), ("mscale_all_dim", 0.7)):
        if rng.random() < 0.6:
            switches[name] = value
    return Yarn(**common, **switches), theirs | switches


def config(theirs: dict[str, Any], width: int, heads: int = 3, **given: Any) -> LlamaConfig:
    original = theirs.get("original_max_position_embeddings", given.pop("original", 2048))
    return LlamaConfig(
        hidden_size=width * heads,
        head_dim=width,
        num_attention_heads=heads,
        max_position_embeddings=original,
        rope_parameters=dict(theirs),
        attn_implementation="sdpa",
        **given,
    )


def rates(ours: Rotary, length: int, width: int) -> Tensor:
    """The frequencies a method uses at a length: how far pair i of a key at position 1 is rotated, in the last call."""
    if isinstance(ours, LongRope):
        return ours.rates_for(length, ours.width(width), CPU)
    if not isinstance(ours, DynamicNTK):
        return ours.rates(ours.width(width), CPU)
    q = torch.zeros(1, 1, 2, width, dtype=torch.float64)
    q[..., : ours.width(width) // 2] = 1
    pos = torch.tensor([[1, length - 1]])
    turned = ours.prepare(q, q, pos, pos, 1.0)[1][0, 0, 0, : ours.width(width)]
    cos, sin = turned.chunk(2)
    return torch.atan2(sin, cos)


def formula(ours: Rotary, length: int, width: int) -> tuple[list[float], float]:
    """Frequencies and amplitude as the papers write them, one pair at a time."""
    r = int(ours.fraction * width) // 2 * 2
    plain = [ours.base ** (-2 * i / r) for i in range(r // 2)]
    s = ours.factor  # type: ignore[attr-defined]
    match ours:
        case Interpolated():
            return [w / s for w in plain], 1.0
        case NTK():
            return [(ours.base * s ** (r / (r - 2))) ** (-2 * i / r) for i in range(r // 2)], 1.0
        case DynamicNTK():
            grown = s * length / ours.original - (s - 1) if length > ours.original else 1.0
            return [(ours.base * grown ** (r / (r - 2))) ** (-2 * i / r) for i in range(r // 2)], 1.0
        case Llama3():
            found = []
            for w in plain:
                wavelength = 2 * math.pi / w
                if wavelength < ours.original / ours.high:
                    found.append(w)
                elif wavelength > ours.original / ours.low:
                    found.append(w / s)
                else:
                    smooth = (ours.original / wavelength - ours.low) / (ours.high - ours.low)
                    found.append((1 - smooth) * w / s + smooth * w)
            return found, 1.0
        case LongRope():
            divisors = ours.long if length > ours.original else ours.short
            by_formula = math.sqrt(1 + math.log(s) / math.log(ours.original))
            return [w / d for w, d in zip(plain, divisors, strict=True)], ours.attention_factor or by_formula
        case Proportional():
            kept = int(ours.fraction * width / 2)
            return [ours.base ** (-2 * i / width) / s for i in range(kept)] + [0.0] * (width // 2 - kept), 1.0
        case Yarn():
            ends = [
                r * math.log(ours.original / (b * 2 * math.pi)) / (2 * math.log(ours.base))
                for b in (ours.beta_fast, ours.beta_slow)
            ]
            low, high = (math.floor(ends[0]), math.ceil(ends[1])) if ours.truncate else ends
            low, high = max(low, 0), min(high, r - 1)
            found = []
            for i, w in enumerate(plain):
                ramp = min(max((i - low) / (high - low), 0.0), 1.0)
                found.append(w * (1 - ramp) + w / s * ramp)
            by_formula = 0.1 * math.log(s) + 1
            if ours.mscale and ours.mscale_all_dim:
                by_formula = (0.1 * ours.mscale * math.log(s) + 1) / (0.1 * ours.mscale_all_dim * math.log(s) + 1)
            return found, ours.attention_factor or by_formula
    raise AssertionError


def waves(ours: Rotary, pos: Tensor, length: int, width: int) -> tuple[Tensor, Tensor]:
    """cos and sin of the formula for half-split pairs, both halves alike, float64."""
    found, amplitude = formula(ours, length, width)
    angles = (pos[..., None] * torch.tensor(found, dtype=torch.float64)).repeat(1, 1, 2)
    return angles.cos() * amplitude, angles.sin() * amplitude


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(12))
def test_frequencies_and_attention_factors_of_transformers(kind: str, seed: int) -> None:
    width = random.Random(seed).choice([16, 64, 128])
    ours, theirs = draw(kind, seed, width)
    original = getattr(ours, "original", 2048)
    for length in (1 + original // 3, original, original + 1, 3 * original):
        found, amplitude = ROPE_INIT_FUNCTIONS[kind](config(theirs, width, original=original), CPU, seq_len=length)
        expected, by_formula = formula(ours, length, width)
        got = rates(ours, length, width)
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-15)
        torch.testing.assert_close(got, found.double(), rtol=2e-5, atol=1e-12)
        assert ours.amplitude() == pytest.approx(by_formula, rel=1e-14) == pytest.approx(amplitude, rel=1e-14)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
def test_static_ntk_and_interpolation_of_rotary_embedding_torch(factor: float, fraction: float) -> None:
    """NTK is also the dynamic one at the length where its factor is this one."""
    width, r = 64, int(64 * fraction)
    ours = NTK(fraction=fraction, factor=factor)
    expected = RotaryEmbedding(dim=r, theta_rescale_factor=factor).freqs.detach().double()
    torch.testing.assert_close(ours.rates(r, CPU), expected, rtol=2e-5, atol=1e-12)
    torch.testing.assert_close(
        ours.rates(r, CPU), torch.tensor(formula(ours, 1, width)[0], dtype=torch.float64), rtol=1e-12, atol=1e-15
    )
    grown = DynamicNTK(fraction=fraction, factor=2.0, original=100)
    length = int(100 * (factor + 1) / 2)
    torch.testing.assert_close(rates(grown, length, width), ours.rates(r, CPU), rtol=1e-11, atol=1e-15)
    theirs = RotaryEmbedding(dim=width, interpolate_factor=factor, cache_if_possible=False)
    q, pos = torch.randn(1, 2, 50, width), torch.arange(50)[None]
    got = Interpolated(factor=factor, pairing="interleaved").rotate(q, q, pos, pos)[0]
    close(got, theirs.rotate_queries_or_keys(q), 1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_queries_and_keys(kind: str, seed: int) -> None:
    """Half-split as transformers rotates them, far out too; interleaved is the same with the numbers reordered."""
    width, original = 32, 100
    ours, _ = draw(kind, seed, width, original=original)
    q, k = torch.randn(2, 2, 3, 9, width, dtype=torch.float64)
    r = ours.width(width)
    order = torch.arange(width)
    order[:r] = torch.stack((order[: r // 2], order[r // 2 : r]), 1).flatten()
    values = ours.hyperparameters() | {"pairing": "interleaved"}
    other = type(ours)(**values)
    for start in (0, 91, 92, 300, 10**6):
        pos = torch.arange(start, start + 9)[None]
        cos, sin = waves(ours, pos, start + 9, width)
        if kind == "proportional":
            expected = (turn_whole_head(q, cos, sin), turn_whole_head(k, cos, sin))
        else:
            expected = apply_rotary_pos_emb(q, k, cos, sin)
        for got, right in zip(both(ours, q, k, pos), expected, strict=True):
            close(got, right)
        for got, right in zip(both(other, q[..., order], k[..., order], pos), expected, strict=True):
            close(got, right[..., order])


def both(position: Position, q: Tensor, k: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
    q, k = position.rotate(q, k, pos, pos)
    return position.prepare(q, k, pos, pos, 1.0)[:2]


def attentions(ours: Rotary, theirs: dict[str, Any], kv_heads: int, width: int) -> tuple[Attention, LlamaAttention]:
    llama = LlamaAttention(config(theirs, width, num_key_value_heads=kv_heads), 0).double()
    randomise(llama)
    own = Attention(3 * width, 3, kv_heads=kv_heads, position=ours, mask=Causal()).double()
    with torch.no_grad():
        for name in "qkvo":
            getattr(own, name).weight.copy_(getattr(llama, f"{name}_proj").weight)
    return own, llama


@pytest.mark.parametrize("kv_heads", [3, 1])
@pytest.mark.parametrize("tokens", [60, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_attention_of_llama(kind: str, tokens: int, kv_heads: int) -> None:
    """Values and gradients, within the original length and beyond."""
    width, original = 16, 100
    for seed in range(40):  # the attention of Llama rotates whole heads
        ours, theirs = draw(kind, seed, width, original=original)
        if ours.fraction == 1 and ours.factor > 1:  # type: ignore[attr-defined]
            break
    own, llama = attentions(ours, theirs, kv_heads, width)
    x, pos = torch.randn(2, tokens, 3 * width, dtype=torch.float64), torch.arange(tokens)[None]
    hidden = torch.full((1, 1, tokens, tokens), -torch.inf, dtype=torch.float64).triu(1)
    got = own(x)
    expected = llama(x, position_embeddings=waves(ours, pos, tokens, width), attention_mask=hidden)[0]
    close(got, expected)
    weight = torch.randn_like(got)
    mine = torch.autograd.grad((got * weight).sum(), [getattr(own, name).weight for name in "qkvo"])
    other = torch.autograd.grad((expected * weight).sum(), [getattr(llama, f"{n}_proj").weight for n in "qkvo"])
    for g, e in zip(mine, other, strict=True):
        close(g, e, 1e-7)
    angles = LlamaRotaryEmbedding(config(theirs, width, original=original))(x, pos)
    close(got, llama(x, position_embeddings=angles, attention_mask=hidden)[0], 2e-3)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_the_switch_of_transformers_as_a_text_grows(kind: str) -> None:
    """Its module changes its frequencies by the largest position of a call, there and back."""
    width, original = 16, 100
    ours, theirs = draw(kind, 1, width, original=original)
    module = LlamaRotaryEmbedding(config(theirs, width, original=original))
    q, k = torch.randn(2, 1, 3, 20, width)
    for start in (0, 80, 81, 150, 400, 30):
        pos = torch.arange(start, start + 20)[None]
        expected = apply_rotary_pos_emb(q, k, *module(q, pos))
        for got, right in zip(both(ours, q, k, pos), expected, strict=True):
            close(got, right, 1e-3)


@pytest.mark.parametrize("ours", [DynamicNTK(original=12), LongRope(original=12, short=(1.0, 1.5), long=(2.0, 9.0))])
def test_each_step_of_decoding_sees_what_a_pass_over_the_text_so_far_gives_its_last_token(ours: Rotary) -> None:
    """No key of the cache keeps an old base. Earlier rows of one long pass differ: the method has one base per call."""
    module = Attention(12, 3, kv_heads=1, position=ours, mask=Causal()).double()
    randomise(module)
    x = torch.randn(2, 30, 12, dtype=torch.float64)
    for pieces in ([1] * 30, [10, 1, 1, 5, 13], [30]):
        cache, done = KVCache(), 0
        for piece in x.split(pieces, 1):
            out, done = module(piece, cache=cache), done + piece.shape[1]
            close(out[:, -1], module(x[:, :done])[:, -1])
    whole = module(x)
    assert not torch.allclose(whole[:, 11], module(x[:, :12])[:, 11], atol=1e-4)


@pytest.mark.parametrize("ours", [DynamicNTK(original=12), LongRope(original=12, short=(1.0, 1.5), long=(2.0, 9.0))])
def test_each_sequence_has_its_own_length(ours: Rotary) -> None:
    module = Attention(12, 3, position=ours, mask=Causal()).double()
    randomise(module)
    x = torch.randn(2, 30, 12, dtype=torch.float64)
    pos = (torch.arange(30) - torch.tensor([[20], [0]])).clamp(min=-1)
    got = module(x, pos=pos)
    close(got[0, 20:], module(x[:1, 20:])[0])
    close(got[1], module(x[1:])[0])


def test_up_to_the_original_length_dynamic_ntk_is_rotary_to_the_bit() -> None:
    q, k = torch.randn(2, 2, 3, 50, 64)
    pos = torch.arange(50).expand(2, 50)
    for got, expected in zip(both(DynamicNTK(original=50), q, k, pos), Rotary().rotate(q, k, pos, pos), strict=True):
        assert torch.equal(got, expected)
    beyond = both(DynamicNTK(original=49), q, k, pos)[0]
    assert not torch.allclose(beyond, Rotary().rotate(q, k, pos, pos)[0], atol=1e-4)
