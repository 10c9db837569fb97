"""A Transformer over tokens: decoder, encoder or both, with one position method for all layers.

X = E[tokens]·√d + P           each layer:  X ← X + Attention(norm X);  X ← X + MLP(norm X)          logits = norm(X) Eᵀ
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headway.attention import Attention, as_coordinates, as_method, renumbers
from headway.cache import KVCache
from headway.init import check_init, initialise
from headway.masks import Array, Causal, Integers, Mask, as_mask, as_positions
from headway.positions import NoPosition, Position
from headway.shapes import HeadShape, HeadwayError, as_choice, as_count, as_number, brief

KINDS = ("decoder", "encoder", "encoder-decoder")
NORMS = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}
ACTIVATIONS = ("gelu", "swiglu")
CONFIG: dict[str, Any] = {
    "vocab": int,
    "dim": int,
    "layers": int,
    "heads": int,
    "kv_heads": int | None,
    "head_dim": int | None,
    "hidden": int | None,
    "position": str,
    "share_position": bool | None,
    "kind": str,
    "norm": str,
    "post_norm": bool,
    "activation": str,
    "bias": bool,
    "init": str,
    "scale": float | int | None,
    "qk_norm": bool,
    "softcap": float | int | None,
    "sinks": bool,
    "log_scale": int | None,
    "tie": bool,
    "dropout": float | int,
    "backend": str,
}
"""The keys of a model's configuration and the plain values they take; nothing else is accepted from a file."""


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
        up = self.up(x)
        inner = nn.functional.gelu(up) if self.gate is None else nn.functional.silu(self.gate(x)) * up
        out: Tensor = self.down(inner)
        return out


class Residual(nn.Module):
    """x + part(norm x), or norm(x + part(x)) with post-norm (arXiv:2002.04745 compares them)."""

    def __init__(self, dim: int, norm: str, post: bool, dropout: float, part: nn.Module) -> None:
        super().__init__()
        self.norm, self.part, self.post = NORMS[norm](dim, eps=1e-6), part, post
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch tokens dim"], **given: Any) -> Float[Tensor, "batch tokens dim"]:
        """Apply the part; ``given`` is passed on to it."""
        out: Tensor
        if self.post:
            out = self.norm(x + self.dropout(self.part(x, **given)))
            return out
        out = x + self.dropout(self.part(self.norm(x), **given))
        return out


