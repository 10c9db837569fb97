"""The kernel of sums along rows: sticks, CoPE's counts and GRAPE's paths, exact on awkward calls, skipping only what
cannot matter."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from common import assert_as_exact, judge_draws, on_two_threads, refusal
from torch import Tensor

from headway import Causal, Dense, Documents, Window, attend
from headway.backends import native
from headway.terms import ByDistance, Scan

SOURCE = "scan.cpp"
pytestmark = pytest.mark.skipif(
    native.unavailable(SOURCE) is not None, reason=f"no kernel here: {native.unavailable(SOURCE)}"
)

STICKS = {"stick": "stickbreaking", "remainder": "stickbreaking+remainder"}
KINDS = (*STICKS, "table", "path", "inclusive path", "count")


def given_to(kind: str, leaves: dict[str, Tensor]) -> dict[str, Any]:
    """Terms and normalisation of a kind of call."""
    if kind in STICKS:
        return {"normalise": STICKS[kind]}
    named = {name: x for name, x in leaves.items() if name not in ("q", "k", "v")}
    return {"terms": (Scan(inclusive=kind in ("table", "inclusive path"), **named),)}


def draw(
    kind: str, batch: int, heads: int, kv_heads: int, queries: int, keys: int, dim: int, dim_v: int, width: int = 16
) -> dict[str, Tensor]:
    """Random inputs in float64: queries, keys, values, and the tensors of the Scan."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    leaves = {
        "q": normal(batch, heads, queries, dim),
        "k": normal(batch, kv_heads, keys, dim),
        "v": normal(batch, kv_heads, keys, dim_v),
    }
    if kind == "table":
        leaves["table"] = normal(batch, heads, queries, width)
    if "path" in kind:
        leaves |= {"left": normal(1, heads, queries, 6), "right": normal(batch, kv_heads, keys, 6)}
    if kind == "path":
        leaves["slope"] = 0.3 * torch.rand(heads).double()
    return leaves


