"""A comparison by several processes: interrupted, killed and failing workers, and the digits of one process."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from headway.compare import run as module
from headway.compare.claims import Claims
from headway.compare.run import Comparison, Job, compare, work
from headway.compare.workers import Seen, compare_with_workers
from headway.shapes import HeadwayError

STEPS = 500  # more than a worker does before it hears that it is interrupted
SMALL: dict[str, Any] = {"train_length": 8, "test_lengths": (8, 16), "seeds": (0,), "batch": 4, "dim": 16, "layers": 1}
SMALL |= {"heads": 2, "steps": STEPS, "positions": ("rotary", "alibi")}


def without_time(results: dict[str, Any]) -> list[Any]:
    cells = [{k: v for k, v in cell.items() if k not in ("seconds", "tokens_per_second")} for cell in results["cells"]]
    return [*cells, results["methods"], results["views"], results["complete"]]


def claims_of(out: Path, method: str) -> tuple[str, Claims]:
    (folder,) = (out / "claims").glob(f"{method}-*")
    return folder.name, Claims(out)


def test_interrupted_and_killed_workers_end_with_the_digits_of_one_process(tmp_path: Path) -> None:
    comparison, out = Comparison(**SMALL, threads=1), tmp_path / "workers"
    killed: list[int] = []

    def interrupt(seen: Seen) -> None:
        if len(seen.working) == 2 and all(one.progress and one.progress for one in seen.working):
            os.kill(os.getpid(), signal.SIGINT)

    part = compare_with_workers(comparison, out, 2, on_progress=interrupt)
    assert not part.results["complete"]
    name, claims = claims_of(out, "rotary")
    end = claims.end(name, 1)
    assert end is not None
    assert end["outcome"] == "interrupted"
    saved = end["trained"][1]
    assert 0 < saved < STEPS

    def kill(seen: Seen) -> None:
        for one in seen.working:
            if not killed and one.method == "rotary":
                killed.append((claims.owner(name) or {})["pid"])
                os.kill(killed[0], signal.SIGKILL)

    assert Claims(out).latest()[name] == 1
    whole = compare_with_workers(comparison, out, 2, on_progress=kill)
    assert len(killed) == 1
    assert claims.end(name, 2) is None  # killed
    again = claims.end(name, 3)
    assert again is not None
    first, last = again["trained"]
    assert last == STEPS
    assert first == saved or (first > 0 and first % 100 == 0)  # from its checkpoint
    assert len(claims.numbers(claims_of(out, "alibi")[0])) == 2  # nothing else was trained twice

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = compare(Comparison(**SMALL), tmp_path / "one")
    torch.set_num_threads(threads)
    assert without_time(whole.results) == without_time(one)
    assert whole.results["settings"]["threads"] == 1

    report = (out / "report.html").stat().st_mtime_ns
    later = compare_with_workers(comparison, out, 1)
    assert not later.written  # the same report is there already
    assert (out / "report.html").stat().st_mtime_ns == report


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job.of(Comparison(**{**SMALL, "steps": 2}), Claims(tmp_path))


def test_a_cell_that_fails_is_named_and_the_others_are_finished(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = module.compute

    def compute(comparison: Any, task: Any, models: Any, cell: Any, *rest: Any) -> bool:
        if cell.spec != "alibi":
            raise MemoryError
        return inside(comparison, task, models, cell, *rest)

    monkeypatch.setattr(module, "compute", compute)
    assert work(job, alone=False)
    told = "expected enough memory, got none left: choose a smaller model, batch or length"
    assert [job.failure(cell) for cell in job.cells] == [told, None]
    assert [job.is_finished(cell) for cell in job.cells] == [False, True]
    # the next start tries again
    monkeypatch.setattr(module, "compute", inside)
    again = Job.of(job.comparison, job.claims)
    assert work(again, alone=False)
    assert all(map(again.is_finished, again.cells))


def test_a_cell_whose_workers_are_killed_again_and_again_is_given_up(job: Job) -> None:
    from test_claims import rewrite_owner

    for _ in range(3):
        claim = Claims(job.claims.out).take(job.cells[0].name)
        assert claim is not None
        rewrite_owner(claim, started="0")
    assert work(job, alone=False)
    assert "its worker was killed 3 times" in (job.failure(job.cells[0]) or "")
    assert job.is_finished(job.cells[1])


def test_workers_of_other_threads_do_not_join(job: Job) -> None:
    claim = job.claims.take(job.cells[0].name)
    assert claim is not None
    with claim, pytest.raises(HeadwayError, match="expected --threads 1 as the workers that are computing in"):
        compare_with_workers(Comparison(**{**SMALL, "steps": 2}, threads=2), job.claims.out, 2)
    torch.set_num_threads(1)


def test_one_that_comes_back_leaves_the_cell_to_its_successor(job: Job) -> None:
    """A worker is cut off, another finishes its cell, and what the first writes on its return counts for nothing."""
    job.claims.lease = 0.4
    lost = job.claims.take(job.cells[0].name)  # no sign of life from here on
    assert lost is not None
    assert work(Job.of(job.comparison, Claims(job.claims.out)), alone=False)
    finished = {path: path.read_bytes() for path in job.claims.out.glob("cells/*.2/**/*") if path.is_file()}
    assert finished
    with lost:
        time.sleep(0.2)
        assert lost.lost
        cell = job.cells[0]
        cell.claim, cell.folder = lost, lost.folder
        cell.open([])
        with contextlib.suppress(HeadwayError):
            module.compute(job.comparison, job.task, job.models, cell, lambda *_, **__: None, [], lambda: lost.lost)
    assert all(path.read_bytes() == data for path, data in finished.items())
    assert job.is_finished(job.cells[0])
