"""Who may see whom: masks compare positions, never indices, and combine with ``&`` and ``|``.

>>> import torch
>>> pos = torch.arange(4)[None]
>>> (Causal() & Window(1)).tile(pos, pos).int()[0, 0].tolist()
[[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from headway.shapes import HeadwayError

Positions = Int[Tensor, "#batch _"]
Visible = Bool[Tensor, "#batch #heads queries keys"]
ALL = slice(None)


def as_positions(
    pos: Int[Tensor, "#batch tokens"] | Int[Tensor, " tokens"] | None,
    x: Shaped[Tensor, "batch tokens *rest"],
    name: str = "positions",
) -> Positions:
    """Positions of the tokens x as int64 of shape (B or 1, N) on its device; 0 … N−1 when none are given.

    Raises:
        HeadwayError: when they are not integers, not one per token, or elsewhere.
    """
    batch, tokens = x.shape[:2]
    if pos is None:
        return torch.arange(tokens, device=x.device)[None]
    if pos.is_floating_point() or pos.is_complex() or pos.dtype is torch.bool:
        raise HeadwayError(f"expected integer {name}, got {pos.dtype}: bf16, for one, cannot count past 256")
    pos = pos[None] if pos.ndim == 1 else pos
    if pos.ndim != 2 or pos.shape[1] != tokens or pos.shape[0] not in (1, batch):
        raise HeadwayError(f"expected {name} of shape ({batch} or 1, {tokens}), got {tuple(pos.shape)}")
    if pos.device != x.device:
        raise HeadwayError(f"expected {name} on {x.device}, got {pos.device}")
    return pos.long()


class Mask:
    """Says, for a tile of queries and keys, which pairs may attend. Padding (position -1) is not a mask's concern."""

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """Visibility of queries ``rows`` and keys ``cols``; True where the query may see the key.

        Args:
            q_pos: positions of all queries, (B or 1, Q).
            k_pos: positions of all keys, (B or 1, K).
            rows: the queries of the tile; default all.
            cols: the keys of the tile; default all.
        """
        raise NotImplementedError

    def __and__(self, other: Mask) -> Mask:
        return And(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Or(self, other)


def distance(q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Int[Tensor, "#batch q k"]:
    """Key position minus query position for a tile, (B or 1, q, k): negative in the past, positive in the future."""
    return k_pos[:, None, cols] - q_pos[:, rows, None]


@dataclass(frozen=True)
class Causal(Mask):
    """A query sees keys at its own position and before: k_pos <= q_pos."""

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        return (distance(q_pos, k_pos, rows, cols) <= 0)[:, None]


@dataclass(frozen=True)
class Before(Mask):
    """A query sees keys before its own position, not itself: k_pos < q_pos."""

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        return (distance(q_pos, k_pos, rows, cols) < 0)[:, None]


@dataclass(frozen=True)
class Window(Mask):
    """A query sees ``left`` tokens into the past and ``right`` into the future, itself included.

    >>> Window(128)                      # sliding window: itself and 128 tokens before
    Window(left=128, right=0)
    """

    left: int
    right: int = 0

    def __post_init__(self) -> None:
        if self.left < 0 or self.right < 0:
            raise HeadwayError(f"expected window sides of at least 0 tokens, got left={self.left}, right={self.right}")

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        offset = distance(q_pos, k_pos, rows, cols)
        return ((offset >= -self.left) & (offset <= self.right))[:, None]


@dataclass(frozen=True)
class Chunks(Mask):
    """A query sees keys of its own chunk of ``size`` tokens, counted from position 0: ``Causal() & Chunks(8192)`` is
    Llama 4's chunked attention.

    >>> pos = torch.arange(4)[None]
    >>> (Causal() & Chunks(2)).tile(pos, pos).int()[0, 0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise HeadwayError(f"expected chunks of at least 1 token, got {self.size}")

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        return (q_pos[:, rows, None] // self.size == k_pos[:, None, cols] // self.size)[:, None]


@dataclass(frozen=True, eq=False)
class Prefix(Mask):
    """Keys at positions below ``length`` are seen by all: ``Causal() | Prefix(10)`` is a prefix language model.

    Args:
        length: tokens of the prefix; one number, or one per sequence (B,).
    """

    length: int | Int[Tensor, " batch"]

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        length = self.length[:, None, None] if isinstance(self.length, Tensor) else self.length
        keys = k_pos[:, None, cols] < length
        return keys.expand(-1, q_pos[:, rows].shape[1], -1)[:, None]


@dataclass(frozen=True, eq=False)
class Documents(Mask):
    """Packed documents: a query sees only keys of its own document. Combine: ``Causal() & Documents(ids)``.

    Args:
        ids: the document of each query, (B, Q).
        key_ids: the document of each key, (B, K); default ``ids``.
    """

    ids: Int[Tensor, "#batch queries"]
    key_ids: Int[Tensor, "#batch keys"] | None = None

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        ids, keys = self.of(q_pos, k_pos)
        return (ids[:, rows, None] == keys[:, None, cols])[:, None]

    def of(
        self, q_pos: Positions, k_pos: Positions
    ) -> tuple[Int[Tensor, "#batch queries"], Int[Tensor, "#batch keys"]]:
        """The document of each query and of each key.

        Raises:
            HeadwayError: when there is not one id per token.
        """
        keys = self.ids if self.key_ids is None else self.key_ids
        for name, ids, pos in (("ids", self.ids, q_pos), ("key_ids", keys, k_pos)):
            if ids.ndim != 2 or ids.shape[1] != pos.shape[1]:
                raise HeadwayError(
                    f"expected Documents {name} of shape (batch, {pos.shape[1]}), got {tuple(ids.shape)}: "
                    f"give one document id per token"
                )
        return self.ids, keys


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """Any visibility there is, as a boolean tensor (B or 1, H or 1, Q, K), True where the query may see the key."""

    visible: Visible

    def __post_init__(self) -> None:
        if not isinstance(self.visible, Tensor) or self.visible.dtype is not torch.bool or self.visible.ndim != 4:
            got = (
                f"{self.visible.dtype} of shape {tuple(self.visible.shape)}"
                if isinstance(self.visible, Tensor)
                else repr(self.visible)
            )
            raise HeadwayError(
                f"expected a boolean mask of shape (batch or 1, heads or 1, queries, keys), True = may see, got {got}: "
                f"what is added to scores is a term, see headway.terms"
            )

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        expected = (q_pos.shape[1], k_pos.shape[1])
        if tuple(self.visible.shape[-2:]) != expected:
            raise HeadwayError(
                f"expected a mask over {expected[0]} queries and {expected[1]} keys, "
                f"got one of shape {tuple(self.visible.shape)}"
            )
        return self.visible[:, :, rows, cols]


@dataclass(frozen=True, eq=False)
class And(Mask):
    """Both masks allow it."""

    first: Mask
    second: Mask

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        return self.first.tile(q_pos, k_pos, rows, cols) & self.second.tile(q_pos, k_pos, rows, cols)


@dataclass(frozen=True, eq=False)
class Or(Mask):
    """Either mask allows it."""

    first: Mask
    second: Mask

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        return self.first.tile(q_pos, k_pos, rows, cols) | self.second.tile(q_pos, k_pos, rows, cols)


FAR = 2**40
"""A distance no pair of tokens has: the reach of a mask without that side."""


def straight(mask: Mask | None) -> bool:
    """Whether a mask hides by distance alone."""
    if isinstance(mask, And | Or):
        return straight(mask.first) and straight(mask.second)
    return mask is None or isinstance(mask, Causal | Window)


def reach(mask: Mask | None) -> tuple[int, int]:
    """How far behind and before a query a mask may let it see; all between, for a mask that is :func:`straight`.

    Each range holds distance 0, so that ranges that meet or join are ranges again.
    """
    match mask:
        case Causal():
            return FAR, 0
        case Window(left, right):
            return left, right
        case And(first, second) | Or(first, second):
            choose = min if isinstance(mask, And) else max
            (past, future), (other_past, other_future) = reach(first), reach(second)
            return choose(past, other_past), choose(future, other_future)
        case _:
            return FAR, FAR
