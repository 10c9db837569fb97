"""attend() and plan(): the formula, every kind of bad input, and error messages."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from common import every_backend, naive, refusal, runs
from torch import Tensor

from headway import Causal, Dense, Documents, HeadwayError, Prefix, Window, attend, plan
from headway.backends import BACKENDS
from headway.masks import Blocks, KeyPadding
from headway.positions import methods
from headway.terms import ByDistance, ByDistancePerQuery, PerKey, ValuesByDistance

EVERY_BACKEND = every_backend(Causal())
EVERY_MASK = every_backend(Causal() | Prefix(1))
"""The backends that take any mask."""
POS = torch.arange(6)[None]


def qkv(heads: int = 4, kv_heads: int = 2, tokens: int = 6, **given: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(2, h, tokens, 8, **given) for h in (heads, kv_heads, kv_heads))


# --- the formula --------------------------------------------------------------------------------------------------


@EVERY_MASK
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_formula(backend: str, kv_heads: int) -> None:
    q, k, v = qkv(kv_heads=kv_heads, dtype=torch.float64)
    slope = torch.tensor([0.5, 0.25, 0.1, 0.0]).double()
    terms = (ByDistance.linear(-slope), PerKey(torch.randn(2, 4, 6).double()))
    given = {"mask": Causal() | Prefix(2), "terms": terms, "q_pos": POS, "k_pos": POS, "scale": 0.7}
    torch.testing.assert_close(attend(q, k, v, backend=backend, **given), naive(q, k, v, **given))


@EVERY_BACKEND
@pytest.mark.parametrize("scale", [0.0, -0.3, 1e-30])
@pytest.mark.parametrize("mask", [None, Causal(), Window(2)], ids=str)
def test_any_finite_scale(backend: str, scale: float, mask: Any) -> None:
    """torch's own causal kernel gives NaN for a scale of 0 or below."""
    q, k, v = qkv(dtype=torch.float64)
    given = {"mask": mask, "q_pos": POS, "k_pos": POS, "scale": scale}
    expected = naive(q, k, v, terms=(), **given)
    torch.testing.assert_close(attend(q, k, v, backend=backend, **given), expected)
    torch.testing.assert_close(attend(q, k, v, mask=mask, scale=scale, backend=backend), expected)


def test_default_scale_is_one_over_root_of_width() -> None:
    q, k, v = qkv()
    assert torch.equal(attend(q, k, v), attend(q, k, v, scale=8**-0.5))


@EVERY_BACKEND
def test_values_may_have_another_width(backend: str) -> None:
    """The scale is that of queries."""
    q, k, _ = qkv(dtype=torch.float64)
    v = torch.randn(2, 2, 6, 5).double()
    given = {"mask": Causal(), "q_pos": POS, "k_pos": POS}
    expected = naive(q, k, v, terms=(), scale=8**-0.5, **given)
    torch.testing.assert_close(attend(q, k, v, backend=backend, **given), expected)


@EVERY_BACKEND
@pytest.mark.parametrize("given", ["q_pos", "k_pos"])
def test_positions_of_one_side_alone_count(backend: str, given: str) -> None:
    """Those of the other are 0, 1, 2 …"""
    q, k, v = qkv(dtype=torch.float64)
    own = torch.tensor([[0, 1, 2, -1, 7, 3]])
    both = {"q_pos": POS, "k_pos": POS} | {given: own}
    expected = attend(q, k, v, mask=Causal(), backend="reference", **both)
    for which in (backend, "auto"):
        torch.testing.assert_close(attend(q, k, v, mask=Causal(), backend=which, **{given: own}), expected)
    assert not torch.equal(expected, attend(q, k, v, mask=Causal(), backend=backend))


def test_terms_whose_tables_reach_differently_are_added() -> None:
    """One reaches further back, the other further ahead: where one kernel takes them, it is as one table of both."""
    q, k, v = qkv(tokens=9, dtype=torch.float64)
    for kind, shape in ((ByDistance, (4,)), (ByDistancePerQuery, (2, 4, 9))):
        back, ahead = torch.randn(*shape, 7).double(), torch.randn(*shape, 6).double()
        terms = (kind(back, 5), kind(ahead, 1))
        pos = torch.arange(9)[None]
        wanted = naive(q, k, v, mask=None, terms=terms, q_pos=pos, k_pos=pos, scale=8**-0.5)
        for backend in ("auto", "native", "tiled", "reference"):
            torch.testing.assert_close(attend(q, k, v, terms=terms, backend=backend), wanted)


