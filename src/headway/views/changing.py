"""What if positions are shifted, tokens shuffled, or the position method is swapped: before, after, difference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headway.figures.values import Columns, Said, View, both
from headway.figures.words import number
from headway.init import seeded
from headway.inspect.head import Head
from headway.inspect.record import Trace, recorded
from headway.positions import parse
from headway.shapes import HeadwayError, brief
from headway.transformer import Transformer
from headway.views.attending import WHAT, choice_of, link
from headway.views.grouping import Groups
from headway.views.question import Changes, Question
from headway.views.to_figures import Window, fitting, pairs, refuse_beyond, spans, stepped, told

VIEWS = ("whatif",)

LONGEST = 512
"""Maximum tokens of the three maps."""
CHANGES = ("shift", "shuffle", "swap")
SHIFT = 5
"""Default shift of all positions."""
SAME = 1e-4
"""Changes up to this are rounding."""


def whatif(question: Question) -> View:
    """What changes when positions are shifted, tokens shuffled, or the position method swapped.

    ``options["change"]`` is "shift" (default; all positions + ``options["by"]``, 5), "shuffle" (the same tokens in
    another order, by ``options["seed"]``, 0) or "swap" (the same weights with the method ``options["position"]``);
    ``options["what"]`` is "weights" (default) or "scores", ``options["group"]`` as of :func:`headway.views.head`.

    Raises:
        HeadwayError: on a text of more than 512 tokens, on other options, and where the method does not support the
            shifted positions or the model's shape.

    >>> whatif(Question.fresh("the cat sat", position="alibi")).finding["en"].split(" (")[0]
    'All positions + 5: nothing changes'
    """
    refuse_beyond(question, LONGEST, "whatif")
    change, what = choice_of(question, "change", CHANGES), choice_of(question, "what", WHAT)
    before = Head(question.seen, question.head)
    with torch.no_grad():
        after, seen, said, notes = {"shift": _shift, "shuffle": _shuffle, "swap": _swap}[change](question, what)
        values = getattr(before, what)
    window, was_seen, groups = Window.of(question, LONGEST), before.seen, Groups.of(question)
    if groups is not None and what == "weights":
        window, values, after = Window.grouped(groups), groups.weights(values), groups.weights(after)
        was_seen, seen = groups.seen(was_seen), groups.seen(seen)
        notes = [*notes, groups.note]
    elif groups is not None:
        groups, notes = None, [*notes, both("grouping.scores")]
    both_seen = was_seen & seen
    difference = (after - values).masked_fill(~both_seen, 0.0)
    scale = "sequential" if what == "weights" else "diverging"
    limits = spans(torch.cat((values[was_seen], after[seen])), scale)
    fit = fitting(torch.stack((values, after)), torch.stack((was_seen, seen))) if what == "weights" else None
    # do not colour rounding errors as changes
    top = max(float(difference.abs().max()), SAME)
    maps = (
        (
            both("whatif.before"),
            pairs(both("whatif.before"), values, window, seen=was_seen, scale=scale, limits=limits, fit=fit),
        ),
        (
            both("whatif.after"),
            pairs(both("whatif.after"), after, window, seen=seen, scale=scale, limits=limits, fit=fit),
        ),
        (
            both("whatif.difference"),
            pairs(both("whatif.difference"), difference, window, seen=both_seen, limits=(-top, top)),
        ),
    )
    title = both(f"whatif.{what}", layer=question.layer, head=question.head)
    figure = Columns(title, [(name, [shown]) for name, shown in maps])
    notes += [*stepped(maps[0][1].values), *stepped(maps[2][1].values)]
    return View("whatif", _changed(question, said, values, after, both_seen, groups), (figure,), "", notes)


def _changed(
    question: Question, said: Said, before: Tensor, after: Tensor, seen: Tensor, groups: Groups | None
) -> Said:
    """The largest change, and where it is."""
    change = (after - before).abs().masked_fill(~seen, 0.0)
    largest = float(change.max())
    if largest < SAME:
        return told("whatif.nothing", change=said, largest=number(largest))
    place = divmod(int(change.argmax()), change.shape[1])
    values = {"old": number(float(before[place])), "new": number(float(after[place]))}
    return told("whatif.finding", change=said, link=link(question, place, groups), **values)


Changed = tuple[Tensor, Tensor, Said, list[Said]]
"""Values after the change, which pairs are unmasked, a description of the change, and notes."""


def _shift(question: Question, what: str) -> Changed:
    by = _whole(question, "by", SHIFT)
    if by < 0:
        raise HeadwayError(f"expected the option 'by' of at least 0, because positions start at 0, got {by}")
    head = Head(_changes(question).shifted(by)[question.layer], question.head)
    return getattr(head, what), head.seen, both("whatif.shift", by=by), []


def _shuffle(question: Question, what: str) -> Changed:
    """The same tokens in another order; rows and columns come back in the order of the text."""
    generator = torch.Generator().manual_seed(_whole(question, "seed", 0))
    order = torch.randperm(len(question.labels), generator=generator)
    head = Head(_changes(question).shuffled(order)[question.layer], question.head)
    back = order.argsort()
    sentence = " ".join(question.labels[place] for place in order.tolist()[:12]) + (" …" if len(order) > 12 else "")
    notes: list[Said] = [both("whatif.shuffle.note", order=sentence)]
    if not bool(head.seen.all()):
        notes.append(both("whatif.shuffle.masked"))
    return getattr(head, what)[back][:, back], head.seen[back][:, back], both("whatif.shuffle"), notes


def _swap(question: Question, what: str) -> Changed:
    spec = question.options.get("position")
    if not isinstance(spec, str):
        raise HeadwayError(
            f"expected the option 'position', a method such as alibi, to swap {question.position.spec()} for, "
            f"got {brief(spec)}"
        )
    trace, made = _changes(question).swapped(spec)
    head = Head(trace[question.layer], question.head)
    notes: list[Said] = [both("whatif.swap.fresh", spec=spec)] if made else []
    change = both("whatif.swap", old=question.position.spec(), new=parse(spec).spec())
    return getattr(head, what), head.seen, change, notes


def _changes(question: Question) -> Changes:
    return question.recording.changes or _Ours(question.model, question.ids)


@dataclass(frozen=True)
class _Ours:
    """A model of headway's own; see :class:`Changes`."""

    model: Transformer
    ids: Tensor

    def shifted(self, by: int) -> Trace:
        pos = torch.arange(self.ids.shape[1], device=self.ids.device) + by
        return recorded(self.model, self.ids, pos=pos[None])

    def shuffled(self, order: Tensor) -> Trace:
        return recorded(self.model, self.ids[:, order])

    def swapped(self, spec: str) -> tuple[Trace, bool]:
        model, made = swapped(self.model, spec)
        return recorded(model, self.ids), made


def swapped(model: Transformer, spec: str, seed: int = 0) -> tuple[Transformer, bool]:
    """A copy of a model with another position method, and whether that has (untrained) parameters.

    Args:
        model: the model; it is not changed.
        spec: the new method.
        seed: seed of the new method's parameters.

    >>> model, made = swapped(Transformer(vocab=9, dim=16, heads=2, position="rotary"), "learned")
    >>> model.position.method_name(), made
    ('learned', True)
    """
    with seeded(seed):
        other = Transformer(replace(model.config, position=spec, share_position=None))
    weights = {name: x for name, x in model.state_dict().items() if ".position." not in name}
    missing = other.load_state_dict(weights, strict=False).missing_keys
    weight = model.embedding.weight
    return other.to(weight.device, weight.dtype).eval(), bool(missing)


def _whole(question: Question, name: str, default: int) -> int:
    given = question.options.get(name, default)
    if not isinstance(given, int):
        raise HeadwayError(f"expected the option {name!r} to be a whole number, got {brief(given)}")
    return given
