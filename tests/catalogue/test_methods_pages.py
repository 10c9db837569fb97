"""What is shown of methods comes from the methods: catalogue, pictures, table, page and Markdown."""

from __future__ import annotations

import io
import json
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from headway.catalogue.braille import braille
from headway.catalogue.curves import method_curves
from headway.catalogue.entries import catalogue, entry
from headway.catalogue.page import (
    caption_of,
    markdown,
    method_page,
    method_text,
    methods_note,
    methods_table,
    write_markdown,
    write_method,
)
from headway.figures.words import LANGUAGES, strings
from headway.positions import methods, parse
from headway.positions.alibi import slopes


@pytest.fixture(scope="module")
def entries() -> list[dict[str, Any]]:
    return catalogue(pictures=True)


def printed(what: Any, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None, markup=False, highlight=False)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("name", methods())
def test_every_method_says_what_it_is(name: str) -> None:
    found = entry(parse(name))
    assert found["title"]
    assert found["formula"], "its class or module docstring gives no formula"
    assert found["derivation"], "its module docstring ends after its title"
    assert found["acts"] or name == "none"
    assert re.fullmatch(r"arXiv:\d{4}\.\d{4,5}", found["paper"]) or not found["paper"].startswith("arXiv")
    assert found["summary"].endswith(".")
    for one in found["hyperparameters"]:
        assert one["meaning"], f"{one['name']} is not among its docstring's Args"
    assert found["plan"]["route"] is not None
    picture = found["picture"]
    assert picture["curves"], f"nothing to be drawn: {picture['reason']}"
    for curve in picture["curves"]:
        assert len(curve["values"]) == picture["tokens"]
    json.dumps(found, allow_nan=False)


def test_acts_follow_from_what_is_implemented() -> None:
    wanted = {
        "none": [],
        "sinusoidal": ["embedding"],
        "rotary": ["rotation"],
        "alibi": ["scores"],
        "shaw": ["scores", "values"],
        "shaw(values=False)": ["scores"],
        "fox": ["marks", "scores"],
        "stickbreaking": ["weights"],
        "randomized": ["numbers", "rotation"],
    }
    assert {spec: entry(parse(spec), picture=False)["acts"] for spec in wanted} == wanted


def test_an_entry_counts_what_is_learned_and_leaves_the_method_alone() -> None:
    position = parse("shaw(clip=3)")
    found = entry(position)
    assert found["parameters"] == [{"name": "key_table", "shape": [7, 64]}, {"name": "value_table", "shape": [7, 64]}]
    assert found["hyperparameters"][0] == {
        "name": "clip",
        "value": 3,
        "default": 16,
        "meaning": "distances beyond this one count as this one; 16 in the paper.",
    }
    assert position.shape is None


def test_pictures_equal_the_formulas() -> None:
    """Rotary: the mean of cos(n·ω) less 1; ALiBi: −m·n; sinusoidal: p_i·p_j/√d_k of each head's part."""
    n = torch.arange(256).double()
    omega = 10000.0 ** (-torch.arange(32).double() / 32)
    (rotary,) = method_curves(parse("rotary"))["curves"]
    assert rotary["heads"] == [1, 2, 3, 4]
    torch.testing.assert_close(
        torch.tensor(rotary["values"]).double(), (n[:, None] * omega).cos().mean(1) - 1, rtol=1e-4, atol=1e-5
    )
    for curve, slope in zip(method_curves(parse("alibi"))["curves"], slopes(4), strict=True):
        torch.testing.assert_close(torch.tensor(curve["values"]).double(), -slope * n, rtol=1e-5, atol=1e-9)
    omega = 10000.0 ** (-torch.arange(128).double() / 128)
    for head, curve in enumerate(method_curves(parse("sinusoidal"))["curves"]):
        own = omega[32 * head : 32 * head + 32]
        torch.testing.assert_close(
            torch.tensor(curve["values"]).double(), (n[:, None] * own).cos().sum(1) / 8, rtol=1e-4, atol=1e-5
        )


def test_a_picture_is_the_same_every_time_and_changes_no_state() -> None:
    state = torch.get_rng_state()
    position = parse("t5")
    first = method_curves(position)
    torch.manual_seed(5)
    after = torch.get_rng_state()
    assert method_curves(position) == first
    assert torch.equal(torch.get_rng_state(), after)
    assert position.shape is None
    torch.set_rng_state(state)
    assert method_curves(parse("none"))["curves"] == [{"heads": [1, 2, 3, 4], "values": [0.0] * 256}]


def test_a_method_that_starts_at_nothing_is_drawn_with_random_parameters() -> None:
    from dataclasses import dataclass

    from headway.positions.t5 import T5

    @dataclass(eq=False)
    class Zero(T5):
        def reset_parameters(self) -> None:
            torch.nn.init.zeros_(self.weight)

    found = method_curves(Zero())
    assert found["drawn"]
    assert any(found["curves"][0]["values"])
    assert caption_of(found, "en").endswith("because their initial values have no effect.")


