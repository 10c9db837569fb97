"""Position methods in the terminal, as a page and as Markdown, all generated from the catalogue.

A catalogue entry is a dictionary, see ``headway.catalogue.entries.entry``.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.catalogue.braille import HUES, braille
from headway.figures.values import Line, Lines, both, same
from headway.figures.words import LANGUAGES, join, strings
from headway.output import write_output
from headway.plot import picture
from headway.web.page import document, strings_of

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

Entry = Mapping[str, Any]
_COLOURS = ("blue", "red", "green", "magenta")
"""Terminal colours close to :data:`headway.catalogue.braille.HUES`."""
_DROPPED = ("title", "paper", "memory", "exactness")
"""Columns that are omitted from narrow terminals, in this order; ``headway methods NAME`` shows them."""
_FORMULA = 24
"""Minimum width of the column of formulas."""
_WIDEST = 22
"""Maximum width of the other columns."""


def methods_table(entries: Sequence[Entry], width: int) -> Table:
    """One line for each method, as many columns as fit.

    Args:
        entries: the catalogue.
        width: columns of the terminal.

    Returns:
        A ``rich`` table, ready to print.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    words = strings("en")
    columns = {
        "name": [entry["name"] for entry in entries],
        "title": [entry["title"] for entry in entries],
        "acts": [_acts(entry, "act.short") for entry in entries],
        "formula": [entry["formula"] for entry in entries],
        "learned": [_brief(entry) for entry in entries],
        "runs": [_route(entry) for entry in entries],
        "exactness": [entry["plan"]["exactness"] or "" for entry in entries],
        "memory": [_order(entry) for entry in entries],
        "paper": [entry["paper"].removeprefix("arXiv:") for entry in entries],
    }
    need = {
        key: min(_WIDEST, max(map(len, [words[f"methods.column.{key}"], *cells]))) + 2
        for key, cells in columns.items()
        if key != "formula"
    }
    shown = list(columns)
    for key in _DROPPED:
        if sum(need[one] for one in shown if one != "formula") + _FORMULA > width:
            shown.remove(key)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), width=width, show_edge=False)
    for key in shown:
        grid.add_column(
            words[f"methods.column.{key}"],
            justify="right" if key == "learned" else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if key == "formula" else None,
            width=None if key == "formula" else need[key] - 2,
        )
    for cells in zip(*(columns[key] for key in shown), strict=True):
        styled = zip(shown, cells, strict=True)
        grid.add_row(*(Text(cell, style="bold" if key == "name" else "") for key, cell in styled))
    return grid


def methods_note(entries: Sequence[Entry]) -> str:
    """A note below the table: the widths, the backends, and how to learn more."""
    words = strings("en")
    routes = Counter(_route(entry) for entry in entries)
    told = join([f"{count} {route}" for route, count in routes.most_common()], "en")
    kinds = {(entry["plan"]["exactness"], _order(entry)) for entry in entries if entry["plan"]["route"]}
    same = words["methods.note.same"].format(exactness=min(kinds)[0], memory=min(kinds)[1]) if len(kinds) == 1 else ""
    widths = entries[0]["widths"]
    return words["methods.note"].format(
        count=len(entries),
        device=entries[0]["device"],
        routes=told,
        same=same,
        **{**widths, "tokens": f"{widths['tokens']:,}"},
    )


def method_text(entry: Entry, width: int) -> Group:
    """A page on one method for a terminal.

    Args:
        entry: the method, with its picture.
        width: columns of the terminal.

    Returns:
        A ``rich`` group, ready to print.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    words = strings("en")
    title = Text.assemble((entry["spec"], "bold"), f"  {entry['title']}  ", (entry["paper"], "dim"))
    pairs = Table.grid(padding=(0, 2, 0, 0))
    pairs.add_column(no_wrap=True, style="dim")
    pairs.add_column()
    for key, lines in _facts(entry):
        pairs.add_row(words[f"methods.{key}"], Text("\n".join(lines)))
    parts: list[Any] = [title, Text(entry["summary"]), Text(), Text(entry["derivation"]), Text(), pairs, Text()]
    for note in entry["notes"]:
        parts += [Text(note), Text()]
    parts += picture_text(entry["picture"], width)
    if entry["example"]:
        parts += [Text(), Padding(Text(entry["example"], style="dim"), (0, 0, 0, 4))]
    return Group(*parts)


def picture_text(picture: Entry, width: int) -> list[Text]:
    """The picture's caption and its lines."""
    from rich.text import Text

    caption = Text(caption_of(picture, "en"))
    curves = [curve["values"] for curve in picture["curves"]]
    if not curves:
        return [caption]
    lines = []
    for cells in braille(curves, [label_of(curve, curves, "en") for curve in picture["curves"]], min(width, 100)):
        styled = ((c.text, "dim" if c.curve is None else _COLOURS[c.curve % len(_COLOURS)]) for c in cells)
        lines.append(Text.assemble(*styled, no_wrap=True))
    axis = Text(strings("en")[f"methods.axis.{picture['kind']}"].rjust(len(lines[-1].plain)), style="dim")
    return [caption, *lines, axis]


