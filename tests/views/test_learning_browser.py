"""Views 15 to 17 in a browser: what the page shows and saves is the checkpoint, the gradient and the update."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import OUTSIDE, OVERLAPS, Open, assert_accessible
from torch import Tensor

from headway import Transformer
from headway.figures.values import View, same
from headway.inspect import one_step
from headway.training import TrainSettings, load_model, load_watch, read_checkpoint, token_texts, train
from headway.training.text import read_text
from headway.views import Question, view
from headway.web.views_page import views_page

LAYER, HEAD = 1, 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_bytes(read_text().data[:4000])
    settings = TrainSettings(steps=9, batch=2, length=8, checkpoint_every=4, validate_every=3, keep=9)
    model = {"dim": 24, "layers": 2, "heads": 3, "position": "shaw"}
    train(folder / "text.txt", out=folder / "run", model_config=model, settings=settings, watch=2)
    return folder / "run"


@pytest.fixture(scope="module")
def question(run: Path) -> Question:
    model, vocabulary, found = load_model(run)
    assert isinstance(model, Transformer)
    ids = vocabulary.encode("the 猫".encode())
    labels = token_texts(vocabulary, ids)
    return Question.of(model, ids[None], labels, layer=LAYER, head=HEAD, watched=load_watch(run), history=found.history)


@pytest.fixture(scope="module")
def views(question: Question) -> list[View]:
    return [view(name, question) for name in ("film", "step", "board")]


@pytest.fixture
def page(open_page: Open, views: list[View]) -> Any:
    return open_page(views_page(same("Learning"), views))


def maps(page: Any, view_: str, column: str) -> list[Tensor]:
    """The numbers that the maps of a column save, from top to bottom, without their labels."""
    name = page.locator(f"#view-{view_} .beside-one", has=page.get_by_role("heading", name=column, exact=True))
    found = []
    for button in name.locator(".shown-heatmap [data-csv]").all():
        with page.expect_download() as waiting:
            button.click()
        rows = list(csv.reader(io.StringIO(Path(waiting.value.path()).read_bytes().decode("utf-8-sig"))))[1:]
        found.append(torch.tensor([[float(cell) for cell in row[1:]] for row in rows], dtype=torch.double))
    return found


def test_the_slider_shows_the_checkpoint(page: Any, run: Path) -> None:
    (start,), (change,) = maps(page, "film", "W_Q"), maps(page, "film", "ΔW_Q")
    assert not change.any()
    page.locator("#view-film input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    (now,), (change,) = maps(page, "film", "W_Q"), maps(page, "film", "ΔW_Q")
    saved = read_checkpoint(run / "checkpoints" / "step-00000004").model["stack.blocks.1.attention.part.q.weight"]
    assert (now - saved[16:].T).abs().max() < 1e-6
    assert change.abs().max() > 1e-4
    assert (now - start - change).abs().max() < 1e-6
    assert "4 steps" in page.locator("#view-film").inner_text()


def test_after_minus_before_is_the_update(page: Any, question: Question) -> None:
    page.locator("#view-step").get_by_role("tab").last.click()
    taken = one_step(question.model, question.ids, layer=LAYER, head=HEAD)
    for kind, column in (("sgd", "SGD, learning rate 0.1"), ("adam", "Adam, learning rate 0.003")):
        before, gradient, update, after, *state = maps(page, "step", column)
        move = taken.moves[kind]["q"]
        assert (before - move.before).abs().max() < 1e-6
        assert (after - before - update).abs().max() < 1e-6
        assert update.abs().max() > 1e-6
        assert len(state) == (2 if kind == "adam" else 0)
        if kind == "sgd":
            assert (update + 0.1 * gradient).abs().max() < 1e-6


def test_the_chain_of_gradients_is_the_models(page: Any, question: Question) -> None:
    taken = one_step(question.model, question.ids, layer=LAYER, head=HEAD)
    tabs = page.locator("#view-step").get_by_role("tab")
    assert [tab.inner_text().split("\n")[0] for tab in tabs.all()] == ["loss", "dA", "dS", "dQ, dK, dV", "dW", "update"]
    tabs.first.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert (maps(page, "step", "dK")[0] - taken.d_k).abs().max() < 1e-6
    tabs.nth(4).click()
    assert (maps(page, "step", "dW_V")[0] - taken.moves["sgd"]["v"].gradient).abs().max() < 1e-6


@pytest.mark.parametrize(("theme", "locale", "width"), [("light", "en-GB", 1280), ("dark", "zh-CN", 1024)])
def test_nothing_overlaps_and_all_can_be_read(
    open_page: Open, views: list[View], theme: str, locale: str, width: int
) -> None:
    page = open_page(views_page(same("Learning"), views), color_scheme=theme, locale=locale, width=width)
    tabs = page.locator("#view-step").get_by_role("tab")
    assert tabs.count() == 6
    for tab in tabs.all():
        tab.click()
        assert page.evaluate(OVERLAPS) == []
        assert page.evaluate(OUTSIDE) == []
        for name in ("film", "step", "board"):
            assert page.locator(f"#view-{name} svg *").count() <= 2_000
    assert_accessible(page)
