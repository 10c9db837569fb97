"""Backward: the weights are recomputed, tile by tile, from the scores and the forward's log-sum-exp.

    p = 2^(s − lse)     dp = dout · vᵀ     delta = Σ dout · out     ds = p · (dp − delta)
    dv = pᵀ · dout      dk = scale · dsᵀ · q     dkeys = Σ_i ds     dq = scale · ds · k     drows[i, d] = ds[i, i + d]

Two kernels, each of which recomputes the weights, so that every sum has one owner: no atomics, the same bits always.

In half precision ``out`` is rounded, and so are the weights it was summed from, so delta errs, by the same for all keys
of a query; gradients of terms, sums of ds over many keys and queries, collect that. But Σ_j ds should be 0, and what it
is instead, r, is the error: ``backward_queries`` corrects delta to delta + r for the kernels after it, and its own sums
Σ_j ds · x to Σ_j ds · x − r · Σ_j p · x.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from headway.backends.triton.tiles import (
    BAND,
    GENERAL,
    LOG2E,
    SATURATED,
    add_at_end,
    add_at_ends,
    bias,
    count_tiles,
    distances,
    dot,
    hashed_rows,
    headroom,
    kept,
    load_pairs,
    load_rows,
    row_ends,
    saturated_bias,
    segments,
    steps_beyond,
    store_rows,
    table_ends,
    tile_number,
    trim_by_position,
    trim_by_weight,
    visible,
    weights,
)


@triton.jit(do_not_specialize=["q_blocks"])
@no_type_check
def deltas(
    q, out, dout, lse, delta, q_norms, lse_floor, sq_b, sq_h, sq_n, so_b, so_h, so_n, heads, queries, q_blocks,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """delta of each query; the largest |q| and −least lse of each block of queries, if needed. Grid: (B·H, blocks).

    Args:
        lse_floor: in units of scores, not of log 2.
    """
    bh, x = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = bh // heads, bh % heads
    m = x * BM + tl.arange(0, BM)
    y = load_rows(out + bh * queries * DV, m, DV, queries, DV, BDV, True).to(tl.float32)
    z = load_rows(dout + b * so_b + h * so_h, m, so_n, queries, DV, BDV, True).to(tl.float32)
    tl.store(delta + bh * queries + m, tl.sum(y * z, 1), mask=m < queries)
    if q_norms is not None:
        w = load_rows(q + b * sq_b + h * sq_h, m, sq_n, queries, D, BD, True).to(tl.float32)
        tl.store(q_norms + bh * q_blocks + x, tl.sqrt(tl.max(tl.sum(w * w, 1))))
        floor = tl.min(tl.load(lse + bh * queries + m, mask=m < queries, other=float("inf")))
        tl.store(lse_floor + bh * q_blocks + x, (-floor / LOG2E).to(tl.float32))


@triton.jit(
    do_not_specialize=[
        "q_blocks",
        "k_blocks",
        "norm_blocks",
        "past",
        "future",
        "low",
        "high",
        "width",
        "left",
        "rows_left",
        "tile_base",
        "tiles",
        "seed",
        "seed_high",
        "least_hash",
    ]
)
@no_type_check
def backward_keys(
    q, k, v, dout, sq_b, sq_h, sq_n, sk_b, sk_h, sk_n, sv_b, sv_h, sv_n, so_b, so_h, so_n,
    q_pos, k_pos, q_docs, k_docs, limits, keys, table, tails, rows, norms, tile_max, q_norms, lse_floor,
    pairs, sp_b, sp_h, sp_m, seed, seed_high, least_hash, growth,
    lse, delta, dk, dv, dkeys,
    heads, groups, shares, queries, n_keys, q_blocks, k_blocks, norm_blocks,
    past, future, low, high, width, left, rows_width, rows_left, scale, tiny, tile_base, tiles,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
    STATIC: tl.constexpr, HAS_BAND: tl.constexpr, ONE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk, dv and dkeys of one block of keys. Grid: (key blocks · batch · key heads · shares,).

    A key head serves ``groups`` query heads; if there are too few programs, ``shares`` programs divide them, each with
    its own dk and dv, (B, H_kv · shares, K, D).

    Args:
        limits: least and largest position and document of each block of queries, (B, 4, blocks), or None.
    """
    j = tl.program_id(0) % k_blocks
    kv_heads = heads // groups
    owner = tl.program_id(0) // k_blocks
    b, hs = (owner // (kv_heads * shares)).to(tl.int64), owner % (kv_heads * shares)
    hk = hs // shares
    n0 = j * BN
    n = n0 + tl.arange(0, BN)
    y = load_rows(k + b * sk_b + hk.to(tl.int64) * sk_h, n, sk_n, n_keys, D, BD, True)
    z = load_rows(v + b * sv_b + hk.to(tl.int64) * sv_h, n, sv_n, n_keys, DV, BDV, True)
    if q_pos is not None:
        q_pos += b * queries
        k_pos += b * n_keys
    if q_docs is not None:
        q_docs += b * queries
        k_docs += b * n_keys

    # rows are keys here, so past and future are swapped, and so are the ends of the table
    if q_pos is None:
        begin, a, h0, h1, e, end, s1, s2 = segments(n0, n_keys, queries, future, past, -high, -low, False, BN, BM)
    else:
        begin, a, h0, h1, e, end, s1, s2 = 0, 0, 0, 0, 0, q_blocks, 0, 0
    if not STATIC:
        begin, end = trim_by_position(
            begin, end, n, n_keys, k_pos, k_docs, limits + b * 4 * q_blocks, q_blocks, future, past
        )
        a, h0, h1, e, s1, s2 = begin, begin, begin, begin, begin, begin

    grown_k = tl.zeros((BN, BD), tl.float32)
    grown_v = tl.zeros((BN, BDV), tl.float32)
    per_share = groups // shares
    for g in range(per_share):
        h = hk * groups + (hs % shares) * per_share + g
        bh = b * heads + h
        h = h.to(tl.int64)
        q_h, dout_h = q + b * sq_b + h * sq_h, dout + b * so_b + h * so_h
        lse_h, delta_h = lse + bh * queries, delta + bh * queries
        table_h, tails_h, rows_h = table, tails, rows
        if table is not None:
            table_h += h * width
        if tails is not None:
            tails_h += 2 * h
        if rows is not None:
            rows_h += bh * queries * rows_width
        if keys is not None:
            c = tl.load(keys + bh * n_keys + n, mask=n < n_keys, other=0.0)
            grown_c = tl.zeros((BN,), tl.float32)
        first, last = a, e
        ends = table_ends(table_h, tails_h, width)
        if STATIC and norms is not None:
            f = y.to(tl.float32)
            own = tl.sqrt(tl.max(tl.sum(f * f, 1))) * tl.abs(scale) * LOG2E
            kv = (b * kv_heads + hk) * norm_blocks
            stride = (tl.num_programs(0) // k_blocks // shares).to(tl.int64) * norm_blocks
            least = tiny - headroom(norms + kv, norm_blocks, stride)
            if keys is not None:
                least -= LOG2E * tl.max(tl.where(n < n_keys, c, float("-inf")))
            unit = BM if BM < BN else BN
            maxima = tile_max
            if tile_max is not None:
                maxima += h * tiles
            first, last = trim_by_weight(
                a, e, own, q_norms + bh * q_blocks, maxima, tile_base + j * (BN // unit), -(BM // unit),
                lse_floor + bh * q_blocks, least,
            )  # fmt: skip
        for KIND in tl.static_range(3):
            if KIND == GENERAL or (STATIC and (KIND != BAND or HAS_BAND)):
                for t in range(count_tiles(KIND, begin, a, h0, h1, e, end, s1, s2, first, last)):
                    i = tile_number(t, KIND, begin, a, h0, h1, e, end, s1, s2, first, last)
                    m0 = i * BM
                    m = m0 + tl.arange(0, BM)
                    x = load_rows(q_h, m, sq_n, queries, D, BD, KIND == GENERAL)
                    s = dot(y, tl.trans(x), PRECISION)  # (BN, BM)
                    # the score is s · factor + offset, in units of log 2
                    offset = 0.0
                    if KIND == GENERAL:
                        d = distances(m[None, :], n[:, None], queries, n_keys, q_pos, k_pos)
                    else:
                        d = n[:, None] - m[None, :]
                    if KIND == SATURATED:
                        own_end = 0.0
                        if rows is not None:
                            at = rows_h + m.to(tl.int64) * rows_width + tl.where(i >= s2, 0, rows_width - 1)
                            own_end = tl.load(at, mask=m < queries, other=0.0)
                        by_query, added = saturated_bias(
                            i >= s2, m, n[:, None], n0, ends, (own_end, own_end), table_h, tails_h, width, left, rows_h
                        )
                        offset = by_query * LOG2E
                    else:
                        added = bias(
                            d, m[None, :], queries, table_h, tails_h, width, left, rows_h, rows_width, rows_left, ONE
                        )
                    if keys is not None:
                        added += c[:, None]
                    if pairs is not None:
                        at = pairs + b * sp_b + h * sp_h
                        per_pair = load_pairs(at, m[None, :], n[:, None], sp_m, queries, n_keys)
                        added += per_pair
                    factor = LOG2E
                    if (
                        keys is not None
                        or pairs is not None
                        or tails is not None
                        or (KIND != SATURATED and (table is not None or rows is not None))
                    ):
                        s = s * scale + added
                    else:
                        factor = scale * LOG2E
                    log_sum = tl.load(lse_h + m, mask=m < queries, other=float("inf"))
                    p = weights(s, factor, offset - log_sum, 0)
                    if KIND == GENERAL:
                        seen = visible(
                            d, m[None, :], n[:, None], queries, n_keys, q_pos, k_pos, q_docs, k_docs, past, future
                        )
                        if pairs is not None:
                            seen = seen & (per_pair != float("-inf"))
                        p = tl.where(seen, p, 0.0)
                    w = load_rows(dout_h, m, so_n, queries, DV, BDV, KIND == GENERAL)
                    dp = dot(z, tl.trans(w), PRECISION)
                    used = p
                    if seed is not None:
                        keep = kept(hashed_rows(seed, seed_high, bh, m)[None, :], n[:, None], least_hash)
                        used, dp = tl.where(keep, p * growth, 0.0), tl.where(keep, dp * growth, 0.0)
                    grown_v += dot(used.to(w.dtype), w, PRECISION)
                    ds = p * (dp - tl.load(delta_h + m, mask=m < queries, other=0.0)[None, :])
                    grown_k += dot(ds.to(x.dtype), x, PRECISION)
                    if keys is not None:
                        grown_c += tl.sum(ds, 1)
        if dkeys is not None:
            tl.store(dkeys + bh * n_keys + n, grown_c, mask=n < n_keys)
    base = owner.to(tl.int64) * n_keys
    store_rows(dk + base * D, n, n_keys, grown_k * scale, D, BD)
    store_rows(dv + base * DV, n, n_keys, grown_v, DV, BDV)


@triton.jit(
    do_not_specialize=[
        "q_blocks",
        "k_blocks",
        "norm_blocks",
        "past",
        "future",
        "low",
        "high",
        "width",
        "left",
        "rows_left",
        "tile_base",
        "tiles",
        "seed",
        "seed_high",
        "least_hash",
    ]
)
@no_type_check
def backward_queries(
    q, k, v, dout, sq_b, sq_h, sq_n, sk_b, sk_h, sk_n, sv_b, sv_h, sv_n, so_b, so_h, so_n,
    q_pos, k_pos, q_docs, k_docs, limits, keys, table, tails, rows, norms, tile_max, key_max,
    pairs, sp_b, sp_h, sp_m, seed, seed_high, least_hash, growth,
    lse, delta, dq, sides, beyond, drows,
    heads, groups, queries, n_keys, q_blocks, k_blocks, norm_blocks,
    past, future, low, high, width, left, rows_width, rows_left, scale, tiny, tile_base, tiles,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
    STATIC: tl.constexpr, HAS_BAND: tl.constexpr, ONE: tl.constexpr, REFINES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of one block of queries, and sums over its rows. Grid: (query blocks · batch · heads,).

    Args:
        sides: Σ_j ds of each query over the keys at the table's first entry, and at its last, (2, B, H, Q), or None.
        beyond: the same, each pair times its steps beyond that entry, for the gradient of the tails; or None.
        drows: the gradient of rows, initially zero; inner entries are filled only if positions are indices; or None.
        dq: None to do no more than correct delta.
        REFINES: whether to correct delta.
    """
    i = q_blocks - 1 - tl.program_id(0) % q_blocks
    bh = (tl.program_id(0) // q_blocks).to(tl.int64)
    b, h = bh // heads, bh % heads
    hk = h // groups
    m0 = i * BM
    m = m0 + tl.arange(0, BM)
    k += b * sk_b + hk * sk_h
    v += b * sv_b + hk * sv_h
    x = load_rows(q + b * sq_b + h * sq_h, m, sq_n, queries, D, BD, True)
    w = load_rows(dout + b * so_b + h * so_h, m, so_n, queries, DV, BDV, True)
    log_sum = tl.load(lse + bh * queries + m, mask=m < queries, other=float("inf"))
    mean = tl.load(delta + bh * queries + m, mask=m < queries, other=0.0)
    if q_pos is not None:
        q_pos += b * queries
        k_pos += b * n_keys
    if q_docs is not None:
        q_docs += b * queries
        k_docs += b * n_keys
    if keys is not None:
        keys += bh * n_keys
    if table is not None:
        table += h * width
    if tails is not None:
        tails += 2 * h
    if rows is not None:
        rows += bh * queries * rows_width
    if pairs is not None:
        pairs += b * sp_b + h * sp_h
    if seed is not None:
        hashed = hashed_rows(seed, seed_high, bh, m)

    if q_pos is None:
        begin, a, h0, h1, e, end, s1, s2 = segments(m0, queries, n_keys, past, future, low, high, False, BM, BN)
    else:
        begin, a, h0, h1, e, end, s1, s2 = 0, 0, 0, 0, 0, k_blocks, 0, 0
    if not STATIC:
        begin, end = trim_by_position(
            begin, end, m, queries, q_pos, q_docs, limits + b * 4 * k_blocks, k_blocks, past, future
        )
        a, h0, h1, e, s1, s2 = begin, begin, begin, begin, begin, begin
    first, last = a, e
    ends, own_ends = table_ends(table, tails, width), row_ends(rows, m, queries, rows_width)
    if STATIC and norms is not None:
        f = x.to(tl.float32)
        own = tl.sqrt(tl.max(tl.sum(f * f, 1))) * tl.abs(scale) * LOG2E
        kv = (b * (heads // groups) + hk) * norm_blocks
        stride = (tl.num_programs(0) // q_blocks // groups).to(tl.int64) * norm_blocks
        least = tl.min(log_sum).to(tl.float32) + tiny - headroom(norms + kv, norm_blocks, stride)
        unit = BM if BM < BN else BN
        maxima = tile_max
        if tile_max is not None:
            maxima += h * tiles
        extra = key_max
        if key_max is not None:
            extra += bh * k_blocks
        first, last = trim_by_weight(
            a, e, own, norms + kv, maxima, tile_base - i * (BM // unit), BN // unit, extra, least
        )

    if dq is not None:
        grown = tl.zeros((BM, BD), tl.float32)
    zero = tl.zeros((BM,), tl.float32)
    residue = zero  # Σ_j ds
    if sides is not None:
        at_ends = (zero, zero, zero, zero)
    if beyond is not None:
        beyond_ends = (zero, zero, zero, zero)
    if drows is not None:
        row_past, row_future = zero, zero
        drows += (bh * queries + m) * rows_width
    for KIND in tl.static_range(3):
        if KIND == GENERAL or (STATIC and (KIND != BAND or HAS_BAND)):
            for t in range(count_tiles(KIND, begin, a, h0, h1, e, end, s1, s2, first, last)):
                j = tile_number(t, KIND, begin, a, h0, h1, e, end, s1, s2, first, last)
                n0 = j * BN
                n = n0 + tl.arange(0, BN)
                y = load_rows(k, n, sk_n, n_keys, D, BD, KIND == GENERAL)
                s = dot(x, tl.trans(y), PRECISION)
                offset = 0.0
                if KIND == GENERAL:
                    d = distances(m[:, None], n[None, :], queries, n_keys, q_pos, k_pos)
                else:
                    d = n[None, :] - m[:, None]
                if KIND == SATURATED:
                    by_query, added = saturated_bias(
                        j < s1, m, n[None, :], n0, ends, own_ends, table, tails, width, left, rows
                    )
                    offset = by_query * LOG2E
                else:
                    added = bias(d, m[:, None], queries, table, tails, width, left, rows, rows_width, rows_left, ONE)
                if keys is not None:
                    added += tl.load(keys + n, mask=n < n_keys, other=0.0)[None, :]
                if pairs is not None:
                    per_pair = load_pairs(pairs, m[:, None], n[None, :], sp_m, queries, n_keys)
                    added += per_pair
                factor = LOG2E
                if (
                    keys is not None
                    or pairs is not None
                    or tails is not None
                    or (KIND != SATURATED and (table is not None or rows is not None))
                ):
                    s = s * scale + added
                else:
                    factor = scale * LOG2E
                p = weights(s, factor, offset - log_sum, 1)
                if KIND == GENERAL:
                    seen = visible(
                        d, m[:, None], n[None, :], queries, n_keys, q_pos, k_pos, q_docs, k_docs, past, future
                    )
                    if pairs is not None:
                        seen = seen & (per_pair != float("-inf"))
                    p = tl.where(seen, p, 0.0)
                z = load_rows(v, n, sv_n, n_keys, DV, BDV, KIND == GENERAL)
                dp = dot(w, tl.trans(z), PRECISION)
                if seed is not None:
                    dp = tl.where(kept(hashed[:, None], n[None, :], least_hash), dp * growth, 0.0)
                ds = p * (dp - mean[:, None])
                if dq is not None:
                    grown += dot(ds.to(y.dtype), y, PRECISION)
                if REFINES:
                    residue += tl.sum(ds, 1)
                if KIND == SATURATED:
                    in_past = j < s1
                    if sides is not None:
                        at_ends = add_at_end(at_ends, in_past, ds, p)
                    if drows is not None:
                        found = tl.sum(ds, 1)
                        row_past += tl.where(in_past, found, 0.0)
                        row_future += tl.where(in_past, 0.0, found)
                    if beyond is not None:
                        steps = steps_beyond(in_past, m[:, None], n[None, :], n0, width, left)
                        beyond_ends = add_at_end(beyond_ends, in_past, ds * steps, p * steps)
                else:
                    if sides is not None:
                        at_ends = add_at_ends(at_ends, d + left, width, ds, p)
                    if beyond is not None:
                        steps = tl.maximum(tl.maximum(-(d + left), d + left - (width - 1)), 0).to(tl.float32)
                        beyond_ends = add_at_ends(beyond_ends, d + left, width, ds * steps, p * steps)
                    if drows is not None:
                        entry = d + rows_left
                        in_past = entry <= 0
                        in_future = ~in_past & (entry >= rows_width - 1)
                        row_past += tl.sum(tl.where(in_past, ds, 0.0), 1)
                        row_future += tl.sum(tl.where(in_future, ds, 0.0), 1)
                        if q_pos is None:
                            # indices: no two keys of a query share a distance, and each entry has one owner
                            inner = ~in_past & ~in_future & (m < queries)[:, None] & (n < n_keys)[None, :]
                            tl.store(drows[:, None] + entry, ds, mask=inner)

    if dq is not None:
        store_rows(dq + bh * queries * D, m, queries, grown * scale, D, BD)
    there = m < queries
    if REFINES:
        tl.store(delta + bh * queries + m, mean + residue, mask=there)
    side = (tl.num_programs(0) // q_blocks).to(tl.int64) * queries
    if sides is not None:
        tl.store(sides + bh * queries + m, at_ends[0] - residue * at_ends[2], mask=there)
        tl.store(sides + side + bh * queries + m, at_ends[1] - residue * at_ends[3], mask=there)
    if beyond is not None:
        tl.store(beyond + bh * queries + m, beyond_ends[0] - residue * beyond_ends[2], mask=there)
        tl.store(beyond + side + bh * queries + m, beyond_ends[1] - residue * beyond_ends[3], mask=there)
    if drows is not None:
        if rows_width == 1:
            tl.store(drows, row_past + row_future, mask=there)
        else:
            tl.store(drows, row_past, mask=there)
            tl.store(drows + rows_width - 1, row_future, mask=there)
