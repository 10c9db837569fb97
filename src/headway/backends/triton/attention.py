"""From a canonical call to kernels: block sizes, scratch memory, launches, and autograd."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from headway.backends.canonical import Canonical
from headway.backends.triton import backward as backward_kernels
from headway.backends.triton import forward as forward_kernels
from headway.backends.triton import pairs as pair_kernels
from headway.backends.triton import table as table_kernels

FAR = 2**30
"""An unlimited reach: twice it still fits into 32 bits, as distances in the kernels must."""
ENOUGH = 264
"""Programs that keep a GPU busy: two for each of an H100's 132 multiprocessors. A constant, not a property looked up:
how sums are divided decides their rounding, and the same call should give the same bits on every GPU of a kind."""
HELD = 2**24
"""Entries of a table, summed over some queries each, that are held for the last sum: 64 MiB."""
WALKED = 1024
"""Desired number of programs of the kernel ``walk``."""


@dataclass(frozen=True)
class Blocks:
    """Rows and columns of a kernel's tile, and its compiler options.

    Args:
        queries: queries of a tile.
        keys: keys of a tile.
        warps: warps of 32 threads per program.
        stages: stages of the software pipeline: tiles loaded ahead of use.
    """

    queries: int
    keys: int
    warps: int
    stages: int

    @property
    def launch(self) -> dict[str, int]:
        """As keyword arguments of a launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}


TILES = {
    "half": {
        "forward": (Blocks(128, 64, 4, 3), Blocks(64, 64, 4, 3), Blocks(64, 32, 4, 2)),
        "keys": (Blocks(128, 64, 4, 2), Blocks(64, 64, 4, 2), Blocks(64, 32, 4, 2)),
        "queries": (Blocks(64, 64, 4, 3), Blocks(64, 32, 4, 3), Blocks(128, 32, 8, 2)),
        "walk": (Blocks(64, 64, 4, 2), Blocks(64, 64, 8, 3), Blocks(32, 32, 4, 2)),
        "entries": (Blocks(16, 32, 4, 1),) * 3,
        "pairs": (Blocks(64, 64, 4, 2), Blocks(64, 64, 8, 2), Blocks(64, 64, 8, 1)),
    },
    "tf32x3": {
        "forward": (Blocks(64, 64, 4, 1), Blocks(32, 32, 4, 2), Blocks(32, 32, 4, 1)),
        "keys": (Blocks(64, 32, 4, 2), Blocks(32, 32, 4, 1), Blocks(16, 16, 4, 1)),
        "queries": (Blocks(64, 64, 4, 1), Blocks(32, 32, 4, 1), Blocks(16, 16, 4, 1)),
        "walk": (Blocks(64, 64, 8, 2), Blocks(32, 32, 4, 1), Blocks(32, 32, 4, 1)),
        "entries": (Blocks(16, 32, 4, 1),) * 3,
        "pairs": (Blocks(64, 64, 8, 2), Blocks(64, 64, 8, 1), Blocks(64, 32, 8, 1)),
    },
    "ieee": {  # unrolled products without tensor cores: larger tiles would only use more registers
        "forward": (Blocks(64, 32, 8, 1), Blocks(32, 32, 8, 1), Blocks(16, 32, 8, 1)),
        "keys": (Blocks(32, 32, 8, 1), Blocks(16, 32, 8, 1), Blocks(16, 16, 4, 1)),
        "queries": (Blocks(32, 32, 8, 1), Blocks(32, 32, 8, 1), Blocks(16, 16, 4, 1)),
        "walk": (Blocks(32, 32, 4, 1), Blocks(32, 32, 4, 1), Blocks(16, 16, 4, 1)),
        "entries": (Blocks(16, 32, 4, 1),) * 3,
        "pairs": (Blocks(32, 32, 4, 1), Blocks(32, 32, 8, 1), Blocks(16, 32, 8, 1)),
    },
}
"""Tiles by how products are computed (see :func:`precision`), kernel, and heads up to 64, 128 and 256 wide.

The fastest on an H200 among those that fit shared memory and registers; for "ieee" and "pairs", the largest that do
not spill registers. "keys" computes dk and dv, "queries" dq, "walk" and "entries" the table's gradient, "pairs" that of
a bias per pair.
"""


