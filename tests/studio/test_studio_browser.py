"""The studio in a browser: every view opens in both languages and themes, by mouse and by keyboard, wide and narrow."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from browser import OUTSIDE, OVERLAPS, assert_accessible, browser, wait_for  # noqa: F401
from served import Client, studio

from headway.shipped import NAMES, OPENING
from headway.studio.fields import FORM

VIEWS: dict[str, dict[str, Any]] = {
    "stepper": {},
    "projection": {},
    "scaling": {},
    "softmax": {},
    "wall": {},
    "head": {},
    "split": {},
    "distance": {},
    "long": {},
    "prediction": {},
    "generation": {},
    "vectors": {"position": "sinusoidal"},
    "similarity": {},
    "bias": {"position": "alibi"},
    "rotation": {},
    "sidebyside": {},
    "whatif": {},
    "longer": {},
    "report": {},
    "film": {"kind": "run"},
    "step": {},
    "board": {"kind": "run"},
}
"""All twenty-two views in the order of the page, each with a model it has something to say about."""


WITHOUT_FIGURE = ("report",)
IN_SIGHT = """() => {
  const figures = [...document.querySelectorAll('.screen :is(.plot, .flow, .wall, .dials, table)')];
  const box = figures.map((one) => one.getBoundingClientRect()).find((box) => box.width);
  return (Math.min(window.innerHeight, box.bottom) - box.top) / Math.min(box.height, window.innerHeight / 2);
}"""
"""How much of the first figure is in the window, as a share of it or of half the window."""


class Page:
    """A page of the studio and what it was heard to say; ``settle`` waits for what was asked for."""

    def __init__(self, page: Any, home: str) -> None:
        self.page, self.home = page, home
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"a dialog opened: {dialog.message}"))
        page.on("request", lambda request: self.requests.append(request.url))

    def foreign(self) -> list[str]:
        return [url for url in self.requests if not url.startswith((self.home, "data:", "blob:"))]

    def open(self, view: str, **more: Any) -> Any:
        """Go to a view as a shared address does, and wait until it is there."""
        self.page.evaluate("hash => { location.hash = hash; }", urlencode({"view": view, "kind": "fresh", **more}))
        return self.settle(view)

    def settle(self, view: str) -> Any:
        shown = self.page.locator(f'.screen [data-view="{view}"]')
        shown.wait_for(timeout=10_000)
        self.page.locator('.screen[aria-busy="false"]').wait_for(timeout=10_000)
        return shown

    def becomes(self, condition: Callable[[], bool]) -> None:
        wait_for(self.page, condition)

    def choice(self, name: str) -> str:
        """What a chooser shows."""
        return str(self.page.locator(f'[data-choose="{name}"]').input_value())

    def address(self) -> dict[str, str]:
        """The state in the address."""
        text = self.page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")
        return {str(key): str(value) for key, value in text.items()}


@pytest.fixture(scope="module")
def shown(client: Client, browser: Any) -> Iterator[Page]:  # noqa: F811
    """One page that most tests share; it is silent to the end, and asks nobody else for anything."""
    found = opened(client, browser)
    yield found
    assert found.foreign() == []
    assert found.complaints == []
    found.page.context.close()


def opened(client: Client, browser: Any, *, fragment: str = "", **options: Any) -> Page:  # noqa: F811
    """Another page of the same studio, with its cookie, as a second window has."""
    home = f"http://127.0.0.1:{client.port}/"
    options = {"viewport": {"width": 1280, "height": 800}, "locale": "en-GB", **options}
    context = browser.new_context(**options)
    name, _, value = client.cookie.partition("=")
    context.add_cookies([{"name": name, "value": value, "url": home, "httpOnly": True, "sameSite": "Strict"}])
    found = Page(context.new_page(), home)
    found.page.goto(home + fragment)
    found.page.locator(".screen .view, .screen .warning").first.wait_for(timeout=15_000)
    return found


def test_the_printed_address_opens_on_a_sentence_and_a_view(browser: Any) -> None:  # noqa: F811
    with studio() as client:
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{client.port}/?token={client.token}")
        page.locator('.screen [data-view="head"] canvas').first.wait_for(timeout=15_000)
        assert page.url.startswith(f"http://127.0.0.1:{client.port}/#")
        assert "token" not in page.url
        assert page.locator("textarea").input_value() == OPENING["en"]
        assert len(page.locator(".screen .finding").inner_text()) > 20
        assert page.evaluate("document.cookie") == ""  # scripts cannot read it
        page.goto(f"http://127.0.0.1:{client.port}/?token={client.token}")  # from the history: it is in already
        page.locator(".screen .view").wait_for(timeout=15_000)
        context.close()


def test_a_checkpoint_of_transformers_opens_first(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    hf = pytest.importorskip("transformers", reason="the extra hf is not installed")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\ncat\nsat\n")
    hf.BertTokenizer(str(tmp_path / "tiny" / "vocab.txt")).save_pretrained(tmp_path / "tiny")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 24}
    hf.BertModel(hf.BertConfig(vocab_size=8, **sizes)).save_pretrained(tmp_path / "tiny")
    with studio([tmp_path / "tiny"]) as client:
        client.enter()
        found = opened(client, browser)
        page = found.page
        listed = page.locator('[data-choose="run"] option').all_inner_texts()
        assert listed == ["tiny · bert, 2 layers × 3 heads, width 24", *listed[1:]]  # and models that ship
        assert page.locator('[data-choose="run"]').input_value().startswith("tiny-")
        for view in ("head", "split"):
            section = found.open(view, kind="run")
            assert section.locator("canvas").count() >= 1, view
            assert "unknown to the vocabulary" in section.inner_text()
        assert found.complaints == []
        page.context.close()


@pytest.mark.parametrize(("language", "theme"), [("en", "light"), ("zh", "dark")])
def test_every_view_opens(client: Client, browser: Any, language: str, theme: str) -> None:  # noqa: F811
    locale = "zh-CN" if language == "zh" else "en-GB"
    found = opened(client, browser, locale=locale, color_scheme=theme)
    page = found.page
    assert page.locator(".views-nav a").count() == len(VIEWS) == 22
    assert page.locator("#studio").get_attribute("lang") == ("zh-CN" if language == "zh" else "en")
    order = page.eval_on_selector_all(".views-nav a", "links => links.map(link => link.dataset.viewLink)")
    assert order == list(VIEWS)
    for view, more in VIEWS.items():
        section = found.open(view, **more)
        assert page.locator(".screen .warning").count() == 0, (view, page.locator(".screen .warning").inner_text())
        title = section.locator("h2").inner_text()
        assert bool(re.search(r"[一-鿿]", title)) is (language == "zh"), (view, title)
        assert "." not in title  # no key of a word that is missing
        if view != "report":
            assert section.locator(".finding").inner_text(), view
            assert section.locator("figure, .shown").count() >= 1, view
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, view
        if view not in WITHOUT_FIGURE:
            assert page.evaluate(IN_SIGHT) > 0.5, view
        assert page.locator(f'.views-nav a[data-view-link="{view}"]').get_attribute("aria-current") == "page"
    assert "undefined" not in page.locator("#studio").inner_text()
    assert found.complaints == []
    assert found.foreign() == []
    page.context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everyone_can_use_it(client: Client, browser: Any, theme: str) -> None:  # noqa: F811
    found = opened(client, browser, color_scheme=theme, locale="zh-CN" if theme == "dark" else "en-GB")
    assert_accessible(found.page)
    found.open("whatif")
    found.page.click('[data-keep="open-model"]')
    assert_accessible(found.page)
    found.page.keyboard.press("Escape")
    found.open("film")  # with the panel of the training
    assert_accessible(found.page)
    found.page.keyboard.press("m")
    assert_accessible(found.page)
    found.page.context.close()


@pytest.mark.parametrize("width", [512, 1024])
def test_narrow_windows_and_large_type(client: Client, browser: Any, width: int) -> None:  # noqa: F811
    """1,024 pixels at 200 % zoom are 512 of the page's own."""
    found = opened(client, browser, viewport={"width": width, "height": 600})
    page = found.page
    for view in ("stepper", "head", "whatif", "film", "sidebyside"):
        found.open(view)
        assert page.evaluate(OUTSIDE) == [], view
        assert page.evaluate(OVERLAPS) == [], view
    if width == 512:
        assert not page.locator(".views-nav").is_visible()
        page.select_option('[data-keep="view-select"]', "softmax")
        found.settle("softmax")
    found.page.context.close()


