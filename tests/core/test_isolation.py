"""Which rows see a token of NaN: counted behind masks that are ranges of positions, else found by attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from headway import attend
from headway.backends import reference
from headway.backends.base import Call
from headway.backends.isolation import countable, counted
from headway.functional import check
from headway.masks import Before, Causal, Documents, Window
from headway.terms import DenseBias

QUERIES, KEYS = 7, 11


def ids(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape)


def documents(batch: int) -> Documents:
    # some queries are of a document that no key is of
    return Documents(2**40 * ids(-2, 3, batch, QUERIES), 2**40 * ids(-2, 2, batch, KEYS))


MASKS = {
    "none": lambda: None,
    "causal": Causal,
    "before": Before,
    "window": lambda: Window(2, 1),
    "documents": lambda: documents(2),
    "both": lambda: Causal() & documents(1) & Window(3),
}


@pytest.mark.parametrize("positions", ["default", "one row", "rows"])
@pytest.mark.parametrize("mask", MASKS)
def test_rows_are_counted_as_the_mask_shows_them(mask: str, positions: str) -> None:
    rows = 1 if positions == "one row" else 2
    for _ in range(20):
        q, k = torch.zeros(2, 4, QUERIES, 8), torch.zeros(2, 2, KEYS, 8)
        at: tuple[Any, Any] = (ids(-1, 9, rows, QUERIES), ids(-1, 9, rows, KEYS))
        if positions == "default":
            at = torch.arange(QUERIES)[None], torch.arange(KEYS)[None]
        call = check(q, k, k, MASKS[mask](), (), *at, 1.0, "softmax")
        call = replace(call, default_positions=positions == "default")
        assert countable(call)
        bad = torch.rand(2, 2, KEYS) < 0.2
        seen = call.visible()
        seen = torch.ones(1, 1, QUERIES, KEYS, dtype=torch.bool) if seen is None else seen
        sees_bad, sees = counted(call, bad)
        assert torch.equal(sees_bad, (seen & bad.repeat_interleave(2, 1)[:, :, None]).any(-1).expand(2, 4, -1))
        assert torch.equal(sees, seen.any(-1).expand(2, 4, -1))


@pytest.mark.parametrize("keys", [0, 5])
def test_nothing_to_count(keys: int) -> None:
    q, k = torch.zeros(1, 1, 0 if keys else 5, 8), torch.zeros(1, 1, keys, 8)
    pos = ids(0, 5, 1, q.shape[2]), ids(0, 5, 1, keys)
    call = check(q, k, k, Documents(pos[0], pos[1]), (), *pos, 1.0, "softmax")
    assert not any(found.any() for found in counted(call, torch.ones(1, 1, keys, dtype=torch.bool)))


@pytest.mark.parametrize("backend", ["tiled", "reference"])
@pytest.mark.parametrize("hiding", ["bias", "mask"])
def test_masks_by_pair_are_attended_to(hiding: str, backend: str) -> None:
    """Minus infinity hides a NaN as a mask does; and dropout hides none."""
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    seen = (torch.arange(6) < 3) | (torch.arange(6)[:, None] > 3)
    terms = (DenseBias(torch.zeros(6, 6).masked_fill(~seen, -torch.inf)),) if hiding == "bias" else ()
    mask = None if hiding == "bias" else seen
    given: Any = {"mask": mask, "terms": terms, "backend": backend, "dropout": 0.9, "seed": 3}
    clean = attend(q, k, v, **given)
    for x in (k, v):
        x[:, :, 4] = torch.nan
    got = attend(q, k, v, **given)
    assert torch.equal(got[:, :, :4], clean[:, :, :4])
    assert got[:, :, 4:].isnan().all()


def test_a_range_of_positions_runs_no_second_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = reference.run

    def counting(call: Call) -> Tensor:
        calls.append(call)
        return run(call)

    monkeypatch.setattr(reference, "run", counting)
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    k[:, :, 5] = torch.nan
    mask = Window(2) & Documents(torch.arange(6)[None] // 3)
    out = attend(q, k, v, mask=mask, backend="reference")
    assert len(calls) == 1
    assert out[:, :, 5].isnan().all()
    assert out[:, :, :5].isfinite().all()
