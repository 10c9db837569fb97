"""Contextual position encoding (CoPE). Golovneva et al. 2024, "Contextual Position Encoding: Learning to Count What's
Important", arXiv:2405.18719.

    score(i, j) = q_i·k_j / √d_k + q_i·e[p_ij]
    p_ij = Σ_{t=j…i} σ(q_i·k_t / √d_k)                               at most P − 1, P = positions
    e[p] = (p − ⌊p⌋) e[⌈p⌉] + (1 − p + ⌊p⌋) e[⌊p⌋]

The distance of a key counts the tokens in between, each weighted by a gate of the query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from headway.positions.base import Position, TermInputs
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, Scan


@dataclass(eq=False)
class Cope(Position):
    """Distances count the tokens in between, weighted by the query (CoPE, arXiv:2405.18719).

    Formula: q_i·e[p_ij] is added to the scores, p_ij = Σ σ(q_i·k_t/√d_k) over the keys t that query i sees from j to
    the last, clamped to positions − 1; between whole numbers e is interpolated. Learned: e (positions, d_k), shared by
    the heads of a layer, separate for each layer, initialised to zeros.

    Pitfalls: tokens are counted in the order they lie in memory, so rows must not be shuffled. Without a causal mask
    the count runs to the last token. The paper writes q·(k + e), but its appendix divides only q·k by √d_k, as
    here; its published training code divides both (``scaled``).

    Args:
        positions: number of vectors e; larger counts share the last one. 64 in the paper's language models.
        scaled: also multiply q·e by the scale of q·k.

    >>> Cope(positions=16).attach(HeadShape.of(64, heads=4)).table.shape
    torch.Size([16, 16])
    """

    title: ClassVar[str] = "CoPE"
    paper: ClassVar[str] = "arXiv:2405.18719"
    summary: ClassVar[str] = "Distance counts the tokens in between, each weighted by a gate of the query."
    summary_zh: ClassVar[str] = "距离是中间词元的计数，每个词元由查询的门控加权。"
    per_layer: ClassVar[bool] = True
    sequential: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("cope(positions=3, scaled=True)",)
    exempt: ClassVar[dict[str, str]] = {"order": "tokens are counted in the order they lie in memory"}

    positions: int = 64
    scaled: bool = False

    def __post_init__(self) -> None:
        if self.positions < 2:
            raise HeadwayError(f"expected cope positions of at least 2, got {self.positions}: a count needs two ends")

    def build(self, shape: HeadShape) -> None:
        """Make e."""
        self.table = nn.Parameter(torch.empty(self.positions, shape.head_dim))

    def reset_parameters(self) -> None:
        """Zeros: training starts without position."""
        nn.init.zeros_(self.table)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """q·e for every query and integer count, interpolated at the counts."""
        q = look.q * look.scale if self.scaled else look.q
        return (Scan(inclusive=True, table=q @ self.table.T.to(q.dtype)),)
