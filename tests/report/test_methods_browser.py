"""A method's page in a browser: both languages and themes, nothing outside its width, curves as computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_browser import CHROMIUM, FLAGS, OUTSIDE, OVERLAPS, sync_api

from headway.experiments.catalogue import entry
from headway.positions import parse
from headway.report.methods import write_method

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page is not looked at")
SPECS = ("alibi", "rotary(base=500000.0, fraction=0.25, pairing='interleaved')", "shaw", "none", "stickbreaking")
READERS = ((400, "en-GB", "dark"), (640, "zh-CN", "light"), (1280, "en-GB", "light"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.mark.parametrize(("width", "locale", "scheme"), READERS)
@pytest.mark.parametrize("spec", SPECS)
def test_a_page_opens_offline_in_both_languages(
    browser: Any, tmp_path: Path, spec: str, width: int, locale: str, scheme: str
) -> None:
    found = entry(parse(spec))
    uri = write_method(found, tmp_path / "method.html").as_uri()
    context = browser.new_context(
        viewport={"width": width, "height": 900}, offline=True, locale=locale, color_scheme=scheme
    )
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: None if request.url == uri else complaints.append(request.url))
    page.goto(uri)
    assert page.locator("h1").inner_text() == found["title"]
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(OVERLAPS) == []
    text = page.locator("#report").inner_text()
    assert found["summary_zh" if locale == "zh-CN" else "summary"] in text
    assert "methods." not in text
    assert "undefined" not in text
    assert page.locator(".line").count() == len(found["picture"]["curves"])
    plot = page.locator(".plot")
    plot.focus()
    plot.press("ArrowRight")
    plot.press("End")
    assert "255" in page.locator(".readout").inner_text()
    context.close()
    assert complaints == []
