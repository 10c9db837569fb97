"""A method made up here, as one new file in a copy of the package, is found everywhere with no other edit."""

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

from headway.positions.base import Look, Position
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

    def terms(self, look: Look) -> tuple[AnyTerm, ...]:
        """−s · min(distance, reach)."""
        distance = torch.arange(-self.reach, self.reach + 1, device=look.q.device).abs()
        return (ByDistance(-look.of_heads(self.slope)[:, None] * distance, self.reach),)
'''


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory):
    """Run Python with a copy of the package in which the method's file lies; returns what it prints."""
    place = tmp_path_factory.mktemp("copy")
    shutil.copytree(Path(headway.__file__).parent, place / "headway", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "headway" / "positions" / "mine.py").write_text(SOURCE, encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if name != FOLDER and not name.startswith("PYTEST")}
    environment = {**inherited, "PYTHONPATH": str(place), "COLUMNS": "100"}

    def run(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    assert run("-c", "import headway; print(headway.__file__)").strip() == str(place / "headway" / "__init__.py")
    return run


def test_laws_bind_it(python) -> None:
    listed = python("-m", "pytest", "--collect-only", "-p", "no:cacheprovider", "tests/laws", "-k", NAME)
    for law in ("autocast", "backends", "decode", "gradients", "packing", "roundtrip", "shift", "tiles"):
        found = [line for line in listed.splitlines() if line.startswith(f"tests/laws/test_{law}.py::")]
        assert any(f"[{NAME}" in line or f"-{NAME}" in line for line in found), law
        assert any(f"{NAME}(reach=2)" in line for line in found), law


def test_the_commands_know_it(python) -> None:
    lines = python("-m", "headway", "methods").splitlines()
    (line,) = [line for line in lines if line.startswith(NAME)]
    assert "scores" in line
    assert "−s_h·min(" in line
    found = json.loads(python("-m", "headway", "methods", NAME, "--json"))
    assert found["hyperparameters"][0]["meaning"] == "from here on all keys look equally far."
    assert found["parameters"] == [{"name": "slope", "shape": [8]}]
    assert found["picture"]["curves"][0]["values"][20:22] == pytest.approx([-2.0, -2.0])


def test_docs_have_a_page_on_it(python, tmp_path: Path) -> None:
    python("-m", "headway", "methods", "--out", tmp_path)
    assert f"[{NAME}]({NAME}.md)" in (tmp_path / "index.md").read_text(encoding="utf-8")
    assert "# A made-up method (`madeup`)" in (tmp_path / f"{NAME}.md").read_text(encoding="utf-8")
    assert "every head" in (tmp_path / f"{NAME}.svg").read_text(encoding="utf-8")


def test_compare_and_its_report_have_it(python, tmp_path: Path) -> None:
    program = "from headway.experiments.compare import Comparison; print(*Comparison(positions=('all',)).specs())"
    assert NAME in python("-c", program).split()
    small = "--train-length 8 --test-lengths 8,16 --seeds 0 --steps 2 --batch 2 --dim 16 --layers 1 --heads 2"
    options = ["--positions", f"none,{NAME}(reach=3)", *small.split(), "--out", tmp_path]
    shown = python("-m", "headway", "compare", *options)
    assert f"{NAME}(reach=3)" in shown
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "A made-up method" in report
    assert "直到某个距离" in report
