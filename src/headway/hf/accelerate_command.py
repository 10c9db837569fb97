"""``headway accelerate``: the command's arguments and what it displays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from headway.arguments import Threads, use_threads
from headway.console import console, wrote


def command(
    model: Annotated[str, typer.Argument(help="A checkpoint folder of transformers, or a family such as t5 or llama.")],
    bench: Annotated[bool, typer.Option("--bench", help="Time it before and after, and write a page.")] = False,
    lengths: Annotated[str, typer.Option(help="Tokens of the texts that are timed.")] = "256,512,1024,2048,4096",
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each; medians are reported.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for report.html and results.json.")] = Path("headway-accelerate"),
    threads: Threads = None,
) -> None:
    """Say which attentions of a transformers model headway can compute; with --bench, how much faster it is then."""
    use_threads(threads)
    from headway.hf.accelerate import accelerate
    from headway.hf.loading import as_lengths, open_model

    screen = console()
    found = open_model(model)
    done = accelerate(found, quiet=True)
    screen.print(str(done), highlight=False, markup=False, soft_wrap=True)
    if not bench:
        return
    done.undo()
    from headway.hf.bench import page, results, time_model
    from headway.output import write_output

    timings = []
    for timing in time_model(found, as_lengths(lengths), rounds=rounds):
        timings.append(timing)
        screen.print(str(timing), highlight=False, markup=False, soft_wrap=True)
    saved = results(model, timings, found)
    write_output(out / "results.json", json.dumps(saved, indent=2))
    wrote("Report", write_output(out / "report.html", page(saved)))
