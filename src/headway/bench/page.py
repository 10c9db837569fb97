"""The position tax as text for a terminal and as a page: each contender relative to plain attention in the same run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from headway.figures.words import measured, strings
from headway.output import write_output
from headway.results.summary import Results, finite
from headway.web.page import document, strings_of

Row = Mapping[str, Any]
PLAIN = "plain SDPA"
"""The contender that all others are divided by: torch's fused attention without any position."""
_HEAD = ("method", "computed by", "ms", "tax", "floor", "memory", "error", "÷ eager", "same bits")


def bench_text(results: Results) -> str:
    """Lay out all rows as plain text, one block for each shape.

    Args:
        results: the dictionary that ``headway bench`` saves.
    """
    blocks = [_machine(results)]
    every = results.get("rows") or ()
    kinds = {(row["head_dim"], row["dtype"]) for row in every}
    for _, rows in groupby(every, key=_shape):
        blocks.append(_block(list(rows), named=len(kinds) > 1))
    if checked := results.get("checked"):
        blocks.append(
            f"{checked['exact']} of {checked['of']} checks against float64 within twice plain PyTorch's error."
        )
    if left := sum(row["status"] == "left out" for row in every):
        blocks.append(f"{left} measurements left out for lack of time.")
    if results.get("bars"):
        blocks.append(_bars(results["bars"]))
    if not results.get("complete", True):
        blocks.append("Interrupted: the results so far are saved.")
    return "\n\n".join(blocks)


def row_text(row: Row) -> str:
    """One row as text: "t5, headway: native, 512 tokens forward causal: 1.02 × plain attention"."""
    place = f"{row['length']:,} tokens {row['mode']} {row['mask']}"
    if row["status"] != "ok":
        return f"{row['method']}, {row['contender']}, {place}: {row['status']}: {row['reason']}"
    if row["ratio"] is None and row["memory_ratio"] is None:
        return f"{row['method']}, {row['contender']}, {place}: error {row['error']:.1e}"
    if row["ratio"] is None:
        return f"{row['method']}, {row['contender']}, {place}: {row['memory_ratio']:.2f} × plain attention's memory"
    return f"{row['method']}, {row['contender']}, {place}: {row['ratio']:.2f} × plain attention"


def write_bench(results: Results, path: str | os.PathLike[str]) -> Path:
    """Write the page of a benchmark as one HTML file that opens without a network.

    Args:
        results: the dictionary that ``headway bench`` saves; an interrupted run is fine, the page says so.
        path: where to put the file; an existing file is replaced.
    """
    return write_output(path, bench_page(results))


def bench_page(results: Results) -> str:
    """The page as HTML text."""
    data = {"results": results, "strings": strings_of("bench"), "plain": PLAIN}
    return document(strings("en")["bench.title"], data, "bench")


def _shape(row: Row) -> tuple[Any, ...]:
    return row["length"], row["mode"], row["mask"], row["head_dim"], row["dtype"]


def _machine(results: Results) -> str:
    settings, machine = results.get("settings") or {}, results.get("environment") or {}
    parts = [f"torch {machine.get('torch')}", f"headway {machine.get('headway')}"]
    if machine.get("device"):
        parts.append(str(machine["device"]))
    else:
        parts += filter(None, [machine.get("processor")])
        parts.append(
            f"{machine.get('threads')} threads of {machine.get('cores')} cores, {machine.get('cpu_capability')}"
        )
    if finite(machine.get("matmul_gflops")):
        parts.append(f"matrix products {machine['matmul_gflops']:,.0f} GFLOP/s")
    shape = ""
    if settings.get("heads"):
        heads = f"{settings.get('heads')} heads"
        if settings.get("kv_heads"):
            heads += f" ({settings['kv_heads']} key heads)"
        shape = f"{settings.get('dtype')}, batch {settings.get('batch')}, {heads} of {settings.get('head_dim')}\n"
    return shape + " · ".join(parts)


def _block(rows: list[Row], named: bool) -> str:
    first = rows[0]
    base = next((row for row in rows if row["contender"] == PLAIN), None)
    title = f"{first['length']:,} tokens · {first['mode']} · {first['mask']}"
    if named:
        title += f" · width {first['head_dim']} · {first['dtype']}"
    if base is not None and finite(base["seconds"]):
        title += f" · plain attention {measured(1e3 * base['seconds'])} ms, {measured(base['gflops'])} GFLOP/s"
    lines = [_HEAD] + [_cells(row) for row in rows]
    whole = [line for line in lines if len(line) == len(_HEAD)]
    widths = [max(len(line[i]) for line in (lines if i < 2 else whole)) for i in range(len(_HEAD))]
    return "\n".join([title, *(_line(line, widths) for line in lines)])


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    if len(cells) == 3:  # method, contender, and the reason for missing values
        return f"{cells[0]:<{widths[0]}}  {cells[1]:<{widths[1]}}  {cells[2]}"
    sides = ["<", "<", *">" * (len(cells) - 2)]
    return "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True)).rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    if row["status"] != "ok":
        return row["method"], row["contender"], f"{row['status']}: {row['reason']}"
    return (
        row["method"],
        row["contender"],
        _number(row["seconds"], 1e3),
        _number(row["ratio"]),
        _number(row["floor"]),
        _number(row["memory_ratio"]),
        "–" if row["error"] is None else f"{row['error']:.1e}",
        _number(row["error_ratio"]),
        "–" if row["repeats"] is None else "yes" if row["repeats"] else "NO",
    )


def _number(value: Any, scale: float = 1.0) -> str:
    found = finite(value)
    return "–" if found is None else measured(scale * found) if scale != 1 else f"{found:.2f}"


def _bars(bars: Iterable[Row]) -> str:
    lines = []
    for bar in bars:
        got = "–" if bar["measured"] is None else f"{bar['measured']:.2f}"
        why = f" ({bar['reason']})" if bar["reason"] else ""
        if bar["floor"] is not None:
            why += f" (floor {bar['floor']:.2f}{', met by it' if bar['met_by'] == 'floor' else ''})"
        lines.append(f"{'pass' if bar['passed'] else 'FAIL'}  {got:>6} {bar['bar']:<6}  {bar['name']}{why}")
    return "\n".join(lines)
