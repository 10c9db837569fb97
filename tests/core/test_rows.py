"""What needs a whole row: its terms, stick-breaking, what NaN reaches, plans and memory."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from common import attention, make, refusal
from torch import Tensor

from headway import Attention, Causal, Documents, KVCache, Window, attend, terms
from headway.backends import native
from headway.masks import Before
from headway.memory import peak_memory
from headway.plans import plan
from headway.positions import parse
from headway.terms import ByDistance, PathProduct, Scan, from_the_end

METHODS = ("cope", "stickbreaking", "grapeap", "path", "dape", "dapev2")
EVERY_METHOD = pytest.mark.parametrize("spec", METHODS)


def qkv(heads: int = 4, kv_heads: int = 2, tokens: int = 6) -> list[Tensor]:
    return [torch.randn(2, h, tokens, 8).double().requires_grad_() for h in (heads, kv_heads, kv_heads)]


# --- sums along a row ---------------------------------------------------------------------------------------------


def test_sums_from_the_end() -> None:
    x, seen = torch.tensor([[[[1.0, 2.0, 4.0, 8.0]]]]), torch.tensor([[[[True, True, False, True]]]])
    assert from_the_end(x, None, True).flatten().tolist() == [15, 14, 12, 8]
    assert from_the_end(x, None, False).flatten().tolist() == [14, 12, 8, 0]
    assert from_the_end(x, seen, True).flatten().tolist() == [11, 10, 8, 8]
    assert from_the_end(x, seen, False).flatten().tolist() == [10, 8, 8, 0]
    assert from_the_end(x[..., :0], None, False).shape == (1, 1, 1, 0)


def test_counts_beyond_a_table_share_its_last_entry() -> None:
    content = torch.full((1, 1, 1, 9), 50.0)  # each key counts for one
    table = torch.tensor([0.0, 10.0, 30.0, 70.0]).view(1, 1, 1, 4)
    pos = torch.arange(9)[None]
    got = Scan(inclusive=True, table=table).rows(content, None, pos[:, -1:], pos)
    assert got.flatten().tolist() == [70, 70, 70, 70, 70, 70, 70, 30, 10]


def test_counts_between_entries_are_interpolated() -> None:
    pos, table = torch.arange(2)[None], torch.tensor([0.0, 10.0, 30.0]).view(1, 1, 1, 3)
    got = Scan(inclusive=True, table=table).rows(torch.zeros(1, 1, 1, 2), None, pos[:, 1:], pos)  # each for a half
    assert got.flatten().tolist() == [10, 5]


# --- stick-breaking -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
def test_a_query_sees_what_is_before_it(backend: str) -> None:
    pos = torch.arange(4)[None]
    assert torch.equal(Before().tile(pos, pos)[0, 0], torch.ones(4, 4).tril(-1).bool())
    q, k, v = qkv()
    stick = functools.partial(attend, q, k, v, normalise="stickbreaking", backend=backend)
    whole = stick()
    assert not whole[:, :, 0].any()
    torch.testing.assert_close(stick(mask=Causal()), whole)
    near = stick(mask=Window(2))
    pairs = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril(-1).triu(-2)
    torch.testing.assert_close(near, stick(mask=pairs))
    assert not torch.allclose(near, whole)


def test_nearer_is_what_lies_later() -> None:
    q = torch.zeros(1, 1, 5, 8)
    out = attend(q, q, torch.eye(5)[None, None], normalise="stickbreaking")
    assert out[0, 0, 4].tolist() == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 0]


@pytest.mark.parametrize("size", [1e3, -1e3])
def test_extreme_scores_stay_finite(size: float) -> None:
    q, k, v = (x.float().detach().requires_grad_() for x in qkv(tokens=200))
    out = attend(q * size, k, v, normalise="stickbreaking", mask=Causal())
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.square().sum(), (q, k, v)))


def test_sinks_are_refused() -> None:
    with refusal(
        "expected no sinks with normalise='stickbreaking', whose weights already sum to less than 1, got some: "
        "leave them out"
    ):
        attend(*qkv(), normalise="stickbreaking", sinks=torch.zeros(4))


def test_other_lengths_need_positions() -> None:
    q, k, v = qkv()
    with refusal(
        "expected q_pos and k_pos, because a mask or term compares 2 queries with 6 keys by position, got none: for "
        "the newest tokens of a cache pass q_pos=torch.arange(4, 6) and k_pos=torch.arange(6)"
    ):
        attend(q[:, :, :2], k, v, normalise="stickbreaking")


def test_stick_breaking_takes_terms_and_softcap() -> None:
    q, k, v = qkv()
    slope, pos = torch.tensor([0.5, 1.0, 2.0, 3.0]).double(), torch.arange(6)
    got = attend(q, k, v, normalise="stickbreaking", terms=[ByDistance.linear(-slope)], softcap=2.0)
    z = 2 * (q @ k.repeat_interleave(2, 1).mT * 8**-0.5 / 2).tanh()
    z = z - slope[:, None, None] * (pos[:, None] - pos).abs()
    share = z.sigmoid() * torch.ones(6, 6).tril(-1)
    weights = torch.stack([share[..., j] * (1 - share[..., j + 1 :]).prod(-1) for j in range(6)], -1)
    torch.testing.assert_close(got, weights @ v.repeat_interleave(2, 1))


# --- PaTH ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask", [None, Causal(), Window(5), Window(2, 3), Causal() & Documents(torch.arange(20)[None] // 7)]
)
def test_the_cut_into_blocks_does_not_matter(mask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, _ = qkv(tokens=20)
    w, beta = torch.randn(2, 2, 20, 8).double(), 2 * torch.rand(2, 2, 20).double()
    product = PathProduct(q, k, w / w.norm(dim=-1, keepdim=True), beta, 0.3)
    pos = torch.arange(20)[None]
    seen = None if mask is None else mask.tile(pos, pos)
    content = 0.3 * q @ k.repeat_interleave(2, 1).mT
    results = []
    for size in (64, 20, 7, 1):
        monkeypatch.setattr(terms, "PATH_BLOCK", size)
        tile = product.rows(content, seen, pos, pos)
        results.append(tile if seen is None else tile.masked_fill(~seen, 0.0))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_a_reflection_turns_the_sign() -> None:
    """β = 2 along w mirrors: of k = w nothing but the sign changes for each token in between."""
    w = torch.tensor([1.0, 0.0]).expand(1, 1, 4, 2)
    pos = torch.arange(4)[None]
    term = PathProduct(w, w, w, torch.full((1, 1, 4), 2.0), 1.0)
    path = 1 + term.rows(torch.ones(1, 1, 4, 4), Causal().tile(pos, pos), pos, pos)
    assert path[0, 0, 3].tolist() == [-1, 1, -1, 1]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_padding_reflects_nothing(backend: str) -> None:
    q, k, v, w = torch.randn(4, 1, 2, 5, 8).double()
    w, beta, kept = w / w.norm(dim=-1, keepdim=True), 2 * torch.rand(1, 2, 5).double(), torch.tensor([0, 1, 3, 4])

    def run(pos: Tensor, *x: Tensor) -> Tensor:
        q, k, v, w, beta = x
        product = PathProduct(q, k, w, beta, 0.3)
        given = {"q_pos": pos, "k_pos": pos, "scale": 0.3, "backend": backend}
        return attend(q, k, v, mask=Causal(), terms=(product,), **given)

    padded = run(torch.tensor([0, 1, -1, 2, 3]), q, k, v, w, beta)
    whole = run(torch.arange(4), *(x[:, :, kept] for x in (q, k, v, w, beta)))
    torch.testing.assert_close(padded[:, :, kept], whole)


def test_a_convolution_stays_in_its_document() -> None:
    module = attention("path", mask=Causal())
    x = torch.randn(1, 8, 48).double()
    pos, ids = torch.tensor([0, 1, 2, 0, 1, 2, 3, 4]), torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    packed = module(x, pos=pos, mask=Documents(ids))
    torch.testing.assert_close(packed, torch.cat([module(x[:, :3]), module(x[:, 3:])], 1))


# --- masked tokens have no effect ---------------------------------------------------------------------------------


@EVERY_METHOD
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["future", "document", "padding"])
def test_nan_that_is_hidden_reaches_nothing(spec: str, poison: float, where: str) -> None:
    """Neither the values of the other tokens nor the gradients by what they give."""
    module = attention(spec, mask=Causal())
    clean = torch.randn(2, 9, 48).double()
    bad, at, mask = slice(7, 9), torch.arange(9)[None], Causal()
    if where == "document":
        bad, at = slice(0, 4), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
        mask = mask & Documents(torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]]))
    elif where == "padding":
        bad, at = slice(0, 3), (at - 3).clamp(min=-1)
    good = torch.ones(9, dtype=torch.bool)
    good[bad] = False
    found = []
    for dirt in (0.0, poison):
        x = clean.clone()
        x[:, bad] += dirt
        # by what attention is given: a projection sums over tokens, and takes 0 · NaN from any of them
        qkv = [linear(x).unflatten(-1, (-1, 8)).transpose(1, 2) for linear in (module.q, module.k, module.v)]
        marks = module.position.marked(x, at)
        leaves = [y.detach().requires_grad_() for y in (*qkv, *(() if marks is None else (marks,)))]
        q, k, made = module.position.prepare(*leaves[:2], at, at, 0.3, *leaves[3:])
        out = attend(q, k, leaves[2], mask=mask, terms=made, q_pos=at, k_pos=at, normalise=module.position.normalise)
        out = out[:, :, good]
        gradients = torch.autograd.grad(out.square().sum(), leaves)
        axes = [2, 2, 2, 1][: len(leaves)]
        found.append([out, *(g.movedim(axis, 0)[good] for g, axis in zip(gradients, axes, strict=True))])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


def test_nan_in_a_term_shows_where_it_is_seen() -> None:
    q, k, v = (x.detach() for x in qkv())
    p = torch.randn(2, 2, 6, 4).double()
    p[0, 0, 3] = torch.nan
    out = attend(q, k, v, mask=Causal(), terms=[Scan(inclusive=False, left=p[:, [0, 0, 1, 1]] * 0, right=p)])
    assert out[0, :, 3:].isnan().all()
    assert out[0, :, :3].isfinite().all()
    assert out[1].isfinite().all()
    left = torch.zeros(2, 4, 6, 4).double()
    left[1, 2, 4] = torch.inf
    out = attend(q, k, v, mask=Causal(), terms=[Scan(inclusive=False, left=left, right=left[:, :2] * 0)])
    assert out[1, 2, 4].isnan().all()
    out[1, 2, 4] = 0
    assert out.isfinite().all()


# --- plans, memory, decoding, errors ------------------------------------------------------------------------------


@EVERY_METHOD
def test_plan(spec: str) -> None:
    planned = plan(parse(spec), tokens=1024, heads=8, head_dim=64)
    if native.unavailable() is None:
        grows = "O(queries + keys)" if spec in ("path", "dape", "dapev2") else "O(queries · keys / 256)"
        assert (planned.route, planned.memory) == ("native", f"{grows}: fused")
    else:
        assert (planned.route, planned.memory) == ("tiled", "O(queries + keys): a block of queries at a time")


@EVERY_METHOD
def test_memory_grows_with_tokens(spec: str) -> None:
    def peak(tokens: int) -> int:
        module, x = Attention(16, 2, position=spec, mask=Causal()), torch.randn(1, tokens, 16)
        return peak_memory(lambda: module(x).sum().backward())

    assert peak(1024) < 2.3 * peak(512)


@EVERY_METHOD
def test_decoding_after_many_tokens(spec: str) -> None:
    module = attention(spec, mask=Causal() if spec != "path" else Window(80))
    x, cache = torch.randn(1, 150, 48).double(), KVCache()
    pieces = [module(piece, cache=cache) for piece in x.split([130, 1, 17, 1, 1], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), module(x))


@EVERY_METHOD
def test_tiled_is_the_reference(spec: str) -> None:
    """Under masks that leave holes in a row, and one for each head."""
    position, pos = make(spec, heads=4, kv_heads=2).double(), torch.arange(150)[None]
    q, k, v = qkv(tokens=150)
    marks = position.marked(torch.randn(2, 150, 32).double(), pos)
    q, k, made = position.prepare(q, k, pos, pos, 0.3, marks)
    holes = torch.rand(1, 4, 150, 150) < 0.5
    for mask in (Causal() & Documents((torch.arange(150) // 40)[None]), holes):
        given = {"mask": mask, "terms": made, "normalise": position.normalise, "scale": 0.3}
        expected, got = (attend(q, k, v, backend=backend, **given) for backend in ("reference", "tiled"))
        torch.testing.assert_close(got, expected)


def test_dape_needs_all_heads() -> None:
    position, pos, q = make("dape"), torch.arange(5)[None], torch.zeros(1, 2, 5, 8)
    with refusal("expected all 4 heads at once, because dape mixes them"):
        position.prepare(q, q, pos, pos, 1.0, None, torch.tensor([0, 2]))


REFUSED = {
    "cope(positions=1)": "expected cope positions of at least 2, got 1: a count needs two ends",
    "grapeap(width=3)": "expected an even grapeap width of at least 2, because pairs are rotated, got 3",
    "path(rank=-1)": "expected a path rank of at least 1, or 0 for none, got -1",
    "path(conv=0)": "expected path conv of at least 1 token, got 0",
    "dape(width=0)": "expected a dape width of at least 1, got 0",
    "dapev2(kernel=2)": "expected an odd dapev2 kernel of at least 1, got 2",
    "dapev2(bias='rotary')": "expected dapev2 bias to be a method that only adds to the scores, got 'rotary': take "
    "kerple, alibi or fire",
    "dape(bias='none')": "expected dape bias to be a method that only adds to the scores, got 'none': take kerple, "
    "alibi or fire",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_hyperparameters_are_checked(spec: str) -> None:
    with refusal(REFUSED[spec]):
        parse(spec)
