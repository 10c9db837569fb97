"""The layers of a Transformer: attention and MLP, each with its norm and its residual connection."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from headway.attending import Attending, as_coordinates, renumbers
from headway.attention import Attention, SharedKV
from headway.cache import KVCache
from headway.config import LATENT, TransformerConfig
from headway.init import initialise
from headway.integers import Integers, as_positions, readable
from headway.latent import LatentAttention
from headway.linear import project
from headway.masks import Causal, Chunks, Mask, Window
from headway.positions import Position, as_method
from headway.shapes import HeadShape, HeadwayError

NORMS = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}


class MLP(nn.Module):
    """The part of a layer that looks at each token by itself: W_2 gelu(W_1 x), or W_2 (silu(W_g x) ⊙ W_1 x).

    Args:
        dim: width of the model.
        hidden: width in between; default 4·dim, for swiglu 8/3·dim, which is as many parameters.
        activation: "gelu" or "swiglu" (arXiv:2002.05202).
        bias: biases on all of them.
        init: see :func:`headway.init.initialise`.
        depth: layers of the model, for "gpt2".
    """

    def __init__(self, dim: int, hidden: int | None, activation: str, bias: bool, init: str, depth: int) -> None:
        super().__init__()
        self.init, self.depth = init, depth
        hidden = hidden or hidden_width(dim, activation)
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.gate = nn.Linear(dim, hidden, bias=bias) if activation == "swiglu" else None
        self.down = nn.Linear(hidden, dim, bias=bias)

    def reset_parameters(self) -> None:
        """Draw the weights; biases are zero."""
        for linear in (self.up, self.gate, self.down):
            if linear is None:
                continue
            initialise(linear.weight, self.init, residual_depth=self.depth if linear is self.down else 0)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Map each token."""
        up = project(self.up, x)
        inner = nn.functional.gelu(up) if self.gate is None else nn.functional.silu(project(self.gate, x)) * up
        return project(self.down, inner)


class Residual(nn.Module):
    """x + part(norm x); x + norm(part(norm x)) as a sandwich; or post-norm, norm(x + part(x)) (arXiv:2002.04745)."""

    def __init__(self, config: TransformerConfig, part: nn.Module, *, normed: bool = True) -> None:
        super().__init__()
        norm = NORMS[config.norm]
        self.part, self.post = part, config.post_norm
        self.norm = norm(config.dim, eps=1e-6) if normed else nn.Identity()
        self.after = norm(config.dim, eps=1e-6) if config.sandwich_norm else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "batch tokens dim"], **given: Any) -> Float[Tensor, "batch tokens dim"]:
        """Apply the part; ``given`` is passed on to it."""
        out: Tensor
        if self.post:
            out = self.norm(x + self.dropout(self.part(x, **given)))
            return out
        return x + self.added(self.norm(x), **given)

    def added(self, x: Float[Tensor, "batch tokens dim"], **given: Any) -> Float[Tensor, "batch tokens dim"]:
        """What is added to the residual stream, from a normed x."""
        made: Tensor = self.part(x, **given)
        out: Tensor = self.dropout(made if self.after is None else self.after(made))
        return out


