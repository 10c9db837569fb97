"""What is shown, for others: links, saved files, and a studio without a server."""

from __future__ import annotations

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, idle, open_page, saved, wait_for  # noqa: F401
from served import Client
from test_studio_browser import VIEWS, Page, opened

from headway.shapes import HeadwayError
from headway.studio.export import BYTES, export

PIXELS = "all => all.filter(one => one.width > 1).map(one => one.toDataURL())"
FIGURES = '[data-view="stepper"] canvas.cells'


@pytest.fixture(scope="module")
def shown(client: Client, browser: Any) -> Iterator[Page]:  # noqa: F811
    found = opened(client, browser, locale="zh-CN", permissions=["clipboard-read", "clipboard-write"])
    yield found
    assert found.foreign() == []
    assert found.complaints == []
    found.page.context.close()


def file_of(page: Any, kind: str) -> Path:
    """What an item of the menu saves."""
    page.click('[data-keep="open-save"]')
    with page.expect_download() as waiting:
        page.locator(f'[data-save="{kind}"]').first.click()
    return Path(waiting.value.path())


def test_a_saved_page_is_what_is_shown(shown: Page, open_page: Any, tmp_path: Path) -> None:  # noqa: F811
    shown.open("stepper", text="one </script><b> three", head=2)
    page = shown.page
    page.locator(".screen .strip button").nth(3).click()
    page.locator(".screen details summary").first.click()
    kept = tmp_path / "kept.html"
    kept.write_bytes(file_of(page, "html").read_bytes())
    alone = open_page(kept, locale="en-GB")  # offline, and it fails if anything is asked for
    assert alone.locator("#report").get_attribute("lang") == "zh-CN"
    assert alone.locator('[role="tab"][aria-selected="true"] .stage-label').inner_text() == "V"
    for part in (".finding", "table", ".stage-said"):
        assert alone.locator(part).first.inner_text() == page.locator(f".screen {part}").first.inner_text(), part
    assert alone.eval_on_selector_all(FIGURES, PIXELS) == page.eval_on_selector_all(FIGURES, PIXELS)
    assert len(page.eval_on_selector_all(FIGURES, PIXELS)) == 2
    assert alone.locator("h1").inner_text() == "one < / script > < b > three"
    alone.click('[data-keep="language-en"]')
    assert alone.locator('[role="tab"][aria-selected="true"] .stage-label').inner_text() == "V"  # and so it stays


def test_pictures_and_values_are_saved(shown: Page) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    shown.open("head", text="one two three")
    assert file_of(shown.page, "svg").read_bytes()[:200].count(b"<?xml") == 1
    assert file_of(shown.page, "pdf").read_bytes().startswith(b"%PDF")
    lines = file_of(shown.page, "csv").read_text(encoding="utf-8-sig").splitlines()
    assert [line.partition(",")[0] for line in lines[1:]] == ["one", "two", "three"]


def test_a_picture_of_another_kind_is_refused(client: Client) -> None:
    reply = client.post("/api/picture", {"view": "head", "text": "a b", "format": "exe", "language": "en"})
    assert reply.status == 400
    assert "svg" in reply.json()["error"]


