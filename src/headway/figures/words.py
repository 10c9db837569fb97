"""Words in both languages, and how values are said in a sentence.

Sentences are templates in ``strings/en.json`` and ``strings/zh.json``, a part's own in ``strings/<part>.en.json``.
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

LANGUAGES = ("en", "zh")
_ADDED: dict[str, dict[str, str]] = {language: {} for language in LANGUAGES}


@cache
def strings(language: str) -> Mapping[str, str]:
    """Read one language's strings.

    >>> strings("zh")["table.method"]
    '方法'
    """
    words: dict[str, str] = {}
    for file in sorted(files("headway.figures").joinpath("strings").iterdir(), key=lambda file: file.name):
        if file.name == f"{language}.json" or file.name.endswith(f".{language}.json"):
            words |= json.loads(file.read_text(encoding="utf-8"))
    return words | _ADDED[language]


def add_words(language: str, words: Mapping[str, str]) -> None:
    """Add strings that stand elsewhere, as those of a view that brings its own."""
    _ADDED[language].update(words)
    strings.cache_clear()


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
