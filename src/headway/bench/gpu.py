"""Everything to know about headway on a GPU, from one command that always ends: ``python -m headway.bench gpu``.

First every method is held against float64, values and gradients, in float32 and bfloat16. Then the position tax is
measured in bfloat16 by length and width of the heads: the core methods, then the others, then other libraries. What
does not fit into the time is a row that says so, and so is what fails. Measurements run in a process of their own: one
that crashes, hangs, or ruins the GPU's context is replaced, and its row has the reason.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from headway.bench.cases import Case, Draw, Unsupported
from headway.bench.contenders import OURS, Work, ours
from headway.bench.measure import environment, error
from headway.bench.others import OTHERS, others_for
from headway.bench.page import PLAIN, bench_text, row_text, write_bench
from headway.bench.run import FORMAT, outcome
from headway.bench.tax import EXACT_UP_TO, Entry, Group, Row, measured, trouble
from headway.config import CORE
from headway.output import write_output
from headway.positions import methods, parse
from headway.shapes import HeadShape, HeadwayError

TOKENS = 16384
"""Tokens of a batch, as long as a sequence is shorter."""
WIDTH = 2048
"""Width of all heads together."""
ROUNDS, CALLS = 5, 12
"""Rounds of a timing, and about as many calls as a row takes."""
LONGEST = 90.0
"""Seconds after which a single row is given up, compilation included."""
RESERVE = 10.0
"""Seconds kept to write the results."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        lengths: tokens of a sequence.
        head_dims: widths of a head.
        checked: tokens at which errors are measured; odd, so that no tile is full.
        check_dtypes: dtypes of these.
        dtype: dtype of the timings.
        methods: default all.
        tokens: tokens of a batch.
        width: width of all heads together.
    """

    lengths: tuple[int, ...] = (2048, 8192, 32768)
    head_dims: tuple[int, ...] = (64, 128)
    checked: int = 301
    check_dtypes: tuple[str, ...] = ("float32", "bfloat16")
    dtype: str = "bfloat16"
    methods: tuple[str, ...] = field(default_factory=lambda: tuple(methods()))
    tokens: int = TOKENS
    width: int = WIDTH


@dataclass(frozen=True)
class Job:
    """One row to measure: a method by a contender, by name, so that it can be sent to another process."""

    method: str
    contender: str
    case: Case
    timed: bool


def jobs(plan: Plan, device: str) -> Iterator[Job]:
    """All rows, the most important ones first."""
    assert plan.checked <= EXACT_UP_TO
    for dtype in plan.check_dtypes:
        case = Case(plan.checked, heads=4, kv_heads=2, head_dim=plan.head_dims[0], dtype=dtype, device=device)
        yield from (Job(method, OURS + "triton", case, False) for method in plan.methods)
    cases = []
    for width in plan.head_dims:
        heads = max(1, plan.width // width)
        for length in sorted(plan.lengths):
            batch = max(1, plan.tokens // length)
            given: dict[str, Any] = {"heads": heads, "kv_heads": heads, "dtype": plan.dtype, "device": device}
            cases.append(Case(length, batch=batch, head_dim=width, **given))
    inside = [method for method in plan.methods if not parse(method).embeds]
    core = [method for method in CORE if method in inside]
    for some in (core, [method for method in inside if method not in core]):
        yield from (Job(method, OURS + "auto", case, True) for case in cases for method in some)
    for case in cases:
        for method in inside:
            installed = (other for other in others_for(method, case) if other.installed)
            yield from (Job(method, other.name, case, True) for other in installed)


# --- the process that measures ------------------------------------------------------------------------------------


def serve(link: Connection, device: str, dtype: str) -> None:
    """Measure each job that comes, and send its rows, and whether the device still computes.

    The first message is the environment.
    """
    warnings.simplefilter("ignore")  # what compilers say is not for this terminal
    torch.backends.cudnn.allow_tf32 = False  # the reference's convolutions must not be rounded either
    link.send(environment(torch.float32 if device == "cpu" else getattr(torch, dtype), device))
    groups: dict[Case, Group] = {}
    with contextlib.suppress(EOFError):  # the process that watches is gone
        while True:
            rows = answer(link.recv(), groups)
            link.send(([asdict(row) for row in rows], rows[-1].status != "failed" or usable(device)))


def answer(job: Job, groups: dict[Case, Group]) -> list[Row]:
    """The row of a job, and before it that of plain attention if it was timed."""
    case = job.case
    try:
        if not job.timed and parse(job.method).embeds:
            return [_judged(_embedded(job))]
        if case not in groups:
            groups[case] = Group(case, ROUNDS, thorough=not job.timed)
        entry = Entry(job.method, job.contender, _contender(job), job.timed)
    except Exception as problem:
        return [Row.of(case, job.method, job.contender, *trouble(problem))]
    row = measured(entry, groups[case])
    if not job.timed:
        return [_judged(row)]
    return [groups[case].base_row(), row] if groups[case].base_samples else [row]


def _judged(row: Row) -> Row:
    """A row that fails if its error is more than twice plain PyTorch's and one rounding."""
    if row.status == "ok" and row.error is not None:
        plain = row.error / row.error_ratio if row.error_ratio else 0.0
        if not row.error <= 2 * plain + torch.finfo(getattr(torch, row.dtype)).eps:
            row.status = "failed"
            row.reason = f"error {row.error:.1e} in {row.dtype}, where plain PyTorch has {plain:.1e}"
    return row


