"""A C++ kernel for CPUs: attention with position terms at the speed of plain attention, forward and backward.

    out_i = Σ_j softmax_j( scale · q_i·k_j + keys[j] + table(k_pos − q_pos) + rows[i](k_pos − q_pos)
                          + pairs[i, j] ) · v_j

It needs O(queries + keys) memory, accumulates in float32 (float64 for float64), and gives the same bits in every run
with the same number of threads. Unmasked tiles are skipped if their weights are so small that all of them together
change no row by more than 1/256 of its own rounding: the steeper a bias decays, the faster.

The source is in ``csrc``; it is compiled for the machine once, when first needed. ``python -m headway.backends.native``
compiles it beforehand, or reports why that fails.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from headway.backends import canonical, compiler, operators
from headway.backends.base import GRAD, VMAP, Call, bad_tokens, transforms
from headway.shapes import HeadwayError
from headway.terms import DenseBias

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_GIVEN = (
    "Tensor q, Tensor k, Tensor v, Tensor? keys, Tensor? table, Tensor? tails, Tensor? rows, Tensor? pairs, "
    "Tensor q_pos, Tensor k_pos, Tensor? q_docs, Tensor? k_docs, Tensor? seed, "
    "int past, int future, int left, int rows_left, float scale, float dropout"
)
"""Arguments of forward and backward, named as in :class:`headway.backends.canonical.Canonical`."""
_TENSORS = _GIVEN.count("Tensor")


_SOURCE = Path(__file__).parent / "csrc"


def _fields(header: str) -> list[tuple[str, Any]]:
    """The fields of ``Call`` as the C++ header declares them, the only description of what Python passes.

    >>> _fields("struct Call {\\n  int64_t batch;\\n  const void *q, *k;  // pointers\\n};")[-1][0]
    'k'
    """
    (body,) = re.findall(r"struct Call \{\n(.*?)\n\};", header, re.DOTALL)
    numbers = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}
    found: list[tuple[str, Any]] = []
    for line in body.split("\n"):
        code = line.partition("//")[0].strip()
        if code:
            declared = re.fullmatch(r"(?:const )?(void|int64_t|double)(\*?) ([\w*, ]+);", code)
            assert declared, f"csrc/tile.h has a declaration that Python cannot parse: {code}"
            kind, star, names = declared.groups()
            for name in names.split(", "):
                pointer = bool(star) or name.startswith("*")
                found.append((name.removeprefix("*"), ctypes.c_void_p if pointer else numbers[kind]))
    return found


class _Call(ctypes.Structure):
    """One call, with the layout of ``Call`` in csrc/tile.h."""

    _fields_: ClassVar[Any] = _fields((_SOURCE / "tile.h").read_text(encoding="utf-8"))


@cache
def _loaded() -> ctypes.CDLL | str:
    """The compiled kernel, or the reason why there is none."""
    try:
        kernel = ctypes.CDLL(str(compiler.library(_SOURCE / "attention.cpp")))
    except (HeadwayError, OSError) as error:
        return str(error)
    assert kernel.headway_call_size() == ctypes.sizeof(_Call), "Python and the C++ compiler lay out a call differently"
    return kernel


def unavailable() -> str | None:
    """Why there is no kernel on this machine, or None if there is one; compiles it if needed."""
    found = _loaded()
    return found if isinstance(found, str) else None


# what torch.compiler.assume_constant_result sets; calling it would load all of torch.compile, more than a second
unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


TRANSFORMS = (GRAD, VMAP)


def refuses(call: Call) -> str | None:
    """See :class:`headway.backends.base.Backend`."""
    if call.device != "cpu":
        return f"it runs on the CPU, not on {call.device}"
    if call.q.dtype not in _KINDS:
        return f"it supports {', '.join(str(dtype).removeprefix('torch.') for dtype in _KINDS)}, not {call.q.dtype}"
    reason = canonical.unfit(call, (DenseBias,))
    if reason is None and (problem := unavailable()) is not None:
        return f"it could not be compiled ({problem})"
    return reason


def isolates(call: Call) -> bool:
    """NaN or inf of a token reaches only the results that see it, see :func:`_isolated`."""
    return True


def describe(call: Call) -> tuple[str, str]:
    """See :class:`headway.backends.base.Backend`."""
    return "exact", "O(queries + keys): fused"


def run(call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
    """See :class:`headway.backends.base.Backend`."""
    c = canonical.canonical(call)
    given = (
        *(c.q, c.k, c.v, c.keys, c.table, c.tails, c.rows, c.pairs),
        *(c.q_pos, c.k_pos, c.q_docs, c.k_docs, call.seed),
        *(c.past, c.future, c.left, c.rows_left, c.scale, call.dropout),
    )
    if not (call.training or transforms()):
        if not operators.are_seen(c.q, c.k, c.v):
            return inference(*given)
        operators.count(torch.ops.headway.native_inference, 0, 2)
        return cast(Tensor, torch.ops.headway.native_inference(*given))
    if operators.are_seen(c.q, c.k, c.v):
        operators.count(torch.ops.headway.native_forward, 0, 2)
        out, _ = _forward_op(*given)
    else:
        out, _ = _Attention.apply(*given)  # type: ignore[no-untyped-call]
    return cast(Tensor, out)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save what backward needs."""
    ctx.save_for_backward(*inputs[:_TENSORS], *output)
    ctx.numbers = inputs[_TENSORS:]


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradient of every input."""
    saved: list[Any] = [None if x is None else torch._C._functorch.unwrap_if_dead(x) for x in ctx.saved_tensors]
    needed = list(ctx.needs_input_grad[:8])
    seen = operators.are_seen(grad, *saved[:3])
    if seen:
        operators.count(torch.ops.headway.native_backward, 4, 5)
    compute = _backward_op if seen else _Backward.apply if transforms() else backward
    gradients = compute(grad, *saved[_TENSORS:], needed, *saved[:_TENSORS], *ctx.numbers)
    return (*(g if need else None for g, need in zip(gradients, needed, strict=True)), *(None,) * 11)


def _even(x: Tensor) -> Tensor:
    """The same values with the last dimension contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _put(call: _Call, name: str, x: Tensor, *strides: str) -> None:
    """Pass a tensor to the kernel: its address, and its strides by name."""
    setattr(call, name, x.data_ptr())
    for stride, size in zip(strides, x.stride(), strict=False):
        setattr(call, f"{name}_{stride}", size)


