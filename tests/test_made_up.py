"""A method, a backend, a view and a command made up here, each one new file in a copy of the package, are found
everywhere with no other edit.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matrix import FOLDER

import headway

ROOT = Path(__file__).parents[1]
NAME = "madeup"
SOURCE = '''"""A made-up method. Nobody 2026, "Nothing", arXiv:2601.00000.

    score(i, j) = q_i·k_j / √d_k − s_h · min(|pos_i − pos_j|, reach)
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from headway.positions.base import TermInputs, Position
from headway.shapes import HeadShape
from headway.terms import AnyTerm, ByDistance


@dataclass(eq=False)
class MadeUp(Position):
    """A learned slope per head that ends at a distance (arXiv:2601.00000).

    Formula: −s_h·min(|pos_i − pos_j|, reach) is added to the scores; learned: s (H,), which starts at 0.1.

    Args:
        reach: from here on all keys look equally far.

    >>> MadeUp().spec()
    'madeup'
    """

    title: ClassVar[str] = "A made-up method"
    paper: ClassVar[str] = "arXiv:2601.00000"
    summary: ClassVar[str] = "Scores fall by a learned amount per token, up to a distance."
    summary_zh: ClassVar[str] = "分数按学习到的速率逐词元下降，直到某个距离。"
    variants: ClassVar[tuple[str, ...]] = ("madeup(reach=2)",)

    reach: int = 20

    def build(self, shape: HeadShape) -> None:
        """Make s."""
        self.slope = nn.Parameter(torch.empty(shape.heads))

    def reset_parameters(self) -> None:
        """s = 0.1."""
        nn.init.constant_(self.slope, 0.1)

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """−s · min(distance, reach)."""
        distance = torch.arange(-self.reach, self.reach + 1, device=look.q.device).abs()
        return (ByDistance(-look.of_heads(self.slope)[:, None] * distance, self.reach),)
'''


BACKEND = '''"""A made-up backend: the reference, for calls without terms."""

from headway.backends import reference

BEFORE = "native"
describe, run = reference.describe, reference.run


def refuses(call):
    """Terms."""
    return "it is made up" if call.terms else None
'''
VIEW = '''"""A made-up view: how many tokens there are."""

from headway.figures.values import Grid, View, same

VIEWS = {
    "counted": {"en": ("Counted", "How many tokens?"), "zh": ("计数", "有多少词元？")},
}


def counted(question):
    """The view."""
    number = len(question.labels)
    table = Grid(same("tokens"), [same("what"), same("number")], [(same("tokens"), [str(number)])])
    return View("counted", same(f"There are {number} tokens."), [table])
'''
COMMAND = '''"""``headway tell``."""

from typing import Annotated

import typer


def command(word: Annotated[str, typer.Argument(help="What to tell.")]) -> None:
    """Tell a word."""
    print(f"told {word}")
'''
LAWS = ("autocast", "backends", "decode", "gradients", "packing", "roundtrip", "shift", "tiles")
PROGRAM = """
import contextlib, io, json, sys
from pathlib import Path

import headway
import headway.views
from headway import cli
from headway.positions import parse
from headway.compare.run import Comparison

def shown(*words):
    sys.argv = ["headway", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, (words, end.code)
    return out.getvalue()

commands = json.loads(sys.argv[1])
found = {"file": headway.__file__, "all": Comparison(positions=("all",)).specs()}
found["plans"] = [str(headway.plan(parse(position), tokens=16, heads=4, head_dim=16)) for position in ("none", "t5")]
view = headway.views.view("counted", headway.views.Question.fresh("the cat sat"))
found["view"] = [view.title["zh"], view.finding["en"]]
print(json.dumps(found | {name: shown(*words) for name, words in commands.items()}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory):
    """Run Python with a copy of the package in which the method's file lies; returns what it prints."""
    place = tmp_path_factory.mktemp("copy")
    shutil.copytree(Path(headway.__file__).parent, place / "headway")
    (place / "headway" / "positions" / "mine.py").write_text(SOURCE, encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if name != FOLDER and not name.startswith("PYTEST")}
    environment = {**inherited, "PYTHONPATH": str(place), "COLUMNS": "100", "HEADWAY_CHECKED": "none"}
    environment["CXX"] = "no-such-compiler"  # the copy would compile its kernel anew, into the user's cache

    def run(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    run.copied = str(place / "headway" / "__init__.py")
    return run


def test_laws_bind_it(python) -> None:
    files = [f"tests/laws/test_{law}.py" for law in LAWS]
    listed = python("-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *files, "-k", NAME)
    for law in LAWS:
        found = [line for line in listed.splitlines() if line.startswith(f"tests/laws/test_{law}.py::")]
        assert any(f"[{NAME}" in line or f"-{NAME}" in line for line in found), law
        assert any(f"{NAME}(reach=2)" in line for line in found), law


def test_commands_pages_and_a_comparison_know_it(python, tmp_path: Path) -> None:
    """All in one process: each start would cost seconds."""
    for name, source in {"backends/mine": BACKEND, "views/mine": VIEW, "views/tell_command": COMMAND}.items():
        (Path(python.copied).parent / f"{name}.py").write_text(source, encoding="utf-8")
    docs, compared = tmp_path / "docs", tmp_path / "compared"
    small = "--train-length 8 --test-lengths 8,16 --seeds 0 --steps 2 --batch 2 --dim 16 --layers 1 --heads 2"
    commands = {
        "methods": ["methods"],
        "one": ["methods", NAME, "--json"],
        "docs": ["methods", "--out", str(docs)],
        "help": ["--help"],
        "tell": ["tell", "it"],
        "drawn": ["draw", "counted", "--out", str(tmp_path / "counted.svg")],
        "compare": ["compare", "--positions", f"none,{NAME}(reach=3)", *small.split(), "--out", str(compared)],
    }
    shown = json.loads(python("-c", PROGRAM, json.dumps(commands)).splitlines()[-1])
    assert shown["file"] == python.copied
    assert NAME in shown["all"]
    assert "Tell a word" in shown["help"]
    assert shown["tell"] == "told it\n"
    assert shown["view"] == ["计数", "There are 3 tokens."]
    assert "Counted" in (tmp_path / "counted.svg").read_text(encoding="utf-8")
    assert shown["plans"][0].startswith("none: mine")
    assert not shown["plans"][1].startswith("t5: mine")
    assert "not mine: it is made up" in shown["plans"][1]
    (line,) = [line for line in shown["methods"].splitlines() if line.startswith(NAME)]
    assert "scores" in line
    assert "−s_h·min(" in line
    found = json.loads(shown["one"])
    assert found["hyperparameters"][0]["meaning"] == "from here on all keys look equally far."
    assert found["parameters"] == [{"name": "slope", "shape": [8]}]
    assert found["picture"]["curves"][0]["values"][20:22] == pytest.approx([-2.0, -2.0])
    assert f"[{NAME}]({NAME}.md)" in (docs / "index.md").read_text(encoding="utf-8")
    assert "# A made-up method (`madeup`)" in (docs / f"{NAME}.md").read_text(encoding="utf-8")
    assert "every head" in (docs / f"{NAME}.svg").read_text(encoding="utf-8")
    assert f"{NAME}(reach=3)" in shown["compare"]
    report = (compared / "report.html").read_text(encoding="utf-8")
    assert "A made-up method" in report
    assert "直到某个距离" in report
