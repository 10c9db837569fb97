"""Positions for longer texts than a model was trained on: frequencies scaled, or a table interpolated.

    extend(Rotary(), to=32768, how="yarn", trained=4096)   # yarn(factor=8.0, original=4096)
    extend(Learned(max_length=512), to=2048)               # a table of 2,048 rows

All extensions are in this file; register another method with ``@_extend.register``.
"""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import nn

from headway.positions.base import Position
from headway.positions.learned import Learned
from headway.positions.rotary import Rotary
from headway.positions.scaled import NTK, DynamicNTK, Interpolated, Llama3, LongRope, Proportional, Yarn
from headway.schema import Words, require
from headway.shapes import HeadwayError, as_count, brief

WAYS: dict[str, type[Rotary]] = {"linear": Interpolated, "ntk": NTK, "dynamic": DynamicNTK, "yarn": Yarn}
"""The scalings of :mod:`headway.positions.scaled`, by their name in ``how``."""


def extend(position: Position, to: int, how: str | None = None, trained: int | None = None) -> Position:
    """A new method for texts longer than the training length; the given method is unchanged.

    The frequencies of rotary and its scalings are scaled by the factor to/trained. A learned table is linearly
    interpolated to ``to`` rows; its first and last row stay the same.

    Args:
        position: the method, with or without parameters.
        to: the new length, in tokens.
        how: for frequencies "linear", "ntk", "dynamic" or "yarn" (default); for a table and for p-RoPE "linear".
        trained: the training length; optional where the method knows it: ``original`` of a scaling, ``max_length`` of a
            table.

    Raises:
        HeadwayError: when the method cannot be extended, or on invalid lengths or ways.

    >>> extend(Rotary(base=500000.0), to=32768, trained=8192).spec()
    'yarn(base=500000.0, original=8192)'
    >>> extend(Learned(max_length=128).attach(16), to=512).weight.shape
    torch.Size([512, 16])
    """
    return _extend(position, to, how, trained)


@singledispatch
def _extend(position: Position, to: int, how: str | None, trained: int | None) -> Position:
    raise HeadwayError(
        f"expected a method with frequencies or a table of positions to extend (rotary and its scalings, learned), "
        f"got {type(position).__name__}: it already accepts texts of any length, or cannot be extended"
    )


@_extend.register
def _table(position: Learned, to: int, how: str | None, trained: int | None) -> Position:
    to = as_count(to, "to, a length,", 1)
    trained = position.max_length if trained is None else as_count(trained, "trained, a length,")
    if how not in (None, "linear"):
        raise HeadwayError(f"expected how 'linear', the only way to extend a table, got {brief(how)}")
    if not 1 <= trained <= min(to, position.max_length):
        raise HeadwayError(
            f"expected trained from 1 to {position.max_length} and to at least that, got trained={trained} and to={to}"
        )
    longer = Learned(max_length=to)
    if position.shape is not None:
        longer.attach(position.shape).to(position.weight)
        with torch.no_grad():
            rows = position.weight[:trained].T[None]  # (1, d, trained)
            longer.weight.copy_(nn.functional.interpolate(rows, to, mode="linear", align_corners=True)[0].T)
    return longer


@_extend.register
def _proportional(position: Proportional, to: int, how: str | None, trained: int | None) -> Position:
    to = as_count(to, "to, a length,", 1)
    trained = None if trained is None else as_count(trained, "trained, a length,", 1)
    if how not in (None, "linear") or trained is None or trained > to:
        raise HeadwayError(
            f"expected how 'linear', trained, the trained length, and to at least that, "
            f"got how={how!r}, trained={trained} and to={to}"
        )
    return Proportional(**{**position.hyperparameters(), "factor": to / trained})


@_extend.register
def _frequencies(position: Rotary, to: int, how: str | None, trained: int | None) -> Position:
    if type(position) not in (
        Rotary,
        Llama3,
        LongRope,
        *WAYS.values(),
    ):  # other subclasses have their own rates
        return _extend.dispatch(Position)(position, to, how, trained)
    trained = getattr(position, "original", None) if trained is None else trained
    how = "yarn" if how is None else how
    require(how, Words(tuple(WAYS)), "how")
    if trained is None:
        raise HeadwayError(
            f"expected trained, the length the frequencies were trained at, because {position.method_name()} does not "
            f"know it, got none: e.g. pass trained=2048"
        )
    if not 1 <= as_count(trained, "trained, a length,") <= as_count(to, "to, a length,"):
        raise HeadwayError(f"expected to at least the trained length and that at least 1, got {to} and {trained}")
    # a given amplitude belongs to the factor it was given with
    scaling = {"factor": to / trained, "original": trained, "attention_factor": 0.0}
    names = WAYS[how]().hyperparameters()
    values = {name: value for name, value in (position.hyperparameters() | scaling).items() if name in names}
    return WAYS[how](**values)
