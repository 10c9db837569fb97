"""What a backend sees of a position method: its signature of terms. Methods that share one are one case for a backend.

:data:`ACCEPTS` says what each backend accepts, ``laws/test_accepted.py`` holds it against what the backends say, and
the laws of backends run what is written in it: so no case takes a refusal for a pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import law_marks, specs
from torch import Tensor

from headway.backends import BACKENDS, native, sdpa
from headway.masks import And, Causal, Dense, Documents, Mask, Or, Prefix, Window
from headway.positions import parse
from headway.shapes import HeadShape
from headway.terms import ByDistance

HEADS, KV_HEADS, WIDTH = 4, 2, 16
FEW, MANY = 9, 40

COLUMNS = ("native", "sdpa", "few", "triton", "flex", "tiled", "reference")
ACCEPTS = """
                                                         native  sdpa    few     triton  flex    tiled   reference
no terms                                                 fcwdpt  fcw---  fcwdpt  fcwd--  fcwdpt  fcwdpt  fcwdpt
ByDistance(fixed entry, fixed tails)                     fcwdpt  fcw---  fcwdpt  fcwd--  fcwdpt  fcwdpt  fcwdpt
Scan(inclusive, table)                                   fcwdpt  ------  ------  ------  ------  fcwdpt  fcwdpt
MixHeads(first, first_bias, second)                      fcwdpt  ------  ------  ------  ------  fcwdpt  fcwdpt
MixHeads(first, neighbours, first_bias, second)          fcwdpt  ------  ------  ------  ------  fcwdpt  fcwdpt
ProductPerQuery(x, vectors) + ProductPerKey(x, vectors)  fcwdpt  ------  fcwdpt  ------  fcwdpt  fcwdpt  fcwdpt
ByDistance(table)                                        fcwdpt  ------  fcwdpt  fcwd--  fcwdpt  fcwdpt  fcwdpt
PerKey(bias)                                             fcwdpt  ------  fcwdpt  fcwd--  fcwdpt  fcwdpt  fcwdpt
SlopePerToken(q, k)                                      fcwdpt  ------  fcwdpt  ------  ------  fcwdpt  fcwdpt
Scan(left, right, fixed slope)                           fcwdpt  ------  ------  ------  ------  fcwdpt  fcwdpt
Boost(q, k, fixed basis, fixed rates)                    fcwdpt  ------  fcwdpt  ------  ------  fcwdpt  fcwdpt
ProductPerQuery(x, vectors)                              fcwdpt  ------  fcwdpt  fcwd--  fcwdpt  fcwdpt  fcwdpt
PathProduct(q, k, w, beta)                               fcwdpt  ------  ------  ------  ------  fcwdpt  fcwdpt
no terms, wider heads                                    fcwdpt  fcw---  fcwdpt  fcwd--  fcwdpt  fcwdpt  fcwdpt
ByDistance(fixed table)                                  fcwdpt  fcw---  fcwdpt  fcwd--  fcwdpt  fcwdpt  fcwdpt
ProductPerQuery(x, vectors) + ValuesByDistance(table)    fcwdpt  ------  ------  ------  ------  fcwdpt  fcwdpt
no terms, stickbreaking                                  fcwdpt  ------  ------  ------  ------  fcwdpt  fcwdpt
ByDistance(table, in rows)                               fcwdpt  ------  fcwdpt  fc-d--  ------  fcwdpt  fcwdpt
PerKey(bias) + ProductPerQuery(x, vectors)               fcwdpt  ------  fcwdpt  fcwd--  fcwdpt  fcwdpt  fcwdpt
ChannelDecay(q, k, own, c)                               fcwdpt  ------  fcwdpt  ------  ------  fcwdpt  fcwdpt
ByDistance(fixed entry, tails)                           fcwdpt  ------  fcwdpt  fcwd--  fcwdpt  fcwdpt  fcwdpt
CurveByDistance(level, rate, fixed knots, base, slope)   fcwdpt  ------  fcwdpt  ------  ------  fcwdpt  fcwdpt
SlopePerToken(q)                                         fcwdpt  ------  fcwdpt  ------  ------  fcwdpt  fcwdpt
SlopePerToken(k)                                         fcwdpt  ------  fcwdpt  ------  ------  fcwdpt  fcwdpt
PathProduct(q, k, w, beta) + PerKey(bias)                fcwdpt  ------  ------  ------  ------  fcwdpt  fcwdpt
no terms, stickbreaking+remainder                        fcwdpt  ------  ------  ------  ------  fcwdpt  fcwdpt
ChannelDecay(q, k, own, c) + PerKey(bias)                fcwdpt  ------  fcwdpt  ------  ------  fcwdpt  fcwdpt
"""
"""The masks with which a backend accepts the terms of a signature: f full, c causal, w window, d causal and documents,
p prefix, t a tensor. "few" is sdpa with few queries. triton and flex are asked about a GPU, the others about a CPU."""

DTYPES = {
    "native": "float32 bfloat16 float16 float64",
    "sdpa": "float32 bfloat16 float16 float64",
    "triton": "float32 bfloat16 float16",
    "flex": "float32 bfloat16 float16",
    "tiled": "float32 bfloat16 float16 float64",
    "reference": "float32 bfloat16 float16 float64",
}
"""The dtypes of q, k and v that a backend accepts."""

OPTIONS = dict.fromkeys(("softcap", "sinks"), ("native", "tiled", "reference"))
"""The backends that accept an option of ``attend``."""


@functools.cache
def signature(spec: str, tokens: int = FEW, start: int = 0) -> str:
    """What a backend sees of a method: its terms, what each holds and needs gradients of, how scores become weights,
    and whether heads become wider. Widths of tables are numbers to a backend, and do not count.

    Args:
        tokens: how many there are, for a method whose terms change with them.
        start: the first position.
    """
    # as it starts: FIRE's L is learned, and decides what its term is
    position = parse(spec).attach(HeadShape.of(HEADS * WIDTH, HEADS, KV_HEADS, WIDTH))
    q, _, terms = acted(position, tokens, start)
    words = [" + ".join(_kind(term) for term in terms) or "no terms"]
    words += [position.normalise] if position.normalise != "softmax" else []
    words += ["wider heads"] if q.shape[-1] != WIDTH else []
    return ", ".join(words)


def acted(position: Any, tokens: int, start: int = 0) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """What a method of this module's widths hands to attention: queries, keys, terms."""
    pos = torch.arange(start, start + tokens)[None]
    q, k = (torch.randn(1, heads, tokens, WIDTH, requires_grad=True) for heads in (HEADS, KV_HEADS))
    marks = position.marked(torch.randn(1, tokens, HEADS * WIDTH, requires_grad=True), pos)
    q, k = position.rotate(q, k, pos, pos)
    handed: tuple[Tensor, Tensor, tuple[Any, ...]] = position.prepare(q, k, pos, pos, 0.3, marks)
    return handed


