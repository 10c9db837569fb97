"""Terms that can be added to attention scores, as data that kernels read, planners inspect and plots draw.

    score(i, j) = scale · q_i·k_j + Σ terms(i, j)

- ``pairs``: terms of one query and one key each, defined by a tile of any queries and keys;
- ``rows``: algorithms over all keys of a query.
"""

from __future__ import annotations

from headway.terms.pairs import (
    ByDistance,
    ByDistancePerKey,
    ByDistancePerQuery,
    DenseBias,
    Difference,
    LowRankBias,
    Pairwise,
    PerKey,
    Term,
    Tile,
    ValuesByDistance,
    raster,
)
from headway.terms.rows import PATH_BLOCK, MixHeads, PathProduct, RowTerm, Scan, from_the_end

AnyTerm = Term | RowTerm | ValuesByDistance

__all__ = [
    "PATH_BLOCK",
    "AnyTerm",
    "ByDistance",
    "ByDistancePerKey",
    "ByDistancePerQuery",
    "DenseBias",
    "Difference",
    "LowRankBias",
    "MixHeads",
    "Pairwise",
    "PathProduct",
    "PerKey",
    "RowTerm",
    "Scan",
    "Term",
    "Tile",
    "ValuesByDistance",
    "from_the_end",
    "raster",
]