def run(kind: str, inputs: dict[str, Tensor], weight: Tensor, backend: str, **given: Any) -> dict[str, Tensor]:
    """The output and every gradient of Σ weight · output."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    out = attend(leaves["q"], leaves["k"], leaves["v"], backend=backend, **given_to(kind, leaves), **given)
    gradients = torch.autograd.grad((out * weight.to(out.dtype)).sum(), list(leaves.values()))
    return {"out": out.detach()} | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}


def positions(kind: str, batch: int, tokens: int) -> Tensor:
    pos = torch.arange(tokens).repeat(batch, 1)
    if kind == "left padded":
        pos[0] = (pos[0] - tokens // 3).clamp(min=-1)
    if kind == "right padded":
        pos[0, -tokens // 3 :] = -1
    if kind == "evicted":
        return torch.sort(torch.randperm(3 * tokens)[:tokens]).values.expand(batch, -1)
    if kind == "packed":
        return pos % 41
    return pos


CALLS: list[tuple[str, int, int, str]] = [  # mask, queries, keys, positions
    ("full", 1, 1, "near"),
    ("causal", 2, 2, "left padded"),
    ("causal", 113, 113, "near"),
    ("window", 63, 113, "right padded"),
    ("both sides", 97, 97, "evicted"),
    ("documents", 150, 150, "packed"),
    ("causal", 600, 600, "left padded"),
    ("documents", 400, 700, "near"),
    ("causal", 1, 300, "near"),
    ("full", 3, 520, "right padded"),
]


def masks(name: str, queries: int, keys: int) -> Any:
    ids = (torch.arange(keys) // 41)[None]
    documents = Causal() & Documents(ids[:, keys - queries :], ids)
    kinds = {"full": None, "causal": Causal(), "window": Window(13), "both sides": Window(90, 70)}
    return {**kinds, "documents": documents}[name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mask", "queries", "keys", "where"), CALLS)
def test_exact_in_float64(kind: str, mask: str, queries: int, keys: int, where: str) -> None:
    """Grouped heads, odd widths, padding, fewer queries than keys, several blocks of keys; the same bits twice."""
    torch.manual_seed(queries + keys)
    inputs = draw(kind, 2, 4, 2, queries, keys, 11, 20, width=40)
    pos = positions(where, 2, keys)
    given = {"mask": masks(mask, queries, keys), "q_pos": pos[:, keys - queries :], "k_pos": pos}
    weight = torch.randn(2, 4, queries, 20).double()
    got, again, expected = (
        run(kind, inputs, weight, backend, **given) for backend in ("native", "native", "reference")
    )
    for name, exact in expected.items():
        torch.testing.assert_close(got[name], exact, rtol=1e-9, atol=1e-10, msg=lambda text, at=name: f"{at}: {text}")
        assert torch.equal(got[name], again[name])
    with torch.no_grad():
        leaves = (inputs[name] for name in "qkv")
        out = attend(*leaves, backend="native", **given_to(kind, inputs), **given)
    torch.testing.assert_close(out, expected["out"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_as_exact_as_plain_pytorch(kind: str, dtype: torch.dtype) -> None:
    n = (
        1100 if (kind, dtype) == ("count", torch.bfloat16) else 600
    )  # long enough to sum up what a rounded output errs by
    pos = torch.arange(n)[None]

    def once() -> tuple[Any, Any, Any]:
        inputs = {name: x.to(dtype) for name, x in draw(kind, 1, 2, 1, n, n, 32, 32).items()}
        if "slope" in inputs:
            inputs["slope"] = inputs["slope"].float()
        weight = torch.randn(1, 2, n, 32).to(dtype)
        given = {"mask": Causal(), "q_pos": pos, "k_pos": pos}
        wide = {name: x.double() for name, x in inputs.items()}
        got, plain = (run(kind, inputs, weight, which, **given) for which in ("native", "reference"))
        return got, plain, run(kind, wide, weight.double(), "reference", **given)

    judge_draws(once, few=2)


def test_gradients_of_gates_in_a_narrow_dtype_are_rounded_once() -> None:
    """They sum up what a row's output is off by: had it been rounded before, they would be twice as far away."""
    leaves = {name: x.bfloat16() for name, x in draw("inclusive path", 1, 2, 2, 300, 300, 32, 32).items()}
    weight = torch.randn(1, 2, 300, 32, dtype=torch.float64)
    wide = {name: x.float() for name, x in leaves.items()}
    got, exact = (run("inclusive path", x, weight, "native", mask=Causal()) for x in (leaves, wide))
    for name in ("dleft", "dright"):
        off = got[name].double() - exact[name].double()
        assert off.norm() < 0.003 * exact[name].double().norm()  # a rounding to 8 bits is off by 0.0023 in the mean


@pytest.mark.parametrize("shift", [-9.0, -4.0, 5.0])
def test_long_sticks_lose_no_digits(shift: float) -> None:
    """Thousands of small shares, whose logarithms a product of factors near 1 would round away; and large ones."""
    n, found = 1100, ([], [], [])  # type: tuple[int, tuple[list[Any], ...]]
    pos = torch.arange(n)[None]
    for _ in range(2):
        inputs = {name: x.float() for name, x in draw("stick", 1, 1, 1, n, n, 16, 16).items()}
        inputs["q"][..., 0], inputs["k"][..., 0] = 4 * shift, 1.0
        weight = torch.randn(1, 1, n, 16)
        wide = {name: x.double() for name, x in inputs.items()}
        for where, (given, backend) in zip(
            found, ((inputs, "native"), (inputs, "reference"), (wide, "reference")), strict=True
        ):
            where.append(run("stick", given, weight, backend, mask=Causal(), q_pos=pos, k_pos=pos))
    assert_as_exact(*found)


