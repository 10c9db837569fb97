"""Contenders, which compute a case: plain attention, our backends, and the usual ways to add a position bias in torch.

Every contender gets the same tensors and computes attention without its projections, including the rotations, tables
and masks. All except plain attention are a core of :class:`headway.Attention`, so each gets the same call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from headway.attending import Core
from headway.backends import BACKENDS
from headway.bench import floor
from headway.bench.cases import Built, Case, CoreCall, TooLarge, Unsupported, build
from headway.bench.measure import available_memory
from headway.bench.page import PLAIN
from headway.functional import check, loaded
from headway.terms import AnyTerm, RowTerm, Term, ValuesByDistance

OURS = "headway: "
"""What the names of our contenders begin with; the backend's name follows."""


@dataclass
class Work:
    """One contender on one case, ready to run repeatedly.

    Args:
        case: the case.
        built: its inputs.
        forward: computes attention, (B, H, Q, D).
        name: the contender's name.
        kept: tensors computed once, before timing, and kept, e.g. a constant bias.
        leaves: tensors that get a gradient, if they are not those of ``built``.
    """

    case: Case
    built: Built
    forward: Callable[[], Tensor]
    name: str
    kept: tuple[Tensor, ...] = ()
    leaves: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.leaves = self.leaves or self.built.leaves

    def step(self) -> dict[str, Tensor]:
        """Run once: the output, and the gradient of every input and parameter if the case has a backward pass."""
        if not self.case.backward:
            with torch.no_grad():
                return {"out": self.forward()}
        out = self.forward()
        gradients = torch.autograd.grad(out, list(self.leaves.values()), self.built.weight, allow_unused=True)
        found = {f"d{name}": one for name, one in zip(self.leaves, gradients, strict=True) if one is not None}
        return {"out": out.detach(), **found}

    @property
    def backend(self) -> str | None:
        """The backend that computes it; None for what is not ours."""
        return self.name.removeprefix(OURS) if self.name.startswith(OURS) else None

    def products(self) -> int:
        """Multiply-adds that it demands, see :mod:`headway.bench.floor`."""
        return floor.products(self.built)

    @property
    def held(self) -> int:
        """Bytes of inputs, parameters and precomputed tensors."""
        tensors = (*self.leaves.values(), *self.kept, *((self.built.weight,) if self.case.backward else ()))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


Contender = Callable[[str, Case], Work]
"""Prepares the work of a method on a case; raises Unsupported or TooLarge."""


def plain(method: str, case: Case) -> Work:
    """Fused attention without position, whatever the method."""
    built = build("none", case)
    gqa = case.kv_heads != case.heads
    return Work(
        case,
        built,
        lambda: scaled_dot_product_attention(built.q, built.k, built.v, is_causal=case.causal, enable_gqa=gqa),
        PLAIN,
    )


def ours(backend: str) -> Contender:
    """Attention as :class:`headway.Attention` computes it between its projections.

    Args:
        backend: a name of :data:`headway.backends.BACKENDS`, or "auto": the first that does not refuse, as in
            :func:`headway.functional.attend`.
    """

    def prepare(method: str, case: Case) -> Work:
        built = build(method, case)
        names = BACKENDS if backend == "auto" else (backend,)
        if names[0] not in BACKENDS:
            raise Unsupported(f"there is no backend {backend}, only {', '.join(BACKENDS)}")
        accepts: list[tuple[str, str]] = []

        def choose(given: CoreCall) -> Tensor:
            call = check(*given)
            refused = {name: loaded(name).refuses(call) for name in names}
            name = next((name for name in names if refused[name] is None), None)
            if name is None:
                raise Unsupported(refused[names[-1]] or "")
            accepts.append((name, loaded(name).describe(call)[1]))
            return given.empty()

        with torch.set_grad_enabled(case.backward):
            built.runs(choose)()
        ((name, memory),) = accepts
        if memory.startswith("O(queries · keys)"):
            fits(case)
        return Work(case, built, built.runs(Core(name)), OURS + name)

    return prepare


