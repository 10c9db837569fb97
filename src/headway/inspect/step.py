"""One training step in detail: back-propagation through one head, and the updates of the optimizers.

    out = A V          dA = d_out Vᵀ                 dV = Aᵀ d_out
    A = softmax(S)     dS = A ∘ (dA − Σ_j A dA)      per query: descent raises scores whose dA is below the mean
    S = scale · Q Kᵀ   dQ = scale · dS K             dK = scale · dSᵀ Q       (before position rotates q and k)
    Q = X W_Q          dW_Q = Xᵀ dQ                  and so for K and V

    SGD    W ← W − lr · g
    Adam   W ← W − lr · m̂ / (√v̂ + ε)                 at the first step m̂ = g and v̂ = g²: about lr · sign(g)

Every gradient is computed by autograd, for this model and this text, through the reference backend; the tests compare
it with the formula for dS.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headway.attending import Attending
from headway.backends import reference
from headway.functional import check
from headway.inspect.record import Layer, record, wide, wide_call
from headway.inspect.watch import MATRICES
from headway.shapes import HeadwayError
from headway.terms import AnyTerm, Pairwise
from headway.transformer import Transformer

RATES = {"sgd": 0.1, "adam": 0.003}
"""Default learning rates: those of a training, see ``headway.training.optimizer.peak_rate``."""
IGNORED = -100
"""Targets with this value are ignored in the loss."""


@dataclass(frozen=True, eq=False)
class Move:
    """The step of one optimizer on one matrix of the head; all (d_model, d_k), as in Q = X W_Q.

    Args:
        before: W before the step.
        gradient: ∂loss/∂W.
        state: the optimizer's own tensors after the step: ``exp_avg`` is m, ``exp_avg_sq`` is v.
        update: ``after − before``.
        after: W after the step.
    """

    before: Float[Tensor, "dim head_dim"]
    gradient: Float[Tensor, "dim head_dim"]
    state: Mapping[str, Tensor]
    update: Float[Tensor, "dim head_dim"]
    after: Float[Tensor, "dim head_dim"]


@dataclass(frozen=True, eq=False)
class Step:
    """One training step, seen from one head.

    Args:
        loss: mean cross-entropy of the targets that are not ignored, in nats.
        losses: loss of each token, (N,); NaN where the target is ignored.
        layer: the recorded attention, see :class:`headway.inspect.Layer`.
        head: which query head.
        kv_head: its key and value head.
        weights: A, (N, N).
        seen: which keys each query sees, (N, N).
        d_out: ∂loss/∂(A V), (N, d_v).
        d_weights: dA = ∂loss/∂A, (N, N).
        d_scores: dS = ∂loss/∂S, (N, N).
        d_q: dQ, before position rotates it, (N, d_k).
        d_k: dK, summed over the query heads that share the key head.
        d_v: dV, likewise.
        moves: the step of each optimizer: ``moves["adam"]["q"]``.
        losses_after: the loss of the same text after each optimizer's step on the whole model.
        rates: the learning rate of each optimizer.
    """

    loss: float
    losses: Float[Tensor, " tokens"]
    layer: Layer
    head: int
    kv_head: int
    weights: Float[Tensor, "tokens tokens"]
    seen: Bool[Tensor, "tokens tokens"]
    d_out: Float[Tensor, "tokens dim_v"]
    d_weights: Float[Tensor, "tokens tokens"]
    d_scores: Float[Tensor, "tokens tokens"]
    d_q: Float[Tensor, "tokens head_dim"]
    d_k: Float[Tensor, "tokens head_dim"]
    d_v: Float[Tensor, "tokens head_dim"]
    moves: Mapping[str, Mapping[str, Move]]
    losses_after: Mapping[str, float]
    rates: Mapping[str, float]


def one_step(
    model: Transformer,
    ids: Int[Tensor, "1 tokens"],
    *,
    targets: Int[Tensor, "1 tokens"] | None = None,
    layer: int = 0,
    head: int = 0,
    lr: float | Mapping[str, float] = RATES,
    optimizer: torch.optim.Optimizer | None = None,
) -> Step:
    """Take one training step on one text with SGD and with Adam, on copies; the model is unchanged.

    The model runs in evaluation mode, so without dropout; gradients are not clipped.

    Args:
        model: a decoder or an encoder.
        ids: token ids of one text, (1, N).
        targets: target of each token, (1, N); -100 is ignored. Default for a decoder: the next token.
        layer: which layer's attention, from 0.
        head: which query head, from 0.
        lr: learning rate of each, default 0.1 for "sgd" and 0.003 for "adam"; a number is for both. A step of Adam
            changes each entry by about its rate, one of SGD by its rate times the gradient, so that one rate for both
            compares nothing.
        optimizer: the optimizer of the model's own training: a third step, named "own", uses a copy of it with its
            state, learning rate and weight decay.

    Raises:
        HeadwayError: when there is no such layer or head, or nothing to predict.

    >>> model = Transformer(vocab=9, dim=16, layers=2, heads=4)
    >>> step = one_step(model, torch.arange(6)[None], layer=1, head=2, lr=0.1)
    >>> move = step.moves["sgd"]["q"]
    >>> torch.allclose(move.update, -0.1 * move.gradient, atol=1e-6)
    True
    """
    targets = _targets(model, ids, targets)
    attention = _chosen(model, layer, head)
    twin = copy.deepcopy(model).eval()
    inside = twin.stack.attentions()[layer]
    losses, loss, seen_layer, opened, kept = _backward(twin, inside, ids, targets)
    shape = attention.shape
    kv_head = head // (shape.heads // shape.kv_heads)
    number = {"q": head, "k": kv_head, "v": kv_head}

    def of_head(x: Tensor, which: str) -> Tensor:
        """Columns of one head, (…, d_k); of latent attention's keys those without the decoupled part."""
        part: Tensor = x.detach().unflatten(-1, (-1, attention.columns(which)))
        return part[..., number[which], :]

    seen = seen_layer.seen()
    moves, after, rates = {}, {}, {}
    start = {name: parameter.detach().clone() for name, parameter in twin.named_parameters()}
    for name, made in _optimisers(model, twin, lr, optimizer).items():
        made.step()
        moves[name] = {which: _move(inside, which, start, twin, made, of_head) for which in MATRICES}
        rates[name] = float(made.param_groups[0]["lr"])
        with torch.no_grad():
            after[name] = F.cross_entropy(twin(ids)[0], targets[0], ignore_index=IGNORED).item()
            for parameter_name, parameter in twin.named_parameters():
                parameter.copy_(start[parameter_name])
    weights = opened.weights
    return Step(
        loss=loss.item(),
        losses=losses.detach().masked_fill(targets[0] == IGNORED, torch.nan),
        layer=seen_layer,
        head=head,
        kv_head=kv_head,
        weights=weights.detach()[0, head],
        seen=torch.ones_like(weights[0, head], dtype=torch.bool) if seen is None else seen.expand_as(weights)[0, head],
        d_out=_gradient(opened.out)[0, head],
        d_weights=_gradient(weights)[0, head],
        d_scores=_gradient(opened.shift)[0, head],
        d_q=of_head(_gradient(kept["q"]), "q")[0],
        d_k=of_head(_gradient(kept["k"]), "k")[0],
        d_v=of_head(_gradient(kept["v"]), "v")[0],
        moves=moves,
        losses_after=after,
        rates=rates,
    )


