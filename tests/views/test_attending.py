"""The views of attention show the model's numbers, recomputed here from its matrices in plain torch."""

from __future__ import annotations

import base64
import json
import re
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from common import every_method, every_place, refusal
from torch import Tensor

from headway import HeadwayError, Transformer
from headway.figures.values import Bars, Block, Heatmap
from headway.inspect.head import Head
from headway.inspect.split import maps
from headway.positions import parse
from headway.training import Bytes, token_texts
from headway.views import Question, view
from headway.views.attending import KEYS
from headway.views.changing import swapped

LOWERED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
LABELS = ["the", "猫", "␣", "sat", "‥", "the", "cat", "ß", "\\xff"]
OURS = ("stepper", "projection", "softmax", "wall", "head", "split", "whatif")
LARGEST = 2_000_000


def tensor(block: Block) -> Tensor:
    """A block in float64, NaN where missing."""
    values = [float("nan") if value is None else value for value in block.values]
    return torch.tensor(values, dtype=torch.float64).view(block.shape)


def make(spec: str = "rotary", *, kind: str = "decoder", kv_heads: int | None = None, **more: Any) -> Transformer:
    """A small model with every parameter moved away from its start."""
    torch.manual_seed(0)
    options = {"vocab": 40, "dim": 24, "layers": 2, "heads": 3, "head_dim": 8, **more}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an encoder without position says so
        model = Transformer(**options, kind=kind, kv_heads=kv_heads, position=spec).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def asked(model: Transformer, labels: list[str] = LABELS, **more: Any) -> Question:
    ids = torch.arange(len(labels))[None] * 7 % 40
    return Question.of(model, ids, labels, **{"layer": 1, "head": 2, **more})


def passed(question: Question) -> dict[str, Tensor]:
    """What went into and out of the projections of the layer in question, taken from the modules themselves."""
    attention = question.model.stack.attentions()[question.layer]
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, given: tuple[Tensor, ...], made: Tensor) -> None:
            found[name], found[f"{name} in"] = made[0].double(), given[0][0].double()

        return hook

    handles = [getattr(attention, name).register_forward_hook(keep(name)) for name in ("q", "k", "v", "o")]
    with torch.no_grad():
        question.model(question.ids)
    for handle in handles:
        handle.remove()
    return found


def stages(question: Question) -> dict[str, Any]:
    return {stage.label["en"]: stage for stage in view("stepper", question).figures[0].stages}


def heatmaps(figure: Any) -> list[Heatmap]:
    if isinstance(figure, Heatmap):
        return [figure]
    inner = [f for _, figures in getattr(figure, "columns", ()) if isinstance(figures, list) for f in figures]
    inner += [f for stage in getattr(figure, "stages", ()) for f in stage.figures]
    return [one for part in inner for one in heatmaps(part)]


