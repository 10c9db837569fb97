"""What the page may ask, checked field by field; nothing unknown is let through."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headway.shapes import HeadwayError
from headway.views import NAMES

BODY = 2**20
"""Bytes of a request at most."""
LIMITS = {
    "text": 100_000,
    "tokens": 1024,
    "long_tokens": 32_768,
    "dim": 256,
    "heads": 16,
    "layers": 8,
    "seed": 2**31 - 1,
    "others": 7,
    "parameters": 10_000_000,
    "steps": 100_000,
}
"""The largest of each; the page shows them."""
OPTIONS = ("by", "change", "dim", "key", "matrix", "position", "positions", "reach", "sample", "seed", "what")
"""What views may be asked for besides, by the page; each view checks its own further."""
_SPEC, _ID, _SLOT = 300, 80, 40
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Fresh:
    """A model that has learned nothing yet.

    Args:
        position: the method and its hyperparameters.
        dim: width.
        heads: in each layer.
        layers: how many.
        seed: of the weights.
    """

    position: str = "rotary"
    dim: int = 64
    heads: int = 4
    layers: int = 2
    seed: int = 0


@dataclass(frozen=True)
class OfRun:
    """A trained model, by the id of its run."""

    id: str


@dataclass(frozen=True)
class OfLive:
    """The model that is training in the studio."""


Model = Fresh | OfRun | OfLive


@dataclass(frozen=True)
class Asked:
    """One view, asked for by the page; the fields are those of a :class:`headway.views.Question`.

    Args:
        view: its name.
        slot: what on the page it is for; a newer request of the same slot replaces an older one.
        results: the id of a comparison, or "".
    """

    view: str
    model: Model = field(default_factory=Fresh)
    text: str = ""
    slot: str = "view"
    layer: int = 0
    head: int = 0
    query: int = -1
    column: int = 0
    others: tuple[Model, ...] = ()
    results: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """A training to start in the studio.

    Args:
        text: what to learn; "" is the built-in text.
        model: its size and method.
        optimizer: adamw, adam or sgd.
        lr: peak learning rate; None is the optimizer's own.
        steps: at most.
    """

    text: str = ""
    model: Fresh = field(default_factory=Fresh)
    optimizer: str = "adamw"
    lr: float | None = None
    steps: int = 1000


def asked(body: object) -> Asked:
    """Read the request for a view.

    Raises:
        HeadwayError: on anything that does not fit, in one sentence.

    >>> asked({"view": "head", "model": {"fresh": {"position": "alibi"}}, "text": "the cat"}).model.position
    'alibi'
    """
    values = _record("a request", body, Asked)
    others = values.get("others", [])
    if not isinstance(others, list) or len(others) > LIMITS["others"]:
        raise HeadwayError(f"expected others as a list of at most {LIMITS['others']} models, got {_shown(others)}")
    return Asked(
        view=_one_of("view", values.get("view"), NAMES),
        model=_model(values.get("model", {"fresh": {}})),
        text=_text("text", values.get("text", ""), LIMITS["text"]),
        slot=_name("slot", values.get("slot", "view"), _SLOT),
        layer=_whole("layer", values.get("layer", 0), 0, 10_000),
        head=_whole("head", values.get("head", 0), 0, 10_000),
        query=_whole("query", values.get("query", -1), -LIMITS["text"], LIMITS["text"]),
        column=_whole("column", values.get("column", 0), 0, 100_000),
        others=tuple(_model(other) for other in others),
        results=_name("results", values["results"], _ID) if values.get("results") else "",
        options=_options(values.get("options", {})),
    )


def training(body: object) -> Training:
    """Read the request for a training.

    Raises:
        HeadwayError: on anything that does not fit, in one sentence.

    >>> training({"text": "to be or not to be", "dim": 32, "optimizer": "sgd"}).model.dim
    32
    """
    names = ("text", "position", "dim", "heads", "layers", "seed", "optimizer", "lr", "steps")
    values = _named("a training", body, names)
    lr = values.get("lr")
    if lr is not None and (isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr <= 10):
        raise HeadwayError(f"expected lr as a number above 0 and at most 10, or null for the usual, got {_shown(lr)}")
    return Training(
        text=_text("text", values.get("text", ""), LIMITS["text"]),
        model=_fresh({name: values[name] for name in Fresh.__dataclass_fields__ if name in values}),
        optimizer=_one_of("optimizer", values.get("optimizer", "adamw"), ("adamw", "adam", "sgd")),
        lr=None if lr is None else float(lr),
        steps=_whole("steps", values.get("steps", 1000), 1, LIMITS["steps"]),
    )


def count(body: object) -> int:
    """Read how many steps to take, from a body that may be empty."""
    return _whole("steps", _named("a step", body, ("steps",)).get("steps", 1), 1, 1000)


def number(name: str, given: str | None, low: int, high: int, default: int) -> int:
    """Read a whole number of an address.

    >>> number("since", "12", 0, 100, 0), number("since", None, 0, 100, 0)
    (12, 0)
    """
    if given is None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,12}", given):
        raise HeadwayError(f"expected {name} as a whole number, got {_shown(given)}")
    return _whole(name, int(given), low, high)


def _model(value: object) -> Model:
    kinds = _named("a model", value, ("fresh", "run", "live"))
    if len(kinds) != 1:
        raise HeadwayError(f"expected a model as one of fresh, run and live, got {_shown(sorted(kinds))}")
    if "fresh" in kinds:
        return _fresh(kinds["fresh"])
    if "run" in kinds:
        return OfRun(_name("run", kinds["run"], _ID))
    if kinds["live"] is not True:
        raise HeadwayError(f"expected live to be true, got {_shown(kinds['live'])}")
    return OfLive()


def _fresh(value: object) -> Fresh:
    given = _record("a fresh model", value, Fresh)
    sizes = {name: _whole(name, given[name], 1, LIMITS[name]) for name in ("dim", "heads", "layers") if name in given}
    return Fresh(
        position=_text("position", given.get("position", "rotary"), _SPEC),
        seed=_whole("seed", given.get("seed", 0), 0, LIMITS["seed"]),
        **sizes,
    )


def _record(what: str, value: object, kind: type) -> dict[str, Any]:
    return _named(what, value, tuple(kind.__dataclass_fields__))  # type: ignore[attr-defined]


def _named(what: str, value: object, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HeadwayError(f"expected {what} as a JSON object, got {_shown(value)}")
    if unknown := sorted(set(value) - set(names)):
        raise HeadwayError(f"expected {what} with {', '.join(names)}, got {_shown(unknown[0])}")
    return value


def _whole(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise HeadwayError(f"expected {name} as a whole number from {low:,} to {high:,}, got {_shown(value)}")
    return value


def _text(name: str, value: object, longest: int) -> str:
    if not isinstance(value, str):
        raise HeadwayError(f"expected {name} as text, got {_shown(value)}")
    if len(value) > longest:
        raise HeadwayError(f"expected {name} of at most {longest:,} characters, got {len(value):,}: take a part of it")
    # a lone half of a surrogate pair is no text: it could not be written as UTF-8
    return value.encode("utf-8", "replace").decode()


def _name(name: str, value: object, longest: int) -> str:
    if not isinstance(value, str) or not re.fullmatch(rf"[\w.-]{{1,{longest}}}", value, re.ASCII):
        raise HeadwayError(f"expected {name} as letters, digits, dots and dashes, got {_shown(value)}")
    return value


def _one_of(name: str, value: object, choices: Sequence[str]) -> str:
    if value not in choices:
        raise HeadwayError(f"expected {name} among {', '.join(choices)}, got {_shown(value)}")
    return str(value)


def _options(value: object) -> dict[str, Any]:
    return {name: _option(name, one) for name, one in _named("options", value, OPTIONS).items()}


def _option(name: str, value: object) -> Any:
    if isinstance(value, str):
        return _text(name, value, _SPEC)
    return _whole(f"option {name}", value, -_MOST, _MOST)


def _shown(value: object) -> str:
    """A value as it may stand in an error's sentence."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
