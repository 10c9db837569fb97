"""A term's tiles, of any shape, make up the whole."""

from __future__ import annotations

import itertools
import random

import torch
from common import every_method, make

from headway.terms import Term

Q_POS = torch.tensor([[7, 8, 9, 20, 21, 150, 151], [-1, -1, 0, 1, 2, 3, 4]])
K_POS = torch.tensor([[0, 3, 5, 7, 8, 9, 20, 21, 150, 151], [-1, -1, -1, 0, 1, 2, 3, 4, 5, 6]])


def cuts(length: int) -> list[slice]:
    ends = [0, *sorted(random.sample(range(1, length), 3)), length]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


@every_method("tiles")
def test_tiles_are_the_whole(spec: str) -> None:
    position = make(spec, heads=4, kv_heads=2)
    q, k = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 10, 8)
    marks = position.marked(torch.randn(2, 10, 32), K_POS)
    q, k = position.rotate(q, k, Q_POS, K_POS)
    random.seed(0)
    for term in position.prepare(q, k, Q_POS, K_POS, 0.3, marks)[2]:
        if not isinstance(term, Term):
            continue
        whole = term.tile(Q_POS, K_POS)
        assert whole.shape[-2:] == (7, 10)
        for _ in range(10):
            rows, cols = cuts(7), cuts(10)
            tiles = [torch.cat([term.tile(Q_POS, K_POS, row, col) for col in cols], -1) for row in rows]
            assert torch.equal(torch.cat(tiles, -2), whole)
