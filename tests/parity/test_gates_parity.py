"""Methods that gate scores by content (FoX, Inkling, GRAPE), against their authors' code or their papers' formulas.

Held against: transformers (Inkling, Inkling 2); FoX, Wall attention and GRAPE-A against their formulas written anew,
which the authors' own code of FoX and GRAPE-A equals in float64.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from common import close, randomise, same_with_gradients
from torch import Tensor
from transformers.models.inkling.configuration_inkling import InklingTextConfig
from transformers.models.inkling.modeling_inkling import InklingAttention, InklingRelativeLogits
from transformers.models.inkling2.modeling_inkling2 import Inkling2ScaledL2Clip

from headway import Attention, Causal, HeadShape, KVCache, Window
from headway.positions import Fox, GrapeA, GrapeM, Inkling, Rotary, TermInputs
from headway.positions.alibi import slopes
from headway.positions.fox import forgetting

PADDED = torch.tensor([[-1, -1, 0, 1, 2, 3, 40], [0, 1, 2, 3, 4, 5, 6]])


def module(position: Any, heads: int = 3, kv_heads: int | None = None, **given: Any) -> Attention:
    """Causal attention in float64, all parameters random."""
    made = Attention(8 * heads, heads, kv_heads=kv_heads, position=position, mask=Causal(), **given).double()
    randomise(made)
    return made


def projected(ours: Attention, x: Tensor) -> list[Tensor]:
    """Queries, keys and values of all query heads, (B, H, N, D)."""
    groups = ours.shape.heads // ours.shape.kv_heads
    q, *rest = (f(x).unflatten(-1, (-1, ours.shape.head_dim)).transpose(1, 2) for f in (ours.q, ours.k, ours.v))
    return [q, *(y.repeat_interleave(groups, 1) for y in rest)]


def out_of(ours: Attention, scores: Tensor, v: Tensor) -> Tensor:
    """What attention returns for scores (B, H, N, N), of which a query sees those up to its own."""
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    heads: Tensor = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
    return ours.o(heads.transpose(1, 2).flatten(2))


# --- FoX --------------------------------------------------------------------------------------------------------------


def forgotten(ours: Attention, x: Tensor) -> Tensor:
    """o_i = Σ_j softmax_j(q_i·k_j/√d + D_ij) v_j, D_ij = Σ_{t=j+1…i} log f_t, term by term as the paper defines it."""
    q, k, v = projected(ours, x)
    gate = ours.position.gate
    f = 1 / (1 + torch.exp(-(x @ gate.weight.T + gate.bias)))  # (B, N, H)
    tokens = x.shape[1]
    decay = [
        torch.stack([f[:, j + 1 : i + 1].log().sum(1) for j in range(tokens)], -1)  # (B, H, N)
        for i in range(tokens)
    ]
    return out_of(ours, q @ k.mT / math.sqrt(8) + torch.stack(decay, -2), v)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2)])
def test_fox_as_its_paper_writes_it(heads: int, kv_heads: int) -> None:
    ours = module("fox", heads, kv_heads)
    x = torch.randn(2, 40, 8 * heads, dtype=torch.float64, requires_grad=True)
    same_with_gradients(ours(x), forgotten(ours, x), [x, *ours.parameters()])


def test_fox_forgets_nothing_at_padding() -> None:
    """The authors' kernel, too, sets log f to 0 there; and gates know no positions, so a jump is no forgetting."""
    ours = module("fox")
    x = torch.randn(2, 7, 24, dtype=torch.float64, requires_grad=True)
    got = ours(x, pos=PADDED)
    same_with_gradients(got[0, 2:], forgotten(ours, x[:1, 2:])[0], [x, *ours.parameters()])
    close(got[1], forgotten(ours, x[1:])[0])
    middle = torch.tensor([[0, 1, -1, -1, 2, 3, 4]])
    kept = middle[0] >= 0
    close(ours(x[:1], pos=middle)[:, kept], forgotten(ours, x[:1, kept]))


