"""Fused kernels for NVIDIA GPUs: position terms, their gradients and masks in O(queries + keys) memory, deterministic.

    s_ij = scale · q_i·k_j + keys[j] + table(k_pos − q_pos) + rows[i](k_pos − q_pos) + pairs[i, j]
    out_i = Σ_j dropout( softmax_j( s_ij under mask ) ) · v_j

After FlashAttention-2 (Dao 2023, arXiv:2307.08691). New is how terms and their gradients are computed:

- ``forward``: tiles that need a mask, tiles whose bias varies and tiles where the table has saturated are three loops;
  the last adds a scalar per tile. Tiles whose weights decaying terms make negligible are not visited.
- ``backward``: one program per block of keys (dk, dv, dkeys), one per block of queries (dq, drows).
- ``table``: the gradient of a table, summed along diagonals, without atomics.
- ``pairs``: the gradient of a bias per pair, summed over the sequences and heads that share it.

``TRITON_INTERPRET=1``, set before the first import, runs the same kernels on a CPU, slowly, for their tests.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from headway.backends.base import Call
from headway.backends.canonical import canonical, unfit
from headway.backends.triton.environment import INSTALLED, INTERPRETED
from headway.terms import DenseBias

WIDEST = 256
"""The widest head: two tiles of wider keys and values do not fit a multiprocessor's shared memory."""


def refuses(call: Call) -> str | None:
    """See :class:`headway.backends.base.Backend`."""
    if call.device != "cuda" and not (INTERPRETED and call.device == "cpu"):
        return f"its kernels run on NVIDIA GPUs, not on {call.device!r}"
    if not INSTALLED:
        return "triton is not installed"
    if call.q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"its kernels support float16, bfloat16 and float32, not {call.q.dtype}"
    if max(call.q.shape[3], call.v.shape[3]) > WIDEST:
        return f"heads are {max(call.q.shape[3], call.v.shape[3])} wide, and its tiles hold at most {WIDEST}"
    return unfit(call, (DenseBias,))


def describe(call: Call) -> tuple[str, str]:
    """See :class:`headway.backends.base.Backend`."""
    return "exact, deterministic", "O(queries + keys): fused"


def run(call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
    """See :class:`headway.backends.base.Backend`."""
    from headway.backends.triton.attention import attention

    return attention(canonical(call), call.default_positions and call.row is None, call.dropout, call.seed)
