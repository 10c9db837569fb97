"""What the README shows runs, and says the same in both languages."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAIRS = [
    (name, name.replace(".md", ".zh.md"))
    for name in (
        "README.md",
        "docs/qkv.md",
        "docs/positions.md",
        "docs/python.md",
        "docs/speed.md",
        "docs/coming.md",
        "docs/data.md",
        "docs/transformers.md",
        "docs/extend.md",
    )
]


@pytest.mark.parametrize("name", [english for english, _ in PAIRS])  # the Chinese pages show the same code
def test_python_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one saves a model
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL):
        exec(block, scope)


def test_there_are_examples():
    counts = [(ROOT / name).read_text(encoding="utf-8").count("```python\n") for name, _ in PAIRS]
    assert counts == [2, 1, 1, 9, 0, 0, 2, 2, 1]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_both_languages_show_the_same_code_links_and_figures(pair):
    one, two = ((ROOT / name).read_text(encoding="utf-8") for name in pair)
    for pattern in (r"```(?:sh|python)\n(.*?)```", r"\]\(((?:http|src|docs|CONTR|\.\.)[^)]*)\)"):
        first, second = (re.findall(pattern, text, re.DOTALL) for text in (one, two))
        strip = re.compile(r"\s*#.*|\.zh(?=\.md)")  # comments are translated
        assert [strip.sub("", part) for part in first] == [strip.sub("", part) for part in second]


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_files_it_names_exist():
    for name in (
        *(name for pair in PAIRS for name in pair),
        "CONTRIBUTING.md",
        "docs/glossary.md",
        "docs/see.md",
        "docs/census.md",
    ):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)(?:#[^)]*)?\)", (ROOT / name).read_text(encoding="utf-8")):
            assert ((ROOT / name).parent / target).exists(), target


def test_method_of_contributing_works_when_its_file_is_added(tmp_path):
    """The example of CONTRIBUTING.md, as one new file, is found by name and obeys attention's contract."""
    import subprocess
    import sys

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    source = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Mine" in block)
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    program = f"""
import headway.positions as positions
positions.__path__.append({str(tmp_path)!r})
assert "mine" in positions.methods()
assert positions.Mine is positions.methods()["mine"]
assert positions.parse("mine(start=0.5)").start == 0.5
from headway.compare.run import Comparison, compare
small = Comparison(positions=("mine",), train_length=8, test_lengths=(8, 16), seeds=(0,), steps=2, batch=2, dim=16,
                   layers=1, heads=2)
(cell,) = compare(small, {str(tmp_path / "out")!r})["cells"]
assert cell["status"] == "ok" and cell["position_parameters"] == 2, cell
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)
