"""Context parallelism by all-to-all (DeepSpeed Ulysses, arXiv:2309.14509): each rank has some heads for all tokens.

Queries, keys and values go from "my tokens, all heads" to "all tokens, my heads", and the output goes back. A method
computes its terms for these heads alone; what it keeps per token is collected whole, because it is small. Heads need
not divide by the number of ranks; key heads that several ranks need go to all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headway.attending import Attending
from headway.axes import changed
from headway.backends.base import Call
from headway.cache import Tokens
from headway.functional import as_seed, attend_checked
from headway.masks import Mask
from headway.parallel.gathering import Way, all_marks
from headway.shapes import HeadwayError
from headway.terms import AnyTerm


@dataclass(frozen=True)
class Heads:
    """Which query heads each rank has.

    Args:
        heads: of the layer.
        ranks: how many ranks share them.

    >>> Heads(6, 4).of(1), Heads(6, 3).among(2, 1)
    ([1, 2], [0, 1])
    """

    heads: int
    ranks: int

    def of(self, rank: int) -> list[int]:
        """The query heads of a rank, side by side."""
        return list(range(rank * self.heads // self.ranks, (rank + 1) * self.heads // self.ranks))

    def among(self, size: int, rank: int) -> list[int]:
        """Which of ``size`` key heads a rank's query heads use: each once if all serve equally many, else one for each
        query head.
        """
        used = [head * size // self.heads for head in self.of(rank)]
        once = sorted(set(used))
        each = len(used) // len(once)
        return once if used == [head for head in once for _ in range(each)] else used


class Ulysses(Way):
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
        heads, ranks = self._heads(q.shape[1]), self.layout.ranks
        pos = self.layout.together(tokens.pos, 1)
        q_pos = self.layout.together(q_pos, 1) if crosses else pos
        q, k, v = (self.to_heads(x, heads, 1, 2) for x in (q, tokens.k, tokens.v))
        tokens = Tokens(k, v, pos, all_marks(self.layout, layer, tokens.marks, pos))

        def change(x: Tensor, axes: str) -> Tensor:
            return self._changed(x, axes, heads)

        mask = None if mask is None else changed(mask, change)
        if not crosses:
            layer.check_order(pos, mask)
        mine = torch.tensor(heads.of(ranks.rank), device=q.device)
        q, k, own = layer.prepared(q, k, q_pos, tokens, mask, None, crosses=crosses, given=True, heads=mine)
        terms = (*own, *(changed(term, change) for term in terms))
        seed = other_seed(ranks.rank) if layer.dropout and layer.training else None
        out = layer.weighed(q, k, v, mask, terms, q_pos, pos, given=True, seed=seed, heads=mine)
        return self.to_tokens(out, heads)

    def run(self, call: Call, backend: str) -> Tensor:
        """:func:`headway.parallel.attend`."""
        heads, whole = self._heads(call.q.shape[1]), self.layout.together

        def change(x: Tensor, axes: str) -> Tensor:
            return self._changed(x, axes, heads)

        q, k, v = (self.to_heads(x, heads, 1, 2) for x in (call.q, call.k, call.v))
        mine = heads.of(self.layout.ranks.rank)
        call = replace(
            call,
            q=q,
            k=k,
            v=v,
            q_pos=whole(call.q_pos, 1),
            k_pos=whole(call.k_pos, 1),
            mask=None if call.mask is None else changed(call.mask, change),
            terms=tuple(changed(term, change) for term in call.terms),
            sinks=None if call.sinks is None else call.sinks[mine],
            seed=None if call.seed is None else other_seed(self.layout.ranks.rank, call.seed),
            default_positions=False,
        )
        return self.to_tokens(attend_checked(call, backend), heads)

    def _heads(self, heads: int) -> Heads:
        if heads < self.layout.ranks.size:
            raise HeadwayError(
                f"expected at least {self.layout.ranks.size} heads, one for each process, because how='ulysses' "
                f"divides heads, got {heads}: use how='all-gather' or 'ring'"
            )
        return Heads(heads, self.layout.ranks.size)

    def _changed(self, x: Tensor, axes: str, heads: Heads) -> Tensor:
        """A tensor of a mask or term over all tokens and this rank's heads."""
        token = next((axes.index(letter) for letter in "qk" if letter in axes), None)
        head = next((axes.index(letter) for letter in "hg" if letter in axes), None)
        if head is not None and x.shape[head] > 1:
            if token is not None:
                return self.to_heads(x, heads, head, token)
            return x.index_select(head, torch.tensor(heads.among(x.shape[head], self.layout.ranks.rank)).to(x.device))
        return x if token is None else self.layout.together(x, token)

    def to_heads(self, x: Tensor, heads: Heads, head: int, token: int) -> Tensor:
        """From this rank's tokens and all heads to all tokens and this rank's heads.

        Args:
            x: a tensor.
            heads: which rank has which.
            head: the axis of heads.
            token: the axis of tokens.
        """
        if x.shape[head] == 1:
            return self.layout.together(x, token)
        ranks = self.layout.ranks
        wanted = [heads.among(x.shape[head], rank) for rank in range(ranks.size)]
        own = len(wanted[ranks.rank])
        sent = x.movedim(head, 0)[[one for of_rank in wanted for one in of_rank]]
        moved = ranks.exchanged(sent, [len(of_rank) for of_rank in wanted], [own] * ranks.size)
        return self.layout.whole(tuple(part.movedim(0, head) for part in moved.split(own)), token)

    def to_tokens(self, out: Tensor, heads: Heads) -> Tensor:
        """The output of this rank's heads for all tokens, (B, h, N, D), as that of all heads for this rank's tokens."""
        ranks, own = self.layout.ranks, out.shape[1]
        size = out.shape[2] // (self.layout.pieces * ranks.size)
        order = [piece for rank in range(ranks.size) for piece in self.layout.own(rank)]
        pieces = torch.cat([out.narrow(2, piece * size, size) for piece in order], 2)
        sent = torch.cat(pieces.movedim(1, 0).chunk(ranks.size, 2)) if ranks.size > 1 else out.movedim(1, 0)
        back = [len(heads.of(rank)) for rank in range(ranks.size)]
        return ranks.exchanged(sent, [own] * ranks.size, back).movedim(0, 1)


def other_seed(number: int, seed: Tensor | None = None) -> Tensor:
    """A seed of dropout for each of several calls, from one, or from torch's generator.

    >>> bool(other_seed(1, torch.tensor([3])) != other_seed(2, torch.tensor([3])))
    True
    """
    return as_seed(seed) ^ ((number * 0x9E3779B1) & 0xFFFFFFFF)
