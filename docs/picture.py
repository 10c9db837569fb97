"""Make the pictures of the README and of see.md. ``make picture`` makes the reports and then this.

Usage: python docs/picture.py REPORT.html OUT.png    the first figure of a report
       python docs/picture.py studio FOLDER          the studio, each of PLACES
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

TEXT = "text=The+cat+sat+on+the+mat+because+it+was+tired"
PLACES = {
    "studio": (f"view=split&{TEXT}&position=alibi", "light", "en-US"),
    "product": (f"view=projection&{TEXT}", "light", "en-US"),
    "wall": (f"view=wall&{TEXT}&layers=4&heads=8", "dark", "en-US"),
    "rotation": (f"view=rotation&{TEXT}", "light", "zh-CN"),
    "step": (f"view=step&{TEXT}", "dark", "zh-CN"),
}
"""Where in the studio each picture is taken, in which theme and language."""


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
    """Photograph the studio: the first picture whole, the others the view alone."""
    for name, (place, theme, language) in PLACES.items():
        size = {"width": 1280, "height": 1010 if name == "studio" else 860}
        page = browser.new_page(viewport=size, color_scheme=theme, locale=language)
        with served() as address:
            page.goto(address)
            page.wait_for_url(lambda url: "token" not in url)  # a link that was followed leads on without it
            page.evaluate("place => { location.hash = place; }", place)
            page.locator(f"[data-view={place[5:].partition('&')[0]}] canvas, [data-view=step] svg").first.wait_for()
            page.wait_for_timeout(1500)  # what fades in has done so
            view = page.locator("section.view")
            if name != "studio":
                page.locator("header").first.evaluate("header => { header.style.position = 'static'; }")
                if name == "step":
                    page.get_by_role("tab").last.click()
                    page.wait_for_timeout(500)
                view.evaluate("view => view.scrollIntoView()")
            box = view.bounding_box()
            assert box is not None
            clip = {"x": box["x"] - 16, "y": max(0, box["y"]), "width": box["width"] + 32, "height": size["height"]}
            page.screenshot(path=Path(folder) / f"{name}.png", **({} if name == "studio" else {"clip": clip}))
        page.close()


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
