"""``headway verify``: the command's arguments and what it displays."""

from __future__ import annotations

from typing import Annotated

import typer

from headway.arguments import Threads, use_threads
from headway.console import console


def command(
    model: Annotated[str, typer.Argument(help="A checkpoint folder of transformers, or a family such as t5 or llama.")],
    lengths: Annotated[str, typer.Option(help="Tokens of the random texts.")] = "1,33,150,600",
    threads: Threads = None,
) -> None:
    """Compare a transformers model before and after acceleration: output, loss and the gradient of every parameter."""
    use_threads(threads)
    from headway.hf.loading import as_lengths, open_model
    from headway.hf.verify import verify

    found = verify(open_model(model), lengths=as_lengths(lengths))
    console().print(str(found), highlight=False, markup=False, soft_wrap=True)
    if not found.passed:
        raise typer.Exit(1)
