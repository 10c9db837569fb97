"""Tiles of long attention maps: the same values as the whole map pooled, for any level, head and mask."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from headway import Attention, HeadwayError, Window
from headway.inspect import Layer, record
from headway.inspect.tiles import TILE, TileSource
from headway.terms import Pairwise


def recorded(position: str = "rotary", tokens: int = 523, **options: object) -> Layer:
    torch.manual_seed(0)
    attention = Attention(dim=24, heads=6, position=position, **options)
    for parameter in attention.position.parameters():
        torch.nn.init.normal_(parameter)
    with record(attention) as trace, torch.no_grad():
        attention(torch.randn(1, tokens, 24))
    return trace[0]


def pooled(weights: Tensor, seen: Tensor, rows: int, columns: int, how: str) -> Tensor:
    """What the visible pairs of each cell have as mean or largest."""
    assert weights[seen].isfinite().all()
    down, across = -(-weights.shape[0] // rows), -(-weights.shape[1] // columns)
    whole = torch.full((down * rows, across * columns), math.nan)
    whole[: weights.shape[0], : weights.shape[1]] = weights.masked_fill(~seen, math.nan)
    cells = whole.view(down, rows, across, columns).transpose(1, 2).flatten(2)
    if how == "mean":
        return cells.nanmean(-1)
    return cells.nan_to_num(-math.inf).amax(-1).masked_fill(cells.isnan().all(-1), math.nan)


def whole(source: TileSource, level: int, how: str) -> Tensor:
    """A level put together from its tiles' bytes."""
    down, across = source.grid(level)
    strips = []
    for i in range(down):
        tiles = []
        for j in range(across):
            rows, columns, data = source.tile(level, i, j, how)
            tiles.append(torch.from_numpy(np.frombuffer(data, "<f4").reshape(rows, columns).copy()))
        strips.append(torch.cat(tiles, 1))
    return torch.cat(strips)


@pytest.mark.parametrize(
    ("position", "options"),
    [
        ("rotary", {}),
        ("t5", {"kv_heads": 2}),
        ("alibi", {"mask": None}),
        ("dape", {"mask": Window(100)}),
        ("stickbreaking", {}),
    ],
)
def test_tiles_are_the_whole_map_pooled(position: str, options: dict[str, object]) -> None:
    layer = recorded(position, **options)
    visible = layer.seen()
    for head, checked in ((0, ((2, "max"), (2, "mean"), (0, "mean"))), (5, ((1, "max"), (0, "max")))):
        weights = layer.weights()[0, head]
        seen = torch.ones_like(weights, dtype=torch.bool) if visible is None else visible[0, 0]
        source = TileSource(layer, head)
        assert (source.levels, source.size(0), source.grid(0)) == (3, (523, 523), (3, 3))
        torch.testing.assert_close(source.received, weights.sum(0).double(), rtol=0, atol=1e-5)
        for level, how in checked:
            side = 2**level
            expected = pooled(weights, seen, side, side, how) if side > 1 else weights.masked_fill(~seen, math.nan)
            torch.testing.assert_close(whole(source, level, how), expected, rtol=1e-5, atol=1e-7, equal_nan=True)


def test_the_band_is_the_last_tokens_of_each_query() -> None:
    layer = recorded("rotary")
    weights, source = layer.weights()[0, 3], TileSource(layer, 3, reach=50)
    last = torch.full((523, 50), math.nan)
    for i in range(523):
        last[i, : i + 1] = weights[i, max(0, i - 49) : i + 1].flip(0)
    for how in ("max", "mean"):
        expected = pooled(last, ~last.isnan(), 4, 1, how)
        torch.testing.assert_close(source.band[how], expected, rtol=1e-5, atol=1e-7, equal_nan=True)
    assert source.near == pytest.approx(float(last.nansum()) / 523, abs=1e-5)


def test_padding_is_hidden() -> None:
    attention = Attention(dim=24, heads=3, position="rotary")
    pos = torch.arange(300)[None] - 40
    with record(attention) as trace, torch.no_grad():
        attention(torch.randn(1, 300, 24), pos=pos.clamp(min=-1))
    source = TileSource(trace[0], 2)
    assert whole(source, 0, "max")[:40].isnan().all()
    assert whole(source, 0, "max")[:, :40].isnan().all()
    assert source.received[:40].sum() == 0
    torch.testing.assert_close(source.received.sum().item(), 260.0, rtol=0, atol=1e-3)


def spiked(tokens: int, query: int, key: int) -> Layer:
    """A layer of which one query gives nearly all its attention to one key, and all others spread theirs."""
    layer = recorded("none", tokens)
    spike = Pairwise(lambda q, k: 60.0 * ((q[:, :, None] == query) & (k[:, None] == key))[:, None])
    return replace(layer, call=replace(layer.call, q=torch.zeros_like(layer.call.q), terms=(spike,)))


def test_a_planted_spike_is_visible_zoomed_out() -> None:
    source = TileSource(spiked(8192, 8000, 123), 4)
    assert source.levels == 6
    most, mean = source.overview["max"], source.overview["mean"]
    assert most.shape == (TILE, TILE)
    cell = 8000 // 32, 123 // 32
    assert most[cell] > 0.99
    rest = most.clone()
    rest[cell] = 0
    assert rest[8 * 32 // 32 :].nan_to_num().max() < 0.01  # beyond the first queries, which see few keys
    assert mean[cell] < 0.01  # in a mean it drowns
    finer = source.cells(0, 8000 // TILE, 0)
    assert finer[8000 % TILE, 123] > 0.99


def test_a_body_says_its_size_and_its_numbers() -> None:
    source = TileSource(recorded(), 1)
    body, cells = source.body(1, 1, 0), source.cells(1, 1, 0)
    rows, columns = np.frombuffer(body[:8], "<u4").tolist()
    assert (rows, columns) == (6, 256)
    numbers = torch.from_numpy(np.frombuffer(body[8:], "<f4").reshape(rows, columns).copy())
    assert torch.equal(numbers.isnan(), cells.isnan())
    assert torch.equal(numbers.nan_to_num(), cells.nan_to_num())


def test_what_is_not_there_is_said() -> None:
    source = TileSource(recorded(tokens=300), 0)
    with pytest.raises(HeadwayError, match=r"^expected a level from 0 to 1, got 2$"):
        source.tile(2, 0, 0)
    with pytest.raises(HeadwayError, match=r"^expected one of the 2 × 2 tiles of level 0, got \(2, 0\)$"):
        source.tile(0, 2, 0)
    with pytest.raises(HeadwayError, match=r"^expected tiles pooled by max or mean, got 'sum'$"):
        source.tile(0, 0, 0, "sum")
    with pytest.raises(HeadwayError, match=r"^expected head from 0 to 5, got 6$"):
        TileSource(recorded(tokens=3), 6)
    assert TileSource(recorded(tokens=1), 0).tile(0, 0, 0)[:2] == (1, 1)