def precision(dtype: torch.dtype) -> str:
    """How products of this dtype are computed: "half" for bfloat16 and float16, on tensor cores.

    Float32 factors are not rounded by default: "ieee" multiplies them without tensor cores. After
    torch.set_float32_matmul_precision("high"), which lets torch's own products use tensor cores, "tf32x3" splits each
    factor into two TF32 values: several times faster, with about 21 of float32's 24 bits.
    """
    if dtype is not torch.float32:
        return "half"
    return "tf32x3" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def blocks(kernel: str, how: str, width: int) -> Blocks:
    """Tile sizes of a kernel for products of this :func:`precision` and the wider of D and D_v."""
    return TILES[how][kernel][(width > 64) + (width > 128)]


MANY = 32
"""Entries of a table that one program of ``entries`` or ``unskew`` serves."""


def attention(
    c: Canonical, default_positions: bool, dropout: float = 0.0, seed: Int[Tensor, "1"] | None = None
) -> Float[Tensor, "batch heads queries dim_v"]:
    """Attention, differentiable in q, k, v, keys, table, tails, rows and pairs.

    Args:
        c: the call.
        default_positions: whether positions are 0, 1, 2 … without padding.
        dropout: share of the weights that are dropped.
        seed: decides which, on the CPU; None without dropout.
    """
    given = (c.left, c.rows_left, min(c.past, FAR), min(c.future, FAR), c.scale, dropout)
    places = (None if default_positions else c.q_pos, None if default_positions else c.k_pos, c.q_docs, c.k_docs)
    terms = (c.keys, c.table, c.tails, c.rows, c.pairs)
    out: Tensor = attend_forward(c.q, c.k, c.v, *terms, *places, seed, *given)[0]
    return out


TENSORS = (
    "Tensor q, Tensor k, Tensor v, Tensor? keys, Tensor? table, Tensor? tails, Tensor? rows, Tensor? pairs, "
    "Tensor? q_pos, Tensor? k_pos, Tensor? q_docs, Tensor? k_docs, Tensor? seed"
)
NUMBERS = "int left, int rows_left, int past, int future, float scale, float dropout"
TERMS = slice(3, 8)
"""Where in :data:`TENSORS` the terms are."""
COUNT = TENSORS.count("Tensor")


@torch.library.custom_op(
    "headway::triton_forward", mutates_args=(), schema=f"({TENSORS}, {NUMBERS}) -> (Tensor, Tensor)"
)
def attend_forward(*given: Any) -> tuple[Tensor, Tensor]:
    """The output (B, H, Q, D_v) and its log-sum-exp (B, H, Q), in units of log 2."""
    return Launch(*given).forward()


def _of_sums(q: Tensor) -> torch.dtype:
    """The dtype of the log-sum-exp: for weights accurate to float32 it needs more bits than they have."""
    return torch.float64 if q.dtype is torch.float32 else torch.float32


@attend_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    shape = q.shape[:3]
    return q.new_empty(*shape, v.shape[3]), q.new_empty(shape, dtype=_of_sums(q))


