"""Record the inputs of each attention in a forward pass, by hooks that are removed afterwards; scores on demand.

Nothing of size n² is stored: scores and weights are recomputed from q, k and the terms, for the requested rows, by the
reference, whichever backend ran. The q, k and v of a model in half precision are stored as float32, with the same
values: attention sums and normalises in float32.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headway.attending import Attending
from headway.attention import Attention
from headway.backends import rows as whole
from headway.backends.base import Call
from headway.display import Displayed
from headway.functional import check
from headway.latent import LatentAttention
from headway.masks import ALL
from headway.shapes import HeadwayError, brief
from headway.stack import Block, Stack
from headway.terms import AnyTerm

OTHERS = {"transformers": "headway.hf.recording"}
"""What records other libraries' models, found by name when such a model is recorded: the way up."""
ROWS = 64
"""Queries whose scores summaries materialise at once."""


@dataclass(frozen=True, eq=False)
class Stream:
    """The parts of attention's input: tokens and the position added to them.

    Args:
        tokens: the embedding without position, (B, N, dim).
        position: the position vectors added to it, (B, N, dim).
        before: the residual stream before ``norm``, (B, N, dim).
        norm: the norm that computed attention's input from it; None without one.
        first: whether this is the first layer, so that ``before`` is ``tokens + position``.
    """

    tokens: Tensor
    position: Tensor
    before: Tensor
    norm: nn.RMSNorm | nn.LayerNorm | None
    first: bool


@dataclass(frozen=True, eq=False)
class Latents:
    """The latent vectors of latent attention: what W_Q, W_K and W_V map.

    Args:
        q: of the queries, normalised, (B, N, query_latent_dim); X itself where queries have none.
        kv: of keys and values, normalised, (B, M, latent_dim).
        key: the decoupled part of the keys, one for all heads, before position rotates it, (B, M, position_dim); None
            where keys came from a cache.
    """

    q: Float[Tensor, "batch tokens query_latent"]
    kv: Float[Tensor, "batch keys latent"]
    key: Float[Tensor, "batch keys position"] | None


