"""One token per sequence against cached ones, in one call: it is turned, joins the cache, and attends to all in it.

What steps share, tables and pointers to the cache, is laid out once.
"""

from __future__ import annotations

import ctypes

import torch
from jaxtyping import Float
from torch import Tensor

from headway.backends.base import Call
from headway.backends.native import softmax
from headway.backends.native.library import KINDS, kernel_of, struct, wide_of

HEADER = "step.h"


def given_for_steps(call: Call) -> softmax.Given | None:
    """The arguments of the kernel if steps can share them, where nothing but q, the positions and the number of keys
    changes from one to the next; else None.
    """
    from headway.backends import native

    if native.refuses(call) or not native.isolates(call) or not (call.k.is_contiguous() and call.v.is_contiguous()):
        return None
    given = softmax.given_of(call)
    changing = (given.q_docs, given.mask_q, given.pairs, given.keys, given.rows, given.cols_x, given.cols, given.rates)
    if any(x is not None for x in (*changing, given.q_slopes, given.curve_level, given.q_decay)):
        return None
    return given if given.rows_x is None or given.rows_x.data_ptr() == call.q.data_ptr() else None


class Step:
    """Steps over one cache, until it needs more memory.

    Args:
        given: of :func:`given_for_steps`, over all the room of the cache: q (B, H, 1, D) and q_pos (B, 1) are room for
            what is turned and where it stands, k (B, H_kv, R, D), v and k_pos (B, R) are the cache's own, contiguous.
        turning: how queries and keys are turned, None is not at all: radians per position of each pair, (P,), float64;
            the factor of cosines and sines; and whether entries 2p and 2p + 1 make a pair, not p and P + p.
        last: the greatest position of a token.
    """

    DONE, NOT_FINITE, REFUSED = range(3)

    def __init__(
        self,
        given: softmax.Given,
        turning: tuple[Float[Tensor, " pairs"], float, bool] | None,
        last: int,
    ) -> None:
        self.at, k, v, pos = given.q_pos, given.k, given.v, given.k_pos
        self._attention = softmax.arguments_of(given)
        self._attention.call.decoding = True
        wide = wide_of(given.q)
        self._attention.call.out_head = self._attention.call.out_row = v.shape[3]
        self._attention.call.out_batch = given.q.shape[1] * v.shape[3]
        sums = given.q.new_empty(*given.q.shape[:3], 2, dtype=wide)
        self._attention.put("sums", sums)
        self._kernel = kernel_of(softmax.SOURCE, HEADER).headway_step
        self._kind, self._message = KINDS[given.q.dtype], ctypes.create_string_buffer(256)
        self._like = given.q.new_empty(*given.q.shape[:3], v.shape[3])
        (heads, _, dim), (kv_heads, _, dim_v) = given.q.shape[1:], v.shape[1:]
        self._strides = heads * dim, dim, kv_heads * dim, dim, kv_heads * dim_v, dim_v
        self._usual = False  # whether the call has these
        made = self._call = struct(HEADER)()
        made.attention = ctypes.addressof(self._attention.call)
        made.keys, made.values, made.places, made.room = k.data_ptr(), v.data_ptr(), pos.data_ptr(), k.shape[2]
        made.turned, made.at, made.last = given.q.data_ptr(), given.q_pos.data_ptr(), last
        self._kept: list[object] = [sums, given]
        if turning is not None:
            rates, made.amplitude, interleaved = turning
            rates, room = rates.contiguous(), given.q.new_empty(2, len(rates), dtype=wide)
            rotation = struct("rotate.h")()
            rotation.dim, rotation.pairs, rotation.sign = given.q.shape[3], len(rates), 1.0
            rotation.interleaved = interleaved
            made.rotation, made.rates = ctypes.addressof(rotation), rates.data_ptr()
            made.cos, made.sin = room[0].data_ptr(), room[1].data_ptr()
            self._kept += [rotation, rates, room]
        self._pointer = ctypes.byref(made)

    def run(self, q: Tensor, k: Tensor, v: Tensor, pos: Tensor | None, length: int | Tensor) -> tuple[int, Tensor]:
        """:attr:`DONE`, :attr:`NOT_FINITE`, or :attr:`REFUSED` where the position is beyond the last or not behind the
        cached ones; and the output, (B, H, 1, D_v).

        Args:
            q: of the token, (B, H, 1, D) or (B, 1, H·D), not turned.
            k: (B, H_kv, 1, D) or (B, 1, H_kv·D), likewise.
            v: (B, H_kv, 1, D_v) or (B, 1, H_kv·D_v).
            pos: its position, (B or 1, 1); None is the one after each sequence's greatest.
            length: how many tokens are cached. Unless it is refused, the token is written behind them; and a tensor,
                of one int64, counts it.
        """
        call, attention = self._call, self._attention.call
        if q.is_contiguous() and k.is_contiguous() and v.is_contiguous():  # as projections leave them
            if not self._usual:
                self._usual = True
                call.q_batch, call.q_head, call.k_batch, call.k_head, call.v_batch, call.v_head = self._strides
        else:
            self._usual = False
            q, call.q_batch, call.q_head = _even(q, self._strides[1])
            k, call.k_batch, call.k_head = _even(k, self._strides[3])
            v, call.v_batch, call.v_head = _even(v, self._strides[5])
        call.q, call.k, call.v = q.data_ptr(), k.data_ptr(), v.data_ptr()
        if isinstance(length, int):
            call.length = length
        else:
            call.filled = length.data_ptr()
        if pos is None:
            call.pos = None
        else:
            call.pos, call.pos_batch = pos.data_ptr(), pos.stride(0) if len(pos) > 1 else 0
        out = torch.empty_like(self._like)  # sooner made than a new one of its shape
        attention.out = out.data_ptr()
        if self._kernel(self._pointer, self._kind, self._message):
            raise MemoryError(f"the CPU kernel failed: {self._message.value.decode()}")
        return call.outcome, out


def _even(x: Tensor, width: int) -> tuple[Tensor, int, int]:
    """The same values with a head's entries side by side, and how far apart sequences and heads lie; as
    :func:`headway.backends.native.library.even`, but strides, whose reading takes time in a step, are read once.
    """
    strides = x.stride()
    if strides[-1] != 1:
        x = x.contiguous()
        strides = x.stride()
    return x, strides[0], strides[1] if len(strides) == 4 else width
