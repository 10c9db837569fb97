"""Methods that need whole rows: CoPE against x-transformers; all others against their papers' formulas, written here
anew with loops, because no implementation of them is installed.

Held against: x-transformers (CoPE); stick-breaking, GRAPE-AP, PaTH and DAPE against their papers' formulas written
anew, which the authors' own code equals but for the differences that the methods' pitfalls name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import attention, make, same_with_gradients
from torch import Tensor
from torch.nn import functional
from x_transformers.x_transformers import CoPE

from headway import Attention, Causal, attend
from headway.positions import Dape, DapeV2, GrapeAP, Path
from headway.positions.alibi import slopes


def projected(module: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q (H, N, d), k and v (H_kv, N, d) of one sequence."""
    q, k, v = (linear(x).unflatten(-1, (-1, module.shape.head_dim)) for linear in (module.q, module.k, module.v))
    return q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)


def by_rows(module: Attention, x: Tensor, score: Callable[[int, int, int], Tensor]) -> Tensor:
    """Causal softmax attention of one sequence from what ``score`` says of head, query and key; (N, dim)."""
    v, groups = projected(module, x)[2], module.shape.heads // module.shape.kv_heads
    heads = []
    for h in range(module.shape.heads):
        rows = []
        for i in range(len(x)):
            row = torch.stack([score(h, i, j) for j in range(i + 1)]).softmax(0)
            rows.append(row @ v[h // groups, : i + 1])
        heads.append(torch.stack(rows))
    return torch.cat(heads, -1) @ module.o.weight.T


# --- CoPE ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_cope_of_x_transformers(causal: bool) -> None:
    """Counts reach 16 and beyond: gates are halves on average, and there are 90 tokens."""
    position = make("cope(positions=16)", heads=3).double()
    theirs = CoPE(dim=8, heads=3, max_pos=16).double()
    theirs.pos_emb = position.table
    q, k, v = torch.randn(3, 2, 3, 90, 8).double().requires_grad_().unbind(0)
    pos, mask = torch.arange(90)[None], Causal() if causal else None
    q, k, terms = position.prepare(q, k, pos, pos, 8**-0.5)
    got = attend(q, k, v, terms=terms, mask=mask)
    content = q @ k.mT * 8**-0.5
    if causal:
        content = content.masked_fill(~torch.ones(90, 90).bool().tril(), -torch.finfo(content.dtype).max)
    expected = (content + theirs(q, content)).softmax(-1) @ v
    same_with_gradients(got, expected, [q, k, v, position.table])


@pytest.mark.parametrize("scaled", [False, True])
def test_cope_as_its_paper_writes_it(scaled: bool) -> None:
    """p_ij = Σ_{t=j..i} σ(q_i·k_t), e[p] interpolated between e[⌊p⌋] and e[⌈p⌉], p at most npos − 1; with padding."""
    module = attention(f"cope(positions=4, scaled={scaled})", 4, 2, mask=Causal())
    x, pos = torch.randn(1, 17, 32).double().requires_grad_(), torch.arange(-2, 15).clamp(min=-1)
    q, k, _ = projected(module, x[0, 2:])
    e = module.position.table

    def score(h: int, i: int, j: int) -> Tensor:
        content = k[h // 2, : i + 1] @ q[h, i] / math.sqrt(8)
        p = content[j:].sigmoid().sum().clamp(max=3)
        low, high = int(p.floor()), int(p.ceil())
        vector = (p - low) * e[high] + (1 - p + low) * e[low]
        return content[j] + q[h, i] @ vector * (8**-0.5 if scaled else 1)

    same_with_gradients(module(x, pos=pos)[0, 2:], by_rows(module, x[0, 2:], score), [x, *module.parameters()])


# --- stick-breaking -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remainder", [False, True])
@pytest.mark.parametrize("padded", [0, 3])
def test_stick_breaking_as_its_paper_writes_it(padded: int, remainder: bool) -> None:
    """α_ij = σ(z_ij) Π_{j<t<i} (1 − σ(z_it)), j < i: broken off the stick from the query backwards, one by one; what is
    left is the query's own (the authors' o + rem · v).
    """
    module = attention(f"stickbreaking(remainder={remainder})", 4, 2, mask=Causal())
    x = torch.randn(1, 90, 32).double().requires_grad_()
    q, k, v = projected(module, x[0, padded:])
    k, v = k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)  # for each head its own
    rows = []
    for i in range(90 - padded):
        stick, out = torch.ones(4, 1).double(), torch.zeros(4, 8).double()
        for j in reversed(range(i)):
            share = stick * ((q[:, i] * k[:, j]).sum(-1, keepdim=True) / math.sqrt(8)).sigmoid()
            out, stick = out + share * v[:, j], stick - share
        rows.append((out + stick * v[:, i] if remainder else out).flatten())
    expected = torch.stack(rows) @ module.o.weight.T
    pos = (torch.arange(90) - padded).clamp(min=-1)
    same_with_gradients(module(x, pos=pos)[0, padded:], expected, [x, *module.parameters()])


# --- GRAPE-AP -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "start"), [(3, 0), (4, 50)])
def test_grape_ap_as_its_paper_writes_it(heads: int, start: int) -> None:
    """b(t, j) = Σ_{l=j+1..t} α g(⟨p_t, R_l p_l⟩ / d), g = log σ, R_l = exp(l J), J block-diagonal quarter rotations."""
    module = attention("grapeap(width=4)", heads, 1, mask=Causal())
    position: GrapeAP = module.position
    x = torch.randn(1, 13, 8 * heads).double().requires_grad_()
    p = (x[0] @ position.weight.T).unflatten(-1, (heads, 4))
    p = p / p.square().mean(-1, keepdim=True).sqrt()
    quarter = torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]])] * 2).double()
    turns = [torch.linalg.matrix_exp((start + t) * quarter) for t in range(13)]
    q, k, _ = projected(module, x[0])

    def score(h: int, i: int, j: int) -> Tensor:
        costs = [functional.logsigmoid(p[i, h] @ turns[t] @ p[t, h] / 4) for t in range(j + 1, i + 1)]
        return q[h, i] @ k[0, j] / math.sqrt(8) + slopes(heads)[h] * sum(costs, torch.zeros(()).double())

    same_with_gradients(
        module(x, pos=torch.arange(start, start + 13))[0],
        by_rows(module, x[0], score),
        [x, *module.parameters()],
        1e-8,
    )


