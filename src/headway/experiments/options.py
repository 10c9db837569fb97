"""Lists as they are written on a command line."""

from __future__ import annotations

from headway.shapes import HeadwayError


def split(text: str) -> list[str]:
    """Split at commas outside parentheses and quotes.

    >>> split("rotary(base=1, pairing='half'), t5,")
    ["rotary(base=1, pairing='half')", 't5']
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers between commas.

    Raises:
        HeadwayError: on anything else, naming the option.
    """
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise HeadwayError(f"expected {option} as whole numbers like 64,128,256, got {text!r}") from None
