"""Split each score exactly into content and position: parts that add up to the score.

    score(i, j) = scale · q_i·k_j  [content]  +  what rotating q and k changed  +  each term

For methods that add to the embedding X = E + P, content is split four ways, by q and by k:
    q_i·k_j = (E+P)_i W_Q W_Kᵀ (E+P)_jᵀ = content·content + content·position + position·content + position·position
In the first layer this is exact, including the norm before it: a norm divides by one value per token, which is kept. In
deeper layers P is still in the residual stream, but earlier layers have also mixed position into the content: the four
parts still add up to the score, but the position parts are an estimate, and :attr:`Split.exact` is False.

In latent attention position acts on some dimensions of queries and keys alone, the decoupled part: "content" is q·k
over the others, and "decoupled" q·k over these before they are rotated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from headway.attending import as_matrix
from headway.attention import Attention
from headway.backends.rows import by_key_head
from headway.inspect.record import Layer, Stream, full_precision, wide
from headway.latent import LatentAttention
from headway.masks import ALL
from headway.positions import Position
from headway.shapes import HeadwayError

CONTENT = ("content", "decoupled", "content·content")
"""The parts without position."""
PRODUCTS = (*CONTENT, "rotation", "content·position", "position·content", "position·position")
"""The parts of scale · q·k; the others are added to it."""


@dataclass(frozen=True, eq=False)
class Split:
    """Parts of the scores of some queries.

    Args:
        parts: by name, (B, H, q, K) each: ``content``, in latent attention with ``decoupled``; or ``content·content``,
            ``content·position``, ``position·content`` and ``position·position``; ``rotation``; ``softcap``; and the
            terms by their kind.
        seen: which keys the queries see; None is all.
        exact: whether no part is an estimate.
    """

    parts: dict[str, Float[Tensor, "batch heads rows keys"]]
    seen: Bool[Tensor, "#batch #heads rows keys"] | None
    exact: bool

    def __repr__(self) -> str:
        shape = tuple(next(iter(self.parts.values())).shape)
        return f"Split({' + '.join(self.parts)}: {shape} each, {'exact' if self.exact else 'an estimate'})"

    @property
    def total(self) -> Float[Tensor, "batch heads rows keys"]:
        """The scores: the sum of all parts."""
        return torch.stack(list(self.parts.values())).sum(0)

    @property
    def content(self) -> Float[Tensor, "batch heads rows keys"]:
        """The part without position."""
        return torch.stack([part for name, part in self.parts.items() if name in CONTENT]).sum(0)

    @property
    def position(self) -> Float[Tensor, "batch heads rows keys"]:
        """The total effect of position on the scores."""
        return self.total - self.content


@full_precision()
def split(layer: Layer, rows: slice = ALL) -> Split:
    """Split the scores of a recorded layer into content and position.

    Args:
        layer: a layer of a trace.
        rows: the queries; for a long text use a few rows at a time.

    Raises:
        HeadwayError: when keys came from a cache, which stores them rotated.

    >>> from headway import Attention
    >>> from headway.inspect import record
    >>> attention = Attention(dim=32, heads=4, position="alibi")
    >>> with record(attention) as trace:
    ...     _ = attention(torch.randn(1, 5, 32))
    >>> sorted(split(trace[0]).parts)
    ['ByDistance', 'content']
    """
    call, attention = layer.call, layer.attention
    turned = _products(layer, call.q, call.k, rows)
    parts: dict[str, Tensor] = {}
    turns = maps(attention.position)
    if layer.k is None and (turns or adds(layer)):
        raise HeadwayError(
            "expected unrotated keys, got keys from a cache, which stores them rotated: "
            "record a pass over the whole text without a cache"
        )
    if adds(layer):
        assert layer.stream is not None
        assert layer.key_stream is not None
        q = _content_and_position(layer, layer.stream, "q")
        k = _content_and_position(layer, layer.key_stream, "k")
        names = ("content", "position")
        for i, first in enumerate(names):
            for j, second in enumerate(names):
                parts[f"{first}·{second}"] = _products(layer, q[i], k[j], rows)
    elif turns:
        assert layer.k is not None
        parts = _content(layer, attention.sharpened(layer.q, call.q_pos), layer.k, rows)
        parts["rotation"] = turned - torch.stack(list(parts.values())).sum(0)
    else:
        parts = _content(layer, call.q, call.k, rows)
    seen = layer.seen(rows)
    capped = turned
    if call.softcap is not None:
        capped = call.softcap * (turned / call.softcap).tanh()
        parts["softcap"] = capped - turned
    for term in call.score_terms:
        tile = term.tile(call.q_pos, call.k_pos, rows).to(turned.dtype).expand_as(turned)
        _add(parts, type(term).__name__, tile)
    for row_term in call.row_terms:
        tile = row_term.rows(capped, seen, call.q_pos, call.k_pos, rows).to(turned.dtype).expand_as(turned)
        _add(parts, type(row_term).__name__, tile)
    return Split(parts, seen, exact(layer))


def maps(position: Position) -> bool:
    """Whether a method transforms queries and keys.

    >>> from headway.positions import parse
    >>> maps(parse("rotary")), maps(parse("alibi"))
    (True, False)
    """
    method = type(getattr(position, "inside", position))  # randomized wraps another method
    return any(getattr(method, name) is not getattr(Position, name) for name in ("rotate", "transform_qk"))


def adds(layer: Layer) -> bool:
    """Whether position was added to the embedding in this layer's input."""
    return not maps(layer.attention.position) and layer.stream is not None and bool(layer.stream.position.any())


