"""The position tax: every option, every kind of row, the bars, and a machine that has nothing but torch."""

from __future__ import annotations

import copy
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from common import close, every_method, refusal
from torch import Tensor

from headway import Attention, HeadwayError
from headway.arguments import chosen
from headway.backends import BACKENDS
from headway.bench import bars as bars_module
from headway.bench import contenders, others, tax
from headway.bench.bars import Bar, bars, measure_bars
from headway.bench.cases import DECODING, Built, Case, Unsupported, build
from headway.bench.contenders import Work, eager, materialised, ours, plain
from headway.bench.measure import error, interleaved, repeats_for, same
from headway.bench.page import PLAIN
from headway.bench.run import SAMPLES, bench, entries_for, outcome
from headway.bench.settings import MODES, Bench
from headway.bench.tax import Entry, Group, Row, measured
from headway.bench.training import Measured, Steps, demanded, steps_text, time_steps
from headway.bench.training import contenders as decoders
from headway.config import CORE
from headway.positions import methods

SMALL: dict[str, Any] = {"heads": 4, "head_dim": 8, "lengths": (12,), "rounds": 2}
TINY = Case(12, heads=4, kv_heads=4, head_dim=8)
EVERYTHING = ("none", "t5", "t5(bidirectional=True)", "alibi", "rotary", "shaw", "fox", "rows", "table")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call a sample, a small matrix product, no compiler."""
    monkeypatch.setitem(tax.repeats_for.__globals__["SAMPLE"], "cpu", 0.0)
    monkeypatch.setattr("headway.bench.measure.matmul_peak", lambda *_: 100.0)

    def uncompiled(method: str, case: Case) -> Work:
        raise Unsupported("not compiled in the tests")

    kept = tuple(replace(one, prepare=uncompiled) if one.name == "FlexAttention" else one for one in others.OTHERS)
    monkeypatch.setattr(others, "OTHERS", kept)


def run(**given: Any) -> dict[str, Any]:
    return bench(Bench(**{**SMALL, "baselines": False, **given}))


def test_a_row_for_every_method_mode_mask_and_length() -> None:
    results = run(methods=EVERYTHING, lengths=(12, 7), masks=("causal", "full"))
    rows = [row for row in results["rows"] if row["contender"] != PLAIN]
    found = [(row["mode"], row["mask"], row["length"], row["method"]) for row in rows]
    kinds = [(mode, mask) for mode in MODES for mask in ("causal", "full") if mask == "causal" or mode not in DECODING]
    assert found == [(*kind, length, method) for kind in kinds for length in (7, 12) for method in EVERYTHING]
    for row in rows:
        assert row["status"] == "ok", row
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["rounds"] == 2
        assert row["error"] < 1e-4
        assert row["repeats"] is True
        assert row["peak_bytes"] > 0
        assert row["gflops"] > 0
        assert row["floor"] > 0
    base = [row for row in results["rows"] if row["contender"] == PLAIN]
    assert len(base) == 2 * len(kinds)
    assert {row["ratio"] for row in base} == {row["memory_ratio"] for row in base} == {1.0}
    assert results["complete"] is True


def test_results_and_samples_are_kept(tmp_path: Path) -> None:
    results = bench(Bench(**SMALL, methods=("t5", "shaw"), baselines=False), tmp_path / "out", command="again")
    saved = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert saved == json.loads(json.dumps(results))
    assert saved["command"] == "again"
    assert set(saved) >= {"format", "kind", "created", "settings", "environment", "complete", "rows", "bars"}
    assert set(saved["environment"]) >= {"torch", "headway", "threads", "cores", "cpu_capability", "matmul_gflops"}
    with (tmp_path / "out" / "samples.csv").open(newline="", encoding="utf-8") as file:
        samples = list(csv.DictReader(file))
    assert tuple(samples[0]) == SAMPLES
    rows = [row for row in results["rows"] if row["contender"] != PLAIN]
    assert len(samples) == 2 * 2 * len(rows)  # two rounds, it and plain
    for row in rows:
        seconds = {
            who: [
                float(one["seconds"])
                for one in samples
                if all(str(row[name]) == one[name] for name in ("method", "contender", "length", "mode", "mask"))
                and one["who"] == who
            ]
            for who in ("it", "plain")
        }
        ratios = sorted(a / b for a, b in zip(seconds["it"], seconds["plain"], strict=True))
        assert row["ratio"] == pytest.approx(sum(ratios) / 2)
        assert (row["low"], row["high"]) == pytest.approx((ratios[0], ratios[1]))


def test_baselines_compute_the_same() -> None:
    results = run(methods=("none", "t5", "alibi", "rotary", "fox", "rows", "table"), baselines=True)
    by = {(row["method"], row["contender"]): row for row in results["rows"] if row["mode"] == "forward+backward"}
    for method in ("t5", "alibi", "fox", "rows", "table"):
        assert by[method, "SDPA + bias tensor"]["error"] < 1e-5
        assert by[method, "FlexAttention"]["status"] == "unsupported"
    for method in ("none", "t5", "alibi", "rotary"):
        assert by[method, "x-transformers"]["error"] < 1e-5
    assert by["t5", "transformers T5Attention"]["error"] < 1e-5
    assert ("shaw", "SDPA + bias tensor") not in by


def projecting(built: Built, x: Tensor) -> Attention:
    """Attention of the same method whose projections of x are the bench's q, k and v, and whose O is the identity."""
    case, position = built.case, copy.deepcopy(built.position)
    dim = case.heads * case.head_dim
    module = Attention(
        dim,
        case.heads,
        kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        position=position,
        mask=case.visible(),
        backend="reference",
    ).double()
    with torch.no_grad():
        for projection, given in ((module.q, built.q), (module.k, built.k), (module.v, built.v)):
            wanted = given[0].transpose(0, 1).flatten(1)
            projection.weight.copy_((torch.linalg.pinv(x[0, -len(wanted) :]) @ wanted).T)
        module.o.weight.copy_(torch.eye(dim))
    return module.eval()