def _backward(
    twin: Transformer, inside: Attending, ids: Int[Tensor, "1 tokens"], targets: Int[Tensor, "1 tokens"]
) -> tuple[Tensor, Tensor, Layer, _Opened, dict[str, Tensor]]:
    """The loss and all gradients, including those inside one attention: scores, weights, queries, keys and values."""
    core, opened = inside.core, _Opened()
    inside.core = opened  # type: ignore[assignment]
    kept: dict[str, Tensor] = {}

    def keep(which: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            output.retain_grad()
            kept[which] = output

        return hook

    twin.zero_grad(set_to_none=True)
    with torch.enable_grad(), record(twin) as trace, contextlib.ExitStack() as hooks:
        for which in MATRICES:
            getattr(inside, which).weight.requires_grad_(True)
            hooks.callback(getattr(inside, which).register_forward_hook(keep(which)).remove)
        losses = F.cross_entropy(twin(ids)[0], targets[0], ignore_index=IGNORED, reduction="none")
        loss = losses.sum() / (targets != IGNORED).sum()
        loss.backward()
    inside.core = core
    return losses, loss, next(one for one in trace if one.attention is inside), opened, kept


class _Opened(nn.Module):
    """Reference attention that keeps scores, weights and output for their gradients.

    dS is the gradient w.r.t. a bias of zeros, which is added to the scores like any term.
    """

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Any,
        terms: Sequence[AnyTerm],
        q_pos: Tensor | None,
        k_pos: Tensor | None,
        scale: float,
        *rest: Any,
    ) -> Tensor:
        """As :class:`headway.attention.Core`."""
        self.shift = torch.zeros(*q.shape[:3], k.shape[2], dtype=wide(q[:0]).dtype, device=q.device, requires_grad=True)
        bias = Pairwise(lambda *_: self.shift)
        call = wide_call(check(q, k, v, mask, (*terms, bias), q_pos, k_pos, scale, *rest))
        self.weights = reference.weights(call)
        self.out = reference.mix(call, self.weights)
        self.weights.retain_grad()
        self.out.retain_grad()
        return self.out.to(v.dtype)


