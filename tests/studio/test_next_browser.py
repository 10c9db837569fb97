"""The likeliest next tokens beside the studio's text: they follow the text and the model, and a click appends one."""

from __future__ import annotations

from typing import Any

from browser import assert_accessible, browser  # noqa: F401
from served import Client
from test_studio_browser import Page, opened, shown  # noqa: F401

from headway.views import Question
from headway.views.predicting import next_tokens


def told(page: Any) -> list[str]:
    """What the strip shows, once it is no longer waiting."""
    page.locator('.next-strip[aria-busy="false"]').wait_for()
    return [str(text) for text in page.locator(".next-token:visible").all_inner_texts()]


def test_the_strip_follows_the_text_and_appends(shown: Page) -> None:  # noqa: F811
    page = shown.page
    shown.open("head", text="one two three one two")
    expected = next_tokens(Question.fresh("one two three one two"))["tokens"]
    shown.becomes(lambda: [text.split()[0] for text in told(page)] == [one["label"] for one in expected])
    shares = [float(text.split()[1].removesuffix("%").strip()) for text in told(page)]
    assert [abs(100 * one["p"] - share) < 0.51 for one, share in zip(expected, shares, strict=True)] == [True] * 3
    before = told(page)
    asked = sum("/api/next" in url for url in shown.requests)
    page.fill("textarea", "one two three two two")
    shown.becomes(lambda: told(page) != before)
    assert sum("/api/next" in url for url in shown.requests) == asked + 1
    first = page.locator(".next-token").first
    word = first.locator(".next-name").inner_text()
    first.focus()
    page.keyboard.press("Enter")
    shown.becomes(lambda: page.locator("textarea").input_value() == f"one two three two two {word}")
    assert page.evaluate("document.activeElement.dataset.keep") == "next-0"
    shown.becomes(lambda: page.locator('[data-choose="query"] option').count() == 6)


def test_models_of_bytes_predict_bytes_and_say_what_cannot_be_appended(shown: Page) -> None:  # noqa: F811
    page = shown.page
    shown.open("head", kind="run", text="the c")
    shown.becomes(lambda: len(told(page)) == 5)
    for button in page.locator(".next-token").all():
        appends = button.get_attribute("aria-disabled") == "false"
        assert ("Append" in str(button.get_attribute("aria-label"))) is appends
    page.click('[data-keep="next-more"]')
    shown.settle("prediction")
    assert not page.locator('[data-keep="next-more"]').is_visible()
    shown.open("long")
    assert not page.locator(".next-strip").is_visible()
    shown.open("head")


def test_sampling_is_played_with(shown: Page) -> None:  # noqa: F811
    page = shown.page
    section = shown.open("prediction", text="a b c d a b")
    page.locator('[data-keep="option-top_k"]').focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    shown.becomes(lambda: "draws from 2 of 4" in section.locator(".notes").inner_text())
    assert shown.address()["o.top_k"] == "2"
    assert "✗ top-k" in section.inner_text()
    page.keyboard.press("Home")
    shown.becomes(lambda: "draws from 4 of 4" in section.locator(".notes").inner_text())
    shown.open("prediction", text="a b c d a b", **{"o.temperature": "0.5", "o.shift": "5"})
    shown.becomes(lambda: "temperature 0.5" in section.inner_text())
    assert "unchanged within rounding" in section.locator(".finding").inner_text()


def test_generation_is_scrubbed_and_shortened(shown: Page) -> None:  # noqa: F811
    page = shown.page
    section = shown.open("generation", text="a b c d a b")
    film = section.locator('.film input[type="range"]')
    film.focus()
    page.keyboard.press("End")
    shown.becomes(lambda: "Step 12" in section.locator(".film-label").inner_text())
    shown.becomes(lambda: "17" in section.locator("table").first.inner_text())
    page.locator('[data-keep="option-tokens"]').focus()
    page.keyboard.press("Home")  # fewer steps than the one shown
    shown.becomes(lambda: "Step 1:" in section.locator(".film-label").inner_text())


def test_everyone_can_use_it(client: Client, browser: Any) -> None:  # noqa: F811
    for view, theme, locale in (("prediction", "light", "en-GB"), ("generation", "dark", "zh-CN")):
        found = opened(client, browser, color_scheme=theme, locale=locale, viewport={"width": 1024, "height": 800})
        found.open(view, **{"o.temperature": "0.7", "o.tokens": "2"})
        told(found.page)
        assert_accessible(found.page)
        assert found.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert found.complaints == []
        found.page.context.close()
