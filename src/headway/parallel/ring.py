"""Context parallelism in a ring (arXiv:2310.01889): keys and values travel from rank to rank, and none holds them all.

Each rank attends to the keys that are with it and merges the results by the logarithms of their sums. Backward sends
keys and values around once more, and their gradients with them, to arrive where they belong. So memory is O(tokens of
the rank), forward and backward; while the next keys arrive, those here are computed with.

    forward    out = Σ_s z_s e^(m_s − m) out_s / z                s the rank that keys came from, m and z its rows'
                                                                  greatest scores and sums of exp(score − m)
    backward   ds_ij = e^(s_ij − m_i) / z_i · g_i·(v_j − out_i)   for the keys of a rank, with m, z and out of all
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from headway.attending import Attending
from headway.axes import changed
from headway.backends.base import Call, Partial
from headway.cache import Tokens
from headway.functional import check, folded, part_of
from headway.masks import Mask
from headway.parallel.gathering import Way
from headway.parallel.merging import joined
from headway.parallel.sharding import Layout
from headway.parallel.ulysses import other_seed
from headway.shapes import HeadwayError
from headway.terms import AnyTerm, MixHeads, Pairwise, RowTerm

Build = Callable[[Tensor, "Given", int], Call]


class Ring(Way):
    """See the module."""

    def attend(
        self,
        layer: Attending,
        q: Tensor,
        q_pos: Tensor,
        tokens: Tokens,
        mask: Mask | None,
        terms: tuple[AnyTerm, ...],
        *,
        crosses: bool,
    ) -> Tensor:
        """See :meth:`headway.attending.Spread.attend`."""
        check_given(terms)
        dropout = layer.dropout if layer.training else 0.0
        seed = other_seed(self.layout.ranks.rank) if dropout else None

        def build(q: Tensor, given: Given, source: int) -> Call:
            k, v, pos, *marks = given.tokens
            mask, terms = given.mask, given.terms
            some = Tokens(k, v, pos, marks[0] if marks else None, own=given.own)
            q, k, own = layer.prepared(q, k, q_pos, some, mask, None, crosses=crosses, given=True)
            check_given(own)
            rest = (layer.scale, layer.position.normalise, layer.softcap, None, dropout)
            drops = None if seed is None else other_seed(source, seed)
            return check(q, k, v, mask, (*own, *terms), q_pos, pos, *rest, drops, looked_at=True)

        marks = [] if tokens.marks is None else [tokens.marks]
        travelling = [tokens.k, tokens.v, tokens.pos, *marks]
        job = Job(self.layout, build, mask, terms, layer.core.backend, _learned(layer), len(travelling))
        return job.run(q, travelling, layer.own_sinks(q), tokens.marks)

    def run(self, call: Call, backend: str) -> Tensor:
        """:func:`headway.parallel.attend`."""
        if call.normalise != "softmax":
            raise HeadwayError(
                f"expected normalise='softmax' with how='ring', which merges parts of a softmax, got "
                f"{call.normalise!r}: use how='all-gather' or 'ulysses'"
            )
        check_given(call.terms)

        def build(q: Tensor, given: Given, source: int) -> Call:
            k, v, pos = given.tokens
            terms, seed = given.terms, None if call.seed is None else call.seed
            if seed is not None:
                seed = other_seed(source, other_seed(self.layout.ranks.rank, seed))
            new: dict[str, Any] = {"q": q, "k": k, "v": v, "k_pos": pos, "mask": given.mask, "terms": terms}
            return replace(call, **new, sinks=None, seed=seed, default_positions=False)

        job = Job(self.layout, build, call.mask, call.terms, backend, [], 3)
        return job.run(call.q, [call.k, call.v, call.k_pos], call.sinks)


def check_given(terms: Sequence[AnyTerm]) -> None:
    """Refuse terms that no part of the keys can be computed with.

    Raises:
        HeadwayError: on terms of whole rows, and on functions, whose gradients would be lost.
    """
    for term in terms:
        row = isinstance(term, RowTerm) and not (isinstance(term, MixHeads) and term.first.shape[-1] == 1)
        if row or isinstance(term, Pairwise):
            why = "all keys of a query at once" if row else "a function, whose gradients a ring cannot carry"
            raise HeadwayError(
                f"expected terms of single pairs of tokens with how='ring', got {type(term).__name__}, which is of "
                f"{why}: use how='all-gather'"
            )


def _learned(layer: Attending) -> list[Tensor]:
    """The parameters from which a layer makes its terms."""
    return [parameter for parameter in layer.position.parameters() if parameter.requires_grad]


@dataclass(frozen=True, eq=False)
class Given:
    """What one part of the keys is computed from.

    Args:
        tokens: keys, values, positions, and what a method keeps of each.
        own: what it keeps of the queries.
        mask: over these keys.
        terms: over these keys, those that were given to the call.
    """

    tokens: Sequence[Tensor]
    own: Tensor | None
    mask: Mask | None
    terms: tuple[AnyTerm, ...]


class Job:
    """Attention over all keys, a part at a time.

    Args:
        layout: how the text lies on the ranks.
        build: the call over a part, from the queries, what belongs to the part, and the rank it comes from.
        mask: over this rank's queries and keys.
        terms: likewise.
        backend: that of the layer.
        learned: parameters that ``build`` uses.
        tokens: how many of what travels are tokens; the rest are tensors of masks and terms with an entry per key.
    """

    def __init__(
        self,
        layout: Layout,
        build: Build,
        mask: Mask | None,
        terms: tuple[AnyTerm, ...],
        backend: str,
        learned: list[Tensor],
        tokens: int,
    ) -> None:
        self.layout, self.build, self.mask, self.terms = layout, build, mask, terms
        self.backend, self.learned, self.tokens = backend, learned, tokens

    def run(self, q: Tensor, travelling: list[Tensor], sinks: Tensor | None, own: Tensor | None = None) -> Tensor:
        """The output."""
        travels, stays = list(travelling), [x for x in (sinks, own) if x is not None]
        self.sunk, self.marked = sinks is not None, own is not None

        def sort(x: Tensor, axes: str) -> Tensor:
            (travels if "k" in axes else stays).append(x)
            return x

        for part in self._parts():
            changed(part, sort)
        self.travels = len(travels)
        out: Tensor = _Ring.apply(self, q, *travels, *stays, *self.learned)  # type: ignore[no-untyped-call]
        return out

    def call(self, q: Tensor, travels: Sequence[Tensor], stays: Sequence[Tensor], source: int) -> Call:
        """The call over the keys that came from a rank."""
        keys, others = iter(travels[self.tokens :]), iter(stays[self.sunk :])
        own = next(others) if self.marked else None

        def take(x: Tensor, axes: str) -> Tensor:
            if "k" in axes:
                return next(keys)
            x = next(others)
            return self._columns(x, axes.index("n"), source) if "n" in axes else x

        made = [changed(part, take) for part in self._parts()]
        mask: Any = None if self.mask is None else made.pop(0)
        given = Given(travels[: self.tokens], own, mask, tuple(made))
        return folded(self.build(q, given, source))

    def kernel(self, call: Call) -> ModuleType:
        """What computes a part."""
        return part_of(call, self.backend)

    def _parts(self) -> Iterator[Any]:
        yield from () if self.mask is None else (self.mask,)
        yield from self.terms

    def _columns(self, x: Tensor, dim: int, source: int) -> Tensor:
        """The columns of a rank's keys in a tensor over the whole text."""
        size = x.shape[dim] // (self.layout.pieces * self.layout.ranks.size)
        return torch.cat([x.narrow(dim, number * size, size) for number in self.layout.own(source)], dim)


