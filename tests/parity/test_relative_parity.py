"""Methods that add a function of distance to scores, against independent implementations and their papers' formulas.

Held against: transformers (XLNet, DeBERTa, DeBERTa-v2) and x-transformers (dynamic position bias); Transformer-XL,
Music Transformer, KERPLE, Sandwich and FIRE against their papers' formulas written anew, which the authors' own code
equals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import close, part_of, randomise, same_with_gradients
from torch import Tensor, nn
from torch.func import functional_call
from transformers import DebertaConfig, DebertaModel, DebertaV2Config, DebertaV2Model, XLNetConfig
from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetRelativeAttention
from x_transformers.x_transformers import DynamicPositionBias

from headway import Attention, Causal, HeadShape
from headway.positions import Alibi, Deberta, DynamicBias, Fire, Kerple, Music, Sandwich, TermInputs, TransformerXL
from headway.positions.alibi import slopes

PADDED = torch.tensor([[-1, -1, 0, 1, 2, 3, 40], [0, 1, 2, 3, 4, 5, 6]])


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


class Bias(nn.Module):
    """What a method of no query adds to the scores, as a module: of positions, (B, H, Q, K)."""

    def __init__(self, position: Any) -> None:
        super().__init__()
        self.position = position

    def forward(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        shape = self.position.shape
        q, k = (torch.zeros(1, shape.heads, x.shape[1], shape.head_dim).double() for x in (q_pos, k_pos))
        (term,) = self.position.terms(TermInputs(q, k, q_pos, k_pos, 1.0))
        return term.tile(q_pos, k_pos)


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
    many = position.terms(TermInputs(q, k, q_pos, k_pos, 0.3))[1].tile(q_pos, k_pos)
    for i in range(0, 30, 7):
        row = slice(i, i + 1)
        few = position.terms(TermInputs(q[:1, :, row], k[:1], q_pos[:, row], k_pos, 0.3))[1].tile(q_pos[:, row], k_pos)
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
    (term,) = position.terms(TermInputs(q, q, pos, pos, 1.0))
    same_with_gradients(term.tile(pos, pos).tril(), skewed.tril(), [position.table])


# --- DeBERTa ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clip", "buckets"), [(512, 256), (512, 32), (40, 8), (37, 6), (1000, 64), (301, 48)])
def test_deberta_buckets(clip: int, buckets: int) -> None:
    """Microsoft's code, written anew: linear up to the middle, then logarithmic, clip − 1 in the last bucket."""
    n, middle = torch.arange(-3 * clip, 3 * clip + 1), buckets // 2
    far = (n.abs() / middle).log() / math.log((clip - 1) / middle) * (middle - 1)
    bucket = torch.where(n.abs() <= middle, n, (far.ceil() + middle) * n.sign()).long()
    assert torch.equal(Deberta(clip=clip, buckets=buckets).row(n), (bucket + buckets).clamp(0, 2 * buckets - 1))


