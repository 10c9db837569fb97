"""What the commands share: options made from settings, common options, parsing of lists, checks before a start."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo

from headway.characters import shortened
from headway.config import MOST as MOST
from headway.config import WIDEST as WIDEST
from headway.console import console
from headway.settings import Field, Settings, described
from headway.shapes import HeadwayError, brief

LOOKED_AT = 10**8
"""The maximum number of parameters of a model that is made only to be looked at."""
SEED = 2**63 - 1
"""The largest seed that torch accepts."""

VOCABULARIES = "bytes, bpe (trained on the text), or the path of a tokenizer.json; all but bytes need headway[bpe]."
Out = Annotated[Path, typer.Option(help="Folder for the results; rerun the same command to resume.")]
Threads = Annotated[int | None, typer.Option(min=1, max=256, help="CPU threads; default: torch's own choice.")]
Vocabulary = Annotated[str | None, typer.Option(help=VOCABULARIES, show_default="bytes")]
MaxText = Annotated[
    int | None,
    typer.Option(min=1, max=1 << 40, help="Maximum size of a text in bytes; default: any, 128 MiB for pairs."),
]
Source = Annotated[
    str | None,
    typer.Argument(help="A text file or folder, or .jsonl or .parquet; default: the documentation of Python."),
]
ModelRun = Annotated[
    Path | None,
    typer.Option(
        help="A run of `headway train`, a checkpoint of transformers, or decoder-rotary, decoder-t5 or "
        "encoder-sinusoidal, which ship with headway; default: a small untrained model, with random weights."
    ),
]
NewPosition = Annotated[str, typer.Option(help="Position method of the new model.")]
Layer = Annotated[int, typer.Option(help="Which layer, from 0.")]
Head = Annotated[int, typer.Option(help="Which head, from 0.")]
Language = Annotated[str, typer.Option(help="en or zh.")]
VocabularySize = Annotated[int | None, typer.Option(max=MOST, help="Tokens of a bpe vocabulary.", show_default="4096")]


def offers(*kinds: type[Settings], but: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that takes ``**given`` an option for each field of settings, except those in ``but``.

    An option is named after its field; its help is the field's entry in the settings' docstring. Options not given are
    None.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [
            one.replace(annotation=hints[one.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for one in inspect.signature(command).parameters.values()
            if one.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        fields = [field for kind in kinds for field in described(kind) if field.name not in (*but, *hints)]
        made = [
            inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(one))
            for one in fields
        ]
        first = [one for one in own if isinstance(get_args(one.annotation)[1], ArgumentInfo)]
        listed = [*first, *made, *(one for one in own if one not in first)]
        command.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in listed}
        return command

    return decorate


def _option(field: Field) -> Any:
    """A field as a command-line option; lists are separated by commas."""
    listed = get_origin(field.kind) is tuple
    shown = ",".join(map(str, field.default or ())) if listed else field.default
    text = "" if shown in (None, "") or isinstance(shown, bool) else f"  [default: {shown}]"
    flags = (_flag(field),) if field.kind is bool and field.default is False else ()
    about = field.about[:1].upper() + field.about[1:]
    kind = field.kind if field.kind in (bool, int, float) else str
    return Annotated[kind | None, typer.Option(*flags, help=about + text, show_default=False)]


def _flag(field: Field) -> str:
    return f"--{field.name.replace('_', '-')}"


def chosen(kind: type[Settings], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given on the command line, by name."""
    found = {field.name: field for field in described(kind) if given.get(field.name) is not None}
    return {name: _parsed(field, given[name]) for name, field in found.items()}


def _parsed(field: Field, value: Any) -> Any:
    if get_origin(field.kind) is not tuple:
        return value
    whole = get_args(field.kind)[0] is int
    return tuple(numbers(_flag(field), value) if whole else split(value))


def split(text: str) -> list[str]:
    """Split at commas outside parentheses and quotes.

    >>> split("rotary(base=1, pairing='half'), t5,")
    ["rotary(base=1, pairing='half')", 't5']
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers separated by commas.

    Raises:
        HeadwayError: on anything else; it names the option.
    """
    found: list[int] = []
    with contextlib.suppress(ValueError):
        found = [int(part) for part in text.split(",") if part.strip()]
    if not found:
        raise HeadwayError(f"expected {option} as whole numbers like 64,128,256, got {brief(text)}")
    return found


def fractions(option: str, text: str) -> list[float]:
    """Numbers separated by commas.

    Raises:
        HeadwayError: on anything else; it names the option.

    >>> fractions("--weights", "0.7,0.3")
    [0.7, 0.3]
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise HeadwayError(f"expected {option} as numbers like 0.7,0.3, got {shortened(repr(text))}") from None


def say(notes: Iterable[str]) -> None:
    """Print notes about what was read to stderr, because stdout may be meant for another program."""
    for note in notes:
        console(error=True).print(note, soft_wrap=True)


def check_device(name: str, *, here: bool) -> None:
    """Refuse an unknown device, or with ``here`` a device that this machine lacks."""
    import torch

    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (":" in name and not re.fullmatch(r"\d{1,3}", number, re.ASCII)):
        raise HeadwayError(f"expected --device as cpu, cuda or cuda:0, got {shortened(name)!r}")
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(kind, 1)
    if here and int(number or 0) >= count:
        raise HeadwayError(
            f"expected a device of this machine, got {brief(name)}, and it has {count} of this kind: use cpu"
        )


def check_sizes(
    config: dict[str, Any], vocabulary: str = "bytes", vocabulary_size: int = 256, tokens: int = 64, batch: int = 0
) -> None:
    """Refuse a model that would not fit into memory, before allocating it; with ``batch``, also its training."""
    from headway.positions import parse
    from headway.sizes import check_size

    parse(config.get("position", "rotary"))  # errors in a method's text come first
    vocab = 256 if vocabulary == "bytes" else max(vocabulary_size, 1)
    most = None if batch else LOOKED_AT
    check_size(
        {"vocab": vocab, **config}, tokens=max(tokens, 1), batch=max(batch, 1), training=batch > 0, parameters=most
    )


def use_threads(threads: int | None) -> None:
    """Set torch's number of threads; None leaves torch's own choice."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
