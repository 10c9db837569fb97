"""Latent attention as flash-linear-attention lays it out: by its formula, values and the gradient of every parameter.

Its layer needs flash-attn and two Triton kernels, none of which runs on a CPU, so its formula is written out here:
k_R has a matrix of its own; keys and values of a head lie side by side in one matrix; rotary pairs dimension i with
i + d/2; a window of W tokens counts the query's own. DeepSeek-V3 itself: ``core/test_latent.py`` for a layer,
``test_patterns_parity.py`` for a model.

No independent code: it runs on GPUs only, and the formula is written out from it.
"""

from __future__ import annotations

import pytest
import torch
from common import same_with_gradients
from torch import Tensor, nn
from torch.func import functional_call

from headway import Causal, LatentAttention, Window

DIM, HEADS, N = 48, 4, 13
CONTENT, ROTATED, LATENT = 12, 8, 20

Weights = dict[str, Tensor]


def weights(query_latent: int | None, values: int) -> Weights:
    """Random, by its names."""
    inner = HEADS * (CONTENT + ROTATED)
    shapes: dict[str, tuple[int, ...]] = {
        "k_rope": (ROTATED, DIM),
        "kv_proj.0": (LATENT, DIM),
        "kv_proj.1": (LATENT,),
        "kv_proj.2": (HEADS * (CONTENT + values), LATENT),
        "o_proj": (DIM, HEADS * values),
    }
    if query_latent is None:
        shapes["q_proj"] = (inner, DIM)
    else:
        shapes |= {"q_proj.0": (query_latent, DIM), "q_proj.1": (query_latent,), "q_proj.2": (inner, query_latent)}
    return {name: (torch.randn(shape) / shape[-1] ** 0.5).double().requires_grad_() for name, shape in shapes.items()}


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def rotated(x: Tensor) -> Tensor:
    """(…, tokens, d)."""
    angles = torch.arange(N).double()[:, None] * 10000.0 ** (-torch.arange(0, ROTATED, 2).double() / ROTATED)
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def theirs(x: Tensor, w: Weights, values: int, window: int | None) -> Tensor:
    """Its forward pass, one head after another."""
    q = x @ w["q_proj"].T if "q_proj" in w else normed(x @ w["q_proj.0"].T, w["q_proj.1"]) @ w["q_proj.2"].T
    kv = normed(x @ w["kv_proj.0"].T, w["kv_proj.1"]) @ w["kv_proj.2"].T
    key, at, outs = rotated(x @ w["k_rope"].T), torch.arange(N), []
    back = at[:, None] - at
    hidden = (back < 0) | (back >= (N if window is None else window))
    for one, other in zip(q.chunk(HEADS, -1), kv.chunk(HEADS, -1), strict=True):
        content, turned = one.split((CONTENT, ROTATED), -1)
        k, v = other.split((CONTENT, values), -1)
        scores = (content @ k.mT + rotated(turned) @ key.mT) * (CONTENT + ROTATED) ** -0.5
        outs.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v)
    return torch.cat(outs, -1) @ w["o_proj"].T


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("values", [10, CONTENT + ROTATED])
@pytest.mark.parametrize("query_latent", [None, 16])
def test_it_is_that_of_flash_linear_attention(query_latent: int | None, values: int, window: int | None) -> None:
    w, mask = weights(query_latent, values), Causal() if window is None else Window(window - 1)
    sizes = {"latent_dim": LATENT, "query_latent_dim": query_latent, "head_dim": CONTENT, "position_dim": ROTATED}
    ours = LatentAttention(DIM, HEADS, **sizes, value_dim=values, position="rotary", mask=mask).double()
    for norm in (ours.kv_norm, ours.q_norm):
        if isinstance(norm, nn.RMSNorm):
            norm.eps = 1e-5
    up = w["kv_proj.2"].view(HEADS, CONTENT + values, LATENT)
    own = {
        "kv_down.weight": torch.cat((w["kv_proj.0"], w["k_rope"])),
        "kv_norm.weight": w["kv_proj.1"],
        "k.weight": up[:, :CONTENT].flatten(0, 1),
        "v.weight": up[:, CONTENT:].flatten(0, 1),
        "o.weight": w["o_proj"],
        "q.weight": w["q_proj" if query_latent is None else "q_proj.2"],
    }
    if query_latent is not None:
        own |= {"q_down.weight": w["q_proj.0"], "q_norm.weight": w["q_proj.1"]}
    x = torch.randn(2, N, DIM, dtype=torch.float64, requires_grad=True)
    for absorb in (False, True):
        got = functional_call(ours, own, (x,), {"absorb": absorb})
        same_with_gradients(got, theirs(x, w, values, window), [x, *w.values()])
