"""``headway compare``: the command's arguments and what it displays."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import typer

from headway.arguments import Out, Source, Threads, check_sizes, chosen, offers, use_threads
from headway.compare.settings import Comparison
from headway.console import console, progress_bars, reading_bar


@offers(Comparison)
def command(text: Source = None, out: Out = Path("headway-compare"), threads: Threads = None, **given: Any) -> None:
    """Train one small model per position method on a text, test it beyond the training length, and write a report."""
    use_threads(threads)
    from headway.compare.page import write_report
    from headway.compare.run import Event
    from headway.compare.run import compare as run
    from headway.compare.terminal import table
    from headway.results import findings

    comparison = Comparison(text=text, **chosen(Comparison, given))
    for one in comparison.positions:
        model = {"dim": comparison.dim, "layers": comparison.layers, "heads": comparison.heads, "position": one}
        words = comparison.vocabulary, comparison.vocabulary_size
        check_sizes(model, *words, comparison.train_length, comparison.batch)
    screen = console()
    with progress_bars(screen) as shown:
        whole, part = shown.add_task("compare", total=None, note=""), shown.add_task("", total=1, note="")

        def show(event: Event) -> None:
            name = f"{event.method}, seed {event.seed}"
            done = 1.0 if event.what != "train" else 0.0
            if event.progress is not None:
                done = event.progress.step / event.progress.steps
                note = f"loss {event.progress.loss:.3f} · {event.progress.tokens_per_second:,.0f} tokens/s"
            else:
                note = f"testing at {event.length} tokens" if event.what == "test" else ""
            shown.update(part, description=name, total=1, completed=done, note=note)
            counted = event.cell + (1 if event.what == "done" else 0.95 * done)
            shown.update(whole, total=event.cells, completed=counted, note=f"model {event.cell + 1} of {event.cells}")
            if event.what == "done" and not screen.is_terminal:
                print(f"{event.cell + 1} of {event.cells}: {name} done", flush=True)

        command = "headway " + shlex.join(sys.argv[1:])
        results = run(comparison, out, command=command, on_event=show, on_reading=reading_bar(shown, screen))
    report = write_report(results, out / "report.html")
    for note in results["notes"]:
        screen.print(note, soft_wrap=True)
    screen.print(table(results))
    for finding in findings(results):
        screen.print(f"• {finding.en}")
    if not results["complete"]:
        screen.print(f"\nInterrupted; finished work is saved. Resume with: {command}", soft_wrap=True)
    screen.print(f"\nReport: {report}", soft_wrap=True)
    if not results["complete"]:
        raise typer.Exit(130)