def test_a_stick_of_equal_shares_is_exact_to_a_rounding() -> None:
    """Scores without any error, so that all there is comes from thousands of subtractions."""
    n = 3000
    q, k, v = torch.zeros(1, 1, 1, 16), torch.zeros(1, 1, n, 16), torch.rand(1, 1, n, 16)
    q[..., 0], k[..., 0] = -28.0, 1.0
    given: dict[str, Any] = {"q_pos": torch.tensor([[n]]), "k_pos": torch.arange(n)[None]}
    got = attend(q, k, v, normalise="stickbreaking", backend="native", **given)
    share = torch.tensor(-7.0).double().sigmoid()
    expected = share * (1 - share) ** torch.arange(n - 1, -1, -1) @ v.double()
    # plain PyTorch, multiplying by the exact shares, is as far off
    assert (got - expected).abs().max() < 2**-20 * expected.abs().max()


@pytest.mark.parametrize("ahead", [0, 10, 20])
def test_the_rest_of_a_stick_goes_to_a_key_that_is_seen(ahead: int) -> None:
    inputs, weight = draw("remainder", 1, 2, 1, 40, 40, 8, 8), torch.randn(1, 2, 40, 8).double()
    pos = torch.arange(40)[None]
    given = {"mask": Window(13), "q_pos": pos + ahead, "k_pos": pos}
    got, expected = (run("remainder", inputs, weight, backend, **given) for backend in ("native", "reference"))
    for name, exact in expected.items():
        torch.testing.assert_close(got[name], exact)


def test_two_threads_give_the_same_bits_every_time() -> None:
    """The queries of one head are divided among the threads."""
    n = 700
    weight = torch.randn(1, 1, n, 16)
    for kind in ("stick", "table", "path"):
        inputs = {name: x.float() for name, x in draw(kind, 1, 1, 1, n, n, 16, 16).items()}
        found = on_two_threads(partial(run, kind, inputs, weight, "native", mask=Causal()))
        wide = {name: x.double() for name, x in inputs.items()}
        expected = run(kind, wide, weight.double(), "reference", mask=Causal())
        for name, exact in expected.items():
            torch.testing.assert_close(found[name].double(), exact, rtol=1e-3, atol=1e-4)


def test_counting_ends_where_the_table_does() -> None:
    """At a border of blocks of keys the count, 8 gates of 1/2, is at the last entry but one, or at the last."""
    pos = torch.arange(520)[None]
    for width in (5, 6):
        inputs = draw("table", 1, 1, 1, 1, 520, 8, 8, width=width)
        inputs["q"].zero_()
        weight, given = torch.randn(1, 1, 1, 8).double(), {"mask": Causal(), "q_pos": pos[:, -1:], "k_pos": pos}
        got, expected = (run("table", inputs, weight, backend, **given) for backend in ("native", "reference"))
        for name, exact in expected.items():
            torch.testing.assert_close(got[name], exact)


# --- skipped tiles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stick", "remainder", "path"])
def test_what_is_skipped_changes_nothing(kind: str, tiles: Any) -> None:
    n, found = 1200, ([], [])  # type: tuple[int, tuple[list[Any], ...]]
    inputs = {name: x.float() for name, x in draw(kind, 1, 2, 1, n, n, 16, 16).items()}
    if kind == "path":
        inputs["slope"] = torch.tensor([1.0, 0.5])
    weight = torch.randn(1, 2, n, 16)
    for skip, where in ((1, found[0]), (0, found[1])):
        tiles.skip = skip
        tiles.count.zero_()
        where.append(run(kind, inputs, weight, "native", mask=Causal()))
        if skip:
            assert tiles.count[1] > 0.2 * tiles.count.sum()
        else:
            assert tiles.count[1] == 0
    for name, whole in found[1][0].items():
        largest = whole.abs().max().item()
        torch.testing.assert_close(found[0][0][name], whole, rtol=2**-22, atol=2**-24 * largest)


@pytest.mark.parametrize("kind", ["stick", "path"])
def test_an_outlier_far_away_is_not_skipped(kind: str, tiles: Any) -> None:
    """A weight of 1e-20 counts where its value is 1e30 times the others'."""
    inputs = {name: x.float() for name, x in draw(kind, 1, 1, 1, 900, 900, 16, 16).items()}
    if kind == "stick":
        inputs["q"][..., 0], inputs["k"][..., 0] = 4.0, -3.0
    else:
        inputs["slope"] = torch.tensor([0.08])
    inputs["v"][:, :, 3] *= 1e30
    wide = {name: x.double() for name, x in inputs.items()}
    got, truth = (
        attend(*(x[name] for name in "qkv"), mask=Causal(), backend=backend, **given_to(kind, x))
        for backend, x in (("native", inputs), ("reference", wide))
    )
    error = (got.double() - truth).abs().amax(-1)[..., 1:] / truth.abs().amax(-1)[..., 1:]
    assert error.max() < 1e-4


