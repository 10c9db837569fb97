"""Relative position bias in two dimensions. Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using
Shifted Windows", arXiv:2103.14030; continuous in Liu et al. 2022, "Swin Transformer V2: Scaling Up Capacity and
Resolution", arXiv:2111.09883.

    score(i, j) = q_i·k_j · scale + B_h[y_i − y_j, x_i − x_j]            position p = y·width + x
    V1: B_h is a learned table, (2·height − 1) × (2·width − 1)
    V2: B_h[Δy, Δx] = 16·σ(MLP(s(Δy), s(Δx))_h),  s(Δ) = sign(Δ)·log₂(1 + |8Δ/(m − 1)|) / log₂ 8

with m the height or width of the window that V2 was trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.positions.base import Position, TermInputs, angle_dtype
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, ByDistance


def by_offset(bias: Float[Tensor, "heads rows columns"]) -> ByDistance:
    """B[y_i − y_j + height − 1, x_i − x_j + width − 1], as a table by distance; rows farther away get no bias.

    >>> bias = torch.arange(15.0).view(1, 3, 5)  # a window of 2 × 3 tokens
    >>> pos = torch.arange(9)[None]
    >>> by_offset(bias).tile(pos[:, 3:4], pos)[0, 0].tolist()
    [[12.0, 11.0, 10.0, 7.0, 6.0, 5.0, 2.0, 1.0, 0.0]]
    >>> by_offset(bias).tile(pos[:, :1], pos)[0, 0, 0, 6:].tolist()
    [0.0, 0.0, 0.0]
    """
    # from query minus key, as published, to key minus query
    table = nn.functional.pad(bias.flatten(1).flip(1), (1, 1))
    return ByDistance(table, table.shape[1] // 2, row=(bias.shape[2] + 1) // 2)


def _check(name: str, least: int, **sizes: int) -> None:
    for size, value in sizes.items():
        if value < least:
            raise HeadwayError(f"expected {name} {size} of at least {least}, got {value}")


@dataclass(eq=False)
class Swin(Position):
    """A learned bias per head for each offset of rows and columns (Swin, arXiv:2103.14030).

    Formula: B_h[y_i − y_j, x_i − x_j] is added to the scores, where position p is the token in row y = p // width and
    column x = p % width. Learned: B (H, 2·height − 1, 2·width − 1), entry 0 for the offset −(size − 1), initialised
    N(0, 0.02²) and truncated at ±2 standard deviations, separate for each layer.

    Pitfalls: tokens are numbered row by row, so ``width`` must be that of the image or window; shifting all positions
    by anything but whole rows breaks the rows. Keys in rows farther away than the window get no bias. Another window
    needs another table, see :meth:`resized`. This method does not cut an image into windows: pass them as a batch, or
    mask them with :class:`headway.masks.Documents`.

    Args:
        height: rows of the window.
        width: columns of the window.

    >>> Swin(height=2, width=3).attach(HeadShape.of(64, heads=4)).weight.shape
    torch.Size([4, 3, 5])
    """

    title: ClassVar[str] = "Swin bias"
    paper: ClassVar[str] = "arXiv:2103.14030"
    summary: ClassVar[str] = "A learned bias per head is added to scores for each offset of rows and columns."
    summary_zh: ClassVar[str] = "为每个头学习一张按行列偏移索引的偏置表，加到注意力分数上。"
    sharding: ClassVar[dict[str, str]] = {"weight": "hxx"}
    relative: ClassVar[bool] = False
    per_layer: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("swin(height=3, width=5)",)

    height: int = 7
    width: int = 7

    def __post_init__(self) -> None:
        _check("swin", 1, height=self.height, width=self.width)

    def build(self, shape: HeadShape) -> None:
        """Make B."""
        self.weight = nn.Parameter(torch.empty(shape.heads, 2 * self.height - 1, 2 * self.width - 1))

    def reset_parameters(self) -> None:
        """B ~ N(0, 0.02²), truncated at ±0.04."""
        nn.init.trunc_normal_(self.weight, std=0.02, a=-0.04, b=0.04)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """B by offset."""
        return (by_offset(look.of_heads(self.weight)),)

    def resized(self, height: int, width: int) -> Self:
        """The same bias for another window, with bicubically resampled table, as in the paper's fine-tuning.

        Args:
            height: rows of the new window.
            width: columns of the new window.

        Raises:
            HeadwayError: when it has no table yet.

        >>> Swin().attach(HeadShape.of(64, heads=4)).resized(12, 12).weight.shape
        torch.Size([4, 23, 23])
        """
        if self.shape is None:
            raise HeadwayError("expected swin with its table, got one without: attach it first")
        other = type(self)(height, width).attach(self.shape).to(self.weight)
        size = tuple(other.weight.shape[1:])
        with torch.no_grad():
            other.weight.copy_(nn.functional.interpolate(self.weight[None], size, mode="bicubic")[0])
        return other


@dataclass(eq=False)
class SwinV2(Position):
    """A bias computed by a small network from log-scaled offsets of rows and columns (arXiv:2111.09883).

    Formula: 16·σ(MLP(s(Δy), s(Δx))_h) is added to the scores, Δ = query minus key, with
    s(Δ) = sign(Δ)·log₂(1 + |8Δ/(m − 1)|) / log₂ 8, m the height or width of the window it was trained on, and
    MLP = W₂ relu(W₁ · + b₁). Learned, in each layer: W₁ (hidden, 2), W₂ (H, hidden) ~ N(0, 0.02²), b₁ (hidden) = 0.

    Pitfalls: those of :class:`Swin`, but the same network serves another window: give ``height`` and ``width`` the new
    size, ``trained_height`` and ``trained_width`` the old one. V2 also replaces the product of q and k by their cosine
    divided by a learned temperature per head; Attention's ``qk_norm`` comes close to that.

    Args:
        height: rows of the window.
        width: columns of the window.
        trained_height: rows of the window it was trained on; 0 is ``height``.
        trained_width: columns of the window it was trained on; 0 is ``width``.
        hidden: width of the network.

    >>> sorted(name for name, _ in SwinV2().attach(HeadShape.of(64, heads=4)).named_parameters())
    ['inner.bias', 'inner.weight', 'outer.weight']
    """

    title: ClassVar[str] = "Swin V2 bias"
    paper: ClassVar[str] = "arXiv:2111.09883"
    summary: ClassVar[str] = "A small network computes a bias from the log-scaled offset of rows and columns."
    summary_zh: ClassVar[str] = "由小型网络根据行列偏移的对数生成偏置，加到注意力分数上。"
    sharding: ClassVar[dict[str, str]] = {"outer.weight": "hx"}
    relative: ClassVar[bool] = False
    per_layer: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("swinv2(height=3, width=5, trained_height=2, trained_width=4, hidden=16)",)

    height: int = 8
    width: int = 8
    trained_height: int = 0
    trained_width: int = 0
    hidden: int = 512

    def __post_init__(self) -> None:
        _check("swinv2", 1, height=self.height, width=self.width, hidden=self.hidden)
        _check("swinv2", 0, trained_height=self.trained_height, trained_width=self.trained_width)

    def build(self, shape: HeadShape) -> None:
        """Make the network."""
        self.inner = nn.Linear(2, self.hidden)
        self.outer = nn.Linear(self.hidden, shape.heads, bias=False)

    def reset_parameters(self) -> None:
        """Weights ~ N(0, 0.02²); the bias is zero."""
        nn.init.normal_(self.inner.weight, std=0.02)
        nn.init.normal_(self.outer.weight, std=0.02)
        nn.init.zeros_(self.inner.bias)

    def offsets(self, device: torch.device) -> Float[Tensor, "rows columns 2"]:
        """(s(Δy), s(Δx)) of every offset, query minus key.

        >>> SwinV2(height=2, width=3).offsets(torch.device("cpu"))[:, 0, 0].tolist()
        [-1.0566416671474375, 0.0, 1.0566416671474375]
        """
        axes = []
        for size, trained in ((self.height, self.trained_height), (self.width, self.trained_width)):
            offset = torch.arange(1 - size, size, dtype=angle_dtype(device), device=device) * (
                8 / max((trained or size) - 1, 1)
            )
            axes.append(offset.sign() * (offset.abs() + 1).log2() / math.log2(8))
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """The network's bias by offset."""
        offsets = self.offsets(look.q.device)
        # in the offsets' float64, which autocast does not round to bfloat16 as it would float32
        inner, start, outer = (x.to(offsets) for x in (self.inner.weight, self.inner.bias, self.outer.weight))
        hidden = nn.functional.linear(offsets, inner, start).relu()
        bias = 16 * nn.functional.linear(hidden, look.of_heads(outer)).sigmoid()
        return (by_offset(bias.permute(2, 0, 1).to(torch.promote_types(look.q.dtype, torch.float32))),)
