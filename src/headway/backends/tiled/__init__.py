"""Attention in plain torch operations, a block of queries at a time: every term, every mask, any device and dtype.

    S = scale · Q_b Kᵀ + terms        one block of queries against the keys it may see
    P = softmax(S),  out_b = P V
    dV += Pᵀ dO_b,  dP = dO_b Vᵀ,  dS = P ∘ (dP − Σ_j P dP),  dQ_b = scale · dS K,  dK += scale · dSᵀ Q_b

A block covers all keys that its queries see, so the softmax is torch's own. Only the inputs are saved for the backward
pass, which recomputes S and P: memory is O(queries + keys). Scores are float32, or float64 for float64.

For consecutive positions, terms by distance are strided views (see :mod:`headway.backends.diagonal_views`). Other
positions, and terms given by a function, are evaluated tile by tile and differentiated by autograd, one block at a
time.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from headway.backends import reference, rows
from headway.backends.base import Call, full_precision
from headway.backends.tiled.anywhere import any_positions
from headway.backends.tiled.steps import unit_steps
from headway.integers import exporting
from headway.terms import ByDistance, PerKey, TablePerKey, TablePerQuery, ValuesByDistance

_KINDS = PerKey | ByDistance | TablePerQuery | TablePerKey | ValuesByDistance
"""Terms with steps of their own; others are evaluated tile by tile."""


def refuses(call: Call) -> str | None:
    """See :class:`headway.backends.base.Backend`."""
    if exporting():
        return "the number of its blocks depends on the length, and an exported program serves every length"
    return rows.refuses(call)


def describe(call: Call) -> tuple[str, str]:
    """See :class:`headway.backends.base.Backend`."""
    return "exact", "O(queries + keys): a block of queries at a time"


def run(call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
    """See :class:`headway.backends.base.Backend`."""
    if 0 in (*call.q.shape[:3], call.k.shape[2]):
        return reference.run(call)
    with full_precision(call.device):
        shift = None if torch.compiler.is_compiling() else _shift(call)
        held = call.whole_rows is not None or call.row is not None or call.dropout > 0
        if shift is None or held or not all(isinstance(term, _KINDS) for term in call.terms):
            return any_positions(call)
        return unit_steps(call, shift)


def _shift(call: Call) -> int | None:
    """Position of the first key minus that of the first query, if both are consecutive; None if that is unknown."""
    if call.default_positions:
        return 0
    if call.q.device.type != "cpu":  # elsewhere reading positions would wait for the device
        return None
    offset = call.k_pos[:, :1] - call.q_pos[:, :1]
    straight = all(bool((pos.diff() == 1).all() and (pos[:, 0] >= 0).all()) for pos in (call.q_pos, call.k_pos))
    return int(offset[0, 0]) if straight and bool((offset == offset[0, 0]).all()) else None
