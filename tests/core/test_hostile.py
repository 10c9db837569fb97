"""The public API given values of every wrong kind: each works, or is refused in one sentence."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from headway import (
    Attention,
    Causal,
    Dense,
    Documents,
    HeadwayError,
    KVCache,
    LatentAttention,
    Prefix,
    Transformer,
    Window,
    attend,
    plan,
)
from headway.inspect.record import recorded
from headway.masks import Blocks, Chunks, KeyPadding, Strided, from_hf
from headway.positions import extend, methods, parse
from headway.shapes import HeadShape
from headway.terms import (
    ByDistance,
    ByDistancePerKey,
    ByDistancePerQuery,
    DenseBias,
    LowRankBias,
    Pairwise,
    PerKey,
    ValuesByDistance,
)

pytestmark = pytest.mark.usefixtures("unchecked")

HOSTILE: dict[str, Any] = {
    "None": None,
    "text": "x",
    "empty text": "",
    "bytes": b"x",
    "true": True,
    "zero": 0,
    "minus one": -1,
    "minus many": -(10**9),
    "huge": 10**400,
    "2^63": 2**63,
    "half": 0.5,
    "nan": math.nan,
    "inf": math.inf,
    "minus inf": -math.inf,
    "complex": 1j,
    "list": [1, 2],
    "ragged": [[1], [2, 3]],
    "dict": {"a": 1},
    "object": object(),
    "class": Causal,
    "function": len,
    "mask": Causal(),
    "array": np.ones((2, 3)),
    "strings": np.array(["a", "b"]),
    "float tensor": torch.ones(2, 3),
    "bool tensor": torch.ones(2, 3, dtype=torch.bool),
    "int tensor": torch.ones(2, 3, dtype=torch.long),
    "scalar tensor": torch.tensor(2.5),
    "empty tensor": torch.ones(0),
    "five axes": torch.ones(1, 1, 1, 1, 1),
    "complex tensor": torch.ones(2, 3, dtype=torch.complex64),
    "meta": torch.ones(2, 3, device="meta"),
}
SMALL = {"huge", "2^63"}
"""Values that a size may not have."""
X, TOKENS = torch.randn(2, 3, 8), torch.zeros(2, 3, dtype=torch.long)
Q = torch.randn(2, 2, 3, 4)
POS = torch.arange(3)[None]


MASKS = (
    *((Prefix, "length"), (Chunks, "size"), (Documents, "ids"), (Dense, "visible"), (Strided, "stride")),
    *((KeyPadding, "real"), (lambda value: Blocks(value, 4), "visible"), (from_hf, "attention_mask")),
)


def calls() -> Iterator[tuple[str, str, Callable[[Any], Any]]]:
    """What is called, which argument is hostile, and the call with that one."""

    def each(what: str, function: Callable[..., Any], given: dict[str, Any], names: str) -> Iterator[Any]:
        for name in names.split():
            yield what, name, lambda value, name=name: function(**{**given, name: value})

    qkv = {"q": Q, "k": Q, "v": Q}
    yield from each(
        "attend", attend, qkv, "q k v mask terms q_pos k_pos scale normalise softcap sinks dropout seed backend"
    )
    yield "attend", "seed with dropout", lambda value: attend(Q, Q, Q, dropout=0.5, seed=value)
    yield "attend", "term", lambda value: attend(Q, Q, Q, terms=(value,))
    shape = {"dim": 8, "heads": 2}
    names = "dim heads kv_heads head_dim position mask scale context_dim softcap log_scale dropout init depth"
    yield from each("Attention", Attention, shape, names + " backend dtype")
    attention = Attention(8, 2, position="rotary", mask=Causal())
    for name in ("x", "context", "pos", "context_pos", "mask", "terms", "cache", "shared"):
        given = {"x": X} if name != "context_pos" else {"x": X, "context": X}
        yield from each("Attention.forward", lambda x, **rest: attention(x, **rest), given, name)
    yield from each(
        "Attention.forward", lambda **given: Attention(8, 2, position="axial")(X, **given), {}, "coordinates"
    )
    yield from each("Attention.head", attention.head, {}, "index")
    widths = {**shape, "latent_dim": 4, "position_dim": 4}
    names = "dim heads latent_dim query_latent_dim head_dim position_dim value_dim position mask scale softcap"
    yield from each("LatentAttention", LatentAttention, widths, names + " log_scale dropout init depth backend dtype")
    latent = LatentAttention(**widths)
    for name in ("x", "pos", "mask", "terms", "cache"):
        yield from each("LatentAttention.forward", lambda x, **rest: latent(x, **rest), {"x": X}, name)
    yield from each("KVCache", KVCache, {}, "size dtype")
    small = {"vocab": 5, "dim": 8, "layers": 1, "heads": 2}
    names = "vocab dim layers heads kv_heads head_dim hidden position kind norm activation init scale softcap log_scale"
    yield from each("Transformer", Transformer, small, names + " dropout attention_dropout pattern backend dtype")
    names = "latent_dim query_latent_dim position_dim value_dim"
    yield from each("Transformer", Transformer, {**small, "latent_dim": 4, "position_dim": 4}, names)
    yield "Transformer", "config", Transformer.from_config
    for name in Transformer(**small).config.plain():
        yield "Transformer.from_config", name, lambda value, name=name: Transformer.from_config({**small, name: value})
    model, both = Transformer(**small), Transformer(**small, kind="encoder-decoder")
    for name in ("tokens", "pos", "mask", "cache"):
        yield from each("Transformer.forward", lambda tokens, **rest: model(tokens, **rest), {"tokens": TOKENS}, name)
    for name in ("source", "source_pos"):
        given = {"tokens": TOKENS, "source": TOKENS}
        yield from each("Transformer.forward", lambda tokens, **rest: both(tokens, **rest), given, name)
    planned = {"position": parse("rotary"), "tokens": 4, "heads": 2, "head_dim": 4}
    yield from each("plan", plan, planned, "position tokens heads head_dim kv_heads mask")
    yield from each("HeadShape", HeadShape.of, shape, "dim heads kv_heads head_dim")
    yield from each("Window", Window, {"left": 1}, "left right")
    for mask, name in MASKS:
        yield getattr(mask, "__name__", "Blocks"), name, lambda value, mask=mask: attend(Q, Q, Q, mask=mask(value))
    yield "Documents", "key_ids", lambda value: attend(Q, Q, Q, mask=Documents(POS, value))
    yield "&", "left", lambda value: value & Causal()
    yield "|", "right", lambda value: Causal() | value
    for term, given, names in (
        (PerKey, {"bias": torch.ones(1, 2, 3)}, "bias"),
        (ByDistance, {"table": torch.ones(2, 3), "left": 1}, "table left tails row"),
        (ByDistancePerQuery, {"table": torch.ones(1, 2, 3, 3), "left": 1}, "table left"),
        (ByDistancePerKey, {"table": torch.ones(1, 2, 3, 3), "left": 1}, "table left"),
        (ValuesByDistance, {"table": torch.ones(2, 3, 4), "left": 1}, "table left"),
        (DenseBias, {"bias": torch.zeros(3, 3)}, "bias"),
        (LowRankBias, {"q": torch.zeros(1, 1, 3, 2), "k": torch.zeros(1, 1, 3, 2)}, "q k"),
        (Pairwise, {"fn": lambda q, k: torch.zeros(1, 1, 3, 3)}, "fn"),
    ):
        yield from each(term.__name__, lambda term=term, **g: attend(Q, Q, Q, terms=(term(**g),)), given, names)
    yield "Pairwise", "result", lambda value: attend(Q, Q, Q, terms=(Pairwise(lambda q, k: value),))
    yield "ByDistance", "slope", lambda value: ByDistance.linear(value)
    sinusoidal = parse("sinusoidal")
    yield from each("Sinusoidal", lambda x, **rest: sinusoidal(x, **rest), {"x": X}, "x pos")
    yield "attach", "shape", lambda value: parse("rotary").attach(value)
    yield "parse", "spec", parse
    yield "extended", "to", lambda value: extend(parse("yarn"), value)
    yield "extended", "how", lambda value: extend(parse("rotary"), 4096, value, 512)
    yield "extended", "trained", lambda value: extend(parse("rotary"), 4096, "yarn", value)


CALLS = list(calls())


def tell(what: str, argument: str, name: str, call: Callable[[Any], Any], value: Any) -> str | None:
    """What came raw from below, or None when all was well."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(value)
    except HeadwayError as error:
        said = str(error)
        if not said or "\n" in said or len(said) > 600:
            return f"{what}({argument}={name}): no sentence: {said[:200]!r}"
    except Exception as error:
        return f"{what}({argument}={name}): {type(error).__name__}: {str(error)[:120]}"
    return None


