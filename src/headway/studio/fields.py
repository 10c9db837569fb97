"""Requests of the page, checked field by field; unknown fields are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headway.config import OPTIMIZERS, TransformerConfig
from headway.figures.words import LANGUAGES
from headway.schema import (
    Anything,
    Either,
    Exactly,
    Identifier,
    Many,
    Maybe,
    Number,
    Record,
    Schema,
    Whole,
    Words,
    require,
    shown,
)
from headway.settings import described
from headway.shapes import HeadwayError
from headway.views import NAMES
from headway.views import OPTIONS as OF_VIEWS

BODY = 2**20
"""Maximum bytes of a request."""
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
"""The maximum of each; the page shows them."""
PICTURES = {"svg": "image/svg+xml", "png": "image/png", "pdf": "application/pdf"}
"""What a view can be drawn as, and its content type."""
OPTIONS = sorted({"sample"}.union(*OF_VIEWS.values()))
"""Options of views that the page may set; each view checks its own further."""
FRACTIONS = ("temperature", "top_p")
"""Those that need not be whole."""
RATES = ("lr_adam", "lr_sgd")
"""Those that are learning rates."""
_SPEC, _ID, _SLOT = 300, 80, 40
_MOST = 2**31 - 1


SIZES: dict[str, Any] = {"dim": 64, "heads": 4, "layers": 2}
"""Defaults of a fresh model."""
FORM = tuple(
    field for field in described(TransformerConfig) if field.name not in ("vocab", "kind", "backend", "pattern")
)
"""Options of a fresh model that a page may choose."""


@dataclass(frozen=True)
class Fresh:
    """A new, untrained model.

    Args:
        config: its options; the vocabulary is always that of the text.
        seed: seed of the weights.
    """

    config: TransformerConfig = field(default_factory=lambda: TransformerConfig(1, **SIZES))
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
    """One view requested by the page; the fields are those of a :class:`headway.views.Question`.

    Args:
        view: its name.
        slot: its place on the page; a newer request for the same slot replaces an older one.
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
        text: training text; "" is the built-in text.
        model: size and position method.
        optimizer: adamw, adam or sgd.
        lr: peak learning rate; None is the optimizer's own.
        steps: maximum steps.
    """

    text: str = ""
    model: Fresh = field(default_factory=Fresh)
    optimizer: str = "adamw"
    lr: float | None = None
    steps: int = 1000


_MODEL = Record({}, {"fresh": Anything(), "run": Identifier(_ID), "live": Exactly(True)})
_OPTION = Either((Words(longest=_SPEC), Whole(-_MOST, _MOST)))
_ASKED = Record(
    {"view": Words(NAMES)},
    {
        "model": _MODEL,
        "text": Words(longest=LIMITS["text"]),
        "slot": Identifier(_SLOT),
        "layer": Whole(0, 10_000),
        "head": Whole(0, 10_000),
        "query": Whole(-LIMITS["text"], LIMITS["text"]),
        "column": Whole(0, 100_000),
        "others": Many(_MODEL, LIMITS["others"]),
        "results": Words(longest=_ID),
        "options": Record(
            {},
            dict.fromkeys(OPTIONS, _OPTION)
            | dict.fromkeys(FRACTIONS, Number(0, most=_MOST))
            | dict.fromkeys(RATES, Number(above=0, most=10)),
        ),
    },
)
_PICTURE = Record({"format": Words(tuple(PICTURES)), "language": Words(LANGUAGES), **_ASKED.fields}, _ASKED.optional)
_TRAINING: dict[str, Schema] = {
    "text": Words(longest=LIMITS["text"]),
    "optimizer": Words(OPTIMIZERS),
    "lr": Maybe(Number(above=0, most=10)),
    "steps": Whole(1, LIMITS["steps"]),
}


def asked(body: object) -> Asked:
    """Read the request for a view.

    Raises:
        HeadwayError: on anything invalid, in one sentence.

    >>> asked({"view": "head", "model": {"fresh": {"position": "alibi"}}, "text": "the cat"}).model.config.position
    'alibi'
    """
    values = _checked("a request", body, _ASKED)
    return Asked(
        **{
            **values,
            "text": _text(values.get("text", "")),
            "model": _model(values.get("model", {"fresh": {}})),
            "others": tuple(map(_model, values.get("others", ()))),
        }
    )


def picture(body: object) -> tuple[Asked, str, str]:
    """Read the request for a view drawn for print: the view, the kind of file, the language.

    >>> picture({"view": "head", "format": "svg", "language": "zh"})[1:]
    ('svg', 'zh')
    """
    values = _checked("a request", body, _PICTURE)
    own = {name: values[name] for name in values if name not in ("format", "language")}
    return asked(own), values["format"], values["language"]


def training(body: object) -> Training:
    """Read the request for a training.

    Raises:
        HeadwayError: on anything invalid, in one sentence.

    >>> training({"text": "to be or not to be", "dim": 32, "optimizer": "sgd"}).model.config.dim
    32
    """
    of_model: dict[str, Schema] = {name: Anything() for name in ("seed", *(field.name for field in FORM))}
    values = _checked("a training", body, Record({}, {**_TRAINING, **of_model}))
    model = _fresh({name: value for name, value in values.items() if name in of_model})
    own = {name: value for name, value in values.items() if name in _TRAINING}
    return Training(model=model, **{**own, "text": _text(own.get("text", ""))})


def count(body: object) -> int:
    """Read the number of steps from a body that may be empty."""
    steps: int = _checked("a step", body, Record({}, {"steps": Whole(1, 1000)})).get("steps", 1)
    return steps


def number(name: str, given: str | None, low: int, high: int, default: int) -> int:
    """Read a whole number of an address.

    >>> number("since", "12", 0, 100, 0), number("since", None, 0, 100, 0)
    (12, 0)
    """
    if given is None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,12}", given):
        raise HeadwayError(f"expected {name} as a whole number, got {shown(given)}")
    require(int(given), Whole(low, high), name)
    return int(given)


def _model(kinds: Mapping[str, Any]) -> Model:
    if len(kinds) != 1:
        raise HeadwayError(f"expected a model as one of fresh, run and live, got {shown(', '.join(sorted(kinds)))}")
    if "fresh" in kinds:
        return _fresh(kinds["fresh"])
    return OfRun(kinds["run"]) if "run" in kinds else OfLive()


def _fresh(value: object) -> Fresh:
    limits = {name: Whole(1, LIMITS[name]) for name in SIZES} | {"seed": Whole(0, LIMITS["seed"])}
    known: dict[str, Schema] = {field.name: field.schema for field in FORM}
    known |= {"position": Words(longest=_SPEC), **limits}
    given = {**_checked("a fresh model", value, Record({}, known))}
    seed = given.pop("seed", 0)
    return Fresh(TransformerConfig(1, **{**SIZES, **given}), seed)


def _checked(what: str, value: object, schema: Record) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HeadwayError(f"expected {what} as a JSON object, got {shown(value)}")
    require(value, schema, "")
    return value


def _text(value: str) -> str:
    # a lone half of a surrogate pair is no text: it could not be written as UTF-8
    return value.encode("utf-8", "replace").decode()
