"""The report's words in both languages, and how values are said in a sentence.

Sentences are templates in ``assets/en.json`` and ``assets/zh.json``, a part's own in ``assets/<part>.en.json``.
A value knows how each language writes it: lists join with "and" or "和", a percentage has a space or none, a method's
spec stands between backticks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

from headway.report.summary import Measure

LANGUAGES = ("en", "zh")


@cache
def strings(language: str) -> Mapping[str, str]:
    """Read one language's strings.

    >>> strings("zh")["table.method"]
    '方法'
    """
    words: dict[str, str] = {}
    for file in sorted(files("headway.report").joinpath("assets").iterdir(), key=lambda file: file.name):
        if file.name == f"{language}.json" or file.name.endswith(f".{language}.json"):
            words |= json.loads(file.read_text(encoding="utf-8"))
    return words


def amount(value: float, measure: Measure) -> str:
    """Write one measured value without its unit.

    >>> amount(2.3149, Measure("bits_per_byte")), amount(0.5, Measure("loss")), amount(0.973, Measure("accuracy"))
    ('2.31', '0.500', '97.3 %')
    """
    return f"{100 * value:.1f} %" if measure.key == "accuracy" else plain(value)


def plain(value: float) -> str:
    """Write a number with about three digits.

    >>> plain(0.1234), plain(2.314), plain(23.14), plain(1234.5)
    ('0.123', '2.31', '23.1', '1,234')
    """
    return f"{value:,.{decimals(value)}f}"


def decimals(value: float) -> int:
    """How many decimals make about three digits."""
    size = abs(value)
    return 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0


def half_range(mean: float, low: float, high: float, measure: Measure) -> str:
    """Write half of a range with as many decimals as its mean has; for accuracy in points.

    >>> half_range(2.32, 2.30, 2.34, Measure("loss")), half_range(0.97, 0.96, 0.98, Measure("accuracy"))
    ('0.02', '1.0')
    """
    if measure.key == "accuracy":
        return f"{50 * (high - low):.1f}"
    return f"{(high - low) / 2:,.{decimals(mean)}f}"


class Said(Protocol):
    """A value that each language writes in its own way."""

    def say(self, language: str) -> str:
        """Write the value in this language."""
        ...


@dataclass(frozen=True)
class Names:
    """Method specs, quoted so that ``none`` reads as a name."""

    specs: Sequence[str]

    def say(self, language: str) -> str:
        """Join them: `a`, `b` and `c`."""
        return join([f"`{spec}`" for spec in self.specs], language)


@dataclass(frozen=True)
class Amount:
    """A measured value, with its unit unless ``bare``."""

    value: float
    measure: Measure
    bare: bool = False

    def say(self, language: str) -> str:
        """Write "2.31 bits per byte", or "97.3 %"."""
        text = amount(self.value, self.measure)
        return (
            text
            if self.bare or self.measure.key == "accuracy"
            else f"{text} {strings(language)[f'unit.{self.measure.key}']}"
        )


@dataclass(frozen=True)
class Percent:
    """A relative change, 0.87 for 87 %."""

    share: float

    def say(self, language: str) -> str:
        """Write it without decimals where it has two digits."""
        digits = 1 if abs(self.share) < 0.0995 else 0
        return f"{100 * self.share:,.{digits}f} %"


@dataclass(frozen=True)
class Clause:
    """A nested template with its own values."""

    key: str
    values: Mapping[str, Any]

    def say(self, language: str) -> str:
        """Fill the template."""
        return fill(self.key, self.values, language)


@dataclass(frozen=True)
class Listed:
    """Several values with commas or semicolons between them."""

    parts: Sequence[Said]
    strong: bool = False

    def say(self, language: str) -> str:
        """Join the parts."""
        mark = strings(language)["join.strong" if self.strong else "join.comma"]
        return mark.join(part.say(language) for part in self.parts)


def fill(key: str, values: Mapping[str, Any], language: str) -> str:
    """Fill one template in one language; whole numbers get thousands separators, text stays as it is."""
    return strings(language)[key].format(**{name: _said(value, language) for name, value in values.items()})


def join(parts: Sequence[str], language: str) -> str:
    """Join words as a language does.

    >>> join(["a", "b", "c"], "en"), join(["a", "b"], "zh")
    ('a, b and c', 'a 和 b')
    """
    words = strings(language)
    if len(parts) < 2:
        return "".join(parts)
    return words["join.comma"].join(parts[:-1]) + words["join.and"] + parts[-1]


def _said(value: Any, language: str) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else str(value.say(language))