@pytest.mark.parametrize("queries", [1, 200])
def test_a_stick_that_is_used_up_needs_no_more_keys(queries: int, tiles: Any) -> None:
    tiles.count.zero_()
    q, k, v = (torch.randn(1, 1, 2048, 16) for _ in range(3))
    pos = torch.arange(2048)[None]
    with torch.no_grad():
        attend(
            *(q[:, :, -queries:], k, v), q_pos=pos[:, -queries:], k_pos=pos, normalise="stickbreaking", backend="native"
        )
    assert tiles.count[0] <= tiles.count.sum() / 3


# --- what else a call may have --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_drops_the_same_pairs(kind: str) -> None:
    inputs, weight = draw(kind, 1, 2, 2, 120, 120, 8, 8), torch.randn(1, 2, 120, 8).double()
    given = {"mask": Causal(), "dropout": 0.4, "seed": 7}
    got, expected = (run(kind, inputs, weight, backend, **given) for backend in ("native", "reference"))
    for name, exact in expected.items():
        torch.testing.assert_close(got[name], exact)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_keys_are_zero(kind: str) -> None:
    pos = torch.tensor([[-1, -1, -1, 0, 1, 2, 3]])
    q_pos = torch.tensor([[-1, -1, 0, 1, 2]])
    inputs = draw(kind, 1, 2, 2, 5, 7, 8, 8)
    got = run(kind, inputs, torch.ones(1, 2, 5, 8), "native", mask=Causal(), q_pos=q_pos, k_pos=pos)
    assert not got["out"][:, :, :2].any()
    assert not got["dq"][:, :, :2].any()
    assert not got["dk"][:, :, :3].any()
    assert not got["dv"][:, :, :3].any()
    assert all(x.isfinite().all() for x in got.values())


def test_strides_do_not_matter() -> None:
    inputs = draw("path", 2, 4, 2, 40, 40, 8, 16)
    weight = torch.randn(2, 4, 40, 16).double()
    expected = run("path", inputs, weight, "native", mask=Causal())
    strange = {name: x.mT.contiguous().mT if x.ndim == 4 else x for name, x in inputs.items()}
    got = run("path", strange, weight.mT.contiguous().mT, "native", mask=Causal())
    for name, exact in expected.items():
        torch.testing.assert_close(got[name], exact)


SEEN = Dense(torch.ones(5, 5, dtype=torch.bool))
REFUSED = {
    "a term beside a stick": (
        {"normalise": "stickbreaking", "terms": [ByDistance.linear(torch.tensor([-1.0]))]},
        "the kernel of stick-breaking does not support terms, such as ByDistance",
    ),
    "a term beside a Scan": (
        {"terms": [Scan(False), ByDistance.linear(torch.tensor([-1.0]))]},
        "the kernel of Scan does not support other terms besides it",
    ),
    "a table of negative sums": (
        {"terms": [Scan(False, torch.zeros(1, 1, 5, 3), torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2))]},
        "the kernel of Scan does not look up sums of log σ, which are below 0, in a table",
    ),
    "a mask": (
        {"normalise": "stickbreaking", "mask": SEEN & SEEN},
        "the mask contains more than one boolean tensor or Blocks",
    ),
    "a softcap": ({"terms": [Scan(False)], "softcap": 2.0}, "fused kernels do not support softcap=2.0"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_is_refused(what: str) -> None:
    given, reason = REFUSED[what]
    x = torch.zeros(1, 1, 5, 4)
    with refusal(f"backend 'native' cannot run this call: {reason}; backend='auto' finds one that can"):
        attend(x, x, x, backend="native", **given)
