"""``headway train``: the command's arguments and what it displays."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from headway.arguments import (
    MaxText,
    Out,
    Threads,
    Vocabulary,
    VocabularySize,
    check_device,
    check_sizes,
    chosen,
    fractions,
    offers,
    use_threads,
)
from headway.config import TransformerConfig
from headway.console import console, progress_bars, reading_bar
from headway.memory import keep_freed_memory
from headway.parallel.process import as_command, is_first
from headway.shapes import HeadwayError
from headway.training.execution import Execution
from headway.training.settings import TrainSettings


@offers(TransformerConfig, TrainSettings, Execution, but=("vocab", "betas", "pattern"))
def command(
    text: Annotated[
        list[str] | None,
        typer.Argument(
            help="Text files or folders of any size, also .jsonl and .parquet; default: the documentation that ships "
            "with Python. For --kind encoder-decoder, pairs: a .tsv of source and target, or a .jsonl."
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Continue this checkpoint folder of transformers, with its own tokenizer, at a learning rate of 5e-5, "
            "with --lora 2e-4, unless --lr is given.",
        ),
    ] = None,
    lora: Annotated[
        int | None, typer.Option(min=1, help="With --from: train adapters of this rank only (needs peft).")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Share of each of several texts, e.g. 0.7,0.3; default: in proportion to their tokens.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        str, typer.Option(help="Column of the documents in .jsonl, .parquet or a saved data set.")
    ] = "text",
    vocabulary: Vocabulary = None,
    vocabulary_size: VocabularySize = None,
    max_text: MaxText = None,
    out: Out = Path("headway-run"),
    watch: Annotated[int | None, typer.Option(min=1, help="Record W_Q, W_K and W_V every N steps.")] = None,
    log_dir: Annotated[
        Path | None, typer.Option(help="Folder for TensorBoard event files (needs the extra headway[tensorboard]).")
    ] = None,
    device: Annotated[str, typer.Option(help="Device to train on, e.g. cpu or cuda.")] = "cpu",
    threads: Threads = None,
    parallel: Annotated[
        str | None,
        typer.Option(
            help="Under torchrun: ddp, each process holds the whole model, or fsdp, each holds a share of it.  "
            "[default: ddp]"
        ),
    ] = None,
    parallel_block: Annotated[
        bool, typer.Option("--parallel-block", help="Attention and MLP in parallel, with one norm (GPT-J, Cohere).")
    ] = False,
    **given: Any,
) -> None:
    """Train one Transformer on a text, or on pairs; rerun the same command to resume.

    `--kind encoder` is trained to predict masked tokens of the text.

    `--from PATH` trains a checkpoint of transformers instead of a new model.

    `torchrun --nproc-per-node 2 -m headway train …` trains it in two processes.
    """
    settings = TrainSettings(**chosen(TrainSettings, given))
    config = {**chosen(TransformerConfig, given), **({"parallel": True} if parallel_block else {})}
    execution = Execution(parallel=parallel, **chosen(Execution, given))
    with as_command():
        use_threads(threads)
        keep_freed_memory()
        check_device(device, here=True)
        if base is None and lora is not None:
            raise HeadwayError(
                "expected --from with --lora, because adapters extend an existing checkpoint, got none: add it"
            )
        words = vocabulary or "bytes", 4096 if vocabulary_size is None else vocabulary_size
        if base is None:
            check_sizes(config, *words, settings.length, settings.batch)
        else:
            if vocabulary is not None or vocabulary_size is not None:
                raise HeadwayError(
                    "expected no vocabulary with --from, whose checkpoint has its own, got one: leave it out"
                )
            config |= {"from": str(base), "lora": lora}
        _train(
            text,
            settings,
            config,
            vocabulary=words[0],
            vocabulary_size=words[1],
            max_text=max_text,
            weights=None if weights is None else fractions("--weights", weights),
            column=column,
            out=out,
            watch=watch,
            log_dir=log_dir,
            device=device,
            execution=execution,
        )


def _train(text: list[str] | None, settings: TrainSettings, config: dict[str, Any], **options: Any) -> None:
    """Train, and show how it goes; the first of several processes shows it."""
    from headway.training.loop import Progress
    from headway.training.models import CHECKPOINT
    from headway.training.run import train as run
    from headway.training.watching import watch_size

    screen, out, watch = console(), options["out"], options["watch"]
    screen.quiet = not is_first()
    if watch is not None and "from" not in config:
        screen.print(watch_note(watch_size(config, settings, watch), watch, out), soft_wrap=True)
    with progress_bars(screen) as shown:
        bar = shown.add_task("train", total=settings.steps, note="")
        validated = ""

        def show(progress: Progress) -> None:
            nonlocal validated
            if progress.validation_loss is not None:
                validated = f" · validation {progress.validation_loss:.3f}"
                if not screen.is_terminal:
                    print(f"step {progress.step}: loss {progress.loss:.3f}{validated}", flush=True)
            note = f"loss {progress.loss:.3f}{validated} · {progress.tokens_per_second:,.0f} tokens/s"
            shown.update(bar, completed=progress.step, note=note)

        options |= {"on_progress": show, "on_reading": reading_bar(shown, screen)}
        result = run(text or None, model_config=config, settings=settings, **options)
    for note in result.notes:
        screen.print(note, soft_wrap=True)
    history = result.history
    if history.status == "diverged":
        raise HeadwayError(f"the training diverged: {history.reason}")
    if history.status == "interrupted":
        screen.print(f"Interrupted after step {len(history.steps)} of {settings.steps}; rerun the command to resume.")
        raise typer.Exit(130)
    again = f"generate {shlex.quote(str(out))}"
    if "from" in config:
        again = f'explain "…" --model {shlex.quote(str(out / CHECKPOINT))}'
    elif config.get("kind") == "encoder":
        again = f"draw prediction --model {shlex.quote(str(out))}"
    screen.print(
        f"Validation loss {history.validation_loss[-1]:.3f} nats per token after {settings.steps} steps, "
        f"{history.tokens_per_second:,.0f} tokens/s.\nRun: {out}\nTry it: headway {again}",
        soft_wrap=True,
    )


def watch_note(size: int, every: int, out: Path) -> str:
    """A note, printed before training, on how much a watch will write."""
    from headway.inspect.watch import ROOM

    said = f"Watching W_Q, W_K and W_V every {every} steps: {size / 1e6:,.1f} MB in {out / 'watch'}"
    return said if size <= ROOM else f"{said} would be more than {ROOM / 1e6:,.0f} MB, so it will record less often"
