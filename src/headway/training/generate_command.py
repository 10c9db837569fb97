"""``headway generate``: the command's arguments and what it displays."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from headway.arguments import MOST, SEED, Threads, say, use_threads
from headway.characters import harmless


def command(
    run: Annotated[Path, typer.Argument(help="A run folder of `headway train`.")],
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")] = "",
    tokens: Annotated[int, typer.Option(min=0, max=10**9, help="Number of tokens to generate.")] = 200,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 takes the most probable token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(max=MOST, help="Sample from this many most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the most probable tokens up to this total.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Stop before this text; can be given several times.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=SEED, help="Random seed; the same seed gives the same text.")] = 0,
    threads: Threads = None,
) -> None:
    """Continue a prompt with a trained model; tokens are printed as they are generated."""
    use_threads(threads)
    from headway.training import load_model
    from headway.training.generation import generate as run_model
    from headway.training.generation import prompt_ids, stream_text

    model, vocabulary, opened = load_model(run)
    say(opened.notes)
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
        for piece in stream_text(vocabulary, ids, stop or ()):
            print(harmless(piece), end="", flush=True)
    finally:
        print(flush=True)