@every_method("bench", variants=False, embeds=False)
def test_what_is_timed_is_what_attention_computes(spec: str) -> None:
    """Attention with its own projections, on the whole text; and the reference for errors."""
    shape = Case(9, heads=4, kv_heads=2, head_dim=16, dtype="float64")
    for mode, mask in (
        ("forward+backward", "causal"),
        ("forward", "full"),
        ("decode", "causal"),
        ("decode-static", "causal"),
    ):
        case = replace(shape, mode=mode, mask=mask)
        if mode == "decode-static" and spec == "stickbreaking(remainder=True)":
            with pytest.raises(HeadwayError, match="expected a cache that grows"):
                ours("auto")(spec, case)
            continue
        work = ours("auto")(spec, case)
        built = work.built
        x = built.x.detach() if "x" in built.learned else torch.randn(1, 9, 64).double()
        module = projecting(built, x)
        expected = module(x)[:, -case.queries :].unflatten(-1, (4, 16)).transpose(1, 2)
        found = {"out": expected.detach()}
        if case.backward:
            projections = {f"d{name}": getattr(module, name).weight for name in "qkv"}
            parameters = projections | {
                f"d{name}": one for name, one in module.named_parameters() if "position" in name
            }
            gradients = torch.autograd.grad(expected, list(parameters.values()), built.weight, allow_unused=True)
            found |= {name: one for name, one in zip(parameters, gradients, strict=True) if one is not None}
        for _ in range(2):  # a step leaves nothing behind that the next would see
            for got in (work.step(), eager(spec, case, wide=True).step()):
                assert got.keys() - {"dx"} == found.keys()
                for name in found.keys() & {"dq", "dk", "dv"}:  # as the projection gets it
                    got[name] = got[name][0].transpose(0, 1).flatten(1).T @ x[0]
                for name, one in found.items():
                    close(got[name], one, 1e-8)


