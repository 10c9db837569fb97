"""Figures for print: values in editable axes, the page's colours, labels that neither overlap nor leave the paper."""

from __future__ import annotations

import csv
import io
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from browser import Open
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from headway.figures.values import (
    Bars,
    Block,
    Columns,
    Dials,
    Figure,
    Film,
    Grid,
    Heatmap,
    Line,
    Lines,
    Product,
    Stage,
    Steps,
    Tiles,
    View,
    Wall,
    same,
)
from headway.plot import picture, to_csv
from headway.plot.layout import worked_out
from headway.plot.panels import palette, scale_of
from headway.plot.sheet import Drawing, text_width, wrapped
from headway.shapes import HeadwayError
from headway.web.colours import colour_table, dashes, hues, line_styles
from headway.web.page import asset

TOKENS = ["the", "cat", "<b>&", "注意力", "a\nb\x00"]
SIDES = ({"en": "query", "zh": "查询"}, {"en": "key", "zh": "键"})


def heatmap(**changes: Any) -> Heatmap:
    values = [[(i * 5 + j) / 25 if j <= i else 0.0 for j in range(5)] for i in range(5)]
    hidden = Block.of([[int(j > i) for j in range(5)] for i in range(5)], "bits")
    given = {"title": {"en": "Weights", "zh": "权重"}, "values": Block.of(values), "rows": TOKENS, "columns": TOKENS}
    return Heatmap(**{**given, "axes": SIDES, "hidden": hidden, **changes})


def lines(count: int = 4, **changes: Any) -> Lines:
    x = [1.0, 2.0, 4.0, 8.0, 1024.0]
    curves = [Line(same(f"head {n}"), [n / 10, None, 1.0 + n / 50, 1.0, 1.0 + n / 1000]) for n in range(count)]
    axes = ({"en": "distance", "zh": "距离"}, {"en": "added", "zh": "加上的值"})
    return Lines(**{"title": same("Bias"), "x": x, "lines": curves, "axes": axes, **changes})


def every_kind() -> dict[str, Figure]:
    product = Product(
        same("Q = X W"),
        Block.of([[1.0, 2.0, -3.0, 0.5]] * 5),
        Block.of([[1.0, -1.0]] * 4),
        Block((2,), [0.25, 0.0]),
        Block.of([[0.75, -0.5]] * 5),
        TOKENS,
        ("X", "W_Q", "Q"),
    )
    bars = Bars(
        same("Row"), TOKENS, [(same("score"), [-1.0, 2.0, None, 0.5, 1]), (same("weight"), [0.1] * 5)], same("α")
    )
    stage = Stage(same("Q"), "5 × 2", "Q = X W_Q", {"en": "Every token asks.", "zh": "每个词元提出查询。"}, [product])
    return {
        "heatmap": heatmap(),
        "lines": lines(marks=[(2.0, same("trained")), (4.0, same("twice that"))], log_x=True),
        "bars": bars,
        "dials": Dials(same("Turns"), ["0", "1"], [(same("query"), [0.0, 1.0]), (same("key"), [3.0, -1.0])]),
        "grid": Grid(same("Table"), [same("name"), same("a long head of two")], [(same("rotary"), ["−0.0177"])]),
        "wall": Wall(same("Heads"), [(same(f"L0 H{n}"), heatmap(title=same("")), {}) for n in range(3)], 2),
        "product": product,
        "steps": Steps(same("All"), [stage, Stage(same("α"), "", "", same(""), [heatmap(), bars])]),
        "film": Film(same("Film"), [(same(f"step {n}"), [heatmap()]) for n in range(9)]),
        "columns": Columns(same("Beside"), [(same(name), [heatmap(), lines()]) for name in ("rotary", "alibi", "t5")]),
        "tiles": Tiles(same("Map"), heatmap(title=same("")), (50, 50), 2, 5, "max"),
    }


def texts(drawn: Drawing) -> list[Text]:
    """All that is written on a drawing."""
    renderer = FigureCanvasAgg(drawn).get_renderer()  # type: ignore[no-untyped-call]
    found: list[Text] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", lambda text, renderer: found.append(text))
        drawn.draw(renderer)
    return [one for one in found if one.get_visible() and one.get_text().strip()]


def words_of(drawn: Drawing) -> list[str]:
    return [one.get_text() for one in texts(drawn)]


