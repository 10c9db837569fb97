"""xPos. Sun et al. 2022, "A Length-Extrapolatable Transformer", arXiv:2212.10554.

    q_i ← R(pos_i·ω_i) q_i · ζ_i^(pos_q/S)        ω_i = base^(−2i/r), as in rotary position embedding
    k_i ← R(pos_i·ω_i) k_i · ζ_i^(−pos_k/S)       ζ_i = (2i/r + γ) / (1 + γ), γ = 0.4, i = 0 … r/2−1; S = 512

Pair i of q·k is multiplied with ζ_i^(n/S), n = pos_q − pos_k: it decays with distance, the fast pairs sooner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.positions.base import Look, angle_dtype
from headway.positions.rotary import Rotary
from headway.shapes import HeadwayError

GAMMA = 0.4


@dataclass(eq=False)
class XPos(Rotary):
    """Rotary position embedding that decays with distance, fast pairs sooner (xPos, arXiv:2212.10554).

    Formula: :class:`Rotary`, and pair i of q is multiplied with ζ_i^((pos − c)/S), of k with ζ_i^(−(pos − c)/S), so
    that its part of the score is multiplied with ζ_i^(n/S), n = query minus key position, ζ_i = (2i/r + 0.4)/1.4.
    Shapes as :class:`Rotary`. Nothing learned.

    The centre c cancels, so any will do that q and k share; but far from it the factors overflow. Here it is the middle
    of the queries at hand, at every call anew, and the cache holds keys that are only turned (``recast``): positions of
    10⁶ are as good as those near 0, and a single query has factors of at most 1 at any length.

    Pitfalls: it is made for causal attention; towards the future scores grow. A call with queries over more than 30,000
    tokens (at S = 512) overflows float32: hand such a text over in pieces, with a cache. The paper besides restricts
    attention to blocks where it extrapolates.

    Args:
        scale_base: S, how slowly it decays, in tokens.

    >>> position, pos = XPos(), torch.tensor([[0, 512]])
    >>> q, k, _ = position.act(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), pos, pos, 1.0)
    >>> [round(float(x), 4) for x in (q[0, 0, 1] * k[0, 0, 0])[:2]]  # ζ_0 and ζ_1
    [0.2857, 0.6429]
    """

    title: ClassVar[str] = "xPos"
    paper: ClassVar[str] = "arXiv:2212.10554"
    summary: ClassVar[str] = "Rotary whose pairs decay with distance, those that turn fast sooner."
    summary_zh: ClassVar[str] = "旋转位置编码加上随距离的衰减，转得快的维度对衰减更快。"
    variants: ClassVar[tuple[str, ...]] = ("xpos(fraction=0.5, pairing='interleaved', scale_base=128.0)",)

    scale_base: float = 512.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.scale_base < math.inf:
            raise HeadwayError(f"expected a finite xpos scale_base above 0, got {self.scale_base}")

    def recast(
        self, look: Look
    ) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        """Multiply q and all keys, turned already, with their powers of ζ."""
        centre = _middle(look.q_pos)
        return self._sized(look.q, look.q_pos, centre, 1), self._sized(look.k, look.k_pos, centre, -1)

    def _sized(self, x: Tensor, pos: Tensor, centre: Tensor, sign: int) -> Tensor:
        width = self.width(x.shape[-1])
        pair = torch.arange(width // 2, device=x.device, dtype=angle_dtype(x.device))
        # padding, or keys that only padding looks at, may lie any number of steps away: size 1, not infinity
        steps = torch.where((pos < 0) | (centre < 0), 0, pos - centre)
        exponent = sign / self.scale_base * steps[:, None, :, None].to(pair.dtype)
        size = ((2 * pair / width + GAMMA) / (1 + GAMMA)) ** exponent  # (B, 1, N, r/2)
        size = size.repeat(1, 1, 1, 2) if self.pairing == "half" else size.repeat_interleave(2, -1)
        precise = torch.promote_types(x.dtype, torch.float32)
        sized = (x[..., :width] * size.to(precise)).to(x.dtype)
        return torch.cat((sized, x[..., width:]), -1)


def _middle(pos: Int[Tensor, "#batch tokens"]) -> Int[Tensor, "#batch 1"]:
    """The middle position of each sequence; of nothing but padding -1."""
    pos = torch.nn.functional.pad(pos, (1, 0), value=-1)  # there may be no tokens at all
    last = pos.amax(1, keepdim=True)
    first = torch.where(pos < 0, last, pos).amin(1, keepdim=True)
    return (first + last) // 2
