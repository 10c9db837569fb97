"""Set the training length of position methods that have such a hyperparameter."""

from __future__ import annotations

import re

from headway.positions import Position, parse

TRAINED = ("max_length", "original")
"""Hyperparameters that hold the training length."""


def trained_at(spec: str, length: int) -> tuple[Position, str | None]:
    """Parse a method and set its :data:`TRAINED` hyperparameters to the training length, unless the string sets them.

    Args:
        spec: as on the command line.
        length: tokens of a training window.

    Returns:
        The method, and one sentence on what was set, or None.

    Raises:
        HeadwayError: when the string names no method, or one that cannot have this length.

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
    """Whether a method's string sets a hyperparameter, even to its default."""
    return re.search(rf"\b{name}\s*=", spec) is not None
