"""The whole computation of one head for one sentence, as plain values that a terminal or a page can show.

X → Q = X W_Q, K = X W_K, V = X W_V → scores q·k → · scale → + position → mask → softmax → Σ α v → W_O
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headway.inspect.record import Layer, record
from headway.inspect.split import split
from headway.shapes import HeadwayError
from headway.transformer import Transformer

LONGEST = 64
"""Tokens of which every number is shown; a longer text is for the studio."""


def words(text: str) -> list[str]:
    """A text as words, punctuation marks and single Chinese characters: readable tokens for a model without training.

    >>> words("The cat sat, 猫坐下.")
    ['The', 'cat', 'sat', ',', '猫', '坐', '下', '.']
    """
    return re.findall(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W぀-ヿ㐀-鿿豈-﫿]+|[^\w\s]", text)


def fresh_model(
    tokens: Sequence[str], *, position: str = "rotary", dim: int = 16, heads: int = 2, seed: int = 0
) -> tuple[Transformer, Tensor]:
    """A small untrained Transformer whose vocabulary is these tokens, and their ids, (1, N).

    >>> fresh_model(["a", "rose", "is", "a", "rose"])[1].tolist()
    [[0, 1, 2, 0, 1]]
    """
    known = list(dict.fromkeys(tokens))
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        model = Transformer(max(len(known), 1), dim, layers=2, heads=heads, position=position)
    return model.eval(), torch.tensor([[known.index(token) for token in tokens]])


def explain(
    model: Transformer,
    ids: Tensor,
    labels: Sequence[str],
    *,
    layer: int = 0,
    head: int = 0,
    cell: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Follow one sentence through one head of one layer of a decoder or encoder.

    Args:
        model: the model; run in evaluation mode.
        ids: token ids, (1, N), at most 64.
        labels: how each token is written.
        layer: which layer.
        head: which head.
        cell: (token, column) of the q that is worked out product by product; default the last token's first.

    Returns:
        Plain values. ``shapes``; the matrices ``x``, ``w_q``, ``w_k``, ``w_v``, and of the head ``q``, ``k``, ``v``
        before position turns them, ``q_turned``, ``k_turned``; ``cell``; ``raw`` = q·k, ``scaled``, ``parts`` (content
        and what position adds, by name), ``scores``, ``seen``, ``weights``, ``output``; the ``spread`` of raw and
        scaled scores, the ``entropy`` of their softmax; and the root mean square of each part as its ``share``.

    Raises:
        HeadwayError: on an empty or too long text, or a layer, head or cell that is not there.

    >>> model, ids = fresh_model("the cat sat".split())
    >>> found = explain(model, ids, "the cat sat".split())
    >>> abs(sum(found["cell"]["products"]) + found["cell"]["bias"] - found["cell"]["sum"]) < 1e-5
    True
    """
    if ids.ndim != 2 or len(ids) != 1 or not 1 <= ids.shape[1] <= LONGEST:
        raise HeadwayError(
            f"expected a text of 1 to {LONGEST} tokens, of which every number can be shown, got "
            f"{ids.shape[-1]}: take a sentence of it"
        )
    training = model.training
    try:
        with record(model.eval()) as trace, torch.no_grad():
            model(ids)
    finally:
        model.train(training)
    if not 0 <= layer < len(trace):
        raise HeadwayError(f"expected a layer from 0 to {len(trace) - 1}, got {layer}")
    seen = trace[layer]
    if not 0 <= head < seen.heads:
        raise HeadwayError(f"expected a head from 0 to {seen.heads - 1}, got {head}")
    tokens, width = ids.shape[1], seen.attention.shape.head_dim
    token, column = (tokens - 1, 0) if cell is None else cell
    if not (0 <= token < tokens and 0 <= column < width):
        raise HeadwayError(f"expected a cell of q within {tokens} tokens and {width} columns, got {token}, {column}")
    with torch.no_grad():
        return _walk(model, seen, list(labels), layer, head, token, column)


def _walk(
    model: Transformer, layer: Layer, labels: list[str], number: int, head: int, token: int, column: int
) -> dict[str, Any]:
    attention, call = layer.attention, layer.call
    shape, weights = attention.shape, attention.head(head)
    group = head // call.groups
    q, k = layer.q[0, head], layer.k[0, group] if layer.k is not None else call.k[0, group]
    parts = split(layer)
    raw = q @ k.mT
    visible = layer.seen()
    seen = (
        torch.ones_like(raw, dtype=torch.bool) if visible is None else visible.expand(1, layer.heads, -1, -1)[0, head]
    )
    scores, scaled = parts.total[0, head], raw * call.scale
    added = {name: part[0, head] for name, part in parts.parts.items()}
    alpha = layer.weights()[0, head]
    out = layer.output()[0, head]
    products = layer.x[0, token] * weights.q[:, column]
    bias = 0.0 if attention.q.bias is None else float(attention.q.bias[head * shape.head_dim + column])
    at_work = {name: float(part[seen].square().mean().sqrt()) for name, part in added.items()}
    return {
        "tokens": labels,
        "position": model.position.spec(),
        "title": model.position.title,
        "layer": number,
        "head": head,
        "shapes": {
            "tokens": len(labels),
            "dim": shape.dim,
            "heads": shape.heads,
            "kv_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "layers": len(model.stack.blocks),
            "scale": call.scale,
        },
        "x": _plain(layer.x[0]),
        "w_q": _plain(weights.q),
        "w_k": _plain(weights.k),
        "w_v": _plain(weights.v),
        "q": _plain(q),
        "k": _plain(k),
        "v": _plain(call.v[0, group]),
        "q_turned": _plain(call.q[0, head]),
        "k_turned": _plain(call.k[0, group]),
        "normalised": attention.q_norm is not None,
        "cell": {
            "token": token,
            "column": column,
            "x": _plain(layer.x[0, token]),
            "w": _plain(weights.q[:, column]),
            "products": _plain(products),
            "bias": bias,
            "sum": float(attention.q(layer.x)[0, token, head * shape.head_dim + column]),
        },
        "raw": _plain(raw),
        "scaled": _plain(scaled),
        "parts": {name: _plain(part) for name, part in added.items()},
        "exact": parts.exact,
        "share": at_work,
        "scores": _plain(scores),
        "seen": seen.tolist(),
        "weights": _plain(alpha),
        "output": _plain(out),
        "spread": {"raw": _spread(raw), "scaled": _spread(scaled)},
        "entropy": {"raw": _entropy(raw, seen), "scaled": _entropy(scaled, seen)},
    }


def _plain(x: Tensor) -> Any:
    return x.double().tolist()


def _spread(x: Tensor) -> float:
    return float(x.std(correction=0))


def _entropy(scores: Tensor, seen: Tensor) -> float:
    """Mean entropy of the rows' softmax, in nats."""
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return float(-torch.special.xlogy(weights, weights).sum(-1).mean())
