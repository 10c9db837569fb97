"""The report of an extension: one page, the same as Markdown, and the numbers as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headway.figures.values import Grid, Line, Lines, Said, View, both, same
from headway.hf.folder import Folder
from headway.hf.long_texts import Measured, Side
from headway.hf.stretching import Stretch
from headway.output import write_output
from headway.web.views_page import views_page


def write_report(name: str, stretch: Stretch, measured: Measured | None, folder: Path) -> None:
    """Write report.html, report.md and report.json into a folder."""
    found = as_json(name, stretch, measured)
    write_output(folder / "report.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    seen = view(stretch, measured)
    write_output(folder / "report.md", markdown(name, seen))
    title = both("extend.title", model=name, trained=stretch.trained, to=stretch.to)
    write_output(folder / "report.html", views_page(title, [seen], [same(stretch.before), same(stretch.after)]))


def as_json(name: str, stretch: Stretch, measured: Measured | None) -> dict[str, Any]:
    """The extension and what was measured, as plain values; "measured" is null without a text."""
    found = None if measured is None else asdict(measured) | {"sentence": measured.sentence["en"]}
    return {"model": name, "extension": asdict(stretch), "measured": found}


def name_of(original: Any) -> str:
    """What a model is called in its report."""
    return original.path.resolve().name if isinstance(original, Folder) else type(original).__name__


def view(stretch: Stretch, measured: Measured | None) -> View:
    """What was done, and where it was measured the losses and the table."""
    values = [(same(key), [json.dumps(value)]) for key, value in stretch.values.items()]
    changes = Grid(both("extend.values"), [both("extend.key"), both("extend.value")], values)
    notes = [same(note) for note in stretch.notes]
    if measured is None:
        finding = both("extend.unmeasured", how=stretch.how, trained=stretch.trained, to=stretch.to)
        return View("extend", finding, [changes], notes=notes)
    how = both("extend.how", to=measured.to, trained=measured.trained, codes=measured.codes)
    lines = Lines(
        both("extend.loss"),
        list(measured.ends),
        [
            _line("extend.before", measured.before),
            _line("extend.after", measured.after),
            Line(both("extend.short", trained=measured.trained), list(measured.short)),
        ],
        (both("extend.position"), both("extend.nats")),
        marks=[(measured.trained, both("extend.trained"))],
    )
    return View("extend", measured.sentence, [lines, _table(stretch, measured), changes], notes=[how, *notes])


def _line(key: str, side: Side) -> Line:
    pairs = list(zip(side.bands, side.errors, strict=True))
    return Line(both(key), list(side.bands), [m - 2 * e for m, e in pairs], [m + 2 * e for m, e in pairs])


def _table(stretch: Stretch, measured: Measured) -> Grid:
    old, new = measured.before, measured.after
    rows: list[tuple[Said, list[str]]] = [
        (both("extend.row.method"), [stretch.before, stretch.after]),
        (
            both("extend.row.trained", trained=measured.trained),
            [f"{old.at_trained:.3f}", f"{new.at_trained:.3f}"],
        ),
        (both("extend.row.effective"), [f"{old.effective:,}", f"{new.effective:,}"]),
    ]
    for number, length in enumerate((measured.trained, measured.to)):
        name = both("extend.row.needles", length=length, needles=measured.needles)
        rows.append((name, ["–" if side.needles[number] is None else str(side.needles[number]) for side in (old, new)]))
    return Grid(both("extend.table"), [same(""), both("extend.before"), both("extend.after")], rows)


def markdown(name: str, seen: View) -> str:
    """A view's finding, tables and notes as Markdown, in English; a curve is a table too.

    >>> markdown("m", View("extend", same("Found."), [])).splitlines()
    ['# m', '', 'Found.']
    """
    parts = [f"# {name}", "", seen.finding["en"]]
    for figure in seen.figures:
        if isinstance(figure, Grid):
            head, rows = [each["en"] for each in figure.columns], [(row["en"], *cells) for row, cells in figure.rows]
        elif isinstance(figure, Lines):
            head = [figure.axes[0]["en"], *(line.label["en"] for line in figure.lines)]
            columns = [[f"{value:.3f}" for value in line.values if value is not None] for line in figure.lines]
            rows = [(f"{x:,}", *cells) for x, *cells in zip(figure.x, *columns, strict=True)]
        else:
            continue
        table = [head, ["---"] * len(head), *rows]
        parts += ["", f"## {figure.title['en']}", "", *("| " + " | ".join(row) + " |" for row in table)]
    parts += ["", *(f"- {note['en']}" for note in seen.notes)] if seen.notes else []
    return "\n".join(parts) + "\n"