@dataclass(frozen=True, eq=False)
class Layer(Displayed):
    """One attention in one forward pass, from which scores and weights are computed.

    Args:
        name: name of the module in its model.
        attention: the module, with its current matrices, not those at recording time.
        call: arguments of attention: rotated q and k, v, positions, mask, terms, scale; in float32 or better.
        x: input of W_Q, (B, N, dim).
        q: Q = X W_Q by head, normalised if there is QK-norm, before position rotates it, (B, H, N, d_k).
        k: K likewise, (B, H_kv, M, d_k); None where keys came from a cache. In latent attention Q and K are those of
            every head: ``attention.content_dim`` dimensions without position, then the decoupled part.
        source: input of W_K and W_V, (B, M, dim): x, unless keys are those of a context, or another layer shares them.
        stream: the parts of x, inside a Transformer or where attention itself adds position; else None.
        key_stream: the parts of source likewise.
        latents: in latent attention, its latent vectors; else None.
        normed: whether a norm made x.
        starts: of a model without position vectors, whether x is its embedding.
    """

    name: str
    attention: Attending
    call: Call
    x: Float[Tensor, "batch tokens dim"]
    q: Float[Tensor, "batch heads tokens head_dim"]
    k: Float[Tensor, "batch kv_heads keys head_dim"] | None
    source: Float[Tensor, "batch keys context_dim"]
    stream: Stream | None = None
    key_stream: Stream | None = None
    latents: Latents | None = None
    normed: bool = True
    starts: bool = False

    def __repr__(self) -> str:
        position = self.attention.position.spec()
        return f"Layer({self.name!r}: {self.heads} heads, {self.queries} queries × {self.keys} keys, {position})"

    @property
    def crosses(self) -> bool:
        """Whether keys belong to another sequence than queries."""
        return not self.attention.borrows and differ(self.source, self.x)

    @property
    def latent_queries(self) -> bool:
        """Whether queries too are made of a latent vector, in latent attention."""
        return self.latents is not None and differ(self.latents.q, self.x.to(self.latents.q.dtype))

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.call.q.shape[1]

    @property
    def queries(self) -> int:
        """Number of queries."""
        return self.call.q.shape[2]

    @property
    def keys(self) -> int:
        """Number of keys."""
        return self.call.k.shape[2]

    def seen(self, rows: slice = ALL) -> Bool[Tensor, "#batch #heads rows keys"] | None:
        """Which keys the queries ``rows`` see; None is all."""
        return self.call.visible(rows)

    def scores(self, rows: slice = ALL) -> Float[Tensor, "batch heads rows keys"]:
        """Scores before the mask, scale · q·k plus every term, for the queries ``rows``."""
        with full_precision():
            found = whole.scores(self.call, self.call.q[:, :, rows], self.call.k, self.seen(rows), rows)
        return found.to(self.call.q.dtype)  # a term may be of a wider one

    def weights(self, rows: slice = ALL) -> Float[Tensor, "batch heads rows keys"]:
        """Attention weights for the queries ``rows``; 0 where masked."""
        with full_precision():
            found = whole.weights(self.call, self.call.q[:, :, rows], self.call.k, self.seen(rows), rows)
        return found.to(self.call.q.dtype)

    def row(self, query: int, head: int, batch: int = 0) -> Float[Tensor, " keys"]:
        """The weights of one query in one head, O(keys) even for a long text.

        Raises:
            HeadwayError: when there is no such query, head or sequence.
        """
        limits = {"query": (query, self.queries), "head": (head, self.heads), "batch": (batch, len(self.x))}
        for what, (index, count) in limits.items():
            if not 0 <= index < count:
                raise HeadwayError(f"expected {what} from 0 to {count - 1}, got {index}")
        return self.weights(slice(query, query + 1))[batch, head, 0]

    def output(self, rows: slice = ALL) -> Float[Tensor, "batch heads rows dim_v"]:
        """The output of each head, Σ_j α_ij v_j, for the queries ``rows``; turned back where values were turned."""
        weights = self.weights(rows)
        v = self.call.v.repeat_interleave(self.call.groups, 1).to(weights.dtype)
        with full_precision():
            out = weights @ v
            for term in self.call.value_terms:
                out = out + term.add(weights, self.call.q_pos[:, rows], self.call.k_pos)
            return self.attention.position.turn_values(out, self.call.q_pos[:, rows], back=True)

    def summary(self, rows: slice = ALL) -> dict[str, Float[Tensor, "batch heads"]]:
        """What each head attends to, averaged over the queries ``rows``, in blocks of queries.

        Returns:
            ``entropy`` in nats; the share of ``self``, of the ``previous`` and of the ``first`` token; the mean
            ``distance`` in tokens. Queries whose keys are all masked do not count.
        """
        total: dict[str, Tensor] = {}
        first, stop, step = rows.indices(self.queries)
        for start in range(first, stop, ROWS * step):
            part = slice(start, min(start + ROWS * step, stop), step)
            for name, value in attention_totals(self.weights(part), self.call.q_pos[:, part], self.call.k_pos).items():
                total[name] = total.get(name, 0) + value
        counted = total.pop("queries")
        return {name: value / counted.clamp(min=1) for name, value in total.items()}


def attention_totals(
    weights: Float[Tensor, "batch heads rows keys"],
    q_pos: Int[Tensor, "#batch rows"],
    k_pos: Int[Tensor, "#batch keys"],
) -> dict[str, Float[Tensor, "batch heads"]]:
    """What queries attend to, summed over the queries that see a key; ``queries`` is their number.

    Args:
        weights: attention weights, or others to compare with, e.g. uniform attention.
        q_pos: positions of the queries.
        k_pos: positions of the keys; -1 is padding.

    Returns:
        As :meth:`Layer.summary`, in float64.

    >>> uniform, pos = torch.full((1, 1, 4, 4), 1 / 4), torch.arange(4)[None]
    >>> attention_totals(uniform, pos, pos)["previous"].tolist()
    [[0.75]]
    """
    weights, position = weights.double(), k_pos.double()
    distance = (q_pos[:, :, None].double() - position[:, None])[:, None]  # (B, 1, q, K)
    first = position == position.masked_fill(position < 0, torch.inf).amin(-1, keepdim=True)
    alive = (weights.sum(-1) > 0).double()
    found = {
        "entropy": -torch.special.xlogy(weights, weights).sum(-1),
        "self": (weights * (distance == 0)).sum(-1),
        "previous": (weights * (distance == 1)).sum(-1),
        "first": (weights * first[:, None, None]).sum(-1),
        "distance": (weights * distance.abs()).sum(-1),
        "queries": alive,
    }
    return {name: (value * alive).sum(-1) for name, value in found.items()}


