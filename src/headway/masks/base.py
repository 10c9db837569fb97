"""The interface of masks, how they combine, and the masks by distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headway.integers import FAR, Array, Positions
from headway.shapes import HeadwayError, as_count, brief, kind_of

Visible = Bool[Tensor, "#batch #heads queries keys"]
ALL = slice(None)


def as_mask(given: Mask | Tensor | Array | None, name: str = "mask") -> Mask | None:
    """A mask unchanged, and a boolean tensor or array as :class:`Dense`.

    Raises:
        HeadwayError: for anything else.
    """
    if given is None or isinstance(given, Mask):
        return given
    if isinstance(given, Tensor):
        return Dense(given)
    if isinstance(given, Array):
        return Dense(_as_tensor(given, name))
    raise HeadwayError(
        f"expected a {name} of headway.masks, a boolean tensor or None, got {type(given).__name__} {brief(given)}"
    )


def _as_tensor(given: Array, name: str) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise HeadwayError(f"expected a boolean {name}, got an array of {given.__array__().dtype}") from error


class Mask:
    """Says, for a tile of queries and keys, which pairs may attend. Masks need not hide padding (position -1).

    ``&`` and ``|`` combine masks with each other and, on either side, with boolean tensors, which are :class:`Dense`.

    Attributes:
        axes: what each axis of its tensors is for: b sequences, h heads, q queries, k keys, n keys of the whole text; x
            is none of these.

    >>> torch.eye(2, dtype=torch.bool) & Causal()
    And(first=Dense(visible=(2, 2)), second=Causal())
    """

    axes: ClassVar[dict[str, str]] = {}

    __array_ufunc__ = None
    """An array on the left of ``&`` defers to :meth:`__rand__` instead of applying the operator to each entry."""

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """Visibility of queries ``rows`` and keys ``cols``; True where the query may see the key.

        Args:
            q_pos: positions of all queries, (B or 1, Q).
            k_pos: positions of all keys, (B or 1, K).
            rows: the queries of the tile; default all.
            cols: the keys of the tile; default all.
        """
        raise NotImplementedError

    def __and__(self, other: Mask | Tensor | Array) -> Mask:
        return _joined(And, self, other)

    def __or__(self, other: Mask | Tensor | Array) -> Mask:
        return _joined(Or, self, other)

    def __rand__(self, other: Mask | Tensor | Array) -> Mask:
        return _joined(And, other, self)

    def __ror__(self, other: Mask | Tensor | Array) -> Mask:
        return _joined(Or, other, self)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called by a tensor on the left of ``&`` or ``|``."""
        name = getattr(function, "__name__", str(function))
        if name in ("__and__", "__iand__", "and_", "bitwise_and", "logical_and"):  # torch.compile has the other names
            return _joined(And, *args)
        if name in ("__or__", "__ior__", "or_", "bitwise_or", "logical_or"):
            return _joined(Or, *args)
        raise HeadwayError(
            f"expected a mask to be combined with tensors by & or |, got it as an argument of torch's {name}: "
            f"mask.tile(q_pos, k_pos) returns it as a tensor"
        )


