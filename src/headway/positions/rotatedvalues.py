"""Rotary whose values are rotated too. Published in 2026 with the model DeepSeek-V4, whose keys are its values; as a
rotation of queries and keys it derives from arXiv:2104.09864.

    q_i ← R(i) q_i,   k_j ← R(j) k_j,   v_j ← R(j) v_j          R(p)  the rotation of rotary
    out_i = R(−i) Σ_j α_ij R(j) v_j = Σ_j α_ij R(j − i) v_j

What a token passes on depends on how far away it is, as its score does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from headway.positions.rotary import Rotary, rotate_pairs


@dataclass(eq=False)
class RotatedValues(Rotary):
    """Rotary, with values rotated by the key's position and outputs back by the query's (DeepSeek-V4, 2026).

    Formula: out_i = Σ_j α_ij R(j − i) v_j, where α is the attention of rotary. Nothing is learned. Shapes: q (B, H, Q,
    d_k), k and v (B, H_kv, K, d_k) unchanged; values must be as wide as keys. Rotated values are cached like rotated
    keys. Each step costs one rotation of the values and one of the output besides rotary's own two.

    Pitfalls: DeepSeek-V4 rotates the last dimensions of a head, here as in all rotary methods the first are; its
    keys are its values, which ``Attention`` does not require. In it, ``base`` is that of layers with a window; others
    are scaled as by YaRN. Not for latent attention, whose values are never of a head's own until the end.

    Args:
        base: see :class:`Rotary`.
        fraction: share of each head that is rotated, of queries, keys and values: its first r dimensions.
        pairing: see :class:`Rotary`; DeepSeek-V4 has "interleaved".

    >>> import torch
    >>> position = RotatedValues()
    >>> v, pos = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[7]])
    >>> turned = position.turn_values(v, pos)
    >>> position.turn_values(turned, pos, back=True).allclose(v, atol=1e-6)
    True
    """

    title: ClassVar[str] = "Rotated values"
    paper: ClassVar[str] = "huggingface.co/deepseek-ai"
    summary: ClassVar[str] = "Rotary, whose values are rotated as its keys are, and outputs back as its queries."
    summary_zh: ClassVar[str] = "旋转位置编码，并且值也像键一样旋转，输出再按查询的位置转回。"
    steady: ClassVar[bool] = False
    variants: ClassVar[tuple[str, ...]] = ("rotatedvalues(fraction=0.5, pairing='interleaved')",)
    exempt: ClassVar[dict[str, str]] = {"words": "it was published as a model, without a paper of its own"}

    def turn_values(
        self, v: Float[Tensor, "batch heads tokens dim"], pos: Int[Tensor, "#batch tokens"], *, back: bool = False
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """Values rotated by their positions, or outputs rotated back by those of their queries."""
        cos, sin = self._waves(pos, self.rates(self.width(v.shape[-1]), v.device), v)
        return rotate_pairs(v, cos, -sin if back else sin, self.pairing)
