"""Rotary position embedding with several axes, for images and videos. Heo et al. 2024, "Rotary Position Embedding for
Vision Transformer", arXiv:2403.13298.

    axial:  pair i of the part of a head that belongs to axis a rotates by  x_a · base^(−2i/r)      r  width of the part
    mixed:  pair i of head h rotates by  Σ_a x_a · ω_h,a,i                                           ω  learned

x_a is the token's coordinate on axis a. q·k depends on differences of coordinates only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.positions.base import Position, angle_dtype, frequencies
from headway.positions.rotary import PAIRINGS, rotate_pairs, waves
from headway.positions.working import Line, Lines, Number, rate
from headway.shapes import HeadShape, HeadwayError


def raster(pos: Int[Tensor, "batch tokens"], sizes: Sequence[int]) -> Int[Tensor, "batch tokens axes"]:
    """Coordinates of tokens counted row by row, the last axis fastest.

    Args:
        pos: the index of each token.
        sizes: extents of all axes except the first, whose extent is arbitrary: (width,), or (height, width).

    >>> raster(torch.tensor([[0, 7, 8, 17]]), (8,)).tolist()
    [[[0, 0], [0, 7], [1, 0], [2, 1]]]
    """
    axes = []
    for size in reversed(sizes):
        axes.append(pos % size)
        pos = pos // size
    return torch.stack((pos, *reversed(axes)), -1)


@dataclass(eq=False)
class Axial(Position):
    """Rotary with one axis per part of the head, or with learned mixtures of axes (RoPE for ViT, arXiv:2403.13298).

    Formula: the d_k/2 pairs of a head are divided evenly among the axes, the first axes taking the remainder; pair i of
    an axis with m pairs rotates by x·base^(−i/m), x being the token's coordinate on that axis. With ``mixed`` every
    pair rotates by Σ_a x_a·ω_a. Shapes: q (B, H, Q, d_k), k (B, H_kv, K, d_k) unchanged. Learned, only with ``mixed``:
    ω (H_kv, 2, d_k/2), separate for each layer, initialised to the axial frequencies in randomly rotated directions,
    one per head, shared by the query heads of a group.

    Coordinates come from ``coordinates=`` of Attention and Transformer, slowest axis first: (y, x), or (t, y, x).
    Without them positions count tokens row by row: y = p // width and x = p % width; with three axes
    t = p // (width·height).

    Pitfalls: only coordinates are relative; shifting positions moves tokens to other rows. Libraries differ in the
    order of the axes and in the frequencies (Pixtral alternates those of one head-wide rotary between its two axes);
    weights trained with one pairing are wrong with the other.

    Args:
        dims: number of axes, 2 or 3.
        width: tokens per row, where no coordinates are given.
        height: rows per frame, likewise; for three axes.
        base: 100 in the paper (10 with ``mixed``); Qwen2-VL's vision tower has 10000.
        pairing: "half" as in Qwen2-VL and Pixtral, or "interleaved" as in the paper, see :class:`Rotary`.
        mixed: learn the frequencies of both axes for every pair (RoPE-Mixed); for two axes.

    >>> from headway import Attention
    >>> attention = Attention(dim=64, heads=4, position=Axial(width=16))
    >>> y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    >>> attention(torch.randn(2, 256, 64), coordinates=torch.stack((y, x), -1).view(1, 256, 2)).shape
    torch.Size([2, 256, 64])
    """

    title: ClassVar[str] = "Axial rotary"
    paper: ClassVar[str] = "arXiv:2403.13298"
    summary: ClassVar[str] = "Each part of a head is rotated by one coordinate, such as the row or column of an image."
    summary_zh: ClassVar[str] = "每个头的各部分按不同坐标旋转，例如图像的行与列。"
    sharding: ClassVar[dict[str, str]] = {"frequency": "gxx"}
    relative: ClassVar[bool] = False
    per_layer: ClassVar[bool] = True
    variants: ClassVar[tuple[str, ...]] = ("axial(dims=3, pairing='interleaved')", "axial(base=10.0, mixed=True)")

    dims: int = 2
    width: int = 8
    height: int = 8
    base: float = 100.0
    pairing: str = "half"
    mixed: bool = False

    def __post_init__(self) -> None:
        if self.dims not in (2, 3):
            raise HeadwayError(f"expected 2 or 3 axial dims, got {self.dims}: for one axis use rotary")
        if min(self.width, self.height) < 1:
            raise HeadwayError(f"expected axial width and height of at least 1, got {self.width} and {self.height}")
        if not 0 < self.base < math.inf:
            raise HeadwayError(f"expected a finite axial base above 0, got {self.base}")
        if self.pairing not in PAIRINGS:
            raise HeadwayError(f"expected axial pairing {' or '.join(PAIRINGS)}, got {self.pairing!r}")
        if self.mixed and self.dims != 2:
            raise HeadwayError(f"expected 2 axial dims, because mixed was given, got {self.dims}")

    @property
    def axes(self) -> int:
        """Number of coordinates per token."""
        return self.dims

    def build(self, shape: HeadShape) -> None:
        """Check that the head divides into pairs for every axis, and create ω."""
        if shape.head_dim % 2 or shape.head_dim < 2 * self.dims:
            raise HeadwayError(
                f"expected an even head width of at least {2 * self.dims}, because axial rotates pairs for each of "
                f"{self.dims} axes, got {shape.head_dim}: change heads or head_dim"
            )
        if self.mixed:
            self.frequency = nn.Parameter(torch.empty(shape.kv_heads, 2, shape.head_dim // 2))

    def reset_parameters(self) -> None:
        """For each head, one random direction for half of the pairs, and the perpendicular one for the rest."""
        if not self.mixed:
            return
        heads, _, pairs = self.frequency.shape
        size = frequencies(pairs, self.base, self.frequency.device).repeat(2)[:pairs]
        across = torch.arange(pairs, device=size.device) >= (pairs + 1) // 2
        angle = 2 * math.pi * torch.rand(heads, 1, device=size.device) + across * math.pi / 2
        with torch.no_grad():
            self.frequency.copy_(torch.stack((angle.sin(), angle.cos()), 1) * size)

    def rotate(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        q_pos: Int[Tensor, "#batch queries *axes"],
        k_pos: Int[Tensor, "#batch keys *axes"],
    ) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        """Rotate q and k by their coordinates."""
        q_waves = waves(self.angles(q_pos, q.shape[-1] // 2), q)
        k_waves = q_waves if k_pos is q_pos else waves(self.angles(k_pos, k.shape[-1] // 2), k)
        if self.mixed:
            groups = q.shape[1] // k.shape[1]
            cos, sin = (wave.repeat_interleave(groups, 1) for wave in q_waves)
            return rotate_pairs(q, cos, sin, self.pairing), rotate_pairs(k, *k_waves, self.pairing)
        return rotate_pairs(q, *q_waves, self.pairing), rotate_pairs(k, *k_waves, self.pairing)

    def angles(
        self, pos: Int[Tensor, "batch tokens *axes"], pairs: int
    ) -> Float[Tensor, "batch kv_heads tokens {pairs}"]:
        """Rotation angle of each pair, (B, 1, N, pairs), or with ``mixed`` (B, H_kv, N, pairs)."""
        where = pos if pos.ndim == 3 else raster(pos, (self.height, self.width)[3 - self.dims :])
        if self.mixed:
            parts = where.to(angle_dtype(pos.device))[:, None, :, :, None] * self.frequency[None, :, None]
            return parts.sum(-2)
        shares = [(pairs + self.dims - 1 - axis) // self.dims for axis in range(self.dims)]
        rates = [frequencies(2 * share, self.base, pos.device) for share in shares]
        return torch.cat([where[:, None, :, axis, None] * rates[axis] for axis in range(self.dims)], -1)

    def worked(self, number: Number) -> Lines:
        """The frequency of a pair along its own axis, and the angle at coordinate p; nothing for mixtures of axes."""
        if number.kind != "angle" or self.mixed:
            return ()
        pair, pairs = number.index, number.width // 2
        for axis in range(self.dims):
            share = (pairs + self.dims - 1 - axis) // self.dims
            if pair < share:
                break
            pair -= share
        value = frequencies(2 * share, self.base, number.at.device)[pair]
        return rate(self.base, f"{pair} / {share}", value), Line("φ", "p · ω", number.at * value)
