"""What all tests share: shape checks at run time, one thread per worker, a fixed seed."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

pytest_plugins = ["browser"]

CHECKED = [
    f"headway.{module}"
    for module in (
        "shapes",
        "masks",
        "terms",
        "cache",
        "positions",
        "backends",
        "functional",
        "init",
        "attending",
        "attention",
        "latent",
        "transformer",
    )
]
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # as headway.cli does, before torch is loaded
# The core's annotations, such as Float[Tensor, "batch heads queries dim"], are checked at every call of a test. That
# costs as much as the tests themselves: one test or case in twenty-five is checked, with HEADWAY_CHECKED=all each one.
EVERY = {"none": 0, "all": 1}.get(os.environ.get("HEADWAY_CHECKED", ""), 25)
jaxtyped = jaxtyping.jaxtyped


def checked(*, typechecker: Any) -> Any:
    """jaxtyped, which would build its checks of a nested function anew each time that the outer one runs."""
    check = jaxtyped(typechecker=typechecker)
    return lambda made: made if "<locals>" in made.__qualname__ and jaxtyping.config.jaxtyping_disable else check(made)


if EVERY:
    jaxtyping.jaxtyped = checked
    jaxtyping.install_import_hook(CHECKED, "common.typechecker")


MATRIX = Path(__file__).parents[1] / "docs" / "methods" / "matrix.md"
METHODS_MADE = pytest.StashKey[set[str]]()
RECORDS = pytest.StashKey[str]()
MISSING = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", metavar="FILE", help="write methods × laws × parity here, also if only some tests run")


def pytest_configure(config: pytest.Config) -> None:
    import torch
    from matrix import FOLDER

    config.addinivalue_line(
        "markers", "law(name, methods): a law, and the methods a case speaks for, see common.every_method"
    )
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
    if FOLDER not in os.environ:  # the first process: workers, and what tests start, inherit the folder
        config.stash[RECORDS] = os.environ[FOLDER] = tempfile.mkdtemp(prefix="headway-records-")


def pytest_collection_finish(session: pytest.Session) -> None:
    """The tests themselves are never garbage: without them collections take a tenth of the time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    from matrix import FOLDER

    if RECORDS in config.stash:
        shutil.rmtree(config.stash[RECORDS])
        del os.environ[FOLDER]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    from matrix import PARITY, made

    if item.path.parent != PARITY:
        return (yield)
    with made() as names:
        item.stash[METHODS_MADE] = names
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    checked = EVERY > 0 and zlib.crc32(item.nodeid.encode()) % EVERY == 0
    jaxtyping.config.update("jaxtyping_disable", not checked)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    from matrix import note

    report = yield
    note(item, report, item.stash.get(METHODS_MADE, set()))
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the matrix after a whole run, and fail if the parity tests, run whole, leave a method out."""
    from matrix import PARITY, matrix, records, without_parity

    config = session.config
    if RECORDS not in config.stash or not (found := records(config.stash[RECORDS])):
        return
    from headway.positions import methods

    everything = config.args_source is config.ArgsSource.TESTPATHS and not _chosen(config)
    wanted = config.getoption("--matrix")
    if wanted or everything:
        partial = None if everything else "only some tests were run."
        path = Path(wanted) if wanted else MATRIX
        path.parent.mkdir(parents=True, exist_ok=True)
        exempt = {name: method.exempt for name, method in methods().items()}
        path.write_text(matrix(found, exempt, partial), encoding="utf-8")
    ran = {one["file"] for one in found if one["law"] is None}
    if not _chosen(config) and ran >= {path.name for path in PARITY.glob("test_*.py")}:
        session.stash[MISSING] = without_parity(found, methods())
        if session.stash[MISSING] and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _chosen(config: pytest.Config) -> bool:
    """Whether tests other than slow ones were deselected on purpose."""
    option = config.option
    single = any("::" in argument for argument in config.args)
    last = getattr(option, "lf", False)  # absent without the cache's plugin
    return bool(single or option.keyword or option.markexpr not in ("", "not slow") or option.collectonly or last)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from common import exemptions

    for law, method, reason in exemptions():
        terminalreporter.write_line(f"exempt from law '{law}': {method}, because {reason}")
    session = terminalreporter._session
    for name in [] if session is None else session.stash.get(MISSING, []):
        terminalreporter.write_line(
            f"FAILED: no parity test is about {name}: compare it with an independent implementation in tests/parity",
            red=True,
        )


@pytest.fixture(autouse=True)
def seed() -> None:
    import torch

    torch.default_generator.manual_seed(0)  # torch.manual_seed seeds every kind of device, which takes milliseconds


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as a user's program does, without shape checks: bad input meets the library's own, and code compiles."""
    for name, module in list(sys.modules.items()):
        if name.startswith("headway."):
            for member in list(vars(module).values()):
                if dataclasses.is_dataclass(member) and isinstance(member, type):
                    # dynamo cannot trace into the checks of a dataclass
                    monkeypatch.setattr(member, "__init__", getattr(member.__init__, "__wrapped__", member.__init__))
    jaxtyping.config.update("jaxtyping_disable", True)  # until the next test begins


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tiles of the native kernels: counts {computed, skipped}; with ``tiles.skip = 0`` none is skipped."""
    import torch

    from headway.backends.native import library

    class Tiles:
        skip = 1
        count = torch.zeros(2, dtype=torch.int64)

    inside = library.Arguments.run

    def counted(self: Any, what: str) -> None:
        self.call.skip, self.call.tiles = Tiles.skip, Tiles.count.data_ptr()
        inside(self, what)

    monkeypatch.setattr(library.Arguments, "run", counted)
    return Tiles
