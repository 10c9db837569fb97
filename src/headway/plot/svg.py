"""What drawing for print needs: how wide words are, where ticks and labels go, a map as PNG, and a pen that writes SVG.

Lengths are in points, 72 to an inch; attributes instead of a style sheet, so that every program that reads SVG agrees.
"""

from __future__ import annotations

import base64
import math
import re
import struct
import unicodedata
import zlib
from collections.abc import Sequence
from functools import cache
from html import escape

FONTS = (
    "Arial, Helvetica, 'Liberation Sans', 'Noto Sans', 'PingFang SC', 'Hiragino Sans GB', 'Microsoft YaHei', "
    "'Noto Sans CJK SC', 'Noto Sans SC', 'WenQuanYi Micro Hei', sans-serif"
)
INK, QUIET, RULE = "#1b1d20", "#4a4e55", "#d0d0ca"
SMALL, TEXT, TITLE = 6.5, 7.0, 8.0
"""Sizes of letters in points; journals ask for at least 6."""
_WIDE = dict.fromkeys("mwMW@%—", 0.86) | dict.fromkeys("iljtfrI.,:;'|!()[] /·", 0.31)
"""Of Arial, in its size; what is not here is 0.56, capitals 0.69."""


def text_width(text: str, size: float) -> float:
    """About how wide a text is, in points; a little more than it is rather than less.

    >>> round(text_width("ab", 10.0), 1), text_width("注意", 10.0)
    (11.2, 20.0)
    """
    return size * sum(_width(letter) for letter in text)


@cache
def _width(letter: str) -> float:
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    if unicodedata.combining(letter):
        return 0.0
    return _WIDE.get(letter, 0.69 if letter.isupper() or not letter.isascii() else 0.56)


def fit(text: str, width: float, size: float) -> str:
    """A text cut to a width, with an ellipsis where something is missing.

    >>> fit("position encoding", 40.0, 8.0)
    'position…'
    """
    if text_width(text, size) <= width:
        return text
    room, kept = width - text_width("…", size), ""
    for letter in text:
        room -= text_width(letter, size)
        if room < 0:
            break
        kept += letter
    return kept.rstrip() + "…"


def wrapped(text: str, width: float, size: float) -> list[str]:
    """Lines of at most a width: broken at spaces, between Chinese characters, and inside a word that is too long.

    >>> wrapped("see the 注意力", 30.0, 10.0)
    ['see', 'the 注', '意力']
    """
    lines, line = [], ""
    for piece in re.findall(r"\s+|[　-鿿＀-￯]|[^\s　-鿿＀-￯]+", text):
        if text_width(line + piece.rstrip(), size) <= width or not line.strip():
            line += piece
        else:
            lines.append(line.strip())
            line = piece.lstrip()
        while text_width(line.rstrip(), size) > width and len(line) > 1:
            keep = max(1, len(fit(line, width + text_width("…", size), size)) - 1)
            lines.append(line[:keep])
            line = line[keep:]
    return [*lines, line.strip()] if line.strip() or not lines else lines


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two, at most ``count`` + 1, 1, 2 or 5 times a power of ten apart.

    >>> ticks(0.0, 1.0), ticks(-3.2, 11.0)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 5.0, 10.0])
    """
    rough = (high - low) / max(count, 1)
    if not (rough > 0 and math.isfinite(rough)):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Powers of 2, 4 or 10, whichever are few enough, over a wide range of 10 only; between two positive numbers.

    >>> log_ticks(64, 1024), log_ticks(1, 100000)
    ([64.0, 128.0, 256.0, 512.0, 1024.0], [1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0])
    """
    for base in (10.0, 100.0, 1000.0) if high > 5000 * low else (2.0, 4.0, 10.0):
        first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
        if 1 < last - first + 1 <= count + 1 and (base != 4.0 or low >= 1):
            return [base**n for n in range(first, last + 1)]
    return [low, high]


