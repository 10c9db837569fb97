"""Which attentions of transformers have a position bias of their own, one file for each kind.

A family's file has ``ATTENTIONS``, which names for a class of transformers what is put before it in the method
resolution order: a mixin that overrides what makes or adds the position bias. A model whose attentions are in no
family, and which go through transformers' attention interface, needs no file.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache


@cache
def table() -> dict[str, type]:
    """For the name of each class, the mixin of its family."""
    found: dict[str, type] = {}
    for file in pkgutil.iter_modules(__path__):
        found |= importlib.import_module(f"{__name__}.{file.name}").ATTENTIONS
    return found
