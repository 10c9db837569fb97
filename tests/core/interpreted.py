"""The triton backend's kernels against float64, in Triton's interpreter on a CPU. Run by test_triton.py, in a process
of its own: the interpreter is chosen when triton is first imported. test_gpu.py runs the same cases on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from common import assert_as_exact
from torch import Tensor

from headway import Causal, Documents, Window, attend
from headway.backends import reference
from headway.backends import triton as backend
from headway.backends.base import Call
from headway.backends.triton import attention, backward, forward
from headway.backends.triton.environment import INTERPRETED
from headway.integers import as_positions
from headway.masks import And
from headway.terms import AnyTerm, ByDistance, ByDistancePerQuery, DenseBias, PerKey

Terms = Callable[[list[Tensor]], tuple[AnyTerm, ...]]
DEVICE = "cpu" if INTERPRETED else "cuda"
FULL, FAR = None, Window(10**6, 10**6)


@dataclass
class Case:
    tokens: int = 113
    head_dim: int = 16
    heads: int = 2
    kv_heads: int = 1
    mask: Any = field(default_factory=Causal)
    terms: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    keys: int | None = None
    dim_v: int | None = None
    q_pos: Tensor | None = None
    k_pos: Tensor | None = None
    tile: tuple[int, int] | None = (32, 16)
    dropout: float = 0.0

    def __str__(self) -> str:
        mask = type(self.mask).__name__ if self.mask else "full"
        where = "" if self.q_pos is None else "-positions"
        kind = str(self.dtype).removeprefix("torch.")
        where += f"-dropout{self.dropout}" if self.dropout else ""
        return f"{self.tokens}x{self.head_dim}-{mask}-{'+'.join(self.terms) or 'plain'}-{kind}{where}"


def made(name: str, case: Case) -> tuple[list[Tensor], Terms]:
    """A term's parameters, and the term given them."""
    heads, queries, keys = case.heads, case.tokens, case.keys or case.tokens
    if name == "saturating":
        return [torch.randn(heads, 13)], lambda p: (ByDistance(p[0], 9),)
    if name == "full table":
        return [torch.randn(heads, 2 * queries + 1)], lambda p: (ByDistance(p[0], queries),)
    if name == "far table":  # it lies wholly in the past, so that the diagonal has left it at its other end
        return [torch.randn(heads, 5), -torch.rand(heads, 2)], lambda p: (ByDistance(p[0], 20, p[1]),)
    if name == "two entries":
        return [torch.randn(heads, 2)], lambda p: (ByDistance(p[0], 1),)
    if name == "image":
        return [torch.randn(heads, 37)], lambda p: (ByDistance(p[0], 18, row=5),)
    if name == "slope":
        return [-torch.rand(heads)], lambda p: (ByDistance.linear(p[0]),)
    if name == "steep":
        return [-5 - torch.rand(heads)], lambda p: (ByDistance.linear(p[0]),)
    if name == "falling keys":
        return [torch.arange(keys).expand(2, heads, -1) * 5.0], lambda p: (PerKey(p[0]),)
    if name == "rows":
        return [torch.randn(2, heads, queries, 9)], lambda p: (ByDistancePerQuery(p[0], 5),)
    if name == "one row entry":
        return [torch.randn(2, heads, queries, 1)], lambda p: (ByDistancePerQuery(p[0], 0),)
    if name.endswith("pairs"):  # some of them hidden
        shape = {"pairs": (2, heads), "shared pairs": (1, 1), "head pairs": (1, heads)}[name]
        bias = torch.randn(*shape, queries, keys).bfloat16().float()
        bias[torch.rand(queries, keys).expand_as(bias) < 0.2] = -torch.inf
        dtype = torch.bfloat16 if case.dtype is torch.bfloat16 else torch.float32
        return [bias], lambda p: (DenseBias(p[0] if p[0].dtype is torch.float64 else p[0].to(dtype)),)
    assert name == "keys"
    return [torch.randn(2, heads, keys)], lambda p: (PerKey(p[0]),)


