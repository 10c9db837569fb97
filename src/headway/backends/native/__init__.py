"""C++ kernels for CPUs: attention with positions at the speed of plain attention, forward and backward.

Each file computes one kind of call: ``softmax``, attention with any sum of pair terms; ``path``, where the tokens
between a query and a key act on their product; ``mix``, a network across heads before the softmax; ``scan``,
stick-breaking and sums along a row. Memory is O(queries + keys), in ``scan`` plus a value for each 256 pairs. Sums are
float32 (float64 for float64), and results have the same bits in every run with the same number of threads.

The sources are in ``csrc``, beside this folder; each is compiled for the machine once, when first needed.
``python -m headway.backends.native`` compiles them beforehand, or reports why that fails.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from headway.backends.base import GRAD, VMAP, Call, full_precision
from headway.backends.native import mix, path, scan, softmax
from headway.backends.native.library import KINDS, unavailable

TRANSFORMS = (GRAD, VMAP)


@runtime_checkable
class Part(Protocol):
    """The contract of the files here.

    Args:
        SOURCE: the file of ``csrc`` with its kernel.
        MEMORY: how it grows, in words.
    """

    SOURCE: str
    MEMORY: str

    def unfit(self, call: Call) -> str | None:
        """Why the kernel cannot run a call of the kind, or None when it can. Depends on kinds, never on values."""

    def run(self, call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
        """Compute attention."""


def _part(call: Call) -> Part:
    """The file that computes this kind of call."""
    if call.by_rows is None:  # the other files compute what needs a query's whole row at once
        return softmax
    return next((part for part in (mix, path, scan) if part.fits(call)), softmax)


def refuses(call: Call) -> str | None:
    """See :class:`headway.backends.base.Backend`."""
    if call.device != "cpu":
        return f"it runs on the CPU, not on {call.device}"
    if call.q.dtype not in KINDS:
        return f"it supports {', '.join(str(dtype).removeprefix('torch.') for dtype in KINDS)}, not {call.q.dtype}"
    part = _part(call)
    reason = part.unfit(call)
    if reason is None and (problem := unavailable(part.SOURCE)) is not None:
        return f"it could not be compiled ({problem})"
    return reason


def isolates(call: Call) -> bool:
    """NaN or inf of a token reaches only the results that see it: the kernel of softmax attention sees to it itself."""
    return _part(call) is softmax


def describe(call: Call) -> tuple[str, str]:
    """See :class:`headway.backends.base.Backend`."""
    return "exact", _part(call).MEMORY


def run(call: Call) -> Float[Tensor, "batch heads queries dim_v"]:
    """See :class:`headway.backends.base.Backend`."""
    with full_precision(call.device):
        return _part(call).run(call)
