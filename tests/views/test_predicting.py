"""Predictions and generation show the model's own probabilities, those it is sampled with, and its real cache."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from headway import Transformer, generate
from headway.figures.values import Bars, Film, Grid, Heatmap
from headway.figures.words import number, percent
from headway.inspect.record import recorded
from headway.shapes import HeadwayError
from headway.training import Bytes, token_texts
from headway.training.generation import Sampling, probabilities
from headway.training.vocabulary import Masked
from headway.views import Question, view
from headway.views.draw import draw
from headway.views.generating import KEYS, written
from headway.views.predicting import Predicted, next_tokens, predictor_of
from headway.views.predictor import OfVocabulary, OfWords
from headway.views.questions import about_trace

TEXT = "The cat 猫 sat."


def made(spec: str = "rotary", **more: Any) -> Transformer:
    torch.manual_seed(0)
    options = {
        "vocab": 256,
        "dim": 24,
        "layers": 2,
        "heads": 3,
        "kv_heads": 1,
        "head_dim": 8,
        "backend": "reference",
        **more,
    }
    model = Transformer(**options, position=spec).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def asked(model: Transformer, text: str = TEXT, **more: Any) -> Question:
    ids = Bytes().encode(text.encode())
    return Question.of(model, ids[None], token_texts(Bytes(), ids), vocabulary=Bytes(), **more)


def of_masks(model: Transformer, text: str = TEXT, **more: Any) -> Question:
    """A question about an encoder that learned masked tokens of bytes; the mask is 256."""
    ids = Bytes().encode(text.encode())
    return Question.of(model, ids[None], token_texts(Bytes(), ids), vocabulary=Masked(Bytes()), **more)


def softmax(model: Transformer, question: Question, **more: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(question.ids, **more)[0].double()
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


def test_the_probability_and_rank_of_each_true_token() -> None:
    question = asked(made())
    p = softmax(question.model, question)
    _, along, _, table = view("prediction", question).figures
    assert isinstance(along, Bars)
    assert isinstance(table, Grid)
    true = [float(p[place, token]) for place, token in enumerate(question.ids[0, 1:])]
    shown = along.series[0][1]
    assert shown[0] is None
    assert shown[1:] == pytest.approx(true, rel=1e-12)
    for place, (_, cells) in enumerate(table.rows):
        rank = 1 + int((p[place] > true[place]).sum())
        assert cells[:2] == [percent(true[place]), f"{rank:,}"]
    bits = -torch.tensor(true, dtype=torch.float64).log2().mean()
    assert number(float(bits)) in view("prediction", question).finding["en"]


@pytest.mark.parametrize("at_once", [1, 40])
def test_an_encoder_predicts_each_token_with_a_mask_in_its_place(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.views.predictor.AT_ONCE", at_once)
    question = of_masks(made("sinusoidal", kind="encoder", vocab=257), query=4, options={"shift": 3})
    ids = question.ids[0].tolist()
    expected, moved = torch.empty(len(ids), 257).double(), torch.empty(len(ids), 257).double()
    for place in range(len(ids)):
        masked = torch.tensor([[*ids[:place], 256, *ids[place + 1 :]]])
        with torch.no_grad():
            expected[place] = question.model(masked)[0, place].double().softmax(-1)
            moved[place] = question.model(masked, pos=torch.arange(3, 3 + len(ids)))[0, place].double().softmax(-1)
    bars, shifted, along, kept, table = view("prediction", question).figures
    shown = along.series[0][1]
    assert shown == pytest.approx([float(expected[place, token]) for place, token in enumerate(ids)], rel=1e-5)
    for place, (name, cells) in enumerate(table.rows):
        assert name["en"].startswith(f"{place} · ")
        assert cells[1] == f"{1 + int((expected[place] > expected[place, ids[place]]).sum()):,}"
    assert len(table.rows) == len(ids)
    assert bars.series[0][1][:11] == pytest.approx(expected[4].sort(descending=True).values[:11].tolist(), rel=1e-5)
    assert [name["en"] for name, _ in kept.rows if "stood there" in name["en"]] == ["c (stood there)"]
    assert shifted.series[1][1][:3] == pytest.approx(
        moved[4, expected[4].argsort(descending=True)[:3]].tolist(), rel=1e-5
    )
    bits = -torch.tensor(shown, dtype=torch.float64).log2().mean()
    assert number(float(bits)) in view("prediction", question).finding["en"]


def test_the_strip_of_an_encoder_reads_a_mask_after_the_text() -> None:
    question = of_masks(made("sinusoidal", kind="encoder", vocab=257))
    with torch.no_grad():
        p = question.model(torch.cat([question.ids, torch.tensor([[256]])], 1))[0, -1].double().softmax(-1)
    found = next_tokens(question, 3)
    assert found["masked"]
    assert [one["p"] for one in found["tokens"]] == pytest.approx(p.sort(descending=True).values[:3].tolist(), rel=1e-9)
    assert "masked" not in next_tokens(asked(made()), 3)


def sampled(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Temperature, top-k, then top-p of what is left, token by token."""
    p = (logits.double() / temperature).softmax(0)
    kept, total = torch.zeros_like(p), 0.0
    order = p.argsort(descending=True, stable=True)[:top_k]
    share = p / p[order].sum()
    for token in order.tolist():
        if top_p is not None and total >= top_p:
            break
        kept[token] = p[token]
        total += float(share[token])
    return kept / kept.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, None, None), (0.7, 6, 0.8), (2.0, None, 0.5), (1.0, 3, None)]
)
def test_temperature_top_k_and_top_p(temperature: float, top_k: int | None, top_p: float | None) -> None:
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    question = asked(made(), query=4, options=given)
    with torch.no_grad():
        logits = question.model(question.ids)[0, 4]
    shown = view("prediction", question)
    bars, _, kept, _ = shown.figures
    assert isinstance(bars, Bars)
    assert isinstance(kept, Grid)
    expected = sampled(logits, temperature, top_k, top_p)
    assert torch.allclose(probabilities(logits, Sampling(**given)), expected, rtol=1e-12, atol=0)
    assert question.ids[0, 5] in [ord(name) for name in bars.labels if len(name) == 1]  # the true token is shown
    largest = expected.sort(descending=True).values
    assert bars.series[-1][1][: len(bars.labels) - 1] == pytest.approx(
        largest[: len(bars.labels) - 1].tolist(), rel=1e-12
    )
    for (_, cells), after in zip(kept.rows, bars.series[-1][1], strict=True):
        assert cells[2].startswith("✗") is (after == 0)
    assert len(bars.series) == 1 + (temperature != 1) + (top_k is not None) + (top_p is not None)
    assert f" {int((expected > 0).sum())} of 256 " in shown.notes[0]["en"]


