"""Pictures as files: of every method, of a recorded pass, of a run, from Python and from the command line."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import headway
from headway import Alibi, Attention, HeadShape, HeadwayError, Learned, Transformer, cli
from headway.inspect import record
from headway.inspect.record import Trace
from headway.positions import methods
from headway.views import Question, view
from headway.views.draw import draw
from headway.views.questions import OF_PASSES, about_position


@pytest.mark.parametrize("name", methods())
def test_every_method_has_a_picture(name: str) -> None:
    drawn = draw(name, length=24)
    assert drawn.axes
    assert drawn.get_size_inches()[0] == 3.4
    assert len(drawn.texts) > 1


def numbers(shown: Any, folder: Path, **how: Any) -> list[list[str]]:
    draw(shown, csv=folder / "numbers.csv", **how)
    return list(csv.reader(io.StringIO((folder / "numbers.csv").read_text(encoding="utf-8"))))


def test_a_picture_shows_the_methods_own_numbers(tmp_path: Path) -> None:
    position = Learned(max_length=16).attach(HeadShape.of(24, heads=3))
    with torch.no_grad():
        position.weight.copy_(torch.arange(16 * 24.0).reshape(16, 24))
    before = {name: parameter.clone() for name, parameter in position.named_parameters()}
    rows = numbers(position, tmp_path, view="vectors", length=8)
    (found,) = [row[3] for row in rows if row[0] == "The vectors: position × dimension" and row[1:3] == ["3", "5"]]
    assert float(found) == pytest.approx(float(position.weight[3, 5].detach()), rel=1e-6)
    assert all(torch.equal(before[name], parameter) for name, parameter in position.named_parameters())


def test_an_attached_method_keeps_its_widths() -> None:
    position = Alibi().attach(HeadShape.of(24, heads=3))
    assert about_position(position).position.shape == position.shape
    with pytest.raises(HeadwayError, match=r"^expected the widths that alibi is attached to, 3 heads and dim 24"):
        draw(position, heads=4)
    assert draw(position, heads=3).axes
    assert about_position(Alibi(), heads=5).position.shape == HeadShape.of(80, heads=5)
    assert Alibi().shape is None


def traced() -> Trace:
    torch.manual_seed(0)
    model = Transformer(vocab=20, dim=24, layers=2, heads=6, kv_heads=3, position="t5")
    with record(model) as trace, torch.no_grad():
        model(torch.randint(0, 20, (1, 9)))
    return trace


@pytest.mark.parametrize("name", OF_PASSES)
def test_a_pass_has_the_views_of_attention(name: str) -> None:
    assert draw(traced(), view=name, layer=1, head=5).axes


def test_a_pass_shows_its_weights(tmp_path: Path) -> None:
    trace = traced()
    labels = list("abcdefghi")
    rows = numbers(trace[1], tmp_path, head=4, labels=labels)
    found = {(row[1], row[2]): row[3] for row in rows if row[0].startswith("Attention")}
    weights = trace[1].weights()[0, 4]
    assert float(found["g", "c"]) == pytest.approx(float(weights[6, 2]), abs=1e-6)
    assert found["c", "g"] == ""  # hidden


def test_the_layer_and_head_are_those_asked_for() -> None:
    question = Question.fresh("the cat sat", position="alibi")
    chosen = draw(question, view="head", layer=1, head=3).data("svg")
    again = draw(Question.fresh("the cat sat", position="alibi"), view="head", layer=1, head=3)
    assert chosen == again.data("svg")
    assert chosen != draw(question, view="head").data("svg")
    assert question.layer == 0


def test_a_view_is_drawn_as_it_is() -> None:
    shown = view("softmax", Question.fresh("the cat sat"))
    assert b'width="504pt"' in headway.draw(shown, language="zh", width="double").data("svg")


def test_a_picture_is_saved_whole_in_the_format_of_its_ending(tmp_path: Path) -> None:
    for ending, start in (("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")):
        drawn = draw("alibi", tmp_path / "new" / f"a.{ending}", heads=2, csv=tmp_path / "b.csv")
        saved = (tmp_path / "new" / f"a.{ending}").read_bytes()
        assert saved.startswith(start)
        assert saved == drawn.data(ending.lower())
    assert (tmp_path / "b.csv").read_text(encoding="utf-8").startswith("figure,row,column,value")
    with pytest.raises(HeadwayError, match=r"^expected a file that ends in \.svg or \.pdf or \.png, got 'a\.jpg'"):
        draw("alibi", tmp_path / "a.jpg")
    with pytest.raises(HeadwayError, match=r"^expected a file that ends in \.csv, got 'b\.txt'"):
        draw("alibi", tmp_path / "b.svg", csv=tmp_path / "b.txt")
    assert not (tmp_path / "b.svg").exists()


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(HeadwayError, match=r"^expected a view \(stepper, .*, got 'nonsense'$"):
        draw("alibi", view="nonsense")
    with pytest.raises(HeadwayError, match=r"^expected a view that needs no model \(wall, .*got 'stepper': pass a"):
        draw(traced(), view="stepper")
    with pytest.raises(HeadwayError, match=r"^expected a trace of a pass, got an empty one"):
        draw(Trace())
    with pytest.raises(HeadwayError, match=r"^expected a method that rotates queries and keys"):
        draw("alibi", view="rotation")
    with pytest.raises(HeadwayError, match=r"^expected a length from 2 to 4096 tokens, got 1$"):
        draw("alibi", length=1)


def test_options_of_a_view_are_drawn_and_checked(tmp_path: Path) -> None:
    question = Question.fresh("the cat sat")
    scores = draw(question, tmp_path / "a.svg", view="head", options={"what": "scores"}, csv=tmp_path / "a.csv")
    assert scores.data("svg") != draw(question, view="head").data("svg")
    assert ",-" in (tmp_path / "a.csv").read_text(encoding="utf-8")  # weights are not negative
    with pytest.raises(HeadwayError, match=r"^expected one of the options of the view 'head', what, group, got 'key'$"):
        draw(question, view="head", options={"key": 1})
    with pytest.raises(HeadwayError, match=r"^expected no option of 'stepper', got 'key'$"):
        draw(question, view="stepper", options={"key": 1})
    with pytest.raises(HeadwayError, match=r"^expected the name of a view to set its option 'reach', got none"):
        draw("alibi", options={"reach": 9})
    with pytest.raises(HeadwayError, match=r"^expected the option 'what' to be one of weights, scores, got 'x'$"):
        draw(question, view="head", options={"what": "x"})


def test_headway_draw_is_imported_when_it_is_used() -> None:
    program = "import sys, headway; assert 'torch' not in sys.modules; print(len(headway.draw('alibi').axes))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "1\n"


# --- the command ----------------------------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """``headway draw`` in an empty folder; gives (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headway", "draw", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_the_command_draws_a_method(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("position", "t5", "--heads", "2", "--language", "zh", "--width", "double", "--csv", "t5.csv")
    assert (status, out) == (0, "Picture: t5.svg\n")
    text = (tmp_path / "t5.svg").read_text(encoding="utf-8")
    assert 'width="504pt"' in text
    assert "距离" in text
    assert "头 1" in (tmp_path / "t5.csv").read_text(encoding="utf-8")
    run("position", "rotary(base=500000)", "--view", "similarity", "--no-caption")
    assert (tmp_path / "rotary-base=500000-similarity.svg").exists()


def test_the_command_draws_a_view(run: Run, tmp_path: Path) -> None:
    status, _, err = run("split", "--option", "key=0", "--out", "a.svg")
    assert status == 0, err
    status, _, err = run("head", "--option", "what", "--out", "b.svg")
    assert "expected an option of the view as name=value, got 'what'" in err
    assert run("head", "--text", "猫 坐 下", "--position", "alibi", "--head", "1", "--out", "x.svg")[0] == 0
    assert "猫" in (tmp_path / "x.svg").read_text(encoding="utf-8")


def test_the_command_draws_a_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 40)
    small = "--steps 4 --length 8 --batch 16 --dim 16 --layers 1 --heads 2 --watch 2 --out made"
    monkeypatch.setattr(sys, "argv", ["headway", "train", "text.txt", *small.split()])
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main()
    capsys.readouterr()
    for name in ("head", "film", "board"):
        status, out, err = run("run", "made", "--view", name, "--text", "the cat")
        assert (status, out, err) == (0, f"Picture: made-{name}.svg\n", "")
    assert run("split", "--model", "made", "--text", "the cat")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("position",), "expected position METHOD, run FOLDER or the name of a view, got 'position'"),
        (("split", "t5"), "expected position METHOD, run FOLDER or the name of a view, got 'split t5'"),
        (("position", "t6"), "expected a position method, got 't6': did you mean t5?"),
        (("position", "t5", "--out", "t5.jpg"), "expected a file that ends in .svg or .pdf or .png, got 't5.jpg'"),
        (("run", "nowhere"), "expected a run of `headway train` (settings.json) or a checkpoint of transformers"),
        (("split", "--width", "3"), "expected width to be one of single, double, got '3'"),
        (("split", "--head", "9"), "expected head from 0 to 3, got 9"),
    ],
)
def test_the_command_says_what_is_wrong(run: Run, arguments: tuple[str, ...], said: str) -> None:
    status, _, err = run(*arguments)
    assert status == 2
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


def test_attention_by_itself_can_be_drawn() -> None:
    attention = Attention(dim=24, heads=3, position="alibi")
    with record(attention) as trace, torch.no_grad():
        attention(torch.randn(1, 7, 24))
    assert draw(trace).axes