def write_method(entry: Entry, path: str | os.PathLike[str]) -> Path:
    """Write a page on one method, one HTML file that opens without a network.

    Args:
        entry: the method, with its picture.
        path: the file to write; an existing file is replaced.
    """
    return write_output(path, method_page(entry))


def method_page(entry: Entry) -> str:
    """The page as HTML text."""
    picture = entry["picture"]
    curves = [{**one, "hue": HUES[n % len(HUES)], "dash": n % len(HUES)} for n, one in enumerate(picture["curves"])]
    data = {
        "entry": {**entry, "picture": {**picture, "curves": curves}},
        "said": {
            language: {
                "caption": caption_of(picture, language),
                "labels": [label_of(curve, curves, language) for curve in curves],
                "facts": _facts(entry, language),
            }
            for language in LANGUAGES
        },
        "version": entry["version"],
        "strings": strings_of("methods"),
    }
    return document(entry["title"], data, "methods")


def markdown(entries: Sequence[Entry]) -> dict[str, str]:
    """Pages on all methods, as the names of files and their text: an index, a page and a picture for each.

    Args:
        entries: the catalogue, with pictures.
    """
    words = strings("en")
    keys = ("name", "acts", "formula", "learned", "runs")
    lines = [
        f"# {words['methods.index']}",
        "",
        words["methods.generated"],
        "",
        "| " + " | ".join(words[f"methods.column.{key}"] for key in keys) + " |",
        "|" + "---|" * len(keys),
    ]
    files = {}
    for entry in entries:
        name = entry["name"]
        cells = (
            f"[{name}]({name}.md)",
            _acts(entry, "act.short"),
            _cell(entry["formula"]),
            _learned_count(entry),
            f"{_route(entry)} · {_order(entry)}",
        )
        lines.append("| " + " | ".join(cells) + " |")
        files[f"{name}.md"] = _markdown_page(entry)
        if entry["picture"]["curves"]:
            files[f"{name}.svg"] = picture(_curves(entry["picture"]), width="double").data("svg").decode()
    lines += ["", methods_note(entries)]
    return {"index.md": "\n".join(lines) + "\n"} | files


def _curves(picture: Entry) -> Lines:
    """A method's picture as a figure."""
    curves, kind = picture["curves"], picture["kind"]
    names = ({language: label_of(one, curves, language) for language in LANGUAGES} for one in curves)
    lines = [Line(name, one["values"]) for name, one in zip(names, curves, strict=True)]
    places = list(range(max(len(one["values"]) for one in curves)))
    return Lines(same(""), places, lines, (both(f"methods.axis.{kind}"), both(f"methods.value.{kind}")))


def write_markdown(entries: Sequence[Entry], folder: str | os.PathLike[str]) -> Path:
    """Write :func:`markdown` into a folder, which is created if needed; returns the path of the index."""
    for name, text in markdown(entries).items():
        write_output(Path(folder) / name, text)
    return Path(folder) / "index.md"


def caption_of(picture: Entry, language: str) -> str:
    """The caption of a picture, one or two sentences."""
    words = strings(language)
    text = words[_caption_key(picture)].format(reason=picture["reason"] or "")
    return text + (words["join.sentence"] + words["methods.drawn"] if picture["drawn"] else "")


def label_of(curve: Entry, curves: Sequence[Any], language: str) -> str:
    """The name of a curve: the heads it is valid for, or its draw."""
    words = strings(language)
    if "draw" in curve:
        return words["methods.draw"].format(n=curve["draw"])
    heads = curve["heads"]
    if len(curves) == 1:
        return words["methods.every_head"]
    key = "methods.head" if len(heads) == 1 else "methods.heads"
    return words[key].format(n=words["join.comma"].join(map(str, heads)))


