"""Schemas of valid values as data: for settings, JSON files and requests from a page.

A file may be damaged, or written by someone else. Each kind of file has one schema; a deviation is refused in one
sentence that names the file, the field, what was expected and what was found.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from headway.shapes import HeadwayError, brief

LARGEST = 2**63 - 1
"""The default maximum of an integer field."""


class Schema(Protocol):
    """A schema of valid values."""

    def problem(self, value: Any, at: str) -> str | None:
        """The problem with a value, as "<where> to be <what>, got <that>"; None if it is valid."""
        ...


def _wrong(at: str, expected: str, value: Any) -> str:
    return f"{at or 'its content'} to be {expected}, got {shown(value)}"


def shown(value: Any) -> str:
    """A value in a few characters, however large.

    >>> shown([1, 2]), shown("a" * 99)
    ('a list of 2', "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…'")
    """
    if isinstance(value, Mapping):
        return f"an object of {len(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return repr(value[:40] + "…" if len(value) > 40 else value)
    # Python does not print integers of thousands of digits
    return brief(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of more than 40 digits"


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that float64 can hold; booleans are not.

    >>> is_number(1), is_number(True), is_number(10**400), is_number(float("nan"))
    (True, False, False, False)
    """
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**1023
    return isinstance(value, float) and math.isfinite(value)


@dataclass(frozen=True)
class Whole:
    """A whole number from ``least`` to ``most``."""

    least: int = 0
    most: int = LARGEST

    def problem(self, value: Any, at: str) -> str | None:
        """See :class:`Schema`."""
        if type(value) is int and self.least <= value <= self.most:
            return None
        open_ = self.most == LARGEST and not (type(value) is int and value > LARGEST)
        return _wrong(
            at,
            f"a whole number {f'of at least {self.least}' if open_ else f'from {self.least} to {self.most:,}'}",
            value,
        )


