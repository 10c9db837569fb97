"""Folders and links of strangers in a browser: what they say is shown as text, and nothing of it runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from browser import browser
from served import studio

__all__ = ["browser"]  # a fixture
MARKUP = "<img src=x onerror=alert(1)>"


def test_names_and_addresses_of_strangers_run_nothing(browser: Any, folders: list[Path], tmp_path: Path) -> None:
    made = tmp_path / "made"
    shutil.copytree(folders[0], made / MARKUP)
    shutil.copytree(folders[1], made / "<script>alert(2)<script>")
    with studio([made]) as client:
        client.enter()
        home = f"http://127.0.0.1:{client.port}/"
        context = browser.new_context(locale="en-GB")
        name, _, value = client.cookie.partition("=")
        context.add_cookies([{"name": name, "value": value, "url": home, "httpOnly": True, "sameSite": "Strict"}])
        page, heard = context.new_page(), []
        page.on("dialog", lambda dialog: heard.append(dialog.message) or dialog.dismiss())
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda one: None if one.url.startswith((home, "data:", "blob:")) else heard.append(one.url))
        page.goto(home)
        page.locator(".screen .view, .screen .warning").first.wait_for(timeout=15_000)
        runs = {one["title"]: one["id"] for one in client.get("/api/state").json()["runs"]}
        assert any(MARKUP in title for title in runs)
        addresses = [f"view=head&kind=run&run={identity}" for identity in runs.values()]
        addresses += [
            f"view=head&text={quote(MARKUP)}&position={quote(MARKUP)}",
            f"view=sidebyside&other={quote('fresh:' + MARKUP)}&other=run:{quote(MARKUP)}",
            "view=head&o.__proto__=1&o.constructor=2&m.__proto__=3&m.constructor=4",
            f"view={quote(MARKUP)}&kind={quote(MARKUP)}&run={quote(MARKUP)}&results={quote(MARKUP)}",
            "view=head&layer=1e308&head=-9&query=99999999999&column=NaN&dim=Infinity&seed=0x10",
            "view=report",
        ]
        for address in addresses:
            page.evaluate("hash => { location.hash = hash; }", address)
            page.locator('.screen[aria-busy="false"]').wait_for(timeout=15_000)
            page.wait_for_timeout(50)
            assert page.locator("img, script[src*='alert'], a[href^='javascript']").count() == 0, address
        assert heard == []
        context.close()
