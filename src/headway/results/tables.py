"""The data of each figure as CSV: one row per measurement, including failures."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator
from typing import Any

from headway.results.summary import Results, Summary

Row = Iterable[Any]


def to_csv(results: Results) -> dict[str, str]:
    """Write the data of each figure as CSV text.

    Args:
        results: the dictionary that ``headway compare`` saves.

    Returns:
        The file name of each sheet and its text: ``lengths.csv``, ``training.csv``, ``cost.csv`` and, for recall and
        copy, ``distance.csv``.
    """
    summary = Summary(results)
    sheets = {
        "lengths.csv": sheet(
            ("method", "seed", "length", "status", "loss", "bits_per_byte", "accuracy", "tokens", "message"),
            _lengths(summary),
        ),
        "training.csv": sheet(("method", "seed", "kind", "step", "loss"), _training(summary)),
        "cost.csv": sheet(("method", "seed", "status", *_COST, "message"), _cost(summary)),
    }
    if any(cell.get("by_distance") for cell in summary.cells):
        sheets["distance.csv"] = sheet(
            ("method", "seed", "length", "distance", "accuracy", "count"), _distance(summary)
        )
    return sheets


_COST = ("parameters", "position_parameters", "seconds", "tokens_per_second", "peak_memory_bytes")


def _lengths(summary: Summary) -> Iterator[Row]:
    for cell in summary.cells:
        tests = {test["length"]: test for test in cell.get("tests") or ()}
        for length in summary.lengths:
            status = "missing" if cell["status"] == "ok" else cell["status"]
            test = tests.get(length, {"status": status, "message": cell.get("message")})
            numbers = (test.get(key) for key in ("loss", "bits_per_byte", "accuracy", "tokens"))
            yield cell["method"], cell["seed"], length, test["status"], *numbers, test.get("message")


def _training(summary: Summary) -> Iterator[Row]:
    for cell in summary.cells:
        for kind in ("train", "validation"):
            curve = cell.get(kind) or {"steps": (), "loss": ()}
            for step, loss in zip(curve["steps"], curve["loss"], strict=True):
                yield cell["method"], cell["seed"], kind, step, loss


def _cost(summary: Summary) -> Iterator[Row]:
    for cell in summary.cells:
        yield cell["method"], cell["seed"], cell["status"], *(cell.get(key) for key in _COST), cell.get("message")


def _distance(summary: Summary) -> Iterator[Row]:
    for cell in summary.cells:
        for row in cell.get("by_distance") or ():
            yield cell["method"], cell["seed"], *(row[key] for key in ("length", "distance", "accuracy", "count"))


def sheet(header: Row, rows: Iterable[Row]) -> str:
    """Rows under a header as CSV text that a spreadsheet opens without running anything in it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(header)
    writer.writerows([_plain(value) for value in row] for row in rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    # A spreadsheet runs text that starts with one of these as a formula.
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value
