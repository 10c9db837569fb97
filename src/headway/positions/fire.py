"""Functional interpolation for relative position encoding (FIRE). Li et al. 2024, "Functional Interpolation for
Relative Positions Improves Long Context Transformers", arXiv:2310.04418.

    score(i, j) = q_i·k_j / √d_k + MLP( ψ(n) / ψ(max(pos_i, L)) )_h          n = |pos_i − pos_j|
    ψ(x) = ln(|c x| + 1),  L = |m · original|,  MLP(x) = W_2 relu(w_1 x + b_1) + b_2

c and m are learned scalars. A distance is taken as a share of the distance to the first token, so the network's input
stays between 0 and 1 at any length; near the start, where pos_i < L, all rows have the same divisor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from headway.integers import FAR, readable
from headway.positions.base import Position, TermInputs, angle_dtype
from headway.positions.working import Line, Lines, Number, plain
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, ByDistance, CurveByDistance, Pairwise

EPSILON = 1e-6
"""Added to the divisor, as in the paper's listing, so that it is never 0."""


@dataclass(eq=False)
class Fire(Position):
    """A bias per head that a network computes from the distance as a share of the query's position (arXiv:2310.04418).

    Formula: MLP(ψ(n)/ψ(max(pos_i, L)))_h is added to the scores, ψ(x) = ln(|c·x| + 1), n = |pos_i − pos_j|, L =
    |m·original|. Learned, separate for each layer: c from 0.1, m from 1, and the MLP with one hidden layer (w_1 and b_1
    uniform in ±1, W_2 (H, width) and b_2 uniform in ±1/√width).

    Relative only while all queries lie below L: beyond, the divisor is the query's own position. Below L the bias is a
    table by distance; with a query beyond L it is a piecewise linear curve, because the MLP has one input and ReLUs.
    Under torch.compile and on the meta device it is computed for each pair, by blocks of queries.

    Pitfalls: positions must count from the start of each document; the paper is causal, and its listing takes |n|, so
    future keys are as far as past ones.

    Args:
        original: initial value of L, 512 in the paper; at most the training length.
        width: width of the hidden layer.

    >>> position = Fire(original=100).attach(HeadShape.of(64, heads=4))
    >>> position.share(torch.tensor([0, 100, 500]), torch.tensor([1, 100, 500])).round(decimals=4).tolist()
    [0.0, 1.0, 1.0]
    """

    title: ClassVar[str] = "FIRE"
    paper: ClassVar[str] = "arXiv:2310.04418"
    summary: ClassVar[str] = "A small network computes a bias from the distance as a share of the query's position."
    summary_zh: ClassVar[str] = "由小型网络根据距离占查询位置的比例计算每个头的偏置。"
    sharding: ClassVar[dict[str, str]] = {"outer.weight": "hx", "outer.bias": "h"}
    relative: ClassVar[bool] = False
    per_layer: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("fire(original=4, width=8)",)

    exempt: ClassVar[dict[str, str]] = {
        "waiting": "whether its bias depends on distance alone is read from its learned L",
        "waiting for positions": "whether its bias depends on distance alone is read from its learned L",
    }

    original: int = 512
    width: int = 32

    def __post_init__(self) -> None:
        for name in ("original", "width"):
            if getattr(self, name) < 1:
                raise HeadwayError(f"expected fire {name} of at least 1, got {getattr(self, name)}")

    def build(self, shape: HeadShape) -> None:
        """Create c, m and the MLP."""
        self.c = nn.Parameter(torch.empty(()))
        self.m = nn.Parameter(torch.empty(()))
        self.inner = nn.Linear(1, self.width)
        self.outer = nn.Linear(self.width, shape.heads)

    def reset_parameters(self) -> None:
        """c = 0.1, m = 1, layers with torch's initialisation."""
        nn.init.constant_(self.c, 0.1)
        nn.init.ones_(self.m)
        self.inner.reset_parameters()
        self.outer.reset_parameters()

    def threshold(self) -> Float[Tensor, ""]:
        """L, float64."""
        return (self.m.to(angle_dtype(self.m.device)) * self.original).abs()

    def level(self, n: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ψ(n), float64."""
        return (self.c.to(self.threshold().dtype) * n).abs().log1p()

    def rate(self, query: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """1/ψ(max(query, L)), float64."""
        limit = self.threshold()
        return 1 / (self.level(torch.maximum(query.to(limit.dtype), limit)) + EPSILON)

    def share(self, n: Int[Tensor, "*#shape"], query: Int[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
        """ψ(n)/ψ(max(query, L)), float64."""
        return self.level(n) * self.rate(query)

    def network(self, look: TermInputs) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """w_1 and b_1, W_2 and b_2, float64."""
        # in float64 autocast leaves it alone: rounded to bfloat16, near distances would collide
        wide = self.threshold().dtype
        outer = look.of_heads(self.outer.weight).to(wide), look.of_heads(self.outer.bias).to(wide)
        return (self.inner.weight[:, 0].to(wide), self.inner.bias.to(wide)), outer

    def bias(self, share: Float[Tensor, "*shape"], look: TermInputs) -> Float[Tensor, "*shape heads"]:
        """The MLP."""
        (w, b), (weight, bias) = self.network(look)
        hidden = (share[..., None] * w + b).relu()
        return nn.functional.linear(hidden, weight, bias).to(torch.promote_types(look.q.dtype, torch.float32))

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """A table by distance while all queries lie below L, else a curve; a function where positions are unknown."""
        if not readable(look.q_pos, anywhere=True):

            def by_pairs(q_pos: Tensor, k_pos: Tensor) -> Tensor:
                query, key = q_pos[:, :, None], k_pos[:, None]
                return self.bias(self.share((query - key).abs(), query), look).permute(0, 3, 1, 2)

            return (Pairwise(by_pairs),)
        offset, left = look.offsets(FAR, FAR)
        if self._below(look.q_pos):
            share = self.share(offset.abs(), torch.zeros_like(offset))
            return (ByDistance(self.bias(share, look).T, left),)
        most = max(left, len(offset) - 1 - left)
        level = self.level(torch.arange(most + 1, device=look.q.device))
        return (CurveByDistance.of_network(level, self.rate(look.q_pos), *self.network(look)),)

    def _below(self, pos: Tensor) -> bool:
        return pos.numel() == 0 or int(pos.max()) < self.threshold().item()

    def worked(self, number: Number) -> Lines:
        """The share of a distance in the length, and the network's output, for the last query of the text."""
        if number.kind != "bias":
            return ()
        at, query = number.at, torch.full_like(number.at, number.length - 1)
        c, limit = float(self.c.detach()), float(self.threshold().detach())
        share, same = self.share(at, query).detach(), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        value = self.bias(share[None], TermInputs(same, same, at[None, None], at[None, None], 1.0))[0, number.index]
        return (
            Line("c", "c", c, "learned"),
            Line("L", "L", limit, "learned"),
            Line("ψ", "ln(abs(c · n) + 1)", float(self.level(at).detach())),
            Line("s", f"ψ / (ln(abs(c · max({number.length - 1}, L)) + 1) + {plain(EPSILON)})", share),
            Line("b", f"MLP(s)_{number.index}", value.detach(), "network"),
        )
