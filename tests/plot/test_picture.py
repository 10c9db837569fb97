"""Figures for print: well-formed SVG that holds its numbers, the colours of the page, words that stay apart."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
from browser import Open

from headway.figures.values import (
    Bars,
    Block,
    Columns,
    Dials,
    Figure,
    Film,
    Grid,
    Heatmap,
    Line,
    Lines,
    Product,
    Stage,
    Steps,
    Tiles,
    View,
    Wall,
    same,
)
from headway.plot.maps import Scale
from headway.plot.picture import svg, to_csv, worked_out
from headway.plot.svg import png, spread, text_width, wrapped
from headway.shapes import HeadwayError
from headway.web.colours import STEPS, colour_table, dashes, hues, looks, palette
from headway.web.page import asset

SVG = "{http://www.w3.org/2000/svg}"
TOKENS = ["the", "cat", "<b>&", "注意力", "a\nb\x00"]
SIDES = ({"en": "query", "zh": "查询"}, {"en": "key", "zh": "键"})


def heatmap(**changes: Any) -> Heatmap:
    values = [[(i * 5 + j) / 25 if j <= i else 0.0 for j in range(5)] for i in range(5)]
    hidden = Block.of([[int(j > i) for j in range(5)] for i in range(5)], "bits")
    given = {"title": {"en": "Weights", "zh": "权重"}, "values": Block.of(values), "rows": TOKENS, "columns": TOKENS}
    return Heatmap(**{**given, "axes": SIDES, "hidden": hidden, **changes})


def lines(count: int = 4, **changes: Any) -> Lines:
    x = [1.0, 2.0, 4.0, 8.0, 1024.0]
    curves = [Line(same(f"head {n}"), [n / 10, None, 1.0 + n / 50, 1.0, 1.0 + n / 1000]) for n in range(count)]
    axes = ({"en": "distance", "zh": "距离"}, {"en": "added", "zh": "加上的值"})
    return Lines(**{"title": same("Bias"), "x": x, "lines": curves, "axes": axes, **changes})


def every_kind() -> dict[str, Figure]:
    product = Product(
        same("Q = X W"),
        Block.of([[1.0, 2.0, -3.0, 0.5]] * 5),
        Block.of([[1.0, -1.0]] * 4),
        Block((2,), [0.25, 0.0]),
        Block.of([[0.75, -0.5]] * 5),
        TOKENS,
        ("X", "W_Q", "Q"),
    )
    bars = Bars(
        same("Row"), TOKENS, [(same("score"), [-1.0, 2.0, None, 0.5, 1]), (same("weight"), [0.1] * 5)], same("α")
    )
    stage = Stage(same("Q"), "5 × 2", "Q = X W_Q", {"en": "Every token asks.", "zh": "每个词元提出查询。"}, [product])
    return {
        "heatmap": heatmap(),
        "lines": lines(marks=[(2.0, same("trained")), (4.0, same("twice that"))], log_x=True),
        "bars": bars,
        "dials": Dials(same("Turns"), ["0", "1"], [(same("query"), [0.0, 1.0]), (same("key"), [3.0, -1.0])]),
        "grid": Grid(same("Table"), [same("name"), same("a long head of two")], [(same("rotary"), ["−0.0177"])]),
        "wall": Wall(same("Heads"), [(same(f"L0 H{n}"), heatmap(title=same("")), {}) for n in range(3)], 2),
        "product": product,
        "steps": Steps(same("All"), [stage, Stage(same("α"), "", "", same(""), [heatmap(), bars])]),
        "film": Film(same("Film"), [(same(f"step {n}"), [heatmap()]) for n in range(9)]),
        "columns": Columns(same("Beside"), [(same(name), [heatmap(), lines()]) for name in ("rotary", "alibi", "t5")]),
        "tiles": Tiles(same("Map"), heatmap(title=same("")), (50, 50), 2, 5, "max"),
    }


@pytest.mark.parametrize("width", ["single", "double"])
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", every_kind())
def test_every_kind_of_figure_is_drawn(kind: str, language: str, width: str) -> None:
    root = ElementTree.fromstring(svg(every_kind()[kind], language=language, width=width))
    inches = {"single": 3.4, "double": 7.0}[width]
    assert root.get("width") == f"{inches}in"
    wide, high = map(float, str(root.get("viewBox")).split()[2:])
    assert wide == pytest.approx(72 * inches)
    assert float(str(root.get("height")).removesuffix("in")) == pytest.approx(high / 72, abs=1e-3)
    sizes = {float(text.get("font-size", "0")) for text in root.iter(f"{SVG}text")}
    assert sizes
    assert min(sizes) >= 5.5
    assert len(list(root.iter())) < 2000
    assert "nan" not in svg(every_kind()[kind]).replace("nance", "")


def words_of(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def test_words_are_text_in_the_readers_language() -> None:
    root = ElementTree.fromstring(svg(heatmap(), language="zh"))
    found = words_of(root)
    assert {"权重", "查询", "键", "the", "<b>&", "注意力", "a␊b␀"} <= set(found)
    assert "sans-serif" in str(root.get("font-family"))
    assert "Noto Sans CJK SC" in str(root.get("font-family"))


def read_png(data: bytes) -> tuple[list[tuple[int, int, int]], list[list[int]], bytes]:
    """Palette, indices and alphas of a picture with a palette."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(name + body)
        chunks[name] = body
        at += size + 12
    width, height, depth, kind = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, kind) == (8, 3)
    colours = [tuple(chunks[b"PLTE"][i : i + 3]) for i in range(0, 768, 3)]
    raw = zlib.decompress(chunks[b"IDAT"])
    rows = [list(raw[i * (width + 1) + 1 : (i + 1) * (width + 1)]) for i in range(height)]
    return colours, rows, chunks[b"tRNS"]


