"""One shape of attention with its inputs, and position methods as something to add to it.

Besides every method of :mod:`headway.positions` three kinds of terms are known by themselves:

- ``fox``: the forgetting gates f = sigmoid(x) of :class:`headway.positions.Fox` without their projection from tokens: x
  is N(4.35, 1), so that the gates have a mean of 0.98; its gradient is part of the work.
- ``rows``: a table for each query, q·Eᵀ·scale with 128 vectors E for the distances 0 … 127, the last for all beyond
  (Shaw's and Inkling's query-dependent biases); gradients to q and E.
- ``table``: one learned number per head and distance, for all 2n−1 distances.

Learned parameters are N(0, 0.3²): away from their initialisation, where a bias of zero might be cheap by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from headway.masks import Causal, Mask
from headway.positions import Position, parse
from headway.positions.fox import forgetting
from headway.shapes import HeadShape, HeadwayError
from headway.terms import AnyTerm, ByDistance, ByDistancePerQuery, PerKey

WIDTH = 128
"""Distances that ``rows`` tells apart."""
_GATE = 4.35  # mean of x, where the mean of sigmoid(N(x, 1)) is 0.98
_SEED = 0


class Unsupported(Exception):
    """What a contender cannot do; the message is the reason in the table."""


class TooLarge(Exception):
    """What would need more memory than there is; the message is the reason in the table."""


@dataclass(frozen=True)
class Case:
    """One shape of attention.

    Args:
        length: keys, and queries unless one decodes.
        mode: "forward+backward", "forward" or "decode": one query after ``length`` cached keys.
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
        """Whether one query meets a cache."""
        return self.mode == "decode"

    @property
    def backward(self) -> bool:
        """Whether gradients are part of the work."""
        return self.mode == "forward+backward"

    @property
    def queries(self) -> int:
        """How many queries there are."""
        return 1 if self.decodes else self.length

    @property
    def causal(self) -> bool:
        """Whether a mask hides anything: a decoded token sees all of its cache."""
        return self.mask == "causal" and not self.decodes

    @property
    def scale(self) -> float:
        """What q·k is multiplied with."""
        return float(self.head_dim**-0.5)

    @property
    def pairs(self) -> int:
        """Scores of all heads: what is held where somebody materialises them."""
        return self.batch * self.heads * self.queries * self.length

    @property
    def flops(self) -> float:
        """Floating-point operations of plain attention: 4·B·H·n²·D, half if causal, 3.5 times that with backward."""
        return 4 * self.pairs * self.head_dim * (0.5 if self.causal else 1) * (3.5 if self.backward else 1)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def visible(self) -> Mask | None:
        """The mask as ours."""
        return Causal() if self.mask == "causal" else None

    def positions(self) -> tuple[Tensor, Tensor]:
        """Positions of queries and keys, (1, Q) and (1, K)."""
        k_pos = torch.arange(self.length, device=self.device)[None]
        return (torch.full_like(k_pos[:, :1], self.length) if self.decodes else k_pos), k_pos


