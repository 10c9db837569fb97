"""``headway explain``: the command's arguments and what it displays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from headway.arguments import SEED, WIDEST, Head, Language, Layer, ModelRun, NewPosition, check_sizes, say
from headway.console import console, wrote
from headway.schema import Words, require


def command(
    text: Annotated[str, typer.Argument(help="A sentence of at most 64 tokens; with --html, at most 1,024.")],
    model: ModelRun = None,
    position: NewPosition = "rotary",
    dim: Annotated[int, typer.Option(min=1, max=WIDEST, help="Width of the new model.")] = 16,
    heads: Annotated[int, typer.Option(min=1, max=WIDEST, help="Heads of the new model.")] = 2,
    seed: Annotated[int, typer.Option(min=0, max=SEED, help="Seed of the new model's weights.")] = 0,
    layer: Layer = 0,
    head: Head = 0,
    language: Language = "en",
    html: Annotated[Path | None, typer.Option(help="Write an HTML page to this file instead.")] = None,
) -> None:
    """Walk through attention for one sentence: Q, K and V, one entry step by step, scaling, position, weights."""
    from headway.figures.words import LANGUAGES, strings
    from headway.inspect.explain import check_length, walk_of, words
    from headway.shipped import NAMES
    from headway.views.explain_text import walk_text
    from headway.views.question import Question

    require(language, Words(LANGUAGES), "language")
    if model is None:
        tokens = words(text)
        check_sizes({"dim": dim, "layers": 2, "heads": heads, "position": position}, tokens=max(len(tokens), 1))
        question = Question.fresh(text, position=position, dim=dim, heads=heads, seed=seed)
    else:
        from headway.views.questions import about_saved

        question = about_saved(model, text)
        say(note if isinstance(note, str) else note[language] for note in question.notes)
    screen = console()
    if html is None:
        check_length(len(question.labels))  # before the model reads the text
        walk = walk_of(question.trace, question.labels, layer=layer, head=head)
        screen.print(walk_text(walk, screen.width, language))
    else:
        from headway.output import write_output
        from headway.views.explain_page import walk_page

        named = "" if model is None else str(model)
        wrote("Page", write_output(html, walk_page(replace(question, name=named, layer=layer, head=head), language)))
    if question.untrained:
        say([strings(language)["explain.untrained"].format(name=NAMES[0])])
