"""Forward: one program per block of queries, online softmax; the output and log-sum-exp are saved for backward.

    m ← max(m, s_j)     l ← l · 2^(m_old − m) + 2^(s_j − m)     acc ← acc · 2^(m_old − m) + 2^(s_j − m) · v_j
    out = acc / l       lse = m + log2 l, or inf for a query that sees no key: its weights 2^(s − lse) are all 0

A few queries over many keys (decoding) do not fill a GPU: then the keys are divided among programs, and ``merge``
combines their results in fixed order.
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
    bias,
    count_tiles,
    distances,
    dot,
    fma,
    hashed_rows,
    headroom,
    kept,
    load_pairs,
    load_rows,
    row_ends,
    saturated_bias,
    segments,
    store_rows,
    table_ends,
    tile_number,
    trim_by_position,
    trim_by_weight,
    visible,
)


@triton.jit(
    do_not_specialize=[
        "q_blocks",
        "k_blocks",
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
def forward(
    q, k, v, sq_b, sq_h, sq_n, sk_b, sk_h, sk_n, sv_b, sv_h, sv_n,
    q_pos, k_pos, q_docs, k_docs, limits, keys, table, tails, rows, norms, tile_max, key_max,
    pairs, sp_b, sp_h, sp_m, seed, seed_high, least_hash, growth,
    out, lse,
    heads, groups, queries, n_keys, q_blocks, k_blocks,
    past, future, low, high, width, left, rows_width, rows_left, scale, tiny, tile_base, tiles,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
    STATIC: tl.constexpr, HAS_BAND: tl.constexpr, ONE: tl.constexpr, POSITIVE: tl.constexpr, SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (query blocks · batch · heads, SPLITS). With SPLITS > 1 it stores each share's output, float32, and lse.

    Args:
        limits: least and largest position and document of each block of keys, (B, 4, blocks), or None.
        low, high: the distances from which table and rows are saturated.
        scale: of q·k; POSITIVE says whether it is above 0.
        norms, tile_max, key_max: what bounds a tile's scores, or None to visit all; see ``trim_by_weight``.
        tiny: log2 of the weight below which a tile is not visited, 2^-32 / keys.
        pairs: a bias per pair, with its strides, or None.
        seed, seed_high: the low and high 32 bits of the seed of dropout, or None without.
        least_hash: pairs with a smaller hash are dropped, the others multiplied by ``growth``.
        tile_base, tiles: the entry of ``tile_max`` for the first query and key, and the number of entries per head.
    """
    # in causal attention the last blocks of queries see the most keys: they start first
    i = q_blocks - 1 - tl.program_id(0) % q_blocks
    bh = tl.program_id(0) // q_blocks
    split = tl.program_id(1)
    b, h = (bh // heads).to(tl.int64), bh % heads
    hk = h // groups
    m0 = i * BM
    m = m0 + tl.arange(0, BM)
    bh = bh.to(tl.int64)
    k += b * sk_b + hk.to(tl.int64) * sk_h
    v += b * sv_b + hk.to(tl.int64) * sv_h
    x = load_rows(q + b * sq_b + h.to(tl.int64) * sq_h, m, sq_n, queries, D, BD, True)
    if q_pos is not None:
        q_pos += b * queries
        k_pos += b * n_keys
    if q_docs is not None:
        q_docs += b * queries
        k_docs += b * n_keys
    if keys is not None:
        keys += bh * n_keys
    if table is not None:
        table += h.to(tl.int64) * width
    if tails is not None:
        tails += 2 * h
    if rows is not None:
        rows += bh * queries * rows_width
    if pairs is not None:
        pairs += b * sp_b + h.to(tl.int64) * sp_h
    if seed is not None:
        hashed = hashed_rows(seed, seed_high, bh, m)

    if q_pos is None:
        begin, a, h0, h1, e, end, s1, s2 = segments(
            m0, queries, n_keys, past, future, low, high, norms is not None, BM, BN
        )
    else:
        begin, a, h0, h1, e, end, s1, s2 = 0, 0, 0, 0, 0, k_blocks, 0, 0
    if not STATIC:
        if limits is not None:
            begin, end = trim_by_position(
                begin, end, m, queries, q_pos, q_docs, limits + b * 4 * k_blocks, k_blocks, past, future
            )
        if SPLITS > 1:
            share = (end - begin + SPLITS - 1) // SPLITS
            begin = tl.minimum(begin + split * share, end)
            end = tl.minimum(begin + share, end)
        a, h0, h1, e, s1, s2 = begin, begin, begin, begin, begin, begin
    first, last = a, e
    ends, own_ends = table_ends(table, tails, width), row_ends(rows, m, queries, rows_width)

    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BDV), tl.float32)
    for KIND in tl.static_range(3):
        if KIND == GENERAL or (STATIC and (KIND != BAND or HAS_BAND)):
            for t in range(count_tiles(KIND, begin, a, h0, h1, e, end, s1, s2, first, last)):
                j = tile_number(t, KIND, begin, a, h0, h1, e, end, s1, s2, first, last)
                n0 = j * BN
                n = n0 + tl.arange(0, BN)
                y = load_rows(k, n, sk_n, n_keys, D, BD, KIND == GENERAL)
                s = dot(x, tl.trans(y), PRECISION)
                # the score is s · factor + offset, in units of log 2
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
                if (
                    keys is not None
                    or pairs is not None
                    or tails is not None
                    or (KIND != SATURATED and (table is not None or rows is not None))
                ):
                    s = s * scale + added
                    factor = LOG2E
                elif POSITIVE:
                    factor = scale * LOG2E
                else:
                    s *= scale
                    factor = LOG2E
                if KIND == GENERAL:
                    seen = visible(
                        d, m[:, None], n[None, :], queries, n_keys, q_pos, k_pos, q_docs, k_docs, past, future
                    )
                    if pairs is not None:
                        seen = seen & (per_pair != float("-inf"))
                    s = tl.where(seen, s, float("-inf"))
                grown = tl.maximum(top, tl.max(s, 1) * factor + offset)
                # a row without a visible key so far: −inf − −inf is NaN
                zero = tl.where(grown == float("-inf"), 0.0, grown)
                p = tl.exp2(fma(s, factor, (offset - zero)[:, None]))
                shrink = tl.exp2(top - zero)
                total = total * shrink + tl.sum(p, 1)
                acc *= shrink[:, None]
                if seed is not None:
                    p = tl.where(kept(hashed[:, None], n[None, :], least_hash), p, 0.0)
                z = load_rows(v, n, sv_n, n_keys, DV, BDV, KIND == GENERAL)
                acc += dot(p.to(z.dtype), z, PRECISION)
                top = grown
        if KIND == GENERAL and STATIC and norms is not None:
            # after the tiles at the diagonal, skip those whose scores cannot come close to the maxima so far
            f = x.to(tl.float32)
            own = tl.sqrt(tl.max(tl.sum(f * f, 1))) * tl.abs(scale) * LOG2E
            kv = (b * (heads // groups) + hk) * k_blocks
            stride = (tl.num_programs(0) // q_blocks // groups).to(tl.int64) * k_blocks
            least = tl.min(tl.where(m < queries, top, float("inf"))) + tiny - headroom(norms + kv, k_blocks, stride)
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

    alive = total > 0
    acc = acc / tl.where(alive, total, 1.0)[:, None]
    if seed is not None:
        acc *= growth
    found = top.to(lse.dtype.element_ty) + tl.log2(tl.where(alive, total, 1.0)).to(lse.dtype.element_ty)
    base = bh * queries
    if SPLITS > 1:
        base += split * tl.num_programs(0).to(tl.int64) // q_blocks * queries
        found = tl.where(alive, found, float("-inf"))
    else:
        found = tl.where(alive, found, float("inf"))
    store_rows(out + base * DV, m, queries, acc, DV, BDV)
    tl.store(lse + base + m, found, mask=m < queries)


@triton.jit
@no_type_check
def merge(
    part, part_lse, out, lse, total_rows,
    DV: tl.constexpr, BDV: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Join the shares of a divided forward pass, (SPLITS, rows, DV), weighted by 2^(lse − largest lse)."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = r < total_rows
    top = tl.full((ROWS,), float("-inf"), lse.dtype.element_ty)
    for s in range(SPLITS):
        found = tl.load(part_lse + s * total_rows + r, mask=there, other=float("-inf"))
        top = tl.maximum(top, found)
    zero = tl.where(top == float("-inf"), 0.0, top)
    acc = tl.zeros((ROWS, BDV), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for s in range(SPLITS):
        share = tl.load(part_lse + s * total_rows + r, mask=there, other=float("-inf")) - zero
        share = tl.exp2(share.to(tl.float32))
        acc += share[:, None] * load_rows(part + s * total_rows * DV, r, DV, total_rows, DV, BDV, True)
        total += share
    alive = total > 0
    total = tl.where(alive, total, 1.0)
    store_rows(out, r, total_rows, acc / total[:, None], DV, BDV)
    tl.store(lse + r, tl.where(alive, zero + tl.log2(total).to(zero.dtype), float("inf")), mask=there)


@triton.jit(do_not_specialize=["blocks"])
@no_type_check
def position_limits(pos, docs, limits, tokens, blocks, BLOCK: tl.constexpr):
    """Least and largest position and document of each block of tokens, (B, 4, blocks) int64. Grid: (B, blocks)."""
    b, x = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n = x * BLOCK + tl.arange(0, BLOCK)
    big = 2**62
    # padding does not count; a block of only padding has its least above its largest
    p = tl.load(pos + b * tokens + n, mask=n < tokens, other=-1)
    limits += b * 4 * blocks + x
    tl.store(limits, tl.min(tl.where(p >= 0, p, big)))
    tl.store(limits + blocks, tl.max(tl.where(p >= 0, p, -big)))
    if docs is not None:
        d = tl.load(docs + b * tokens + n, mask=n < tokens, other=0)
        tl.store(limits + 2 * blocks, tl.min(tl.where(p >= 0, d, big)))
        tl.store(limits + 3 * blocks, tl.max(tl.where(p >= 0, d, -big)))


@triton.jit(do_not_specialize=["blocks"])
@no_type_check
def key_norms(
    k, v, sk_b, sk_h, sk_n, sv_b, sv_h, sv_n, norms, kv_heads, n_keys, blocks,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Largest and least |k|, |v| of each block of keys, (4, B, H_kv, blocks). Grid: (B·H_kv, blocks)."""
    bh, x = tl.program_id(0), tl.program_id(1)
    b, h = (bh // kv_heads).to(tl.int64), (bh % kv_heads).to(tl.int64)
    n = x * BN + tl.arange(0, BN)
    there = n < n_keys
    norms += bh.to(tl.int64) * blocks + x
    stride = tl.num_programs(0).to(tl.int64) * blocks
    y = load_rows(k + b * sk_b + h * sk_h, n, sk_n, n_keys, D, BD, True).to(tl.float32)
    z = load_rows(v + b * sv_b + h * sv_h, n, sv_n, n_keys, DV, BDV, True).to(tl.float32)
    y, z = tl.sqrt(tl.sum(y * y, 1)), tl.sqrt(tl.sum(z * z, 1))
    tl.store(norms, tl.max(y))
    tl.store(norms + stride, tl.min(tl.where(there, y, float("inf"))))
    tl.store(norms + 2 * stride, tl.max(z))
    tl.store(norms + 3 * stride, tl.min(tl.where(there, z, float("inf"))))


@triton.jit(do_not_specialize=["blocks"])
@no_type_check
def key_maxima(keys, key_max, n_keys, blocks, BN: tl.constexpr):
    """Largest term of each block of keys, (B, H, blocks). Grid: (B·H, blocks)."""
    bh, x = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n = x * BN + tl.arange(0, BN)
    found = tl.load(keys + bh * n_keys + n, mask=n < n_keys, other=float("-inf"))
    tl.store(key_max + bh * blocks + x, tl.max(found))


@triton.jit(do_not_specialize=["width", "left", "base", "tiles"])
@no_type_check
def tile_maxima(
    table, tails, tile_max, width, left, base, tiles,
    BM: tl.constexpr, BN: tl.constexpr, SPAN: tl.constexpr, UNIT: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """Largest bias of a tile whose first key is (u − base)·UNIT past its first query, (H, tiles). Grid: (tiles, H)."""
    u, h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    step = tl.arange(0, SPAN)
    d = (u - base) * UNIT - (BM - 1) + step
    if tails is not None:
        tails += 2 * h
    found = bias(d, d, 0, table + h * width, tails, width, left, None, 0, 0, ONE) + tl.zeros((SPAN,), tl.float32)
    tl.store(tile_max + h * tiles + u, tl.max(tl.where(step < BM + BN - 1, found, float("-inf"))))
