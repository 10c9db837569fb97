"""Time a model before and after acceleration on this machine, and write it as a page."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from headway.bench.measure import environment, interleaved, repeats_for
from headway.figures.values import Grid, Line, Lines, View, both, same
from headway.hf.accelerate import accelerate
from headway.hf.inputs import random_inputs, result
from headway.memory import peak_memory
from headway.web.views_page import views_page

MODES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Timing:
    """One length: the model's own code beside headway's, in one run, taking turns.

    Args:
        tokens: length of the text; one sequence.
        mode: "forward" (inference), or "forward+backward" (a training step without the optimizer).
        implementation: which of transformers' implementations was the fastest here.
        own: median seconds of that.
        ours: median seconds, accelerated.
        own_memory: peak bytes allocated beyond the model.
        our_memory: likewise, accelerated.
    """

    tokens: int
    mode: str
    implementation: str
    own: float
    ours: float
    own_memory: int
    our_memory: int

    @property
    def speed(self) -> float:
        """How many times as fast as the model's own code."""
        return self.own / self.ours

    def __str__(self) -> str:
        return (
            f"{self.tokens:>6,} tokens  {self.mode:<16}  {self.implementation:<5} {1e3 * self.own:>9.1f} ms  "
            f"headway {1e3 * self.ours:>9.1f} ms  {self.speed:>5.2f} × as fast  "
            f"memory {self.own_memory / 2**20:>8.1f} → {self.our_memory / 2**20:.1f} MiB"
        )


def time_model(
    model: PreTrainedModel, lengths: Sequence[int], *, modes: Sequence[str] = MODES, rounds: int = 5
) -> Iterator[Timing]:
    """Time a model with each of transformers' implementations that it has, and accelerated, length by length.

    Args:
        model: the model; it is copied, not changed.
        lengths: tokens of one random text.
        modes: of :data:`MODES`.
        rounds: samples of each; the medians are reported.
    """
    contenders = {name: _with(model, name) for name in _implementations(model)}
    ours = copy.deepcopy(model)
    accelerate(ours, quiet=True)
    for tokens in sorted(lengths):
        given = random_inputs(model, tokens, rows=1)
        for mode in modes:
            work = {name: _step(each, given, mode) for name, each in (contenders | {"headway": ours}).items()}
            for step in work.values():
                step()
            repeats = {name: repeats_for(step, model.device.type) for name, step in work.items()}
            seconds = interleaved(work, rounds, repeats, model.device.type)
            medians = {name: statistics.median(times) for name, times in seconds.items()}
            fastest = min(contenders, key=medians.__getitem__)
            memory = {name: peak_memory(work[name], model.device.type) for name in (fastest, "headway")}
            # what is far behind at one length is left out of longer ones
            contenders = {name: each for name, each in contenders.items() if medians[name] < 1.5 * medians[fastest]}
            yield Timing(
                tokens, mode, fastest, medians[fastest], medians["headway"], memory[fastest], memory["headway"]
            )


def _implementations(model: PreTrainedModel) -> tuple[str, ...]:
    """Those of transformers' implementations that a model has."""
    if not model._can_set_attn_implementation():
        return (str(model.config._attn_implementation),)
    try:
        _with(model, "sdpa")
    except ValueError:
        return ("eager",)
    return ("sdpa", "eager")


def _with(model: PreTrainedModel, implementation: str) -> PreTrainedModel:
    made = copy.deepcopy(model)
    if made.config._attn_implementation != implementation:
        made.set_attn_implementation(implementation)
    return made


def _step(model: PreTrainedModel, given: dict[str, Any], mode: str) -> Callable[[], object]:
    model.train(mode != "forward")

    def forward() -> None:
        with torch.no_grad():
            model(**given)

    def both() -> None:
        model.zero_grad()
        result(model(**given)).square().mean().backward()

    return forward if mode == "forward" else both


def results(name: str, timings: Sequence[Timing], model: PreTrainedModel) -> dict[str, Any]:
    """The measurements as a dictionary for JSON, with the machine they were made on."""
    return {
        "model": name,
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "environment": environment(next(model.parameters()).dtype, model.device.type),
        "rows": [asdict(timing) | {"speed": timing.speed} for timing in timings],
    }


def page(found: dict[str, Any]) -> str:
    """The measurements as one HTML file, in English and Chinese."""
    rows = found["rows"]
    lengths = sorted({row["tokens"] for row in rows})
    by = {(row["mode"], row["tokens"]): row for row in rows}
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
    lines = [
        Line(both(f"hf.{mode}"), [by[mode, n]["speed"] if (mode, n) in by else None for n in lengths]) for mode in modes
    ]
    cells = [
        (
            same(f"{row['tokens']:,}"),
            [
                row["mode"],
                row["implementation"],
                f"{1e3 * row['own']:.1f}",
                f"{1e3 * row['ours']:.1f}",
                f"{row['speed']:.2f}",
            ]
            + [f"{row[key] / 2**20:.1f}" for key in ("own_memory", "our_memory")],
        )
        for row in rows
    ]
    best = max(rows, key=lambda row: row["speed"])
    finding = both("hf.finding", speed=best["speed"], tokens=best["tokens"], mode=best["mode"], model=found["model"])
    columns = [
        both(f"hf.column.{key}") for key in ("tokens", "mode", "own", "own_ms", "ms", "speed", "own_memory", "memory")
    ]
    view = View(
        "hf",
        finding,
        [
            Lines(both("hf.speed"), lengths, lines, (both("hf.column.tokens"), both("hf.column.speed")), log_x=True),
            Grid(both("hf.table"), columns, cells),
        ],
        notes=[both("hf.how")],
    )
    machine = found["environment"]
    facts = [
        same(found["class"]),
        both("hf.parameters", count=found["parameters"]),
        same(str(machine.get("processor", machine.get("cpu")))),
    ]
    return views_page(both("hf.title", model=found["model"]), [view], facts)
