"""Settings: frozen dataclasses whose fields say what they take, so that one check serves all of them.

A field is ``name: Annotated[type, schema] = default``; where the type says enough, the schema may be left out. What a
field means stands under ``Args:`` in the docstring, which is also the command line's help.
"""

from __future__ import annotations

import difflib
import inspect
import numbers
import operator
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Self, Union, get_args, get_origin, get_type_hints

from headway.schema import Anything, Maybe, Number, Schema, Truth, Whole, Words, shown
from headway.shapes import HeadwayError


@dataclass(frozen=True)
class Field:
    """One field of settings.

    Args:
        name: its name.
        kind: its type, without None.
        schema: what it takes.
        default: its default; ``dataclasses.MISSING`` where it has none.
        about: what it means.
    """

    name: str
    kind: Any
    schema: Schema
    default: Any
    about: str


class Settings:
    """The base of settings: every field is checked when they are made.

    >>> @dataclass(frozen=True)
    ... class Colours(Settings):
    ...     count: Annotated[int, Whole(1, 8)] = 3
    >>> Colours(9)
    Traceback (most recent call last):
    headway.shapes.HeadwayError: expected count to be a whole number from 1 to 8, got 9
    """

    def __post_init__(self) -> None:
        for field in described(type(self)):
            value = _plain_number(given := getattr(self, field.name))
            if (problem := field.schema.problem(value, field.name)) is not None:
                raise HeadwayError(f"expected {problem}")
            if value is not given:
                object.__setattr__(self, field.name, value)

    @classmethod
    def of(cls, values: Mapping[str, Any], what: str = "settings") -> Self:
        """From plain values, as JSON has them; ``what`` names them in a refusal.

        Raises:
            HeadwayError: on an unknown or missing name, or a value that does not fit.
        """
        if not isinstance(values, Mapping):
            raise HeadwayError(f"expected {what} as a JSON object, got {shown(values)}")
        known = {field.name: field for field in described(cls)}
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name)[:40], known, 1)
                hint = f": did you mean {near[0]}?" if near else ""
                raise HeadwayError(f"expected {what} of known names, got {shown(name)}{hint}")
        for name, field in known.items():
            if field.default is MISSING and name not in values:
                raise HeadwayError(f"expected {what} with {name}, which is missing")
        return cls(**values)

    def plain(self) -> dict[str, Any]:
        """The values as JSON takes them."""
        values = {field.name: getattr(self, field.name) for field in described(type(self))}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def described(settings: type[Settings]) -> tuple[Field, ...]:
    """The fields of settings, in order."""
    if settings not in _DESCRIBED:
        _DESCRIBED[settings] = _described(settings)
    return _DESCRIBED[settings]


_DESCRIBED: dict[type, tuple[Field, ...]] = {}


def _described(settings: Any) -> tuple[Field, ...]:
    hints, about = get_type_hints(settings, include_extras=True), _about(settings)
    found = []
    for field in fields(settings):
        hint = hints[field.name]
        kind, *more = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        optional = type(None) in get_args(kind)
        inner = [one for one in get_args(kind) if one is not type(None)] if optional else [kind]
        kind = Union[tuple(inner)]  # noqa: UP007
        schema = next((one for one in more if hasattr(one, "problem")), None) or _SCHEMAS.get(kind, Anything())
        found.append(
            Field(field.name, kind, Maybe(schema) if optional else schema, field.default, about.get(field.name, ""))
        )
    return tuple(found)


_SCHEMAS: dict[Any, Schema] = {bool: Truth(), int: Whole(), float: Number(), str: Words()}


def _about(settings: type) -> dict[str, str]:
    """What the docstring says of each field, without its markup."""
    text = inspect.cleandoc(settings.__doc__ or "").partition("Args:\n")[2]
    text = re.split(r"\n(?=\S)", text, maxsplit=1)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {
        name: re.sub(r":\w+:`[^`]*?(\w+)`|``?([^`]*)``?", r"\1\2", " ".join(body.split())) for name, body in entries
    }


def _plain_number(value: Any) -> Any:
    """NumPy's numbers as Python's own."""
    if isinstance(value, bool | int | float | str) or not isinstance(value, numbers.Real):
        return value
    return operator.index(value) if isinstance(value, numbers.Integral) else float(value)
