"""The studio's page as a newcomer meets it: what is in sight, what is read at the pointer, what is remembered."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from browser import browser  # noqa: F401
from served import Client, studio
from test_studio_browser import VIEWS, Page, opened

SHIFT = 90  # pixels that the page is scrolled before a map is read


@pytest.fixture(scope="module")
def shown(client: Client, browser: Any) -> Iterator[Page]:  # noqa: F811
    found = opened(client, browser)
    yield found
    assert found.foreign() == []
    page = found.page
    assert [one for one in found.complaints if "400 (Bad Request)" not in one] == []
    page.context.close()


def test_all_views_are_listed_in_sight_and_a_link_scrolls_to_its_own(client: Client, browser: Any) -> None:  # noqa: F811
    found = opened(client, browser, fragment="#view=board", viewport={"width": 1280, "height": 800})
    nav = found.page.locator(".views-nav")
    assert nav.evaluate("nav => nav.scrollHeight - nav.clientHeight") == 0
    spare = "nav => nav.getBoundingClientRect().bottom - nav.lastElementChild.getBoundingClientRect().bottom"
    assert nav.evaluate(spare) > 100  # for two more groups
    assert all(link.get_attribute("title") for link in found.page.locator(".views-nav a").all())
    found.page.set_viewport_size({"width": 1280, "height": 400})
    found.page.reload()
    found.settle("board")
    link = found.page.locator('[data-view-link="board"]')
    assert link.evaluate("one => one.getBoundingClientRect().bottom") <= 400
    found.page.context.close()


def test_controls_stay_in_sight_and_the_text_grows_over_the_figures(shown: Page) -> None:
    section = shown.open("head")
    page, area = shown.page, shown.page.locator("textarea")
    top = section.locator(".plot").first.bounding_box()["y"]
    flat = area.bounding_box()["height"]
    area.focus()
    assert flat < 40 < area.bounding_box()["height"]
    assert section.locator(".plot").first.bounding_box()["y"] == top
    page.keyboard.press("Escape")
    page.mouse.wheel(0, 900)
    shown.becomes(lambda: page.evaluate("window.scrollY") > 0)
    assert area.bounding_box()["y"] >= 0
    page.evaluate("window.scrollTo(0, 0)")


@pytest.mark.parametrize("view", ["head", "whatif", "split", "softmax", "wall", "long", "vectors"])
def test_a_value_is_read_at_the_pointer_wherever_the_figure_ends(shown: Page, view: str) -> None:
    section = shown.open(view, text="the cat sat on the mat " * 7, **VIEWS[view])
    shown.page.evaluate(f"window.scrollTo(0, {SHIFT})")
    plot = section.locator(".wall .tile, .plot").first
    cells = plot.locator("canvas.cells").first if plot.locator("canvas.cells").count() else plot
    box = cells.bounding_box()
    shown.page.mouse.move(box["x"] + box["width"] / 3, max(box["y"], 150) + 8)
    shown.page.mouse.move(box["x"] + box["width"] / 3, max(box["y"], 150) + 4)
    tip = section.locator(".value-tip:visible").first
    inside = tip.bounding_box()
    assert 0 <= inside["x"] <= inside["x"] + inside["width"] <= 1280
    assert 0 <= inside["y"] <= inside["y"] + inside["height"] <= 800
    assert re.search(r"\d", tip.inner_text())
    assert tip.get_attribute("aria-hidden") == "true"  # the line below is what is announced
    if view != "wall":
        assert tip.inner_text() == section.locator(".readout:not(.idle)").first.inner_text()
    shown.page.mouse.move(2, 790)
    assert section.locator(".value-tip:visible").count() == 0


def test_maps_of_pairs_are_square_and_what_is_compared_stands_side_by_side(shown: Page) -> None:
    shown.page.set_viewport_size({"width": 1024, "height": 768})
    section = shown.open("split", text="the cat sat on the mat " * 7)
    boxes = [one.bounding_box() for one in section.locator(".beside").first.locator("canvas.cells").all()]
    assert len(boxes) == 3
    assert len({box["y"] for box in boxes}) == 1
    assert all(abs(box["width"] - box["height"]) < 1 for box in boxes)
    assert shown.page.evaluate("document.documentElement.scrollWidth") == 1024
    shown.page.set_viewport_size({"width": 1280, "height": 800})


def test_language_and_theme_are_remembered_and_neither_resets_a_figure(client: Client, browser: Any) -> None:  # noqa: F811
    found = opened(client, browser, fragment="#view=stepper")
    page = found.page
    page.locator(".strip button").nth(4).click()
    page.locator(".screen details summary").first.click()
    page.click('[data-keep="language-zh"]')
    page.click('[data-keep="theme-dark"]')
    assert page.locator('[aria-selected="true"] .stage-label').inner_text() == "Q′, K′"
    assert page.locator(".screen table").first.is_visible()
    page.reload()
    found.settle("stepper")
    assert page.locator("#studio").get_attribute("lang") == "zh-CN"
    assert page.locator("#studio").get_attribute("data-theme") == "dark"
    wall = found.open("wall")
    wall.locator("select").first.select_option(index=2)
    order = wall.locator(".tile-name").all_inner_texts()
    page.click('[data-keep="language-en"]')
    assert page.locator(".tile-name").all_inner_texts() == order
    assert found.complaints == []
    page.context.close()


def test_a_long_word_widens_nothing(shown: Page) -> None:
    for view in ("stepper", "softmax", "head", "whatif", "long"):
        shown.open(view, text="a " + "w" * 300 + " <b> z")
        assert shown.page.evaluate("document.documentElement.scrollWidth") == 1280, view


def test_errors_speak_the_readers_language(client: Client, browser: Any) -> None:  # noqa: F811
    found = opened(client, browser, locale="zh-CN")
    alert = found.page.locator('.screen [role="alert"]')
    wrong = {
        "vectors": {"position": "alibi"},
        "bias": {"position": "rotary"},
        "rotation": {"position": "alibi"},
        "head": {"text": "w " * 1100},
        "wall": {"kind": "run", "run": "gone"},
        "softmax": {"text": ""},
        "distance": {"text": "one"},
    }
    for view, more in wrong.items():
        found.page.evaluate("hash => { location.hash = hash; }", f"view=projection&seed={len(view)}")
        found.settle("projection")
        found.page.evaluate("([v, more]) => { location.hash = new URLSearchParams({view: v, ...more}); }", [view, more])
        alert.wait_for(timeout=10_000)
        said = alert.inner_text().replace("无法显示：", "")
        assert re.search("[一-鿿]", said), (view, said)
        assert not re.search("expected|got", said), (view, said)
    found.page.context.close()


def test_a_restarted_studio_offers_where_one_was(browser: Any) -> None:  # noqa: F811
    with studio() as client:
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        link = f"http://127.0.0.1:{client.port}/?token={client.token}"
        page.goto(link + "#view=head&head=2")  # what stands after the "#" of a link is followed
        page.locator('.screen [data-view="head"]').wait_for(timeout=15_000)
        assert page.locator('[data-choose="head"]').input_value() == "2"
        page.click('[data-view-link="softmax"]')
        page.locator('.screen [data-view="softmax"]').wait_for(timeout=15_000)
        again = context.new_page()
        again.goto(link.partition("?")[0])
        again.click('[data-keep="resume"]')
        again.locator('.screen [data-view="softmax"]').wait_for(timeout=15_000)
        assert again.locator('[data-choose="head"]').input_value() == "2"
        assert not again.locator('[data-keep="resume"]').is_visible()
        context.close()