@pytest.mark.parametrize("what", dict.fromkeys(what for what, _, _ in CALLS))
def test_every_value_works_or_gets_one_sentence(what: str) -> None:
    raw = [
        tell(what, argument, name, call, value)
        for which, argument, call in CALLS
        if which == what
        for name, value in HOSTILE.items()
        if not (argument == "fn" and callable(value))  # what a user's own function raises is the user's
    ]
    assert not [each for each in raw if each], "\n".join(each for each in raw if each)


SCALARS = [
    None,
    "x",
    True,
    0,
    -1,
    -(10**9),
    10**400,
    2**63,
    0.5,
    math.nan,
    math.inf,
    -math.inf,
    1j,
    [1],
    (),
    (1, "x"),
    b"x",
]


@pytest.mark.parametrize("name", methods())
def test_every_hyperparameter_of_a_method(name: str) -> None:
    """In Python and as text; what is taken is also attached to a small head, and attended with."""
    method, raw = methods()[name], []
    for field in (each for each in fields(method) if each.init):
        for value in SCALARS:
            for how, make in (
                ("Python", lambda field=field, value=value: method(**{field.name: value})),
                ("text", lambda field=field, value=value: parse(f"{name}({field.name}={value!r})")),
            ):
                try:
                    made = make()
                    made.shape or _sized(made) or Attention(8, 2, position=made, mask=Causal())(X)
                except HeadwayError:
                    pass
                except Exception as error:
                    raw.append(f"{how} {name}({field.name}={value!r:.20}): {type(error).__name__}: {str(error)[:100]}")
    assert not raw, "\n".join(raw)