class _Prepared:
    """The arguments that forward and backward share; keeps alive the tensors that the kernel reads."""

    def __init__(self, *given: Any) -> None:
        q, k, v, keys, table, tails, rows, pairs, q_pos, k_pos, q_docs, k_docs, seed = given[:_TENSORS]
        past, future, left, rows_left, scale, dropout = given[_TENSORS:]
        self.call = call = _Call()
        self.kind = _KINDS[q.dtype]
        call.batch, call.heads, call.queries, call.dim = q.shape
        call.kv_heads, call.keys, call.dim_v = k.shape[1], k.shape[2], v.shape[3]
        call.past, call.future, call.scale, call.skip = past, future, scale, 1
        call.dropout = dropout
        self.kept: list[Tensor] = []
        for name, x in (("q", q), ("k", k), ("v", v)):
            self._keep(name, x, "batch", "head", "row")
        for name, x in (("q_pos", q_pos), ("k_pos", k_pos), ("q_docs", q_docs), ("k_docs", k_docs)):
            self._keep(name, x, "batch")
        self._keep("per_key", keys, "batch", "head")
        self._keep("rows", rows, "batch", "head", "row")
        for name, x in (("table", table), ("tails", tails), ("seed", seed)):
            self._keep(name, None if x is None else x.contiguous())
        if pairs is not None:
            self._keep("pairs", pairs, "batch", "head", "row")
            call.pairs_kind = _KINDS[pairs.dtype]
            for axis, name in ((0, "pairs_batch"), (1, "pairs_head")):
                if pairs.shape[axis] == 1:  # one for all
                    setattr(call, name, 0)
        if table is not None:
            call.width, call.left = table.shape[-1], left
        if rows is not None:
            call.rows_width, call.rows_left = rows.shape[-1], rows_left

    def _keep(self, name: str, x: Tensor | None, *strides: str) -> None:
        if x is not None:
            x = _even(x)
            self.kept.append(x)
            _put(self.call, name, x, *strides)

    def run(self, what: str) -> None:
        message = ctypes.create_string_buffer(256)
        if getattr(_loaded(), what)(ctypes.byref(self.call), self.kind, message):
            raise MemoryError(f"the CPU kernel failed: {message.value.decode()}")


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of sums."""
    return torch.promote_types(x.dtype, torch.float32)


def _by_token(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """The shape (B, H, N, D) as (B, N, H, D), the layout in which W_O reads heads: those of a token side by side."""
    return shape[0], shape[2], shape[1], shape[3]


def _results(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Empty tensors for what forward returns."""
    out = q.new_empty(_by_token((*q.shape[:3], v.shape[3]))).transpose(1, 2)
    return out, q.new_empty(*q.shape[:3], 2, dtype=_wide(q))


def forward(*given: Any) -> tuple[Tensor, Tensor]:
    """The output, and each row's greatest score and 1 / its sum of exponentials, (B, H, Q, 2)."""
    return _compute(given, inference=False)


