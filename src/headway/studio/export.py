"""The studio as a folder of files: the same page, over views that were composed beforehand instead of a server.

DIR/index.html      the page, what there is to choose from, and its words
DIR/site.js         its program
DIR/style.css       its style
DIR/views/*.js      views of one kind, model and text, loaded when they are shown
DIR/reports/*.html  reports of comparisons
DIR/site.json       the names of all these, by which the folder is known at the next export

Links are relative and nothing is fetched, so that any web server can serve the folder, and a browser can open it from
disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headway._version import __version__
from headway.figures.words import LANGUAGES, strings
from headway.output import write_output
from headway.shapes import HeadwayError, brief
from headway.studio import fields
from headway.studio.library import Library
from headway.studio.program import program, style
from headway.studio.routes import FIRST, Routes, offers, opening_of
from headway.web.page import compact, skeleton
from headway.web.views_page import empty_page

BYTES = 7_500_000
"""What an exported studio takes at most; what is least important is left out."""
METHODS = ("rotary", "alibi", "sinusoidal")
"""Of fresh models."""
BESIDE = ("alibi", "none")
"""Methods that the view of several models compares with its own."""
RUNS = 3
"""Trained models, at most."""
LOOK: Mapping[str, Sequence[str]] = {
    "softmax": ("layer", "head", "query"),
    "stepper": ("head",),
    **dict.fromkeys(("head", "projection", "split", "rotation", "sidebyside"), ("layer", "head")),
    **dict.fromkeys(("scaling", "distance", "long", "whatif"), ("layer", "head")),
    "bias": ("layer",),
    "prediction": ("query",),
}
"""What can be chosen in a view; in others nothing can."""
LARGE = ("stepper", "softmax", "projection", "rotation")
"""Views with so many numbers that only the first model and text have all that can be chosen."""
OF_TRAINING = ("film", "board")
STEPS = 40
"""Of the training that the views of learning show where no run was watched."""
MARK = "site.json"


@dataclass
class Site:
    """What has been written so far, and how much room is left."""

    folder: Path
    room: int = BYTES
    names: list[str] = field(default_factory=list)

    def write(self, name: str, content: str) -> bool:
        """Write a file, unless it is larger than the room left."""
        size = len(content.encode())
        if size > self.room:
            return False
        write_output(self.folder / name, content)
        self.room -= size
        self.names.append(name)
        return True


def export(folders: Sequence[Path | str], target: Path | str, views: Sequence[str] | None = None) -> int:
    """Write a studio that needs no server.

    Args:
        folders: runs and comparisons to show, as :class:`headway.studio.library.Library` takes them.
        target: a folder that is new, empty, or an earlier export, whose files are replaced.
        views: names of views; default all.

    Returns:
        Bytes written, at most :data:`BYTES`.

    Raises:
        HeadwayError: on a folder with other content, or an unknown view.
    """
    wanted = _wanted(views)
    library = Library(folders)
    site = Site(Path(target))
    _emptied(site.folder)
    known = library.plain()
    opening = opening_of(known["runs"])
    if opening is not None and opening["asked"]["view"] not in wanted:
        opening["asked"]["view"] = wanted[0]
    models = _models(known["runs"], FIRST if opening is None else opening["asked"])
    texts = list(dict.fromkeys(opening["texts"].values() if opening else (FIRST["text"],)))
    if len(texts) == 1:
        texts.append(strings("zh")["studio.sample.chinese.text"])
    head = {
        **offers(),
        **known,
        "opening": opening,
        "live": {"session": 0, "state": "none", "events": []},
        "pictures": False,
    }
    reports = {one["id"]: f"reports/{one['id']}.html" for one in known["comparisons"]}
    head["comparisons"] = [{**one, "href": reports[one["id"]]} for one in known["comparisons"]]
    frame = _page(head, {})  # the page itself comes first, and has to fit
    site.room -= len(frame.encode()) + 20_000
    site.write("site.js", program("site") + _BEGIN)
    site.write("style.css", style())
    for identity, name in reports.items():
        if "report" in wanted:
            site.write(name, library.report(identity))
    parts: list[str] = []
    routes = Routes(library)
    library.quick = False  # nobody waits
    for name, content in _parts(routes, wanted, models, texts, known):
        if site.write(f"views/{name}.js", content):
            parts.append(name)
    routes.stage.stop()
    routes.close(0)
    look = {view: list(LOOK.get(view, ())) for view in wanted}
    shown = {"models": [key for key, _ in models], "texts": texts, "parts": parts, "look": look, "views": list(wanted)}
    write_output(site.folder / "index.html", _page(head, shown))
    site.names.append("index.html")
    write_output(site.folder / MARK, json.dumps({"headway": __version__, "files": sorted(site.names)}, indent=1) + "\n")
    return sum((site.folder / name).stat().st_size for name in (*site.names, MARK))


def _wanted(views: Sequence[str] | None) -> tuple[str, ...]:
    known = (*(one["key"] for one in offers()["views"]), "report")
    for name in views or ():
        if name not in known:
            raise HeadwayError(f"expected views of {', '.join(known)}, got {brief(name)}")
    return known if views is None else tuple(dict.fromkeys(views))


def _emptied(folder: Path) -> None:
    """Take out the files of an earlier export; refuse a folder that holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        listed = json.loads((folder / MARK).read_text(encoding="utf-8"))["files"]
        own = [name for name in listed if re.fullmatch(r"(views/|reports/)?[\w.-]+", name) and ".." not in name]
        there = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
        foreign = there - {*own, MARK}
    except (OSError, ValueError, KeyError, TypeError):
        foreign = {MARK}
    if foreign:
        raise HeadwayError(
            f"expected a folder that is new, empty or an earlier export, got {folder} with other files: choose another"
        )
    for name in own:
        (folder / name).unlink(missing_ok=True)


