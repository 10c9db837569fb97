"""``headway train``: the command's arguments and what it displays."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from headway.arguments import (
    LONGEST,
    MOST,
    SEED,
    WIDEST,
    Batch,
    Dim,
    Heads,
    Layers,
    MaxText,
    Optimizer,
    Out,
    Rate,
    Source,
    Threads,
    Vocabulary,
    VocabularySize,
    check_device,
    check_sizes,
    use_threads,
)
from headway.console import console, progress_bars
from headway.shapes import HeadwayError


def command(
    text: Source = None,
    position: Annotated[str, typer.Option(help="The position method, as rotary or rotary(base=500000).")] = "rotary",
    steps: Annotated[int, typer.Option(max=LONGEST, help="Training steps.")] = 1000,
    length: Annotated[int, typer.Option(max=MOST, help="Tokens of a training window.")] = 256,
    batch: Batch = 16,
    dim: Dim = 128,
    layers: Layers = 3,
    heads: Heads = 4,
    kv_heads: Annotated[
        int | None, typer.Option(max=WIDEST, help="Key and value heads; default: as many as heads.")
    ] = None,
    norm: Annotated[str, typer.Option(help="rms or layer.")] = "rms",
    post_norm: Annotated[bool, typer.Option("--post-norm", help="Norm after each part instead of before.")] = False,
    activation: Annotated[str, typer.Option(help="gelu or swiglu.")] = "gelu",
    init: Annotated[str, typer.Option(help="xavier, normal, gpt2, t5 or orthogonal.")] = "xavier",
    dropout: Annotated[float, typer.Option(help="Share of each layer's output set to zero in training.")] = 0.0,
    optimizer: Optimizer = "adamw",
    lr: Rate = None,
    momentum: Annotated[float, typer.Option(help="Of sgd.")] = 0.9,
    weight_decay: Annotated[float | None, typer.Option(help="On matrices; default: 0.1 for adamw, else 0.")] = None,
    warmup: Annotated[
        int | None, typer.Option(max=LONGEST, help="Steps of linear warm-up; default: a tenth, at most 100.")
    ] = None,
    schedule: Annotated[str, typer.Option(help="cosine or constant, after the warm-up.")] = "cosine",
    clip: Annotated[float, typer.Option(help="Largest gradient norm; 0: no limit.")] = 1.0,
    drop_position: Annotated[int, typer.Option(max=LONGEST, help="Last steps to train without position (DroPE).")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=SEED, help="Of the weights, the order of the data and dropout.")] = 0,
    vocabulary: Vocabulary = "bytes",
    vocabulary_size: VocabularySize = 4096,
    max_text: MaxText = None,
    validate_every: Annotated[int, typer.Option(min=1, max=LONGEST, help="Steps between validations.")] = 100,
    checkpoint_every: Annotated[int, typer.Option(min=1, max=LONGEST, help="Steps between checkpoints.")] = 100,
    out: Out = Path("headway-run"),
    watch: Annotated[
        int | None,
        typer.Option(min=1, max=LONGEST, help="Record W_Q, W_K and W_V every so many steps, to see them learn."),
    ] = None,
    log_dir: Annotated[
        Path | None, typer.Option(help="Event files for TensorBoard (needs the extra headway[tensorboard]).")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train, as cpu or cuda.")] = "cpu",
    threads: Threads = None,
) -> None:
    """Train one Transformer on a text; rerun the same command to resume."""
    use_threads(threads)
    from headway.training import Progress, TrainSettings
    from headway.training import train as run
    from headway.training.watching import watch_size

    settings = TrainSettings(
        steps=steps,
        batch=batch,
        length=length,
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        warmup=warmup,
        drop_position=drop_position,
        schedule=schedule,
        clip=clip or None,
        seed=seed,
        validate_every=validate_every,
        checkpoint_every=checkpoint_every,
    )
    config = {
        "dim": dim,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "position": position,
        "norm": norm,
        "post_norm": post_norm,
        "activation": activation,
        "init": init,
        "dropout": dropout,
    }
    check_device(device, here=True)
    check_sizes(config, vocabulary, vocabulary_size, length, batch)
    screen = console()
    if watch is not None:
        screen.print(watch_note(watch_size(config, settings, watch), watch, out), soft_wrap=True)
    with progress_bars(screen) as shown:
        bar = shown.add_task("train", total=steps, note="")
        validated = ""

        def show(progress: Progress) -> None:
            nonlocal validated
            if progress.validation_loss is not None:
                validated = f" · validation {progress.validation_loss:.3f}"
                if not screen.is_terminal:
                    print(f"step {progress.step}: loss {progress.loss:.3f}{validated}", flush=True)
            note = f"loss {progress.loss:.3f}{validated} · {progress.tokens_per_second:,.0f} tokens/s"
            shown.update(bar, completed=progress.step, note=note)

        result = run(
            text,
            out=out,
            model_config=config,
            settings=settings,
            vocabulary=vocabulary,
            vocabulary_size=vocabulary_size,
            on_progress=show,
            device=device,
            watch=watch,
            log_dir=log_dir,
            max_text=max_text,
        )
    for note in result.notes:
        screen.print(note, soft_wrap=True)
    history = result.history
    if history.status == "diverged":
        raise HeadwayError(f"the training diverged: {history.reason}")
    if history.status == "interrupted":
        screen.print(f"Interrupted after step {len(history.steps)} of {steps}; rerun the command to resume.")
        raise typer.Exit(130)
    screen.print(
        f"Validation loss {history.validation_loss[-1]:.3f} nats per token after {steps} steps, "
        f"{history.tokens_per_second:,.0f} tokens/s.\nRun: {out}\nTry it: headway generate {shlex.quote(str(out))}",
        soft_wrap=True,
    )


def watch_note(size: int, every: int, out: Path) -> str:
    """How much a watch will write, said before it does."""
    from headway.inspect.watch import ROOM

    said = f"Watching W_Q, W_K and W_V every {every} steps: {size / 1e6:,.1f} MB in {out / 'watch'}"
    return said if size <= ROOM else f"{said} would be more than {ROOM / 1e6:,.0f} MB, so it will look less often"