def pictures(text: str) -> Iterator[bytes]:
    for image in ElementTree.fromstring(text).iter(f"{SVG}image"):
        assert image.get("style") == "image-rendering:pixelated"
        yield base64.b64decode(str(image.get("href")).removeprefix("data:image/png;base64,"))


def test_a_map_is_one_picture_of_a_pixel_a_cell() -> None:
    figure = heatmap(limits=(0.0, 0.5))
    colours, rows, alpha = read_png(next(pictures(svg(figure))))
    table = palette("sequential")
    assert (len(rows), len(rows[0])) == (5, 5)
    for i in range(5):
        for j in range(5):
            if j > i:
                assert alpha[rows[i][j]] == 0  # hidden, and the hatching shows
            else:
                step = min(STEPS - 1, math.floor((i * 5 + j) / 25 / 0.5 * STEPS))
                assert colours[rows[i][j]] == table[step]
    text = svg(figure)
    assert 'fill="url(#hatch)"' in text
    assert "≥ 0.5" in words_of(ElementTree.fromstring(text))
    assert "url(#hatch)" not in svg(heatmap(hidden=None)).replace('id="hatch"', "")


def test_scales_are_symmetric_cyclic_or_of_what_is_seen() -> None:
    signed = Block.of([[-1.0, 3.0], [math.nan, 9.0]])
    hidden = Block.of([[0, 0], [0, 1]])
    assert Scale.of(heatmap(values=signed, hidden=hidden, scale="diverging")) == Scale(-3.0, 3.0)
    assert Scale.of(heatmap(values=signed, hidden=hidden)) == Scale(-1.0, 3.0)
    assert Scale.of(heatmap(values=signed, hidden=hidden, scale="cyclic")) == Scale(-math.pi, math.pi)
    assert Scale.of(heatmap(values=signed, hidden=None, limits=(0.0, 1.0))) == Scale(0.0, 1.0, True, True)
    _, rows, alpha = read_png(next(pictures(svg(heatmap(values=signed, hidden=hidden, rows="ab", columns="ab")))))
    assert [alpha[one] for one in rows[1]] == [255, 0]  # no number is white, hidden is open


def test_a_large_map_stays_small() -> None:
    side = 512
    values = Block((side, side), [((i * 7919) % 1000) / 1000 for i in range(side * side)])
    labels = [str(n) for n in range(side)]
    assert len(svg(heatmap(values=values, hidden=None, rows=labels, columns=labels))) < 600_000


