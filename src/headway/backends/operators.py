"""When to call a kernel as an operator of torch, so that torch's own tools see it; and its count of operations.

A dispatched operator costs some microseconds more than a plain call, so a kernel is called as one only where it can be
observed: under ``torch.compile``, in a dispatch mode (e.g. ``FlopCounterMode`` or ``FakeTensorMode``), with a profiler,
or with tensor subclasses.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_PLAIN = (Tensor, nn.Parameter)


def are_seen(*tensors: Tensor | None) -> bool:
    """Whether a call with these tensors should be dispatched as an operator."""
    return are_followed(*tensors) or torch._C._autograd._profiler_enabled()


def are_followed(*tensors: Tensor | None) -> bool:
    """Whether operations on these tensors are compiled, counted, or done by other code than torch's own."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return True
    return bool(tensors) and any(x is not None and type(x) not in _PLAIN for x in tensors)


def count(operator: Any, at: int, products: int) -> None:
    """Register an attention operator with torch's flop counter, if that is loaded.

    As for torch's own attention, all pairs of a query and a key are counted, whether or not a mask hides them.

    Args:
        operator: of ``torch.ops.headway``.
        at: which of its inputs is q; k and v follow.
        products: matrix products over all pairs: 2 forward, 5 backward; the odd one has the width of the keys.
    """
    counting: Any = sys.modules.get("torch.utils.flop_counter")
    if counting is None or torch.compiler.is_compiling():
        return
    if operator not in counting.flop_registry:

        def formula(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
            (batch, heads, queries, dim), (_, _, keys, _), (*_, dim_v) = shapes[at : at + 3]
            return int(2 * batch * heads * queries * keys * ((products + 1) // 2 * dim + products // 2 * dim_v))

        counting.register_flop_formula(operator)(formula)
    for mode in _get_current_dispatch_mode_stack():  # a counter copies the registry when it is created
        if (counter := getattr(mode, "counter", None)) is not None:
            counter.flop_registry.setdefault(operator, counting.flop_registry[operator])