@torch.library.custom_op(
    "headway::triton_backward",
    mutates_args=(),
    schema=f"(Tensor dout, {TENSORS}, Tensor out, Tensor lse, {NUMBERS}, bool need_keys, bool need_table, "
    f"bool need_tails, bool need_rows, bool need_pairs) -> ({', '.join(['Tensor'] * TERMS.stop)})",
)
def attend_backward(dout: Tensor, *given: Any) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, keys, table, tails, rows and pairs; empty tensors for those not needed."""
    inputs, (out, lse), numbers, needs = given[:COUNT], given[COUNT : COUNT + 2], given[COUNT + 2 : -5], given[-5:]
    return Launch(*inputs, *numbers).backward(dout, out, lse, *needs)


@attend_backward.register_fake
def _(dout: Tensor, *given: Any) -> tuple[Tensor, ...]:
    always = [x.new_empty(x.shape) for x in given[:3]]
    terms = zip(given[TERMS], given[-5:], strict=True)
    return (*always, *[x.new_empty(x.shape) if need else dout.new_empty(0) for x, need in terms])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:COUNT], *output)
    ctx.numbers = inputs[COUNT:]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dout: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    terms = zip(ctx.saved_tensors[TERMS], ctx.needs_input_grad[TERMS], strict=True)
    wanted = [x is not None and need for x, need in terms]
    dq, dk, dv, *others = attend_backward(dout, *ctx.saved_tensors, *ctx.numbers, *wanted)
    found = [d if want else None for d, want in zip(others, wanted, strict=True)]
    return (dq, dk, dv, *found, *[None] * (COUNT - TERMS.stop + len(ctx.numbers)))


attend_forward.register_autograd(_differentiate, setup_context=_keep)


def _rows_contiguous(x: Tensor) -> Tensor:
    """The tensor with rows of stride 1, as the kernels read them."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _strides(**tensors: Tensor) -> dict[str, int]:
    """Strides over batch, heads and tokens, named as the kernels name them."""
    return {f"s{name}_{axis}": x.stride(i) for name, x in tensors.items() for i, axis in enumerate("bhn")}