def test_another_normalisation_is_timed_and_no_baseline_leaves_it_out() -> None:
    work = ours("auto")("stickbreaking", TINY)
    softmax = ours("auto")("none", TINY)
    assert not torch.allclose(work.step()["out"], softmax.step()["out"], atol=0.1)
    for prepare in (materialised, others.flex):
        for method in ("stickbreaking", "cope", "shaw"):
            with pytest.raises(Unsupported, match=r"cannot (replace softmax|see a whole row|act on values)"):
                prepare(method, replace(TINY, mode="forward"))


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_two_sided_buckets_of_other_libraries(mask: str) -> None:
    case = replace(TINY, mask=mask)
    method = "t5" if mask == "causal" else "t5(bidirectional=True)"
    truth = eager(method, case, wide=True).step()
    for prepare in (others.x_transformers, others.huggingface):
        assert error(prepare(method, case).step(), truth) < 1e-5
        with pytest.raises(Unsupported, match="is bidirectional exactly when attention is"):
            prepare(method, replace(case, mask="full" if mask == "causal" else "causal"))


def test_flex_terms_are_the_same_terms() -> None:
    q, k = torch.arange(12)[:, None], torch.arange(12)
    pos = torch.arange(12)[None]
    for method in ("t5", "alibi", "fox", "rows", "table"):
        terms = build(method, replace(TINY, mode="forward")).core_call().terms
        score_mod = others._score_mod(terms)
        assert score_mod is not None
        head = torch.tensor(2)
        got = score_mod(torch.zeros(12, 12), torch.tensor(0), head, q, k)
        torch.testing.assert_close(got.float(), terms[0].tile(pos, pos)[0, 2].float())
    assert others._score_mod(()) is None


def test_flex_says_what_it_cannot() -> None:
    with pytest.raises(Unsupported, match="no backward on a CPU"):
        others.flex("t5", TINY)
    with pytest.raises(Unsupported, match="cannot act on values"):
        others.flex("shaw", replace(TINY, mode="forward"))


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "x_transformers.attend", None)
    with pytest.raises(Unsupported, match=r"^x-transformers is not installed$"):
        others.x_transformers("none", TINY)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_keys(kv_heads: int) -> None:
    results = run(methods=EVERYTHING, kv_heads=kv_heads, baselines=True, modes=("forward+backward", "decode"))
    for row in results["rows"]:
        if row["contender"].startswith("headway") or row["contender"] in (PLAIN, "SDPA + bias tensor"):
            assert row["status"] == "ok", row
            assert row["error"] < 1e-4


def test_dtypes() -> None:
    (_, row) = run(methods=("t5",), dtype="bfloat16", modes=("forward",))["rows"]
    assert 1e-4 < row["error"] < 0.1
    assert row["error_ratio"] < 2


def test_every_backend_or_the_named() -> None:
    case = replace(TINY, mode="forward")
    names = [entry.name for entry in entries_for(Bench(methods=("t5",), backends=("all",), baselines=False), case)]
    assert names == [f"headway: {name}" for name in BACKENDS]
    long = replace(case, length=4096)
    names = [entry.name for entry in entries_for(Bench(methods=("t5",), backends=("all",), baselines=False), long)]
    assert "headway: reference" not in names
    rows = run(methods=("shaw",), backends=("sdpa", "reference"), modes=("forward",))["rows"]
    assert [row["status"] for row in rows] == ["ok", "unsupported", "ok"]
    assert "needs the attention weights" in rows[1]["reason"]


def test_position_on_the_embedding_costs_nothing_here() -> None:
    row = run(methods=("sinusoidal",), modes=("forward",))["rows"][1]
    assert row["status"] == "unsupported"
    assert "adds to the embedding" in row["reason"]


def test_marks_are_part_of_the_work() -> None:
    built = build("fox", replace(TINY, mode="forward+backward"))
    assert built.learned["x"].requires_grad
    fox = build("fox", Case(4096))
    with torch.no_grad():
        assert fox.position.mark(fox.x).exp().mean() == pytest.approx(0.98, abs=0.002)


def test_what_would_not_fit_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "available_memory", lambda _: 2**20)
    case = Case(512, mode="forward")
    monkeypatch.setattr(tax, "EXACT_UP_TO", 0)
    group = Group(case, 1)
    row = measured(Entry("t5", "SDPA + bias tensor", materialised), group)
    assert (row.status, row.reason, row.ratio) == ("out of memory", "needs 0.0156 GiB", None)
    row = measured(Entry("t5", "headway: reference", ours("reference")), group)
    assert row.status == "out of memory"
    # plain attention materialises no scores, and is measured
    assert measured(Entry("none", "headway: sdpa", ours("sdpa")), group).status == "ok"


