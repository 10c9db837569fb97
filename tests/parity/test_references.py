"""Each parity test names the independent code that it compares with, or states that there is none.

Held against: nothing; this is about the other files.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("test_*.py"))
NAMED = re.compile(r"^ *(Held against|No independent code): \w", re.MULTILINE)


def names(node: ast.Module | ast.FunctionDef) -> bool:
    """Whether a docstring names its reference."""
    return NAMED.search(ast.get_docstring(node) or "") is not None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_parity_test_names_what_it_was_held_against(path: Path) -> None:
    """The file for all its tests, or each test for itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert tests
    assert names(tree) or all(map(names, tests)), f"{path.name} names no independent code"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_a_file_imports_to_compare_with_is_named(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, ast.Module | ast.FunctionDef)]
    told = " ".join(re.findall(r"Held against: (.+?)(?:\n\n|$)", "\n\n".join(texts), re.DOTALL))
    packages = {"transformers", "x_transformers", "rotary_embedding_torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (package := (node.module or "").split(".")[0]) in packages:
            assert package.replace("_", "-") in told, f"{path.name} compares with {package} and does not say so"