def test_lines_have_bands_gaps_and_a_look_each() -> None:
    low, high = [0.0, None, 0.5, 0.5, 0.5], [0.2, None, 2.0, 2.0, 2.0]
    figure = lines(3, lines=[Line(same(name), [0.1, None, 1.0, 1.0, 1.0], low, high) for name in ("t5", "alibi", "x")])
    root = ElementTree.fromstring(svg(figure, width="double"))
    paths = list(root.iter(f"{SVG}path"))
    bands = [path for path in paths if path.get("fill-opacity")]
    assert len(bands) == 3  # of what is not one place only
    curves = [path for path in paths if path.get("stroke-linejoin")]
    assert [str(path.get("d")).count("M") for path in curves] == [2, 2, 2]
    expected = looks([("t5", None), ("alibi", None), ("x", None)])
    assert [path.get("stroke") for path in curves] == [hues()[hue] for hue, _ in expected]
    assert [path.get("stroke-dasharray") or "" for path in curves] == [dashes()[dash] for _, dash in expected]


def test_steps_hold_their_value_until_the_next() -> None:
    figure = Lines(same(""), [0.0, 1.0, 2.0], [Line(same(""), [0.0, 1.0, 0.5], steps=True)], (same("x"), same("y")))
    (curve,) = [
        path for path in ElementTree.fromstring(svg(figure)).iter(f"{SVG}path") if path.get("stroke-width") == "1.2"
    ]
    places = [tuple(map(float, one.split())) for one in str(curve.get("d"))[1:].split("L")]
    assert len(places) == 5
    assert [a[1] == b[1] for a, b in itertools.pairwise(places)] == [True, False, True, False]


def test_words_stay_on_the_paper_and_apart(open_page: Open) -> None:
    marks = [(float(n), same(f"a mark at {n}")) for n in (2, 3, 4, 600)]
    names = [f"rotary(base={n}, scaling='dynamic')" for n in range(12)]
    many = [Line(same(name), [1.0, 1.0, 1.0, 1.0, 1.0 + n / 1000]) for n, name in enumerate(names)]
    shown = [*every_kind().values(), lines(30, marks=marks), lines(lines=many), lines(log_x=True, log_y=True)]
    drawings = [
        svg(one, language=language, width=width)
        for one in shown
        for language in ("en", "zh")
        for width in ("single", "double")
    ]
    page = open_page("<!doctype html><meta charset=utf-8><title>all</title>" + "\n".join(drawings), width=1200)
    assert page.evaluate(CROWDED) == []


CROWDED = """() => {
  const found = [];
  for (const svg of document.querySelectorAll('svg')) {
    const paper = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].filter((text) => text.textContent.trim());
    const boxes = texts.map((text) => text.getBoundingClientRect());
    boxes.forEach((a, i) => {
      if (a.left < paper.left - 1 || a.right > paper.right + 1 || a.bottom > paper.bottom + 1 || a.top < paper.top - 1)
        found.push(`outside: ${texts[i].textContent}`);
      boxes.slice(i + 1).forEach((b, k) => {
        const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (x > 1 && y > 3) found.push(`${texts[i].textContent} / ${texts[i + 1 + k].textContent}`);
      });
    });
  }
  return found;
}"""
"""Words that leave their drawing or cover each other."""


def test_colours_are_the_pages(open_page: Open) -> None:
    page = open_page("<!doctype html><title>colours</title>")
    program = asset("colours.js").replace("export function", "function")
    for scale in ("sequential", "diverging", "cyclic"):
        found = page.evaluate(f"() => {{ {program}; return [...colourTable('{scale}', false)]; }}")
        ours = [part for colour in colour_table(scale) for part in colour]
        assert max(abs(a - b) for a, b in zip(found, ours, strict=True)) <= 1
    program = asset("styles.js").replace("export function", "function").replace("export const", "const")
    known = ["rotary", "alibi", "t5", "sinusoidal", "fox", "mrope"]
    found = page.evaluate(
        f"(known) => {{ {program}; return known.map((name) => methodStyles([{{ spec: name, name }}]).get(name)); }}",
        known,
    )
    assert [(one["hue"], one["dash"]) for one in found] == [looks([(name, None)])[0] for name in known]
    assert page.evaluate(f"() => {{ {program}; return [placeStyle(9), placeStyle(55)]; }}") == [
        {"hue": hue, "dash": dash} for (hue, dash) in looks([("", 9), ("", 55)])
    ]


