"""Options of attention and of a Transformer: what the laws of methods run on besides the methods alone.

An option stands for a law's parameter ``spec``: it is the text of a method, and :func:`common.attention` or
:func:`common.transformer` make it with what it adds. So a law that :func:`common.every_method` deals out to ``layers``,
or :func:`common.every_place` to ``models``, holds for all of them, and a new option is one line here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from headway import Attention, KVCache, LatentAttention
from headway.masks import Blocks, Mask, Strided, Window, from_hf
from headway.terms import DenseBias, LowRankBias

FAR = 20
"""Positions that tables of an option cover."""


class Option(str):
    """The text of a method, and what is added to it.

    Args:
        spec: the method.
        name: of the option.
        make: makes attention, given what :class:`headway.Attention` is given.
        config: options of a Transformer.
        relative: whether what is added goes by differences of positions alone.
        only: the laws it is under, where it is not under all; it is for one of training, when others do not hold.
    """

    name: str
    make: Callable[..., torch.nn.Module]
    config: dict[str, Any]
    relative: bool
    only: Collection[str] | None

    def __new__(
        cls,
        spec: str,
        name: str,
        make: Callable[..., torch.nn.Module] = Attention,
        *,
        config: dict[str, Any] | None = None,
        relative: bool = True,
        only: Collection[str] | None = None,
    ) -> Option:
        """Make the text."""
        self = super().__new__(cls, spec)
        self.name, self.make, self.config = f"{name}-{spec}", make, config or {}
        self.relative, self.only = relative, only
        return self


# --- attention --------------------------------------------------------------------------------------------------------


class Latent(LatentAttention):
    """Latent attention, which has no key heads to share. It absorbs where that costs less: here, with a cache."""

    def __init__(self, dim: int, heads: int, kv_heads: int | None = None, **given: Any) -> None:
        super().__init__(dim, heads, latent_dim=10, head_dim=8, position_dim=8, query_latent_dim=12, **given)


class Placed(torch.nn.Module):
    """What a caller adds for the tokens at hand, by their positions; in front of a class of attention.

    With a cache what is added covers what is cached, in its order; padding gets anything.
    """

    def forward(
        self, x: Tensor, *, pos: Tensor | None = None, mask: Mask | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Attend."""
        old = cache.pos if cache is not None and cache.begun else None
        if pos is not None:
            q_pos = pos if pos.ndim == 2 else pos[None]
        else:
            q_pos = torch.arange(x.shape[1])[None] if cache is None or old is None else cache.next_pos(x.shape[1])
        k_pos = q_pos if old is None else torch.cat((old[:, : len(cache)], q_pos.expand(len(old), -1)), 1)
        if old is not None and cache.size is not None:  # free room is padding
            k_pos = torch.nn.functional.pad(k_pos, (0, cache.size - k_pos.shape[1]), value=-1)
        return self.placed_forward(x, q_pos, k_pos, {"pos": pos, "mask": mask, "cache": cache})

    def placed_forward(self, x: Tensor, q_pos: Tensor, k_pos: Tensor, given: dict[str, Any]) -> Tensor:
        """Attend, with positions of queries and keys known."""
        raise NotImplementedError