def _caption_key(picture: Entry) -> str:
    flat = picture["kind"] == "score" and not any(value for one in picture["curves"] for value in one["values"])
    return "methods.caption.flat" if flat else f"methods.caption.{picture['kind']}"


def _markdown_page(entry: Entry) -> str:
    words = strings("en")
    lines = [f"# {entry['title']} (`{entry['name']}`)", "", f"{entry['summary']} {_link(entry['paper'])}", ""]
    lines += [entry["summary_zh"], ""] if entry["summary_zh"] else []
    lines += ["```text", entry["derivation"], "```", ""]
    for note in entry["notes"]:
        lines += [note, ""]
    for key, facts in _facts(entry):
        first, *more = facts if len(facts) == 1 or key in ("learned", "runs_on") else ["", *facts]
        lines += [f"- **{words[f'methods.{key}']}**: {first}".rstrip(), *(f"  - {fact}" for fact in more)]
    lines += ["", f"## {words['methods.picture']}", "", caption_of(entry["picture"], "en"), ""]
    if entry["picture"]["curves"]:
        lines += [f"![{_cell(caption_of(entry['picture'], 'en'))}]({entry['name']}.svg)", ""]
    if entry["example"]:
        lines += [f"## {words['methods.example']}", "", "```python", entry["example"], "```", ""]
    return "\n".join(lines)


def _facts(entry: Entry, language: str = "en") -> list[tuple[str, list[str]]]:
    """Facts as pairs of a key of ``methods.`` and lines."""
    words, plan, widths = strings(language), entry["plan"], entry["widths"]
    hyper = []
    for one in entry["hyperparameters"]:
        given = {name: repr(value) if name != "name" else value for name, value in one.items()}
        changed = one["value"] != one["default"]
        text = words["methods.default"].format(**given) if changed else f"{given['name']} = {given['value']}"
        hyper.append(text + (f"{words['join.colon']}{one['meaning']}" if one["meaning"] else ""))
    learned = [f"{one['name']} {tuple(one['shape'])}" for one in entry["parameters"]]
    count = words["methods.numbers"].format(count=_learned_count(entry), **widths)
    refused = [words["methods.refused"].format(**one) for one in plan["refused"]]
    told = f"{plan['route']} · {plan['exactness']} · {plan['memory']}" if plan["route"] else plan["memory"]
    run = words["methods.run"].format(told=told, device=entry["device"], tokens=f"{widths['tokens']:,}")
    exempt = [f"{law}{words['join.colon']}{why}" for law, why in entry["exempt"].items()]
    facts = [
        ("acts_on", [_acts(entry, "act", language)]),
        ("hyperparameters", hyper),
        ("learned", [count, *learned] if learned else []),
        ("shift", [words["methods.relative" if entry["relative"] else "methods.absolute"]]),
        ("laws", exempt),
        ("runs_on", [run, *refused]),
        *([("variants", entry["variants"])] if entry["variants"] else []),
    ]
    return [(key, lines or [words["methods.nothing"]]) for key, lines in facts]


def _acts(entry: Entry, prefix: str, language: str = "en") -> str:
    words = strings(language)
    return words["join.comma"].join(words[f"{prefix}.{act}"] for act in entry["acts"]) or words[f"{prefix}.nothing"]


def _size(entry: Entry) -> int:
    return sum(math.prod(one["shape"]) for one in entry["parameters"])


def _learned_count(entry: Entry) -> str:
    return f"{_size(entry):,}{'/layer' if entry['per_layer'] else ''}" if _size(entry) else "–"


def _brief(entry: Entry) -> str:
    """The parameter count in a few characters: "4.22k·L" for each layer."""
    size = _size(entry)
    text = str(size) if size < 1000 else f"{size / 1e3:.3g}k" if size < 999_500 else f"{size / 1e6:.3g}M"
    return f"{text}{'·L' if entry['per_layer'] else ''}" if size else "–"


def _route(entry: Entry) -> str:
    return entry["plan"]["route"] or "nothing"


def _order(entry: Entry) -> str:
    return str(entry["plan"]["memory"]).partition(":")[0] if entry["plan"]["route"] else ""


def _cell(text: str) -> str:
    """Text escaped for a cell of a Markdown table."""
    return "".join(f"\\{c}" if c in "|*_<[]`" else c for c in text)


def _link(paper: str) -> str:
    return f"([{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')}))" if paper.startswith("arXiv:") else paper
