"""Rotary with learned rotations that commute (ComRoPE). Yu et al. 2025, "ComRoPE: Scalable and Robust Rotary Position
Embedding Parameterized by Trainable Commuting Angle Matrices", arXiv:2506.03737.

    q ← R(x) q,  k ← R(x) k         R(x) = exp(Σ_a x_a A_a)         x_a  the token's coordinate on axis a
    A_a = diag(B_a1, …, B_am)       blocks of b × b, skew-symmetric; blocks of the same index j commute:
    linearly dependent (LD):        B_aj = θ_aj (P_j − P_jᵀ)
    axial partition (AP):           B_aj = P_j − P_jᵀ if j ≡ a modulo the number of axes, else 0

P and θ are learned. Because the blocks commute, R(x)ᵀR(y) = R(y − x), so that q·k depends on differences only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.positions.base import Position, angle_dtype
from headway.positions.rotary import many_waves, rotate_pairs
from headway.shapes import HeadShape, HeadwayError

KINDS = ("ld", "ap")


@dataclass(eq=False)
class ComRope(Position):
    """Learned commuting rotations of blocks of a head (ComRoPE, arXiv:2506.03737).

    Formula: q and k are multiplied by exp(Σ_a x_a A_a), A_a block diagonal and skew-symmetric. Shapes: q (B, H, Q,
    d_k), k (B, H_kv, K, d_k) unchanged. Learned, in each layer: P (H_kv, d_k/b, b, b), initialised N(0, std²), shared
    by the query heads of a group, and for "ld" θ (axes, d_k/b), initialised N(0, 1).

    Coordinates come from ``coordinates=`` of Attention and Transformer; without them every coordinate of a token is
    its position. P − Pᵀ is decomposed once, not per token: it has an orthonormal basis of planes, U, that it turns by
    λ, and x lies in part outside of them: exp(s(P − Pᵀ)) x = x + U (R(λs) − 1) Uᵀx, exact at any position.

    Pitfalls: the paper scales images to [0, 1] and samples P with standard deviation 1; with coordinates in tokens or
    patches that corresponds to 1/extent. Where two λ of a block are equal, as for P = 0, the gradient of P is not
    finite.

    Args:
        dims: number of axes, 1 in text.
        block: b; 2 gives ordinary pairs with learned frequencies.
        kind: "ld" or "ap".
        std: standard deviation of the initial P.

    >>> position = ComRope(block=4).attach(HeadShape.of(64, heads=4))
    >>> [tuple(p.shape) for p in position.parameters()]
    [(4, 4, 4, 4), (1, 4)]
    """

    title: ClassVar[str] = "ComRoPE"
    paper: ClassVar[str] = "arXiv:2506.03737"
    summary: ClassVar[str] = "Blocks of queries and keys are rotated by learned commuting rotations."
    summary_zh: ClassVar[str] = "查询和键的各个分块由可学习且两两可交换的旋转矩阵来旋转。"
    sharding: ClassVar[dict[str, str]] = {"matrix": "gxxx"}
    per_layer: ClassVar[bool] = True
    variants: ClassVar[tuple[str, ...]] = ("comrope(dims=2, block=2, kind='ap')",)

    dims: int = 1
    block: int = 8
    kind: str = "ld"
    std: float = 0.0625

    def __post_init__(self) -> None:
        if self.dims < 1:
            raise HeadwayError(f"expected comrope dims of at least 1, got {self.dims}")
        if self.block < 2:
            raise HeadwayError(f"expected a comrope block of at least 2, got {self.block}")
        if self.kind not in KINDS:
            raise HeadwayError(f"expected comrope kind {' or '.join(KINDS)}, got {self.kind!r}")
        if not self.std > 0:
            raise HeadwayError(f"expected comrope std above 0, got {self.std}")

    @property
    def axes(self) -> int:
        """Number of coordinates per token."""
        return self.dims

    def build(self, shape: HeadShape) -> None:
        """Make P and θ."""
        blocks, rest = divmod(shape.head_dim, self.block)
        if rest:
            raise HeadwayError(
                f"expected comrope block to divide the head width, got block={self.block} and {shape.head_dim}"
            )
        if self.kind == "ap" and blocks < self.dims:
            raise HeadwayError(
                f"expected a comrope block for each of {self.dims} axes, got {blocks} in a head: give a smaller block"
            )
        self.matrix = nn.Parameter(torch.empty(shape.kv_heads, blocks, self.block, self.block))
        if self.kind == "ld":
            self.angle = nn.Parameter(torch.empty(self.dims, blocks))

    def reset_parameters(self) -> None:
        """P ~ N(0, std²), θ ~ N(0, 1)."""
        nn.init.normal_(self.matrix, std=self.std)
        if self.kind == "ld":
            nn.init.normal_(self.angle)

    def rotate(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        q_pos: Int[Tensor, "#batch queries *axes"],
        k_pos: Int[Tensor, "#batch keys *axes"],
    ) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        """Rotate each block of q and k."""
        matrix = self.matrix.to(angle_dtype(q.device))
        turn = matrix - matrix.mT
        sound = turn.isfinite().all(-1).all(-1)[..., None]
        # a diverged matrix has no eigenvalues, and must not raise: its results become NaN
        rates, basis = torch.linalg.eigh(-1j * turn.nan_to_num(0.0, 0.0, 0.0))  # (H_kv, blocks, b), (…, b, b)
        rates = rates.masked_fill(~sound, torch.nan)
        if basis.requires_grad and not torch.compiler.is_compiling():
            basis.register_hook(partial(_without_phases, basis.detach()))
        # eigenvalues are ±λ, and 0 if b is odd; those of λ alone span the planes
        pairs = slice(self.block - self.block // 2, None)
        rates, planes = rates[..., pairs], self._planes(basis[..., pairs])
        q_waves = self._waves(q_pos, rates, q)
        k_waves = q_waves if k_pos is q_pos else self._waves(k_pos, rates, k)
        return _turned(q, planes, *q_waves), _turned(k, planes, *k_waves)

    def along(self, pos: Int[Tensor, "batch tokens *axes"]) -> Float[Tensor, "batch tokens blocks"]:
        """Rotation of each block for each token, in multiples s of P − Pᵀ, float64."""
        where = pos if pos.ndim == 3 else pos[..., None].expand(-1, -1, self.dims)
        if self.kind == "ld":
            share = self.angle.to(angle_dtype(pos.device))
        else:
            block, axis = (torch.arange(n, device=pos.device) for n in (self.matrix.shape[1], self.dims))
            share = (block % self.dims == axis[:, None]).to(angle_dtype(pos.device))
        return (where[..., None] * share).sum(-2)

    def _planes(self, basis: Tensor) -> Tensor:
        """The planes of all blocks as columns of a matrix per key head, (H_kv, d_k, 2P): first, then second axes."""
        axes = torch.cat((basis.real, -basis.imag), -1) * math.sqrt(2)  # (H_kv, blocks, b, 2p)
        inside = torch.diag_embed(axes.movedim(1, -1))  # (H_kv, b, 2p, blocks, blocks)
        columns: Tensor = inside.unflatten(2, (2, -1)).permute(0, 4, 1, 2, 5, 3).flatten(3)
        return columns.flatten(1, 2).flatten(2)

    def _waves(self, pos: Tensor, rates: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos − 1 and sin of the angle of each plane, (B, H_kv, N, P)."""
        angles = self.along(pos)[:, None, :, :, None] * rates[:, None]  # (B, H_kv, N, blocks, p)
        cos, sin = many_waves(angles.flatten(3), like)
        return cos - 1, sin


def _turned(x: Tensor, planes: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x + U (R − 1) Uᵀx."""
    each = x.to(cos.dtype).unflatten(1, (len(planes), -1))  # (B, H_kv, group, N, d_k)
    planes, group = planes.to(cos.dtype)[:, None], each.shape[2]
    cos, sin = (wave if group == 1 else wave.repeat_interleave(group, 1) for wave in (cos, sin))
    moved = rotate_pairs((each @ planes).flatten(1, 2), cos, sin).unflatten(1, each.shape[1:3])
    turned: Tensor = each + moved @ planes.mT
    return turned.flatten(1, 2).to(x.dtype)


def _without_phases(basis: Tensor, gradient: Tensor | None) -> Tensor | None:
    """The gradient w.r.t. the eigenvectors without the part that would only change their phases: the rotation has none,
    but torch takes rounding errors for one where gradients are huge.
    """
    if gradient is None:  # autograd passes None for no gradient
        return None
    gradient = gradient.where(gradient.isfinite(), 0.0)  # the gradient w.r.t. the eigenvalues stays NaN
    return gradient - (1j * basis * (basis.conj() * gradient).sum(-2, keepdim=True).imag).detach()
