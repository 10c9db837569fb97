"""Laws of backends: as exact as plain PyTorch, values and all gradients; whatever the strides; the same bits twice.

They run over signatures of terms, not over methods, and over the backends that are written down to accept each
(signatures.py): one that refuses such a call fails.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from common import assert_as_exact, every_method, make, naive, refused, through, values_and_gradients
from signatures import HERE, accepts, every_pair, every_signature, representatives, signature

from headway import Causal, Documents, HeadwayError, Prefix, Window, attend

ATOM = {"sdpa": 2**-18}
"""torch's fused CPU kernel takes exp to 20 bits only (Vectorized::exp_u20), in float32 too; a gradient is a product of
several such factors."""


@dataclass
class Case:
    tokens: int
    head_dim: int
    heads: int
    kv_heads: int
    mask: Any
    dtype: torch.dtype
    start: int = 0
    """The first position."""
    keys: int | None = None

    def __str__(self) -> str:
        mask = type(self.mask).__name__ if self.mask else "full"
        return f"{self.tokens}x{self.head_dim}-{self.heads}of{self.kv_heads}-{mask}-{self.dtype}".replace("torch.", "")


CASES = [
    Case(1, 64, 4, 4, Causal(), torch.float32),
    Case(2, 64, 3, 1, None, torch.float32, start=10**6),
    Case(63, 59, 6, 2, Window(17), torch.float32),
    Case(113, 80, 6, 3, Causal(), torch.bfloat16),
    Case(63, 64, 12, 4, None, torch.bfloat16, keys=113),
    Case(151, 64, 2, 1, Causal() | Prefix(20), torch.float32),
    Case(151, 64, 3, 1, Window(30, 30), torch.bfloat16, start=1000),
    Case(63, 80, 5, 5, Causal() & Documents((torch.arange(63) // 20)[None]), torch.float32),
]
MORE = [
    Case(239, 32, 3, 3, Causal() | Prefix(20), torch.float32),
    Case(239, 64, 2, 1, Causal(), torch.float32),
    Case(239, 64, 3, 1, Window(30, 30), torch.bfloat16, start=1000),
]
LONG = Case(799, 32, 2, 1, Causal(), torch.float32)


def takes(spec: str, head_dim: int) -> bool:
    try:
        make(spec, head_dim=head_dim)
    except HeadwayError:
        return False
    return True


def fused(spec: str) -> bool:
    """Whether a kernel leaves tiles out by the terms' values, which shows in long texts only."""
    return accepts(spec, "native", Causal(), LONG.tokens) and not signature(spec).startswith("ChannelDecay")


ODD, EVEN = ([case for case in CASES if case.head_dim % 2 == odd] for odd in (1, 0))


def test_methods_that_pair_dimensions_take_no_odd_heads() -> None:
    assert [spec for spec in representatives().values() if not takes(spec, 59)] == ["hopelorentz"]


@every_signature("backends", lambda spec: takes(spec, 59))
@pytest.mark.parametrize("case", ODD, ids=str)
def test_as_exact_as_plain_pytorch_with_odd_heads(spec: str, case: Case) -> None:
    judge(spec, case)


@every_signature("backends")
@pytest.mark.parametrize("case", EVEN, ids=str)
def test_as_exact_as_plain_pytorch(spec: str, case: Case) -> None:
    judge(spec, case)


@pytest.mark.slow
@every_signature("backends")
@pytest.mark.parametrize("case", MORE, ids=str)
def test_as_exact_as_plain_pytorch_in_more_cases(spec: str, case: Case) -> None:
    judge(spec, case)


@every_signature("backends", fused)
def test_as_exact_as_plain_pytorch_with_many_tokens(spec: str) -> None:
    judge(spec, LONG)


@pytest.mark.slow
@every_signature("backends", lambda spec: not fused(spec))
def test_as_exact_as_plain_pytorch_with_many_tokens_in_blocks(spec: str) -> None:
    judge(spec, LONG)


