"""The result table in the terminal: methods by test lengths, with the values of the HTML report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.figures.words import strings
from headway.results.amounts import amount, half_range
from headway.results.summary import Measure, Results, Spot, Summary, lead

if TYPE_CHECKING:
    from rich.table import Table


def table(results: Results) -> Table:
    """Lay out the main measure of each method at each test length.

    A cell is the mean over the seeds ± half of their range, or the reason why there is none. In each column the best
    mean, and all that cannot be distinguished from it, are bold.

    Args:
        results: the dictionary that ``headway compare`` saves.

    Returns:
        A ``rich`` table, ready to print.
    """
    from rich.table import Table
    from rich.text import Text

    words = strings("en")
    summary = Summary(results)
    measure = summary.measure
    several = len(summary.seeds) > 1
    grid = Table(
        title=words[f"axis.{measure.key}"],
        caption=words["table.note_many" if several else "table.note_one"].format(seeds=len(summary.seeds)),
    )
    grid.add_column(words["table.method"], overflow="fold")
    for length in summary.lengths:
        trained = length == summary.train_length
        grid.add_column(f"{length:,}" + (f"\n{words['table.trained']}" if trained else ""), justify="right")
    ahead = {
        length: {spot.method for spot in lead(spots, lambda mean: amount(mean, measure)).near}
        for length in summary.lengths
        if (spots := summary.spots(length))
    }
    for method in summary.methods:
        row = [Text(method)]
        for length in summary.lengths:
            spot = summary.spot(method, length)
            top = method in ahead.get(length, ())
            style = "bold green" if top else "" if spot.values else "dim"
            row.append(Text(cell_text(spot, measure, summary.last_length(method)), style=style))
        grid.add_row(*row)
    return grid


_LONGEST_MESSAGE = 28  # characters: a whole message does not fit a cell; the findings quote it in full


def cell_text(spot: Spot, measure: Measure, longest: int | None = None) -> str:
    """The text of one cell of the table: "2.31±0.02", "cannot: longest 64", "diverged at step 31"."""
    if not spot.values:
        return _trouble(spot, longest)
    text = amount(spot.mean, measure)
    if len(spot.values) > 1:
        text += f"±{half_range(spot.mean, spot.low, spot.high, measure)}"
    if len(spot.values) < spot.planned:
        text += f" ({len(spot.values)} of {spot.planned} seeds)"
    return text


def _trouble(spot: Spot, longest: int | None) -> str:
    words = {"cannot": "cannot", "diverged": "diverged", "failed": "failed", "missing": "not run"}
    status = words.get(spot.status, spot.status)
    message = " ".join((spot.message or "").split())
    if not message or message == status or len(message) > _LONGEST_MESSAGE:
        return f"cannot: longest {longest:,}" if status == "cannot" and longest else status
    if message.startswith(status):
        return message
    return f"{status} {message}" if message.startswith("at step ") else f"{status}: {message}"