def test_a_copied_link_holds_the_whole_state(shown: Page, client: Client, browser: Any) -> None:  # noqa: F811
    text = "one two three " * 200  # too long for the page's own address
    shown.open("head", text="x y", head=2, **{"o.what": "scores"})
    shown.page.fill("textarea", text)
    shown.becomes(lambda: "600" in shown.page.locator(".status").inner_text())
    shown.page.keyboard.press("Escape")
    assert len(shown.page.url) < 500
    shown.page.click('[data-keep="copy-link"]')
    shown.becomes(lambda: shown.page.locator('[data-keep="copy-link"]').inner_text() == "已复制")
    link = shown.page.evaluate("navigator.clipboard.readText()")
    other = opened(client, browser, fragment="#" + link.partition("#")[2])
    other.settle("head")
    assert other.page.locator("textarea").input_value() == text
    assert other.address()["o.what"] == "scores"
    assert other.choice("head") == "2"
    assert re.search("position=rotary", link), "what is left to the first view elsewhere may be another"
    other.page.context.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views of a studio without a server."""
    folder = tmp_path_factory.mktemp("site")
    export([], folder, ["split", "vectors"])
    return folder


def test_a_studio_without_a_server_opens_from_disk(site: Path, open_page: Any, tmp_path: Path) -> None:  # noqa: F811
    page = open_page(site / "index.html", height=800, beside=True)
    page.locator('.screen [data-view="split"]').wait_for(timeout=10_000)
    assert page.locator(".views-nav a").count() == 2
    first = page.locator(".screen .finding").inner_text()
    page.select_option('[data-choose="head"]', "3")
    wait_for(page, lambda: page.locator(".screen .finding").inner_text() != first)
    page.select_option('[data-choose="model"]', "fresh:alibi")
    wait_for(page, lambda: "alibi" in page.locator(".status").inner_text())
    page.click('[data-view-link="vectors"]')
    page.locator('.screen [data-view="vectors"]').wait_for()
    assert page.locator('[data-choose="model"]').input_value() == "fresh:alibi"
    assert "Sinusoidal" in page.locator(".instead").inner_text()
    page.click('[data-keep="language-zh"]')
    assert re.search("[一-鿿]", page.locator(".screen .finding").inner_text())
    (tmp_path / "kept.html").write_bytes(file_of(page, "html").read_bytes())
    alone = open_page(tmp_path / "kept.html")
    assert alone.locator(".finding").inner_text() == page.locator(".screen .finding").inner_text()


def test_any_web_server_serves_it_from_any_folder(site: Path, open_page: Any) -> None:  # noqa: F811
    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    handler = functools.partial(Silent, directory=str(site.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = open_page(f"http://127.0.0.1:{server.server_port}/{site.name}/index.html#view=split&layer=1")
        page.locator('.screen [data-view="split"]').wait_for(timeout=10_000)
        assert page.locator('[data-choose="layer"]').input_value() == "1"
        server.shutdown()


def test_only_its_own_folder_is_replaced(site: Path, tmp_path: Path) -> None:
    export([], site, ["wall"])
    assert {path.name[:5] for path in (site / "views").iterdir()} == {"wall-"}
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(HeadwayError, match="other files: choose another"):
        export([], tmp_path, ["wall"])
    (site / "notes.txt").write_text("mine")
    with pytest.raises(HeadwayError, match="other files: choose another"):
        export([], site, ["wall"])
    assert (site / "index.html").is_file()
    with pytest.raises(HeadwayError, match="expected views of"):
        export([], tmp_path / "new", ["walls"])
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_whole_studio_without_a_server(folders: list[Path], open_page: Any, tmp_path: Path) -> None:  # noqa: F811
    size = export(folders, tmp_path / "site")
    assert size == sum(path.stat().st_size for path in (tmp_path / "site").rglob("*") if path.is_file()) <= 8_000_000
    assert size <= BYTES + 100_000
    page = open_page(tmp_path / "site" / "index.html", beside=True)
    assert page.locator(".views-nav a").count() == len(VIEWS)
    for view in VIEWS:
        page.evaluate("hash => { location.hash = hash; }", f"view={view}")
        section = page.locator(f'.screen [data-view="{view}"]')
        section.wait_for(timeout=10_000)
        assert page.locator(".screen .warning").count() == 0, view
        if view != "report":
            assert section.locator(".finding").inner_text(), view
    page.evaluate("() => { location.hash = 'view=report'; }")
    with page.context.expect_page() as waiting:
        page.locator(".screen .reports a").first.click()
    waiting.value.locator("h1").wait_for(timeout=10_000)
    assert waiting.value.url.startswith("file:")
    waiting.value.close()
