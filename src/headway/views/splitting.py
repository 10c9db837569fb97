"""How much of a score is content and how much is position."""

from __future__ import annotations

import torch
from torch import Tensor

from headway.figures.values import Bars, Columns, Grid, Said, View, both
from headway.figures.words import number
from headway.inspect.head import Head
from headway.inspect.probe import planes
from headway.inspect.split import CONTENT, PRODUCTS, exact
from headway.shapes import HeadwayError, brief
from headway.views.attending import link
from headway.views.question import Question
from headway.views.to_figures import Window, pairs, part_name, refuse_beyond, spans, told

VIEWS = ("split",)

LONGEST = 1024
"""Maximum tokens of the text."""
TOKENS = 128
"""Maximum tokens shown: each part is a separate map."""
SYMBOLS = {
    "content": "scale · qᵢ·kⱼ",
    "decoupled": "scale · qᴿᵢ·kᴿⱼ",
    "rotation": "scale · (q′ᵢ·k′ⱼ − qᵢ·kⱼ)",
    "content·content": "scale · (cᵢ·cⱼ + cᵢ·pⱼ + pᵢ·cⱼ + pᵢ·pⱼ)",
}


def split(question: Question) -> View:
    """How much of each score is content and how much position: parts on one scale that add up to the score.

    For methods that rotate q and k, the score of one pair of tokens is also split by rotation plane: the query with
    ``options["key"]``, by default the key of its largest score.

    A masked pair has no score: only the maps are shown, and the sentence says so.

    Raises:
        HeadwayError: on a text of more than 1,024 tokens, or a key that does not exist.

    >>> view = split(Question.fresh("the cat sat", position="alibi"))
    >>> [label["en"] for label, _ in view.figures[0].columns]
    ['content', 'bias by distance', 'score']
    """
    refuse_beyond(question, LONGEST, "split")
    window = Window.of(question, TOKENS)
    head = Head(question.seen, question.head, window.rows)
    with torch.no_grad():
        pair = _pair(question, head, window)
        masked = not bool(head.seen[pair[0] - window.start, pair[1]])
        per_plane = None if masked else _planes(question, head, window, pair)
        maps = _maps(question, head, window)
    shares = _shares(question, head, window, pair)
    figures = (maps, shares) if per_plane is None else (maps, shares, per_plane)
    notes = [
        *window.notes,
        *([both("split.window")] if window.notes else []),
        *([] if exact(head.layer) else [both("split.estimate", layer=question.layer)]),
    ]
    if head.layer.call.value_terms:
        notes.append(both("split.values", title=question.position.title))
    return View("split", _weighed(question, head, window, pair), figures, _formula(head), notes)


def _names(question: Question, head: Head) -> dict[str, Said]:
    return {name: part_name(name, question.position.method_name()) for name in head.parts}


def _formula(head: Head) -> str:
    """The score as a symbolic sum; parts that are not a product of q and k are b(i, j)."""
    symbols = [SYMBOLS[name] for name in head.parts if name in SYMBOLS]
    if "decoupled" in head.parts:
        symbols[0] = "scale · qᶜᵢ·kᶜⱼ"
    return "score = " + " + ".join([*symbols, *["b(i, j)"] * sum(name not in PRODUCTS for name in head.parts)])


def _pair(question: Question, head: Head, window: Window) -> tuple[int, int]:
    """The query and the key shown in detail."""
    row = question.row
    key = question.options.get("key")
    if key is None:
        others = head.seen[row - window.start].clone()
        others[row] = False
        scores = head.scores[row - window.start].masked_fill(~others, -torch.inf)
        return row, int(scores.argmax()) if bool(others.any()) else row
    if not isinstance(key, int) or not 0 <= key < head.layer.keys:
        raise HeadwayError(f"expected the option 'key' from 0 to {head.layer.keys - 1}, got {brief(key)}")
    return row, key


