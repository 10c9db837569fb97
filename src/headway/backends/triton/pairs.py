"""The gradient of a bias per pair, in the bias's own shape: Σ ds over the sequences and heads that share it.

One program owns a tile of the bias and visits them in order: no atomics, the same bits always.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from headway.backends.triton.tiles import (
    LOG2E,
    bias,
    distances,
    dot,
    hashed_rows,
    kept,
    load_pairs,
    load_rows,
    visible,
    weights,
)


@triton.jit(
    do_not_specialize=["k_blocks", "past", "future", "width", "left", "rows_left", "seed", "seed_high", "least_hash"]
)
@no_type_check
def pair_gradients(
    q, k, v, dout, sq_b, sq_h, sq_n, sk_b, sk_h, sk_n, sv_b, sv_h, sv_n, so_b, so_h, so_n,
    q_pos, k_pos, q_docs, k_docs, keys, table, tails, rows, lse, delta, dpairs,
    pairs, sp_b, sp_h, sp_m, seed, seed_high, least_hash, growth,
    batch, heads, pair_heads, groups, queries, n_keys, k_blocks,
    past, future, width, left, rows_width, rows_left, scale,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ONE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (query blocks · key blocks, sequences · heads of the bias).

    Args:
        dpairs: (B or 1, H or 1, Q, K).
        batch, heads: of q.
        pair_heads: of the bias, 1 or ``heads``.
    """
    owner = tl.program_id(1)
    sequences = tl.num_programs(1) // pair_heads  # of the bias, 1 or ``batch``
    m0, n0 = (tl.program_id(0) // k_blocks) * BM, (tl.program_id(0) % k_blocks) * BN
    m, n = m0 + tl.arange(0, BM), n0 + tl.arange(0, BN)
    shared_heads = heads // pair_heads
    count = (batch // sequences) * shared_heads
    if q_pos is None:
        # no pair of the tile is within reach
        count = tl.where((n0 > m0 + BM - 1 + future) | (n0 + BN - 1 < m0 - past), 0, count)
    acc = tl.zeros((BM, BN), tl.float32)
    for t in range(count):
        b = (owner // pair_heads + t // shared_heads).to(tl.int64)
        h = (owner % pair_heads + t % shared_heads).to(tl.int64)
        hk, bh = h // groups, b * heads + h
        x = load_rows(q + b * sq_b + h * sq_h, m, sq_n, queries, D, BD, True)
        y = load_rows(k + b * sk_b + hk * sk_h, n, sk_n, n_keys, D, BD, True)
        z = load_rows(v + b * sv_b + hk * sv_h, n, sv_n, n_keys, DV, BDV, True)
        w = load_rows(dout + b * so_b + h * so_h, m, so_n, queries, DV, BDV, True)
        q_at, k_at, q_doc, k_doc = q_pos, k_pos, q_docs, k_docs
        if q_pos is not None:
            q_at += b * queries
            k_at += b * n_keys
        if q_docs is not None:
            q_doc += b * queries
            k_doc += b * n_keys
        table_h, tails_h, rows_h = table, tails, rows
        if table is not None:
            table_h += h * width
        if tails is not None:
            tails_h += 2 * h
        if rows is not None:
            rows_h += bh * queries * rows_width
        d = distances(m[:, None], n[None, :], queries, n_keys, q_at, k_at)
        added = load_pairs(pairs + b * sp_b + h * sp_h, m[:, None], n[None, :], sp_m, queries, n_keys)
        seen = visible(d, m[:, None], n[None, :], queries, n_keys, q_at, k_at, q_doc, k_doc, past, future)
        seen = seen & (added != float("-inf"))
        added += bias(d, m[:, None], queries, table_h, tails_h, width, left, rows_h, rows_width, rows_left, ONE)
        if keys is not None:
            added += tl.load(keys + bh * n_keys + n, mask=n < n_keys, other=0.0)[None, :]
        log_sum = tl.load(lse + bh * queries + m, mask=m < queries, other=float("inf"))
        mean = tl.load(delta + bh * queries + m, mask=m < queries, other=0.0)
        p = weights(dot(x, tl.trans(y), PRECISION) * scale + added, LOG2E, -log_sum, 1)
        dp = dot(w, tl.trans(z), PRECISION)
        if seed is not None:
            keep = kept(hashed_rows(seed, seed_high, bh, m)[:, None], n[None, :], least_hash)
            dp = tl.where(keep, dp * growth, 0.0)
        acc += tl.where(seen, p, 0.0) * (dp - mean[:, None])
    at = owner.to(tl.int64) * queries * n_keys + m.to(tl.int64)[:, None] * n_keys + n[None, :]
    tl.store(dpairs + at, acc.to(dpairs.dtype.element_ty), mask=(m < queries)[:, None] & (n < n_keys)[None, :])
