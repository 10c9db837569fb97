"""``make mutants``: plant one fault at a time in a copy of the sources, and say which test sees it.

The faults stand in the TOML files beside this one: by source file, the text that is there once, and what it becomes.
``tests`` are runs of pytest, in order, until one fails; their paths are relative to ``tests``. A fault that changes no
result says why under ``equivalent`` and is not planted. A text that is not there exactly once is an error, so that the
lists cannot rot, and so is a test that fails without any fault.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path("src/headway")
ENOUGH = 0.95
"""The share of faults that has to be caught."""
LIMIT = 300
"""Seconds for one run of pytest; a fault that makes it hang is caught."""
LOADED = (
    "torch._dynamo",
    "numpy",
    "pytest",
    "jaxtyping",
    "beartype",
    "safetensors.torch",
    "triton",
    "rotary_embedding_torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3_vl.modeling_qwen3_vl",
    "transformers.models.xlnet.modeling_xlnet",
    "transformers.models.inkling.modeling_inkling",
)
"""Loaded once by each worker, which then forks for every run of pytest: most runs take less than these do."""


@dataclass(frozen=True)
class Mutant:
    """One fault: in ``path``, ``old`` becomes ``new``."""

    area: str
    path: Path
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str | None

    def __str__(self) -> str:
        return f"{self.area}: {self.path}: {' '.join(self.old.split())} → {' '.join(self.new.split()) or 'nothing'}"


def read(only: str | None) -> list[Mutant]:
    """The faults of all lists, or of those whose area or source file has ``only`` in its name."""
    found, wrong = [], []
    for file in sorted(Path(__file__).parent.glob("*.toml")):
        for part in tomllib.loads(file.read_text("utf-8"))["file"]:
            path = SOURCES / part["path"]
            text = (ROOT / path).read_text("utf-8")
            for each in part["mutants"]:
                tests = tuple(each.get("tests", part["tests"]))
                one = Mutant(file.stem, path, each["old"], each["new"], tests, each.get("equivalent"))
                if text.count(one.old) != 1 or one.old == one.new:
                    wrong.append(f"{one}: the text is there {text.count(one.old)} times, expected once")
                if only is None or only in file.stem or only in part["path"]:
                    found.append(one)
    if wrong or not found:
        sys.exit("\n".join(wrong) or f"expected a list or a source file with {only!r} in its name, found none")
    return found


class Copy:
    """A copy of the sources and tests, in which faults are planted and removed again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("src", "tests", "docs"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder / name)
        self.written = int(time.time()) + 1000

    def write(self, path: Path, text: str) -> None:
        """Change a file, with a time of its own: Python looks at no more than that and the size."""
        self.written += 2
        (self.folder / path).write_text(text, encoding="utf-8")
        os.utime(self.folder / path, (self.written, self.written))

    def judge(self, mutant: Mutant) -> tuple[str | None, float]:
        """The test that caught a fault, or None, and the seconds it took."""
        start, original = time.monotonic(), (self.folder / mutant.path).read_text("utf-8")
        self.write(mutant.path, original.replace(mutant.old, mutant.new))
        try:
            caught = next((name for run in mutant.tests if (name := self.failing(run)) is not None), None)
        finally:
            self.write(mutant.path, original)
        return caught, time.monotonic() - start

    def failing(self, run: str) -> str | None:
        """The first test that fails in a run of pytest, or None."""
        log = self.folder / "pytest.log"
        child = os.fork()
        if child == 0:
            self._run(run, log)
        end = time.monotonic() + LIMIT
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return f"the limit of {LIMIT} s for {run}"
            time.sleep(0.05)
        code, told = os.waitstatus_to_exitcode(ended[1]), log.read_text("utf-8", "replace")
        if code == 0:
            return None
        named = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(.+?)(?: - .*)?$", told, re.MULTILINE)
        return named[1] if named else f"pytest, which ended with {code} in {run}: {told[-300:]}"

    def _run(self, run: str, log: Path) -> None:
        """Become a run of pytest in the copy. Never returns."""
        code = 70
        try:
            os.setsid()
            os.chdir(self.folder)
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for stream in (1, 2):
                os.dup2(file, stream)
            os.environ["PYTHONPATH"] = str(self.folder / "src")
            sys.path.insert(0, str(self.folder / "src"))
            import pytest

            paths = [f"tests/{word}" if word.endswith(".py") else word for word in shlex.split(run)]
            options = ["-x", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
            options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
            code = int(pytest.main([*options, *paths]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


copy: Copy
"""The copy of a worker."""


def begin(folder: Path) -> None:
    """Make a worker ready: what it must not load is headway, which each run loads from the copy."""
    global copy
    copy = Copy(folder / str(os.getpid()))
    for name in LOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def judge(mutant: Mutant) -> tuple[str | None, float]:
    """See :meth:`Copy.judge`."""
    return copy.judge(mutant)


def failing(run: str) -> str | None:
    """See :meth:`Copy.failing`."""
    return copy.failing(run)


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant faults, and say which tests catch them.")
    parser.add_argument("--only", help="the lists or source files with this in their names")
    parser.add_argument("--workers", type=int, default=2, help="copies that are tested at once")
    parser.add_argument("--trust", action="store_true", help="do not run the tests without a fault first")
    given = parser.parse_args()
    mutants = read(given.only)
    planted = [mutant for mutant in mutants if mutant.equivalent is None]
    started = time.monotonic()
    # before torch is loaded, whose threads would wait for each other in all workers at once; and without shape checks
    os.environ.update(OMP_NUM_THREADS="1", HEADWAY_CHECKED="none")
    with tempfile.TemporaryDirectory(prefix="headway-mutants-") as folder:
        kept = subprocess.run(
            [sys.executable, "-c", "from headway.backends import compiler; print(compiler.cache_folder())"],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        os.environ["HEADWAY_CACHE"] = f"{folder}/cache"  # kernels with faults are not for keeping
        if Path(kept).is_dir():
            shutil.copytree(kept, f"{folder}/cache")
        with multiprocessing.get_context("fork").Pool(given.workers, begin, (Path(folder),)) as workers:
            runs = [] if given.trust else list(dict.fromkeys(run for mutant in planted for run in mutant.tests))
            red = [name for name in workers.imap(failing, runs) if name is not None]
            if red:
                print("expected tests that pass without a fault, these fail:", *red, sep="\n  ")
                return 2
            if runs:
                print(f"{len(runs)} runs of tests pass without a fault, {time.monotonic() - started:.0f} s", flush=True)
            survivors = []
            for mutant, (caught, seconds) in zip(planted, workers.imap(judge, planted), strict=True):
                print(f"{'SURVIVED' if caught is None else 'caught'} {seconds:4.0f} s  {mutant}", flush=True)
                print(f"{'':17}{'by nothing' if caught is None else f'by {caught}'}", flush=True)
                survivors += [mutant] if caught is None else []
    for mutant in mutants:
        if mutant.equivalent is not None:
            print(f"equivalent       {mutant}\n{'':17}{mutant.equivalent}")
    share = 1 - len(survivors) / len(planted)
    minutes = (time.monotonic() - started) / 60
    print(f"\n{len(planted)} faults planted, {share:.1%} caught, in {minutes:.0f} minutes")
    for mutant in survivors:
        print(f"  survived: {mutant}")
    return 0 if share >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