def test_documents_that_are_named_twice_bind_both() -> None:
    q, k, v = qkv(dtype=torch.float64)
    half, thirds = (Documents(torch.arange(6)[None].expand(2, 6) // n) for n in (3, 2))
    mask = half & thirds & Causal()
    wanted = naive(q, k, v, mask=mask, terms=(), q_pos=POS, k_pos=POS, scale=8**-0.5)
    for backend in ("auto", "tiled", "reference"):
        torch.testing.assert_close(attend(q, k, v, mask=mask, backend=backend), wanted)


@EVERY_MASK
def test_a_boolean_tensor_is_a_dense_mask(backend: str) -> None:
    q, k, v = qkv()
    visible = torch.rand(2, 4, 6, 6) > 0.4
    assert torch.equal(
        attend(q, k, v, mask=visible, backend=backend), attend(q, k, v, mask=Dense(visible), backend=backend)
    )


@EVERY_BACKEND
def test_causal_is_aligned_by_position_and_not_by_corner(backend: str) -> None:
    q, k, v = qkv(dtype=torch.float64)
    whole = attend(q, k, v, mask=Causal(), backend=backend)
    newest = attend(q[:, :, 4:], k, v, mask=Causal(), q_pos=POS[:, 4:], k_pos=POS, backend=backend)
    torch.testing.assert_close(newest, whole[:, :, 4:])


@EVERY_BACKEND
@pytest.mark.parametrize(("queries", "keys"), [(0, 6), (6, 0), (0, 0), (1, 1)])
def test_empty_and_single(backend: str, queries: int, keys: int) -> None:
    q, k, v = torch.randn(2, 4, queries, 8), torch.randn(2, 2, keys, 8), torch.randn(2, 2, keys, 8)
    for mask in (None, Causal(), Window(2)):
        out = attend(q, k, v, mask=mask, q_pos=POS[:, :queries], k_pos=POS[:, :keys], backend=backend)
        assert out.shape == (2, 4, queries, 8)
        assert keys > 0 or not out.any()
    assert attend(q[:0], k[:0], v[:0], backend=backend).shape == (0, 4, queries, 8)


@EVERY_BACKEND
def test_no_keys_without_positions_either(backend: str) -> None:
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 0, 8), torch.randn(2, 2, 0, 8)
    assert torch.equal(attend(q, k, v, backend=backend), torch.zeros(2, 4, 6, 8))


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_keeps_the_dtype(backend: str, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in qkv())
    terms = (ByDistance.linear(torch.ones(4)),)
    out = attend(q, k, v, mask=Causal(), terms=terms, backend=backend)
    assert out.dtype == dtype
    assert out.isfinite().all()


# --- rows that see nothing ----------------------------------------------------------------------------------------

BLIND = {
    "dense": ({"mask": Dense((torch.arange(6) != 2)[None, None, :, None].expand(1, 1, 6, 6))}, 2),
    "padding": ({"q_pos": torch.tensor([0, 1, -1, 3, 4, 5]), "k_pos": POS}, 2),
    "padding, causal": (
        {"mask": Causal(), "q_pos": torch.tensor([-1, 0, 1, 2, 3, 4]), "k_pos": torch.tensor([-1, 0, 1, 2, 3, 4])},
        0,
    ),
    "documents": ({"mask": Documents(torch.tensor([[0, 0, 7, 0, 0, 0]]), torch.zeros(1, 6, dtype=torch.long))}, 2),
    "window": ({"mask": Window(1), "q_pos": torch.tensor([0, 1, 90, 3, 4, 5]), "k_pos": POS}, 2),
    "causal": ({"mask": Causal(), "q_pos": POS, "k_pos": torch.arange(1, 7)}, 0),
}


@EVERY_BACKEND
@pytest.mark.parametrize("name", list(BLIND))
@pytest.mark.parametrize("with_terms", [False, True])
def test_a_row_that_sees_nothing_is_zero_and_has_no_gradient(backend: str, name: str, with_terms: bool) -> None:
    given, row = BLIND[name]
    if name == "dense" and not runs(backend, given["mask"]):
        return
    slope = torch.full((4,), -0.3, requires_grad=True)
    terms = (ByDistance.linear(slope),) if with_terms else ()
    q, k, v = (x.requires_grad_() for x in qkv())
    leaves = (q, k, v, slope) if with_terms else (q, k, v)
    out = attend(q, k, v, terms=terms, backend=backend, **given)
    assert not out[:, :, row].any()
    assert out.isfinite().all()
    weight = torch.randn_like(out)
    full = torch.autograd.grad((out * weight).sum(), leaves, retain_graph=True)
    weight[:, :, row] = 0
    without = torch.autograd.grad((out * weight).sum(), leaves)
    assert not full[0][:, :, row].any()
    for gradient, other in zip(full, without, strict=True):
        assert gradient.isfinite().all()
        assert torch.equal(gradient, other)


@EVERY_MASK
def test_all_blind(backend: str) -> None:
    q, k, v = (x.requires_grad_() for x in qkv())
    out = attend(q, k, v, mask=torch.zeros(1, 1, 6, 6, dtype=torch.bool), backend=backend)
    assert not out.any()
    assert not any(g.any() for g in torch.autograd.grad(out.sum(), (q, k, v)))


# --- masked tokens have no effect ---------------------------------------------------------------------------------

LAST_PADDED = torch.tensor([0, 1, 2, 3, 4, -1])
HIDING = {
    "causal": {"mask": Causal()},
    "causal, positions": {"mask": Causal(), "q_pos": POS, "k_pos": POS},
    "window": {"mask": Window(3)},
    "documents": {"mask": Documents(torch.tensor([[0, 0, 0, 0, 0, 1]]))},
    "padding": {"q_pos": LAST_PADDED, "k_pos": LAST_PADDED},
    "padding, causal": {"mask": Causal(), "q_pos": LAST_PADDED, "k_pos": LAST_PADDED},
    "dense": {"mask": (torch.arange(6) < 5)[None, None, None].expand(1, 1, 6, 6)},
}


@EVERY_BACKEND
@pytest.mark.parametrize("name", list(HIDING))
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("with_terms", [False, True], ids=["plain", "terms"])
def test_nan_behind_a_mask_leaks_nowhere(
    backend: str, name: str, kv_heads: int, poison: float, with_terms: bool
) -> None:
    given = HIDING[name]
    if name == "dense" and not runs(backend, given["mask"]):
        return
    clean = qkv(kv_heads=kv_heads)
    dirty = [x.clone() for x in clean]
    dirty[1][0, 0, 5, 3] = dirty[2][1, -1, 5, 0] = poison  # token 5, which rows 0 … 4 must not see
    dirty[0][:, :, 5] = poison
    results = []
    for inputs in (clean, dirty):
        slope = torch.full((4,), -0.3, requires_grad=True)
        leaves = [x.clone().requires_grad_() for x in inputs]
        terms = (ByDistance.linear(slope),) if with_terms else ()
        out = attend(*leaves, terms=terms, backend=backend, **given)
        wanted = [*leaves, slope] if with_terms else leaves
        results.append([out[:, :, :5], *torch.autograd.grad(out[:, :, :5].square().sum(), wanted)])
        if "padding" in name:
            assert not out[:, :, 5].any()
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@EVERY_BACKEND
@pytest.mark.parametrize("mask", [None, Causal(), Window(2), Causal() & Window(2)], ids=str)
def test_nan_that_is_visible_shows(backend: str, mask: Any) -> None:
    q, k, v = qkv()
    for x in (k, v):
        dirty = x.clone()
        dirty[0, 0, 2, 1] = torch.nan
        out = attend(*((q, dirty, v) if x is k else (q, k, dirty)), mask=mask, backend=backend)
        seen = torch.ones(6, 6, dtype=torch.bool) if mask is None else mask.tile(POS, POS)[0, 0]
        for head in (0, 1):  # served by key head 0
            assert torch.equal(out[0, head].isnan().any(-1), seen[:, 2])
        assert out[0, 2:].isfinite().all()
        assert out[1].isfinite().all()


@EVERY_BACKEND
def test_nan_in_a_query_shows_in_its_row_only(backend: str) -> None:
    q, k, v = qkv()
    q[0, 1, 3, 0] = torch.nan
    out = attend(q, k, v, mask=Causal(), backend=backend)
    assert out[0, 1, 3].isnan().all()
    out[0, 1, 3] = 0
    assert out.isfinite().all()


@EVERY_BACKEND
def test_a_learned_slope_before_a_mask_has_a_finite_gradient(backend: str) -> None:
    q, k, v = qkv()
    made = (
        (ByDistance.linear, torch.full((4,), -0.3)),
        (PerKey, torch.randn(1, 4, 6)),
        (lambda table: ByDistance(table, 5), torch.randn(4, 11)),
    )
    for term, parameter in made:
        parameter.requires_grad_()
        out = attend(q, k, v, mask=Causal(), terms=(term(parameter),), backend=backend)
        (gradient,) = torch.autograd.grad(out.square().sum(), parameter)
        assert gradient.isfinite().all()
        assert gradient.any()


@EVERY_BACKEND
def test_huge_scores_do_not_overflow(backend: str) -> None:
    q, k, v = (x * 1e18 for x in qkv())
    assert attend(q, k, v / 1e18, mask=Causal(), backend=backend).isfinite().all()


# --- differentiated twice -----------------------------------------------------------------------------------------


def twice(backend: str, **given: Any) -> Tensor:
    q, k, v = (x.requires_grad_() for x in qkv())
    (first,) = torch.autograd.grad(attend(q, k, v, backend=backend, **given).square().sum(), q, create_graph=True)
    return torch.autograd.grad(first.square().sum(), k)[0]


def test_the_reference_can_be_differentiated_twice() -> None:
    assert twice("reference", mask=Causal()).isfinite().all()


@pytest.mark.parametrize("given", [{}, {"mask": Window(2)}], ids=["fused", "masked"])
def test_other_backends_refuse_it_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(
        HeadwayError, match=r"backend 'sdpa' cannot be differentiated twice, .* use backend='reference'"
    ):
        twice("sdpa", **given)


# --- error messages -----------------------------------------------------------------------------------------------


def change(index: int, change: Any) -> list[Tensor]:
    inputs = list(qkv())
    inputs[index] = change(inputs[index])
    return inputs


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            change(0, lambda x: x[0]),
            "expected q, k and v of shape (batch, heads, tokens, head width), got q (4, 6, 8), k (2, 2, 6, 8), v "
            "(2, 2, 6, 8)",
        ),
        (
            change(1, lambda x: x[:1]),
            "expected q, k and v with the same batch size, got q (2, 4, 6, 8), k (1, 2, 6, 8), v (2, 2, 6, 8)",
        ),
        (
            change(0, lambda x: x[..., :7]),
            "expected queries and keys with the same head width, got q (2, 4, 6, 7), k (2, 2, 6, 8), v (2, 2, 6, 8)",
        ),
        (
            change(2, lambda x: x[:, :, :5]),
            "expected as many values as keys, in as many heads, got q (2, 4, 6, 8), k (2, 2, 6, 8), v (2, 2, 5, 8)",
        ),
        (
            change(0, lambda x: x[:, :3]),
            "expected the key heads to divide the query heads, got q (2, 3, 6, 8), k (2, 2, 6, 8), v (2, 2, 6, 8)",
        ),
        (
            change(1, lambda x: x.double()),
            "expected q, k and v of one floating dtype, got torch.float32, torch.float64, torch.float32",
        ),
        (
            [x.long() for x in qkv()],
            "expected q, k and v of one floating dtype, got torch.int64, torch.int64, torch.int64",
        ),
        (change(2, lambda x: x.to("meta")), "expected q, k and v on one device, got cpu, cpu, meta"),
    ],
    ids=["axes", "batch", "width", "values", "heads", "dtype", "integers", "device"],
)
def test_tensors_that_do_not_fit(inputs: list[Tensor], message: str) -> None:
    with refusal(message):
        attend(*inputs)


