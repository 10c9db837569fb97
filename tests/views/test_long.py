"""The map of a long text: a planted link is seen zoomed out, and what the finding says is so."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from browser import Open

from headway import HeadwayError, Transformer
from headway.figures.values import Heatmap, Lines, Tiles, plain
from headway.inspect.record import Trace
from headway.inspect.tiles import TileSource
from headway.plot import picture
from headway.plot.panels import scale_of
from headway.terms import Pairwise
from headway.views import Question, view
from headway.views.question import Recording
from headway.web.colours import colour_table
from headway.web.page import asset, bundle, strings_of
from headway.web.views_page import views_page

TOKENS, QUERY, KEY = 8192, 8000, 123


def question(tokens: int, **options: Any) -> Question:
    torch.manual_seed(0)
    model = Transformer(vocab=64, dim=24, layers=1, heads=3, position="none")
    ids = torch.randint(0, 64, (1, tokens))
    return Question.of(model, ids, [f"t{i}" for i in range(tokens)], head=2, options=options)


def planted(tokens: int, query: int, key: int) -> Question:
    """Of a text whose queries spread their attention, but for one, which gives nearly all of it to one key."""
    asked = question(tokens)
    layer = asked.seen
    spike = Pairwise(lambda q, k: 60.0 * ((q[:, :, None] == query) & (k[:, None] == key))[:, None])
    call = replace(layer.call, q=torch.zeros_like(layer.call.q), terms=(spike,))
    trace = Trace([replace(layer, call=call)], asked.trace.tokens)
    return replace(asked, recording=Recording(asked.model, asked.ids, trace))


def test_a_planted_link_is_seen_zoomed_out() -> None:
    shown = view("long", planted(TOKENS, QUERY, KEY))
    most, mean, band, received = shown.figures
    assert isinstance(most, Tiles)
    assert isinstance(mean, Tiles)
    assert (most.levels, most.size, most.overview.values.shape) == (6, (TOKENS, TOKENS), (256, 256))
    row, column = QUERY // 32, KEY // 32
    value = most.overview.values.rows()[row][column]
    around = most.overview.values.rows()[row][column + 1]
    assert value is not None
    assert around is not None
    assert value > 0.99
    assert around < 0.001
    norm, _, _ = scale_of(most.overview)
    assert float(norm(value)) > 0.99  # the last colour
    assert float(norm(around)) < 0.16
    assert f"from query {QUERY:,} “t{QUERY}” to key {KEY:,} “t{KEY}”, with 100 %" in shown.finding["en"]
    assert f"查询 {QUERY:,}“t{QUERY}”到键 {KEY:,}“t{KEY}”" in shown.finding["zh"]
    assert isinstance(band, Heatmap)
    assert isinstance(received, Lines)
    assert len(json.dumps(shown.plain())) < 2_000_000
    assert len(picture(most.overview).data("png")) < 200_000


def test_uniform_attention_is_said_to_be_so() -> None:
    asked = planted(1000, -5, -5)  # no token there: nothing is planted
    shown = view("long", asked)
    near = sum(min(i + 1, 256) / (i + 1) for i in range(1000)) / 1000
    assert f"{100 * near:.1f} % of the attention goes to the last 256 tokens" in shown.finding["en"]
    assert "query 256 “t256” to key 0 “t0”, with 0.389 %" in shown.finding["en"]  # 1/257, the first that has so many
    curve = shown.figures[3]
    assert isinstance(curve, Lines)
    expected = sum(1 / (i + 1) for i in range(1000))
    assert curve.lines[0].values[0] == pytest.approx(expected, rel=1e-4)
    last = sum(1 / (i + 1) for i in range(998, 1000))
    assert curve.lines[0].values[-1] == pytest.approx(last, rel=1e-4)


def test_numbers_are_the_models() -> None:
    asked = question(300)
    weights = asked.seen.weights()[0, 2]
    shown = view("long", asked)
    mean = shown.figures[1]
    assert isinstance(mean, Tiles)
    values = mean.overview.values.rows()
    assert values[149][3] == pytest.approx(float(weights[298:300, 6:8].mean()), abs=1e-6)
    assert values[1][1] == pytest.approx(float(weights[2:4, 2:4][torch.ones(2, 2).tril().bool()].mean()), abs=1e-6)
    hidden = mean.overview.hidden
    assert hidden is not None
    assert hidden.rows()[3][4] == 1
    assert hidden.rows()[4][3] == 0


def test_a_short_text_is_shown_whole() -> None:
    shown = view("long", question(40))
    most = shown.figures[0]
    assert isinstance(most, Tiles)
    assert most.levels == 1
    assert most.overview.values.shape == (40, 40)
    assert "The text has no more than the last 40 tokens" in shown.finding["en"]
    assert shown.figures[2].values.shape == (40, 40)


def test_tiles_made_before_are_used_and_named() -> None:
    asked = question(300, reach=7)
    source = TileSource(asked.seen, 1, reach=7)
    asked.options = {"tiles": source, "source": "map-1"}
    shown = view("long", asked)
    most, _, band, _ = shown.figures
    assert isinstance(most, Tiles)
    assert most.source == "map-1"
    assert band.values.shape == (150, 7)
    assert most.overview.values.values == [
        0.0 if math.isnan(v) else v for v in source.overview["max"].flatten().tolist()
    ]


def test_what_cannot_be_shown_is_refused() -> None:
    with pytest.raises(HeadwayError, match=r"^expected a text of at least 2 tokens, got 1: a map of one cell"):
        view("long", question(1))
    with pytest.raises(HeadwayError, match=r"^expected options reach, a number of tokens, from 1 to 1024, got 0$"):
        view("long", question(10, reach=0))


# --- on a page ------------------------------------------------------------------------------------------------------

HOST = """() => {
  const words = module_words.wordsIn(strings, 'en');
  const host = document.getElementById('host');
  const fetched = async (source, level, row, column, how) => {
    const text = atob(await tile(level, row, column, how));
    return module_tiles.tileOf(Uint8Array.from(text, (letter) => letter.charCodeAt(0)).buffer);
  };
  const drawn = module_tiles.zoomed(figure, { words, level: 3, file: 'map' }, fetched);
  host.append(drawn.element);
  drawn.draw();
}"""


def hosted(open_page: Open, asked: Question, **options: Any) -> Any:
    """A page with the map of the largest weights, whose tiles come from Python."""
    source = TileSource(asked.seen, asked.head)
    asked.options = {"tiles": source, "source": "map"}
    figure = view("long", asked).figures[0]
    program = bundle("views").rpartition("\nconst data = ")[0]
    given = f"const strings = {json.dumps(strings_of('views'))}; const figure = {json.dumps(plain(figure))};"
    page = open_page(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>map</title><style>{asset("style.css")}</style>'
        f'<body class="headway"><div id="host"></div><script>{program}\n{given}</script></body></html>',
        **options,
        fresh=True,  # what is exposed to a page stays
    )
    page.expose_function("tile", lambda *wanted: base64.b64encode(source.body(*wanted)).decode())
    page.evaluate(HOST)
    page.wait_for_function("document.querySelector('.zooming .quiet').textContent.startsWith('each cell')")
    return page


def pixel(page: Any, x: float, y: float) -> list[int]:
    """The colour at a place of the map, as shares of its sides."""
    colour: list[int] = page.evaluate(
        "([x, y]) => { const c = document.querySelector('canvas.cells'), one = document.createElement('canvas');"
        " const context = one.getContext('2d', { willReadFrequently: true });"
        " context.drawImage(c, Math.floor(x * c.width), Math.floor(y * c.height), 1, 1, 0, 0, 1, 1);"
        " return [...context.getImageData(0, 0, 1, 1).data]; }",
        [x, y],
    )
    return colour


def test_a_map_is_zoomed_to_single_tokens(open_page: Open) -> None:
    asked = planted(2000, 1900, 123)
    page = hosted(open_page, asked)
    table = colour_table("sequential")
    assert pixel(page, 0.99, 0.01)[3] == 0  # the future is hidden
    spot = (124 / 2000, 1900 / 2000)  # the middle of the cell of 8 × 8
    assert pixel(page, *spot)[:3] == list(table[-1])
    assert pixel(page, spot[0] + 0.02, spot[1])[:3] != list(table[-1])
    plot, line = page.locator(".plot"), page.locator(".readout")
    box = page.locator("canvas.cells").bounding_box()
    page.mouse.move(box["x"] + spot[0] * box["width"], box["y"] + spot[1] * box["height"])
    assert line.text_content() == "queries 1,896–1,903, keys 120–127: 1.00"
    plot.focus()
    for _ in range(12):
        page.mouse.wheel(0, -120)
    page.wait_for_function("document.querySelector('.zooming .quiet').textContent === 'each cell is one pair'")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowDown")
    seen = set()
    for _ in range(12):  # the cell at the upper left, then along the rows to the planted pair
        seen.add(line.text_content())
        page.keyboard.press("ArrowRight")
    assert all(text.startswith("query 1,8") and "key 1" in text for text in seen)
    assert len(seen) == 12
    page.keyboard.press("0")
    page.wait_for_function("document.querySelector('.zooming .quiet').textContent === 'each cell is 8 × 8 pairs'")


def test_a_map_follows_the_theme_and_drags(open_page: Open) -> None:
    page = hosted(open_page, planted(600, 500, 20), color_scheme="dark")
    before = pixel(page, 0.2, 0.9)
    assert sum(before[:3]) < 300  # little attention is dark on a dark page
    for _ in range(4):
        page.click("[data-zoom=closer]")
    page.wait_for_function("!document.querySelector('.zooming .quiet').textContent.startsWith('loading')")
    box = page.locator("canvas.cells").bounding_box()
    labels = page.locator(".rails").text_content()
    page.mouse.move(box["x"] + 300, box["y"] + 300)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 150)
    page.mouse.up()
    assert page.locator(".rails").text_content() != labels


def test_a_page_without_a_server_shows_the_overview(open_page: Open) -> None:
    shown = view("long", planted(600, 500, 20))
    page = open_page(views_page(shown.title, [shown]))
    assert page.locator(".shown-tiles, .shown-heatmap").count() == 3
    assert "has only the overview" in page.locator(".view").text_content()
