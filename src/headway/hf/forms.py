"""What a model's own attention computes, found by running it: the formula of its ``eager_attention_forward``.

Every model file of transformers defines that function. Rather than trusting names, it is run in float64 on random
tensors and compared with headway's formula for each of the things it may do besides plain attention; a function whose
values differ from all of them is unknown, and the model that has it is left alone.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway.backends.reference import run
from headway.functional import check
from headway.terms import AnyTerm, ByDistancePerQuery, DenseBias

_KNOWN = {"module", "query", "key", "value", "attention_mask", "scaling", "dropout", "kwargs", "softcap"}
_KNOWN |= {"position_bias", "sinks", "sliding_window", "query_states", "key_states", "value_states"}


@dataclass(frozen=True)
class Form:
    """What a model's attention does besides plain attention.

    Args:
        scale: what it multiplies q·k by when the caller names no scale: "width" 1/√(width of q), "head_dim"
            1/√(module.head_dim), None where the caller always does.
        sinks: whether it uses ``module.sinks``.
        softcap: whether it takes a softcap.
        bias: whether it takes a position bias.
        token_sinks: whether it takes a sink for each head and query.
    """

    scale: str | None = "width"
    sinks: bool = False
    softcap: bool = False
    bias: bool = False
    token_sinks: bool = False


def eager_of(kind: type) -> Callable[..., Any] | None:
    """The function that a class of attention calls when its implementation is "eager"; None when there is none."""
    for base in kind.__mro__:
        file = sys.modules.get(base.__module__)
        if base.__module__.startswith("headway.") or "forward" not in vars(base):
            continue
        names = vars(base)["forward"]
        used = _names(inspect.unwrap(names))
        for name in ("eager_attention_forward", "simple_eager_attention_forward"):
            if name in used and hasattr(file, name):
                found: Callable[..., Any] = getattr(file, name)
                return found
        return None
    return None


def _names(function: Any) -> tuple[str, ...]:
    return function.__code__.co_names if hasattr(function, "__code__") else ()


def formula(kind: type) -> Form | None:
    """The formula of a class of attention; None when it is not known."""
    eager = eager_of(kind)
    return None if eager is None else form_of(eager)


def with_token_sinks(
    terms: tuple[AnyTerm, ...], sinks: Float[Tensor, "batch heads queries 1"] | None
) -> tuple[tuple[AnyTerm, ...], Float[Tensor, " heads"] | None]:
    """Terms and sinks per head that amount to a sink for each query: it is subtracted from all scores of the query.

    >>> with_token_sinks((), torch.ones(1, 2, 3, 1))[1].tolist()
    [0.0, 0.0]
    """
    if sinks is None:
        return terms, None
    return (*terms, ByDistancePerQuery(-sinks, 0)), sinks.new_zeros(sinks.shape[1])


class _Probe(torch.nn.Module):
    """Has what an attention function may read of its module."""

    def __init__(self, heads: int, groups: int, head_dim: int) -> None:
        super().__init__()
        self.num_key_value_groups, self.head_dim = groups, head_dim
        self.sinks = torch.randn(heads, dtype=torch.float64)


@cache
def form_of(eager: Callable[..., Any]) -> Form | None:
    """The formula of such a function; None when it is not known."""
    parameters = inspect.signature(eager).parameters
    if not parameters.keys() <= _KNOWN:
        return None
    extras = tuple(name for name in ("softcap", "position_bias", "sinks") if name in parameters)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
        torch.manual_seed(0)
        try:
            for sinks in (False, True):
                if _agrees(eager, sinks, extras, 0.3):
                    scales = ("width", "head_dim")
                    named = parameters["scaling"].default is inspect.Parameter.empty
                    fits = (scale for scale in scales if not named and _agrees(eager, sinks, extras, scale))
                    taken = ("softcap" in extras, "position_bias" in extras, "sinks" in extras)
                    return Form(None if named else next(fits), sinks, *taken)
        except (StopIteration, AttributeError, TypeError, RuntimeError, ValueError, KeyError):
            return None
    return None


def _agrees(eager: Callable[..., Any], sinks: bool, extras: tuple[str, ...], scale: float | str) -> bool:
    """Whether the function computes this formula, with and without a mask, grouped heads, and each extra."""
    for heads, groups in ((3, 1), (4, 2)):
        kv_heads = heads // groups
        module = _Probe(heads, groups, 7).eval()
        q = torch.randn(2, heads, 4, 5, dtype=torch.float64)
        k, v = torch.randn(2, 2, kv_heads, 6, 5, dtype=torch.float64)
        seen = torch.rand(2, 1, 4, 6) > 0.4
        seen[..., 0] = True
        added = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)
        table = torch.randn(1, heads, 4, 6, dtype=torch.float64)
        number = {"width": 5**-0.5, "head_dim": 7**-0.5}.get(str(scale), scale)
        values: dict[str, Any] = {
            "softcap": 1.5,
            "position_bias": table,
            "sinks": torch.randn(2, heads, 4, 1, dtype=torch.float64),
        }
        for more in ({}, *({name: values[name]} for name in extras)):
            passed: dict[str, Any] = {"scaling": None if isinstance(scale, str) else scale, "dropout": 0.0, **more}
            try:
                out = eager(module, q, k, v, added, **passed)[0].transpose(1, 2)
            except RuntimeError:  # it takes as many key heads as query heads
                if groups > 1:
                    break
                raise
            terms, zeros = with_token_sinks((DenseBias(table),) if "position_bias" in more else (), more.get("sinks"))
            given = (seen, terms, range(4), range(6), number, "softmax", more.get("softcap"))
            expected = run(check(q, k, v, *given, module.sinks if sinks else zeros))  # type: ignore[arg-type]
            if not torch.allclose(out.double(), expected, rtol=0, atol=1e-5):
                return False
    return True
