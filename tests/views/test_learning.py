"""Views 15 to 17: what they show is what was trained, saved and computed."""

from __future__ import annotations

import json
import math
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headway import HeadwayError, Transformer
from headway.figures.values import Block, Columns, Film, Grid, Heatmap, Lines, Steps, View, both
from headway.figures.words import LANGUAGES, strings
from headway.inspect import one_step, watch
from headway.inspect.step import RATES
from headway.inspect.watch import Reading, Watch
from headway.positions import methods
from headway.training import (
    Bytes,
    History,
    TextBatches,
    Trainer,
    TrainSettings,
    build_optimizer,
    load_model,
    load_watch,
    read_checkpoint,
    token_texts,
    train,
)
from headway.training.masking import mask_tokens
from headway.training.optimizer import peak_rate
from headway.training.text import read_text
from headway.training.vocabulary import Masked
from headway.views import Question, view
from headway.views.learning import PAYLOAD, singular_values

MODEL = {"dim": 24, "layers": 2, "heads": 6, "kv_heads": 2, "position": "rotary"}
TEXT = "the cat sat"
LAYER, HEAD = 1, 3


def as_tensor(block: Block) -> Tensor:
    return torch.tensor(block.values).reshape(block.shape)


def size(found: View) -> int:
    return len(json.dumps(found.plain()))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_bytes(read_text().data[:4000])
    settings = TrainSettings(steps=12, batch=16, length=8, checkpoint_every=4, validate_every=6, keep=9)
    train(folder / "text.txt", out=folder / "run", model_config=MODEL, settings=settings, watch=2)
    return folder / "run"


@pytest.fixture
def question(run: Path) -> Question:
    model, vocabulary, found = load_model(run)
    assert isinstance(model, Transformer)
    ids = vocabulary.encode(TEXT.encode())
    labels = token_texts(vocabulary, ids)
    return Question.of(model, ids[None], labels, layer=LAYER, head=HEAD, watched=load_watch(run), history=found.history)


def asked(question: Question, **options: Any) -> Question:
    question.options = options
    return question


def maps(frame: Any) -> dict[str, Heatmap]:
    here, ahead, product = frame
    found = {label["en"]: figures[0] for part in (here, ahead) for label, figures in part.columns}
    return {**found, "product": product}


@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_frame_k_is_checkpoint_k(question: Question, run: Path, which: str) -> None:
    found = view("film", asked(question, matrix=which))
    film, lines = found.figures
    assert isinstance(film, Film)
    assert isinstance(lines, Lines)
    frames = {int(label["en"].split()[1]): maps(figures) for label, figures in film.frames}
    assert list(frames) == [0, 2, 4, 6, 8, 10]
    name = f"W_{which.upper()}"
    for step in (4, 8):
        saved = read_checkpoint(run / "checkpoints" / f"step-{step:08d}").model
        heads = {"q": slice(12, 16), "k": slice(4, 8), "v": slice(4, 8)}  # head 3 of 6; key head 1 of 2
        weight = {w: saved[f"stack.blocks.1.attention.part.{w}.weight"][heads[w]].T for w in "qkv"}
        assert torch.equal(as_tensor(frames[step][name].values), weight[which])
        product = weight["q"] @ weight["k"].T
        assert (as_tensor(frames[step]["product"].values) - product).abs().max() < 1e-6
        exact = torch.linalg.svdvals(product.double())[:4]
        drawn = torch.tensor([line.values[list(lines.x).index(step)] for line in lines.lines])
        assert (drawn - exact).abs().max() < 1e-5
    assert not as_tensor(frames[0][f"Δ{name}"].values).any()
    for before, after in ((0, 2), (8, 10)):
        change = as_tensor(frames[after][f"Δ{name}"].values) - as_tensor(frames[before][f"Δ{name}"].values)
        moved = as_tensor(frames[after][name].values) - as_tensor(frames[before][name].values)
        assert (change - moved).abs().max() < 1e-6
    for kind in (name, f"Δ{name}", "gradient", "update", "product"):
        assert len({frame[kind].limits for frame in frames.values()}) == 1
        limits = frames[0][kind].limits
        assert limits is not None
        largest = max(as_tensor(frame[kind].values).abs().max().item() for frame in frames.values())
        assert limits[1] == -limits[0] == pytest.approx(largest)
    share = as_tensor(frames[10][f"Δ{name}"].values).norm() / as_tensor(frames[0][name].values).norm()
    assert f"moved by {100 * share:.{1 if share < 0.0995 else 0}f} % of its initial norm" in found.finding["en"]
    assert size(found) < 2_000_000


