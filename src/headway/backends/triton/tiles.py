"""Shared by the kernels: the tiles of scores, what is added to them, and which may be skipped.

A program owns one block of *rows* and visits blocks of *columns*. In the forward pass and for dq the rows are queries;
for dk and dv they are keys. With d = column − row, a tile is one of three kinds:

    GENERAL     crosses the mask's edge, or its positions are not known to be 0, 1, 2 …: everything is looked up
    BAND        fully visible, and the bias varies inside it
    SATURATED   fully visible, and all its distances lie beyond one end of the table: a constant and a slope

The hardware computes 2^x, not e^x: a weight is 2^(score · log2 e − top), where the product and the difference are one
instruction, rounded once, and ``top`` and the log-sum-exp are in units of log 2. Scores themselves are not: converting
them would round once more, which costs accuracy for terms of several thousand.
"""

from __future__ import annotations

from typing import no_type_check  # Triton parses a kernel's source: run-time shape checks must not wrap it

import triton
import triton.language as tl

from headway.backends.triton.environment import INTERPRETED

EMULATED = tl.constexpr(INTERPRETED)
GENERAL = tl.constexpr(0)
BAND = tl.constexpr(1)
SATURATED = tl.constexpr(2)
LOG2E = tl.constexpr(1.4426950408889634)
FAR = tl.constexpr(2**30)  # a distance beyond all others; twice it still fits 32 bits
CHUNK = tl.constexpr(64)  # blocks looked at together when tiles are left out
STEP = tl.constexpr(0x9E3779B9)  # see backends/dropout.py


@triton.jit
@no_type_check
def dot(x, y, PRECISION: tl.constexpr):
    """x · y, summed in float32.

    Args:
        PRECISION: for float32 factors: "ieee" without tensor cores, or "tf32x3" with them, each factor as two TF32
            values. Other dtypes use tensor cores directly.
    """
    if EMULATED:  # the interpreter would multiply bf16 as the integers it keeps them in
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, input_precision=PRECISION)


@triton.jit
@no_type_check
def fma(x, y, z):
    """x · y + z, rounded once, float32."""
    # the interpreter would round the product
    return (x.to(tl.float64) * y + z.to(tl.float64)).to(tl.float32) if EMULATED else tl.fma(x, y, z)


@triton.jit
@no_type_check
def weights(s, factor, shift, AXIS: tl.constexpr):
    """2^(s · factor + shift): the weights of a tile whose log-sum-exp is known. ``shift`` is per query, along AXIS.

    It is float64 if the weights should have float32's full accuracy: with terms of thousands, float32 has too few bits.
    """
    high = shift.to(tl.float32)
    x = fma(s, factor, tl.expand_dims(high, AXIS))
    if shift.dtype == tl.float64:
        nobody = high == float("-inf")  # a query that sees no key: −inf − −inf is NaN
        low = shift - tl.where(nobody, 0.0, high).to(tl.float64)
        x += tl.expand_dims(tl.where(nobody, 0.0, low).to(tl.float32), AXIS)
    return tl.exp2(x)


@triton.jit
@no_type_check
def gather(ptr):
    """Load from arbitrary addresses. Plain loads of this many would be staged in shared memory and fill it."""
    if EMULATED:
        x = tl.load(ptr)
    else:
        x = tl.inline_asm_elementwise(
            "ld.global.nc.f32 $0, [$1];", "=f,l", [ptr], dtype=tl.float32, is_pure=True, pack=1
        )
    return x


@triton.jit
@no_type_check
def load_rows(base, r, stride, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr, CHECK: tl.constexpr):
    """Rows ``r`` of a matrix, (len(r), BLOCK): zeros past its WIDTH and, if CHECK, past its last row."""
    c = tl.arange(0, BLOCK)
    ptr = base + r.to(tl.int64)[:, None] * stride + c[None, :]
    if CHECK:
        there = (r < rows)[:, None] & (c < WIDTH)[None, :]
        x = tl.load(ptr, mask=(r < rows)[:, None] if WIDTH == BLOCK else there, other=0.0)
    elif WIDTH == BLOCK:
        x = tl.load(ptr)
    else:
        x = tl.load(ptr, mask=(c < WIDTH)[None, :], other=0.0)
    return x


