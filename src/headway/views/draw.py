"""Figures for a paper or a talk: a method, a recorded pass, or any view, and its data as CSV."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.characters import shortened
from headway.figures.values import View
from headway.inspect.record import Layer, Trace
from headway.output import streamed, write_output
from headway.plot import picture, to_csv
from headway.positions import Position, parse
from headway.shapes import HeadwayError, brief
from headway.views import NAMES, OPTIONS, view
from headway.views.question import Question
from headway.views.questions import OF_METHODS, OF_PASSES, about_position, about_trace, composed

if TYPE_CHECKING:
    from headway.plot.sheet import Drawing

KINDS = ("svg", "pdf", "png")
"""Supported file types of a figure, by extension."""


def draw(
    shown: Position | Trace | Layer | Question | View | str,
    path: str | os.PathLike[str] | None = None,
    *,
    view: str | None = None,
    layer: int | None = None,
    head: int | None = None,
    labels: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    heads: int | None = None,
    dim: int | None = None,
    length: int | None = None,
    language: str = "en",
    width: str = "single",
    caption: bool = True,
    csv: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Drawing:
    """Draw a position method, a recorded pass, or a view, for a paper or a talk.

    Args:
        shown: a method, or its string, e.g. "rotary(base=500000)"; a trace of :func:`headway.inspect.record` or one of
            its layers; a question; or a composed view.
        path: file to save, ending in .svg, .pdf or .png (300 dpi); anything other than a regular file gets SVG, see
            :func:`headway.output.write_output`.
        view: which of the views; default for a method the first that it has of vectors, bias, rotation,
            similarity and distance, for a pass or question "head".
        layer: which layer of a pass or question, from 0.
        head: which head, from 0.
        labels: display text of the tokens of a pass.
        keys: display text of the tokens of the context, of a layer of cross attention.
        heads: heads of a method that is not attached, default 4.
        dim: its width, default 64.
        length: number of positions to show of a method, default 128.
        language: "en" or "zh".
        width: "single" (3.4 inches) or "double" (7) column.
        caption: write the view's title, finding, formula and notes around the figures.
        csv: file for the data, ending in .csv.
        options: options of the view, e.g. ``{"what": "scores"}`` of "head"; ``headway.views.OPTIONS`` has their names.

    Returns:
        A matplotlib figure, whose axes can be changed before ``savefig`` writes it; a notebook shows it.

    Raises:
        HeadwayError: when the view is unknown or does not apply, has no such option, or matplotlib is missing, with
            what to do.

    >>> len(draw("alibi", heads=2, caption=False).axes)
    1
    """
    _check_endings(path, csv)
    _check_options(view, options or {})
    chosen = _view(shown, view, layer, head, labels, keys, heads, dim, length, options or {})
    made = picture(chosen, language=language, width=width, caption=caption)
    if csv is not None:
        write_output(csv, to_csv(chosen, language))
    if path is not None:
        write_output(path, made.data("svg" if streamed(path) else Path(path).suffix[1:].lower()))
    return made


def _check_endings(path: str | os.PathLike[str] | None, csv: str | os.PathLike[str] | None) -> None:
    """Refuse other file types before drawing anything."""
    for given, endings in ((path, KINDS), (csv, ("csv",))):
        if given is not None and Path(given).suffix[1:].lower() not in endings and not streamed(given):
            raise HeadwayError(
                f"expected a file that ends in {' or '.join(f'.{one}' for one in endings)}, "
                f"got {shortened(Path(given).name)!r}"
            )


def _check_options(name: str | None, options: Mapping[str, Any]) -> None:
    """Refuse an option that the view does not have."""
    for one in options:
        if name is None:
            raise HeadwayError(f"expected the name of a view to set its option {one!r}, got none: name the view, too")
        known = OPTIONS.get(name, ())
        if one not in known:
            has = f"one of the options of the view {name!r}, {', '.join(known)}" if known else f"no option of {name!r}"
            raise HeadwayError(f"expected {has}, got {brief(one)}")


def _view(
    shown: Position | Trace | Layer | Question | View | str,
    name: str | None,
    layer: int | None,
    head: int | None,
    labels: Sequence[str] | None,
    keys: Sequence[str] | None,
    heads: int | None,
    dim: int | None,
    length: int | None,
    options: Mapping[str, Any],
) -> View:
    """The one view that is drawn."""
    if name is not None and name not in NAMES:
        raise HeadwayError(f"expected a view ({', '.join(NAMES)}), got {brief(name)}")
    if isinstance(shown, View):
        return shown
    if isinstance(shown, str | Position):
        position = parse(shown) if isinstance(shown, str) else shown
        question = about_position(position, heads=heads, dim=dim, length=length)
        choices: tuple[str, ...] = OF_METHODS
    elif isinstance(shown, Trace | Layer):
        question, choices = about_trace(shown, labels, layer=layer or 0, keys=keys), ("head", "long")
        layer = question.layer
        if name is not None and name not in OF_PASSES:
            raise HeadwayError(
                f"expected a view that needs no model ({', '.join(OF_PASSES)}), got {brief(name)}: pass a Question"
            )
    else:
        question, choices = shown, ("head", "long")
    placed = replace(
        question,
        layer=question.layer if layer is None else layer,
        head=question.head if head is None else head,
        options={**question.options, **options},
    )
    if name is not None:
        return view(name, placed)
    for found in composed(placed, choices):
        return found
    raise HeadwayError(f"expected something that a view can show, got {question.name or 'this'}: name a view")
