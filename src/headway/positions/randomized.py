"""Randomized positions. Ruoss et al. 2023, "Randomized Positional Encodings Boost Length Generalization of
Transformers", arXiv:2305.16843.

    position p ← the p-th smallest of n positions drawn from 0 … L−1 without replacement

for a sequence of n tokens, sampled again at every training step; L is far above every test length. It wraps any other
method, which learns the positions of long sequences from short ones.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.integers import Integers, as_positions, readable
from headway.positions.along import Before
from headway.positions.base import Position, TermInputs
from headway.positions.working import Lines, Number
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm


@dataclass(eq=False)
class Randomized(Position):
    """Another method whose positions are sampled again at every training step (arXiv:2305.16843).

    Formula: in training, position p becomes the p-th smallest of n distinct positions drawn from 0 … longest − 1, n
    being the sequence's last position + 1. Equal positions stay equal, as in packed documents; -1 stays padding. Shapes
    and parameters are those of the inner method. Positions come from torch's global generator, so that a seed
    reproduces them. Each row of positions is sampled separately; a batch without positions shares one sample, as in the
    authors' code.

    In evaluation, and with a cache, positions are unchanged. The paper samples them there too; to do so, pass them:
    ``model(tokens, pos=position.renumber(pos))``.

    Pitfalls: distances are random as well: in training a window counts sampled positions. A method with a table needs
    an entry for each of the ``longest`` positions. Coordinates are not sampled.

    Args:
        method: the inner method, as a string: "rotary(base=500000.0)".
        longest: L, number of positions to sample from; 2048 in the paper.

    Raises:
        HeadwayError: in training, when a position reaches ``longest``.

    >>> _ = torch.manual_seed(0)
    >>> Randomized(longest=100).renumber(torch.tensor([[-1, 0, 1, 2, 2]])).tolist()
    [[-1, 12, 83, 94, 94]]
    """

    title: ClassVar[str] = "Randomized positions"
    paper: ClassVar[str] = "arXiv:2305.16843"
    summary: ClassVar[str] = "Wraps another method and trains it on ordered random positions from a much longer range."
    summary_zh: ClassVar[str] = "训练时从更长的范围中按序随机抽取位置，再交给另一种方法。"
    variants: ClassVar[tuple[str, ...]] = ("randomized(method='t5')", "randomized(method='sinusoidal', longest=300)")

    method: str = "rotary"
    longest: int = 2048

    def __post_init__(self) -> None:
        from headway.positions.registry import parse  # which lists this file

        if self.longest < 1:
            raise HeadwayError(f"expected randomized longest of at least 1, got {self.longest}")
        self.inside = parse(self.method)
        if isinstance(self.inside, Randomized):
            raise HeadwayError(f"expected a method whose positions are not drawn already, got {self.method!r}")
        # of every other method a matter of its class
        for name in (
            "relative",
            "per_layer",
            "normalise",
            "sequential",
            "contiguous",
            "neighbours",
            "unbroken",
            "by_length",
        ):
            vars(self)[name] = getattr(self.inside, name)

    @property
    def embeds(self) -> bool:
        """Whether the inner method acts on the embedding."""
        return self.inside.embeds

    def build(self, shape: HeadShape) -> None:
        """Attach the inner method."""
        self.inside.attach(shape)
        vars(self)["sharding"] = {
            f"inside.{name}": letters for name, letters in self.inside.sharding.items() if name != "marks"
        }

    def reset_parameters(self) -> None:
        """Initialise the parameters of the inner method."""
        self.inside.reset_parameters()

    def check_last(self, last: int) -> None:
        """Refuse a position past those that are drawn in training, or past the inner method's."""
        if self.training:
            self._check_longest(last)
        else:
            self.inside.check_last(last)

    def _check_longest(self, last: int) -> None:
        if last >= self.longest:
            raise HeadwayError(
                f"expected positions below longest={self.longest}, from which they are drawn, got {last}: "
                f"give randomized a larger longest"
            )

    def renumber(self, pos: Int[Tensor, "#batch tokens"]) -> Int[Tensor, "batch tokens"]:
        """Random positions for given ones, in training or not."""
        if pos.numel() and readable(pos):
            self._check_longest(int(pos.max()))
        order = torch.rand(pos.shape[0], self.longest, device=pos.device).argsort(-1)
        count = (pos.amax(-1, keepdim=True) if pos.shape[-1] else pos.new_zeros(len(pos), 1)) + 1
        surplus = torch.arange(self.longest, device=pos.device) >= count
        chosen = order.masked_fill(surplus, self.longest).sort(-1).values
        # neither a compiled graph nor a GPU that nobody waits for can raise by value: torch's own index check stops it
        return chosen.gather(-1, pos.clamp(min=0)).masked_fill(pos < 0, -1)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        pos: Integers | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """See :meth:`Position.forward`; in training, at random positions."""
        if self.training and self.embeds and isinstance(x, Tensor) and x.ndim == 3:
            pos = self.renumber(as_positions(pos, x))
        return super().forward(x, pos)

    def embed(
        self, x: Float[Tensor, "batch tokens dim"], pos: Int[Tensor, "#batch tokens"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """As in the inner method."""
        return self.inside.embed(x, pos)

    def rotate(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim_k"],
        q_pos: Int[Tensor, "#batch queries"],
        k_pos: Int[Tensor, "#batch keys"],
    ) -> tuple[Float[Tensor, "batch heads queries dim_r"], Float[Tensor, "batch kv_heads keys dim_r"]]:
        """As in the inner method."""
        return self.inside.rotate(q, k, q_pos, k_pos)

    @property
    def turns_values(self) -> bool:
        """As in the inner method."""
        return self.inside.turns_values

    def turn_values(
        self, v: Float[Tensor, "batch heads tokens dim"], pos: Int[Tensor, "#batch tokens"], *, back: bool = False
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """As in the inner method."""
        return self.inside.turn_values(v, pos, back=back)

    def of_key_heads(self, heads: slice) -> AbstractContextManager[None]:
        """See :meth:`Position.of_key_heads`."""
        return self.inside.of_key_heads(heads)

    def worked(self, number: Number) -> Lines:
        """What the method inside says of these positions."""
        return self.inside.worked(number)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """As in the inner method."""
        return self.inside.terms(look)

    def mark(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens *rest"] | None:
        """As in the inner method."""
        return self.inside.mark(x)

    def carry(
        self, marks: Float[Tensor, "batch tokens *rest"], pos: Int[Tensor, "#batch tokens"], before: Before | None
    ) -> Float[Tensor, "batch tokens *held"]:
        """As in the inner method."""
        return self.inside.carry(marks, pos, before)

    def transform_qk(
        self, look: TermInputs
    ) -> tuple[Float[Tensor, "batch heads queries dim_r"], Float[Tensor, "batch kv_heads keys dim_r"]]:
        """As in the inner method."""
        return self.inside.transform_qk(look)
