"""What the tests of pages share: one browser for a module, pages that must stay silent, words that must not overlap."""

from __future__ import annotations

import importlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)

Open = Callable[..., Any]


def absent(why: str) -> NoReturn:
    """Skip a test, or fail it where HEADWAY_BROWSER=required says that pages must be looked at."""
    if os.environ.get("HEADWAY_BROWSER") == "required":
        pytest.fail(f"{why}, but HEADWAY_BROWSER=required")
    pytest.skip(why)


def needed(module: str, else_what: str) -> Any:
    """A module needed to open pages."""
    try:
        return importlib.import_module(module)
    except ImportError:
        absent(f"{module} is not installed: {else_what}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of a module; without one they are skipped, with the reason."""
    sync_api = needed("playwright.sync_api", "the page is not looked at")
    if CHROMIUM is None:
        absent("no Chromium on this machine: the page is not looked at")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def idle(browser: Any) -> Iterator[dict[tuple[Any, ...], list[Any]]]:
    """Pages to show something on, by what their contexts were made with: a new one costs more than most tests."""
    pages: dict[tuple[Any, ...], list[Any]] = {}
    yield pages
    for page in (one for some in pages.values() for one in some):
        page.context.close()


@pytest.fixture
def open_page(browser: Any, idle: dict[tuple[Any, ...], list[Any]], tmp_path: Path) -> Iterator[Open]:
    """Open HTML text, a file or an address; the test fails on any console message, error or request for elsewhere."""
    complaints: list[str] = []
    opened: list[tuple[tuple[Any, ...], Any, dict[str, Callable[[Any], None]]]] = []

    def open_one(
        shown: str | Path,
        *,
        width: int = 1280,
        height: int = 900,
        color_scheme: str = "light",
        fresh: bool = False,
        beside: bool = False,
        **options: Any,
    ) -> Any:
        """On a page that was idle, unless its memory is what is looked at and it has to be a fresh one.

        ``beside`` says that a file may load others of its folder.
        """
        if isinstance(shown, str) and not shown.startswith(("http:", "file:")):
            name = tmp_path / "page.html"
            name.write_text(shown, encoding="utf-8")
            shown = name
        uri = shown.as_uri() if isinstance(shown, Path) else shown
        home = (
            uri[: uri.rindex("/") + 1 if beside else None]
            if uri.startswith("file:")
            else "/".join(uri.split("/")[:3]) + "/"
        )
        options = {"locale": "en-GB", "offline": uri.startswith("file:"), **options}
        made_with = tuple(sorted(options.items()))
        if fresh or not idle.get(made_with):
            context = browser.new_context(**options)
            context.set_default_timeout(10_000)
            page = context.new_page()
        else:
            page = idle[made_with].pop()
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(media="null", color_scheme=color_scheme)
        listeners: dict[str, Callable[[Any], None]] = {
            "console": lambda message: complaints.append(f"{message.type}: {message.text}"),
            "pageerror": lambda error: complaints.append(str(error)),
            "dialog": lambda dialog: complaints.append(f"a dialog opened: {dialog.message}"),
            "request": lambda one: None if one.url.startswith((home, "blob:")) else complaints.append(one.url),
        }
        for event, listener in listeners.items():
            page.on(event, listener)
        opened.append((made_with, page, listeners))
        page.goto(uri)
        return page

    yield open_one
    for made_with, page, listeners in opened:
        if complaints or page.is_closed():  # it may hang in a dialog
            page.context.close()
            continue
        page.goto("about:blank")
        page.mouse.move(0, 0)
        for event, listener in listeners.items():
            page.remove_listener(event, listener)
        idle.setdefault(made_with, []).append(page)
    assert complaints == []


OVERLAPS = """() => {
  // Texts may be turned: two boxes are apart if they are apart along a side of one of them.
  const corners = (text) => {
    const [box, to] = [text.getBBox(), text.getScreenCTM()];
    const at = (x, y) => [to.a * x + to.c * y + to.e, to.b * x + to.d * y + to.f];
    const [right, bottom] = [box.x + box.width, box.y + box.height];
    return [at(box.x, box.y), at(right, box.y), at(right, bottom), at(box.x, bottom)];
  };
  const apart = (one, other) => [one, other].some((box) => [0, 1].some((side) => {
    const [dx, dy] = [box[side + 1][0] - box[side][0], box[side + 1][1] - box[side][1]];
    const size = Math.hypot(dx, dy) || 1;
    const along = (points) => points.map(([x, y]) => (x * dx + y * dy) / size);
    const [a, b] = [along(one), along(other)];
    return Math.min(Math.max(...a), Math.max(...b)) - Math.max(Math.min(...a), Math.min(...b)) <= (side ? 2 : 1);
  }));
  const found = [];
  for (const svg of document.querySelectorAll('.plot > svg')) {
    const kinds = '.end-label, .note, .mark-label, .tick, .rail, .axis-title';
    const texts = [...svg.querySelectorAll(kinds)].filter((text) => text.getBoundingClientRect().width);
    const boxes = texts.map(corners);
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, k) => {
      if (!apart(a, b)) found.push(`${texts[i].textContent} / ${texts[i + 1 + k].textContent}`);
    }));
  }
  return found;
}"""
"""Pairs of labels of one drawing that cover each other."""
OUTSIDE = """() => {
  const wide = document.documentElement.clientWidth;
  const page = document.documentElement.scrollWidth > wide ? ['the page scrolls sideways'] : [];
  const texts = [...document.querySelectorAll('.plot text, h1, h2, p, li, button, dd')].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.width && (box.left < -0.5 || box.right > wide + 0.5) && !one.closest('.scroll');
  });
  return [...page, ...texts.map((one) => one.textContent)];
}"""
"""Texts that leave the page."""


def assert_accessible(page: Any, *, alike: str | None = None) -> None:
    """No serious finding of axe-core in what the page shows now: names, contrast, landmarks, structure, ARIA.

    ``alike`` selects elements in the colours of others, whose contrast, which takes longest, is not measured again.
    """
    axe = needed("axe_playwright_python.sync_playwright", "accessibility is not checked")
    page.evaluate(axe.Axe().axe_script)
    found = page.evaluate(  # without what holds: megabytes
        """async (alike) => {
          const run = async (where, options) =>
            (await axe.run(where, { resultTypes: ['violations'], ...options })).violations;
          if (!alike) return run(document, {});
          const contrast = await run({ exclude: [[alike]] }, { runOnly: ['color-contrast'] });
          return contrast.concat(await run(document, { rules: { 'color-contrast': { enabled: false } } }));
        }""",
        alike,
    )
    grave = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(one["id"], one["help"], [node["target"] for node in one["nodes"]][:4]) for one in grave] == []


def wait_for(page: Any, condition: Callable[[], bool], seconds: float = 5) -> None:
    """Until something is so; a page's policy forbids what Playwright's own waiting for an expression does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not become so"
        page.wait_for_timeout(25)


def saved(page: Any, button: str) -> tuple[str, str]:
    """The name and text of the file that a button saves."""
    with page.expect_download() as waiting:
        page.click(button)
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes().decode("utf-8-sig")
