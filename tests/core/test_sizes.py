"""The size of a model is known before anything is allocated, whatever its text or file says."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from typing import Any

import pytest
import torch

from headway import sizes
from headway.memory import peak_memory
from headway.positions import LARGEST, methods, parse
from headway.shapes import HeadwayError
from headway.sizes import Size, check_size, gigabytes
from headway.transformer import Transformer

SMALL: dict[str, Any] = {"vocab": 50, "dim": 64, "heads": 4, "layers": 2}
MOST = 2 * 10**9
SPECS = (
    "swin(height=40, width=40)",
    "swinv2(height=40, width=40, hidden=64)",
    "shaw(clip=3000)",
    "cope(positions=2000)",
    "dape(width=300)",
    "dapev2(bias='kerple(clip=50)', width=100, kernel=5)",
    "randomized(method='learned(max_length=100000)', longest=100000)",
    "t5(max_distance=100000)",
    "deberta(clip=3000)",
    "path(rank=0, conv=4)",
)


def config(position: str = "rotary", **changes: Any) -> dict[str, Any]:
    return {**SMALL, "position": position, **changes}


@pytest.mark.parametrize("position", [*methods(), *SPECS])
def test_parameters_and_weights_are_those_of_the_model(position: str) -> None:
    model = Transformer(**config(position))
    found = check_size(config(position))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    tensors = [*model.parameters(), *model.buffers()]
    assert found.weights == sum(t.numel() * t.element_size() for t in tensors)
    state = 3 * sum(p.numel() * p.element_size() for p in model.parameters())
    assert check_size(config(position), training=True).weights == found.weights + state
    assert all(p.device.type == "cpu" for p in model.parameters())


# each method trained by one backend and read by another; the other halves are proofs
@pytest.mark.parametrize(
    ("backend", "training"),
    [
        ("reference", True),
        ("tiled", False),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("reference", False), ("tiled", True))),
    ],
)
@pytest.mark.parametrize("position", SPECS)
def test_what_a_pass_holds_is_what_it_holds_in_earnest(position: str, backend: str, training: bool) -> None:
    wanted = config(position, backend=backend)
    found = check_size(wanted, tokens=150, batch=2, training=training)
    model, ids = Transformer(**wanted).train(training), torch.zeros(2, 150, dtype=torch.long)
    with torch.set_grad_enabled(training):
        real = peak_memory(lambda: model(ids).log_softmax(-1) if training else model(ids))
    # within a third: kernels of their own hold a little more or less than the operations that torch names
    assert 0.75 * real < found.held - found.weights < 1.5 * real


@pytest.mark.parametrize(
    ("backend", "position"),
    [
        *(("tiled", name) for name in ("rotary", "dape", "fire", "inkling", "path", "cope", "stickbreaking")),
        *(("reference", name) for name in ("rotary", "cope")),
        *(
            pytest.param("reference", name, marks=pytest.mark.slow)
            for name in ("dape", "fire", "inkling", "path", "stickbreaking")
        ),
    ],
)
def test_the_quick_bound_of_ordinary_methods_is_above_what_is_measured(
    position: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [({"dim": 128, "heads": 8, "layers": 3}, 200, True), ({"dim": 64, "heads": 8}, 400, False)]
    for changes, tokens, training in cases:
        wanted = config(position, backend=backend, **changes)
        quick = check_size(wanted, tokens=tokens, batch=2, training=training)
        with monkeypatch.context() as patch:
            patch.setattr(sizes, "_ordinary", lambda *_: None)
            measured = check_size(wanted, tokens=tokens, batch=2, training=training)
        assert measured.held <= quick.held
        assert measured.parameters == quick.parameters


def test_layers_tokens_and_sequences_are_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = config("learned(max_length=1000)", layers=7, backend="tiled")
    guessed = check_size(wanted, tokens=700, batch=5, training=True)
    monkeypatch.setattr(sizes, "_SMALL", (7, 700, 5))
    measured = check_size(wanted, tokens=700, batch=5, training=True)
    assert (guessed.parameters, guessed.weights) == (measured.parameters, measured.weights)
    assert 0.9 * measured.held < guessed.held < 1.3 * measured.held


@pytest.mark.parametrize("name", methods())
def test_no_hyperparameter_of_any_method_allocates_what_is_not_counted(name: str) -> None:
    method = methods()[name]
    for field in fields(method):
        if not field.init or type(field.default) is not int:
            continue
        for value in (20_001, LARGEST):
            with contextlib.suppress(HeadwayError):
                found = check_size(config(f"{name}({field.name}={value})"), tokens=100, training=True, most=MOST)
                assert found.held <= MOST


@pytest.mark.parametrize(
    "wanted",
    [
        config("swin(height=4096, width=4096)"),
        config("randomized(method='swin(height=4096, width=4096)')"),
        config("dape(bias='swin(height=5000, width=5000)')"),
        config("dynamicbias(depth=2147483647)"),
        config("dynamicbias(depth=3000)"),
        config("path(conv=100000)"),
        config("dape(width=1000000)"),
        config(dim=60_000),
        config(dim=10**9),
        config(dim=2**40, heads=1),
        config(dim=2**62, heads=2**31),
        config(head_dim=10**9),
        config("fope", head_dim=2 * 10**8),
        config(hidden=10**12),
        config(vocab=10**9),
        config(hidden=260_000, layers=1000),
        config(heads=64, head_dim=60_000),
        config(layers=1024, dim=4096),
        config(kind="encoder-decoder", dim=8192),
    ],
    ids=lambda wanted: " ".join(f"{k}={v}" for k, v in wanted.items() if SMALL.get(k) != v),
)
def test_what_is_too_large_is_refused_in_one_sentence(wanted: dict[str, Any]) -> None:
    with pytest.raises(HeadwayError, match=r"expected (a model|sizes|[a-z_]+ to be a whole number)[^\n]*"):
        check_size(wanted, most=MOST)


def test_what_is_refused_says_how_much_is_allowed() -> None:
    sentence = "expected a model of at most 10,000,000 parameters, got more: take smaller sizes"
    for position in ("learned(max_length=1000000)", "learned(max_length=200000)"):
        with pytest.raises(HeadwayError, match=f"^{sentence}$"):
            check_size(config(position), parameters=10_000_000)
    with pytest.raises(HeadwayError, match=r"^expected a model and a text that take at most 2\.0 GB of memory, got "):
        check_size(config(), batch=10**9, most=MOST)
    with pytest.raises(HeadwayError, match=r"got about 1\d\.\d GB: take smaller sizes$"):
        check_size(config("cope(positions=100)", layers=12), tokens=2048, batch=64, training=True, most=MOST)
    with pytest.raises(HeadwayError, match=r"^expected layers to be a whole number from 1 to 1,024, got 100000$"):
        check_size(config(layers=100_000))
    with pytest.raises(HeadwayError, match=r"^expected batch to be a whole number from 1 to "):
        check_size(config(), batch=10**400)
    with pytest.raises(HeadwayError, match=r"^expected heads to divide dim"):
        check_size(config(heads=5))
    with pytest.raises(HeadwayError, match=r"^expected dim to be a whole number from 1 to 65,536, got '64'$"):
        check_size(config(dim="64"))
    with pytest.raises(HeadwayError, match=r"^expected kerple clip of at most 2,147,483,647, got 99999"):
        parse(f"kerple(clip={'9' * 300})")


def test_sizes_that_no_text_reaches_are_no_matter() -> None:
    assert check_size(config("kerple(clip=2147483647)"), tokens=100, most=MOST).held < 10**7
    assert check_size(config("randomized(longest=2147483647)"), tokens=100, most=MOST).held < 10**8
    with pytest.raises(HeadwayError, match="of memory"):  # drawn from only while training
        check_size(config("randomized(longest=2147483647)"), training=True, most=MOST)


def test_nobody_is_refused_for_a_bound() -> None:
    wanted = config("rotary", dim=64, heads=4, layers=2)
    assert sizes._measured(wanted, 128, 1, False, 2**40, exact=False)[2] > 2 * 10**7  # what is quick to say
    found = check_size(wanted, tokens=32_768, most=2 * 10**9)
    assert found.held < 2 * 10**8
    with pytest.raises(HeadwayError, match="of memory, got about 1"):
        check_size(wanted, tokens=32_768, most=10**8)


def test_other_kinds_of_models_are_counted() -> None:
    both = check_size(config(kind="encoder-decoder", activation="swiglu", norm="layer", bias=True, tie=False))
    assert both.parameters > check_size(config()).parameters
    assert isinstance(check_size(config(layers=1)), Size)
    assert gigabytes(2_147_000_000) == "2.1 GB"
