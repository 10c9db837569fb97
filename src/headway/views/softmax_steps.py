"""The steps of softmax for one query, with its numbers: s, s − max, exp, their sum, and the weights.

For stick-breaking attention: s, σ(s), what nearer keys have left, and their product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headway.figures.values import Block, Flow, Said, Stage, Track, both, same
from headway.figures.words import number
from headway.inspect.head import Head
from headway.views.flow import shown_keys
from headway.views.question import Question


def softmax_steps(question: Question, head: Head) -> Flow:
    """The steps as stages that can be played.

    Args:
        question: its query is the one whose weights are computed.
        head: the head, of this query alone.
    """
    seen, weights = head.seen[0], head.weights[0].double()
    keys = shown_keys(weights, seen, question.row if question.keys is None else len(seen))
    rest = seen.clone()
    rest[keys] = False
    made = _Steps(question, head, keys, rest)
    stages, columns = made.stick() if head.layer.call.normalise != "softmax" else made.softmax()
    tracks = [
        Track(same(name), stage, at, Block((len(values), 1), values), 1, scale, "head" if at == 0 else "", at == 0)
        for at, (name, stage, values, scale) in enumerate(columns)
    ]
    masked = [at for at, key in enumerate(keys) if not seen[key]]
    return Flow(both("softmax.title"), stages, made.rows, made.tokens, masked, tracks, ())


Column = tuple[str, int, list[float | None], str]


class _Steps:
    """Stages, and columns of numbers: name, stage, a value for each row, and scale."""

    def __init__(self, question: Question, head: Head, keys: Sequence[int], rest: Tensor) -> None:
        self.head, self.keys, self.rest, self.own = head, keys, rest, question.row
        self.seen, self.scores = head.seen[0], head.scores[0].double()
        self.weights = head.weights[0].double()
        sinks = head.layer.call.sinks
        self.sink = None if sinks is None else float(sinks[head.index])
        self.rows: list[tuple[str, Said]] = [("key", same(question.of_keys[key])) for key in keys]
        count = int(rest.sum())
        self.rows += [("rest", both("flow.rest", count=count))] * bool(count)
        self.rows += [("rest", both("softmax.sink"))] * (self.sink is not None)
        self.rows += [("sum", same("Σ"))]
        self.tokens = [*keys, *[-1] * (len(self.rows) - len(keys))]

    def _column(
        self, values: Tensor, *, total: bool = False, rest: bool = False, sink: float | None = None
    ) -> list[float | None]:
        """The values of the keys; what the others have together, the sink, and the sum, where they are given."""
        found: list[float | None] = [float(values[key]) if self.seen[key] else None for key in self.keys]
        among = values.masked_fill(~self.seen, 0.0)
        if bool(self.rest.any()):
            found.append(float(among[self.rest].sum()) if rest else None)
        if self.sink is not None:
            found.append(sink)
        return [*found, float(among.sum()) + (sink or 0.0) if total else None]

    def _raw(self) -> list[float | None]:
        values = self._column(self.scores, sink=self.sink)
        for at, key in enumerate(self.keys):
            values[at] = float(self.scores[key])  # those of masked keys, too, are computed and then hatched
        return values

    def softmax(self) -> tuple[list[Stage], list[Column]]:
        """s, s − max, exp, Σ, α."""
        visible = self.scores[self.seen]
        tops = [*visible.tolist(), *([] if self.sink is None else [self.sink])]
        top = max(tops, default=0.0)
        sink = None if self.sink is None else self.sink - top
        shifted = self.scores - top
        powers = shifted.exp()
        grown = None if sink is None else float(torch.tensor(sink, dtype=torch.float64).exp())
        exps = self._column(powers, rest=True, sink=grown)
        added = self._column(powers, total=True, rest=True, sink=grown)
        alone = [None] * (len(added) - 1) + added[-1:]
        shares = self._column(self.weights, total=True, rest=True)
        said = {"top": number(top), "total": number(added[-1] or 0.0), "sum": f"{shares[-1]:.4f}"}
        names = ("s", "s − max s", "exp(s − max s)", "Σ", "α")
        stages = self._stages(names, ("scores", "max", "exp", "sum", "divide"), said)
        columns: list[Column] = [
            ("s", 0, self._raw(), "s"),
            ("s − max s", 1, self._column(shifted, sink=sink), "s"),
            ("exp(s − max s)", 2, exps, "exp"),
            ("Σ", 3, alone, "total"),
            ("α", 4, shares, "α"),
        ]
        return stages, columns

    def stick(self) -> tuple[list[Stage], list[Column]]:
        """s, σ(s), Π σ(−s) of the nearer keys, α."""
        kept = torch.nn.functional.logsigmoid(-self.scores).masked_fill(~self.seen, 0.0)
        if self.head.layer.call.normalise.endswith("remainder"):  # the query's own key takes all that is left
            kept[self.own] = 0.0
        left, shares = (kept.sum() - kept.cumsum(0)).exp(), self.scores.sigmoid()
        if self.head.layer.call.normalise.endswith("remainder"):
            left[self.own], shares[self.own] = kept.sum().exp(), 1.0
        sums = self._column(self.weights, total=True, rest=True)
        names = ("s", "σ(s)", "Π σ(−s)", "α")
        stages = self._stages(names, ("scores", "sigmoid", "left", "stick"), {"sum": f"{sums[-1]:.4f}"})
        columns: list[Column] = [
            ("s", 0, self._raw(), "s"),
            ("σ(s)", 1, self._column(shares), "α"),
            ("Π σ(−s)", 2, self._column(left), "α"),
            ("α", 3, sums, "α"),
        ]
        return stages, columns

    def _stages(self, names: Sequence[str], keys: Sequence[str], said: dict[str, str]) -> list[Stage]:
        count = f"{int(self.seen.sum())}"
        return [
            Stage(same(name), count, name, both(f"softmax.{key}.said", **said), ())
            for name, key in zip(names, keys, strict=True)
        ]