def test_a_view_has_its_caption_unless_it_is_left_out() -> None:
    view = View("softmax", {"en": "It sums to 1.", "zh": "和为 1。"}, [heatmap()], "α = exp(s)", [same("A note.")])
    whole = words_of(ElementTree.fromstring(svg(view, language="zh", width="double")))
    assert {"和为 1。", "α = exp(s)", "A note."} <= set(whole)
    bare = svg(view, caption=False)
    assert "It sums to 1." not in words_of(ElementTree.fromstring(bare))
    assert "<desc>It sums to 1.</desc>" in bare


def test_the_numbers_as_csv_are_the_figures() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(heatmap()))))
    assert rows[0] == ["figure", "row", "column", "value"]
    assert len(rows) == 26
    assert rows[1] == ["Weights", "the", "the", "0.0"]
    assert rows[2] == ["Weights", "the", "cat", ""]  # hidden
    assert [float(row[3]) for row in csv.reader(io.StringIO(to_csv(lines(1)))) if row[3:] and row[3][:1].isdigit()]
    for kind, figure in every_kind().items():
        assert len(to_csv(figure, "zh").splitlines()) > 1, kind
    banded = Lines(same("B"), [1.0], [Line(same("a"), [2.0], [1.0], [3.0])], (same("x"), same("y")))
    assert to_csv(banded).split("\r\n")[1:4] == ["B,a,1.0,2.0", "B,a low,1.0,1.0", "B,a high,1.0,3.0"]


def test_a_product_is_worked_out() -> None:
    product = every_kind()["product"]
    assert isinstance(product, Product)
    assert worked_out(product) == "Q[the, 0] = 1 (k=0) + 2 (k=1) + −3 (k=2) + 0.5 (…) + 0.25 (b) = 0.75"


def test_nothing_to_draw_is_said() -> None:
    empty = lines(1, lines=[Line(same("a"), [None, math.nan, None, None, None])])
    assert "No finished measurement to draw." in words_of(ElementTree.fromstring(svg(empty)))


@pytest.mark.parametrize(("name", "value"), [("width", "triple"), ("language", "de")])
def test_what_is_not_there_is_refused(name: str, value: str) -> None:
    with pytest.raises(HeadwayError, match=rf"^expected {name} one of .*, got '{value}'$"):
        svg(heatmap(), **{name: value})


def test_labels_are_moved_as_little_as_possible() -> None:
    assert spread([1.0, 2.0, 30.0], 5.0, 0.0, 40.0) == [0.0, 5.0, 30.0]
    assert spread([39.0, 39.0], 5.0, 0.0, 40.0) == [35.0, 40.0]
    places = spread([20.0] * 7, 4.0, 0.0, 100.0)
    assert [b - a for a, b in itertools.pairwise(places)] == [4.0] * 6
    assert sum(places) / 7 == pytest.approx(20.0)


def test_text_is_broken_so_that_it_fits() -> None:
    for text in ("a sentence of several words and 注意力机制里的位置编码", "averyveryveryverylongword" * 3, "", " "):
        for width in (20.0, 60.0, 200.0):
            found = wrapped(text, width, 8.0)
            assert all(text_width(line, 8.0) <= width + 1e-6 or len(line) == 1 for line in found)
            assert "".join("".join(found).split()) == "".join(text.split())


def test_a_png_is_read_as_it_was_written() -> None:
    colours, rows, alpha = read_png(png([bytes([0, 1, 255]), bytes([254, 2, 3])], [(1, 2, 3), (4, 5, 6)]))
    assert colours[:2] == [(1, 2, 3), (4, 5, 6)]
    assert rows == [[0, 1, 255], [254, 2, 3]]
    assert alpha == b"\xff" * 255 + b"\0"
