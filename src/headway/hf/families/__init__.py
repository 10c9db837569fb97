"""Which attentions of transformers have a position bias of their own, one file for each kind.

A family's file has ``ATTENTIONS``, which names for a class of transformers what is put before it in the method
resolution order: a mixin that overrides what makes or adds the position bias. A model whose attentions are in no
family, and which go through transformers' attention interface, needs no file.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache


def family_of(kind: type) -> type | None:
    """The mixin of a class of transformers, found by its name or by "file.name"; None when it has no family."""
    if not kind.__module__.startswith("transformers.models."):
        return None
    file = kind.__module__.rpartition(".")[2]
    return table().get(f"{file}.{kind.__name__}") or table().get(kind.__name__)


@cache
def table() -> dict[str, type]:
    """For the name of each class, the mixin of its family."""
    found: dict[str, type] = {}
    for file in pkgutil.iter_modules(__path__):
        found |= importlib.import_module(f"{__name__}.{file.name}").ATTENTIONS
    return found