def _models(runs: Sequence[Mapping[str, Any]], opening: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What models are shown: the first that the studio opens with, trained ones, fresh ones; by the page's names."""
    first, sizes = opening["model"], FIRST["model"]["fresh"]
    found = {f"run:{one['id']}": {"run": one["id"]} for one in runs[:RUNS]}
    for method in METHODS:
        found[f"fresh:{method}"] = {"fresh": {**sizes, "position": method}}
    key = f"run:{first['run']}" if "run" in first else f"fresh:{first['fresh']['position']}"
    return [(key, found.pop(key, first)), *found.items()]


def _parts(
    routes: Routes,
    wanted: Sequence[str],
    models: Sequence[tuple[str, dict[str, Any]]],
    texts: Sequence[str],
    known: Mapping[str, Any],
) -> Iterator[tuple[str, str]]:
    """Name and content of each file of views, the most important first."""
    pairs = sorted(
        ((m, t) for m in range(len(models)) for t in range(len(texts))), key=lambda pair: (pair[0] + 2 * pair[1], pair)
    )
    for view in wanted:
        if view == "longer" and known["comparisons"]:
            yield from _part(
                routes, view, "longer-0-0", {"results": known["comparisons"][0]["id"]}, texts[0], whole=True
            )
        if view in OF_TRAINING:
            watched = next((one for one in known["runs"] if one.get("watched")), None)
            model = {"run": watched["id"]} if watched else _trained(routes, texts[0])
            yield from _part(routes, view, f"{view}-0-0", {"model": model}, texts[0], whole=True)
    for m, t in pairs:
        for view in wanted:
            if view in (*OF_TRAINING, "longer", "report"):
                continue
            asked: dict[str, Any] = {"model": models[m][1]}
            if view == "sidebyside":
                sizes = FIRST["model"]["fresh"]
                asked["others"] = [{"fresh": {**sizes, "position": one}} for one in BESIDE]
            whole = view not in LARGE or (m, t) == pairs[0]
            yield from _part(routes, view, f"{view}-{m}-{t}", asked, texts[t], whole=whole)


def _part(
    routes: Routes, view: str, name: str, asked: Mapping[str, Any], text: str, *, whole: bool
) -> Iterator[tuple[str, str]]:
    """One view for all that can be chosen in it, or for the first only; nothing where it does not apply."""

    def compose(**where: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            routes.composed(fields.asked({"view": view, "text": text, **asked, **where}), routes.library)
        )
        return found

    try:
        first = compose()
    except HeadwayError:
        return
    meta = first["meta"]
    ranges: dict[str, Callable[[], range]] = {
        "layer": lambda: range(meta["layers"]),
        "head": lambda: range(meta["heads"]),
        "query": lambda: range(len(meta["tokens"])),
    }
    choices: list[dict[str, int]] = [{}]
    for one in LOOK.get(view, ()) if whole else ():
        choices = [{**choice, one: value} for choice in choices for value in ranges[one]()]
    made = (
        {"-".join(map(str, choice.values())): compose(**choice) for choice in choices}
        if choices != [{}]
        else {"": first}
    )
    for shown in made.values():
        for figure in shown["view"]["figures"]:
            if figure["kind"] == "tiles":
                figure["source"] = ""  # no server makes more of them
    yield name, f"headwayPart({json.dumps(name)},{compact({'meta': meta, 'views': made})});\n"


def _trained(routes: Routes, text: str) -> dict[str, Any]:
    """A model that is trained for this, with all that is recorded of it."""
    if routes.stage.number == 0:
        model = {"dim": 32, "heads": 2, "layers": 1, "steps": STEPS}
        routes.stage.start(fields.training({"text": text, **model}))
        live = routes.stage.live
        live.step(STEPS)
        while live.state in ("playing", "paused") and live.finished < STEPS:
            live.wait(live.finished, 0.2)
    return {"live": True}


def _page(head: Mapping[str, Any], site: Mapping[str, Any]) -> str:
    data = {"offers": {**head, "site": site}, "strings": {language: dict(strings(language)) for language in LANGUAGES}}
    data["page"] = empty_page()
    return skeleton("headway studio", _POLICY, _STYLE, _SCRIPT, data, root="studio", noscript=_NOSCRIPT)


_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
_STYLE = '<link rel="icon" href="data:,">\n<link rel="stylesheet" href="style.css">'
_NOSCRIPT = "This page needs JavaScript. 本页面需要 JavaScript。"
_SCRIPT = '<script src="site.js"></script>'
_BEGIN = '\nmodule_site.render(document.getElementById("studio"));\n'
