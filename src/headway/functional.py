"""Attention as a function: checks its arguments, and chooses a backend.

out_i = Σ_j softmax_j( scale · q_i·k_j + terms(i, j) under mask(i, j) ) · v_j
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway.backends import BACKENDS, SHIPPED
from headway.backends.base import Backend, Call, transforms
from headway.integers import Array, Integers, as_positions, exporting
from headway.masks import Before, Causal, Dense, Mask, divided, fitted, padding
from headway.schema import Number, require
from headway.shapes import HeadwayError, as_count, as_number, brief, broadcasts, contents
from headway.terms import AnyTerm, DenseBias, LowRankBias

DROPOUT = Number(0, below=1)
_ADDED: dict[str, Any] = {
    name: importlib.import_module(f"headway.backends.{name}") for name in BACKENDS if name not in SHIPPED
}


def attend(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch kv_heads keys dim"],
    v: Float[Tensor, "batch kv_heads keys dim_v"],
    *,
    mask: Mask | Tensor | Array | None = None,
    terms: Sequence[AnyTerm] = (),
    q_pos: Integers | None = None,
    k_pos: Integers | None = None,
    scale: float | None = None,
    normalise: str = "softmax",
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    backend: str = "auto",
) -> Float[Tensor, "batch heads queries dim_v"]:
    """Scaled dot-product attention with positions.

    A query that sees no key gets zeros and zero gradients. NaN or inf in a masked key, value or query does not spread.

    Args:
        q: queries, (B, H, Q, D).
        k: keys, (B, H_kv, K, D), where H_kv divides H.
        v: values, (B, H_kv, K, D_v).
        mask: which keys each query may see, see :mod:`headway.masks`; a boolean tensor, (B or 1, H or 1, Q, K), (B or
            1, Q, K) or (Q, K), becomes :class:`headway.masks.Dense`; a float tensor is added to the scores, as
            :class:`headway.terms.DenseBias`.
        terms: terms added to scores or values, see :mod:`headway.terms`.
        q_pos: integer positions of the queries below 2⁴⁰, (B or 1, Q) or (Q,), as a tensor, array or list; -1 is
            padding. Default 0 … Q−1.
        k_pos: integer positions of the keys, likewise. Default 0 … K−1.
        scale: multiplies q·k; default 1/√D, with which the scores of independent unit-variance entries have variance 1.
        normalise: how scores become weights: "softmax", or "stickbreaking" (arXiv:2410.17980), where key j gets the
            share σ(s_j) of what the keys between it and the query left over. A query then sees only keys at earlier
            positions, the last in memory counts as the nearest, and weights sum to at most 1. With
            "stickbreaking+remainder" the query's own key gets the rest; the queries must then be the last of the keys.
        softcap: c in c·tanh(scale·q·k / c), which keeps the content part of scores within ±c, before terms are added
            (Gemma 2, arXiv:2408.00118). Default none.
        sinks: for each head the score of an additional key whose value is zero, (H,): weights then sum to less than 1,
            and a head can attend to nothing (gpt-oss). Default none.
        dropout: share of the attention weights set to zero, the others divided by 1 − dropout; from 0 to below 1.
        seed: decides which weights are dropped: the same seed drops the same pairs, in every backend and both passes;
            default drawn from torch's generator.
        backend: "auto" or a name of :data:`headway.backends.BACKENDS`; a named backend that cannot run the call raises,
            with its reason.

    Raises:
        HeadwayError: on arguments that do not fit each other, a backend that refuses, or (in backward) a second
            derivative of a backend other than "reference".

    >>> q = k = v = torch.eye(3).reshape(1, 1, 3, 3)
    >>> attend(q, k, v, mask=Causal(), scale=0.0)[0, 0, 1].tolist()
    [0.5, 0.5, 0.0]
    """
    call = check(q, k, v, mask, terms, q_pos, k_pos, scale, normalise, softcap, sinks, dropout, seed)
    return attend_checked(call, backend)


def attend_checked(call: Call, backend: str) -> Float[Tensor, "batch heads queries dim_v"]:
    """Run a call that :func:`check` returned."""
    call = folded(call)
    route = choose(call, backend)
    chosen = loaded(route)
    alone = hasattr(chosen, "isolates") and chosen.isolates(call)
    poisoned = None
    if not alone:
        from headway.backends.isolation import isolated

        call, poisoned = isolated(call, _probe)
    out = chosen.run(call)
    if route != "reference" and out.requires_grad and not torch.compiler.is_compiling() and not transforms():
        out.register_hook(partial(_refuse_second_backward, route))
    return out if poisoned is None else out.masked_fill(poisoned[..., None], torch.nan)


def folded(call: Call) -> Call:
    """The call with low-rank biases appended to queries and keys as more dimensions: q·k + q_b·k_b is one product."""
    found = [term for term in call.terms if isinstance(term, LowRankBias)]
    (batch, heads, queries, _), (_, kv_heads, keys, _) = call.q.shape, call.k.shape
    if not found or call.softcap is not None or call.row_terms or call.scale == 0:
        return call
    if any(not broadcasts(len(x), batch) for term in found for x in (term.q, term.k)):
        return call
    if any(not broadcasts(term.k.shape[1], kv_heads) for term in found):
        return call
    q = [(term.q / call.scale).to(call.q.dtype).expand(batch, heads, queries, -1) for term in found]
    k = [term.k.to(call.k.dtype).expand(batch, kv_heads, keys, -1) for term in found]
    rest = tuple(term for term in call.terms if not isinstance(term, LowRankBias))
    return replace(call, q=torch.cat((call.q, *q), -1), k=torch.cat((call.k, *k), -1), terms=rest)


def _refuse_second_backward(route: str, gradient: Tensor | None) -> None:
    # grad mode is on in a backward pass only if the pass will itself be differentiated
    if torch.is_grad_enabled():
        raise HeadwayError(
            f"expected one backward pass, because backend {route!r} cannot be differentiated twice, "
            f"got create_graph=True: use backend='reference'"
        )


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | Tensor | Array | None,
    terms: Sequence[AnyTerm],
    q_pos: Integers | None,
    k_pos: Integers | None,
    scale: float | None,
    normalise: str,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    *,
    looked_at: bool = False,
) -> Call:
    """Check the arguments of :func:`attend` and fill in its defaults; arguments and errors are those of attend.

    Args:
        looked_at: whether positions are known to be in range, as those of a cache are.
    """
    _check_tensors(q, k, v)
    if not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None:
        raise HeadwayError(
            "expected torch.export.export, because torch.jit.trace keeps lengths and positions as constants, got "
            "torch.jit.trace: export the model, or compile it"
        )
    scale = max(q.shape[-1], 1) ** -0.5 if scale is None else as_number(scale, "a finite scale")
    if softcap is not None:
        softcap = as_number(softcap, "a finite softcap above 0, or None", 0)
    if sinks is not None:
        _check_sinks(sinks, q)
    if not torch.compiler.is_compiling():
        require(dropout, DROPOUT, "dropout")
    mask, terms = with_bias(mask, terms)
    mask, real = padding(fitted(mask, q.shape[0], q.shape[2], k.shape[2], q.device))
    if real is not None:
        if not broadcasts(real.shape[0], k.shape[0]) or real.shape[1] != k.shape[2]:
            raise HeadwayError(
                f"expected a (batch or 1, keys) KeyPadding over {k.shape[2]} keys, including cached ones, got "
                f"one of shape {tuple(real.shape)}"
            )
        places = (
            torch.arange(k.shape[2], device=k.device)[None] if k_pos is None else as_positions(k_pos, k[:, 0], "k_pos")
        )
        if q_pos is None and q.shape[2] == k.shape[2]:
            q_pos = torch.arange(q.shape[2], device=q.device)
        k_pos = places.masked_fill(~real, -1)
    past = _check_normalise(normalise, q, k, sinks)
    if past is not None:
        mask = past if mask is None else mask & past
    _check_terms(terms, q, k, v)
    queries, keys = q.shape[2], k.shape[2]
    compared = len(terms) > 0 or not (mask is None or isinstance(mask, Dense))
    if queries != keys and compared and (q_pos is None or k_pos is None):
        raise HeadwayError(
            f"expected q_pos and k_pos, because a mask or term compares {queries} queries with {keys} keys by "
            f"position, got none: for the newest tokens of a cache pass q_pos=torch.arange({max(keys - queries, 0)}, "
            f"{max(keys - queries, 0) + queries}) and k_pos=torch.arange({keys})"
        )
    default_positions = q_pos is None and k_pos is None
    q_pos = as_positions(q_pos, q[:, 0], "q_pos", looked_at)
    k_pos = q_pos if default_positions and queries == keys else as_positions(k_pos, k[:, 0], "k_pos", looked_at)
    return Call(
        q,
        k,
        v,
        q_pos,
        k_pos,
        mask,
        terms,
        scale,
        normalise,
        default_positions,
        q.device.type,
        softcap,
        sinks,
        dropout,
        as_seed(seed) if dropout else None,
    )


def as_seed(seed: int | Tensor | None) -> Tensor:
    """The seed of a call's dropout as a tensor (1,) on the CPU; None draws one from torch's generator.

    Raises:
        HeadwayError: when it is not a whole number.
    """
    if seed is None:
        return torch.randint(2**62, (1,))
    if isinstance(seed, Tensor) and seed.dtype is torch.int64 and seed.numel() == 1 and seed.device.type == "cpu":
        return seed.reshape(1)
    return torch.tensor([as_count(seed, "a seed of at least 0")])


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, given in (("q", q), ("k", k), ("v", v)):
        if not isinstance(given, Tensor):
            raise HeadwayError(f"expected {name} as a tensor, got {type(given).__name__}")
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise HeadwayError(f"expected q, k and v of shape (batch, heads, tokens, head width), got {shapes}")
    if not (q.shape[0] == k.shape[0] == v.shape[0]):
        raise HeadwayError(f"expected q, k and v with the same batch size, got {shapes}")
    if q.shape[3] != k.shape[3]:
        raise HeadwayError(f"expected queries and keys with the same head width, got {shapes}")
    if k.shape[1:3] != v.shape[1:3]:
        raise HeadwayError(f"expected as many values as keys, in as many heads, got {shapes}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise HeadwayError(f"expected the key heads to divide the query heads, got {shapes}")
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise HeadwayError(f"expected q, k and v of one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not (q.device == k.device == v.device):
        raise HeadwayError(f"expected q, k and v on one device, got {q.device}, {k.device}, {v.device}")


def _check_sinks(sinks: Tensor, q: Tensor) -> None:
    if not isinstance(sinks, Tensor) or not sinks.is_floating_point():
        got = sinks.dtype if isinstance(sinks, Tensor) else type(sinks).__name__
        raise HeadwayError(f"expected sinks as a float tensor, one per query head, got {got}")
    if tuple(sinks.shape) != (q.shape[1],) or sinks.device != q.device:
        raise HeadwayError(
            f"expected sinks of shape ({q.shape[1]},), one per query head, on {q.device}, "
            f"got {tuple(sinks.shape)} on {sinks.device}"
        )


def _check_normalise(normalise: str, q: Tensor, k: Tensor, sinks: Tensor | None) -> Mask | None:
    """The additional mask of stick-breaking: only earlier positions."""
    if not isinstance(normalise, str):
        raise HeadwayError(f"expected normalise as text, 'softmax' or 'stickbreaking', got {brief(normalise)}")
    if normalise not in ("stickbreaking", "stickbreaking+remainder"):
        return None
    if sinks is not None:
        raise HeadwayError(
            "expected no sinks with normalise='stickbreaking', whose weights already sum to less than 1, got some: "
            "leave them out"
        )
    if normalise == "stickbreaking":
        return Before()
    if q.shape[2] > k.shape[2]:
        raise HeadwayError(
            f"expected a key for each query, to take the remainder of the stick, got {q.shape[2]} "
            f"queries and {k.shape[2]} keys: use normalise='stickbreaking'"
        )
    return Causal()


def with_bias(mask: Mask | Tensor | Array | None, terms: Sequence[AnyTerm]) -> tuple[Mask | None, tuple[AnyTerm, ...]]:
    """The mask and the terms of a call; a float mask, as torch's ``attn_mask`` may be, becomes a term."""
    mask, added = divided(mask)
    return mask, as_terms(terms) if added is None else (*as_terms(terms), DenseBias(added))


