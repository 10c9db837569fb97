"""How X becomes the output: the stages of one head, and the products of one entry of Q, K or V.

X → Q, K, V → Q, K transformed by position → S = Q Kᵀ → · scale → + position, mask → A → A V → [head_1 … head_H] W_O
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from headway.figures.values import Columns, Figure, Heatmap, Product, Said, Stage, View, both, same
from headway.figures.words import number, percent
from headway.inspect.explain import spread
from headway.inspect.head import Cell, Head
from headway.inspect.record import Latents
from headway.inspect.split import PRODUCTS, maps
from headway.inspect.watch import MATRICES
from headway.views.attending import choice_of, formula, way
from headway.views.flow import flow
from headway.views.question import Question
from headway.views.to_figures import Window, block, matrix, pairs, part_name, refuse_beyond, spans, told, vectors

VIEWS = ("stepper", "projection")

LONGEST = 1024
"""Maximum tokens of the text."""
TOKENS = 64
"""Maximum tokens whose values are shown."""
DEEPER = {
    "x.position": ("vectors", "similarity"),
    "q": ("projection",),
    "k": ("projection",),
    "v": ("projection",),
    "normed": ("projection",),
    "k.latent": ("projection",),
    "map": ("rotation",),
    "raw": ("split",),
    "scaled": ("scaling",),
    "position.terms": ("bias", "split"),
    "position.mapped": ("split", "distance"),
    "position.embedded": ("split", "distance"),
    "weights": ("softmax",),
    "values": ("head", "wall"),
}
"""The views that go deeper than a stage, by the name of its description or the beginning of it."""
ROOM = 2**19
"""Maximum bytes of each factor of a product; of larger ones, rows and columns around the chosen entry."""


def stepper(question: Question) -> View:
    """How X becomes the output, stage by stage: the numbers of the query, see :func:`headway.views.flow.flow`, and the
    matrices of all tokens.

    All tokens take part; for a long text the matrices of 64 are shown.

    Raises:
        HeadwayError: on a text of more than 1,024 tokens.

    >>> [stage.label["en"] for stage in stepper(Question.fresh("the cat sat")).figures[0].stages]
    ['X', 'Q', 'K', 'V', 'Q′, K′', 'Q′ K′ᵀ', '· 1/√d_k', '+ position, mask', 'softmax', 'A V', '· W_O']
    """
    refuse_beyond(question, LONGEST, "stepper")
    window = Window.of(question, TOKENS)
    head = Head(question.seen, question.head, window.rows)
    with torch.no_grad():
        stages = list(_Stages(question, head, window))
    row = question.row - window.start
    shape = head.layer.attention.shape
    most = int(head.weights[row].argmax())
    finding = both(
        "stepper.finding",
        tokens=window.tokens,
        dim=shape.dim,
        query=question.labels[question.row],
        key=question.labels[most],
        weight=percent(float(head.weights[row, most])),
    )
    title = both("stepper.steps", layer=question.layer, head=question.head)
    return View(
        "stepper", finding, (flow(question, title, stages),), _whole(question, head), _notes(question, head, window)
    )


def _whole(question: Question, head: Head) -> str:
    """The head as one formula."""
    call = head.layer.call
    weigh = "stick" if way(head.layer) == "stickbreaking" else "softmax"
    product = "Q′ K′ᵀ" if maps(question.position) else "Q Kᵀ"
    scale = " / √d_k" if _by_root(head) else f" · {number(call.scale)}"
    added = " + b(i, j)" * any(name not in PRODUCTS for name in head.parts)
    return f"{weigh}({product}{scale}{added}) V"


def _by_root(head: Head) -> bool:
    """Whether scores are divided by √d_k."""
    return math.isclose(head.layer.call.scale, 1 / math.sqrt(head.layer.attention.shape.head_dim), rel_tol=1e-6)


def _notes(question: Question, head: Head, window: Window) -> list[Said]:
    shape = head.layer.attention.shape
    notes = window.notes
    if shape.kv_heads != shape.heads:
        notes.append(both("stepper.groups", heads=shape.heads, kv_heads=shape.kv_heads, group=head.group))
    if head.layer.attention.content_dim:
        notes.append(_decoupled(head))
    if question.position.embeds:
        notes.append(both("stepper.embeds", title=question.position.title))
    return notes


def _decoupled(head: Head) -> Said:
    """Which columns are the decoupled part."""
    attention = head.layer.attention
    return both("stepper.decoupled", first=attention.content_dim, last=attention.shape.head_dim - 1)


def _source(head: Head, which: str) -> str:
    """What Q, K or V is computed from, as a symbol."""
    if head.layer.latents is not None:
        return "C" if which != "q" else "C_Q" if head.layer.latent_queries else "X"
    return "X_shared" if which != "q" and head.layer.attention.borrows else "X"


class _Stages:
    """The stages of one head, in order."""

    def __init__(self, question: Question, head: Head, window: Window) -> None:
        self.question, self.head, self.window = question, head, window
        self.layer, self.attention = head.layer, head.layer.attention
        self.tokens, self.width = window.tokens, self.attention.shape.head_dim
        self.mapped = maps(question.position) or self.attention.log_scale is not None

    def __iter__(self) -> Iterator[Stage]:
        yield self._x()
        if self.layer.latents is not None:
            yield self._latent(self.layer.latents)
        for which in MATRICES:
            yield self._projection(which)
        if self.mapped:
            yield self._map()
        yield from self._scores()
        yield self._weights()
        yield self._values()
        yield self._output()

    def _stage(
        self, key: str, label: str | Said, columns: int, formula: str, figures: Sequence[Figure], **said: object
    ) -> Stage:
        name = same(label) if isinstance(label, str) else label
        shape = f"{self.tokens} × {columns}"
        views = DEEPER.get(key, DEEPER.get(key.partition(".")[0], ()))
        deeper = [(view, both(f"view.{view}.title")) for view in views]
        return Stage(name, shape, formula, told(f"stepper.{key}", **said), figures, deeper)

    def _vectors(self, title: str | Said, x: Tensor, limits: tuple[float, float] | None = None) -> Heatmap:
        return vectors(same(title) if isinstance(title, str) else title, x[self.window.rows], self.window, limits)

    def _pairs(self, title: Said, x: Tensor, seen: Tensor | None = None, scale: str = "diverging") -> Heatmap:
        cols = self.window.rows
        return pairs(title, x[:, cols], self.window, seen=None if seen is None else seen[:, cols], scale=scale)

    def _x(self) -> Stage:
        stream, dim = self.layer.stream, self.attention.shape.dim
        x = self._vectors("X", self.head.x)
        layer = self.question.layer
        if stream is None and self.layer.starts:
            key, formula = ("x", "X = norm(E)") if self.layer.normed else ("x.plain", "X = E")
            return self._stage(key, "X", dim, formula, [x], tokens=self.tokens, dim=dim)
        if stream is None or not stream.first:
            formula = "X = norm(x)" if self.layer.normed else "X = x"
            return self._stage("x.deeper", "X", dim, formula, [x], layer=layer)
        normed = "norm(E + P)" if stream.norm is not None else "E + P"
        if not self.question.position.embeds:
            return self._stage("x", "X", dim, f"X = {normed.replace(' + P', '')}", [x], tokens=self.tokens, dim=dim)
        parts = [self._vectors("E", stream.tokens[0]), self._vectors("P", stream.position[0])]
        title = self.question.position.title
        return self._stage(
            "x.position", "X", dim, f"X = {normed}", [*parts, x], tokens=self.tokens, dim=dim, title=title
        )

    def _latent(self, latents: Latents) -> Stage:
        formula, figures = "C = RMSNorm(X W_DKV),  K_R = X W_KR", [self._vectors("C", self.head.source("v"))]
        if latents.key is not None:
            figures.append(self._vectors("K_R", latents.key[self.head.batch]))
        if self.layer.latent_queries:
            formula = f"C_Q = RMSNorm(X W_DQ),  {formula}"
            figures.insert(0, self._vectors("C_Q", self.head.source("q")))
        sizes = {"latent": latents.kv.shape[-1], "position": self.width - self.attention.content_dim}
        return self._stage("latent", "C, K_R", sum(sizes.values()), formula, figures, **sizes)

    def _projection(self, which: str) -> Stage:
        name, x = which.upper(), _source(self.head, which)
        made = {"q": self.head.q, "k": self.head.k, "v": self.head.v}[which]
        formula = f"{name} = {x} W_{name}" + (f" + b_{name}" if self.head.bias(which) is not None else "")
        normalised = which != "v" and self.attention.qk_norm
        if normalised:
            formula = f"{name} = RMSNorm({formula.removeprefix(f'{name} = ')})"
        weights = getattr(self.head.matrices, which)
        figures = [matrix(same(f"W_{name}"), weights), self._vectors(name, made)]
        key = "normed" if normalised else which
        if which == "k" and self.attention.content_dim:
            key, formula = "k.latent", "K = [C W_K, K_R]"
        dim, width = weights.shape
        return self._stage(key, name, made.shape[1], formula, figures, x=x, dim=dim, width=width)

    def _map(self) -> Stage:
        head, position = self.head, self.question.position
        figures: list[Figure] = []
        for before, after, name in ((head.q, head.mapped_q, "Q"), (head.k, head.mapped_k, "K")):
            if name == "K" and before.shape == after.shape and torch.equal(before, after):
                continue  # DeBERTa, Inkling and log-n scaling do not change keys
            limits = spans(torch.cat((before.flatten(), after.flatten())), "diverging")
            told_as = (both("stepper.before", name=name), both("stepper.after", name=name))
            two = [self._vectors(said, x, limits) for said, x in zip(told_as, (before, after), strict=True)]
            figures.append(Columns(same(""), [(one.title, [one]) for one in two]))
        if not maps(position):
            return self._stage(
                "sharpened", "Q′", self.width, "Q′ = Q · ln(p+1) / ln L", figures, length=self.attention.log_scale
            )
        method = {"en": position.summary, "zh": position.summary_zh or position.summary}
        said = {"title": position.title, "summary": method}
        return self._stage("map", "Q′, K′", head.mapped_q.shape[1], "q′ᵢ = f(qᵢ, i),  k′ⱼ = f(kⱼ, j)", figures, **said)

    def _scores(self) -> Iterator[Stage]:
        head, scale, width = self.head, self.layer.call.scale, self.width
        raw = head.mapped_q[self.window.rows] @ head.mapped_k.mT
        scaled, seen = raw * scale, head.seen
        product = "Q′ K′ᵀ" if self.mapped else "Q Kᵀ"
        sizes = {"width": width, "root": number(width**0.5), "scale": number(scale)}
        spreads = {"raw": number(spread(raw[seen])), "scaled": number(spread(scaled[seen]))} if bool(seen.any()) else {}
        spreads = spreads or {"raw": "0", "scaled": "0"}
        yield self._stage(
            "raw", product, self.tokens, f"S = {product}", [self._pairs(same(f"S = {product}"), raw)], **sizes
        )
        by_root = _by_root(head)
        label = "· 1/√d_k" if by_root else f"· {number(scale)}"
        formula = f"S / √d_k = S / {number(width**0.5)}" if by_root else f"S · {number(scale)}"
        figures = [self._pairs(same(formula), scaled)]
        yield self._stage("scaled", label, self.tokens, formula, figures, **sizes, **spreads)
        yield self._position()

    def _position(self) -> Stage:
        head, position = self.head, self.question.position
        added = {name: part for name, part in head.parts.items() if name not in PRODUCTS}
        figures = [self._pairs(part_name(name, position.method_name()), part) for name, part in added.items()]
        figures.append(self._pairs(both("attending.scores"), head.scores, head.seen))
        names = {
            language: "".join(f" + {part_name(name, position.method_name())[language]}" for name in added)
            for language in ("en", "zh")
        }
        key = "terms" if added else "mapped" if maps(position) else "embedded" if position.embeds else "nothing"
        masked = both("stepper.masked") if not bool(head.seen.all()) else same("")
        label = both("stepper.position.label")
        said = {"title": position.title, "names": names, "masked": masked}
        formula = f"S · {number(self.layer.call.scale)}" + names["en"]
        return self._stage(f"position.{key}", label, self.tokens, formula, figures, **said)

    def _weights(self) -> Stage:
        head, kind = self.head, way(self.layer)
        figures = [self._pairs(both("attending.weights"), head.weights, head.seen, "sequential")]
        label = both("stepper.weights.label.stickbreaking") if kind == "stickbreaking" else same("softmax")
        totals = head.weights.double().sum(-1)
        said = {"low": f"{float(totals.min()):.4f}", "high": f"{float(totals.max()):.4f}"}
        return self._stage(f"weights.{kind}", label, self.tokens, formula(self.layer), figures, **said)

    def _values(self) -> Stage:
        head = self.head
        adds = bool(self.layer.call.value_terms)
        turned = self.question.position.turns_values
        formula = "Σ_j α_ij R(j − i) v_j" if turned else "A V + Σ_j α_ij a_ij" if adds else "A V"
        figures = [vectors(same(formula), head.output, self.window)]
        key = "values.turned" if turned else "values.added" if adds else "values"
        return self._stage(key, "A V", head.output.shape[1], formula, figures)

    def _output(self) -> Stage:
        shape, linear = self.attention.shape, self.attention.o
        together = self.layer.output(self.window.rows)[0].transpose(0, 1).flatten(1)
        last = shape.heads - 1
        heads = "[head_0]" if last == 0 else f"[head_0 … head_{last}]"
        formula = f"O = {heads} W_O" + (" + b_O" if linear.bias is not None else "")
        figures = [
            vectors(same(heads), together, self.window),
            matrix(same("W_O"), linear.weight.detach().T),
            vectors(same("O"), linear(together.to(linear.weight.dtype)), self.window),
        ]
        sizes = {"heads": shape.heads, "inner": linear.in_features, "dim": shape.dim}
        return self._stage("output", "· W_O", shape.dim, formula, figures, **sizes)


def projection(question: Question) -> View:
    """How one entry of Q is computed: a row of X times a column of W_Q, product by product.

    ``options["matrix"]`` is "q" (default), "k" or "v"; ``question.column`` is the column.

    Raises:
        HeadwayError: on a column that the head does not have, or another matrix.

    >>> view = projection(Question.fresh("the cat sat", dim=16, heads=2))
    >>> view.figures[0].left.shape, view.figures[0].right.shape, view.figures[0].out.shape
    ((3, 16), (16, 8), (3, 8))
    """
    which = choice_of(question, "matrix", MATRICES)
    head, column = Head(question.seen, question.head), question.column
    with torch.no_grad():
        cell = head.cell(which, question.row, column)
        out = head.projected(which)
    x, source = _source(head, which).removesuffix("_shared"), head.source(which)
    dim, width = source.shape[1], out.shape[1]
    fit = max(1, ROOM // (4 * dim))
    window = Window.of(question, min(TOKENS, fit))
    first = min(max(0, column - fit + 1), max(0, width - fit))
    columns = slice(first, first + fit)
    weights = getattr(head.matrices, which)
    bias = head.bias(which)
    name = which.upper()
    product = Product(
        both("projection.product", name=name, head=question.head if which == "q" else head.group, layer=question.layer),
        block(source[window.rows]),
        block(weights[:, columns]),
        None if bias is None else block(bias[columns]),
        block(out[window.rows, columns]),
        window.labels,
        (x, f"W_{name}", name),
        (question.row - window.start, column - first),
    )
    return View(
        "projection",
        _worked(question, cell, which, x),
        (product,),
        _formula(x, name, bias),
        _cut(head, window, columns, width, which),
    )


def _formula(x: str, name: str, bias: Tensor | None) -> str:
    return f"{name.lower()}[i, c] = Σ_m {x}[i, m] · W_{name}[m, c]" + (" + b[c]" if bias is not None else "")


def _worked(question: Question, cell: Cell, which: str, x: str) -> Said:
    """The sum of the products, and the largest of them."""
    most = int(cell.products.abs().argmax())
    said = {
        "name": which,
        "token": question.labels[question.row],
        "column": question.column,
        "count": len(cell.products),
        "sum": number(cell.sum),
        "largest": number(float(cell.products[most])),
        "place": most,
        "x": x,
    }
    return (
        both("projection.biased", bias=number(cell.bias), **said) if cell.bias else both("projection.finding", **said)
    )


def _cut(head: Head, window: Window, columns: slice, width: int, which: str) -> list[Said]:
    """Notes on what is not shown, and on later steps."""
    notes = window.notes
    if columns.stop - columns.start < width:
        notes.append(both("projection.columns", first=columns.start, last=columns.stop - 1, width=width))
    if which != "v" and head.layer.attention.qk_norm:
        notes.append(both("projection.normed", name=which.upper()))
    if which == "q" and head.layer.attention.content_dim:
        notes.append(_decoupled(head))
    shape = head.layer.attention.shape
    if which != "q" and shape.kv_heads != shape.heads:
        notes.append(both("stepper.groups", heads=shape.heads, kv_heads=shape.kv_heads, group=head.group))
    return notes
