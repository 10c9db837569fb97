"""Dynamic position bias. Wang et al. 2022, "CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale
Attention", arXiv:2108.00154; for text as in x-transformers.

    score(i, j) = q_i·k_j / √d_k + MLP(f(n))_h          n = pos_i − pos_j
    f(n) = n, or sign(n) · ln(1 + |n|)

A small network maps a distance to a bias for each head, so untrained distances have one too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from headway.positions.base import Position, TermInputs, angle_dtype
from headway.positions.working import Line, Lines, Number
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, ByDistance


@dataclass(eq=False)
class DynamicBias(Position):
    """A bias per head that a small network computes from the distance (CrossFormer's, arXiv:2108.00154).

    Formula: MLP(f(n))_h is added to the scores, n = pos_i − pos_j; f(n) = sign(n)·ln(1 + |n|), or n. The MLP has
    ``depth`` hidden layers, each Linear, LayerNorm if ``norm``, SiLU, and a last Linear to the H heads. Learned: the
    MLP, with torch's initialisation, separate for each layer.

    Pitfalls: with raw distances (``log=False``, as published) the bias grows without bound, and far beyond the trained
    distances it dominates the content. CrossFormer, for images, has LayerNorm and ReLU; this is the form for text.

    Args:
        width: width of the hidden layers; a quarter of the model's in x-transformers.
        depth: number of hidden layers.
        log: feed the logarithm of the distance.
        norm: LayerNorm in the hidden layers.
        clip: longer distances count as this one; memory and time depend on the actual distances only.

    >>> sum(p.numel() for p in DynamicBias(width=8, depth=1).attach(HeadShape.of(64, heads=4)).parameters())
    52
    """

    title: ClassVar[str] = "Dynamic position bias"
    paper: ClassVar[str] = "arXiv:2108.00154"
    summary: ClassVar[str] = "A small network computes a bias for each head from the distance."
    summary_zh: ClassVar[str] = "由一个小型网络根据距离为每个头计算偏置。"
    per_layer: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("dynamicbias(width=8, depth=1, log=False, norm=True)",)

    width: int = 64
    depth: int = 2
    log: bool = True
    norm: bool = False
    clip: int = 4096

    def __post_init__(self) -> None:
        for name in ("width", "depth", "clip"):
            if getattr(self, name) < 1:
                raise HeadwayError(f"expected dynamicbias {name} of at least 1, got {getattr(self, name)}")

    def build(self, shape: HeadShape) -> None:
        """Make the MLP."""
        layers: list[nn.Module] = []
        for number in range(self.depth):
            fed = self.width if number else 1
            layers += [nn.Linear(fed, self.width), *([nn.LayerNorm(self.width)] if self.norm else []), nn.SiLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(self.width, shape.heads))
        # of every other method a matter of its class
        vars(self)["sharding"] = {f"mlp.{len(layers)}.weight": "hx", f"mlp.{len(layers)}.bias": "h"}

    def reset_parameters(self) -> None:
        """Torch's initialisation."""
        for layer in self.mlp:
            if isinstance(layer, nn.Linear | nn.LayerNorm):
                layer.reset_parameters()

    def bias(self, n: Int[Tensor, " distances"]) -> Float[Tensor, "heads distances"]:
        """The bias at each distance, float64."""
        # in float64 autocast leaves it alone: rounded to bfloat16, distances beyond 256 would collide
        x = n[:, None].to(angle_dtype(n.device))
        if self.log:
            x = x.sign() * x.abs().log1p()
        weights = {name: p.to(x.dtype) for name, p in self.mlp.named_parameters()}
        bias: Tensor = functional_call(self.mlp, weights, (x,))
        return bias.T

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """The table over the current distances."""
        offset, left = look.offsets(self.clip, self.clip)
        table = look.of_heads(self.bias(-offset)).to(torch.promote_types(look.q.dtype, torch.float32))
        return (ByDistance(table, left),)

    def worked(self, number: Number) -> Lines:
        """The network's input, and its output for a head."""
        if number.kind != "bias":
            return ()
        n = int(number.at.clamp(max=self.clip))
        lines: Lines = (Line("n", f"min(n, {self.clip})", float(n)),) if n < int(number.at) else ()
        lines += (Line("f", "ln(1 + n)", math.log1p(n)) if self.log else Line("f", "n", float(n)),)
        value = self.bias(torch.tensor([n], device=number.at.device))[number.index, 0].detach()
        return *lines, Line("b", f"MLP(f)_{number.index}", value, "network")
