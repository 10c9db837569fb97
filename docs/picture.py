"""Make the pictures of the README and of see.md. ``make picture`` makes the reports and then this.

Usage: python docs/picture.py REPORT.html OUT.png    the first figure of a report
       python docs/picture.py studio FOLDER          the studio, each of PLACES
"""

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROTARY, T5, SINUSOIDAL = ({"run": name} for name in ("decoder-rotary", "decoder-t5", "encoder-sinusoidal"))
INDUCTION = ROTARY | {"layer": "1"}
PLACES = {
    "stepper": (INDUCTION, ".flow", "light", "en-US"),
    "projection": (INDUCTION, ".products", "light", "en-US"),
    "wall": (ROTARY, ".map-legend", "dark", "en-US"),
    "split": (INDUCTION, "table.small", "light", "en-US"),
    "prediction": (ROTARY, ".plot >> nth=1", "light", "zh-CN"),
    "vectors": (SINUSOIDAL, ".map-legend >> nth=0", "light", "en-US"),
    "bias": (T5, ".plot >> nth=0", "dark", "en-US"),
    "rotation": (INDUCTION, ".map-legend >> nth=0", "light", "zh-CN"),
    "sidebyside": (INDUCTION, ".beside-one figure >> nth=0", "light", "en-US"),
    "whatif": (INDUCTION | {"o.change": "swap"}, ".map-legend >> nth=-1", "dark", "en-US"),
    "step": (INDUCTION, '[role="tabpanel"] .map-legend >> nth=-1', "dark", "zh-CN"),
}
"""Which model each view is of, where its picture ends, and in which theme and language it is taken."""
WIDE, MARGIN = 1296, 12
"""Pixels of the window, and around a view."""


def report(browser: Browser, source: str, out: str) -> None:
    """Photograph a report's first figure."""
    page = browser.new_page(viewport={"width": 960, "height": 900}, color_scheme="light", locale="en-US")
    page.goto(Path(source).resolve().as_uri())
    figure = page.locator("figure").first
    # without what belongs to the page and not to the picture
    hidden = "p, details, button, [role=group]"
    figure.evaluate("(f, hidden) => f.querySelectorAll(hidden).forEach(e => e.style.display = 'none')", hidden)
    figure.screenshot(path=out)


@contextmanager
def served() -> Iterator[str]:
    """The address of a studio that runs meanwhile."""
    command = [sys.executable, "-m", "headway", "studio", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
        finally:
            server.terminate()


def studio(browser: Browser, folder: str) -> None:
    """Photograph the studio as it opens, and then each view by itself."""
    with served() as address:
        first = browser.new_page(viewport={"width": WIDE, "height": 860}, color_scheme="light", locale="en-US")
        first.goto(address)  # the link works once: the others have its cookie
        settle(first, "head")
        save(first.screenshot(), Path(folder) / "studio.png")
        runs = first.evaluate("async () => (await (await fetch('/api/state')).json()).runs")
        known, entered = {one["title"]: one["id"] for one in runs}, first.context.storage_state()
        for name, (model, last, theme, language) in PLACES.items():
            context = browser.new_context(
                viewport={"width": WIDE, "height": 1600}, color_scheme=theme, locale=language, storage_state=entered,
                reduced_motion="reduce",
            )  # fmt: skip
            page = context.new_page()
            page.goto(address.partition("?")[0])
            settle(page, "head")
            place = {"view": name, **model, "run": known[model["run"]]}
            place["text"] = page.locator("textarea").input_value()
            page.evaluate("place => { location.hash = new URLSearchParams(place); }", place)
            settle(page, name)
            save(page.screenshot(clip=part(page, name, last)), Path(folder) / f"{name}.png")
            context.close()


def settle(page: Page, view: str) -> None:
    """Wait until a view is there, and what fades in has done so."""
    page.locator(f'.screen[aria-busy="false"] [data-view="{view}"]').wait_for()
    page.wait_for_timeout(1500)


def part(page: Page, name: str, last: str) -> dict[str, float]:
    """A view from its title to one of its parts, without what stands before it on the page."""
    page.locator(".status").evaluate("status => { status.style.visibility = 'hidden'; }")
    if name == "step":
        page.get_by_role("tab").nth(3).click()
        page.wait_for_timeout(500)
    view = page.locator("section.view").bounding_box()
    end = page.locator(f"section.view {last}").bounding_box()
    assert view is not None
    assert end is not None
    width, height = view["width"] + 2 * MARGIN, end["y"] + end["height"] - view["y"] + MARGIN / 2 + 2
    return {"x": view["x"] - MARGIN, "y": view["y"] - MARGIN / 2, "width": width, "height": height}


def save(picture: bytes, path: Path) -> None:
    """Write a picture as small as it gets without a loss."""
    with Image.open(io.BytesIO(picture)) as whole:
        whole.convert("RGB").save(path, optimize=True)


def main(source: str, out: str) -> None:
    """Photograph it in the Chromium that is installed."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("expected chromium to take the picture with, found none: install it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        if source == "studio":
            studio(browser, out)
        else:
            report(browser, source, out)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
