"""Multimodal rotary position embedding (M-RoPE). Wang et al. 2024, "Qwen2-VL", arXiv:2409.12191.

    pair i rotates by  x_a(i) · base^(−2i/r)        x  the token's time, row and column (t, h, w)
    chunked:      a(i) is t for the first pairs, then h, then w (Qwen2-VL)
    interleaved:  a(i) goes t, h, w, t, h, w … from the fastest pairs on, until h and w have their share (Qwen3-VL)

A text token has t = h = w = its position, and rotates exactly as in rotary.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.positions.rotary import Rotary, rotate_pairs, waves
from headway.shapes import HeadwayError

LAYOUTS = ("chunked", "interleaved")


@dataclass(eq=False)
class MRope(Rotary):
    """Rotary whose pairs are rotated by the time, row or column of a token (M-RoPE, arXiv:2409.12191).

    Formula: pair i of q and k rotates by x_a(i)·base^(−2i/r); axis a(i) is t, h or w by ``sections`` and ``layout``.
    Nothing is learned. Shapes: q (B, H, Q, d_k), k (B, H_kv, K, d_k) unchanged. Coordinates (t, h, w) come from
    ``coordinates=`` of Attention and Transformer; without them t = h = w = position, which is plain rotary.

    Pitfalls: chunked and interleaved are different models; in the chunked one w has only slow pairs. The vision
    towers of the same models rotate by row and column only, see :class:`Axial`.

    Args:
        base: see :class:`Rotary`; Qwen2-VL has 1000000, Qwen3-VL 5000000.
        fraction: see :class:`Rotary`.
        pairing: see :class:`Rotary`.
        sections: shares of t, h and w in the pairs; whole pairs are assigned in proportion, so that (16, 24, 24),
            Qwen2-VL's pairs at head width 128, works at every width. Qwen3-VL has (24, 20, 20).
        layout: "chunked" (Qwen2-VL) or "interleaved" (Qwen3-VL), where t gets the remainder.

    >>> MRope().axis(8, torch.device("cpu")).tolist()
    [0, 0, 1, 1, 1, 2, 2, 2]
    >>> MRope(sections=(24, 20, 20), layout="interleaved").axis(8, torch.device("cpu")).tolist()
    [0, 1, 2, 0, 1, 2, 0, 1]
    """

    title: ClassVar[str] = "M-RoPE"
    paper: ClassVar[str] = "arXiv:2409.12191"
    summary: ClassVar[str] = (
        "Rotary whose pairs are rotated by a token's time, row or column; text is as in plain rotary."
    )
    summary_zh: ClassVar[str] = "旋转位置编码的各对维度分别跟随时间、行或列；文本与普通旋转编码相同。"
    variants: ClassVar[tuple[str, ...]] = ("mrope(sections=(24, 20, 20), layout='interleaved')",)

    sections: tuple[float, ...] = (16, 24, 24)
    layout: str = "chunked"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sections) != 3 or min(self.sections) < 0 or not sum(self.sections) > 0:
            raise HeadwayError(
                f"expected three mrope sections, for time, row and column, none below 0, got {self.sections}"
            )
        if self.layout not in LAYOUTS:
            raise HeadwayError(f"expected mrope layout {' or '.join(LAYOUTS)}, got {self.layout!r}")

    @property
    def axes(self) -> int:
        """Time, row and column."""
        return 3

    def axis(self, pairs: int, device: torch.device) -> Int[Tensor, " {pairs}"]:
        """The coordinate that rotates each pair: 0 time, 1 row, 2 column."""
        ends = itertools.accumulate(self.sections)
        row, column = (round(pairs * end / sum(self.sections)) for end in itertools.islice(ends, 2))
        pair = torch.arange(pairs, device=device)
        if self.layout == "chunked":
            return (pair >= row).long() + (pair >= column)
        shares = torch.tensor((pairs, column - row, pairs - column), device=device)
        return (pair % 3) * (pair < 3 * shares[pair % 3])

    def rotate(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        q_pos: Int[Tensor, "#batch queries *axes"],
        k_pos: Int[Tensor, "#batch keys *axes"],
    ) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        """Rotate q and k by their coordinates, or by their positions."""
        if q_pos.ndim == 2:
            return super().rotate(q, k, q_pos, k_pos)
        rates = self.rates(self.width(q.shape[-1]), q.device)
        axis = self.axis(len(rates), q.device)
        q_waves, k_waves = (waves(pos[:, None, :, axis] * rates, x) for pos, x in ((q_pos, q), (k_pos, k)))
        return rotate_pairs(q, *q_waves, self.pairing), rotate_pairs(k, *k_waves, self.pairing)
