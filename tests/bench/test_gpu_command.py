"""The benchmark of a GPU, on a CPU: every kind of row, a process that dies or hangs, too little time, bad machines."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import dies
import pytest
import torch
from common import refusal

from headway import HeadwayError
from headway.bench import __main__ as program
from headway.bench import gpu
from headway.bench.cases import Case
from headway.bench.contenders import OURS
from headway.bench.gpu import Job, Plan, Watch, benchmark, jobs
from headway.bench.page import PLAIN
from headway.positions import methods

PLAN = Plan((8, 16), (8, 16), 9, ("float32", "bfloat16"), "bfloat16", ("none", "t5", "learned"), 16, 32)
JOB = Job("t5", OURS + "auto", Case(8, heads=2, kv_heads=2, head_dim=8), True)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that measures is a thread, one call a sample, and nothing is compiled."""
    monkeypatch.setitem(gpu.measured.__globals__["repeats_for"].__globals__["SAMPLE"], "cpu", 0.0)
    monkeypatch.setattr("headway.bench.measure.matmul_peak", lambda *_: 100.0)
    monkeypatch.setattr(gpu, "others_for", lambda *_: [])

    class Thread(threading.Thread):
        exitcode = 3

        def kill(self) -> None:
            pass

        def join(self, timeout: float | None = None) -> None:
            super().join(0.1)

        def run(self) -> None:
            with contextlib.suppress(EOFError, OSError):
                super().run()

    class End:
        """One end of a pipe, which both threads hold: the first close is the watching one's."""

        def __init__(self, link: Any) -> None:
            self.link, self.held = link, True

        def close(self) -> None:
            if not self.held:
                self.link.close()
            self.held = False

        def __getattr__(self, name: str) -> Any:
            return getattr(self.link, name)

    class Context:
        Process = Thread

        @staticmethod
        def Pipe() -> Any:
            mine, its = multiprocessing.Pipe()
            return mine, End(its)

    monkeypatch.setattr(gpu.multiprocessing, "get_context", lambda _: Context)


