"""What the docstrings of a method say: its formula, its hyperparameters, notes and an example."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

from headway.positions.base import Position


def formula_of(method: type[Position]) -> str:
    """The formula of a method, on one line.

    >>> from headway.positions import Kerple
    >>> formula_of(Kerple)
    '−r1·ln(1 + r2·|n|) or −r1·|n|^r2 is added to the scores, n = pos_i − pos_j'
    """
    return _clause(Docstring.of(method).formula) or _first(inspect.getdoc(inspect.getmodule(method)) or "")


@dataclass(frozen=True)
class Docstring:
    """The parts of a method's docstring.

    Args:
        formula: the text after "Formula:", on one line; "" if there is none.
        notes: the other paragraphs, each on one line, the summary first.
        args: the meaning of each hyperparameter.
        example: the doctest, unchanged.
    """

    formula: str
    notes: tuple[str, ...]
    args: dict[str, str]
    example: str

    @classmethod
    def of(cls, method: type[Position]) -> Docstring:
        """Read it; inherited hyperparameters may be documented in the docstring of the parent class."""
        own = cls.parse(inspect.cleandoc(method.__doc__ or ""))
        args: dict[str, str] = {}
        for base in reversed(method.__mro__):
            if issubclass(base, Position) and base is not Position:
                args |= cls.parse(inspect.cleandoc(base.__doc__ or "")).args
        return cls(own.formula, own.notes, args, own.example)

    @classmethod
    def parse(cls, text: str) -> Docstring:
        """Read a docstring without indentation.

        >>> text = "It rotates.\\n\\nFormula: a = b; b learned.\\n\\nArgs:\\n    base: ten,\\n        so."
        >>> found = Docstring.parse(text)
        >>> found.formula, found.notes, found.args
        ('a = b; b learned.', ('It rotates.',), {'base': 'ten, so.'})
        """
        body, _, example = text.partition(">>>")
        body, *sections = re.split(r"^(?=(?:Args|Raises|Returns):$)", body, flags=re.MULTILINE)
        args: dict[str, str] = {}
        for section in sections:
            if section.startswith("Args:"):
                items = re.split(r"^    (?=\w+:)", section, flags=re.MULTILINE)[1:]
                args = {name: _line(meaning) for name, _, meaning in (item.partition(":") for item in items)}
        paragraphs = [_line(paragraph) for paragraph in re.split(r"\n\s*\n", body.strip()) if paragraph.strip()]
        formula = next((p.removeprefix("Formula:").strip() for p in paragraphs if p.startswith("Formula:")), "")
        notes = tuple(p for p in paragraphs if not p.startswith("Formula:"))
        return cls(formula, notes, args, f">>>{example}".rstrip() if example else "")


def _first(text: str) -> str:
    """The first indented line of a module's docstring, which is its formula."""
    return next((_line(line) for line in text.splitlines() if line.startswith("    ")), "")


def _clause(text: str) -> str:
    """A formula without its explanation, which begins after a semicolon or full stop outside brackets.

    >>> _clause("B = [c, s; s, c]; learned: c. And so on")
    'B = [c, s; s, c]'
    """
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth <= 0 and character in ";." and text[i + 1 : i + 2] in ("", " "):
            return text[:i].replace("`", "")
    return text.replace("`", "")


def _line(text: str) -> str:
    """A text on one line, with names in single backticks."""
    return re.sub(r":\w+:`~?(?:\w+\.)*([^`]+)`", r"`\1`", " ".join(text.split())).replace("``", "`")