def _kind(term: Any) -> str:
    """Its class and what it holds besides indices; "fixed" means that it needs no gradient."""
    held = []
    for name, value in vars(term).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            single = isinstance(term, ByDistance) and term.tails is not None and value.shape[1] == 1
            moves = value.requires_grad or name == "vectors"  # which few tokens may compute in another order
            held.append(("" if moves else "fixed ") + ("entry" if single else name))
            if name == "first" and value.shape[-1] > 1:
                held.append("neighbours")
        elif name == "row" and value is not None:
            held.append("in rows")
        elif value is True:
            held.append(name)
    return f"{type(term).__name__}({', '.join(held)})"


@functools.cache
def representatives() -> dict[str, str]:
    """Every signature, with the first method that has it."""
    with torch.random.fork_rng():
        found: dict[str, str] = {}
        for spec in specs():
            found.setdefault(signature(spec), spec)
        return found


def masks(tokens: int) -> dict[str, Mask | None]:
    """A mask of each kind, by the letter that :data:`ACCEPTS` has for it."""
    return {
        "f": None,
        "c": Causal(),
        "w": Window(3),
        "d": Causal() & Documents(torch.zeros(1, tokens, dtype=torch.long)),
        "p": Causal() | Prefix(2),
        "t": Dense(torch.ones(1, 1, tokens, tokens, dtype=torch.bool)),
    }