def inference(*given: Any) -> Tensor:
    """The output, when no backward pass will follow."""
    return _compute(given, inference=True)[0]


def _compute(given: tuple[Any, ...], inference: bool) -> tuple[Tensor, Tensor]:
    # looking at the result instead of at what it was made from reads a long cache once, not twice
    out, sums = _run(given, inference)
    if math.isfinite(out.sum(dtype=_wide(out))):
        return out, sums
    clean, poisoned = _isolated(given)
    if poisoned is None:
        return out, sums
    out, sums = _run(clean, inference)
    return out.masked_fill_(poisoned[..., None], torch.nan), sums


def _isolated(given: tuple[Any, ...]) -> tuple[tuple[Any, ...], Tensor | None]:
    """What was given with zeros for tokens of q, k and v that hold NaN or inf, and which rows, (B, H, Q), see one.

    The kernel multiplies a hidden key's weight, 0, with its value, and 0 · NaN = NaN would reach rows that must not see
    it. Which rows see one, attention with equal weights tells: of a value that is 1 at bad keys it gives more than 0.
    """
    q, k, v, pairs, rest = *given[:3], given[7], given[8:]
    bad_row, bad_key = bad_tokens(q), bad_tokens(k) | bad_tokens(v)
    if not (bad_row.any() or bad_key.any()):
        return given, None
    zero_q, zero_k = torch.zeros_like(q), torch.zeros_like(k)
    share = torch.stack((bad_key, torch.ones_like(bad_key)), -1).to(q.dtype)
    hidden = None if pairs is None else torch.zeros_like(pairs).masked_fill_(pairs == -torch.inf, -torch.inf)
    equal, _ = _run((zero_q, zero_k, share, None, None, None, None, hidden, *rest[:-1], 0.0), inference=True)
    sees_bad, sees = (equal > 0).unbind(-1)
    q = q.masked_fill(bad_row[..., None], 0.0)
    k, v = (x.masked_fill(bad_key[..., None], 0.0) for x in (k, v))
    return (q, k, v, *given[3:]), sees_bad | (bad_row & sees)


def _run(given: tuple[Any, ...], inference: bool) -> tuple[Tensor, Tensor]:
    prepared, (q, _, v) = _Prepared(*given), given[:3]
    out, sums = _results(q, v)
    prepared.call.decoding = inference
    _put(prepared.call, "out", out, "batch", "head", "row")
    _put(prepared.call, "sums", sums)
    prepared.run("headway_forward")
    return out, sums


def _tasks(q: Tensor, k: Tensor, pairs: Tensor | None) -> int:
    """How many tasks can run at once: one per sequence and key head, fewer if they share a gradient."""
    sequences = q.shape[0] if pairs is None or pairs.shape[0] > 1 else 1
    return sequences * (k.shape[1] if pairs is None or pairs.shape[1] > 1 else 1)


