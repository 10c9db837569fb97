"""The studio's page as a newcomer meets it: what is in sight, what is read at the pointer, what is remembered."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import assert_accessible, browser  # noqa: F401
from served import Client, studio
from test_studio_browser import VIEWS, Page, opened

from headway.views import OPTIONS

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


def test_a_text_that_is_typed_in_covers_no_button(shown: Page) -> None:
    section = shown.open("head", kind="run", text="the cat sat on the mat " * 30)
    page, area = shown.page, shown.page.locator("textarea")
    top = section.locator(".plot").first.bounding_box()["y"]
    area.focus()
    shown.becomes(lambda: area.bounding_box()["height"] > 80)
    assert section.locator(".plot").first.bounding_box()["y"] == top
    reached = """button => {
      const box = button.getBoundingClientRect();
      return button.contains(document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2));
    }"""
    buttons = page.locator(".choices button:visible").all()
    assert len(buttons) >= 6
    assert all(button.evaluate(reached) for button in buttons)
    scores = page.locator('[data-keep="option-what-scores"]')
    scores.click()
    shown.becomes(lambda: scores.get_attribute("aria-pressed") == "true" and area.bounding_box()["height"] < 40)
    assert section.locator(".plot").first.bounding_box()["y"] == top


def test_a_link_without_a_model_opens_what_the_studio_opens_on(client: Client, browser: Any) -> None:  # noqa: F811
    found = opened(client, browser, fragment="#view=sidebyside")
    found.settle("sidebyside")
    first = client.get("/api/state").json()["opening"]["asked"]["model"]["run"]
    assert found.choice("run") == first
    beside = [name for name in found.page.locator(".others .chip").all_inner_texts() if "✕" in name]
    assert len(beside) == 2
    assert found.page.locator(".screen .warning").count() == 0  # these read the same tokens
    found.page.evaluate("() => { location.hash = 'view=head&position=alibi'; }")  # a model is named: a new one
    found.settle("head")
    found.becomes(lambda: "alibi" in found.page.locator(".status").inner_text())
    assert found.complaints == []
    found.page.context.close()


def test_a_random_model_is_marked_once(shown: Page) -> None:
    for view, more in (("head", {}), ("bias", {"position": "alibi"})):  # ALiBi's slopes are not random
        shown.open(view, **more)
        assert shown.page.locator(".mark:visible").all_inner_texts() == ["untrained, random"]
    shown.open("head", kind="run")
    assert shown.page.locator(".mark:visible").count() == 0


def test_only_keys_that_a_query_may_see_can_be_chosen(shown: Page) -> None:
    shown.open("split", text="one two three four", query=1)
    keys = '[data-keep="option-key"] option'
    shown.becomes(lambda: shown.page.locator(keys).count() == 3)
    assert shown.page.locator(keys).all_inner_texts()[1:] == ["0 · one", "1 · two"]


def test_options_of_views_are_those_that_are_declared(shown: Page) -> None:
    uses = shown.page.evaluate("() => module_controls.USES")
    own = {view: {one["name"] for one in use.get("options", [])} - {"sample"} for view, use in uses.items()}
    assert {view: names for view, names in own.items() if names} == {view: set(OPTIONS[view]) for view in OPTIONS}


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


def test_a_head_is_seen_as_lines_too(shown: Page) -> None:
    section = shown.open("head", text="one two three four", position="alibi")
    page = shown.page
    page.click('[data-form="lines"]')
    plot = section.locator(".plot.links")
    assert not section.locator(".plot.map").first.is_visible()
    drawn = "one => one.toDataURL()"
    threads = section.locator("canvas.threads")
    every = threads.evaluate(drawn)
    plot.focus()
    page.keyboard.press("ArrowDown")  # the first token sees only itself
    assert section.locator(".as-lines .readout").inner_text() == "query 0 'one': 0 'one' 1.00"
    assert len(threads.evaluate(drawn)) < len(every)
    page.keyboard.press("End")
    shares = [float(one) for one in re.findall(r"' ([\d.]+)", section.locator(".as-lines .readout").inner_text())]
    assert len(shares) == 4
    assert abs(sum(shares) - 1) < 0.002
    page.keyboard.press("Escape")
    assert threads.evaluate(drawn) == every
    shown.open("head", text="one two three", position="alibi")  # and so it stays for another text
    assert plot.is_visible()
    shown.open("head", text="a " * 101)
    assert section.locator(".plot.map").first.is_visible()
    assert not page.locator('[data-form="lines"]').is_visible()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_terms_are_explained_where_they_stand_and_in_a_list(client: Client, browser: Any, language: str) -> None:  # noqa: F811
    locale = "zh-CN" if language == "zh" else "en-GB"
    found = opened(client, browser, fragment="#view=softmax&kind=fresh", locale=locale)
    page, tip = found.page, found.page.locator("#term-tip")
    term = page.locator(".screen .term").first
    assert term.inner_text() == {"en": "scores", "zh": "分数"}[language]
    means = {"en": "q·k/√d_k plus position, before softmax", "zh": "softmax 之前的 q·k/√d_k 加上位置"}[language]
    term.focus()
    assert tip.inner_text() == means
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    term.hover()
    assert tip.inner_text() == means
    page.click('[data-keep="terms"]')
    assert means in page.locator("dialog dd").all_inner_texts()
    assert_accessible(page)
    assert found.complaints == []
    page.context.close()


def test_the_terms_are_those_of_the_glossary() -> None:
    spec = importlib.util.spec_from_file_location("glossary", Path(__file__).parents[2] / "docs" / "glossary.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.DATA.read_text(encoding="utf-8") == made.terms(), "run python docs/glossary.py"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_tour_leads_through_its_steps(client: Client, browser: Any, language: str) -> None:  # noqa: F811
    found = opened(client, browser, locale="zh-CN" if language == "zh" else "en-GB")
    page = found.page
    page.click('[data-keep="tour"]')
    seen = []
    while page.locator(".tour").is_visible():
        view = found.address()["view"]
        found.settle(view)
        seen.append(view)
        assert page.locator(".screen .warning").count() == 0, view
        title, text = page.locator(".tour h2").inner_text(), page.locator(".tour p").inner_text()
        assert bool(re.search("[一-鿿]", title + text)) is (language == "zh")
        assert "." not in title  # no key of a word that is missing
        page.keyboard.press("Enter")  # the button has the focus
    assert seen == [
        *("softmax", "scaling", "whatif", "vectors", "whatif", "rotation", "whatif", "bias", "longer"),
    ]
    assert page.evaluate("document.activeElement.dataset.keep") == "tour"
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
        "stepper": {"position": "learned(max_length=10000000)"},
        "head": {"text": "w " * 1100},
        "wall": {"kind": "run", "run": "gone"},
        "softmax": {"text": ""},
        "distance": {"text": "one"},
    }
    for view, more in wrong.items():
        found.page.evaluate("hash => { location.hash = hash; }", f"view=projection&kind=fresh&seed={len(view)}")
        found.settle("projection")
        found.page.evaluate(
            "place => { location.hash = new URLSearchParams(place); }", {"view": view, "kind": "fresh", **more}
        )
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
