"""Who computes a case: plain attention, our backends, and torch in the ways people use it with a position bias.

Every contender gets the same tensors and its work is attention without its projections: rotations, tables and masks
made from them included. All but plain attention are a core in :class:`headway.Attention`, which asks each of them for
the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from headway.attending import Core
from headway.backends import BACKENDS
from headway.bench.cases import Asked, Built, Case, TooLarge, Unsupported, build
from headway.bench.measure import available_memory
from headway.bench.page import PLAIN
from headway.functional import _load, check
from headway.terms import AnyTerm, RowTerm, Term, ValuesByDistance


@dataclass
class Work:
    """One contender on one case, ready to run again and again.

    Args:
        case: the case.
        built: its inputs.
        forward: computes attention, (B, H, Q, D).
        name: who computes it.
        kept: what it made once, before the clock, and holds, e.g. a constant bias.
        leaves: what gets a gradient, where that is not what the method built.
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
        """Run once: the output, and the gradient of every input and parameter where the case asks for them."""
        if not self.case.backward:
            with torch.no_grad():
                return {"out": self.forward()}
        out = self.forward()
        gradients = torch.autograd.grad(out, list(self.leaves.values()), self.built.weight, allow_unused=True)
        found = {f"d{name}": one for name, one in zip(self.leaves, gradients, strict=True) if one is not None}
        return {"out": out.detach(), **found}

    @property
    def held(self) -> int:
        """Bytes of inputs, parameters and what was made once."""
        tensors = (*self.leaves.values(), *self.kept, *((self.built.weight,) if self.case.backward else ()))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


Contender = Callable[[str, Case], Work]
"""Prepares the work of a method on a case; raises Unsupported or TooLarge."""


def plain(method: str, case: Case) -> Work:
    """Fused attention without any position, whatever the method."""
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
        backend: a name of :data:`headway.backends.BACKENDS`, or "auto": the first that does not refuse, as attention
            itself would choose.
    """

    def prepare(method: str, case: Case) -> Work:
        built = build(method, case)
        names = BACKENDS if backend == "auto" else (backend,)
        if names[0] not in BACKENDS:
            raise Unsupported(f"there is no backend {backend}, only {', '.join(BACKENDS)}")
        accepts: list[tuple[str, str]] = []

        def choose(asked: Asked) -> Tensor:
            call = check(*asked)
            refused = {name: _load(name).refuses(call) for name in names}
            name = next((name for name in names if refused[name] is None), None)
            if name is None:
                raise Unsupported(refused[names[-1]] or "")
            accepts.append((name, _load(name).describe(call)[1]))
            return asked.q

        with torch.set_grad_enabled(case.backward):
            built.runs(choose)()
        ((name, memory),) = accepts
        if memory.startswith("O(queries · keys)"):
            fits(case)
        return Work(case, built, built.runs(Core(name)), f"headway: {name}")

    return prepare


def materialised(method: str, case: Case) -> Work:
    """Fused attention with all terms, and the mask, as one tensor (B or 1, H, Q, K).

    A bias that needs no gradient is made once, before the clock, as one would keep it for all layers. One that does is
    made in every step, and torch then takes its math path, which holds all scores.
    """
    built = build(method, case)
    asked = built.asks()
    biases(asked, "a bias")
    if not asked.terms:
        raise Unsupported("the method adds no bias")
    fits(case, held=2 if not case.backward else 6)
    q_pos, k_pos = case.positions()
    hidden = ~asked.mask.tile(q_pos, k_pos) if case.causal and asked.mask is not None else None
    gqa = case.kv_heads != case.heads

    def bias(terms: tuple[AnyTerm, ...]) -> Tensor:
        tiles = [term.tile(q_pos, k_pos) for term in terms if isinstance(term, Term)]
        total = sum(tiles[1:], tiles[0])
        total = total if hidden is None else total.masked_fill(hidden, -torch.inf)
        return total.to(built.q.dtype).expand(-1, case.heads, -1, -1)

    constant = None if built.learned else bias(asked.terms)

    def core(asked: Asked) -> Tensor:
        added = bias(asked.terms) if constant is None else constant
        return scaled_dot_product_attention(
            asked.q, asked.k, asked.v, attn_mask=added, scale=asked.scale, enable_gqa=gqa
        )

    return Work(case, built, built.runs(core), "SDPA + bias tensor", () if constant is None else (constant,))


def biases(asked: Asked, what: str) -> None:
    """Refuse what cannot be written as something added to single scores under softmax.

    Raises:
        Unsupported: with the reason.
    """
    if asked.normalise != "softmax":
        raise Unsupported(f"{what} cannot replace softmax, and the method normalises by {asked.normalise}")
    for term in asked.terms:
        if isinstance(term, RowTerm):
            raise Unsupported(f"{what} cannot see a whole row of scores")
        if isinstance(term, ValuesByDistance):
            raise Unsupported(f"{what} cannot act on values")


def eager(method: str, case: Case, *, wide: bool = False) -> Work:
    """The formula in plain torch, every step in the inputs' dtype; in float64 it is the truth."""
    built = build(method, case, wide=wide)
    fits(case, held=6 if case.backward else 3, wide=wide)
    q_pos, k_pos = case.positions()
    groups = case.heads // case.kv_heads

    def core(asked: Asked) -> Tensor:
        content = (asked.q @ asked.k.repeat_interleave(groups, 1).mT) * asked.scale
        seen = None if asked.mask is None else asked.mask.tile(q_pos, k_pos)
        score = content
        for term in asked.terms:
            if isinstance(term, Term):
                score = score + term.tile(q_pos, k_pos).to(score.dtype)
            elif isinstance(term, RowTerm):
                score = score + term.rows(content, seen, q_pos, k_pos).to(score.dtype)
        if asked.normalise not in ("softmax", "stickbreaking", "stickbreaking+remainder"):
            raise Unsupported(f"no formula here for normalise={asked.normalise!r}")
        if asked.normalise != "softmax":  # a key's share of what those between it and the query left
            before = (k_pos[:, None] < q_pos[..., None])[:, None]
            part = score.sigmoid().masked_fill(~(before if seen is None else before & seen), 0.0)
            left = (1 - part).flip(-1).cumprod(-1).flip(-1)
            share = part * pad(left[..., 1:], (0, 1), value=1.0)
            if asked.normalise.endswith("+remainder"):
                own = (k_pos[:, None] == q_pos[..., None])[:, None]
                share = share + own * left[..., :1]
        else:
            share = (score if seen is None else score.masked_fill(~seen, -torch.inf)).softmax(-1)
        out = share @ asked.v.repeat_interleave(groups, 1)
        for term in asked.terms:
            if isinstance(term, ValuesByDistance):
                out = out + term.add(share, q_pos, k_pos).to(out.dtype)
        return out

    return Work(case, built, built.runs(core), "eager")


def fits(case: Case, *, held: int | None = None, wide: bool = False) -> None:
    """Refuse what would hold several tensors of all scores in more than half of the free memory.

    Args:
        case: the case.
        held: how many such tensors there are at the peak; by default as many as torch's math path holds.
        wide: in float64.

    Raises:
        TooLarge: with the memory it would need.
    """
    held = (6 if case.backward else 3) if held is None else held
    # a CPU's math path computes in float32 at least
    size = 8 if wide else max(case.torch_dtype.itemsize, 4 if case.device == "cpu" else 0)
    need = held * case.pairs * size
    if need > available_memory(case.device) / 2:
        raise TooLarge(f"needs {need / 2**30:.3g} GiB")
