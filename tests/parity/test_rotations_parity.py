"""Rotations of other kinds, and positions drawn at random. No package installed here implements them, so each is
compared with its paper's formula, written anew pair of tokens by pair of tokens, in float64; values and gradients.

Held against: the papers' formulas written anew; the authors' own code of ComRoPE, both HoPEs and PoPE equals them in
float64.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from common import attention, close, randomise, refusal, same_with_gradients, transformer
from torch import Tensor
from torch.nn.functional import softplus

from headway import Attention, Causal, HeadShape, KVCache, Rotary, Sinusoidal
from headway.positions import ComRope, Hope, HopeLorentz, Pope, Randomized, SelectiveRotary, TermInputs, parse

HEADS, KV_HEADS, WIDTH = 6, 2, 8
POS = torch.tensor([[-1, 0, 1, 2, 5, 40, 900], [3, 4, 5, 6, 700, 2000, 2001]])


def made(spec: str, width: int = WIDTH) -> Any:
    """A method in float64, all parameters random."""
    position = parse(spec).attach(HeadShape.of(HEADS * width, HEADS, KV_HEADS, width)).double()
    randomise(position)
    return position


def queries_and_keys(width: int = WIDTH) -> tuple[Tensor, Tensor]:
    q = torch.randn(2, HEADS, 7, width, dtype=torch.float64, requires_grad=True)
    return q, torch.randn(2, KV_HEADS, 7, width, dtype=torch.float64, requires_grad=True)


def scores(position: Any, q: Tensor, k: Tensor, pos: Tensor, marks: Tensor | None = None) -> Tensor:
    """Scores without a scale, of all pairs of tokens, (B, H, N, N)."""
    q, k = position.rotate(q, k, pos, pos)
    q, k, terms = position.prepare(q, k, pos, pos, 1.0, marks)
    content = q @ k.repeat_interleave(HEADS // KV_HEADS, 1).mT
    return content + sum(term.tile(pos, pos) for term in terms)


def pairwise(q: Tensor, k: Tensor, score: Any) -> Tensor:
    """score(b, h, key head, i, j) of all pairs, (B, H, N, N)."""
    batch, heads, tokens, _ = q.shape
    group = heads // k.shape[1]
    cells = itertools.product(range(batch), range(heads), range(tokens), range(tokens))
    return torch.stack([score(b, h, h // group, i, j) for b, h, i, j in cells]).view(batch, heads, tokens, tokens)


# --- ComRoPE ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ld", "ap"])
@pytest.mark.parametrize(("block", "dims"), [(8, 1), (4, 2), (3, 3), (2, 1)])
def test_comrope_is_the_exponential_of_commuting_matrices(kind: str, block: int, dims: int) -> None:
    """exp of the whole d_k × d_k matrix, made of A_1 … A_N as the paper writes them."""
    width = 3 * block
    position = made(f"comrope(dims={dims}, block={block}, kind={kind!r})", width)
    q, k = queries_and_keys(width)
    where = torch.randint(0, 50, (2, 7, dims))

    def rotation(head: int, x: Tensor) -> Tensor:
        total = torch.zeros(width, width, dtype=torch.float64)
        for axis in range(dims):
            blocks = []
            for j in range(3):
                skew = position.matrix[head, j] - position.matrix[head, j].T
                factor = position.angle[axis, j] if kind == "ld" else float(j % dims == axis)
                blocks.append(skew * factor)
            total = total + x[axis] * torch.block_diag(*blocks)
        return torch.matrix_exp(total)

    turned = {(b, g, i): rotation(g, where[b, i]) for b in range(2) for g in range(KV_HEADS) for i in range(7)}
    expected = pairwise(q, k, lambda b, h, g, i, j: (turned[b, g, i] @ q[b, h, i]) @ (turned[b, g, j] @ k[b, g, j]))
    q_rotated, k_rotated = position.rotate(q, k, where, where)
    close(q_rotated[1, 5, 3], turned[1, 1, 3] @ q[1, 5, 3])
    got = q_rotated @ k_rotated.repeat_interleave(3, 1).mT
    same_with_gradients(got, expected, [q, k, *position.parameters()], 1e-7)


def test_comrope_in_blocks_of_two_is_rotary_with_learned_frequencies() -> None:
    position = ComRope(block=2, kind="ap").attach(HeadShape.of(HEADS * WIDTH, HEADS, KV_HEADS)).double()
    rates = Rotary().rates(WIDTH, torch.device("cpu"))
    with torch.no_grad():
        position.matrix.zero_()
        position.matrix[..., 1, 0] = rates  # [0, −ω; ω, 0]
    q, k = queries_and_keys()
    expected = Rotary(pairing="interleaved").rotate(q, k, POS, POS)
    for g, e in zip(position.rotate(q, k, POS, POS), expected, strict=True):
        close(g, e)


def test_what_comrope_refuses() -> None:
    with refusal("expected comrope dims of at least 1, got 0"):
        ComRope(dims=0)
    with refusal("expected a comrope block of at least 2, got 1"):
        ComRope(block=1)
    with refusal("expected comrope kind ld or ap, got 'x'"):
        ComRope(kind="x")
    with refusal("expected comrope std above 0, got 0.0"):
        ComRope(std=0.0)
    with refusal("expected comrope block to divide the head width, got block=8 and 12"):
        Attention(48, 4, position=ComRope())
    with refusal("expected a comrope block for each of 2 axes, got 1 in a head: give a smaller block"):
        Attention(32, 4, position=ComRope(dims=2, kind="ap"))


# --- HoPE, twice --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("original", [7, 62, 63, 64, 628, 629, 10**6])
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_hope_turns_only_what_makes_a_full_turn_in_training(original: int, pairing: str) -> None:
    """Frequencies 1, 0.1, 0.01, 0.001 make a full rotation in 6.3, 62.8, 628.3 and 6283.2 tokens."""
    q, k = queries_and_keys()
    kept = [2 * math.pi * 10.0**p <= original for p in range(4)]
    rates = torch.tensor([10.0**-p if turns else 0.0 for p, turns in enumerate(kept)], dtype=torch.float64)
    one, two = (slice(4), slice(4, 8)) if pairing == "half" else (slice(0, 8, 2), slice(1, 8, 2))
    got = scores(made(f"hope(original={original}, pairing={pairing!r})"), q, k, POS)

    def score(b: int, h: int, g: int, i: int, j: int) -> Tensor:
        angle = (POS[b, i] - POS[b, j]) * rates
        (a, c), (e, f) = ((x[one], x[two]) for x in (q[b, h, i], k[b, g, j]))
        return ((a * e + c * f) * angle.cos() - (c * e - a * f) * angle.sin()).sum()

    same_with_gradients(got, pairwise(q, k, score), [q, k])
    assert any(kept)


def test_what_hope_refuses() -> None:
    with refusal("expected hope original, the training length, of at least 7, got 6"):
        Hope(original=6)
    with refusal("expected a finite rotary base above 0, got 0.0"):
        Hope(base=0.0)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_boosts_are_lorentz_boosts_of_damped_queries_and_keys(pairing: str) -> None:
    """e^{−mθ'} B(mω) q against e^{nθ'} B(−nω) k, both made as the paper writes them, for keys of the past. Only near
    tokens: at position 13 the factors cost four digits, at 350 they leave float64.
    """
    position = HopeLorentz(base=100.0, damping=1.25, pairing=pairing)
    q, k = queries_and_keys()
    pos = torch.tensor([[0, 1, 2, 3, 3, 5, 6], [-1, 0, 1, 2, 4, 5, 6]])

    def boosted(x: Tensor, m: int, sign: int) -> Tensor:
        out = []
        for p in range(4):
            one, two = (p, p + 4) if pairing == "half" else (2 * p, 2 * p + 1)
            phi = torch.tensor(sign * m * 100.0 ** (-2 * p / WIDTH), dtype=torch.float64)
            a, b = x[one], x[two]
            out += [phi.cosh() * a + phi.sinh() * b, phi.sinh() * a + phi.cosh() * b]
        return torch.stack(out) * math.exp(-sign * m * 1.25)

    def score(b: int, h: int, g: int, i: int, j: int) -> Tensor:
        if j > i:  # the paper has no keys of the future: here they decay like those of the past
            early, late = int(pos[b, i]), int(pos[b, j])
            return boosted(q[b, h, i], late, 1) @ boosted(k[b, g, j], early, -1)
        return boosted(q[b, h, i], int(pos[b, i]), 1) @ boosted(k[b, g, j], int(pos[b, j]), -1)

    same_with_gradients(scores(position, q, k, pos), pairwise(q, k, score), [q, k], 1e-8)


def test_boosts_are_finite_at_any_distance() -> None:
    position, (q, k) = HopeLorentz(), queries_and_keys()
    pos = torch.tensor([[0, 1, 2, 3, 400, 10**5, 10**6]])
    got = scores(position, q, k, pos)
    assert got.isfinite().all()
    assert got[..., 6, :5].abs().max() < 1e-8
    assert all(g.isfinite().all() for g in torch.autograd.grad(got.sum(), (q, k)))


def test_what_hyperbolic_hope_refuses() -> None:
    with refusal("expected a hopelorentz base of at least 1, got 0.5"):
        HopeLorentz(base=0.5)
    with refusal("expected hopelorentz damping above 1, the largest frequency, got 1.0"):
        HopeLorentz(damping=1.0)
    with refusal("expected rotary pairing half or interleaved, got 'x'"):
        HopeLorentz(pairing="x")


# --- PoPE ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["zero", "uniform"])
@pytest.mark.parametrize("width", [8, 5])
def test_pope_is_magnitudes_and_cosines(start: str, width: int) -> None:
    position = made(f"pope(base=100.0, start={start!r})", width)
    with torch.no_grad():
        position.phase[0, :2] = torch.tensor([0.4, -7.0])  # beyond both ends
    q, k = queries_and_keys(width)
    rates = torch.tensor([100.0 ** (-c / width) for c in range(width)], dtype=torch.float64)

    def score(b: int, h: int, g: int, i: int, j: int) -> Tensor:
        phase = position.phase[g].clamp(-2 * math.pi, 0)
        angle = (POS[b, j] - POS[b, i]) * rates + phase
        return (softplus(q[b, h, i]) * softplus(k[b, g, j]) * angle.cos()).sum()

    same_with_gradients(scores(position, q, k, POS), pairwise(q, k, score), [q, k, position.phase])


def test_pope_begins_where_it_says() -> None:
    shape = HeadShape.of(64, 4)
    assert not Pope().attach(shape).phase.any()
    phase = Pope(start="uniform").attach(shape).phase
    assert -2 * math.pi <= phase.min() < -4 < -2 < phase.max() <= 0


def test_pope_can_leave_zero() -> None:
    """Clamping lets the gradient pass at its ends."""
    position, (q, k) = Pope().attach(HeadShape.of(48, HEADS, KV_HEADS, 8)).double(), queries_and_keys()
    scores(position, q, k, POS).sum().backward()
    assert position.phase.grad.abs().min() > 0


def test_what_pope_refuses() -> None:
    with refusal("expected a finite pope base above 0, got -1.0"):
        Pope(base=-1.0)
    with refusal("expected pope start zero or uniform, got 'x'"):
        Pope(start="x")


# --- selective rotary ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize(("dim", "conv"), [(48, 4), (48, 1), (51, 2)])
def test_selective_rotary_rotates_by_what_the_tokens_between_say(pairing: str, dim: int, conv: int) -> None:
    """The angle between i and j is τ_p·Σ φ over the tokens after j up to i, padding aside, φ a depthwise convolution of
    W₂ W₁ x̂ over ``conv`` tokens (Fig. 4 of the paper, and the authors' code). Of a model whose width the heads do not
    divide, a token as a whole has length 1. Written anew from the paper: the authors' code needs CUDA.
    """
    position = SelectiveRotary(base=100.0, rank=5, pairing=pairing, conv=conv).attach(
        HeadShape.of(dim, HEADS, KV_HEADS, WIDTH)
    )
    position = position.double()
    randomise(position)
    q, k = queries_and_keys()
    x = torch.randn(2, 7, dim, dtype=torch.float64, requires_grad=True)
    size, first, second = dim // HEADS if dim % HEADS == 0 else dim, position.inner.weight, position.outer.weight
    steps = {}
    for b in range(2):
        text = [t for t in range(7) if POS[b, t] >= 0]
        raw = {}
        for t in range(7):
            unit = torch.cat([part / part.square().sum().sqrt() for part in x[b, t].split(size)])
            raw[t], steps[b, t] = second @ (first @ unit), torch.zeros(KV_HEADS, 4).double()
        for at, t in enumerate(text):
            near = [raw[text[at - s]] * (position.taps[s] if conv > 1 else 1) for s in range(min(conv, at + 1))]
            steps[b, t] = sum(near[1:], start=near[0]).view(KV_HEADS, 4)

    def score(b: int, h: int, g: int, i: int, j: int) -> Tensor:
        between = sum((steps[b, t][g] for t in range(min(i, j) + 1, max(i, j) + 1)), start=torch.zeros(4).double())
        total = torch.zeros(()).double()
        for p in range(4):
            one, two = (p, p + 4) if pairing == "half" else (2 * p, 2 * p + 1)
            angle = between[p] * 100.0 ** (-2 * p / WIDTH) * (1 if i > j else -1)
            (a, c), (e, f) = (v[[one, two]] for v in (q[b, h, i], k[b, g, j]))
            total = total + (a * e + c * f) * angle.cos() + (a * f - c * e) * angle.sin()
        return total

    got = scores(position, q, k, POS, position.marked(x, POS))
    same_with_gradients(got, pairwise(q, k, score), [q, k, x, *position.parameters()])


def test_selective_rotary_of_equal_steps_is_rotary() -> None:
    position, (q, k) = made("selectiverotary(base=10000.0, conv=1)"), queries_and_keys()
    pos = torch.arange(7)[None]
    got = position.transform_qk(TermInputs(q, k, pos, pos, 1.0, torch.ones(1, 7, KV_HEADS * 4).double().cumsum(1)))
    far = [x @ y.repeat_interleave(3, 1).mT for x, y in (got, Rotary().rotate(q, k, pos, pos))]
    close(*far)


def test_a_context_s_queries_are_not_rotated() -> None:
    position, (q, k) = made("selectiverotary(conv=1)"), queries_and_keys()
    marks, pos = torch.randn(2, 7, KV_HEADS * 4).double(), torch.arange(7)[None]
    rotated, _ = position.transform_qk(TermInputs(q, k, pos, pos, 1.0, marks, crosses=True))
    assert rotated is q


def test_selective_rotary_starts_with_hardly_a_rotation() -> None:
    """As in the authors' code: angles of 4·10⁻⁴ per token at width 1024."""
    position = SelectiveRotary().attach(HeadShape.of(1024, 16))
    angles = position.marked(torch.randn(1, 50, 1024), torch.arange(50)[None])[:, :, 96:].diff(dim=1)
    assert 3e-4 < angles.std() < 5e-4


def test_what_selective_rotary_refuses() -> None:
    with refusal("expected a finite selectiverotary base above 0, got 0.0"):
        SelectiveRotary(base=0.0)
    with refusal("expected selectiverotary rank of at least 1, got 0"):
        SelectiveRotary(rank=0)
    with refusal("expected selectiverotary conv of at least 1 token, got 0"):
        SelectiveRotary(conv=0)
    with refusal("expected selectiverotary pairing half or interleaved, got 'x'"):
        SelectiveRotary(pairing="x")
    with refusal("expected an even head width, because selectiverotary rotates pairs, got 9: change heads or head_dim"):
        Attention(36, 4, position=SelectiveRotary())
    with refusal("expected a context as wide as the model, 16, because selectiverotary makes angles from it, got 20"):
        Attention(16, 2, position=SelectiveRotary(), context_dim=20)(
            torch.zeros(1, 2, 16), context=torch.zeros(1, 3, 20)
        )


# --- randomized positions -----------------------------------------------------------------------------------------


def test_drawn_positions_are_in_order() -> None:
    pos = torch.tensor([[-1, -1, 0, 1, 2, 3], [0, 1, 2, 0, 1, 4]])
    for _ in range(50):
        drawn = Randomized(longest=9).renumber(pos)
        assert (drawn[0, :2] == -1).all()
        assert (drawn[0, 2:].diff() > 0).all()
        assert 0 <= drawn[1, 0] < drawn[1, 1] < drawn[1, 2] < drawn[1, 5] < 9
        assert torch.equal(drawn[1, :2], drawn[1, 3:5])
    assert torch.equal(Randomized(longest=5).renumber(pos[1:]), pos[1:])  # all there are
    assert Randomized().renumber(pos[:, :0]).shape == (2, 0)
    assert torch.equal(Randomized().renumber(pos[:1, :2]), pos[:1, :2])


def test_every_subset_is_as_likely() -> None:
    torch.manual_seed(0)
    drawn = Randomized(longest=4).renumber(torch.tensor([[0, 1]]).expand(6000, 2))
    subsets, times = drawn.unique(dim=0, return_counts=True)
    assert len(subsets) == 6
    assert (times - 1000).abs().max() < 130  # four and a half standard deviations


@pytest.mark.parametrize("inside", ["rotary", "t5", "sinusoidal", "learned(max_length=300)"])
def test_training_is_the_method_at_drawn_positions(inside: str) -> None:
    module = attention(f"randomized(method={inside!r}, longest=300)", mask=Causal()).train()
    plain = attention(inside, mask=Causal())
    plain.load_state_dict({name.replace("position.inside", "position"): p for name, p in module.state_dict().items()})
    x, given = torch.randn(2, 9, 48).double(), torch.tensor([[-1, -1, 0, 1, 2, 3, 4, 5, 6], [*range(5), *range(4)]])
    for pos in (None, given):
        torch.manual_seed(5)
        drawn = module.position.renumber(torch.arange(9)[None] if pos is None else pos)
        expected = plain(x, pos=drawn)
        torch.manual_seed(5)
        got = module(x, pos=pos)
        close(got, expected)
        for g, e in zip(
            *(
                torch.autograd.grad(y.square().sum(), list(m.parameters()))
                for y, m in ((got, module), (expected, plain))
            ),
            strict=True,
        ):
            close(g, e)
        assert not torch.allclose(module(x, pos=pos), got, atol=1e-4)
    close(module.eval()(x), plain(x))
    close(module.train()(x, cache=KVCache()), plain(x))


def test_a_model_draws_once_for_all_layers() -> None:
    model, tokens = transformer("randomized", layers=3).train(), torch.randint(17, (2, 9))
    torch.manual_seed(5)
    drawn = model.position.renumber(torch.arange(9)[None])
    torch.manual_seed(5)
    close(model(tokens), model.eval()(tokens, pos=drawn))


def test_embeddings_of_any_model_are_at_drawn_positions() -> None:
    position, x = Randomized(method="sinusoidal"), torch.randn(2, 9, 16)
    torch.manual_seed(5)
    drawn = position.renumber(torch.arange(9)[None])
    torch.manual_seed(5)
    assert torch.equal(position(x), Sinusoidal()(x, drawn))
    assert torch.equal(position.eval()(x), Sinusoidal()(x))


def test_a_method_inside_keeps_its_nature() -> None:
    assert [parse(f"randomized(method={name!r})").relative for name in ("rotary", "sinusoidal")] == [True, False]
    assert [parse(f"randomized(method={name!r})").per_layer for name in ("rotary", "shaw")] == [False, True]
    assert parse("randomized(method='rotary(base=5.0)')").fresh().inside.base == 5


def test_what_randomized_refuses() -> None:
    message = "expected positions below longest=5, from which they are drawn, got 5: give randomized a larger longest"
    with refusal(message):
        Attention(16, 2, position="randomized(longest=5)")(torch.zeros(1, 6, 16))
    with refusal("expected randomized longest of at least 1, got 0"):
        Randomized(longest=0)
    with refusal("expected a method whose positions are not drawn already, got 'randomized'"):
        Randomized(method="randomized")


@pytest.mark.parametrize("size", [0.0, 1.0, 1000.0])
def test_the_exponential_of_exported_programs_is_torchs(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from headway.positions import grape

    x = torch.randn(2, 8, 8, dtype=torch.float64)
    x = x - x.mT
    x = x * size / torch.linalg.matrix_norm(x, 2).amax()
    exact = torch.linalg.matrix_exp(x)
    monkeypatch.setattr(grape, "exporting", lambda: True)
    torch.testing.assert_close(grape._exponential(x), exact, rtol=0, atol=1e-11)