class Draw:
    """Random tensors of one case: the same for every contender, and for the float64 truth rounded the same way."""

    def __init__(self, case: Case, wide: bool = False) -> None:
        self.case, self.dtype = case, torch.float64 if wide else case.torch_dtype
        self.generator = torch.Generator().manual_seed(_SEED)

    def normal(self, *shape: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
        """N(mean, std²), first rounded to the case's dtype; it gets a gradient if the case has a backward pass."""
        x = (torch.randn(shape, generator=self.generator) * std + mean).to(self.case.torch_dtype)
        return x.to(self.case.device, self.dtype).requires_grad_(self.case.backward)


@dataclass
class Built:
    """A method ready to be added to attention.

    Args:
        q: queries, (B, H, Q, D).
        k: keys, (B, H_kv, K, D).
        v: values, (B, H_kv, K, D).
        weight: the gradient of the output, (B, H, Q, D).
        make: queries and keys as attention gets them, and the terms; all of it is timed work.
        learned: what gets a gradient besides q, k and v.
        position: the method, if it is one of :mod:`headway.positions`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    weight: Tensor
    make: Callable[[], tuple[Tensor, Tensor, tuple[AnyTerm, ...]]]
    learned: dict[str, Tensor] = field(default_factory=dict)
    position: Position | None = None

    @property
    def normalise(self) -> str:
        """How scores become weights."""
        return "softmax" if self.position is None else self.position.normalise

    @property
    def leaves(self) -> dict[str, Tensor]:
        """All that gets a gradient."""
        return {"q": self.q, "k": self.k, "v": self.v, **self.learned}


def check_method(method: str) -> None:
    """Raise HeadwayError unless ``method`` can be built."""
    if method not in _TERMS:
        try:
            parse(method)
        except HeadwayError as error:
            raise HeadwayError(f"{error}; and the terms {', '.join(_TERMS)}") from None


def build(method: str, case: Case, *, wide: bool = False) -> Built:
    """Make a method's inputs and parameters for a case.

    Args:
        method: see the module.
        case: the shape.
        wide: the same values in float64, for the truth.

    Raises:
        Unsupported: for a method that does not act inside attention, or not under this mask.
    """
    draw = Draw(case, wide)
    q = draw.normal(case.batch, case.heads, case.queries, case.head_dim)
    k = draw.normal(case.batch, case.kv_heads, case.length, case.head_dim)
    v = draw.normal(case.batch, case.kv_heads, case.length, case.head_dim)
    weight = draw.normal(case.batch, case.heads, case.queries, case.head_dim).detach()
    built = Built(q, k, v, weight, lambda: (q, k, ()))
    if method in _TERMS:
        _TERMS[method](built, case, draw)
    else:
        _method(built, parse(method), case, draw)
    return built


def _method(built: Built, position: Position, case: Case, draw: Draw) -> None:
    shape = HeadShape.of(case.heads * case.head_dim, case.heads, case.kv_heads, case.head_dim)
    if position.embeds:
        raise Unsupported("it acts on the embedding, before attention, and costs nothing here")
    position = position.attach(shape).to(case.device, draw.dtype)
    for parameter in position.parameters():
        parameter.data.copy_(draw.normal(*parameter.shape, std=0.3).detach())
        parameter.requires_grad_(case.backward)
    built.position, built.learned = position, dict(position.named_parameters())
    q_pos, k_pos = case.positions()
    x = None
    if type(position).mark is not Position.mark:
        x = draw.normal(case.batch, case.length, shape.dim)
        built.learned["x"] = x
    if case.decodes:
        # a cache holds keys as they were rotated and marks as they were made; one new key is rotated beside the query
        new = built.k[:, :, -1:].contiguous()
        marks = None if x is None else position.mark(x)

        def make() -> tuple[Tensor, Tensor, tuple[AnyTerm, ...]]:
            q, _ = position.rotate(built.q, new, q_pos, q_pos)
            return position.act(q, built.k, q_pos, k_pos, case.scale, marks)

    else:

        def make() -> tuple[Tensor, Tensor, tuple[AnyTerm, ...]]:
            marks = None if x is None else position.mark(x)
            q, k = position.rotate(built.q, built.k, q_pos, k_pos)
            return position.act(q, k, q_pos, k_pos, case.scale, marks)

    built.make = make


def _fox(built: Built, case: Case, draw: Draw) -> None:
    if case.mask != "causal":
        raise Unsupported("forgetting is defined for causal attention")
    x = draw.normal(case.batch, case.heads, case.length, mean=_GATE)
    at_least = torch.promote_types(x.dtype, torch.float32)

    def term() -> PerKey:
        return forgetting(logsigmoid(x.to(at_least)))

    if case.decodes:  # the running sum is kept beside the cache
        cached = term()
        built.make = lambda: (built.q, built.k, (cached,))
    else:
        built.make = lambda: (built.q, built.k, (term(),))
    built.learned["gates"] = x


def _rows(built: Built, case: Case, draw: Draw) -> None:
    vectors = draw.normal(WIDTH, case.head_dim, std=0.3)
    built.learned["vectors"] = vectors
    built.make = lambda: (
        built.q,
        built.k,
        (ByDistancePerQuery((built.q * case.scale) @ vectors.T, WIDTH - 1),),
    )


def _table(built: Built, case: Case, draw: Draw) -> None:
    tokens = case.length + case.decodes
    table = draw.normal(case.heads, 2 * tokens - 1, std=0.3)
    built.learned["table"] = table
    built.make = lambda: (built.q, built.k, (ByDistance(table, tokens - 1),))


_TERMS: dict[str, Callable[[Built, Case, Draw], None]] = {"fox": _fox, "rows": _rows, "table": _table}
