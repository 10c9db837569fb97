"""Rotary position embedding (RoPE). Su et al. 2021, "RoFormer", arXiv:2104.09864.

    (q_a, q_b) ← (q_a cos θ − q_b sin θ,  q_b cos θ + q_a sin θ)      θ = pos · base^(−2i/r)
    and the same for k; pair i = (a, b) is taken from the first r dimensions of a head; base = 10000.

q_i·k_j then depends on positions only through pos_i − pos_j: rotating both by the same angle changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.positions.base import Position, frequencies
from headway.positions.steady import Turning
from headway.positions.working import Line, Lines, Number, rate
from headway.shapes import HeadShape, HeadwayError

PAIRINGS = ("half", "interleaved")


@dataclass(eq=False)
class Rotary(Position):
    """Rotary position embedding (RoPE, arXiv:2104.09864): queries and keys are rotated by their positions.

    Formula: pair i of q and k is rotated by pos·base^(−2i/r), r = fraction·d_k. Nothing is learned or added to scores.
    Shapes: q (B, H, Q, d_k), k (B, H_kv, K, d_k) unchanged. Angles are computed in float64, whatever the model's dtype.

    Pitfalls: weights trained with one pairing are wrong with the other; with ``fraction`` below 1 the exponent runs
    over the rotated width r (GPT-NeoX), not the head width. It extrapolates poorly past the training length,
    see :func:`headway.positions.extend`.

    Args:
        base: 10000 in the paper; larger bases rotate more slowly and suit longer contexts.
        fraction: share of each head that is rotated: its first r = fraction·d_k dimensions, r even.
        pairing: "half" pairs dimension i with i + r/2 (GPT-NeoX, Llama); "interleaved" pairs 2i with 2i+1 (RoFormer,
            GPT-J).

    >>> q, pos = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[1]])
    >>> Rotary().rotate(q, q, pos, pos)[0].flatten().tolist()  # cos 1, sin 1
    [0.5403022766113281, 0.8414709568023682]
    """

    title: ClassVar[str] = "Rotary (RoPE)"
    paper: ClassVar[str] = "arXiv:2104.09864"
    summary: ClassVar[str] = "Queries and keys are rotated by their positions; scores depend on the difference only."
    summary_zh: ClassVar[str] = "按位置旋转查询和键，分数只取决于两者之差。"
    steady: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = (
        "rotary(pairing='interleaved')",
        "rotary(fraction=0.5)",
        "rotary(base=500000.0, fraction=0.25, pairing='interleaved')",
    )

    base: float = 10000.0
    fraction: float = 1.0
    pairing: str = "half"

    def __post_init__(self) -> None:
        if not 0 < self.base < math.inf:
            raise HeadwayError(f"expected a finite rotary base above 0, got {self.base}")
        if not 0 < self.fraction <= 1:
            raise HeadwayError(f"expected rotary fraction above 0 and at most 1, got {self.fraction}")
        if self.pairing not in PAIRINGS:
            raise HeadwayError(f"expected rotary pairing {' or '.join(PAIRINGS)}, got {self.pairing!r}")

    def build(self, shape: HeadShape) -> None:
        """Check that the head divides into pairs."""
        self.width(shape.head_dim)

    def width(self, head_dim: int) -> int:
        """Number of rotated dimensions of a head, r."""
        if self.fraction == 1 and head_dim % 2:
            raise HeadwayError(
                f"expected an even head width, because rotary rotates pairs, got {head_dim}: "
                f"change heads or head_dim, or give fraction below 1"
            )
        # rounded first: 30 / 44 · 44 is a little below 30
        width = int(round(self.fraction * head_dim, 6)) // 2 * 2
        if width == 0:
            raise HeadwayError(
                f"expected rotary to rotate at least one pair, got fraction={self.fraction} of {head_dim}"
            )
        return width

    def rotate(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        q_pos: Int[Tensor, "#batch queries"],
        k_pos: Int[Tensor, "#batch keys"],
    ) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        """Rotate q and k by their positions."""
        return self.rotated(q, k, q_pos, k_pos, self.rates(self.width(q.shape[-1]), q.device))

    def rates(self, width: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """Radians per token of each pair, (r/2,), float64; scaled variants of rotary override this.

        Args:
            width: number of rotated dimensions of a head, r.
            device: device of the result.
        """
        return frequencies(width, self.base, device)

    def amplitude(self) -> float:
        """Factor of the cosines and sines of q and of k; the rotated part of q·k grows by its square."""
        return 1.0

    def turning(self, dim: int, device: torch.device) -> Turning | None:
        """The rates, the amplitude and the pairing."""
        return Turning(self.rates(self.width(dim), device), self.amplitude(), self.pairing == "interleaved")

    def rotated(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        q_pos: Int[Tensor, "#batch queries"],
        k_pos: Int[Tensor, "#batch keys"],
        rates: Float[Tensor, "*#each pairs"],
    ) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        """Rotate q and k by position · rate, with this method's amplitude.

        Args:
            q: queries.
            k: keys.
            q_pos: positions of the queries.
            k_pos: positions of the keys.
            rates: radians per token of each pair, (r/2,), or per sequence and pair, (B, 1, 1, r/2).
        """
        q_waves = self._waves(q_pos, rates, q)
        k_waves = q_waves if k_pos is q_pos else self._waves(k_pos, rates, k)
        return rotate_pairs(q, *q_waves, self.pairing), rotate_pairs(k, *k_waves, self.pairing)

    def worked(self, number: Number) -> Lines:
        """The frequency of a pair, and its angle."""
        if number.kind != "angle":
            return ()
        lines = self.rate_lines(number, self.width(number.width))
        return *lines, Line("φ", "p · ω", number.at * lines[-1].value)

    def rate_lines(self, number: Number, width: int) -> Lines:
        """How the rate of a pair is worked out; scaled variants of rotary add theirs."""
        value = frequencies(width, self.base, number.at.device)[number.index]
        return (rate(self.base, f"{2 * number.index} / {width}", value),)

    def _unscaled(self, number: Number, width: int) -> Line:
        """The frequency before it is scaled."""
        return Rotary.rate_lines(self, number, width)[0]._replace(name="ω0")

    def _waves(self, pos: Tensor, rates: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = waves(pos[:, None, :, None] * rates, like)  # (B, 1, N, r/2)
        amplitude = self.amplitude()
        return (cos, sin) if amplitude == 1 else (cos * amplitude, sin * amplitude)


def waves(angles: Float[Tensor, "*shape"], like: Tensor) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """cos and sin of angles, in the dtype of ``like`` but at least float32."""
    precise = torch.promote_types(like.dtype, torch.float32)
    return angles.cos().to(precise), angles.sin().to(precise)


def many_waves(
    angles: Float[Tensor, "*shape"], like: Tensor
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """:func:`waves` of angles in float64 that each head or each text has of its own, where most of the time would go
    into cos and sin.
    """
    if like.dtype != torch.float64 and angles.device.type == "cpu" and not torch.compiler.is_compiling():
        from headway.backends.native import rotate

        if rotate.fits_waves(angles):
            return rotate.waves(angles)
    return waves(angles, like)


def rotate_pairs(
    x: Float[Tensor, "batch heads tokens dim"],
    cos: Float[Tensor, "#batch #heads #tokens pairs"],
    sin: Float[Tensor, "#batch #heads #tokens pairs"],
    pairing: str = "half",
) -> Float[Tensor, "batch heads tokens dim"]:
    """Rotate the first pairs of x by the angles with these cosines and sines; the rest of x is unchanged.

    Args:
        x: queries or keys; the result has its dtype.
        cos: cosine of the angle of each pair.
        sin: sine of the angle of each pair.
        pairing: as in :class:`Rotary`.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        from headway.backends.native import rotate

        if rotate.fits(x, cos, sin):
            return rotate.rotate(x, cos, sin, pairing == "interleaved")
    width = 2 * cos.shape[-1]
    turned, rest = x[..., :width].to(cos.dtype), x[..., width:]
    if pairing == "half":
        a, b = turned.chunk(2, -1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    turned = turned.to(x.dtype)
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned
