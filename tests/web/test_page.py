"""The HTML file as text, the CSV sheets, and the table in the terminal."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sample import NASTY, all_failed, bench, crowded, diverged, interrupted, nasty, recall, results, wild

from headway.bench.page import bench_page, bench_text, row_text, write_bench
from headway.compare.page import page, payload, write_report
from headway.compare.terminal import table
from headway.figures.words import LANGUAGES, strings
from headway.results import to_csv
from headway.web.page import MODULES, PAGES, asset, bundle, sources_of, strings_of

EVERY = [results, recall, diverged, interrupted, all_failed, wild, crowded, nasty]


def embedded(html: str) -> dict[str, Any]:
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert block
    data: dict[str, Any] = json.loads(block[1])
    return data


@pytest.mark.parametrize("make", EVERY)
def test_the_file_is_small_and_asks_for_nothing(make: Any, tmp_path: Path) -> None:
    path = write_report(make(), tmp_path / "deep" / "report.html")
    html = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 350_000
    assert "default-src 'none'" in html
    program_and_page = html.replace("http://www.w3.org/2000/svg", "")  # a namespace, never fetched
    # maps of long texts ask the studio they are shown by; in a file there is none, and the policy above would refuse
    program_and_page = program_and_page.replace("fetch(`/api/tiles?", "")
    assert not re.search(r"https?://|url\((?!#)|@import|<link|\bfetch\(|XMLHttpRequest", program_and_page)
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]


def test_a_large_run_stays_under_two_megabytes() -> None:
    made = results(seeds=5)
    for cell in made["cells"]:
        cell["train"] = {"steps": list(range(1, 20_001)), "loss": [3 + math.sin(step) for step in range(20_000)]}
    packed = payload(made)
    assert packed["thinned"] == 80
    assert len(packed["results"]["cells"][0]["train"]["loss"]) == 250
    assert packed["results"]["cells"][0]["train"]["steps"][:2] == [80, 160]
    assert len(page(made).encode()) < 2_000_000


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(results(["none"]), tmp_path / "report.html")
    before = path.read_text(encoding="utf-8")
    monkeypatch.setattr("headway.web.page.bundle", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(results(), path)
    assert path.read_text(encoding="utf-8") == before
    assert list(tmp_path.iterdir()) == [path]


def test_user_text_cannot_end_its_block() -> None:
    html = page(nasty())
    assert html.count("</script>") == 2
    assert "<!--" not in html.split("<body>")[1]
    assert embedded(html)["results"]["settings"]["text"] == NASTY


def test_numbers_that_json_cannot_hold_become_null() -> None:
    cells = embedded(page(diverged()))["results"]["cells"]
    assert cells[0]["tests"][3]["loss"] is None


def test_modules_follow_the_rules_of_the_bundle() -> None:
    for place, name in [*enumerate(MODULES), *((len(MODULES), one) for one in PAGES)]:
        source = asset(f"{name}.js")
        for imported in re.findall(r'^import .*?from "\./(\w+)\.js";$', source, re.MULTILINE | re.DOTALL):
            assert imported in MODULES[:place]
        assert "innerHTML" not in source
        assert "insertAdjacentHTML" not in source
    for name in PAGES:
        assert not re.search(r"^\s*(import|export)\b", bundle(name), re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_every_word_the_program_says_is_sent_with_it(name: str) -> None:
    source = "\n".join(sources_of(name).values())
    sent = {language: strings_of(name)[language].keys() for language in LANGUAGES}
    assert sent["en"] == sent["zh"]
    for key in re.findall(r'"([\w.]+)"', source):
        assert key in sent["en"] or key not in strings("en"), key
    for start in re.findall(r"`(\w+\.[\w.]*)\$\{", source):
        assert {key for key in strings("en") if key.startswith(start)} <= sent["en"], start


def luminance(colour: str) -> float:
    digits = colour.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_have_contrast_in_every_theme() -> None:
    style = asset("style.css")
    blocks = [block for block in re.findall(r"\{([^{}]*)\}", style) if "--paper:" in block]
    assert len(blocks) == 4  # light, dark by the system, dark by choice, print
    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]+)", block))
        for ground in ("paper", "raised", "warn"):
            assert contrast(colours["ink"], colours[ground]) >= 7
        for ground in ("paper", "raised"):
            assert contrast(colours["quiet"], colours[ground]) >= 4.5
        for hue in range(8):
            assert contrast(colours[f"hue-{hue}"], colours["paper"]) >= 3
        assert contrast(colours["strong-rule"], colours["paper"]) >= 3
    assert re.findall(r"--hue-\d:#\w+", blocks[1]) == re.findall(r"--hue-\d:#\w+", blocks[2])
    assert re.findall(r"--hue-\d:#\w+", blocks[0]) == re.findall(r"--hue-\d:#\w+", blocks[3])


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SIGHT = {
    "full": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deutan": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritan": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}


def lab(colour: str, sight: str) -> tuple[float, float, float]:
    """CIE L*a*b* of a colour as someone with this sight sees it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    seen = [min(1.0, max(0.0, sum(a * b for a, b in zip(row, linear, strict=True)))) for row in SIGHT[sight]]
    to_xyz = ((0.4339, 0.3762, 0.1899), (0.2126, 0.7152, 0.0722), (0.0177, 0.1095, 0.8729))  # over the white point
    x, y, z = (sum(a * b for a, b in zip(row, seen, strict=True)) for row in to_xyz)
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("sight", SIGHT)
def test_hues_differ_for_every_kind_of_sight(sight: str) -> None:
    style = asset("style.css")
    for block in [block for block in re.findall(r"\{([^{}]*)\}", style) if "--paper:" in block]:
        seen = [lab(colour, sight) for colour in re.findall(r"--hue-\d:(#\w{6})", block)]
        assert min(math.dist(one, other) for one, other in itertools.combinations(seen, 2)) > 17


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_holds_every_measurement() -> None:
    made = recall()
    sheets = {name: rows(text) for name, text in to_csv(made).items()}
    assert set(sheets) == {"lengths.csv", "training.csv", "cost.csv", "distance.csv"}
    tests = [(cell, test) for cell in made["cells"] for test in cell["tests"]]
    assert len(sheets["lengths.csv"]) == len(tests)
    for row, (cell, test) in zip(sheets["lengths.csv"], tests, strict=True):
        assert (row["method"], int(row["seed"]), int(row["length"])) == (cell["method"], cell["seed"], test["length"])
        assert row["status"] == test["status"]
        if test["status"] == "ok":
            assert float(row["loss"]) == test["loss"]
            assert float(row["accuracy"]) == test["accuracy"]
        else:
            assert (row["loss"], row["message"]) == ("", "longest 64")
    losses = [loss for cell in made["cells"] for kind in ("train", "validation") for loss in cell[kind]["loss"]]
    assert [float(row["loss"]) for row in sheets["training.csv"]] == losses
    distances = [row["accuracy"] for cell in made["cells"] for row in cell["by_distance"]]
    assert [float(row["accuracy"]) for row in sheets["distance.csv"]] == distances
    speeds = [cell["tokens_per_second"] for cell in made["cells"]]
    assert [float(row["tokens_per_second"]) for row in sheets["cost.csv"]] == speeds


