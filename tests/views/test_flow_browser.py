"""The flow is played, paused and scrubbed, positions are moved, and numbers worked out, in a browser."""

from __future__ import annotations

import math
from typing import Any

import pytest
from browser import OUTSIDE, Open, assert_accessible, browser, idle, open_page
from test_attending import asked, make

from headway.figures.values import same
from headway.views import Question, view
from headway.web.views_page import views_page

__all__ = ["browser", "idle", "open_page"]  # fixtures


def shown(question: Question, *names: str) -> str:
    return views_page(same("Flow"), [view(name, question) for name in names])


def stage(page: Any) -> int:
    return int(page.locator(".flow-figure output").first.inner_text().split(" / ")[0])


def test_the_flow_plays_pauses_and_is_scrubbed(open_page: Open) -> None:
    page = open_page(shown(asked(make("rotary")), "stepper", "projection"), width=1040)
    page.clock.install()
    slider, play = page.locator(".flow-figure input").first, page.locator(".flow-figure .play")
    assert stage(page) == 11  # all numbers are there
    assert page.locator(".flow-cell.later").count() == 0
    play.click()
    assert (stage(page), play.inner_text()) == (1, "Pause")
    assert page.locator(".flow-cell.later").count() > 40
    page.clock.run_for(1700)
    assert stage(page) == 2
    assert page.locator(".flow-arrows > path").count() == 1  # from x to q
    play.click()
    page.clock.run_for(9000)
    assert (stage(page), play.inner_text()) == (2, "Play")
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert stage(page) == 6
    assert page.locator(".flow-arrows > path").count() == 2 * 9  # from k′ and from q′ to each score
    play.click()
    page.clock.run_for(20_000)
    assert (stage(page), play.inner_text()) == (11, "Play")
    box = page.locator(".flow-figure .film").bounding_box(), page.locator(".flow-figure .readout").first.bounding_box()
    assert box[1]["y"] + box[1]["height"] - box[0]["y"] <= 560


def test_numbers_of_the_flow_are_read_and_lead_deeper(open_page: Open) -> None:
    question = asked(make("alibi"), query=5)
    page = open_page(shown(question, "stepper", "softmax"))
    line = page.locator(".flow-figure .readout").first
    page.locator(".flow").first.focus()
    for key in ("ArrowDown", "ArrowDown", "End", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    name, value = line.inner_text().split(": α = ")
    assert name == question.labels[0]
    assert float(value) == pytest.approx(float(question.seen.row(5, 2)[0]), rel=2e-2)
    page.locator('.flow-figure [role="tab"]', has_text="softmax").first.click()
    deeper = page.locator("[data-opens]")
    assert deeper.all_inner_texts() == ["One row of softmax →"]
    deeper.click()
    assert page.evaluate("Math.abs(document.getElementById('view-softmax').getBoundingClientRect().top) < innerHeight")


def test_less_motion_goes_one_stage_further(open_page: Open) -> None:
    page = open_page(shown(asked(make("t5")), "stepper"), reduced_motion="reduce")
    page.clock.install()
    play = page.locator(".flow-figure .play")
    assert play.inner_text() == "Next"
    for expected in (1, 2):
        play.click()
        page.clock.run_for(9000)
        assert stage(page) == expected
    assert page.locator(".flow-cell.now").first.evaluate("cell => getComputedStyle(cell).animationName") == "none"


def total(page: Any) -> float:
    return float(page.locator("[data-total]").get_attribute("data-total"))


def test_moving_both_positions_keeps_the_dot_product(open_page: Open) -> None:
    question = asked(make("rotary"))
    page = open_page(shown(question, "rotation"), reduced_motion="reduce")
    home = total(page)
    product = question.seen.call.q[0, 2].double() @ question.seen.call.k[0, 2].double().T
    assert min(abs(float(product[-1, key]) - home) for key in range(9)) < 1e-4
    both = page.locator('[data-turn="both"]')
    both.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert total(page) == pytest.approx(home, abs=1e-9)
    assert "Both moved by 5" in page.locator(".shown-turns").inner_text()
    hands = page.locator(".turning .line").first.get_attribute("x2")
    page.locator('[data-turn="q"]').focus()
    page.keyboard.press("ArrowRight")
    assert abs(total(page) - home) > 1e-3
    assert page.locator(".turning .line").first.get_attribute("x2") != hands
    page.get_by_role("button", name="Back to the text").click()
    assert total(page) == pytest.approx(home, abs=1e-9)


def test_a_dial_is_dragged(open_page: Open) -> None:
    page = open_page(shown(asked(make("rotary")), "rotation"), reduced_motion="reduce")
    dial = page.locator(".turning .dial svg").first
    box = dial.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before = [page.locator(f'[data-turn="{which}"]').input_value() for which in "qk"]
    page.mouse.move(middle[0] + 30, middle[1])
    page.mouse.down()
    for step in range(1, 9):  # a quarter of a turn and more, against the clock
        angle = step * 0.3
        page.mouse.move(middle[0] + 30 * math.cos(angle), middle[1] - 30 * math.sin(angle))
    page.mouse.up()
    after = [page.locator(f'[data-turn="{which}"]').input_value() for which in "qk"]
    moved = [int(b) - int(a) for a, b in zip(before, after, strict=True)]
    assert sorted(moved) == [0, 2]  # 2.4 radians at 1 radian per token


def test_a_cell_is_worked_out_where_the_map_is_pointed_at(open_page: Open) -> None:
    page = open_page(shown(asked(make("sinusoidal", dim=64)), "vectors"))
    result = page.locator(".worked-result")
    assert result.inner_text() == "P[7, 4] = sin(p / 10000^(4 / 64)) = sin(7 / 10000^(4 / 64)) = −0.71372"
    page.locator(".shown-heatmap .map").first.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight"):  # the first goes to (0, 0)
        page.keyboard.press(key)
    value = f"{math.cos(2):.5g}".replace("-", "−")
    assert result.inner_text() == f"P[2, 1] = cos(p / 10000^(0 / 64)) = cos(2 / 10000^(0 / 64)) = {value}"


def test_a_distance_is_worked_out_where_the_slider_stands(open_page: Open) -> None:
    question = asked(make("t5"), head=0)
    page = open_page(shown(question, "bias"))
    slider = page.locator(".shown-worked input")
    slider.focus()
    page.keyboard.press("End")
    text = page.locator(".worked-lines").inner_text()
    assert "min(31, 16 + ⌊ln(512 / 16) / ln(128 / 16) · 16⌋) = 31" in text
    weight = float(question.position.weight.detach()[0, 31])
    assert f"b = w[31] (learned) = {weight:.5g}".replace("-", "−") in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_new_figures_are_accessible_in_a_narrow_page(open_page: Open, scheme: str) -> None:
    question = asked(make("rotary"))
    page = open_page(shown(question, "stepper", "softmax", "rotation"), width=760, color_scheme=scheme)
    assert page.evaluate(OUTSIDE) == []
    assert_accessible(page, alike=".shown-heatmap")