def exact(layer: Layer) -> bool:
    """Whether :func:`split` is exact for all parts of this layer."""
    return layer.stream is None or layer.stream.first or not adds(layer)


def _add(parts: dict[str, Tensor], name: str, tile: Tensor) -> None:
    parts[name] = parts[name] + tile if name in parts else tile


def _products(layer: Layer, q: Tensor, k: Tensor, rows: slice) -> Float[Tensor, "batch heads rows keys"]:
    """scale · q·k for the queries ``rows``, in float32 or better."""
    q = wide(q[:, :, rows]) * layer.call.scale
    return (by_key_head(q, layer.call) @ wide(k).mT).reshape(*q.shape[:3], k.shape[2])


def _content(layer: Layer, q: Tensor, k: Tensor, rows: slice) -> dict[str, Tensor]:
    """scale · q·k, that of the decoupled part by itself."""
    first = layer.attention.content_dim
    if not first:
        return {"content": _products(layer, q, k, rows)}
    content = _products(layer, q[..., :first], k[..., :first], rows)
    return {"content": content, "decoupled": _products(layer, q[..., first:], k[..., first:], rows)}


def _content_and_position(layer: Layer, stream: Stream, which: str) -> tuple[Tensor, Tensor]:
    """Q or K as the sum of the contributions of tokens (everything but P) and of position P, by head."""
    attention, query = layer.attention, which == "q"
    linear = attention.q if query else attention.k
    part = through_norm(stream, stream.position)

    def by_head(x: Tensor) -> Tensor:
        parts: Tensor = x.unflatten(-1, (-1, attention.columns(which)))
        return parts.transpose(1, 2)

    if isinstance(attention, LatentAttention):
        position = _through_latents(attention, wide(layer.x), part, query)
    else:
        position = by_head(part @ wide(as_matrix(linear).detach()).T)
    if attention.qk_norm:  # RMSNorm divides by one value per token and head
        assert isinstance(attention, Attention)
        norm = attention.q_norm if query else attention.k_norm
        assert norm is not None
        whole = by_head(wide(linear(layer.x if query else layer.source).detach()))
        position = _normed_part(norm, whole, position)
    if query:
        position = attention.sharpened(position, layer.call.q_pos)
    return (layer.call.q if query else layer.call.k) - position, position


def through_norm(stream: Stream, part: Tensor) -> Tensor:
    """The output of a norm for a part of its input, each token divided by the divisor of the whole input."""
    part, before = wide(part), wide(stream.before)
    if stream.norm is None:
        return part
    if isinstance(stream.norm, nn.RMSNorm):
        return _normed_part(stream.norm, before, part)
    variance = before.var(-1, correction=0, keepdim=True)
    whole = (variance + (stream.norm.eps or 0.0)).sqrt()
    return (part - part.mean(-1, keepdim=True)) / whole * wide(stream.norm.weight.detach())


def _normed_part(norm: nn.RMSNorm, whole: Tensor, part: Tensor) -> Tensor:
    """The output of RMSNorm for a part of its input, divided by the divisor of the whole input."""
    return part * (whole.square().mean(-1, keepdim=True) + (norm.eps or 0.0)).rsqrt() * wide(norm.weight.detach())


def _through_latents(attention: LatentAttention, x: Tensor, part: Tensor, query: bool) -> Tensor:
    """Queries or keys of every head, decoupled part included, from a part of the input x, (B, H, N, d_k)."""

    def times(linear: nn.Linear, x: Tensor) -> Tensor:
        return x @ wide(as_matrix(linear).detach()).T

    def up(linear: nn.Linear, x: Tensor) -> Tensor:
        parts: Tensor = times(linear, x).unflatten(-1, (attention.heads, -1))
        return parts.transpose(1, 2)

    if query:
        if attention.q_down is None or attention.q_norm is None:
            return up(attention.q, part)
        return up(attention.q, _normed_part(attention.q_norm, wide(attention.q_down(x)), times(attention.q_down, part)))
    first = attention.latent_dim
    latent, key = times(attention.kv_down, part).tensor_split((first,), -1)
    whole = wide(attention.kv_down(x))[..., :first]
    k = up(attention.k, _normed_part(attention.kv_norm, whole, latent))
    return torch.cat((k, key[:, None].expand(*k.shape[:3], -1)), -1)
