"""Readable characters: names for invisible ones, and ASCII for those that an encoding lacks.

Text may come from a model that writes single bytes, a file's name or an argument. Invisible characters get a name, so
that no label is blank and no escape sequence reaches a terminal.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Sequence

_SPACES = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
_CONTROLS = (
    *("NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "TAB", "LF", "VT", "FF", "CR", "SO", "SI"),
    *("DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC", "FS", "GS", "RS", "US"),
)
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
"""Letters and marks that fonts draw as nothing, in addition to variation selectors."""
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the display order of their neighbours."""
_ASCII = {
    "√": "sqrt",
    "−": "-",
    "–": "-",
    "—": "-",
    "·": ".",
    "•": "*",
    "×": "x",
    "÷": "/",
    "±": "+-",
    "…": "...",
    "‥": "..",
    "→": "->",
    "←": "<-",
    "≤": "<=",
    "≥": ">=",
    "≡": "==",
    "∈": " in ",
    "∞": "inf",
    "∂": "d",
    "∗": "*",
    "∘": "o",
    "⊙": "(.)",
    "⋯": "...",
    "‖": "||",
    "′": "'",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "°": " deg",
    "⌊": "floor(",
    "⌋": ")",
    "⌈": "ceil(",
    "⌉": ")",
    "\u0302": "^",
    "\u0304": "-",
    "\u00a0": " ",
    "\u202f": " ",
    "␣": "_",
    "⏎": "\\n",
    "␊": "\\n",
    "⇥": "\\t",
    "␍": "\\r",
    "ᵀ": "^T",
    "ᴴ": "^H",
    "⁻": "^-",
    "µ": "u",
    "ᵢ": "_i",
    "ⱼ": "_j",
    "ₖ": "_k",
    "█": "#",
    "▓": "#",
    "▒": "+",
    "░": ":",
    "┄": "-",
    "、": ", ",
    "。": ". ",
    "（": "(",
    "）": ")",
    "，": ", ",
    "：": ": ",
    "；": "; ",
    "　": " ",
    **{letter: f"^{digit}" for digit, letter in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{letter: f"_{digit}" for digit, letter in enumerate("₀₁₂₃₄₅₆₇₈₉")},
}
_LOW = "₀₁₂₃₄₅₆₇₈₉"
_GREEK = "GREEK SMALL LETTER "


def label(text: str) -> str:
    """A token's display text: never blank, without characters that are invisible or control a terminal.

    White space becomes ␣ ⏎ ⇥ ␍. Invisible characters become their names (ESC) or code points (U+200D): control
    characters, joiners, byte-order and direction marks, unassigned and private characters, other spaces, marks without
    a base letter. A byte that belongs to no character is written in hexadecimal. A label's label is itself.

    >>> label("a b"), label("\\u200d"), label("\\x1b"), label("a\\x1b[1m"), label("\\u0301"), label("\\udcff")
    ('a␣b', 'U+200D', 'ESC', 'a<ESC>[1m', 'U+0301', '\\\\xff')
    """
    return printable(text) or '""'


class Piece(str):
    """The label of one of several tokens that make a character: 猫₁ 猫₂ 猫₃.

    Args:
        text: the label.
        whole: the label of all of them together.
        first: whether it is the first.
    """

    whole: str
    first: bool

    def __new__(cls, text: str, whole: str, *, first: bool) -> Piece:
        """As any text, with what it is a piece of."""
        made = super().__new__(cls, text)
        made.whole, made.first = whole, first
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str, str], dict[str, bool]]:
        """For copies and pickles."""
        return (str(self), self.whole), {"first": self.first}


def labels(texts: Sequence[str | None]) -> list[str]:
    """The labels of tokens; those of one character are numbered.

    Args:
        texts: the text that begins in each token; None where a token continues the character before.

    >>> labels(["a", "猫", None, None, " "])
    ['a', '猫₁', '猫₂', '猫₃', '␣']
    """
    found: list[str] = []
    whole, last, count = "", "", 1
    for i, text in enumerate(texts):
        if text is not None or not found:
            whole, last, count = label(text or ""), label((text or "")[-1:]), 1
            divided = texts[i + 1 : i + 2] == [None]
            found.append(Piece(f"{whole}₁", whole, first=True) if divided else whole)
        else:
            count += 1
            found.append(Piece(last + "".join(_LOW[int(digit)] for digit in str(count)), whole, first=False))
    return found