def test_every_method_is_checked_and_timed(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    results = benchmark(tmp_path, 5, plan=PLAN, device="cpu", on_row=lambda _, *count: told.append(count))
    rows = results["rows"]
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == json.loads(json.dumps(results))
    assert "<!doctype html>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    timed = [row for row in rows if row["length"] != 9]
    found = [(row["head_dim"], row["length"], row["method"]) for row in timed if row["contender"] != PLAIN]
    inside = [method for method in PLAN.methods if method != "learned"]
    assert sorted(found) == sorted((width, n, method) for width in (8, 16) for n in (8, 16) for method in inside)
    for row in timed:
        assert row["status"] == "ok", row
        assert row["dtype"] == "bfloat16"
        assert row["ratio"] > 0
    assert len([row for row in timed if row["contender"] == PLAIN]) == 4
    checks = rows[len(timed) :]
    assert [(row["method"], row["dtype"]) for row in checks] == [
        (method, dtype) for dtype in ("bfloat16", "float32") for method in PLAN.methods
    ]
    assert results["checked"] == {"of": 6, "exact": 6}
    for row in checks:
        assert row["status"] == "ok", row
        assert row["error"] < (1e-5 if row["dtype"] == "float32" else 0.05)
    assert told[-1] == (14, 14)
    assert set(methods()) == set(Plan().methods)


def test_errors_beyond_plain_pytorchs_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    check = replace(JOB, timed=False)
    assert gpu.answer(check, {})[-1].status == "ok"
    real = gpu.ours

    def wrong(backend: str) -> Any:
        def prepare(method: str, case: Case) -> Any:
            work = real(backend)(method, case)
            forward = work.forward
            work.forward = lambda: forward() * 1.00002
            return work

        return prepare

    monkeypatch.setattr(gpu, "ours", wrong)
    row = gpu.answer(check, {})[-1]
    assert row.status == "failed"
    assert row.reason is not None
    assert row.reason.startswith("error ")
    assert "where plain PyTorch has" in row.reason
    monkeypatch.setattr(gpu, "error", lambda *_: 0.1)
    assert gpu.answer(Job("learned", OURS + "triton", check.case, False), {})[-1].status == "ok"


def test_a_row_that_raises_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = gpu.answer(replace(JOB, contender=OURS + "magic"), {})[-1:]
    assert (row.status, row.method) == ("unsupported", "t5")

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(gpu, "Group", broken)
    (row,) = gpu.answer(JOB, {})
    assert (row.status, row.method, row.reason) == ("failed", "t5", "RuntimeError: no kernel image")


def dying(link: Any, device: str, dtype: str) -> None:
    """A process that dies at t5 and ruins its context at shaw."""
    link.send({"torch": "1"})
    while job := link.recv():
        if job.method == "t5":
            link.close()
            return
        link.send((_rows(job, seconds=2.0), job.method != "shaw"))


def hanging(link: Any, device: str, dtype: str) -> None:
    link.send({})
    link.recv()
    time.sleep(2)


def _rows(job: Job, seconds: float) -> list[dict[str, Any]]:
    row = vars(gpu.Row.of(job.case, job.method, job.contender))
    return [{**row, "seconds": seconds, "ratio": 1.0, "memory_ratio": 1.0}]


def test_a_process_that_dies_or_hangs_is_replaced() -> None:
    watch = Watch("cpu", "float32", 60, dying)
    assert watch.rows(replace(JOB, method="none"))[0]["status"] == "ok"
    first = watch._process
    (row,) = watch.rows(JOB)
    assert (row["status"], row["reason"]) == ("failed", "its process died with exit status 3")
    assert watch.rows(replace(JOB, method="shaw"))[0]["status"] == "ok"
    assert watch._process is None  # its context is of no more use
    assert watch.rows(replace(JOB, method="none"))[0]["status"] == "ok"
    assert watch._process is not first
    slow = Watch("cpu", "float32", 60, hanging, longest=0.05)
    assert slow.rows(JOB)[0]["reason"] == "took more than 0 s, and was ended"


def test_what_there_is_no_time_for_is_left_out(tmp_path: Path) -> None:
    watch = Watch("cpu", "float32", 600, dying)
    short, long = replace(JOB, method="none"), replace(JOB, method="none", case=replace(JOB.case, length=16))
    assert watch.rows(short)[0]["seconds"] == 2.0
    assert watch.rows(long)[0]["reason"] == "it would take about 96 s"
    assert watch.rows(replace(long, case=replace(long.case, head_dim=16)))[0]["status"] == "ok"
    results = benchmark(tmp_path, 0, plan=replace(PLAN, methods=("none", "t5")), device="cpu", serve=dying)
    assert {(row["status"], row["reason"]) for row in results["rows"]} == {("left out", "there was no time left")}
    assert results["checked"] == {"of": 0, "exact": 0}


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    def stop(row: dict[str, Any], done: int, count: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    results = benchmark(tmp_path, 10, plan=replace(PLAN, methods=("none",)), device="cpu", on_row=stop)
    assert results["complete"] is False
    assert len(results["rows"]) == 4
    assert (tmp_path / "report.html").exists()


def test_the_most_important_rows_come_first() -> None:
    every = list(jobs(Plan(), "cuda"))
    timed = [job for job in every if job.timed]
    assert not any(job.timed for job in every[: len(every) - len(timed)])
    core = [job.method for job in timed[: 6 * 5]]
    assert set(core) == {"none", "rotary", "alibi", "t5", "shaw"}
    assert {(job.case.length, job.case.head_dim) for job in timed[: 6 * 5]} == {
        (n, width) for n in (2048, 8192, 32768) for width in (64, 128)
    }
    for job in timed:
        assert job.case.heads * job.case.head_dim == 2048
        assert job.case.batch * job.case.length == max(16384, job.case.length)


def test_the_terminal_says_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.run(tmp_path, 5, device="cpu", plan=replace(PLAN, lengths=(8,), methods=("none", "learned"))) == 0
    out = capsys.readouterr().out
    assert "4 of 4 checks against float64 within twice plain PyTorch's error." in out
    assert "8 tokens · forward+backward · causal · width 16 · bfloat16" in out
    assert out.endswith(f"Report: {tmp_path / 'report.html'}\n")
    assert gpu.run(tmp_path, 0, device="cpu", plan=replace(PLAN, methods=("none",))) == 0
    assert "6 measurements left out for lack of time." in capsys.readouterr().out


def test_a_machine_that_cannot_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refusal("expected an NVIDIA GPU that torch can use, got none: run this on a machine with one"):
        benchmark(tmp_path, 1)
    assert program.main(["gpu", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("headway: expected an NVIDIA GPU")
    for version, old in (("2.11.0+cu130", False), ("2.9.1", True), ("3.0.0a0+git", False), ("1.13.1", True)):
        monkeypatch.setattr(torch, "__version__", version)
        assert (program.problem() or "").startswith("expected torch 2.11 or newer, got") is old
    monkeypatch.setitem(sys.modules, "jaxtyping", None)
    assert program.problem() == "expected torch, numpy and jaxtyping, got no jaxtyping: install it with pip"
    (tmp_path / "file").touch()
    with pytest.raises(HeadwayError, match="expected a folder to write to"):
        benchmark(tmp_path / "file", 0, plan=replace(PLAN, methods=("none",)), device="cpu")


def test_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    watch = Watch("cpu", "float32", 100, dies.serve)
    (row,) = watch.rows(JOB)
    assert row["reason"] == "its process died with exit status 7"
    assert watch.environment == {"torch": "1"}
