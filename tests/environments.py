"""Run the tests in fresh environments under ``.environments``; the pins and ``.venv`` are not changed.

``newest`` runs all tests against the newest releases that pip finds, and says which packages moved and which tests
failed. ``ranges`` runs the tests of the package itself, without other libraries to compare with, at both ends of what
pyproject.toml accepts, for every Python from 3.11 to 3.13 that is here; what cannot be installed is named. Run by
``make newest`` and ``make ranges``; what they do not know of ARGS goes to pytest: ``ARGS="--pythons 3.12 tests/core"``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".environments"
PYTHONS = ("3.11", "3.12", "3.13")
ENDS = ("lowest", "newest")
EXTRAS = ("bpe", "studio", "tensorboard")
TESTERS = ("pytest", "pytest-xdist", "hypothesis", "beartype", "httpx")
"""Packages that run the tests of the ranges; they are not part of the ranges, and stay at their pins."""
PATHS = ("tests/core", "tests/training", "tests/cli", "tests/studio")


class Impossible(Exception):
    """What cannot be had on this machine; the message is the reason."""


def pins() -> dict[str, str]:
    """Versions of constraints.txt by name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found = {}
    for one in wanted:
        (pin,) = one.specifier
        assert pin.operator == "==", f"expected one version of {one.name}, got {pin}"
        assert one.name not in found, f"expected one pin of {one.name}, got two"
        found[canonicalize_name(one.name)] = pin.version
    return found


def unpinned() -> dict[str, str]:
    """The environment variables of a process that knows nothing of the pins, nor of sources elsewhere."""
    left_out = ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if name not in left_out}


def interpreter(version: str) -> Path:
    """A Python of this version: the one that runs this, one beside it, or one on the path."""
    name = f"python{version}"
    found = [Path(sys.base_prefix) / "bin" / name, *Path(sys.base_prefix).parent.glob(f"{version}*/bin/{name}")]
    found += [Path(path) for path in [shutil.which(name)] if path is not None]
    for path in found:  # one that is on the path may be a stub without anything behind it
        if path.exists() and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    raise Impossible(f"{name} is not here")