def _splits(tasks: int, keys: int) -> int:
    """Number of tasks that share the keys of a head, so that all threads have work until the end.

    Each costs a copy of dQ; the order of summation, and with it the last bit, depends on their number.
    """
    threads, most = torch.get_num_threads(), max(1, keys // 256)
    for splits in range(1, most + 1):
        turns = math.ceil(tasks * splits / threads)
        if tasks * splits >= 0.9 * turns * threads:
            return splits
    return most


def backward(grad: Tensor, out: Tensor, sums: Tensor, needed: list[bool], *given: Any) -> list[Tensor]:
    """The gradients of q, k, v, keys, table, tails, rows and pairs; an empty tensor for those not needed."""
    if not math.isfinite(sum(x.sum(dtype=_wide(x)) for x in given[:3])):
        given, poisoned = _isolated(given)
        if poisoned is not None:
            grad, out = (x.masked_fill(poisoned[..., None], 0.0) for x in (grad, out))
    prepared = _Prepared(*given)
    q, k, v, keys, table, tails, rows, pairs = given[:8]
    call, wide = prepared.call, _wide(q)
    batch, heads, queries, dim = q.shape
    splits = call.splits = _splits(_tasks(q, k, pairs if needed[7] else None), k.shape[2])
    grad = _even(grad)
    for name, x in (("out", out), ("grad", grad)):
        _put(call, name, x, "batch", "head", "row")
    _put(call, "sums", sums)
    lanes = 64 // wide.itemsize
    d_q = q.new_empty(splits, batch, queries, heads, math.ceil(dim / lanes) * lanes, dtype=wide).transpose(2, 3)
    d_k, d_v = (x.new_empty(_by_token(x.shape)).transpose(1, 2) for x in (k, v))
    _put(call, "d_q", d_q, "split", "batch", "head", "row")
    for name, x in (("d_k", d_k), ("d_v", d_v)):
        _put(call, name, x, "batch", "head", "row")
    parts: dict[str, Tensor] = {}
    for name, x, need, shape, dtype in (
        ("d_per_key", keys, needed[3], (batch, heads, k.shape[2]), wide),
        ("d_table", table, needed[4], (splits, batch, heads, call.width), torch.float64),
        ("d_tails", tails, needed[5], (splits, batch, heads, 2), torch.float64),
        ("d_rows", rows, needed[6], (splits, batch, heads, queries, call.rows_width), wide),
        ("d_pairs", pairs, needed[7], () if pairs is None else pairs.shape, wide),
    ):
        if x is not None and need:
            parts[name] = q.new_zeros(shape, dtype=dtype)
            _put(call, name, parts[name])
    prepared.run("headway_backward")
    whole = d_q[0] if splits == 1 else d_q.sum(0)
    if whole.shape != q.shape or whole.dtype != q.dtype:
        whole = q.new_empty(_by_token(q.shape)).transpose(1, 2).copy_(whole[..., :dim])

    def summed(name: str, *dims: int) -> Tensor:
        return parts[name].sum(dims).to(wide) if name in parts else q.new_empty(0)

    return [
        whole,
        d_k,
        d_v,
        parts.get("d_per_key", q.new_empty(0)),
        summed("d_table", 0, 1),
        summed("d_tails", 0, 1),
        parts["d_rows"][0] if splits == 1 and "d_rows" in parts else summed("d_rows", 0),
        parts["d_pairs"].to(pairs.dtype) if "d_pairs" in parts else q.new_empty(0),
    ]


def _one_by_one(apply: Any, info: Any, in_dims: tuple[Any, ...], given: tuple[Any, ...]) -> Any:
    """The rule for ``vmap``: run the kernel once per entry of the mapped dimension."""

    def entry(at: int) -> Any:
        return apply(*(x.select(dim, at) if isinstance(dim, int) else x for x, dim in zip(given, in_dims, strict=True)))

    results = zip(*(entry(at) for at in range(info.batch_size)), strict=True)
    stacked = tuple(torch.stack(tensors) for tensors in results)
    return stacked, (0,) * len(stacked)


class _Attention(torch.autograd.Function):
    """The kernel as one differentiable step."""

    forward = staticmethod(forward)
    setup_context = staticmethod(_keep)
    backward = staticmethod(_differentiate)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *given: Any) -> Any:
        return _one_by_one(_Attention.apply, info, in_dims, given)


class _Backward(torch.autograd.Function):
    """The kernel's backward pass under ``torch.func.grad``, which unwraps the tensors of a function's forward pass."""

    @staticmethod
    def forward(*given: Any) -> tuple[Tensor, ...]:
        return tuple(backward(*given))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise HeadwayError(
            "expected one backward pass, because backend 'native' cannot be differentiated twice, got a gradient of a "
            "gradient: use backend='reference'"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *given: Any) -> Any:
        return _one_by_one(_Backward.apply, info, in_dims, given)


_forward_op = torch.library.custom_op(
    "headway::native_forward", forward, mutates_args=(), schema=f"({_GIVEN}) -> (Tensor, Tensor)"
)
_backward_op = torch.library.custom_op(
    "headway::native_backward",
    backward,
    mutates_args=(),
    schema=f"(Tensor grad, Tensor out, Tensor sums, bool[] needed, {_GIVEN}) -> Tensor[]",
)


# an operator of its own, as thin as torch allows: a step of decoding takes less time than custom_op's checks
_LIBRARY = torch.library.Library("headway", "FRAGMENT")
_LIBRARY.define(f"native_inference({_GIVEN}) -> Tensor")
_LIBRARY.impl("native_inference", inference, "CPU")


def _empty_result(*given: Any) -> Tensor:
    return _results(given[0], given[2])[0]


torch.library.register_fake("headway::native_inference", _empty_result)


@_forward_op.register_fake
def _(*given: Any) -> tuple[Tensor, Tensor]:
    return _results(given[0], given[2])


_forward_op.register_autograd(_differentiate, setup_context=_keep)


@_backward_op.register_fake
def _(grad: Tensor, out: Tensor, sums: Tensor, needed: list[bool], *given: Any) -> list[Tensor]:
    q, k, v = given[:3]
    terms = [
        x.new_empty(x.shape) if need and x is not None else q.new_empty(0)
        for x, need in zip(given[3:8], needed[3:], strict=True)
    ]
    return [*(x.new_empty(_by_token(x.shape)).transpose(1, 2) for x in (q, k, v)), *terms]


if __name__ == "__main__":
    print(unavailable() or "the CPU kernel is ready")
