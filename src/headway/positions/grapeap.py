"""Path-integral additive GRAPE (GRAPE-AP). Zhang et al. 2025, "Group Representational Position Encoding",
arXiv:2512.07805, section 5.

    score(i, j) = q_i·k_j / √d_k + Σ_{t=j+1…i} ψ(i, t)
    ψ(i, t) = α_h · log σ( p_i·R_t p_t / r )       p_t = RMSNorm(W_h x_t) of width r,  R_t rotates pairs by t radians

α_h are the slopes of ALiBi. Each token between a query and a key lowers the score by an amount that depends on the
query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.positions.alibi import slopes
from headway.positions.base import Position, TermInputs, angle_dtype
from headway.positions.rotary import rotate_pairs, waves
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, Scan


@dataclass(eq=False)
class GrapeAP(Position):
    """A penalty summed over the tokens in between, each weighted by the query (GRAPE-AP, arXiv:2512.07805).

    Formula: Σ_{t=j+1…i} α_h·log σ(p_i·R_t p_t / r) is added to the scores, over the keys t that query i sees; never
    above 0. Learned: W (H·width, d_model), separate for each layer, N(0, (1/2)²/d_model) as in the authors' code; p
    is normalised to unit root mean square. The normalised p is cached with k and v, H·width values per token.

    Pitfalls: R_t rotates by the key's own position, so the method is not relative, despite its name. Tokens are
    summed in the order they have in memory, so rows must not be shuffled. Self attention only: the p of a query is that
    of its own token's key. The authors' code leaves the query's p unnormalised; the paper normalises both, as here.

    Args:
        width: width of p in each head, r; even. 8 in the paper's experiments.

    >>> GrapeAP().attach(HeadShape.of(64, heads=4)).weight.shape
    torch.Size([32, 64])
    """

    title: ClassVar[str] = "GRAPE-AP"
    paper: ClassVar[str] = "arXiv:2512.07805"
    summary: ClassVar[str] = "Each token between query and key lowers the score by an amount that depends on the query."
    summary_zh: ClassVar[str] = "查询与键之间的每个词元都降低分数，降多少由查询决定。"
    sharding: ClassVar[dict[str, str]] = {"weight": "hx", "marks": "hx"}
    relative: ClassVar[bool] = False
    per_layer: ClassVar[bool] = True
    sequential: ClassVar[bool] = True

    exempt: ClassVar[dict[str, str]] = {
        "order": "the tokens in between are those in between in memory",
        "cross": "the p of a query is that of its own token, which a context does not contain",
        "narrow context": "p is computed from tokens of the model's width",
    }

    width: int = 8

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2:
            raise HeadwayError(
                f"expected an even grapeap width of at least 2, because pairs are rotated, got {self.width}"
            )

    def build(self, shape: HeadShape) -> None:
        """Make W."""
        self.heads = shape.heads
        self.weight = nn.Parameter(torch.empty(shape.heads * self.width, shape.dim))

    def reset_parameters(self) -> None:
        """W ~ N(0, (1/2)²/d_model)."""
        nn.init.normal_(self.weight, std=0.5 * self.weight.shape[1] ** -0.5)

    def mark(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens heads width"]:
        """The normalised p of every token."""
        p = nn.functional.linear(x, self.weight.to(x.dtype)).unflatten(-1, (self.heads, self.width))
        wide = p.to(torch.promote_types(p.dtype, torch.float32))
        normed: Tensor = wide * (wide.square().mean(-1, keepdim=True) + torch.finfo(wide.dtype).eps).rsqrt()
        return normed.to(p.dtype)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """The sum of the penalties of the tokens in between."""
        assert look.marks is not None
        own, p = (
            look.of_heads(x.movedim(2, 0)).transpose(0, 1) for x in (look.own_marks(), look.marks)
        )  # (B, H, …, r)
        angle = look.k_pos[:, None, :, None].to(angle_dtype(p.device)).expand(-1, -1, -1, self.width // 2)
        cos, sin = waves(angle, p)
        turned = rotate_pairs(p.to(cos.dtype), cos, sin, "interleaved")
        slope = look.of_heads(slopes(self.heads, p.device))
        return (Scan(inclusive=False, left=own, right=turned / self.width, slope=slope),)
