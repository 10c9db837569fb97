"""Masks and terms over other tokens, heads or devices: what each tensor of theirs becomes, as its axes' letters say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from headway.masks import And, Dense, Documents, Mask, Or
from headway.shapes import contents
from headway.terms import AnyTerm, MixHeads

Change = Callable[[Tensor, str], Tensor]
Part = TypeVar("Part", bound="AnyTerm | Mask")


def changed(part: Part, change: Change) -> Part:
    """A mask or term with every tensor changed, each given with its axes, see :attr:`headway.terms.Term.axes`.

    >>> import torch
    >>> from headway.terms import PerKey
    >>> changed(PerKey(torch.zeros(1, 1, 4)), lambda x, axes: x.narrow(axes.index("k"), 0, 2)).bias.shape
    torch.Size([1, 1, 2])
    """
    if isinstance(part, And | Or):
        return type(part)(changed(part.first, change), changed(part.second, change))
    if not is_dataclass(part):
        return part
    found: Any = part
    if isinstance(found, Documents) and found.key_ids is None:
        found = replace(found, key_ids=found.ids)
    if isinstance(found, Dense) and found.visible.ndim == 2:
        found = replace(found, visible=found.visible[None, None])
    new: dict[str, Any] = {
        name: change(x, found.axes.get(name, "")) for name, x in contents(found).items() if isinstance(x, Tensor)
    }
    if isinstance(found, MixHeads):
        new["bias"] = tuple(changed(term, change) for term in found.bias)
    made: Part = replace(found, **new)
    return made