class _Ring(torch.autograd.Function):
    """Two rounds: one forward, one backward."""

    @staticmethod
    def forward(ctx: Any, job: Job, q: Tensor, *given: Tensor) -> Tensor:
        """Merge the parts as they arrive."""
        travels, stays = given[: job.travels], given[job.travels : len(given) - len(job.learned)]
        ranks, parts = job.layout.ranks, list(travels)
        whole: Partial | None = None
        for step in range(ranks.size):
            passing = ranks.passed(parts) if step < ranks.size - 1 else None
            call = job.call(q, parts, stays, (ranks.rank - step) % ranks.size)
            found = job.kernel(call).partial(call)
            whole = found if whole is None else joined(whole, found)
            parts = parts if passing is None else passing.arrived()
        assert whole is not None
        if job.sunk:
            sink = stays[0].to(whole.total.dtype)[:, None].expand_as(whole.total)
            whole = joined(whole, Partial(torch.zeros_like(whole.out), sink, torch.ones_like(sink)))
        out = whole.out.to(q.dtype)
        ctx.job, ctx.device = job, q.device.type
        ctx.autocast = torch.is_autocast_enabled(ctx.device), torch.get_autocast_dtype(ctx.device)
        ctx.save_for_backward(out, whole.greatest, whole.total, q, *travels, *stays)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Send the parts around again, and their gradients with them."""
        job: Job = ctx.job
        out, greatest, total, q, *given = ctx.saved_tensors
        whole = Partial(out.detach(), greatest, total)
        need = ctx.needs_input_grad[1 : 2 + len(given)]
        enabled, dtype = ctx.autocast
        with torch.autocast(ctx.device, dtype=dtype, enabled=enabled):
            own, travelling, learned = _around(job, grad.contiguous(), whole, q, given, need)
        if job.sunk and need[1 + job.travels]:
            # the weight of a sink is what the keys leave of 1, and its value is zero
            sink = given[job.travels].to(total.dtype)
            mean = (grad.to(total.dtype) * out.to(total.dtype)).sum(-1)
            own[1] = -((sink[:, None] - greatest).exp() / total * mean).sum((0, 2)).to(given[job.travels].dtype)
        return None, own[0], *travelling, *own[1:], *learned


def _around(
    job: Job, grad: Tensor, whole: Partial, q: Tensor, given: Sequence[Tensor], need: Sequence[bool]
) -> tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None]]:
    """The gradients of the queries and of what stays, of what travels, and of parameters."""
    travels, stays, ranks = given[: job.travels], given[job.travels :], job.layout.ranks
    moved_need, kept_need = need[1 : 1 + job.travels], (need[0], *need[1 + job.travels :])
    kept = _Sums([q, *stays], kept_need)
    moved, learned = _Sums(travels, moved_need), _Sums(job.learned, [True] * len(job.learned))
    parts = list(travels)
    for step in range(ranks.size):
        passing = ranks.passed(parts) if step < ranks.size - 1 else None
        with torch.enable_grad():
            here, there = _leaves([q, *stays], kept_need), _leaves(parts, moved_need)
            call = job.call(here[0], there, here[1:], (ranks.rank - step) % ranks.size)
            made = job.kernel(call).within(call, whole)
            wanted = [x for x in (*here, *there) if x.requires_grad] + job.learned
            found = iter(torch.autograd.grad(made, wanted, grad.to(made.dtype), allow_unused=True) if wanted else ())
        kept.add(here, found)
        moved.add(there, found)
        learned.add(job.learned, found)
        moved.totals = ranks.passed(moved.totals).arrived()
        parts = parts if passing is None else passing.arrived()
    return kept.results(), moved.results(), learned.results()


def _leaves(tensors: Sequence[Tensor], need: Sequence[bool]) -> list[Tensor]:
    return [x.detach().requires_grad_(want) for x, want in zip(tensors, need, strict=True)]


class _Sums:
    """The gradients of some tensors, summed in float32 or better."""

    def __init__(self, of: Sequence[Tensor], need: Sequence[bool]) -> None:
        self.of, self.need = of, need
        self.totals = [
            x.new_zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32))
            for x, want in zip(of, need, strict=True)
            if want
        ]

    def add(self, leaves: Sequence[Tensor], found: Iterator[Tensor | None]) -> None:
        """Add the next gradients, of those leaves that need one."""
        wanted = [x for x in leaves if x.requires_grad]
        for total, _ in zip(self.totals, wanted, strict=True):
            gradient = next(found)
            if gradient is not None:
                total.add_(gradient)

    def results(self) -> list[Tensor | None]:
        """The gradients in the tensors' own dtypes, None where none is needed."""
        left = iter(self.totals)
        return [next(left).to(x.dtype) if want else None for x, want in zip(self.of, self.need, strict=True)]
