"""The tiled backend: every term under every mask is the reference, however it is cut; and memory grows with tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import refusal
from torch import Tensor

from headway import Causal, Dense, Documents, HeadwayError, Prefix, Window, attend
from headway.backends.diagonal_views import Band, diagonal_sums, folded, unrolled
from headway.backends.tiled import blocks
from headway.memory import peak_memory
from headway.terms import ByDistance, ByDistancePerKey, ByDistancePerQuery, Pairwise, PerKey, ValuesByDistance

B, H, KV, Q, D, DV = 2, 6, 2, 37, 8, 5


def leaf(*shape: int) -> Tensor:
    return (0.5 * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def by_distance(left: int, width: int) -> Any:
    return lambda q, k: (lambda t: (ByDistance(t, left), [t]))(leaf(H, width))


def with_tails(q: int, k: int) -> Any:
    table, tails = leaf(1, 5), leaf(H, 2)
    return ByDistance(table, 3, tails), [table, tails]


def pairwise(q: int, k: int) -> Any:
    # captured: a leaf, something computed from the same leaf, and a module's parameters
    weight = leaf(H, 3)
    derived, layer = weight.exp(), torch.nn.Linear(3, H).double()

    def fn(q_pos: Tensor, k_pos: Tensor) -> Tensor:
        gap = (k_pos[:, None] - q_pos[..., None]).double() / 10
        features = torch.stack((gap, gap.cos(), gap.sin()), -1)
        return (layer(features) + features @ (weight + derived).T).permute(0, 3, 1, 2)

    return Pairwise(fn), [weight, *layer.parameters()]


TERMS = {
    "none": lambda q, k: (None, []),
    "per key": lambda q, k: (lambda c: (PerKey(c), [c]))(leaf(B, 1, k)),
    "saturating": by_distance(4, 7),
    "one entry": by_distance(0, 1),
    "past only": by_distance(90, 12),
    "whole": by_distance(100, 201),
    "tails": with_tails,
    "per query": lambda q, k: (lambda t: (ByDistancePerQuery(t, 4), [t]))(leaf(B, H, q, 8)),
    "per query, wide": lambda q, k: (lambda t: (ByDistancePerQuery(t, 60), [t]))(leaf(1, H, q, 130)),
    "per key by distance": lambda q, k: (lambda t: (ByDistancePerKey(t, 4), [t]))(leaf(B, 1, k, 8)),
    "per key by distance, wide": lambda q, k: (lambda t: (ByDistancePerKey(t, 60), [t]))(leaf(1, H, k, 130)),
    "values": lambda q, k: (lambda t: (ValuesByDistance(t, 3), [t]))(leaf(H, 9, DV)),
    "values, shared": lambda q, k: (lambda t: (ValuesByDistance(t, 0), [t]))(leaf(1, 1, DV)),
    "pairwise": pairwise,
}
IDS = (torch.arange(Q) // 11)[None]
MASKS = {
    "full": None,
    "causal": Causal(),
    "window": Window(3),
    "wide window": Window(9, 15),
    "both": Causal() & Window(20, 5),
    "either": Window(2) | Window(0, 4),
    "prefix": Causal() | Prefix(torch.tensor([5, 9])),
    "documents": Causal() & Documents(torch.cat((IDS, IDS.flip(1)))),
    "dense": Dense(torch.rand(B, H, Q, Q, generator=torch.Generator().manual_seed(0)) > 0.7),
    "blind": Dense((torch.arange(Q) % 5 > 1)[None, None, :, None].expand(1, 1, Q, Q)),
}


def agree(terms: list[Any], leaves: list[Tensor], mask: Any, queries: int = Q, keys: int = Q, **given: Any) -> None:
    """Values and all gradients of the tiled backend are the reference's."""
    q, k, v = leaf(B, H, queries, D), leaf(B, KV, keys, D), leaf(B, KV, keys, DV)
    weight = torch.randn(B, H, queries, DV).double()
    results = []
    for backend in ("reference", "tiled"):
        out = attend(q, k, v, mask=mask, terms=terms, backend=backend, **given)
        found = torch.autograd.grad((out * weight).sum(), [q, k, v, *leaves], allow_unused=True, retain_graph=True)
        results.append([out, *(torch.zeros(()) if g is None else g for g in found)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected.expand_as(got), rtol=1e-9, atol=1e-10)


CUTS = {"one block": (64, 2**19), "blocks": (16, 700), "many blocks": (5, 1)}


@pytest.fixture(params=CUTS.values(), ids=CUTS)
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of fewer queries, and fewer heads and sequences at once."""
    rows, room = request.param
    monkeypatch.setattr(blocks, "ROWS", rows)
    monkeypatch.setattr(blocks, "FEWEST_ROWS", min(rows, 16))
    monkeypatch.setattr(blocks, "ROOM", {"cpu": room})


@pytest.mark.parametrize(
    "cut",
    [pytest.param(c, id=n, marks=() if n == "blocks" else pytest.mark.slow) for n, c in CUTS.items()],
    indirect=True,
)
@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("name", list(TERMS))
@pytest.mark.parametrize("mask", list(MASKS))
def test_every_term_under_every_mask(name: str, mask: str) -> None:
    term, leaves = TERMS[name](Q, Q)
    agree([] if term is None else [term], leaves, MASKS[mask])


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("mask", ["full", "causal", "wide window", "documents"])
def test_all_terms_at_once(mask: str) -> None:
    made = [TERMS[name](Q, Q) for name in TERMS if name not in ("none", "pairwise")]
    agree([term for term, _ in made], [x for _, leaves in made for x in leaves], MASKS[mask])


POSITIONS = {
    "a cache": (torch.arange(30, 37), torch.arange(37)),
    "one query": (torch.tensor([36]), torch.arange(37)),
    "far": (torch.arange(1000, 1009), torch.arange(995, 1020)),
    "blind on both sides": (torch.arange(0, 40), torch.arange(12, 20)),
    "padding": (
        torch.tensor([[-1, -1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]),
        torch.tensor([[-1, -1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]),
    ),
    "jumps": (torch.tensor([3, 9, 4, 60]), torch.tensor([7, 0, 3, 2, 9, 50])),
    "each its own start": (torch.tensor([[5], [9]]) + torch.arange(4), torch.arange(12)),
}


@pytest.mark.parametrize("cut", [(16, 700)], ids=["blocks"], indirect=True)
@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("where", list(POSITIONS))
@pytest.mark.parametrize("name", list(TERMS))
@pytest.mark.parametrize("mask", ["full", "causal", "wide window"])
def test_positions(where: str, name: str, mask: str) -> None:
    q_pos, k_pos = POSITIONS[where]
    queries, keys = q_pos.shape[-1], k_pos.shape[-1]
    term, leaves = TERMS[name](queries, keys)
    agree([] if term is None else [term], leaves, MASKS[mask], queries, keys, q_pos=q_pos, k_pos=k_pos)


def test_only_the_gradients_asked_for() -> None:
    q, k, v, table = leaf(B, H, Q, D), leaf(B, KV, Q, D), leaf(B, KV, Q, DV), leaf(H, 9)
    for wanted in (q, k, v, table):
        given = [x if x is wanted else x.detach() for x in (q, k, v, table)]
        found = [
            torch.autograd.grad(
                attend(*given[:3], terms=(ByDistance(given[3], 4),), backend=backend).square().sum(), wanted
            )[0]
            for backend in ("reference", "tiled")
        ]
        torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_rounded_once(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(1, 2, 200, 32).to(dtype).requires_grad_() for _ in range(3))
    table = torch.randn(2, 33, requires_grad=True)
    results = []
    for backend, wide in (("reference", torch.float64), ("tiled", dtype)):
        terms = (ByDistance(table.to(torch.promote_types(wide, torch.float32)), 16),)
        out = attend(q.to(wide), k.to(wide), v.to(wide), mask=Causal(), terms=terms, backend=backend)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), (q, k, v, table))])
    for exact, got in zip(*results, strict=True):
        error = (got.double() - exact.double()).abs().max() / exact.abs().max()
        assert error <= 2 * torch.finfo(dtype).eps


def test_autocast_does_not_round_the_scores() -> None:
    q, k, v = torch.randn(3, 1, 2, 50, 16)
    exact = attend(q.double(), k.double(), v.double(), backend="reference")
    for pos in (None, torch.arange(50) * 2):
        with torch.autocast("cpu", torch.bfloat16):
            out = attend(q, k, v, q_pos=pos, k_pos=pos, backend="tiled")
        assert (out - exact).abs().max() < 1e-5


def test_a_step_of_decoding_runs_one_block() -> None:
    tiles = []
    original = blocks.Chunk.weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks.Chunk, "weights", lambda self, *args: tiles.append(args) or original(self, *args))
        q, k = torch.randn(1, 8, 1, 16), torch.randn(1, 8, 4096, 16)
        terms = (ByDistance(torch.randn(8, 129), 128),)
        attend(
            q, k, k, mask=Causal(), terms=terms, q_pos=torch.tensor([4095]), k_pos=torch.arange(4096), backend="tiled"
        )
    assert len(tiles) == 1


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TERMS if "wide" not in name])
@pytest.mark.parametrize("straight", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["steps", "jumps"])
def test_memory_grows_with_tokens_and_not_with_pairs(name: str, straight: bool) -> None:
    q, k, v = leaf(B, H, 1024, D), leaf(B, KV, 1024, D), leaf(B, KV, 1024, DV)
    term, leaves = TERMS[name](1024, 1024)
    pos = torch.arange(1024) * (1 if straight else 2)
    terms = () if term is None else (term,)

    def work() -> None:
        out = attend(q, k, v, mask=Causal(), terms=terms, q_pos=pos, k_pos=pos, backend="tiled")
        torch.autograd.grad(out.sum(), [q, k, v, *leaves], allow_unused=True)

    scores = B * H * 1024 * 1024 * 8
    assert peak_memory(work) < scores / 4


# --- what it stands on --------------------------------------------------------------------------------------------


def test_unrolled_and_folded_are_adjoint() -> None:
    table, lines = torch.randn(3, 5).double(), torch.randn(3, 11).double()
    torch.testing.assert_close((unrolled(table, 3) * lines).sum(), (table * folded(lines, 3)).sum())


def test_diagonal_sums() -> None:
    tile = torch.randn(2, 4, 7).double()
    expected = torch.zeros(2, 10).double()
    for u in range(4):
        expected[:, u : u + 7] += tile[:, u]
    torch.testing.assert_close(diagonal_sums(tile), expected)


@pytest.mark.parametrize("first", [-30, -9, -3, 0, 2, 8, 30])
@pytest.mark.parametrize("width", [1, 3, 20])
def test_a_band_is_a_table_by_distance(first: int, width: int) -> None:
    queries, keys = 4, 9
    band = Band(queries, keys, width, first)
    entry = torch.arange(keys) - first - (queries - 1) + torch.arange(queries)[:, None]  # row u is query last − u
    entry = entry.clamp(0, width - 1)
    grad = torch.randn(2, queries, keys).double()
    rows = torch.randn(2, queries, width, dtype=torch.float64, requires_grad=True)
    columns = torch.randn(2, keys, width, dtype=torch.float64, requires_grad=True)
    for name, table, index in (("rows", rows, entry), ("columns", columns, entry.T)):
        expected = table.gather(-1, index.expand(2, -1, -1))
        expected = expected if name == "rows" else expected.mT
        got = torch.zeros(2, queries, keys).double()
        getattr(band, f"add_{name}")(got, table.detach())
        torch.testing.assert_close(got, expected.detach())
        (gradient,) = torch.autograd.grad((expected * grad).sum(), table)
        if name == "rows":
            sums = band.collect_rows(grad)
        else:
            sums = torch.zeros_like(gradient)
            band.collect_columns(grad, sums)
        torch.testing.assert_close(sums, gradient)


def test_a_pairwise_function_of_another_shape_is_refused() -> None:
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    with refusal("expected Pairwise fn to return (batch or 1, heads or 1, 6, 6), got (1, 6, 5)"):
        attend(q, k, v, terms=(Pairwise(lambda q, k: torch.zeros(1, 6, 5)),), backend="tiled")


def test_an_error_that_is_kept_reaches_no_other_computation() -> None:
    """Torch 2.11 would compute the refused function in the other's backward pass."""
    q = torch.randn(1, 2, 6, 8, requires_grad=True)
    terms = (Pairwise(lambda *_: torch.zeros(1, 1, 6, 5)),)
    with pytest.raises(HeadwayError, match=r"got \(1, 1, 6, 5\)") as kept:
        attend(q, q, q, terms=terms, backend="tiled")
    weight = torch.randn(3, 3, requires_grad=True)
    (weight @ weight).tanh().sum().backward()
    assert weight.grad is not None
    assert kept.value is not None


def test_an_error_in_the_backward_pass_is_not_lost() -> None:
    calls: list[int] = []

    def once(*_: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise ZeroDivisionError
        return torch.zeros(1, 1, 6, 6)

    q = torch.randn(1, 2, 6, 8, requires_grad=True)
    out = attend(q, q, q, terms=(Pairwise(once),), backend="tiled")
    with pytest.raises(ZeroDivisionError):
        out.sum().backward()
