"""The path of someone who opens the studio for the first time, from the first screen to a file that others open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from browser import browser, idle, open_page  # noqa: F401
from served import studio
from test_next_browser import told
from test_studio_browser import opened
from test_studio_share import PIXELS, file_of


def test_from_the_first_screen_to_a_file_that_others_open(browser: Any, open_page: Any, tmp_path: Path) -> None:  # noqa: F811
    with studio() as client:
        client.enter()
        found = opened(client, browser)
        page, head = found.page, found.settle("head")
        assert "key 9 “␣tired”: 98" in head.locator(".finding").inner_text().replace(
            "\xa0", " "
        )  # what came next, before

        before = told(page)
        page.fill("textarea", "The cat sat on the mat because it was hungry, the cat sat on the mat because it was")
        found.becomes(lambda: told(page) != before)  # another word, another prediction
        page.keyboard.press("Escape")  # a text that is being written lies over what is below it

        found.open("whatif", text=page.locator("textarea").input_value())
        page.click('[data-keep="option-change-swap"]')
        found.becomes(lambda: found.address().get("o.change") == "swap")
        changed = found.settle("whatif")
        found.becomes(lambda: "alibi" in changed.locator(".finding").inner_text())
        assert "nothing changes" not in changed.locator(".finding").inner_text()

        page.click('[data-keep="option-change-shift"]')
        found.becomes(lambda: "nothing changes" in changed.locator(".finding").inner_text())  # rotary knows distances

        kept = tmp_path / "shared.html"
        kept.write_bytes(file_of(page, "html").read_bytes())
        alone = open_page(kept)  # offline, and it fails if anything is asked for
        for part in (".finding", "h1, h2"):
            assert alone.locator(f".view {part}").first.inner_text() in page.locator(".screen .view").inner_text()
        pictures = '[data-view="whatif"] canvas.cells'
        assert alone.eval_on_selector_all(pictures, PIXELS) == page.eval_on_selector_all(pictures, PIXELS)
        assert len(alone.eval_on_selector_all(pictures, PIXELS)) == 3
        assert found.foreign() == []
        assert found.complaints == []
        page.context.close()
