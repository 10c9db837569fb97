"""No position at all (NoPE). Kazemnejad et al. 2023, "The Impact of Positional Encoding on Length Generalization",
arXiv:2305.19466.

    score(i, j) = q_i·k_j / √d_k

Under a causal mask a decoder can still infer positions, because query i sees exactly i+1 keys. Without a causal mask
attention is permutation-equivariant: permuting the tokens permutes the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headway.positions.base import Position


@dataclass(eq=False)
class NoPosition(Position):
    """No position (NoPE, arXiv:2305.19466): order comes from the causal mask alone.

    No parameters, no limit. An encoder without position ignores order; ``Transformer`` warns about it.

    >>> NoPosition().spec()
    'none'
    """

    title: ClassVar[str] = "No position (NoPE)"
    paper: ClassVar[str] = "arXiv:2305.19466"
    summary: ClassVar[str] = "Nothing is added; a decoder infers order from its causal mask."
    summary_zh: ClassVar[str] = "什么也不加；解码器从因果掩码推断顺序。"

    @classmethod
    def method_name(cls) -> str:
        """See :meth:`Position.method_name`."""
        return "none"
