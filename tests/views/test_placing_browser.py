"""Views of position in a browser: what a reader saves or reads is the formula, in both themes and languages."""

from __future__ import annotations

import csv
import functools
import io
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import OUTSIDE, OVERLAPS, Open, assert_accessible, saved

from headway import Transformer
from headway.compare.page import page as report_page
from headway.figures.values import View, same
from headway.views import Question, view
from headway.web.views_page import views_page

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
import sample

TEXT = "it was the best of times , it was the worst of times , it was the age of wisdom , it was the age of foolishness"


def fresh(position: str, **more: Any) -> Question:
    return replace(Question.fresh(TEXT, position=position, heads=4), **more)


def html_of(*views: View) -> str:
    return views_page(same("Position"), views)


def sheet(page: Any, kind: str, nth: int = 0) -> list[list[str]]:
    """What the nth figure of a kind saves."""
    page.evaluate(
        "([kind, n]) => document.querySelectorAll(`button[data-csv=${kind}]`)[n].setAttribute('id', 'wanted')",
        [kind, nth],
    )
    _, text = saved(page, "#wanted")
    page.evaluate("() => document.getElementById('wanted').removeAttribute('id')")
    return list(csv.reader(io.StringIO(text)))


def columns(rows: list[list[str]]) -> dict[str, list[float]]:
    """A saved file by the heads of its columns; an empty cell is NaN."""
    head, *body = rows
    return {
        name: [float(cell) if cell else math.nan for cell in column] for name, *column in zip(head, *body, strict=True)
    }


def test_scaled_scores_spread_by_one_and_raw_ones_by_the_root(open_page: Open) -> None:
    page = open_page(html_of(view("scaling", fresh("rotary"))))
    found = columns(sheet(page, "lines"))
    for width, raw, scaled in zip(found["d_k"], found["q·k"], found["q·k / √d_k"], strict=True):
        assert 0.9 <= scaled <= 1.1
        assert raw == pytest.approx(math.sqrt(width), rel=0.1)


def test_the_first_vector_of_sinusoids_reads_zero_one(open_page: Open) -> None:
    page = open_page(html_of(view("vectors", fresh("sinusoidal"))))
    assert [float(cell) for cell in sheet(page, "heatmap")[1][1:]] == [0.0, 1.0] * 32
    found = columns(sheet(page, "lines", 2))["wavelength"]
    assert found[::2] == pytest.approx([2 * math.pi * 10000 ** (i / 32) for i in range(32)], rel=1e-4)


def test_learned_shows_its_weights(open_page: Open) -> None:
    question = fresh("learned(max_length=70)")
    page = open_page(html_of(view("vectors", question)))
    table = torch.tensor([[float(cell) for cell in row[1:]] for row in sheet(page, "heatmap")[1:]])
    torch.testing.assert_close(table, question.model.stack.position.weight.detach(), rtol=1e-5, atol=1e-7)


def test_the_diagonal_of_similarity_is_one_and_sinusoids_depend_on_the_offset(open_page: Open) -> None:
    page = open_page(html_of(view("similarity", fresh("sinusoidal"))))
    cosine = torch.tensor([[float(cell) for cell in row[1:]] for row in sheet(page, "heatmap", 1)[1:]])
    assert (cosine.diagonal() - 1).abs().max() < 1e-6
    assert max(float(cosine.diagonal(n).max() - cosine.diagonal(n).min()) for n in range(len(cosine))) < 1e-5


def test_slopes_are_the_formula_and_buckets_are_flat(open_page: Open) -> None:
    question = fresh("t5")
    page = open_page(html_of(view("bias", fresh("alibi")), view("bias", question)))
    found = columns(sheet(page, "lines"))
    distances = found.pop("distance in tokens")
    for head in range(4):
        assert found[f"head {head}"] == pytest.approx([-(2.0 ** (-2 * head - 2)) * d for d in distances], rel=1e-5)
    buckets = columns(sheet(page, "lines", 1))
    weight = question.position.weight.detach()[1]
    starts = [int(d) for d in buckets["distance in tokens"]]
    assert buckets["head 1"] == pytest.approx(
        weight[question.position.bucket(-torch.tensor(starts))].tolist(), rel=1e-5
    )
    drawn = page.locator("#view-bias .line").last.get_attribute("d")
    assert re.fullmatch(r"M[-\d. ]+(H[-\d.]+V[-\d.]+)+", drawn)  # steps, not slopes


def test_moving_the_text_changes_no_score(open_page: Open) -> None:
    page = open_page(html_of(view("rotation", fresh("rotary"))))
    change = page.locator("#view-rotation .shown-grid tr").last.locator("td").inner_text()
    mantissa, power = re.fullmatch(r"([\d.]+)·10⁻([⁴⁵⁶⁷⁸⁹])", change).groups()
    assert float(mantissa) * 10 ** -"⁰¹²³⁴⁵⁶⁷⁸⁹".index(power) < 1e-4
    assert page.locator(".shown-turns").count() == 1
    angles = sheet(page, "heatmap")
    assert float(angles[1 + 7][1]) == pytest.approx(7 - 2 * math.pi, abs=1e-5)