@dataclass(frozen=True)
class Number:
    """A finite number of at least ``least`` and above ``above``, at most ``most`` and below ``below``."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def problem(self, value: Any, at: str) -> str | None:
        """See :class:`Schema`."""
        inside = is_number(value) and self.above < value < self.below and self.least <= value <= self.most
        return None if inside else _wrong(at, self.expected, value)

    @property
    def expected(self) -> str:
        """The schema in words.

        >>> Number().expected, Number(above=0).expected, Number(0).expected, Number(0, below=1).expected
        ('a finite number', 'a number above 0', 'a number of at least 0', 'a number in [0, 1)')
        """
        low, high = max(self.least, self.above), min(self.most, self.below)
        if math.isfinite(low) and math.isfinite(high):
            return (
                f"a number in {'[' if low == self.least else '('}{low:g}, {high:g}{']' if high == self.most else ')'}"
            )
        if math.isfinite(low):
            return f"a number {'of at least' if low == self.least else 'above'} {low:g}"
        return "a finite number"


@dataclass(frozen=True)
class Words:
    """A text of at most ``longest`` characters, or one of ``choices``."""

    choices: tuple[str, ...] = ()
    longest: int = 100_000

    def problem(self, value: Any, at: str) -> str | None:
        """See :class:`Schema`."""
        if isinstance(value, str) and len(value) <= self.longest and (not self.choices or value in self.choices):
            return None
        if isinstance(value, str) and not self.choices:
            return f"{at or 'its content'} of at most {self.longest:,} characters, got {len(value):,}"
        return _wrong(at, f"one of {', '.join(self.choices)}" if self.choices else "a text", value)


@dataclass(frozen=True)
class Identifier:
    """A name of at most ``longest`` letters, digits, dots, dashes and underscores."""

    longest: int

    def problem(self, value: Any, at: str) -> str | None:
        """See :class:`Schema`."""
        fits = isinstance(value, str) and re.fullmatch(rf"[\w.-]{{1,{self.longest}}}", value, re.ASCII)
        return None if fits else _wrong(at, "letters, digits, dots and dashes", value)


@dataclass(frozen=True)
class Exactly:
    """This value and no other."""

    of: Any

    def problem(self, value: Any, at: str) -> str | None:
        """See :class:`Schema`."""
        fits = type(value) is type(self.of) and value == self.of
        return None if fits else _wrong(at, "true" if self.of is True else repr(self.of), value)


@dataclass(frozen=True)
class Truth:
    """True or false."""

    def problem(self, value: Any, at: str) -> str | None:
        """See :class:`Schema`."""
        return None if isinstance(value, bool) else _wrong(at, "true or false", value)


@dataclass(frozen=True)
class Anything:
    """Any JSON value: for values that are only compared, or checked elsewhere."""

    def problem(self, value: Any, at: str) -> str | None:
        """See :class:`Schema`."""
        return None


@dataclass(frozen=True)
class Maybe:
    """Null, or a value valid under ``of``."""

    of: Schema

    def problem(self, value: Any, at: str) -> str | None:
        """See :class:`Schema`."""
        return None if value is None else self.of.problem(value, at)


@dataclass(frozen=True)
class Either:
    """A value valid under one of ``of``."""

    of: tuple[Schema, ...]

    def problem(self, value: Any, at: str) -> str | None:
        """See :class:`Schema`."""
        found = [schema.problem(value, at) for schema in self.of]
        return None if None in found else found[-1]


@dataclass(frozen=True)
class Many:
    """A list of at most ``most`` entries, each valid under ``of``."""

    of: Schema
    most: int = LARGEST

    def problem(self, value: Any, at: str) -> str | None:
        """See :class:`Schema`."""
        if not isinstance(value, list) or len(value) > self.most:
            return _wrong(at, "a list" if self.most == LARGEST else f"a list of at most {self.most:,}", value)
        for number, one in enumerate(value):
            if (problem := self.of.problem(one, f"{at}[{number}]" if isinstance(one, list | dict) else at)) is not None:
                return problem
        return None


@dataclass(frozen=True)
class Named:
    """An object with any names, each value valid under ``of``."""

    of: Schema

    def problem(self, value: Any, at: str) -> str | None:
        """See :class:`Schema`."""
        if not isinstance(value, dict):
            return _wrong(at, "an object", value)
        for name, one in value.items():
            if (problem := self.of.problem(one, _inside(at, name))) is not None:
                return problem
        return None


@dataclass(frozen=True)
class Record:
    """An object with exactly these fields; those in ``optional`` may be missing."""

    fields: Mapping[str, Schema]
    optional: Mapping[str, Schema] = field(default_factory=dict)

    def problem(self, value: Any, at: str) -> str | None:
        """See :class:`Schema`."""
        if not isinstance(value, dict):
            return _wrong(at, "an object", value)
        known = {**self.fields, **self.optional}
        for name, one in value.items():
            if name not in known:
                return f"only {', '.join(known)}{f' in {at}' if at else ''}, got {shown(name)}"
            if (problem := known[name].problem(one, _inside(at, name))) is not None:
                return problem
        if missing := [name for name in self.fields if name not in value]:
            return f"{_inside(at, missing[0])}, which is missing"
        return None


def _inside(at: str, name: str) -> str:
    return f"{at}.{name[:40]}" if at else name[:40]


def check(value: Any, schema: Schema, name: str) -> None:
    """Check a whole value.

    Args:
        value: as parsed.
        schema: its valid values.
        name: where it comes from, usually a path.

    Raises:
        HeadwayError: on the first deviation.

    >>> check({"steps": [1, "2"]}, Record({"steps": Many(Whole(1))}), "history.json")
    Traceback (most recent call last):
    headway.shapes.HeadwayError: expected steps to be a whole number of at least 1, got '2', in history.json: it is \
damaged, or from another version of headway
    """
    if (problem := schema.problem(value, "")) is not None:
        raise HeadwayError(f"expected {problem}, in {name}: it is damaged, or from another version of headway")


def require(value: Any, schema: Schema, name: str) -> None:
    """Check one argument.

    Args:
        value: the value.
        schema: its valid values.
        name: the argument's name.

    Raises:
        HeadwayError: when it is not valid.

    >>> require(0, Whole(1), "tokens")
    Traceback (most recent call last):
    headway.shapes.HeadwayError: expected tokens to be a whole number of at least 1, got 0
    """
    if (problem := schema.problem(value, name)) is not None:
        raise HeadwayError(f"expected {problem}")


PLAIN = Maybe(Either((Truth(), Number(), Words())))
"""A JSON value that is neither a list nor an object."""
