"""Which backend will run a position method, and why not another: ``plan`` says so without running it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headway.axes import changed
from headway.backends import BACKENDS
from headway.functional import check, choose, loaded, refusal, with_bias
from headway.integers import Array
from headway.masks import Causal, Mask
from headway.positions.base import Position
from headway.shapes import HeadShape, HeadwayError, as_count, brief


@dataclass(frozen=True)
class Plan:
    """Which backend will run a position method, its exactness and memory, and why others refuse; made for printing.

    Args:
        position: the method.
        route: the backend that will run.
        exactness: in words.
        memory: in words.
        refused: (backend, reason) for every backend that was tried first.
    """

    position: str
    route: str
    exactness: str
    memory: str
    refused: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        why = "".join(f"\n  not {name}: {reason}" for name, reason in self.refused)
        return f"{self.position}: {self.route} · {self.exactness} · {self.memory}{why}"


def plan(
    position: Position,
    *,
    tokens: int,
    heads: int,
    head_dim: int,
    kv_heads: int | None = None,
    mask: Mask | Tensor | Array | None = None,
    device: str | torch.device = "cpu",
    training: bool = True,
) -> Plan:
    """Say which backend would run a position method, without running it.

    Args:
        position: the method, attached or not; it is not changed.
        tokens: queries and keys.
        heads: query heads.
        head_dim: width of one head.
        kv_heads: key heads; default ``heads``.
        mask: as of :func:`attend`; default :class:`headway.masks.Causal`.
        device: the device it would run on.
        training: whether gradients will be needed.

    >>> from headway.positions import Rotary
    >>> print(plan(Rotary(), tokens=1024, heads=8, head_dim=64))
    rotary: native · exact · O(queries + keys): fused
    """
    if not isinstance(position, Position):
        raise HeadwayError(
            f"expected a position method, e.g. Rotary(), got {brief(position)}: parse() makes one from text"
        )
    heads, head_dim = as_count(heads, "heads of at least 1", 1), as_count(head_dim, "head_dim of at least 1", 1)
    tokens = as_count(tokens, "tokens of at least 0")
    shape = HeadShape.of(heads * head_dim, heads, kv_heads, head_dim)
    batch = 1

    def without_data(x: Tensor, axes: str) -> Tensor:
        nonlocal batch
        batch = max(batch, x.shape[axes.index("b")] if "b" in axes else 1)
        return x.to("meta")

    seen, added = with_bias(Causal() if mask is None else mask, ())
    seen = None if seen is None else changed(seen, without_data)
    added = tuple(changed(term, without_data) for term in added)
    with torch.device("meta"), torch.enable_grad():
        fresh = position.fresh().attach(shape)
        pos = torch.arange(tokens)[None]
        q = torch.empty(batch, heads, tokens, head_dim, requires_grad=training)
        k, v = (torch.empty(batch, shape.kv_heads, tokens, head_dim, requires_grad=training) for _ in range(2))
        marks = fresh.marked(torch.empty(batch, tokens, shape.dim), pos)
        q, k = fresh.rotate(q, k, pos, pos)
        q, k, terms = fresh.prepare(q, k, pos, pos, head_dim**-0.5, marks)
        call = check(q, k, v, seen, (*terms, *added), None, None, head_dim**-0.5, fresh.normalise)
        call = replace(call, device=torch.device(device).type)
        route = choose(call, "auto")
    refused = tuple((name, refusal(name, call) or "") for name in BACKENDS[: BACKENDS.index(route)])
    return Plan(position.spec(), route, *loaded(route).describe(call), refused)