def _joined(join: type[And] | type[Or], first: Any, second: Any) -> Mask:
    sides = as_mask(first), as_mask(second)
    if sides[0] is None or sides[1] is None:
        raise HeadwayError("expected & and | between two masks, or a mask and a boolean tensor, got None")
    return join(sides[0], sides[1])


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
    """A query sees itself, ``left`` tokens into the past and ``right`` into the future.

    A configuration's ``sliding_window`` of W tokens (Mistral, Gemma, gpt-oss …) includes the query itself: that is
    ``Window(W - 1)``, or :meth:`sliding`. FlashAttention's ``window_size=(left, right)`` is ``Window(left, right)``.

    Args:
        left: number of earlier positions it sees, at least 0.
        right: number of later positions it sees; default 0, which is causal.

    Raises:
        HeadwayError: when a side is not an integer or below 0.

    >>> Window(128)                      # itself and the 128 tokens before it
    Window(left=128, right=0)
    """

    left: int
    right: int = 0

    def __post_init__(self) -> None:
        for side in ("left", "right"):
            object.__setattr__(
                self, side, as_count(getattr(self, side), f"a window's {side} side of at least 0 tokens")
            )

    @classmethod
    def sliding(cls, width: int) -> Window:
        """The window of a configuration's ``sliding_window``: ``width`` tokens, including the query itself.

        Raises:
            HeadwayError: when it is not an integer or below 1.

        >>> Window.sliding(4096)
        Window(left=4095, right=0)
        """
        return cls(as_count(width, "a sliding window of at least 1 token", 1) - 1)

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        offset = distance(q_pos, k_pos, rows, cols)
        left, right = min(self.left, FAR), min(self.right, FAR)  # small enough to compare with an int64
        return ((offset >= -left) & (offset <= right))[:, None]


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """Arbitrary visibility, as a boolean tensor, True where the query may see the key.

    With a cache it covers all keys, the cached ones first.

    Args:
        visible: (B or 1, H or 1, Q, K), (B or 1, Q, K) for all heads, or (Q, K) for all sequences and heads.

    Raises:
        HeadwayError: when it is not a boolean tensor of 2 to 4 axes.
    """

    axes: ClassVar[dict[str, str]] = {"visible": "bhqn"}

    visible: Visible | Bool[Tensor, "#batch queries keys"] | Bool[Tensor, "queries keys"]

    def __post_init__(self) -> None:
        given: Any = self.visible
        if not isinstance(given, Tensor) and isinstance(given, Array):
            given = _as_tensor(given, "mask")
            object.__setattr__(self, "visible", given)
        if not isinstance(given, Tensor) or given.dtype is not torch.bool or given.ndim not in (2, 3, 4):
            got = kind_of(given)
            raise HeadwayError(
                f"expected a boolean mask of shape (batch or 1, heads or 1, queries, keys), (batch or 1, queries, "
                f"keys) or (queries, keys), True = visible, got {got}: {_instead(given)}"
            )
        if given.ndim == 3:
            object.__setattr__(self, "visible", given[:, None])

    def __repr__(self) -> str:
        return f"Dense(visible={tuple(self.visible.shape)})"

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        expected = (q_pos.shape[1], k_pos.shape[1])
        if tuple(self.visible.shape[-2:]) != expected:
            raise HeadwayError(
                f"expected a mask over {expected[0]} queries and {expected[1]} keys, including cached ones, "
                f"got one of shape {tuple(self.visible.shape)}{_padding(tuple(self.visible.shape), expected[1])}"
            )
        visible = self.visible if self.visible.ndim == 4 else self.visible[None, None]
        return visible[:, :, rows, cols]


def _padding(shape: tuple[int, ...], keys: int) -> str:
    """What to do if the mask looks like a padding mask."""
    if shape[-1] != keys or (len(shape) == 4 and shape[2] != 1):
        return ""
    return ": mark padding by position -1 instead of by a mask"


def _instead(given: object) -> str:
    """What to pass instead of an invalid dense mask."""
    if not isinstance(given, Tensor):
        return "pass a mask of headway.masks or a boolean tensor"
    if given.is_floating_point():
        return "to add it to the scores pass headway.terms.DenseBias, or mask= to attend() or a module"
    if given.dtype is not torch.bool:
        return "if it holds 1 and 0, pass mask.bool()"
    return "mark padding by position -1 instead of by a mask"


@dataclass(frozen=True, eq=False)
class And(Mask):
    """A query sees the keys that both masks show."""

    first: Mask
    second: Mask

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        return self.first.tile(q_pos, k_pos, rows, cols) & self.second.tile(q_pos, k_pos, rows, cols)


@dataclass(frozen=True, eq=False)
class Or(Mask):
    """A query sees the keys that either mask shows."""

    first: Mask
    second: Mask

    def tile(self, q_pos: Positions, k_pos: Positions, rows: slice = ALL, cols: slice = ALL) -> Visible:
        """See :meth:`Mask.tile`."""
        return self.first.tile(q_pos, k_pos, rows, cols) | self.second.tile(q_pos, k_pos, rows, cols)
