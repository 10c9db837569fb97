"""Colours and dashes of pages and of print, from theme.json.

Colour tables of maps are interpolated in OKLab (Ottosson 2020) between a few control points, spaced by distance there,
so that equal steps of a value look equal.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

_COUNT = 256
_FINE = 128  # points between two control points while measuring distances

Lab = tuple[float, float, float]
Rgb = tuple[int, int, int]


@cache
def theme() -> dict[str, Any]:
    """Colours, dashes and control points of maps, see theme.json; where it has three colours, the last is for print."""
    found: dict[str, Any] = json.loads(files("headway.web").joinpath("theme.json").read_text(encoding="utf-8"))
    return found


@cache
def tables() -> dict[str, dict[str, str]]:
    """The colours of all maps in every theme, each table as hexadecimal digits."""
    return {
        name: {scale: "".join(bytes(colour).hex() for colour in colour_table(scale, name)) for scale in scales}
        for name, scales in theme()["maps"].items()
    }


@cache
def colour_table(scale: str, name: str = "light") -> tuple[Rgb, ...]:
    """The 256 colours of a map, from its lowest value to its highest; print uses those of the light theme."""
    points = [_from_hex(one) for one in theme()["maps"][name][scale]]
    halves = [points[:4], points[3:]] if scale == "diverging" else [points]
    each = _COUNT // len(halves)
    found: list[Lab] = []
    for turn, half in enumerate(halves):
        # 0 lies between the two middle colours, half a step from each
        shares = [((i + 0.5 * turn) / (each - 0.5)) if len(halves) > 1 else i / (each - 1) for i in range(each)]
        found += _evenly(half, shares)
    return tuple(_to_rgb(one) for one in found)


@cache
def hues() -> tuple[str, ...]:
    """The colours of lines, in the page's light theme."""
    return tuple(light for light, _ in theme()["hues"])


@cache
def dashes() -> tuple[str, ...]:
    """The dashes of lines, in the page's pixels."""
    return tuple(theme()["dashes"])


def line_styles(lines: Sequence[tuple[str, int | None]]) -> list[tuple[int, int]]:
    """Colour and dash of each line of a figure, all different: methods have fixed ones, others have them by index.

    Args:
        lines: the English label of each line, and its style or None.

    >>> line_styles([("head 0", None), ("alibi", None), ("alibi(slope=2)", None), ("head 3", 5)])
    [(0, 0), (1, 0), (1, 6), (5, 5)]
    """
    known, taken = _known(), set()
    found = [style_of(n if style is None else style) for n, (_, style) in enumerate(lines)]
    own = [(n, label) for n, (label, style) in enumerate(lines) if style is None and _method(label) in known]
    for n, label in sorted(own, key=lambda one: "(" in one[1]):  # plain forms first
        hue, dash = known[_method(label)]
        free = [(hue, one) for one in (dash, *reversed(range(len(dashes())))) if (hue, one) not in taken]
        found[n] = free[0] if free else (hue, dash)
        taken.add(found[n])
    return found


def style_of(n: int) -> tuple[int, int]:
    """Colour and dash of the n-th line; the first 56 differ, because 8 and 7 have no common factor."""
    return n % len(hues()), n % len(dashes())


def _method(label: str) -> str:
    return re.sub(r"[^a-z0-9]", "", label.partition("(")[0].lower())


@cache
def _known() -> dict[str, tuple[int, int]]:
    """Colour and dash of each method that has fixed ones."""
    families = enumerate(theme()["methods"])
    return {name: (hue, dash) for hue, family in families for dash, name in enumerate(family) if name}


def _evenly(points: Sequence[Lab], shares: Sequence[float]) -> list[Lab]:
    """Points along a path through OKLab at the given shares of its length, in increasing order."""
    path = [_between(a, b, k / _FINE) for a, b in pairwise(points) for k in range(_FINE)] + [points[-1]]
    along = [0.0]
    for a, b in pairwise(path):
        along.append(along[-1] + math.dist(a, b))
    found, at = [], 0
    for share in shares:
        while at < len(path) - 2 and along[at + 1] < share * along[-1]:
            at += 1
        part = (share * along[-1] - along[at]) / ((along[at + 1] - along[at]) or 1.0)
        found.append(_between(path[at], path[at + 1], part))
    return found


def _between(a: Lab, b: Lab, share: float) -> Lab:
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def _from_hex(text: str) -> Lab:
    parts = [int(text[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    l = math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b)  # noqa: E741
    m = math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b)
    s = math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b)
    return (
        0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
        1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
        0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
    )


def _to_rgb(lab: Lab) -> Rgb:
    lightness, a, b = lab
    l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3  # noqa: E741
    m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3
    red, green, blue = (
        min(255, max(0, round(255 * (12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055))))
        for part in (
            4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
            -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
            -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
        )
    )
    return red, green, blue
