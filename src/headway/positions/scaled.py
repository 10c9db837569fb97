"""Rotary position embedding for longer contexts than it was trained on: the frequencies are changed, nothing else.

ω_i = base^(−2i/r), i = 0 … r/2−1          what Rotary turns pair i by, radians per token; r numbers are turned
s   = factor, how many times longer        L0 = original, the length ω was trained at

Interpolated   ω_i / s                                      Chen et al. 2023, arXiv:2306.15595
NTK            ω_i · s^(−2i/(r−2)), that is, base·s^(r/(r−2))   Peng et al. 2023, arXiv:2309.00071, section 3.1
DynamicNTK     NTK with s·L/L0 − (s−1) for s once the length L passes L0         the same, section 3.3
Yarn           ω_i where a pair turns often within L0, ω_i / s where it does not  the same, section 3.4
Llama3         the same idea, with a ramp over frequencies   Llama 3 team 2024, arXiv:2407.21783
LongRope       ω_i / λ_i, two lists of λ found by search     Ding et al. 2024, arXiv:2402.13753
Proportional   ω_i for the fastest, 0 for the rest           Barbero et al. 2024, arXiv:2410.06205
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.positions.base import Position, TermInputs, angle_dtype
from headway.positions.rotary import Rotary
from headway.shapes import HeadShape, HeadwayError


@dataclass(eq=False)
class Interpolated(Rotary):
    """Position interpolation (arXiv:2306.15595): positions are squeezed into the range that was trained.

    Formula: pair i turns by pos·ω_i/s, ω_i = base^(−2i/r); shapes and everything else as :class:`Rotary`. Nothing
    learned. Hugging Face calls it "linear".

    Pitfalls: near tokens are squeezed together too, so a short fine-tuning at the longer length is needed.

    Args:
        factor: s, the longer length divided by the trained one.

    >>> Interpolated(factor=4.0).rates(4, torch.device("cpu")).tolist()
    [0.25, 0.0025]
    """

    title: ClassVar[str] = "Position interpolation"
    paper: ClassVar[str] = "arXiv:2306.15595"
    summary: ClassVar[str] = "Rotary with all positions divided by a factor: a longer text fits what was trained."
    summary_zh: ClassVar[str] = "把位置统一除以一个倍数再旋转，使更长的文本落在训练过的范围内。"
    variants: ClassVar[tuple[str, ...]] = ("interpolated(fraction=0.5, pairing='interleaved', factor=1.5)",)

    factor: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, factor=1)

    def rates(self, width: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """ω_i / s."""
        return super().rates(width, device) / self.factor


@dataclass(eq=False)
class NTK(Rotary):
    """NTK-aware scaling (arXiv:2309.00071, section 3.1): a larger base slows slow pairs and keeps fast ones.

    Formula: base·s^(r/(r−2)) instead of base, that is ω_i·s^(−2i/(r−2)): the fastest pair is kept, the slowest is
    divided by s exactly. Shapes and everything else as :class:`Rotary`. Nothing learned.

    Pitfalls: pairs in between are divided by less than s and reach angles never trained, so s must be a little larger
    than the ratio of lengths.

    Args:
        factor: s, the longer length divided by the trained one.

    >>> NTK(factor=4.0).rates(6, torch.device("cpu")) / Rotary().rates(6, torch.device("cpu"))
    tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)
    """

    title: ClassVar[str] = "NTK-aware RoPE"
    paper: ClassVar[str] = "arXiv:2309.00071"
    summary: ClassVar[str] = "Rotary with a larger base: slow pairs are slowed down by a factor, fast ones hardly."
    summary_zh: ClassVar[str] = "增大旋转的底数：慢的维度对按倍数放慢，快的几乎不变。"
    variants: ClassVar[tuple[str, ...]] = ("ntk(fraction=0.5, pairing='interleaved', factor=8.0)",)

    factor: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, factor=1)

    def rates(self, width: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """ω_i · s^(−2i/(r−2))."""
        return super().rates(width, device) * self.factor ** -_rise(width, device)


@dataclass(eq=False)
class DynamicNTK(Rotary):
    """Dynamic NTK scaling (arXiv:2309.00071, section 3.3): the base grows with the text once that passes L0.

    Formula: for L ≤ L0 exactly :class:`Rotary`; above, :class:`NTK` with the factor s·L/L0 − (s−1), L the length: the
    largest key position + 1, of each sequence by itself. Shapes as :class:`Rotary`. Nothing learned.

    All keys must be turned by one base, the current one. Elsewhere cached keys keep the base of their day; here the
    cache holds keys not rotated yet, and every call rotates all of them (``transform_qk``). So each step of decoding
    sees what one pass over the text so far gives its last token. One pass over a longer text gives its earlier rows
    another base than they had then: that is the method, and beyond L0 the two differ.

    Pitfalls: the paper's own factor is L/L0, which is s = 1 here; checkpoints on Hugging Face bring an s of their own.
    L is counted from position 0, so beyond L0 attention is no longer the same when all positions are moved. Turning all
    keys in every step costs about as much as reading them.

    Args:
        factor: s; at length s·L0 the factor is s² − s + 1.
        original: L0, the trained length.

    >>> position, pos = DynamicNTK(original=4), torch.arange(4)[None]
    >>> q = torch.randn(1, 1, 4, 8)
    >>> torch.equal(position.prepare(q, q, pos, pos, 1.0)[0], Rotary().rotate(q, q, pos, pos)[0])
    True
    """

    title: ClassVar[str] = "Dynamic NTK RoPE"
    paper: ClassVar[str] = "arXiv:2309.00071"
    summary: ClassVar[str] = "Rotary whose base grows with the text beyond the trained length; cached keys follow it."
    summary_zh: ClassVar[str] = "超过训练长度后旋转的底数随文本增长，缓存的键也随之更新。"
    exempt: ClassVar[dict[str, str]] = {"shift": "its base grows with the length, which is counted from position 0"}
    variants: ClassVar[tuple[str, ...]] = ("dynamicntk(fraction=0.5, pairing='interleaved', factor=8.0, original=512)",)

    factor: float = 4.0
    original: int = 2048

    rotate = Position.rotate  # what is cached must not depend on the length it was cached at

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, factor=1, original=1)

    def transform_qk(
        self, look: TermInputs
    ) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        """Turn q and all keys by the base of the length there is now."""
        width, device = self.width(look.q.shape[-1]), look.q.device
        beyond = _length(look.k_pos) / self.original - 1
        growth = (1 + self.factor * beyond).clamp(min=1)  # (B, 1, 1, 1); a factor of 1 up to L0 changes no bit
        rates = self.rates(width, device) * growth ** -_rise(width, device)
        return self.rotated(look.q, look.k, look.q_pos, look.k_pos, rates)


@dataclass(eq=False)
class Yarn(Rotary):
    """YaRN (arXiv:2309.00071): slow pairs are interpolated, fast ones kept, and attention is made a little sharper.

    Formula: ω_i·(1−γ_i) + ω_i/s·γ_i, where γ rises linearly from 0 at the pair that turns ``beta_fast`` times within
    L0 to 1 at the one that turns ``beta_slow`` times: pair r·ln(L0/(2π·β)) / (2·ln base). Cosines and sines of q and k
    are multiplied with 0.1·ln s + 1, so the turned part of scores grows by its square. Shapes as :class:`Rotary`.
    Nothing learned.

    Pitfalls: the paper writes the ramp over turns within L0; its authors' code, all checkpoints and this class have it
    over the number of the pair (``Llama3(low=1.0, high=32.0)`` is the other, without the larger scores). With
    ``fraction`` below 1 only the turned part is sharpened. DeepSeek's models give both ``mscale`` and
    ``mscale_all_dim``, and besides multiply the softmax scale by (0.1·mscale_all_dim·ln s + 1)²: hand that scale to
    Attention.

    Args:
        factor: s, the longer length divided by the trained one.
        original: L0, the trained length.
        beta_fast: turns within L0 from which on a pair is kept.
        beta_slow: turns within L0 up to which a pair is interpolated fully.
        attention_factor: multiplies cosines and sines; 0 is by the formula.
        mscale: m in 0.1·m·ln s + 1, divided by the same with ``mscale_all_dim`` for m; only if neither is 0.
        mscale_all_dim: see ``mscale``.
        truncate: round the ends of the ramp outwards to whole pairs, as the authors' code does.

    >>> round(Yarn(factor=16.0).amplitude(), 4)
    1.2773
    >>> Yarn(factor=4.0).rates(8, torch.device("cpu")) / Rotary().rates(8, torch.device("cpu"))
    tensor([1.0000, 1.0000, 0.6250, 0.2500], dtype=torch.float64)
    """

    title: ClassVar[str] = "YaRN"
    paper: ClassVar[str] = "arXiv:2309.00071"
    summary: ClassVar[str] = "Rotary with slow pairs interpolated, fast ones kept, and scores made larger."
    summary_zh: ClassVar[str] = "旋转中慢的维度对做插值，快的保持不变，并略微放大分数。"
    variants: ClassVar[tuple[str, ...]] = (
        "yarn(fraction=0.5, pairing='interleaved', factor=40.0, mscale=1.0, mscale_all_dim=0.7, truncate=False)",
    )

    factor: float = 4.0
    original: int = 2048
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, factor=1, original=1, attention_factor=0, mscale=0, mscale_all_dim=0)
        if self.base <= 1:
            raise HeadwayError(f"expected yarn base above 1, because it divides by its logarithm, got {self.base}")
        if not 0 < self.beta_slow < self.beta_fast < math.inf:
            raise HeadwayError(
                f"expected yarn beta_slow above 0 and below a finite beta_fast={self.beta_fast}, got {self.beta_slow}"
            )

    def rates(self, width: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """ω_i·(1−γ_i) + ω_i/s·γ_i."""
        rates = super().rates(width, device)
        low, high = (
            width * math.log(self.original / (2 * math.pi * turns)) / (2 * math.log(self.base))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        pair = torch.arange(len(rates), device=device, dtype=rates.dtype)
        # a ramp without width is a step: as steep as the authors' code has it
        ramp = ((pair - low) / (high - low if high > low else 0.001)).clamp(0, 1)
        return torch.lerp(rates, rates / self.factor, ramp)

    def amplitude(self) -> float:
        """0.1·ln s + 1, or as told."""
        if self.attention_factor:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._sharpness(self.mscale) / self._sharpness(self.mscale_all_dim)
        return self._sharpness(1.0)

    def _sharpness(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1


@dataclass(eq=False)
class LongRope(Rotary):
    """LongRoPE (arXiv:2402.13753): each pair has its own divisor, in two lists, one for texts longer than L0.

    Formula: ω_i/λ_i with λ = ``long`` if L > L0, else ``short``; L is the largest key position + 1, of each sequence
    by itself. Cosines and sines of q and k are multiplied with √(1 + ln s / ln L0) at any length. Shapes as
    :class:`Rotary`. Nothing learned: the lists come from a search, and from the checkpoint's configuration (Phi-3).

    When a text passes L0 all its keys must change. The cache holds keys not turned yet, and every call turns all of
    them (``transform_qk``): no key of the short list is left in it. See :class:`DynamicNTK` for what that means.

    Pitfalls: where the lists differ, L is counted from position 0, as for :class:`DynamicNTK`.

    Args:
        factor: s, the longest length divided by L0.
        original: L0, the trained length.
        short: λ up to L0, r/2 numbers, the fastest pair first; empty is all ones.
        long: λ beyond L0, likewise.
        attention_factor: multiplies cosines and sines; 0 is by the formula.

    >>> LongRope(long=(1.0, 8.0), factor=8.0).rates_for(5000, 4, torch.device("cpu")).tolist()
    [1.0, 0.00125]
    """

    title: ClassVar[str] = "LongRoPE"
    paper: ClassVar[str] = "arXiv:2402.13753"
    summary: ClassVar[str] = "Rotary with a divisor of its own for each pair; short and long texts have a list each."
    summary_zh: ClassVar[str] = "每个维度对有自己的缩放因子，短文本和长文本各用一组。"
    variants: ClassVar[tuple[str, ...]] = ("longrope(fraction=0.5, pairing='interleaved', original=512)",)

    factor: float = 4.0
    original: int = 4096
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    attention_factor: float = 0.0

    rotate = Position.rotate  # what is cached must not depend on the length it was cached at

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, factor=1, original=2, attention_factor=0)
        for name in ("short", "long"):
            if not all(0 < value < math.inf for value in getattr(self, name)):
                raise HeadwayError(f"expected longrope {name} of finite numbers above 0, got {getattr(self, name)}")

    def build(self, shape: HeadShape) -> None:
        """Check that the lists have a number for each pair."""
        pairs = self.width(shape.head_dim) // 2
        for name in ("short", "long"):
            if len(getattr(self, name)) not in (0, pairs):
                raise HeadwayError(
                    f"expected longrope {name} of {pairs} numbers, one for each pair that turns, "
                    f"got {len(getattr(self, name))}"
                )

    def rates_for(self, length: Float[Tensor, "#batch 1 1 1"] | float, width: int, device: torch.device) -> Tensor:
        """ω_i/λ_i at a length, (r/2,), or (B, 1, 1, r/2) for the lengths of several sequences."""
        rates = self.rates(width, device)
        short, long = (
            rates / torch.tensor(divisors, device=device, dtype=rates.dtype) if divisors else rates
            for divisors in (self.short, self.long)
        )
        return torch.where(torch.as_tensor(length, device=device) > self.original, long, short)

    def transform_qk(
        self, look: TermInputs
    ) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        """Turn q and all keys by the list for the length there is now."""
        rates = self.rates_for(_length(look.k_pos), self.width(look.q.shape[-1]), look.q.device)
        return self.rotated(look.q, look.k, look.q_pos, look.k_pos, rates)

    def amplitude(self) -> float:
        """√(1 + ln s / ln L0), or as told."""
        return self.attention_factor or math.sqrt(1 + math.log(self.factor) / math.log(self.original))


@dataclass(eq=False)
class Llama3(Rotary):
    """The scaling of Llama 3.1 (arXiv:2407.21783): slow pairs are interpolated, fast ones kept, by their wavelength.

    Formula: with n_i = L0·ω_i/2π, the turns of pair i within L0, and γ_i = (n_i − low)/(high − low) limited to 0 … 1,
    pair i turns by γ_i·ω_i + (1 − γ_i)·ω_i/s. Shapes and everything else as :class:`Rotary`. Nothing learned.

    Pitfalls: unlike :class:`Yarn`, the ramp is linear in the frequency, not in the number of the pair, and scores are
    not made larger.

    Args:
        factor: s, the longer length divided by the trained one.
        low: turns within L0 up to which a pair is interpolated fully.
        high: turns within L0 from which on a pair is kept.
        original: L0, the trained length.

    >>> Llama3().rates(4, torch.device("cpu")).tolist()  # a wavelength of 628 tokens is kept
    [1.0, 0.01]
    """

    title: ClassVar[str] = "Llama 3 RoPE"
    paper: ClassVar[str] = "arXiv:2407.21783"
    summary: ClassVar[str] = "Rotary with long wavelengths stretched by a factor, short ones kept, and a ramp between."
    summary_zh: ClassVar[str] = "旋转中长的波长按倍数拉长，短的保持不变，中间平滑过渡。"
    variants: ClassVar[tuple[str, ...]] = ("llama3(base=500000.0, fraction=0.5, pairing='interleaved', original=64)",)

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, factor=1, low=0, original=1)
        if not self.low <= self.high < math.inf:
            raise HeadwayError(f"expected llama3 high, finite, of at least low={self.low}, got {self.high}")

    def rates(self, width: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """γ_i·ω_i + (1 − γ_i)·ω_i/s."""
        rates = super().rates(width, device)
        turns = self.original * rates / (2 * math.pi)
        # Llama 4 has low = high: a step
        kept = ((turns - self.low) / max(self.high - self.low, 1e-9)).clamp(0, 1)
        return torch.lerp(rates / self.factor, rates, kept)


@dataclass(eq=False)
class Proportional(Rotary):
    """p-RoPE (arXiv:2410.06205): the fastest pairs of the whole head turn, the slowest do not turn at all.

    Formula: with d the head width, pair i of d/2 turns by pos·base^(−2i/d)/s if i < ⌊p·d/2⌋, else by nothing. Shapes
    as :class:`Rotary`. Nothing learned. Hugging Face calls it "proportional" (Gemma 4).

    Contrast it with ``Rotary(fraction=p)``: there the exponent runs over the p·d numbers that turn, so slow pairs turn
    too, only fewer of each, and pairs lie within these first numbers, (i, i + p·d/2). Here the exponent runs over the
    whole head, and pairs are those of the whole head, (i, i + d/2): weights of one are wrong with the other. At p = 1
    the two are the same.

    Args:
        fraction: p, how much of the pairs turns.
        factor: s divides all frequencies, as in :class:`Interpolated`.

    >>> Proportional(fraction=0.5).rates(8, torch.device("cpu"))
    tensor([1.0000, 0.1000, 0.0000, 0.0000], dtype=torch.float64)
    >>> Rotary(fraction=0.5).rates(4, torch.device("cpu"))
    tensor([1.0000, 0.0100], dtype=torch.float64)
    """

    title: ClassVar[str] = "p-RoPE (proportional)"
    paper: ClassVar[str] = "arXiv:2410.06205"
    summary: ClassVar[str] = "Rotary without its slowest pairs: those do not turn and carry content only."
    summary_zh: ClassVar[str] = "只旋转最快的一部分维度对，其余不旋转，只承载内容。"
    variants: ClassVar[tuple[str, ...]] = ("proportional(fraction=0.75, pairing='interleaved', factor=2.0)",)

    fraction: float = 0.25
    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, factor=1)

    def width(self, head_dim: int) -> int:
        """The whole head is paired, d."""
        if head_dim % 2:
            raise HeadwayError(f"expected an even head width, because proportional pairs all of it, got {head_dim}")
        if self.fraction * head_dim < 2:
            raise HeadwayError(
                f"expected proportional to turn at least one pair, got fraction={self.fraction} of {head_dim}"
            )
        return head_dim

    def rates(self, width: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """ω_i / s for the fastest ⌊p·d/2⌋ pairs, 0 for the rest."""
        rates = super().rates(width, device) / self.factor
        return rates * (torch.arange(len(rates), device=device) < int(round(self.fraction * width / 2, 6)))


def _at_least(position: Rotary, **least: float) -> None:
    """Check that fields are finite and not below these values."""
    for name, bound in least.items():
        value = getattr(position, name)
        if not bound <= value < math.inf:
            raise HeadwayError(f"expected {position.method_name()} {name} of at least {bound} and finite, got {value}")


def _rise(width: int, device: torch.device) -> Float[Tensor, " pairs"]:
    """2i/(r−2): 0 for the fastest pair, 1 for the slowest; a pair that is alone is the fastest."""
    pairs = width // 2
    return torch.arange(pairs, device=device, dtype=angle_dtype(device)) / max(pairs - 1, 1)


def _length(pos: Int[Tensor, "#batch keys"]) -> Float[Tensor, "#batch 1 1 1"]:
    """How long each sequence is, by its largest position; without keys 0."""
    return torch.nn.functional.pad(pos, (1, 0), value=-1).amax(1)[:, None, None, None].to(angle_dtype(pos.device)) + 1
