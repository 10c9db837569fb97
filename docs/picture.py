"""Make a picture for the README: the first figure of a report. ``make picture`` makes the reports and then this.

Usage: python docs/picture.py REPORT.html OUT.png
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main(report: str, out: str) -> None:
    """Photograph the report's first figure in the Chromium that is installed."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("expected chromium to take the picture with, found none: install it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 960, "height": 900}, color_scheme="light", locale="en-US")
        page.goto(Path(report).resolve().as_uri())
        figure = page.locator("figure").first
        # without what belongs to the page and not to the picture
        hidden = "p, details, button, [role=group]"
        figure.evaluate("(f, hidden) => f.querySelectorAll(hidden).forEach(e => e.style.display = 'none')", hidden)
        figure.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