def test_what_cannot_be_drawn_says_why() -> None:
    found = method_curves(parse("learned(max_length=40)"))
    assert found["kind"] == "none"
    assert "max_length=40" in caption_of(found, "en")
    assert "max_length=40" in method_page(entry(parse("learned(max_length=40)")))


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 200])
def test_the_table_fits_and_has_a_line_for_each_method(entries: list[dict[str, Any]], width: int) -> None:
    lines = printed(methods_table(entries, width), width).splitlines()
    assert len(lines) == len(entries) + 2
    assert max(map(len, lines)) <= width
    for line, one in zip(lines[2:], entries, strict=True):
        assert line.startswith(one["name"])
    # what a narrow terminal does without, goes in this order
    shown = [column in lines[0] for column in ("exactness", "memory", "paper", "title")]
    assert shown == sorted(shown, reverse=True)
    assert all(shown) == (width >= 160)
    assert any(shown) == (width >= 100)


def test_the_note_counts_the_backends(entries: list[dict[str, Any]]) -> None:
    note = methods_note(entries)
    assert note.startswith(f"{len(entries)} methods; learned: parameters at width 512 with 8 heads, ·L per layer.")
    counts = [int(count) for count in re.findall(r"(\d+) (?:native|sdpa|tiled|reference)", note)]
    assert sum(counts) == len(entries)


def test_a_method_in_the_terminal() -> None:
    text = printed(method_text(entry(parse("t5(buckets=8, max_distance=20)")), 80), 80)
    assert text.startswith("t5(buckets=8, max_distance=20)  T5 buckets  arXiv:1910.10683\n")
    assert max(map(len, text.splitlines())) <= 80
    for part in (
        "buckets = 8 (default 32): biases per head;",
        "weight (8, 8)",
        "head 3",
        "distance in tokens",
    ):
        assert part in text
    assert "\x1b" not in text


def test_braille_draws_a_line_from_corner_to_corner() -> None:
    lines = ["".join(cell.text for cell in row) for row in braille([[float(x) for x in range(64)]], ["up"], 40, 8)]
    assert lines[0].startswith("63 ┤")
    assert lines[0].endswith(" up")
    assert lines[7].startswith(" 0 ┤⣀") or lines[7].startswith(" 0 ┤⡠")
    assert lines[8].split() == ["0", "63"]
    heights = [
        next(i for i, line in enumerate(lines[:8]) if line[4 + x] > "⠀" and line[4 + x] < "⣿") for x in range(30)
    ]
    assert heights == sorted(heights, reverse=True)


def test_braille_leaves_out_what_is_not_finite_and_separates_labels() -> None:
    lines = braille([[1.0, None, 1.0], [1.0, 1.0, 1.0], [None, None, None]], ["a", "b", "c"], 30, 6)
    told = [(row[-1].text.strip(), y) for y, row in enumerate(lines) if row[-1].curve is not None]
    assert [(name, y) for name, y in told if name in "ab"] == [("a", 0), ("b", 1)]
    assert "c" not in dict(told)


def test_markdown_has_an_index_and_a_page_and_picture_for_each(entries: list[dict[str, Any]], tmp_path: Path) -> None:
    files = markdown(entries)
    assert {"index.md", "rotary.md", "rotary.svg"} <= files.keys()
    assert len(files) == 1 + 2 * len(entries)
    for name in methods():
        assert f"[{name}]({name}.md)" in files["index.md"]
        assert f"]({name}.svg)" in files[f"{name}.md"]
    assert "https://arxiv.org/abs/2104.09864" in files["rotary.md"]
    assert parse("rotary").summary_zh in files["rotary.md"]
    index = write_markdown(entries, tmp_path / "deep")
    assert index == tmp_path / "deep" / "index.md"
    assert {path.name for path in index.parent.iterdir()} == files.keys()


def test_the_page_is_offline_and_holds_the_curves(tmp_path: Path) -> None:
    found = entry(parse("alibi"))
    html = write_method(found, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    assert not re.search(
        r"https?://|url\((?!#)|@import|<link|\bfetch\(", html.replace("http://www.w3.org/2000/svg", "")
    )
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert block
    curves = json.loads(block[1])["entry"]["picture"]["curves"]
    assert [curve["values"][8] for curve in curves] == [-2.0, -0.5, -0.125, -0.03125]


def test_no_word_is_given_twice() -> None:
    for language in LANGUAGES:
        parts = [one for one in files("headway.figures").joinpath("strings").iterdir() if f".{language}." in one.name]
        pairs = [pair for one in parts for pair in json.loads(one.read_text("utf-8"), object_pairs_hook=list)]
        assert len(pairs) == len(dict(pairs)) > 500


def test_words_of_methods_have_the_same_blanks_in_both_languages() -> None:
    for key, text in strings("en").items():
        if key.startswith(("methods.", "act.")):
            assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", strings("zh")[key])), key


def test_not_finite_values_are_no_numbers() -> None:
    from dataclasses import dataclass

    from headway.positions.alibi import Alibi
    from headway.terms import ByDistance

    @dataclass(eq=False)
    class Steep(Alibi):
        def terms(self, look: Any) -> Any:
            return (ByDistance(torch.full((4, 3), math.inf), 2),)

    assert method_curves(Steep())["curves"][0]["values"][0] is None
