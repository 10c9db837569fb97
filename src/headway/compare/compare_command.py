"""``headway compare``: the command's arguments and what it displays."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headway.arguments import Out, Source, check_sizes, chosen, offers, use_threads
from headway.compare.settings import Comparison
from headway.console import console, progress_bars, reading_bar
from headway.memory import keep_freed_memory
from headway.shapes import HeadwayError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from headway.compare.run import Event
    from headway.compare.workers import Outcome, Seen


@offers(Comparison)
def command(
    text: Source = None,
    out: Out = Path("headway-compare"),
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=256,
            help="Number of processes that divide the models among themselves; the same command on another "
            "machine with the same folder joins in. Default: this process alone; under torchrun one per rank.",
        ),
    ] = None,
    lease: Annotated[
        float,
        typer.Option(
            min=1, max=86400, help="Seconds of silence after which a worker, e.g. on a machine cut off, is lost."
        ),
    ] = 30.0,
    **given: Any,
) -> None:
    """Train one small model per position method on a text, test it beyond the training length, and write a report."""
    comparison = Comparison(text=text, **chosen(Comparison, given))
    use_threads(comparison.threads)
    keep_freed_memory()
    from headway.compare.workers import rank

    for one in comparison.positions if comparison.model is None else ():
        model = {"dim": comparison.dim, "layers": comparison.layers, "heads": comparison.heads, "position": one}
        words = comparison.vocabulary, comparison.vocabulary_size
        check_sizes(model, *words, comparison.train_length, comparison.batch)
    line = "headway " + shlex.join(sys.argv[1:])
    if workers is None and rank() is None:
        _conclude(_alone(comparison, out, line), out, line)
    else:
        outcome = _with_workers(comparison, out, workers or 1, lease, line)
        if not rank():
            _conclude(outcome.results, out, line, outcome.failures)
        elif outcome.written:  # under torchrun the first rank speaks for all, if it is not cut off
            print(f"Report: {out / 'report.html'}")


def _alone(comparison: Comparison, out: Path, line: str) -> dict[str, Any]:
    """Compute everything in this process."""
    from headway.compare.page import write_report
    from headway.compare.run import compare

    screen = console()
    with progress_bars(screen) as shown:
        whole, part = shown.add_task("compare", total=None, note=""), shown.add_task("", total=1, note="")

        def show(event: Event) -> None:
            done = _show(shown, part, event)
            counted = event.cell + (1 if event.what == "done" else 0.95 * done)
            shown.update(whole, total=event.cells, completed=counted, note=f"model {event.cell + 1} of {event.cells}")
            if event.what == "done" and not screen.is_terminal:
                _say_done(event.cell + 1, event.cells, event.method, event.seed)

        results = compare(comparison, out, command=line, on_event=show, on_reading=reading_bar(shown, screen))
    write_report(results, out / "report.html")
    return results


def _with_workers(comparison: Comparison, out: Path, workers: int, lease: float, line: str) -> Outcome:
    """Let workers compute, and show what each does, those of other machines too."""
    from headway.compare.workers import compare_with_workers, rank

    screen = console()
    said = 0
    with _quiet(screen) if rank() else progress_bars(screen) as shown:
        whole = shown.add_task("compare", total=None, note="")
        rows: list[Any] = []

        def show(seen: Seen) -> None:
            nonlocal said
            rows.extend(shown.add_task("", total=1, note="") for _ in seen.working[len(rows) :])
            part = sum(_show(shown, row, event) for row, event in zip(rows, seen.working, strict=False))
            for number, row in enumerate(rows):
                shown.update(row, visible=number < len(seen.working))
            note = f"{len(seen.finished)} of {seen.cells} models, {len(seen.working)} in progress"
            shown.update(whole, total=seen.cells, completed=len(seen.finished) + 0.95 * part, note=note)
            if not screen.is_terminal and not rank():
                for number, (method, seed) in enumerate(seen.finished[said:], said + 1):
                    _say_done(number, seen.cells, method, seed)
            said = len(seen.finished)

        return compare_with_workers(
            comparison,
            out,
            workers,
            lease=lease,
            command=line,
            on_progress=show,
            on_reading=None if rank() else reading_bar(shown, screen),
        )


def _quiet(screen: Console) -> Progress:
    """Progress that is not shown: another rank shows that of all."""
    shown = progress_bars(screen)
    shown.disable = True
    return shown


def _show(shown: Progress, row: Any, event: Event) -> float:
    """Show what a worker does; returns which part of its cell is done."""
    done = 1.0 if event.what != "train" else 0.0
    note = f"testing at {event.length} tokens" if event.what == "test" else ""
    if event.progress is not None:
        done = event.progress.step / event.progress.steps
        note = f"loss {event.progress.loss:.3f} · {event.progress.tokens_per_second:,.0f} tokens/s"
    shown.update(row, description=f"{event.method}, seed {event.seed}", total=1, completed=done, note=note)
    return done


def _say_done(number: int, cells: int, method: str, seed: int) -> None:
    print(f"{number} of {cells}: {method}, seed {seed} done", flush=True)


def _conclude(results: dict[str, Any], out: Path, line: str, failures: list[str] | None = None) -> None:
    """Print the table and what it says, and end with the right status.

    Raises:
        HeadwayError: when cells could not be finished.
    """
    from headway.compare.terminal import table
    from headway.results import findings

    screen = console()
    for note in results["notes"]:
        screen.print(note, soft_wrap=True)
    screen.print(table(results))
    for finding in findings(results):
        screen.print(f"• {finding.en}")
    if not results["complete"] and not failures:
        screen.print(f"\nInterrupted; finished work is saved. Resume with: {line}", soft_wrap=True)
    screen.print(f"\nReport: {out / 'report.html'}", soft_wrap=True)
    if failures:
        raise HeadwayError(
            f"{'; '.join(failures)} ({len(failures)} of {len(results['cells']) + len(failures)} models could not be "
            f"finished; the others are done; rerun the command to try again)"
        )
    if not results["complete"]:
        raise typer.Exit(130)
