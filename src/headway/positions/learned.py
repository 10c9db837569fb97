"""Learned absolute position vectors, as in BERT and GPT-2. Gehring et al. 2017, "Convolutional Sequence to Sequence
Learning", arXiv:1705.03122.

    X' = X + E[pos]                E  learned table (max_length, d)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.integers import readable
from headway.positions.base import Position
from headway.positions.working import Line, Lines, Number
from headway.shapes import HeadShape, HeadwayError


@dataclass(eq=False)
class Learned(Position):
    """One learned vector per position, added to the embedding (arXiv:1705.03122; BERT, GPT-2).

    Formula: X' = X + E[pos]; learned: E (max_length, d), initialised N(0, 0.02²); shapes: x (B, N, d) → (B, N, d).

    Pitfalls: positions at or past ``max_length`` have no vector, so a longer text is an error; positions are never
    clamped. Rows that training never reached keep their random initialisation. :func:`headway.positions.extend` makes a
    longer table.

    Args:
        max_length: number of positions, each with one vector.

    Raises:
        HeadwayError: when a position is at or past ``max_length``, or there is no table yet.

    >>> position = Learned(max_length=128).attach(16)
    >>> position(torch.zeros(2, 10, 16)).shape
    torch.Size([2, 10, 16])
    """

    title: ClassVar[str] = "Learned absolute"
    paper: ClassVar[str] = "arXiv:1705.03122"
    summary: ClassVar[str] = (
        "A learned vector for each position is added to the embedding; positions beyond the table are an error."
    )
    summary_zh: ClassVar[str] = "为每个位置学习一个向量，加到词嵌入上；超出表长的位置会报错。"
    relative: ClassVar[bool] = False

    exempt: ClassVar[dict[str, str]] = {"autocast": "position 16000 is past its table"}
    variants: ClassVar[tuple[str, ...]] = ("learned(max_length=40)",)

    max_length: int = 512

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise HeadwayError(f"expected learned max_length of at least 1, got {self.max_length}")

    def build(self, shape: HeadShape) -> None:
        """Create E."""
        self.weight = nn.Parameter(torch.empty(self.max_length, shape.dim))

    def reset_parameters(self) -> None:
        """E ~ N(0, 0.02²)."""
        nn.init.normal_(self.weight, std=0.02)

    def check_last(self, last: int) -> None:
        """Refuse a position past the table."""
        if last >= self.max_length:
            raise HeadwayError(
                f"expected positions below max_length={self.max_length}, got {last}: learned positions cannot go "
                f"past their table; train with a larger max_length, or use rotary, alibi or t5"
            )

    def embed(
        self, x: Float[Tensor, "batch tokens dim"], pos: Int[Tensor, "#batch tokens"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """X + E[pos]; padding is unchanged."""
        if self.shape is None:
            raise HeadwayError(
                f"expected Learned with its table, got one without: call .attach({x.shape[-1]}) once, "
                f"before making an optimizer"
            )
        if x.shape[-1] != self.weight.shape[1]:
            raise HeadwayError(f"expected embeddings of width {self.weight.shape[1]}, got {x.shape[-1]}")
        # neither a compiled graph nor a GPU that nobody waits for can raise by value: torch's own index check stops it
        if pos.numel() and readable(pos):
            self.check_last(int(pos.max()))
        vectors = nn.functional.embedding(pos.clamp(min=0), self.weight)
        return x + vectors.masked_fill((pos < 0)[..., None], 0.0).to(x.dtype)

    def worked(self, number: Number) -> Lines:
        """The entry of the table."""
        if number.kind != "vector":
            return ()
        name = f"E[p, {number.index}]"
        return (Line(name, name, self.weight.detach()[number.at, number.index], "learned"),)