def test_constant_gates_are_alibi() -> None:
    """log f = −m for all tokens gives −m·(i − j); the paper's remark."""
    ours, slope = module("fox"), torch.tensor([0.5, 0.25, 0.0]).double()
    with torch.no_grad():
        ours.position.gate.weight.zero_()
        ours.position.gate.bias.copy_(-(slope.exp() - 1).log())
    x, distance = torch.randn(1, 30, 24).double(), torch.arange(30)[:, None] - torch.arange(30)
    q, k, v = projected(ours, x)
    close(ours(x), out_of(ours, q @ k.mT / math.sqrt(8) - slope[:, None, None] * distance, v))


def test_the_newest_keys_are_exact_in_float32_at_any_length() -> None:
    """An uncentred float32 sum over 200 000 gates would err by 0.01 for the keys that weigh most."""
    gates = torch.nn.functional.logsigmoid(torch.randn(1, 1, 200_000))
    total = gates.double().cumsum(-1)
    exact = (total[..., -1:] - total)[..., -100:]
    close(forgetting(gates.double().cumsum(-1), torch.float32).bias[..., -100:].double(), exact, 1e-6)
    assert (gates.cumsum(-1)[..., -1:] - gates.cumsum(-1))[..., -100:].sub(exact).abs().max() > 1e-3


def test_fox_decodes_from_cached_gates() -> None:
    ours = module(Fox())
    x = torch.randn(2, 12, 24).double()
    cache = KVCache()
    close(torch.cat([ours(piece, cache=cache) for piece in x.split([7, 1, 3, 1], 1)], 1), forgotten(ours, x))
    assert cache.marks.shape == (2, 12, 3)


# --- Wall attention ---------------------------------------------------------------------------------------------------


def walled(ours: Attention, x: Tensor) -> Tensor:
    """Σ_c q_ic k_jc Π_{t=j+1…i} f_tc / √d, gate by gate, and what FoX adds where there is a gate per head too."""
    q, k, v = projected(ours, x)
    f = ours.position.gate(x).sigmoid().unflatten(-1, (q.shape[1], -1)).transpose(1, 2)  # (B, H, N, D)
    tokens = x.shape[1]
    rows = []
    for i in range(tokens):
        kept = [f[:, :, j + 1 : i + 1].prod(2) for j in range(i + 1)] + [torch.zeros_like(f[:, :, 0])] * (
            tokens - 1 - i
        )
        rows.append((q[:, :, i, None] * torch.stack(kept, 2) * k).sum(-1) / math.sqrt(8))
    scores = torch.stack(rows, 2)
    if ours.position.forget:
        logs = torch.nn.functional.logsigmoid(ours.position.forget_gate(x)).cumsum(1).transpose(1, 2)
        scores = scores + logs[..., None] - logs[..., None, :]
    return out_of(ours, scores, v)


@pytest.mark.parametrize("spec", ["wall", "wall(bias=0.0)", "wall(forget=True)"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2)])
def test_wall_as_its_authors_write_it(spec: str, heads: int, kv_heads: int) -> None:
    ours = module(spec, heads, kv_heads)
    x = torch.randn(2, 40, 8 * heads, dtype=torch.float64, requires_grad=True)
    same_with_gradients(ours(x), walled(ours, x), [x, *ours.parameters()])


def test_wall_without_forgetting_is_no_position() -> None:
    ours, plain = module("wall"), module("none")
    with torch.no_grad():
        ours.position.gate.weight.zero_()
        ours.position.gate.bias.fill_(700.0)
    plain.load_state_dict({name: x for name, x in ours.state_dict().items() if not name.startswith("position")})
    x = torch.randn(2, 40, 24, dtype=torch.float64)
    close(ours(x), plain(x))