def materialised(method: str, case: Case) -> Work:
    """Fused attention with all terms, and the mask, as one tensor (B or 1, H, Q, K).

    A bias that needs no gradient is computed once, before timing, as one would share it among layers. A bias that does
    is computed in every step, and torch then takes its math path, which materialises all scores.
    """
    built = build(method, case)
    call = built.core_call()
    biases(call, "a bias")
    if not call.terms:
        raise Unsupported("the method adds no bias")
    fits(case, held=2 if not case.backward else 6)
    q_pos, k_pos = case.positions()
    hidden = ~call.mask.tile(q_pos, k_pos) if case.causal and call.mask is not None else None
    gqa = case.kv_heads != case.heads

    def bias(terms: tuple[AnyTerm, ...]) -> Tensor:
        tiles = [term.tile(q_pos, k_pos) for term in terms if isinstance(term, Term)]
        total = sum(tiles[1:], tiles[0])
        total = total if hidden is None else total.masked_fill(hidden, -torch.inf)
        return total.to(built.q.dtype).expand(-1, case.heads, -1, -1)

    constant = None if built.learned else bias(call.terms)

    def core(call: CoreCall) -> Tensor:
        added = bias(call.terms) if constant is None else constant
        return scaled_dot_product_attention(call.q, call.k, call.v, attn_mask=added, scale=call.scale, enable_gqa=gqa)

    return Work(case, built, built.runs(core), "SDPA + bias tensor", () if constant is None else (constant,))


def biases(call: CoreCall, what: str) -> None:
    """Refuse what cannot be expressed as a bias added to single scores before softmax.

    Raises:
        Unsupported: with the reason.
    """
    if call.normalise != "softmax":
        raise Unsupported(f"{what} cannot replace softmax, and the method normalises by {call.normalise}")
    for term in call.terms:
        if isinstance(term, RowTerm):
            raise Unsupported(f"{what} cannot see a whole row of scores")
        if isinstance(term, ValuesByDistance):
            raise Unsupported(f"{what} cannot act on values")


def eager(method: str, case: Case, *, wide: bool = False) -> Work:
    """The formula in plain torch, every step in the inputs' dtype; in float64 it is the reference for errors."""
    built = build(method, case, wide=wide)
    fits(case, held=6 if case.backward else 3, wide=wide)
    q_pos, k_pos = case.positions()
    groups = case.heads // case.kv_heads

    def core(call: CoreCall) -> Tensor:
        content = (call.q @ call.k.repeat_interleave(groups, 1).mT) * call.scale
        seen = None if call.mask is None else call.mask.tile(q_pos, k_pos)
        score = content
        for term in call.terms:
            if isinstance(term, Term):
                score = score + term.tile(q_pos, k_pos).to(score.dtype)
            elif isinstance(term, RowTerm):
                score = score + term.rows(content, seen, q_pos, k_pos).to(score.dtype)
        if call.normalise not in ("softmax", "stickbreaking", "stickbreaking+remainder"):
            raise Unsupported(f"no formula here for normalise={call.normalise!r}")
        if call.normalise != "softmax":  # a key's share of what the keys between it and the query left over
            before = (k_pos[:, None] < q_pos[..., None])[:, None]
            part = score.sigmoid().masked_fill(~(before if seen is None else before & seen), 0.0)
            left = (1 - part).flip(-1).cumprod(-1).flip(-1)
            share = part * pad(left[..., 1:], (0, 1), value=1.0)
            if call.normalise.endswith("+remainder"):
                own = (k_pos[:, None] == q_pos[..., None])[:, None]
                share = share + own * left[..., :1]
        else:
            share = (score if seen is None else score.masked_fill(~seen, -torch.inf)).softmax(-1)
        out = share @ call.v.repeat_interleave(groups, 1)
        for term in call.terms:
            if isinstance(term, ValuesByDistance):
                out = out + term.add(share, q_pos, k_pos).to(out.dtype)
        return out

    return Work(case, built, built.runs(core), "eager")


def fits(case: Case, *, held: int | None = None, wide: bool = False) -> None:
    """Refuse a case whose materialised scores would take more than half of the free memory.

    Args:
        case: the case.
        held: number of such tensors at the peak; by default as many as torch's math path needs.
        wide: in float64.

    Raises:
        TooLarge: with the memory needed.
    """
    held = (6 if case.backward else 3) if held is None else held
    # a CPU's math path computes in float32 at least
    size = 8 if wide else max(case.torch_dtype.itemsize, 4 if case.device == "cpu" else 0)
    need = held * case.pairs * size
    if need > available_memory(case.device) / 2:
        raise TooLarge(f"needs {need / 2**30:.3g} GiB")
