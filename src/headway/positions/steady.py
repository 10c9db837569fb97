"""What a method says of itself so that steps of decoding can be prepared once, see :mod:`headway.one_token`."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor


class Turning(NamedTuple):
    """How :meth:`Position.rotate` turns pairs of a query's or key's entries by its position.

    Args:
        rates: radians per position of each pair, (P,), float64.
        amplitude: factor of cosines and sines.
        interleaved: whether entries 2p and 2p + 1 make a pair, not p and P + p.
    """

    rates: Float[Tensor, " pairs"]
    amplitude: float
    interleaved: bool


_ACTS = ("rotate", "rotated", "turn_values", "terms", "transform_qk", "mark", "prepare")


def is_steady(position: Any) -> bool:
    """Whether a method is :attr:`headway.positions.Position.steady`, as said by its class or by one that acts in the
    same way.

    >>> from headway.positions import NTK, XPos  # XPos transforms keys anew in each call
    >>> is_steady(NTK()), is_steady(XPos())
    (True, False)
    """
    return bool(position.steady) and says(type(position), "steady", _ACTS)


def says(kind: type, what: str, acts: tuple[str, ...]) -> bool:
    """Whether no class below the one that last defines ``what`` defines any of the acts.

    >>> class A:
    ...     safe, act = True, 1
    >>> class B(A):
    ...     act = 2
    >>> says(A, "safe", ("act",)), says(B, "safe", ("act",))
    (True, False)
    """
    order = kind.__mro__
    said = next(number for number, one in enumerate(order) if what in vars(one))
    return not any(name in vars(one) for one in order[:said] for name in acts)