@pytest.mark.parametrize("scale", [torch.nan, torch.inf, -torch.inf])
def test_scales_that_are_not_finite(scale: float) -> None:
    with refusal(f"expected a finite scale, got {scale}"):
        attend(*qkv(), scale=scale)


def test_masks_and_terms_that_are_none() -> None:
    with refusal("expected a mask of headway.masks, a boolean tensor or None, got str 'causal'"):
        attend(*qkv(), mask="causal")
    with refusal("expected terms of headway.terms, got function"):
        attend(*qkv(), terms=(lambda q, k: q,))
    with refusal(
        "expected the bias of DenseBias over 6 queries and 6 keys, including cached ones, got shape (1, 1, 6, 5)"
    ):
        attend(*qkv(), mask=torch.zeros(6, 5))
    with refusal("expected a mask over 6 queries and 6 keys, including cached ones, got one of shape (1, 1, 6, 5)"):
        attend(*qkv(), mask=torch.ones(1, 1, 6, 5, dtype=torch.bool))


@EVERY_BACKEND
def test_masks_and_terms_of_another_batch_or_head_count(backend: str) -> None:
    with refusal("expected a mask of shape (2 or 1, 4 or 1, queries, keys), got (3, 1, 6, 6)"):
        attend(*qkv(), mask=Documents(torch.zeros(3, 6, dtype=torch.long)), backend=backend)
    if runs(backend, Dense(torch.ones(1, 1, 6, 6, dtype=torch.bool))):
        with refusal("expected a mask of shape (2 or 1, 4 or 1, queries, keys), got (1, 3, 6, 6)"):
            attend(*qkv(), mask=torch.ones(1, 3, 6, 6, dtype=torch.bool), backend=backend)
    with refusal("expected ByDistance of shape (2 or 1, 4 or 1, queries, keys), got (1, 3, 6, 6)"):
        attend(*qkv(), terms=(ByDistance.linear(torch.zeros(3)),), backend=backend)
    with refusal("expected PerKey of shape (2 or 1, 4 or 1, queries, keys), got (5, 1, 6, 6)"):
        attend(*qkv(), terms=(PerKey(torch.zeros(5, 1, 6)),), backend=backend)


