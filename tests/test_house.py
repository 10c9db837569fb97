"""The house plan: imports point downward, positions and backends do not know each other, and importing is light."""

from __future__ import annotations

import ast
import functools
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import headway

ROOT = Path(headway.__file__).parent
FLOORS = (
    ("_version", "characters"),
    ("shapes", "display"),
    ("output", "schema", "strict_json"),
    ("memory", "console", "settings", "integers"),
    ("config",),
    ("masks",),
    ("terms",),
    ("cache", "axes"),
    ("backends",),
    ("linear",),
    ("positions",),
    ("functional",),
    ("plans",),
    ("init",),
    ("attending",),
    ("one_token",),
    ("attention", "latent"),
    ("stack", "saving"),
    ("transformer",),
    ("sizes",),
    ("arguments",),
    ("inspect",),
    ("figures",),
    ("results", "web"),
    ("plot",),
    ("parallel",),
    ("training",),
    ("shipped",),
    ("views",),
    ("catalogue", "compare", "bench"),
    ("hf",),
    ("studio",),
    ("cli",),
    ("__main__",),
)
"""From the ground up; a part imports from the floors below its own, and from itself."""
ALLOWED = {
    "positions": {
        "shapes",
        "schema",
        "display",
        "characters",
        "integers",
        "masks",
        "terms",
        "backends",
        "linear",
        "positions",
    },
    "backends": {"shapes", "integers", "masks", "terms", "backends"},
    "figures": {"figures", "display"},
    "results": {"results", "figures"},
    "web": {"web", "figures", "_version"},
    "plot": {"plot", "web", "results", "figures", "shapes", "schema"},
    "display": set(),  # it finds the views by name when a notebook asks, the one way up
}
HEIGHT = {part: number for number, floor in enumerate(FLOORS) for part in floor}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[tuple[str, ...]]:
    """Every module a file names in an import, anywhere in it, as its parts; relative imports made absolute."""
    package = ("headway", *path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = tuple((node.module or "").split(".")) if node.module else ()
            if node.level:
                base = package[: len(package) - node.level + 1] + base
            found |= {(*base, alias.name) for alias in node.names}
    return found


def test_imports_point_downward() -> None:
    wrong = []
    for path in FILES:
        part, file = part_of(path), path.relative_to(ROOT)
        if part not in HEIGHT:
            wrong.append(f"{file} has no floor: give headway.{part} one in the plan")
            continue
        for module in imported(path):
            if module[0] != "headway" or module[1:] in ((), ("__version__",)):
                continue
            other = module[1]
            if other not in HEIGHT:  # a name of headway/__init__.py, as in `from headway import Attention`
                other = headway._HOME.get(other, other)
            if other not in HEIGHT:
                wrong.append(f"{file} imports headway.{other}, which has no floor in the plan")
            elif not (other == part or HEIGHT[other] < HEIGHT[part]) or other not in ALLOWED.get(part, HEIGHT):
                wrong.append(f"{file} (headway.{part}) imports headway.{other}")
    assert not wrong, "\n".join(wrong)


def test_what_is_drawn_needs_no_torch() -> None:
    drawn = [path for path in FILES if part_of(path) in ("figures", "results", "web", "plot")]
    loaded = {path.relative_to(ROOT): {module[0] for module in imported(path)} for path in drawn}
    heavy = {
        path: names & ({"torch"} if path.parts[0] == "plot" else {"torch", "numpy"}) for path, names in loaded.items()
    }
    assert {path: names for path, names in heavy.items() if names} == {}
    assert any("numpy" in names for names in loaded.values())  # what plot may import is seen


LONG = 60
"""Lines that a function may have, its docstring aside; kernels may have more."""


def test_functions_have_one_purpose() -> None:
    wrong = []
    for path in FILES:
        if "triton" in path.parts:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                length = (node.end_lineno or 0) - body[0].lineno + 1
                if length > LONG:
                    wrong.append(f"{path.relative_to(ROOT)}: {node.name} has {length} lines")
    assert not wrong, "divide these by what their parts are for:\n" + "\n".join(wrong)


def files_imported() -> dict[str, set[str]]:
    """For each file its imports of others of ours, lazy ones and those for type checks included."""
    names = {".".join(("headway", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    found = {}
    for name, path in names.items():
        whole = {".".join(module) for module in imported(path)}
        # `from package import name` is the file of that name, or else the package's own
        found[name] = {one if one in names else one.rpartition(".")[0] for one in whole} & names.keys() - {name}
    return found


def test_no_files_import_each_other_in_a_circle() -> None:
    imports = files_imported()
    assert imports["headway.attention"] > {"headway.functional", "headway.positions"}  # it reads something
    while ends := {name for name, others in imports.items() if not others & imports.keys()}:
        imports = {name: others for name, others in imports.items() if name not in ends}
    assert imports == {}, "these files are in a circle, or import one"


KERNELS = ("backends",)
LINES = 500


def test_no_file_is_long() -> None:
    written = [path for path in (*FILES, *ROOT.rglob("*.js"), *ROOT.rglob("*.css")) if part_of(path) not in KERNELS]
    lines = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in written}
    assert {path: count for path, count in lines.items() if count > LINES} == {}, "divide these by what they are about"


def fresh(code: str) -> list[str]:
    """The lines that a new process prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()


def test_importing_is_light_and_backends_come_when_first_needed() -> None:
    """The imported modules at four points, further and further into the core."""
    program = """
import sys, headway
print(*sys.modules)
import headway.attention
print(*sys.modules)
import headway.positions, headway.transformer
headway.positions.methods()
print(*sys.modules)
import torch
headway.Attention(8, 1, position="t5")(torch.randn(1, 3, 8)).sum().backward()
print(*sys.modules)
"""
    light, attention, core, trained = (line.split() for line in fresh(program))
    top = [{name.partition(".")[0] for name in names} for names in (light, core)]
    assert not {"torch", "numpy", "typer", "rich"} & top[0]
    ours = sorted(name for name in attention if name.startswith("headway.backends."))
    assert ours == ["headway.backends.base", "headway.backends.operators"]
    assert "torch" in top[1]
    assert not {"transformers", "x_transformers", "beartype", "typer", "tokenizers", "safetensors"} & top[1]
    assert "torch._dynamo" not in trained  # what torch.compile needs takes more than a second to load


def test_attend_alone_knows_no_method() -> None:
    """Its first call in a process costs what it imports: the methods would take longer than torch's first attention."""
    program = """
import sys, torch, headway
x = torch.randn(1, 1, 4, 8)
headway.attend(x, x, x, mask=headway.Causal())
print(*sys.modules)
"""
    (loaded,) = (line.split() for line in fresh(program))
    assert "headway.backends.native" in loaded or "headway.backends.tiled" in loaded
    assert not {name for name in loaded if name.startswith(("headway.positions", "headway.attention"))}


def test_every_name_headway_offers_is_there() -> None:
    for name in headway.__all__:
        assert getattr(headway, name).__name__ == name
    assert set(headway.__all__) == set(headway._HOME)
    assert set(headway.__all__) <= set(dir(headway))
    with pytest.raises(AttributeError, match=r"^module 'headway' has no attribute 'attention_please'$"):
        headway.attention_please  # noqa: B018


def test_every_public_thing_is_described() -> None:
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef | ast.Module):
                assert ast.get_docstring(node), f"{path}: {getattr(node, 'name', 'the module')} has no docstring"


def test_every_listed_fault_can_be_planted() -> None:
    """The lists of ``make mutants`` name text that is there once."""
    runner = runpy.run_path(str(Path(__file__).parent / "mutants" / "run.py"))
    assert len(runner["read"](None)) > 400