@pytest.mark.parametrize("width", ["single", "double"])
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", every_kind())
def test_every_kind_of_figure_is_drawn(kind: str, language: str, width: str) -> None:
    drawn = picture(every_kind()[kind], language=language, width=width)
    wide, high = drawn.get_size_inches()
    assert wide == {"single": 3.4, "double": 7.0}[width]
    assert 0.5 < high < 11
    assert min(float(one.get_fontsize()) for one in texts(drawn)) >= 5.5
    assert crowded(drawn) == []


def crowded(drawn: Drawing) -> list[str]:
    """Words that leave their drawing or cover each other."""
    found = []
    paper, shown = drawn.bbox, texts(drawn)
    boxes = [one.get_window_extent() for one in shown]
    for n, a in enumerate(boxes):
        if a.x0 < paper.x0 - 1 or a.x1 > paper.x1 + 1 or a.y0 < paper.y0 - 1 or a.y1 > paper.y1 + 1:
            found.append(f"outside: {shown[n].get_text()}")
        for m, b in enumerate(boxes[n + 1 :], n + 1):
            if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 3:
                found.append(f"{shown[n].get_text()} / {shown[m].get_text()}")
    return found


@pytest.mark.parametrize("width", ["single", "double"])
def test_words_stay_on_the_paper_and_apart(width: str) -> None:
    marks = [(float(n), same(f"a mark at {n}")) for n in (2, 3, 4, 600)]
    names = [f"rotary(base={n}, scaling='dynamic')" for n in range(12)]
    many = [Line(same(name), [1.0, 1.0, 1.0, 1.0, 1.0 + n / 1000]) for n, name in enumerate(names)]
    for one in (
        lines(30, marks=marks),
        lines(lines=many),
        lines(log_x=True, log_y=True),
        lines(8, title=same("T " * 90)),
    ):
        assert crowded(picture(one, width=width)) == []
    assert crowded(picture(heatmap(axes=(same("a" * 90), same("b" * 90))), width=width)) == []
    crowd = picture(heatmap(), width=width)
    crowd.text(0.1, 0.99, "the the the")
    crowd.text(0.1, 0.99, "over it")
    assert len(crowded(crowd)) > 1  # the check sees what it should


def test_words_are_text_in_the_readers_language(tmp_path: Path) -> None:
    drawn = picture(heatmap(), language="zh")
    assert {"权重", "查询", "键", "the", "<b>&", "注意力", "a\\nb\\x00"} <= set(words_of(drawn))
    drawn.savefig(tmp_path / "a.svg")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert {"权重", "查询", "<b>&"} <= {one.text for one in root.iter("{http://www.w3.org/2000/svg}text")}


def test_dollars_are_dollars() -> None:
    assert "a $x_1$ b" in words_of(picture(heatmap(rows=["a $x_1$ b", *TOKENS[1:]])))


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_the_same_figure_is_the_same_file(kind: str, tmp_path: Path) -> None:
    first, second = (picture(every_kind()["columns"]).data(kind) for _ in range(2))
    assert first == second
    if kind == "pdf":
        assert b"/FontFile" in first  # fonts are embedded
        assert b"/Type3" not in picture(lines(), caption=False).data("pdf")
    if kind == "png":
        assert first[:4] == b"\x89PNG"


def test_settings_of_the_session_do_not_reach_in() -> None:
    before = picture(lines()).data("png")
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.facecolor": "red", "text.usetex": True}):
        assert picture(lines()).data("png") == before


def test_axes_can_be_changed_afterwards() -> None:
    drawn = picture(lines())
    drawn.axes[0].set_title("mine")
    assert "mine" in words_of(drawn)
    assert drawn._repr_svg_().lstrip().startswith("<?xml")


def pixels(drawn: Drawing) -> np.ndarray[Any, Any]:
    (shown,) = drawn.axes[0].images
    return np.asarray(shown.get_array())


def test_a_map_is_one_picture_of_a_pixel_a_cell() -> None:
    drawn = picture(heatmap(limits=(0.0, 0.5)))
    cells, table = pixels(drawn), colour_table("sequential")
    assert cells.shape == (5, 5, 4)
    for i in range(5):
        for j in range(5):
            if j > i:
                assert cells[i, j, 3] == 0  # hidden, and the hatching shows
            else:
                expected = table[min(255, math.floor((i * 5 + j) / 25 / 0.5 * 256))]
                assert np.allclose(cells[i, j, :3] * 255, expected, atol=0.5)
    assert [patch.get_hatch() for patch in drawn.axes[0].patches] == ["//////"]
    assert "≥ 0.5" in words_of(drawn)
    assert not picture(heatmap(hidden=None)).axes[0].patches