def test_shifting_changes_nothing_for_rotary_and_something_for_sinusoids(shown: Page) -> None:
    section = shown.open("whatif")
    assert "nothing changes" in section.locator(".finding").inner_text()
    shown.page.locator('[data-keep="option-by"]').focus()
    shown.page.keyboard.press("End")
    shown.becomes(
        lambda: re.search(r"\+ 1,?000: nothing changes", section.locator(".finding").inner_text()) is not None
    )
    assert shown.address()["o.by"] == "1000"
    assert "nothing changes" not in shown.open("whatif", position="sinusoidal").locator(".finding").inner_text()
    shown.page.click('[data-keep="option-change-shuffle"]')
    shown.becomes(lambda: shown.address().get("o.change") == "shuffle")
    shown.settle("whatif")
    assert shown.page.locator('[data-keep="option-by"]').count() == 0
    assert shown.page.locator('[data-keep="option-seed"]').count() == 1


def test_the_width_of_a_head_is_a_slider(shown: Page) -> None:
    section = shown.open("scaling")
    shown.page.locator('[data-keep="option-dim"]').focus()
    shown.page.keyboard.press("Home")
    for _ in range(6):
        shown.page.keyboard.press("ArrowRight")
    shown.becomes(lambda: "64" in section.locator(".finding").inner_text())
    assert shown.address()["o.dim"] == "64"


