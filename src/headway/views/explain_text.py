"""One sentence through one head, in the terminal: shapes, formulas and actual values, step by step.

The values come from ``headway.inspect.explain``; this file only decides what to omit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headway.figures.words import strings

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

Walk = Mapping[str, Any]
Matrix = Sequence[Sequence[float]]
_ROWS = 10
"""Maximum tokens whose values are shown: the first ones and the last."""
_LABEL = 10
"""Columns of a token's label."""
_SHADES = (" ", "░", "▒", "▓", "█")


def walk_text(walk: Walk, width: int, language: str = "en") -> Group:
    """The whole walk for a terminal.

    Args:
        walk: result of ``headway.inspect.explain``.
        width: columns of the terminal.
        language: "en" or "zh".

    Returns:
        A ``rich`` group, ready to print.
    """
    from rich.console import Group
    from rich.text import Text

    words, shapes = strings(language), walk["shapes"]
    n, heads, wide = shapes["tokens"], shapes["heads"], shapes["head_dim"]
    given = {**shapes, "n": n, "head": walk["head"], "layer": walk["layer"], "title": walk["title"], "root": wide**0.5}
    latent = walk["latent"]
    given |= {"x": "X"} if latent is None else {**latent, "decoupled": wide - latent["content"]}
    parts: list[Any] = []

    def step(key: str, *shown: Any, **more: Any) -> None:
        number = sum(isinstance(part, Text) and part.style == "bold" for part in parts) + 1
        parts.append(Text(f"{number}. {words[f'walk.{key}.title'].format(**given)}", style="bold"))
        parts.append(Text(words[f"walk.{key}"].format(**given, **more)))
        parts.extend(shown)
        parts.append(Text())

    tokens, cell = walk["tokens"], walk["cell"]
    room = max(2, (width - _LABEL - 2) // 8)
    step("x", numbers(tokens, walk["x"], room))
    key = "projection" if latent is None else "projection.latent"
    step(key, numbers(tokens, walk["q"], room), group=heads // shapes["kv_heads"])
    step(
        "cell", *_cell(walk, words, width), token=tokens[cell["token"]], column=cell["column"], sum=_short(cell["sum"])
    )
    step(
        "scores",
        numbers(tokens, walk["raw"], room, tokens),
        numbers(tokens, walk["scaled"], room, tokens),
        **{f"{what}_{when}": f"{walk[what][when]:.2f}" for what in ("spread", "entropy") for when in ("raw", "scaled")},
    )
    last = len(tokens) - 1
    step("position", _parts(walk, room, words), token=tokens[last], spec=walk["position"])
    step("softmax", heat(tokens, walk["weights"], walk["seen"], width))
    values = len(walk["output"][0])
    step("output", numbers(tokens, walk["output"], room), all=heads * values, values=values)
    return Group(*parts)


def numbers(labels: Sequence[str], matrix: Matrix, room: int, columns: Sequence[str] | None = None) -> Table:
    """A matrix as a table with as many columns as fit; … marks omitted ones."""
    from rich.cells import chop_cells
    from rich.table import Table
    from rich.text import Text

    width = len(matrix[0]) if matrix else 0
    shown = range(width) if width <= room else [*range(room - 2), None, width - 1]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=True, header_style="dim")
    table.add_column(width=_LABEL, no_wrap=True, overflow="ellipsis")
    for index in shown:
        name = "…" if index is None else columns[index] if columns else str(index)
        table.add_column(
            Text(chop_cells(name, 6)[0]), justify="right", min_width=1 if index is None else 6, no_wrap=True
        )
    rows = range(len(matrix)) if len(matrix) <= _ROWS else [*range(_ROWS - 2), None, len(matrix) - 1]
    for row in rows:
        if row is None:
            table.add_row("…")
        else:
            table.add_row(labels[row], *("…" if i is None else _short(matrix[row][i]) for i in shown))
    return table


def heat(labels: Sequence[str], weights: Matrix, seen: Sequence[Sequence[bool]], width: int) -> Table:
    """Attention weights as shades with percentages; · marks masked keys."""
    from rich.cells import chop_cells
    from rich.table import Table
    from rich.text import Text

    room = max(2, (width - _LABEL - 2) // 7)
    keys = range(len(labels)) if len(labels) <= room else [*range(room - 2), None, len(labels) - 1]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(width=_LABEL, no_wrap=True, overflow="ellipsis")
    for key in keys:
        table.add_column(Text("…" if key is None else chop_cells(labels[key], 6)[0]), justify="right", no_wrap=True)
    for query, row in enumerate(weights):
        cells = []
        for key in keys:
            if key is None:
                cells.append(Text("…", style="dim"))
            elif not seen[query][key]:
                cells.append(Text("·", style="dim"))
            else:
                shade = _SHADES[min(4, int(row[key] * 5))]
                cells.append(Text(f"{shade}{100 * row[key]:4.0f}%"))
        table.add_row(labels[query], *cells)
    return table


def _cell(walk: Walk, words: Mapping[str, str], width: int) -> list[Text]:
    """Σ_m x_m W[m, c], product by product, as many as fit two lines."""
    from rich.text import Text

    cell = walk["cell"]
    terms = [f"{_short(x)}·{_short(w)}" for x, w in zip(cell["x"], cell["w"], strict=True)]
    fit = max(2, (2 * width - 30) // 17)
    said = terms if len(terms) <= fit else [*terms[: fit - 1], f"… ({len(terms) - fit + 1})"]
    line = " + ".join(said).replace("+ −", "− ")
    bias = f" + {words['walk.bias']} {_short(cell['bias'])}" if cell["bias"] else ""
    total = sum(cell["products"]) + cell["bias"]
    norm = f"  {words['walk.normalised']}" if walk["normalised"] else ""
    return [Text(f"   {line}{bias} = {_short(total)}{norm}")]


def _parts(walk: Walk, room: int, words: Mapping[str, str]) -> Table:
    """The last token's row of every part, and of the score they add up to."""
    last = len(walk["tokens"]) - 1
    names = [words.get(f"walk.part.{name}", name) for name in walk["parts"]]
    rows = [part[last] for part in walk["parts"].values()]
    return numbers([*names, words["walk.score"]], [*rows, walk["scores"][last]], room, walk["tokens"])


def _short(value: float) -> str:
    """A number in six characters or so."""
    return (f"{value:.2f}" if abs(value) < 1000 else f"{value:.0e}").replace("-", "−")