# --- Inkling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "extent"), [(30, 7), (30, 30), (9, 40)])
def test_inkling_bias(tokens: int, extent: int) -> None:
    """transformers' bias of a token's r, at all distances, future ones and those beyond too."""
    ours = Inkling(rank=5, extent=extent).attach(HeadShape.of(24, 3)).double()
    randomise(ours)
    theirs = InklingRelativeLogits(5, extent).double()
    theirs.proj = torch.nn.Parameter(ours.bank.detach().T.clone())
    q_pos, k_pos = torch.arange(tokens)[None, tokens // 2 :], torch.arange(tokens)[None]
    x = torch.randn(2, tokens, 24, dtype=torch.float64, requires_grad=True)
    q = torch.zeros(2, 3, q_pos.shape[1], 8).double()
    (term,) = ours.terms(TermInputs(q, torch.zeros(2, 3, tokens, 8).double(), q_pos, k_pos, 1.0, ours.mark(x)))
    r = (x @ ours.weight.T).view(2, tokens, 3, 5)[:, tokens // 2 :]
    got, expected = term.tile(q_pos, k_pos), theirs(r, q_pos[0], k_pos[0])
    same_with_gradients(got, expected, [x, ours.weight])
    weight = torch.randn_like(got)
    (bank,) = torch.autograd.grad((got * weight).sum(), [ours.bank])
    close(bank, torch.autograd.grad((expected * weight).sum(), [theirs.proj])[0].T)


@pytest.mark.parametrize("kind", ["hybrid", "hybrid_sliding"])
def test_inkling_attention(kind: str) -> None:
    """All of it but the short convolutions of keys and values; transformers normalises and takes softmax in float32."""
    sizes = {"head_dim": 8, "num_attention_heads": 6, "num_key_value_heads": 2}
    config = InklingTextConfig(
        hidden_size=20,
        d_rel=5,
        rel_extent=11,
        sliding_window_size=9,
        log_scaling_n_floor=13,
        layer_types=[kind],
        num_hidden_layers=1,
        attn_implementation="eager",
        **sizes,
        **{f"swa_{name}": value for name, value in sizes.items()},
    )
    theirs = InklingAttention(config, 0).double()
    torch.nn.init.zeros_(theirs.rel_logits_proj.proj)  # memory as it was found
    randomise(theirs)
    theirs.k_sconv = theirs.v_sconv = Identity()
    near = kind == "hybrid_sliding"
    position = Inkling(rank=5, extent=9 if near else 11, floor=0 if near else 13)
    given = {"kv_heads": 2, "head_dim": 8, "scale": 1 / 8, "qk_norm": True}
    ours = Attention(20, 6, position=position, mask=Window(8) if near else Causal(), **given).double()
    pairs = {getattr(ours, name).weight: getattr(theirs, f"{name}_proj").weight for name in "qkvo"}
    pairs |= {ours.q_norm.weight: theirs.q_norm.weight, ours.k_norm.weight: theirs.k_norm.weight}
    pairs |= {ours.position.weight: theirs.r_proj.weight, ours.position.bank: theirs.rel_logits_proj.proj}
    with torch.no_grad():
        for mine, other in pairs.items():
            mine.copy_(other if mine is not ours.position.bank else other.T)
    x = torch.randn(2, 40, 20, dtype=torch.float64)
    distance = torch.arange(40)[:, None] - torch.arange(40)
    hidden = torch.where((distance < 0) | (distance > (8 if near else 40)), -torch.inf, 0.0).double()
    expected, got = theirs(x, hidden[None, None])[0], ours(x)
    close(got, expected, 1e-5)
    weight = torch.randn_like(got)
    found = torch.autograd.grad((got * weight).sum(), list(pairs))
    for g, e in zip(found, torch.autograd.grad((expected * weight).sum(), list(pairs.values())), strict=True):
        close(g, e if g.shape == e.shape else e.T, 1e-4)


class Identity(torch.nn.Module):
    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return x


def test_inkling_2_clips_the_length_of_r() -> None:
    """transformers computes it in float32."""
    ours = Inkling(rank=5, clip=1.5).attach(HeadShape.of(24, 3)).double()
    randomise(ours)
    theirs = Inkling2ScaledL2Clip(3, 5, 1.5)
    theirs.scale = torch.nn.Parameter(ours.gain.detach().clone())
    x = torch.randn(2, 30, 24, dtype=torch.float64)
    x[:, :10] /= 20  # some are shorter
    r = (x @ ours.weight.T).view(2, 30, 3, 5)
    got, expected = ours.mark(x), theirs(r)
    assert 0 < (got.norm(dim=-1) > 1.4999).sum() < 180
    close(got, expected, 1e-5)
    weight = torch.randn_like(got)
    (gain,) = torch.autograd.grad((got * weight).sum(), [ours.gain])
    close(gain, torch.autograd.grad((expected * weight).sum(), [theirs.scale])[0], 1e-4)


# --- GRAPE ------------------------------------------------------------------------------------------------------------


def generator(ours: GrapeM, head: int) -> Tensor:
    """L = Σ_p ω_p (b_p a_pᵀ − a_p b_pᵀ): the paper's (2.1) summed over planes, the other sign: a rotates to b."""
    width, pairs = ours.shape.head_dim, ours.rate.shape[1]
    frame = torch.eye(width).double()
    if ours.planes:
        square = torch.zeros(width, width).double()
        square[:, : 2 * pairs] = ours.basis[head]
        frame = torch.matrix_exp(square - square.T)
    total = torch.zeros(width, width).double()
    for p in range(pairs):
        a, b = (p, p + pairs) if ours.pairing == "half" else (2 * p, 2 * p + 1)
        omega = ours.base ** (-p / pairs) * torch.exp(ours.rate[0 if ours.shared else head, p] / ours.slowness)
        a, b = frame[:, a], frame[:, b]
        total = total + omega * (torch.outer(b, a) - torch.outer(a, b))
    return total


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2)])
@pytest.mark.parametrize(
    "position",
    [
        GrapeM(),
        GrapeM(shared=False, pairing="interleaved"),
        GrapeM(planes=1),
        GrapeM(planes=3, shared=False, base=50.0, slowness=2.0),
        GrapeM(planes=4, pairing="interleaved"),
    ],
    ids=lambda position: position.spec(),
)
def test_grape_m_is_an_exponential(position: GrapeM, heads: int, kv_heads: int) -> None:
    """q_iᵀ exp((pos_j − pos_i) L) k_j, the relative law of the paper's section 2.5, by torch's matrix exponential.

    No independent code: of GRAPE-M with learned planes; the authors published it with those of rotary.
    """
    ours = module(position.fresh(), heads, kv_heads)
    x = torch.randn(2, 12, 8 * heads, dtype=torch.float64, requires_grad=True)
    pos = torch.tensor([0, 1, 2, 3, 5, 8, 9, 30, 31, 100, 200, 300])
    q, k, v = projected(ours, x)
    scores = torch.zeros(2, heads, 12, 12).double()
    for head in range(heads):
        turn = torch.matrix_exp(
            (pos - pos[:, None])[..., None, None] * generator(ours.position, head * kv_heads // heads)
        )
        scores[:, head] = torch.einsum("bid,ijde,bje->bij", q[:, head], turn, k[:, head]) / math.sqrt(8)
    same_with_gradients(ours(x, pos=pos), out_of(ours, scores, v), [x, *ours.parameters()], 1e-8)


def test_any_generator_of_rank_2_is_a_plane_and_a_rate() -> None:
    """exp(n L) for any a and b, by the paper's closed form, rotates an orthonormal plane by n·√(αβ − γ²)."""
    ours = GrapeM(planes=1).attach(HeadShape.of(8, 1)).double()
    randomise(ours)
    first, second = ours.frame()[0].detach().T
    a, b = 0.7 * first, 0.2 * first + 1.3 * second  # γ is not 0
    s = math.sqrt(a @ a * (b @ b) - (a @ b) ** 2)
    with torch.no_grad():
        ours.rate.fill_(16 * math.log(s))
    skew = torch.outer(b, a) - torch.outer(a, b)
    x = torch.randn(1, 1, 5, 8).double()
    pos = torch.tensor([[0, 1, 2, 50, 1000]])
    closed = [
        torch.eye(8) + math.sin(n * s) / s * skew + (1 - math.cos(n * s)) / s**2 * skew @ skew for n in pos[0].tolist()
    ]
    close(ours.rotate(x, x, pos, pos)[0][0, 0], torch.stack([g @ y for g, y in zip(closed, x[0, 0], strict=True)]))


def test_weights_of_the_authors_sign() -> None:
    """Their a bᵀ − b aᵀ gives the scores of ours once the second half of each head's rows is negated."""
    ours = GrapeM().attach(HeadShape.of(16, 2)).double()
    randomise(ours)
    q, k = torch.randn(2, 1, 2, 5, 8).double()
    pos = torch.tensor([[0, 1, 3, 50, 1000]])
    theirs = [
        torch.stack([torch.matrix_exp(-n * generator(ours, 0).detach()) @ x[0, 0, i] for i, n in enumerate(pos[0])])
        for x in (q, k)
    ]
    sign = torch.tensor([1.0] * 4 + [-1.0] * 4).double()
    got = ours.rotate(q * sign, k * sign, pos, pos)
    close((got[0] @ got[1].mT)[0, 0], theirs[0] @ theirs[1].T)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("planes", [0, 4])
def test_grape_m_starts_as_rotary(planes: int, pairing: str) -> None:
    ours = GrapeM(planes=planes, pairing=pairing).attach(HeadShape.of(24, 3)).bfloat16()
    q, pos = torch.randn(2, 2, 3, 9, 8), torch.tensor([[0, 1, 2, 3, 100, 1000, 10**5, 10**6, -1]])
    for got, expected in zip(ours.rotate(*q, pos, pos), Rotary(pairing=pairing).rotate(*q, pos, pos), strict=True):
        close(got, expected, 1e-6)


def decayed(ours: Attention, x: Tensor, pos: Tensor) -> Tensor:
    """The paper's (4.6), with the authors' ω = softplus(w)·slope and unit vectors, one pair at a time."""
    position, (q, k, v) = ours.position, projected(ours, x)
    scores = q @ k.mT / math.sqrt(8)
    bias = torch.zeros_like(scores)
    for h in range(ours.shape.heads):
        omega = torch.log(1 + torch.exp(position.slope[h])) * slopes(ours.shape.heads)[h]
        for i in range(x.shape[1]):
            for j in range(i + 1):
                rate = torch.zeros(len(x)).double()
                for gate, content in (("query_gate", q[:, h, i]), ("key_gate", k[:, h, j])):
                    if hasattr(position, gate):
                        vector = getattr(position, gate)[h]
                        vector = vector / vector.norm() if position.unit else vector
                        rate = rate + torch.log(1 + torch.exp(content @ vector / math.sqrt(8)))
                bias[:, h, i, j] = (pos[j] - pos[i]) * omega * rate
    return out_of(ours, scores + bias, v)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2)])
