"""No label is blank, nothing that is printed acts on a terminal, and every encoding gets something that reads."""

from __future__ import annotations

import io
import sys
import unicodedata

import pytest

from headway.catalogue.entries import catalogue
from headway.characters import READABLE, ascii_for, harmless, label, printable, shortened
from headway.figures.words import strings
from headway.inspect.explain import explain, fresh_model
from headway.training.vocabulary import Bytes, token_texts
from headway.views import Question

LABELS = {
    "\x00": "NUL",
    "\x1b": "ESC",
    "\x7f": "DEL",
    "\x85": "U+0085",
    "\x9b": "U+009B",
    "\u00ad": "U+00AD",
    "\u00a0": "U+00A0",
    "\u0301": "U+0301",
    "\u200b": "U+200B",
    "\u200d": "U+200D",
    "\u200f": "U+200F",
    "\u2028": "U+2028",
    "\u202e": "U+202E",
    "\u2800": "U+2800",
    "\u3164": "U+3164",
    "\ue000": "U+E000",
    "\ufe0f": "U+FE0F",
    "\ufeff": "U+FEFF",
    "\uffff": "U+FFFF",
    "\U000e0100": "U+E0100",
    "\U000e0041": "U+E0041",
    "\ud800\udcff": "<U+D800>\\xff",
    "": '""',
    " ": "␣",
    "\n\t\r": "⏎⇥␍",
    "e\u0301": "e\u0301",
    " \u0301": "␣<U+0301>",
    "a\x1b[31m": "a<ESC>[31m",
    "\u200d\u200d": "<U+200D><U+200D>",
    "猫 ok": "猫␣ok",
}


@pytest.mark.parametrize("text", LABELS, ids=ascii)
def test_labels(text: str) -> None:
    assert label(text) == LABELS[text]
    assert label(label(text)) == label(text)


def test_no_character_has_a_blank_label() -> None:
    odd = (*range(0x3100), *range(0xD7A0, 0x10100), *range(0xE0000, 0xE0200))
    for code in (*odd, *range(0x10100, sys.maxunicode + 1, 997)):
        shown = label(chr(code))
        assert any(unicodedata.category(one)[0] in "LNPS" for one in shown), hex(code)
        assert not any(unicodedata.category(one)[0] in "CZ" for one in shown), hex(code)


def test_every_way_to_a_label_is_the_same() -> None:
    text = "a\u200d\x1b"
    assert token_texts(Bytes(), text.encode()) == ["a", "U+200D₁", "U+200D₂", "U+200D₃", "ESC"]
    assert Question.fresh(text).labels == ["a<U+200D>", "ESC"]  # a joiner belongs to the letter before it
    model, ids = fresh_model(list(text))
    assert explain(model, ids, list(text))["tokens"] == ["a", "U+200D", "ESC"]


def test_what_acts_on_a_terminal_is_named_and_all_else_stays() -> None:
    text = "".join(map(chr, range(0x3000)))
    shown = harmless(text)
    assert not any(unicodedata.category(one) == "Cc" and one not in "\n\t" for one in shown)
    assert not set("\u202e\u2066\u200f") & set(shown)
    assert "\n" in shown
    assert "\u200d" in shown
    assert harmless("\r") == "<␍>"
    assert harmless("\udc9b\ud800") == "<\\x9b><U+D800>"
    assert printable("a\nb c", keep=" ") == "a⏎b c"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp936", "cp437", "utf-8"])
def test_all_that_is_printed_fits_every_encoding(encoding: str) -> None:
    said = [*strings("en").values(), *strings("zh").values(), "".join(map(chr, range(0x2000, 0x3000))), "\udcff\ud800"]
    said += [entry["derivation"] + entry["formula"] for entry in catalogue("cpu", pictures=False)]
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=READABLE, newline="\n")
    stream.write("\n".join(said))
    stream.flush()


def test_our_own_characters_read_in_ascii() -> None:
    said = [entry["derivation"] + entry["formula"] for entry in catalogue("cpu", pictures=False)]
    letters = {letter for text in (*said, *strings("en").values()) for letter in text if not letter.isascii()}
    unread = {one for one in letters if "\\" in ascii_for(one) and not "\u4e00" <= one <= "\u9fff"} - set("⏎⇥␍")
    assert not unread

    def ascii_text(text: str) -> str:
        return text.encode("ascii", READABLE).decode()

    assert (
        ascii_text("q_i·k_j / √d_k − 1 · θ → │┤┌─ 猫")
        == "q_i*k_j / sqrt d_k - 1 . theta -> |||-".replace("|||-", "||+-") + " \\u732b"
    )


def test_long_texts_are_shortened() -> None:
    assert shortened("short") == "short"
    assert len(shortened("x" * 100_000)) <= 80
