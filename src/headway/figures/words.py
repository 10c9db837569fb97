"""Words in both languages, and the formatting of values in a sentence.

Sentences are templates in ``strings/<part>.en.json`` and ``strings/<part>.zh.json``; ``page`` has the texts of every
page's script, ``page.<name>`` those of one page. A value has a format per language: lists join with "and" or "和".
A method's spec is in backticks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import Any, Protocol

LANGUAGES = ("en", "zh")
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_ADDED: dict[str, dict[str, str]] = {language: {} for language in LANGUAGES}


@cache
def strings(language: str) -> Mapping[str, str]:
    """Read one language's strings.

    >>> strings("zh")["table.method"]
    '方法'
    """
    ending = f".{language}.json"
    names = sorted(file.name for file in files("headway.figures").joinpath("strings").iterdir())
    parts = [part_of(name.removesuffix(ending), language) for name in names if name.endswith(ending)]
    return dict(chain.from_iterable(part.items() for part in parts)) | _ADDED[language]


@cache
def part_of(name: str, language: str) -> dict[str, str]:
    """Read the strings of one part."""
    file = files("headway.figures").joinpath("strings", f"{name}.{language}.json")
    words: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return words


def add_words(language: str, words: Mapping[str, str]) -> None:
    """Add strings from elsewhere, e.g. of a view with its own words."""
    _ADDED[language].update(words)
    strings.cache_clear()


def number(value: float) -> str:
    """Write a number with up to three digits and a true minus sign.

    >>> number(0.0312549), number(-1234.5), number(0.00000421), number(0.50), number(0.0), number(float("nan"))
    ('0.0313', '−1,234', '4.2·10⁻⁶', '0.5', '0', '–')
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    size, sign = abs(value), "−" if value < 0 else ""
    if size < 1e-3 or size >= 1e7:
        digits, power = f"{size:.1e}".split("e")
        return f"{sign}{digits.removesuffix('.0')}·10{str(int(power)).translate(_RAISED)}"
    text = f"{size:,.{max(0, 2 - math.floor(math.log10(size)))}f}"
    return sign + (text.rstrip("0").rstrip(".") if "." in text else text)


def measured(value: float) -> str:
    """Write a measured number with three digits, including trailing zeros.

    >>> measured(0.5), measured(2.314), measured(23.14), measured(1234.5)
    ('0.500', '2.31', '23.1', '1,234')
    """
    return f"{value:,.{decimals(value)}f}"


def decimals(value: float) -> int:
    """Decimals for about three digits."""
    size = abs(value)
    return 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0


def percent(share: float) -> str:
    """Write a share as a percentage, with decimals for small values.

    >>> percent(0.314), percent(0.0412), percent(0.00012), percent(0.0000001), percent(1.0)
    ('31 %', '4.1 %', '0.012 %', '< 0.001 %', '100 %')
    """
    size = abs(100 * share)
    if 0 < size < 0.001:
        return "< 0.001 %"
    return f"{100 * share:,.{0 if size >= 9.95 or not size else 1 if size >= 0.095 else 3}f} %"


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
class Percent:
    """A relative change, 0.87 for 87 %."""

    share: float

    def say(self, language: str) -> str:
        """Write it, see :func:`percent`."""
        return percent(self.share)


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
