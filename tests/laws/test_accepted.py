"""What each backend accepts is written down (signatures.py), and it is what the backends say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from common import make
from signatures import (
    ACCEPTS,
    COLUMNS,
    DTYPES,
    FEW,
    HEADS,
    HERE,
    KV_HEADS,
    MANY,
    OPTIONS,
    WIDTH,
    absent,
    acted,
    masks,
    representatives,
    table,
)

from headway import attend
from headway.backends import BACKENDS, native
from headway.backends.base import Call
from headway.functional import check, loaded

DTYPE = {name: getattr(torch, name) for name in DTYPES["reference"].split()}


def asked(backend: str, call: Call) -> str | None:
    """What a backend says to a call on the device it is for; one that is absent here is asked as if it were there."""
    answer = loaded(backend).refuses(replace(call, device="cuda" if backend in ("triton", "flex") else "cpu"))
    assert answer is None or answer.strip() == answer != ""
    missing = answer is not None and (
        answer.startswith("it could not be compiled") or answer == "triton is not installed"
    )
    return None if missing else answer


def calls(spec: str, tokens: int, **options: Any) -> dict[str, Call]:
    """Calls with the terms of a method, by their masks' letters."""
    position = make(spec, HEADS, KV_HEADS, WIDTH)
    q, k, terms = acted(position, tokens)
    v = torch.randn(1, KV_HEADS, tokens, WIDTH)
    return {
        letter: check(q, k, v, mask, terms, None, None, 0.3, position.normalise, **options)
        for letter, mask in masks(tokens).items()
    }


@pytest.mark.parametrize(("signature", "spec"), representatives().items(), ids=list(representatives()))
def test_the_table_says_what_the_backends_say(signature: str, spec: str) -> None:
    many, few = calls(spec, MANY), calls(spec, FEW)
    found = {}
    for column in COLUMNS:
        backend, asks = ("sdpa", few) if column == "few" else (column, many)
        found[column] = "".join(letter if asked(backend, asks[letter]) is None else "-" for letter in asks)
    assert found == table().get(signature), f"write into ACCEPTS: {signature}  {'  '.join(found.values())}"


def test_the_table_holds_no_signature_that_no_method_has() -> None:
    assert list(table()) == list(representatives())
    assert ACCEPTS.splitlines()[1].split() == list(COLUMNS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes(backend: str) -> None:
    q = torch.zeros(1, HEADS, MANY, WIDTH)
    call = check(q, q, q, None, (), None, None, 0.3, "softmax")
    found = [
        name
        for name, dtype in DTYPE.items()
        if asked(backend, replace(call, **{n: q.to(dtype) for n in "qkv"})) is None
    ]
    assert found == DTYPES[backend].split()


@pytest.mark.parametrize(("option", "value"), [("softcap", 5.0), ("sinks", torch.zeros(HEADS))])
def test_options(option: str, value: Any) -> None:
    q = torch.zeros(1, HEADS, MANY, WIDTH)
    call = check(q, q, q, None, (), None, None, 0.3, "softmax", **{option: value})
    assert tuple(backend for backend in BACKENDS if asked(backend, call) is None) == OPTIONS[option]


@pytest.mark.parametrize("backend", BACKENDS)
def test_this_machine_runs(backend: str) -> None:
    """Skipped by name where it does not: then the laws of backends say nothing about it here."""
    if (reason := absent(backend)) is not None:
        pytest.skip(reason)
    q = torch.randn(1, 2, 3, 16)
    torch.testing.assert_close(attend(q, q, q, backend=backend), attend(q, q, q, backend="reference"))


def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "unavailable", lambda: "no compiler")
    assert absent("native") == "native could not be compiled: no compiler"
    assert {"tiled", "reference", "sdpa"} <= set(HERE)
