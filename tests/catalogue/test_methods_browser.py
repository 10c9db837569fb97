"""A method's page in a browser: both languages and themes, nothing outside its width, curves as computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import OUTSIDE, OVERLAPS, Open
from sample import LENGTHS, METHODS, cell, results

from headway.catalogue.entries import entry
from headway.catalogue.page import write_method
from headway.compare.page import write_report
from headway.positions import methods, parse

SPECS = ("alibi", "rotary(base=500000.0, fraction=0.25, pairing='interleaved')", "shaw", "none", "stickbreaking")
READERS = ((400, "en-GB", "dark"), (640, "zh-CN", "light"), (1280, "en-GB", "light"))


@pytest.mark.parametrize(("width", "locale", "scheme"), READERS)
@pytest.mark.parametrize("spec", SPECS)
def test_a_page_opens_offline_in_both_languages(
    open_page: Open, tmp_path: Path, spec: str, width: int, locale: str, scheme: str
) -> None:
    found = entry(parse(spec))
    page = open_page(write_method(found, tmp_path / "method.html"), width=width, locale=locale, color_scheme=scheme)
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


# --- a comparison of many methods ----------------------------------------------------------------------------------


def many(count: int) -> dict[str, Any]:
    """Every method there is and some more, with the curves of seven."""
    made = results([])
    names = [*methods(), *(f"invented{n}" for n in range(count))][:count]
    for number, name in enumerate(names):
        made["methods"].append({"spec": name, "name": name, "title": name, "summary": "", "paper": None})
        for seed in range(2):
            one = cell(list(METHODS)[number % len(METHODS)], seed, LENGTHS) | {"method": name}
            for test in one["tests"]:
                if test["status"] == "ok":
                    test["bits_per_byte"] += 0.003 * number
            made["cells"].append(one)
    return made


@pytest.fixture
def open_many(open_page: Open, tmp_path: Path) -> Open:
    """Open a report of so many methods."""

    def open_one(count: int, width: int = 1280) -> Any:
        return open_page(write_report(many(count), tmp_path / "report.html"), width=width)

    return open_one


def drawn(page: Any) -> set[str]:
    lines = page.locator("#figure-lengths .plot > svg .line")
    return set(lines.evaluate_all("lines => lines.map(line => line.closest('[data-series]').dataset.series)"))


@pytest.mark.parametrize("width", [640, 1280])
def test_many_methods_begin_with_the_best_and_can_all_be_seen(open_many: Open, width: int) -> None:
    page = open_many(50, width)
    best = drawn(page)
    first = page.locator("#results tbody th").all_inner_texts()[:10]
    assert best == {name.strip() for name in first}
    assert page.locator("#figure-lengths [data-show]").first.inner_text() == "Best 10 at 1,024 tokens"
    for choice, count in (("all", 50), ("none", 0), ("best", 10)):
        page.locator(f'#figure-lengths [data-show="{choice}"]').click()
        assert len(drawn(page)) == count
        assert page.evaluate(OVERLAPS) == []
        assert page.evaluate(OUTSIDE) == []
    page.locator('#figure-lengths .legend [data-method="none"]').click()
    pressed = page.eval_on_selector_all("#figure-lengths [data-show]", "all => all.map(e => e.ariaPressed)")
    assert pressed == ["false"] * 3
    assert page.locator("#results tbody tr").count() == 50


def test_few_methods_are_all_there_from_the_start(open_many: Open) -> None:
    page = open_many(16)
    assert len(drawn(page)) == 16
    assert page.locator("[data-show]").count() == 0


def test_fifty_six_methods_look_different(open_many: Open) -> None:
    look = """buttons => buttons.map(button => {
      const [line, marker] = [button.querySelector('.line'), button.querySelector('.marker')];
      return getComputedStyle(line).stroke + line.getAttribute('stroke-dasharray') + marker.getAttribute('class');
    })"""
    looks = open_many(56).eval_on_selector_all("#figure-lengths .legend [data-method]", look)
    assert len(looks) == 56
    assert len(set(looks)) == 56