def test_temperature_zero_keeps_the_likeliest_alone() -> None:
    bars, _, kept, _ = view("prediction", asked(made(), options={"temperature": 0})).figures
    assert bars.series[1][1] == [1.0] + [0.0] * (len(bars.labels) - 1)
    assert [cells[2] for _, cells in kept.rows] == ["✓"] + ["✗ T = 0"] * (len(bars.labels) - 1)


@pytest.mark.parametrize(
    ("spec", "same"), [("rotary", True), ("alibi", True), ("sinusoidal", False), ("learned", False)]
)
def test_shifting_positions(spec: str, same: bool) -> None:
    question = asked(made(spec), options={"shift": 7})
    shown = view("prediction", question)
    assert ("unchanged within rounding" in shown.finding["en"]) is same
    assert ("在舍入误差内不变" in shown.finding["zh"]) is same
    before, after = (values for _, values in shown.figures[1].series)
    pos = torch.arange(7, 7 + question.ids.shape[1])
    moved = softmax(question.model, question, pos=pos)
    tokens = Predicted.of(predictor_of(question)).likeliest(question.row, len(before))
    assert after == pytest.approx(moved[-1, tokens].tolist(), rel=1e-9)
    largest = float((moved - softmax(question.model, question)).abs().max())
    assert (largest < 1e-4) is same


WRONG = [
    *[("prediction", one) for one in ({"top_k": 0}, {"top_p": 0}, {"temperature": -1}, {"temperature": "hot"})],
    *[("prediction", one) for one in ({"shift": -1}, {"top_k": 2.5})],
    *[("generation", one) for one in ({"tokens": 65}, {"tokens": 0}, {"seed": -1}, {"heads": "none"})],
]


@pytest.mark.parametrize(("name", "options"), WRONG)
def test_wrong_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(HeadwayError, match=f"the option '{next(iter(options))}'"):
        view(name, asked(made(), options=options))


def test_what_predicts_nothing_says_so() -> None:
    with pytest.raises(HeadwayError, match="expected positions below max_length=20, got 25"):
        view("prediction", asked(made("learned(max_length=20)"), options={"shift": 10}))
    encoder = asked(made("rotary", kind="encoder"))
    for name in ("prediction", "generation"):
        with pytest.raises(HeadwayError, match="got an encoder, which predicts no next token"):
            view(name, encoder)
    assert "encoder" in next_tokens(encoder)["none"]["en"]
    masked = of_masks(made("rotary", kind="encoder", vocab=257))
    with pytest.raises(HeadwayError, match="got an encoder, which predicts masked tokens and no next one"):
        view("generation", masked)
    with pytest.raises(HeadwayError, match="at most 256 tokens"):
        view("prediction", of_masks(made("rotary", kind="encoder", vocab=257), "a" * 257))
    passed = about_trace(recorded(made(), torch.tensor([[1, 2]])))
    assert "only the attentions" in next_tokens(passed)["none"]["en"]


