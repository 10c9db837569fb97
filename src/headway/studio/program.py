"""The studio's page: its program as one script, and its style as one file."""

from __future__ import annotations

from importlib.resources import files

from headway.web.page import MODULES, asset, joined, needed_by

PROGRAM = (
    *("asking", "picker", "place", "popover", "controls", "training", "next", "share", "terms", "tour"),
    "studio",
)
"""The studio's own modules, each of which imports only those before it."""


def program(last: str) -> str:
    """All modules that the last one needs, as one script, which begins with one request where modules would take 40.

    Args:
        last: "main", of a page that a server answers, or "site", of one that reads files.
    """
    sources = {name: asset(f"{name}.js") for name in MODULES}
    return joined(needed_by(last, sources | {name: _own(f"{name}.js") for name in (*PROGRAM, last)}))


def style() -> str:
    """The style of every page, and of the studio."""
    return asset("style.css") + _own("studio.css")


def _own(name: str) -> str:
    return files("headway.studio").joinpath("assets", name).read_text(encoding="utf-8")