@pytest.mark.parametrize(
    ("problem", "status", "reason"),
    [
        (ValueError("first line\nsecond"), "failed", "ValueError: first line"),
        (HeadwayError("expected a cache that grows"), "unsupported", "expected a cache that grows"),
        (RuntimeError(), "failed", "RuntimeError"),
        (NotImplementedError("no backward"), "unsupported", "no backward"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 5 bytes"), "out of memory", None),
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), "out of memory", "CUDA out of memory."),
    ],
)
def test_a_contender_that_raises_is_a_row(problem: Exception, status: str, reason: str | None) -> None:
    def broken(method: str, case: Case) -> Work:
        raise problem

    row = measured(Entry("t5", "broken", broken), Group(replace(TINY, mode="forward"), 1))
    assert row.status == status
    assert row.reason is not None
    assert reason is None or row.reason == reason
    assert "\n" not in row.reason


def test_a_case_without_plain_attention_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(method: str, case: Case) -> Work:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(tax, "plain", broken)
    (row,) = run(methods=("t5",), modes=("forward",))["rows"]
    assert (row["contender"], row["status"]) == (PLAIN, "out of memory")
    (bar,) = judged([Bar(TINY, "t5", 1.0)])
    assert bar["reason"] == "plain SDPA: out of memory: CUDA out of memory."


def test_a_truth_that_does_not_fit_leaves_the_error_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "available_memory", lambda _: 1000)
    row = measured(Entry("none", "headway: sdpa", ours("sdpa")), Group(replace(TINY, mode="forward"), 1))
    assert (row.status, row.error, row.error_ratio) == ("ok", None, None)


def test_ctrl_c_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Row] = []

    def stop(row: Row, done: int, count: int) -> None:
        assert (done, count) == (len(seen) + 1, 8)
        seen.append(row)
        if len(seen) == 2:
            raise KeyboardInterrupt

    settings = Bench(**SMALL, methods=("none", "t5"), baselines=False)
    results = bench(settings, tmp_path, on_row=stop)
    assert results["complete"] is False
    assert outcome(results) == 130
    saved = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [row["contender"] == PLAIN for row in saved["rows"]] == [True, False, False]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HeadwayError, match=r"expected a folder to write to, got .*file"):
        bench(Bench(**SMALL, methods=("none",)), tmp_path / "file")


