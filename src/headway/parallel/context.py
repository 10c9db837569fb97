"""Context parallelism: attention over a sequence whose tokens are spread over processes.

Each process has some of the tokens, with their positions in the whole text, and gets the output for these. Because
positions are explicit, masks, terms and packed documents need nothing else: a part of a text is just tokens with their
positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from headway.attending import Attending
from headway.functional import check, with_bias
from headway.integers import Array, Integers
from headway.latent import LatentAttention
from headway.masks import And, Dense, Mask, Or, parts
from headway.parallel.gathering import AllGather, Way
from headway.parallel.ranks import Mesh, Ranks
from headway.parallel.ring import Ring
from headway.parallel.sharding import Layout
from headway.parallel.ulysses import Ulysses
from headway.positions import Position
from headway.shapes import HeadwayError, brief
from headway.terms import AnyTerm, DenseBias

WAYS: dict[str, type[Way]] = {
    "all-gather": AllGather,
    "ulysses": Ulysses,
    "ring": Ring,
}
"""How keys and queries meet."""


class Spreading:
    """What :func:`context_parallel` did to a model; :meth:`undo` takes it back, and so does the end of a ``with``."""

    def __init__(self, layers: Sequence[Attending], way: Any) -> None:
        self._layers = list(layers)
        for layer in self._layers:
            layer.spread = way

    def undo(self) -> None:
        """Let the layers attend to their own tokens alone again."""
        for layer in self._layers:
            layer.spread = None

    def __enter__(self) -> Spreading:
        return self

    def __exit__(self, *_: Any) -> None:
        self.undo()


def context_parallel(
    model: nn.Module, mesh: Mesh | None = None, *, how: str = "all-gather", zigzag: bool = True
) -> Spreading:
    """Let every attention of a model attend over sequences spread over processes; it may be undone.

    Tokens are spread by :func:`headway.parallel.shard_tokens`, and the model is given their positions. Each process
    computes the loss of its own tokens, a share of the sum over all. Gradients of parameters are then shares, too, to
    be summed once over the processes: by :func:`headway.parallel.sum_gradients`, or by DDP or FSDP, which divide the
    sum by the number of processes, so that the loss has to be multiplied by it.

    ==========  =======================================  =========================================================
    how         each process holds                       use it
    ==========  =======================================  =========================================================
    all-gather  keys and values of all tokens            first: with grouped queries they are small; every method
    ulysses     some heads of all tokens                 with many heads and fast links
    ring        its own tokens alone                     for the longest texts
    ==========  =======================================  =========================================================

    Args:
        model: with :class:`headway.Attention` or :class:`headway.LatentAttention` anywhere in it, e.g. a Transformer.
        mesh: the processes, see :class:`headway.parallel.Ranks`.
        how: "all-gather", "ulysses" or "ring".
        zigzag: as the tokens were spread.

    Raises:
        HeadwayError: when the model has no attention of headway, or a position method does not work that way, by name.

    >>> from headway import Transformer
    >>> from headway.parallel import shard_tokens, unshard
    >>> model, tokens = Transformer(256, dim=64, layers=2, heads=4), torch.arange(10)[None]
    >>> with context_parallel(model):
    ...     mine, pos = shard_tokens(tokens)
    ...     logits = unshard(model(mine, pos=pos), length=10)
    >>> bool((logits == model(tokens)).all())
    True
    """
    layout, way = Layout(Ranks.of(mesh), zigzag), way_of(how)
    layers = [module for module in model.modules() if isinstance(module, Attending)]
    if not layers:
        raise HeadwayError(f"expected a model with headway.Attention in it, got {type(model).__name__} without")
    for layer in layers:
        reason = refuses(layer, how)
        if reason is not None:
            raise HeadwayError(f"expected a model that can be spread by how={how!r}: {reason}")
    return Spreading(layers, way(layout))


def refuses(layer: Attending, how: str) -> str | None:
    """Why a layer cannot attend over a spread sequence in this way, in one sentence; None when it can."""
    position = layer.position
    name, cls = position.method_name(), type(position)
    if cls.renumber is not Position.renumber:
        return f"{name} draws new positions for a whole text, and each process would draw its own; draw them beforehand"
    if how == "all-gather":
        if position.normalise == "stickbreaking+remainder":
            return f"{name} gives the remainder to the last keys, which are not each process's own; use how='ulysses'"
        return None
    if isinstance(layer, LatentAttention):
        return f"latent attention has one latent vector for all heads, which {how} cannot divide; use how='all-gather'"
    if how == "ulysses":
        return f"{name} mixes all heads; use how='all-gather'" if "heads" in position.exempt else None
    if position.normalise != "softmax":
        return f"{name} weighs all keys of a query at once, not by softmax; use how='all-gather' or 'ulysses'"
    if position.sequential:
        return f"{name} goes by all tokens in between, which no process has; use how='all-gather' or 'ulysses'"
    if position.by_length:
        return f"{name} rotates keys by the length of the whole text; use how='all-gather' or 'ulysses'"
    return None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    q_pos: Integers,
    k_pos: Integers,
    mesh: Mesh | None = None,
    how: str = "all-gather",
    zigzag: bool = True,
    mask: Mask | Tensor | Array | None = None,
    terms: Sequence[AnyTerm] = (),
    scale: float | None = None,
    normalise: str = "softmax",
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """:func:`headway.functional.attend` for queries, keys and values spread over processes.

    All arguments are this process's: terms and masks hold the entries of its own queries and keys. Only a
    :class:`headway.Dense` mask and a :class:`headway.terms.DenseBias` have a column for each key of the whole text, in
    its order, padding included. Tables by distance must reach as far as the whole text.

    Args:
        q: queries, (B, H, Q, D).
        k: keys, (B, H_kv, K, D).
        v: values, (B, H_kv, K, D_v).
        q_pos: positions of the queries in the whole text, (B or 1, Q); −1 is padding.
        k_pos: positions of the keys, likewise.
        mesh: the processes, see :class:`headway.parallel.Ranks`.
        how: "all-gather", "ulysses" or "ring", see :func:`context_parallel`.
        zigzag: as the tokens were spread.
        mask: as of attend, and so are all that follow.
        terms: see attend.
        scale: see attend.
        normalise: see attend; the ring needs softmax.
        softcap: see attend.
        sinks: see attend.
        dropout: see attend; ring and ulysses drop other pairs than one process does with the same seed.
        seed: see attend.
        backend: see attend.

    Raises:
        HeadwayError: as attend, and on terms that the way cannot divide.

    >>> q, pos = torch.randn(1, 4, 6, 8), torch.arange(6)[None]
    >>> attend(q, q, q, q_pos=pos, k_pos=pos).shape
    torch.Size([1, 4, 6, 8])
    """
    way = way_of(how)(Layout(Ranks.of(mesh), zigzag))
    if normalise == "stickbreaking+remainder" and how != "ulysses":
        raise HeadwayError("expected how='ulysses' with normalise='stickbreaking+remainder', got " + repr(how))
    mask, terms = with_bias(mask, terms)
    whole = [part for part in parts(mask) if _is_whole(part)]
    rest = [part for part in parts(mask) if not _is_whole(part)]
    biases = tuple(term for term in terms if isinstance(term, DenseBias))
    others = tuple(term for term in terms if not isinstance(term, DenseBias))
    given = (_all_of(rest), others, q_pos, k_pos, scale, normalise, softcap, sinks, dropout, seed)
    call = check(q, k, v, *given)
    # what has a column for each key of the text fits once they are together
    own = () if call.mask is None else (call.mask,)
    return way.run(replace(call, mask=_all_of([*own, *whole]), terms=(*call.terms, *biases)), backend)


def _is_whole(mask: Mask) -> bool:
    """Whether a mask has a column for each key of the text."""
    if isinstance(mask, And | Or):
        return _is_whole(mask.first) or _is_whole(mask.second)
    return isinstance(mask, Dense)


def _all_of(masks: Sequence[Mask]) -> Mask | None:
    return reduce(And, masks) if masks else None


def way_of(how: str) -> type[Way]:
    """The way of this name.

    Raises:
        HeadwayError: when there is none.
    """
    if not isinstance(how, str) or how not in WAYS:
        raise HeadwayError(f"expected how as one of {', '.join(map(repr, WAYS))}, got {brief(how)}")
    return WAYS[how]


def sum_gradients(model: nn.Module, mesh: Mesh | None = None) -> None:
    """Sum the gradients of a model's parameters over processes, each of which has those of its own share of the loss.

    Once in each step, after backward, where neither DDP nor FSDP does it. In rank order, so the same bits in every run
    and on every process. A parameter that has no gradient on any process gets none.

    Args:
        model: the same on all processes.
        mesh: the processes, see :class:`headway.parallel.Ranks`.

    >>> layer = nn.Linear(2, 2)
    >>> layer(torch.ones(1, 2)).sum().backward()
    >>> sum_gradients(layer)
    >>> layer.bias.grad.tolist()
    [1.0, 1.0]
    """
    ranks = Ranks.of(mesh)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if ranks.size == 1 or not parameters:
        return
    there = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int64)
    counts = ranks.summed(there.to(parameters[0].device)).tolist()
    for parameter, count in zip(parameters, counts, strict=True):
        if count:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = ranks.summed(own.contiguous())