@pytest.mark.parametrize("given", [{}, {"temperature": 0.6, "top_k": 9, "top_p": 0.9, "seed": 3}, {"temperature": 0}])
@pytest.mark.parametrize("more", [{}, {"latent_dim": 12, "kv_heads": None}], ids=["heads", "latent"])
def test_generation_writes_what_generate_writes(given: dict[str, Any], more: dict[str, Any]) -> None:
    question = asked(made(**more), layer=1, options={"tokens": 6, **given})
    ids = list(generate(question.model, question.ids, tokens=6, **given))
    steps = written(question, predictor_of(question), 6, Sampling(**given))
    assert [one.token for one in steps] == ids
    film = view("generation", question).figures[0]
    assert isinstance(film, Film)
    with torch.no_grad():
        whole = torch.cat((question.ids, torch.tensor([ids])), 1)
        logits = question.model(whole)[0].double()
        layer = recorded(question.model, whole)[1]
    for step, one in enumerate(steps):
        now = question.ids.shape[1] + step
        assert torch.allclose(one.logits, logits[now - 1], atol=1e-4)
        expected = layer.weights(slice(now - 1, now))[0, :, 0, :now].double()
        assert torch.allclose(one.weights, expected, atol=1e-5)
        bars, attention, _ = film.frames[step][1]
        drawn = [name for name in bars.labels if name.startswith("▶ ")]
        assert len(drawn) == 1
        assert isinstance(attention, Heatmap)
        rows = attention.values.rows()
        assert [value for value in rows[2] if value is not None] == pytest.approx(one.weights[2].tolist())


def test_the_cache_is_the_models_own() -> None:
    question = asked(made(), options={"tokens": 4})
    cache = question.model.new_cache()
    with torch.no_grad():
        question.model(question.ids, cache=cache)
    first, *_, last = written(question, predictor_of(question), 4, Sampling())
    tokens = question.ids.shape[1]
    assert (first.held.tokens, first.held.reserved) == (len(cache), cache.nbytes)
    assert first.held.shape == tuple(cache.layers[0].k.shape)
    assert (last.held.tokens, last.held.needed) == (
        tokens + 3,
        (tokens + 3) * 2 * 2 * 8 * 4,
    )  # layers, k and v, width, bytes
    table = view("generation", question).figures[0].frames[3][1][2]
    assert [cells[0] for _, cells in table.rows[:2]] == [str(tokens + 3), f"{last.held.needed:,}"]
    assert [cells[1] for _, cells in table.rows[:2]] == ["+ 1", "+ 128"]


def test_a_long_prompt_and_one_head() -> None:
    question = asked(made(), "ab" * 100, head=1, options={"tokens": 2, "heads": "chosen"})
    shown = view("generation", question)
    maps = [figures[1] for _, figures in shown.figures[0].frames]
    assert [map.values.shape for map in maps] == [(1, KEYS)] * 2
    assert str(KEYS) in shown.notes[-1]["en"]
    assert len(json.dumps(shown.plain())) < 100_000


def test_next_tokens_append_to_the_text() -> None:
    question = asked(made())
    found = next_tokens(question, 256)
    assert found["vocab"] == len(found["tokens"]) == 256
    p = softmax(question.model, question)[-1]
    assert [one["p"] for one in found["tokens"]] == pytest.approx(p.sort(descending=True).values.tolist(), rel=1e-12)
    letters = {one["added"] for one in found["tokens"]}
    assert letters == {None} | {chr(byte) for byte in range(128)}
    assert "\\xe7" in {one["label"] for one in found["tokens"]}
    words = OfWords({0: "the", 1: "cat", 2: ",", 3: "猫", 4: "_"})
    assert [words.added([1], token) for token in range(6)] == [" the", " cat", ",", "猫", " _", None]
    assert words.added([], 0) == "the"
    assert words.added([3], 0) == " the"
    assert OfVocabulary(Bytes()).added(list("猫".encode()), 65) == "A"


def test_they_are_printed() -> None:
    question = asked(made(), "a 猫", options={"tokens": 1})
    assert len(draw(question, view="prediction", language="zh").axes) >= 2
    assert len(draw(question, view="generation").axes) >= 2
