"""``headway draw``: the command's arguments and what it displays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from headway.arguments import SEED, WIDEST, Head, Language, Layer, ModelRun, NewPosition, check_sizes
from headway.console import wrote
from headway.shapes import HeadwayError, brief

_DECIMAL = r"-?[0-9]*\.[0-9]+(e-?[0-9]{1,2})?|-?[0-9]{1,12}e-?[0-9]{1,2}"


def command(
    what: Annotated[str, typer.Argument(help="position METHOD, run FOLDER, or the name of a view, e.g. split.")],
    which: Annotated[
        str | None, typer.Argument(help="The method, e.g. t5 or rotary(base=500000), or the run's folder.")
    ] = None,
    view: Annotated[str | None, typer.Option(help="View of a position or run; default: its first.")] = None,
    text: Annotated[str, typer.Option(help="Input text of the model.")] = "The cat sat on the mat because it was tired",
    model: ModelRun = None,
    position: NewPosition = "rotary",
    layer: Layer = 0,
    head: Head = 0,
    heads: Annotated[
        int | None, typer.Option(min=1, max=WIDEST, help="Heads of a new model or method; default: 4.")
    ] = None,
    dim: Annotated[int | None, typer.Option(min=1, max=WIDEST, help="Width of a new model; default: 64.")] = None,
    length: Annotated[int | None, typer.Option(help="Number of positions to show of a method; default: 128.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=SEED, help="Seed of a new model's weights.")] = 0,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the view as name=value, e.g. what=scores; repeatable.")
    ] = None,
    language: Language = "en",
    width: Annotated[str, typer.Option(help="single or double column, 3.4 or 7 inches wide.")] = "single",
    caption: Annotated[bool, typer.Option(help="Add the view's title, finding and notes.")] = True,
    csv: Annotated[Path | None, typer.Option(help="Also write the data to this CSV file.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output file, .svg, .pdf or .png; default: an SVG named after its content.")
    ] = None,
) -> None:
    """Draw a position method, a run or any view for print, e.g. headway draw position t5 --out t5.pdf."""
    if (which is None) is (what in ("position", "run")):
        given = " ".join(filter(None, (what, which)))
        raise HeadwayError(
            f"expected position METHOD, run FOLDER or the name of a view, got {brief(given)}: "
            f"e.g. headway draw position t5, or headway draw split --position alibi"
        )
    from headway.views import Question
    from headway.views.draw import draw
    from headway.views.questions import about_saved

    shown: Question | str
    if model is None and what != "run":
        sizes = {"dim": dim or 16 * (heads or 4), "layers": 1 if which else 2, "heads": heads or 4}
        check_sizes(sizes | {"position": which or position}, tokens=min(max(length or 128, 1), 4096))
    if what == "position":
        assert which is not None
        shown = which
    elif what == "run" or model is not None:
        shown = about_saved(which or str(model), text)
    else:
        shown = Question.fresh(text, position=position, dim=dim or 64, heads=heads or 4, seed=seed)
    name = view if which else what
    if out is None:
        plain = re.sub(r"[^\w.=]+", "-", "-".join(filter(None, (Path(which).name if which else "", name)))).strip("-")
        out = Path(f"{plain[:100]}.svg")
    draw(
        shown,
        out,
        view=name,
        layer=layer,
        head=head,
        heads=heads,
        dim=dim,
        length=length,
        language=language,
        width=width,
        caption=caption,
        csv=csv,
        options=_options(option or []),
    )
    wrote("Picture", out, csv)


def _options(given: list[str]) -> dict[str, Any]:
    """Options of a view as they are typed.

    >>> _options(["what=scores", "reach=64", "top_p=0.9"])
    {'what': 'scores', 'reach': 64, 'top_p': 0.9}
    """
    found: dict[str, Any] = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not (name and sign and value):
            raise HeadwayError(f"expected an option of the view as name=value, got {one[:60]!r}: e.g. what=scores")
        kind = int if re.fullmatch(r"-?[0-9]{1,12}", value) else float if re.fullmatch(_DECIMAL, value) else str
        found[name] = kind(value)
    return found
