"""This project's speed targets ("bars"), as cases with a limit each; ``headway bench --bars`` checks them.

On a CPU every case is one sequence of 8 heads of width 64 in float32, forward and backward. On a GPU it is bfloat16,
with 16k tokens in total and heads whose widths add up to 2048.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from headway.bench import layers
from headway.bench.cases import Case
from headway.bench.contenders import Contender, ours
from headway.bench.others import flex
from headway.bench.page import PLAIN
from headway.bench.settings import Bench
from headway.bench.tax import EXACT_UP_TO, Entry, Group, Row, measured, without_base

NEAR = 1.2
"""A target of time is also met within this factor of the floor, see :mod:`headway.bench.floor`."""


@dataclass(frozen=True)
class Bar:
    """One target: time or memory of a method, divided by that of a baseline, stays below, or above, a limit.

    Our time may also stay below :data:`NEAR` times its floor, see :attr:`floored`.

    Args:
        case: the shape.
        method: the method.
        limit: the limit.
        what: "time" or "memory".
        by: the contender: a backend, or one of :data:`NAMED`.
        against: method and contender of the denominator; None is plain attention.
        least: whether the limit is a lower bound.
    """

    case: Case
    method: str
    limit: float
    what: str = "time"
    by: str = "auto"
    against: tuple[str, str] | None = None
    least: bool = False

    @property
    def floored(self) -> bool:
        """Whether the floor counts: not for ``none``, whose floor is its own time, nor in decoding, where products take
        next to none of it.
        """
        return self.method != "none" and not self.case.decodes

    @property
    def needs(self) -> list[tuple[str, str]]:
        """Method and contender of every row that the target needs."""
        return [(self.method, self.by), *([] if self.against is None else [self.against])]

    def __str__(self) -> str:
        kind = self.case.mode if self.case.decodes else self.case.mask
        of = f"{self.case.length:,} tokens, {kind}, width {self.case.head_dim}"
        base = PLAIN if self.against is None else f"{_who(self.against[1])} of {self.against[0]}"
        return f"{self.what} of {self.method} by {_who(self.by)} ÷ {base}, {of}"

    def judge(self, rows: dict[tuple[str, str], Row]) -> dict[str, Any]:
        """Whether it is met, given the measured rows, and by which: the bar or the floor."""
        sign = "≥" if self.least else "≤"
        found: dict[str, Any] = {"name": str(self), "bar": f"{sign} {self.limit:g}"}
        found |= dict.fromkeys(("measured", "floor", "met_by", "reason"))
        values = []
        for need in self.needs:
            row = rows[need]
            value = row.ratio if self.what == "time" else row.memory_ratio
            if row.status != "ok" or value is None:
                return {**found, "passed": False, "reason": f"{row.contender}: {row.status}: {row.reason}"}
            values.append(value)
        found["measured"] = ratio = values[0] / (values[1] if len(values) > 1 else 1.0)
        found["floor"] = floor = self._floor([rows[need] for need in self.needs]) if self.what == "time" else None
        if ratio >= self.limit if self.least else ratio <= self.limit:
            found["met_by"] = "bar"
        elif self.floored and floor and (ratio >= floor / NEAR if self.least else ratio <= floor * NEAR):
            found["met_by"] = "floor"
        return {**found, "passed": found["met_by"] is not None}

    @staticmethod
    def _floor(rows: list[Row]) -> float | None:
        """What would be measured if our products ran at plain attention's speed: we are divided, or divide."""
        match rows:
            case [ours]:
                return ours.floor
            case [theirs, ours] if ours.floor and theirs.ratio:
                return theirs.ratio / ours.floor
        return None


def _who(by: str) -> str:
    return by if by in NAMED else f"headway ({by})"


DEBERTAS = ("deberta", "deberta(buckets=256)")
LAYER = "deberta(reverse=False)"
"""DeBERTa as transformers computes it."""
DECODED = ("none", "t5", "alibi", "rotary", "shaw")
AT_2048 = dict.fromkeys(DEBERTAS, 1.6) | {
    "transformerxl": 1.45,
    "shaw": 1.2,
    "pope": 1.15,
    "inkling": 1.1,
    "music": 1.0,
    "swin": 0.9,
    "swinv2": 0.9,
    "comrope": 0.95,
    "selectiverotary": 0.95,
    "grapea": 1.3,
    "grapeap": 1.6,
    "fire": 1.5,
    "cope": 1.8,
    "stickbreaking": 1.6,
    "dape": 3.0,
    "dapev2": 4.0,
    "path": 4.0,
    "hopelorentz": 3.0,
}
"""Most time at 2,048 tokens, causal, forward and backward."""
MEMORY_AT_2048 = dict.fromkeys(DEBERTAS, 3.0) | {"transformerxl": 2.5}
"""Most memory there."""


