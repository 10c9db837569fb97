"""``headway bench``: the command's arguments and what it displays."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from headway.arguments import MOST, WIDEST, Threads, use_threads
from headway.console import console, progress_bars


def command(
    methods: Annotated[
        str | None,
        typer.Option(help="Position methods, as 'none,t5,rotary(base=500000)', and terms by themselves: rows, table."),
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="Tokens, as 512,2048.")] = None,
    modes: Annotated[
        str | None,
        typer.Option(help="forward+backward, forward, decode (the last of that many tokens, the others cached)."),
    ] = None,
    masks: Annotated[str | None, typer.Option(help="causal, full.")] = None,
    backends: Annotated[
        str | None, typer.Option(help="auto: the one attention would choose; all: each that accepts; or names.")
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Measure torch's own ways and other libraries beside ours.")] = True,
    batch: Annotated[int | None, typer.Option(max=MOST, help="Sequences.")] = None,
    heads: Annotated[int | None, typer.Option(max=WIDEST, help="Query heads.")] = None,
    kv_heads: Annotated[
        int | None, typer.Option(max=WIDEST, help="Key heads; default: as many as query heads.")
    ] = None,
    head_dim: Annotated[int | None, typer.Option(max=WIDEST, help="Width of a head.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    rounds: Annotated[
        int | None,
        typer.Option(max=MOST, help="Rounds of each measurement; default: 9 up to 1024 tokens, 5 up to 4096, else 3."),
    ] = None,
    bars: Annotated[
        bool, typer.Option("--bars", help="Measure this project's own speed bars instead; exit status 1 if one fails.")
    ] = False,
    training: Annotated[
        bool,
        typer.Option("--training", help="Measure whole training steps of small decoders instead, ours and others."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for report.html, results.json and samples.csv.")] = Path(
        "headway-bench"
    ),
    threads: Threads = None,
) -> None:
    """Measure what position costs: time, memory and error beside plain attention, ours and what others offer."""
    use_threads(threads)
    given = {"batch": batch, "heads": heads, "head_dim": head_dim, "rounds": rounds}
    if training:
        from headway.bench.training import Steps, steps_text, time_steps

        print(steps_text(time_steps(Steps.of({**given, "lengths": lengths}))))
        return
    from headway.bench.page import bench_text, row_text, write_bench
    from headway.bench.run import bench, outcome
    from headway.bench.settings import Bench
    from headway.bench.tax import Row

    lists = {"methods": methods, "lengths": lengths, "modes": modes, "masks": masks, "backends": backends}
    places = {"kv_heads": kv_heads, "dtype": dtype, "device": device, "baselines": baselines, "bars": bars}
    settings = Bench.of({**lists, **places, **given})
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
