"""The steps through one head: their values are the model's, and they are readable in both languages and any width."""

from __future__ import annotations

import io

import pytest
import torch
from common import every_method, refusal
from rich.console import Console

from headway import Transformer
from headway.inspect.explain import explain, fresh_model, words
from headway.views.explain_text import walk_text

TEXT = "The cat sat on the mat, and the dog did not."


def told(walk: dict, width: int, language: str) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(walk_text(walk, width, language))
    return console.file.getvalue()


@every_method("explain")
def test_its_numbers_are_the_models(spec: str) -> None:
    tokens = words(TEXT)
    model, ids = fresh_model(tokens, position=spec)
    walk = explain(model, ids, tokens, layer=1, head=1)
    scores, parts = torch.tensor(walk["scores"]), [torch.tensor(part) for part in walk["parts"].values()]
    torch.testing.assert_close(sum(parts), scores, rtol=1e-4, atol=1e-4)
    assert sum(walk["cell"]["products"]) + walk["cell"]["bias"] == pytest.approx(walk["cell"]["sum"], abs=1e-5)
    weights, value = torch.tensor(walk["weights"]), torch.tensor(walk["v"])
    assert (weights.sum(-1) <= 1 + 1e-4).all()
    if spec.split("(")[0] not in ("shaw", "rotatedvalues"):  # which act on the values
        torch.testing.assert_close(weights @ value, torch.tensor(walk["output"]), rtol=1e-4, atol=1e-4)
    x, w_q = torch.tensor(walk["x"]), torch.tensor(walk["w_q"])
    torch.testing.assert_close(x @ w_q, torch.tensor(walk["q"]), rtol=1e-4, atol=1e-4)


def test_scaling_is_shown_before_and_after() -> None:
    model, ids = fresh_model(words(TEXT), dim=256, heads=2)
    walk = explain(model, ids, words(TEXT))
    assert walk["spread"]["raw"] / walk["spread"]["scaled"] == pytest.approx(128**0.5, rel=1e-5)
    assert walk["entropy"]["scaled"] > walk["entropy"]["raw"]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [60, 100])
def test_it_reads_well(language: str, width: int) -> None:
    text = "猫坐在垫子上，狗没有。" if language == "zh" else TEXT
    tokens = words(text)
    model, ids = fresh_model(tokens, position="sinusoidal")
    said = told(explain(model, ids, tokens), width, language)
    assert [line for line in said.splitlines() if line[:2] == "7."]
    assert "{" not in said
    assert max(map(len, said.splitlines())) <= width
    assert ("内容·位置" if language == "zh" else "cont·pos") in said
    assert tokens[0] in said
    assert "·" in said.split("6.")[1]


def test_the_cell_is_worked_out_to_the_end() -> None:
    tokens = ["a", "b"]
    model, ids = fresh_model(tokens, dim=4, heads=2)
    walk = explain(model, ids, tokens, cell=(1, 1))
    said = told(walk, 100, "en").split("3.")[1].split("4.")[0].replace("−", "-")
    x, w = walk["cell"]["x"], walk["cell"]["w"]
    assert f"{x[0]:.2f}·{w[0]:.2f}" in said
    assert f"= {walk['cell']['sum']:.2f}" in said


def test_biases_and_qk_norm() -> None:
    model = Transformer(9, 16, 1, 2, bias=True, qk_norm=True).eval()
    with torch.no_grad():
        model.stack.attentions()[0].q.bias.fill_(0.5)
    walk = explain(model, torch.tensor([[1, 2]]), ["a", "b"])
    assert walk["cell"]["bias"] == 0.5
    assert sum(walk["cell"]["products"]) + 0.5 == pytest.approx(walk["cell"]["sum"], abs=1e-5)
    assert "before QK-norm" in told(walk, 100, "en")


def test_a_model_keeps_its_mode() -> None:
    model, ids = fresh_model(["a", "b"])
    model.train()
    explain(model, ids, ["a", "b"])
    assert model.training
    assert all(module.training for module in model.modules())


def test_what_cannot_be_explained() -> None:
    model, ids = fresh_model(["a", "b"])
    with refusal("expected a text of 1 to 64 tokens, because every value is shown, got 65: give one sentence"):
        explain(model, ids[:, :1].expand(1, 65), ["a"] * 65)
    with refusal("expected a text of 1 to 64 tokens, because every value is shown, got 0: give one sentence"):
        explain(model, ids[:, :0], [])
    with refusal("expected a layer from 0 to 1, got 2"):
        explain(model, ids, ["a", "b"], layer=2)
    with refusal("expected a head from 0 to 1, got -1"):
        explain(model, ids, ["a", "b"], head=-1)
    with refusal("expected a cell of q within 2 tokens and 8 columns, got 2, 0"):
        explain(model, ids, ["a", "b"], cell=(2, 0))
