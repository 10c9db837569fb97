"""Who computes a case: plain attention, our backends, and torch in the ways people use it with a position bias.

Every contender gets the same tensors and its work is the attention core: position included (rotations, tables, masks
made from them), projections not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from headway.experiments.bench.cases import Built, Case, TooLarge, Unsupported, build
from headway.functional import BACKENDS, _load, attend, check
from headway.report.bench import PLAIN
from headway.terms import Term, ValuesByDistance
from headway.training.size import available_memory


@dataclass
class Work:
    """One contender on one case, ready to run again and again.

    Args:
        case: the case.
        built: its inputs.
        forward: computes attention, (B, H, Q, D).
        name: who computes it.
        kept: what it made once, before the clock, and holds: a constant bias, for one.
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
        backend: a name of :data:`headway.functional.BACKENDS`, or "auto": the first that does not refuse, as attention
            itself would choose.
    """

    def prepare(method: str, case: Case) -> Work:
        built = build(method, case)
        given: dict[str, Any] = {"mask": case.visible(), "q_pos": None, "k_pos": None, "scale": case.scale}
        if case.decodes:  # otherwise they are 0, 1, 2 … and need not be looked at
            given["q_pos"], given["k_pos"] = case.positions()
        with torch.set_grad_enabled(case.backward):
            q, k, terms = built.make()
            call = check(q, k, built.v, terms=terms, normalise=built.normalise, **given)
            names = BACKENDS if backend == "auto" else (backend,)
            if names[0] not in BACKENDS:
                raise Unsupported(f"there is no backend {backend}, only {', '.join(BACKENDS)}")
            refused = {name: _load(name).refuses(call) for name in names}
            name = next((name for name in names if refused[name] is None), None)
            if name is None:
                raise Unsupported(refused[names[-1]] or "")
            if _load(name).describe(call)[1].startswith("O(queries · keys)"):
                fits(case)

        def forward() -> Tensor:
            q, k, terms = built.make()
            return attend(q, k, built.v, terms=terms, backend=name, **given)

        return Work(case, built, forward, f"headway: {name}")

    return prepare


def materialised(method: str, case: Case) -> Work:
    """Fused attention with all terms, and the mask, as one tensor (B or 1, H, Q, K).

    A bias that needs no gradient is made once, before the clock, as one would keep it for all layers. One that does is
    made in every step, and torch then takes its math path, which holds all scores.
    """
    built = build(method, case)
    with torch.no_grad():
        terms = built.make()[2]
    if any(isinstance(term, ValuesByDistance) for term in terms):
        raise Unsupported("a bias cannot act on values")
    if not terms:
        raise Unsupported("the method adds no bias")
    fits(case, held=2 if not case.backward else 6)
    q_pos, k_pos = case.positions()
    hidden = ~case.visible().tile(q_pos, k_pos) if case.causal else None  # type: ignore[union-attr]
    gqa = case.kv_heads != case.heads

    def bias(terms: tuple[Term, ...]) -> Tensor:
        total = sum((term.tile(q_pos, k_pos) for term in terms[1:]), terms[0].tile(q_pos, k_pos))
        total = total if hidden is None else total.masked_fill(hidden, -torch.inf)
        return total.to(built.q.dtype).expand(-1, case.heads, -1, -1)

    constant = None if built.learned else bias(terms)  # type: ignore[arg-type]

    def forward() -> Tensor:
        q, k, terms = built.make()
        added = bias(terms) if constant is None else constant  # type: ignore[arg-type]
        return scaled_dot_product_attention(q, k, built.v, attn_mask=added, enable_gqa=gqa)

    return Work(case, built, forward, "SDPA + bias tensor", () if constant is None else (constant,))


def eager(method: str, case: Case, *, wide: bool = False) -> Work:
    """The formula in plain torch, every step in the inputs' dtype; in float64 it is the truth."""
    built = build(method, case, wide=wide)
    fits(case, held=6 if case.backward else 3, wide=wide)
    q_pos, k_pos = case.positions()
    groups = case.heads // case.kv_heads
    hidden = ~case.visible().tile(q_pos, k_pos) if case.causal else None  # type: ignore[union-attr]

    def forward() -> Tensor:
        q, k, terms = built.make()
        score = (q @ k.repeat_interleave(groups, 1).transpose(-1, -2)) * case.scale
        for term in terms:
            if isinstance(term, Term):
                score = score + term.tile(q_pos, k_pos).to(score.dtype)
        if hidden is not None:
            score = score.masked_fill(hidden, -torch.inf)
        share = score.softmax(-1)
        out = share @ built.v.repeat_interleave(groups, 1)
        for term in terms:
            if isinstance(term, ValuesByDistance):
                out = out + term.add(share, q_pos, k_pos).to(out.dtype)
        return out

    return Work(case, built, forward, "eager")


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
