"""Settings: frozen dataclasses whose fields declare their valid values, so that one check serves all of them.

A field is ``name: Annotated[type, schema] = default``; where the type suffices, the schema may be omitted. ``Args:`` in
the docstring documents the fields; it is also the help text of the command line.
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

from headway.schema import Anything, Maybe, Number, Schema, Truth, Whole, Words, require, shown
from headway.shapes import HeadwayError


@dataclass(frozen=True)
class Field:
    """One field of settings.

    Args:
        name: its name.
        kind: its type, without None.
        schema: its valid values.
        default: its default; ``dataclasses.MISSING`` if it has none.
        about: its documentation.
    """

    name: str
    kind: Any
    schema: Schema
    default: Any
    about: str


class Settings:
    """Base class of settings; every field is checked on construction.

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
            require(value, field.schema, field.name)
            if value is not given:
                object.__setattr__(self, field.name, value)

    @classmethod
    def of(cls, values: Mapping[str, Any], what: str = "settings") -> Self:
        """Build from plain JSON values; ``what`` names them in an error.

        Raises:
            HeadwayError: on an unknown or missing name, or an invalid value.
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
        """The values as JSON values."""
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
    """The docstring's entry for each field, without markup."""
    text = inspect.cleandoc(settings.__doc__ or "").partition("Args:\n")[2]
    text = re.split(r"\n(?=\S)", text, maxsplit=1)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {
        name: re.sub(r":\w+:`[^`]*?(\w+)`|``?([^`]*)``?", r"\1\2", " ".join(body.split())) for name, body in entries
    }


def _plain_number(value: Any) -> Any:
    """NumPy scalars as Python numbers."""
    if isinstance(value, bool | int | float | str) or not isinstance(value, numbers.Real):
        return value
    return operator.index(value) if isinstance(value, numbers.Integral) else float(value)