def as_terms(terms: Sequence[AnyTerm]) -> tuple[AnyTerm, ...]:
    """Terms as a tuple.

    Raises:
        HeadwayError: when they are not a tuple or list.
    """
    if not isinstance(terms, Sequence) or isinstance(terms, str | bytes):
        raise HeadwayError(f"expected a tuple or list of terms of headway.terms, got {type(terms).__name__}")
    return tuple(terms)


def _check_terms(terms: tuple[AnyTerm, ...], q: Tensor, k: Tensor, v: Tensor) -> None:
    for term in terms:
        if not isinstance(term, AnyTerm):
            raise HeadwayError(f"expected terms of headway.terms, got {type(term).__name__}")
        for name, held in contents(term).items():
            if isinstance(held, Tensor) and held.device != q.device:
                raise HeadwayError(f"expected the {name} of {type(term).__name__} on {q.device}, got {held.device}")
        term.fits(q.shape[1], q.shape[2], k.shape[2], v.shape[3])


def loaded(name: str) -> Backend:
    """A backend, imported when it is first needed."""
    # import statements, because torch.compile follows them; it cannot follow importlib
    match name:
        case "native":
            from headway.backends import native

            return native
        case "triton":
            from headway.backends import triton

            return triton
        case "sdpa":
            from headway.backends import sdpa

            return sdpa
        case "flex":
            from headway.backends import flex

            return flex
        case "tiled":
            from headway.backends import tiled

            return tiled
        case "reference":
            from headway.backends import reference

            return reference
        case _:
            added: Backend = _ADDED[name]
            return added


