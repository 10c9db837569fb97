"""``headway extend``: the command's arguments and what it displays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headway.arguments import Threads, use_threads
from headway.console import console, wrote


def command(
    model: Annotated[str, typer.Argument(help="A checkpoint folder of transformers; it is not changed.")],
    to: Annotated[int, typer.Option(min=2, help="The new length, in tokens.")] = 32768,
    how: Annotated[str, typer.Option(help="yarn, ntk, dynamic, linear, longrope or drope.")] = "yarn",
    trained: Annotated[int | None, typer.Option(min=2, help="Trained length; default: what config.json says.")] = None,
    windows_too: Annotated[bool, typer.Option("--windows-too", help="Extend layers with a window too.")] = False,
    text: Annotated[str | None, typer.Option(help="A text to tune and measure on; default: only write.")] = None,
    tune_steps: Annotated[int, typer.Option(min=0, help="Steps of tuning at the new length.")] = 0,
    lr: Annotated[float, typer.Option(help="Peak learning rate of the tuning.")] = 2e-5,
    batch: Annotated[int, typer.Option(min=1, help="Windows in a step of tuning.")] = 1,
    windows: Annotated[int, typer.Option(min=1, help="Windows of the new length to measure.")] = 4,
    needles: Annotated[int, typer.Option(min=1, help="Needles to look for, at each length.")] = 8,
    distractors: Annotated[int, typer.Option(min=0, max=15, help="Sentences that look like the needle.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of tuning and needles.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint; rerun to resume a tuning.")] = Path(
        "headway-extended"
    ),
    threads: Threads = None,
) -> None:
    """Extend a checkpoint of transformers to longer texts, tune and measure it, and write it with a report."""
    use_threads(threads)
    from headway.hf.extend import extend
    from headway.hf.long_texts import Measuring

    screen = console()

    def tell(line: str) -> None:
        screen.print(line, highlight=False, markup=False, soft_wrap=True)

    done = extend(
        Path(model),
        to,
        how,
        trained=trained,
        windows_too=windows_too,
        text=text,
        tune_steps=tune_steps,
        lr=lr,
        batch=batch,
        seed=seed,
        measuring=Measuring(windows, needles, distractors),
        out=out,
        tell=tell,
    )
    tell(str(done))
    wrote("Checkpoint", out / "config.json", out / "report.html")