@dataclass
class Environment:
    """A new virtual environment."""

    name: str
    python: Path

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return FOLDER / self.name

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a Python module in it."""
        program = self.folder / "bin" / "python"
        return subprocess.run([program, "-m", *command], cwd=ROOT, env=unpinned(), capture_output=True, text=True)

    def make(self) -> None:
        """Anew, with the pip that is pinned."""
        shutil.rmtree(self.folder, ignore_errors=True)
        subprocess.run([self.python, "-m", "venv", self.folder], check=True)
        self.install(f"pip=={pins()['pip']}")

    def install(self, *what: str) -> None:
        """Let pip install.

        Raises:
            Impossible: with pip's last words.
        """
        done = self.run("pip", "install", "--quiet", "--disable-pip-version-check", *what)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise Impossible(said[-1].removeprefix("ERROR: ") if said else f"pip ended with {done.returncode}")

    def installed(self) -> dict[str, str]:
        """Versions by name, without their build: 2.13.0+cpu is 2.13.0."""
        found = json.loads(self.run("pip", "list", "--format=json", "--disable-pip-version-check").stdout)
        return {canonicalize_name(one["name"]): one["version"].partition("+")[0] for one in found}

    def test(self, *arguments: str) -> tuple[int, list[str]]:
        """Run tests: how many passed, and the names of those that did not."""
        report = FOLDER / f"{self.name}.xml"
        report.unlink(missing_ok=True)
        given = ["-n", "2", "-m", "not slow", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
        done = self.run("pytest", *given)
        if not report.exists():
            raise Impossible("pytest did not run: " + (done.stderr or done.stdout).strip()[-2000:])
        (FOLDER / f"{self.name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        failed, passed = [], 0
        for case in ElementTree.parse(report).iter("testcase"):
            if any(case.find(kind) is not None for kind in ("failure", "error")):
                failed.append(f"{case.get('classname')}::{case.get('name')}")
            elif case.find("skipped") is None:
                passed += 1
        return passed, failed


def verdict(name: str, passed: int, failed: list[str]) -> bool:
    """Print what became of a run."""
    print(f"{name}: {passed} tests passed, {len(failed)} failed", flush=True)
    for test in failed:
        print(f"  failed: {test}")
    if failed:
        print(f"  details: {(FOLDER / name).relative_to(ROOT)}.log")
    return passed > 0 and not failed


def newest(arguments: list[str]) -> bool:
    """All tests against the newest releases."""
    environment = Environment("newest", Path(sys.executable).resolve())
    environment.make()
    environment.install("--editable", f".[{','.join((*EXTRAS, 'dev'))}]")
    before, now = pins(), environment.installed()
    del now["headway"]
    moved = [(name, before.get(name, "not pinned"), version) for name, version in sorted(now.items())]
    moved = [(name, old, new) for name, old, new in moved if old != new]
    print(f"{len(moved)} of {len(now)} packages moved" + (":" if moved else ""))
    for name, old, new in moved:
        print(f"  {name} {old} → {new}", flush=True)
    passed, failed = environment.test(*arguments)
    return verdict("newest", passed, failed)


def lowest_versions(python: Path, name: str) -> Path:
    """A file with the lowest versions of what the package needs, for a Python; the newest of what those need."""
    testers, found = FOLDER / f"{name}-testers.txt", FOLDER / f"{name}.txt"
    pinned = pins()
    testers.write_text("".join(f"{one}=={pinned[one]}\n" for one in TESTERS), encoding="utf-8")
    command = [Path(sys.executable).parent / "uv", "pip", "compile", "--quiet", "--resolution", "lowest-direct"]
    command += ["--python", python, "--only-binary", ":all:", "pyproject.toml", testers, "--output-file", found]
    command += [part for extra in EXTRAS for part in ("--extra", extra)]
    done = subprocess.run(command, cwd=ROOT, env=unpinned(), capture_output=True, text=True)
    if done.returncode:
        raise Impossible(done.stderr.strip())
    return found


def range_end(version: str, end: str, arguments: list[str], keep: bool) -> bool | None:
    """One end of the ranges under one Python: whether its tests pass, or None where it cannot be had."""
    name = f"{version}-{end}"
    try:
        environment = Environment(name, interpreter(version))
        environment.make()
        if end == "lowest":
            environment.install("--requirement", str(lowest_versions(environment.python, name)))
            environment.install("--no-deps", "--editable", ".")
        else:
            pinned = pins()
            environment.install("--editable", f".[{','.join(EXTRAS)}]", *(f"{one}=={pinned[one]}" for one in TESTERS))
        direct, now = (
            tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"],
            environment.installed(),
        )
        named = [*direct["dependencies"], *(one for extra in EXTRAS for one in direct["optional-dependencies"][extra])]
        print(
            f"{name}: " + ", ".join(f"{one} {now[one]}" for one in (Requirement(each).name for each in named)),
            flush=True,
        )
        # an old release beside a new one of another package uses what that deprecates: no fault of ours
        passed, failed = environment.test("-W", "ignore::DeprecationWarning", *arguments)
    except Impossible as problem:
        print(f"{name}: not proven here: {problem}", flush=True)
        return None
    if not keep:  # a torch with its CUDA libraries is 5 GB
        shutil.rmtree(environment.folder)
    return verdict(name, passed, failed)


def main() -> int:
    """0 when all that could be installed passes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("newest", "ranges"))
    parser.add_argument("--pythons", default=",".join(PYTHONS), help="of ranges, as 3.11,3.13")
    parser.add_argument("--ends", default=",".join(ENDS), help="of ranges, as lowest")
    parser.add_argument("--keep", action="store_true", help="keep the environments of ranges, 5 GB each")
    given, arguments = parser.parse_known_args()
    FOLDER.mkdir(exist_ok=True)
    if given.what == "newest":
        return 0 if newest(arguments) else 1
    arguments = arguments or list(PATHS)
    found = [
        range_end(version, end, arguments, given.keep)
        for version in given.pythons.split(",")
        for end in given.ends.split(",")
    ]
    print(f"{found.count(True)} of {len(found)} ends proven, {found.count(None)} could not be tried here")
    return 0 if True in found and False not in found else 1


if __name__ == "__main__":
    sys.exit(main())
