"""The whole computation of one head for one sentence, as plain values that a terminal or a page can show.

X → Q = X W_Q, K = X W_K, V = X W_V → scores q·k → · scale → + position → mask → softmax → Σ α v → W_O
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headway.characters import label
from headway.init import seeded
from headway.inspect.head import Head
from headway.inspect.record import Trace, full_precision, recorded
from headway.inspect.split import exact
from headway.shapes import HeadwayError
from headway.transformer import Transformer

LONGEST = 64
"""Maximum tokens, because every value is shown; use the studio for longer texts."""
_JOINERS = "\u200c\u200d"


def words(text: str) -> list[str]:
    """A text as words, punctuation marks and single Chinese characters: readable tokens for an untrained model.

    >>> words("The cat sat, 猫坐下.")
    ['The', 'cat', 'sat', ',', '猫', '坐', '下', '.']
    >>> words("नमस्ते दुनिया")
    ['नमस्ते', 'दुनिया']
    """
    found: list[str] = []
    end, joined = -1, False  # whether the previous piece ended with a mark or joiner, to which letters are added
    for piece in re.finditer(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W぀-ヿ㐀-鿿豈-﫿]+|[^\w\s]", text):
        mark = _is_mark(piece[0])
        if found and piece.start() == end and (mark or (joined and _continues(piece[0], found[-1]))):
            found[-1] += piece[0]
        else:
            found.append(piece[0])
        end, joined = piece.end(), mark
    return found


def _is_mark(text: str) -> bool:
    """Whether a character belongs to the one before it, as vowel signs, accents and joiners do."""
    return text in _JOINERS or (len(text) == 1 and unicodedata.category(text)[0] == "M")


def _continues(text: str, before: str) -> bool:
    """Whether letters continue a word after a mark; a symbol continues one only after a joiner."""
    return text[0].isalnum() or (before[-1] in _JOINERS and unicodedata.category(text[0])[0] == "S")


def fresh_model(
    tokens: Sequence[str], *, position: str = "rotary", dim: int = 16, heads: int = 2, seed: int = 0
) -> tuple[Transformer, Tensor]:
    """A small untrained Transformer whose vocabulary is these tokens, and their ids, (1, N).

    >>> fresh_model(["a", "rose", "is", "a", "rose"])[1].tolist()
    [[0, 1, 2, 0, 1]]
    """
    known = list(dict.fromkeys(tokens))
    with seeded(seed):
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
        labels: display text of each token; invisible characters are named, see :func:`headway.characters.label`.
        layer: which layer.
        head: which head.
        cell: (token, column) of the entry of q that is shown product by product; default the last token's first.

    Returns:
        Plain values. ``shapes``; the matrices ``x``, ``w_q``, ``w_k``, ``w_v``, and of the head ``q``, ``k``, ``v``
        before position rotates them, ``q_rotated``, ``k_rotated``; ``latent``, None or what latent attention has: the
        symbol ``x`` of what W_Q maps, its width ``source``, and the ``content`` dimensions of q and k before the
        decoupled part; ``cell``; ``raw`` = q·k, ``scaled``, ``parts`` (content and what position adds, by name),
        ``scores``, ``seen``, ``weights``, ``output``; the ``spread`` of raw and scaled scores, the ``entropy`` of their
        softmax; and the root mean square of each part as its ``share``.

    Raises:
        HeadwayError: on an empty or too long text, or a layer, head or cell that does not exist.

    >>> model, ids = fresh_model("the cat sat".split())
    >>> found = explain(model, ids, "the cat sat".split())
    >>> abs(sum(found["cell"]["products"]) + found["cell"]["bias"] - found["cell"]["sum"]) < 1e-5
    True
    """
    if ids.ndim != 2 or len(ids) != 1:
        raise HeadwayError(f"expected token ids of one text, (1, N), got {tuple(ids.shape)}")
    check_length(ids.shape[1])
    return walk_of(recorded(model, ids), labels, layer=layer, head=head, cell=cell)