@pytest.mark.parametrize(("clip", "buckets"), [(512, 0), (3, 0), (12, 6)])
@pytest.mark.parametrize(("kv_heads", "causal"), [(3, False), (1, True)])
def test_deberta_as_its_paper_writes_it(clip: int, buckets: int, kv_heads: int, causal: bool) -> None:
    """Q_c K_cᵀ + Q_c K_r[δ(i,j)]ᵀ + K_c Q_r[δ(j,i)]ᵀ over √(3d)."""
    side = buckets or clip

    def delta(n: int) -> int:
        if buckets and abs(n) > buckets // 2:
            middle = buckets // 2
            far = middle + math.ceil(math.log(abs(n) / middle) / math.log((clip - 1) / middle) * (middle - 1))
            n = int(math.copysign(far, n))
        return 0 if n <= -side else 2 * side - 1 if n >= side else n + side

    def score(position: Any, h: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
        key = position.key_weight[h] @ position.vectors[delta(i - j)]
        query = position.query_weight[h] @ position.vectors[delta(j - i)]
        return (q @ k + q @ key + k @ query) / math.sqrt(3 * 4)

    as_written(Deberta(clip=clip, buckets=buckets), score, causal, kv_heads)


DIM, HEADS, TOKENS = 24, 3, 60
GIVEN = {
    "vocab_size": 9,
    "hidden_size": DIM,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
}
PART = "encoder.layer.0.attention.self"


def deberta_is(model: nn.Module, position: Deberta, weights: dict[str, Tensor]) -> None:
    """Ours with their weights is theirs, left-padded, and is not with δ(j,i); they divide by √(3d) in float32."""
    pos = torch.stack([torch.arange(TOKENS) - 7, torch.arange(TOKENS)]).clamp(min=-1)
    tokens = torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    x, expected = part_of(model, PART, inputs_embeds=tokens, attention_mask=(pos >= 0).long())
    expected = expected.masked_fill((pos < 0)[..., None], 0.0)
    vectors = model.get_parameter("encoder.rel_embeddings.weight")
    leaves = [vectors, *(p for p in model.get_submodule(PART).parameters() if p.any())]
    for reverse in (False, True):
        position = Deberta(clip=position.clip, buckets=position.buckets, reverse=reverse)
        ours = Attention(DIM, HEADS, position=position, bias=True, out_bias=False).double()
        given = {"o.weight": torch.eye(DIM).double(), "position.vectors": vectors, **weights}
        got = functional_call(ours, given, (x,), {"pos": pos})
        if not reverse:
            same_with_gradients(got, expected, leaves, 1e-6)
        else:
            assert (got - expected).abs().max() > 1e-2


@pytest.mark.parametrize(("clip", "buckets"), [(512, 256), (40, 8), (20, 0), (512, 0)])
def test_deberta_v2(clip: int, buckets: int) -> None:
    config = DebertaV2Config(**GIVEN, max_relative_positions=clip, position_buckets=buckets or -1, share_att_key=False)
    model = DebertaV2Model(config).double().eval()
    randomise(model)
    theirs = dict(model.get_submodule(PART).named_parameters())
    with torch.no_grad():  # the first adds one number to a whole row of scores; neither is in the paper
        theirs["pos_key_proj.bias"].zero_()
        theirs["pos_query_proj.bias"].zero_()
    weights = {
        f"{name[0]}.{part}": theirs[f"{name}_proj.{part}"]
        for name in ("query", "key", "value")
        for part in ("weight", "bias")
    }
    for name in ("key", "query"):
        weights[f"position.{name}_weight"] = theirs[f"pos_{name}_proj.weight"].view(HEADS, -1, DIM)
    deberta_is(model, Deberta(clip=clip, buckets=buckets), weights)


@pytest.mark.parametrize("clip", [20, 512])
def test_deberta_v1(clip: int) -> None:
    """Its q, k and v lie head by head in one matrix; keys have no bias."""
    model = DebertaModel(DebertaConfig(**GIVEN, max_relative_positions=clip)).double().eval()
    randomise(model)
    theirs = dict(model.get_submodule(PART).named_parameters())
    with torch.no_grad():
        theirs["pos_q_proj.bias"].zero_()
    stacked = theirs["in_proj.weight"].view(HEADS, 3, -1, DIM)
    weights = {f"{name}.weight": stacked[:, index].reshape(DIM, DIM) for index, name in enumerate("qkv")}
    weights |= {"q.bias": theirs["q_bias"], "k.bias": torch.zeros(DIM).double(), "v.bias": theirs["v_bias"]}
    weights["position.key_weight"] = theirs["pos_proj.weight"].view(HEADS, -1, DIM)
    weights["position.query_weight"] = theirs["pos_q_proj.weight"].view(HEADS, -1, DIM)
    deberta_is(model, Deberta(clip=clip), weights)


# --- KERPLE -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["log", "power"])
@pytest.mark.parametrize(("causal", "kv_heads", "clip"), [(True, 3, 16384), (False, 1, 5)])
def test_kerple_as_its_paper_writes_it(kind: str, causal: bool, kv_heads: int, clip: int) -> None:
    """−r1·ln(1 + r2·|m−n|) and −r1·|m−n|^r2, r1 and r2 of their parametrisation."""

    def score(position: Any, h: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
        n = min(abs(i - j), clip)
        r1, r2 = (1 + position.first[h].exp()).log(), (1 + position.second[h].exp()).log()
        if kind == "log":
            return q @ k / 2 - r1 * (1 + r2 * n).log()
        return q @ k / 2 - (r1 * n ** (2 / (1 + (-position.second[h]).exp())) if n else 0)

    as_written(Kerple(kind=kind, clip=clip), score, causal, kv_heads)


@pytest.mark.parametrize("kind", ["log", "power"])
def test_kerple_begins_uniform_and_takes_rates(kind: str) -> None:
    position = Kerple(kind=kind).attach(HeadShape.of(4000, 4000))
    for rate, top in zip(position.rates(), (2, 1) if kind == "log" else (1, 2), strict=True):
        assert 0.0099 < rate.min() < 0.0101
        close(rate.sort().values, torch.linspace(0, top, 4000).double(), 0.06)
    given = torch.linspace(0.02, 1.98, 4000).double()
    position.assign(given, given)
    for rate in position.rates():
        close(rate, given, 1e-5)


def test_power_kernel_of_exponent_1_is_alibi() -> None:
    position, alibi = (each.attach(HeadShape.of(24, 6)).double() for each in (Kerple(kind="power"), Alibi()))
    position.assign(alibi.slope, torch.ones(6))
    pos = torch.arange(300)[None]
    close(Bias(position)(pos, pos), Bias(alibi)(pos, pos))


# --- Sandwich -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "clip", "causal"), [(128, 16384, True), (6, 5, False)])
def test_sandwich_as_its_paper_lists_it(width: int, clip: int, causal: bool) -> None:
    """The product of two sinusoidal vectors over the compression ratio 8h/H, h from 1; where clipped, at the clip."""

    def score(position: Any, h: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
        j = max(i - clip, min(i + clip, j))
        return q @ k / 2 + sinusoid(i, width) @ sinusoid(j, width) / ((h + 1) * 8 / 3)

    as_written(Sandwich(width=width, clip=clip), score, causal)


def test_sandwich_of_many_tokens() -> None:
    """Positions' vectors multiplied as a matrix, up to 3000 tokens apart."""
    pos = torch.arange(0, 3001, 50)[None]
    vectors = torch.stack([sinusoid(int(p), 128) for p in pos[0]])
    ratio = torch.arange(1, 7).double()[:, None, None] * 8 / 6
    close(Bias(Sandwich().attach(HeadShape.of(24, 6)))(pos, pos)[0], vectors @ vectors.T / ratio)


# --- dynamic position bias ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("depth", [1, 3])
def test_dynamicbias_is_that_of_x_transformers(log: bool, norm: bool, depth: int) -> None:
    """It makes distances, and their logarithms, in float32; its first LayerNorm, unlike the others, has no bias."""
    theirs = DynamicPositionBias(9, heads=3, depth=depth, log_distance=log, norm=norm)
    if norm:
        theirs.mlp[0][1] = nn.LayerNorm(9)
    theirs.double()
    theirs.mlp[0].register_forward_pre_hook(lambda _, given: (given[0].double(),))
    randomise(theirs)
    ours = Bias(DynamicBias(width=9, depth=depth, log=log, norm=norm).attach(HeadShape.of(24, 3)).double())
    weights = dict(zip((name for name, _ in ours.named_parameters()), theirs.parameters(), strict=True))
    pos = torch.arange(200)[None]
    same_with_gradients(
        functional_call(ours, weights, (pos[:, 80:], pos))[0], theirs(120, 200), list(theirs.parameters()), 1e-6
    )


def test_dynamicbias_counts_far_distances_as_its_clip() -> None:
    ours = Bias(DynamicBias(clip=30).attach(HeadShape.of(24, 3)).double())
    pos = torch.arange(100)[None]
    bias = ours(pos, pos)[0]
    for i, j in ((99, 0), (99, 69), (50, 3)):
        close(bias[:, i, j], ours.position.bias(torch.tensor([30]))[:, 0])
        close(bias[:, j, i], ours.position.bias(torch.tensor([-30]))[:, 0])


# --- FIRE ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("original", "causal", "kv_heads"), [(512, True, 1), (3, True, 3), (12, False, 3)])
def test_fire_as_its_paper_writes_it(original: int, causal: bool, kv_heads: int) -> None:
    """f(ψ(i−j)/ψ(max(i, L))), rows on both sides of L, and on none."""

    def score(position: Any, h: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
        psi = lambda x: (1 + (position.c * x).abs()).log()  # noqa: E731
        limit = (position.m * original).abs()
        x = psi(abs(i - j)) / (psi(limit if limit > i else i) + 1e-6)
        hidden = (position.inner.weight[:, 0] * x + position.inner.bias).clamp(min=0)
        return q @ k / 2 + hidden @ position.outer.weight[h] + position.outer.bias[h]

    as_written(Fire(original=original), score, causal, kv_heads)


@pytest.mark.parametrize("original", [30, 512])
def test_fire_is_its_papers_listing(original: int) -> None:
    """All pairs at once, positions 0 … N−1, as the paper's appendix and DAPE's code do it; N beyond L or below."""
    tokens, position = 100, Fire(original=original).attach(HeadShape.of(24, 3)).double()
    randomise(position)
    pos = torch.arange(tokens)
    limit = (position.m * original).abs()
    near = (position.c * (pos[:, None] - pos)).abs().add(1).log()
    far = (position.c * torch.maximum(pos.double(), limit)).abs().add(1).log() + 1e-6
    mlp = nn.Sequential(position.inner, nn.ReLU(), position.outer)
    expected = mlp((near / far[:, None])[..., None]).permute(2, 0, 1)
    same_with_gradients(Bias(position)(pos[None], pos[None])[0], expected, list(position.parameters()), 1e-8)


# --- ALiBi, learned and two-sided ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", ["alike", "own"])
@pytest.mark.parametrize("causal", [True, False])
def test_learned_alibi_as_written(sides: str, causal: bool) -> None:
    """−m·|i−j|, m the exponential of what is learned; where sides have their own, the second is the future's."""

    def score(position: Any, h: int, q: Tensor, k: Tensor, i: int, j: int) -> Tensor:
        side = 1 if sides == "own" and j > i else 0
        return q @ k / 2 - position.log_slope[h, side].exp() * abs(i - j)

    as_written(Alibi(learned=True, sides=sides), score, causal)


@pytest.mark.parametrize("heads", [1, 3, 8, 12])
@pytest.mark.parametrize("sides", ["alike", "own", "half"])
def test_learned_alibi_begins_as_published(heads: int, sides: str) -> None:
    pos = torch.arange(50)[None]
    learned = Alibi(learned=True, sides=sides).attach(HeadShape.of(8 * heads, heads)).double()
    fixed = Alibi(sides="half" if sides == "half" else "alike").attach(HeadShape.of(8 * heads, heads))
    close(learned.slope, fixed.slope, 1e-6)
    close(Bias(learned)(pos, pos), Bias(fixed)(pos, pos), 1e-6)


@pytest.mark.parametrize("heads", [2, 6, 16])
@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
def test_half_of_alibis_heads_look_each_way(heads: int, backend: str) -> None:
    """As its author writes for encoders: slopes of H/2 heads twice, minus infinity on the other side of each half."""
    tokens = 30
    ours = Attention(8 * heads, heads, position=Alibi(sides="half"), backend=backend).double()
    randomise(ours)
    x = torch.randn(2, tokens, 8 * heads, dtype=torch.float64, requires_grad=True)
    n = torch.arange(tokens)[:, None] - torch.arange(tokens)
    bias = -torch.cat([slopes(heads // 2)] * 2)[:, None, None] * n.abs()
    hidden = torch.stack([n < 0, n > 0]).repeat_interleave(heads // 2, 0)
    q, k, v = (linear(x).unflatten(-1, (heads, 8)).transpose(1, 2) for linear in (ours.q, ours.k, ours.v))
    scores = (q @ k.transpose(-1, -2) / 8**0.5 + bias).masked_fill(hidden, -torch.inf)
    expected = ours.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    same_with_gradients(ours(x), expected, [x, *ours.parameters()], 1e-7)


# --- the distances at hand ----------------------------------------------------------------------------------------

WIDTH_IS_FREE = [
    "transformerxl(bidirectional=True)",
    "transformerxl(clip=9)",
    "music(clip=60)",
    "deberta(clip=60)",
    "deberta(clip=60, buckets=16)",
    "kerple(clip=300)",
    "kerple(kind='power', clip=9)",
    "sandwich(clip=300)",
    "dynamicbias(clip=300)",
]


@pytest.mark.parametrize("spec", WIDTH_IS_FREE)
@pytest.mark.parametrize("causal", [True, False])
def test_the_width_of_a_table_changes_no_result(spec: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = module(spec, mask=Causal() if causal else None)
    x = torch.randn(2, 7, 8, dtype=torch.float64, requires_grad=True)
    narrow = ours(x, pos=PADDED)
    widths = []

    def whole(look: TermInputs, past: int, future: int) -> tuple[Tensor, int]:
        widths.append(past + future + 1)
        return torch.arange(-past, future + 1), past

    monkeypatch.setattr(TermInputs, "offsets", whole)
    same_with_gradients(narrow, ours(x, pos=PADDED), [x, *ours.parameters()])
    assert widths


@pytest.mark.parametrize(
    ("q_pos", "k_pos", "limits", "expected"),
    [
        ([[5, 6]], [[3, 4, 5, 6]], (100, 100), range(-3, 2)),
        ([[5, 6]], [[3, 4, 5, 6]], (2, 0), range(-2, 1)),
        ([[6]], [[0, 1, 2]], (100, 100), range(-6, 1)),
        ([[-1, 9]], [[-1, 9]], (100, 100), range(1)),
        ([[-1, -1]], [[-1, 4]], (100, 100), range(1)),
        ([[4]], [[-1]], (100, 100), range(1)),
        ([[10**6, 10**6 + 1], [0, 3]], [[10**6, 10**6 + 1], [0, 3]], (100, 100), range(-3, 4)),
        ([[7]], [[5], [9]], (100, 100), range(-2, 3)),
        ([[]], [[1, 2]], (100, 100), range(1)),
    ],
)
def test_the_distances_at_hand(q_pos: Any, k_pos: Any, limits: tuple[int, int], expected: range) -> None:
    """Padding is near to none; each sequence of a batch has distances of its own."""
    q_pos, k_pos = torch.tensor(q_pos, dtype=torch.long), torch.tensor(k_pos, dtype=torch.long)
    q, k = (torch.zeros(max(len(q_pos), len(k_pos)), 1, x.shape[1], 4) for x in (q_pos, k_pos))
    offset, left = TermInputs(q, k, q_pos, k_pos, 1.0).offsets(*limits)
    assert offset.tolist() == list(expected)
    assert offset[left] == 0
    meta = (x.to("meta") for x in (q, k, q_pos, k_pos))
    if 0 not in q_pos.shape:
        assert len(TermInputs(*meta, 1.0).offsets(*limits)[0]) == sum(limits) + 1