def _sized(position: Any) -> bool:
    """Whether a method asks for more memory than a test has: of sizes there is a law of its own."""
    return any(isinstance(value, int) and value > 10**6 for value in position.hyperparameters().values())


def test_the_table_is_of_every_argument() -> None:
    """Who adds an argument adds it here."""
    known = {(what, argument) for what, argument, _ in CALLS}
    flags = {
        "bias",
        "out_bias",
        "qk_norm",
        "sinks",
        "embed",
        "share_position",
        "post_norm",
        "tie",
        "sandwich_norm",
        "parallel",
        "coordinates",
        "training",
        "absorb",
        "device",
    }
    for what, function in (
        ("attend", attend),
        ("Attention", Attention),
        ("Attention.forward", Attention.forward),
        ("LatentAttention", LatentAttention),
        ("LatentAttention.forward", LatentAttention.forward),
        ("Transformer", Transformer),
        ("Transformer.forward", Transformer.forward),
        ("plan", plan),
    ):
        for name in inspect.signature(function).parameters:
            assert name == "self" or name in flags or (what, name) in known, f"{what}({name})"


@pytest.mark.parametrize("number", [math.nan, math.inf, 3e38, 1e12], ids=str)
@pytest.mark.parametrize("name", methods())
def test_a_model_that_diverged_computes_on(name: str, number: float) -> None:
    """NaN is a result that training detects; NaN gradients too, and views of such a pass."""
    model = Transformer(vocab=17, dim=16, layers=1, heads=2, position=name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter).mul(number).clamp(-3e38, 3e38) if number < math.inf else number)
    tokens = torch.randint(17, (1, 7))
    out = model(tokens)
    out.sum().backward()
    assert out.isnan().all() or not math.isnan(number)
    recorded(model, tokens)[0].summary()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_rotation_that_diverged_gives_nan_and_the_others_are_right(number: float) -> None:
    """A bad number in one head's block, in which the tokens' q and k become NaN."""
    position = parse("comrope").attach(HeadShape.of(16, 2))
    pos, x = torch.arange(5)[None], torch.randn(1, 2, 5, 8)
    sound = position.rotate(x, x, pos, pos)
    with torch.no_grad():
        position.matrix[1, 0, 0, 1] = number
    for got, expected in zip(position.rotate(x, x, pos, pos), sound, strict=True):
        size = position.block
        assert got[:, 1, :, :size].isnan().all()
        torch.testing.assert_close(got[:, 0], expected[:, 0])
        torch.testing.assert_close(got[:, 1, :, size:], expected[:, 1, :, size:])
