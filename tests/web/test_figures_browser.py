"""Figures in a browser: colours, readouts, tables and files agree with the data, in both themes and languages."""

from __future__ import annotations

import csv
import gzip
import io
import math
import random
import struct
from itertools import pairwise
from typing import Any

import pytest
from browser import OUTSIDE, OVERLAPS, Open, assert_accessible, saved, wait_for

from headway.figures.values import (
    Bars,
    Block,
    Columns,
    Dials,
    Film,
    Grid,
    Heatmap,
    Line,
    Lines,
    Product,
    Stage,
    Steps,
    View,
    Wall,
    same,
)
from headway.web.page import asset, bundle
from headway.web.views_page import views_page

QUERY, KEY = {"en": "query", "zh": "查询"}, {"en": "key", "zh": "键"}
WORDS = [
    "the",
    "animal",
    "didn't",
    "cross",
    "the",
    "street",
    "because",
    "internationalisation",
    "was",
    "too",
    "tired",
    ",",
]
ZH = ["的", "猫", "注意力", "机制", "让", "模型", "看见", "每个", "词元", "。", "“", "超长的中文词元也要放得下才行"]


class Sample(View):
    """A view whose title and question are no part's."""

    @property
    def title(self) -> dict[str, str]:
        return {"en": f"The {self.key}", "zh": f"视图 {self.key}"}

    @property
    def question(self) -> dict[str, str]:
        return {"en": "Which tokens attend to which?", "zh": "哪些词元关注哪些词元？"}