def _maps(question: Question, head: Head, window: Window) -> Columns:
    """A map of each part and of their sum, all on one scale."""
    names = _names(question, head)
    seen = head.seen[:, window.rows]
    shown = {names[name]["en"]: (names[name], part[:, window.rows]) for name, part in head.parts.items()}
    shown["="] = (both("attending.score"), torch.stack([part for _, part in shown.values()]).sum(0))
    limits = spans(torch.cat([part[seen] for _, part in shown.values()]), "diverging")
    columns = [(said, [pairs(said, part, window, seen=seen, limits=limits)]) for said, part in shown.values()]
    key = "split.maps" if exact(head.layer) else "split.maps.estimate"
    return Columns(both(key, layer=question.layer, head=question.head), columns)


def _size(part: Tensor, seen: Tensor) -> float:
    """Root mean square over the unmasked pairs."""
    return float(part[seen].double().square().mean().sqrt()) if bool(seen.any()) else 0.0


def _shares(question: Question, head: Head, window: Window, pair: tuple[int, int]) -> Grid:
    """How large each part is on average, and at one pair."""
    query, key = pair
    cell = (query - window.start, key)
    rows = [
        (name, [number(_size(head.parts[part], head.seen)), _at(head, head.parts[part], cell)])
        for part, name in _names(question, head).items()
    ]
    total = torch.stack(list(head.parts.values())).sum(0)
    rows.append((both("attending.score"), [number(_size(total, head.seen)), _at(head, total, cell)]))
    return Grid(both("split.shares"), (both("split.part"), both("split.size"), link(question, pair)), rows)


def _at(head: Head, part: Tensor, cell: tuple[int, int]) -> str:
    return number(float(part[cell])) if bool(head.seen[cell]) else "–"


def _weighed(question: Question, head: Head, window: Window, pair: tuple[int, int]) -> Said:
    """How large content and position are, on average and at one pair."""
    # a softcap bounds the content, and is not part of position
    content = torch.stack([part for name, part in head.parts.items() if name in (*CONTENT, "softcap")]).sum(0)
    position = head.scores - content
    cell = (pair[0] - window.start, pair[1])
    sizes = {"content": number(_size(content, head.seen)), "position": number(_size(position, head.seen))}
    if not bool(head.seen[cell]):
        return told("split.finding.masked", link=link(question, pair), **sizes)
    return told(
        "split.finding",
        **sizes,
        link=link(question, pair),
        score=number(float(head.scores[cell])),
        from_content=number(float(content[cell])),
        from_position=number(float(position[cell])),
    )


def _planes(question: Question, head: Head, window: Window, pair: tuple[int, int]) -> Bars | None:
    """The share of each rotated plane in scale · q·k, before and after rotation; None without rotation."""
    layer = head.layer
    rows = window.rows
    found = planes(question.position, layer.call.q_pos[:1, rows], head=question.head, x=layer.source[:1, rows].double())
    if found is None:
        return None
    query, key = pair
    first = layer.attention.content_dim
    after = _in_planes(head.mapped_q[query, first:], head.mapped_k[key, first:], found.basis) * layer.call.scale
    labels = [*(number(rate) for rate in found.rates.tolist())]
    series = [(both("split.rotated"), after.tolist())]
    if found.basis is not None:
        q = layer.attention.sharpened(layer.q, layer.call.q_pos)[head.batch, head.index]
        before = _in_planes(q[query, first:], head.k[key, first:], found.basis) * layer.call.scale
        series.insert(0, (both("split.unrotated"), before.tolist()))
    if len(after) > len(labels):
        labels.append("0")  # the unrotated part
    return Bars(
        both("split.planes", query=question.labels[query], key=question.labels[key]),
        labels,
        series,
        both("attending.score"),
    )


def _in_planes(q: Tensor, k: Tensor, basis: Tensor | None) -> Tensor:
    """q·k as a sum over planes, Σ_f Re(z̄_q,f z_k,f) with z = √2·vᴴx, with the part outside all planes last."""
    q, k = q.double(), k.double()
    if basis is None:  # dimension c of a head became the plane (c, c + d)
        cosines, sines = (q * k).chunk(2)
        return cosines + sines
    z_q, z_k = (2**0.5 * (basis.conj() @ x.to(basis.dtype)) for x in (q, k))
    within = (z_q.conj() * z_k).real
    if 2 * len(basis) == len(q):
        return within
    rest_q, rest_k = (x - 2**0.5 * (basis.mT @ z).real for x, z in ((q, z_q), (k, z_k)))
    return torch.cat((within, (rest_q @ rest_k)[None]))
