"""Position methods that hold the length they are trained at, set to the length of the training at hand."""

from __future__ import annotations

import re

from headway.positions import Position, parse

TRAINED = ("max_length", "original")
"""Hyperparameters that mean the length a model is trained at."""


def trained_at(spec: str, length: int) -> tuple[Position, str | None]:
    """The method a text names; what it has of :data:`TRAINED` is the training length, unless the text sets it.

    Args:
        spec: as on the command line.
        length: tokens of a training window.

    Returns:
        The method, and one sentence on what was set; None where nothing was.

    Raises:
        HeadwayError: when the text names no method, or one that cannot have this length.

    >>> trained_at("learned", 600)
    (Learned(max_length=600), 'learned: max_length is the training length, 600')
    >>> trained_at("yarn(original=64)", 600)[1] is None
    True
    """
    position = parse(spec)
    values = position.hyperparameters()
    found = {name: length for name in TRAINED if name in values and not _given(spec, name) and values[name] != length}
    if not found:
        return position, None
    name = position.method_name()
    return type(position)(**{**values, **found}), f"{name}: {', '.join(found)} is the training length, {length}"


def _given(spec: str, name: str) -> bool:
    """Whether a method's text sets a hyperparameter, if only to its default."""
    return re.search(rf"\b{name}\s*=", spec) is not None
