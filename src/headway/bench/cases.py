"""One shape of attention with its inputs, and position methods to run on it inside :class:`headway.Attention`.

In addition to every method of :mod:`headway.positions`, two single terms can be measured:

- ``rows``: a table for each query, q·Eᵀ·scale with 128 vectors E for the distances 0 … 127, the last for all beyond
  (query-dependent biases, as in Shaw's method and Inkling); with gradients for q and E.
- ``table``: one learned value per head and distance, for all 2n−1 distances.

Learned parameters are drawn from N(0, 0.3²) instead of their initialisation, because a bias of zero might be cheaper.
Those of ``fox`` are drawn so that its gates, σ(N(4.35, 1)), have a mean of 0.98, like trained ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headway.attending import Core
from headway.attention import Attention
from headway.cache import KVCache
from headway.masks import Causal, Mask
from headway.positions import Fox, Position, parse
from headway.positions.base import TermInputs
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, ByDistance, ProductPerQuery

WIDTH = 128
"""Distances that ``rows`` distinguishes."""
_GATE = 4.35  # mean of x, where the mean of sigmoid(N(x, 1)) is 0.98
_SEED = 0


DECODING = ("decode", "decode-static")
"""Modes with one query and a cache."""


class Unsupported(Exception):
    """A contender cannot run a case; the message is the reason shown in the table."""


class TooLarge(Exception):
    """A case would need more memory than is free; the message is the reason shown in the table."""


@dataclass(frozen=True)
class Case:
    """One shape of attention.

    Args:
        length: number of keys, and of queries except in decoding.
        mode: "forward+backward", "forward", "decode": the last of ``length`` tokens, with the others cached; or
            "decode-static": the same in a cache of fixed size, which it fills.
        mask: "causal" or "full".
        batch: sequences.
        heads: query heads.
        kv_heads: key heads.
        head_dim: width of a head.
        dtype: of q, k, v and learned parameters.
        device: "cpu" or "cuda".
    """

    length: int
    mode: str = "forward+backward"
    mask: str = "causal"
    batch: int = 1
    heads: int = 8
    kv_heads: int = 8
    head_dim: int = 64
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def decodes(self) -> bool:
        """Whether it is one query with a cache."""
        return self.mode in DECODING

    @property
    def backward(self) -> bool:
        """Whether gradients are computed."""
        return self.mode == "forward+backward"

    @property
    def queries(self) -> int:
        """Number of queries."""
        return 1 if self.decodes else self.length

    @property
    def rounds(self) -> int:
        """Rounds per measurement: fewer for long texts, where each takes seconds and noise matters less. In decoding
        each takes hundredths of a second, and whatever else the machine does for a moment would count in most of a few.
        """
        if self.decodes:
            return 99
        return 9 if self.length <= 1024 else 5 if self.length <= 4096 else 3

    @property
    def causal(self) -> bool:
        """Whether the mask hides anything: in decoding, the token sees the whole cache."""
        return self.mask == "causal" and not self.decodes

    @property
    def scale(self) -> float:
        """The factor of q·k."""
        return float(self.head_dim**-0.5)

    @property
    def pairs(self) -> int:
        """Number of scores in all heads: the size of a materialised score tensor."""
        return self.batch * self.heads * self.queries * self.length

    @property
    def flops(self) -> float:
        """Floating-point operations of plain attention: 4·B·H·n²·D, half if causal, 3.5 times that with backward."""
        return 4 * self.pairs * self.head_dim * (0.5 if self.causal else 1) * (3.5 if self.backward else 1)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as a ``torch.dtype``."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def visible(self) -> Mask | None:
        """The mask as a :class:`headway.masks.Mask`."""
        return Causal() if self.mask == "causal" else None

    def positions(self) -> tuple[Tensor, Tensor]:
        """Positions of queries and keys, (1, Q) and (1, K)."""
        k_pos = torch.arange(self.length, device=self.device)[None]
        return k_pos[:, -self.queries :], k_pos


class Draw:
    """Random tensors of one case: the same for every contender; the float64 reference gets the same rounded values."""

    def __init__(self, case: Case, wide: bool = False) -> None:
        self.case, self.dtype = case, torch.float64 if wide else case.torch_dtype
        self.generator = torch.Generator().manual_seed(_SEED)

    def normal(self, *shape: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
        """N(mean, std²), rounded to the case's dtype; requires a gradient if the case has a backward pass."""
        x = (torch.randn(shape, generator=self.generator) * std + mean).to(self.case.torch_dtype)
        return x.to(self.case.device, self.dtype).requires_grad_(self.case.backward)


