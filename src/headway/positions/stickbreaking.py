"""Stick-breaking attention. Tan et al. 2024, "Scaling Stick-Breaking Attention: An Efficient Implementation and
In-depth Study", arXiv:2410.17980.

    z_ij = q_i·k_j / √d_k,      α_ij = σ(z_ij) · Π_{j < t < i} σ(−z_it),      j < i

From the query backwards each key breaks the share σ(z) off what is left of a stick of length 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headway.positions.base import Position


@dataclass(eq=False)
class StickBreaking(Position):
    """Keys take their share of a stick one after the other, nearest first, instead of by softmax (arXiv:2410.17980).

    Formula: α_ij = σ(z_ij)·Π_{j<t<i} σ(−z_it) over the keys before the query, z = q·k/√d_k. Order is in the weights
    themselves: of two equal keys the nearer gets more. Nothing learned, nothing added to scores.

    Pitfalls: a query does not see itself, so the first token's output is zero; weights sum to less than 1; what is
    nearer is what lies later in memory, so rows must not be shuffled; without a causal mask the future stays hidden
    all the same. Attention sinks are refused: the rest of the stick is one already.

    >>> StickBreaking().normalise
    'stickbreaking'
    """

    title: ClassVar[str] = "Stick-breaking"
    paper: ClassVar[str] = "arXiv:2410.17980"
    summary: ClassVar[str] = "Instead of softmax, each key from the nearest on takes its share of what is left."
    summary_zh: ClassVar[str] = "不用 softmax：从最近的键开始，每个键依次从剩余的权重中取走自己的一份。"
    normalise: ClassVar[str] = "stickbreaking"

    exempt: ClassVar[dict[str, str]] = {
        "order": "the nearer key is the one that lies later in memory",
        "encoder": "a query sees only what lies before it",
    }