def test_it_works_by_keyboard_alone(shown: Page) -> None:
    page, press = shown.page, shown.page.keyboard.press
    shown.open("softmax")
    press("/")
    press("Control+a")
    page.keyboard.type("one two three")
    press("Escape")
    shown.becomes(lambda: page.locator('[data-choose="query"] option').count() == 3)
    press("]")
    shown.becomes(lambda: shown.choice("layer") == "1")
    press("}")
    press("}")
    shown.becomes(lambda: shown.choice("head") == "2")
    press(",")
    shown.becomes(lambda: shown.choice("query") == "1")
    press("m")
    page.keyboard.type("alibi")
    focus = """() => {
      const event = new KeyboardEvent('keydown', { key: 'Enter', bubbles: true, cancelable: true });
      document.activeElement.dispatchEvent(event);
      return document.activeElement.tagName;
    }"""
    assert page.evaluate(focus) == "BODY"  # whose the next key is, before another frame is drawn
    shown.becomes(lambda: shown.address().get("position") == "alibi")
    press("j")
    shown.settle("wall")
    press("k")
    shown.settle("softmax")
    address = shown.address()
    assert {name: address[name] for name in ("text", "layer", "head", "query", "position")} == {
        "text": "one two three", "layer": "1", "head": "2", "query": "1", "position": "alibi",
    }  # fmt: skip
    press("?")
    assert page.locator("dialog[open]").is_visible()
    press("j")  # rests while the dialog is open
    press("Escape")
    shown.becomes(lambda: page.locator("dialog").count() == 0)
    assert shown.address()["view"] == "softmax"
    # with the tab key alone: from the first control to a link, and by Enter to its view
    page.locator('[data-keep="language-zh"]').focus()
    press("Tab")
    assert page.evaluate("document.activeElement.dataset.viewLink") == "stepper"
    press("Tab")
    press("Enter")
    shown.settle("projection")


def test_every_option_of_a_model_can_be_chosen(client: Client, browser: Any) -> None:  # noqa: F811
    shown = opened(client, browser, fragment="#view=stepper&kind=fresh")
    page = shown.page
    finding = page.locator(".finding").first.inner_text()
    assert page.locator("[data-more]").count() == len(FORM) - 4  # those with their own field
    page.click('[data-keep="open-model"]')
    page.locator(".more-options summary").click()
    page.select_option('[data-more="norm"]', "layer")
    shown.becomes(lambda: page.locator(".finding").first.inner_text() != finding)
    page.fill('[data-more="softcap"]', "-1")
    shown.becomes(lambda: "softcap to be a number above 0; it got -1" in page.locator("body").inner_text())
    page.fill('[data-more="softcap"]', "")
    shown.becomes(lambda: "m.norm=layer" in page.url and "softcap" not in page.url)
    page.reload()
    shown.becomes(lambda: page.locator('[data-more="norm"]').input_value() == "layer")
    assert page.locator(".more-options").get_attribute("open") is not None
    page.context.close()