class CoreCall(NamedTuple):
    """The arguments that :class:`headway.Attention` passes to its core, see :func:`headway.functional.attend`."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Mask | None
    terms: tuple[AnyTerm, ...]
    q_pos: Tensor | None
    k_pos: Tensor | None
    scale: float
    normalise: str
    softcap: float | None
    sinks: Tensor | None

    def empty(self) -> Tensor:
        """An output of the right shape, for who only looks at the call."""
        return self.v.new_empty(*self.q.shape[:3], self.v.shape[3])


class _Precomputed(nn.Linear):
    """A projection whose output is given, at next to no cost; it has the widths of a real one."""

    def __init__(self, like: nn.Linear, given: dict[str, Tensor], name: str) -> None:
        super().__init__(like.in_features, like.out_features, bias=False)
        self.given, self.name = given, name

    def __call__(self, _: Tensor) -> Tensor:
        return self.given[self.name]


class Heads(Attention):
    """Attention without its four projections: takes q, k and v, and returns the heads before W_O.

    All in between is inherited, so the timing covers what Attention runs: rotations, marks, terms, masks, caches.
    """

    def __init__(self, shape: HeadShape, position: Position, mask: Mask | None) -> None:
        super().__init__(
            shape.dim, shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim, position=position, mask=mask
        )
        self.given: dict[str, Tensor] = {}
        self.q, self.k, self.v = (
            _Precomputed(one, self.given, name) for name, one in (("q", self.q), ("k", self.k), ("v", self.v))
        )

    def compute(self, core: Core, x: Tensor, q: Tensor, k: Tensor, v: Tensor, cache: KVCache | None = None) -> Tensor:
        """The heads, (B, H, Q, D), computed by this core from the queries, keys and values of the tokens x."""
        # not by setattr, whose checks take as long as a step of decoding should
        self._modules["core"] = core
        self.given.update(x=x, q=q, k=k, v=v)
        self(x, cache=cache)
        return self.given.pop("heads")

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x

    def _join(self, heads: Tensor) -> Tensor:
        self.given["heads"] = heads
        return self.given["x"]  # in the shape of an output


class _Core(Core):
    """A function as attention's core."""

    def __init__(self, how: Callable[[CoreCall], Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, *call: Any) -> Tensor:
        return self.how(CoreCall(*call))


class _RewindableCache(KVCache):
    """A cache that can be shortened to an earlier length, so that one step can be run repeatedly."""

    _rewound: tuple[Tensor, Any, Any] | None = None  # what counts tokens; it and the positions behind them as arrays

    def rewind(self, length: int) -> None:
        """Forget all but the first tokens, at next to no cost."""
        if self.size is None:
            self._length = length
        elif self._filled is not None and not self._filled.is_cpu:
            self._filled.fill_(length)
            self._store["pos"][:, length:] = -1
        elif self._filled is not None:
            if self._rewound is None or self._rewound[0] is not self._filled:
                self._rewound = self._filled, self._filled.numpy(), self._store["pos"][:, length:].numpy()
            _, filled, behind = self._rewound
            filled[...], behind[...] = length, -1


@dataclass
class Built:
    """A method inside attention, and its inputs.

    Args:
        case: the shape.
        q: queries, (B, H, Q, D).
        k: keys, (B, H_kv, K, D).
        v: values, (B, H_kv, K, D).
        weight: the gradient of the output, (B, H, Q, D).
        heads: attention without projections.
        x: the tokens, (B, K, dim).
        learned: further tensors that get gradients besides q, k and v.
    """

    case: Case
    q: Tensor
    k: Tensor
    v: Tensor
    weight: Tensor
    heads: Heads
    x: Tensor
    learned: dict[str, Tensor] = field(default_factory=dict)

    @property
    def position(self) -> Position:
        """The method."""
        return self.heads.position

    @property
    def leaves(self) -> dict[str, Tensor]:
        """All tensors that get a gradient."""
        return {"q": self.q, "k": self.k, "v": self.v, **self.learned}

    def runs(self, how: Core | Callable[[CoreCall], Tensor]) -> Callable[[], Tensor]:
        """A function that runs attention with this core once, from q, k and v to the heads, which it returns."""
        core = how if isinstance(how, Core) else _Core(how)
        if not self.case.decodes:
            return lambda: self.heads.compute(core, self.x, self.q, self.k, self.v)
        before = self.case.length - 1
        cache = _RewindableCache(self.case.length if self.case.mode == "decode-static" else None)
        if before:  # the attention of the cached tokens is not part of the measurement
            q, k, v = self.q.expand(-1, -1, before, -1), self.k[:, :, :before], self.v[:, :, :before]
            with torch.no_grad():
                self.heads.compute(_Core(CoreCall.empty), self.x[:, :before], q, k, v, cache)
        new = self.x[:, before:], self.q, self.k[:, :, before:].contiguous(), self.v[:, :, before:].contiguous()

        def step() -> Tensor:
            cache.rewind(before)
            return self.heads.compute(core, *new, cache)

        return step

    def core_call(self) -> CoreCall:
        """The arguments that attention passes to its core, without gradients."""
        seen: list[CoreCall] = []

        def look(call: CoreCall) -> Tensor:
            seen.append(call)
            return call.empty()

        with torch.no_grad():
            self.runs(look)()
        return seen[0]


def check_method(method: str) -> None:
    """Raise HeadwayError unless ``method`` is valid."""
    if method not in _TERMS:
        try:
            parse(method)
        except HeadwayError as error:
            raise HeadwayError(f"{error}; and the terms {', '.join(_TERMS)}") from None


def is_term(method: str) -> bool:
    """Whether it is a single term, not a position method."""
    return method in _TERMS


def build(method: str, case: Case, *, wide: bool = False) -> Built:
    """Create a method's inputs and parameters for a case.

    Args:
        method: see the module.
        case: the shape.
        wide: the same values in float64, for the reference.

    Raises:
        Unsupported: for a method that does not act inside attention, or does not support this mask.
    """
    shape = HeadShape.of(case.heads * case.head_dim, case.heads, case.kv_heads, case.head_dim)
    position = _TERMS[method](case.length) if method in _TERMS else parse(method)
    if position.embeds:
        raise Unsupported("it adds to the embedding, before attention, and costs nothing here")
    draw = Draw(case, wide)
    q = draw.normal(case.batch, case.heads, case.queries, case.head_dim)
    k = draw.normal(case.batch, case.kv_heads, case.length, case.head_dim)
    v = draw.normal(case.batch, case.kv_heads, case.length, case.head_dim)
    weight = draw.normal(case.batch, case.heads, case.queries, case.head_dim).detach()
    heads = Heads(shape, position, case.visible()).to(case.device, draw.dtype).eval()
    for parameter in position.parameters():
        parameter.data.copy_(draw.normal(*parameter.shape, std=0.3).detach())
        parameter.requires_grad_(case.backward)
    if isinstance(position, Fox):
        gates, bias = (position.get_parameter(f"gate.{name}") for name in ("weight", "bias"))
        gates.data.copy_(draw.normal(*gates.shape, std=shape.dim**-0.5).detach())
        bias.data.fill_(_GATE)
    learned: dict[str, Tensor] = {f"position.{name}": one for name, one in position.named_parameters()}
    x = q.new_empty(1).detach().expand(case.batch, case.length, shape.dim)
    if type(position).mark is not Position.mark:
        learned["x"] = x = draw.normal(case.batch, case.length, shape.dim)
    return Built(case, q, k, v, weight, heads, x, learned)


class _Rows(Position):
    """A table for each query, with 128 vectors."""

    def build(self, shape: HeadShape) -> None:
        self.vectors = nn.Parameter(torch.empty(WIDTH, shape.head_dim))

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        return (ProductPerQuery(look.q * look.scale, self.vectors[None], WIDTH - 1),)


@dataclass(eq=False)
class _Table(Position):
    """A learned value per head and distance."""

    length: int = 1

    def build(self, shape: HeadShape) -> None:
        self.table = nn.Parameter(torch.empty(shape.heads, 2 * self.length - 1))

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        return (ByDistance(self.table, self.length - 1),)


_TERMS: dict[str, Callable[[int], Position]] = {"rows": lambda _: _Rows(), "table": _Table}