def single(value: float) -> float:
    """As float32 holds it."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def numbers(rows: int, columns: int, *, seed: int = 0, signed: bool = False) -> list[list[float]]:
    draw = random.Random(seed)
    return [[draw.gauss(0, 1) if signed else draw.random() for _ in range(columns)] for _ in range(rows)]


def count(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def causal(rows: int, columns: int) -> Block:
    return Block.of([[int(j > i + columns - rows) for j in range(columns)] for i in range(rows)], "uint8")


def attention(tokens: list[str] = WORDS, **changes: Any) -> Heatmap:
    """Weights of four queries that see more keys than there are queries."""
    queries = tokens[-4:]
    values = {"values": Block.of(numbers(4, len(tokens))), "hidden": causal(4, len(tokens)), "limits": (0.0, 1.0)}
    fields: dict[str, Any] = {"title": same("Weights"), "rows": queries, "columns": tokens, "axes": (QUERY, KEY)}
    return Heatmap(**{**fields, **values, **changes})


def matrix(size: tuple[int, int], seed: int = 0, **changes: Any) -> Heatmap:
    values = Block.of(numbers(*size, seed=seed, signed=True))
    fields: dict[str, Any] = {"rows": count(size[0]), "columns": count(size[1]), "axes": (same("row"), same("column"))}
    return Heatmap(**{"title": same("W_Q"), "values": values, "scale": "diverging", **fields, **changes})


def curves(**changes: Any) -> Lines:
    x = [0, 1, 2, 4, 8, 16, 32]
    lines = [
        Line(same("head 0"), [3.0, 2.5, None, 1.5, 1.0, 0.5, 0.25]),
        Line(same("head 1"), [0.1 * i for i in range(7)], steps=True),
        Line(same("head 2"), [1.0] * 7, low=[0.5] * 7, high=[1.25] * 7),
    ]
    fields: dict[str, Any] = {"title": same("Bias"), "lines": lines, "axes": (same("distance"), same("bias"))}
    return Lines(**{"x": x, **fields, **changes})


def bars(**changes: Any) -> Bars:
    scores = [0.5, -1.25, 2.0, None]
    series = [(same("score"), scores), (same("weight"), [0.2, 0.05, 0.75, None])]
    return Bars(**{"title": same("One row"), "labels": WORDS[:4], "series": series, "axis": same("number"), **changes})


def product() -> Product:
    left, right, bias = numbers(3, 5, signed=True), numbers(5, 4, seed=1, signed=True), [0.5, -0.25, 0.0, 1.0]
    out = [
        [math.fsum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*right, strict=True)]
        for row in left
    ]
    out = [[value + bias[j] for j, value in enumerate(row)] for row in out]
    blocks = Block.of(left), Block.of(right), Block((4,), bias), Block.of(out)
    return Product(same("From X to Q"), *blocks, WORDS[:3], ("X", "W_Q", "Q"), (1, 2))


def wall() -> Wall:
    tiles = [
        (
            same(f"L{n // 3} H{n % 3}"),
            attention(hidden=None, limits=None, values=Block.of(numbers(4, 12, seed=n))),
            {"entropy": float(n * 5 % 6)},
        )
        for n in range(6)
    ]
    return Wall(same("All heads"), tiles, 3, {"entropy": {"en": "entropy", "zh": "熵"}})


def steps() -> Steps:
    names = ("X", "Q", "K", "V", "scores", "÷ √d_k", "mask", "softmax", "AV", "O")
    stages = [
        Stage(same(name), "4 × 6", f"{name} = f(X)", same(f"Here is {name}."), [matrix((4, 6), seed=n)])
        for n, name in enumerate(names)
    ]
    return Steps(same("From X to O"), stages)


def film(frames: int = 12, size: int = 8) -> Film:
    shown = [(same(f"step {10 * n}"), [matrix((size, size), seed=n), bars(labels=count(4))]) for n in range(frames)]
    return Film(same("W_Q while training"), shown)


def columns() -> Columns:
    return Columns(same("Methods"), [(same(name), [attention(title=same("weights"))]) for name in ("rotary", "alibi")])


def everything(tokens: list[str] = WORDS) -> list[Sample]:
    dials = Dials(
        same("Angles"),
        [f"pair {n}" for n in range(6)],
        [(same("q"), [0.5 * n for n in range(6)]), (same("k"), [0.1] * 6)],
    )
    grid = Grid(same("Numbers"), [same(""), same("a"), same("b")], [(same("one"), ["1", "−2"])])
    log = curves(title=same("On log scales"), log_x=True, log_y=True, marks=[(4, same("trained")), (5, same("tested"))])
    return [
        Sample(
            "head",
            same("The last looks at `cat`."),
            [attention(tokens), matrix((16, 40))],
            "A = softmax(QKᵀ/√d_k)",
            [same("A note.")],
        ),
        Sample("curves", same("They fall."), [curves(), log, bars(), bars(labels=tokens[:4]), dials, grid]),
        Sample("projection", same("It is a sum."), [product()]),
        Sample("wall", same("Heads differ."), [wall()]),
        Sample("stepper", same("Ten stages."), [steps()]),
        Sample("film", same("It grew."), [film()]),
        Sample("methods", same("They differ."), [columns()]),
    ]


def shown(*figures: Any, key: str = "sample") -> str:
    return views_page(same("A page"), [Sample(key, same("Found."), figures)])


# --- a whole page ---------------------------------------------------------------------------------------------------


READERS = [(400, "zh-CN", "light"), (1280, "en-GB", "dark"), (512, "en-GB", "light"), (1024, "zh-CN", "dark")]


def whole(open_page: Open, width: int, locale: str, scheme: str) -> Any:
    html = views_page(same("A page"), everything(ZH if locale == "zh-CN" else WORDS), [same("rotary")])
    return open_page(html, width=width, locale=locale, color_scheme=scheme)


def open_tables(page: Any) -> None:
    for one in page.locator("details > summary").all():
        one.click()
    wait_for(page, lambda: page.locator("details table").count() == page.locator("details").count())


@pytest.mark.parametrize(("width", "locale", "scheme"), READERS)
def test_a_page_of_views_is_whole_in_every_width_theme_and_language(
    open_page: Open, width: int, locale: str, scheme: str
) -> None:
    page = whole(open_page, width, locale, scheme)
    assert page.locator("section.view").count() == len(everything())
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(OUTSIDE) == []
    text = page.locator("#report").inner_text()
    for wrong in ("undefined", "[object", "NaN", "{", "map.", "wall.", "lines.", "view."):
        assert wrong not in text
    open_tables(page)
    assert page.evaluate(OUTSIDE) == []


# each language, each theme, narrow and wide; the rest of their product is slow
@pytest.mark.parametrize(
    ("width", "locale", "scheme"),
    [*READERS[:2], *(pytest.param(*reader, marks=pytest.mark.slow) for reader in READERS[2:])],
)
def test_everyone_can_use_a_page_of_views(open_page: Open, width: int, locale: str, scheme: str) -> None:
    page = whole(open_page, width, locale, scheme)
    open_tables(page)
    assert_accessible(page, alike="details tbody tr:nth-child(n + 5)")


def test_the_check_of_accessibility_can_fail(open_page: Open) -> None:
    page = open_page('<!doctype html><html lang="en"><title>x</title><main><button></button></main>')
    with pytest.raises(AssertionError, match="button-name"):
        assert_accessible(page)


def test_a_page_fits_the_budget_of_code() -> None:
    code = bundle("views") + asset("style.css")
    assert len(gzip.compress(code.encode())) < 150_000


def test_a_view_stays_under_the_budget_of_marks(open_page: Open) -> None:
    many = Columns(same("Twelve"), [(same(f"method {n}"), [matrix((64, 64), seed=n), curves()]) for n in range(12)])
    page = open_page(shown(many))
    assert 0 < page.locator("section.view svg *").count() <= 2_000


# --- maps -----------------------------------------------------------------------------------------------------------


PIXELS = """(canvas) => {
  const copy = Object.assign(document.createElement('canvas'), { width: canvas.width, height: canvas.height });
  const context = copy.getContext('2d', { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  return { width: copy.width, data: [...context.getImageData(0, 0, copy.width, copy.height).data] };
}"""


def pixels(page: Any, map_: str = ".shown-heatmap") -> list[list[tuple[int, ...]]]:
    found = page.locator(f"{map_} canvas.cells").first.evaluate(PIXELS)
    flat = [tuple(found["data"][i : i + 4]) for i in range(0, len(found["data"]), 4)]
    return [flat[i : i + found["width"]] for i in range(0, len(flat), found["width"])]


def table(page: Any, scale: str, dark: bool) -> list[tuple[int, ...]]:
    flat = page.evaluate("([scale, dark]) => [...module_colours.colourTable(scale, dark)]", [scale, dark])
    return [tuple(flat[i : i + 3]) for i in range(0, 768, 3)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_pixel_is_its_numbers_colour(open_page: Open, scheme: str) -> None:
    page = open_page(shown(attention(), matrix((7, 5))), color_scheme=scheme)
    for name, figure, (low, high) in (
        ("sequential", attention(), (0.0, 1.0)),
        ("diverging", matrix((7, 5)), (-1.0, 1.0)),
    ):
        place = 0 if name == "sequential" else 1
        colours = table(page, name, scheme == "dark")
        drawn = pixels(page, f".group > .shown-heatmap:nth-child({place + 1})")
        most = max(abs(value) for value in figure.values.values if value is not None)
        low, high = (low, high) if name == "sequential" else (-most, most)
        hidden = figure.hidden.values if figure.hidden else [0] * len(figure.values.values)
        for at, (value, mask) in enumerate(zip(figure.values.values, hidden, strict=True)):
            pixel = drawn[at // figure.values.shape[1]][at % figure.values.shape[1]]
            if mask:
                assert pixel[3] == 0  # the hatching behind shows through
            else:
                index = min(255, max(0, math.floor((single(value or 0.0) - low) / (high - low) * 256)))
                assert pixel == (*colours[index], 255)


def linear(part: int) -> float:
    share = part / 255
    return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4


def luminance(colour: tuple[int, ...]) -> float:
    return 0.2126 * linear(colour[0]) + 0.7152 * linear(colour[1]) + 0.0722 * linear(colour[2])


@pytest.mark.parametrize("dark", [False, True])
def test_colours_rise_evenly(open_page: Open, dark: bool) -> None:
    page = open_page(shown(attention()))
    sequential, diverging, cyclic = (table(page, name, dark) for name in ("sequential", "diverging", "cyclic"))
    light = [luminance(colour) for colour in sequential]
    assert all((b > a) == dark for a, b in pairwise(light[::8]))
    assert max(light) > 5 * min(light)
    middle = diverging[127], diverging[128]
    assert max(abs(a - b) for a, b in zip(*middle, strict=True)) <= 3
    assert all(max(colour) - min(colour) <= 8 for colour in middle)  # 0 has no hue
    assert diverging[0][2] > diverging[0][0] + 40
    assert diverging[255][0] > diverging[255][2] + 40
    assert max(abs(a - b) for a, b in zip(cyclic[0], cyclic[255], strict=True)) <= 3
    for colours in (sequential, diverging, cyclic):
        jumps = [max(abs(a - b) for a, b in zip(one, other, strict=True)) for one, other in pairwise(colours)]
        assert max(jumps) <= 12


def test_the_readout_says_what_the_data_say(open_page: Open) -> None:
    figure = attention()
    page = open_page(shown(figure))
    canvas = page.locator("canvas.cells")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    line = page.locator(".readout")
    width, height = len(figure.columns), len(figure.rows)
    for row, column in ((0, 0), (0, 8), (1, 7), (3, 11), (2, 2)):
        page.mouse.move(
            box["x"] + box["width"] * (column + 0.5) / width, box["y"] + box["height"] * (row + 0.5) / height
        )
        value = figure.values.rows()[row][column]
        assert line.inner_text() == f"query {row} '{figure.rows[row]}' → key {column} '{WORDS[column]}': {value:.3f}"
    assert line.get_attribute("aria-live") == "polite"
    page.click('[data-keep="language-zh"]')
    page.locator(".map").focus()
    page.keyboard.press("ArrowRight")
    assert (
        page.locator(".readout").inner_text() == f"查询 0“{figure.rows[0]}” → 键 0“the”：{figure.values.values[0]:.3f}"
    )


def test_arrow_keys_move_a_cell(open_page: Open) -> None:
    page = open_page(shown(attention()))
    plot, line = page.locator(".map"), page.locator(".readout")
    hint = line.inner_text()
    page.evaluate("document.addEventListener('headway:cell', (event) => (window.chosen = event.detail))")
    plot.focus()
    for keys, row, column in (
        ("ArrowDown", 0, 0),
        ("ArrowDown ArrowRight ArrowRight", 1, 2),
        ("End", 1, 11),
        ("ArrowRight", 1, 11),
        ("Home ArrowUp ArrowUp", 0, 0),
        ("PageDown", 2, 0),
        ("Control+End", 3, 11),
        ("ArrowLeft PageUp", 1, 10),
    ):
        for key in keys.split():
            plot.press(key)
        assert line.inner_text().startswith(f"query {row} '{WORDS[-4 + row]}' → key {column} '{WORDS[column]}'")
    assert line.inner_text().endswith(": hidden by the mask")
    plot.press("Enter")
    assert page.evaluate("window.chosen") == {"row": 1, "column": 10}
    assert page.locator(".cell-mark").is_visible()
    plot.press("Escape")
    assert line.inner_text() == hint
    assert page.locator(".cell-mark").is_hidden()


def test_hidden_cells_are_hatched_and_missing_ones_are_none_of_both(open_page: Open) -> None:
    values = Block.of([[0.0, math.nan, 1.0]])
    figure = Heatmap(same("Three"), values, ["a"], ["b", "c", "d"], (QUERY, KEY), hidden=Block.of([[0, 0, 1]], "uint8"))
    page = open_page(shown(figure))
    zero, missing, hidden = pixels(page)[0]
    assert zero[3] == 255
    assert missing == (253, 253, 251, 255)  # the page's ground
    assert hidden[3] == 0
    assert "repeating-linear-gradient" in page.locator("canvas.cells").evaluate(
        "one => getComputedStyle(one).backgroundImage"
    )
    legend = page.locator(".map-legend").inner_text()
    assert "hidden by the mask" in legend
    assert "no value" in legend
    page.locator(".map").focus()
    for said in ("0", "no value", "hidden by the mask"):
        page.keyboard.press("ArrowRight")
        assert page.locator(".readout").inner_text().endswith(f": {said}")


def test_the_bar_tells_limits_and_what_lies_beyond(open_page: Open) -> None:
    figure = matrix(
        (3, 3), values=Block.of([[0.0, 0.5, -7.25], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), limits=(-2.0, 2.0), unit="rad"
    )
    page = open_page(shown(figure))
    legend = page.locator(".map-legend").inner_text()
    assert "−2\u00a0rad" in legend
    assert "2 cells lie beyond it. Values range from −7.25\u00a0rad to 3\u00a0rad" in legend
    assert "beyond" not in open_page(shown(matrix((3, 3)))).locator(".map-legend").inner_text()


def test_another_theme_gives_other_colours_at_once_and_paper_is_light(open_page: Open) -> None:
    page = open_page(shown(attention()), color_scheme="light")
    light = pixels(page)
    page.get_by_role("button", name="Dark").click()
    dark = pixels(page)
    assert light != dark
    page.emulate_media(media="print", color_scheme="dark")
    wait_for(page, lambda: pixels(page) == light)
    page.emulate_media(media="screen", color_scheme="dark")
    page.get_by_role("button", name="Auto").click()
    wait_for(page, lambda: pixels(page) == dark)
    page.emulate_media(color_scheme="light")
    wait_for(page, lambda: pixels(page) == light)


def test_long_labels_are_cut_and_said_whole(open_page: Open) -> None:
    tokens = ["antidisestablishmentarianism" * 3, "b", "c"]
    page = open_page(shown(attention(tokens, rows=tokens, values=Block.of(numbers(3, 3)), hidden=None)), width=400)
    assert page.evaluate(OUTSIDE) == []
    assert page.locator(".rail").first.text_content().endswith("…")
    page.locator(".map").focus()
    page.keyboard.press("ArrowRight")
    assert tokens[0] in page.locator(".readout").inner_text()


def test_a_thousand_tokens_are_one_map_whose_spike_is_seen_and_whose_cells_are_read_without_drawing_it_again(
    open_page: Open,
) -> None:
    size = 1024
    values = [0.001] * (size * size)
    values[700 * size + 333] = 1.0
    figure = Heatmap(
        same("Long"),
        Block((size, size), values),
        count(size),
        count(size),
        (QUERY, KEY),
        limits=(0.0, 1.0),
        hidden=causal(size, size),
    )
    page = open_page(shown(figure), width=1024)
    spikes = """(canvas, [r, g, b]) => {
      const { width, height } = canvas;
      const data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
      const found = [];
      for (let i = 0; i < data.length; i += 4)
        if (data[i] === r && data[i + 1] === g && data[i + 2] === b && data[i + 3]) found.push(i / 4);
      return { width, height, found };
    }"""
    drawn = page.locator("canvas.cells").evaluate(spikes, table(page, "sequential", False)[255])
    assert drawn["width"] < size
    row, column = divmod(drawn["found"][0], drawn["width"])
    assert len(drawn["found"]) == 1
    assert row == 700 * drawn["height"] // size
    assert column == 333 * drawn["width"] // size
    assert "most extreme" in page.locator(".map-legend").inner_text()
    assert page.evaluate(OVERLAPS) == []
    # milliseconds are in `make targets`, where nothing else runs; here, that a move costs no drawing of a million cells
    read, drawings = page.evaluate(
        """() => {
          const plot = document.querySelector('.map');
          const own = CanvasRenderingContext2D.prototype;
          const kept = { putImageData: own.putImageData, drawImage: own.drawImage, fillRect: own.fillRect };
          const read = new Set();
          let drawings = 0;
          for (const [name, call] of Object.entries(kept))
            own[name] = function (...given) { drawings += 1; return call.apply(this, given); };
          plot.focus();
          for (let i = 0; i < 60; i += 1) {
            const key = i % 2 ? 'ArrowDown' : 'ArrowRight';
            plot.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
            read.add(plot.closest('figure').querySelector('.readout').textContent);
          }
          Object.assign(own, kept);
          return [read.size, drawings];
        }"""
    )
    assert read == 60
    assert drawings == 0
    page.locator("details summary").click()
    wait_for(page, lambda: page.locator("details table tbody tr").count() == 64)
    assert "1,024 × 1,024" in page.locator("details").inner_text()


# --- files and tables -----------------------------------------------------------------------------------------------


def sheet(page: Any, kind: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(saved(page, f'[data-csv="{kind}"]')[1], newline="")))


def test_a_maps_file_holds_every_number(open_page: Open) -> None:
    figure = attention()
    page = open_page(shown(figure))
    name, _ = saved(page, '[data-csv="heatmap"]')
    assert name == "headway-sample-1.csv"
    head, *rows = sheet(page, "heatmap")
    assert head == ["query \\ key", *WORDS]
    assert [row[0] for row in rows] == list(figure.rows)
    hidden = figure.hidden.rows() if figure.hidden else []
    for row, values, masked in zip(rows, figure.values.rows(), hidden, strict=True):
        for text, value, mask in zip(row[1:], values, masked, strict=True):
            assert text == "" if mask else single(float(text)) == single(value or 0.0)
    page.locator("details summary").click()
    page.wait_for_selector("details tbody tr")
    cells = page.locator("details tbody tr").nth(1).locator("td").all_inner_texts()
    assert cells[0] == f"{figure.values.rows()[1][0]:.3f}"
    assert cells[-1] == "masked"


def test_the_files_of_curves_and_bars_hold_every_number(open_page: Open) -> None:
    page = open_page(shown(curves(), bars()))
    head, *rows = sheet(page, "lines")
    assert head == ["distance", "head 0", "head 1", "head 2", "head 2 low", "head 2 high"]
    assert rows[2] == ["2", "", "0.2", "1", "0.5", "1.25"]
    assert [float(row[0]) for row in rows] == [0, 1, 2, 4, 8, 16, 32]
    head, *rows = sheet(page, "bars")
    assert head == ["number", "score", "weight"]
    assert rows[1] == ["animal", "-1.25", "0.05"]
    assert rows[3] == ["cross", "", ""]


def test_numbers_are_written_with_the_digits_they_need(open_page: Open) -> None:
    page = open_page(shown(attention()))
    said = {
        0: "0",
        0.5: "0.500",
        1e-7: "1.00·10⁻⁷",
        -0.00123: "−0.0012",
        0.0437: "0.044",
        -2.346: "−2.35",
        23.46: "23.5",
        1234.5: "1,235",
        1.5e6: "1.50·10⁶",
        0.9999: "1.00",
    }
    for value, text in said.items():
        assert page.evaluate("value => module_blocks.spoken(value)", value) == text
    assert page.evaluate("[module_blocks.spoken(NaN), module_blocks.spoken(-Infinity)]") == ["–", "−∞"]
    assert page.evaluate("[0, 1, 0.25, -0.5, 1e-7, 2048, 1e6].map(module_blocks.onAxis)") == [
        "0",
        "1",
        "0.25",
        "−0.5",
        "1·10⁻⁷",
        "2,048",
        "1·10⁶",
    ]


# --- the other figures ----------------------------------------------------------------------------------------------


def test_gaps_part_a_line_and_steps_are_flat(open_page: Open) -> None:
    page = open_page(shown(curves()))
    paths = page.locator(".chart .line").evaluate_all("all => all.map(one => one.getAttribute('d'))")
    assert [path.count("M") for path in paths[:3]] == [2, 1, 1]
    assert "L" not in paths[1]
    assert paths[1].count("H") == 6
    assert page.locator(".band").count() == 1
    plot = page.locator(".chart .plot")
    plot.focus()
    plot.press("ArrowRight")
    plot.press("ArrowRight")
    assert page.locator(".readout").inner_text() == "head 0, distance 1: 2.50"


def test_methods_keep_their_look_and_other_lines_get_one_by_index(open_page: Open) -> None:
    look = "all => all.map(one => [getComputedStyle(one).stroke, one.getAttribute('stroke-dasharray')])"

    def looks(*names: str) -> list[Any]:
        lines = [Line(same(name), [1.0 + n, 2.0]) for n, name in enumerate(names)]
        page = open_page(shown(curves(x=[0, 1], lines=lines)))
        return list(page.locator(".chart .line").evaluate_all(look))

    assert looks("t5", "rotary") == looks("rotary", "t5")[::-1]
    heads = looks(*(f"head {n}" for n in range(12)))
    assert len({tuple(one) for one in heads}) == 12


def test_bars_are_as_long_as_their_numbers(open_page: Open) -> None:
    page = open_page(shown(bars()))
    for k, values in enumerate(([0.5, -1.25, 2.0], [0.2, 0.05, 0.75])):
        path = page.locator(f'[data-column="{k}"]').get_attribute("d")
        tall = [
            float(part.split("V")[1].split("h")[0]) - float(part.split(" ")[1].split("V")[0])
            for part in path.split("Z")[:-1]
        ]
        assert [one / tall[0] for one in tall] == pytest.approx([value / values[0] for value in values], rel=0.02)
    plot = page.locator(".plot")
    plot.focus()
    plot.press("End")
    assert page.locator(".readout").inner_text() == "cross: score masked; weight masked"
    plot.press("ArrowLeft")
    assert page.locator(".readout").inner_text() == "didn't: score 2.00; weight 0.750"


def test_a_product_is_worked_out_for_the_cell_pointed_at(open_page: Open) -> None:
    figure = product()
    page = open_page(shown(figure))
    out = page.locator(".matrices .map").nth(2)
    for row, column in ((1, 2), (2, 0)):
        if (row, column) != figure.cell:
            out.focus()
            for key in ("ArrowDown", "ArrowDown", "Home"):
                out.press(key)
        model = figure.out.rows()[row][column]
        assert page.locator(".products tbody tr").count() == 5
        x, w = figure.left.rows()[row], [line[column] for line in figure.right.rows()]
        head, *rows = sheet(page, "product")
        assert head == ["k", "X", "W_Q", "product", "sum"]
        running = 0.0
        for k in range(5):
            running += single(x[k]) * single(w[k])
            assert [float(text) for text in rows[k]] == pytest.approx([k, x[k], w[k], x[k] * w[k], running], abs=1e-6)
        assert float(rows[-2][-1]) == pytest.approx(model, abs=1e-5)
        assert single(float(rows[-1][-1])) == single(model)
        assert f"Q[{row}, {column}] = Σₖ X[{row}, k] · W_Q[k, {column}]" in page.locator(".equation").inner_text()


def test_a_wall_has_one_scale_can_be_sorted_and_chosen_from(open_page: Open) -> None:
    page = open_page(shown(wall()))
    assert page.locator("button.tile").count() == 6
    values = [value for _, tile, _ in wall().tiles for value in tile.values.values]
    low, high = page.locator(".map-bar span").all_inner_texts()[:2]
    assert float(low) == pytest.approx(min(values), rel=0.01)
    assert float(high) == pytest.approx(max(values), rel=0.01)
    page.evaluate("document.addEventListener('headway:choose', (event) => (window.chosen = event.detail))")
    page.select_option("select", "down:entropy")
    assert page.locator(".tile-name").all_inner_texts() == [
        "L0 H1",
        "L1 H2",
        "L1 H1",
        "L1 H0",
        "L0 H2",
        "L0 H0",
    ] or page.locator(".tile-value").all_inner_texts() == sorted(
        page.locator(".tile-value").all_inner_texts(), key=float, reverse=True
    )
    second = page.locator("button.tile").nth(1)
    label = second.locator(".tile-name").inner_text()
    second.press("Enter")
    chosen = page.evaluate("window.chosen")
    assert chosen == {"layer": int(label[1]), "head": int(label[4]), "label": label}
    assert second.get_attribute("aria-pressed") == "true"
    assert page.locator(".readout").inner_text().startswith(f"{label}: entropy ")


def test_every_stage_can_be_reached_by_keyboard(open_page: Open) -> None:
    page = open_page(shown(steps()))
    tabs = page.get_by_role("tab")
    tabs.first.focus()
    for n in range(10):
        assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
        assert tabs.nth(n).get_attribute("aria-selected") == "true"
        assert page.get_by_role("tabpanel").locator(".stage-said").inner_text().startswith("Here is ")
        assert (
            page.get_by_role("tabpanel").locator("canvas.cells").evaluate("one => one.getBoundingClientRect().width")
            > 100
        )
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Home")
    assert tabs.first.get_attribute("aria-selected") == "true"
    assert "4 × 6" in tabs.first.inner_text()


def test_a_film_shows_the_frame_of_its_slider_and_leaks_nothing(open_page: Open) -> None:
    figure = film(frames=40, size=64)
    page = open_page(shown(figure), fresh=True)
    slider = page.get_by_role("slider")
    slider.fill("7")
    assert page.locator(".film-label").inner_text() == "step 70"
    page.wait_for_timeout(50)
    maps = [frame[0] for _, frame in figure.frames]
    most = max(abs(value) for one in maps for value in one.values.values)
    index = math.floor((single(maps[7].values.values[0]) + most) / (2 * most) * 256)
    assert pixels(page, ".group .shown-heatmap")[0][0] == (*table(page, "diverging", False)[index], 255)
    scrub = """(rounds) => new Promise((done) => {
      const slider = document.querySelector('input[type=range]');
      let round = 0;
      const next = () => {
        if (round === rounds) return done(round);
        slider.value = String((round += 1) % 40);
        slider.dispatchEvent(new Event('input', { bubbles: true }));
        requestAnimationFrame(next);
      };
      next();
    })"""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def held() -> dict[str, float]:
        session.send("HeapProfiler.collectGarbage")
        return {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}

    page.evaluate(scrub, 60)
    before = held()
    page.evaluate(scrub, 200)
    after = held()
    assert after["Nodes"] <= before["Nodes"] + 20
    assert after["JSEventListeners"] <= before["JSEventListeners"] + 2
    assert after["JSHeapUsedSize"] < before["JSHeapUsedSize"] + 2e6


def test_a_film_plays_to_its_end_and_can_be_paused(open_page: Open) -> None:
    page = open_page(shown(film(frames=3)))
    button = page.locator("button.play")
    button.click()
    assert button.inner_text() == "Pause"
    button.click()
    assert button.inner_text() == "Play"
    button.click()
    wait_for(page, lambda: page.locator(".film-label").inner_text() == "step 20" and button.inner_text() == "Play")


def test_pointing_at_one_column_points_at_all(open_page: Open) -> None:
    page = open_page(shown(columns()))
    first = page.locator(".map").first
    first.focus()
    first.press("ArrowRight")
    first.press("ArrowRight")
    lines = page.locator(".readout").all_inner_texts()
    assert len(lines) == 2
    assert lines[0] == lines[1] != ""
    assert "key 1" in lines[0]
    assert [one.get_attribute("aria-live") for one in page.locator(".readout").all()] == ["polite", "off"]
    first.press("Escape")
    assert page.locator(".readout").all_inner_texts() == ["", ""]


def test_what_stands_side_by_side_has_one_scale_if_it_is_the_same_thing(open_page: Open) -> None:
    small, large = (curves(lines=[Line(same("head"), [size * n for n in range(7)])]) for size in (0.1, 1.0))
    other = bars(title=same("Rows"), series=[(same("score"), [8.0, 8.0, 8.0, None])])
    maps = [matrix((2, 2), seed=n, values=Block.of([[size, 0.0], [0.0, 0.0]])) for n, size in enumerate((1.0, 4.0))]
    beside = Columns(same("Two"), [(same("one"), [small, bars(), maps[0]]), (same("two"), [large, other, maps[1]])])
    page = open_page(shown(beside))
    ticks = """all => all.map(svg => [...svg.querySelectorAll('.tick[text-anchor=end]')].map(one => one.textContent))"""
    one, two = page.locator(".chart .plot > svg").evaluate_all(ticks)
    assert one == two
    assert "6" in one
    assert page.locator(".map-bar").all_inner_texts()[0] == page.locator(".map-bar").all_inner_texts()[1]
    three, four = page.locator(".shown-bars .plot > svg").evaluate_all(ticks)
    assert three != four  # one row and rows are not the same thing


def test_a_view_takes_new_numbers_in_place(open_page: Open) -> None:
    """As the studio does it: what the reader opened stays open, and elements are used again."""
    page = open_page(shown(steps(), film()))
    after = Sample("sample", same("Found anew."), [steps(), film(frames=3)]).plain()
    kept = page.evaluate(
        """(after) => {
          const words = module_words.wordsIn(JSON.parse(document.getElementById('data').textContent).strings, 'en');
          const before = JSON.parse(document.getElementById('data').textContent).views[0];
          const view = module_figures.drawView(before, words);
          document.querySelector('.page').replaceChildren(view.element);
          view.draw();
          view.element.querySelectorAll('[role=tab]')[4].click();
          const canvas = view.element.querySelector('canvas.cells');
          view.set(after);
          return [
            view.element.querySelector('canvas.cells') === canvas,
            view.element.querySelector('[aria-selected=true] .stage-label').textContent,
            view.element.querySelector('.finding').textContent,
            view.element.querySelector('input[type=range]').max,
          ];
        }""",
        after,
    )
    assert kept == [True, "scores", "Found anew.", "2"]
