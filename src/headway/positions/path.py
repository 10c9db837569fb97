"""PaTH attention. Yang et al. 2025, "PaTH Attention: Position Encoding via Accumulating Householder Transformations",
arXiv:2505.16381.

    score(i, j) = q_iᵀ H_i H_{i−1} ⋯ H_{j+1} k_j / √d_k             H_t = I − β_t w_t w_tᵀ
    β_t = 2 σ(u·x_t + b),   w_t = SiLU(Σ_s c_s ∘ (U A x_{t−s})), normalised to length 1

PaTH-FoX adds the forgetting gates of FoX, Σ_{t=j+1…i} log σ(f·x_t + b_f).

Rotary rotates by the distance; here every token in between reflects or erases a direction of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid, silu

from headway.positions.along import Before, angle_dtype, running_sum, windows
from headway.positions.base import Position, TermInputs
from headway.positions.fox import forgetting
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, PathProduct


@dataclass(eq=False)
class Path(Position):
    """Each token between query and key applies a Householder transformation (PaTH, arXiv:2505.16381).

    Formula: q·k becomes q_iᵀ H_i ⋯ H_{j+1} k_j, H_t = I − β_t w_t w_tᵀ, over the tokens after the key up to the last
    that the query sees. w_t is a low-rank map of x_t, then a causal convolution over the last tokens, SiLU, and
    normalisation, w/√(|w|² + 10⁻⁶) as in the authors' code; β_t = 2σ(u·x_t + b) for each key head. Learned, separate
    for each layer: A (rank, d_model), U (H_kv·d_k, rank), c (conv, H_kv·d_k), u and b together (H_kv, d_model + 1),
    uniform within ±1/√(inputs), b zeros. A x of the tokens under the convolution and β_t are cached, conv·rank + H_kv
    values per token; w and the products are recomputed from them at every call, so that decoding equals one pass, and
    keys are cached unchanged. ``forget`` adds f and b_f together (H, d_model + 1), initialised likewise, and 2 H more
    cached values: the sum of the log gates, rounded, and its rounding error.

    Pitfalls: the tokens in between are those in between in memory, so rows must not be shuffled, and a cache must not
    drop a token between others; it may drop the oldest, or roll back. The convolution covers tokens as long as
    positions increase, so restart positions in each packed document. Without a causal mask the product runs to the last
    token for every query. The authors' code also multiplies the log gates by the scale of q·k, the paper does not:
    their PaTH-FoX checkpoints need ``scaled``.

    Args:
        rank: inner width of the map to w; 32 in the paper. 0 is a full-rank map, as the authors use for few key heads.
        conv: number of tokens that the convolution covers; 3 in the paper. 1 is no convolution and no SiLU.
        forget: add the forgetting gates of :class:`headway.positions.Fox` (PaTH-FoX, in the same paper).
        scaled: multiply the log gates by the scale of q·k, 1/√d_k, as the authors' code does.

    >>> Path().attach(HeadShape.of(64, heads=4)).marked(torch.zeros(1, 5, 64), torch.arange(5)[None]).shape
    torch.Size([1, 5, 100])
    """

    title: ClassVar[str] = "PaTH"
    paper: ClassVar[str] = "arXiv:2505.16381"
    summary: ClassVar[str] = (
        "Each token between query and key applies a Householder transformation computed from its content."
    )
    summary_zh: ClassVar[str] = "查询与键之间的每个词元都施加一个由其内容决定的 Householder 变换。"
    sharding: ClassVar[dict[str, str]] = {"up": "gx", "taps": "xg", "gate": "gx", "forget_gate": "hx"}
    per_layer: ClassVar[bool] = True
    sequential: ClassVar[bool] = True
    contiguous: ClassVar[bool] = True
    unbroken: ClassVar[bool] = True

    variants: ClassVar[tuple[str, ...]] = ("path(rank=0, conv=4, forget=True)", "path(forget=True, scaled=True)")
    exempt: ClassVar[dict[str, str]] = {
        "order": "the tokens in between are those in between in memory",
        "no restart": "its convolution recognises the ends of documents only by their positions",
        "narrow context": "w is computed from tokens of the model's width",
    }

    rank: int = 32
    conv: int = 3
    forget: bool = False
    scaled: bool = False

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise HeadwayError(f"expected a path rank of at least 1, or 0 for none, got {self.rank}")
        if self.conv < 1:
            raise HeadwayError(f"expected path conv of at least 1 token, got {self.conv}")

    def build(self, shape: HeadShape) -> None:
        """Create A, U, c, u with b, and f with b_f."""
        self.heads, self.kv_heads, width = shape.heads, shape.kv_heads, shape.kv_heads * shape.head_dim
        self.down = nn.Parameter(torch.empty(self.rank or width, shape.dim))
        if not self.rank:
            vars(self)["sharding"] = type(self).sharding | {"down": "gx"}
        if self.rank:
            self.up = nn.Parameter(torch.empty(width, self.rank))
        if self.conv > 1:
            self.taps = nn.Parameter(torch.empty(self.conv, width))
        self.gate = nn.Parameter(torch.empty(shape.kv_heads, shape.dim + 1))  # b is last
        if self.forget:
            self.forget_gate = nn.Parameter(torch.empty(shape.heads, shape.dim + 1))

    def reset_parameters(self) -> None:
        """Uniform within ±1/√(inputs); b and b_f zeros."""
        for name, parameter in self.named_parameters():
            bound = parameter.shape[0 if name == "taps" else -1] ** -0.5
            nn.init.uniform_(parameter, -bound, bound)
        for gate in (self.gate, self.forget_gate) if self.forget else (self.gate,):
            nn.init.zeros_(gate.data[:, -1])

    def mark(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens width"]:
        """A x, β and log σ(f·x + b_f) of every token; the last in float32 or better, because many are summed."""
        beta = 2 * linear(x, self.gate[:, :-1], self.gate[:, -1]).sigmoid()
        if not self.forget:
            return torch.cat((linear(x, self.down), beta), -1)
        logits = linear(x, self.forget_gate[:, :-1], self.forget_gate[:, -1])
        log_gates = logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        return torch.cat((linear(x, self.down), beta, log_gates), -1)

    def carry(
        self, marks: Float[Tensor, "batch tokens width"], pos: Int[Tensor, "#batch tokens"], before: Before | None
    ) -> Float[Tensor, "batch tokens held"]:
        """A x of the tokens under the convolution, β, and the sum of the log gates in two parts."""
        width = len(self.down)
        # a NaN token would reach its neighbours: it is put into its own β only, and from there into its own w
        bad = ~marks.isfinite().all(-1, keepdim=True)
        low, beta, log_gates = marks.masked_fill(bad, 0.0).tensor_split((width, width + self.kv_heads), -1)
        last, summed = None, None
        if before is not None:
            last = before.marks[:, : (self.conv - 1) * width].unflatten(-1, (self.conv - 1, width))
            summed = self._sum(before.marks) if self.forget else None
        window = windows(low, pos, self.conv, last, None if before is None else before.pos)
        held = [window.flatten(2), beta.masked_fill(bad, torch.nan)]
        if self.forget:
            total = running_sum(log_gates, pos, summed)
            rounded = total.detach().to(marks.dtype)
            held += [rounded, (total - rounded).to(marks.dtype)]
        return torch.cat(held, -1)

    def _splits(self) -> tuple[int, ...]:
        """Offsets of β and of the two parts of the sum in the cached data."""
        ends = (self.conv * len(self.down), self.kv_heads)
        return (ends[0], sum(ends), sum(ends) + self.heads) if self.forget else (ends[0],)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """The change of q·k by the tokens in between."""
        assert look.marks is not None
        wide = torch.promote_types(look.marks.dtype, torch.float32)
        window, beta, *_ = look.marks.to(wide).tensor_split(self._splits(), -1)
        bad = ~beta.isfinite().all(-1)
        w = self._directions(window).masked_fill(bad[:, None, :, None], torch.nan)
        beta = beta.masked_fill(bad[..., None], 0.0).transpose(1, 2)
        if look.heads is not None:
            of_head = look.heads // (self.heads // self.kv_heads)
            w, beta = w[:, of_head], beta[:, of_head]
        product = PathProduct(look.q, look.k, w, beta, look.scale)
        if not self.forget:
            return (product,)
        total = self._forgotten(look.marks, look)
        own = self._forgotten(look.own_marks(), look) if look.absolute else None
        return product, forgetting(total, torch.promote_types(look.q.dtype, torch.float32), own)

    def _sum(self, marks: Float[Tensor, "*batch held"]) -> Float[Tensor, "*batch heads"]:
        """The running sum of the log gates from its two parts, in float64."""
        rounded, rest = marks.tensor_split(self._splits(), -1)[2:]
        return rounded.to(angle_dtype(marks.device)) + rest

    def _forgotten(self, marks: Tensor, look: TermInputs) -> Float[Tensor, "batch heads tokens"]:
        """The running sum of the log gates for the current heads."""
        total = look.of_heads(self._sum(marks).movedim(-1, 0)).transpose(0, 1)
        return total * look.scale if self.scaled else total

    def _directions(self, window: Float[Tensor, "batch tokens held"]) -> Float[Tensor, "batch kv_heads tokens dim"]:
        """w of every token, from A x of those under the convolution."""
        # U and the convolution are one map: Σ_s c_s ∘ U A x_{t−s}
        if self.conv == 1:
            w = linear(window, self.up.to(window.dtype)) if self.rank else window
        elif self.rank:
            both = (self.taps[..., None] * self.up).transpose(0, 1).flatten(1)  # (H_kv·d_k, conv·rank)
            w = silu(linear(window, both.to(window.dtype)))
        else:
            w = silu((window.unflatten(-1, self.taps.shape) * self.taps.to(window.dtype)).sum(-2))
        w = w.unflatten(-1, (self.kv_heads, -1))
        unit: Tensor = w * (w.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
        return unit.transpose(1, 2)
