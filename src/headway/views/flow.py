"""The numbers of one query on its way through a head, for the figure that plays the stages.

Rows are the query, its keys, the other keys as a sum, and the sum; columns are quantities, each of one stage. The rows
of α and of α v add up to the last row, the parts of a score to the score, and the ends to the output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headway.attending import as_matrix
from headway.figures.values import Block, Flow, Said, Stage, Track, both, same
from headway.inspect.head import Head
from headway.inspect.record import wide
from headway.inspect.split import PRODUCTS
from headway.views.question import Question
from headway.views.to_figures import part_name

KEYS = 9
"""Maximum number of keys with a row of their own; the others have one together."""
WIDTH = 64
"""Maximum number of dimensions of a vector that are shown."""


def flow(question: Question, title: Said, stages: Sequence[Stage]) -> Flow:
    """The figure of the stages of a head, with the numbers of the question's query.

    Args:
        question: its query is the one whose output is computed.
        title: title of the figure.
        stages: stages of the head, in order.

    >>> from headway.views import view
    >>> shown = view("stepper", Question.fresh("the cat sat")).figures[0]
    >>> [label["en"] for _, label in shown.rows]
    ['query sat', 'the', 'cat', 'sat', 'Σ']
    """
    made = _Numbers(question, stages)
    with torch.no_grad():
        made.inputs()
        made.scores()
        made.values()
        made.output()
    return Flow(title, stages, made.rows, made.tokens, made.masked, made.tracks, made.ends)


class _Numbers:
    """Tracks of one query, one after the other."""

    def __init__(self, question: Question, stages: Sequence[Stage]) -> None:
        row = question.row
        self.question, self.stages, self.row = question, stages, row
        self.at = {stage.label["en"]: at for at, stage in enumerate(stages)}
        self.head = Head(question.seen, question.head, slice(row, row + 1))
        seen, weights = self.head.seen[0], self.head.weights[0]
        self.keys = shown_keys(weights, seen, row)
        others = torch.ones_like(seen)
        others[self.keys] = False
        self.others = others & seen
        count = int(self.others.sum())
        self.rows: list[tuple[str, Said]] = [("query", both("flow.query", token=question.labels[row]))]
        self.rows += [("key", same(question.of_keys[key])) for key in self.keys]
        self.rows += [("rest", both("flow.rest", count=count))] * bool(count)
        self.rows += [("added", both("flow.added"))] * bool(self.head.layer.call.value_terms)
        self.rows += [("sum", same("Σ"))]
        self.tokens = [row, *self.keys, *[-1] * (len(self.rows) - 1 - len(self.keys))]
        self.masked = [1 + at for at, key in enumerate(self.keys) if not seen[key]]
        self.tracks: list[Track] = []
        self.ends: list[Track] = []
        self.column = 0

    def _stage(self, *labels: str) -> int:
        return next(self.at[label] for label in labels if label in self.at)

    def _track(
        self,
        label: str | Said,
        stage: int,
        rows: dict[str, Tensor],
        scale: str,
        opens: str = "",
        *,
        beside: bool = False,
    ) -> None:
        """Add a quantity: its values of the rows of each kind, (rows of the kind, width)."""
        width = next(iter(rows.values())).shape[-1]
        values: list[float | None] = []
        for kind in dict.fromkeys(kind for kind, _ in self.rows):
            count = sum(kind == one for one, _ in self.rows)
            part = rows.get(kind)
            shown = (
                [None] * (count * min(width, WIDTH)) if part is None else part[:, :WIDTH].double().flatten().tolist()
            )
            values += shown
        self.column += not beside
        name = same(label) if isinstance(label, str) else label
        block = Block((len(self.rows), min(width, WIDTH)), values)
        hides = opens in ("softmax", "head") and width == 1
        self.tracks.append(Track(name, stage, self.column - 1, block, width, scale, opens, hides))

    def _pair(
        self, names: tuple[str, str], stages: tuple[int, int], q: Tensor, k: Tensor, opens: tuple[str, str]
    ) -> None:
        """A query above its keys."""
        self._track(names[0], stages[0], {"query": q[None]}, names[0], opens[0])
        self._track(names[1], stages[1], {"key": k}, names[0], opens[1], beside=True)

    def inputs(self) -> None:
        """X, Q and K, and what position makes of them."""
        head, row, keys = self.head, self.row, self.keys
        stream, x = head.layer.stream, self._stage("X")
        if stream is not None and stream.first and self.question.position.embeds:
            for name, part, opens in (("E", stream.tokens[0], ""), ("P", stream.position[0], "vectors")):
                self._track(name, x, {"query": part[[row]], "key": part[keys]}, "E", opens)
        self._track("x", x, {"query": head.x[[row]], "key": head.layer.source[head.batch][keys]}, "x")
        views = ("projection:q", "projection:k")
        self._pair(("q", "k"), (self._stage("Q"), self._stage("K")), head.q[row], head.k[keys], views)
        if "Q′, K′" in self.at or "Q′" in self.at:
            at = self._stage("Q′, K′", "Q′")
            self._pair(("q′", "k′"), (at, at), head.mapped_q[row], head.mapped_k[keys], ("rotation", "rotation"))

    def scores(self) -> None:
        """q·k, scaled, every part that position adds, and their sum."""
        head, keys, position = self.head, self.keys, self.question.position
        mapped = "Q′ K′ᵀ" in self.at
        raw = (wide(head.mapped_k[keys]) @ wide(head.mapped_q[self.row]))[:, None]
        first = self._stage("Q′ K′ᵀ", "Q Kᵀ")
        self._track("q′·k′" if mapped else "q·k", first, {"key": raw}, "raw", "split")
        self._track(self.stages[first + 1].label, first + 1, {"key": raw * head.layer.call.scale}, "score", "scaling")
        for name, part in head.parts.items():
            if name not in PRODUCTS:
                label = {language: f"+ {said}" for language, said in part_name(name, position.method_name()).items()}
                self._track(label, first + 2, {"key": part[0, keys, None]}, "score", "bias")
        self._track(both("flow.score"), first + 2, {"key": head.scores[0, keys, None]}, "score", "head")

    def values(self) -> None:
        """α, V, and the sum of both."""
        head, keys, first = self.head, self.keys, self._stage("A V")
        alpha, v = wide(head.weights[0]), wide(head.received(self.row))
        left, out = alpha * self.others, wide(head.output)
        total = alpha.sum()[None, None]
        self._track(
            "α", first - 1, {"key": alpha[keys, None], "rest": left.sum()[None, None], "sum": total}, "α", "softmax"
        )
        self._track("v", self._stage("V"), {"key": wide(head.v)[keys]}, "v", "projection:v")
        parts = {"key": alpha[keys, None] * v[keys], "rest": (left @ v)[None], "added": out - alpha @ v, "sum": out}
        turned = self.question.position.turns_values
        self._track("α v′" if turned else "α v", first, parts, "αv", "head")

    def output(self) -> None:
        """The head's part of the layer's output, and that of the other heads."""
        head, stage = self.head, self._stage("· W_O")
        linear = self.head.layer.attention.o
        together = wide(head.layer.output(head.rows)[head.batch, :, 0].flatten())
        own = wide(head.output[0]) @ wide(head.matrices.o.detach())
        bias = 0 if linear.bias is None else wide(linear.bias.detach())
        whole = wide(as_matrix(linear).detach()) @ together + bias
        name = "flow.others.bias" if linear.bias is not None else "flow.others"
        for label, x in ((both("flow.own"), own), (both(name), whole - own), (same("O"), whole)):
            block = Block((1, min(len(x), WIDTH)), x[:WIDTH].double().tolist())
            self.ends.append(Track(label, stage, 0, block, len(x), "o"))


def shown_keys(weights: Tensor, seen: Tensor, row: int) -> list[int]:
    """The keys with a row: all, or the query's own and those with the largest weights."""
    if len(weights) <= KEYS + 1:
        return list(range(len(weights)))
    ranked = weights.double().masked_fill(~seen, -1.0)
    if row < len(weights) and seen[row]:
        ranked[row] = 2.0
    found: list[int] = ranked.topk(min(KEYS, max(1, int(seen.sum())))).indices.sort().values.tolist()
    return found