def test_addresses_are_shared_and_the_way_back_works(shown: Page, client: Client, browser: Any) -> None:  # noqa: F811
    shown.open("head", text="a b c d", position="t5", head="3", layer="1")
    shown.page.click('[data-view-link="split"]')
    shown.settle("split")
    fragment = shown.page.evaluate("location.hash")
    other = opened(client, browser, fragment=fragment)
    other.settle("split")
    assert other.page.locator(".finding").inner_text() == shown.page.locator(".finding").inner_text()
    assert other.choice("head") == "3"
    assert other.complaints == []
    other.page.context.close()
    shown.page.go_back()
    shown.settle("head")
    assert shown.page.locator("textarea").input_value() == "a b c d"


def test_a_tile_opens_its_head_and_a_cell_chooses_its_query(shown: Page) -> None:
    shown.open("wall", text="a b c d e f")
    shown.page.locator(".tile").nth(6).click()
    shown.settle("head")
    assert (shown.choice("layer"), shown.choice("head")) == ("1", "2")
    plot = shown.page.locator('.screen [data-kind="heatmap"] .plot').first
    plot.focus()
    shown.page.keyboard.press("ArrowDown")
    shown.page.keyboard.press("ArrowDown")
    shown.page.keyboard.press("Enter")
    shown.becomes(lambda: shown.address().get("query") not in (None, "-1"))
    assert shown.choice("query") == shown.address()["query"]


def test_methods_are_found_and_several_models_stand_side_by_side(shown: Page) -> None:
    page = shown.page
    section = shown.open("sidebyside")
    assert page.locator(".chip").count() == 2
    page.click('[data-keep="other-add"]')
    page.keyboard.type("t5")
    page.keyboard.press("Enter")
    shown.becomes(lambda: page.locator(".chip").count() == 3)
    shown.becomes(lambda: "t5" in section.inner_text())
    page.click('[data-keep="other-0"]')
    shown.becomes(lambda: page.locator(".chip").count() == 2)
    page.click('[data-keep="method"]')
    before = page.locator(".picker-list button").count()
    page.keyboard.type("buckets")
    assert 1 <= page.locator(".picker-list button").count() < before
    page.fill(".picker-free input", "rotary(base=500)")
    page.keyboard.press("Enter")
    shown.becomes(lambda: shown.address().get("position") == "rotary(base=500)")
    shown.settle("sidebyside")


def test_what_cannot_be_shown_is_said_calmly(client: Client, browser: Any) -> None:  # noqa: F811
    found = opened(client, browser)
    page = found.page
    page.fill("textarea", "")
    page.locator('.screen [role="alert"]').wait_for(timeout=10_000)
    page.fill("textarea", "words again")
    page.locator(".screen .finding").wait_for(timeout=10_000)
    found.open("head", run="gone", kind="run")
    assert "Reload the page" in page.locator('.screen [role="alert"]').inner_text()
    page.context.close()


def test_position_views_open_with_a_method_that_suits(shown: Page) -> None:
    page, line = shown.page, shown.page.locator(".instead")
    for view, title in (("vectors", "Sinusoidal"), ("bias", "ALiBi")):
        shown.open(view, position="rotary")
        assert page.locator(".screen .warning").count() == 0
        assert re.search(f"Rotary .* has nothing to show in this view. Shown instead: {title}", line.inner_text())
        assert shown.address().get("position", "rotary") == "rotary"
    line.locator('[data-suits="t5"]').click()
    shown.becomes(lambda: not line.is_visible() and shown.address().get("position") == "t5")
    shown.settle("bias")
    shown.open("rotation", position="rotary")
    assert not line.is_visible()


