"""xPos. Sun et al. 2022, "A Length-Extrapolatable Transformer", arXiv:2212.10554.

    q_i ← R(pos_i·ω_i) q_i · ζ_i^(pos_q/S)        ω_i = base^(−2i/r), as in rotary position embedding
    k_i ← R(pos_i·ω_i) k_i · ζ_i^(−pos_k/S)       ζ_i = (2i/r + γ) / (1 + γ), γ = 0.4, i = 0 … r/2−1; S = 512

Pair i of q·k is multiplied by ζ_i^(n/S), n = pos_q − pos_k: it decays with distance, fast pairs sooner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.integers import FAR, readable
from headway.positions.base import TermInputs, angle_dtype
from headway.positions.rotary import Rotary
from headway.shapes import HeadwayError

GAMMA = 0.4
MOST = {torch.float16: 7.0, torch.bfloat16: 35.0, torch.float32: 35.0, torch.float64: 300.0}
"""Maximum logarithm of the factors of queries; those of keys reach as much, and the product stays in range."""
BLOCKS = 64
"""Maximum factor by which q and k may widen."""


@dataclass(eq=False)
class XPos(Rotary):
    """Rotary position embedding that decays with distance, fast pairs sooner (xPos, arXiv:2212.10554).

    Formula: :class:`Rotary`, and pair i of q is multiplied by ζ_i^((pos − c)/S), of k with ζ_i^(−(pos − c)/S), so
    that its part of the score is multiplied by ζ_i^(n/S), n = query minus key position, ζ_i = (2i/r + 0.4)/1.4.
    Shapes as :class:`Rotary`. Nothing is learned.

    The centre c cancels, so any common value works, but far from it the factors overflow. Here it is the middle of the
    current queries, computed at every call, and the cache holds keys that are only rotated (``transform_qk``):
    positions of 10⁶ are as exact as those near 0, and a single query has factors of at most 1 at any length.

    Queries more than about 28,000 tokens apart (at S = 512; 5,700 in float16) are split into blocks with separate
    centres: q and k widen by the number of blocks, with q zero in all blocks except its own. This is exact. Factors
    below the dtype's range are zero.

    Pitfalls: it is designed for causal attention; scores grow towards the future, and keys too far in the future are
    refused. More than 64 blocks of queries in one call are refused: process such a text in pieces, with a cache. Under
    torch.compile positions cannot be read, and there is one block. The paper also restricts attention to blocks where
    it extrapolates.

    Args:
        scale_base: S, the length scale of the decay, in tokens.

    >>> position, pos = XPos(), torch.tensor([[0, 512]])
    >>> q, k, _ = position.prepare(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), pos, pos, 1.0)
    >>> [round(float(x), 4) for x in (q[0, 0, 1] * k[0, 0, 0])[:2]]  # ζ_0 and ζ_1
    [0.2857, 0.6429]
    """

    title: ClassVar[str] = "xPos"
    paper: ClassVar[str] = "arXiv:2212.10554"
    summary: ClassVar[str] = "Rotary whose pairs decay with distance, fast pairs sooner."
    summary_zh: ClassVar[str] = "旋转位置编码加上随距离的衰减，频率高的维度对衰减更快。"
    variants: ClassVar[tuple[str, ...]] = ("xpos(fraction=0.5, pairing='interleaved', scale_base=128.0)",)

    exempt: ClassVar[dict[str, str]] = {
        "waiting for positions": "in how many stretches they lie decides how wide its heads become"
    }

    scale_base: float = 512.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.scale_base < math.inf:
            raise HeadwayError(f"expected a finite xpos scale_base above 0, got {self.scale_base}")

    def transform_qk(
        self, look: TermInputs
    ) -> tuple[Float[Tensor, "batch heads queries wide"], Float[Tensor, "batch kv_heads keys wide"]]:
        """Multiply q and all keys, already rotated, by their powers of ζ, per block of queries."""
        width, device = self.width(look.q.shape[-1]), look.q.device
        pair = torch.arange(width // 2, device=device, dtype=angle_dtype(device))
        decay = ((2 * pair / width + GAMMA) / (1 + GAMMA)).log() / self.scale_base  # (r/2,), per token, below 0
        most = MOST.get(look.q.dtype, MOST[torch.float32])
        span = max(1, int(min(2 * most * self.scale_base / math.log((1 + GAMMA) / GAMMA), FAR)))
        centres, own = _middle(look.q_pos), None
        # all in one stretch, without waiting for a GPU to say so
        near = look.below is not None and look.below <= span + 1
        near |= look.q_pos.shape[1] == 1 and not look.sees_future
        if not near and readable(look.q_pos, anywhere=True) and 0 not in (*look.q_pos.shape, *look.k_pos.shape):
            if look.sees_future:
                self._check_future(look, span)
            centres, own = _blocks(look.q_pos, span)
        q = self._sized(look.q, look.q_pos, centres, decay, most, own)
        return q, self._sized(look.k, look.k_pos, centres, -decay, most, None)

    def _check_future(self, look: TermInputs, span: int) -> None:
        """Refuse visible keys so far in the future that scores overflow."""
        first = look.q_pos.masked_fill(look.q_pos < 0, FAR).amin(1)
        ahead = int((look.k_pos.amax(1) - first).amax())
        if ahead > span:
            raise HeadwayError(
                f"expected keys at most {span} tokens after the first query, because xpos lets scores grow towards the "
                f"future, got one {ahead} after: use a causal mask, or a larger scale_base"
            )

    def _sized(self, x: Tensor, pos: Tensor, centres: Tensor, decay: Tensor, most: float, own: Tensor | None) -> Tensor:
        """The rotated part of x for each centre, times e^(decay · (pos − centre)), and the rest of x.

        Args:
            own: index of the centre of each token, (B or 1, N), with zeros at the other centres; None is all centres.
        """
        width = 2 * len(decay)
        # padding, and keys that only padding sees, may be arbitrarily far away: factor 1, not infinity
        steps = torch.where((pos[..., None] < 0) | (centres[:, None] < 0), 0, pos[..., None] - centres[:, None])
        # keys beyond are in the future of all queries of the block: queries that see them are refused
        power = (steps[:, None, ..., None] * decay).clamp(max=1.2 * most)
        size = power.exp()  # (B, 1, N, blocks, r/2)
        if own is not None:
            size = size * torch.nn.functional.one_hot(own, centres.shape[1])[:, None, ..., None]
        size = size.repeat(1, 1, 1, 1, 2) if self.pairing == "half" else size.repeat_interleave(2, -1)
        precise = torch.promote_types(x.dtype, torch.float32)
        sized = (x[..., None, :width] * size.to(precise)).to(x.dtype).flatten(-2)
        return torch.cat((sized, x[..., width:]), -1)


def _middle(pos: Int[Tensor, "#batch tokens"]) -> Int[Tensor, "#batch 1"]:
    """The middle position of each sequence; -1 if it is all padding."""
    first, last = _ends(pos)
    return (first + last) // 2


def _ends(pos: Int[Tensor, "#batch tokens"]) -> tuple[Int[Tensor, "#batch 1"], Int[Tensor, "#batch 1"]]:
    """The first and the last position of each sequence; -1 if it is all padding."""
    pos = torch.nn.functional.pad(pos, (1, 0), value=-1)  # there may be no tokens at all
    last = pos.amax(1, keepdim=True)
    return torch.where(pos < 0, last, pos).amin(1, keepdim=True), last


def _blocks(
    pos: Int[Tensor, "#batch tokens"], span: int
) -> tuple[Int[Tensor, "#batch blocks"], Int[Tensor, "#batch tokens"] | None]:
    """Centres such that every position is within span/2 of one, and the index of that one; None if there is only one.

    Raises:
        HeadwayError: when there are too many.
    """
    first, last = _ends(pos)
    if int((last - first).amax()) <= span:
        return (first + last) // 2, None
    number = torch.where(pos < 0, 0, (pos - first) // (span + 1))
    taken, own = number.unique(return_inverse=True)  # blocks without queries are dropped
    if len(taken) > BLOCKS:
        raise HeadwayError(
            f"expected the queries of one call in at most {BLOCKS} stretches of {span} tokens, beyond which xpos "
            f"overflows, got {len(taken)}: process the text in pieces, with a cache"
        )
    return torch.where(first < 0, -1, first + taken * (span + 1) + span // 2), own
