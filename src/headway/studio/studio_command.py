"""``headway studio``: the command's arguments and what it displays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from headway.arguments import Threads, use_threads


def command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of headway train or headway compare, or one that holds some; default: headway-run and "
            "headway-compare, if they are here."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1024, max=65535, help="Where to listen on this machine; default: 8765, or any.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser.")] = True,
    threads: Threads = None,
) -> None:
    """Open the studio, a local web app: look into models, compare methods, train one and watch it learn."""
    use_threads(threads)
    from headway.studio import DEFAULTS, serve

    serve(runs if runs else [folder for folder in DEFAULTS if folder.is_dir()], port, browser)
    # nothing is left to save; taking torch apart would take a second, or as long as a view that nobody waits for
    os._exit(0)
