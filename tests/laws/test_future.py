"""The past does not see the future in any combination of options; and values follow the formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import attention, close, every_method, every_place, transformer
from torch import Tensor
from torch.nn.functional import logsigmoid

from headway import Attention, Causal
from headway.positions import parse

OPTIONS: dict[str, dict[str, Any]] = {
    "sinks": {"sinks": True},
    "softcap": {"softcap": 1.5},
    "norm": {"qk_norm": True, "log_scale": 3},
    "all": {"sinks": True, "softcap": 1.5, "qk_norm": True, "log_scale": 3},
}


def made(spec: str, options: str, **given: Any) -> Attention:
    """Attention with a method and options; without sinks where a method's weights sum to less than 1 already."""
    chosen = dict(OPTIONS[options])
    if parse(spec).normalise != "softmax":
        chosen.pop("sinks", None)
    return attention(spec, mask=Causal(), **chosen, **given)


@every_method("future", variants=False, layers=True)
def test_the_past_does_not_see_the_future(spec: str) -> None:
    blind(attention(spec, mask=Causal()))


@every_method("future", variants=False)
@pytest.mark.parametrize("options", OPTIONS)
def test_the_past_does_not_see_the_future_with_options(spec: str, options: str) -> None:
    blind(made(spec, options))


def blind(module: torch.nn.Module) -> None:
    """The first outputs are those of the first tokens alone, and have no gradient by what comes later."""
    x = torch.randn(1, 9, 48, dtype=torch.float64, requires_grad=True)
    whole = module(x)
    for tokens in (2, 5):
        close(whole[:, :tokens], module(x[:, :tokens]))
    (gradient,) = torch.autograd.grad(whole[:, :5].square().sum(), x)
    assert gradient[:, :5].any()
    close(gradient[:, 5:], torch.zeros(1, 4, 48).double())


@every_place("future", models=True)
def test_the_past_of_a_transformer(spec: str) -> None:
    model, tokens = transformer(spec), torch.randint(17, (2, 9))
    whole = model(tokens)
    changed = tokens.index_fill(1, torch.arange(5, 9), 3)
    close(model(changed)[:, :5], whole[:, :5])
    close(model(tokens[:, :5]), whole[:, :5])
    assert not torch.allclose(model(changed)[:, 5:], whole[:, 5:])


@every_place("determinism", models=True)
def test_two_runs_of_a_transformer_give_the_same_bits(spec: str) -> None:
    """Also where a cache holds half of the text."""
    model, tokens = transformer(spec), torch.randint(17, (2, 9))
    results = []
    for _ in range(2):
        cache = model.new_cache()
        outs = [model(tokens), model(tokens[:, :4], cache=cache), model(tokens[:, 4:], cache=cache)]
        found = torch.autograd.grad(outs[0].square().sum(), list(model.parameters()), allow_unused=True)
        results.append([*outs, *(g for g in found if g is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@every_method("determinism", variants=False, layers=True)
def test_two_runs_give_the_same_bits(spec: str) -> None:
    module = attention(spec, mask=Causal())
    x = torch.randn(2, 9, 48, dtype=torch.float64, requires_grad=True)
    results = []
    for _ in range(2):
        out = module(x)
        found = torch.autograd.grad(out.square().sum(), [x, *module.parameters()], allow_unused=True)
        results.append([out, *(g for g in found if g is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


# --- values -----------------------------------------------------------------------------------------------------------


def normed(x: Tensor, norm: Any) -> Tensor:
    return x if norm is None else x / (x.square().mean() + 1e-6).sqrt() * norm.weight


Score = Callable[[int, int, int, Tensor, Tensor], tuple[Tensor, Tensor]]


def by_hand(module: Attention, x: Tensor, score: Score) -> Tensor:
    """One sequence, number by number: content capped, bias added, and a sink beside the keys.

    Args:
        score: content and bias of head h, query i and key j, from q_i and k_j.
    """
    shape = module.shape
    heads = []
    for h in range(shape.heads):
        kv, rows = h * shape.kv_heads // shape.heads, []
        of = [(f.weight.view(-1, 8, f.in_features)[g], norm) for f, g, norm in (
            (module.q, h, module.q_norm), (module.k, kv, module.k_norm), (module.v, kv, None))]  # fmt: skip
        (q, k, v) = ([normed(weight @ x[t], norm) for t in range(len(x))] for weight, norm in of)
        for i in range(len(x)):
            sharp = max(1.0, math.log(i + 1) / math.log(module.log_scale)) if module.log_scale else 1.0
            total, out = torch.zeros(()).double(), torch.zeros(8).double()
            if module.sinks is not None:
                total = total + module.sinks[h].exp()
            for j in range(i + 1):
                content, bias = score(h, i, j, q[i] * sharp, k[j])
                content = content / math.sqrt(8)
                if module.softcap is not None:
                    content = module.softcap * (content / module.softcap).tanh()
                weight = (content + bias).exp()
                total, out = total + weight, out + weight * v[j]
            rows.append(out / total)
        heads.append(torch.stack(rows))
    return torch.cat(heads, -1) @ module.o.weight.T


def none(module: Attention, x: Tensor) -> Score:
    return lambda h, i, j, q, k: (q @ k, torch.zeros(()).double())


def alibi(module: Attention, x: Tensor) -> Score:
    return lambda h, i, j, q, k: (q @ k, torch.tensor(-(2.0 ** (-8 * (h + 1) / 4)) * (i - j)).double())


def fox(module: Attention, x: Tensor) -> Score:
    gates = logsigmoid(x @ module.position.gate.weight.T + module.position.gate.bias)
    return lambda h, i, j, q, k: (q @ k, gates[j + 1 : i + 1, h].sum())


def path_fox(module: Attention, x: Tensor) -> Score:
    """Without a convolution, which its own parity test covers: reflections, and what is forgotten between."""
    position = module.position
    raw = (x @ position.down.T).unflatten(-1, (2, 8))
    w = raw / (raw.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    beta = 2 * (x @ position.gate[:, :-1].T + position.gate[:, -1]).sigmoid()
    gates = logsigmoid(x @ position.forget_gate[:, :-1].T + position.forget_gate[:, -1])

    def score(h: int, i: int, j: int, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        kept = q
        for t in range(i, j, -1):
            kept = kept - beta[t, h // 2] * (kept @ w[t, h // 2]) * w[t, h // 2]
        # a softcap is on q·k, and what position adds is added after
        difference = (kept @ k - q @ k) / math.sqrt(8)
        return q @ k, difference + gates[j + 1 : i + 1, h].sum()

    return score


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("spec", "score"),
    [("none", none), ("alibi", alibi), ("fox", fox), ("path(rank=0, conv=1, forget=True)", path_fox)],
    ids=["none", "alibi", "fox", "path"],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_values_and_gradients_by_hand(spec: str, score: Any, options: str, backend: str) -> None:
    module = attention(spec, 4, 2, mask=Causal(), backend=backend, **OPTIONS[options])
    x = torch.randn(7, 32).double().requires_grad_()
    got, expected = module(x), by_hand(module, x, score(module, x))
    close(got, expected)
    leaves, weight = [x, *module.parameters()], torch.randn_like(got)
    found, wanted = (torch.autograd.grad((out * weight).sum(), leaves, retain_graph=True) for out in (got, expected))
    for g, e in zip(found, wanted, strict=True):
        close(g, e, 1e-8)
