"""What objects show in a notebook: a page that fetches nothing, in a frame as tall as it, in the theme around it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape
from html.parser import HTMLParser
from typing import Any, ClassVar

import pytest
import torch
from browser import Open

import headway
from headway import Alibi, Attention, Rotary, Transformer
from headway.display import Displayed
from headway.inspect import Trace, record, split, watch
from headway.positions import Position, methods
from headway.positions.base import TermInputs
from headway.terms import AnyTerm, ByDistance
from headway.views import Question, view
from headway.views.notebook import LARGEST, cell, frame


def traced(tokens: int = 9) -> Trace:
    torch.manual_seed(0)
    model = Transformer(vocab=20, dim=24, layers=2, heads=6, kv_heads=3, position="t5")
    with record(model) as trace, torch.no_grad():
        model(torch.randint(0, 20, (1, tokens)))
    return trace


def notebook(*cells: str | None, body: str = "") -> str:
    """A page as a notebook is: outputs below each other, their scripts run."""
    outputs = "".join(f'<div class="output">{one}</div>' for one in cells)
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>cells</title>'
    return f"{head}<body {body}>{outputs}</body></html>"


def tall(page: Any, which: int = 0) -> None:
    """Wait until a frame is as tall as its page."""
    page.locator("iframe").nth(which).scroll_into_view_if_needed()
    page.wait_for_function(
        "(n) => ((frame) => frame.style.minHeight && frame.clientHeight > 300)(document.querySelectorAll('iframe')[n])",
        arg=which,
    )


@pytest.mark.parametrize("name", methods())
def test_every_method_shows_itself(name: str) -> None:
    html = methods()[name]()._repr_html_()
    assert html is not None
    assert len(html.encode()) <= LARGEST
    assert not re.search(r"https?://|url\((?!#)|@import|<link|\bsrc=", html.replace("http://www.w3.org/2000/svg", ""))


def test_cells_open_without_a_word_of_complaint(open_page: Open) -> None:
    trace = traced()
    shown = view("softmax", Question.fresh("the cat sat"))
    page = open_page(notebook(Alibi()._repr_html_(), trace._repr_html_(), trace[1]._repr_html_(), shown._repr_html_()))
    told = ["ALiBi", "A recorded forward pass", "stack.blocks.1.attention.part", shown.title["en"]]
    for which, title in enumerate(told):
        tall(page, which)
        inside = page.frame_locator("iframe").nth(which)
        inside.locator("h1").wait_for()
        assert inside.locator("h1").text_content() == title
        assert inside.locator("figure").count() >= 1
        box = page.locator("iframe").nth(which).bounding_box()
        high = inside.locator(".page").evaluate("(page) => page.getBoundingClientRect().height")
        assert box["height"] == pytest.approx(high, abs=2)  # no scrollbar inside the notebook's
        assert inside.locator("html").evaluate("(html) => html.scrollWidth <= html.clientWidth")


@pytest.mark.parametrize(
    ("body", "theme"),
    [
        ('data-jp-theme-light="false"', "dark"),
        ('data-jp-theme-light="true"', "light"),
        ('data-vscode-theme-kind="vscode-dark"', "dark"),
        ("", None),
    ],
)
def test_a_cell_follows_the_notebooks_theme(open_page: Open, body: str, theme: str | None) -> None:
    other = "light" if theme == "dark" else "dark"
    page = open_page(notebook(Alibi()._repr_html_(), body=body), color_scheme=other)
    tall(page)
    root = page.frame_locator("iframe").locator("#report")
    if theme is not None:
        page.frame_locator("iframe").locator(f"#report[data-theme={theme}]").wait_for()
    scheme = root.evaluate("(root) => getComputedStyle(root).colorScheme")
    assert scheme == (theme or "dark")


def test_a_theme_that_was_chosen_stays(open_page: Open) -> None:
    page = open_page(notebook(Alibi()._repr_html_(), body='data-jp-theme-light="true"'))
    tall(page)
    inside = page.frame_locator("iframe")
    inside.locator("#report[data-theme=light]").wait_for()
    inside.locator('[data-keep="theme-dark"]').click()
    page.evaluate("document.body.dataset.other = 1")  # the notebook changes something
    page.wait_for_timeout(100)
    assert inside.locator("#report").get_attribute("data-theme") == "dark"


def test_another_language_is_as_tall_as_it_is(open_page: Open) -> None:
    page = open_page(notebook(Rotary()._repr_html_()))
    tall(page)
    inside = page.frame_locator("iframe")
    inside.locator('[data-keep="language-zh"]').click()
    inside.locator("#report[lang=zh-CN]").wait_for()
    page.wait_for_function(
        "Math.abs(document.querySelector('iframe').clientHeight - "
        "document.querySelector('iframe').style.height.replace('px', '')) < 2"
    )


@dataclass(eq=False)
class Hostile(Position):
    """A method that is called as if it were HTML."""

    title: ClassVar[str] = "</script><img src=x onerror='alert(1)'>\"&quot;"

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        return (ByDistance.linear(torch.full((look.q.shape[1],), -0.5)),)


def test_a_name_that_could_be_html_is_text(open_page: Open) -> None:
    html = Hostile()._repr_html_()
    assert html is not None
    page = open_page(notebook(html))
    tall(page)
    assert page.locator("iframe").get_attribute("title") == Hostile.title
    assert page.frame_locator("iframe").locator("h1").text_content() == Hostile.title
    assert page.locator("img").count() == page.frame_locator("iframe").locator("img").count() == 0


def test_a_cell_is_never_larger_than_it_may_be() -> None:
    shown = view("head", Question.fresh(" ".join(f"w{n}" for n in range(600))))
    assert len(frame(shown.title, [shown] * 6).encode()) <= LARGEST
    assert "view-head" not in frame(shown.title, [shown])  # which is made by the page's program, not here


def test_an_untrusted_notebook_says_what_is_there_and_what_to_do() -> None:
    """JupyterLab takes out the frame and the script of an untrusted cell, and keeps the text."""
    kept: list[str] = []

    class Kept(HTMLParser):
        inside = False

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.inside = tag == "iframe"

        def handle_data(self, data: str) -> None:
            if self.inside:
                kept.append(unescape(data))

    Kept().feed(cell(Alibi()) or "")
    text = " ".join(kept)
    assert text.startswith(Alibi.title)
    assert "Trust this notebook" in text
    assert "信任此 notebook" in text


def test_what_has_no_picture_is_its_line() -> None:
    assert cell(Trace()) is None
    assert cell(object()) is None
    assert isinstance(traced(1)._repr_html_(), str)


def test_lines_in_a_terminal_are_short() -> None:
    trace = traced()
    model = Transformer(vocab=5, dim=24, layers=1, heads=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, every=1) as watched:
        model(torch.arange(5)[None]).square().sum().backward()
        optimizer.step()
    expected = {
        repr(trace[0]): "Layer('stack.blocks.0.attention.part': 6 heads, 9 queries × 9 keys, t5)",
        repr(trace): "Trace(2 layers: Layer('stack.blocks.0.attention.part': 6 heads, 9 queries × 9 keys, t5), …)",
        repr(Trace()): "Trace(0 layers)",
        repr(split(trace[0])): "Split(content + ByDistance: (1, 6, 9, 9) each, exact)",
        repr(watched): "Watch(every 1 steps: 0; 0.0 MB)",
        repr(next(iter(watched[0].values()))): "Snapshot(weight, gradient, update: (24, 24) each)",
        repr(Rotary()): "Rotary(base=10000.0, fraction=1.0, pairing='half')",
    }
    assert [found for found in expected if found != expected[found]] == []
    assert repr(view("softmax", Question.fresh("the cat sat"))).startswith(
        "View('softmax': 3 figures; “sat” attends most to"
    )
    assert "\n" not in repr(view("vectors", Question.fresh("a b", position="sinusoidal")))


def test_the_door_upward_is_found_by_name_only() -> None:
    assert all(issubclass(one, Displayed) for one in (Position, Trace, type(traced()[0]), headway.Rotary))
    attention = Attention(dim=24, heads=3, position="rotary")
    assert attention.position._repr_html_() is not None