def check_length(tokens: int) -> None:
    """Refuse a text too long to show every value of.

    Raises:
        HeadwayError: saying what to do.
    """
    if not 1 <= tokens <= LONGEST:
        raise HeadwayError(
            f"expected a text of 1 to {LONGEST} tokens, because every value is shown, got {tokens}: give one sentence"
        )


def walk_of(
    trace: Trace, labels: Sequence[str], *, layer: int = 0, head: int = 0, cell: tuple[int, int] | None = None
) -> dict[str, Any]:
    """As :func:`explain`, of a recorded pass over one text."""
    check_length(trace[0].queries)
    if not 0 <= layer < len(trace):
        raise HeadwayError(f"expected a layer from 0 to {len(trace) - 1}, got {layer}")
    seen = Head(trace[layer], head)
    with torch.no_grad(), full_precision():
        at = (seen.layer.queries - 1, 0) if cell is None else cell
        return _walk(len(trace), seen, [label(one) for one in labels], layer, *at)


def _walk(layers: int, head: Head, labels: list[str], number: int, token: int, column: int) -> dict[str, Any]:
    call, attention, weights = head.layer.call, head.layer.attention, head.matrices
    shape, cell = attention.shape, head.cell("q", token, column)
    raw = head.q @ head.k.mT
    scaled, seen = raw * call.scale, head.seen
    return {
        "tokens": labels,
        "position": attention.position.spec(),
        "title": attention.position.title,
        "layer": number,
        "head": head.index,
        "shapes": {
            "tokens": len(labels),
            "dim": shape.dim,
            "heads": shape.heads,
            "kv_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "layers": layers,
            "scale": call.scale,
        },
        "x": _plain(head.x),
        "w_q": _plain(weights.q),
        "w_k": _plain(weights.k),
        "w_v": _plain(weights.v),
        "q": _plain(head.q),
        "k": _plain(head.k),
        "v": _plain(head.v),
        "q_rotated": _plain(head.mapped_q),
        "k_rotated": _plain(head.mapped_k),
        "normalised": attention.qk_norm,
        "latent": _latent(head),
        "cell": {
            "token": token,
            "column": column,
            "x": _plain(head.source("q")[token]),
            "w": _plain(weights.q[:, column]),
            "products": _plain(cell.products),
            "bias": cell.bias,
            "sum": cell.sum,
        },
        "raw": _plain(raw),
        "scaled": _plain(scaled),
        "parts": {name: _plain(part) for name, part in head.parts.items()},
        "exact": exact(head.layer),
        "share": {name: float(part[seen].square().mean().sqrt()) for name, part in head.parts.items()},
        "scores": _plain(torch.stack(list(head.parts.values())).sum(0)),
        "seen": seen.tolist(),
        "weights": _plain(head.weights),
        "output": _plain(head.output),
        "spread": {"raw": spread(raw), "scaled": spread(scaled)},
        "entropy": {"raw": _entropy(raw, seen), "scaled": _entropy(scaled, seen)},
    }


def _latent(head: Head) -> dict[str, Any] | None:
    """What is special about latent attention, see :func:`explain`."""
    if head.layer.latents is None:
        return None
    x, source = ("C_Q" if head.layer.latent_queries else "X"), head.source("q").shape[-1]
    return {"x": x, "source": source, "content": head.layer.attention.content_dim}


def _plain(x: Tensor) -> Any:
    return x.double().tolist()


def spread(x: Tensor) -> float:
    """Standard deviation of all entries.

    >>> spread(torch.tensor([[1.0, 3.0]]))
    1.0
    """
    return float(x.std(correction=0))


def _entropy(scores: Tensor, seen: Tensor) -> float:
    """Mean entropy of the rows' softmax, in nats."""
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return float(-torch.special.xlogy(weights, weights).sum(-1).mean())
