"""``headway methods``: the command's arguments and what it displays."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from headway.arguments import check_device, check_sizes
from headway.console import console, wrote
from headway.shapes import HeadwayError, brief


def command(
    name: Annotated[str | None, typer.Argument(help="One method, e.g. rotary or rotary(base=500000).")] = None,
    device: Annotated[str, typer.Option(help="Device they would run on, e.g. cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print all details as JSON instead.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the method's page to this HTML file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write Markdown pages on all methods to this folder.")] = None,
) -> None:
    """List all position methods and their backends on this machine, or show one: formula, hyperparameters, effect."""
    if name is None and html is not None:
        raise HeadwayError("expected a method with --html, got none: headway methods rotary --html rotary.html")
    if name is not None and out is not None:
        raise HeadwayError(f"expected no method with --out, which writes pages on all, got {brief(name)}: use --html")
    from headway.catalogue.entries import SHAPE, catalogue, entry
    from headway.catalogue.page import method_text, methods_note, methods_table, write_markdown, write_method
    from headway.positions import parse

    check_device(device, here=False)
    if name is not None:
        check_sizes({"dim": SHAPE.dim, "heads": SHAPE.heads, "layers": 1, "position": name})
    found = [entry(parse(name), device)] if name is not None else catalogue(device, pictures=out is not None)
    screen = console()
    if as_json:
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        print(json.dumps(found if name is None else found[0], ensure_ascii=not unicode, indent=2))
    elif out is not None:
        from headway.training.ours import mark

        index = write_markdown(found, out)
        mark(out, "methods")
        wrote("Pages", index)
    elif html is not None:
        wrote("Page", write_method(found[0], html))
    elif name is not None:
        screen.print(method_text(found[0], screen.width))
    else:
        screen.print(methods_table(found, screen.width))
        screen.print(methods_note(found))