def spread(wishes: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Move labels as little as possible so that neighbours stand at least ``gap`` apart within [top, bottom].

    Labels that collide form a block around their mean wish (pool adjacent violators), as in assets/labels.js.

    >>> spread([10.0, 11.0, 40.0], 8.0, 0.0, 50.0)
    [6.5, 14.5, 40.0]
    """
    order = sorted(range(len(wishes)), key=lambda i: (wishes[i], i))
    blocks: list[tuple[float, int]] = []  # where each begins, and how many labels it holds

    def fitting(start: float, count: int) -> float:
        return max(top, min(start, bottom - (count - 1) * gap))

    for index in order:
        start, count = fitting(wishes[index], 1), 1
        while blocks and blocks[-1][0] + blocks[-1][1] * gap > start:
            last, held = blocks.pop()
            centre = (last + (held - 1) * gap / 2) * held + (start + (count - 1) * gap / 2) * count
            count += held
            start = fitting(centre / count - (count - 1) * gap / 2, count)
        blocks.append((start, count))
    places = [start + i * gap for start, count in blocks for i in range(count)]
    found = [0.0] * len(wishes)
    for place, index in zip(places, order, strict=True):
        found[index] = place
    return found


def number(value: float) -> str:
    """Three digits, with a minus as long as a digit.

    >>> number(-63.75), number(0.0), number(1234.0)
    ('−63.8', '0', '1,230')
    """
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{abs(float(f'{value:.3g}')):,.{digits}f}" if digits < 6 else f"{abs(value):.1e}".replace("e-0", "e−")
    text = text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
    return ("−" if value < 0 else "") + text


def png(rows: Sequence[bytes], palette: Sequence[tuple[int, int, int]]) -> bytes:
    """A picture of at most 255 colours as a PNG file; its last index, 255, is transparent.

    Args:
        rows: an index into the palette for each pixel.
        palette: red, green, blue, 0 to 255.
    """
    colours = b"".join(bytes(colour) for colour in palette).ljust(768, b"\0")
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 3, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    chunks = ((b"IHDR", header), (b"PLTE", colours), (b"tRNS", b"\xff" * 255 + b"\0"), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


class Pen:
    """Writes SVG elements, top to bottom; what was written is :attr:`parts`."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = TEXT,
        *,
        anchor: str = "start",
        fill: str = INK,
        bold: bool = False,
        turned: bool = False,
        halo: bool = False,
    ) -> None:
        """Write a line of text; y is its baseline, ``turned`` is read from below, a ``halo`` covers what lies under."""
        more = f' text-anchor="{anchor}"' if anchor != "start" else ""
        more += ' font-weight="bold"' if bold else ""
        more += ' stroke="#fff" stroke-width="2.5" paint-order="stroke"' if halo else ""
        more += f' transform="rotate(-90 {_n(x)} {_n(y)})"' if turned else ""
        self.parts.append(
            f'<text x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}" fill="{fill}"{more}>{clean(text)}</text>'
        )

    def lines(self, x: float, y: float, text: str, width: float, size: float = TEXT, fill: str = INK) -> float:
        """Write a paragraph from y down; returns where the next thing may begin."""
        for line in wrapped(text, width, size):
            y += size * 1.3
            self.text(x, y - size * 0.3, line, size, fill=fill)
        return y

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = RULE, width: float = 0.5) -> None:
        """Draw a straight line."""
        self.path(f"M{_n(x1)} {_n(y1)}L{_n(x2)} {_n(y2)}", colour, width)

    def path(self, d: str, colour: str, width: float = 0.5, *, dash: str = "", fill: str = "none", **more: str) -> None:
        """Draw a path; further attributes by name, with _ for -."""
        rest = f' stroke-dasharray="{dash}"' if dash else ""
        rest += "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
        self.parts.append(f'<path d="{d}" fill="{fill}" stroke="{colour}" stroke-width="{_n(width)}"{rest}/>')

    def box(self, x: float, y: float, width: float, height: float, fill: str = "none", edge: str = "none") -> None:
        """Draw a rectangle."""
        self.parts.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" fill="{fill}" stroke="{edge}" '
            f'stroke-width="0.5"/>'
        )

    def picture(self, x: float, y: float, width: float, height: float, data: bytes) -> None:
        """Put a PNG there, its pixels as sharp rectangles."""
        self.parts.append(
            f'<image x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" preserveAspectRatio="none" '
            f'style="image-rendering:pixelated" href="data:image/png;base64,{base64.b64encode(data).decode()}"/>'
        )


def points(places: Sequence[tuple[float, float] | None]) -> str:
    """A path through places; None is a gap."""
    return "".join(
        f"{'L' if i and places[i - 1] else 'M'}{_n(place[0])} {_n(place[1])}"
        for i, place in enumerate(places)
        if place is not None
    )


def marker(kind: int, x: float, y: float, r: float) -> str:
    """The outline of a line's marker, as ``markerPath`` of assets/styles.js draws it."""
    shapes: dict[int, Sequence[tuple[float, float]]] = {
        1: ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        2: ((0, -1.2), (1.15, 0.85), (-1.15, 0.85)),
        3: ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
    }
    shape = shapes.get({5: 1, 6: 3}.get(kind, kind))
    if shape is None:
        return f"M{_n(x - r)} {_n(y)}a{_n(r)} {_n(r)} 0 1 0 {_n(2 * r)} 0a{_n(r)} {_n(r)} 0 1 0 {_n(-2 * r)} 0Z"
    return points([(x + dx * r, y + dy * r) for dx, dy in shape]) + "Z"


def clean(text: str) -> str:
    """Text as XML can hold it: control characters as their pictures, which bytes of a text may need.

    >>> clean("a<b\\n")
    'a&lt;b␊'
    """
    return escape("".join(_letter(letter) for letter in text))


def _letter(letter: str) -> str:
    code = ord(letter)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\ufffd" if 0xD800 <= code < 0xE000 or code in (0xFFFE, 0xFFFF) else letter


def _n(value: float) -> str:
    """A coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