def test_scales_are_symmetric_cyclic_or_of_what_is_seen() -> None:
    signed = Block.of([[-1.0, 3.0], [math.nan, 9.0]])
    hidden = Block.of([[0, 0], [0, 1]])

    def found(**changes: Any) -> tuple[float | None, float | None, bool, bool]:
        norm, below, above = scale_of(heatmap(values=signed, hidden=hidden, **changes))
        return norm.vmin, norm.vmax, below, above

    assert found(scale="diverging") == (-3.0, 3.0, False, False)
    assert found() == (-1.0, 3.0, False, False)
    assert found(scale="cyclic") == (-math.pi, math.pi, False, False)
    assert found(limits=(0.0, 1.0)) == (0.0, 1.0, True, True)
    cells = pixels(picture(heatmap(values=signed, hidden=hidden, rows="ab", columns="ab")))
    assert cells[1, 0].tolist() == [1, 1, 1, 1]  # no number is white
    assert cells[1, 1, 3] == 0  # hidden is open


@pytest.mark.parametrize("scale", ["sequential", "diverging", "cyclic"])
def test_maps_have_the_pages_colours(scale: str) -> None:
    assert np.allclose(palette(scale)(np.arange(256))[:, :3] * 255, colour_table(scale))


def test_a_large_map_stays_small() -> None:
    side = 512
    values = Block((side, side), [((i * 7919) % 1000) / 1000 for i in range(side * side)])
    labels = [str(n) for n in range(side)]
    drawn = picture(heatmap(values=values, hidden=None, rows=labels, columns=labels))
    assert len(drawn.data("svg")) < 1_000_000
    assert pixels(drawn).shape[:2] == (side, side)


def test_lines_have_bands_gaps_and_a_look_each() -> None:
    low, high = [0.0, None, 0.5, 0.5, 0.5], [0.2, None, 2.0, 2.0, 2.0]
    figure = lines(3, lines=[Line(same(name), [0.1, None, 1.0, 1.0, 1.0], low, high) for name in ("t5", "alibi", "x")])
    axes = picture(figure, width="double").axes[0]
    assert len(axes.collections) == 3  # the bands
    expected = line_styles([("t5", None), ("alibi", None), ("x", None)])
    assert [line.get_color() for line in axes.lines] == [hues()[hue] for hue, _ in expected]
    for line, (_, dash) in zip(axes.lines, expected, strict=True):
        assert np.isnan(np.asarray(line.get_ydata(), float)).tolist() == [False, True, False, False, False]
        assert line.is_dashed() == bool(dashes()[dash])
    markers = [line.get_marker() for line in axes.lines]
    assert len(set(markers)) == len({dash for _, dash in expected})
    legend = axes.get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == {"t5", "alibi", "x"}


def test_names_stand_as_the_curves_end() -> None:
    legend = picture(lines(3, lines=[Line(same(f"{v}"), [v] * 5) for v in (1.0, 3.0, 2.0)])).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["3.0", "2.0", "1.0"]


def test_steps_hold_their_value_until_the_next() -> None:
    figure = Lines(same(""), [0.0, 1.0, 2.0], [Line(same(""), [0.0, 1.0, 0.5], steps=True)], (same("x"), same("y")))
    (curve,) = picture(figure).axes[0].lines
    assert curve.get_drawstyle() == "steps-post"


def test_logarithms_keep_zero() -> None:
    x = [0.0, 1.0, 2.0, 64.0]
    figure = Lines(same(""), x, [Line(same(""), [1.0, 2.0, 3.0, 4.0])], (same("x"), same("y")), log_x=True)
    axes = picture(figure).axes[0]
    places = [float(axes.transData.transform((value, 1.0))[0]) for value in x]
    assert places == sorted(places)
    assert all(math.isfinite(place) for place in places)


def script(*names: str) -> str:
    """Modules as one script."""
    return "\n".join(re.sub(r"^import .*$|^export ", "", asset(name), flags=re.MULTILINE) for name in names)


