"""Stick-breaking attention. Tan et al. 2024, "Scaling Stick-Breaking Attention: An Efficient Implementation and
In-depth Study", arXiv:2410.17980.

    z_ij = q_i·k_j / √d_k,      α_ij = σ(z_ij) · Π_{j < t < i} σ(−z_it),      j < i

Going back from the query, each key breaks the share σ(z) off the rest of a stick of length 1. With the remainder,
what is left after the first token, Π_{t < i} σ(−z_it), is the weight of the query's own value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from headway.integers import assure
from headway.positions.base import Position, TermInputs
from headway.shapes import HeadwayError
from headway.terms import AnyTerm


@dataclass(eq=False)
class StickBreaking(Position):
    """Stick-breaking instead of softmax: each key, nearest first, takes its share of the rest (arXiv:2410.17980).

    Formula: α_ij = σ(z_ij)·Π_{j<t<i} σ(−z_it) over the keys before the query, z = q·k/√d_k. The weights themselves
    encode order: of two equal keys the nearer gets more. Nothing is learned or added to scores.

    Pitfalls: a query does not see itself, so the first token's output is zero and weights sum to less than 1, unless
    ``remainder`` gives the rest of the stick to the query's own value, as the authors' kernel allows (o + rem · v); a
    checkpoint was trained with one or the other. The nearer key is the later one in memory, so rows must not be
    shuffled; the future is masked even without a causal mask. Attention sinks are refused, because the rest of the
    stick already is one.

    Args:
        remainder: add Π_{t<i} σ(−z_it) · v_i, so that weights sum to 1; self attention only.

    >>> StickBreaking().normalise
    'stickbreaking'
    """

    title: ClassVar[str] = "Stick-breaking"
    paper: ClassVar[str] = "arXiv:2410.17980"
    summary: ClassVar[str] = "Instead of softmax, each key, starting with the nearest, takes its share of the rest."
    summary_zh: ClassVar[str] = "不用 softmax：从最近的键开始，每个键依次从剩余的权重中取走自己的一份。"
    normalise: ClassVar[str] = "stickbreaking"
    sequential: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("stickbreaking(remainder=True)",)

    exempt: ClassVar[dict[str, str]] = {
        "order": "the nearer key is the later one in memory",
        "encoder": "a query sees only earlier keys",
    }

    remainder: bool = False

    def __post_init__(self) -> None:
        if self.remainder:
            # of every other method a matter of its class
            vars(self)["normalise"] = "stickbreaking+remainder"
            alone = "the remainder goes to a query's own value, which a context does not contain"
            laws = ("cross", "narrow context", "tiles")
            vars(self)["exempt"] = type(self).exempt | dict.fromkeys(laws, alone)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """No terms; with ``remainder``, check that each query has its own key."""
        if self.remainder and look.start is not None:
            raise HeadwayError(
                "expected a cache that grows, because stickbreaking(remainder=True) looks for the query's own key "
                "at the end, got one with a size: make it without size"
            )
        queries, keys = look.q.shape[2], look.k.shape[2]
        if self.remainder and not torch.compiler.is_compiling() and look.q_pos is not look.k_pos:
            assure(
                queries <= keys and (look.q_pos == look.k_pos[:, keys - queries :]).all(),
                f"expected self attention, where each of {queries} queries is one of the newest of {keys} keys and "
                f"takes the remainder of its stick, got others: use stickbreaking without remainder",
            )
        return ()