def there(mask: Any) -> Any:
    """A mask with what it holds on the device."""
    match mask:
        case And(first, second):
            return And(there(first), there(second))
        case Documents(ids):
            return Documents(ids.to(DEVICE))
        case _:
            return mask


def values_and_gradients(run: Any, case: Case, inputs: list[Tensor], parameters: list[list[Tensor]], wide: Any) -> dict:
    def leaf(x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.detach().to(DEVICE, dtype).requires_grad_()

    qkv = [leaf(x, wide or case.dtype) for x in inputs[:3]]
    params = [[leaf(x, wide or torch.float32) for x in group] for group in parameters]
    terms = [made(name, case)[1](group) for name, group in zip(case.terms, params, strict=True)]
    call = Call(
        *qkv,
        *(
            as_positions(None if pos is None else pos.to(DEVICE), x[:, 0])
            for pos, x in ((case.q_pos, qkv[0]), (case.k_pos, qkv[1]))
        ),
        there(case.mask),
        tuple(term for group in terms for term in group),
        case.head_dim**-0.5,
        "softmax",
        case.q_pos is None and case.k_pos is None,
        DEVICE,
        dropout=case.dropout,
        seed=torch.tensor([0xFEDCBA9876543]),
    )
    assert wide or backend.refuses(call) is None
    out = run(call)
    leaves = dict(zip("qkv", qkv, strict=True)) | {f"t{i}": x for i, x in enumerate(x for g in params for x in g)}
    gradients = torch.autograd.grad((out.double() * inputs[3].to(DEVICE)).sum(), list(leaves.values()))
    return {"out": out.detach()} | dict(zip(leaves, gradients, strict=True))


@pytest.fixture
def tile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[tuple[int, int]], None]]:
    """Make tiles small, so that few tokens make many of them."""

    def small(sizes: tuple[int, int]) -> None:
        def blocks(kernel: str, *_: Any) -> attention.Blocks:
            queries, keys = sizes
            own = {"walk": (queries, queries), "entries": (16, keys), "keys": (keys, queries)}
            return attention.Blocks(*own.get(kernel, sizes), 4, 1)

        monkeypatch.setattr(attention, "blocks", blocks)

    return small


def compare(case: Case, twice: bool = False) -> None:
    """As exact as plain PyTorch; and, if asked, the same bits twice."""
    shapes = ((case.heads, case.tokens, case.head_dim), (case.kv_heads, case.keys or case.tokens, case.head_dim))
    dim_v = case.dim_v or case.head_dim
    inputs = [torch.randn(2, *shape).to(case.dtype) for shape in shapes]
    inputs += [torch.randn(2, *shapes[1][:2], dim_v).to(case.dtype)]
    inputs += [torch.randn(2, *shapes[0][:2], dim_v).double()]
    parameters = [made(name, case)[0] for name in case.terms]
    truth = values_and_gradients(reference.run, case, inputs, parameters, torch.float64)
    plain = values_and_gradients(reference.run, case, inputs, parameters, None)
    got = values_and_gradients(backend.run, case, inputs, parameters, None)
    # weights are rounded to the dtype for the tensor cores, as all flash attention's are; the reference keeps them wide
    atom = 2 * torch.finfo(case.dtype).eps if case.dtype is not torch.float32 else 2**-20
    assert_as_exact([got], [plain], [truth], atom)
    if twice:
        again = values_and_gradients(backend.run, case, inputs, parameters, None)
        assert all(torch.equal(got[name], again[name]) for name in got)