def test_csv_shows_failures_as_failures() -> None:
    found = rows(to_csv(diverged())["lengths.csv"])
    shaw = [row for row in found if row["method"] == "shaw"]
    assert len(shaw) == 10
    assert {row["status"] for row in shaw} == {"diverged"}
    assert "distance.csv" not in to_csv(results())


def test_csv_text_is_no_formula() -> None:
    made = results(["none"], seeds=1)
    made["cells"][0] |= {"status": "failed", "tests": [], "message": "=1+1"}
    assert rows(to_csv(made)["cost.csv"])[0]["message"] == "'=1+1"


def printed(made: dict[str, Any]) -> str:
    console = Console(width=160, file=io.StringIO(), color_system=None)
    console.print(table(made))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_table_says_why_a_number_is_missing() -> None:
    text = printed(diverged())
    assert "cannot: longest 64" in text
    assert "diverged at step 31" in text
    assert "(1 of 2 seeds)" in text


def test_a_long_message_does_not_fill_the_table() -> None:
    made = results(["learned", "none"])
    for cell in made["cells"][:2]:
        for test in cell["tests"][1:]:
            test["message"] = "expected positions below max_length=64, got 127: give learned(max_length=128)"
    text = printed(made)
    assert "cannot: longest 64" in text
    assert "expected positions" not in text