@dataclass
class Trace(Displayed):
    """The attentions of one or more recorded forward passes, in the order they ran.

    Args:
        layers: one entry per call of an attention.
        tokens: token ids of a Transformer, (B, N), one tensor for each of its stacks that ran.
    """

    layers: list[Layer] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)

    def __repr__(self) -> str:
        first = f": {self.layers[0]!r}" if self.layers else ""
        return f"Trace({len(self)} layers{first}{', …' if len(self) > 1 else ''})"

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __getitem__(self, index: int | str) -> Layer:
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise HeadwayError(f"expected a layer below {len(self)}, got {index}")
            return self.layers[index]
        found = [layer for layer in self.layers if layer.name == index]
        if not found:
            names = ", ".join(dict.fromkeys(layer.name for layer in self.layers)) or "none, nothing ran"
            raise HeadwayError(f"expected the name of a recorded attention ({names}), got {brief(index)}")
        return found[-1]

    def summary(self) -> dict[str, Float[Tensor, "layers batch heads"]]:
        """:meth:`Layer.summary` of all layers, which must have equal numbers of heads."""
        found = [layer.summary() for layer in self.layers]
        return {name: torch.stack([each[name] for each in found]) for name in (found[0] if found else ())}


@contextlib.contextmanager
def record(model: nn.Module) -> Iterator[Trace]:
    """Record the inputs of every attention of a model while the block runs. A model that is not recorded has no
    overhead.

    The record is detached and O(n) per layer: inputs, queries, keys, values and terms. Latent attention makes the keys
    and values of every head while it is recorded, as with ``absorb=False``; its output is the same, rounding aside.

    Args:
        model: any module that contains :class:`headway.Attention` or :class:`headway.LatentAttention`.

    Raises:
        HeadwayError: when it contains none.

    >>> from headway import Attention
    >>> attention = Attention(dim=32, heads=4)
    >>> with record(attention) as trace:
    ...     _ = attention(torch.randn(1, 5, 32))
    >>> trace[0].weights().sum(-1).round(decimals=4).unique().tolist()
    [1.0]
    """
    attentions = {name: module for name, module in model.named_modules() if isinstance(module, Attending)}
    trace, handles = Trace(), contextlib.ExitStack()
    with handles:
        if not attentions:
            handles.enter_context(_recorder(model)(model, trace))
        streams = _watch_streams(model, trace, handles)
        for name, attention in attentions.items():
            _watch_attention(name, attention, trace, streams, handles)
        yield trace


def _recorder(model: nn.Module) -> Any:
    """What records the attentions of another library's model."""
    libraries = [kind.__module__.partition(".")[0] for kind in type(model).__mro__]
    library = next((name for name in libraries if name in OTHERS), None)
    if library is None:
        raise HeadwayError(
            f"expected a model with headway.Attention inside, or one of {' or '.join(OTHERS)}, got "
            f"{type(model).__name__}"
        )
    return importlib.import_module(OTHERS[library]).recording


def recorded(model: nn.Module, *args: Any, **given: Any) -> Trace:
    """Run a model once in evaluation mode without gradients and record its attentions; its mode is restored.

    Args:
        model: any module that contains :class:`headway.Attention` or :class:`headway.LatentAttention`.
        args: positional arguments of the model.
        given: keyword arguments of the model.

    Raises:
        HeadwayError: as :func:`record` does.

    >>> from headway import Attention
    >>> recorded(Attention(dim=32, heads=4), torch.randn(1, 5, 32))[0].queries
    5
    """
    training = model.training
    try:
        with record(model.eval()) as trace, torch.no_grad():
            model(*args, **given)
    finally:
        model.train(training)
    return trace


