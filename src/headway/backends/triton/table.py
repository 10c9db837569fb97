"""The gradient of a table by distance, Σ ds over all pairs of a distance, without atomics.

If positions are indices, all tiles (I, I + Δ) of a head have the same distances in the same cells. So one program per Δ
walks down that diagonal of tiles, over batch and I, and adds ds into one tile of registers; the tile's diagonals are
summed once, at the end (``unskew``). Only tiles that touch the table's inner entries are visited: beyond its ends the
gradient is a sum over rows, which ``backward_queries`` computes anyway.

Other positions have no such order. ``entries`` compares every pair with every entry, for a few queries and entries at a
time: slower, but as exact and as reproducible.
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
    trim_by_position,
    visible,
    weights,
)


@triton.jit(
    do_not_specialize=[
        "diagonals",
        "nearest",
        "past",
        "future",
        "width",
        "left",
        "rows_left",
        "seed",
        "seed_high",
        "least_hash",
    ]
)
@no_type_check
def walk(
    q, k, v, dout, sq_b, sq_h, sq_n, sk_b, sk_h, sk_n, sv_b, sv_h, sv_n, so_b, so_h, so_n,
    q_docs, k_docs, keys, table, tails, rows, lse, delta, found,
    pairs, sp_b, sp_h, sp_m, seed, seed_high, least_hash, growth,
    batch, heads, groups, queries, n_keys, diagonals, nearest,
    past, future, width, left, rows_width, rows_left, scale,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Σ ds of the tiles (I, I + Δ), as (H, diagonals, SPLITS, BLOCK, BLOCK). Grid: (diagonals · SPLITS, H).

    Args:
        nearest: Δ of the first diagonal.
    """
    split, diagonal = tl.program_id(0) % SPLITS, tl.program_id(0) // SPLITS
    h = tl.program_id(1).to(tl.int64)
    hk = h // groups
    step = nearest + diagonal
    first = tl.maximum(-step, 0)
    count = tl.minimum(tl.cdiv(queries, BLOCK), tl.cdiv(n_keys, BLOCK) - step) - first
    local = tl.arange(0, BLOCK)
    d = step * BLOCK + local[None, :] - local[:, None]
    if tails is not None:
        tails += 2 * h
    # all tiles of a diagonal have the same biases: looked up once
    constant = bias(d, d, 0, table + h * width, tails, width, left, None, 0, 0, False)
    allowed = (d >= -past) & (d <= future)
    share = tl.cdiv(batch * count, SPLITS)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for t in range(split * share, tl.minimum((split + 1) * share, batch * count)):
        b = (t // count).to(tl.int64)
        i = first + t % count
        bh = b * heads + h
        m, n = i * BLOCK + local, (i + step) * BLOCK + local
        x = load_rows(q + b * sq_b + h * sq_h, m, sq_n, queries, D, BD, True)
        y = load_rows(k + b * sk_b + hk * sk_h, n, sk_n, n_keys, D, BD, True)
        added = constant
        if keys is not None:
            added += tl.load(keys + bh * n_keys + n, mask=n < n_keys, other=0.0)[None, :]
        if rows is not None:
            added += bias(
                d, m[:, None], queries, None, None, 0, 0, rows + bh * queries * rows_width, rows_width, rows_left, False
            )
        seen = allowed & (n < n_keys)[None, :]
        if pairs is not None:
            per_pair = load_pairs(pairs + b * sp_b + h * sp_h, m[:, None], n[None, :], sp_m, queries, n_keys)
            added += per_pair
            seen = seen & (per_pair != float("-inf"))
        log_sum = tl.load(lse + bh * queries + m, mask=m < queries, other=float("inf"))
        p = weights(dot(x, tl.trans(y), PRECISION) * scale + added, LOG2E, -log_sum, 1)
        if q_docs is not None:
            doc = tl.load(q_docs + b * queries + m, mask=m < queries, other=0)
            seen = seen & (doc[:, None] == tl.load(k_docs + b * n_keys + n, mask=n < n_keys, other=0)[None, :])
        p = tl.where(seen, p, 0.0)
        w = load_rows(dout + b * so_b + h * so_h, m, so_n, queries, DV, BDV, True)
        z = load_rows(v + b * sv_b + hk * sv_h, n, sv_n, n_keys, DV, BDV, True)
        mean = tl.load(delta + bh * queries + m, mask=m < queries, other=0.0)
        dp = dot(w, tl.trans(z), PRECISION)
        if seed is not None:
            keep = kept(hashed_rows(seed, seed_high, bh, m)[:, None], n[None, :], least_hash)
            dp = tl.where(keep, dp * growth, 0.0)
        acc += p * (dp - mean[:, None])
    found += ((h * diagonals + diagonal) * SPLITS + split) * BLOCK * BLOCK
    tl.store(found + local[:, None] * BLOCK + local[None, :], acc)


@triton.jit(do_not_specialize=["diagonals", "nearest", "least", "count", "width", "left"])
@no_type_check
def unskew(
    found, dtable, diagonals, nearest, least, count, width, left,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    """Gradients of ``count`` distances, starting at ``least``, from the tiles of ``walk``. Grid: (blocks of MANY, H).

    Distance Δ·BLOCK + r is at (m, m + r) in the tiles of Δ if that is a column, else at (m, m + r − BLOCK) in those of
    Δ + 1: every row m has it once.
    """
    h = tl.program_id(1).to(tl.int64)
    x = tl.program_id(0) * MANY + tl.arange(0, MANY)
    # counted from the first diagonal's tile, so that the dividend is not negative
    past_first = least + x - (nearest - 1) * BLOCK
    step, r = past_first // BLOCK - 1, past_first % BLOCK
    m = tl.arange(0, BLOCK)
    column = m[None, :] + r[:, None]
    tile = step[:, None] + tl.where(column >= BLOCK, 1, 0)
    column = column % BLOCK
    there = (tile >= 0) & (tile < diagonals) & (x < count)[:, None]
    total = tl.zeros((MANY,), tl.float32)
    for split in range(SPLITS):
        at = ((h * diagonals + tile) * SPLITS + split) * BLOCK * BLOCK + m[None, :] * BLOCK + column
        total += tl.sum(tl.load(found + at, mask=there, other=0.0), 1)
    tl.store(dtable + h * width + left + least + x, total, mask=x < count)


@triton.jit(
    do_not_specialize=[
        "q_blocks",
        "k_blocks",
        "past",
        "future",
        "width",
        "left",
        "rows_left",
        "visits",
        "out_width",
        "out_left",
        "seed",
        "seed_high",
        "least_hash",
    ]
)
@no_type_check
def entries(
    q, k, v, dout, sq_b, sq_h, sq_n, sk_b, sk_h, sk_n, sv_b, sv_h, sv_n, so_b, so_h, so_n,
    q_pos, k_pos, q_docs, k_docs, limits, keys, table, tails, rows, lse, delta, found,
    pairs, sp_b, sp_h, sp_m, seed, seed_high, least_hash, growth,
    heads, groups, queries, n_keys, q_blocks, k_blocks, visits,
    past, future, width, left, rows_width, rows_left, scale, out_width, out_left,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, MANY: tl.constexpr, ONE: tl.constexpr, PER_ROW: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Σ_j ds by inner entry, at any positions. Grid: (batch · heads, shares, blocks of MANY entries).

    Args:
        visits: number of query blocks of a share, 1 if PER_ROW.
        found: (B, H, Q, out_width) if PER_ROW, of which it fills the inner entries; else (B, H, shares, out_width).
        out_width, out_left: of the table, or of rows if PER_ROW.
    """
    bh, share = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = bh // heads, bh % heads
    hk = h // groups
    entry = 1 + tl.program_id(2) * MANY + tl.arange(0, MANY)
    inner = entry < out_width - 1
    q_pos += b * queries
    k_pos += b * n_keys
    if q_docs is not None:
        q_docs += b * queries
        k_docs += b * n_keys
    if table is not None:
        table += h * width
    if tails is not None:
        tails += 2 * h
    if rows is not None:
        rows += bh * queries * rows_width
    # keys farther away than these entries cannot contribute to them
    nearest, farthest = tl.min(entry) - out_left, tl.max(entry) - out_left
    acc = tl.zeros((BM, MANY), tl.float32)
    for i in range(share * visits, tl.minimum((share + 1) * visits, q_blocks)):
        m = i * BM + tl.arange(0, BM)
        x = load_rows(q + b * sq_b + h * sq_h, m, sq_n, queries, D, BD, True)
        w = load_rows(dout + b * so_b + h * so_h, m, so_n, queries, DV, BDV, True)
        log_sum = tl.load(lse + bh * queries + m, mask=m < queries, other=float("inf"))
        mean = tl.load(delta + bh * queries + m, mask=m < queries, other=0.0)
        begin, end = trim_by_position(
            0, k_blocks, m, queries, q_pos, q_docs, limits + b * 4 * k_blocks, k_blocks,
            tl.minimum(past, -nearest), tl.minimum(future, farthest),
        )  # fmt: skip
        for j in range(begin, end):
            n = j * BN + tl.arange(0, BN)
            y = load_rows(k + b * sk_b + hk * sk_h, n, sk_n, n_keys, D, BD, True)
            z = load_rows(v + b * sv_b + hk * sv_h, n, sv_n, n_keys, DV, BDV, True)
            d = distances(m[:, None], n[None, :], queries, n_keys, q_pos, k_pos)
            added = bias(d, m[:, None], queries, table, tails, width, left, rows, rows_width, rows_left, ONE)
            if keys is not None:
                added += tl.load(keys + bh * n_keys + n, mask=n < n_keys, other=0.0)[None, :]
            seen = visible(d, m[:, None], n[None, :], queries, n_keys, q_pos, k_pos, q_docs, k_docs, past, future)
            if pairs is not None:
                per_pair = load_pairs(pairs + b * sp_b + h * sp_h, m[:, None], n[None, :], sp_m, queries, n_keys)
                added += per_pair
                seen = seen & (per_pair != float("-inf"))
            s = dot(x, tl.trans(y), PRECISION) * scale + added
            p = tl.where(seen, weights(s, LOG2E, -log_sum, 1), 0.0)
            dp = dot(w, tl.trans(z), PRECISION)
            if seed is not None:
                keep = kept(hashed_rows(seed, seed_high, bh, m)[:, None], n[None, :], least_hash)
                dp = tl.where(keep, dp * growth, 0.0)
            ds = p * (dp - mean[:, None])
            same = (d + out_left)[:, :, None] == entry[None, None, :]
            acc += tl.sum(tl.where(same, ds[:, :, None], 0.0), 1)
        if PER_ROW:
            at = (bh * queries + m)[:, None] * out_width + entry[None, :]
            tl.store(found + at, acc, mask=(m < queries)[:, None] & inner[None, :])
    if not PER_ROW:
        at = (bh * tl.num_programs(1) + share) * out_width + entry
        tl.store(found + at, tl.sum(acc, 0), mask=inner)
