"""When a kernel of ours is called as an operator of torch, so that torch's own tools see it, and what it costs.

A dispatched operator costs some microseconds more than a plain call, so a kernel is one only where somebody looks:
under ``torch.compile``, in a dispatch mode (as ``FlopCounterMode`` or ``FakeTensorMode``), with a profiler, or with
tensors of a class of their own.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_PLAIN = (Tensor, nn.Parameter)


def are_seen(*tensors: Tensor | None) -> bool:
    """Whether a call with these tensors should be an operator."""
    if torch.compiler.is_compiling():
        return True
    if torch._C._len_torch_dispatch_stack() or torch._C._autograd._profiler_enabled():
        return True
    return any(x is not None and type(x) not in _PLAIN for x in tensors)


def count(operator: Any, at: int, products: int) -> None:
    """Let torch's flop counter know an attention operator, if it is loaded.

    As for torch's own attention, all pairs of a query and a key are counted, whatever a mask hides.

    Args:
        operator: from ``torch.library.custom_op``.
        at: which of its inputs is q, before k and v.
        products: matrix products over all pairs: 2 forward, 5 backward; the odd one is as wide as the keys.
    """
    counting: Any = sys.modules.get("torch.utils.flop_counter")
    if counting is None or torch.compiler.is_compiling():
        return
    packet = operator._opoverload.overloadpacket
    if packet not in counting.flop_registry:

        def formula(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
            (batch, heads, queries, dim), (_, _, keys, _), (*_, dim_v) = shapes[at : at + 3]
            return int(2 * batch * heads * queries * keys * ((products + 1) // 2 * dim + products // 2 * dim_v))

        counting.register_flop_formula(packet)(formula)
    for mode in _get_current_dispatch_mode_stack():  # a counter has a copy of the registry, made when it began
        if (counter := getattr(mode, "counter", None)) is not None:
            counter.flop_registry.setdefault(packet, counting.flop_registry[packet])
