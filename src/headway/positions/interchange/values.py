"""The values of a configuration, read key by key: an invalid value is refused by the name of its key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from headway.shapes import HeadwayError

MOST = 2**53
"""The largest whole number in a configuration: all below are exact as floats."""
LONGEST = 100
"""Maximum characters of a name."""
DEPTH = 4
"""Maximum nesting of text_config."""


class Values:
    """A mapping, read key by key. A key whose value is None counts as missing, as in transformers.

    ``asked`` are the keys that were read; the others were not.

    >>> Values({"rope_theta": 500000, "head_dim": None}).number("rope_theta")
    500000.0
    """

    def __init__(self, entries: Mapping[str, Any], place: str = "") -> None:
        self.entries, self.place = entries, place
        """The entries, and the path of the mapping in the configuration, for error messages."""
        self.asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        self.asked.add(key)
        return self.entries.get(key) is not None

    def name(self, key: str) -> str:
        """The key as shown in error messages."""
        return f"{self.place}{key}"

    def get(self, *keys: str) -> Any:
        """The value of the first of these keys that is present, or None."""
        self.asked.update(keys)
        return next((self.entries[key] for key in keys if key in self), None)

    def known(self, key: str) -> None:
        """Mark keys as read that have no effect here."""
        self.asked.add(key)

    def number(self, *keys: str, default: float | None = None) -> float:
        """A finite number.

        Args:
            keys: the first that is present is used.
            default: the value if none is present; without a default that is an error.

        Raises:
            HeadwayError: when it is not a finite number, or is missing.
        """
        self.asked.update(keys)
        key = next((key for key in keys if key in self), None)
        if key is None:
            if default is None:
                self.missing(keys[0])
            return default
        return self._number(self.name(key), self.entries[key])

    def whole(self, *keys: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least ``least``; see :meth:`number`."""
        value = self.number(*keys, default=None if default is None else float(default))
        if value != int(value) or not least <= value <= MOST:
            key = next((key for key in keys if key in self), keys[0])
            raise HeadwayError(f"expected {self.name(key)} as a whole number of at least {least}, got {short(value)}")
        return int(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers; see :meth:`number`."""
        if key not in self:
            self.missing(key)
        value = self.entries[key]
        if not isinstance(value, list | tuple):
            raise HeadwayError(f"expected {self.name(key)} as a list of numbers, got {short(value)}")
        return tuple(self._number(self.name(key), each) for each in value)

    def words(self, key: str) -> list[str]:
        """A list of texts."""
        self.asked.add(key)
        value = self.entries[key]
        words = isinstance(value, list | tuple) and all(
            isinstance(each, str) and len(each) <= LONGEST for each in value
        )
        if not words or not value:
            raise HeadwayError(f"expected {self.name(key)} as a list of names, got {short(value)}")
        return list(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(key)
        if value is None:
            return default
        if value not in (True, False) or isinstance(value, float):
            raise HeadwayError(f"expected {self.name(key)} to be true or false, got {short(value)}")
        return bool(value)

    def inner(self, key: str) -> Values:
        """The mapping under a key; empty if the key is missing."""
        value = self.get(key)
        if value is None:
            return Values({}, f"{self.name(key)}.")
        if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value):
            raise HeadwayError(f"expected {self.name(key)} to be a dictionary, got {short(value)}")
        return Values(value, f"{self.name(key)}.")

    def missing(self, key: str) -> NoReturn:
        """The error for a missing key."""
        raise HeadwayError(f"expected {self.name(key)}, got none: add it to the configuration")

    @staticmethod
    def _number(name: str, value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                if math.isfinite(number := float(value)):
                    return number
            except OverflowError:
                pass
        raise HeadwayError(f"expected {name} as a finite number, got {short(value)}")


def plain(config: Mapping[str, Any] | object, depth: int = 0) -> Values:
    """The values for the text part: those of ``text_config`` if a configuration has several parts.

    Args:
        config: the content of ``config.json``, a configuration object, or a rope dictionary by itself.
        depth: its nesting depth.

    Raises:
        HeadwayError: when it is none of these, or has an encoder and a decoder of their own.
    """
    to_dict = getattr(config, "to_dict", None)
    try:
        entries = to_dict() if callable(to_dict) and not isinstance(config, type) else config
    except Exception as error:  # third-party code, which may fail in any way
        raise HeadwayError(
            f"expected a configuration that to_dict() writes out, got {type(error).__name__} from it: "
            f"hand over the dictionary of its config.json"
        ) from error
    if not isinstance(entries, Mapping) or not all(isinstance(key, str) for key in entries):
        raise HeadwayError(
            f"expected a configuration, as a dictionary or an object with to_dict(), got {type(config).__name__}"
        )
    kind = entries.get("model_type")
    if kind is not None and (not isinstance(kind, str) or len(kind) > LONGEST):
        raise HeadwayError(f"expected model_type to be a name, got {short(kind)}")
    if entries.get("text_config") is not None and "hidden_size" not in entries:
        if depth == DEPTH:
            raise HeadwayError(f"expected text_config at most {DEPTH} deep, got more")
        inner = plain(entries["text_config"], depth + 1)
        return (
            inner if "model_type" in inner or kind is None else Values({**inner.entries, "model_type": f"{kind}_text"})
        )
    parts = [part for part in ("encoder", "decoder", "thinker_config") if isinstance(entries.get(part), Mapping)]
    if parts and "hidden_size" not in entries:
        raise HeadwayError(
            f"expected the configuration of one stack of layers, got {' and '.join(parts)} in one: "
            f"hand over config[{parts[0]!r}] by itself"
        )
    if ("rope_type" in entries or "type" in entries) and kind is None:
        return Values({"rope_parameters": entries})
    return Values(entries)


def names(text: str) -> list[str]:
    """Split a text into names."""
    return text.split()


def short(value: Any) -> str:
    """A value as shown in error messages: on one line, shortened if long."""
    try:
        text = repr(value)
    except ValueError:  # whole numbers with more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}…"
