"""The native backend: exact in float64 on awkward calls, leaving out only what cannot matter, in O(n) memory."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from common import assert_as_exact, on_two_threads
from torch import Tensor

from headway import Causal, Documents, Window, attend
from headway.backends import compiler, native
from headway.backends.native import library
from headway.memory import peak_memory
from headway.terms import ByDistance, ByDistancePerQuery, DenseBias, PerKey

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernel here: {native.unavailable()}")


def terms_of(leaves: dict[str, Tensor], left: int, rows_left: int) -> tuple[Any, ...]:
    terms: list[Any] = []
    if "keys" in leaves:
        terms.append(PerKey(leaves["keys"]))
    if "table" in leaves:
        terms.append(ByDistance(leaves["table"], left, leaves.get("tails")))
    if "rows" in leaves:
        terms.append(ByDistancePerQuery(leaves["rows"], rows_left))
    return tuple(terms)


def run(
    inputs: dict[str, Tensor], weight: Tensor, backend: str, left: int = 0, rows_left: int = 0, **given: Any
) -> dict:
    """The output and every gradient of Σ weight · output."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    terms = terms_of(leaves, left, rows_left)
    out = attend(leaves["q"], leaves["k"], leaves["v"], terms=terms, backend=backend, **given)
    gradients = torch.autograd.grad((out * weight.to(out.dtype)).sum(), list(leaves.values()))
    return {"out": out.detach()} | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}


def positions(kind: str, batch: int, tokens: int) -> Tensor:
    pos = torch.arange(tokens).repeat(batch, 1)
    if kind == "far":
        return pos + 10**6
    if kind == "left padded":
        pos[0] = (pos[0] - tokens // 3).clamp(min=-1)
    if kind == "one of padding":  # -1, 0, 1 … go up by one, too
        pos[0] -= 1
    if kind == "evicted":
        return torch.sort(torch.randperm(3 * tokens)[:tokens]).values.expand(batch, -1)
    if kind == "packed":
        return pos % 41
    return pos


MASKS = {
    "full": lambda n: None,
    "causal": lambda n: Causal(),
    "window": lambda n: Window(13),
    "both sides": lambda n: Window(90, 70),
    "documents": lambda n: Causal() & Documents((torch.arange(n) // 41)[None]),
}


@pytest.mark.parametrize("kind", ["near", "far", "left padded", "one of padding", "evicted", "packed"])
@pytest.mark.parametrize("mask", list(MASKS))
@pytest.mark.parametrize("tokens", [1, 2, 63, 113, 700])
def test_exact_in_float64(tokens: int, mask: str, kind: str) -> None:
    """Every term at once or in part, tables that end inside, before and after the distances there are."""
    draw = torch.Generator().manual_seed(hash_of(mask, kind, tokens))

    def some(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (1,), generator=draw))]

    batch, kv_heads, dim, dim_v = some(1, 2), some(1, 2, 3), some(8, 32, 59, 80), some(16, 64, 72)
    heads = kv_heads * some(1, 2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    inputs = {
        "q": normal(batch, heads, tokens, dim),
        "k": normal(batch, kv_heads, tokens, dim),
        "v": normal(batch, kv_heads, tokens, dim_v),
    }
    left = rows_left = 0
    if some(0, 1):
        inputs["keys"] = normal(batch, some(1, heads), tokens)
    if some(0, 1, 1):
        width = some(1, 5, 129, 400)
        left = some(0, width // 2, width - 1)
        inputs["table"] = normal(some(1, heads), width)
        if some(0, 1):
            inputs["tails"] = 0.1 * normal(some(1, heads), 2)
    if some(0, 1):
        width = some(1, 7, 65)
        rows_left = some(0, width // 2, width - 1)
        inputs["rows"] = normal(batch, heads, tokens, width)
    pos = positions(kind, batch, tokens)
    given = {"mask": MASKS[mask](tokens), "left": left, "rows_left": rows_left}
    if kind != "near":
        given |= {"q_pos": pos, "k_pos": pos}
    weight = normal(batch, heads, tokens, dim_v)
    got, again, expected = (run(inputs, weight, backend, **given) for backend in ("native", "native", "reference"))
    for name, exact in expected.items():
        torch.testing.assert_close(
            got[name], exact, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert torch.equal(got[name], again[name])


def test_a_window_in_an_image_counts_tokens_not_offsets() -> None:
    q, k, v = torch.randn(3, 1, 2, 40, 8, dtype=torch.float64)
    term = ByDistance(torch.randn(2, 2 * 8 * 9 + 1, dtype=torch.float64), 72, row=5)
    got, expected = (
        attend(q, k, v, terms=(term,), mask=Causal() & Window(7), backend=name) for name in ("native", "reference")
    )
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def hash_of(*parts: object) -> int:
    """A number that does not change between processes."""
    return int.from_bytes(repr(parts).encode(), "big") % 2**31


# --- odd sizes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "kind"),
    [(1, 64, 128, "near"), (64, 2, 64, "near"), (1, 2, 1025, "packed"), (2, 3, 600, "evicted"), (1, 1, 1500, "near")],
    ids=["many heads", "large batch", "packed", "evicted", "one head"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_odd_sizes_are_as_exact_as_plain_pytorch(
    batch: int, heads: int, tokens: int, kind: str, dtype: torch.dtype
) -> None:
    inputs = {name: torch.randn(batch, heads, tokens, 32).to(dtype) for name in "qkv"}
    inputs["table"] = torch.randn(heads, 129).to(dtype)
    pos = positions(kind, batch, tokens)
    mask = Causal() & Documents((torch.arange(tokens) // 41)[None]) if kind == "packed" else Causal()
    given: dict[str, Any] = {"mask": mask, "q_pos": pos, "k_pos": pos, "left": 128}
    weight = torch.randn(batch, heads, tokens, 32).to(dtype)
    wide = {name: x.double() for name, x in inputs.items()}
    truth = run(wide, weight.double(), "reference", **given)
    plain, got = (run(inputs, weight, backend, **given) for backend in ("reference", "native"))
    assert_as_exact([got], [plain], [truth])


def test_one_head_of_32k_tokens() -> None:
    n, rows = 32768, slice(32000, 32064)
    inputs = {name: torch.randn(1, 1, n, 16) for name in "qkv"} | {"table": torch.randn(1, 129)}
    weight = torch.zeros(1, 1, n, 16)
    weight[:, :, rows] = torch.randn(64, 16)
    pos = torch.arange(n)[None]
    got = run(inputs, weight, "native", mask=Causal(), left=128)
    # the rows that count, by themselves
    few = {**inputs, "q": inputs["q"][:, :, rows]}
    given: dict[str, Any] = {"mask": Causal(), "left": 128, "q_pos": pos[:, rows], "k_pos": pos}
    truth = run({k: x.double() for k, x in few.items()}, weight[:, :, rows].double(), "reference", **given)
    plain = run(few, weight[:, :, rows], "reference", **given)
    cut = {name: x[:, :, rows] if name in ("out", "dq") else x for name, x in got.items()}
    assert_as_exact([cut], [plain], [truth])


def test_two_threads_give_the_same_bits_every_time() -> None:
    """The keys of one head are divided among the threads, and the next free one takes the next task."""
    inputs = {name: torch.randn(1, 1, 1500, 32) for name in "qkv"}
    inputs |= {"table": torch.randn(1, 129), "rows": torch.randn(1, 1, 1500, 9)}
    weight = torch.randn(1, 1, 1500, 32)
    on_two_threads(lambda: run(inputs, weight, "native", mask=Causal(), left=128), times=6)


# --- skipped tiles ------------------------------------------------------------------------------------------------


def decaying(n: int) -> dict[str, tuple[dict[str, Tensor], int]]:
    steps = torch.arange(n)
    return {
        "alibi": ({"table": torch.zeros(2, 1), "tails": torch.tensor([[-0.5, -0.5], [-0.1, -0.1]])}, 0),
        "forgetting gates": ({"keys": 0.1 * steps.expand(1, 2, -1).float()}, 0),
        "a table": ({"table": -0.2 * (steps.flip(0)).float().expand(2, -1).contiguous()}, n - 1),
    }


@pytest.mark.parametrize("what", ["alibi", "forgetting gates", "a table"])
def test_what_is_left_out_changes_nothing(what: str, tiles: Any) -> None:
    n = 2500 if what == "forgetting gates" else 1600  # enough to leave out much
    terms, left = decaying(n)[what]
    found: list[list[dict[str, Tensor]]] = [[], [], []]
    for _ in range(3):  # a tail's gradient is one number: a single draw may be exact by chance
        inputs = {name: torch.randn(1, 2, n, 16) for name in "qkv"} | terms
        weight = torch.randn(1, 2, n, 16)
        tiles.count.zero_()
        tiles.skip = 1
        got = run(inputs, weight, "native", mask=Causal(), left=left)
        assert tiles.count[1] > 0.4 * tiles.count.sum()
        tiles.count.zero_()
        tiles.skip = 0
        whole = run(inputs, weight, "native", mask=Causal(), left=left)
        assert tiles.count[1] == 0
        for name, x in whole.items():
            torch.testing.assert_close(got[name], x, rtol=2**-23, atol=2**-26 * x.abs().max().item())
        wide = {k: x.double() for k, x in inputs.items()}
        truth = run(wide, weight.double(), "reference", mask=Causal(), left=left)
        plain = run(inputs, weight, "reference", mask=Causal(), left=left)
        for kind, one in zip(found, (got, plain, truth), strict=True):
            kind.append(one)
    assert_as_exact(*found)


@pytest.mark.parametrize("outlier", ["v", "k"])
def test_an_outlier_far_away_is_not_left_out(outlier: str, tiles: Any) -> None:
    """A weight of 1e-20 counts where its value is 1e30 times the others'."""
    n = 1500
    inputs = {name: torch.randn(1, 1, n, 16) for name in "qkv"}
    inputs[outlier][:, :, 3] *= 1e30 if outlier == "v" else 60.0
    inputs |= {"table": torch.zeros(1, 1), "tails": torch.tensor([[-0.05, 0.0]])}
    weight = torch.randn(1, 1, n, 16)
    got = run(inputs, weight, "native", mask=Causal())["out"]
    truth = run({k: x.double() for k, x in inputs.items()}, weight.double(), "reference", mask=Causal())["out"]
    # row by row: each is judged by its own size
    error = (got.double() - truth).abs().amax(-1) / truth.abs().amax(-1)
    assert error.max() < 1e-4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_in_a_tile_of_negligible_weight_shows(bad: float) -> None:
    q, k, v = torch.randn(3, 1, 1, 2000, 16)
    terms = (ByDistance.linear(torch.tensor([-0.5])),)
    k[0, 0, 2, 0] = bad
    out = attend(q, k, v, mask=Causal(), terms=terms, backend="native")
    assert out[0, 0, :2].isfinite().all()
    assert out[0, 0, 2:].isnan().all()


# --- memory -------------------------------------------------------------------------------------------------------


def test_memory_grows_with_tokens_and_not_with_pairs() -> None:
    def work(n: int) -> Any:
        q, k, v, weight = (torch.randn(1, 2, n, 32) for _ in range(4))
        inputs = {"q": q, "k": k, "v": v, "table": torch.randn(2, 129)}
        return lambda: run(inputs, weight, "native", mask=Causal(), left=128)

    short, long = (peak_memory(work(n)) for n in (512, 2048))
    assert long < 4.1 * short


def test_the_process_grows_no_more_than_with_plain_attention() -> None:
    """Memory that torch does not count is counted too; each in a fork of a process that has imported all it needs."""
    code = """
import os, resource, sys, torch
from headway import Causal, attend
from headway.terms import ByDistance
n = 4096
q, k, v, weight = (torch.randn(1, 2, n, 64) for _ in range(4))
table = torch.randn(2, 129, requires_grad=True)
def work(q, k, v):
    if what == "plain":
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return attend(q, k, v, mask=Causal(), terms=(ByDistance(table, 128),), backend="native")
for what in ("plain", "native"):
    if (child := os.fork()) == 0:
        break
    assert os.waitpid(child, 0)[1] == 0
else:
    sys.exit()
work(*(x[:, :, :300].clone().requires_grad_() for x in (q, k, v))).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
work(*(x.clone().requires_grad_() for x in (q, k, v))).backward(weight)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plain, ours = map(int, done.stdout.split())
    assert ours <= 1.1 * plain


# --- building -----------------------------------------------------------------------------------------------------

ASK = """
import json, os, sys, torch
import torch._dynamo  # which meta tensors load, here once and not in each fork
from headway import attend, plan
from headway.positions import T5
for environment, file in json.loads(sys.argv[1]):
    if os.fork() == 0:
        os.environ |= environment
        for handle in (1, 2):
            os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND), handle)
        print(plan(T5(), tokens=64, heads=2, head_dim=8))
        print(attend(*torch.randn(3, 1, 2, 9, 8)).shape, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def test_what_cannot_be_compiled_is_said_and_tiled_runs(tmp_path: Path) -> None:
    """No compiler, one that fails, and no place for what it makes; each asked in a fork of one process."""
    absent, broken, cache, taken = (tmp_path / name for name in ("absent", "broken", "cache", "file"))
    broken.write_text("#!/bin/sh\necho 'attention.cpp:1: error: no such luck' >&2\nexit 1\n")
    broken.chmod(0o755)
    taken.write_text("")
    asked = [
        {"CXX": "no-such-compiler", "HEADWAY_CACHE": str(absent)},
        {"CXX": str(broken), "HEADWAY_CACHE": str(cache)},
        {"HEADWAY_CACHE": str(taken / "cache")},
    ]
    files = [tmp_path / f"said-{number}" for number in range(3)]
    given = json.dumps([(one, str(file)) for one, file in zip(asked, files, strict=True)])
    subprocess.run([sys.executable, "-c", ASK, given], capture_output=True, text=True, check=True)
    without, failed, nowhere = (file.read_text(encoding="utf-8") for file in files)
    for said in (without, failed, nowhere):
        assert "torch.Size([1, 2, 9, 8])\n" in said
    assert "t5: tiled · exact" in without
    assert without.startswith("attention is slower than it could be, without the CPU kernel: expected a C++ compiler")
    assert without.count("attention is slower") == 1
    assert (
        "\n  not native: it could not be compiled (expected a C++ compiler, found no $CXX=no-such-compiler: install "
        "one, as in `apt install g++`)\n"
    ) in without
    assert not absent.exists() or not list(absent.iterdir())
    assert f"(expected {broken} to compile the CPU kernel, got: attention.cpp:1: error: no such luck)" in failed
    assert "compiling attention.cpp for this machine, once" in failed
    assert not list(cache.iterdir())
    assert (
        f"(expected a writable folder for the compiled CPU kernel, got {taken / 'cache'} (Not a directory): "
        f"set HEADWAY_CACHE to another folder)"
    ) in nowhere


def test_what_is_in_the_cache_is_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source" / "one.cpp"
    source.parent.mkdir()
    source.write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))
    made = compiler.library(source)
    stamp = made.stat().st_mtime_ns
    assert compiler.library(source) == made
    assert made.stat().st_mtime_ns == stamp
    (source.parent / "other.h").write_text("// something else\n")
    assert compiler.library(source) != made


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADWAY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert compiler.cache_folder() == Path.home() / ".cache" / "headway"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert compiler.cache_folder() == Path("/somewhere/headway")
    monkeypatch.setenv("HEADWAY_CACHE", "/elsewhere")
    assert compiler.cache_folder() == Path("/elsewhere")


# --- the call -----------------------------------------------------------------------------------------------------


def test_a_call_is_what_the_header_says() -> None:
    header = (library.SOURCES / "call.h").read_text(encoding="utf-8")
    assert library.fields(header.replace("int64_t past, future;", "int64_t future, past;")) != library.fields(header)
    names = [name for name, _ in library.struct("call.h")._fields_]
    assert names[:9] == ["batch", "heads", "kv_heads", "queries", "keys", "dim", "dim_v", "q", "k"]
    assert len(names) == len(set(names))
    kinds = dict(library.struct("call.h")._fields_)
    assert {kinds["q"], kinds["out"], kinds["d_table"], kinds["tiles"]} == {ctypes.c_void_p}
    assert (kinds["scale"], kinds["splits"]) == (ctypes.c_double, ctypes.c_int64)
    with pytest.raises(AssertionError, match=r"has a declaration that Python cannot parse: float x;"):
        library.fields("struct Call {\n  float x;\n};")


def test_gradients_of_rows_that_see_no_nan_are_those_without_it() -> None:
    """Rows that see NaN are NaN, and pass nothing on to queries, keys and values of the others."""
    torch.manual_seed(0)
    given = [torch.randn(1, 2, 9, 8) for _ in range(3)]
    results = []
    for bad in (None, torch.nan, torch.inf):
        q, k, v = (x.clone() for x in given)
        if bad is not None:
            k[:, :, 5], v[:, 0, 5] = bad, bad
        leaves = [x.requires_grad_() for x in (q, k, v)]
        out = attend(*leaves, mask=Causal(), backend="native")
        assert bad is None or bool(out[:, :, 5:].isnan().all())
        clean = torch.ones_like(out)
        clean[:, :, 5:] = 0.0 if bad is None else 3.0  # what is asked of rows that are NaN counts for nothing
        results.append([out[:, :, :5], *torch.autograd.grad(out, leaves, clean)])
    for found in results[1:]:
        for one, other in zip(found, results[0], strict=True):
            assert torch.equal(one, other)


def test_a_bias_of_minus_infinity_hides_nan() -> None:
    q, k, v = (torch.randn(1, 2, 6, 8) for _ in range(3))
    bias = torch.randn(6, 6)
    bias[:4, 2] = -torch.inf
    k[:, :, 2] = torch.nan
    out = attend(q, k, v, terms=(DenseBias(bias),), backend="native")
    assert bool(out[:, :, :4].isfinite().all() and out[:, :, 4:].isnan().all())
    k[:, :, 2] = 0.0
    expected = attend(q, k, v, terms=(DenseBias(bias),), backend="reference")
    torch.testing.assert_close(out[:, :, :4], expected[:, :, :4])
