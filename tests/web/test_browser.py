"""The report in a browser: it opens from a file without a network, draws the data, and answers to the keyboard."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from browser import OUTSIDE, OVERLAPS, Open, saved
from sample import all_failed, bench, crowded, diverged, interrupted, nasty, recall, results, wild

from headway.bench.page import write_bench
from headway.compare.page import write_report
from headway.results import to_csv

EVERY = [results, recall, diverged, interrupted, all_failed, wild, crowded, nasty]


@pytest.fixture
def open_report(open_page: Open, tmp_path: Path) -> Open:
    """Open results as a report."""

    def open_one(made: dict[str, Any], **options: Any) -> Any:
        write = write_bench if made.get("kind") == "bench" else write_report
        return open_page(write(made, tmp_path / "report.html"), **options)

    return open_one


@pytest.mark.parametrize("make", EVERY)
def test_nothing_overlaps_or_leaves_the_page_and_every_template_is_filled(open_report: Open, make: Any) -> None:
    english, chinese = open_report(make(), width=400), open_report(make(), width=640, locale="zh-CN")
    for page, width in ((english, 400), (chinese, 640), (english, 1024), (english, 1600), (chinese, 1280)):
        if page.viewport_size["width"] != width:
            page.set_viewport_size({"width": width, "height": 900})
            page.reload()  # drawn at once as wide as it is
        assert page.locator("h1").count() == 1
        assert page.evaluate(OVERLAPS) == [], width
        assert page.evaluate(OUTSIDE) == [], width
        text = page.locator("#report").inner_text()
        assert not re.search(r"\{\w+\}|undefined|NaN|\[object|Infinity", text)
        assert not re.search(r"\b(caption|figure|axis|unit|limits|reading|setting|status)\.[a-z]", text)


def means(made: dict[str, Any], key: str) -> dict[str, dict[float, float]]:
    """Method → length → mean over seeds."""
    found: dict[str, dict[float, list[float]]] = {}
    for cell in made["cells"]:
        for test in cell["tests"]:
            if test["status"] == "ok":
                found.setdefault(cell["method"], {}).setdefault(test["length"], []).append(test[key])
    return {m: {x: math.fsum(v) / len(v) for x, v in at.items()} for m, at in found.items()}


def plotted(page: Any, figure: str) -> dict[str, dict[float, float]]:
    points = page.eval_on_selector_all(
        f"#figure-{figure} [data-x]",
        """marks => marks.map(mark =>
          [mark.closest('[data-series]').dataset.series, Number(mark.dataset.x), Number(mark.dataset.y)])""",
    )
    found: dict[str, dict[float, float]] = {}
    for series, x, y in points:
        found.setdefault(series, {})[x] = y
    return found


def assert_close(one: dict[str, dict[float, float]], other: dict[str, dict[float, float]]) -> None:
    assert one.keys() == other.keys()
    for method, values in other.items():
        assert one[method] == pytest.approx(values, rel=1e-9)


def test_plotted_points_equal_the_payload(open_report: Open) -> None:
    made = results()
    page = open_report(made)
    assert_close(plotted(page, "lengths"), means(made, "bits_per_byte"))
    for unit, key in (("loss", "loss"), ("accuracy", "accuracy")):
        page.click(f'#figure-lengths [data-unit="{unit}"]')
        assert_close(plotted(page, "lengths"), means(made, key))


def test_marks_stand_where_their_axes_say(open_report: Open) -> None:
    page = open_report(results())
    places = page.evaluate(
        """() => [...document.querySelectorAll('#figure-lengths [data-x]')].map((mark) => {
          const box = mark.getBBox();
          return [Number(mark.dataset.x), box.x + box.width / 2];
        })"""
    )
    across = {x: round(place) for x, place in places}
    steps = [across[2 * x] - across[x] for x in (64, 128, 256, 512)]
    assert max(steps) - min(steps) <= 2  # every doubling is as wide


def test_distance_points_equal_the_payload(open_report: Open) -> None:
    made = recall()
    page = open_report(made)
    for length in (1024, 128):
        page.select_option("#figure-distance select", str(length))
        expected: dict[str, dict[float, list[float]]] = {}
        for cell in made["cells"]:
            for row in cell["by_distance"]:
                if row["length"] == length:
                    expected.setdefault(cell["method"], {}).setdefault(row["distance"], []).append(row["accuracy"])
        averaged = {m: {x: sum(v) / len(v) for x, v in at.items()} for m, at in expected.items()}
        assert_close(plotted(page, "distance"), averaged)


def typed(text: str) -> list[list[Any]]:
    def number(field: str) -> Any:
        try:
            return float(field)
        except ValueError:
            return field

    return [[number(field) for field in row] for row in csv.reader(io.StringIO(text, newline=""))]


@pytest.mark.parametrize("make", [recall, diverged, interrupted, nasty])
def test_saved_csv_equals_the_python_sheets(open_report: Open, make: Any) -> None:
    made = make()
    for cell in made["cells"]:  # the page keeps six digits of a training loss
        cell["train"]["loss"] = [float(f"{loss:.6g}") for loss in cell["train"]["loss"]]
    page = open_report(made)
    for name, text in to_csv(made).items():
        file, found = saved(page, f'[data-csv="{name.removesuffix(".csv")}"]')
        assert file == f"headway-{name}"
        assert typed(found) == typed(text)


def test_the_table_of_a_figure_holds_its_values(open_report: Open) -> None:
    made = results()
    page = open_report(made)
    page.click("#figure-lengths summary")
    page.wait_for_selector("#figure-lengths tbody tr")  # filled when the browser tells that it was opened
    row = page.locator("#figure-lengths tbody tr", has_text="rotary")
    mean = means(made, "bits_per_byte")["rotary"]
    for cell, length in zip(row.locator("td").all(), (64, 128, 256, 512, 1024), strict=True):
        assert cell.inner_text().startswith(f"{mean[length]:.2f}")
    assert "longest 64" in page.locator("#figure-lengths tbody tr", has_text="learned").inner_text()


def test_arrow_keys_read_values(open_report: Open) -> None:
    made = results()
    for cell in made["cells"]:
        if cell["method"] == "rotary":
            cell["tests"][3]["bits_per_byte"] = 3.10 if cell["seed"] == 0 else 3.32
    page = open_report(made)
    plot, line = page.locator("#figure-lengths .plot"), page.locator("#figure-lengths .readout")
    assert line.get_attribute("aria-live") == "polite"
    plot.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight"):
        plot.press(key)
    assert line.inner_text().startswith("none at 512 tokens: ")
    plot.press("ArrowDown")
    assert line.inner_text() == "rotary at 512 tokens: 3.21 bits per byte (3.10–3.32, 2 seeds)"
    plot.press("End")
    assert line.inner_text().startswith("rotary at 1,024 tokens: ")
    assert page.locator("#figure-lengths .tip").is_visible()
    plot.press("Escape")
    assert page.locator("#figure-lengths .tip").is_hidden()


def test_the_pointer_reads_the_nearest_point(open_report: Open) -> None:
    page = open_report(results())
    mark = page.locator('#figure-lengths [data-series="alibi"] [data-x="512"]')
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.move(box["x"] + 4, box["y"] + 5)
    assert page.locator("#figure-lengths .readout").inner_text().startswith("alibi at 512 tokens: 2.2")


def test_the_legend_hides_methods_everywhere(open_report: Open) -> None:
    page = open_report(results())
    button = page.locator('#figure-lengths .legend [data-method="sinusoidal"]')
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert "sinusoidal" not in plotted(page, "lengths")
    assert page.locator('#figure-training .series[data-series="sinusoidal"]').count() == 0
    button.press("Space")
    assert "sinusoidal" in plotted(page, "lengths")
    for one in page.locator("#figure-lengths .legend button").all():
        one.click()
    assert "hidden" in page.locator("#figure-lengths .empty").text_content()


def test_the_theme_follows_the_system_until_chosen(open_report: Open) -> None:
    page = open_report(results(), color_scheme="dark")

    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.getElementById('report')).backgroundColor"))

    assert ground() == "rgb(21, 23, 26)"
    page.get_by_role("button", name="Light").click()
    assert ground() == "rgb(253, 253, 251)"
    page.get_by_role("button", name="Auto").click()
    assert ground() == "rgb(21, 23, 26)"


def test_the_language_follows_the_browser_until_chosen(open_report: Open) -> None:
    page = open_report(results(), locale="zh-CN")
    assert "测试至 1,024" in page.locator("h1").inner_text()
    assert page.locator("#report").get_attribute("lang") == "zh-CN"
    page.get_by_role("button", name="EN").click()
    assert page.locator("h1").inner_text() == "Trained at length 64, tested up to 1,024"
    assert page.evaluate("document.activeElement.textContent") == "EN"
    assert open_report(results(), locale="de-DE").locator("#report").get_attribute("lang") == "en"


def test_user_text_is_shown_and_never_run(open_report: Open) -> None:
    page = open_report(nasty())
    assert "<script>alert(1)</script>" in page.locator(".facts").inner_text()
    assert page.locator("#report img, #report script").count() == 0


def test_failures_are_shown_as_failures(open_report: Open) -> None:
    page = open_report(diverged())
    figure = page.locator("#figure-lengths")
    assert "cannot run beyond 64" in figure.locator(".note", has_text="learned").text_content()
    assert "not finite" in figure.locator(".note", has_text="none").text_content()
    assert "shaw (diverged at step 31)" in figure.locator(".missing").inner_text()
    assert "1 of 2 seeds" in page.locator("#results tr", has_text="t5").inner_text()


def test_cut_off_values_are_told_and_can_be_seen(open_report: Open) -> None:
    page = open_report(wild())
    note = page.locator("#figure-lengths .clip-note")
    assert "Means beyond it (▲): 1;" in note.inner_text()
    assert page.locator("#figure-lengths .beyond").count() == 1
    assert "45.2" in page.locator("#figure-lengths .end-label", has_text="sinusoidal").text_content()
    note.get_by_role("button").click()
    assert page.locator("#figure-lengths .beyond").count() == 0
    assert plotted(page, "lengths")["sinusoidal"][1024] == pytest.approx(45.2)


def test_one_seed_has_no_band(open_report: Open) -> None:
    page = open_report(results(seeds=1))
    assert page.locator(".band").count() == 0
    assert "One seed" in page.locator("#figure-lengths figcaption").inner_text()
    assert open_report(results()).locator("#figure-lengths .band").count() == 7


def test_sixteen_methods_look_different_and_keep_their_look(open_report: Open) -> None:
    look = """() => Object.fromEntries([...document.querySelectorAll('#figure-lengths [data-method]')].map((button) => {
      const line = button.querySelector('.line');
      return [button.dataset.method, getComputedStyle(line).stroke + line.getAttribute('stroke-dasharray')];
    }))"""
    many = open_report(crowded()).evaluate(look)
    assert len(many) == 16
    assert len(set(many.values())) == 16
    few = open_report(results(["alibi", "rotary", "t5"])).evaluate(look)
    assert {few[name] == many[name] for name in ("alibi", "rotary")} == {True}


def test_bars_are_as_long_as_their_values(open_report: Open) -> None:
    made = results()
    page = open_report(made)
    speed: dict[str, list[float]] = {}
    for cell in made["cells"]:
        speed.setdefault(cell["method"], []).append(cell["tokens_per_second"])
    widths = page.eval_on_selector_all(
        '[data-panel="tokens_per_second"] li',
        "rows => rows.map(row => [row.dataset.method, row.querySelector('.bar').getBoundingClientRect().width])",
    )
    ratio = {method: width / (sum(speed[method]) / len(speed[method])) for method, width in widths}
    assert max(ratio.values()) == pytest.approx(min(ratio.values()), rel=0.02)


def test_wide_and_zoomed_at_200_percent(open_report: Open) -> None:
    page = open_report(results(), width=512, device_scale_factor=2)  # a window of 1024 pixels at 200 % zoom
    assert page.evaluate(OUTSIDE) == []


def test_printing_is_light_and_without_controls(open_report: Open) -> None:
    page = open_report(results(), color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.getElementById('report')).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".controls").is_hidden()


def test_render_can_be_called_again_and_taken_out(open_report: Open) -> None:
    page = open_report(results())
    empty = page.evaluate(
        """() => {
          const element = document.createElement('div');
          document.body.append(element);
          const remove = module_render.render(element, JSON.parse(document.getElementById('data').textContent));
          const drawn = element.querySelectorAll('.line').length;
          remove();
          return [drawn > 7, element.childElementCount];
        }"""
    )
    assert empty == [True, 0]
    assert json.loads(page.locator("#data").text_content())["results"]["format"] == 1


# --- the page of a benchmark ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [400, 640, 1024, 1600])
def test_no_word_of_a_benchmark_overlaps_or_leaves_the_page(open_report: Open, width: int) -> None:
    locale = "zh-CN" if width in (640, 1024) else "en-GB"
    page = open_report(bench(bars=True, complete=False), width=width, locale=locale)
    overlaps = """() => {
      const parts = '.tax .bar-name, .tax .bar-value, .tax .why, .tax .track, .tax .axis span';
      const boxes = [...document.querySelectorAll(parts)].map((one) => [one.textContent, one.getBoundingClientRect()]);
      return boxes.flatMap(([a, one], i) => boxes.slice(i + 1).flatMap(([b, other]) => {
        const x = Math.min(one.right, other.right) - Math.max(one.left, other.left);
        const y = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
        return x > 1 && y > 2 ? [`${a} / ${b}`] : [];
      }));
    }"""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.locator("h1").count() == 1
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate(overlaps) == []


def test_bars_of_the_tax_start_at_plain_attention(open_report: Open) -> None:
    made = bench()
    page = open_report(made)
    drawn = page.eval_on_selector_all(
        "#figure-tax [data-ratio]",
        """rows => rows.map(row => {
          const box = (name) => row.querySelector(name).getBoundingClientRect();
          const [bar, one] = [box('.bar'), box('.one')];
          return [Number(row.dataset.ratio), bar.left, bar.right, (one.left + one.right) / 2];
        })""",
    )
    wanted = [row for row in made["rows"] if (row["mode"], row["mask"]) == ("forward+backward", "causal")]
    wanted = [row["ratio"] for row in wanted if row["ratio"] and row["contender"] != "plain SDPA"]
    assert [ratio for ratio, *_ in drawn] == wanted
    lengths = {math.log(ratio): right - left for ratio, left, right, _ in drawn}
    for ratio, left, right, one in drawn:
        assert (left if ratio > 1 else right) == pytest.approx(one, abs=1)
        assert right - left == pytest.approx(abs(math.log(ratio)) * max(lengths.values()) / max(lengths), abs=1.5)


def test_the_floor_is_marked_and_every_method_has_a_line(open_report: Open) -> None:
    made = bench()
    page = open_report(made)
    ours = [row for row in made["rows"] if row["contender"].startswith("headway") and row["mask"] == "causal"]
    for mode in ("forward+backward", "decode"):
        page.click(f'#figure-tax [data-kind="{mode}/causal"]')
        shown = [row for row in ours if row["mode"] == mode]
        assert page.locator("#figure-tax .floor").count() == len(shown)
        for key in ("ratio", "memory_ratio"):
            drawn = page.eval_on_selector_all(
                f"[data-curve={key}] .marker[data-y]", "found => found.map(one => [one.dataset.x, one.dataset.y])"
            )
            assert sorted((int(x), float(y)) for x, y in drawn) == sorted((row["length"], row[key]) for row in shown)


def test_a_benchmark_of_several_widths_with_checks_and_rows_left_out(open_report: Open) -> None:
    made = bench()
    few = [row for row in made["rows"] if row["mode"] == "forward+backward" and row["mask"] == "causal"]
    untimed = [{**row, "length": 301, "ratio": None, "seconds": None} for row in few if row["length"] == 512]
    missing = {**few[1], "status": "left out", "reason": "there was no time left", "ratio": None}
    wide = [{**row, "head_dim": 128} for row in [*few, missing]]
    page = open_report({**made, "rows": [*few, *wide, *untimed], "checked": {"of": 9, "exact": 8}})
    names = [one.inner_text() for one in page.locator("#figure-tax [data-kind]").all()]
    assert names == [f"forward + backward · causal · width {width} · float32" for width in (64, 128)]
    assert page.locator("#figure-tax [data-length]").count() == 2
    assert "301" not in page.locator("#figure-lengths").inner_text()
    told = page.locator(".findings").inner_text()
    assert "8 of 9 checks against float64" in told
    assert "1 measurements were left out" in told
    assert "left out: there was no time left" in page.locator("#results").inner_text()


def test_another_mode_of_a_benchmark_can_be_chosen(open_report: Open) -> None:
    page = open_report(bench())
    assert page.locator("#figure-tax [data-length]").count() == 2
    page.click('#figure-tax [data-kind="decode/causal"]')
    assert page.locator('#figure-tax [data-kind="decode/causal"]').get_attribute("aria-pressed") == "true"
    shown = page.locator("#figure-tax [data-ratio]").first.get_attribute("data-ratio")
    decode = [row for row in bench()["rows"] if row["mode"] == "decode"]
    assert float(shown) == decode[1]["ratio"]


def test_every_row_of_a_benchmark_is_in_its_table_and_csv(open_report: Open) -> None:
    made = bench()
    page = open_report(made)
    assert page.locator("#results tbody tr:not(.group)").count() == len(made["rows"])
    assert page.locator("#results tbody tr.group").count() == 6
    assert page.locator("#results td.none").first.inner_text() == "unsupported: FlexAttention has no backward on a CPU"
    found = list(csv.DictReader(io.StringIO(saved(page, '[data-csv="rows"]')[1], newline="")))
    assert [one["contender"] for one in found] == [row["contender"] for row in made["rows"]]
    assert [float(one["ratio"] or "nan") for one in found] == pytest.approx(
        [math.nan if row["ratio"] is None else row["ratio"] for row in made["rows"]], nan_ok=True
    )


def test_the_projects_bars_say_pass_or_fail(open_report: Open) -> None:
    page = open_report(bench(bars=True))
    outcomes = [row.inner_text() for row in page.locator("#bars tbody td:last-child").all()]
    assert outcomes == ["pass", "pass, within 1.2 × its floor", "fail", "fail"]
    assert "2 of 4 are not met" in page.locator(".results").first.inner_text()
    assert open_report(bench()).locator("#bars").count() == 0


def test_a_benchmark_speaks_both_languages(open_report: Open) -> None:
    page = open_report(bench(complete=False))
    assert page.locator("h1").inner_text() == "What position costs"
    assert "interrupted" in page.locator(".warning").inner_text()
    page.click('[data-keep="language-zh"]')
    assert page.locator("h1").inner_text() == "位置方法的代价"
    assert page.locator("#report").get_attribute("lang") == "zh-CN"


def test_a_benchmark_without_rows_is_a_page(open_report: Open) -> None:
    page = open_report({**bench(complete=False), "rows": []})
    assert page.locator("#figure-tax").count() == 0
    assert page.locator(".limits li").count() > 5
