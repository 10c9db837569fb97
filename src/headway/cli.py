"""The commands, as ``headway compare``. Only arguments and display.

Nothing heavy is imported before it is needed, so that ``headway --help`` answers at once.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from headway import __version__
from headway.characters import harmless, shortened
from headway.console import Checked, console, progress_bars, wrote
from headway.console import run as run_command
from headway.experiments.bench.settings import HELP
from headway.experiments.options import numbers, split
from headway.shapes import HeadwayError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Attention that knows where it is: train, compare and use Transformers with any position method.",
)

WIDEST, DEEPEST, MOST, LONGEST = 1 << 16, 1024, 1 << 24, 10**9
"""The greatest width or number of heads, of layers, of things counted (tokens, windows), and of steps."""
LOOKED_AT = 10**8
"""The most parameters of a model that is made to be looked at."""
SEED = 2**63 - 1
"""The greatest seed that torch takes."""

Out = Annotated[Path, typer.Option(help="Folder for the results; the same command again goes on in it.")]
Threads = Annotated[int | None, typer.Option(min=1, max=256, help="CPU threads; default: torch's own choice.")]
Dim = Annotated[int, typer.Option(max=WIDEST, help="Width of the model.")]
Layers = Annotated[int, typer.Option(max=DEEPEST, help="Layers.")]
Heads = Annotated[int, typer.Option(max=WIDEST, help="Attention heads.")]
Batch = Annotated[int, typer.Option(max=MOST, help="Windows per step.")]
Optimizer = Annotated[str, typer.Option(help="adamw, adam or sgd (with momentum).")]
Rate = Annotated[float | None, typer.Option(help="Peak learning rate; default: the optimizer's own.")]
Vocabulary = Annotated[str, typer.Option(help="bytes, or bpe (trained on the text; needs the extra headway[bpe]).")]
MaxText = Annotated[int | None, typer.Option(min=1, max=1 << 40, help="Bytes the text may have; default: 128 MiB.")]
VocabularySize = Annotated[int, typer.Option(max=MOST, help="Tokens of a bpe vocabulary.")]


def main() -> None:
    """Run the command line; every error is one line on standard error, see :mod:`headway.console`."""
    sys.exit(run_command(app, sys.argv[1:]))


def _version(show: bool) -> None:
    if show:
        print(f"headway {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(cls=Checked)
def compare(
    text: Annotated[
        str | None, typer.Argument(help="A text file or folder; default: the documentation every Python carries.")
    ] = None,
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
    _use_threads(threads)
    from headway.experiments.compare import CORE, DEFAULTS, Comparison, Event
    from headway.experiments.compare import compare as run
    from headway.experiments.extend import WAYS
    from headway.report import findings, table, write_report

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
        _check_size(model, vocabulary, vocabulary_size, train_length, comparison.batch)
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
        screen.print(f"\nInterrupted; what is done is kept. Go on with: {command}", soft_wrap=True)
    screen.print(f"\nReport: {report}", soft_wrap=True)
    if not results["complete"]:
        raise typer.Exit(130)


@app.command(cls=Checked)
def train(
    text: Annotated[
        str | None, typer.Argument(help="A text file or folder; default: the documentation every Python carries.")
    ] = None,
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
    """Train one Transformer on a text; the same command again resumes it."""
    _use_threads(threads)
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
    _check_device(device, here=True)
    _check_size(config, vocabulary, vocabulary_size, length, batch)
    screen = console()
    if watch is not None:
        screen.print(_watch_note(watch_size(config, settings, watch), watch, out), soft_wrap=True)
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
        screen.print(f"Interrupted after step {len(history.steps)} of {steps}; the same command goes on.")
        raise typer.Exit(130)
    screen.print(
        f"Validation loss {history.validation_loss[-1]:.3f} nats per token after {steps} steps, "
        f"{history.tokens_per_second:,.0f} tokens/s.\nRun: {out}\nTry it: headway generate {shlex.quote(str(out))}",
        soft_wrap=True,
    )


@app.command(cls=Checked)
def generate(
    run: Annotated[Path, typer.Argument(help="A run of `headway train`.")],
    prompt: Annotated[str, typer.Argument(help="How the text begins; - reads it from standard input.")] = "",
    tokens: Annotated[int, typer.Option(min=0, max=LONGEST, help="How many tokens to write.")] = 200,
    temperature: Annotated[float, typer.Option(help="Higher is bolder; 0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(max=MOST, help="Choose among this many likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose among the likeliest of this total probability.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=SEED, help="The same seed writes the same text.")] = 0,
    threads: Threads = None,
) -> None:
    """Continue a text with a trained model, as it is written."""
    _use_threads(threads)
    from headway.generation import generate as run_model
    from headway.generation import prompt_ids, stream_text
    from headway.training import load_model

    model, vocabulary, opened = load_model(run)
    _say(opened.notes)
    if prompt == "-":
        prompt = sys.stdin.read()
    ids = run_model(
        model,
        prompt_ids(vocabulary, prompt),
        tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    try:
        print(harmless(prompt), end="", flush=True)
        for piece in stream_text(vocabulary, ids):
            print(harmless(piece), end="", flush=True)
    finally:
        print(flush=True)


@app.command(cls=Checked)
def explain(
    text: Annotated[str, typer.Argument(help="A sentence; at most 64 tokens, with --html 1,024.")],
    model: Annotated[
        Path | None, typer.Option(help="A run of `headway train`; default: a small model that has learned nothing yet.")
    ] = None,
    position: Annotated[str, typer.Option(help="Position method of the new model.")] = "rotary",
    dim: Annotated[int, typer.Option(min=1, max=WIDEST, help="Width of the new model.")] = 16,
    heads: Annotated[int, typer.Option(min=1, max=WIDEST, help="Heads of the new model.")] = 2,
    seed: Annotated[int, typer.Option(min=0, max=SEED, help="Of the new model's weights.")] = 0,
    layer: Annotated[int, typer.Option(help="Which layer, from 0.")] = 0,
    head: Annotated[int, typer.Option(help="Which head, from 0.")] = 0,
    language: Annotated[str, typer.Option(help="en or zh.")] = "en",
    html: Annotated[Path | None, typer.Option(help="Write it as a page to this file instead, for a browser.")] = None,
) -> None:
    """Walk through attention for one sentence: Q, K and V with one number worked out, scaling, position, weights."""
    from headway.inspect.explain import explain as walk
    from headway.inspect.explain import fresh_model, words
    from headway.report.walk import walk_text
    from headway.report.words import LANGUAGES

    if language not in LANGUAGES:
        raise HeadwayError(f"expected language one of {', '.join(LANGUAGES)}, got {language!r}")
    if model is None:
        tokens = words(text)
        _check_size({"dim": dim, "layers": 2, "heads": heads, "position": position}, tokens=max(len(tokens), 1))
        network, ids = fresh_model(tokens, position=position, dim=dim, heads=heads, seed=seed)
    else:
        from headway.training import load_model, token_texts
        from headway.transformer import Transformer

        loaded, vocabulary, opened = load_model(model)
        _say(opened.notes)
        assert isinstance(loaded, Transformer)  # as every run of ours
        network, row = loaded, vocabulary.encode(text.encode("utf-8", "surrogateescape"))
        tokens, ids = token_texts(vocabulary, row), row[None]
    screen = console()
    if html is None:
        screen.print(walk_text(walk(network, ids, tokens, layer=layer, head=head), screen.width, language))
    else:
        from headway.output import write_output
        from headway.views import Question
        from headway.views.walk import walk_page

        name = "" if model is None else str(model)
        question = Question(network, ids, tokens, name=name, layer=layer, head=head)
        wrote("Page", write_output(html, walk_page(question)))


@app.command(cls=Checked, name="draw")
def draw_command(
    what: Annotated[str, typer.Argument(help="position METHOD, run FOLDER, or a view, as split.")],
    which: Annotated[
        str | None, typer.Argument(help="The method, as t5 or rotary(base=500000), or the run's folder.")
    ] = None,
    view: Annotated[str | None, typer.Option(help="Of a position or run: which view; default: its first.")] = None,
    text: Annotated[str, typer.Option(help="What the model reads.")] = "The cat sat on the mat because it was tired",
    model: Annotated[
        Path | None, typer.Option(help="A run of `headway train`; default: a small model that has learned nothing yet.")
    ] = None,
    position: Annotated[str, typer.Option(help="Position method of the new model.")] = "rotary",
    layer: Annotated[int, typer.Option(help="Which layer, from 0.")] = 0,
    head: Annotated[int, typer.Option(help="Which head, from 0.")] = 0,
    heads: Annotated[
        int | None, typer.Option(min=1, max=WIDEST, help="Heads of a new model or method; default: 4.")
    ] = None,
    dim: Annotated[int | None, typer.Option(min=1, max=WIDEST, help="Its width; default: 64.")] = None,
    length: Annotated[int | None, typer.Option(help="Positions that a method is shown at; default: 128.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=SEED, help="Of a new model's weights.")] = 0,
    language: Annotated[str, typer.Option(help="en or zh.")] = "en",
    width: Annotated[str, typer.Option(help="single or double column: 3.4 or 7 inches.")] = "single",
    caption: Annotated[bool, typer.Option(help="With the view's title, finding and notes.")] = True,
    csv: Annotated[Path | None, typer.Option(help="Write the numbers to this file too, as CSV.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file, ending in .svg; default: named after what it shows.")
    ] = None,
) -> None:
    """Draw a position method, a run, or any view as SVG, for a paper or a talk; headway draw position t5, for one."""
    if (which is None) is (what in ("position", "run")):
        given = " ".join(filter(None, (what, which)))
        raise HeadwayError(
            f"expected position METHOD, run FOLDER or the name of a view, got {given!r}: "
            f"headway draw position t5, or headway draw split --position alibi, for two"
        )
    from headway.views import Question
    from headway.views.draw import draw
    from headway.views.subject import about_run

    shown: Question | str
    if model is None and what != "run":
        sizes = {"dim": dim or 16 * (heads or 4), "layers": 1 if which else 2, "heads": heads or 4}
        _check_size(sizes | {"position": which or position}, tokens=min(max(length or 128, 1), 4096))
    if what == "position":
        assert which is not None
        shown = which
    elif what == "run" or model is not None:
        shown = about_run(which or str(model), text)
    else:
        shown = Question.fresh(text, position=position, dim=dim or 64, heads=heads or 4, seed=seed)
    name = view if which else what
    picture = draw(
        shown,
        view=name,
        layer=layer,
        head=head,
        heads=heads,
        dim=dim,
        length=length,
        language=language,
        width=width,
        caption=caption,
    )
    if out is None:
        plain = re.sub(r"[^\w.=]+", "-", "-".join(filter(None, (Path(which).name if which else "", name)))).strip("-")
        out = Path(f"{plain[:100]}.svg")
    wrote("Picture", picture.save(out, csv), csv)


@app.command(cls=Checked, name="bench")
def bench_command(
    methods: Annotated[str | None, typer.Option(help=HELP["methods"])] = None,
    lengths: Annotated[str | None, typer.Option(help=HELP["lengths"])] = None,
    modes: Annotated[str | None, typer.Option(help=HELP["modes"])] = None,
    masks: Annotated[str | None, typer.Option(help=HELP["masks"])] = None,
    backends: Annotated[str | None, typer.Option(help=HELP["backends"])] = None,
    baselines: Annotated[bool, typer.Option(help=HELP["baselines"])] = True,
    batch: Annotated[int | None, typer.Option(max=MOST, help=HELP["batch"])] = None,
    heads: Annotated[int | None, typer.Option(max=WIDEST, help=HELP["heads"])] = None,
    kv_heads: Annotated[int | None, typer.Option(max=WIDEST, help=HELP["kv_heads"])] = None,
    head_dim: Annotated[int | None, typer.Option(max=WIDEST, help=HELP["head_dim"])] = None,
    dtype: Annotated[str | None, typer.Option(help=HELP["dtype"])] = None,
    device: Annotated[str | None, typer.Option(help=HELP["device"])] = None,
    rounds: Annotated[int | None, typer.Option(max=MOST, help=HELP["rounds"])] = None,
    bars: Annotated[bool, typer.Option("--bars", help=HELP["bars"])] = False,
    out: Annotated[Path, typer.Option(help=HELP["out"])] = Path("headway-bench"),
    threads: Threads = None,
) -> None:
    """Measure what position costs: time, memory and error beside plain attention, ours and what others offer."""
    options = {name: value for name, value in locals().items() if name not in ("out", "threads")}
    _use_threads(threads)
    from headway.experiments.bench.settings import Bench
    from headway.experiments.bench.tax import Row, bench, outcome
    from headway.report.bench import bench_text, row_text, write_bench

    screen = console()
    with progress_bars(screen) as progress:
        bar = progress.add_task("bench", total=None, note="")

        def show(row: Row, done: int, count: int) -> None:
            progress.update(bar, total=count, completed=done, note=row_text(vars(row)))
            if not screen.is_terminal:
                print(f"{done} of {count}: {row_text(vars(row))}", flush=True)

        command = "headway " + shlex.join(sys.argv[1:])
        results = bench(Bench.of(options), out, command=command, on_row=show)
    report = write_bench(results, out / "report.html")
    screen.print(bench_text(results), soft_wrap=True)
    screen.print(f"\nReport: {report}", soft_wrap=True)
    if status := outcome(results):
        raise typer.Exit(status)


@app.command(cls=Checked)
def studio(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of headway train or headway compare, or one that holds some; default: headway-run and "
            "headway-compare, if they are here."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1024, max=65535, help="Where to listen on this machine; default: 8765, or any.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser.")] = True,
    threads: Threads = None,
) -> None:
    """Open the studio, a local web app: look into models, compare methods, train one and watch it learn."""
    _use_threads(threads)
    from headway.studio import DEFAULTS, serve

    serve(runs if runs else [folder for folder in DEFAULTS if folder.is_dir()], port, browser)
    # nothing is left to save; taking torch apart would take a second, or as long as a view that nobody waits for
    os._exit(0)


@app.command(cls=Checked, name="methods")
def methods_command(
    name: Annotated[str | None, typer.Argument(help="One method, as rotary or rotary(base=500000).")] = None,
    device: Annotated[str, typer.Option(help="Where they would run, as cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything that is known as JSON instead.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the method's page to this file, for a browser.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write pages on all methods to this folder, as Markdown.")] = None,
) -> None:
    """List all position methods and what runs them here; or show one: formula, hyperparameters, what it does."""
    if name is None and html is not None:
        raise HeadwayError("expected a method with --html, got none: headway methods rotary --html rotary.html")
    if name is not None and out is not None:
        raise HeadwayError(f"expected no method with --out, which writes pages on all, got {name!r}: use --html")
    from headway.experiments.catalogue import SHAPE, catalogue, entry
    from headway.positions import parse
    from headway.report.methods import method_text, methods_note, methods_table, write_markdown, write_method

    _check_device(device, here=False)
    if name is not None:
        _check_size({"dim": SHAPE.dim, "heads": SHAPE.heads, "layers": 1, "position": name})
    found = [entry(parse(name), device)] if name is not None else catalogue(device, pictures=out is not None)
    screen = console()
    if as_json:
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        print(json.dumps(found if name is None else found[0], ensure_ascii=not unicode, indent=2))
    elif out is not None:
        from headway.training.ours import mark

        index = write_markdown(found, out)
        mark(out, "methods")
        wrote("Pages", index)
    elif html is not None:
        wrote("Page", write_method(found[0], html))
    elif name is not None:
        screen.print(method_text(found[0], screen.width))
    else:
        screen.print(methods_table(found, screen.width))
        screen.print(methods_note(found))


def _watch_note(size: int, every: int, out: Path) -> str:
    """How much a watch will write, said before it does."""
    from headway.inspect.watch import ROOM

    said = f"Watching W_Q, W_K and W_V every {every} steps: {size / 1e6:,.1f} MB in {out / 'watch'}"
    return said if size <= ROOM else f"{said} would be more than {ROOM / 1e6:,.0f} MB, so it will look less often"


def _say(notes: Iterable[str]) -> None:
    """Tell on stderr what is worth knowing of what was read; the output itself may be meant for another program."""
    for note in notes:
        console(error=True).print(note, soft_wrap=True)


def _check_device(name: str, *, here: bool) -> None:
    """Refuse what is no device, or with ``here`` one that this machine lacks."""
    import torch

    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (":" in name and not re.fullmatch(r"\d{1,3}", number, re.ASCII)):
        raise HeadwayError(f"expected --device as cpu, cuda or cuda:0, got {shortened(name)!r}")
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(kind, 1)
    if here and int(number or 0) >= count:
        raise HeadwayError(f"expected a device that is here, got {name!r}, and there are {count} of its kind: use cpu")


def _check_size(
    config: dict[str, Any], vocabulary: str = "bytes", vocabulary_size: int = 256, tokens: int = 64, batch: int = 0
) -> None:
    """Refuse a model that would not fit into memory, before any of it is made; with ``batch`` its training."""
    from headway.positions import parse
    from headway.sizes import check_size

    parse(config["position"])  # what is wrong with a method's text is said first
    vocab = 256 if vocabulary == "bytes" else max(vocabulary_size, 1)
    most = None if batch else LOOKED_AT
    check_size(
        {"vocab": vocab, **config}, tokens=max(tokens, 1), batch=max(batch, 1), training=batch > 0, parameters=most
    )


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