def _embedded(job: Job) -> Row:
    """The error of a method that adds to the embedding; plain PyTorch is what it is computed by."""
    case, row = job.case, Row.of(job.case, job.method, OURS + "embedding")
    shape = HeadShape.of(case.heads * case.head_dim, case.heads, case.kv_heads, case.head_dim)
    found = []
    for wide in (False, True):
        draw = Draw(case, wide)
        position = parse(job.method).attach(shape).to(case.device, draw.dtype)
        for parameter in position.parameters():
            parameter.data.copy_(draw.normal(*parameter.shape).detach())
        x, weight = (draw.normal(case.batch, case.length, shape.dim) for _ in range(2))
        out = position.embed(x, case.positions()[0])
        leaves = {"x": x, **dict(position.named_parameters())}
        gradients = torch.autograd.grad(out, list(leaves.values()), weight.detach())
        found.append({"out": out.detach(), **dict(zip(leaves, gradients, strict=True))})
    row.error, row.error_ratio, row.repeats = error(*found), 1.0, None
    return row


def _contender(job: Job) -> Callable[[str, Case], Work]:
    """What measures a job: the kernel for GPUs where it accepts the method, else what ``auto`` picks."""
    if job.contender == OURS + "triton":

        def kernel(method: str, case: Case) -> Work:
            try:
                return ours("triton")(method, case)
            except Unsupported:
                return ours("auto")(method, case)

        return kernel
    if job.contender.startswith(OURS):
        return ours(job.contender.removeprefix(OURS))
    return next(other.prepare for other in OTHERS if other.name == job.contender)


def usable(device: str) -> bool:
    """Whether the device still computes."""
    try:
        return bool(torch.ones(2, device=device).sum().item() == 2)
    except Exception:
        return False


# --- the process that watches -------------------------------------------------------------------------------------