def test_the_bytes_of_a_film_are_bounded_and_it_says_what_it_left_out() -> None:
    model = Transformer(vocab=9, dim=128, layers=1, heads=2)
    optimizer = build_optimizer(model, TrainSettings(optimizer="adam", lr=0.01))
    ids = torch.arange(9)[None]
    with watch(model, every=1) as watched:
        for _ in range(40):
            optimizer.zero_grad()
            model(ids).logsumexp(-1).sum().backward()
            optimizer.step()
    found = view("film", Question.of(model, ids, list("abcdefghi"), watched=watched))
    film = found.figures[0]
    assert isinstance(film, Film)
    shown = len(film.frames)
    assert 12 <= shown < 40
    assert (film.frames[0][0]["en"], film.frames[-1][0]["en"]) == ("after 0 steps", "after 39 steps")
    assert any(note["en"].startswith(f"{shown} of 40 snapshots are shown") for note in found.notes)
    assert PAYLOAD / 2 < size(found) < 2_000_000
    wide = Transformer(vocab=9, dim=512, layers=1, heads=2)
    optimizer = build_optimizer(wide, TrainSettings(optimizer="sgd"))
    with watch(wide, every=1) as watched:
        for _ in range(9):
            optimizer.zero_grad()
            wide(ids).logsumexp(-1).sum().backward()
            optimizer.step()
    found = view("film", Question.of(wide, ids, list("abcdefghi"), watched=watched))
    assert size(found) < 2_000_000
    assert any("512 × 256" in note["en"] for note in found.notes)
    assert maps(found.figures[0].frames[0][1])["W_Q"].values.kind == "uint8"
    said = strings("en")["attending.steps"].partition("{")[0]
    assert any(note["en"].startswith(said) for note in found.notes)


def test_singular_values_without_the_product() -> None:
    q, k = torch.randn(24, 5, dtype=torch.double), torch.randn(24, 5, dtype=torch.double)
    exact = torch.linalg.svdvals(q @ k.T)
    assert (singular_values(q, k) - exact[:5]).abs().max() < 1e-12


@pytest.mark.parametrize("name", methods())
def test_the_step_is_the_microscopes(name: str) -> None:
    model = Transformer(**{**MODEL, "dim": 48, "vocab": 17, "position": name}).eval()
    ids = torch.randint(17, (1, 6))
    options = {"matrix": "k", "lr_sgd": 0.02, "lr_adam": 0.005}
    question = Question.of(model, ids, list("abcdef"), layer=LAYER, head=HEAD, options=options)
    found = view("step", question)
    taken = one_step(model, ids, layer=LAYER, head=HEAD, lr={"sgd": 0.02, "adam": 0.005})
    steps, summary = found.figures
    assert isinstance(steps, Steps)
    assert isinstance(summary, Grid)
    loss, weights, scores, vectors, matrices, update = (stage.figures for stage in steps.stages)
    assert loss[0].series[0][1][-1] is None
    assert torch.allclose(torch.tensor(loss[0].series[0][1][:-1]), taken.losses[:-1])
    both = [figures[0] for _, figures in weights[0].columns]
    hidden = ~taken.seen
    assert torch.equal(as_tensor(both[0].values).masked_fill(hidden, 0), taken.weights.masked_fill(hidden, 0))
    assert torch.equal(as_tensor(both[1].values), taken.d_weights.masked_fill(hidden, 0))
    assert torch.equal(as_tensor(scores[0].values), taken.d_scores)
    if hidden.any():
        assert torch.equal(as_tensor(scores[0].hidden).bool(), hidden)
    for (_, figures), exact in zip(vectors[0].columns, (taken.d_q, taken.d_k, taken.d_v), strict=True):
        assert torch.equal(as_tensor(figures[0].values), exact)
    x = taken.layer.x[0]
    for (_, figures), exact in zip(matrices[0].columns, (taken.d_q, taken.d_k, taken.d_v), strict=True):
        assert (as_tensor(figures[0].values) - x.T @ exact).abs().max() < 1e-6
    columns = update[0]
    assert isinstance(columns, Columns)
    assert [label["en"] for label, _ in columns.columns] == ["SGD, learning rate 0.02", "Adam, learning rate 0.005"]
    for kind, (_, figures) in zip(("sgd", "adam"), columns.columns, strict=True):
        before, gradient, moved, after = (as_tensor(figure.values) for figure in figures[:4])
        assert (after - before - moved).abs().max() < 1e-6
        if kind == "sgd":
            assert (moved + 0.02 * gradient).abs().max() < 1e-6
        else:
            assert len(figures) == 6
            assert (as_tensor(figures[4].values) - 0.1 * gradient).abs().max() < 1e-6
    assert f"from {taken.loss:.3g} to" in found.finding["en"]
    assert ("dS = A" in found.figures[0].stages[2].formula) == (model.position.normalise == "softmax")
    assert size(found) < 2_000_000


