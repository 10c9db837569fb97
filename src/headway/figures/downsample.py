"""Downsample views for a report of many methods: maps are quantised to 255 steps and, where that is not enough, get
fewer cells, and films fewer frames or none. Every downsampled view has a note.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from headway.figures.values import Block, Heatmap, View, both, evenly

Plain = dict[str, Any]
ROOM = 3_400_000
"""Maximum bytes of the views of all methods, so that the report stays below 5 MB."""
FEW = 1024
"""Maximum values of a map that is not quantised."""


@dataclass(frozen=True)
class Thinness:
    """The amount of downsampling.

    Args:
        frames: maximum frames of a film; 0 omits films.
        every: keep every so many rows and columns of a map.
    """

    frames: int
    every: int


LEVELS = (Thinness(5, 1), Thinness(3, 2), Thinness(2, 4), Thinness(0, 4))
"""The amounts tried in turn, until all views fit."""


def rounded(view: View) -> View:
    """A view with large maps quantised to 255 steps between their limits, in a quarter of the bytes."""
    changed = False

    def in_steps(value: Any) -> Any:
        nonlocal changed
        if isinstance(value, Heatmap):
            done = _in_steps(value)
            changed |= done is not value
            return done
        if is_dataclass(value) and not isinstance(value, type | Block):
            return replace(value, **{one.name: in_steps(getattr(value, one.name)) for one in fields(value)})
        return type(value)(in_steps(one) for one in value) if isinstance(value, list | tuple) else value

    figures = [in_steps(figure) for figure in view.figures]
    return replace(view, figures=figures, notes=[*view.notes, both("saved.rounded")]) if changed else view


def fitted(views: Mapping[str, Sequence[Plain]], room: int = ROOM) -> dict[str, list[Plain]]:
    """The views of each method, downsampled equally until all of them fit.

    Args:
        views: plain values of each method's views.
        room: maximum bytes as JSON.
    """
    kept = {method: list(each) for method, each in views.items()}
    for level in LEVELS:
        if len(json.dumps(kept, ensure_ascii=False)) <= room:
            break
        kept = {method: [thin for view in each for thin in _thinned(view, level)] for method, each in views.items()}
    return kept


def _thinned(view: Plain, level: Thinness) -> list[Plain]:
    if level.frames == 0 and any(figure["kind"] == "film" for figure in view["figures"]):
        return []

    def fewer_frames(film: Plain) -> Plain:
        frames = film["frames"]
        return {**film, "frames": [frames[i] for i in evenly(len(frames), level.frames)]}

    done = _changed(view, {"film": fewer_frames, "heatmap": lambda one: _every(one, level.every)})
    return [view if done == view else _noted(done, "saved.thinned")]


def _noted(view: Plain, key: str) -> Plain:
    return {**view, "notes": [*view["notes"], both(key)]}


def _changed(value: Any, change: Mapping[str, Callable[[Plain], Plain]]) -> Any:
    """Plain values with figures of some kinds replaced, outer ones before inner ones."""
    if isinstance(value, Mapping):
        kind = str(value.get("kind"))
        value = change[kind](dict(value)) if kind in change else value
        return {key: _changed(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(one, change) for one in value]
    return value


def _in_steps(heatmap: Heatmap) -> Heatmap:
    block = heatmap.values
    if block.kind != "float32" or math.prod(block.shape) <= FEW:
        return heatmap
    finite = [value for value in block.values if value is not None and math.isfinite(value)]
    # the limits of the colour scale: the same in all frames of a film, and centred at 0 for signed values
    if heatmap.limits is not None:
        low, high = heatmap.limits
        low, high = min(low, *finite), max(high, *finite)
    elif heatmap.scale == "diverging":
        high = max((abs(value) for value in finite), default=1.0)
        low = -high
    else:
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    return replace(heatmap, values=replace(block, kind="uint8", span=(low, high)))


def _every(heatmap: Plain, step: int) -> Plain:
    """Keep every so many rows and columns of a large map."""
    rows, columns = heatmap["values"]["shape"]
    down, across = (step if count > 16 else 1 for count in (rows, columns))
    if down == across == 1:
        return heatmap
    hidden = heatmap["hidden"]
    return {
        **heatmap,
        "values": _cells(heatmap["values"], down, across),
        "hidden": None if hidden is None else _cells(hidden, down, across),
        "rows": heatmap["rows"][::down],
        "columns": heatmap["columns"][::across],
    }


def _cells(block: Plain, down: int, across: int) -> Plain:
    """Keep every so many cells of a block, in their encoded form."""
    rows, columns = block["shape"]
    data = base64.b64decode(block["data"])
    if block["kind"] == "bits":
        bits = f"{int.from_bytes(data):0{8 * len(data)}b}"
        kept: list[Any] = [int(bit) for row in range(0, rows, down) for bit in bits[row * columns :][:columns:across]]
        return Block((-(-rows // down), -(-columns // across)), kept, "bits").plain()
    size = 4 if block["kind"] == "float32" else 1
    cells = b"".join(
        data[size * (row * columns + column) :][:size]
        for row in range(0, rows, down)
        for column in range(0, columns, across)
    )
    return {**block, "shape": [-(-rows // down), -(-columns // across)], "data": base64.b64encode(cells).decode()}