@pytest.mark.parametrize(
    "given",
    [
        {"mask": Causal()},
        {"terms": (ByDistance.linear(torch.zeros(4)),)},
        {"mask": Causal(), "q_pos": POS[:, 4:]},
        {"mask": torch.ones(1, 1, 2, 6, dtype=torch.bool), "terms": (ByDistance.linear(torch.zeros(4)),)},
    ],
    ids=["mask", "term", "half", "dense and term"],
)
def test_fewer_queries_than_keys_need_positions(given: dict[str, Any]) -> None:
    q, k, v = qkv()
    with refusal(
        "expected q_pos and k_pos, because a mask or term compares 2 queries with 6 keys by position, got none: for "
        "the newest tokens of a cache pass q_pos=torch.arange(4, 6) and k_pos=torch.arange(6)"
    ):
        attend(q[:, :, 4:], k, v, **given)


def test_fewer_queries_than_keys_without_positions() -> None:
    q, k, v = qkv()
    torch.testing.assert_close(attend(q[:, :, 4:], k, v), attend(q, k, v)[:, :, 4:])
    seen = torch.ones(1, 1, 2, 6, dtype=torch.bool)
    torch.testing.assert_close(attend(q[:, :, 4:], k, v, mask=seen), attend(q, k, v)[:, :, 4:])