def test_colours_are_the_pages(open_page: Open) -> None:
    page = open_page("<!doctype html><title>colours</title>")
    program = script("theme.js", "colours.js")
    for scale in ("sequential", "diverging", "cyclic"):
        found = page.evaluate(f"() => {{ {program}; return [...colourTable('{scale}', false)]; }}")
        ours = [part for colour in colour_table(scale) for part in colour]
        assert max(abs(a - b) for a, b in zip(found, ours, strict=True)) <= 1
    program = script("theme.js", "styles.js")
    known = ["rotary", "alibi", "t5", "sinusoidal", "fox", "mrope"]
    found = page.evaluate(
        f"(known) => {{ {program}; return known.map((name) => methodStyles([{{ spec: name, name }}]).get(name)); }}",
        known,
    )
    assert [(one["hue"], one["dash"]) for one in found] == [line_styles([(name, None)])[0] for name in known]
    assert page.evaluate(f"() => {{ {program}; return [styleOf(9), styleOf(55)]; }}") == [
        {"hue": hue, "dash": dash} for (hue, dash) in line_styles([("", 9), ("", 55)])
    ]


def test_a_view_has_its_caption_unless_it_is_left_out() -> None:
    view = View("softmax", {"en": "It sums to 1.", "zh": "和为 1。"}, [heatmap()], "α = exp(s)", [same("A note.")])
    assert {"和为 1。", "α = exp(s)", "A note."} <= set(words_of(picture(view, language="zh", width="double")))
    assert "It sums to 1." not in words_of(picture(view, caption=False))


def test_the_numbers_as_csv_are_the_figures() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(heatmap()))))
    assert rows[0] == ["figure", "row", "column", "value"]
    assert len(rows) == 26
    assert rows[1] == ["Weights", "the", "the", "0.0"]
    assert rows[2] == ["Weights", "the", "cat", ""]  # hidden
    assert [float(row[3]) for row in csv.reader(io.StringIO(to_csv(lines(1)))) if row[3:] and row[3][:1].isdigit()]
    for kind, figure in every_kind().items():
        assert len(to_csv(figure, "zh").splitlines()) > 1, kind
    banded = Lines(same("B"), [1.0], [Line(same("a"), [2.0], [1.0], [3.0])], (same("x"), same("y")))
    assert to_csv(banded).split("\r\n")[1:4] == ["B,a,1.0,2.0", "B,a low,1.0,1.0", "B,a high,1.0,3.0"]


def test_a_product_is_worked_out() -> None:
    product = every_kind()["product"]
    assert isinstance(product, Product)
    assert worked_out(product) == "Q[the, 0] = 1 (k=0) + 2 (k=1) + −3 (k=2) + 0.5 (…) + 0.25 (b) = 0.75"


def test_nothing_to_draw_is_said() -> None:
    empty = lines(1, lines=[Line(same("a"), [None, math.nan, None, None, None])])
    assert "No completed measurement to plot." in words_of(picture(empty))


@pytest.mark.parametrize(("name", "value"), [("width", "triple"), ("language", "de")])
def test_what_is_not_there_is_refused(name: str, value: str) -> None:
    with pytest.raises(HeadwayError, match=rf"^expected {name} to be one of .*, got '{value}'$"):
        picture(heatmap(), **{name: value})


def test_without_matplotlib_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['matplotlib'] = None; import headway; headway.draw('alibi')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(
        r"HeadwayError: expected matplotlib for pictures, got no .*: pip install 'headway\[plot\]'", done.stderr
    )


def test_letters_that_no_font_has_are_said_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        picture(heatmap(rows=["\U0001f9a3", "\U00012000", "c", "d", "e"], columns=list("abcde"))).data("png")
    (one,) = caught
    assert str(one.message).startswith("expected fonts with the letters '\\U00012000' and '\\U0001f9a3', found none")


def test_text_is_broken_so_that_it_fits() -> None:
    for text in ("a sentence of several words and 注意力机制里的位置编码", "averyveryveryverylongword" * 3, "", " "):
        for width in (20.0, 60.0, 200.0):
            found = wrapped(text, width, 8.0)
            assert all(text_width(line, 8.0) <= width + 1e-6 or len(line) == 1 for line in found)
            assert "".join("".join(found).split()) == "".join(text.split())