def printable(text: str, keep: str = "") -> str:
    """A text in which every character is visible, as in :func:`label`.

    Args:
        text: any text.
        keep: white space to leave unchanged.

    >>> printable("no \\x1b[2J", keep=" ")
    'no <ESC>[2J'
    """
    if text.isascii() and text.isprintable() and (" " in keep or " " not in text):
        return text
    shown, base = [], False
    for letter in text:
        name = None if letter in keep else _name(letter, base)
        base = name is None and not letter.isspace()
        named = name is not None and len(text) > 1 and name[0] != "\\" and letter not in _SPACES
        shown.append(letter if name is None else f"<{name}>" if named else name)
    return "".join(shown)


def harmless(text: str) -> str:
    r"""A text unchanged, except that characters which control a terminal or reorder text are named.

    >>> harmless("猫\u200d\n\x1b[2J")
    '猫\u200d\n<ESC>[2J'
    """
    if text.isprintable():
        return text
    return "".join(f"<{_name(letter, True)}>" if _acts(letter) else letter for letter in text)


def _acts(letter: str) -> bool:
    """Whether a character controls a terminal instead of being shown."""
    return letter in _DIRECTIONS or (letter not in "\n\t" and unicodedata.category(letter) in ("Cc", "Cs"))


def shortened(text: str, length: int = 80) -> str:
    """A text for an error message: its beginning and end if it is too long.

    >>> shortened("x" * 10_000, 20)
    'xxxxxxxxxx … xxxxxxx'
    """
    return text if len(text) <= length else f"{text[: length // 2]} … {text[3 + length // 2 - length :]}"


def _name(letter: str, base: bool) -> str | None:
    """The name of an invisible character; None for a visible one. ``base``: whether a letter precedes it."""
    code, category = ord(letter), unicodedata.category(letter)
    if letter in _SPACES:
        return _SPACES[letter]
    if code < 0x20:
        return _CONTROLS[code]
    if code == 0x7F:
        return "DEL"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    selector = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
    lonely = category[0] == "M" and not base
    if category[0] in "CZ" or lonely or selector or letter in _BLANK:
        return f"U+{code:04X}"
    return None


def ascii_for(letter: str) -> str:
    """A character in ASCII: readable for those that this library prints, an escape for all others.

    >>> ascii_for("√"), ascii_for("θ"), ascii_for("┤"), ascii_for("⠿"), ascii_for("猫")
    ('sqrt', 'theta', '|', '*', '\\\\u732b')
    """
    if letter in _ASCII:
        return _ASCII[letter]
    code, name = ord(letter), unicodedata.name(letter, "")
    if name.startswith(_GREEK) and name.count(" ") == 3:
        return name[len(_GREEK) :].lower().replace("lamda", "lambda")
    if name.startswith("GREEK CAPITAL LETTER ") and name.count(" ") == 3:
        return {"Σ": "sum", "Π": "prod"}.get(letter) or name.rpartition(" ")[2].capitalize()
    if 0x2500 <= code < 0x2580:  # box drawing
        return "-" if "HORIZONTAL" in name and "VERTICAL" not in name else "|" if "VERTICAL" in name else "+"
    if 0x2580 <= code < 0x2600:  # blocks and shapes
        return "#" if code < 0x25A0 else "*"
    if 0x2800 <= code < 0x2900:  # braille: the curves of a method
        return "*" if code > 0x2800 else " "
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return letter.encode("ascii", "backslashreplace").decode()


def _readable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text, shown = error.object, []
    for index in range(error.start, error.end):
        before, letter, after = text[index - 1 : index], text[index], text[index + 1 : index + 2]
        if letter == "·" and (before + after).strip() == before + after != "":
            shown.append("*")  # a product, where "." would read as a decimal point
        else:
            shown.append(ascii_for(letter) + (" " if letter == "√" and after.isalnum() else ""))
    return "".join(shown), error.end


READABLE = "headway.readable"
"""The error handler for a stream whose encoding may lack characters: ``stream.reconfigure(errors=READABLE)``."""
codecs.register_error(READABLE, _readable)
