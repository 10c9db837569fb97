"""The contract of backends: a file with ``refuses``, ``run`` and ``describe``, each of which takes one checked call."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import forward_ad

from headway.masks import ALL, Mask
from headway.shapes import HeadwayError, broadcasts, contents
from headway.terms import AnyTerm, ByDistance, DenseBias, RowTerm, Term, ValuesByDistance


@dataclass(frozen=True, eq=False)
class Call:
    """One call of attention, checked, with all defaults filled in.

    Args:
        q: queries, (B, H, Q, D).
        k: keys, (B, H_kv, K, D).
        v: values, (B, H_kv, K, D_v).
        q_pos: positions of the queries, (B or 1, Q); -1 is padding.
        k_pos: positions of the keys, (B or 1, K); -1 is padding.
        mask: which keys each query may see; None is all.
        terms: what is added to scores or values.
        scale: multiplies q·k.
        normalise: how scores become weights.
        softcap: c in c·tanh(scale·q·k / c), or None.
        sinks: for each head the score of an additional key whose value is zero, (H,), or None.
        dropout: share of the weights set to zero; the others are divided by 1 − dropout.
        seed: decides which weights are dropped, see :mod:`headway.backends.dropout`; (1,), on the CPU.
        default_positions: True when positions are known to be 0, 1, 2 … without padding, so they need not be read.
        device: kind of device it runs on ("cpu", "cuda"); ``plan`` makes calls of meta tensors for a device named here.
    """

    q: Float[Tensor, "batch heads queries dim"]
    k: Float[Tensor, "batch kv_heads keys dim"]
    v: Float[Tensor, "batch kv_heads keys dim_v"]
    q_pos: Int[Tensor, "#batch queries"]
    k_pos: Int[Tensor, "#batch keys"]
    mask: Mask | None
    terms: tuple[AnyTerm, ...]
    scale: float
    normalise: str
    default_positions: bool
    device: str
    softcap: float | None = None
    sinks: Float[Tensor, " heads"] | None = None
    dropout: float = 0.0
    seed: Int[Tensor, "1"] | None = None

    @property
    def training(self) -> bool:
        """Whether gradients are needed."""
        held = (x for term in self.terms for x in contents(term).values())
        tensors = (x for x in (self.q, self.k, self.v, self.sinks, *held) if isinstance(x, Tensor))
        return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)

    @property
    def whole_rows(self) -> str | None:
        """The part of this call that is not plain softmax of a sum of pair terms, in words; None when nothing is."""
        if self.normalise == "softmax" and self.softcap is not None:
            return f"softcap={self.softcap}"
        if self.normalise == "softmax" and self.sinks is not None:
            return "an attention sink"
        return self.by_rows

    @property
    def by_rows(self) -> str | None:
        """The part of this call that needs a query's whole row of scores at once, in words; None when nothing does."""
        if self.normalise != "softmax":
            return f"normalise={self.normalise!r}"
        return f"the term {type(self.row_terms[0]).__name__}" if self.row_terms else None

    @property
    def row(self) -> int | None:
        """The row width of the image over which a term measures distances; None if no term does."""
        return next((t.row for t in self.terms if isinstance(t, ByDistance) and t.row is not None), None)

    @property
    def groups(self) -> int:
        """Number of query heads that share one key head."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def score_terms(self) -> tuple[Term, ...]:
        """The terms that act on scores."""
        return tuple(term for term in self.terms if isinstance(term, Term))

    @property
    def row_terms(self) -> tuple[RowTerm, ...]:
        """The terms that act on scores a whole row at a time."""
        return tuple(term for term in self.terms if isinstance(term, RowTerm))

    @property
    def value_terms(self) -> tuple[ValuesByDistance, ...]:
        """The terms that act on values."""
        return tuple(term for term in self.terms if isinstance(term, ValuesByDistance))

    def visible(self, rows: slice = ALL, cols: slice = ALL) -> Bool[Tensor, "#batch #heads queries keys"] | None:
        """Which keys ``cols`` the queries ``rows`` may see, padding excluded; None when all see all."""
        seen = None
        if self.mask is not None:
            seen = self._fitting(self.mask.tile(self.q_pos, self.k_pos, rows, cols), "a mask")
        for term in self.score_terms:
            if isinstance(term, DenseBias):  # -inf hides a pair, as in torch's attn_mask
                real = term.tile(self.q_pos, self.k_pos, rows, cols) != -torch.inf
                seen = real if seen is None else seen & real
        if self.default_positions:
            return seen
        real = (self.q_pos[:, rows, None] >= 0) & (self.k_pos[:, None, cols] >= 0)
        return real[:, None] if seen is None else seen & real[:, None]

    def bias(self, rows: slice = ALL, cols: slice = ALL) -> Float[Tensor, "#batch #heads queries keys"] | None:
        """The sum of the score terms on a tile, in float32 or better; None when there are none."""
        total: Tensor | None = None
        for term in self.score_terms:
            tile = self._fitting(term.tile(self.q_pos, self.k_pos, rows, cols), type(term).__name__)
            tile = tile.to(torch.promote_types(tile.dtype, torch.float32))
            if isinstance(term, DenseBias):
                tile = tile.masked_fill(tile == -torch.inf, 0.0)
            total = tile if total is None else total + tile
        return total

    def dropped(self, alpha: Tensor, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        """Weights of queries ``rows`` and keys ``cols`` after dropout."""
        if not self.dropout:
            return alpha
        from headway.backends.dropout import kept

        assert self.seed is not None
        (batch, heads, queries, _), keys = self.q.shape, self.k.shape[2]
        number = {size: torch.arange(size, device=alpha.device) for size in (batch * heads, queries, keys)}
        places = number[batch * heads].view(batch, heads), number[queries][rows], number[keys][cols]
        return (alpha / (1 - self.dropout)).masked_fill(~kept(self.seed, self.dropout, *places), 0.0)

    def _fitting(self, tile: Tensor, what: str) -> Tensor:
        self.fits(what, *tile.shape)
        return tile

    def check_terms(self) -> None:
        """Refuse terms made for another batch size or number of heads, before their tiles are computed."""
        queries, keys = self.q.shape[2], self.k.shape[2]
        for term in self.score_terms:
            for batch, heads in term.leading:
                self.fits(type(term).__name__, batch, heads, queries, keys)
        for value in self.value_terms:
            self.fits("ValuesByDistance", 1, len(value.table), queries, keys)

    def fits(self, what: str, batch: int, heads: int, queries: int, keys: int) -> None:
        """Refuse a mask or term made for another batch size or number of heads.

        Raises:
            HeadwayError: when it has neither as many as this call, nor one for all.
        """
        if not (broadcasts(batch, self.q.shape[0]) and broadcasts(heads, self.q.shape[1])):
            raise HeadwayError(
                f"expected {what} of shape ({self.q.shape[0]} or 1, {self.q.shape[1]} or 1, queries, keys), "
                f"got {(batch, heads, queries, keys)}"
            )


class Partial(NamedTuple):
    """Attention over some of the keys, to be merged with others.

    Args:
        out: the output over these keys alone, (B, H, Q, D_v).
        greatest: each row's greatest score, (B, H, Q); −inf where it sees no key.
        total: each row's sum of exp(score − greatest), (B, H, Q); 0 where it sees no key.
    """

    out: Float[Tensor, "batch heads queries dim_v"]
    greatest: Float[Tensor, "batch heads queries"]
    total: Float[Tensor, "batch heads queries"]


def bad_tokens(x: Float[Tensor, "*tokens dim"]) -> Bool[Tensor, "*tokens"]:
    """Which vectors hold NaN or inf: read once, where isfinite() would make several tensors as large as x."""
    if x.shape[-1] == 0:
        return torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)
    largest: Tensor = torch.linalg.vector_norm(x.detach(), torch.inf, -1)
    return ~largest.isfinite()


GRAD, VMAP, JVP, TWICE = "torch.func.grad", "torch.func.vmap", "forward-mode differentiation", "a second derivative"
_NAMES = {"Grad": GRAD, "Vmap": VMAP, "Jvp": JVP}


def transforms() -> tuple[str, ...]:
    """Active function transforms of torch, in words; a backend's ``TRANSFORMS`` names those it runs under.

    Under ``torch.compile`` there are none: the transformed call is traced.
    """
    if torch.compiler.is_compiling():
        return ()
    dual = (JVP,) if forward_ad._current_level >= 0 else ()
    stack = torch._C._functorch.get_interpreter_stack()
    if not stack:
        return dual
    active = [_NAMES[kind] for one in stack if (kind := one.key().name) in _NAMES]
    return tuple(dict.fromkeys((*active, *dual, *((TWICE,) if active.count(GRAD) > 1 else ()))))


def full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """Disable autocast, which would round the scores to bfloat16."""
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


@runtime_checkable
class Backend(Protocol):
    """The contract of a backend module."""

    def refuses(self, call: Call) -> str | None:
        """Why this backend cannot run the call, or None when it can. Depends on shapes and kinds, never on values."""

    def run(self, call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
        """Compute attention."""

    def describe(self, call: Call) -> tuple[str, str]:
        """Exactness and memory of this backend for the call, in words."""