@pytest.mark.parametrize("name", ["q_pos", "k_pos"])
def test_positions_that_do_not_fit(name: str) -> None:
    with refusal(f"expected integer {name}, got torch.bfloat16, which cannot count past 256"):
        attend(*qkv(), **{name: torch.arange(6).bfloat16()})
    with refusal(f"expected {name} of shape (2 or 1, 6), got (1, 5)"):
        attend(*qkv(), **{name: torch.arange(5)})
    with refusal(f"expected {name} on cpu, got meta"):
        attend(*qkv(), **{name: torch.arange(6, device="meta")})


def test_backends_are_named() -> None:
    with refusal(f"expected backend 'auto' or one of {', '.join(BACKENDS)}, got 'flash'"):
        attend(*qkv(), backend="flash")
    with refusal(
        "backend 'sdpa' cannot run this call: ValuesByDistance needs the attention weights, which are not "
        "materialised; backend='auto' finds one that can"
    ):
        attend(*qkv(), terms=(ValuesByDistance(torch.zeros(1, 3, 8), 1),), backend="sdpa")
    with pytest.raises(HeadwayError) as refused:
        attend(*qkv(), normalise="sparsemax")
    told = str(refused.value)
    assert told.startswith("no backend can run this call: native: fused kernels do not support normalise='sparsemax';")
    assert told.endswith(
        "; reference: normalise='sparsemax' is not known, only 'softmax', 'stickbreaking', 'stickbreaking+remainder'"
    )
    assert all(f"{name}: " in told for name in BACKENDS)


