"""Everything between the commands and a terminal: checks that apply to every option, and the handling of every error.

An error ends a command with one sentence on standard error: status 2 for a wrong argument, 1 for a failure of the
machine (a full disk, no memory), 130 after ctrl-C, and 141, without a message, when the reader of the output has closed
it. With ``HEADWAY_DEBUG=1`` the traceback is shown instead.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from headway.characters import READABLE, harmless, printable, shortened
from headway.output import streamed
from headway.shapes import HeadwayError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_WIDTHS = range(20, 501)
"""Range of plausible terminal widths, in columns."""
_LONGEST = 800
"""Maximum characters of an error message."""
_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "std::bad_alloc")
"""How torch reports it, in a RuntimeError."""


class _Interrupted(Exception):
    """Ctrl-C: typer would exit without a message."""


class _ReaderGone(Exception):
    """The reader of the output has closed it, as ``head`` does: typer would report an error."""


class Checked(TyperCommand):
    """A command whose options get common checks before it begins, so that no command has to repeat them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; an empty path must not become the current folder."""
        given = self.make_parser(ctx).parse_args(list(args))[0]
        rest: list[str] = super().parse_args(ctx, args)
        for name, value in ctx.params.items():
            if given.get(name) == "" and (isinstance(value, Path) or self._is_path(name)):
                raise HeadwayError(f"expected {self._named(name)} as a path, got an empty one")
            for each in value if isinstance(value, list | tuple) else (value,):
                if isinstance(each, float) and not math.isfinite(each):
                    raise HeadwayError(f"expected {self._named(name)} as a finite number, got {each}")
                if isinstance(each, str | Path) and "\0" in str(each):
                    raise HeadwayError(f"expected {self._named(name)} without a NUL character, got {str(each)!r}")
        return rest

    def _parameter(self, name: str) -> Any:
        return next(one for one in self.params if one.name == name)

    def _is_path(self, name: str) -> bool:
        """Whether an older typer will convert this text to a path later."""
        return getattr(getattr(self._parameter(name), "type", None), "name", "") == "path"

    def _named(self, name: str) -> str:
        """The name of a parameter on the command line."""
        parameter = self._parameter(name)
        written: str = parameter.opts[0] if parameter.param_type_name == "option" else name.upper()
        return written

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            interrupted = _Interrupted()
            interrupted.__dict__.update(error.__dict__)
            raise interrupted from None
        except BrokenPipeError:
            raise _ReaderGone from None


def run(
    app: typer.Typer, arguments: Sequence[str], is_repeated: Callable[[BaseException], bool] = lambda error: False
) -> int:
    """Run a command line and return its exit status; any error becomes one sentence on standard error.

    Args:
        app: the commands.
        arguments: of the command line.
        is_repeated: whether another process prints this error, so that this one need not.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # it may be missing, or replaced by a test
            stream.reconfigure(errors=READABLE)  # type: ignore[union-attr]
    try:
        status = app(args=list(arguments) or ["--help"], prog_name="headway", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except Exception as error:
        if os.environ.get("HEADWAY_DEBUG", "0") not in ("", "0"):
            raise
        return _end(error, is_repeated)
    except KeyboardInterrupt as error:
        return _end(error, is_repeated)


def _end(error: BaseException, is_repeated: Callable[[BaseException], bool]) -> int:
    """Print in one sentence how a command ended, and return its exit status."""
    if isinstance(error, BrokenPipeError | _ReaderGone):
        _drop_output()
        return 141
    said, status = _explained(error)
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout is not None:
            sys.stdout.flush()
    _drop_output(error)
    if sys.stderr is not None and not is_repeated(error):
        with contextlib.suppress(OSError, ValueError):  # nobody reads standard error
            print(f"error: {shortened(printable(said, keep=' '), _LONGEST)}", file=sys.stderr, flush=True)
    return status


def sentence(error: BaseException) -> str:
    """An error in one sentence.

    >>> sentence(MemoryError())
    'expected enough memory, got none left: choose a smaller model, batch or length'
    """
    return shortened(printable(_explained(error)[0], keep=" "), _LONGEST)


def _explained(error: BaseException) -> tuple[str, int]:
    if isinstance(error, HeadwayError):
        return str(error), getattr(error, "status", 2)
    if isinstance(error, _usage_errors()):
        said = " ".join(str(error.format_message()).split("\n")).rstrip(".")
        where = getattr(getattr(error, "ctx", None), "command_path", "headway")
        return f"{said[:1].lower()}{said[1:]}: `{where} --help` lists what there is", 2
    if isinstance(error, KeyboardInterrupt | _Interrupted | typer.Abort):
        return "interrupted", 130
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _names_memory(error)):
        return "expected enough memory, got none left: choose a smaller model, batch or length", 1
    if isinstance(error, OSError):
        place = f" {error.filename!r}" if error.filename is not None else ""
        return f"the system refused{place}: {error.strerror or error}", 1
    if isinstance(error, UnicodeError):
        return f"expected text that is valid Unicode, got {shortened(repr(getattr(error, 'object', '')))}", 2
    kind = type(error).__name__
    told = shortened(str(error), 300)
    return f"this is a bug of headway, please report it ({kind}: {told}); HEADWAY_DEBUG=1 shows where it happened", 1


