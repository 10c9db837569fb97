"""The description of a position method as plain values, derived from the method itself, so nothing is written twice.

Where it acts follows from the hooks that change something and the terms it returns; formula and hyperparameters from
its docstrings; parameters from attaching it; its backend from :func:`headway.plans.plan`; the picture from calling
it, see :mod:`headway.catalogue.curves`.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import torch

from headway._version import __version__
from headway.catalogue.curves import method_curves
from headway.plans import plan
from headway.positions import Position, methods
from headway.positions.docstring import Docstring, formula_of
from headway.shapes import HeadShape, HeadwayError
from headway.terms import RowTerm, ValuesByDistance

SHAPE = HeadShape.of(512, heads=8)
"""The widths for parameter counts and plans."""
TOKENS = 4096
"""The length for plans."""


def catalogue(device: str = "cpu", *, pictures: bool = False) -> list[dict[str, Any]]:
    """An entry for every method with its defaults, in the order of :func:`headway.positions.methods`.

    Args:
        device: the device they would run on.
        pictures: whether to include curves.
    """
    return [entry(method(), device, picture=pictures) for method in methods().values()]


def entry(position: Position, device: str = "cpu", *, picture: bool = True) -> dict[str, Any]:
    """Describe one method.

    ``acts`` says where it acts: "embedding"; "rotation" (of queries and keys); "keys" (all of them, at every call);
    "scores"; "rows" (scores, from a whole row or all heads at once); "values"; "marks" (cached with keys); "numbers"
    (other positions in training); "weights" (a normalisation other than softmax); "axes" (coordinates per token).

    Args:
        position: the method, attached or not; it is not changed.
        device: the device it would run on.
        picture: whether to include curves, which calls the method.

    >>> found = entry(methods()["shaw"]())
    >>> found["acts"], found["parameters"][0]
    (['scores', 'values'], {'name': 'key_table', 'shape': [33, 64]})
    """
    method = type(position)
    text, file = Docstring.of(method), inspect.getdoc(inspect.getmodule(method)) or ""
    with torch.device("meta"):
        attached = position.fresh().attach(SHAPE)
    found: dict[str, Any] = {
        "name": method.method_name(),
        "spec": position.spec(),
        "title": method.title or method.__name__,
        "paper": method.paper,
        "summary": method.summary,
        "summary_zh": method.summary_zh,
        "acts": _acts(attached),
        "formula": formula_of(method),
        "derivation": file.partition("\n\n")[2],
        "notes": list(text.notes),
        "hyperparameters": [
            {"name": f.name, "value": getattr(position, f.name), "default": f.default, "meaning": text.args.get(f.name)}
            for f in fields(position)
            if f.init
        ],
        "example": text.example,
        "parameters": [{"name": name, "shape": list(p.shape)} for name, p in attached.named_parameters()],
        "per_layer": method.per_layer,
        "relative": method.relative,
        "variants": list(method.variants),
        "exempt": dict(method.exempt),
        "widths": {"dim": SHAPE.dim, "heads": SHAPE.heads, "tokens": TOKENS},
        "device": device,
        "version": __version__,
        "plan": _plan(position, device),
    }
    return found | ({"picture": method_curves(position)} if picture else {})


def _acts(position: Position) -> list[str]:
    """Where an attached method acts, in the order of attention: which hooks change or return something."""
    with torch.device("meta"):
        pos, x = torch.arange(4)[None], torch.empty(1, 4, SHAPE.dim)
        marks, embedded = position.marked(x, pos), position.embed(x, pos)
        content = torch.empty(1, SHAPE.heads, 4, SHAPE.head_dim)
        q, k = position.rotate(content, content, pos, pos)
        last_q, last_k, terms = position.prepare(q, k, pos, pos, SHAPE.head_dim**-0.5, marks)
    told = {
        "axes": position.axes > 1,
        "numbers": type(position).renumber is not Position.renumber,
        "embedding": embedded is not x,
        "rotation": q is not content or k is not content,
        "marks": marks is not None,
        "keys": last_q is not q or last_k is not k,
        "scores": any(not isinstance(term, RowTerm | ValuesByDistance) for term in terms),
        "rows": any(isinstance(term, RowTerm) for term in terms),
        "weights": position.normalise != "softmax",
        "values": any(isinstance(term, ValuesByDistance) for term in terms),
    }
    return [word for word, true in told.items() if true]


def _plan(position: Position, device: str) -> dict[str, Any]:
    try:
        found = plan(position, tokens=TOKENS, heads=SHAPE.heads, head_dim=SHAPE.head_dim, device=device)
    except HeadwayError as error:
        return {"route": None, "exactness": None, "memory": str(error), "refused": []}
    refused = [{"backend": backend, "reason": reason} for backend, reason in found.refused]
    return {"route": found.route, "exactness": found.exactness, "memory": found.memory, "refused": refused}