def check_machine(device: str) -> None:
    """Refuse a machine without a GPU.

    Raises:
        HeadwayError: in one sentence.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise HeadwayError("expected an NVIDIA GPU that torch can use, got none: run this on a machine with one")


class Watch:
    """Runs jobs in another process, replaces it when it dies or hangs, and leaves out what there is no time for.

    Args:
        device: "cuda" or "cpu".
        dtype: dtype of the timings.
        seconds: the time there is.
        serve: what the other process runs, see :func:`serve`.
        longest: seconds after which a single row is given up.
    """

    def __init__(
        self,
        device: str,
        dtype: str,
        seconds: float,
        serve: Callable[[Connection, str, str], None] = serve,
        longest: float = LONGEST,
    ) -> None:
        self.device, self.dtype, self.serve, self.longest = device, dtype, serve, longest
        self.deadline = time.monotonic() + seconds
        self.environment: dict[str, Any] = {}
        self._seconds: dict[tuple[str, str, int], tuple[Case, float]] = {}
        self._process: Any = None
        self._link: Any = None

    def rows(self, job: Job) -> list[dict[str, Any]]:
        """The rows of a job, its own last."""
        if (why := self._no_time(job)) is not None:
            return [asdict(Row.of(job.case, job.method, job.contender, "left out", why))]
        limit = self._limit()
        try:
            if self._process is None:
                self._start()
            self._link.send(job)
            limit = self._limit()
            if not self._link.poll(limit):
                raise TimeoutError
            rows, usable = self._link.recv()
        except (EOFError, OSError) as problem:
            if isinstance(problem, TimeoutError):
                why = f"took more than {limit:.0f} s, and was ended"
            else:
                self._process.join(5)
                why = f"its process died with exit status {self._process.exitcode}"
            self.end()
            return [asdict(Row.of(job.case, job.method, job.contender, "failed", why))]
        if not usable:
            self.end()
        if rows[-1]["seconds"] is not None:
            self._seconds[job.method, job.contender, job.case.head_dim] = job.case, rows[-1]["seconds"]
        found: list[dict[str, Any]] = rows
        return found

    def end(self) -> None:
        """End the other process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._link.close()
        self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._link, its = context.Pipe()
        self._process = context.Process(target=self.serve, args=(its, self.device, self.dtype))
        self._process.start()
        its.close()
        if not self._link.poll(self._limit()):
            raise TimeoutError
        self.environment = self._link.recv()

    def _limit(self) -> float:
        return max(0.0, min(self.longest, self.deadline - time.monotonic()))

    def _no_time(self, job: Job) -> str | None:
        """Why a job is left out, given how long the method took at another length."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            return "there was no time left"
        known = self._seconds.get((job.method, job.contender, job.case.head_dim))
        if known is None:
            return None
        case, seconds = known
        need = CALLS * seconds * job.case.pairs / case.pairs
        return f"it would take about {need:,.0f} s" if need > min(left, self.longest) else None


def benchmark(
    out: Path,
    minutes: float,
    *,
    plan: Plan | None = None,
    device: str = "cuda",
    command: str | None = None,
    on_row: Callable[[dict[str, Any], int, int], None] | None = None,
    serve: Callable[[Connection, str, str], None] = serve,
) -> dict[str, Any]:
    """Measure everything, write ``out/results.json`` and ``out/report.html``, and return the results.

    Args:
        out: the folder, created if needed.
        minutes: the time after which the rest is left out.
        plan: what to measure.
        device: "cuda"; "cpu" runs the same on a CPU, which tests it.
        command: the command line, for the report.
        on_row: called with every row, with the number of jobs so far and in total.
        serve: what measures, in a process of its own.

    Raises:
        HeadwayError: without a GPU, or if the folder cannot be written.
    """
    check_machine(device)
    plan = Plan() if plan is None else plan
    todo = list(jobs(plan, device))
    watch = Watch(device, plan.dtype, 60 * minutes - RESERVE, serve)
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    checked = {"of": 0, "exact": 0}
    results: dict[str, Any] = {
        "format": FORMAT,
        "kind": "bench",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "settings": {"device": device, "minutes": minutes, "tokens": plan.tokens, "width": plan.width},
        "complete": True,
        "bars": [],
    }
    try:
        for number, job in enumerate(todo):
            rows = watch.rows(job)
            case = job.case
            found = groups.setdefault((not job.timed, case.dtype, case.head_dim, case.length), [])
            if rows[0]["contender"] == PLAIN and job.timed:
                found[:] = [row for row in found if row["contender"] != PLAIN]
                found.insert(0, rows[0])
            found += [row for row in rows if row["contender"] != PLAIN]
            if not job.timed and rows[-1]["status"] in ("ok", "failed"):
                checked["of"] += 1
                checked["exact"] += rows[-1]["status"] == "ok"
            if on_row is not None:
                on_row(rows[-1], number + 1, len(todo))
    except KeyboardInterrupt:
        results["complete"] = False
    finally:
        watch.end()
        results["environment"] = watch.environment
        results["rows"] = [row for key in sorted(groups) for row in groups[key]]
        results["checked"] = checked
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_output(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
            write_bench(results, out / "report.html")
        except OSError as problem:
            raise HeadwayError(f"expected a folder to write to, got {out}: {problem.strerror}") from None
    return results


def run(out: Path, minutes: float, *, device: str = "cuda", plan: Plan | None = None) -> int:
    """Measure, tell the terminal, and return the exit status: 1 if something failed, 130 after ctrl-C."""

    def told(row: dict[str, Any], done: int, count: int) -> None:
        print(f"{done} of {count}: {row_text(row)}", flush=True)

    command = f"python -m headway.bench gpu --minutes {minutes:g}"
    results = benchmark(out, minutes, plan=plan, device=device, command=command, on_row=told)
    print(f"\n{bench_text(results)}\n\nReport: {out / 'report.html'}")
    return outcome(results) or int(any(row["status"] == "failed" for row in results["rows"]))
