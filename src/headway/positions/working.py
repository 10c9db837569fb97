"""How one number of a position method is worked out: the lines of a calculation, as data for figures and tests.

A line has a name, a formula and its value. A formula is plain text in the names of earlier lines and in one symbol: p,
the position, or n, the distance. Its signs are + − · / ^ ( ) ⌊ ⌋, its functions sin, cos, ln, exp, abs, max, min: a
reader can put the numbers in, and a test can evaluate it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Number:
    """Which number is worked out.

    Args:
        kind: "vector", an entry of the vector that is added to the embedding at p; "bias", what is added to the score
            of a query and the key n tokens before it; or "angle", the rotation of a pair of dimensions at p, in
            radians, where p is the token's coordinate on the axis of the pair.
        at: positions p, (N,), or one distance n, ().
        index: the dimension of the vector, the head, or the pair.
        width: dimensions of the vector, or of a head.
        scale: what q·k is multiplied by.
        length: number of tokens of the text.
    """

    kind: str
    at: Tensor
    index: int
    width: int
    scale: float = 1.0
    length: int = 1


class Line(NamedTuple):
    """One line of a calculation.

    Args:
        name: symbol of its result.
        formula: how it is computed.
        value: its value, one for each of ``Number.at``, or one for all.
        kind: "" for a formula that can be evaluated; else what the value is: "learned" as a parameter, the output of a
            learned "network", a long "sum", or what the "method" computes by its own formula.
    """

    name: str
    formula: str
    value: Tensor | float
    kind: str = ""


Lines = tuple[Line, ...]


def rate(base: float, exponent: str, value: Tensor | float, name: str = "ω") -> Line:
    """A frequency, base^(−exponent).

    >>> rate(10000.0, "2 · 3 / 16", 0.0316).formula
    '10000^(−2 · 3 / 16)'
    """
    return Line(name, f"{plain(base)}^(−{exponent})", value)


def plain(value: float) -> str:
    """A constant of a formula, exactly, with a true minus sign.

    >>> plain(10000.0), plain(-0.5)
    ('10000', '−0.5')
    """
    text = str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
    return text.replace("-", "−")
