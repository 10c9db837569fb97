"""Context parallelism by all-gather: each rank's queries attend to the keys and values of all ranks.

Keys, values, positions and what a method keeps per token are collected in the text's order; terms are computed as in
one process. Exact with every method, also with those that sum along the text. Memory for keys and values is that of the
whole text, which with grouped queries is small; scores are computed for the rank's own queries alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from headway.attending import Attending
from headway.axes import changed
from headway.backends.base import Call
from headway.cache import Tokens
from headway.functional import as_seed, attend_checked
from headway.masks import Mask
from headway.parallel.sharding import Layout
from headway.terms import AnyTerm


@dataclass(frozen=True, eq=False)
class Way:
    """How keys and queries meet, a :class:`headway.attending.Spread`.

    Args:
        layout: how the text lies on the ranks.
    """

    layout: Layout

    def together(
        self, layer: Attending, tokens: Tokens, mask: Mask | None, terms: tuple[AnyTerm, ...], *, crosses: bool
    ) -> tuple[Tokens, Mask | None, tuple[AnyTerm, ...]]:
        """See :meth:`headway.attending.Spread.together`; where it is missing, latent attention is refused."""
        raise NotImplementedError

    def run(self, call: Call, backend: str) -> Tensor:
        """:func:`headway.parallel.attend`."""
        raise NotImplementedError


class AllGather(Way):
    """See the module."""

    def together(
        self, layer: Attending, tokens: Tokens, mask: Mask | None, terms: tuple[AnyTerm, ...], *, crosses: bool
    ) -> tuple[Tokens, Mask | None, tuple[AnyTerm, ...]]:
        """See :meth:`headway.attending.Spread.together`."""
        found = all_tokens(self.layout, layer, tokens)
        if found.marks is not None and not crosses:
            found = found._replace(own=self.layout.mine(found.marks, 1))
        mask = None if mask is None else changed(mask, self._over_keys)
        if not crosses:
            layer.check_order(found.pos, mask if mask is None else changed(mask, self._as_keys))
        return found, mask, tuple(changed(term, self._over_keys) for term in terms)

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
        tokens, mask, terms = self.together(layer, tokens, mask, terms, crosses=crosses)

        def weighed(
            q: Tensor,
            q_pos: Tensor,
            tokens: Tokens,
            mask: Mask | None,
            terms: tuple[AnyTerm, ...],
            seed: Tensor | None = None,
        ) -> Tensor:
            q, k, own = layer.prepared(q, tokens.k, q_pos, tokens, mask, None, crosses=crosses, given=True)
            return layer.weighed(q, k, tokens.v, mask, (*own, *terms), q_pos, tokens.pos, given=True, seed=seed)

        if not (layer.dropout and layer.training):
            return weighed(q, q_pos, tokens, mask, terms)
        # a piece at a time, so that the seed can count its queries from where they stand in the text
        seed, size, out = as_seed(None), q.shape[2] // self.layout.pieces, []
        for number, piece in enumerate(self.layout.own()):
            rows = slice(number * size, (number + 1) * size)
            own = None if tokens.own is None else tokens.own[:, rows]
            given = tuple(changed(term, of_queries(rows)) for term in terms)
            part = None if mask is None else changed(mask, of_queries(rows))
            moved = seed + ((piece * size) << 32)
            at = (q[:, :, rows], q_pos[:, rows], tokens._replace(own=own))
            out.append(weighed(*at, part, given, moved))
        return torch.cat(out, 2)

    def run(self, call: Call, backend: str) -> Tensor:
        """:func:`headway.parallel.attend`."""
        whole = self.layout.together
        call = replace(
            call,
            k=whole(call.k, 2),
            v=whole(call.v, 2),
            k_pos=whole(call.k_pos, 1),
            mask=None if call.mask is None else changed(call.mask, self._over_keys),
            terms=tuple(changed(term, self._over_keys) for term in call.terms),
            default_positions=False,
        )
        return attend_checked(call, backend)

    def _over_keys(self, x: Tensor, axes: str) -> Tensor:
        return self.layout.together(x, axes.index("k")) if "k" in axes else x

    def _as_keys(self, x: Tensor, axes: str) -> Tensor:
        """Documents of all queries, for the check of the tokens' order."""
        return self.layout.together(x, 1) if axes == "bq" else x


def all_tokens(layout: Layout, layer: Attending, tokens: Tokens) -> Tokens:
    """The tokens of all ranks in the text's order, with what the method carries along it."""
    k, v, pos = layout.together(tokens.k, 2), layout.together(tokens.v, 2), layout.together(tokens.pos, 1)
    return Tokens(k, v, pos, all_marks(layout, layer, tokens.marks, pos))


def all_marks(layout: Layout, layer: Attending, marks: Tensor | None, pos: Tensor) -> Tensor | None:
    """What the method keeps of each token of the text."""
    return None if marks is None else layer.position.carry(layout.together(marks, 1), pos, None)


def of_queries(rows: slice) -> Any:
    """A change to some of the queries."""

    def change(x: Tensor, axes: str) -> Tensor:
        if "q" not in axes:
            return x
        at = axes.index("q")
        return x if x.shape[at] == 1 else x.narrow(at, rows.start, rows.stop - rows.start)

    return change