class Biased(Placed):
    """A bias per pair, from a table by both positions."""

    def __init__(self, dim: int, heads: int, **given: Any) -> None:
        super().__init__(dim, heads, **given)
        self.table = torch.nn.Parameter(torch.zeros(heads, FAR, FAR))

    def bias(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """That of each pair, (B, H, Q, K)."""
        rows, cols = q_pos.clamp(0, FAR - 1)[:, :, None], k_pos.clamp(0, FAR - 1)[:, None]
        return self.table[:, rows, cols].transpose(0, 1)

    def placed_forward(self, x: Tensor, q_pos: Tensor, k_pos: Tensor, given: dict[str, Any]) -> Tensor:
        """Attend."""
        return super(Placed, self).forward(x, terms=(DenseBias(self.bias(q_pos, k_pos)),), **given)


class Floating(Biased):
    """A mask of floats, as torch's ``attn_mask``: the bias, and −∞ where another mask hides."""

    def placed_forward(self, x: Tensor, q_pos: Tensor, k_pos: Tensor, given: dict[str, Any]) -> Tensor:
        """Attend."""
        bias, mask = self.bias(q_pos, k_pos), given["mask"]
        if mask is not None:
            bias = bias.masked_fill(~mask.tile(q_pos, k_pos), -torch.inf)
        return super(Placed, self).forward(x, **{**given, "mask": bias})


class LowRank(Placed):
    """A bias of rank two: tables of positions for the queries of each head, and for the keys."""

    def __init__(self, dim: int, heads: int, **given: Any) -> None:
        super().__init__(dim, heads, **given)
        self.left = torch.nn.Parameter(torch.zeros(heads, FAR, 2))
        self.right = torch.nn.Parameter(torch.zeros(1, FAR, 2))

    def placed_forward(self, x: Tensor, q_pos: Tensor, k_pos: Tensor, given: dict[str, Any]) -> Tensor:
        """Attend."""
        left, right = (
            table[:, pos.clamp(0, FAR - 1)].transpose(0, 1) for table, pos in ((self.left, q_pos), (self.right, k_pos))
        )
        return super(Placed, self).forward(x, terms=(LowRankBias(left, right),), **given)


class Padded(Placed):
    """Padding said by a mask instead of by positions: it lies at position 0, tokens from 1 on."""

    def forward(
        self, x: Tensor, *, pos: Tensor | None = None, mask: Mask | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Attend; what padding itself attends to is left out."""
        if pos is None:
            start = cache.next_pos(1) if cache is not None and len(cache) else 1
            pos = start + torch.arange(x.shape[1])[None]
        else:
            pos = pos + 1
        out = super().forward(x, pos=pos, mask=mask, cache=cache)
        return out.masked_fill((pos if pos.ndim == 2 else pos[None])[..., None] == 0, 0.0)

    def placed_forward(self, x: Tensor, q_pos: Tensor, k_pos: Tensor, given: dict[str, Any]) -> Tensor:
        """Attend."""
        real, mask = from_hf((k_pos > 0).long()), given["mask"]
        return super(Placed, self).forward(x, **{**given, "mask": real if mask is None else real & mask})


class Added(Padded):
    """All masks, that of the layer too, as a model of transformers makes them one, to be added to scores."""

    def __init__(self, dim: int, heads: int, **given: Any) -> None:
        super().__init__(dim, heads, **given)
        self.own, self.mask = self.mask, None

    def placed_forward(self, x: Tensor, q_pos: Tensor, k_pos: Tensor, given: dict[str, Any]) -> Tensor:
        """Attend."""
        visible = (k_pos > 0)[:, None, None].expand(-1, -1, q_pos.shape[1], -1)
        for mask in (self.own, given["mask"]):
            visible = visible if mask is None else visible & mask.tile(q_pos, k_pos)
        added = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        return super(Placed, self).forward(x, **{**given, "mask": from_hf(added)})


class BiasedAttention(Biased, Attention):
    """See :class:`Biased`."""


class BiasedLatent(Biased, Latent):
    """See :class:`Biased`."""


class FloatingAttention(Floating, Attention):
    """See :class:`Floating`."""


class LowRankAttention(LowRank, Attention):
    """See :class:`LowRank`."""


class PaddedAttention(Padded, Attention):
    """See :class:`Padded`."""


class AddedLatent(Added, Latent):
    """See :class:`Added`."""


class Sparse(Attention):
    """Another mask beside that of the layer, and of the call."""

    def __init__(self, dim: int, heads: int, *, sparse: Callable[[int], Mask], mask: Mask | None, **given: Any) -> None:
        own = sparse(heads)
        super().__init__(dim, heads, mask=own if mask is None else own & mask, **given)


def strided(heads: int) -> Mask:
    """Of Sparse Transformers."""
    return Window(1, 1) | Strided(3)


def blocks(heads: int) -> Mask:
    """Blocks of two tokens, other ones for each head; each sees itself."""
    layout = torch.rand(heads, FAR // 2, FAR // 2, generator=torch.Generator().manual_seed(0)) > 0.4
    return Blocks(layout | torch.eye(FAR // 2, dtype=torch.bool), 2)


class Dropping(Attention):
    """Training with dropout, the same at each call."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        """Attend."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.train()
            return super().forward(x, **given)


PLACES = ("learned", "rotary", "alibi", "shaw", "fox", "path", "dapev2", "stickbreaking", "dynamicntk")
"""Methods that ask different things of latent attention: to act on the embedding, queries and keys, scores or values;
sums along the text, all its tokens, neighbours in it; other weights than softmax's; keys transformed at each call."""


@functools.cache
def layers() -> list[Option]:
    """Options of attention."""
    every = {"qk_norm": True, "softcap": 3.0, "sinks": True, "log_scale": 4}
    return [
        *(Option(spec, "latent", Latent) for spec in PLACES),
        Option(
            "rotary",
            "latent, every option",
            functools.partial(Latent, softcap=3.0, sinks=True, log_scale=4),
            relative=False,
        ),
        Option("t5", "every option", functools.partial(Attention, **every), relative=False),
        Option("rotary", "unused dropout", functools.partial(Attention, dropout=0.5)),
        Option(
            "alibi", "dropout", functools.partial(Dropping, dropout=0.5), only=("future", "gradcheck", "determinism")
        ),
        Option("alibi", "bias", BiasedAttention, relative=False),
        Option("rotary", "latent and bias", BiasedLatent, relative=False),
        Option("rotary", "mask of floats", FloatingAttention, relative=False),
        Option("rotary", "bias of low rank", LowRankAttention, relative=False),
        Option("rotary", "strided", functools.partial(Sparse, sparse=strided)),
        Option("t5", "blocks", functools.partial(Sparse, sparse=blocks), relative=False),
        Option("rotary", "attention mask", PaddedAttention),
        Option("alibi", "latent and added mask", AddedLatent),
    ]


# --- models -----------------------------------------------------------------------------------------------------------


LATENT = {"latent_dim": 10, "position_dim": 8}
"""Latent attention in a Transformer."""


@functools.cache
def models() -> list[Option]:
    """Options of a Transformer of two layers."""
    local, far = {"window": 2}, {"position": "rotary(base=100)", "log_scale": 5}
    marking, other = {"position": "fox", "sinks": True}, {"position": "t5", "softcap": 2.0, "chunk": 4}
    return [
        Option("rotary", "gemma", config={"pattern": [local, far], "sandwich_norm": True, "qk_norm": True}),
        Option(
            "rotary", "cohere", config={"pattern": [local, {"position": "none"}], "parallel": True, "norm": "layer"}
        ),
        Option("alibi", "mixed", config={"pattern": [marking, other], "parallel": True, "sandwich_norm": True}),
        Option(
            "learned", "convolving", config={"pattern": [{"position": "path"}, {"position": "dapev2", "window": 4}]}
        ),
        *(Option(spec, "shared keys", config={"pattern": [{}, {"kv_from": 1}]}) for spec in ("t5", "selectiverotary")),
        Option("rotary", "latent", config={**LATENT, "query_latent_dim": 12, "value_dim": 6, "softcap": 3.0}),
        Option("selectiverotary", "latent and local", config={"pattern": [LATENT, {"window": 2}], "sinks": True}),
        Option("shaw", "unused dropout", config={"dropout": 0.5, "attention_dropout": 0.5}),
    ]
