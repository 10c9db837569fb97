"""Every version of the two set-up commands is pinned, and the environment they create has only those versions."""

from __future__ import annotations

import importlib.metadata
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from environments import pins
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def test_all_that_is_asked_for_has_a_pin_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for group in (project["project"]["optional-dependencies"], project["dependency-groups"]):
        asked += [one for some in group.values() for one in some]
    pinned = pins()
    for one in map(Requirement, asked):
        pin = pinned[canonicalize_name(one.name)]
        assert one.specifier.contains(pin), f"{one}, but pinned at {pin}: run make update"


def unpinned(installed: dict[str, str], pinned: dict[str, str]) -> list[str]:
    """What is installed without a pin, or at another version; a build of it, as 2.13.0+cpu, is the version."""
    return [f"{name} {version}" for name, version in installed.items() if Version(version).public != pinned.get(name)]


def test_what_is_installed_is_what_is_pinned() -> None:
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("this is not the environment that make sets up")
    found = importlib.metadata.distributions(path=[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    installed = {canonicalize_name(one.metadata["Name"]): one.version for one in found}
    del installed["headway"]
    assert len(installed) > 50
    assert not unpinned(installed, pins()), "not what constraints.txt says: run make clean, or make update"


def test_another_package_or_version_is_noticed() -> None:
    pinned = pins()
    assert unpinned({"torch": "2.13.0+cpu", "numpy": pinned["numpy"]}, pinned) == []
    assert unpinned({"torch": "2.14.1", "leftpad": "1.0"}, pinned) == ["torch 2.14.1", "leftpad 1.0"]
