"""The report of a comparison: one offline HTML file, from the plain dictionary that ``headway compare`` saves."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headway.figures.downsample import fitted
from headway.figures.words import strings
from headway.output import write_output
from headway.results.findings import findings
from headway.results.summary import Results, finite, mean
from headway.web.page import document, plain, strings_of

POINTS = 250  # maximum points of a training curve in a report; longer curves are averaged down


def payload(results: Results) -> dict[str, Any]:
    """The argument of ``render(element, payload)``, ready for JSON.

    Args:
        results: the dictionary that ``headway compare`` saves.

    Returns:
        ``results`` with long training curves averaged down and None for values that are not finite, the findings, the
        saved views of each method, and the words of both languages.
    """
    longest = max((len((cell.get("train") or {}).get("loss") or ()) for cell in results.get("cells") or ()), default=0)
    every = max(1, math.ceil(longest / POINTS))
    cells = [{**cell, "train": _thin(cell.get("train"), every)} for cell in results.get("cells") or ()]
    rest = {key: value for key, value in results.items() if key != "views"}
    shown: dict[str, Any] = plain({"settings": {}, "environment": {}, "methods": [], **rest, "cells": cells})
    return {
        "results": shown,
        "findings": [{"key": f.key, "figure": f.figure, "en": f.en, "zh": f.zh} for f in findings(results)],
        "strings": strings_of("render"),
        "thinned": every,
        "views": fitted(results.get("views") or {}),
    }


def write_report(results: Results, path: str | os.PathLike[str]) -> Path:
    """Write the report as one HTML file that opens without a network.

    Args:
        results: the dictionary that ``headway compare`` saves; if the run is unfinished, the report says so.
        path: the file to write; its folder is created if needed, and an existing file is replaced.

    Returns:
        The path of the file.
    """
    return write_output(path, page(results))


def page(results: Results) -> str:
    """The report as HTML text."""
    return document(_title(results), payload(results), "render")


def _title(results: Results) -> str:
    settings = results.get("settings") or {}
    lengths = [length for length in settings.get("test_lengths") or () if isinstance(length, int)]
    train = settings.get("train_length")
    words = strings("en")
    if isinstance(train, int) and lengths and max(lengths) > train:
        return words["title.longer"].format(train=f"{train:,}", longest=f"{max(lengths):,}")
    return words["title.plain"].format(train=f"{train:,}" if isinstance(train, int) else "?")


def _thin(curve: Mapping[str, Any] | None, every: int) -> dict[str, Any]:
    """Average runs of ``every`` losses; each point is at the run's last step; values are rounded to six digits."""
    steps, losses = (curve or {}).get("steps") or [], (curve or {}).get("loss") or []
    thin: dict[str, Any] = {"steps": [], "loss": []}
    for start in range(0, len(steps), every):
        values = [loss for value in losses[start : start + every] if (loss := finite(value)) is not None]
        thin["steps"].append(steps[min(start + every, len(steps)) - 1])
        thin["loss"].append(float(f"{mean(values):.6g}") if values else None)
    return thin