def test_a_long_map_shows_its_tiles(shown: Page) -> None:
    section = shown.open("head")
    with shown.page.expect_response(lambda response: "/api/tiles?" in response.url) as waiting:
        shown.page.select_option('[data-keep="sample"]', "thousands")
        section = shown.settle("long")
        assert "4," in section.locator(".finding").inner_text()
        shown.page.get_by_role("button", name="Zoom in").first.click()
        shown.page.get_by_role("button", name="Zoom in").first.click()
        shown.page.get_by_role("button", name="Zoom in").first.click()
    assert waiting.value.ok
    assert len(shown.page.url) < 500  # a text that long stays out of the address


def test_markup_in_a_text_stays_text(shown: Page) -> None:
    text = "<img src=x onerror=alert(1)> <script>alert(2)</script> </textarea><b>"
    shown.open("head", text=text)
    assert shown.page.locator("textarea").input_value() == text
    assert shown.page.locator(".screen img, .screen b, #studio script").count() == 0
    shown.open("softmax", text=text, kind="run")
    assert shown.page.locator(".screen img").count() == 0


def test_trained_models_and_reports_are_there(shown: Page) -> None:
    page = shown.page
    shown.open("head", kind="run", text="the cat")
    titles = page.locator('[data-choose="run"] option').all_inner_texts()
    assert len(titles) == 3 + len(NAMES)
    assert titles[0] == "my run · rotary"
    assert any("alibi" in title for title in titles)
    page.select_option('[data-choose="run"]', index=2)
    shown.becomes(lambda: page.locator('[data-choose="layer"] option').count() == 1)
    section = shown.open("report")
    with page.context.expect_page() as waiting:
        section.locator("a").first.click()
    report = waiting.value
    said: list[str] = []
    report.on("console", lambda message: said.append(message.text))
    report.locator("h1").wait_for(timeout=10_000)
    assert report.locator(".plot svg").count() >= 1
    assert said == []
    report.close()


def test_a_training_is_started_stepped_and_watched(client: Client, browser: Any) -> None:  # noqa: F811
    found = opened(client, browser, fragment="#view=film&dim=16&heads=2&layers=1&text=to+be+or+not+to+be")
    page = found.page
    state = page.locator(".live-state")

    def step() -> int:
        return int(state.get_attribute("data-step") or 0)

    page.click('[data-live="step"]')
    found.becomes(lambda: step() == 1)
    found.settle("film")
    assert found.address()["kind"] == "live"
    page.click('[data-live="step"]')
    found.becomes(lambda: step() == 2)
    page.keyboard.press("p")
    found.becomes(lambda: step() > 12)
    found.becomes(lambda: int(page.locator('.film input[type="range"]').get_attribute("max") or 0) >= 2)
    page.keyboard.press("p")
    found.becomes(lambda: page.locator('[data-live="play"]').is_visible())
    at = step()
    page.wait_for_timeout(200)
    assert step() <= at + 1
    slider = page.locator('.film input[type="range"]')
    found.becomes(lambda: slider.input_value() == slider.get_attribute("max"))  # it shows the newest frame
    assert page.locator(".live-chart path.line").count() == 1
    page.click('[data-live="look.step"]')
    found.settle("step")
    page.click('[data-live="look.board"]')
    found.settle("board")
    page.keyboard.press("s")
    found.becomes(lambda: step() > at)
    page.click('[data-live="stop"]')
    found.becomes(lambda: page.locator('[data-live="start"]').is_visible())
    assert found.complaints == []
    page.context.close()


