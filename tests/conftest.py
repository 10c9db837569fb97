"""What all tests share: shape checks at run time, one thread per worker, a fixed seed."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator

import jaxtyping
import pytest

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
        "attention",
        "transformer",
    )
]
# The core's annotations, such as Float[Tensor, "batch heads queries dim"], are checked at every call in the tests.
if os.environ.get("HEADWAY_UNCHECKED", "0") == "0":
    jaxtyping.install_import_hook(CHECKED, "common.typechecker")


def pytest_configure() -> None:
    import torch

    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from common import exemptions

    for law, method, reason in exemptions():
        terminalreporter.write_line(f"exempt from law '{law}': {method}, because {reason}")


@pytest.fixture(autouse=True)
def seed() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run as a user's program does, without shape checks: bad input meets the library's own, and code compiles."""
    for name, module in list(sys.modules.items()):
        if name.startswith("headway."):
            for member in list(vars(module).values()):
                if dataclasses.is_dataclass(member) and isinstance(member, type):
                    # dynamo cannot trace into the checks of a dataclass
                    monkeypatch.setattr(member, "__init__", getattr(member.__init__, "__wrapped__", member.__init__))
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