# --- PaTH ---------------------------------------------------------------------------------------------------------


def directions(position: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """w (N, H_kv, d) and β (N, H_kv) of one sequence, token by token."""
    low = x @ position.down.T
    raw = low @ position.up.T if position.rank else low
    w = []
    for t in range(len(x)):
        if position.conv == 1:
            w.append(raw[t])
            continue
        back = range(min(position.conv, t + 1))
        w.append(functional.silu(sum((position.taps[s] * raw[t - s] for s in back), torch.zeros_like(raw[t]))))
    vectors = torch.stack(w).unflatten(-1, (position.kv_heads, -1))
    weight, bias = position.gate[:, :-1], position.gate[:, -1]
    # brought to length 1 as in the authors' code
    return vectors / (vectors.square().sum(-1, keepdim=True) + 1e-6).sqrt(), 2 * (x @ weight.T + bias).sigmoid()


@pytest.mark.parametrize(
    "spec",
    ["path", "path(rank=0, conv=4)", "path(rank=3, conv=1)", "path(forget=True)", "path(forget=True, scaled=True)"],
)
@pytest.mark.parametrize("padded", [0, 2])
def test_path_is_a_product_of_matrices(spec: str, padded: int) -> None:
    """q_iᵀ (I − β_i w_i w_iᵀ) ⋯ (I − β_{j+1} w_{j+1} w_{j+1}ᵀ) k_j, each matrix written out; and Σ_{j<t≤i} log f_t."""
    module = attention(spec, 4, 2, mask=Causal())
    whole = torch.randn(1, 12 + padded, 32).double().requires_grad_()
    x = whole[0, padded:]
    q, k, _ = projected(module, x)
    w, beta = directions(module.position, x)
    forget = module.position.forget_gate if module.position.forget else torch.zeros(4, 33).double()
    log_gates = functional.logsigmoid(x @ forget[:, :-1].T + forget[:, -1]) * module.position.forget
    log_gates = log_gates / math.sqrt(8) if module.position.scaled else log_gates
    h_matrix = torch.eye(8).double() - beta[..., None, None] * w[..., :, None] * w[..., None, :]

    def score(h: int, i: int, j: int) -> Tensor:
        product = q[h, i]
        for t in range(i, j, -1):
            product = product @ h_matrix[t, h // 2]
        return product @ k[h // 2, j] / math.sqrt(8) + log_gates[j + 1 : i + 1, h].sum()

    pos = (torch.arange(12 + padded) - padded).clamp(min=-1)
    same_with_gradients(
        module(whole, pos=pos)[0, padded:], by_rows(module, x, score), [whole, *module.parameters()], 1e-8
    )


def test_path_over_several_blocks_rewrites_every_key_at_every_token() -> None:
    """As the paper decodes: k_j ← (I − β_t w_t w_tᵀ) k_j for all j < t, then token t looks at them."""
    module = attention("path", 4, 2, mask=Causal())
    x = torch.randn(1, 150, 32).double().requires_grad_()
    q, k, v = projected(module, x[0])
    w, beta = directions(module.position, x[0])
    groups: list[list[Tensor]] = [[] for _ in range(4)]
    for kv in range(2):
        keys = k[kv, :0]
        for t in range(150):
            keys = keys - beta[t, kv] * (keys @ w[t, kv])[:, None] * w[t, kv]
            keys = torch.cat((keys, k[kv, t : t + 1]))
            for h in (2 * kv, 2 * kv + 1):
                groups[h].append((keys @ q[h, t] / math.sqrt(8)).softmax(0) @ v[kv, : t + 1])
    expected = torch.cat([torch.stack(rows) for rows in groups], -1) @ module.o.weight.T
    same_with_gradients(module(x)[0], expected, [x, *module.parameters()], 1e-8)


# --- DAPE ---------------------------------------------------------------------------------------------------------


def kerple(position: Any, n: Tensor) -> Tensor:
    """−r1 ln(1 + r2 n), (H, …)."""
    r1, r2 = (rate.view(-1, *[1] * n.ndim) for rate in position.inner.rates())
    return -r1 * (1 + r2 * n).log()


def test_dape_as_its_paper_writes_it() -> None:
    """A + B + W₂ LeakyReLU(W₁ (A, B) + b₁) + b₂ over the heads of each pair; any b₂, which softmax ignores."""
    module = attention("dape(width=7)", 4, 2, mask=Causal())
    position: Dape = module.position
    x = torch.randn(1, 40, 32).double().requires_grad_()
    q, k, v = (y.repeat_interleave(4 // len(y), 0) for y in projected(module, x[0]))
    a = q @ k.mT / math.sqrt(8)
    pos = torch.arange(40)
    b = kerple(position, (pos[:, None] - pos).clamp(min=0).double())
    both = torch.cat((a, b)).permute(1, 2, 0)
    hidden = functional.leaky_relu(functional.linear(both, position.first[..., 0], position.first_bias))
    f = functional.linear(hidden, position.second[..., 0], torch.randn(4).double()).permute(2, 0, 1)
    weights = (a + b + f).masked_fill(~torch.ones(40, 40).bool().tril(), -torch.inf).softmax(-1)
    expected = (weights @ v).transpose(0, 1).flatten(1) @ module.o.weight.T
    same_with_gradients(module(x)[0], expected, [x, *module.parameters()])


@pytest.mark.parametrize("kernel", [3, 5])
def test_dape_v2_of_each_row_by_itself(kernel: int) -> None:
    """Two convolutions over the keys of a row with zeros beyond its ends; a row ends with the query."""
    module = attention(f"dapev2(width=7, kernel={kernel})", 4, 2, mask=Causal())
    position: DapeV2 = module.position
    x = torch.randn(1, 20, 32).double().requires_grad_()
    q, k, v = (y.repeat_interleave(4 // len(y), 0) for y in projected(module, x[0]))
    rows = []
    for i in range(20):
        a = (k[:, : i + 1] @ q[:, i, :, None]).squeeze(-1) / math.sqrt(8)
        b = kerple(position, torch.arange(i, -1, -1).double())
        both = torch.cat((a, b))[None]
        hidden = functional.leaky_relu(
            functional.conv1d(both, position.first, position.first_bias, padding=kernel // 2)
        )
        f = functional.conv1d(hidden, position.second, padding=kernel // 2)[0]
        rows.append(((a + b + f).softmax(-1)[:, None] @ v[:, : i + 1]).flatten())
    same_with_gradients(module(x)[0], torch.stack(rows) @ module.o.weight.T, [x, *module.parameters()])


def test_dape_of_alibi() -> None:
    """Another bias, and no term but MixHeads: A + B + f(A, B)."""
    module = attention("dape(bias='alibi', width=3)", 2, 2, mask=Causal())
    position: Dape = module.position
    x = torch.randn(1, 30, 16).double().requires_grad_()
    q, k, _ = projected(module, x[0])
    slope = slopes(2)

    def score(h: int, i: int, j: int) -> Tensor:
        a = (q[:, i] * k[:, j]).sum(-1) / math.sqrt(8)
        both = torch.cat((a, -slope * (i - j)))
        hidden = functional.leaky_relu(position.first[..., 0] @ both + position.first_bias)
        return both[h] + both[2 + h] + position.second[h, :, 0] @ hidden

    same_with_gradients(module(x)[0], by_rows(module, x[0], score), [x, *module.parameters()])
