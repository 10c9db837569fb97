"""All position methods, found by listing this folder, and parsing of methods from strings.

>>> parse("rotary(base=500000)")
Rotary(base=500000.0, fraction=1.0, pairing='half')
"""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
import sys
from dataclasses import fields
from functools import cache

from headway.characters import shortened
from headway.positions.base import Position, as_kind
from headway.shapes import HeadwayError, brief


@cache
def methods() -> dict[str, type[Position]]:
    """All methods by name, in alphabetical order with "none" first: all classes defined in this folder."""
    found: dict[str, type[Position]] = {}
    for module_name in sorted(info.name for info in pkgutil.iter_modules(sys.modules[__package__].__path__)):
        module = importlib.import_module(f"headway.positions.{module_name}")
        for member in vars(module).values():
            mine = isinstance(member, type) and member.__module__ == module.__name__
            if mine and issubclass(member, Position) and member is not Position:
                found[member.method_name()] = member
    return dict(sorted(found.items(), key=lambda item: (item[0] != "none", item[0])))


def parse(spec: str) -> Position:
    """Parse a method from a string: ``rotary`` or ``rotary(base=500000, pairing='interleaved')``.

    Values are plain numbers, strings, booleans and tuples of them, e.g. ``longrope(long=(1.0, 2.5))``; no code is
    evaluated.

    Raises:
        HeadwayError: on an unknown method, an unknown or ill-typed hyperparameter, or invalid syntax.
    """
    if not isinstance(spec, str):
        raise HeadwayError(f"expected a position method as text, such as rotary, got {brief(spec)}")
    try:
        node = ast.parse(spec.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
        if not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        name = call.func.id
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise HeadwayError(
            f"expected a position method such as rotary or rotary(base=500000), got {shortened(spec)!r}: "
            f"`headway methods` lists all"
        ) from None
    if name not in methods():
        titles = {n: m.title.lower() for n, m in methods().items() if name.lower() in m.title.lower()}
        titled = sorted(titles, key=lambda n: (f"({name.lower()})" not in titles[n], len(titles[n])))
        meant = titled[:3] or difflib.get_close_matches(name.lower(), methods(), n=3, cutoff=0.5)
        guess = f"did you mean {' or '.join(meant)}? " if meant else ""
        raise HeadwayError(f"expected a position method, got {shortened(name)!r}: {guess}`headway methods` lists all")
    method = methods()[name]
    defaults = {f.name: f.default for f in fields(method) if f.init}
    for key, value in values.items():
        if key not in defaults:
            accepted = ", ".join(defaults) or "none"
            raise HeadwayError(f"expected hyperparameters of {name} ({accepted}), got {shortened(key)!r}")
        values[key] = as_kind(name, key, value, defaults[key])
    return method(**values)


def as_method(position: object) -> Position:
    """A position method from its text, or from nothing: none.

    Raises:
        HeadwayError: when it is neither text nor a method.
    """
    if isinstance(position, str):
        return parse(position)
    if position is None:
        return parse("none")
    if not isinstance(position, Position):
        raise HeadwayError(
            f"expected a position method such as Rotary() or 'rotary', got {brief(position)}: `headway methods` lists "
            f"them"
        )
    return position
