"""``headway compare``: the command's arguments and what it displays."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from headway.arguments import (
    DEEPEST,
    LONGEST,
    MOST,
    WIDEST,
    Heads,
    MaxText,
    Optimizer,
    Out,
    Rate,
    Source,
    Threads,
    Vocabulary,
    VocabularySize,
    check_sizes,
    numbers,
    split,
    use_threads,
)
from headway.console import console, progress_bars


def command(
    text: Source = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="Methods, as 'rotary,alibi' or 'rotary(base=500000),t5'; all: every method that headway methods "
            "lists, which takes long; default: none, sinusoidal, learned, rotary, alibi, t5, shaw."
        ),
    ] = None,
    task: Annotated[
        str, typer.Option(help="text: predict the text. recall, copy: retrieve something at a known distance.")
    ] = "text",
    train_length: Annotated[int, typer.Option(max=MOST, help="Tokens of a training window.")] = 64,
    test_lengths: Annotated[
        str, typer.Option(help="Lengths to test at; default: 1, 2, 4, 8 and 16 times the training length.")
    ] = "",
    seeds: Annotated[str, typer.Option(help="One model per method and seed.")] = "0,1",
    steps: Annotated[
        int | None, typer.Option(max=LONGEST, help="Training steps of each model; default: as the task needs.")
    ] = None,
    batch: Annotated[int | None, typer.Option(max=MOST, help="Windows per step; default: as the task needs.")] = None,
    dim: Annotated[
        int | None, typer.Option(max=WIDEST, help="Width of the models; default: as the task needs.")
    ] = None,
    layers: Annotated[int | None, typer.Option(max=DEEPEST, help="Layers; default: as the task needs.")] = None,
    heads: Heads = 4,
    optimizer: Optimizer = "adamw",
    lr: Rate = None,
    vocabulary: Vocabulary = "bytes",
    vocabulary_size: VocabularySize = 1024,
    extend: Annotated[
        str, typer.Option(help="Test trained models extended too: linear, ntk, dynamic, yarn, drope, several or all.")
    ] = "",
    recalibrate: Annotated[
        int | None,
        typer.Option(min=1, max=LONGEST, help="Steps without position for drope; default: a fiftieth of the training."),
    ] = None,
    max_text: MaxText = None,
    out: Out = Path("headway-compare"),
    threads: Threads = None,
) -> None:
    """Train one small model per position method on a text, test it far beyond the training length, write a report."""
    use_threads(threads)
    from headway.compare.extending import WAYS
    from headway.compare.page import write_report
    from headway.compare.run import Event
    from headway.compare.run import compare as run
    from headway.compare.settings import CORE, DEFAULTS, Comparison
    from headway.compare.terminal import table
    from headway.results import findings

    given = {"steps": steps, "batch": batch, "dim": dim, "layers": layers}
    sizes = DEFAULTS.get(task, {}) | {name: value for name, value in given.items() if value is not None}
    comparison = Comparison(
        text=text,
        positions=CORE if positions is None else tuple(split(positions)),
        task=task,
        train_length=train_length,
        test_lengths=tuple(numbers("--test-lengths", test_lengths)),
        seeds=tuple(numbers("--seeds", seeds)),
        heads=heads,
        optimizer=optimizer,
        lr=lr,
        vocabulary=vocabulary,
        vocabulary_size=vocabulary_size,
        extend=WAYS if extend.strip() == "all" else tuple(split(extend)),
        recalibrate=recalibrate,
        max_text=max_text,
        **sizes,
    )
    for one in comparison.positions:
        model = {"dim": comparison.dim, "layers": comparison.layers, "heads": heads, "position": one}
        check_sizes(model, vocabulary, vocabulary_size, train_length, comparison.batch)
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
        results = run(comparison, out, command=command, on_event=show)
    report = write_report(results, out / "report.html")
    for note in results["notes"]:
        screen.print(note, soft_wrap=True)
    screen.print(table(results))
    for finding in findings(results):
        screen.print(f"• {finding.en}")
    if not results["complete"]:
        screen.print(f"\nInterrupted; what is done is kept. Resume with: {command}", soft_wrap=True)
    screen.print(f"\nReport: {report}", soft_wrap=True)
    if not results["complete"]:
        raise typer.Exit(130)