def close(one: Tensor, other: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(one.double(), other.double(), rtol=1e-4, atol=atol)


@every_method("views of attention", variants=False)
def test_stages_and_parts_are_the_models(spec: str) -> None:
    stages_and_parts(spec, "decoder", 1)


@every_place("views of attention")
def test_stages_and_parts_of_an_encoder_are_the_models(spec: str) -> None:
    stages_and_parts(spec, "encoder", None)


def stages_and_parts(spec: str, kind: str, kv_heads: int | None) -> None:
    question = asked(make(spec, kind=kind, kv_heads=kv_heads))
    found, steps = passed(question), stages(question)
    n, width, dim = len(LABELS), 8, 24
    labels = list(steps)
    last = {label: tensor(heatmaps(stage.figures[-1])[-1].values) for label, stage in steps.items()}
    for name, first in (("Q", 16), ("K", 0 if kv_heads else 16), ("V", 0 if kv_heads else 16)):
        weight = getattr(question.model.stack.attentions()[1], name.lower()).weight.double()
        close(last["X"] @ weight[first : first + width].T, last[name])
        close(last["X"], found[f"{name.lower()} in"])
        assert steps[name].shape == f"{n} × {width}"
    # scores: the products of q and k after position, scaled, and all terms
    product, scaled, added = (steps[label] for label in labels[-6:-3])
    q, k = last["Q"], last["K"]
    if "Q′, K′" in steps:
        maps = {one.title["en"]: tensor(one.values) for pair in steps["Q′, K′"].figures for one in heatmaps(pair)}
        q, k = maps.get("Q after", q), maps.get("K after", k)
    close(q @ k.T, tensor(product.figures[0].values))
    close(q @ k.T / width**0.5, tensor(scaled.figures[0].values))
    *terms, scores = (tensor(figure.values) for figure in added.figures)
    hidden = added.figures[-1].hidden
    seen = torch.ones(n, n, dtype=torch.bool) if hidden is None else tensor(hidden) == 0
    close(torch.where(seen, sum(terms, q @ k.T / width**0.5), 0.0), scores)
    if parse(spec).normalise == "softmax":
        assert seen.equal(torch.ones(n, n).tril() > 0 if kind == "decoder" else torch.ones(n, n) > 0)
        close(scores.masked_fill(~seen, -torch.inf).softmax(-1), last["softmax"])
    if not spec.startswith(("shaw", "rotatedvalues")):  # which act on the values
        close(last[labels[-3]] @ last["V"], last["A V"])
    close(found["o in"][:, 16:], last["A V"])
    close(found["o"], last["· W_O"])
    assert steps["· W_O"].shape == f"{n} × {dim}"
    # the parts of the other view add up to the same scores
    parts = view("split", question).figures[0].columns
    *summands, total = (tensor(figures[0].values) for _, figures in parts)
    close(sum(summands), total)
    close(total, scores)


@every_method("views of attention")
def test_planes_sum_to_the_product(spec: str) -> None:
    question = asked(make(spec), query=7, options={"key": 3})
    figures = view("split", question).figures
    if len(figures) < 3:
        assert not maps(parse(spec)) or spec.startswith(("deberta", "inkling"))  # which rotate nothing, but size q
        return
    steps = stages(question)
    q, k = (tensor(heatmaps(pair)[1].values) for pair in steps["Q′, K′"].figures)
    turned = figures[2].series[-1][1]
    assert len(turned) == len(figures[2].labels)
    assert sum(turned) == pytest.approx(float(q[7] @ k[3]) / 8**0.5, abs=1e-4)
    if len(figures[2].series) > 1:
        q, k = (tensor(steps[name].figures[1].values) for name in "QK")
        assert sum(figures[2].series[0][1]) == pytest.approx(float(q[7] @ k[3]) / 8**0.5, abs=1e-4)


def test_planes_of_rotary_are_its_pairs() -> None:
    model = make("rotary(fraction=0.5)")
    question = asked(model, query=8, options={"key": 2})
    bars = view("split", question).figures[2]
    steps = stages(question)
    q, k = (tensor(steps[name].figures[1].values) for name in "QK")
    assert bars.labels == ["1", "0.01", "0"]  # radians per token of two pairs, and the unrotated dimensions
    for pair, rate in enumerate((1.0, 0.01)):
        a, b = (torch.complex(x[row, pair], x[row, pair + 2]) for x, row in ((q, 8), (k, 2)))
        turn = torch.polar(torch.ones((), dtype=torch.float64), torch.tensor(6 * rate, dtype=torch.float64))
        assert bars.series[1][1][pair] == pytest.approx(float((a.conj() * b * turn.conj()).real) / 8**0.5, abs=1e-4)


@pytest.mark.parametrize("query", [0, 1, 4, 8])
def test_one_pair_is_looked_at_closely(query: int) -> None:
    question = asked(make("alibi", softcap=1.5), query=query)
    made = view("split", question)
    scores = question.seen.scores()[0, 2, query, : query + 1].clone()
    if query:  # the query's own key only where there is no other
        scores[query] = -torch.inf
    key = int(scores.argmax())
    table = {name["en"]: cells for name, cells in made.figures[1].rows}
    assert f"query {query} “{LABELS[query]}” → key {key} “{LABELS[key]}”" in made.figures[1].columns[2]["en"]
    bias = -(2.0**-2) * (query - key)
    assert float(table["bias by distance"][1].replace("−", "-")) == pytest.approx(bias, abs=1e-3)
    content = float(question.seen.scores()[0, 2, query, key]) - bias  # with its softcap
    said = re.search(r"([−\d.·⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+) is content and ([−\d.·⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+) position", made.finding["en"])
    assert said is not None
    found = [text.replace("−", "-").replace("·10", "e").translate(LOWERED) for text in said.groups()]
    assert [float(text) for text in found] == pytest.approx([content, bias], rel=1e-2, abs=1e-3)


def test_position_in_the_embedding_is_shown_and_split() -> None:
    model = make("sinusoidal")
    first = asked(model, layer=0)
    x = stages(first)["X"]
    e, p, normed = (tensor(figure.values) for figure in x.figures)
    weight = model.embedding.weight.detach().double()
    close(e, weight[first.ids[0]] * 24**0.5)
    wave = torch.arange(9, dtype=torch.float64)
    close(p[:, 0], wave.sin())
    close(
        (e + p) / (e + p).square().mean(-1, keepdim=True).sqrt() * model.stack.blocks[0].attention.norm.weight, normed
    )
    assert [label["en"] for label, _ in view("split", first).figures[0].columns][:2] == [
        "content · content",
        "content · position",
    ]
    assert not view("split", first).notes
    assert "(estimate)" not in view("split", first).figures[0].title["en"]
    deeper = view("split", asked(model))
    assert "(estimate)" in deeper.figures[0].title["en"]
    assert deeper.notes[0]["en"].startswith("Estimate: the layers before layer 1")


@pytest.mark.parametrize("matrix", ["q", "k", "v"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_products_and_bias_are_the_number(matrix: str, qk_norm: bool) -> None:
    question = asked(make(bias=True, qk_norm=qk_norm, kv_heads=1), query=4, column=5, options={"matrix": matrix})
    made = view("projection", question)
    (figure,) = made.figures
    left, right, out = tensor(figure.left), tensor(figure.right), tensor(figure.out)
    assert figure.bias is not None
    torch.testing.assert_close(left @ right + tensor(figure.bias), out, rtol=0, atol=1e-5)
    first = 16 if matrix == "q" else 0
    close(out, passed(question)[matrix][:, first : first + 8], atol=1e-6)
    assert figure.cell == (4, 5)
    assert any("before QK-norm" in note["en"] for note in made.notes) == (qk_norm and matrix != "v")
    assert any("share 1" in note["en"] for note in made.notes) == (matrix != "q")


def test_a_row_of_softmax() -> None:
    question = asked(make("alibi"), query=5)
    made = view("softmax", question)
    scores, weights = (figure.series[0][1] for figure in made.figures[1:])
    assert scores[6:] == weights[6:] == [None] * 3
    exponents = [torch.tensor(score, dtype=torch.float64).exp() for score in scores[:6]]
    assert weights[:6] == pytest.approx([float(e / sum(exponents)) for e in exponents], abs=1e-6)
    assert sum(weights[:6]) == pytest.approx(1, abs=1e-4)
    assert "sum to 1.0000" in made.finding["en"]
    assert made.notes


def test_weights_that_do_not_sum_to_one() -> None:
    question = asked(make("stickbreaking"), query=5)
    made = view("softmax", question)
    scores, weights = (figure.series[0][1] for figure in made.figures[1:])
    left = 1.0
    for score, weight in reversed(list(zip(scores[:5], weights[:5], strict=True))):
        share = 1 / (1 + float(torch.tensor(-score).exp()))
        assert weight == pytest.approx(left * share, abs=1e-5)
        left *= 1 - share
    assert scores[5] is None  # a query does not see its own key
    said = re.search(r"leaves ([\d.]+) % unassigned", made.finding["en"])
    assert said is not None
    assert float(said[1]) == pytest.approx(100 * left, abs=0.5)
    blind = view("softmax", asked(make("stickbreaking"), query=0))
    assert blind.finding["en"] == "All keys are masked for “the”, so all its weights are 0."
    sinks = asked(make("alibi", sinks=True, softcap=2.0), query=5)
    scores, weights = (figure.series[0][1] for figure in view("softmax", sinks).figures[1:])
    sink = sinks.model.stack.attentions()[1].sinks[2].item()
    total = sum(float(torch.tensor(score).exp()) for score in scores[:6]) + float(torch.tensor(sink).exp())
    assert weights[0] == pytest.approx(float(torch.tensor(scores[0]).exp()) / total, abs=1e-5)
    assert "goes to the sink" in view("softmax", sinks).finding["en"]
    assert "softcap" in [figure.title["en"] for figure in stages(sinks)["+ position, mask"].figures]


def test_of_many_keys_the_largest_weights_are_shown() -> None:
    question = asked(make(), [str(token) for token in range(150)])
    made = view("softmax", question)
    weights = question.seen.weights()[0, 2, -1]
    kept = [int(label) for label in made.figures[2].labels]
    assert kept == sorted(weights.argsort(descending=True)[:KEYS].tolist())
    assert f"the others share {100 * float(weights.sum() - weights[kept].sum()):.0f}" in made.notes[-1]["en"]


def test_the_wall_has_every_head_on_one_scale() -> None:
    question = asked(make("t5", kv_heads=1))
    (wall,) = view("wall", question).figures
    assert [label["en"] for label, *_ in wall.tiles] == [f"L{layer} H{head}" for layer in range(2) for head in range(3)]
    assert len({tile.limits for _, tile, _ in wall.tiles}) == 1
    for _, tile, numbers in wall.tiles:
        layer, head = int(numbers["layer"]), int(numbers["head"])
        weights = question.trace[layer].weights()[0, head].double()
        close(tensor(tile.values), weights, atol=1e-6)
        assert numbers["previous"] == pytest.approx(float(weights.diagonal(-1).sum() / 9), abs=1e-5)
        assert numbers["entropy"] == pytest.approx(float(-torch.special.xlogy(weights, weights).sum() / 9), abs=1e-5)
    assert set(wall.sorts) == {"previous", "first", "self", "entropy", "distance"}
    assert all(set(wall.sorts) <= set(numbers) for *_, numbers in wall.tiles)


def test_a_long_text_is_pooled_on_the_wall() -> None:
    question = asked(make(), [str(token) for token in range(150)])
    made = view("wall", question)
    tile = made.figures[0].tiles[5][1]
    weights = question.trace[1].weights()[0, 2]
    assert tile.values.shape == (50, 50)
    for row, column in ((0, 0), (7, 3), (49, 49), (49, 0)):
        square = weights[3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        assert tensor(tile.values)[row, column] == pytest.approx(float(square.max()), abs=1e-6)
    assert tensor(tile.hidden)[3, 4] == 1
    assert tensor(tile.hidden)[4, 4] == 0
    assert tile.rows[49] == "147–149"
    assert "3 × 3" in made.notes[0]["en"]


@pytest.mark.parametrize("what", ["weights", "scores"])
def test_a_head_is_the_models(what: str) -> None:
    question = asked(make("kerple"), options={"what": what})
    made = view("head", question)
    shown = made.figures[0]
    expected = getattr(question.seen, what)()[0, 2].tril()
    close(tensor(shown.values), expected, atol=1e-6)
    assert tensor(shown.hidden).equal(torch.ones(9, 9, dtype=torch.float64).triu(1))
    assert list(shown.rows) == list(shown.columns) == LABELS
    looked = {name["en"]: cells for name, cells in made.figures[1].rows}
    assert looked["previous token"][1] == f"{100 * sum(1 / n for n in range(2, 10)) / 9:.0f} %"
    assert looked["itself"][0] == f"{100 * float(question.seen.weights()[0, 2].diagonal().mean()):.0f} %"
    if what == "weights":  # how often the even share
        expected = expected * torch.arange(1, 10)[:, None]
    link = expected.masked_fill(torch.ones(9, 9).tril(-1) == 0, -torch.inf)
    query, key = divmod(int(link.argmax()), 9)
    assert f"query {query} “{LABELS[query]}” → key {key} “{LABELS[key]}”" in made.finding["en"]
    if what == "weights":
        assert f"{float(expected[query, key]):.3g} times a uniform share" in made.finding["en"]


def test_a_whole_text_of_1024_tokens_fits() -> None:
    torch.manual_seed(1)
    model = Transformer(40, 32, 1, 4, position="rotary").eval()
    labels = [f"token{number}" for number in range(1025)]
    question = asked(model, labels[:1024], layer=0)
    for name in OURS[:-1]:
        assert len(json.dumps(view(name, question).plain())) < LARGEST, name
    shown = view("head", question).figures[0]
    assert shown.values.kind == "uint8"
    assert shown.values.span == shown.limits
    assert max(value for value in shown.values.values if value is not None) <= shown.limits[1]
    for name in ("head", "stepper", "split"):
        with refusal(
            f"expected a text of at most 1,024 tokens for the view {name!r}, got 1,025: "
            f"use a part of it, or the view 'long'"
        ):
            view(name, asked(model, labels, layer=0))
    changed = asked(model, labels[:512], layer=0)
    assert len(json.dumps(view("whatif", changed).plain())) < LARGEST


def test_a_wide_model_fits() -> None:
    model = Transformer(40, 1024, 1, 8, position="sinusoidal").eval()
    question = asked(model, [str(token) for token in range(200)], layer=0, column=100)
    for name in OURS:
        assert len(json.dumps(view(name, question).plain())) < LARGEST, name
    product = view("projection", question).figures[0]
    row, column = product.cell
    close(tensor(product.left)[row] @ tensor(product.right)[:, column], passed(question)["q"][-1, 2 * 128 + 100])
    assert stages(question)["Q"].shape == "200 × 128"


@every_method("views of attention", relative=True, variants=False)
def test_shifting_changes_nothing_for_relative_methods(spec: str) -> None:
    made = view("whatif", asked(make(spec), options={"change": "shift", "by": 7}))
    before, after, difference = (tensor(figures[0].values) for _, figures in made.figures[0].columns)
    close(before, after)
    assert difference.abs().max() < 1e-4
    assert "nothing changes" in made.finding["en"]


@pytest.mark.parametrize("spec", ["learned", "sinusoidal"])
def test_shifting_changes_absolute_methods(spec: str) -> None:
    question = asked(make(spec), options={"change": "shift", "by": 7, "what": "scores"})
    made = view("whatif", question)
    before, after, difference = (tensor(figures[0].values) for _, figures in made.figures[0].columns)
    seen = torch.ones(9, 9).tril() > 0
    torch.testing.assert_close((after - before)[seen], difference[seen])
    place = divmod(int(difference.abs().argmax()), 9)
    assert f"query {place[0]} “{LABELS[place[0]]}” → key {place[1]} " in made.finding["en"]


def test_shuffling_tokens() -> None:
    labels = ["a", "b", "c", "d", "e"]
    blind = asked(make("none", kind="encoder"), labels, options={"change": "shuffle"})
    assert "nothing changes" in view("whatif", blind).finding["en"]
    question = asked(make("learned"), labels, options={"change": "shuffle", "seed": 3})
    made = view("whatif", question)
    order = made.notes[0]["en"].removeprefix("Order after: ").split(".")[0].split(" ")
    places = [labels.index(label) for label in order]
    assert sorted(places) == [0, 1, 2, 3, 4] != places
    shuffled = Question.of(question.model, question.ids[:, places], order, layer=1, head=2).seen.weights()[0, 2]
    after = tensor(made.figures[0].columns[1][1][0].values)
    for row, query in enumerate(places):
        for column, key in enumerate(places):
            assert after[query, key] == pytest.approx(float(shuffled[row, column]), abs=1e-6)


def test_swapping_the_method() -> None:
    question = asked(make("rotary"), layer=0, options={"change": "swap", "position": "alibi", "what": "scores"})
    made = view("whatif", question)
    after = tensor(made.figures[0].columns[1][1][0].values)
    steps = stages(question)
    q, k = (tensor(steps[name].figures[1].values) for name in "QK")
    slope = 2.0**-2  # of head 2 of 3: ALiBi takes those of 2 heads and then of twice as many
    distance = torch.arange(9)[:, None] - torch.arange(9)
    close(after, (q @ k.T / 8**0.5 - slope * distance).tril())
    assert not made.notes
    assert "`alibi` instead of `rotary`" in made.finding["en"]
    assert question.model.position.method_name() == "rotary"
    model, fresh = swapped(question.model, "learned(max_length=64)")
    assert fresh
    assert torch.equal(model.stack.blocks[1].mlp.part.up.weight, question.model.stack.blocks[1].mlp.part.up.weight)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("spec", ["rotary", "learned", "stickbreaking", "path", "none", "axial"])
def test_a_single_token(spec: str, kind: str) -> None:
    question = asked(make(spec, kind=kind), ["猫"])
    for name in OURS:
        made = view(name, question)
        assert made.finding["en"] != made.finding["zh"]
        json.dumps(made.plain(), allow_nan=False)
    assert "No token sees any other token" in view("head", question).finding["en"]


def test_text_is_filled_in_and_blocks_are_whole() -> None:
    def texts(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for one in value.values() for text in texts(one)]
        if isinstance(value, list):
            return [text for one in value for text in texts(one)]
        return [value] if isinstance(value, str) else []

    for spec in ("sinusoidal", "shaw", "yarn", "fox"):
        for name in OURS:
            made = view(name, asked(make(spec, qk_norm=True), options={"position": "t5"}))
            for text in texts({**made.plain(), "figures": [f.title for f in made.figures]}):
                assert "{" not in text
            for language in ("en", "zh"):
                assert made.title[language]
                assert made.question[language][-1] in "?？"


def test_numbers_in_steps_and_masks_as_bits() -> None:
    sent = Block((2, 3), [0.0, None, 1.0, 0.5, -1.0, 9.0], "uint8", (-1.0, 1.0)).plain()
    assert list(base64.b64decode(sent["data"])) == [127, 255, 254, 190, 0, 254]
    assert sent["span"] == [-1.0, 1.0]
    sent = Block((3, 3), [1, 0, 0, 0, 0, 0, 0, 1, 1], "bits").plain()
    assert list(base64.b64decode(sent["data"])) == [0b10000001, 0b10000000]
    assert Block((0,), [], "bits").plain()["data"] == ""


def test_what_cannot_be_shown() -> None:
    question = asked(make())
    for name, options, message in (
        ("head", {"what": "logits"}, "expected the option 'what' to be one of weights, scores, got 'logits'"),
        ("projection", {"matrix": "o"}, "expected the option 'matrix' to be one of q, k, v, got 'o'"),
        ("whatif", {"change": "drop"}, "expected the option 'change' to be one of shift, shuffle, swap, got 'drop'"),
        ("whatif", {"by": "far"}, "expected the option 'by' to be a whole number, got 'far'"),
        ("whatif", {"by": -1}, "expected the option 'by' of at least 0, because positions start at 0, got -1"),
        ("split", {"key": 9}, "expected the option 'key' from 0 to 8, got 9"),
        (
            "whatif",
            {"change": "swap"},
            "expected the option 'position', a method such as alibi, to swap rotary for, got None",
        ),
    ):
        with refusal(message):
            view(name, asked(question.model, options=options))
    with refusal("expected a cell of q within 9 tokens and 8 columns, got 8, 8"):
        view("projection", asked(question.model, column=8))


def test_all_parts_share_one_scale() -> None:
    columns = view("split", asked(make("deberta"))).figures[0]
    assert len({one.limits for one in heatmaps(columns)}) == 1
    low, high = heatmaps(columns)[0].limits
    assert low == -high
    assert all(tensor(one.values).abs().max() <= high for one in heatmaps(columns))


def _bytes(text: str, **given: Any) -> Question:
    made = Transformer(vocab=256, dim=32, layers=2, heads=2, position="rotary").eval()
    ids = torch.tensor([list(text.encode())])
    return Question.of(made, ids, token_texts(Bytes(), ids[0]), **given)


@pytest.mark.parametrize(("how", "names"), [
    ("characters", ["t", "h", "e", "␣", "猫", "坐", "在", "␣", "m", "a", "t", "。"]),
    ("words", ["the", "␣猫", "坐", "在", "␣mat", "。"]),
])  # fmt: skip
def test_weights_of_bytes_are_those_of_their_characters(how: str, names: list[str]) -> None:
    question = _bytes("the 猫坐在 mat。", options={"group": how}, layer=1)
    weights, sizes = (
        Head(question.seen, 0).weights.double(),
        [len(name.encode().replace("␣".encode(), b" ")) for name in names],
    )
    columns = torch.stack([part.sum(1) for part in weights.split(sizes, 1)], 1)
    wanted = torch.stack([part.mean(0) for part in columns.split(sizes, 0)])
    beside = view("sidebyside", replace(question, others=[question])).figures[0]
    what = view("whatif", replace(question, options={"group": how, "by": 0}))
    for name, figure in (
        ("head", view("head", question).figures[0]),
        ("wall", view("wall", question).figures[0].tiles[2][1]),
        ("sidebyside", beside.columns[1][1][-1]),
        ("whatif", what.figures[0].columns[1][1][0]),
    ):
        assert figure.rows == figure.columns == names, name
        got = torch.tensor(figure.values.values, dtype=torch.float64).view(figure.values.shape)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(got.sum(1), torch.ones(len(names), dtype=torch.float64), rtol=0, atol=1e-6)
    shown = view("head", question)
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    assert list(shown.figures[0].tokens) == list(what.figures[0].columns[0][1][0].tokens) == starts
    assert f"{len(question.labels)} tokens are shown as {len(names)} {how}" in shown.notes[0]["en"]
    assert set(re.findall("“(.*?)”", shown.finding["en"])) <= set(names)


def test_what_belongs_to_single_tokens_numbers_them() -> None:
    question = _bytes("a 猫")
    numbered = ["a", "␣", "猫₁", "猫₂", "猫₃"]
    for options in ({"group": "tokens"}, {"what": "scores"}):
        assert view("head", replace(question, options=options)).figures[0].rows == numbered
    shown = view("softmax", question)
    assert next(one for one in shown.figures if isinstance(one, Bars)).labels == numbered
    assert "numbered" in shown.notes[-1]["en"]
    assert not any("numbered" in note["en"] for note in view("softmax", _bytes("a cat")).notes)
    # a text that says so itself has no parts
    assert Question.fresh("x₁ x₂").labels == view("head", Question.fresh("x₁ x₂")).figures[0].rows
    with pytest.raises(HeadwayError, match="'group'"):
        view("head", replace(question, options={"group": "bytes"}))


def test_colours_of_a_long_text_fit_its_later_queries() -> None:
    words = [f"w{n % 37}" for n in range(200)]
    shown = view("head", Question.fresh(" ".join(words))).figures[0]
    assert shown.limits == (0.0, 1.0)
    assert shown.fit is not None
    values = torch.tensor(shown.values.values).view(200, 200)[100:]
    seen = torch.ones(200, 200).tril()[100:].bool()
    assert (values[seen] <= shown.fit[1]).double().mean() == pytest.approx(0.995, abs=0.001)
    assert view("head", Question.fresh("the cat sat on a mat")).figures[0].fit is None
    assert len({tile.fit for _, tile, _ in view("wall", Question.fresh(" ".join(words))).figures[0].tiles}) == 1


def test_a_masked_pair_has_no_score() -> None:
    question = replace(Question.fresh("the cat sat on"), query=1, options={"key": 3})
    shown = view("split", question)
    assert "The mask hides the pair" in shown.finding["en"]
    assert [cells[1] for _, cells in shown.figures[1].rows] == ["–"] * len(shown.figures[1].rows)
    assert not any(isinstance(figure, Bars) for figure in shown.figures)
    assert any(isinstance(figure, Bars) for figure in view("split", replace(question, options={"key": 0})).figures)
