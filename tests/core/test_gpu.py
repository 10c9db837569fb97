"""Everything that needs an NVIDIA GPU: run by ``make gpu``, skipped without one.

Backends against float64, values and every gradient, on what they are written down to accept (signatures.py); the
kernels of ``triton`` on the cases of their interpreter and on their own tile sizes; the same bits twice; compiled,
under autocast, with a cache, and from the command line.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from common import assert_as_exact, default, make, naive, specs, values_and_gradients
from signatures import accepts, representatives, signature
from torch import Tensor

from headway import Attention, Causal, Documents, HeadwayError, KVCache, Prefix, Transformer, Window, attend
from headway.backends import reference
from headway.backends import triton as fused
from headway.backends.triton.environment import INTERPRETED
from headway.positions import methods

if not torch.cuda.is_available() or INTERPRETED:
    pytest.skip("there is no NVIDIA GPU", allow_module_level=True)

import interpreted
from interpreted import ALL, DECODING, FULL, KINDS, POSITIONS, SHAPES, compare, tile

__all__ = ["tile"]
# torch's compiler warns of itself
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
UNORDERED = ("cope", "dape", "deberta")
"""Methods whose gradients on a GPU are summed by atomic addition: torch's of a gather and a convolution, and those of
FlexAttention."""
POS = torch.zeros(2, 1, 1, dtype=torch.long)
SPECS = list(representatives().values())
BACKENDS = ("triton", "sdpa", "tiled", "reference")
"""Those that every case is run on; ``flex`` compiles for each, and has fewer."""


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default torch rounds the factors of float32 convolutions to TF32: dape, dapev2, path, selectiverotary."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@dataclass
class Case:
    tokens: int
    head_dim: int
    heads: int
    kv_heads: int
    mask: Callable[[int], Any]
    dtype: torch.dtype
    start: int = 0
    keys: int | None = None

    def __str__(self) -> str:
        mask = self.mask(self.tokens)
        name = type(mask).__name__ if mask else "full"
        return f"{self.tokens}x{self.head_dim}-{self.heads}of{self.kv_heads}-{name}-{self.dtype}".replace("torch.", "")


def packed(tokens: int) -> Any:
    return Causal() & Documents((torch.arange(tokens, device="cuda") // 90)[None])


CASES = [
    Case(1, 64, 4, 4, lambda _: Causal(), torch.float32),
    Case(1, 64, 4, 2, lambda _: Causal(), torch.bfloat16, start=1500, keys=1500),
    Case(300, 64, 4, 2, lambda _: Causal(), torch.float32),
    Case(300, 64, 4, 2, lambda _: None, torch.bfloat16),
    Case(300, 80, 6, 3, lambda _: Causal(), torch.float16, start=10**6),
    Case(300, 128, 4, 1, lambda _: Window(70, 33), torch.bfloat16),
    Case(150, 128, 4, 1, packed, torch.float32),
    Case(150, 64, 12, 4, lambda _: None, torch.bfloat16, keys=283),
    Case(151, 256, 2, 1, lambda _: Causal(), torch.bfloat16),
    Case(151, 256, 2, 1, lambda _: Causal(), torch.float32),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("spec", SPECS)
def test_as_exact_as_plain_pytorch(spec: str, case: Case) -> None:
    if case.head_dim > 128 and make(spec, 1, 1, 16).rotate(*torch.zeros(2, 1, 1, 1, 16), *POS)[0].shape[-1] > 16:
        pytest.skip("it makes heads wider than 256")
    if spec.startswith("cope") and case.dtype is torch.float16:
        pytest.skip("its positions come from scores: a rounding may put one on the other side of an integer")
    judge(spec, case, BACKENDS)


FLEX = [Case(300, 64, 4, 2, lambda _: Causal() | Prefix(20), torch.bfloat16), CASES[2], CASES[6]]


@pytest.mark.parametrize("case", FLEX, ids=str)
@pytest.mark.parametrize("spec", [spec for spec in SPECS if accepts(spec, "flex", Causal(), 300)])
def test_flex_is_as_exact_as_plain_pytorch(spec: str, case: Case) -> None:
    judge(spec, case, ("flex",))


def judge(spec: str, case: Case, backends: tuple[str, ...]) -> None:
    """Hold the backends that accept the case against float64."""
    position = make(spec, case.heads, case.kv_heads, case.head_dim)
    keys = case.keys or case.tokens
    k_pos = torch.arange(case.start, case.start + keys)[None]
    mask = case.mask(case.tokens)
    accepting = [backend for backend in backends if accepts(spec, backend, mask, case.tokens, keys, case.start)]
    position, k_pos = position.to("cuda", case.dtype), k_pos.cuda()
    given = {"mask": mask, "q_pos": k_pos[:, -case.tokens :], "k_pos": k_pos}
    exact = copy.deepcopy(position).double()
    jump = 1e-3 if "kinks" in position.exempt else 0.0
    # fox's gates sum the gradients of all keys before them: errors that are alike add up
    jump = 3e-3 if signature(spec).startswith("PerKey") else jump
    shapes = ((case.heads, case.tokens), (case.kv_heads, keys), (case.kv_heads, keys))

    def draw(draws: int) -> None:
        inputs = [
            [torch.randn(2, *shape, case.head_dim, device="cuda").to(case.dtype) for shape in shapes]
            for _ in range(draws)
        ]
        weight = torch.randn(2, case.heads, case.tokens, case.head_dim, device="cuda").to(case.dtype)
        wide = [[x.double() for x in draw] for draw in inputs]
        truth = [values_and_gradients(exact, draw, weight.double(), on_gpu, **given) for draw in wide]
        plain = [values_and_gradients(position, draw, weight, on_gpu, **given) for draw in inputs]
        for backend in accepting:
            got = [values_and_gradients(position, draw, weight, attend, backend=backend, **given) for draw in inputs]
            try:
                # scores and their gradients are sums of head_dim products, in another order than plain PyTorch's; of a
                # single key they cancel wholly there, and only there
                atom = 4 * case.head_dim * torch.finfo(case.dtype).eps if case.dtype is torch.float32 else 0.0
                atom *= 4 if keys == 1 else 1
                assert_as_exact(got, plain, truth, atom, jump)
            except AssertionError as problem:
                raise AssertionError(f"{backend}: {problem}") from None

    try:
        draw(8 if case.tokens <= 2 else 1)
    except AssertionError:
        draw(9)


def on_gpu(*given: Any, **options: Any) -> Tensor:
    """Plain PyTorch, its constants on the GPU."""
    with torch.device("cuda"):
        return naive(*given, **options)


OWN = [
    interpreted.Case(tokens, dim, 4, 2, mask, terms, dtype, tile=None)
    for tokens, dim, mask, terms, dtype in (
        (700, 64, Causal(), ("saturating",), torch.bfloat16),
        (700, 64, FULL, ("full table",), torch.bfloat16),
        (700, 64, Window(200, 90), ALL, torch.bfloat16),
        (700, 64, Causal(), ("slope",), torch.float16),
        (700, 64, FULL, ("steep",), torch.bfloat16),
        (700, 64, Causal(), ("falling keys",), torch.bfloat16),
        (700, 64, Causal(), ("keys",), torch.float32),
        (700, 128, Causal(), ("saturating",), torch.bfloat16),
        (700, 128, FULL, ALL, torch.bfloat16),
        (700, 128, FULL, ("rows",), torch.float16),
        (700, 128, Causal(), ALL, torch.float32),
        (700, 200, Causal(), ALL, torch.bfloat16),
        (700, 256, FULL, ("full table",), torch.float16),
        (700, 256, Causal(), ALL, torch.float32),
        (700, 40, FULL, ALL, torch.float32),
        (700, 8, Causal(), ALL, torch.bfloat16),
        (700, 64, Causal(), (), torch.bfloat16),
        (700, 128, FULL, (), torch.bfloat16),
        (700, 256, Causal(), (), torch.bfloat16),
    )
]
OWN += [
    interpreted.Case(300, 64, 4, 2, Causal(), ALL, torch.bfloat16, dim_v=128, tile=None),
    interpreted.Case(300, 192, 4, 2, Causal(), ALL, torch.bfloat16, dim_v=128, tile=None),
    interpreted.Case(300, 64, 8, 1, FULL, ALL, torch.bfloat16, keys=1100, tile=None),
    interpreted.Case(700, 64, 4, 2, packed(700).first, ("image",), torch.bfloat16, tile=None),
    interpreted.Case(700, 64, 4, 2, Causal(), ("saturating", "keys"), torch.bfloat16, tile=None, dropout=0.2),
    interpreted.Case(300, 64, 4, 2, FULL, ("shared pairs", "saturating"), torch.bfloat16, tile=None),
    interpreted.Case(300, 128, 4, 2, Window(90, 30), ("head pairs",), torch.float32, tile=None, dropout=0.2),
    interpreted.Case(300, 256, 4, 2, Causal(), ("pairs",), torch.bfloat16, tile=None),
]
EVERYWHERE = [*KINDS, *SHAPES, *POSITIONS, *DECODING]


@pytest.mark.parametrize("case", OWN, ids=str)
def test_tiles_of_the_kernels_own(case: interpreted.Case) -> None:
    compare(case, twice=True)


@pytest.mark.parametrize("case", EVERYWHERE, ids=str)
def test_small_tiles(case: interpreted.Case, tile: Any) -> None:
    if case.tile:
        tile(case.tile)
    compare(case, twice=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [*POSITIONS, *DECODING], ids=str)
def test_positions_in_tiles_of_the_kernels_own(case: interpreted.Case, dtype: torch.dtype) -> None:
    copied = copy.copy(case)
    copied.tile, copied.dtype = None, dtype
    compare(copied, twice=True)


@pytest.mark.parametrize("width", [64, 128, 256])
def test_float32_in_three_products(width: int) -> None:
    """If torch may use tensor cores for its own products, ours split each factor into two TF32 values."""
    case = interpreted.Case(700, width, 4, 2, terms=ALL, tile=None)
    parameters = [interpreted.made(name, case)[0] for name in ALL]
    inputs = [torch.randn(2, heads, 700, width) for heads in (4, 2, 2)] + [torch.randn(2, 4, 700, width).double()]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        got = interpreted.values_and_gradients(fused.run, case, inputs, parameters, None)
    finally:
        torch.set_float32_matmul_precision(before)
    truth = interpreted.values_and_gradients(reference.run, case, inputs, parameters, torch.float64)
    for name, exact in truth.items():
        assert (got[name].double() - exact).norm() <= 1e-5 * exact.norm(), name


@pytest.mark.parametrize("spec", specs())
def test_auto_trains_every_method(spec: str) -> None:
    """In a Transformer, in bfloat16, against the same in float64; and the same bits twice."""
    model = Transformer(vocab=17, dim=128, layers=1, heads=4, kv_heads=2, position=spec).eval()
    wide = copy.deepcopy(model).double().cuda()
    model = model.cuda()
    longest = getattr(default(spec), "max_length", 150)
    tokens = torch.randint(17, (2, min(150, longest)), device="cuda")

    def run(of: Any, dtype: torch.dtype | None) -> list[Tensor]:
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            out = of(tokens)
        parameters = [p for p in of.parameters() if p.requires_grad]
        found = torch.autograd.grad(out.float().square().mean(), parameters, allow_unused=True)
        return [out, *(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True))]

    truth = run(wide, None)
    for dtype, tolerance in ((None, 2e-4), (torch.bfloat16, 0.1)):
        got = run(model, dtype)
        # what softmax does not see has a gradient of nothing but rounding
        least = 0.01 * max(exact.norm() for exact in truth[1:])
        for x, exact in zip(got, truth, strict=True):
            assert x.isfinite().all()
            assert (x.double() - exact).norm() <= tolerance * max(exact.norm(), least)
        if not spec.startswith(UNORDERED):
            assert all(torch.equal(x, y) for x, y in zip(got, run(model, dtype), strict=True))


@pytest.mark.parametrize("spec", list(methods()))
def test_a_cache_gives_what_one_pass_gives(spec: str) -> None:
    module = Attention(256, 4, kv_heads=2, position=spec, mask=Causal()).cuda().eval()
    x = torch.randn(2, 400, 256, device="cuda")
    with torch.no_grad():
        whole, cache = module(x), KVCache()
        pieces = [module(piece, cache=cache) for piece in x.split([330, 20, *[1] * 20, 30], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("spec", SPECS)
def test_compiled_is_eager(spec: str) -> None:
    if torch.__version__ < "2.13" and not accepts(spec, "triton", Causal(), 150):
        pytest.skip("torch 2.11 cannot compile the slices that tiled works on")
    torch.compiler.reset()
    module = Attention(128, 4, kv_heads=2, position=spec, mask=Causal()).cuda().eval()
    x = torch.randn(2, 150, 128, device="cuda")
    results = []
    for run in (module, torch.compile(module, fullgraph=True)):
        out = run(x)
        found = torch.autograd.grad(out.square().sum(), list(module.parameters()), allow_unused=True)
        results.append([out, *(g for g in found if g is not None)])
    for expected, got in zip(*results, strict=True):
        assert (got - expected).norm() <= 1e-4 * expected.norm() + 1e-5


@pytest.mark.parametrize("backend", ["triton", "flex", "tiled", "sdpa"])
def test_hidden_nan_leaks_nowhere(backend: str) -> None:
    clean = [torch.randn(1, h, 140, 64, device="cuda") for h in (2, 1, 1)]
    dirty = [x.clone() for x in clean]
    for x in dirty:
        x[:, :, 139] = torch.nan
    results = []
    for inputs in (clean, dirty):
        leaves = [x.requires_grad_() for x in inputs]
        out = attend(*leaves, mask=Causal(), backend=backend)
        results.append([out[:, :, :139], *torch.autograd.grad(out[:, :, :139].square().sum(), leaves)])
        assert bool(out[:, :, 139].isnan().all()) == (inputs is dirty)
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_long_texts_index_beyond_32_bits() -> None:
    """2³¹ entries of q, and of rows: offsets in the kernels have 64 bits."""
    tokens, heads, width = 2**15, 33, 2**6
    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.skip("needs 60 GiB")
    q = torch.randn(32, heads, tokens, width, device="cuda", dtype=torch.bfloat16)
    k = torch.randn(32, 1, tokens, width, device="cuda", dtype=torch.bfloat16)
    out = attend(q, k, k, mask=Window(100, 0), backend="triton")
    few = attend(q[-1:, -1:], k[-1:], k[-1:], mask=Window(100, 0), backend="triton")
    # one head alone divides its keys among programs, so the last bits differ
    torch.testing.assert_close(out[-1:, -1:], few, rtol=2**-7, atol=2**-7)


def test_a_named_backend_takes_no_tensors_from_two_devices() -> None:
    q = torch.randn(1, 2, 9, 16, device="cuda")
    with pytest.raises(HeadwayError, match="on one device"):
        attend(q, q.cpu(), q, backend="triton")


@pytest.mark.parametrize("command", ["train", "bench"])
def test_commands(command: str, tmp_path: Path) -> None:
    options = {
        "train": ["--position", "t5", "--steps", "6", "--length", "64", "--validate-every", "3"],
        "bench": ["--methods", "none,t5,alibi", "--lengths", "300", "--rounds", "2", "--dtype", "bfloat16"],
    }[command]
    run = subprocess.run(
        [sys.executable, "-m", "headway", command, "--device", "cuda", "--out", str(tmp_path / "out"), *options],
        env={**os.environ, "HEADWAY_CHECKED": "none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    if command == "bench":
        rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
        assert all(row["status"] == "ok" for row in rows if row["contender"].startswith("headway")), rows