def refusal(name: str, call: Call) -> str | None:
    """Why a backend cannot run the call, under the active transforms of torch.func too; None when it can."""
    backend = loaded(name)
    beyond = [active for active in transforms() if active not in getattr(backend, "TRANSFORMS", ())]
    return f"it does not run under {' and '.join(beyond)}" if beyond else backend.refuses(call)


def _unexportable(name: str) -> str | None:
    """Why ``auto`` takes no such backend into an exported program."""
    if not exporting() or getattr(loaded(name), "EXPORTS", False):
        return None
    return "an exported program consists of torch's own operators and serves every length"


def choose(call: Call, backend: str) -> str:
    """The backend that runs a call: this one, or with ``auto`` the first that does not refuse it."""
    if not isinstance(backend, str) or backend != "auto":
        if not isinstance(backend, str) or backend not in BACKENDS:
            raise HeadwayError(f"expected backend 'auto' or one of {', '.join(BACKENDS)}, got {brief(backend)}")
        reason = refusal(backend, call)
        if reason is not None:
            raise HeadwayError(f"backend {backend!r} cannot run this call: {reason}; backend='auto' finds one that can")
        return backend
    refusals = []
    # one query in compiled code: torch's own operator is called without Python
    one = torch.compiler.is_compiling() and call.q.shape[2] == 1 and not call.training
    for name in ("sdpa", *BACKENDS) if one else BACKENDS:
        reason = _unexportable(name) or refusal(name, call)
        if reason is None:
            return name
        refusals.append(f"{name}: {reason}")
    raise HeadwayError("no backend can run this call: " + "; ".join(refusals))


def part_of(call: Call, backend: str) -> ModuleType:
    """What computes attention over some of the keys, to be merged: ``partial(call)`` and ``within(call, whole)``.

    Raises:
        HeadwayError: when the named backend does not.
    """
    from headway.backends import native
    from headway.backends.tiled import parts

    reason = native.refuses(call) or (None if native.isolates(call) else "its kernel for such terms takes all keys")
    if reason is None and backend in ("auto", "native"):
        return native.softmax
    if backend not in ("auto", "tiled"):
        reason = reason if backend == "native" else "it takes all keys of a query at once"
        raise HeadwayError(f"backend {backend!r} cannot compute a part of the keys: {reason}; backend='auto' can")
    return parts


def _probe(call: Call) -> Tensor:
    """Attention by whichever backend can."""
    return loaded(choose(call, "auto")).run(call)
