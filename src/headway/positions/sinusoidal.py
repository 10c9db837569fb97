"""Sinusoidal position vectors. Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762.

    P[pos, 2i]   = sin(pos / base^(2i/d))          d  width of the embedding
    P[pos, 2i+1] = cos(pos / base^(2i/d))          i = 0 … d/2−1, base = 10000
    X' = X + P[pos]

Fixed and periodic (wavelengths 2π … base·2π); nothing is learned. P[pos+k] is a rotation of P[pos] by an angle that
depends on k alone, which lets a layer learn to attend by offset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.positions.base import Position, frequencies
from headway.positions.working import Line, Lines, Number, plain
from headway.shapes import HeadwayError

LAYOUTS = ("interleaved", "split")


@dataclass(eq=False)
class Sinusoidal(Position):
    """Sinusoidal position vectors, added to the embedding (arXiv:1706.03762).

    Formula: P[pos, 2i] = sin(pos·base^(−2i/d)), P[pos, 2i+1] = cos(pos·base^(−2i/d)); shapes: x (B, N, d) → (B, N, d).

    Pitfalls: libraries order the columns differently (``layout``) and space the frequencies differently
    (``endpoint``); its entries are of size 1, so embeddings should be too (Vaswani et al. multiply them by √d, as
    ``Transformer`` does).

    Args:
        base: 10000 in the paper; wavelengths run from 2π to nearly base·2π tokens.
        layout: "interleaved" is sin, cos, sin, cos … as in the paper; "split" is all sines, then all cosines, as in
            tensor2tensor and fairseq.
        endpoint: divide exponents by d/2−1 instead of d/2, so that the slowest wavelength is base·2π exactly, as in
            tensor2tensor and fairseq.

    >>> Sinusoidal()(torch.zeros(1, 2, 4))[0, 0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """

    title: ClassVar[str] = "Sinusoidal"
    paper: ClassVar[str] = "arXiv:1706.03762"
    summary: ClassVar[str] = "Fixed sines and cosines of the position are added to the embedding."
    summary_zh: ClassVar[str] = "把位置的固定正弦和余弦加到词嵌入上。"
    relative: ClassVar[bool] = False

    base: float = 10000.0
    variants: ClassVar[tuple[str, ...]] = ("sinusoidal(layout='split')", "sinusoidal(layout='split', endpoint=True)")

    layout: str = "interleaved"
    endpoint: bool = False

    def __post_init__(self) -> None:
        if not 1 < self.base < math.inf:
            raise HeadwayError(f"expected a finite sinusoidal base above 1, got {self.base}")
        if self.layout not in LAYOUTS:
            raise HeadwayError(f"expected sinusoidal layout {' or '.join(LAYOUTS)}, got {self.layout!r}")

    def vectors(self, pos: Int[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape dim"]:
        """The position vectors, float64."""
        angles = pos[..., None] * frequencies(dim, self.base, pos.device, endpoint=self.endpoint)
        waves = (angles.sin(), angles.cos())
        both = torch.cat(waves, -1) if self.layout == "split" else torch.stack(waves, -1).flatten(-2)
        return both[..., :dim]  # an odd width drops the last cosine

    def embed(
        self, x: Float[Tensor, "batch tokens dim"], pos: Int[Tensor, "#batch tokens"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """X + P[pos]."""
        return x + self.vectors(pos, x.shape[-1]).to(x.dtype)

    def worked(self, number: Number) -> Lines:
        """The sine or cosine of an entry."""
        if number.kind != "vector":
            return ()
        return self.entry(f"P[p, {number.index}]", "p", number.at, number.index, number.width)

    def entry(self, name: str, symbol: str, at: Tensor, index: int, dim: int) -> Lines:
        """Entry ``index`` of the vectors of width ``dim`` at positions that a symbol stands for."""
        pairs = (dim + 1) // 2
        wave, pair = divmod(index, pairs) if self.layout == "split" else (index % 2, index // 2)
        exponent = f"{pair} / {max(pairs - 1, 1)}" if self.endpoint else f"{2 * pair} / {dim}"
        angle = at * frequencies(dim, self.base, at.device, endpoint=self.endpoint)[pair]
        formula = f"{symbol} / {plain(self.base)}^({exponent})"
        value = angle.cos() if wave else angle.sin()
        return Line("φ", formula, angle), Line(name, f"{'cos' if wave else 'sin'}({formula})", value)
