"""``headway bench``: the command's arguments and what it displays."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from headway.arguments import Threads, chosen, offers, use_threads
from headway.bench.settings import Bench
from headway.console import console, progress_bars
from headway.memory import keep_freed_memory


@offers(Bench)
def command(
    training: Annotated[
        bool,
        typer.Option("--training", help="Measure training steps of small decoders with each method instead."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for report.html, results.json and samples.csv.")] = Path(
        "headway-bench"
    ),
    threads: Threads = None,
    **given: Any,
) -> None:
    """Measure what position costs in time, memory and error compared with plain attention and other libraries."""
    use_threads(threads)
    options = chosen(Bench, given)
    if training:
        from headway.bench.training import Steps, steps_text, time_steps

        keep_freed_memory()  # as headway train does
        found = time_steps(Steps.like(options))
        print(steps_text(found))
        if options.get("bars") and not all(one.passed for one in found):
            raise typer.Exit(1)
        return
    from headway.bench.page import bench_text, row_text, write_bench
    from headway.bench.run import bench, outcome
    from headway.bench.tax import Row

    settings = Bench(**options)
    screen = console()
    with progress_bars(screen) as progress:
        bar = progress.add_task("bench", total=None, note="")

        def show(row: Row, done: int, count: int) -> None:
            progress.update(bar, total=count, completed=done, note=row_text(vars(row)))
            if not screen.is_terminal:
                print(f"{done} of {count}: {row_text(vars(row))}", flush=True)

        command = "headway " + shlex.join(sys.argv[1:])
        results = bench(settings, out, command=command, on_row=show)
    report = write_bench(results, out / "report.html")
    screen.print(bench_text(results), soft_wrap=True)
    screen.print(f"\nReport: {report}", soft_wrap=True)
    if status := outcome(results):
        raise typer.Exit(status)