def test_an_encoder_learns_tokens_masked_as_in_its_training() -> None:
    model = Transformer(**{**MODEL, "vocab": 257, "kind": "encoder", "position": "sinusoidal"}).eval()
    text = b"the cat sat on the mat, and it slept"
    ids = Bytes().encode(text)[None]
    question = Question.of(model, ids, token_texts(Bytes(), ids), layer=LAYER, head=HEAD, vocabulary=Masked(Bytes()))
    found = view("step", question)
    inputs, targets = mask_tokens(ids, 256, TrainSettings().mask_share, torch.Generator().manual_seed(0))
    taken = one_step(model, inputs, targets=targets, layer=LAYER, head=HEAD)
    hidden = (targets[0] >= 0).tolist()
    assert sum(hidden) == 5
    assert f"loss of this text goes from {taken.loss:.3g} to" in found.finding["en"]
    assert isinstance(found.figures[0], Steps)
    loss, *_ = found.figures[0].stages
    (bars,) = loss.figures
    assert bars.series[0][1] == pytest.approx(
        [value if one else None for value, one in zip(taken.losses.tolist(), hidden, strict=True)]
    )
    assert loss.said == both("step.masked.said")
    assert [one == "[MASK]" for one in bars.labels] == (inputs[0] == 256).tolist()
    assert 0 < sum(one == "[MASK]" for one in bars.labels) <= 5
    told = " ".join(f"“{one}”" for one, chosen in zip(question.labels, hidden, strict=True) if chosen)
    assert found.notes[0] == both("step.hidden", tokens=told)
    given = view("step", replace(question, options={"targets": targets}))  # targets of one's own hide nothing
    assert f"from {one_step(model, ids, targets=targets).loss:.3g} to" in given.finding["en"]
    with pytest.raises(HeadwayError, match="expected targets, because an encoder predicts no next token"):
        view("step", Question.of(model, ids, token_texts(Bytes(), ids)))


def test_each_optimizer_has_its_own_rate() -> None:
    assert {name: peak_rate(TrainSettings(optimizer=name)) for name in RATES} == RATES
    question = Question.fresh("the cat sat")
    shown = view("step", question)
    assert [label["en"] for label, _ in shown.figures[0].stages[-1].figures[0].columns] == [
        "SGD, learning rate 0.1", "Adam, learning rate 0.003",
    ]  # fmt: skip
    assert any("its own learning rate" in note["en"] for note in shown.notes)
    for rate in (0, -1, 11, math.nan, math.inf, "0.1", None, True):
        with pytest.raises(HeadwayError, match="lr_adam"):
            view("step", replace(question, options={"lr_adam": rate}))


def test_the_largest_step_is_below_two_megabytes() -> None:
    model = Transformer(vocab=9, dim=1024, layers=1, heads=8)
    ids = torch.randint(9, (1, 128))
    found = view("step", Question.of(model, ids, ["a"] * 128))
    assert size(found) < 2_000_000
    ids = torch.cat((ids, torch.zeros_like(ids)), 1)
    longer = view("step", Question.of(model, ids, ["a"] * 256))
    assert longer.notes[0] == both("step.cut", shown=128, count="256")
    assert longer.figures == found.figures  # of the same 128 tokens
    assert longer.notes[1:] == found.notes


def test_the_runs_own_optimiser_stands_beside(question: Question) -> None:
    optimizer = build_optimizer(question.model, TrainSettings(optimizer="sgd", lr=0.5))
    found = view("step", asked(question, optimizer=optimizer))
    labels = [label["en"] for label, _ in found.figures[0].stages[-1].figures[0].columns]
    assert labels[-1] == "The run's own optimizer, learning rate 0.5"
    assert any("3 query heads share" in note["en"] for note in found.notes)