def bars(device: str) -> list[Bar]:
    """All targets for a kind of device, grouped by case."""
    if device == "cuda":
        found = []
        for head_dim in (64, 128):
            heads = 2048 // head_dim
            case = Case(8192, batch=2, heads=heads, kv_heads=heads, head_dim=head_dim, dtype="bfloat16", device="cuda")
            found += [
                Bar(case, "t5", 1.25, against=("none", "FlexAttention")),
                Bar(case, "t5", 3.0, by="FlexAttention", against=("t5", "auto"), least=True),
            ]
        return found

    def at(length: int, mask: str = "causal", mode: str = "forward+backward") -> Case:
        return Case(length, mode, mask)

    two_sided = "t5(bidirectional=True)"
    return [
        Bar(at(1024, "full"), two_sided, 1.05),
        Bar(at(1024), "t5", 0.95),
        *(Bar(at(2048), method, limit) for method, limit in AT_2048.items()),
        *(Bar(at(2048), method, limit, what="memory") for method, limit in MEMORY_AT_2048.items()),
        Bar(at(4096, "full"), two_sided, 1.05),
        Bar(at(4096, "full"), "rotary", 1.05),
        Bar(at(4096, "full"), "rows", 1.6),
        Bar(at(4096, "full"), two_sided, 1.6, by="tiled"),
        Bar(at(4096), "t5", 0.95),
        Bar(at(4096), "rotary", 1.05),
        Bar(at(4096), "rows", 1.6),
        Bar(at(4096), "t5", 1.6, by="tiled"),
        *(Bar(at(4096), method, 1.3) for method in DEBERTAS),
        Bar(at(8192), "fox", 0.6),
        Bar(at(16384), "alibi", 0.45),
        Bar(at(16384), "t5", 1.1, what="memory"),
        *(
            Bar(at(length, mode=mode), method, 1.2)
            for mode in ("decode", "decode-static")
            for length in (512, 4096)
            for method in DECODED
        ),
        *(
            Bar(at(length, "full"), LAYER, least, by=layers.THEIRS, against=(LAYER, layers.OURS), least=True)
            for length, least in ((128, 1.0), (512, 1.5), (2048, 3.5))
        ),
    ]


def measure_bars(
    settings: Bench,
    keep: Callable[[Row, str, int, float], None],
    on_row: Callable[[Row, int, int], None] | None = None,
    listed: list[Bar] | None = None,
) -> Iterator[tuple[list[dict[str, Any]], list[Row]]]:
    """Measure what the targets need, case by case; yields the judged targets of a case and its rows."""
    listed = bars(settings.device) if listed is None else listed
    by_case: dict[Case, list[Bar]] = {}
    for bar in listed:
        by_case.setdefault(bar.case, []).append(bar)
    count = sum(len({need for bar in together for need in bar.needs}) for together in by_case.values())
    done = 0
    for case, together in by_case.items():
        # for long texts a run takes seconds: skip what no target needs
        rows: dict[tuple[str, str], Row] = {}
        try:
            group = Group(case, settings.rounds or case.rounds, thorough=case.length <= EXACT_UP_TO)
        except Exception as problem:
            base = without_base(case, problem)
            yield [bar.judge(dict.fromkeys(bar.needs, base)) for bar in together], [base]
            continue
        for bar in together:
            for method, by in bar.needs:
                if (method, by) in rows:
                    continue
                timed = any(other.what == "time" and (method, by) in other.needs for other in together)
                row = measured(Entry(method, _who(by), contender(by), timed, by not in LAYERS), group, keep)
                rows[method, by] = row
                done += 1
                if on_row is not None:
                    on_row(row, done, count)
        yield [bar.judge(rows) for bar in together], [group.base_row(), *rows.values()]


def contender(by: str) -> Contender:
    """The contender that a target names."""
    return NAMED[by] if by in NAMED else ours(by)


LAYERS: dict[str, Contender] = {layers.OURS: layers.ours, layers.THEIRS: layers.theirs}
NAMED: dict[str, Contender] = {"FlexAttention": flex, **LAYERS}
"""Contenders other than a backend."""
