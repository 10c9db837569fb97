"""Strict JSON: what another parser would read in another way, or not at all, is an error."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from headway.shapes import HeadwayError

NESTED = 2**20
"""Maximum lists and objects in a text: an empty one takes thirty times its two characters."""


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _whole(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large for a number")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {max(found, key=names.count)[:40]!r} comes twice")
    return found


def parse_json(data: bytes, name: str) -> Any:
    """Parse strict JSON: no NaN, no infinity, no name twice, no more than :data:`NESTED` lists and objects.

    Args:
        data: UTF-8 text.
        name: what to call it in the error, usually its path.

    Raises:
        HeadwayError: when it is not JSON.

    >>> parse_json(b'{"steps": 3}', "settings.json")
    {'steps': 3}
    """
    try:
        if data.count(b"[") + data.count(b"{") > NESTED:
            raise ValueError(f"more than {NESTED:,} lists and objects")
        return json.loads(
            data.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_int=_whole,
            parse_float=_finite,
            object_pairs_hook=_once,
        )
    except (ValueError, RecursionError) as error:
        # a message may quote the whole text
        raise HeadwayError(f"expected JSON in {name}, got content that does not parse: {str(error)[:120]}") from error


def dump_json(value: Any) -> bytes:
    """Turn plain values into compact JSON that ends with a newline.

    Raises:
        HeadwayError: when a value is not plain (or is NaN or infinite, which JSON does not know).

    >>> dump_json({"loss": [2.5]})
    b'{"loss":[2.5]}\\n'
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise HeadwayError(f"expected plain JSON values (finite numbers, text, lists, dicts), got: {error}") from error