def test_a_studio_that_has_ended_is_said(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    with studio() as client:
        client.enter()
        found = opened(client, browser)
    found.page.click('[data-view-link="wall"]')
    found.page.locator('.screen [role="alert"]').wait_for(timeout=10_000)
    assert "Is it still running" in found.page.locator('.screen [role="alert"]').inner_text()
    found.page.context.close()


def test_nine_tabs_of_one_browser_all_answer_while_a_training_goes_on(browser: Any) -> None:  # noqa: F811
    with studio() as client:
        client.enter()
        first = opened(client, browser, fragment="#view=board&dim=16&heads=2&layers=1&text=to+be+or+not+to+be")
        first.page.click('[data-live="start"]')
        others = [first.page.context.new_page() for _ in range(8)]  # more than the six connections of a browser
        for number, page in enumerate(others):
            page.goto(f"{first.home}#view={list(VIEWS)[number]}")
            page.locator(".screen .view, .screen .warning").first.wait_for(timeout=15_000)
        for page in (first.page, *others):  # in the background, where a click would wait a second for a frame
            page.dispatch_event('[data-view-link="softmax"]', "click")
            page.locator('.screen [data-view="softmax"]').wait_for(timeout=15_000)
        for page in (first.page, others[-1]):  # and it is seen live
            page.bring_to_front()
            page.click('[data-view-link="board"]')
            state = page.locator(".live-state")
            before = int(state.get_attribute("data-step") or 0)
            wait_for(page, lambda state=state, before=before: int(state.get_attribute("data-step") or 0) > before)
        first.page.context.close()


def test_a_link_on_another_site_opens_it(browser: Any) -> None:  # noqa: F811
    with studio() as client:
        address = f"http://127.0.0.1:{client.port}/?token={client.token}"
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        plain = address.partition("?")[0]
        body = f'<a id="open" href="{address}">open</a><a id="plain" href="{plain}">open</a>'
        page.route("http://notebook.example/", lambda route: route.fulfill(content_type="text/html", body=body))
        for link in ("open", "open", "plain"):  # the first time, again, and without the token
            page.goto("http://notebook.example/")
            page.click(f"#{link}")
            page.locator('.screen [data-view="head"]').wait_for(timeout=15_000)
            assert page.url.startswith(f"http://127.0.0.1:{client.port}/#")
        context.close()


def test_the_file_that_is_handed_over_opens_it(browser: Any) -> None:  # noqa: F811
    from headway.studio.server import handed_over

    with studio() as client, handed_over(f"http://127.0.0.1:{client.port}/?token={client.token}") as file:
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        page.goto(file.as_uri())
        page.locator('.screen [data-view="head"]').wait_for(timeout=15_000)
        context.close()


@pytest.mark.parametrize("view", ["__proto__", "constructor", "nowhere", ""])
def test_a_view_that_is_none_opens_the_first(shown: Page, view: str) -> None:
    shown.page.evaluate("hash => { location.hash = hash; }", urlencode({"view": view}))
    shown.settle("stepper")
    assert shown.page.locator('.views-nav [aria-current="page"]').count() == 1


@pytest.mark.parametrize("language", ["en", "zh"])
def test_numbers_that_are_none_are_said_and_not_passed_over(client: Client, browser: Any, language: str) -> None:  # noqa: F811
    found = opened(client, browser, locale="zh-CN" if language == "zh" else "en-GB", fragment="#view=board&kind=fresh")
    page = found.page
    page.fill('[data-keep="live-lr"]', "abc")
    assert "abc" in page.locator("#live-lr-wrong").inner_text()
    assert page.locator('[data-keep="live-lr"]').get_attribute("aria-invalid") == "true"
    page.click('[data-live="start"]')
    page.locator(".live-panel .warning:visible").wait_for(timeout=15_000)
    assert "abc" in page.locator(".live-panel .warning").inner_text()
    page.fill('[data-keep="live-lr"]', "")
    assert not page.locator("#live-lr-wrong").is_visible()
    page.fill('[data-keep="live-steps"]', "0")
    assert "100,000" in page.locator("#live-steps-wrong").inner_text()
    page.click('[data-keep="open-model"]')
    seed = page.locator('[data-keep="choose-seed"]')
    said = page.locator("#choose-seed-wrong")
    for wrong in ("99999999999999", "-1", "1.5"):
        seed.fill(wrong)
        assert seed.get_attribute("aria-invalid") == "true"
        assert "2,147,483,647" in said.inner_text()
    seed.fill("7")
    found.becomes(lambda: found.address().get("seed") == "7")
    assert seed.get_attribute("aria-invalid") == "false"
    assert not said.is_visible()
    seed.fill("99999999999999")
    seed.blur()
    assert seed.input_value() == "7"  # what holds is shown
    assert not said.is_visible()
    assert found.complaints == []
    page.context.close()
