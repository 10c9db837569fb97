"""Views of position: every method is shown or refused in a sentence, and the numbers are those of the formulas."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from common import randomise, refusal
from torch import Tensor

from headway import Transformer
from headway.figures.values import Block, Grid, Heatmap, Lines, View
from headway.figures.words import number, percent
from headway.inspect.probe import planes
from headway.positions import methods, parse
from headway.results.findings import findings
from headway.shapes import HeadShape, HeadwayError
from headway.views import Question, view
from headway.views.distances import by_distance, second_half
from headway.views.methods import EXACT, match
from headway.views.question import Recording
from headway.views.reaching import _uniform, _windows

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
import sample

WORDS = ["it", "was", "the", "best", "of", "times", ",", *"那是最好的年代，那是最坏的年代，", *"wise"]
LARGEST = 2_000_000
TURNING = {
    *("axial", "comrope", "dynamicntk", "fope", "grapem", "hope", "interpolated", "llama3", "longrope", "mrope", "ntk"),
    *("pope", "proportional", "randomized", "rotary", "rotatedvalues", "selectiverotary", "xpos", "yarn"),
}
ADDING = {
    *(
        "alibi",
        "cope",
        "dape",
        "dapev2",
        "deberta",
        "dynamicbias",
        "fire",
        "fox",
        "grapea",
        "grapeap",
        "hopelorentz",
        "wall",
    ),
    *("inkling", "kerple", "music", "path", "sandwich", "shaw", "swin", "swinv2", "t5", "transformerxl"),
}
EMBEDDING = {"learned", "sinusoidal", "sinusoidal2d"}
KNOWN = TURNING | ADDING | EMBEDDING | {"none", "stickbreaking"}
APPLIES = {
    "scaling": KNOWN,
    "vectors": EMBEDDING,
    "similarity": TURNING | ADDING | EMBEDDING,
    "bias": ADDING,
    "rotation": TURNING,
    "distance": KNOWN,
}
"""Which methods each view shows; the others it refuses. A method that is added later must be shown or refused too."""


def model(spec: str = "rotary", **given: Any) -> Transformer:
    """Small, of awkward widths, every parameter moved away from its start."""
    torch.manual_seed(0)
    made = Transformer(**{"vocab": 30, "dim": 24, "layers": 2, "heads": 3, "head_dim": 8, "position": spec, **given})
    randomise(made)
    return made.eval()


def asked(spec: str = "rotary", tokens: int = len(WORDS), *, made: Transformer | None = None, **given: Any) -> Question:
    labels = [*WORDS, *(f"w{n}" for n in range(tokens))][:tokens]
    ids = torch.arange(tokens)[None] * 7 % 30
    return Question.of(model(spec) if made is None else made, ids, labels, **{"layer": 1, "head": 2, **given})


def tensor(block: Block) -> Tensor:
    values = [math.nan if value is None else value for value in block.values]
    return torch.tensor(values, dtype=torch.float64).view(block.shape)


def curve(line: Any) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in line.values], dtype=torch.float64)


def close(got: Tensor, wanted: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(got.double(), wanted.double(), rtol=1e-5, atol=atol, equal_nan=True)


def figures(shown: View, kind: type) -> list[Any]:
    return [figure for figure in shown.figures if isinstance(figure, kind)]


def answer(name: str, question: Question) -> tuple[View | None, str]:
    """A view, or why there is none."""
    try:
        return view(name, question), ""
    except HeadwayError as error:
        return None, str(error)


# --- every method ---------------------------------------------------------------------------------------------------


@functools.cache
def shared(spec: str) -> Question:
    """One question to all views, which change no model."""
    return asked(spec)


@pytest.mark.parametrize("name", APPLIES)
def test_every_method_is_shown_or_refused_in_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("headway.views.scaling"), "QUERIES", 8)  # drawn anew for every method
    found = set()
    for spec in methods():
        shown, refused = answer(name, shared(spec))
        if shown is None:
            assert re.fullmatch(rf"expected [^:]+, got {spec}(, [^:]+)?: look at [^:]+", refused)
            continue
        found.add(spec)
        assert len(json.dumps(shown.plain(), allow_nan=False)) < LARGEST
        for said in (shown.finding, shown.title, shown.question, *shown.notes):
            assert said["en"] != said["zh"]
            assert not set("{}") & set(said["en"] + said["zh"])
            assert "nan" not in said["en"].split()
    assert found & KNOWN == APPLIES[name]


@pytest.mark.parametrize("spec", ["rotary", "shaw", "fox", "learned", "alibi", "pope", "axial(mixed=True)"])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_key_heads_may_be_fewer(spec: str, kv_heads: int) -> None:
    made = model(spec, heads=4, dim=32, kv_heads=kv_heads)
    question = asked(made=made, head=3)
    shown = [name for name in APPLIES if parse(spec).method_name() in APPLIES[name]]
    assert all(view(name, question).figures for name in shown)


@pytest.mark.parametrize("name", ["scaling", "distance", "bias"])
def test_an_encoder_sees_both_sides(name: str) -> None:
    question = asked(made=model("t5(bidirectional=True)", kind="encoder"))
    shown = view(name, question)
    if name == "bias":  # past and future have their own tables
        past, future = figures(shown, Lines)
        assert past.lines[0].values != future.lines[0].values


def test_looking_changes_no_model() -> None:
    for spec in ("rotary", "learned", "cope", "fope"):
        question = asked(spec)
        before = {name: value.clone() for name, value in question.model.state_dict().items()}
        state = torch.get_rng_state()
        for name in APPLIES:
            if spec in APPLIES[name]:
                view(name, question)
        assert torch.equal(torch.get_rng_state(), state)
        after = question.model.state_dict()
        assert all(torch.equal(after[key], value) and after[key].dtype == value.dtype for key, value in before.items())


# --- scaling --------------------------------------------------------------------------------------------------------


def test_scores_spread_by_the_root_of_the_width_and_scaling_undoes_it() -> None:
    shown = view("scaling", asked(options={"dim": 100}))
    spread, entropy = figures(shown, Lines)
    raw, scaled, root = map(curve, spread.lines)
    widths = torch.tensor(spread.x, dtype=torch.float64)
    assert widths.tolist() == [8, 16, 32, 64, 100, 128, 256, 512]
    close(root, widths.sqrt())
    assert ((raw / widths.sqrt() - 1).abs() < 0.05).all()
    assert ((scaled > 0.9) & (scaled < 1.1)).all()
    sharp, soft, most = map(curve, entropy.lines)
    close(most, torch.full_like(most, math.log(256)))
    assert (sharp.diff() < 0).all()
    assert (soft > 4.9).all()
    assert (soft < most).all()
    for bars in shown.figures[2:4]:
        for _, shares in bars.series:
            assert sum(shares) == pytest.approx(1, abs=1e-4)
    # the raw histogram is as wide as the raw scores: its standard deviation, from the bins, is √d_k
    edges = [float(label.replace("−", "-").replace(",", "")) for label in shown.figures[2].labels]
    variance = sum(share * at**2 for at, share in zip(edges, shown.figures[2].series[0][1], strict=True))
    assert math.sqrt(variance) == pytest.approx(10, rel=0.1)


def test_the_text_has_the_models_own_spread() -> None:
    question = asked("rotary", 40)
    call = question.seen.call
    q, k = call.q[0, 2].double(), call.k[0, 2].double()
    scores = torch.cat([q[i] @ k[: i + 1].T for i in range(20, 40)])
    rows = view("scaling", question).figures[-1].rows
    assert [float(cell) for cell in rows[2][1]] == [
        pytest.approx(float(scores.std(correction=0)), rel=5e-3),
        pytest.approx(float(scores.std(correction=0)) / math.sqrt(8), rel=5e-3),
    ]


@pytest.mark.parametrize("dim", [0, 4097, "64"])
def test_widths_that_do_not_fit_are_refused(dim: Any) -> None:
    with refusal(f"expected options dim, a width of a head, from 1 to 4096, got {dim!r}"):
        view("scaling", asked(options={"dim": dim}))


# --- vectors and similarity -----------------------------------------------------------------------------------------


def test_learned_shows_its_own_table() -> None:
    question = asked("learned(max_length=70)")
    (table,) = figures(view("vectors", question), Heatmap)
    close(tensor(table.values), question.model.stack.position.weight.detach())
    stream = question.seen.stream
    assert stream is not None
    close(tensor(table.values)[: len(WORDS)], stream.position[0], atol=1e-4)
    assert "no dimension" in view("vectors", question).notes[-1]["en"].lower()


def test_a_long_table_is_cut_and_says_so() -> None:
    shown = view("vectors", asked("learned(max_length=300)"))
    assert shown.figures[0].values.shape == (256, 24)
    assert any("first 256 of 300" in note["en"] for note in shown.notes)
    assert (
        view("vectors", asked("learned(max_length=300)", options={"positions": 300})).figures[0].values.shape[0] == 300
    )


@pytest.mark.parametrize("spec", ["sinusoidal", "sinusoidal(layout='split', base=500.0)"])
def test_sinusoids_have_the_papers_values_and_wavelengths(spec: str) -> None:
    base, split = (500.0, True) if "split" in spec else (10000.0, False)
    shown = view("vectors", asked(spec))
    values = tensor(shown.figures[0].values)
    wanted = torch.zeros(64, 24, dtype=torch.float64)
    for p, i in itertools.product(range(64), range(12)):
        angle = p * base ** (-2 * i / 24)
        wanted[p, i if split else 2 * i], wanted[p, 12 + i if split else 2 * i + 1] = math.sin(angle), math.cos(angle)
    close(values, wanted)
    if not split:
        assert values[0].tolist() == [0.0, 1.0] * 12
    wavelengths = curve(figures(shown, Lines)[-1].lines[0])
    formula = torch.tensor([2 * math.pi * base ** (2 * i / 24) for i in range(12)], dtype=torch.float64)
    torch.testing.assert_close(
        wavelengths, formula.repeat(2) if split else formula.repeat_interleave(2), rtol=1e-5, atol=0
    )


def test_an_images_sinusoids_have_wavelengths_along_each_axis() -> None:
    by_row, by_column = map(curve, figures(view("vectors", asked("sinusoidal2d")), Lines)[-1].lines)
    formula = torch.tensor([2 * math.pi * 10000 ** (i / 6) for i in range(6)], dtype=torch.float64).repeat(2)
    empty = torch.full((12,), math.nan, dtype=torch.float64)
    torch.testing.assert_close(by_row, torch.cat((formula, empty)), rtol=1e-5, atol=0, equal_nan=True)
    torch.testing.assert_close(by_column, torch.cat((empty, formula)), rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("spec", ["sinusoidal", "learned"])
def test_similarity_is_the_cosine_of_the_vectors(spec: str) -> None:
    question = asked(spec)
    shown = view("similarity", question)
    vectors = tensor(view("vectors", question).figures[0].values)
    cosine = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], -1)
    dot, near = (tensor(figure.values) for figure in figures(shown, Heatmap))
    close(dot, vectors[:128] @ vectors[:128].T)
    close(near, cosine[:128, :128])
    close(near.diagonal(), torch.ones(len(near)))
    mean = curve(figures(shown, Lines)[0].lines[0])
    offsets = [int(x) for x in figures(shown, Lines)[0].x]
    assert offsets == list(range(len(vectors)))
    close(mean, torch.stack([cosine.diagonal(n).mean() for n in offsets]))
    along = max(float(cosine.diagonal(n).max() - cosine.diagonal(n).min()) for n in range(len(cosine)))
    assert (along < 1e-6) == (spec == "sinusoidal")
    assert ("offset alone" in shown.finding["en"]) == (spec == "sinusoidal")


def test_methods_without_vectors_show_the_score_of_equal_tokens() -> None:
    shown = view("similarity", asked("alibi", head=0))
    scores = tensor(shown.figures[0].values)
    slope = 2.0**-4  # three heads: those of two first
    close(scores.tril(), torch.tensor([[1 - slope * (i - j) for j in range(64)] for i in range(64)]).tril())
    hidden = tensor(shown.figures[0].hidden)
    assert torch.equal(hidden.bool(), torch.ones(64, 64).triu(1).bool())


@pytest.mark.parametrize(("name", "spec", "reach"), [
    ("similarity", "rotary", 300), ("rotation", "rotary", 300), ("bias", "kerple", 3000), ("bias", "fire", 200),
])  # fmt: skip
def test_every_distance_is_drawn(name: str, spec: str, reach: int) -> None:
    shown = view(name, asked(spec, options={"positions": reach, "reach": reach}))
    lines = figures(shown, Lines)[-1]
    assert lines.x == list(range(int(lines.x[0]), int(lines.x[-1]) + 1))
    assert lines.x[-1] >= reach - 1
    assert all(len(line.values) == len(lines.x) for line in lines.lines)
    if name == "similarity":
        assert ("Maps show the first 128 of 300" in str(shown.notes)) == (reach > 128)
        assert figures(shown, Heatmap)[0].values.shape == (128, 128)


def test_the_score_of_equal_tokens_is_the_formula_at_every_distance() -> None:
    (lines,) = figures(view("similarity", asked("rotary", options={"positions": 1024})), Lines)
    width = asked("rotary").attentions[0].shape.head_dim
    rates = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    close(curve(lines.lines[0]), (torch.arange(1024)[:, None] * rates).cos().mean(1), atol=1e-5)


# --- bias -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "slopes"), [(3, [2**-4, 2**-8, 2**-2]), (4, [2**-2, 2**-4, 2**-6, 2**-8])])
def test_alibis_slopes_are_the_formula(heads: int, slopes: list[float]) -> None:
    shown = view("bias", asked(made=model("alibi", heads=heads), head=1, options={"reach": 900}))
    (lines,) = figures(shown, Lines)
    assert not lines.log_x  # where a straight line would look like an exponential
    assert lines.x == list(range(1, 901))
    for line, slope in zip(lines.lines, slopes, strict=True):
        close(curve(line), -slope * torch.tensor(lines.x))
    assert str(slopes[1])[:6].lstrip("0") in shown.finding["en"].replace("−", "-")


def bucket(n: int, buckets: int = 32, far: int = 128) -> int:
    half = buckets // 2
    return n if n < half else min(buckets - 1, half + int(math.log(n / half) / math.log(far / half) * (buckets - half)))


def test_t5_is_flat_in_a_bucket() -> None:
    question = asked("t5")
    (lines,) = figures(view("bias", question), Lines)
    weight = question.position.weight.detach()
    starts = [1, *(n for n in range(2, 513) if bucket(n) != bucket(n - 1)), 512]
    assert lines.x == starts
    for head, line in enumerate(lines.lines):
        assert line.steps
        close(curve(line), weight[head, [bucket(n) for n in starts]])
    assert lines.marks[0][0] == starts[-2]


def test_bias_that_depends_on_the_text_is_its_mean_and_band() -> None:
    question = asked("shaw(clip=5)", 41)
    shown = view("bias", question)
    (own, _) = figures(shown, Lines)
    layer = question.seen
    tile = torch.stack([term.tile(layer.call.q_pos, layer.call.k_pos) for term in layer.call.score_terms]).sum(0)[0, 2]
    for x, mean, low, high in zip(own.x, own.lines[0].values, own.lines[0].low, own.lines[0].high, strict=True):
        values = torch.tensor(
            [float(tile[i, i - int(x)]) for i in range(20, 41) if i - int(x) >= 0], dtype=torch.float64
        )
        assert mean == pytest.approx(float(values.mean()), abs=1e-5)
        assert [low, high] == pytest.approx(values.quantile(torch.tensor([0.1, 0.9]).double()).tolist(), abs=1e-5)


def test_forgetting_is_counted_from_the_own_token() -> None:
    question = asked("fox", 30)
    (own, _) = figures(view("bias", question), Lines)
    gates = question.position.mark(question.seen.x).detach()[0, :, 2].double()  # log f of each token
    wanted = [
        sum(float(gates[i - n + 1 : i + 1].sum()) for i in range(15, 30) if i >= n) / sum(i >= n for i in range(15, 30))
        for n in map(int, own.x)
    ]
    assert own.lines[0].values == pytest.approx(wanted, abs=1e-4)


def test_an_images_bias_is_a_map_of_rows_and_columns() -> None:
    question = asked("swin(height=3, width=5)")
    wall, _ = view("bias", question).figures
    for head, (_, tile, _) in enumerate(wall.tiles):
        # the table is by query minus key, the map by key minus query
        close(tensor(tile.values), question.position.weight.detach()[head].flip(0, 1))
        assert tile.rows[0] == "-2"
        assert len(tile.columns) == 9


@pytest.mark.parametrize("reach", [1, 10**6])
def test_a_reach_that_does_not_fit_is_refused(reach: int) -> None:
    with refusal(f"expected options reach, a distance in tokens, from 2 to 65536, got {reach}"):
        view("bias", asked("alibi", options={"reach": reach}))


# --- rotation -------------------------------------------------------------------------------------------------------


RATES = {
    "rotary": [10000 ** (-i / 4) for i in range(4)],
    "rotary(pairing='interleaved', base=50.0)": [50 ** (-i / 4) for i in range(4)],
    "rotary(fraction=0.5)": [1.0, 0.01],
    "interpolated(factor=3.0)": [10000 ** (-i / 4) / 3 for i in range(4)],
    "proportional(fraction=0.5)": [1.0, 0.1],
    "hope(original=64)": [1.0, 0.1],
    "ntk(factor=8.0)": [(10000 * 8 ** (8 / 6)) ** (-i / 4) for i in range(4)],
    "xpos": [10000 ** (-i / 4) for i in range(4)],
    "mrope": [10000 ** (-i / 4) for i in range(4)],
    "randomized(method='rotary', longest=99)": [10000 ** (-i / 4) for i in range(4)],
}


@pytest.mark.parametrize("spec", RATES)
def test_planes_turn_at_the_rates_of_the_formula(spec: str) -> None:
    shown = view("rotation", asked(spec))
    rates = torch.tensor(RATES[spec], dtype=torch.float64)
    map_ = figures(shown, Heatmap)[0]
    angles = tensor(map_.values)
    assert map_.scale == "cyclic"
    if "mrope" in spec:  # a line of tokens along time rotates the first planes only
        assert angles.shape == (32, 4)
        assert (angles[:, 1:] == 0).all()
        rates = rates[:1]
    wanted = torch.arange(len(angles))[:, None] * rates
    assert angles.shape[1] == (4 if "mrope" in spec else len(rates))
    off = torch.remainder(angles[:, : len(rates)] - wanted + math.pi, 2 * math.pi) - math.pi
    assert off.abs().max() < 1e-6
    turns = curve(figures(shown, Lines)[0].lines[0])[: len(rates)]
    torch.testing.assert_close(turns, 2 * math.pi / rates, rtol=1e-5, atol=0)


def test_learned_rotations_are_those_of_the_matrix_exponential() -> None:
    position = parse("comrope(block=4)").attach(HeadShape.of(24, 3, None, 8))
    randomise(position)
    found = planes(position, torch.arange(50)[None], head=1)
    generator = torch.block_diag(
        *(position.matrix[1] - position.matrix[1].mT) * position.angle[0][:, None, None]
    ).double()
    rates = torch.linalg.eigvals(generator).imag.abs().sort(descending=True).values[::2]
    close(
        found.rates.abs(), (torch.remainder(rates + math.pi, 2 * math.pi) - math.pi).abs().sort(descending=True).values
    )
    x = torch.randn(7, 8, dtype=torch.float64)
    turned = x @ torch.linalg.matrix_exp(9 * generator).mT
    inside, after = (each.to(torch.complex128) @ found.basis.conj().mT for each in (x, turned))
    torch.testing.assert_close(after, inside * torch.polar(torch.ones(4).double(), found.angles[9]), rtol=0, atol=1e-5)
    close(found.sizes(x).square().sum(-1), x.square().sum(-1))


def test_use_of_planes_is_the_mean_size_of_queries_and_keys() -> None:
    question = asked("rotary(fraction=0.5)", made=model("rotary(fraction=0.5)", heads=4, kv_heads=2), head=3)
    usage = tensor(figures(view("rotation", question), Heatmap)[1].values)
    layer = question.seen
    for head in range(4):
        q, k = layer.q[0, head].double(), layer.k[0, head // 2].double()
        for pair in range(2):  # number i with i + 2, of the first four
            wanted = (
                q[:, [pair, pair + 2]].norm(dim=1).mean() * k[:, [pair, pair + 2]].norm(dim=1).mean() / math.sqrt(8)
            )
            assert float(usage[head, pair]) == pytest.approx(float(wanted), rel=1e-5)
        rest = q[:, 4:].norm(dim=1).mean() * k[:, 4:].norm(dim=1).mean() / math.sqrt(8)
        assert float(usage[head, 2]) == pytest.approx(float(rest), rel=1e-5)


def test_equal_content_scores_a_sum_of_cosines() -> None:
    lines = figures(view("rotation", asked("rotary")), Lines)[1]
    wanted = [sum(math.cos(x * rate) for rate in RATES["rotary"]) / 4 for x in lines.x]
    assert lines.lines[0].values == pytest.approx(wanted, abs=1e-5)


def changed(question: Question) -> float:
    """How much scores change when the text is moved, as the table says."""
    text = view("rotation", question).figures[-1].rows[-1][1][0]
    digits = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")
    mantissa, _, power = text.partition("·10")
    return float(mantissa.replace(",", "").translate(digits)) * 10.0 ** int(power.translate(digits) or 0)


@pytest.mark.parametrize("spec", sorted(TURNING))
def test_moving_the_text_changes_no_score_of_a_relative_method(spec: str) -> None:
    question = asked(spec)
    change, finding = changed(question), view("rotation", question).finding["en"]
    absolute = spec == "fope"  # sums of waves see places themselves
    assert (change < 1e-4) != absolute
    assert ("positions matter" in finding) == absolute


def test_dynamic_bases_see_the_length() -> None:
    assert changed(asked("dynamicntk(original=64)")) > 1e-3


# --- attention by distance ------------------------------------------------------------------------------------------


def test_uniform_causal_attention_gives_the_exact_curve() -> None:
    made = model("none")
    for attention in made.stack.attentions():
        torch.nn.init.zeros_(attention.q.weight)
    shown = view("distance", asked(made=made, tokens=131))
    own, uniform = figures(shown, Lines)[0].lines
    for x, value, low, high, even in zip(
        figures(shown, Lines)[0].x, own.values, own.low, own.high, uniform.values, strict=True
    ):
        weights = torch.tensor([1 / (i + 1) for i in range(65, 131) if i >= x], dtype=torch.float64)
        assert len(weights) >= 50
        assert value == pytest.approx(float(weights.mean()), abs=1e-6)
        assert even == value
        assert [low, high] == pytest.approx(weights.quantile(torch.tensor([0.1, 0.9]).double()).tolist(), abs=1e-6)


def test_attention_by_distance_is_the_models() -> None:
    tokens = 23
    question = asked(made=model("alibi", heads=4, kv_heads=2), tokens=tokens, head=1)
    lines = figures(view("distance", question), Lines)[1]
    weights = question.seen.weights()[0].double()
    for head, line in enumerate(lines.lines):
        for x, value in zip(lines.x, line.values, strict=True):
            found = torch.tensor([float(weights[head, i, i - int(x)]) for i in range(tokens // 2, tokens) if i >= x])
            mean = float(found.double().mean())
            assert value == (pytest.approx(mean, rel=1e-4) if mean >= 1e-6 else None)


@pytest.mark.parametrize("position", ["alibi", "rotary", "sinusoidal"])
@pytest.mark.parametrize("tokens", [40, 200])
def test_curve_table_and_sentence_are_of_the_same_queries(position: str, tokens: int) -> None:
    question = asked(position, tokens, head=1)
    shown = view("distance", question)
    rows = second_half(tokens)
    weights = question.seen.weights(rows)[0].double()  # (heads, queries, keys)
    at = torch.arange(tokens)[rows]
    previous = weights.gather(-1, (at - 1)[None, :, None].expand(len(weights), -1, 1)).mean((1, 2))
    apart = (weights * (at[:, None] - torch.arange(tokens)).abs()).sum(-1).mean(1)
    table, lines = figures(shown, Grid)[0], figures(shown, Lines)
    for head, (_, cells) in enumerate(table.rows):
        assert cells[1] == percent(float(previous[head]))
        assert cells[3] == number(float(apart[head]))
        assert lines[1].lines[head].values[0] == pytest.approx(float(previous[head]), rel=1e-5)
        assert cells[4] == percent(float(by_distance(question.seen, question.seen.weights).middle[head, -1]))
    assert lines[0].lines[0].values == lines[1].lines[1].values
    said = shown.finding if isinstance(shown.finding, dict) else {}
    assert percent(float(previous[1])) in said["en"]
    assert f"{number(float(apart[1]))} tokens." in said["en"]


def test_all_that_queries_give_is_in_the_means_by_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.views.distances.ENOUGH", 1)
    for question in (asked("alibi", 60), asked("rotary", 60, options={"windows": torch.randint(30, (3, 60))})):
        layer = _windows(question)
        found = by_distance(layer, layer.weights)
        uniform = by_distance(layer, lambda rows, layer=layer: _uniform(layer, rows))
        for spread in (found, uniform):
            total = (spread.middle * spread.counts).sum(-1) / spread.looked
            close(total, torch.ones_like(total), atol=1e-6)
        # so no head can lie below another everywhere, and none below uniform attention
        assert bool((found.middle >= uniform.middle).any(1).all())


def test_windows_are_pooled() -> None:
    windows = torch.randint(30, (9, 12))
    question = asked(tokens=12, options={"windows": windows})
    shown = view("distance", question)
    assert "Texts: 9," in shown.notes[0]["en"]
    assert (
        "the same 54 queries, all in the second half; each point averages 54 or more of them" in shown.notes[0]["en"]
    )  # six queries each
    found = []
    for window in windows:
        alone = replace(question, recording=Recording(question.model, window[None]), options={})
        found += [alone.seen.weights()[0, 2, i, i - 1] for i in range(6, 12)]
    assert figures(shown, Lines)[0].lines[0].values[0] == pytest.approx(
        float(torch.stack(found).double().mean()), rel=1e-4
    )


def test_a_long_text_is_looked_at_by_some_of_its_queries() -> None:
    assert len(range(*second_half(10_000).indices(10_000))) <= 128
    shown = view("distance", asked(tokens=400))
    for lines in figures(shown, Lines):
        assert lines.x == list(range(1, 301))  # up to here each point averages enough queries


def test_a_single_token_has_no_distance() -> None:
    with refusal("expected a text of at least 2 tokens, because distance is between two, got 1"):
        view("distance", asked(tokens=1))


# --- side by side ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 5), (6, 6), (4, 2)])
def test_matching_is_the_best_of_all(shape: tuple[int, int]) -> None:
    cost = torch.rand(*shape, generator=torch.Generator().manual_seed(shape[0] + 7 * shape[1]))
    found = match(cost)
    copies = cost.repeat(1, -(-shape[0] // shape[1]))
    best = min(
        sum(float(copies[row, column]) for row, column in enumerate(chosen))
        for chosen in itertools.permutations(range(copies.shape[1]), shape[0])
    )
    assert sum(float(cost[row, column]) for row, column in enumerate(found)) == pytest.approx(best)
    if shape[0] <= shape[1]:
        assert len(set(found)) == shape[0]


def test_many_heads_are_matched_too() -> None:
    order = torch.randperm(EXACT + 8)
    assert match(1 - torch.eye(EXACT + 8)[order]) == order.tolist()


def test_heads_in_another_order_are_found_again() -> None:
    question = asked("rotary", 30, head=1)
    other = model("rotary")
    order = torch.tensor([2, 0, 1])
    for attention in other.stack.attentions():
        for linear in (attention.q, attention.k, attention.v):
            linear.weight.data = linear.weight.data.unflatten(0, (3, 8))[order].flatten(0, 1)
        attention.o.weight.data = attention.o.weight.data.unflatten(1, (3, 8))[:, order].flatten(1)
    beside = replace(question, recording=Recording(other, question.ids), name="two")
    shown = view("sidebyside", replace(question, name="one", others=[beside]))
    columns, pairs, _ = shown.figures
    assert [int(cells[0]) for _, cells in pairs.rows] == [order.tolist().index(head) for head in range(3)]
    assert all(cells[1] == "0" or "⁻" in cells[1] for _, cells in pairs.rows)  # as near as rounding lets them
    (_, mine), (_, theirs) = columns.columns
    close(tensor(mine[2].values), tensor(theirs[2].values))
    assert "standard deviation" in shown.notes[0]["en"]


def test_columns_are_the_same_kinds_of_figures_for_every_method() -> None:
    question = asked("rotary", 12)
    others = [asked(spec, 12, name=spec) for spec in methods()]
    shown = view("sidebyside", replace(question, others=others[:20]))
    kinds = {tuple(type(figure) for figure in column) for _, column in shown.figures[0].columns}
    assert len(kinds) == 1
    view("sidebyside", replace(question, others=others[20:]))


def test_other_texts_are_not_set_beside_each_other() -> None:
    question = asked(tokens=5)
    with refusal("expected others, further models to compare with this one, got none: give at least one"):
        view("sidebyside", question)
    another = "expected others to be asked about the same 5 tokens, got another text for alibi"
    with refusal(f"{another}: give all models the same tokens"):
        view("sidebyside", replace(question, others=[asked("alibi", 6)]))


# --- longer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made", [sample.results, sample.diverged, sample.recall, sample.all_failed, sample.interrupted]
)
def test_every_method_length_and_seed_is_there(made: Any) -> None:
    results = made()
    shown = view("longer", asked(results=results))
    (lines,) = figures(shown, Lines)
    key = "accuracy" if results["task"] == "recall" else "bits_per_byte"
    assert [line.label["en"] for line in lines.lines] == [method["spec"] for method in results["methods"]]
    assert lines.x == results["settings"]["test_lengths"]
    assert lines.marks[0][0] == 64
    for line in lines.lines:
        for at, length in enumerate(lines.x):
            found = [
                test[key]
                for cell in results["cells"]
                for test in cell["tests"]
                if cell["method"] == line.label["en"] and test["length"] == length and test["status"] == "ok"
            ]
            wanted = [sum(found) / len(found), min(found), max(found)] if found else [None] * 3
            assert [line.values[at], line.low[at], line.high[at]] == [
                value if value is None else pytest.approx(value, rel=1e-5) for value in wanted
            ]
            if not found:
                told = [name["en"] + cells[0] for name, cells in shown.figures[-1].rows]
                assert any(text.startswith(f"{line.label['en']}:") and f"{int(length):,}" in text for text in told)


def seeds(means: dict[str, list[float]]) -> dict[str, Any]:
    """Results of two lengths: as told at the longer one, and alike at the shorter."""

    def test(value: float, length: int) -> dict[str, Any]:
        return {"length": length, "status": "ok", "loss": value, "bits_per_byte": value}

    return {
        "task": "text",
        "methods": [{"spec": name} for name in means],
        "settings": {"seeds": [0, 1, 2], "train_length": 64, "test_lengths": [64, 128]},
        "cells": [
            {"method": name, "seed": seed, "status": "ok", "tests": [test(2.0, 64), test(value, 128)]}
            for name, values in means.items()
            for seed, value in enumerate(values)
        ],
    }


@pytest.mark.parametrize(
    ("means", "said", "not_said"),
    [
        ({"a": [1.0, 1.4, 1.2], "b": [1.3, 1.5, 1.4]}, "cannot be distinguished from `b`", "do not overlap"),
        ({"a": [1.0, 1.1, 1.2], "b": [1.3, 1.5, 1.4]}, "Their seed ranges do not overlap", "cannot be distinguished"),
        ({"a": [1.0], "b": [1.3]}, "a lead may be noise", "cannot be distinguished"),
        ({"a": [1.0, 2.9, 1.0], "b": [1.3, 1.5, 1.4], "c": [2.0, 2.0, 2.1]}, "`b` has the lowest mean", "do not"),
    ],
)
def test_longer_names_no_winner_that_cannot_be_told_apart(means: Any, said: str, not_said: str) -> None:
    results = seeds(means)
    told = view("longer", asked(results=results)).finding
    assert isinstance(told, dict)
    assert said in told["en"]
    assert not_said not in told["en"]
    (report,) = (one for one in findings(results) if ".best." in one.key and one.values["length"] == 128)
    for language in ("en", "zh"):  # the words of the report, on the same data
        assert told[language].startswith(getattr(report, language))


def test_longer_counts_who_gets_worse_as_the_report_does() -> None:
    results = seeds({"a": [2.01, 2.02, 2.0], "b": [2.4, 2.5, 2.6], "c": [1.0, 1.0, 1.1]})
    told = view("longer", asked(results=results)).finding
    assert isinstance(told, dict)
    assert "1 of 3 methods are clearly worse than at 64" in told["en"]


@pytest.mark.parametrize(("later", "said"), [([2.4, 2.5, 2.6], "it is clearly worse"), ([1.0, 1.0, 1.1], "it is not")])
def test_longer_of_one_method_counts_none(later: list[float], said: str) -> None:
    told = view("longer", asked(results=seeds({"a": later}))).finding
    assert isinstance(told, dict)
    assert f"At 128 tokens {said}" in told["en"]
    assert " of 1 methods" not in told["en"]


def test_longer_of_one_seed_speaks_of_one() -> None:
    results = seeds({"a": [1.0], "b": [1.3]})
    for given, said in (([0], "of one seed"), ([0, 1], "mean and range over 2 seeds")):
        results["settings"]["seeds"] = given
        title = view("longer", asked(results=results)).figures[0].title
        assert isinstance(title, dict)
        assert title["en"].endswith(said)


def test_longer_needs_results() -> None:
    with refusal("expected results of headway compare, got none: give those of a folder it wrote"):
        view("longer", asked())
    with refusal("expected results with methods and test lengths, got none: let the comparison go on"):
        view("longer", asked(results={"methods": [], "cells": []}))