PACKED = torch.cat((torch.arange(40), torch.arange(23)))[None]
DOCS = (torch.arange(63) // 40)[None]
PADDED = torch.cat((torch.full((7,), -1), torch.arange(56)))[None]
LARGEST = torch.arange(2**40 - 20, 2**40)
SCATTERED = torch.randint(-1, 40, (2, 50), generator=torch.Generator().manual_seed(0))
ALL = ("far table", "rows", "keys")

TABLES = ("saturating", "full table", "far table", "two entries")
OTHERS = ("slope", "rows", "keys", "one row entry")
KINDS = [
    Case(),
    Case(63, mask=FULL),
    Case(63, mask=Window(20, 10)),
    *[Case(63, mask=mask, terms=(term,)) for term in TABLES for mask in (Causal(), FULL, Window(30, 12))],
    *[Case(63, mask=mask, terms=(term,)) for term in OTHERS for mask in (Causal(), FULL)],
    Case(63, mask=Window(30, 12), terms=ALL),
    Case(63, heads=4, kv_heads=2, mask=FULL, terms=ALL, dim_v=40),
    Case(63, terms=("saturating", "slope")),
    Case(63, mask=FULL, terms=("image",)),
    Case(19, mask=Window(9, 4), terms=("head pairs", "saturating"), dropout=0.3, keys=33),
    Case(33, mask=Window(20, 9), terms=("shared pairs", *ALL), dropout=0.3, keys=43),
    Case(63, mask=FULL, terms=("pairs",)),
    Case(40, 59, 4, 2, terms=("head pairs", "shared pairs", "saturating"), dtype=torch.bfloat16),
    Case(63, terms=("slope",), dropout=0.7),
    Case(63, mask=FULL, terms=("saturating", "rows"), dropout=0.1),
]  # fmt: skip
SHAPES = [
    Case(1, 64, terms=("slope",), tile=None),
    Case(2, 59, 3, 1, FULL, ("saturating",), tile=None),
    Case(17, 80, 4, 2, Window(5), ("rows",), tile=None),
    Case(63, 59, 6, 2, terms=ALL, dtype=torch.bfloat16, tile=None),
    Case(113, 80, 2, 2, FULL, ("full table",), torch.float16, tile=None),
    Case(113, 64, 4, 1, terms=("saturating",), dtype=torch.bfloat16, tile=None),
    Case(5, 64, 4, 2, FULL, keys=71),
    Case(63, 16, terms=("saturating",), tile=(16, 32)),
    Case(63, 16, mask=FULL, terms=("slope",), tile=(16, 32)),
]
POSITIONS = [
    Case(63, mask=Causal() & Documents(DOCS), terms=ALL),
    Case(63, mask=Causal() & Documents(DOCS), terms=ALL, q_pos=PACKED, k_pos=PACKED),
    Case(63, terms=("saturating", "rows"), q_pos=PADDED, k_pos=PADDED),
    Case(63, terms=("image",), q_pos=PADDED, k_pos=PADDED),
    Case(40, mask=Window(30, 30), terms=ALL, keys=50, q_pos=SCATTERED[:, :40], k_pos=SCATTERED),
    Case(20, mask=Causal(), terms=("saturating",), q_pos=LARGEST, k_pos=LARGEST),
]  # fmt: skip
DECODING = [
    Case(1, 64, 4, 2, Causal(), ("slope",), keys=300, q_pos=torch.tensor([299]), k_pos=torch.arange(300)),
    Case(3, 16, 2, 1, FAR, ("saturating",), keys=300, q_pos=torch.tensor([5, -1, 299]), k_pos=torch.arange(300)),
    Case(3, 16, 2, 2, FULL, keys=300),
]


def some(cases: list[Case], chosen: Callable[[Case], bool]) -> pytest.MarkDecorator:
    """Parametrise a test over cases; all but the chosen are proofs, because the interpreter is slow."""
    marks = [() if chosen(case) else (pytest.mark.slow,) for case in cases]
    return pytest.mark.parametrize(
        "case", [pytest.param(case, marks=mark, id=str(case)) for case, mark in zip(cases, marks, strict=True)]
    )


OFTEN = ((ALL, Window(30, 12)), (("two entries",), Causal()), (("head pairs", "saturating"), Window(9, 4)))


@some(KINDS, lambda case: (case.terms, case.mask) in OFTEN)
def test_kinds_of_terms_and_masks(case: Case, tile: Any) -> None:
    tile(case.tile)
    compare(case)


@some(SHAPES, lambda case: case.tokens < 5 or (case.dtype is torch.bfloat16 and case.head_dim == 59))
def test_awkward_shapes(case: Case, tile: Any) -> None:
    if case.tile:
        tile(case.tile)
    compare(case, twice=True)


@some(POSITIONS, lambda case: case.tokens < 63)
def test_positions_that_are_not_indices(case: Case, tile: Any) -> None:
    tile(case.tile)
    compare(case)


def test_a_window_over_an_image_is_left_to_kernels_that_know_positions_as_they_are() -> None:
    """The kernel reads those of :func:`headway.terms.raster`, whose distances have the same sign, not the same size."""
    q, pos, term = (
        torch.randn(1, 1, 20, 16, device=DEVICE),
        torch.arange(20)[None],
        ByDistance(torch.zeros(1, 37), 18, row=5),
    )
    causal = Call(q, q, q, pos, pos, Causal(), (term,), 0.25, "softmax", True, DEVICE)
    assert backend.refuses(causal) is None
    assert "the mask Window is not" in (backend.refuses(replace(causal, mask=Window(9))) or "")


def test_a_wide_table_sums_over_many_queries_at_once(tile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tile((32, 32))
    monkeypatch.setattr(attention, "HELD", 1)
    compare(replace(POSITIONS[-1], heads=1))


@some(DECODING, lambda case: case.q_pos is not None and case.tokens == 3)
def test_few_queries_divide_the_keys(case: Case, tile: Any) -> None:
    tile(case.tile)
    compare(case)


@pytest.mark.parametrize(
    ("mask", "terms"),
    [
        (Causal(), ("steep",)),
        pytest.param(FULL, ("steep",), marks=pytest.mark.slow),
        pytest.param(FULL, ("falling keys",), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_tiles_without_weight_are_left_out_and_change_nothing(
    mask: Any, terms: tuple[str, ...], tile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile((16, 16))
    case = Case(65, heads=1, mask=mask, terms=terms)
    inputs = [torch.randn(2, h, case.tokens, case.head_dim) for h in (case.heads, case.kv_heads, case.kv_heads)]
    inputs.append(torch.randn(2, case.heads, case.tokens, case.head_dim).double())
    parameters = [made(name, case)[0] for name in case.terms]
    left_out = dict.fromkeys((forward, backward), 0)
    for module in left_out:
        trim = module.trim_by_weight

        def counting(a: Any, b: Any, *given: Any, module: Any = module, trim: Any = trim) -> Any:
            first, last = trim(a, b, *given)
            left_out[module] += int(b - a) - int(last - first)
            return first, last

        monkeypatch.setattr(module, "trim_by_weight", counting)
    some = values_and_gradients(backend.run, case, inputs, parameters, None)
    assert min(left_out.values()) > 10
    monkeypatch.setattr(attention.Launch, "trims", property(lambda self: False, lambda self, _: None), raising=False)
    every = values_and_gradients(backend.run, case, inputs, parameters, None)
    for name, expected in every.items():
        torch.testing.assert_close(some[name], expected, rtol=0, atol=2**-20)


def test_in_half_precision_the_gradients_of_terms_are_those_of_unrounded_weights(tile: Any) -> None:
    """Softmax ignores a constant, so a table's gradient sums to 0; and a slope's is that of the table it stands for."""
    tile((32, 16))
    q, k, v = torch.randn(3, 1, 1, 40, 16, device=DEVICE).bfloat16()
    steps = torch.arange(-39, 40, device=DEVICE).abs()
    weight, pos = torch.randn_like(q), torch.arange(40, device=DEVICE)[None]

    def gradient(parameter: Tensor, term: AnyTerm) -> Tensor:
        call = Call(q, k, v, pos, pos, Causal(), (term,), 0.25, "softmax", True, DEVICE)
        return torch.autograd.grad((backend.run(call) * weight).sum(), parameter)[0]

    table, slope = (torch.zeros(*shape, device=DEVICE, requires_grad=True) for shape in ((1, 79), (1,)))
    by_distance, by_step = gradient(table, ByDistance(table, 39)), gradient(slope, ByDistance.linear(slope))
    assert by_distance.sum().abs() < 1e-5 * by_distance.abs().sum()
    torch.testing.assert_close(by_step[0], (by_distance * steps).sum(), rtol=1e-4, atol=1e-3)


def test_a_value_that_outgrows_the_others_keeps_its_tile(tile: Any) -> None:
    """Weights of 10^-14 do count where they reach values of 10^15."""
    tile((16, 16))
    q, k, v = torch.randn(3, 1, 1, 96, 16)
    v[..., 3, :] = 1e15

    def run(how: Any, dtype: torch.dtype) -> Tensor:
        slope, pos = torch.ones(1, dtype=dtype), torch.arange(96)[None]
        terms = (ByDistance.linear(-slope),)
        inputs = (x.to(dtype) for x in (q, k, v))
        return how(Call(*inputs, pos, pos, Causal(), terms, 0.25, "softmax", True, "cpu"))

    torch.testing.assert_close(
        run(backend.run, torch.float32).double(), run(reference.run, torch.float64), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("with_gradients", [False, True])
def test_compiled_is_eager(with_gradients: bool) -> None:
    table = torch.randn(2, 9, requires_grad=True)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pos = torch.arange(q.shape[2])[None]
        return backend.run(Call(q, k, v, pos, pos, Causal(), (ByDistance(table, 5),), 0.25, "softmax", True, "cpu"))

    leaves = [torch.randn(1, h, 17, 16, requires_grad=with_gradients) for h in (2, 1, 1)]
    results = []
    for how in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        out = how(*leaves)
        found = torch.autograd.grad(out.square().sum(), [*leaves, table]) if with_gradients else ()
        results.append([out, *found])
    for expected, got in zip(*results, strict=True):
        assert torch.equal(expected, got)


def test_attend_finds_it_and_hidden_nan_leaks_nowhere() -> None:
    clean = [torch.randn(1, h, 17, 16) for h in (2, 1, 1)]
    dirty = [x.clone() for x in clean]
    for x in dirty:
        x[:, :, 16] = torch.nan
    results = []
    for inputs in (clean, dirty):
        leaves = [x.requires_grad_() for x in inputs]
        out = attend(*leaves, mask=Causal(), backend="triton")
        results.append([out[:, :, :16], *torch.autograd.grad(out[:, :, :16].square().sum(), leaves)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_strides_do_not_matter() -> None:
    q = torch.randn(9, 16, 4, 2).permute(3, 2, 0, 1)
    k = torch.randn(1, 1, 9, 16).expand(2, 1, 9, 16)
    v = torch.randn(2, 9, 1, 32).transpose(1, 2)[..., ::2]
    pos = torch.arange(9)[None]

    def run(*qkv: Tensor) -> Tensor:
        return backend.run(Call(*qkv, pos, pos, Causal(), (), 0.25, "softmax", True, "cpu"))

    assert torch.equal(run(q, k, v), run(*(x.contiguous() for x in (q, k, v))))


@pytest.mark.parametrize(("queries", "keys"), [(0, 6), (6, 0), (0, 0)])
def test_nobody_or_nothing_to_see(queries: int, keys: int) -> None:
    q, k = torch.randn(2, 4, queries, 8, requires_grad=True), torch.randn(2, 2, keys, 8, requires_grad=True)
    pos = torch.arange(6)[None]
    call = Call(q, k, k, pos[:, :queries], pos[:, :keys], Causal(), (), 1.0, "softmax", False, "cpu")
    out = backend.run(call)
    assert out.shape == q.shape
    assert not out.any()
    assert not any(g.any() for g in torch.autograd.grad(out.sum(), (q, k)))


def test_what_it_refuses() -> None:
    pos = torch.arange(3)[None]

    def reason(x: Tensor, device: str = "cpu") -> str | None:
        return backend.refuses(Call(x, x, x, pos, pos, None, (), 1.0, "softmax", True, device))

    x = torch.randn(1, 1, 3, 16)
    assert reason(x) is None
    assert reason(x.double()) == "its kernels support float16, bfloat16 and float32, not torch.float64"
    assert reason(torch.randn(1, 1, 3, 300)) == "heads are 300 wide, and its tiles hold at most 256"
    assert reason(x, "xpu") == "its kernels run on NVIDIA GPUs, not on 'xpu'"
