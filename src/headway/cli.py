"""The command line: each command is a file ``NAME_command.py`` in one of the packages, e.g. ``compare_command.py``.

A package is imported only when its command runs, so that ``headway --help`` is fast. A command's file has a function
``command``, whose docstring is the help text.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headway._version import __version__
from headway.console import Checked
from headway.console import run as run_command

ORDER = (
    *("compare", "studio", "explain", "draw", "train", "generate", "methods", "bench", "plan"),
    *("accelerate", "verify", "extend"),
)
"""Order in ``--help``; other commands follow."""
_PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}


@cache
def commands() -> dict[str, Path]:
    """The file of each command, by its name."""
    found = {path.stem.removesuffix("_command"): path for path in Path(__file__).parent.glob("*/*_command.py")}
    return {name: found[name] for name in [*filter(found.__contains__, ORDER), *sorted(found.keys() - set(ORDER))]}


@cache
def load(name: str) -> Any:
    """Import a command's package and build the command."""
    module = importlib.import_module(f"headway.{commands()[name].parent.name}.{name}_command")
    alone = typer.Typer(**_PLAIN)
    alone.command(name=name, cls=Checked)(module.command)
    return typer.main.get_command(alone)


class Commands(TyperGroup):
    """All commands, each imported on first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(commands())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them."""
        return load(cmd_name) if cmd_name in commands() else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List them with the first sentence of each docstring, read without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_sentence(path)) for name, path in commands().items()])


def _first_sentence(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "command")
    return (ast.get_docstring(function) or "").partition("\n\n")[0].rstrip(".")


app = typer.Typer(
    **_PLAIN,
    cls=Commands,
    no_args_is_help=True,
    help="Position methods in attention: train, compare and use Transformers with any of them.",
)


def main() -> None:
    """Run the command line; an error prints one line to standard error, see :mod:`headway.console`."""
    # torch's profiler, which counts memory, reads this when torch is loaded; otherwise it writes to the terminal
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    if "RANK" in os.environ:  # torchrun started this process as one of several
        # DDP advises each process against what headway.training.execution needs
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        status = run_command(app, sys.argv[1:], _is_repeated)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # its reader is gone
                stream.flush()
        os._exit(status)  # a group that failed cannot be taken down in order, see headway.parallel.process
    sys.exit(run_command(app, sys.argv[1:]))


def _is_repeated(error: BaseException) -> bool:
    # torchrun ends all processes as soon as one has ended; the one that says why must not be cut short
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from headway.parallel.process import is_repeated

    return is_repeated(error)


def _version(show: bool) -> None:
    if show:
        print(f"headway {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


if __name__ == "__main__":
    main()