class Block(nn.Module):
    """One layer: self attention, cross attention in the decoder of an encoder-decoder, MLP."""

    def __init__(self, attention: Residual, cross: Residual | None, mlp: Residual) -> None:
        super().__init__()
        self.attention, self.cross, self.mlp = attention, cross, mlp

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        pos: Int[Tensor, "#batch tokens"] | None,
        coordinates: Int[Tensor, "#batch tokens axes"] | None,
        mask: Mask | None,
        cache: KVCache | None,
        context: Float[Tensor, "batch keys dim"] | None,
        context_pos: Int[Tensor, "#batch keys"] | None,
        context_cache: KVCache | None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Apply the layer; arguments as in :meth:`headway.Attention.forward`."""
        x = self.attention(x, pos=pos, coordinates=coordinates, mask=mask, cache=cache)
        if self.cross is not None:
            x = self.cross(x, context=context, pos=pos, context_pos=context_pos, cache=context_cache)
        out: Tensor = self.mlp(x)
        return out


class Cache:
    """The memory of a whole Transformer while decoding; see :meth:`Transformer.new_cache`."""

    def __init__(self, layers: int) -> None:
        self.layers = [KVCache() for _ in range(layers)]
        self.context = [KVCache() for _ in range(layers)]

    def __len__(self) -> int:
        return len(self.layers[0])


class Stack(nn.Module):
    """Embedding, position, layers and the last norm: one side of a Transformer. Arguments as in :class:`Transformer`.

    Args:
        embedding: shared by the sides and the output.
        position: the method of the self attention.
        causal: see only the past, as a decoder does.
        cross: attend to a context in every layer.
        options: what else :class:`headway.Attention` takes, for the self attention.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        position: Position,
        *,
        causal: bool,
        cross: bool,
        layers: int,
        heads: int,
        kv_heads: int | None,
        head_dim: int | None,
        hidden: int | None,
        share_position: bool,
        norm: str,
        post_norm: bool,
        activation: str,
        bias: bool,
        init: str,
        scale: float | None,
        dropout: float,
        backend: str,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        dim = embedding.embedding_dim
        self.embedding = embedding
        self.position = position.attach(HeadShape.of(dim, heads, kv_heads, head_dim))
        self.dropout = nn.Dropout(dropout)

        def attention(position: Position | None, mask: Mask | None, **given: Any) -> Residual:
            part = Attention(
                dim,
                heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                position=position,
                mask=mask,
                bias=bias,
                scale=scale,
                init=init,
                depth=layers,
                embed=False,
                backend=backend,
                **given,
            )
            return Residual(dim, norm, post_norm, dropout, part)

        def block(number: int) -> Block:
            own = position if share_position or number == 0 else position.fresh()
            mlp = MLP(dim, hidden, activation, bias, init, layers)
            return Block(
                attention(own, Causal() if causal else None, **options),
                attention(None, None) if cross else None,
                Residual(dim, norm, post_norm, dropout, mlp),
            )

        self.blocks = nn.ModuleList(block(number) for number in range(layers))
        # post-norm layers end in a norm already
        self.norm = nn.Identity() if post_norm else NORMS[norm](dim, eps=1e-6)

    def forward(
        self,
        tokens: Int[Tensor, "batch tokens"],
        *,
        pos: Integers | None = None,
        coordinates: Integers | None = None,
        mask: Mask | None = None,
        cache: Cache | None = None,
        context: Float[Tensor, "batch keys dim"] | None = None,
        context_pos: Int[Tensor, "#batch keys"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """What the last layer makes of each token, (B, N, dim)."""
        self._check(tokens)
        if pos is None and cache is not None and len(cache) > 0:
            pos = cache.layers[0].next_pos(tokens.shape[1])
        elif pos is not None:
            pos = as_positions(pos, tokens)
        if renumbers(self.position, cache):
            pos = self.position.renumber(as_positions(pos, tokens))
        x = self.embedding(tokens) * self.embedding.embedding_dim**0.5
        where = as_positions(pos, tokens) if coordinates is None else as_coordinates(coordinates, x, self.position)
        x = self.dropout(self.position.embed(x, where))
        for number, block in enumerate(self.blocks):
            x = block(
                x,
                pos=pos,
                coordinates=coordinates,
                mask=mask,
                cache=None if cache is None else cache.layers[number],
                context=context,
                context_pos=context_pos,
                context_cache=None if cache is None else cache.context[number],
            )
        out: Tensor = self.norm(x)
        return out

    def attentions(self) -> list[Attention]:
        """The self attention of each layer."""
        residuals = [block.attention for block in self.blocks if isinstance(block, Block)]
        return [residual.part for residual in residuals if isinstance(residual.part, Attention)]

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
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling() and tokens.numel():
            low, high = (int(end) for end in torch.aminmax(tokens))
            if low < 0 or high >= self.embedding.num_embeddings:
                raise HeadwayError(
                    f"expected token ids from 0 to {self.embedding.num_embeddings - 1}, got {low if low < 0 else high}"
                )


class Transformer(nn.Module):
    """Transformer that reads tokens and returns logits; a decoder unless told otherwise.

    Args:
        vocab: number of different tokens.
        dim: width of the model.
        layers: number of layers, of each stack.
        heads: query heads.
        kv_heads: key and value heads; default ``heads``.
        head_dim: width of a head; default dim / heads.
        hidden: width of the MLP; default 4·dim (gelu) or 8/3·dim (swiglu).
        position: a method or its text; default rotary. All layers share the object, unless the method is one whose
            layers have their own parameters (``per_layer``), or ``share_position`` says so.
        share_position: one object for all layers, or one per layer; default as the method's paper does.
        kind: "decoder" (causal), "encoder" (sees all) or "encoder-decoder"; in the last, the decoder's cross attention
            has no position, and the encoder's method is the same with ``bidirectional`` on where it has that switch.
        norm: "rms" (arXiv:1910.07467) or "layer" (arXiv:1607.06450).
        post_norm: norm after adding to the residual stream, as in Vaswani et al., instead of before.
        activation: "gelu" or "swiglu".
        bias: biases on all matrices.
        init: see :func:`headway.init.initialise`; the embedding is N(0, 1/dim), multiplied by √dim when read.
        scale: multiplies q·k; default 1/√d_k.
        qk_norm: normalise queries and keys; this and the next three as in :class:`headway.Attention`, for the self
            attention of both sides.
        softcap: keep scores within ±softcap before position is added.
        sinks: a learned score per head for attending to nothing.
        log_scale: the training length, to keep attention as sharp beyond it.
        tie: use the embedding as the output matrix too.
        dropout: share of each layer's output set to zero in training.
        backend: see :func:`headway.functional.attend`.

    Raises:
        HeadwayError: on values that do not fit, with what would.

    >>> model = Transformer(vocab=256, dim=64, layers=2, heads=4, position="alibi")
    >>> model(torch.zeros(1, 10, dtype=torch.long)).shape
    torch.Size([1, 10, 256])
    """

    def __init__(
        self,
        vocab: int,
        dim: int = 128,
        layers: int = 3,
        heads: int = 4,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        hidden: int | None = None,
        position: Position | str = "rotary",
        share_position: bool | None = None,
        kind: str = "decoder",
        norm: str = "rms",
        post_norm: bool = False,
        activation: str = "gelu",
        bias: bool = False,
        init: str = "xavier",
        scale: float | None = None,
        qk_norm: bool = False,
        softcap: float | None = None,
        sinks: bool = False,
        log_scale: int | None = None,
        tie: bool = True,
        dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        config = {key: value for key, value in locals().items() if key in CONFIG}
        super().__init__()
        HeadShape.of(dim, heads, kv_heads, head_dim)
        for name, value in (("vocab", vocab), ("layers", layers), ("hidden", 1 if hidden is None else hidden)):
            as_count(value, f"{name} of at least 1", 1)
        for name, choice, choices in (
            ("kind", kind, KINDS),
            ("norm", norm, tuple(NORMS)),
            ("activation", activation, ACTIVATIONS),
        ):
            as_choice(choice, name, choices)
        if not 0 <= as_number(dropout, "dropout from 0 to below 1") < 1:
            raise HeadwayError(f"expected dropout from 0 to below 1, got {dropout}")
        check_init(init)
        position = as_method(position)
        if kind == "encoder" and isinstance(position, NoPosition):
            warnings.warn("an encoder without position is blind to the order of its tokens", stacklevel=2)
        share = not position.per_layer if share_position is None else share_position
        config.update(position=position.spec(), share_position=share)
        self.config: dict[str, Any] = {key: config[key] for key in CONFIG}
        self.kind = kind
        self.embedding = nn.Embedding(vocab, dim)

        def stack(position: Position, causal: bool, cross: bool) -> Stack:
            return Stack(
                self.embedding,
                position,
                causal=causal,
                cross=cross,
                layers=layers,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                hidden=hidden,
                share_position=share,
                norm=norm,
                post_norm=post_norm,
                activation=activation,
                bias=bias,
                init=init,
                scale=scale,
                dropout=dropout,
                backend=backend,
                options={"qk_norm": qk_norm, "softcap": softcap, "sinks": sinks, "log_scale": log_scale},
            )

        self.encoder = stack(two_sided(position), False, False) if kind == "encoder-decoder" else None
        self.stack = stack(position, kind != "encoder", kind == "encoder-decoder")
        self.head = nn.Linear(dim, vocab, bias=False)
        self.reset_parameters()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Transformer:
        """A new model from :attr:`config`, plain values as they come from JSON.

        Raises:
            HeadwayError: on a key that is unknown or a value of the wrong kind; nothing is looked up by name but the
                position methods.
        """
        check_config(config)
        return cls(**config)

    @property
    def position(self) -> Position:
        """The position method; of the decoder if there are two sides, of the first layer if each has its own."""
        return self.stack.position

    def extended(self, to: int, how: str | None = None, trained: int | None = None) -> Transformer:
        """A copy of the model, weights included, whose position method serves ``to`` tokens.

        Args:
            to: the length to serve.
            how: as in :meth:`headway.positions.Position.extended`, which says what each method can.
            trained: the length it was trained at, where the method does not know it.

        Raises:
            HeadwayError: when the method cannot be extended so.
        """
        other = copy.deepcopy(self)
        other._replace_positions(lambda position: position.extended(to, how, trained))
        return other

    def drop_position(self) -> None:
        """Go on without position, as DroPE does after most of the training (arXiv:2512.12167); a causal mask stays.

        Calling it again changes nothing. :class:`headway.training.TrainSettings` has it as ``drop_position``.

        Raises:
            HeadwayError: when the method has learned parameters, which an optimizer or a checkpoint may hold.
        """
        if any(True for _ in self.position.parameters()):
            raise HeadwayError(
                f"expected a position method without parameters to drop, as rotary, got {self.position.spec()}"
            )
        self._replace_positions(lambda position: NoPosition())

    def _replace_positions(self, change: Callable[[Position], Position]) -> None:
        """Put ``change(position)`` in the place of each position object of the self attentions."""
        changed: dict[int, Position] = {}  # what was shared stays shared

        def of(position: Position, shape: HeadShape) -> Position:
            if id(position) not in changed:
                changed[id(position)] = change(position).attach(shape)
            return changed[id(position)]

        for stack in (self.encoder, self.stack):
            if stack is None:
                continue
            holders: list[Stack | Attention] = [stack, *stack.attentions()]
            for holder in holders:
                holder.position = of(holder.position, stack.attentions()[0].shape)
        self.config["position"] = self.position.spec()

    def reset_parameters(self) -> None:
        """Draw all parameters anew; those of the position method last.

        So that from one seed all models that differ only in their position method start from the same weights.
        """
        nn.init.normal_(self.embedding.weight, std=self.embedding.embedding_dim**-0.5)
        if self.config["tie"]:  # here and not only at the start: Module.to_empty unties a model made on the meta device
            self.head.weight = self.embedding.weight
        else:
            nn.init.normal_(self.head.weight, std=self.embedding.embedding_dim**-0.5)
        for module in self.modules():
            if isinstance(module, Attention | MLP | nn.LayerNorm | nn.RMSNorm):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, Position):
                module.reset_parameters()

    def new_cache(self) -> Cache:
        """An empty memory for decoding: hand it to every call, and give each call only the new tokens."""
        return Cache(len(self.stack.blocks))

    def forward(
        self,
        tokens: Int[Tensor, "batch tokens"],
        *,
        source: Int[Tensor, "batch source"] | None = None,
        pos: Integers | None = None,
        source_pos: Integers | None = None,
        coordinates: Integers | None = None,
        mask: Mask | Bool[Tensor, "..."] | Array | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch tokens vocab"]:
        """Logits of the next token at each place (decoder), or of each token (encoder).

        Args:
            tokens: integer ids, (B, N), below ``vocab``.
            source: what the encoder of an encoder-decoder reads, (B, M); with a filled cache it is not read again.
            pos: integer positions, (B or 1, N) or (N,), as a tensor, array or list; -1 is padding. Default 0 … N−1, or
                onwards from the cache.
            source_pos: likewise for the source.
            coordinates: where each token lies, (B or 1, N, axes), for methods of several axes; see
                :meth:`headway.Attention.forward`.
            mask: restricts the self attention of the decoder (or of an encoder alone) further, as packed documents do;
                a boolean tensor, True = may see, is taken as :class:`headway.Dense`.
            cache: of :meth:`new_cache`; the tokens continue those in it.

        Raises:
            HeadwayError: on ids outside the vocabulary, on a missing source, on positions a method cannot serve.
        """
        if cache is not None and not isinstance(cache, Cache):
            raise HeadwayError(f"expected a cache made by new_cache(), got {type(cache).__name__}")
        context = None
        if self.encoder is None and source is not None:
            raise HeadwayError(f"expected no source, because this Transformer is of kind {self.kind!r}, got one")
        if self.encoder is not None:
            if source is None:
                raise HeadwayError("expected a source, because this Transformer is an encoder-decoder, got none")
            if source_pos is not None and isinstance(source, Tensor) and source.ndim == 2:
                source_pos = as_positions(source_pos, source, "source_pos")
            if cache is None or len(cache) == 0:
                context = self.encoder(source, pos=source_pos)
            else:  # its keys, values and positions are in the cache
                source_pos = None
                context = self.embedding.weight.new_empty(len(source), 0, self.embedding.embedding_dim)
        x = self.stack(
            tokens,
            pos=pos,
            coordinates=coordinates,
            mask=as_mask(mask),
            cache=cache,
            context=context,
            context_pos=source_pos,
        )
        logits: Tensor = self.head(x)
        return logits


def hidden_width(dim: int, activation: str) -> int:
    """The MLP's width unless told otherwise: 4·dim for gelu, 8/3·dim for swiglu, rounded up to a multiple of 8.

    >>> hidden_width(64, "gelu"), hidden_width(64, "swiglu")
    (256, 176)
    """
    return 4 * dim if activation == "gelu" else (8 * dim // 3 + 7) // 8 * 8


def check_config(config: Mapping[str, Any]) -> None:
    """Check names and types of a model's configuration; ranges are checked by who builds the model.

    Raises:
        HeadwayError: on a missing vocab, an unknown key or a value of the wrong kind.
    """
    if not isinstance(config, Mapping) or "vocab" not in config:
        raise HeadwayError(f"expected a model configuration with vocab, got {brief(config)}")
    for key, value in config.items():
        if key not in CONFIG:
            raise HeadwayError(f"expected model configuration keys among {', '.join(CONFIG)}, got {brief(key)}")
        kind = CONFIG[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, bool | None)):
            expected = getattr(kind, "__name__", kind)
            raise HeadwayError(f"expected model configuration {key} of type {expected}, got {brief(value)}")


def two_sided(position: Position) -> Position:
    """The method as an encoder uses it: T5 and its kin see the future too."""
    values = position.hyperparameters()
    return type(position)(**{**values, "bidirectional": True} if "bidirectional" in values else values)
