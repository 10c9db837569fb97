"""Make the README's pictures. ``make picture`` makes the reports and then this.

Usage: python docs/picture.py REPORT.html OUT.png    the first figure of a report
       python docs/picture.py studio OUT.png         the studio, on content and position of a sentence
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PLACE = "view=split&text=The+cat+sat+on+the+mat+because+it+was+tired&position=alibi"


def report(page: Page, source: str, out: str) -> None:
    """Photograph a report's first figure."""
    page.goto(Path(source).resolve().as_uri())
    figure = page.locator("figure").first
    # without what belongs to the page and not to the picture
    hidden = "p, details, button, [role=group]"
    figure.evaluate("(f, hidden) => f.querySelectorAll(hidden).forEach(e => e.style.display = 'none')", hidden)
    figure.screenshot(path=out)


def studio(page: Page, out: str) -> None:
    """Photograph the studio."""
    command = [sys.executable, "-m", "headway", "studio", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
        page.set_viewport_size({"width": 1280, "height": 1010})
        page.goto(address)
        page.evaluate("place => { location.hash = place; }", PLACE)
        page.locator("canvas").nth(2).wait_for()
        page.wait_for_timeout(500)
        page.screenshot(path=out)
        server.terminate()


def main(source: str, out: str) -> None:
    """Photograph it in the Chromium that is installed."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("expected chromium to take the picture with, found none: install it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 960, "height": 900}, color_scheme="light", locale="en-US")
        if source == "studio":
            studio(page, out)
        else:
            report(page, source, out)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
