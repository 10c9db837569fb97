"""Sinusoidal position vectors of images. He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners",
arXiv:2111.06377.

    P[y, x] = [S(y) ‖ S(x)]        S  the sinusoidal vectors of half the width d/2:
    S(p) = [sin(p ω_0) … sin(p ω_m−1) ‖ cos(p ω_0) … cos(p ω_m−1)]        ω_i = base^(−i/m), m = d/4
    X' = X + P
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.positions.axial import raster
from headway.positions.sinusoidal import Sinusoidal
from headway.positions.working import Line, Lines, Number
from headway.shapes import HeadwayError


@dataclass(eq=False)
class Sinusoidal2D(Sinusoidal):
    """Sinusoidal vectors of row and column, side by side, added to the embedding (MAE, arXiv:2111.06377).

    Formula: X' = X + [S(y) ‖ S(x)], S the vectors of :class:`Sinusoidal` at half the width; shapes: x (B, N, d) →
    (B, N, d). Nothing is learned. Coordinates (y, x) come from ``coordinates=`` of Attention and Transformer, or go to
    :meth:`embed` as (B, N, 2); without them positions count patches row by row, y = p // width, x = p % width.

    Pitfalls: ``width`` must be that of the image where positions are counted; MAE's first release put x before y.

    Args:
        base: 10000 in the paper.
        layout: "split" as in MAE, or "interleaved", see :class:`Sinusoidal`.
        endpoint: see :class:`Sinusoidal`.
        width: patches per row, where no coordinates are given.

    >>> Sinusoidal2D(width=2)(torch.zeros(1, 3, 8))[0, 2].tolist()[4:]  # patch 2 begins the second line: x = 0
    [0.0, 0.0, 1.0, 1.0]
    """

    title: ClassVar[str] = "2D sinusoidal"
    paper: ClassVar[str] = "arXiv:2111.06377"
    summary: ClassVar[str] = "Fixed sines and cosines of row and column are added to half of the embedding each."
    summary_zh: ClassVar[str] = "把行与列的固定正弦和余弦加到词嵌入上，各占一半维度。"
    variants: ClassVar[tuple[str, ...]] = ("sinusoidal2d(layout='interleaved', width=3)",)

    layout: str = "split"
    width: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1:
            raise HeadwayError(f"expected sinusoidal2d width of at least 1, got {self.width}")

    @property
    def axes(self) -> int:
        """Row and column."""
        return 2

    def embed(
        self, x: Float[Tensor, "batch tokens dim"], pos: Int[Tensor, "#batch tokens *axes"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """X + [S(y) ‖ S(x)]."""
        where = pos if pos.ndim == 3 else raster(pos, (self.width,))
        half = x.shape[-1] // 2
        parts = (self.vectors(where[..., 0], x.shape[-1] - half), self.vectors(where[..., 1], half))
        return x + torch.cat(parts, -1).to(x.dtype)

    def worked(self, number: Number) -> Lines:
        """The row or the column of a position, and the entry of its vector."""
        if number.kind != "vector":
            return ()
        half, name = number.width // 2, f"P[p, {number.index}]"
        first, row = number.width - half, number.at // self.width
        if number.index < first:
            y = Line("y", f"⌊p / {self.width}⌋", row)
            return y, *self.entry(name, "y", row, number.index, first)
        x = Line("x", f"p − {self.width} · ⌊p / {self.width}⌋", number.at % self.width)
        return x, *self.entry(name, "x", number.at % self.width, number.index - first, half)
