"""``headway studio``: the command's arguments and what it displays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from headway.arguments import Threads, use_threads
from headway.console import wrote


def command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders written by headway train or headway compare, checkpoints of transformers, or a parent "
            "folder; default: headway-run and headway-compare, if they exist. Models that ship with headway are "
            "always there."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1024, max=65535, help="Local port; default: 8765, or a free one.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser.")] = True,
    export: Annotated[
        Path | None,
        typer.Option(help="Write a studio without a server to this folder instead, at most 8 MB."),
    ] = None,
    views: Annotated[str | None, typer.Option(help="Views to export, e.g. head,split; default: all.")] = None,
    threads: Threads = None,
) -> None:
    """Open the studio, a local web app: inspect models, compare methods, train a model and watch it learn."""
    use_threads(threads)
    from headway.shipped import FOLDER
    from headway.studio import DEFAULTS, serve

    folders = runs if runs else [FOLDER, *(folder for folder in DEFAULTS if folder.is_dir())]
    if export is not None:
        from headway.studio import write_site

        size = write_site(folders, export, None if views is None else views.split(","))
        wrote("Studio", export / "index.html")
        print(f"{size / 1e6:.1f} MB. Serve the folder with any web server, or open index.html.")
        return
    serve(folders, port, browser)
    # nothing is left to save; a normal exit would take a second to unload torch, or wait for a view nobody needs
    os._exit(0)