def _gradient(x: Tensor) -> Tensor:
    return torch.zeros_like(x) if x.grad is None else x.grad


def _targets(model: Transformer, ids: Tensor, targets: Tensor | None) -> Tensor:
    if ids.ndim != 2 or len(ids) != 1:
        raise HeadwayError(f"expected token ids of one text, (1, N), got {tuple(ids.shape)}")
    if model.kind == "encoder-decoder":
        raise HeadwayError("expected a decoder or an encoder, got an encoder-decoder, which also needs a source")
    if targets is None:
        if model.kind == "encoder":
            raise HeadwayError("expected targets, because an encoder predicts no next token, got none")
        targets = F.pad(ids[:, 1:], (0, 1), value=IGNORED)
    if targets.shape != ids.shape:
        raise HeadwayError(f"expected targets of shape {tuple(ids.shape)}, like ids, got {tuple(targets.shape)}")
    if not bool((targets != IGNORED).any()):
        raise HeadwayError("expected something to predict, got a text without a target: give at least two tokens")
    return targets


def _chosen(model: Transformer, layer: int, head: int) -> Attending:
    attentions = model.stack.attentions()
    if not 0 <= layer < len(attentions):
        raise HeadwayError(f"expected a layer from 0 to {len(attentions) - 1}, got {layer}")
    if not 0 <= head < attentions[layer].shape.heads:
        raise HeadwayError(f"expected a head from 0 to {attentions[layer].shape.heads - 1}, got {head}")
    return attentions[layer]


def _optimisers(
    model: Transformer, twin: Transformer, lr: float | Mapping[str, float], own: torch.optim.Optimizer | None
) -> dict[str, torch.optim.Optimizer]:
    params = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    rates = dict(RATES) | (dict(lr) if isinstance(lr, Mapping) else dict.fromkeys(RATES, lr))
    made: dict[str, torch.optim.Optimizer] = {
        "sgd": torch.optim.SGD(params, lr=rates["sgd"]),
        "adam": torch.optim.Adam(params, lr=rates["adam"]),
    }
    if own is not None:
        copy_of = {id(a): b for a, b in zip(model.parameters(), twin.parameters(), strict=True)}
        groups = [{**group, "params": [copy_of[id(p)] for p in group["params"]]} for group in own.param_groups]
        made["own"] = type(own)(groups)  # type: ignore[call-arg]
        made["own"].load_state_dict(copy.deepcopy(own.state_dict()))
    return made


def _move(
    inside: Attending,
    which: str,
    start: Mapping[str, Tensor],
    twin: Transformer,
    made: torch.optim.Optimizer,
    of_head: Any,
) -> Move:
    weight = getattr(inside, which).weight
    before = next(start[name] for name, parameter in twin.named_parameters() if parameter is weight)

    def part(x: Tensor) -> Tensor:
        """The head's part of (heads · d_k, d_model) as (d_model, d_k), a copy."""
        chosen: Tensor = of_head(x.T, which)
        return chosen.clone()

    state = {name: part(x) for name, x in made.state[weight].items() if torch.is_tensor(x) and x.shape == weight.shape}
    was, now = part(before), part(weight)
    return Move(was, part(_gradient(weight)), state, now - was, now)