def test_the_board_is_the_history(question: Question) -> None:
    found = view("board", question)
    loss, validation, norm, ratios, entropies = found.figures
    history = question.history
    assert list(loss.lines[0].values) == history.loss
    assert (list(loss.x), list(norm.lines[0].values)) == (history.steps, history.grad_norm)
    assert (list(validation.x), list(validation.lines[0].values)) == ([6, 12], history.validation_loss)
    assert question.watched is not None
    readings = question.watched.readings
    assert list(ratios.x) == [1, 3, 5, 7, 9, 11]
    for line, which in zip(ratios.lines, "qkv", strict=True):
        assert list(line.values) == [readings[step].ratios[LAYER][which] for step in ratios.x]
    assert list(entropies.x) == [0, 1, 9]
    assert [list(line.values) for line in entropies.lines] == [
        [readings[step].entropies[LAYER][head] for step in entropies.x] for head in range(6)
    ]
    largest = max(history.grad_norm)
    assert f"at {largest:.3g}, at step {history.steps[history.grad_norm.index(largest)]}." in found.finding["en"]
    question.watched = None
    found = view("board", question)
    assert len(found.figures) == 3
    assert any("--watch" in note["en"] for note in found.notes)


def test_a_long_training_is_drawn_as_means_with_their_range() -> None:
    steps = list(range(1, 1202))
    history = History(steps, [float(step) for step in steps], [0.1] * 1201, [2.0] * 1201)
    watched = Watch(1)
    for step in range(3000):
        watched.read(step, Reading(None, [[float(step), 1.0, 1.0, 1.0]]))
    question = Question.fresh("a b", dim=16)
    question.history, question.watched = history, watched
    question.model.stack.blocks = question.model.stack.blocks[:1]
    found = view("board", question)
    loss, _, entropies = found.figures
    line = loss.lines[0]
    assert len(line.values) == 401
    assert (line.values[0], line.low[0], line.high[0]) == (2.0, 1.0, 3.0)
    assert line.values[-1] == 1201.0
    assert len(entropies.x) == 500
    assert (entropies.x[0], entropies.x[-1]) == (0, 2999)
    assert any("mean of 3 steps" in note["en"] for note in found.notes)


def test_what_is_missing_is_named(question: Question) -> None:
    other = Question.fresh("a b c")
    with pytest.raises(
        HeadwayError, match=r"^expected a watched training, got none: train with `headway train --watch"
    ):
        view("film", other)
    with pytest.raises(HeadwayError, match=r"^expected a training with at least one step, got none: give history="):
        view("board", other)
    with pytest.raises(HeadwayError, match=r"^expected the option 'matrix' to be one of q, k, v, got 'o'$"):
        view("film", asked(question, matrix="o"))
    with pytest.raises(HeadwayError, match=r"^expected something to predict, got a text without a target"):
        view("step", Question.fresh("a"))
    with watch(Transformer(vocab=4, dim=8, layers=1, heads=1), every=1) as watched:
        pass
    question.watched = watched
    with pytest.raises(HeadwayError, match=r"^expected a watched training, got none"):
        view("film", asked(question))


def test_a_watch_of_another_model_is_refused(question: Question) -> None:
    model = Transformer(vocab=4, dim=8, layers=1, heads=1)
    trainer = Trainer(
        model, TextBatches(torch.zeros(50, dtype=torch.long), 4, 1), TrainSettings(steps=1, batch=1, length=4)
    )
    with watch(model, every=1) as watched:
        trainer.run()
    watched.read(1, Reading([{"q": 1.0, "k": 1.0, "v": 1.0}], None))
    question.watched = watched
    with pytest.raises(
        HeadwayError, match=r"^expected a watch of this model, with 'stack.blocks.1.attention.part', got"
    ):
        view("film", question)
    with pytest.raises(HeadwayError, match=r"^expected a watch of this model, of 2 attentions, got one of 1$"):
        view("board", question)


def test_one_moment_is_no_film_yet() -> None:
    model = Transformer(vocab=9, dim=16, layers=1, heads=2, position="alibi")
    settings = TrainSettings(steps=1, batch=1, length=4)
    with watch(model, every=1) as watched:
        Trainer(model, TextBatches(torch.arange(50) % 9, 4, 1), settings).run()
    found = view("film", Question.of(model, torch.arange(3)[None], list("abc"), watched=watched))
    assert (
        found.finding["en"]
        == "Only one snapshot was recorded so far, after 0 steps. The film starts with the next one."
    )
    assert not any("turns" in note["en"] for note in found.notes)


def test_both_languages_say_the_same_things() -> None:
    def holes(text: str) -> set[str | None]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}

    en, zh = (
        {
            key: text
            for key, text in strings(language).items()
            if key.split(".")[0] in ("film", "step", "board", "learning")
        }
        for language in LANGUAGES
    )
    assert en.keys() == zh.keys()
    for key in en:
        assert holes(en[key]) == holes(zh[key]), key
    words = [key for key in en if en[key] == zh[key]]
    assert set(words) <= {
        "step.weights.label",
        "step.scores.label",
        "step.matrices.label",
        "step.sgd.short",
        "step.adam.short",
    }
