"""``headway generate``: the command's arguments and what it displays."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headway.arguments import MOST, SEED, Threads, say, use_threads
from headway.characters import harmless
from headway.shapes import HeadwayError

if TYPE_CHECKING:  # torch is imported when the command runs
    from headway.training.vocabulary import Vocabulary

SHIPPED = "headway.shipped"
"""What knows the models that ship, found by name: the way up."""
BEAMS = 1024
"""The maximum number of beams; each has a cache."""


def command(
    run: Annotated[Path, typer.Argument(help="A run folder of `headway train`, or the name of a model that ships.")],
    prompt: Annotated[
        str,
        typer.Argument(
            help="The prompt, or the source for a model trained on pairs; - reads it from standard input, sources one "
            "per line."
        ),
    ] = "",
    tokens: Annotated[int, typer.Option(min=0, max=10**9, help="Number of tokens to generate.")] = 200,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature; 0 takes the most probable token.  [default: 0.8]")
    ] = None,
    top_k: Annotated[int | None, typer.Option(max=MOST, help="Sample from the k most probable tokens only.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Sample from the fewest most probable tokens whose probabilities sum to p (nucleus sampling)."
        ),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Stop before this text; can be given several times.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=SEED, help="Random seed; the same seed gives the same text.  [default: 0]"),
    ] = None,
    beams: Annotated[
        int | None, typer.Option(min=1, max=BEAMS, help="Beam search with this many beams instead of sampling.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Continue a prompt with a trained model; tokens are printed as they are generated, of a beam search as soon as
    all beams agree.
    """
    use_threads(threads)
    from headway.training import load_model
    from headway.training.vocabulary import Delimited

    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    given: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    if beams is not None and given:
        raise HeadwayError(
            f"expected --beams without --{next(iter(given)).replace('_', '-')}, because beam search samples nothing, "
            f"got both: leave one out"
        )
    model, vocabulary, opened = load_model(importlib.import_module(SHIPPED).named(run))
    say(opened.notes)
    piped = prompt == "-"
    if piped:
        prompt = sys.stdin.read()
    pairs = isinstance(vocabulary, Delimited)
    for text in prompt.splitlines() if piped and pairs else [prompt]:
        try:
            print("" if pairs else harmless(text), end="", flush=True)
            for piece in _written(model, vocabulary, text, tokens, beams, given, stop or ()):
                print(harmless(piece), end="", flush=True)
        finally:
            print(flush=True)


def _written(
    model: Any,
    vocabulary: Vocabulary,
    text: str,
    tokens: int,
    beams: int | None,
    sampling: dict[str, Any],
    stop: Any,
) -> Iterator[str]:
    """What the model writes after a prompt, or for a source."""
    from headway.training.decoding import stream_beams
    from headway.training.generation import begin, generate, stream_text

    prompt, source, end = begin(vocabulary, text)
    if beams is None:
        stops = None if end is None else [end]
        ids = generate(model, prompt, tokens=tokens, source=source, stop=stops, **({"temperature": 0.8} | sampling))
    else:
        ids = stream_beams(model, prompt, tokens=tokens, beams=beams, source=source, stop=end)
    return stream_text(vocabulary, ids, stop)
