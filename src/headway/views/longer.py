"""Train short, test long: the results of a comparison at each test length."""

from __future__ import annotations

from collections.abc import Sequence

from headway.figures.values import Figure, Grid, Line, Lines, View, both, same
from headway.figures.words import LANGUAGES, Clause, fill
from headway.results.amounts import amount
from headway.results.findings import best, worse
from headway.results.summary import Spot, Summary
from headway.shapes import HeadwayError
from headway.views.distances import point
from headway.views.question import Question

VIEWS = ("longer",)


def longer(question: Question) -> View:
    """View 14: loss against test length for every method of a comparison, mean and range over its seeds. Where a method
    has no result its line ends, and the table says why.

    Args:
        question: ``results`` are those of ``headway compare``; model and text are not used.

    Raises:
        HeadwayError: without results, or when nothing has been tested yet.
    """
    if question.results is None:
        raise HeadwayError("expected results of headway compare, got none: give those of a folder it wrote")
    summary = Summary(question.results)
    methods, lengths, measure = summary.methods, summary.lengths, summary.measure
    if not methods or not lengths or summary.base_length is None:
        raise HeadwayError("expected results with methods and test lengths, got none: let the comparison go on")
    spots = {method: [summary.spot(method, length) for length in lengths] for method in methods}
    lines = [
        Line(same(method), _ends(each, "mean"), _ends(each, "low"), _ends(each, "high"))
        for method, each in spots.items()
    ]
    unit, seeds = Clause(f"longer.{measure.key}", {}), len(summary.seeds)
    way = Clause("longer.lower" if measure.lower_is_better else "longer.higher", {})
    partial = sum(0 < len(spot.values) < spot.planned for each in spots.values() for spot in each)
    trained = summary.train_length
    failures = _failures([spot for each in spots.values() for spot in each if not spot.values])
    return View(
        "longer",
        _finding(summary),
        [
            Lines(
                _said("longer.figure" if seeds > 1 else "longer.figure.one", unit=unit, seeds=seeds),
                [float(length) for length in lengths],
                lines,
                (both("longer.axis"), both(unit.key)),
                log_x=True,
                marks=[] if trained is None else [(float(trained), both("longer.trained"))],
            ),
            Grid(
                both("longer.table"),
                [both("table.method"), *(same(f"{length:,}") for length in lengths)],
                [(same(method), [_cell(spot, summary) for spot in each]) for method, each in spots.items()],
            ),
            *failures,
        ],
        notes=[_said("longer.note", better=way), *([both("longer.partial", n=partial)] if partial else [])],
    )


def _said(key: str, /, **values: object) -> dict[str, str]:
    """A sentence with values that each language formats in its own way."""
    return {language: fill(key, values, language) for language in LANGUAGES}


def _ends(spots: Sequence[Spot], which: str) -> list[float | None]:
    """The mean, lowest or highest over the seeds at each length."""
    return [point(getattr(spot, which)) if spot.values else None for spot in spots]


def _failures(spots: Sequence[Spot]) -> list[Figure]:
    """Why methods have no result, and at which lengths."""
    lengths: dict[tuple[str, str, str | None], list[int]] = {}
    for spot in spots:
        lengths.setdefault((spot.method, spot.status, spot.message), []).append(spot.length)
    rows = []
    for (method, status, message), found in lengths.items():
        why = f" ({message})" if message else ""
        told = _said("longer.failure", method=method, what=Clause(f"status.{status}", {}), why=why)
        rows.append((told, [", ".join(f"{length:,}" for length in found)]))
    return [Grid(both("longer.failures"), [both("longer.what"), both("longer.lengths")], rows)] if rows else []


def _cell(spot: Spot, summary: Summary) -> str:
    """The mean, with the number of seeds if some failed; a dash without any."""
    if not spot.values:
        return "–"
    some = f" ({len(spot.values)}/{spot.planned})" if len(spot.values) < spot.planned else ""
    return amount(spot.mean, summary.measure) + some


def _finding(summary: Summary) -> dict[str, str]:
    """The best method at the longest length, as in the report, and how many do worse there."""
    base, longest = summary.base_length, summary.lengths[-1]
    if not summary.spots(longest) or base is None:
        return _said("longer.finding.none", longest=longest)
    first = best(summary, longest)
    count = sum(worse(summary, method, base, longest) for method in summary.methods)
    if len(summary.methods) == 1:
        told = _said("longer.finding.one.worse" if count else "longer.finding.one.kept", base=base, longest=longest)
    else:
        told = _said("longer.finding", worse=count, count=len(summary.methods), base=base, longest=longest)
    gap = {"en": " ", "zh": ""}
    return {language: f"{getattr(first, language)}{gap[language]}{told[language]}" for language in LANGUAGES}
