"""The layers of a Transformer: attention and MLP, each with its norm and its residual connection."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.attention import Attention, as_coordinates, renumbers
from headway.cache import KVCache
from headway.init import initialise
from headway.integers import Integers, as_positions, readable
from headway.masks import Causal, Mask
from headway.positions import Position
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
        if readable(tokens) and tokens.numel():
            low, high = (int(end) for end in torch.aminmax(tokens))
            if low < 0 or high >= self.embedding.num_embeddings:
                raise HeadwayError(
                    f"expected token ids from 0 to {self.embedding.num_embeddings - 1}, got {low if low < 0 else high}"
                )


def hidden_width(dim: int, activation: str) -> int:
    """The MLP's width unless told otherwise: 4·dim for gelu, 8/3·dim for swiglu, rounded up to a multiple of 8.

    >>> hidden_width(64, "gelu"), hidden_width(64, "swiglu")
    (256, 176)
    """
    return 4 * dim if activation == "gelu" else (8 * dim // 3 + 7) // 8 * 8
