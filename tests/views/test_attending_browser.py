"""The views of attention in a browser: what can be read there is what the model computed."""

from __future__ import annotations

import csv
import io
import re

import pytest
import torch
from browser import OUTSIDE, OVERLAPS, Open, assert_accessible, browser, open_page, saved
from test_attending import LABELS, asked, make, tensor

from headway.figures.values import same
from headway.views import Question, view
from headway.views.explain_page import walk_page
from headway.web.views_page import views_page

__all__ = ["browser", "open_page"]  # fixtures
NAMES = ("stepper", "projection", "softmax", "wall", "head", "split", "whatif")
ROUND = 5.1e-4
"""A readout below 1 has three decimals."""


def shown(question: Question, *names: str) -> str:
    return views_page(same("Attention"), [view(name, question) for name in names])


def number(text: str) -> float:
    """The number a readout ends with."""
    plain = text.replace("·10", "e").translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789−"))
    found = re.search(r"(−?[\d.,]+(?:e−?\d+)?)\D*$", plain)
    assert found is not None, text
    return float(found[1].replace("−", "-").replace(",", ""))


def table(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_every_stage_is_reached_by_keyboard_with_the_models_shapes(open_page: Open) -> None:
    page = open_page(shown(asked(make("rotary", kv_heads=1)), "stepper"))
    n, dim, width = len(LABELS), 24, 8
    expected = [dim, width, width, width, width, n, n, n, n, width, dim]
    tabs = page.locator('[role="tab"]')
    assert tabs.count() == len(expected)
    tabs.last.focus()  # open first, so that all numbers are there
    page.keyboard.press("Home")
    seen = []
    for _ in expected:
        chosen = page.locator('[role="tab"][aria-selected="true"]')
        assert chosen.count() == 1
        assert chosen.evaluate("tab => tab === document.activeElement")
        assert page.locator(".stage canvas.cells").count() >= 1
        assert page.locator(".stage-said").inner_text()
        seen.append(chosen.locator(".stage-shape").inner_text())
        page.keyboard.press("ArrowRight")
    assert seen == [f"{n} × {columns}" for columns in expected]


@pytest.mark.parametrize("matrix", ["q", "v"])
def test_products_and_bias_are_the_number(open_page: Open, matrix: str) -> None:
    question = asked(make(bias=True), query=4, column=5, options={"matrix": matrix})
    page = open_page(shown(question, "projection"))
    page.locator(".matrices .map").last.focus()
    linear = getattr(question.model.stack.attentions()[1], matrix)
    for row, column, key in ((4, 5, "ArrowRight"), (4, 6, "ArrowUp"), (3, 6, "ArrowUp")):
        x, place = question.seen.x[0, row].double(), 2 * 8 + column
        w = linear.weight[place].detach().double()
        expected = float(x @ w + linear.bias[place].detach())
        rows = page.locator(".products tbody tr")
        assert rows.count() == 24
        products = [number(rows.nth(k).locator("td").nth(2).inner_text()) for k in (0, 11, 23)]
        assert products == pytest.approx([float(x[k] * w[k]) for k in (0, 11, 23)], rel=6e-3, abs=ROUND)
        *_, total, model, difference = page.locator(".products tfoot td").all_inner_texts()
        assert [number(total), number(model)] == pytest.approx([expected] * 2, rel=6e-3, abs=ROUND)
        assert abs(number(difference)) < 1e-5
        page.keyboard.press(key)


def test_weights_of_a_row_sum_to_one(open_page: Open) -> None:
    question = asked(make("alibi"), query=5)
    page = open_page(shown(question, "softmax"))
    _, text = saved(page, ".shown-bars:last-of-type [data-csv] >> nth=-1")
    rows = table(text)[1:]
    weights = [float(row[-1]) if row[-1] else None for row in rows]
    assert [row[0] for row in rows] == LABELS
    assert weights[6:] == [None] * 3  # masked: no bar, and a weight of 0
    assert weights[:6] == pytest.approx(question.seen.row(5, 2)[:6].tolist(), rel=1e-5)
    assert sum(weights[:6]) == pytest.approx(1, abs=1e-4)


def test_the_wall_is_layers_by_heads_on_one_scale_and_sorts(open_page: Open) -> None:
    question = asked(make("t5"))
    page = open_page(shown(question, "wall"))
    names = page.locator(".tile-name")
    assert names.all_inner_texts() == [f"L{layer} H{head}" for layer in range(2) for head in range(3)]
    assert page.locator(".tile canvas.cells").count() == 6
    assert page.locator(".shown-wall .map-legend").count() == 1
    highest = max(float(layer.weights().max()) for layer in question.trace)
    assert f"{highest:.3g}"[:4] in page.locator(".shown-wall .map-legend").inner_text()
    entropy = {
        f"L{number} H{head}": float(layer.summary()["entropy"][0, head])
        for number, layer in enumerate(question.trace)
        for head in range(3)
    }
    page.select_option(".shown-wall select", "up:entropy")
    assert names.all_inner_texts() == sorted(entropy, key=lambda name: entropy[name])
    page.locator(".tile").first.focus()
    said = page.locator(".shown-wall .readout").inner_text()
    assert said.startswith(min(entropy, key=lambda name: entropy[name]))


def test_readouts_of_a_head_are_the_models(open_page: Open) -> None:
    labels = ["7", *LABELS[1:]]  # a token that is a number keeps its place
    question = asked(make("kerple"), labels)
    page = open_page(shown(question, "head"))
    weights = question.trace[1].weights()[0, 2]
    page.locator(".map").first.focus()
    page.keyboard.press("ArrowDown")
    row, column = 0, 0
    for keys in (["ArrowDown"] * 8, ["ArrowRight"] * 2, ["ArrowUp"] * 3, ["ArrowRight", "ArrowUp"], ["ArrowRight"]):
        for key in keys:
            page.keyboard.press(key)
            row += {"ArrowDown": 1, "ArrowUp": -1}.get(key, 0)
            column += {"ArrowRight": 1}.get(key, 0)
        said = page.locator(".readout:visible").first.inner_text()
        assert said.startswith(f"query {row} '{labels[row]}' → key {column} '{labels[column]}': ")
        if column <= row:
            assert number(said) == pytest.approx(float(weights[row, column]), abs=ROUND)
        else:
            assert said.endswith("hidden by the mask")


def test_numbers_sent_in_steps_are_right_to_a_step(open_page: Open) -> None:
    question = asked(make("rotary"), [str(token) for token in range(300)])
    page = open_page(shown(question, "head"))
    _, text = saved(page, '[data-csv="heatmap"]')
    rows = torch.tensor([[float(cell or "nan") for cell in row[1:]] for row in table(text)[1:]])
    weights = question.trace[1].weights()[0, 2]
    seen = torch.ones(300, 300).tril() > 0
    assert rows.isnan().equal(~seen)
    assert (rows - weights)[seen].abs().max() <= float(weights.max()) / 254 / 2 + 1e-6


@pytest.mark.parametrize("spec", ["rotary", "sinusoidal", "transformerxl"])
def test_parts_add_up_to_the_score(open_page: Open, spec: str) -> None:
    question = asked(make(spec))
    page = open_page(shown(question, "split"))
    buttons = page.locator('[data-csv="heatmap"]')
    parts = []
    for at in range(buttons.count()):
        _, text = saved(page, f'[data-csv="heatmap"] >> nth={at}')
        parts.append(torch.tensor([[float(cell or "nan") for cell in row[1:]] for row in table(text)[1:]]))
    *summands, total = parts
    assert len(summands) == {"rotary": 2, "sinusoidal": 4, "transformerxl": 3}[spec]
    seen = torch.ones(9, 9).tril() > 0
    torch.testing.assert_close(sum(summands)[seen], total[seen], rtol=0, atol=1e-4)
    expected = question.seen.scores()[0, 2]
    torch.testing.assert_close(total[seen], expected[seen], rtol=0, atol=1e-4)
    # pointing at a pair in one map points at it in all
    page.locator(".map").first.focus()
    for key in ("ArrowDown", *["ArrowDown"] * 6, *["ArrowRight"] * 2):
        page.keyboard.press(key)
    said = page.locator(".beside .readout").all_inner_texts()
    assert len(said) == len(parts)
    assert all("query 6 'cat' → key 2 '␣'" in one for one in said)
    assert [number(one) for one in said] == pytest.approx([float(part[6, 2]) for part in parts], rel=6e-3, abs=ROUND)
    badge = page.get_by_text("(estimate)")
    assert badge.count() == (spec == "sinusoidal")


def test_what_if_shows_before_after_and_difference(open_page: Open) -> None:
    question = asked(make("rotary"), options={"change": "shift", "by": 100})
    page = open_page(shown(question, "whatif"))
    assert "nothing changes" in page.locator(".finding, h2 ~ p").all_inner_texts()[1]
    assert page.locator(".beside canvas.cells").count() == 3
    difference = tensor(view("whatif", question).figures[0].columns[2][1][0].values)
    assert float(difference.abs().max()) < 1e-4


@pytest.mark.parametrize(("width", "locale", "scheme"), [(1280, "en-GB", "light"), (1024, "zh-CN", "dark")])
def test_pages_are_legible_to_all(open_page: Open, width: int, locale: str, scheme: str) -> None:
    question = asked(make("sinusoidal", qk_norm=True))
    page = open_page(shown(question, *NAMES), width=width, locale=locale, color_scheme=scheme)
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(OUTSIDE) == []
    assert page.locator("svg *").count() <= 2000 * len(NAMES)
    assert_accessible(page)


def test_a_walk_is_one_page(open_page: Open) -> None:
    page = open_page(walk_page(Question.fresh("a 猫 sat"), "zh"))
    assert page.locator("#report").get_attribute("lang") == "zh-CN"  # as asked for, whatever the browser prefers
    page.click('[data-keep="language-en"]')
    titles = [title.removesuffix("untrained, random").strip() for title in page.locator("h2").all_inner_texts()]
    assert titles[:5] == ["Step by step", "One entry of Q", "One row of softmax", "One head", "Content and position"]
    assert len(titles) > 5
    assert "2 layers, 4 heads, width 64" in page.locator("main").inner_text()
