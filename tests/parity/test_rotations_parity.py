"""Rotations of other kinds. No package installed here implements them, so each is compared with its paper's formula,
written anew pair of tokens by pair of tokens, in float64; values and gradients.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from common import randomise, refusal
from torch import Tensor
from torch.nn.functional import softplus

from headway import Attention, HeadShape, Rotary
from headway.positions import ComRope, Hope, HopeLorentz, Pope, parse

HEADS, KV_HEADS, WIDTH = 6, 2, 8
POS = torch.tensor([[-1, 0, 1, 2, 5, 40, 900], [3, 4, 5, 6, 700, 2000, 2001]])


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


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
    q, k, terms = position.act(q, k, pos, pos, 1.0, marks)
    content = q @ k.repeat_interleave(HEADS // KV_HEADS, 1).mT
    return content + sum(term.rows(content, None, pos, pos) for term in terms)


def pairwise(q: Tensor, k: Tensor, score: Any) -> Tensor:
    """score(b, h, key head, i, j) of all pairs, (B, H, N, N)."""
    batch, heads, tokens, _ = q.shape
    group = heads // k.shape[1]
    cells = itertools.product(range(batch), range(heads), range(tokens), range(tokens))
    return torch.stack([score(b, h, h // group, i, j) for b, h, i, j in cells]).view(batch, heads, tokens, tokens)


def compare(got: Tensor, expected: Tensor, inputs: list[Tensor], tolerance: float = 1e-9) -> None:
    close(got, expected, tolerance)
    weight = torch.randn_like(got)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), inputs) for x in (got, expected))
    for g, e in zip(ours, theirs, strict=True):
        close(g, e, tolerance * max(1.0, e.abs().max().item()))


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
    q_turned, k_turned = position.rotate(q, k, where, where)
    close(q_turned[1, 5, 3], turned[1, 1, 3] @ q[1, 5, 3])
    got = q_turned @ k_turned.repeat_interleave(3, 1).mT
    compare(got, expected, [q, k, *position.parameters()], 1e-7)


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
    """Frequencies 1, 0.1, 0.01, 0.001 make a full turn in 6.3, 62.8, 628.3 and 6283.2 tokens."""
    q, k = queries_and_keys()
    kept = [p for p in range(4) if 2 * math.pi * 10.0**p <= original]
    got = scores(made(f"hope(original={original}, pairing={pairing!r})"), q, k, POS)

    def score(b: int, h: int, g: int, i: int, j: int) -> Tensor:
        n, total = POS[b, i] - POS[b, j], torch.zeros(()).double()
        for p in range(4):
            one, two = (p, p + 4) if pairing == "half" else (2 * p, 2 * p + 1)
            angle = n.double() * (10.0**-p if p in kept else 0.0)
            (a, c), (e, f) = (x[[one, two]] for x in (q[b, h, i], k[b, g, j]))
            total = total + (a * e + c * f) * angle.cos() + (c * e - a * f) * -angle.sin()
        return total

    compare(got, pairwise(q, k, score), [q, k])
    assert kept


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

    compare(scores(position, q, k, pos), pairwise(q, k, score), [q, k], 1e-8)


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

    compare(scores(position, q, k, POS), pairwise(q, k, score), [q, k, position.phase])


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