class Block(nn.Module):
    """One layer: self attention, cross attention in the decoder of an encoder-decoder, MLP."""

    def __init__(self, attention: Residual, cross: Residual | None, mlp: Residual, parallel: bool = False) -> None:
        super().__init__()
        self.attention, self.cross, self.mlp, self.parallel = attention, cross, mlp, parallel

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        pos: Int[Tensor, "#batch tokens"] | None,
        coordinates: Int[Tensor, "#batch tokens axes"] | None,
        mask: Mask | Tensor | None,
        cache: KVCache | None,
        context: Float[Tensor, "batch keys dim"] | None,
        context_pos: Int[Tensor, "#batch keys"] | None,
        context_cache: KVCache | None,
        shared: SharedKV | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Apply the layer; arguments as in :meth:`headway.Attention.forward`."""
        given: dict[str, Any] = {"pos": pos, "coordinates": coordinates, "mask": mask, "cache": cache}
        if shared is not None:
            given["shared"] = shared
        if self.parallel:
            normed = self.attention.norm(x)
            return x + self.attention.added(normed, **given) + self.mlp.added(normed)
        x = self.attention(x, **given)
        if self.cross is not None:
            x = self.cross(x, context=context, pos=pos, context_pos=context_pos, cache=context_cache)
        out: Tensor = self.mlp(x)
        return out


class Cache:
    """The keys and values of a whole Transformer while decoding; see :meth:`Transformer.new_cache`."""

    def __init__(self, owners: Sequence[int], size: int | None = None, dtype: torch.dtype | None = None) -> None:
        own = {number: KVCache(size, dtype) for number in owners}
        self.layers = [own[number] for number in owners]  # layers that share keys and values share a cache
        self.context = [KVCache(dtype=dtype) for _ in owners]

    def __len__(self) -> int:
        return len(self.layers[0])

    @property
    def begun(self) -> bool:
        """Whether tokens have come in."""
        return self.layers[0].begun

    @property
    def nbytes(self) -> int:
        """Bytes of memory in all layers, free room included."""
        return sum(layer.nbytes for layer in self._all())

    def _all(self, context: bool = True) -> dict[KVCache, None]:
        """Each cache once."""
        return dict.fromkeys((*self.layers, *(self.context if context else ())))

    def keep(self, index: Int[Tensor, " kept"] | Bool[Tensor, " tokens"] | Sequence[int]) -> None:
        """Keep only these tokens, in every layer; see :meth:`headway.KVCache.keep`."""
        for layer in self._all(context=False):
            layer.keep(index)

    def crop(self, tokens: int) -> None:
        """Forget all but the oldest tokens, in every layer; see :meth:`headway.KVCache.crop`."""
        for layer in self._all(context=False):
            layer.crop(tokens)

    def reorder(self, index: Int[Tensor, " batch"] | Sequence[int]) -> None:
        """Let each sequence go on as another did, in every layer; see :meth:`headway.KVCache.reorder`."""
        for layer in self._all():
            layer.reorder(index)


class Stack(nn.Module):
    """Embedding, position, layers and the last norm: one side of a Transformer.

    Args:
        embedding: shared by the sides and the output.
        position: the method of the self attention.
        config: of the Transformer.
        causal: see only the past, as a decoder does.
        cross: attend to a context in every layer.
    """

    def __init__(
        self, embedding: nn.Embedding, position: Position, config: TransformerConfig, *, causal: bool, cross: bool
    ) -> None:
        super().__init__()
        dim = embedding.embedding_dim
        self.embedding, self.checkpointed = embedding, False
        methods = _methods(config, position)
        self.position = position
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            _block(config, number, method, causal, cross) for number, method in enumerate(methods)
        )
        self.owners = config.owners()
        layers = self.attentions()
        for number, owner in enumerate(self.owners):
            if owner != number:
                borrower, lender = layers[number], layers[owner]
                assert isinstance(borrower, Attention)
                assert isinstance(lender, Attention)
                borrower.share_kv(lender)
        # post-norm layers end in a norm already
        self.norm = nn.Identity() if config.post_norm else NORMS[config.norm](dim, eps=1e-6)

    def forward(
        self,
        tokens: Int[Tensor, "batch tokens"],
        *,
        pos: Integers | None = None,
        coordinates: Integers | None = None,
        mask: Mask | Tensor | None = None,
        cache: Cache | None = None,
        context: Float[Tensor, "batch keys dim"] | None = None,
        context_pos: Int[Tensor, "#batch keys"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """What the last layer makes of each token, (B, N, dim)."""
        self._check(tokens)
        if pos is None and cache is not None and cache.begun:
            pos = cache.layers[0].next_pos(tokens.shape[1])
        elif pos is not None:
            pos = as_positions(pos, tokens)
        else:
            self.position.check_length(tokens)
        if renumbers(self.position, cache):
            pos = self.position.renumber(as_positions(pos, tokens))
        x = self.embedding(tokens) * self.embedding.embedding_dim**0.5
        where = as_positions(pos, tokens) if coordinates is None else as_coordinates(coordinates, x, self.position)
        x = self.dropout(self.position.embed(x, where))
        lent = {owner: SharedKV() for number, owner in enumerate(self.owners) if owner != number}
        again = self.checkpointed and self.training and cache is None and torch.is_grad_enabled()
        for number, block in enumerate(self.blocks):
            run = partial(checkpoint, block, use_reentrant=False) if again else block
            x = run(
                x,
                pos=pos,
                coordinates=coordinates,
                mask=mask,
                cache=None if cache is None else cache.layers[number],
                context=context,
                context_pos=context_pos,
                context_cache=None if cache is None else cache.context[number],
                shared=lent.get(self.owners[number]),
            )
        out: Tensor = self.norm(x)
        return out

    def attentions(self) -> list[Attending]:
        """The self attention of each layer, :class:`headway.Attention` or :class:`headway.LatentAttention`."""
        residuals = [block.attention for block in self.blocks if isinstance(block, Block)]
        return [residual.part for residual in residuals if isinstance(residual.part, Attending)]

    def _check(self, tokens: Tensor) -> None:
        if not isinstance(tokens, Tensor):
            raise HeadwayError(
                f"expected integer token ids as a tensor of shape (batch, tokens), got {type(tokens).__name__}"
            )
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype is torch.bool:
            raise HeadwayError(
                f"expected integer token ids of shape (batch, tokens), got {tokens.dtype} of {tuple(tokens.shape)}"
            )
        if tokens.device != self.embedding.weight.device:
            raise HeadwayError(
                f"expected tokens on {self.embedding.weight.device}, where the weights are, got {tokens.device}"
            )
        # on a CPU a look at the ids is nearly free; a GPU stops on a bad id by itself
        if readable(tokens) and tokens.numel():
            low, high = (int(end) for end in torch.aminmax(tokens))
            if low < 0 or high >= self.embedding.num_embeddings:
                raise HeadwayError(
                    f"expected token ids from 0 to {self.embedding.num_embeddings - 1}, got {low if low < 0 else high}"
                )


def _methods(config: TransformerConfig, position: Position) -> list[Position]:
    """The position method of each layer, attached; the model's own is one of them, unless all layers have others.

    Where layers share a method, each width of queries and keys has an object of its own, because latent attention has
    other widths than attention beside it.
    """
    held: dict[tuple[str, HeadShape], Position] = {}
    shapes = [_position_shape(config, number) for number in range(config.layers)]
    users = [number for number in range(config.layers) if config.layer(number).position is None]
    position.attach(shapes[users[0] if users else 0])

    def method(number: int) -> Position:
        own, shape = config.layer(number).position, shapes[number]
        if own is None:
            if position.shape == shape and (config.share_position or number == 0):
                return position
            if position.shape != shape and position.embeds:
                raise HeadwayError(
                    f"expected latent_dim in all layers or in none, because {position.spec()} acts on the embedding, "
                    f"once for all layers, got it in some"
                )
            made = position.fresh()
        else:
            made = as_method(own)
            if made.embeds or type(made).renumber is not Position.renumber:
                raise HeadwayError(
                    f"expected a layer's own position to act inside attention, as rotary, got {made.spec()}, which "
                    f"acts on the embedding: make it the model's"
                )
        key = ("" if own is None else made.spec(), shape)
        return held.setdefault(key, made) if config.share_position else made

    return [method(number) for number in range(config.layers)]


def _position_shape(config: TransformerConfig, number: int) -> HeadShape:
    """The widths of the queries and keys that position acts on in a layer."""
    if config.is_latent(number):
        return HeadShape(config.dim, config.heads, 1, config.of_layer(number, "position_dim"))
    return HeadShape.of(config.dim, config.heads, config.kv_heads, config.head_dim)


def _block(config: TransformerConfig, number: int, position: Position, causal: bool, cross: bool) -> Block:
    """One layer."""
    own = config.layer(number)
    shape: dict[str, Any] = {"kv_heads": config.kv_heads, "head_dim": config.head_dim}
    usual: dict[str, Any] = {"bias": config.bias, "init": config.init, "depth": config.layers, "embed": False}
    usual |= {"backend": config.backend, "dropout": config.attention_dropout}
    options = {name: config.of_layer(number, name) for name in ("scale", "softcap", "sinks", "log_scale")}
    mask: Mask | None = Causal() if causal else None
    if own.window is not None:
        mask = Window(own.window, 0 if causal else own.window)
    if own.chunk is not None:
        mask = Chunks(own.chunk) if mask is None else mask & Chunks(own.chunk)
    attention: Attending
    if config.is_latent(number):
        widths = {"head_dim": config.head_dim, **{name: config.of_layer(number, name) for name in LATENT}}
        options |= widths
        attention = LatentAttention(config.dim, config.heads, position=position, mask=mask, **usual, **options)
    else:
        options["qk_norm"] = config.of_layer(number, "qk_norm")
        attention = Attention(config.dim, config.heads, position=position, mask=mask, **shape, **usual, **options)
    across = None
    if cross:
        across = Attention(config.dim, config.heads, **shape, **usual, scale=config.scale)
    mlp = MLP(config.dim, config.hidden, config.activation, config.bias, config.init, config.layers)
    return Block(
        Residual(config, attention),
        None if across is None else Residual(config, across),
        Residual(config, mlp, normed=not config.parallel),
        config.parallel,
    )


def hidden_width(dim: int, activation: str) -> int:
    """The MLP's width unless told otherwise: 4·dim for gelu, 8/3·dim for swiglu, rounded up to a multiple of 8.

    >>> hidden_width(64, "gelu"), hidden_width(64, "swiglu")
    (256, 176)
    """
    return 4 * dim if activation == "gelu" else (8 * dim // 3 + 7) // 8 * 8