def test_table_marks_the_best_of_each_column() -> None:
    made = results(["none", "rotary"])
    grid = table(made)
    means = {
        method: sum(cell["tests"][0]["bits_per_byte"] for cell in made["cells"] if cell["method"] == method) / 2
        for method in ("none", "rotary")
    }
    cells = list(grid.columns[1].cells)
    assert [str(cell).split("±")[0] for cell in cells] == [f"{means[method]:.2f}" for method in ("none", "rotary")]
    assert [getattr(cell, "style", "") for cell in cells] == ["", "bold green"]


def test_table_with_one_seed_has_no_spread() -> None:
    assert "±" not in printed(results(seeds=1))


def test_table_prints_markup_as_it_is() -> None:
    made = results(["none"], seeds=1)
    made["cells"][0] |= {"status": "failed", "tests": [], "message": "[bold]no[/bold]"}
    assert "failed: [bold]no[/bold]" in printed(made)


@pytest.mark.parametrize("make", EVERY)
def test_table_prints_every_kind_of_results(make: Any) -> None:
    assert "Method" in printed(make())


def test_importing_the_report_loads_neither_torch_nor_rich() -> None:
    rooms = "headway.compare.page, headway.compare.terminal, headway.results"
    code = f"import sys, {rooms}; print(sorted({{'torch', 'numpy', 'rich'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- a benchmark ---------------------------------------------------------------------------------------------------


def test_the_page_of_a_benchmark_asks_for_nothing(tmp_path: Path) -> None:
    path = write_bench(bench(bars=True), tmp_path / "deep" / "report.html")
    html = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 350_000
    assert "default-src 'none'" in html
    assert not re.search(
        r"https?://|url\((?!#)|@import|<link|\bfetch\(", html.replace("http://www.w3.org/2000/svg", "")
    )
    assert html.count("</script>") == 2
    assert embedded(html)["results"]["rows"] == json.loads(json.dumps(bench()["rows"]))


def test_numbers_of_a_benchmark_that_json_cannot_hold_become_null() -> None:
    made = bench()
    made["rows"][0]["error_ratio"] = math.nan
    assert embedded(bench_page(made))["results"]["rows"][0]["error_ratio"] is None


def test_a_benchmark_in_the_terminal() -> None:
    text = bench_text(bench(bars=True, complete=False))
    first = text.split("\n\n")[1].splitlines()
    assert first[0] == "512 tokens · forward+backward · causal · plain attention 56.9 ms, 150 GFLOP/s"
    assert first[1].split() == [
        "method",
        "computed",
        "by",
        "ms",
        "tax",
        "floor",
        "memory",
        "error",
        "÷",
        "eager",
        "same",
        "bits",
    ]
    assert "unsupported: FlexAttention has no backward on a CPU" in text
    assert "out of memory: needs 48.5 GiB" in text
    assert re.search(r"^pass +0\.93 ≤ 0\.95 .*\(floor 0\.80\)$", text, re.MULTILINE)
    assert re.search(r"^pass +0\.95 ≤ 0\.9 .*\(floor 0\.80, met by it\)$", text, re.MULTILINE)
    assert re.search(r"^FAIL +0\.72 ≤ 0\.6 ", text, re.MULTILINE)
    assert re.search(r"^FAIL +– ≤ 1\.6 .*there is no backend tiled\)$", text, re.MULTILINE)
    assert text.endswith("Interrupted: the results so far are saved.")


def test_a_row_in_one_line() -> None:
    rows = bench()["rows"]
    assert re.fullmatch(
        r"none, headway: sdpa, 512 tokens forward\+backward causal: 1\.\d\d × plain attention", row_text(rows[1])
    )
    assert row_text(rows[4]).endswith("causal: unsupported: FlexAttention has no backward on a CPU")
    assert row_text({**rows[1], "ratio": None}).endswith("1.50 × plain attention's memory")


def test_both_languages_have_every_word() -> None:
    assert strings("en").keys() == strings("zh").keys()
    for key, text in strings("en").items():
        if key.startswith("bench."):
            assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", strings("zh")[key])), key
