"""One head of one layer in every detail, for ``headway explain`` and the views of attention.

Q = X W_Q + b,  K, V likewise → position maps q and k → S = Q Kᵀ → · scale → + terms → mask → weights A → A V
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headway.attending import HeadWeights
from headway.inspect.record import ROWS, Layer, wide
from headway.inspect.split import split
from headway.inspect.watch import MATRICES
from headway.masks import ALL
from headway.shapes import HeadwayError, brief


class Cell(NamedTuple):
    """How one entry of Q, K or V is computed: Σ_m x_m W[m, column] + bias.

    Args:
        products: x_m · W[m, column], (d_model,).
        bias: bias of the column, 0 without one.
        sum: the entry as the model's own layer computes it, before QK-norm.
    """

    products: Float[Tensor, " dim"]
    bias: float
    sum: float


@dataclass(eq=False)
class Head:
    """One query head of a recorded layer, for one sequence; large tensors are computed on demand.

    Args:
        layer: a layer of a trace.
        index: which query head, from 0.
        rows: queries that matrices of queries × keys cover.
        batch: which sequence.

    Raises:
        HeadwayError: when there is no such head.

    >>> from headway import Attention
    >>> from headway.inspect import record
    >>> attention = Attention(dim=32, heads=4, position="rotary")
    >>> with record(attention) as trace:
    ...     _ = attention(torch.randn(1, 5, 32))
    >>> head = Head(trace[0], 3)
    >>> torch.allclose(sum(head.parts.values()), head.scores, atol=1e-5)
    True
    """

    layer: Layer
    index: int
    rows: slice = field(default_factory=lambda: ALL)
    batch: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.layer.heads:
            raise HeadwayError(f"expected a head from 0 to {self.layer.heads - 1}, got {self.index}")

    @property
    def group(self) -> int:
        """The key and value head it uses."""
        return self.index // self.layer.call.groups

    @property
    def x(self) -> Float[Tensor, "tokens dim"]:
        """The input of attention: of W_Q, W_K and W_V, unless they map latent vectors, see :meth:`source`."""
        return self.layer.x[self.batch]

    @cached_property
    def matrices(self) -> HeadWeights:
        """W_Q, W_K, W_V and W_O; in latent attention W_K is that of the part without position."""
        return self.layer.attention.head(self.index)

    @property
    def q(self) -> Float[Tensor, "tokens head_dim"]:
        """Queries before position transforms them, after QK-norm if there is one."""
        return self.layer.q[self.batch, self.index]

    @property
    def k(self) -> Float[Tensor, "keys head_dim"]:
        """Keys likewise; cached ones as stored in the cache."""
        return (self.layer.call.k if self.layer.k is None else self.layer.k)[self.batch, self.group]

    @property
    def v(self) -> Float[Tensor, "keys head_dim"]:
        """Values, before position turns them."""
        return self._turned_back(self.layer.call.k_pos)

    def received(self, row: int) -> Float[Tensor, "keys head_dim"]:
        """Values as a query receives them: turned by the distance where a method turns values."""
        return self._turned_back(self.layer.call.q_pos[:, row, None])

    def _turned_back(self, pos: Int[Tensor, "#batch #keys"]) -> Float[Tensor, "keys head_dim"]:
        v, position = self.layer.call.v[self.batch, self.group], self.layer.attention.position
        if not position.turns_values:
            return v
        at = pos[self.batch % len(pos)].expand(len(v))
        return position.turn_values(v[None, None], at[None], back=True)[0, 0]

    @property
    def mapped_q(self) -> Float[Tensor, "tokens dim_r"]:
        """Queries as they enter the scores."""
        return self.layer.call.q[self.batch, self.index]

    @property
    def mapped_k(self) -> Float[Tensor, "keys dim_r"]:
        """Keys likewise."""
        return self.layer.call.k[self.batch, self.group]

    @cached_property
    def parts(self) -> dict[str, Float[Tensor, "rows keys"]]:
        """Content and position of the scores, as :func:`headway.inspect.split` names them."""
        return self._blocks(lambda rows: split(self.layer, rows).parts)

    @cached_property
    def scores(self) -> Float[Tensor, "rows keys"]:
        """scale · q·k and every term, before the mask."""
        return self._block(self.layer.scores)

    @cached_property
    def weights(self) -> Float[Tensor, "rows keys"]:
        """Attention weights; 0 where masked."""
        return self._block(self.layer.weights)

    @cached_property
    def output(self) -> Float[Tensor, "rows dim_v"]:
        """The output of the head: Σ_j α_ij v_j, plus what a method adds to the values."""
        return self._block(self.layer.output)

    @cached_property
    def seen(self) -> Bool[Tensor, "rows keys"]:
        """Which keys the queries see."""
        seen = self.layer.seen(self.rows)
        queries = len(range(self.layer.queries)[self.rows])
        if seen is None:
            return torch.ones(queries, self.layer.keys, dtype=torch.bool, device=self.x.device)
        shape = (len(self.layer.x), self.layer.heads, queries, self.layer.keys)
        return seen.expand(shape)[self.batch, self.index]

    def linear(self, which: str) -> tuple[nn.Linear, int]:
        """The layer that computes Q, K or V of all heads, and this head's first column in its output.

        Raises:
            HeadwayError: when ``which`` is not "q", "k" or "v".
        """
        if which not in MATRICES:
            raise HeadwayError(f"expected a matrix q, k or v, got {brief(which)}")
        linear: nn.Linear = getattr(self.layer.attention, which)
        return linear, (self.index if which == "q" else self.group) * self.layer.attention.columns(which)

    def source(self, which: str) -> Float[Tensor, "tokens dim"]:
        """What Q, K or V is computed from: the input of attention, or in latent attention a latent vector."""
        latents = self.layer.latents
        if latents is not None:
            return (latents.q if which == "q" else latents.kv)[self.batch]
        return self.x if which == "q" else self.layer.source[self.batch]

    def projected(self, which: str) -> Float[Tensor, "tokens head_dim"]:
        """Q, K or V as the model's own layer computes it, before QK-norm; K without its decoupled part."""
        linear, first = self.linear(which)
        out: Tensor = linear(self.source(which)).detach()
        return out[:, first : first + self.layer.attention.columns(which)]

    def bias(self, which: str) -> Float[Tensor, " head_dim"] | None:
        """The bias of each column of Q, K or V; None without one."""
        linear, first = self.linear(which)
        if linear.bias is None:
            return None
        return linear.bias.detach()[first : first + self.layer.attention.columns(which)]

    def cell(self, which: str, token: int, column: int) -> Cell:
        """How one entry of Q, K or V is computed.

        Raises:
            HeadwayError: when there is no such token or column.
        """
        x, width = self.source(which), self.layer.attention.columns(which)
        tokens = len(x)
        if not (0 <= token < tokens and 0 <= column < width):
            raise HeadwayError(
                f"expected a cell of {which} within {tokens} tokens and {width} columns, got {token}, {column}"
            )
        bias = self.bias(which)
        weights: Tensor = getattr(self.matrices, which)
        return Cell(
            wide(x[token]) * wide(weights[:, column]),
            0.0 if bias is None else float(bias[column]),
            float(self.projected(which)[token, column]),
        )

    def _block(self, compute: Callable[[slice], Tensor]) -> Tensor:
        return self._blocks(lambda rows: {"": compute(rows)})[""]

    def _blocks(self, compute: Callable[[slice], dict[str, Tensor]]) -> dict[str, Tensor]:
        """This head's part of a result for all heads, in blocks of rows: at once it would take heads · n² values."""
        found: dict[str, list[Tensor]] = {}
        wanted = range(self.layer.queries)[self.rows]
        for start in range(wanted.start, wanted.stop, ROWS):
            for name, tile in compute(slice(start, min(start + ROWS, wanted.stop))).items():
                found.setdefault(name, []).append(tile[self.batch, self.index].detach())
        return {name: torch.cat(tiles) for name, tiles in found.items()}
