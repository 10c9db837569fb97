"""A whole benchmark: every row of the position tax, or the speed targets, saved as they are measured."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch

from headway.backends import BACKENDS
from headway.bench.bars import bars, measure_bars
from headway.bench.cases import DECODING, Case
from headway.bench.contenders import OURS, materialised, ours
from headway.bench.measure import environment
from headway.bench.others import others_for
from headway.bench.settings import Bench
from headway.bench.tax import Entry, Group, Row, measured, without_base
from headway.output import write_output
from headway.shapes import HeadwayError
from headway.training.ours import mark

FORMAT = 1
REFERENCE_UP_TO = 2048
"""Tokens up to which ``--backends all`` includes the reference."""
SAMPLES = ("method", "contender", "length", "mode", "mask", "round", "who", "seconds")
"""Columns of samples.csv."""


def bench(
    settings: Bench,
    out: str | Path | None = None,
    *,
    command: str | None = None,
    on_row: Callable[[Row, int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure every row and return the results; they are in ``out/results.json``, all samples in ``out/samples.csv``.

    After ctrl-C the results so far are returned with ``complete`` False.

    Args:
        settings: what to measure.
        out: the folder, created if needed; None writes nothing.
        command: the command line that repeats this, for the report.
        on_row: called after every row, with the number of rows so far and in total.

    >>> tiny = Bench(methods=("t5",), lengths=(16,), modes=("forward",), baselines=False, heads=2, head_dim=8, rounds=1)
    >>> [(row["method"], row["status"]) for row in bench(tiny)["rows"]]
    [('none', 'ok'), ('t5', 'ok')]
    """
    rows: list[Row] = []
    # the bars have their own methods, lengths and shapes
    dtype = bars(settings.device)[0].case.torch_dtype if settings.bars else getattr(torch, settings.dtype)
    given = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}
    results: dict[str, Any] = {
        "format": FORMAT,
        "kind": "bench",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "settings": {name: given[name] for name in ("bars", "device", "rounds")} if settings.bars else given,
        "environment": environment(dtype, settings.device),
        "complete": True,
        "rows": [],
        "bars": [],
    }
    with _Folder(out) as folder:
        try:
            if settings.bars:
                for judged, found in measure_bars(settings, folder.keep, on_row):
                    results["bars"] += judged
                    results["rows"] += [asdict(row) for row in found]
                    folder.save(results)
            else:
                planned = [(case, entries_for(settings, case)) for case in cases(settings)]
                count = sum(len(entries) for _, entries in planned)
                for case, entries in planned:
                    try:
                        group = Group(case, settings.rounds or case.rounds)
                    except Exception as problem:
                        results["rows"].append(asdict(without_base(case, problem)))
                        continue
                    rows = []
                    try:
                        for entry in entries:
                            rows.append(measured(entry, group, folder.keep))
                            if on_row is not None:
                                on_row(rows[-1], len(results["rows"]) + len(rows), count)
                    finally:
                        results["rows"] += [asdict(row) for row in (group.base_row(), *rows)]
                        folder.save(results)
        except KeyboardInterrupt:
            results["complete"] = False
        folder.save(results)
    return results


def outcome(results: Mapping[str, Any]) -> int:
    """The exit status of a command: 130 if it was interrupted, 1 if a target is missed."""
    if not results["complete"]:
        return 130
    return int(any(not bar["passed"] for bar in results["bars"]))


def cases(settings: Bench) -> Iterator[Case]:
    """The cases of a benchmark: those with a backward pass first, short ones before long ones."""
    for mode in settings.modes:
        for mask in settings.masks[:1] if mode in DECODING else settings.masks:
            for length in sorted(settings.lengths):
                yield Case(
                    length,
                    mode,
                    mask,
                    settings.batch,
                    settings.heads,
                    settings.kv_heads or settings.heads,
                    settings.head_dim,
                    settings.dtype,
                    settings.device,
                )


def entries_for(settings: Bench, case: Case) -> list[Entry]:
    """The rows to measure on a case: our backends first, then torch's own implementations and other libraries."""
    entries = []
    names = BACKENDS if settings.backends == ("all",) else settings.backends
    if settings.backends == ("all",) and case.queries > REFERENCE_UP_TO:
        names = tuple(name for name in names if name != "reference")
    for method in settings.methods:
        entries += [Entry(method, OURS + name, ours(name)) for name in names]
        if settings.baselines:
            if method not in ("none", "rotary", "shaw"):  # those have no bias to materialise
                entries.append(Entry(method, "SDPA + bias tensor", materialised))
            entries += [Entry(method, other.name, other.prepare) for other in others_for(method, case)]
    return entries


class _Folder:
    """The output folder, if any, with results and samples."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.file: TextIO | None = None
        self.writer: Any = None

    def __enter__(self) -> _Folder:
        if self.path is not None:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self.file = (self.path / "samples.csv").open("w", encoding="utf-8", newline="")
            except OSError as problem:
                raise HeadwayError(f"expected a folder to write to, got {self.path}: {problem.strerror}") from None
            mark(self.path, "bench")
            self.writer = csv.writer(self.file)
            self.writer.writerow(SAMPLES)
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def keep(self, row: Row, who: str, number: int, seconds: float) -> None:
        """Write one sample."""
        if self.writer is not None and self.file is not None:
            self.writer.writerow((row.method, row.contender, row.length, row.mode, row.mask, number, who, seconds))
            self.file.flush()

    def save(self, results: dict[str, Any]) -> None:
        """Write all results so far."""
        if self.path is not None:
            write_output(self.path / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
