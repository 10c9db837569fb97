"""What a reader chooses for a single figure: linear or logarithmic axes, the reach of a colour scale; and maps that are
square."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from browser import OVERLAPS, Open, assert_accessible, browser, open_page, wait_for

from headway.figures.values import same
from headway.training import Bytes, token_texts
from headway.transformer import Transformer
from headway.views import Question, view
from headway.web.views_page import views_page

__all__ = ["browser", "open_page"]  # fixtures
TEXT = " ".join(f"w{n % 37}" for n in range(200))


def html_of(question: Question, *names: str) -> str:
    return views_page(same("Choices"), [view(name, question) for name in names])


def path_of(page: Any, at: int = 0) -> list[tuple[float, float]]:
    """The corners of the first line of a chart."""
    d = page.locator(".plot path.line").nth(at).get_attribute("d")
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", d)]


def bend(corners: list[tuple[float, float]]) -> float:
    """The farthest that a line is from its chord, in pixels."""
    (x, y), (x_end, y_end) = corners[0], corners[-1]
    return max(abs(y + (y_end - y) * (px - x) / (x_end - x) - py) for px, py in corners)


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_a_straight_bias_is_drawn_straight_unless_the_reader_wants_otherwise(open_page: Open, locale: str) -> None:
    page = open_page(html_of(Question.fresh("the cat sat", position="alibi"), "bias"), locale=locale)
    choice = page.locator('[data-axis="x"]')
    assert page.locator('[data-axis="y"]').count() == 0  # a bias below 0 has no logarithm
    assert len(path_of(page)) == 512
    assert bend(path_of(page)) < 1
    choice.locator('[data-value="log"]').focus()
    page.keyboard.press("Enter")
    assert choice.locator('[data-value="log"]').get_attribute("aria-pressed") == "true"
    assert bend(path_of(page)) > 50
    assert page.evaluate(OVERLAPS) == []
    choice.locator('[data-value="linear"]').click()
    assert bend(path_of(page)) < 1
    assert_accessible(page)


def test_attention_by_distance_has_both_axes_both_ways(open_page: Open) -> None:
    page = open_page(html_of(Question.fresh(TEXT), "distance"))
    labels = page.locator(".plot").first.locator(".axis-title")
    assert all("log" in label for label in labels.all_text_contents())
    for axis in ("x", "y"):
        page.locator(f'[data-axis="{axis}"] [data-value="linear"]').first.click()
    assert not any("log" in label for label in labels.all_text_contents())
    assert page.locator(".plot").nth(1).locator(".axis-title").first.text_content().endswith("(log scale)")  # its own


def test_long_curves_are_read_at_every_distance(open_page: Open) -> None:
    question = Question.fresh("the cat sat", position="kerple", heads=2)
    page = open_page(
        html_of(Question.of(question.model, question.ids, question.labels, options={"reach": 9000}), "bias")
    )
    page.locator(".plot").first.focus()
    page.keyboard.press("Home")
    page.keyboard.press("End")
    assert "9,000" in page.locator(".readout").first.inner_text()
    assert 400 < len(path_of(page)) < 6000  # what shares a column of pixels is drawn once


def test_colours_fit_most_weights_and_the_reader_may_have_all(open_page: Open) -> None:
    question = Question.fresh(TEXT)
    shown = view("head", question).figures[0]
    page = open_page(html_of(question, "head", "whatif"))
    first, others = page.locator("figure.shown-heatmap").first, page.locator('[data-view="whatif"]')
    bar = first.locator(".map-bar span")
    assert float(bar.nth(1).inner_text()) == pytest.approx(shown.fit[1], rel=0.05)
    beyond = sum(value > shown.fit[1] for value in shown.values.values)
    assert f"{beyond:,} cells lie beyond it" in first.locator(".map-legend").inner_text()
    first.locator('[data-value="full"]').click()
    assert bar.nth(1).inner_text() == "1"
    assert "cells lie beyond" not in first.locator(".map-legend").inner_text()
    # figures side by side keep one scale
    tops = lambda: [others.locator(".map-bar").nth(n).locator("span").nth(1).inner_text() for n in range(2)]  # noqa: E731
    assert tops()[0] == tops()[1] != "1"
    others.locator('[data-value="full"]').first.click()
    wait_for(page, lambda: tops() == ["1", "1"])
    assert others.locator('[data-value="full"][aria-pressed="true"]').count() == 2
    assert_accessible(page)


@pytest.mark.parametrize("width", [1024, 1440])
def test_maps_of_as_many_rows_as_columns_are_square(open_page: Open, width: int) -> None:
    text = " ".join(f"word{n}" for n in range(43))
    page = open_page(html_of(Question.fresh(text, position="alibi"), "split"), width=width)
    boxes = [one.bounding_box() for one in page.locator("canvas.cells").all()]
    assert len(boxes) == 3
    for box in boxes:
        assert box["width"] == pytest.approx(box["height"], rel=0.02)
    assert page.evaluate(OVERLAPS) == []


def test_chinese_bytes_are_characters_in_a_map(open_page: Open) -> None:
    model = Transformer(vocab=256, dim=32, layers=1, heads=2, position="rotary").eval()
    ids = torch.tensor([list("猫坐在垫子上".encode())])
    page = open_page(html_of(Question.of(model, ids, token_texts(Bytes(), ids[0])), "head", "softmax"))
    rails = page.locator('[data-view="head"] .rail').all_text_contents()
    assert rails == [*"猫坐在垫子上"] * 2
    assert "18 tokens are shown as 6 characters" in page.locator('[data-view="head"] .notes').inner_text()
    assert "猫₂" in page.locator('[data-view="softmax"] .rail').all_text_contents()
