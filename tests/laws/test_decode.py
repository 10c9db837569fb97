"""Decoding with a cache, in pieces of any length, gives what one pass gives."""

from __future__ import annotations

import pytest
import torch
from common import attention, close, every_method, every_place, transformer

from headway import Causal, KVCache, Window

PIECES = ([1] * 9, [4, 1, 1, 1, 1, 1], [3, 2, 4], [9])
SLOW = pytest.mark.slow  # the product is a proof: these go the same ways
PADS = torch.tensor([[3], [0]])


def sizes(spec: str) -> tuple[int | None, ...]:
    """Sizes of a cache: growing, and with more room than tokens."""
    return (None,) if spec == "stickbreaking(remainder=True)" else (None, 13)


@every_method("decode", layers=True)
@pytest.mark.parametrize(
    ("heads", "mask"),
    [
        pytest.param((6, 2), Causal(), id="gqa-causal"),
        pytest.param((3, 1), Window(4), id="mqa-window"),
        pytest.param((6, 6), Causal(), id="mha-causal", marks=SLOW),
        pytest.param((6, 6), Window(4), id="mha-window", marks=SLOW),
        pytest.param((6, 2), Window(4), id="gqa-window", marks=SLOW),
        pytest.param((3, 1), Causal(), id="mqa-causal", marks=SLOW),
    ],
)
def test_attention(spec: str, heads: tuple[int, int], mask: object) -> None:
    module = attention(spec, *heads, mask=mask)
    x = torch.randn(2, 9, 8 * heads[0]).double()
    whole = module(x)
    for pieces, size in ((one, room) for room in sizes(spec) for one in (PIECES[1:3] if room else PIECES)):
        cache = KVCache(size)
        close(torch.cat([module(piece, cache=cache) for piece in x.split(pieces, 1)], 1), whole)
        assert len(cache) == 9


@every_method("decode", variants=False, layers=True)
def test_attention_with_left_padding(spec: str) -> None:
    module = attention(spec, mask=Causal())
    x = torch.randn(2, 9, 48).double()
    pos = (torch.arange(9) - PADS).clamp(min=-1)
    whole = module(x, pos=pos)
    # with 3 the first sequence begins with nothing but padding
    for prefill, size in ((one, room) for room in sizes(spec) for one in ((3,) if room else (3, 5))):
        cache = KVCache(size)
        out = [module(x[:, :prefill], pos=pos[:, :prefill], cache=cache)]
        out += [module(x[:, i : i + 1], cache=cache) for i in range(prefill, 9)]
        close(torch.cat(out, 1), whole)


@every_place("decode", models=True)
@pytest.mark.parametrize("kv_heads", [pytest.param(3, id="mha"), pytest.param(1, id="mqa", marks=SLOW)])
def test_transformer(spec: str, kv_heads: int) -> None:
    model = transformer(spec, kv_heads=kv_heads)
    tokens = torch.randint(17, (2, 9))
    whole = model(tokens)
    for pieces in PIECES:
        cache = model.new_cache()
        close(torch.cat([model(piece, cache=cache) for piece in tokens.split(pieces, 1)], 1), whole)


@every_place("decode", models=True)
def test_transformer_with_left_padding(spec: str) -> None:
    model = transformer(spec)
    tokens = torch.randint(17, (2, 9))
    pos = (torch.arange(9) - PADS).clamp(min=-1)
    cache = model.new_cache()
    out = [model(tokens[:, :5], pos=pos[:, :5], cache=cache)]
    out += [model(tokens[:, i : i + 1], cache=cache) for i in range(5, 9)]
    out = torch.cat(out, 1)
    close(out[0, 3:], model(tokens[:1, 3:])[0])
    close(out[1], model(tokens[1:])[0])