@triton.jit
@no_type_check
def store_rows(base, r, rows, x, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Store ``x`` (len(r), BLOCK) as rows ``r`` of a contiguous matrix of WIDTH columns."""
    c = tl.arange(0, BLOCK)
    ptr = base + r.to(tl.int64)[:, None] * WIDTH + c[None, :]
    tl.store(ptr, x.to(base.dtype.element_ty), mask=(r < rows)[:, None] & (c < WIDTH)[None, :])


@triton.jit
@no_type_check
def segments(r0, rows, cols, past, future, low, high, NEAR: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Blocks of columns by kind for the rows r0 …, when positions are indices and −past <= d <= future is the mask.

    Saturated is d <= low or d >= high. Returns begin, a, h0, h1, b, end, s1, s2:

        GENERAL     [begin, a), [h0, h1) and [b, end)
        SATURATED   [a, s1) and [s2, b), less [h0, h1)
        BAND        [s1, s2), less [h0, h1)

    If NEAR, [h0, h1) are the blocks at the diagonal: visited first, they tell which others have negligible weight.
    """
    last = tl.minimum(r0 + ROWS, rows) - 1
    end = (tl.minimum(cols, last + future + 1) + COLS - 1) // COLS
    begin = tl.minimum(tl.maximum(r0 - past, 0) // COLS, end)
    a = (tl.maximum(r0 + ROWS - 1 - past, 0) + COLS - 1) // COLS
    a = tl.minimum(tl.maximum(a, begin), end)
    b = tl.maximum(tl.minimum(tl.minimum(r0 + future + 1, cols) // COLS, end), a)
    s1 = tl.minimum(tl.maximum(tl.maximum(low + r0 + 1, 0) // COLS, a), b)
    s2 = (tl.maximum(high + r0 + ROWS - 1, 0) + COLS - 1) // COLS
    s2 = tl.minimum(tl.maximum(s2, s1), b)
    h0, h1 = a, a
    if NEAR:
        h0 = tl.minimum(tl.maximum(r0 // COLS, a), b)
        h1 = tl.minimum(tl.maximum((r0 + ROWS + COLS - 1) // COLS, h0), b)
    return begin, a, h0, h1, b, end, s1, s2


@triton.jit
@no_type_check
def without(lo, hi, h0, h1):
    """How many blocks of [lo, hi) are not in [h0, h1)."""
    hi = tl.maximum(hi, lo)
    return hi - lo - (tl.minimum(tl.maximum(h1, lo), hi) - tl.minimum(tl.maximum(h0, lo), hi))


@triton.jit
@no_type_check
def nth_without(t, lo, hi, h0, h1):
    """The t-th block of [lo, hi) that is not in [h0, h1)."""
    at, to = tl.minimum(tl.maximum(h0, lo), tl.maximum(hi, lo)), tl.minimum(tl.maximum(h1, lo), tl.maximum(hi, lo))
    return lo + t + tl.where(lo + t >= at, to - at, 0)


@triton.jit
@no_type_check
def count_tiles(KIND: tl.constexpr, begin, a, h0, h1, b, end, s1, s2, first, last):
    """Number of tiles of a kind; for kinds other than GENERAL, only those within [first, last)."""
    if KIND == GENERAL:
        count = (end - b) + (h1 - h0) + (a - begin)
    elif KIND == BAND:
        count = without(tl.maximum(s1, first), tl.minimum(s2, last), h0, h1)
    else:
        count = without(tl.maximum(a, first), tl.minimum(s1, last), h0, h1)
        count += without(tl.maximum(s2, first), tl.minimum(b, last), h0, h1)
    return count


@triton.jit
@no_type_check
def tile_number(t, KIND: tl.constexpr, begin, a, h0, h1, b, end, s1, s2, first, last):
    """The block of columns of the t-th tile of a kind. GENERAL ones start from the right: the diagonal, if causal."""
    if KIND == GENERAL:
        right = end - b
        near = right + h1 - h0
        number = tl.where(t < right, end - 1 - t, tl.where(t < near, h1 - 1 - t + right, a - 1 - t + near))
    elif KIND == BAND:
        number = nth_without(t, tl.maximum(s1, first), tl.minimum(s2, last), h0, h1)
    else:
        lo, hi = tl.maximum(a, first), tl.minimum(s1, last)
        past = without(lo, hi, h0, h1)
        number = nth_without(t, lo, hi, h0, h1)
        in_future = nth_without(t - past, tl.maximum(s2, first), tl.minimum(b, last), h0, h1)
        number = tl.where(t < past, number, in_future)
    return number


@triton.jit
@no_type_check
def trim_by_position(begin, end, r, rows, pos, docs, limits, blocks, past, future):
    """The blocks of columns within [begin, end) that rows ``r`` may see, from each block's least and largest position.

    Args:
        pos, docs: position and document of each row; None if positions are indices, or without documents.
        limits: (4, blocks) int64: least and largest position, least and largest document.
    """
    big = 2**62
    real = r < rows
    p = r.to(tl.int64)
    if pos is not None:
        p = tl.load(pos + r, mask=real, other=-1)
        real = p >= 0
    p_min, p_max = tl.min(tl.where(real, p, big)), tl.max(tl.where(real, p, -big))
    if docs is not None:
        own = tl.load(docs + r, mask=r < rows, other=0)
        own_min, own_max = tl.min(tl.where(real, own, big)), tl.max(tl.where(real, own, -big))
    first, last = end, begin
    for x0 in range(begin, end, CHUNK):
        x = x0 + tl.arange(0, CHUNK)
        there = x < end
        least, most = tl.load(limits + x, mask=there, other=big), tl.load(limits + blocks + x, mask=there, other=-big)
        # a block of padding has least > most
        seen = there & (least <= most) & (p_min <= p_max) & (most - p_min >= -past) & (least - p_max <= future)
        if docs is not None:
            least = tl.load(limits + 2 * blocks + x, mask=there, other=big)
            most = tl.load(limits + 3 * blocks + x, mask=there, other=-big)
            seen = seen & (least <= own_max) & (most >= own_min)
        first = tl.minimum(first, tl.min(tl.where(seen, x, end)))
        last = tl.maximum(last, tl.max(tl.where(seen, x + 1, begin)))
    return first, tl.maximum(first, last)


@triton.jit
@no_type_check
def headroom(norms, blocks, stride):
    """How much larger (log 2) one key or value may be than another, because a weight multiplies them.

    Args:
        norms: (4, …, blocks): largest and least |k|, largest and least |v| of each block of keys, ``stride`` apart.
    """
    k_max, v_max = 0.0, 0.0
    k_min, v_min = float("inf"), float("inf")
    for x0 in range(0, blocks, CHUNK):
        x = x0 + tl.arange(0, CHUNK)
        there = x < blocks
        k_max = tl.maximum(k_max, tl.max(tl.load(norms + x, mask=there, other=0.0)))
        k_min = tl.minimum(k_min, tl.min(tl.load(norms + stride + x, mask=there, other=float("inf"))))
        v_max = tl.maximum(v_max, tl.max(tl.load(norms + 2 * stride + x, mask=there, other=0.0)))
        v_min = tl.minimum(v_min, tl.min(tl.load(norms + 3 * stride + x, mask=there, other=float("inf"))))
    return tl.log2(k_max / k_min) + tl.log2(v_max / v_min)


@triton.jit
@no_type_check
def trim_by_weight(a, b, own, norms, tile_max, base, step, extra, least):
    """The blocks of columns within [a, b) where a score may reach ``least``; the others have negligible weight.

    By Cauchy-Schwarz, a score is at most own · norms[x] + tile_max[base + x · step] + extra[x]. One range, computed
    before the loop instead of a test per tile: the loop stays free of branches, and its loads can be pipelined.

    Args:
        own: in units of log 2, like ``least``; ``tile_max`` and ``extra`` are scores.
    """
    first, last = b, a
    for x0 in range(a, b, CHUNK):
        x = x0 + tl.arange(0, CHUNK)
        there = x < b
        most = own * tl.load(norms + x, mask=there, other=0.0)
        if tile_max is not None:
            most += LOG2E * tl.load(tile_max + base + x * step, mask=there, other=0.0)
        if extra is not None:
            most += LOG2E * tl.load(extra + x, mask=there, other=0.0)
        # written so that blocks with NaN are visited, and NaN shows in the result
        need = there & ~(most < least)
        first = tl.minimum(first, tl.min(tl.where(need, x, b)))
        last = tl.maximum(last, tl.max(tl.where(need, x + 1, a)))
    return first, tl.maximum(first, last)


@triton.jit
@no_type_check
def distances(m, n, queries, keys, q_pos, k_pos):
    """Key position minus query position of a tile, int32; positions are indices if they are None."""
    if q_pos is None:
        d = n - m
    else:
        q = tl.load(q_pos + m, mask=m < queries, other=-1)
        k = tl.load(k_pos + n, mask=n < keys, other=-1)
        d = tl.minimum(tl.maximum(k - q, -FAR), FAR).to(tl.int32)
    return d


@triton.jit
@no_type_check
def visible(d, m, n, queries, keys, q_pos, k_pos, q_docs, k_docs, past, future):
    """Which pairs of a tile may attend."""
    seen = (d >= -past) & (d <= future) & (m < queries) & (n < keys)
    if q_pos is not None:
        real = tl.load(q_pos + m, mask=m < queries, other=-1) >= 0
        seen = seen & real & (tl.load(k_pos + n, mask=n < keys, other=-1) >= 0)
    if q_docs is not None:
        q = tl.load(q_docs + m, mask=m < queries, other=0)
        seen = seen & (q == tl.load(k_docs + n, mask=n < keys, other=0))
    return seen


@triton.jit
@no_type_check
def bias(d, m, queries, table, tails, width, left, rows, rows_width, rows_left, ONE: tl.constexpr):
    """table(d) + rows[m](d) for any tile; a scalar 0 when there is neither.

    Args:
        table, tails, rows: pointers of this head, or None.
        ONE: whether the table has one entry, which then needs no gather.
    """
    total = 0.0
    if table is not None:
        e = d + left
        total = tl.load(table) if ONE else gather(table + tl.minimum(tl.maximum(e, 0), width - 1))
        if tails is not None:
            total += tl.load(tails) * tl.maximum(-e, 0).to(tl.float32)
            total += tl.load(tails + 1) * tl.maximum(e - (width - 1), 0).to(tl.float32)
    if rows is not None:
        e = tl.minimum(tl.maximum(d + rows_left, 0), rows_width - 1)
        # rows past the last query, in a partial block, read those of the last
        total += gather(rows + tl.minimum(m, queries - 1).to(tl.int64) * rows_width + e)
    return total


@triton.jit
@no_type_check
def load_pairs(pairs, m, n, stride, queries, keys):
    """The biases of a tile's pairs, float32, 0 past the last query or key; ``pairs`` points at this head."""
    there = (m < queries) & (n < keys)
    return tl.load(pairs + m.to(tl.int64) * stride + n, mask=there, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def mixed(x):
    """The hash of backends/dropout.py, uint32."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
@no_type_check
def hashed_rows(seed, seed_high, head, m):
    """What of the hash depends on the query: seed and head, the index b·H + h, are the same for the whole program."""
    by_head = mixed(mixed(head.to(tl.uint32)) ^ seed.to(tl.uint32))
    return mixed(by_head ^ (m.to(tl.uint32) + seed_high.to(tl.uint32)))


@triton.jit
@no_type_check
def kept(hashed, n, least):
    """Which pairs dropout keeps, as backends/dropout.py does."""
    return mixed(hashed + n.to(tl.uint32) * STEP) >= least.to(tl.uint32)


@triton.jit
@no_type_check
def table_ends(table, tails, width):
    """The table's first and last entry and the two slopes beyond them; zeros if absent."""
    past, future, past_slope, future_slope = 0.0, 0.0, 0.0, 0.0
    if table is not None:
        past, future = tl.load(table), tl.load(table + width - 1)
        if tails is not None:
            past_slope, future_slope = tl.load(tails), tl.load(tails + 1)
    return past, future, past_slope, future_slope


@triton.jit
@no_type_check
def row_ends(rows, m, queries, rows_width):
    """The first and last entry of each query's own table; zeros when there are none."""
    past, future = 0.0, 0.0
    if rows is not None:
        at = rows + m.to(tl.int64) * rows_width
        past = tl.load(at, mask=m < queries, other=0.0)
        future = tl.load(at + rows_width - 1, mask=m < queries, other=0.0)
    return past, future


@triton.jit
@no_type_check
def saturated_bias(is_past, m, n, n0, ends, own_ends, table, tails, width, left, rows):
    """The bias of a saturated tile, all of it before the table's first entry (``is_past``) or all after its last.

    It is a constant and a slope, hence the sum of a value per query and a value per key; either is a scalar if it is
    the same for all.

    Args:
        ends: see ``table_ends``.
        own_ends: see ``row_ends``.
        n0: the first key of the tile; values per key are relative to it, so that they stay small and exact.
    """
    by_query, by_key = 0.0, 0.0
    if table is not None:
        by_query = tl.where(is_past, ends[0], ends[1])
        if tails is not None:
            slope = tl.where(is_past, -ends[2], ends[3])
            edge = tl.where(is_past, -left, width - 1 - left)
            by_key = slope * (n - n0).to(tl.float32)
            by_query -= slope * (m + edge - n0).to(tl.float32)
    if rows is not None:
        by_query += tl.where(is_past, own_ends[0], own_ends[1])
    return by_query, by_key


@triton.jit
@no_type_check
def steps_beyond(is_past, m, n, n0, width, left):
    """How far each pair of a saturated tile lies beyond the table's end, float32; n0 is the first key of the tile."""
    edge = tl.where(is_past, -left, width - 1 - left)
    sign = tl.where(is_past, -1.0, 1.0)
    return ((n - n0).to(tl.float32) - (m + edge - n0).to(tl.float32)) * sign


@triton.jit
@no_type_check
def add_at_ends(sums, entry, width, ds, p):
    """Add a tile's sums over the keys at or before a table's first entry, and over those at or after its last.

    Args:
        sums: of each query: Σ ds before and after, then Σ p before and after.
    """
    first = entry <= 0
    last = ~first & (entry >= width - 1)
    return (
        sums[0] + tl.sum(tl.where(first, ds, 0.0), 1),
        sums[1] + tl.sum(tl.where(last, ds, 0.0), 1),
        sums[2] + tl.sum(tl.where(first, p, 0.0), 1),
        sums[3] + tl.sum(tl.where(last, p, 0.0), 1),
    )


@triton.jit
@no_type_check
def add_at_end(sums, is_past, ds, p):
    """The same for a saturated tile, all of it at one end."""
    x, y = tl.sum(ds, 1), tl.sum(p, 1)
    return (
        sums[0] + tl.where(is_past, x, 0.0),
        sums[1] + tl.where(is_past, 0.0, x),
        sums[2] + tl.where(is_past, y, 0.0),
        sums[3] + tl.where(is_past, 0.0, y),
    )