def test_uniform_attention_is_the_exact_curve(open_page: Open) -> None:
    torch.manual_seed(0)
    model = Transformer(vocab=9, dim=24, layers=1, heads=3, position="none").eval()
    torch.nn.init.zeros_(model.stack.attentions()[0].q.weight)
    question = Question.of(model, torch.arange(121)[None] % 9, [str(n % 9) for n in range(121)])
    page = open_page(html_of(view("distance", question)))
    found = columns(sheet(page, "lines"))
    for away, value in zip(found["distance in tokens"], found["head 0"], strict=True):
        shares = torch.tensor([1 / (i + 1) for i in range(60, 121) if i >= away], dtype=torch.float64)
        assert len(shares) >= 50
        assert value == pytest.approx(float(shares.mean()), abs=1e-6)
    assert found["head 0"] == pytest.approx(found["uniform attention"], abs=1e-6)


def test_the_rule_of_matching_is_visible(open_page: Open) -> None:
    question = fresh("rotary", others=[fresh("alibi"), fresh("learned")])
    page = open_page(html_of(view("sidebyside", question)))
    assert page.get_by_text("each divided by its standard deviation").is_visible()
    assert page.get_by_text("the one with the smallest sum of distances is used").is_visible()
    rows = page.locator("#view-sidebyside .shown-grid").first.locator("tbody tr")
    assert rows.count() == 4


def test_beyond_the_training_length_the_file_is_the_plot_and_failures_are_told(open_page: Open) -> None:
    results = sample.diverged()
    page = open_page(html_of(view("longer", fresh("rotary", results=results))))
    found = columns(sheet(page, "lines"))
    lengths = found["test length in tokens"]
    assert lengths == results["settings"]["test_lengths"]
    specs = [method["spec"] for method in results["methods"]]
    assert set(specs) < set(found)
    plotted = page.eval_on_selector_all(
        "#view-longer [data-x]", "marks => marks.map(one => [Number(one.dataset.x), Number(one.dataset.y)])"
    )
    saved_points = [(x, y) for spec in specs for x, y in zip(lengths, found[spec], strict=True) if not math.isnan(y)]
    drawn = sorted(map(tuple, plotted))
    assert [x for x, _ in drawn] == [x for x, _ in sorted(saved_points)]
    assert [y for _, y in drawn] == pytest.approx([y for _, y in sorted(saved_points)], rel=1e-5)
    told = page.locator("#view-longer .shown-grid").last.inner_text()
    assert all(name in told for name in ("none: diverged", "learned: cannot", "shaw: diverged"))


OURS = [
    ("scaling", "rotary"),
    ("vectors", "learned"),
    ("similarity", "sinusoidal"),
    ("similarity", "alibi"),
    ("bias", "t5"),
    ("bias", "shaw"),
    ("bias", "swin"),
    ("rotation", "rotary"),
    ("rotation", "axial"),
    ("distance", "alibi"),
]


@pytest.fixture(scope="module")
def ours() -> str:
    """All of them on one page."""
    shown = [view(name, fresh(spec)) for name, spec in OURS]
    shown.append(view("sidebyside", fresh("rotary", others=[fresh("alibi")])))
    shown.append(view("longer", fresh("rotary", results=sample.diverged())))
    return html_of(*shown)


@pytest.mark.parametrize(
    ("width", "locale", "scheme"), [(1280, "en-GB", "light"), (1024, "zh-CN", "dark"), (640, "en-GB", "dark")]
)
def test_nothing_overlaps_leaves_the_page_or_is_hard_to_read(
    open_page: Open, ours: str, width: int, locale: str, scheme: str
) -> None:
    page = open_page(ours, width=width, locale=locale, color_scheme=scheme)
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(OUTSIDE) == []
    marks = page.locator("section.view").evaluate_all("all => all.map(one => one.querySelectorAll('svg *').length)")
    assert len(marks) == len(OURS) + 2
    assert max(marks) < 2000


def test_views_are_accessible(open_page: Open) -> None:
    html = html_of(
        view("rotation", fresh("rotary")), view("distance", fresh("alibi")), view("vectors", fresh("learned"))
    )
    for scheme, locale in (("light", "zh-CN"), ("dark", "en-GB")):
        assert_accessible(open_page(html, color_scheme=scheme, locale=locale))


@functools.cache
def kept() -> dict[str, Any]:
    """Results with views of two methods out of three."""
    results = sample.results(["rotary", "alibi", "learned"])
    views = {name: [view(key, fresh(name)).plain()] for name, key in (("rotary", "rotation"), ("alibi", "bias"))}
    return {**results, "views": views}


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_the_report_shows_the_views_of_the_method_that_is_chosen(open_page: Open, locale: str) -> None:
    page = open_page(report_page(kept()), locale=locale)
    place = page.locator("#kept")
    assert place.locator("[data-view]").evaluate_all("all => all.map((one) => one.dataset.view)") == ["rotation"]
    assert "L" in place.locator("path.line").first.get_attribute("d")  # drawn, not only there
    place.locator("select").select_option("alibi")
    assert place.locator("[data-view]").evaluate_all("all => all.map((one) => one.dataset.view)") == ["bias"]
    assert "head 0" in place.inner_text() or "头 0" in place.inner_text()
    place.locator("select").select_option("learned")
    assert "learned" in place.locator(".missing").inner_text()
    page.click('[data-keep="language-en"]')
    assert place.locator("select").input_value() == "learned"
    assert page.evaluate(OUTSIDE) == []


def test_a_report_without_views_says_nothing_of_them(open_page: Open) -> None:
    assert open_page(report_page(sample.results())).locator("#kept").count() == 0
