"""The map of a long text: a planted link is seen zoomed out, and what the finding says is so."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from headway import HeadwayError, Transformer
from headway.inspect.record import Trace
from headway.inspect.tiles import TileSource
from headway.report.figures import Heatmap, Lines, Tiles
from headway.report.panels import Scale, pixels
from headway.terms import Pairwise
from headway.views import Question, view

TOKENS, QUERY, KEY = 8192, 8000, 123


def question(tokens: int, **options: Any) -> Question:
    torch.manual_seed(0)
    model = Transformer(vocab=64, dim=24, layers=1, heads=3, position="none")
    ids = torch.randint(0, 64, (1, tokens))
    return Question(model, ids, [f"t{i}" for i in range(tokens)], head=2, options=options)


def planted(tokens: int, query: int, key: int) -> Question:
    """Of a text whose queries spread their attention, but for one, which gives nearly all of it to one key."""
    asked = question(tokens)
    layer = asked.seen
    spike = Pairwise(lambda q, k: 60.0 * ((q[:, :, None] == query) & (k[:, None] == key))[:, None])
    call = replace(layer.call, q=torch.zeros_like(layer.call.q), terms=(spike,))
    asked.__dict__["trace"] = Trace([replace(layer, call=call)], asked.trace.tokens)
    return asked


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
    scale = Scale.of(most.overview)
    assert scale.step(value) == 253  # the last colour
    assert scale.step(around) < 40
    assert f"from query {QUERY:,} “t{QUERY}” to key {KEY:,} “t{KEY}”, with 100 %" in shown.finding["en"]
    assert f"查询 {QUERY:,}“t{QUERY}”到键 {KEY:,}“t{KEY}”" in shown.finding["zh"]
    assert isinstance(band, Heatmap)
    assert isinstance(received, Lines)
    assert len(json.dumps(shown.plain())) < 2_000_000
    assert len(pixels(most.overview, scale)) < 20_000


def test_uniform_attention_is_said_to_be_so() -> None:
    asked = planted(1000, -5, -5)  # nobody is there
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
    assert "the text reaches no farther back" in shown.finding["en"]
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