def differ(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ, in shape or in any entry."""
    return a is not b and not (a.shape == b.shape and torch.equal(a, b))


def wide(x: Tensor) -> Tensor:
    """A tensor in float32 or better.

    >>> wide(torch.ones(1, dtype=torch.bfloat16)).dtype, wide(torch.ones(1, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def wide_call(call: Call) -> Call:
    """A call whose q, k and v have the same values in float32 or better, in which backends sum."""
    return replace(call, q=wide(call.q), k=wide(call.k), v=wide(call.v))


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Compute without autocast, which would round to half precision."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def detached(value: Any) -> Any:
    """A tensor, or a term with its tensors, detached; anything else as it is."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, AnyTerm):
        return replace(value, **{name: detached(held) for name, held in vars(value).items()})  # type: ignore[type-var]
    return value


def _watch_attention(
    name: str,
    attention: Attending,
    trace: Trace,
    streams: dict[Attending, Stream],
    handles: contextlib.ExitStack,
) -> None:
    kept: dict[str, Tensor] = {}

    def keep(key: str, *, of_input: bool = False) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            kept[key] = (inputs[0] if of_input else output).detach()

        return hook

    def start(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        for key in list(kept):
            if not (attention.borrows and key in ("k", "source")):  # which the owner has made before
                del kept[key]
        x = args[0] if args else given["x"]
        kept["given"] = x.detach()
        return (args, {**given, "absorb": False}) if isinstance(attention, LatentAttention) else None

    def finish(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        q, k, v, mask, terms, q_pos, k_pos, scale, *rest = (detached(x) for x in args)
        call = wide_call(check(q, k, v, mask, [detached(term) for term in terms], q_pos, k_pos, scale, *rest))
        shape = attention.shape

        def by_head(x: Tensor, heads: int) -> Tensor:
            return wide(x if x.ndim == 4 else x.unflatten(-1, (heads, -1)).transpose(1, 2))

        stream = streams.get(attention)
        if attention.embed and attention.position.embeds:
            tokens = kept["given"].expand_as(kept["x"])
            stream = Stream(tokens, kept["x"] - tokens, kept["x"], None, first=True)
        projected = by_head(kept["q"], shape.heads)
        keys = by_head(kept["k"], shape.kv_heads) if "k" in kept and kept["k"].shape[-2] == k.shape[-2] else None
        latents = None
        if isinstance(attention, LatentAttention):
            keys, latents = _with_decoupled(attention, kept, keys)
        source = kept.get("source", kept["x"])
        key_stream = stream
        if attention.borrows:
            key_stream = next((s for other, s in streams.items() if other.k is attention.k and not other.borrows), None)
        trace.layers.append(
            Layer(name, attention, call, kept["x"], projected, keys, source, stream, key_stream, latents)
        )

    handles.callback(attention.register_forward_pre_hook(start, with_kwargs=True).remove)
    for key, made, of_input in _watched(attention):
        handles.callback(made.register_forward_hook(keep(key, of_input=of_input)).remove)
    handles.callback(attention.core.register_forward_hook(finish).remove)


def _watched(attention: Attending) -> list[tuple[str, nn.Module, bool]]:
    """Which parts of attention are looked at, by the name of what is kept: their input, or else their output."""
    found = [("q", attention.q, False), ("k", attention.k, False)]
    if isinstance(attention, LatentAttention):
        return [
            *found,
            ("latent q", attention.q, True),
            ("latent kv", attention.k, True),
            ("x", attention.kv_down, True),
            ("down", attention.kv_down, False),
        ]
    assert isinstance(attention, Attention)
    norms = (("q", attention.q_norm), ("k", attention.k_norm))
    found += [("x", attention.q, True), ("source", attention.k, True)]
    return found + [(key, norm, False) for key, norm in norms if norm is not None]


def _with_decoupled(
    attention: LatentAttention, kept: dict[str, Tensor], keys: Tensor | None
) -> tuple[Tensor | None, Latents]:
    """Keys of every head with their decoupled part, and the latent vectors; no keys where a cache holds them."""
    key = wide(kept["down"][..., attention.latent_dim :])
    if keys is None or keys.shape[2] != key.shape[1]:
        return None, Latents(kept["latent q"], kept["latent kv"], None)
    keys = torch.cat((keys, key[:, None].expand(-1, keys.shape[1], -1, -1)), -1)
    return keys, Latents(kept["latent q"], kept["latent kv"], key)


def _watch_streams(model: nn.Module, trace: Trace, handles: contextlib.ExitStack) -> dict[Attending, Stream]:
    """Follow the residual stream of each stack: the tokens and position it starts with, and the input of each norm."""
    streams: dict[Attending, Stream] = {}
    for stack in model.modules():
        if not isinstance(stack, Stack):
            continue
        start: dict[str, Tensor] = {}

        def begin(module: nn.Module, args: tuple[Any, ...], start: dict[str, Tensor] = start) -> None:
            trace.tokens.append(args[0].detach())
            start["ids"] = args[0]

        def embedded(
            module: nn.Module, args: tuple[Any, ...], stack: Stack = stack, start: dict[str, Tensor] = start
        ) -> None:
            with torch.no_grad():
                weight = stack.embedding.weight
                start["tokens"] = weight[start["ids"]] * weight.shape[1] ** 0.5
                start["position"] = args[0].detach() - start["tokens"]

        handles.callback(stack.register_forward_pre_hook(begin).remove)
        handles.callback(stack.dropout.register_forward_pre_hook(embedded).remove)
        for number, block in enumerate(stack.blocks):
            assert isinstance(block, Block)
            residual = block.attention

            def normed(
                module: nn.Module,
                args: tuple[Any, ...],
                start: dict[str, Tensor] = start,
                norm: Any = None if residual.post else residual.norm,
                attention: Any = residual.part,
                first: bool = number == 0,
            ) -> None:
                streams[attention] = Stream(start["tokens"], start["position"], args[0].detach(), norm, first)

            handles.callback(residual.register_forward_pre_hook(normed).remove)
    return streams