@pytest.mark.parametrize("spec", methods())
def test_a_plan_says_what_will_run(spec: str) -> None:
    position = methods()[spec]()
    planned = plan(position, tokens=1024, heads=8, head_dim=64, kv_heads=2)
    assert planned.route in BACKENDS
    assert planned.position == spec
    assert [name for name, _ in planned.refused] == list(BACKENDS[: BACKENDS.index(planned.route)])
    assert all(reason for _, reason in planned.refused)
    assert str(planned).startswith(f"{spec}: {planned.route} · exact")
    assert position.shape is None  # not attached by being planned


def test_a_plan_tells_what_it_costs() -> None:
    ask = {"tokens": 64, "heads": 4, "head_dim": 8}
    fused = "native · exact · O(queries + keys): fused"
    assert str(plan(methods()["rotary"](), **ask)) == f"rotary: {fused}"
    assert str(plan(methods()["t5"](), **ask)) == f"t5: {fused}"
    assert str(plan(methods()["none"](), **ask, mask=Window(3))) == f"none: {fused}"
    assert str(plan(methods()["shaw"](), **ask)) == f"shaw: {fused}"
    assert str(plan(methods()["shaw"](), **ask, mask=Prefix(3))) == f"shaw: {fused}"
    lines = str(plan(methods()["shaw"](), **ask, mask=Prefix(3), device="cuda")).splitlines()
    assert lines[0].startswith("shaw: tiled · exact")
    assert lines[1] == "  not native: it runs on the CPU, not on cuda"
    assert [line.split()[1].removesuffix(":") for line in lines[1:]] == ["native", "sdpa", "triton", "flex"]


def test_a_plan_takes_every_mask_that_attention_takes() -> None:
    seen, ids = torch.ones(16, 16, dtype=torch.bool).tril(), torch.arange(16) // 5
    masks: dict[str, Any] = {
        "a boolean tensor": seen,
        "one for each of three sequences": seen.expand(3, 1, 16, 16),
        "an array": seen.numpy(),
        "numbers to add": torch.zeros(16, 16),
        "documents": Causal() & Documents(ids),
        "documents of three sequences": Documents(ids.expand(3, -1)),
        "padding": KeyPadding(torch.ones(3, 16, dtype=torch.bool)) & Causal(),
        "blocks": Blocks(torch.ones(4, 4, dtype=torch.bool), 4) | Window(3),
    }
    for name, mask in masks.items():
        for spec in ("rotary", "t5", "fox"):
            planned = plan(methods()[spec](), tokens=16, heads=2, head_dim=8, mask=mask)
            assert str(planned) == f"{spec}: native · exact · O(queries + keys): fused", name
    with refusal("expected a mask over 15 queries and 15 keys,", whole=False):
        plan(methods()["none"](), tokens=15, heads=2, head_dim=8, mask=seen)


def test_inputs_are_left_alone() -> None:
    inputs = qkv()
    inputs[2][0, 0, 5] = torch.nan
    before = [x.clone() for x in inputs]
    attend(*inputs, mask=Causal(), terms=(ByDistancePerQuery(torch.randn(2, 4, 6, 3), 1),))
    assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(inputs, before, strict=True))


def test_messages_are_whole_sentences() -> None:
    """Every HeadwayError of the core says what was expected, in words, and formats its values."""
    import ast
    from pathlib import Path

    import headway

    for path in Path(headway.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                text = ast.unparse(node.exc.args[0])
                if getattr(node.exc.func, "id", "") == "HeadwayError" and not text.startswith("f"):
                    assert not re.search(r"\{\w+\}", text), f"{path}:{node.lineno} lacks its f: {text}"
    assert issubclass(HeadwayError, ValueError)