def judge(spec: str, case: Case) -> None:
    """Hold every backend of this machine that accepts the case against float64, and see the others refuse."""
    position = make(spec, case.heads, case.kv_heads, case.head_dim)
    keys = case.keys or case.tokens
    k_pos = torch.arange(case.start, case.start + keys)[None]
    q_pos = k_pos[:, -case.tokens :]
    shapes = ((case.heads, case.tokens), (case.kv_heads, keys), (case.kv_heads, keys))
    position = position.to(case.dtype)
    given = {"mask": case.mask, "q_pos": q_pos, "k_pos": k_pos}
    exact = copy.deepcopy(position).double()
    # of more pairs, more come so close to a kink that a rounding decides
    jump = (1e-2 if case is LONG else 1e-3) if "kinks" in position.exempt else 0.0
    accepting = [backend for backend in HERE if accepts(spec, backend, case.mask, case.tokens, keys, case.start)]
    assert "reference" in accepting

    def draw(draws: int) -> None:
        batch = 1 if case is LONG else 2
        inputs = [[torch.randn(batch, *shape, case.head_dim).to(case.dtype) for shape in shapes] for _ in range(draws)]
        weight = torch.randn(batch, case.heads, case.tokens, case.head_dim).to(case.dtype)
        wide = [[x.double() for x in draw] for draw in inputs]
        truth = [values_and_gradients(exact, draw, weight.double(), naive, **given) for draw in wide]
        plain = [values_and_gradients(position, draw, weight, naive, **given) for draw in inputs]
        for backend in accepting:
            got = [values_and_gradients(position, draw, weight, attend, backend=backend, **given) for draw in inputs]
            assert_as_exact(got, plain, truth, ATOM.get(backend, 0.0), jump)
        for backend in {*HERE} - {*accepting}:
            with refused(backend):
                through(position, *inputs[0], attend, backend=backend, **given)

    # plain PyTorch may err by next to nothing, by chance: then the worst of several draws counts, on both sides
    for draws in (8 if case.tokens <= 2 else 1, 4):
        try:
            draw(draws)
        except AssertionError:
            continue
        return
    draw(9)


@every_method("backends")
def test_the_reference_refuses_nothing(spec: str) -> None:
    position, pos = make(spec), torch.arange(5)[None]
    q, k, v = torch.randn(3, 1, 4, 5, 8)
    out = through(position, q, k, v, attend, mask=Causal(), q_pos=pos, k_pos=pos, backend="reference")
    assert out.shape == q.shape


@every_pair("backends", 9, Causal())
def test_strides_do_not_matter(spec: str, backend: str, mask: Any) -> None:
    position, pos = make(spec, heads=4, kv_heads=1), torch.arange(9)[None]
    q = torch.randn(9, 8, 4, 2).permute(3, 2, 0, 1)
    k = torch.randn(1, 1, 9, 8).expand(2, 1, 9, 8)
    v = torch.randn(2, 9, 1, 16).transpose(1, 2)[..., ::2]
    given = {"mask": mask, "q_pos": pos, "k_pos": pos, "backend": backend}
    got = through(position, q, k, v, attend, **given)
    expected = through(position, q.contiguous(), k.contiguous(), v.contiguous(), attend, **given)
    torch.testing.assert_close(got, expected)


@every_pair("determinism", 113, Causal())
def test_two_runs_give_the_same_bits(spec: str, backend: str, mask: Any) -> None:
    position, pos = make(spec, heads=4, kv_heads=2, head_dim=32), torch.arange(113)[None]
    inputs = [torch.randn(2, heads, 113, 32) for heads in (4, 2, 2)]
    given = {"mask": mask, "q_pos": pos, "k_pos": pos, "backend": backend}
    first, second = (values_and_gradients(position, inputs, torch.ones(1), attend, **given) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
