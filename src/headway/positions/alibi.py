"""Attention with linear biases (ALiBi). Press et al. 2022, "Train Short, Test Long", arXiv:2108.12409.

    score(i, j) = q_i·k_j / √d_k − m_h · |pos_i − pos_j|
    m_h = 2^(−8h/H), h = 1 … H, for H a power of two

For other H, as published in the authors' code: the slopes of the largest power of two below H, then every second slope
of the next one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.positions.base import Position, TermInputs
from headway.positions.working import Line, Lines, Number, plain
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, ByDistance


def slopes(heads: int, device: torch.device | None = None) -> Float[Tensor, " heads"]:
    """The slope m of each head, float64.

    >>> slopes(4).tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    whole = 2 ** int(math.log2(heads))
    slope = torch.exp2(-8 / whole * torch.arange(1, whole + 1, device=device).double())
    if whole < heads:
        finer = torch.exp2(-4 / whole * torch.arange(1, 2 * whole + 1, device=device).double())
        slope = torch.cat((slope, finer[0::2][: heads - whole]))
    return slope


SIDES = ("alike", "own", "half")
HIDDEN = -1e30
"""Added on the side that a one-sided head does not see: its weight is 0, and a row of nothing else is not NaN."""


@dataclass(eq=False)
class Alibi(Position):
    """A penalty linear in the distance, with a slope per head (ALiBi, arXiv:2108.12409).

    Formula: −m_h·|pos_i − pos_j| is added to the scores, m_h = 2^(−8h/H). The same formula serves causal attention and,
    without a causal mask, symmetric two-sided attention. Any number of heads; any length. Nothing is learned by
    default; with ``learned``, ln m (H, 1 or 2), initialised to the values above.

    Pitfalls: the plain formula is wrong for H = 12 and every other H that is not a power of two (see the module). Steep
    heads do not reach far tokens, so low perplexity on long texts may come from recent tokens alone.

    Args:
        learned: learn the logarithms of the slopes, so that slopes stay positive (as in x-transformers).
        sides: treatment of the future without a causal mask, as the authors propose for encoders: "alike" is symmetric;
            "own" learns separate slopes for the future; with "half" the first half of the heads, with the slopes of
            H/2, sees only the past, and the second half, with the same slopes, only the future.
        scaled: also multiply the penalty by attention's scale (default 1/√d_k), as Falcon does.

    >>> from headway import HeadShape
    >>> Alibi().attach(HeadShape.of(64, heads=8)).slope[:2].tolist()
    [0.5, 0.25]
    """

    title: ClassVar[str] = "ALiBi"
    paper: ClassVar[str] = "arXiv:2108.12409"
    summary: ClassVar[str] = "Scores fall linearly with distance, with a fixed slope per head."
    summary_zh: ClassVar[str] = "分数随距离线性下降，每个头的斜率固定。"
    steady: ClassVar[bool] = True
    sharding: ClassVar[dict[str, str]] = {"log_slope": "hx"}

    variants: ClassVar[tuple[str, ...]] = ("alibi(learned=True, sides='own')", "alibi(scaled=True)")

    learned: bool = False
    sides: str = "alike"
    scaled: bool = False

    def __post_init__(self) -> None:
        if self.sides not in SIDES:
            raise HeadwayError(f"expected alibi sides {', '.join(SIDES)}, got {self.sides!r}")
        if self.sides == "own" and not self.learned:
            raise HeadwayError(
                "expected learned=True with alibi sides='own', because both sides start from the same values"
            )

    def build(self, shape: HeadShape) -> None:
        """Create ln m if it is learned: for the past, and for the future if it has separate slopes."""
        if self.learned:
            self.log_slope = nn.Parameter(torch.empty(shape.heads, 2 if self.sides == "own" else 1))

    def reset_parameters(self) -> None:
        """The published slopes."""
        if self.learned:
            with torch.no_grad():
                self.log_slope.copy_(self._published(self.log_slope.device).log()[:, None])

    @property
    def slope(self) -> Float[Tensor, " heads"]:
        """The slope of each head; that of the past if the future has separate slopes."""
        return self.log_slope.double().exp()[:, 0] if self.learned else self._published()

    @property
    def heads(self) -> int:
        """Number of heads it is attached to."""
        return 1 if self.shape is None else self.shape.heads

    def _published(self, device: torch.device | None = None) -> Float[Tensor, " heads"]:
        if self.sides != "half":
            return slopes(self.heads, device)
        first, second = math.ceil(self.heads / 2), self.heads // 2
        return torch.cat([slopes(heads, device) for heads in (first, second) if heads])

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """−m_h · distance."""
        # computed here instead of stored as a buffer, which a model made on the meta device would lose
        slope = self.log_slope.double().exp() if self.learned else self._published(look.q.device)[:, None]
        slope = slope * look.scale if self.scaled else slope
        tails = -slope.expand(-1, 2).to(torch.promote_types(look.q.dtype, torch.float32))
        if self.sides != "half":
            tails = look.of_heads(tails)
            return (ByDistance(torch.zeros_like(tails[:, :1]), 0, tails),)
        head = torch.arange(len(tails), device=tails.device)[:, None]
        hidden = (head >= math.ceil(len(tails) / 2)) == torch.tensor([True, False], device=tails.device)
        table = tails.masked_fill(hidden, HIDDEN)
        table = torch.stack((table[:, 0], torch.zeros_like(table[:, 0]), table[:, 1]), 1)
        return (ByDistance(look.of_heads(table), 1, look.of_heads(tails.masked_fill(hidden, 0.0))),)

    def worked(self, number: Number) -> Lines:
        """The slope of a head, times the distance."""
        if number.kind != "bias":
            return ()
        heads, head, slope = self.heads, number.index, self.slope[number.index].detach()
        if self.sides == "half":
            first = math.ceil(heads / 2)
            if head >= first:
                return (
                    (Line("b", "−10^30", -1e30 * torch.ones(()).double()),)
                    if int(number.at)
                    else (Line("b", "0", 0.0),)
                )
            heads = first
        whole = 2 ** int(math.log2(heads))
        formula = f"2^(−8 · {head + 1} / {whole})" if head < whole else f"2^(−4 · {2 * (head - whole) + 1} / {whole})"
        lines = (Line("m", "m", slope, "learned") if self.learned else Line("m", formula, slope),)
        scale = f" · {plain(number.scale)}" if self.scaled else ""
        return *lines, Line("b", f"−m · n{scale}", -slope * number.at * (number.scale if self.scaled else 1))