BAD: dict[str, tuple[dict[str, str], str]] = {
    "method": ({"methods": "rotari"}, "expected a position method, got 'rotari'"),
    "no methods": ({"methods": ","}, "expected at least one of methods, got none"),
    "twice": ({"methods": "t5,t5"}, "expected methods that differ, got t5, t5"),
    "lengths": ({"lengths": "512,many"}, "expected --lengths as whole numbers"),
    "length 0": ({"lengths": "0"}, "expected lengths to be a whole number from 1 to 16,777,216, got 0"),
    "mode": ({"modes": "sideways"}, "expected mode to be one of forward+backward, forward, decode, decode-static, got"),
    "mask": ({"masks": "half"}, "expected mask to be one of causal, full, got 'half'"),
    "backend": ({"backends": "magic"}, "expected backend to be one of auto, all, "),
    "backends": ({"backends": "auto,sdpa"}, "expected backends auto, all or names, got auto, sdpa"),
    "dtype": ({"dtype": "int8"}, "expected dtype to be one of float32, bfloat16, float16, got 'int8'"),
    "device": ({"device": "abacus"}, "expected device to be one of cpu, cuda, got 'abacus'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_get_one_sentence(name: str) -> None:
    options, message = BAD[name]
    with pytest.raises(HeadwayError) as caught:
        Bench(**chosen(Bench, options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_that_do_not_fit() -> None:
    for given in ({"batch": 0}, {"rounds": 0}, {"kv_heads": 3}, {"head_dim": 0}):
        with pytest.raises(HeadwayError, match=r"^expected "):
            Bench(**given)
    if not torch.cuda.is_available():
        with pytest.raises(HeadwayError, match="expected a CUDA device for device cuda, got none"):
            Bench(device="cuda")


def test_options_left_out_are_the_defaults() -> None:
    assert Bench(**chosen(Bench, {"methods": None, "rounds": None, "baselines": True})) == Bench()
    options = {"methods": "rotary(base=5, fraction=0.5), t5", "lengths": "8,4", "kv_heads": 2}
    given = Bench(**chosen(Bench, options))
    assert given.methods == ("rotary(base=5, fraction=0.5)", "t5")
    assert given.lengths == (8, 4)
    assert [Case(length, "forward").rounds for length in (1, 1024, 4096, 8192)] == [9, 9, 5, 3]
    assert [Case(length, mode).rounds for length in (1, 8192) for mode in ("decode", "decode-static")] == [99] * 4


# --- the bars -----------------------------------------------------------------------------------------------------


def fake(ratios: dict[tuple[str, str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with these ratios instead of measurements; a text is a reason."""

    class Nothing:
        def __init__(self, case: Case, rounds: int, thorough: bool = True) -> None:
            self.case = case

        def base_row(self) -> Row:
            return Row("none", PLAIN, self.case.length, self.case.mode, self.case.mask, ratio=1.0)

    def measure(entry: Entry, group: Any, keep: Any = None) -> Row:
        found = ratios[entry.method, entry.name]
        row = Row(entry.method, entry.name, group.case.length, group.case.mode, group.case.mask, floor=0.9)
        if isinstance(found, str):
            row.status, row.reason = "unsupported", found
        else:
            row.ratio, row.memory_ratio = (found if entry.timed else None), found
        return row

    monkeypatch.setattr(bars_module, "Group", Nothing)
    monkeypatch.setattr(bars_module, "measured", measure)


def judged(listed: list[Bar]) -> list[dict[str, Any]]:
    found = measure_bars(Bench(), lambda *_: None, listed=listed)
    return [bar for together, _ in found for bar in together]


def test_a_bar_holds_or_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    fake({("t5", "headway (auto)"): 1.05, ("fox", "headway (auto)"): 1.07}, monkeypatch)
    held, near = judged([Bar(TINY, "t5", 1.05), Bar(TINY, "fox", 0.6)])
    assert (near["passed"], near["measured"], near["floor"], near["met_by"]) == (True, 1.07, 0.9, "floor")
    assert held["met_by"] == "bar"
    fake({(name, "headway (auto)"): 1.07 for name in ("none", "fox")}, monkeypatch)
    for bar in (Bar(TINY, "none", 0.6), Bar(replace(TINY, mode="decode"), "fox", 0.6)):
        assert judged([bar])[0]["met_by"] is None
    for theirs, ours_, met_by in ((1.5, 1.0, "bar"), (1.4, 1.07, "floor"), (1.4, 1.09, None)):
        fake({("t5", "headway (tiled)"): theirs, ("fox", "headway (auto)"): ours_}, monkeypatch)
        (bar,) = judged([Bar(TINY, "t5", 1.5, by="tiled", against=("fox", "auto"), least=True)])
        assert (bar["met_by"], bar["floor"]) == (met_by, pytest.approx(theirs / 0.9))
    fake({("fox", "headway (auto)"): 1.081}, monkeypatch)
    (failed,) = judged([Bar(TINY, "fox", 0.6)])
    assert (held["passed"], held["measured"], held["bar"], held["reason"]) == (True, 1.05, "≤ 1.05", None)
    assert held["name"] == "time of t5 by headway (auto) ÷ plain SDPA, 12 tokens, causal, width 8"
    assert (failed["passed"], failed["measured"], failed["met_by"]) == (False, 1.081, None)


def test_a_bar_of_memory_needs_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fake({("t5", "headway (auto)"): 1.08}, monkeypatch)
    assert judged([Bar(TINY, "t5", 1.1, what="memory")])[0]["passed"] is True
    assert judged([Bar(TINY, "t5", 1.0, what="memory")])[0]["passed"] is False


def test_a_bar_against_another_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios: dict[tuple[str, str], Any] = {
        ("t5", "headway (auto)"): 1.2,
        ("none", "FlexAttention"): 1.0,
        ("t5", "FlexAttention"): 3.9,
    }
    fake(ratios, monkeypatch)
    both = [
        Bar(TINY, "t5", 1.25, against=("none", "FlexAttention")),
        Bar(TINY, "t5", 3.0, by="FlexAttention", against=("t5", "auto"), least=True),
    ]
    assert [bar["passed"] for bar in judged(both)] == [True, True]
    assert judged(both)[1]["measured"] == pytest.approx(3.25)
    ratios["t5", "FlexAttention"] = 3.0
    assert [bar["passed"] for bar in judged(both)] == [True, False]


def test_a_bar_that_cannot_be_measured_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fake({("t5", "headway (tiled)"): "too wide"}, monkeypatch)
    (bar,) = judged([Bar(TINY, "t5", 1.6, by="tiled")])
    assert bar["passed"] is False
    assert bar["reason"] == "headway (tiled): unsupported: too wide"


def test_bars_of_a_small_case_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [Bar(TINY, "t5", 1e9), Bar(TINY, "rows", 1e-9), Bar(TINY, "t5", 1e9, what="memory")]
    listed.append(Bar(TINY, "t5", 2.0, by="magic"))
    monkeypatch.setattr(bars_module, "bars", lambda _: listed)
    monkeypatch.setattr(bars_module, "NEAR", 0.0)  # so small, everything is near its floor
    told: list[tuple[int, int]] = []
    results = bench(Bench(bars=True, rounds=2), tmp_path, on_row=lambda _, *count: told.append(count))
    assert [bar["passed"] for bar in results["bars"]] == [True, False, True, False]
    assert "there is no backend magic" in results["bars"][3]["reason"]
    assert results["rows"][0]["contender"] == PLAIN
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert outcome(results) == 1
    assert outcome({**results, "bars": results["bars"][:1]}) == 0
    assert set(results["settings"]) == {"bars", "device", "rounds"}


def test_the_bars_are_the_promised_ones() -> None:
    cpu, cuda = bars("cpu"), bars("cuda")
    assert len(cpu) == len(set(cpu)) == 61
    assert {bar.case.dtype for bar in cpu} == {"float32"}
    told = {str(bar).replace(" by headway (auto) ÷ plain SDPA", ""): bar.limit for bar in cpu}
    assert told["time of path, 2,048 tokens, causal, width 64"] == 4.0
    assert told["memory of transformerxl, 2,048 tokens, causal, width 64"] == 2.5
    assert told["time of rotary, 512 tokens, decode-static, width 64"] == 1.2
    assert told["time of deberta(buckets=256), 4,096 tokens, causal, width 64"] == 1.3
    layer = "time of deberta(reverse=False) by transformers layer ÷ headway layer of deberta(reverse=False)"
    assert told[f"{layer}, 2,048 tokens, full, width 64"] == 3.5
    assert [(bar.case.head_dim, bar.case.heads, bar.case.batch * bar.case.length) for bar in cuda] == [
        (64, 32, 16384),
        (64, 32, 16384),
        (128, 16, 16384),
        (128, 16, 16384),
    ]
    for bar in (*cpu, *cuda):
        assert bar.case.backward or bar.case.decodes


# --- measuring ----------------------------------------------------------------------------------------------------


def test_turns_are_taken_within_a_round() -> None:
    calls: list[str] = []
    work = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    seconds = interleaved(work, 2, {"a": 2, "b": 1})
    assert "".join(calls) == "aabaab"
    assert all(len(seconds[name]) == 2 for name in "ab")


def test_short_work_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.bench.measure.timed", lambda *_: 0.001)
    monkeypatch.setitem(repeats_for.__globals__["SAMPLE"], "cpu", 0.01)
    assert repeats_for(lambda: None, "cpu") == 10
    monkeypatch.setattr("headway.bench.measure.timed", lambda *_: 5.0)
    assert repeats_for(lambda: None, "cpu") == 1


def test_error_and_sameness() -> None:
    one, other = {"out": torch.tensor([1.0, 2.0])}, {"out": torch.tensor([1.0, 2.5])}
    truth = {"out": torch.tensor([1.0, 2.0]).double(), "dq": torch.ones(1).double()}
    assert error(one, truth) == 0
    assert error(other, truth) == pytest.approx(0.25)
    assert same(one, one)
    assert not same(one, other)
    assert not same(one, {})


def test_operations_and_bytes_are_counted_by_hand() -> None:
    case = Case(100, "forward", "full", 2, 4, 4, 8)
    assert case.flops == 4 * 2 * 4 * 100 * 100 * 8
    assert replace(case, mask="causal", mode="forward+backward").flops == case.flops / 2 * 3.5
    assert replace(case, mode="decode", mask="causal").flops == case.flops / 100
    one = 2 * 4 * 100 * 8 * 4
    assert plain("none", case).held == 3 * one
    assert plain("none", replace(case, mode="forward+backward")).held == 4 * one
    # q, k, v, their gradients, the output and its gradient
    group = Group(replace(case, mode="forward+backward"), 1)
    assert group.base_peak >= 8 * one


# --- training steps -----------------------------------------------------------------------------------------------


def test_training_steps_are_measured_beside_others() -> None:
    given = {"heads": 2, "head_dim": 8, "lengths": (8,), "batch": 2, "rounds": 1}
    steps = Steps.like(given)
    assert steps == Steps(dim=16, heads=2, length=8, batch=2, rounds=1)
    assert steps.methods == CORE
    found = {(one.name, one.method): one for one in time_steps(steps)}
    assert list(found) == [
        *(("headway", method) for method in CORE),
        ("nn.TransformerEncoder", "none"),
        *(("x-transformers", method) for method in CORE if method != "shaw"),
    ]
    assert found["headway", "none"].parameters == found["nn.TransformerEncoder", "none"].parameters
    assert found["headway", "none"].tax == found["headway", "none"].ratio == 1
    assert {one.floor for who, one in found.items() if who[0] != "headway"} == {None}
    assert {method for method in CORE if found["headway", method].floor != 1} == {"shaw"}
    # a query reaches itself and all before it, in a table for keys and one for values: as many products again
    assert demanded("shaw", steps.attention()) == pytest.approx(2)
    assert (found["headway", "shaw"].floor or 0) > 1
    # x-transformers has no output bias, and its own norms: methods add the same
    for method in ("learned", "t5"):
        added = [
            found[name, method].parameters - found[name, "none"].parameters for name in ("headway", "x-transformers")
        ]
        assert added[1] == (8 * 16 if method == "learned" else 32 * 2)
    long = decoders(Steps(dim=16, heads=2, length=600, methods=("learned",)))  # longer than its table by default
    assert long["headway", "learned"](torch.zeros(1, 600, dtype=torch.long)).shape == (1, 600, 256)
    assert Steps.like({"methods": ("rotary",)}).methods == ("none", "rotary")
    with refusal("expected position methods with --training, got the term rows"):
        Steps.like({"methods": ("t5", "rows")})


def test_the_target_of_a_training_step() -> None:
    slow = Measured("headway", "rotary", 1000, 2.0, 1.06, 1.0, floor=1.0)
    assert not slow.passed
    assert replace(slow, tax=1.05).passed
    assert replace(slow, floor=1.01).passed
    assert replace(slow, method="path").passed
    theirs = replace(slow, name="x-transformers", ratio=0.5, floor=None)
    assert theirs.passed
    text = steps_text([slow, theirs])
    assert text.splitlines()[-2].split() == [
        "headway",
        "rotary",
        "1,000",
        "2",
        "1.060",
        "1.000",
        "above",
        "the",
        "target,",
        "1.05",
        "×",
        "floor",
    ]
    assert text.splitlines()[-1].split() == ["x-transformers", "rotary", "1,000", "2", "1.060", "0.500"]


def test_training_steps_that_do_not_fit() -> None:
    with refusal("expected one of --lengths with --training, got [8, 16]"):
        Steps.like({"lengths": (8, 16)})
    with refusal("expected batch to be a whole number from 1 to 16,777,216, got 0"):
        Steps(batch=0)


def test_all_methods_are_every_method_once() -> None:
    settings = Bench(methods=("t5", "all", "rows"), lengths=(16,))
    assert set(settings.methods) == {*methods(), "rows"}
    assert len(settings.methods) == len(set(settings.methods))
    assert settings.methods[0] == "t5"