def letter(mask: Mask | None) -> str:
    """Which of these kinds a mask is of."""
    match mask:
        case None:
            return "f"
        case Causal():
            return "c"
        case Window():
            return "w"
        case Dense():
            return "t"
        case And(Causal(), Documents()):
            return "d"
        case Or(Causal(), Prefix()):
            return "p"
    raise AssertionError(f"the table of what backends accept names no mask such as {mask}")


@functools.cache
def table() -> dict[str, dict[str, str]]:
    """:data:`ACCEPTS` as it is read: by signature, the letters of each column."""
    rows = [line.split() for line in ACCEPTS.splitlines()[2:]]
    cells = len(COLUMNS)
    return {" ".join(row[:-cells]): dict(zip(COLUMNS, row[-cells:], strict=True)) for row in rows}


def absent(backend: str) -> str | None:
    """Why this machine cannot run a backend on its CPU, or None when it can."""
    if backend == "native":
        problem = native.unavailable()
        return None if problem is None else f"native could not be compiled: {problem}"
    return f"{backend} runs on NVIDIA GPUs" if backend in ("triton", "flex") else None


HERE = tuple(backend for backend in BACKENDS if absent(backend) is None)
"""The backends that this machine runs; ``laws/test_accepted.py`` names the others."""


def accepts(spec: str, backend: str, mask: Mask | None, queries: int, keys: int | None = None, start: int = 0) -> bool:
    """Whether a backend takes a method's terms with such a mask and explicit positions: what the table says.

    Args:
        queries: how many there are.
        keys: how many there are; default as many as queries.
        start: the first key's position.
    """
    row = table()[signature(spec, keys or queries, start)]
    if backend == "sdpa":  # with explicit positions it takes few queries or none
        return queries <= sdpa.FEW and letter(mask) in row["few"]
    return letter(mask) in row[backend]


def every_signature(law: str, where: Callable[[str], bool] = lambda spec: True) -> pytest.MarkDecorator:
    """Parametrise a test over one method of each signature, and over all others in the long proofs; only those
    ``where`` that holds.
    """
    cases = [pytest.param(spec, marks=_marks(law, spec), id=spec) for spec in specs() if where(spec)]
    return pytest.mark.parametrize("spec", cases)


def every_pair(law: str, queries: int, *masks: Mask | None, start: int = 0) -> pytest.MarkDecorator:
    """Parametrise a test over methods as :func:`every_signature` does, times masks, times the backends of this machine
    that accept both: ``spec``, ``backend`` and ``mask``.
    """
    cases = [
        pytest.param(spec, backend, mask, marks=_marks(law, spec), id=f"{spec}-{backend}-{letter(mask)}")
        for spec in specs()
        for mask in masks
        for backend in HERE
        if accepts(spec, backend, mask, queries, start=start)
    ]
    return pytest.mark.parametrize(("spec", "backend", "mask"), cases)


@functools.cache
def _marks(law: str, spec: str) -> list[pytest.MarkDecorator]:
    """A signature's first method speaks for all that share it; the others are proofs."""
    alike = [other for other in specs() if signature(other) == signature(spec)]
    if alike[0] == spec:
        return law_marks(law, spec, sorted({other.partition("(")[0] for other in alike}))
    return [*law_marks(law, spec), pytest.mark.slow]
