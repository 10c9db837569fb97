"""Terms that can be added to attention scores, as data that kernels read, planners inspect and plots draw.

    score(i, j) = scale · q_i·k_j + Σ terms(i, j)

- ``pairs``: terms of one query and one key each, defined by a tile of any queries and keys;
- ``products``: other products of a query and a key than q·k;
- ``tokens``: pair terms with numbers for each token, by distance;
- ``rows``: algorithms over all keys of a query.
"""

from __future__ import annotations

from headway.terms.pairs import (
    ByDistance,
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
from headway.terms.products import Boost, ChannelDecay
from headway.terms.rows import PATH_BLOCK, MixHeads, PathProduct, RowTerm, Scan, finite, from_the_end
from headway.terms.tokens import (
    ByDistancePerKey,
    ByDistancePerQuery,
    CurveByDistance,
    ProductPerKey,
    ProductPerQuery,
    SlopePerToken,
    TablePerKey,
    TablePerQuery,
)

AnyTerm = Term | RowTerm | ValuesByDistance

__all__ = [
    "PATH_BLOCK",
    "AnyTerm",
    "Boost",
    "ByDistance",
    "ByDistancePerKey",
    "ByDistancePerQuery",
    "ChannelDecay",
    "CurveByDistance",
    "DenseBias",
    "Difference",
    "LowRankBias",
    "MixHeads",
    "Pairwise",
    "PathProduct",
    "PerKey",
    "ProductPerKey",
    "ProductPerQuery",
    "RowTerm",
    "Scan",
    "SlopePerToken",
    "TablePerKey",
    "TablePerQuery",
    "Term",
    "Tile",
    "ValuesByDistance",
    "finite",
    "from_the_end",
    "raster",
]