def _usage_errors() -> type[Any]:
    """What typer raises on an invalid command line: its own class or click's, depending on its version."""
    return next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _names_memory(error: RuntimeError) -> bool:
    return any(words in str(error).lower() for words in _MEMORY)


def _drop_output(error: BaseException | None = None) -> None:
    """Discard buffered output, which would fail again when Python exits."""
    if error is not None and not isinstance(error, OSError):
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(*, error: bool = False) -> Console:
    """A console on standard output or error, 120 columns wide for a file or pipe; printed text cannot control it."""
    from rich.console import Console
    from rich.text import Text

    class Harmless(Console):
        """Escapes control sequences in printed text, and replaces what the encoding lacks before widths are measured.

        The stream would replace it later, by texts of another width, and shift the columns of tables.
        """

        def _encodable(self, text: str) -> str:
            encoding = getattr(self.file, "encoding", None) or "utf-8"
            return text.encode(encoding, READABLE).decode(encoding, "replace")

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(harmless(one) if isinstance(one, str) else one for one in objects), **options)

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(self._encodable(text), **options)

        def render(self, renderable: Any, options: Any = None) -> Any:
            if isinstance(renderable, Text) and (plain := self._encodable(renderable.plain)) != renderable.plain:
                renderable = renderable.copy()
                renderable.plain = plain
                if options is not None and options.overflow == "ellipsis":
                    renderable.overflow = "crop"  # an ellipsis would be one of the characters that are lacking
            return super().render(renderable, options)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    shown = Harmless(markup=False, highlight=False, stderr=error)  # paths, commands and messages may contain brackets
    if not shown.is_terminal and "COLUMNS" not in os.environ:
        shown.width = 120  # a file or a pipe has no width of its own
    shown.width = min(max(shown.width, _WIDTHS[0]), _WIDTHS[-1])
    return shown


def wrote(what: str, path: Path, *others: Path | None) -> None:
    """Print where an output was written, on standard error if it, or one of its companions, is a device or pipe."""
    console(error=streamed(path, *others)).print(f"{what}: {path}", soft_wrap=True)


def progress_bars(console: Console) -> Progress:
    """Progress bars that disappear when finished."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # otherwise a file or pipe gets an empty line
    )


def reading_bar(bars: Progress, screen: Console) -> Callable[[Any], None]:
    """Shows the preparation of a text, as :class:`headway.training.content.Reading` tells it, in a bar of its own."""
    shown: dict[tuple[str, str], Any] = {}

    def show(reading: Any) -> None:
        step, ended = (reading.what, reading.name), reading.done == reading.total
        if step not in shown:
            if ended:  # it was too short to be shown
                return
            for bar in shown.values():
                bars.update(bar, visible=False)
            shown[step] = bars.add_task(reading.what, total=reading.total, note="")
            if not screen.is_terminal:
                print(f"{reading.what} {printable(reading.name)}", flush=True)
        size = f"{reading.done / 1e6:,.0f}" + (f" of {reading.total / 1e6:,.0f}" if reading.total else "")
        note = f"{shortened(printable(reading.name), 40)} · {size} MB"
        bars.update(shown[step], completed=reading.done, note=note, visible=not ended)

    return show
