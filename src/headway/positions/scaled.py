"""Rotary position embedding for contexts beyond the training length; only the frequencies change.

ω_i = base^(−2i/r), i = 0 … r/2−1          frequency of pair i in Rotary, radians per token; r dimensions are rotated
s   = factor, the ratio of lengths         L0 = original, the length ω was trained at

Interpolated   ω_i / s                                      Chen et al. 2023, arXiv:2306.15595
NTK            ω_i · s^(−2i/(r−2)), that is, base·s^(r/(r−2))   Peng et al. 2023, arXiv:2309.00071, section 3.1
DynamicNTK     NTK with s·L/L0 − (s−1) for s once the length L passes L0         the same, section 3.3
Yarn           ω_i where a pair rotates often within L0, ω_i / s where it does not  the same, section 3.4
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
from headway.positions.working import Line, Lines, Number, plain
from headway.shapes import HeadShape, HeadwayError

_TURNS = (1e-9, 1e9)
"""Limits of yarn's numbers of rotations: of any others the logarithm may overflow."""


@dataclass(eq=False)
class Interpolated(Rotary):
    """Position interpolation (arXiv:2306.15595): positions are compressed into the trained range.

    Formula: pair i rotates by pos·ω_i/s, ω_i = base^(−2i/r); shapes and the rest as in :class:`Rotary`. Nothing is
    learned. Hugging Face calls it "linear".

    Pitfalls: distances between near tokens are compressed too, so a short fine-tuning at the longer length is needed.

    Args:
        factor: s, the longer length divided by the trained one.

    >>> Interpolated(factor=4.0).rates(4, torch.device("cpu")).tolist()
    [0.25, 0.0025]
    """

    title: ClassVar[str] = "Position interpolation"
    paper: ClassVar[str] = "arXiv:2306.15595"
    summary: ClassVar[str] = (
        "Rotary with all positions divided by a factor, so that a longer text fits the trained range."
    )
    summary_zh: ClassVar[str] = "把位置统一除以一个倍数再旋转，使更长的文本落在训练过的范围内。"
    variants: ClassVar[tuple[str, ...]] = ("interpolated(fraction=0.5, pairing='interleaved', factor=1.5)",)

    factor: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, factor=1)

    def rates(self, width: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """ω_i / s."""
        return super().rates(width, device) / self.factor

    def rate_lines(self, number: Number, width: int) -> Lines:
        """ω_i / s."""
        own = self.rates(width, number.at.device)[number.index]
        return self._unscaled(number, width), Line("ω", f"ω0 / {plain(self.factor)}", own)


@dataclass(eq=False)
class NTK(Rotary):
    """NTK-aware scaling (arXiv:2309.00071, section 3.1): a larger base slows slow pairs and keeps fast ones.

    Formula: base·s^(r/(r−2)) instead of base, that is ω_i·s^(−2i/(r−2)): the fastest pair is kept, the slowest is
    divided by s exactly. Shapes and everything else as :class:`Rotary`. Nothing is learned.

    Pitfalls: pairs in between are divided by less than s and reach untrained angles, so s should be slightly larger
    than the ratio of lengths.

    Args:
        factor: s, the longer length divided by the trained one.

    >>> NTK(factor=4.0).rates(6, torch.device("cpu")) / Rotary().rates(6, torch.device("cpu"))
    tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)
    """

    title: ClassVar[str] = "NTK-aware RoPE"
    paper: ClassVar[str] = "arXiv:2309.00071"
    summary: ClassVar[str] = "Rotary with a larger base: slow pairs are slowed by a factor, fast ones hardly change."
    summary_zh: ClassVar[str] = "增大旋转的底数：慢的维度对按倍数放慢，快的几乎不变。"
    variants: ClassVar[tuple[str, ...]] = ("ntk(fraction=0.5, pairing='interleaved', factor=8.0)",)

    factor: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, factor=1)

    def rates(self, width: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """ω_i · s^(−2i/(r−2))."""
        return super().rates(width, device) * self.factor ** -_rise(width, device)

    def rate_lines(self, number: Number, width: int) -> Lines:
        """ω_i · s^(−2i/(r−2))."""
        own = self.rates(width, number.at.device)[number.index]
        power = f"({number.index} / {max(width // 2 - 1, 1)})"
        return self._unscaled(number, width), Line("ω", f"ω0 / {plain(self.factor)}^{power}", own)


@dataclass(eq=False)
class DynamicNTK(Rotary):
    """Dynamic NTK scaling (arXiv:2309.00071, section 3.3): the base grows with the length once it exceeds L0.

    Formula: for L ≤ L0 exactly :class:`Rotary`; above, :class:`NTK` with the factor s·L/L0 − (s−1), where the length
    L is the largest key position + 1, separately for each sequence. Shapes as :class:`Rotary`. Nothing is learned.

    All keys must be rotated with the current base. In other implementations cached keys keep an older base; here the
    cache holds unrotated keys, and every call rotates all of them (``transform_qk``). So each decoding step equals the
    last row of one pass over the text so far. One pass over a longer text uses another base for the earlier rows: this
    is inherent to the method, so beyond L0 decoding and one pass differ.

    Pitfalls: the paper's own factor is L/L0, which is s = 1 here; checkpoints on Hugging Face have other values of s.
    L is counted from position 0, so beyond L0 shifting all positions changes attention. Rotating all keys in every step
    costs about as much as reading them.

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
    summary: ClassVar[str] = (
        "Rotary whose base grows with the text beyond the training length; cached keys are rotated again."
    )
    summary_zh: ClassVar[str] = "超过训练长度后旋转的底数随文本增长，缓存的键也随之更新。"
    by_length: ClassVar[bool] = True
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
        """Rotate q and all keys with the base of the current length."""
        width, device = self.width(look.q.shape[-1]), look.q.device
        beyond = _length(look.k_pos) / self.original - 1
        growth = (1 + self.factor * beyond).clamp(min=1)  # (B, 1, 1, 1); a factor of 1 up to L0 changes no bit
        rates = self.rates(width, device) * growth ** -_rise(width, device)
        return self.rotated(look.q, look.k, look.q_pos, look.k_pos, rates)

    def rate_lines(self, number: Number, width: int) -> Lines:
        """ω_i · growth^(−2i/(r−2)) at the length of the text."""
        growth = max(1.0, 1 + self.factor * (number.length / self.original - 1))
        first, power = self._unscaled(number, width), number.index / max(width // 2 - 1, 1)
        grown = f"max(1, 1 + {plain(self.factor)} · ({number.length} / {self.original} − 1))"
        formula = f"ω0 / s^({number.index} / {max(width // 2 - 1, 1)})"
        return first, Line("s", grown, growth), Line("ω", formula, first.value * growth**-power)


@dataclass(eq=False)
class Yarn(Rotary):
    """YaRN (arXiv:2309.00071): slow pairs are interpolated, fast ones unchanged, and attention is slightly sharpened.

    Formula: ω_i·(1−γ_i) + ω_i/s·γ_i, where γ rises linearly from 0 at the pair that rotates ``beta_fast`` times within
    L0 to 1 at the one that rotates ``beta_slow`` times: pair r·ln(L0/(2π·β)) / (2·ln base). Cosines and sines of q and
    k are multiplied by 0.1·ln s + 1, so the rotated part of scores grows by its square. Shapes as :class:`Rotary`.
    Nothing is learned.

    Pitfalls: the paper writes the ramp over rotations within L0; the authors' code, all checkpoints and this class have
    it over the index of the pair (``Llama3(low=1.0, high=32.0)`` is the former, without the larger scores). With
    ``fraction`` below 1 only the rotated part is sharpened. DeepSeek's models give both ``mscale`` and
    ``mscale_all_dim``, and also multiply the softmax scale by (0.1·mscale_all_dim·ln s + 1)²: pass that scale to
    Attention.

    Args:
        factor: s, the longer length divided by the trained one.
        original: L0, the trained length.
        beta_fast: pairs with at least this many rotations within L0 are unchanged.
        beta_slow: pairs with at most this many rotations within L0 are fully interpolated.
        attention_factor: factor of cosines and sines; 0 uses the formula.
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
    summary: ClassVar[str] = "Rotary with slow pairs interpolated, fast ones unchanged, and larger scores."
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
        if not _TURNS[0] <= self.beta_slow < self.beta_fast <= _TURNS[1]:
            raise HeadwayError(
                f"expected yarn beta_slow and beta_fast from {_TURNS[0]:g} to {_TURNS[1]:g} rotations, got "
                f"{self.beta_slow} and {self.beta_fast}"
            )

    def rates(self, width: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """ω_i·(1−γ_i) + ω_i/s·γ_i."""
        rates = super().rates(width, device)
        pair = torch.arange(len(rates), device=device, dtype=rates.dtype)
        return torch.lerp(rates, rates / self.factor, self._ramp(pair, *self._ends(width)))

    def _ends(self, width: int) -> tuple[float, float]:
        """The pairs at the ends of the ramp."""
        low, high = (
            width * math.log(self.original / (2 * math.pi * turns)) / (2 * math.log(self.base))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        return max(low, 0), min(high, width - 1)

    def _ramp(self, pair: Tensor, low: float, high: float) -> Tensor:
        # a ramp of zero width is a step, as steep as in the authors' code
        return ((pair - low) / (high - low if high > low else 0.001)).clamp(0, 1)

    def amplitude(self) -> float:
        """0.1·ln s + 1, or the given value."""
        if self.attention_factor:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._sharpness(self.mscale) / self._sharpness(self.mscale_all_dim)
        return self._sharpness(1.0)

    def _sharpness(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1

    def rate_lines(self, number: Number, width: int) -> Lines:
        """ω_i·(1−γ_i) + ω_i/s·γ_i."""
        low, high = self._ends(width)
        ramp = float(self._ramp(torch.tensor(float(number.index), dtype=torch.float64), low, high))
        own, wide = self.rates(width, number.at.device)[number.index], high - low if high > low else 0.001
        share = f"max(0, min(1, ({number.index} − {plain(low)}) / {plain(wide)}))"
        formula = f"ω0 · (1 − γ) + ω0 / {plain(self.factor)} · γ"
        return self._unscaled(number, width), Line("γ", share, ramp), Line("ω", formula, own)


@dataclass(eq=False)
class LongRope(Rotary):
    """LongRoPE (arXiv:2402.13753): each pair has its own divisor, in two lists, one for texts longer than L0.

    Formula: ω_i/λ_i with λ = ``long`` if L > L0, else ``short``; L is the largest key position + 1, separately for
    each sequence. Cosines and sines of q and k are multiplied by √(1 + ln s / ln L0) at any length. Shapes as
    :class:`Rotary`. Nothing is learned: the lists come from a search, or from a checkpoint's configuration (Phi-3).

    When a text exceeds L0, all its keys must change. The cache holds unrotated keys, and every call rotates all of them
    (``transform_qk``), so no key rotated by the short list remains. See :class:`DynamicNTK` for the consequences.

    Pitfalls: where the lists differ, L is counted from position 0, as for :class:`DynamicNTK`.

    Args:
        factor: s, the longest length divided by L0.
        original: L0, the trained length.
        short: λ up to L0, r/2 values, the fastest pair first; empty is all ones.
        long: λ beyond L0, likewise.
        attention_factor: factor of cosines and sines; 0 uses the formula.

    >>> LongRope(long=(1.0, 8.0), factor=8.0).rates_for(5000, 4, torch.device("cpu")).tolist()
    [1.0, 0.00125]
    """

    title: ClassVar[str] = "LongRoPE"
    paper: ClassVar[str] = "arXiv:2402.13753"
    summary: ClassVar[str] = (
        "Rotary with a separate divisor for each pair, from one list for short and one for long texts."
    )
    summary_zh: ClassVar[str] = "每个维度对有自己的缩放因子，短文本和长文本各用一组。"
    by_length: ClassVar[bool] = True
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
        """Check that the lists have one value per pair."""
        pairs = self.width(shape.head_dim) // 2
        for name in ("short", "long"):
            if len(getattr(self, name)) not in (0, pairs):
                raise HeadwayError(
                    f"expected longrope {name} of {pairs} numbers, one for each pair that rotates, "
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
        """Rotate q and all keys by the list for the current length."""
        rates = self.rates_for(_length(look.k_pos), self.width(look.q.shape[-1]), look.q.device)
        return self.rotated(look.q, look.k, look.q_pos, look.k_pos, rates)

    def amplitude(self) -> float:
        """√(1 + ln s / ln L0), or the given value."""
        return self.attention_factor or math.sqrt(1 + math.log(self.factor) / math.log(self.original))

    def rate_lines(self, number: Number, width: int) -> Lines:
        """ω_i / λ_i at the length of the text."""
        own = self.rates_for(float(number.length), width, number.at.device).flatten()[number.index]
        divisors = self.long if number.length > self.original else self.short
        return self._unscaled(number, width), Line("ω", f"ω0 / {plain(divisors[number.index] if divisors else 1)}", own)


@dataclass(eq=False)
class Llama3(Rotary):
    """The scaling of Llama 3.1 (arXiv:2407.21783): slow pairs are interpolated and fast ones unchanged, by wavelength.

    Formula: with n_i = L0·ω_i/2π, the rotations of pair i within L0, and γ_i = (n_i − low)/(high − low) limited to 0 …
    1, pair i rotates by γ_i·ω_i + (1 − γ_i)·ω_i/s. Shapes and everything else as :class:`Rotary`. Nothing is learned.

    Pitfalls: unlike :class:`Yarn`, the ramp is linear in the frequency, not in the index of the pair, and scores are
    not larger.

    Args:
        factor: s, the longer length divided by the trained one.
        low: pairs with at most this many rotations within L0 are fully interpolated.
        high: pairs with at least this many rotations within L0 are unchanged.
        original: L0, the trained length.

    >>> Llama3().rates(4, torch.device("cpu")).tolist()  # a wavelength of 628 tokens is kept
    [1.0, 0.01]
    """

    title: ClassVar[str] = "Llama 3 RoPE"
    paper: ClassVar[str] = "arXiv:2407.21783"
    summary: ClassVar[str] = (
        "Rotary with long wavelengths stretched by a factor, short ones unchanged, and a ramp between."
    )
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

    def rate_lines(self, number: Number, width: int) -> Lines:
        """γ_i·ω_i + (1 − γ_i)·ω_i/s."""
        first, own = self._unscaled(number, width), self.rates(width, number.at.device)[number.index]
        turns = self.original * first.value / (2 * math.pi)
        wide = max(self.high - self.low, 1e-9)
        kept = min(1.0, max(0.0, float((turns - self.low) / wide)))
        share = f"max(0, min(1, (N − {plain(self.low)}) / {plain(wide)}))"
        rest = (Line("N", f"{self.original} · ω0 / (2 · π)", turns), Line("γ", share, kept))
        return first, *rest, Line("ω", f"γ · ω0 + (1 − γ) · ω0 / {plain(self.factor)}", own)


@dataclass(eq=False)
class Proportional(Rotary):
    """p-RoPE (arXiv:2410.06205): the fastest pairs of the whole head are rotated, the slowest are not.

    Formula: with head width d, pair i of d/2 is rotated by pos·base^(−2i/d)/s if i < ⌊p·d/2⌋, else by 0. Shapes
    as :class:`Rotary`. Nothing is learned. Hugging Face calls it "proportional" (Gemma 4).

    Contrast it with ``Rotary(fraction=p)``: there the exponent runs over the p·d rotated dimensions, so slow pairs are
    rotated too, and pairs lie within these first dimensions, (i, i + p·d/2). Here the exponent runs over the whole
    head, and so do the pairs, (i, i + d/2): weights of one are wrong with the other. At p = 1 the two are the same.

    Args:
        fraction: p, the share of pairs that are rotated.
        factor: s divides all frequencies, as in :class:`Interpolated`.

    >>> Proportional(fraction=0.5).rates(8, torch.device("cpu"))
    tensor([1.0000, 0.1000, 0.0000, 0.0000], dtype=torch.float64)
    >>> Rotary(fraction=0.5).rates(4, torch.device("cpu"))
    tensor([1.0000, 0.0100], dtype=torch.float64)
    """

    title: ClassVar[str] = "p-RoPE (proportional)"
    paper: ClassVar[str] = "arXiv:2410.06205"
    summary: ClassVar[str] = "Rotary without its slowest pairs: those are not rotated and carry content only."
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
                f"expected proportional to rotate at least one pair, got fraction={self.fraction} of {head_dim}"
            )
        return head_dim

    def rates(self, width: int, device: torch.device) -> Float[Tensor, " pairs"]:
        """ω_i / s for the fastest ⌊p·d/2⌋ pairs, 0 for the rest."""
        rates = super().rates(width, device) / self.factor
        return rates * (torch.arange(len(rates), device=device) < int(round(self.fraction * width / 2, 6)))

    def rate_lines(self, number: Number, width: int) -> Lines:
        """ω_i / s, or 0."""
        own = self.rates(width, number.at.device)[number.index]
        return self._unscaled(number, width), Line("ω", f"ω0 / {plain(self.factor)}" if own else "0 · ω0", own)


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
    """Length of each sequence, from its largest position; 0 without keys."""
    return torch.nn.functional.pad(pos, (1, 0), value=-1).amax(1)[:, None, None, None].to(angle_dtype(pos.device)) + 1
