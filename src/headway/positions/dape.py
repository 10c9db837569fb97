"""Data-adaptive positional encoding. Zheng et al. 2024, "DAPE: Data-Adaptive Positional Encoding for Length
Extrapolation", arXiv:2405.14722, and "DAPE V2: Process Attention Score as Feature Map for Length Extrapolation",
arXiv:2410.04798.

    score(i, j) = A + B + f(A, B)           A = q_i·k_j / √d_k of all heads, B a bias by distance
    f = W₂ LeakyReLU(W₁ (A, B) + b₁)        over the 2H values of a pair; V2: W₁ and W₂ convolve over keys j too

The contents of all heads together determine the bias of a distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from headway.positions.base import Position, TermInputs
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, MixHeads, Term

KINK = "rounding may move a hidden unit across the kink of LeakyReLU"


@dataclass(eq=False)
class Dape(Position):
    """A bias by distance, adapted to the contents of all heads by a small network (DAPE, arXiv:2405.14722).

    Formula: B + f(A, B) is added to the scores A: B of another method, f = W₂ LeakyReLU(W₁(A, B) + b₁) for each pair of
    tokens. Learned, separate for each layer: the parameters of B, W₁ (width, 2H, 1), b₁ and W₂ (H, width, 1), uniform
    within ±1/√(inputs). The authors add a bias b₂ after W₂ as well, one value per head, which softmax ignores; with
    sinks, subtract it from them: load sink − b₂.

    Pitfalls: all heads are needed at once, so heads cannot be split over devices; where ``native`` cannot run, the
    hidden layer holds ``width`` values per pair of a block of queries.

    Args:
        bias: the method that computes B, as a string: any that only adds a bias by position. KERPLE works best in the
            paper.
        width: hidden units; 32 in the paper.

    >>> Dape().attach(HeadShape.of(64, heads=4)).first.shape
    torch.Size([32, 8, 1])
    """

    title: ClassVar[str] = "DAPE"
    paper: ClassVar[str] = "arXiv:2405.14722"
    summary: ClassVar[str] = "A small network over all heads adapts a bias by distance to the content."
    summary_zh: ClassVar[str] = "一个跨所有头的小网络，根据内容调整按距离的偏置。"
    per_layer: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("dape(bias='alibi', width=5)",)
    exempt: ClassVar[dict[str, str]] = {"heads": "it mixes all heads", "kinks": KINK}

    bias: str = "kerple"
    width: int = 32

    def __post_init__(self) -> None:
        if self.width < 1:
            raise HeadwayError(f"expected a {self.method_name()} width of at least 1, got {self.width}")
        inner = self._parsed()
        changed = [act for act in ("embed", "rotate", "mark", "renumber", "transform_qk") if _overrides(inner, act)]
        if changed or not _overrides(inner, "terms"):
            raise HeadwayError(
                f"expected {self.method_name()} bias to be a method that only adds to the scores, got {self.bias!r}: "
                f"take kerple, alibi or fire"
            )

    def _parsed(self) -> Position:
        from headway.positions.registry import parse  # the folder lists this file

        return parse(self.bias)

    @property
    def taps(self) -> int:
        """Number of neighbouring keys that the network sees."""
        return 1

    def build(self, shape: HeadShape) -> None:
        """Create the inner method, W₁, b₁ and W₂."""
        self.heads = shape.heads
        self.inner = self._parsed().attach(shape)
        self.first = nn.Parameter(torch.empty(self.width, 2 * shape.heads, self.taps))
        self.first_bias = nn.Parameter(torch.empty(self.width))
        self.second = nn.Parameter(torch.empty(shape.heads, self.width, self.taps))

    def reset_parameters(self) -> None:
        """Uniform within ±1/√(inputs)."""
        self.inner.reset_parameters()
        inner, outer = (weight[0].numel() ** -0.5 for weight in (self.first, self.second))
        for parameter, bound in ((self.first, inner), (self.first_bias, inner), (self.second, outer)):
            nn.init.uniform_(parameter, -bound, bound)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """The bias and the network's correction."""
        if look.heads is not None:
            raise HeadwayError(f"expected all {self.heads} heads at once, because {self.method_name()} mixes them")
        bias = self.inner.terms(look)
        assert all(isinstance(term, Term) for term in bias)
        added = tuple(term for term in bias if isinstance(term, Term))
        return (MixHeads(added, self.first, self.first_bias, self.second, look.order),)


@dataclass(eq=False)
class DapeV2(Dape):
    """DAPE whose network also sees the scores of neighbouring keys (DAPE V2, arXiv:2410.04798).

    Formula: as :class:`Dape`, with W₁ and W₂ as convolutions over ``kernel`` keys, (width, 2H, kernel) and
    (H, width, kernel). Masked pairs are zero in both layers.

    Pitfalls: those of :class:`Dape`; neighbours are those in the text, without padding. They must be in order in
    memory, so do not shuffle rows. Keys dropped from a cache count as zero, like masked ones. The authors' code masks
    future keys in the first layer only, so that a row depends on the number of tokens that follow it; here it does not,
    and decoding equals one pass.

    Args:
        bias: as in :class:`Dape`.
        width: as in :class:`Dape`.
        kernel: number of neighbouring keys, odd; 3 in the paper.

    >>> DapeV2().attach(HeadShape.of(64, heads=4)).first.shape
    torch.Size([32, 8, 3])
    """

    title: ClassVar[str] = "DAPE V2"
    paper: ClassVar[str] = "arXiv:2410.04798"
    summary: ClassVar[str] = "A small convolution over heads and neighbouring keys adapts a bias by distance."
    summary_zh: ClassVar[str] = "一个跨头和相邻键的小卷积，根据内容调整按距离的偏置。"

    variants: ClassVar[tuple[str, ...]] = ("dapev2(bias='alibi', width=5, kernel=5)",)
    exempt: ClassVar[dict[str, str]] = {
        "heads": "it mixes all heads",
        "order": "neighbours are those next in memory, padding aside",
        "kinks": KINK,
    }

    sequential: ClassVar[bool] = True
    contiguous: ClassVar[bool] = True
    neighbours: ClassVar[bool] = True

    kernel: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise HeadwayError(f"expected an odd dapev2 kernel of at least 1, got {self.kernel}")

    @property
    def taps(self) -> int:
        """Number of neighbouring keys that the network sees."""
        return self.kernel


def _overrides(position: Position, act: str) -> bool:
    return getattr(type(position), act) is not getattr(Position, act)
