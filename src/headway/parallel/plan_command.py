"""``headway plan``: the command's arguments and what it displays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headway.arguments import chosen, numbers, offers, split
from headway.console import console
from headway.parallel.plan import Setup
from headway.settings import described

if TYPE_CHECKING:
    from headway.parallel.plan import Step

HEADS = (
    "tokens",
    "GPUs",
    "position",
    "GPUs per sequence",
    "sequences",
    "GB per GPU",
    "fits",
    "s per step",
    "tokens/s per GPU",
)
_SWEPT = ("length", "devices", "position")


@offers(Setup, but=_SWEPT)
def command(
    length: Annotated[str, typer.Option(help="Tokens of a sequence; several with commas.")] = "8192,131072,1048576",
    devices: Annotated[str, typer.Option(help="Number of GPUs; several with commas.")] = "8,64,512",
    position: Annotated[str, typer.Option(help="Position methods.")] = "rotary,t5,fox",
    markdown: Annotated[bool, typer.Option("--markdown", help="Write the table as Markdown.")] = False,
    **given: Any,
) -> None:
    """Calculate memory and time of training steps on many GPUs, with sequences spread over them; nothing is run."""
    found = steps(numbers("--length", length), numbers("--devices", devices), split(position), given)
    if markdown:
        print("\n".join([*markdown_table(found), "", *assumptions(found)]))
        return
    screen = console()
    screen.print(_details(found[0]) if len(found) == 1 else _table(found))
    for line in assumptions(found):
        screen.print(line, soft_wrap=True)


def steps(
    lengths: Sequence[int], devices: Sequence[int], positions: Sequence[str], given: dict[str, Any]
) -> list[Step]:
    """A plan for each length, number of devices and position method."""
    from headway.parallel.plan import count, plan

    options = chosen(Setup, given)
    counted = {one: count(Setup(length=1, devices=1, position=one, **options).model()) for one in positions}
    return [
        plan(Setup(length=tokens, devices=many, position=one, **options), counted[one])
        for tokens in lengths
        for many in devices
        for one in positions
    ]


def row(step: Step) -> tuple[str, ...]:
    """A plan as a row of the table."""
    one = step.setup
    return (
        f"{one.length:,}",
        f"{one.devices:,}",
        one.position,
        f"{one.context:,}",
        f"{one.batch:,}",
        f"{step.held / 1e9:,.1f}",
        "yes" if step.fits else "no",
        f"{sum(step.seconds.values()):,.1f}",
        f"{step.speed / one.devices:,.0f}",
    )


def markdown_table(found: Sequence[Step]) -> list[str]:
    """The plans as a table in Markdown."""
    rule = ["---:" if name != "position" else "---" for name in HEADS]
    return [f"| {' | '.join(cells)} |" for cells in (HEADS, rule, *map(row, found))]


def assumptions(found: Sequence[Step]) -> list[str]:
    """Everything that was assumed, a line each, as options that change it."""
    setup = found[0].setup
    fixed = [field for field in described(Setup) if field.name not in (*_SWEPT, "batch", "context", "tax")]
    taxes = dict.fromkeys(f"{step.setup.position} {step.setup.taxed:g}" for step in found)
    lines = [f"- --{field.name.replace('_', '-')} {getattr(setup, field.name)}: {field.about}" for field in fixed]
    return [
        f"{found[0].counted.parameters:,} parameters with {setup.position}. Assumed, and changed by these options:",
        "",
        *lines,
        f"- --tax {', '.join(taxes)}: {next(one.about for one in described(Setup) if one.name == 'tax')}",
        "",
        "Weights and gradients move during matrix products, and what a ring exchanges during attention. Not counted: "
        "kernels' workspaces, input and output, products of tokens with vectors per distance (e.g. shaw), waiting for "
        "the slowest device.",
    ]


def _table(found: Sequence[Step]) -> Any:
    from rich.table import Table

    table = Table(title="Training steps, as calculated")
    for name in HEADS:
        table.add_column(name, justify="left" if name == "position" else "right")
    for step in found:
        table.add_row(*row(step))
    return table


def _details(step: Step) -> Any:
    """One plan in full: where its memory, operations, bytes and seconds go."""
    from rich.table import Table

    from headway.sizes import gigabytes

    one = step.setup
    title = f"{one.length:,} tokens with {one.position} on {one.devices:,} GPUs: {one.context} a sequence, "
    table = Table(title=f"{title}{one.batch:,} sequences a step")
    for name in ("a GPU and step", "", ""):
        table.add_column(name, justify="left" if name else "right")
    for name, held in step.memory.items():
        table.add_row("memory", name, gigabytes(held))
    table.add_row(
        "memory", f"in all, {'fits' if step.fits else 'does not fit'} {one.memory:g} GB", gigabytes(step.held)
    )
    for name, count in step.flops.items():
        table.add_row("operations", name, f"{count / 1e12:,.1f} TFLOP")
    for name, moved in step.exchanged.items():
        table.add_row("received", name, gigabytes(moved))
    for name, seconds in step.seconds.items():
        table.add_row("time", name, f"{seconds:,.2f} s")
    table.add_row("time", "in all", f"{sum(step.seconds.values()):,.2f} s")
    table.add_row("speed", "all GPUs", f"{step.speed:,.0f} tokens/s")
    return table