@pytest.mark.parametrize("gate", ["both", "query", "key"])
@pytest.mark.parametrize("unit", [True, False])
def test_grape_a_as_its_paper_writes_it(gate: str, unit: bool, heads: int, kv_heads: int) -> None:
    ours = module(GrapeA(gate=gate, unit=unit), heads, kv_heads)
    x = torch.randn(2, 7, 8 * heads, dtype=torch.float64, requires_grad=True)
    pos = torch.tensor([0, 1, 2, 5, 9, 10, 40])
    same_with_gradients(ours(x, pos=pos), decayed(ours, x, pos), [x, *ours.parameters()])
    close(ours(x, pos=PADDED)[0, 2:], decayed(ours, x[:1, 2:], PADDED[0, 2:])[0])


def test_grape_a_with_constant_gates_is_alibi() -> None:
    ours, alibi = module(GrapeA(gate="key", unit=False)), module("alibi")
    alibi.load_state_dict({name: p for name, p in ours.state_dict().items() if "position" not in name})
    with torch.no_grad():
        ours.position.key_gate.zero_()
        ours.position.slope.fill_(math.log(math.expm1(1 / math.log(2))))  # softplus(0) = ln 2
    x = torch.randn(2, 30, 24).double()
    close(ours(x), alibi(x))