class Launch:
    """One call, with the arguments that all its kernels share."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor | None,
        table: Tensor | None,
        tails: Tensor | None,
        rows: Tensor | None,
        pairs: Tensor | None,
        q_pos: Tensor | None,
        k_pos: Tensor | None,
        q_docs: Tensor | None,
        k_docs: Tensor | None,
        seed: Tensor | None,
        left: int,
        rows_left: int,
        past: int,
        future: int,
        scale: float,
        dropout: float,
    ) -> None:
        self.q, self.k, self.v = (_rows_contiguous(x) for x in (q, k, v))
        self.batch, self.heads, self.queries, self.dim = q.shape
        self.kv_heads, self.keys_len, self.dim_v = k.shape[1], k.shape[2], v.shape[3]
        self.keys, self.table, self.tails, self.rows = (
            None if x is None else x.contiguous() for x in (keys, table, tails, rows)
        )
        self.q_pos, self.k_pos, self.q_docs, self.k_docs = (
            None if x is None else x.long().contiguous() for x in (q_pos, k_pos, q_docs, k_docs)
        )
        self.pairs, self.seed, self.dropout = pairs, seed, dropout
        self.left, self.rows_left, self.past, self.future, self.scale = left, rows_left, past, future, scale
        self.width = 1 if table is None else table.shape[1]
        self.rows_width = 1 if rows is None else rows.shape[3]
        self.unit_steps = q_pos is None
        # tile kinds follow from indices alone
        self.static = self.unit_steps and q_docs is None and pairs is None
        ends = [(-left, self.width - 1 - left)] if table is not None else []
        if rows is not None:
            ends.append((-rows_left, self.rows_width - 1 - rows_left))
        # without a table everything is saturated, at 0
        self.low = min((low for low, _ in ends), default=FAR)
        self.high = max((high for _, high in ends), default=FAR)
        # terms that fall without end leave most tiles weightless; one that saturates early does not
        falling = keys is not None or tails is not None or (table is not None and self.width >= self.keys_len)
        self.trims = self.static and falling and rows is None

    @property
    def empty(self) -> bool:
        """Whether there are no keys or no queries."""
        return 0 in (*self.q.shape[:3], self.keys_len)

    def common(self, kernel: str) -> tuple[dict[str, Any], Blocks]:
        """The arguments of every kernel over tiles, and its blocks."""
        how = precision(self.q.dtype)
        sizes = blocks(kernel, how, max(self.dim, self.dim_v))
        given = {
            "q": self.q, "k": self.k, "v": self.v,
            **_strides(q=self.q, k=self.k, v=self.v),
            "q_docs": self.q_docs, "k_docs": self.k_docs,
            "keys": self.keys, "table": self.table, "tails": self.tails, "rows": self.rows,
            "heads": self.heads, "groups": self.heads // self.kv_heads,
            "queries": self.queries, "n_keys": self.keys_len,
            "past": self.past, "future": self.future, "width": self.width, "left": self.left,
            "rows_width": self.rows_width, "rows_left": self.rows_left, "scale": self.scale,
            "PRECISION": "tf32x3" if how == "tf32x3" else "ieee",
            **self.per_pair(), **self.widths(),
        }  # fmt: skip
        return given, sizes

    def per_pair(self) -> dict[str, Any]:
        """The bias of each pair, and what decides whether dropout keeps it; 32 bits at a time, as signed integers."""
        pairs, seed = self.pairs, None if self.seed is None else int(self.seed)
        strides = [0, 0, 0] if pairs is None else [0 if pairs.shape[i] == 1 else pairs.stride(i) for i in range(3)]
        dropped: tuple[float | None, ...] = (None, None, None, None)
        if seed is not None:
            numbers = (seed, seed >> 32, int(self.dropout * 2**32))
            dropped = (*((x + 2**31) % 2**32 - 2**31 for x in numbers), 1 / (1 - self.dropout))
        names = ("pairs", "sp_b", "sp_h", "sp_m", "seed", "seed_high", "least_hash", "growth")
        return dict(zip(names, (pairs, *strides, *dropped), strict=True))

    def widths(self) -> dict[str, int]:
        """Head widths, and the powers of two, at least 16, to which a tensor core's tile pads them."""
        padded = [max(16, triton.next_power_of_2(x)) for x in (self.dim, self.dim_v)]
        return {"D": self.dim, "DV": self.dim_v, "BD": padded[0], "BDV": padded[1]}

    def tiled(self, kernel: str, most: int | None = None) -> tuple[dict[str, Any], Blocks]:
        """As :meth:`common`, for kernels that distinguish kinds of tiles; at most ``most`` queries per block."""
        given, sizes = self.common(kernel)
        if most is not None:
            sizes = Blocks(min(sizes.queries, most), sizes.keys, sizes.warps, sizes.stages)
        given |= {
            "q_pos": self.q_pos, "k_pos": self.k_pos, "low": self.low, "high": self.high,
            "BM": sizes.queries, "BN": sizes.keys, "STATIC": self.static,
            "HAS_BAND": not (self.future <= self.low or -self.past >= self.high), "ONE": self.width == 1,
            "q_blocks": triton.cdiv(self.queries, sizes.queries), "k_blocks": triton.cdiv(self.keys_len, sizes.keys),
        }  # fmt: skip
        return given, sizes

    def limits(self, of: str, size: int) -> Tensor | None:
        """Least and largest position and document of each block of "queries" or "keys"; None if indices suffice."""
        if self.static:
            return None
        pos, docs = (self.q_pos, self.q_docs) if of == "queries" else (self.k_pos, self.k_docs)
        tokens = self.queries if of == "queries" else self.keys_len
        if pos is None:
            pos = torch.arange(tokens, device=self.q.device).expand(self.batch, -1).contiguous()
        number = triton.cdiv(tokens, size)
        limits = torch.empty(self.batch, 4, number, dtype=torch.int64, device=self.q.device)
        forward_kernels.position_limits[self.batch, number](pos, docs, limits, tokens, number, BLOCK=size)
        return limits

    def key_norms(self, size: int) -> Tensor | None:
        """Largest and least |k|, |v| of each block of keys, (4, B, H_kv, blocks), if tiles are skipped by weight."""
        if not self.trims:
            return None
        number = triton.cdiv(self.keys_len, size)
        norms = self.q.new_empty(4, self.batch, self.kv_heads, number, dtype=torch.float32)
        strides = _strides(k=self.k, v=self.v)
        forward_kernels.key_norms[self.batch * self.kv_heads, number](
            self.k, self.v, **strides, norms=norms, kv_heads=self.kv_heads, n_keys=self.keys_len, blocks=number,
            **self.widths(), BN=size,
        )  # fmt: skip
        return norms

    def key_maxima(self, size: int) -> Tensor | None:
        """Largest term of each block of keys, likewise."""
        if not self.trims or self.keys is None:
            return None
        number = triton.cdiv(self.keys_len, size)
        found = self.keys.new_empty(self.batch, self.heads, number)
        forward_kernels.key_maxima[self.batch * self.heads, number](self.keys, found, self.keys_len, number, BN=size)
        return found

    def tile_maxima(self, sizes: Blocks) -> dict[str, Any]:
        """Largest bias of each tile, by the distance of its first key and query, likewise."""
        unit = min(sizes.queries, sizes.keys)
        base = triton.cdiv(self.queries, unit)
        tiles = base + triton.cdiv(self.keys_len, unit) + 1
        given = {"tile_max": None, "tile_base": base, "tiles": tiles, "tiny": -32.0 - math.log2(max(self.keys_len, 1))}
        if not self.trims or self.table is None:
            return given
        found = self.table.new_empty(self.heads, tiles)
        forward_kernels.tile_maxima[tiles, self.heads](
            self.table, self.tails, found, self.width, self.left, base, tiles, BM=sizes.queries, BN=sizes.keys,
            SPAN=triton.next_power_of_2(sizes.queries + sizes.keys), UNIT=unit, ONE=self.width == 1,
        )  # fmt: skip
        return given | {"tile_max": found}

    def forward(self) -> tuple[Tensor, Tensor]:
        """See :func:`attend_forward`."""
        shape = (self.batch, self.heads, self.queries)
        out = self.q.new_empty(*shape, self.dim_v)
        lse = self.q.new_empty(shape, dtype=_of_sums(self.q))
        if self.empty:
            return out.zero_(), lse.fill_(torch.inf)
        given, sizes = self.tiled("forward", most=max(16, triton.next_power_of_2(self.queries)))
        programs = given["q_blocks"] * self.batch * self.heads
        # each share is worth its start if it has several tiles
        splits = max(1, min(triton.cdiv(ENOUGH, programs), given["k_blocks"] // 8))
        if splits > 1:
            given["STATIC"] = False
        norms = self.key_norms(sizes.keys) if splits == 1 else None
        given |= {"limits": self.limits("keys", sizes.keys), "norms": norms}
        given |= {"SPLITS": splits, "POSITIVE": self.scale > 0}
        given |= {"key_max": self.key_maxima(sizes.keys), **self.tile_maxima(sizes), **sizes.launch}
        if splits == 1:
            forward_kernels.forward[programs, 1](out=out, lse=lse, **given)
            return out, lse
        part = out.new_empty(splits, *out.shape, dtype=torch.float32)
        part_lse = lse.new_empty(splits, *shape)
        forward_kernels.forward[programs, splits](out=part, lse=part_lse, **given)
        total, widths = lse.numel(), self.widths()
        forward_kernels.merge[(triton.cdiv(total, 16),)](
            part, part_lse, out, lse, total, DV=widths["DV"], BDV=widths["BDV"], ROWS=16, SPLITS=splits
        )
        return out, lse

    def backward(
        self,
        dout: Tensor,
        out: Tensor,
        lse: Tensor,
        need_keys: bool,
        need_table: bool,
        need_tails: bool,
        need_rows: bool,
        need_pairs: bool,
    ) -> tuple[Tensor, ...]:
        """See :func:`attend_backward`."""

        def room(x: Tensor | None, need: bool) -> Tensor:
            return dout.new_zeros(x.shape, dtype=x.dtype) if need and x is not None else dout.new_empty(0)

        dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (self.q, self.k, self.v))
        dkeys, dtable = room(self.keys, need_keys), room(self.table, need_table)
        dtails, drows, dpairs = (room(self.tails, need_tails), room(self.rows, need_rows), room(self.pairs, need_pairs))
        if self.empty:
            return dq.zero_(), dk.zero_(), dv.zero_(), dkeys, dtable, dtails, drows, dpairs
        dout = _rows_contiguous(dout)
        delta = torch.empty_like(lse, dtype=torch.float32)
        given = {"dout": dout, **_strides(o=dout), "lse": lse, "delta": delta}

        bounds = self.deltas(given, out)
        sides = delta.new_empty(2, *lse.shape) if need_table else None
        beyond = delta.new_empty(2, *lse.shape) if need_tails else None
        if need_rows and self.q.dtype is not torch.float32:  # ds itself is their gradient: delta must be right before
            self.backward_queries(given, None, refines=True)
        refines = need_keys or need_table or need_tails or need_rows or need_pairs
        self.backward_queries(given, dq, sides, beyond, drows if need_rows else None, refines=refines)
        self.backward_keys(given, bounds, dk, dv, dkeys if need_keys else None)
        if need_rows and not self.unit_steps and self.rows_width > 2:
            self.entries(given, drows, self.rows_width, self.rows_left, per_row=True)
        if sides is not None:
            if self.width > 2:
                (self.walk if self.unit_steps else self.walk_anywhere)(given, dtable)
            before, after = sides.sum((1, 3))
            dtable[:, 0] = before
            dtable[:, -1] += after
        if beyond is not None:
            dtails.copy_(beyond.sum((1, 3)).T)
        if need_pairs:
            self.pair_gradients(given, dpairs)
        return dq, dk, dv, dkeys, dtable, dtails, drows, dpairs

    def deltas(self, shared: dict[str, Any], out: Tensor) -> dict[str, Tensor | None]:
        """Fill delta; what bounds the scores of a block of queries, if tiles are skipped by weight."""
        sizes = self.common("keys")[1]
        number = triton.cdiv(self.queries, sizes.queries)
        q_norms = lse_floor = None
        if self.trims:
            q_norms, lse_floor = self.q.new_empty(2, self.batch, self.heads, number, dtype=torch.float32)
        backward_kernels.deltas[self.batch * self.heads, number](
            self.q, out, shared["dout"], shared["lse"], shared["delta"], q_norms, lse_floor,
            **_strides(q=self.q, o=shared["dout"]), heads=self.heads, queries=self.queries, q_blocks=number,
            **self.widths(), BM=sizes.queries,
        )  # fmt: skip
        return {"q_norms": q_norms, "lse_floor": lse_floor}

    def backward_keys(
        self,
        shared: dict[str, Any],
        bounds: dict[str, Tensor | None],
        dk: Tensor,
        dv: Tensor,
        dkeys: Tensor | None,
    ) -> None:
        """Fill dk, dv and dkeys."""
        given, sizes = self.tiled("keys")
        programs, groups = given["k_blocks"] * self.batch * self.kv_heads, given["groups"]
        shares = groups if programs < ENOUGH else 1
        if shares > 1:
            part_k, part_v = (
                x.new_empty(self.batch, self.kv_heads, shares, *x.shape[2:], dtype=torch.float32) for x in (dk, dv)
            )
        given |= {"limits": self.limits("queries", sizes.queries), "norms": self.key_norms(sizes.keys)}
        given |= {**bounds, "norm_blocks": given["k_blocks"], "shares": shares}
        given |= {"dkeys": dkeys, **self.tile_maxima(sizes), **sizes.launch}
        backward_kernels.backward_keys[(programs * shares,)](
            dk=part_k if shares > 1 else dk, dv=part_v if shares > 1 else dv, **given, **shared
        )
        if shares > 1:
            dk.copy_(part_k.sum(2))
            dv.copy_(part_v.sum(2))

    def backward_queries(
        self,
        shared: dict[str, Any],
        dq: Tensor | None,
        sides: Tensor | None = None,
        beyond: Tensor | None = None,
        drows: Tensor | None = None,
        *,
        refines: bool,
    ) -> None:
        """Fill dq, the sums over rows, and the part of drows that needs no ``walk``; correct delta if ``refines``."""
        given, sizes = self.tiled("queries")
        given |= {"limits": self.limits("keys", sizes.keys), "norms": self.key_norms(sizes.keys)}
        given |= {"key_max": self.key_maxima(sizes.keys), "norm_blocks": given["k_blocks"]}
        given |= {"dq": dq, "sides": sides, "beyond": beyond, "drows": drows, "REFINES": refines}
        given |= {**self.tile_maxima(sizes), **sizes.launch}
        programs = given["q_blocks"] * self.batch * self.heads
        backward_kernels.backward_queries[(programs,)](**given, **shared)

    def pair_gradients(self, shared: dict[str, Any], dpairs: Tensor) -> None:
        """Fill dpairs."""
        given, sizes = self.common("pairs")
        batch, heads = dpairs.shape[:2]
        k_blocks = triton.cdiv(self.keys_len, sizes.keys)
        pair_kernels.pair_gradients[triton.cdiv(self.queries, sizes.queries) * k_blocks, batch * heads](
            **given, **shared, q_pos=self.q_pos, k_pos=self.k_pos, dpairs=dpairs, batch=self.batch, pair_heads=heads,
            k_blocks=k_blocks, BM=sizes.queries, BN=sizes.keys, ONE=self.width == 1, **sizes.launch,
        )  # fmt: skip

    def walk(self, shared: dict[str, Any], dtable: Tensor) -> None:
        """Fill the table's inner entries if positions are indices."""
        given, sizes = self.common("walk")
        size = sizes.keys
        least = max(1 - self.left, -self.past, 1 - self.queries)
        most = min(self.width - 2 - self.left, self.future, self.keys_len - 1)
        if least > most:
            return
        nearest, farthest = least // size, -(-most // size)
        # diagonals outside the square of tiles are empty
        nearest = max(nearest, 1 - triton.cdiv(self.queries, size))
        farthest = min(farthest, triton.cdiv(self.keys_len, size) - 1)
        diagonals = farthest - nearest + 1
        tiles = self.batch * triton.cdiv(min(self.queries, self.keys_len), size)
        splits = max(1, min(triton.cdiv(WALKED, diagonals * self.heads), tiles // 4))
        found = dtable.new_empty(self.heads, diagonals, splits, size, size)
        table_kernels.walk[diagonals * splits, self.heads](
            **given, **shared, found=found, batch=self.batch, diagonals=diagonals, nearest=nearest, BLOCK=size,
            SPLITS=splits, **sizes.launch,
        )  # fmt: skip
        count = most - least + 1
        table_kernels.unskew[triton.cdiv(count, MANY), self.heads](
            found, dtable, diagonals, nearest, least, count, self.width, self.left, BLOCK=size, SPLITS=splits, MANY=MANY
        )

    def walk_anywhere(self, shared: dict[str, Any], dtable: Tensor) -> None:
        """Fill the table's inner entries at any positions."""
        number = triton.cdiv(self.queries, self.common("entries")[1].queries)
        visits = triton.cdiv(number, max(1, HELD // (self.batch * self.heads * self.width)))
        found = dtable.new_zeros(self.batch, self.heads, triton.cdiv(number, visits), self.width)
        self.entries(shared, found, self.width, self.left, visits)
        dtable.copy_(found.sum((0, 2)))

    def entries(
        self, shared: dict[str, Any], found: Tensor, width: int, left: int, visits: int = 1, *, per_row: bool = False
    ) -> None:
        """Fill the inner entries of ``found`` at any positions."""
        given, sizes = self.common("entries")
        number, k_blocks = triton.cdiv(self.queries, sizes.queries), triton.cdiv(self.keys_len, sizes.keys)
        shares = triton.cdiv(number, visits)
        table_kernels.entries[self.batch * self.heads, shares, triton.cdiv(width - 2, MANY)](
            **given, **shared, q_pos=self.q_pos, k_pos=self.k_pos, limits=self.limits("keys", sizes.keys), found=found,
            q_blocks=number, k_blocks=k_blocks, visits=visits, out_width=width, out_left=left,
            BM=sizes.queries, BN=sizes.keys, MANY=MANY, ONE=self.width == 1, PER_ROW=per_row, **sizes.launch,
        )  # fmt: skip
