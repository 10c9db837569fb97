"""Multi-head attention that knows place: the Q, K, V and O projections, the heads, and their initialisation.

Q = X W_Q,  K = X W_K,  V = X W_V          X (n, d_model); each head h has its own W_Q, W_K, W_V (d_model, d_k)
head_h = softmax(Q_h K_hᵀ / √d_k + position) V_h
out = [head_1 … head_H] W_O
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from headway import one_token
from headway.attending import Attending, Core, check_fits, check_given, normed, place_parameters
from headway.attending import HeadWeights as HeadWeights
from headway.cache import KVCache, Tokens
from headway.functional import with_bias
from headway.init import initialise
from headway.integers import Array, Integers, as_positions
from headway.linear import project
from headway.masks import Mask
from headway.positions import NoPosition, Position
from headway.shapes import HeadShape, HeadwayError, as_count
from headway.terms import AnyTerm


class SharedKV:
    """The keys and values of one layer's self attention in one call, for later layers; see :meth:`Attention.share_kv`.

    Pass the same new object to all layers of the call.
    """

    def __init__(self) -> None:
        self.made: tuple[Tokens, Tensor, Tensor, bool, KVCache | None] | None = None


class Attention(Attending):
    """Multi-head, grouped-query or multi-query attention, self or cross, with any position method.

    Dividing by √d_k: for independent q and k of unit variance, q·k has variance d_k; scaled, the variance is 1 at every
    head width, and softmax starts neither flat nor saturated.

    Args:
        dim: width of the model, d_model.
        heads: query heads H. Each has matrices of its own, drawn independently (see :meth:`head`).
        kv_heads: key and value heads; default ``heads``; 1 is multi-query.
        head_dim: width of a head; default dim / heads, but free.
        position: a method or its text, as ``"rotary(base=500000)"``; default none. One object handed to two layers
            shares its parameters.
        mask: who may see whom, always; :meth:`forward` can restrict it further. Default everybody.
        bias: biases on Q, K, V.
        out_bias: a bias on O; default as ``bias``.
        scale: multiplies q·k; default 1/√d_k.
        context_dim: width of the other sequence in cross attention; default ``dim``.
        qk_norm: bring each query and key to unit root mean square, times a learned weight, before position turns it
            (RMSNorm as in Qwen3; arXiv:2010.04245): scores cannot grow without bound.
        softcap: c in c·tanh(scale·q·k / c), see :func:`headway.functional.attend`.
        sinks: a learned score per head for attending to nothing, see :func:`headway.functional.attend`; starts at 0.
        dropout: share of the attention weights set to zero in training, from 0 to below 1; which, torch's generator
            decides, see :func:`headway.functional.attend`.
        log_scale: the training length L; queries at position p ≥ L are multiplied by ln(p+1)/ln L, so that attention
            over more keys stays as sharp (log-n scaling, arXiv:2202.12172).
        init: "xavier", "normal", "gpt2", "t5" or "orthogonal", see :func:`headway.init.initialise`.
        depth: layers of the model, for "gpt2".
        embed: add position to X here, for methods that act on the embedding (X' = X + P). A Transformer does that once
            for all layers and turns it off.
        backend: see :func:`headway.functional.attend`.
        device: where the parameters are made; default torch's own.
        dtype: of the parameters; default torch's own.

    >>> from headway import Attention, Causal, Rotary
    >>> attention = Attention(dim=512, heads=8, position=Rotary(), mask=Causal())
    >>> attention(torch.randn(2, 10, 512)).shape
    torch.Size([2, 10, 512])
    """

    steps = True

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        position: Position | str | None = None,
        mask: Mask | Bool[Tensor, "..."] | Array | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
        scale: float | None = None,
        context_dim: int | None = None,
        qk_norm: bool = False,
        softcap: float | None = None,
        sinks: bool = False,
        log_scale: int | None = None,
        dropout: float = 0.0,
        init: str = "xavier",
        depth: int = 1,
        embed: bool = True,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = HeadShape.of(dim, heads, kv_heads, head_dim)
        scale = shape.head_dim**-0.5 if scale is None else scale
        super().__init__(shape, position, mask, scale=scale, dropout=dropout, init=init, depth=depth, embed=embed)
        self.shape = shape
        dim, heads = self.shape.dim, self.shape.heads
        inner, inner_kv = heads * self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim
        self.context_dim = dim if context_dim is None else as_count(context_dim, "context_dim of at least 1", 1)
        self.q = nn.Linear(dim, inner, bias=bias)
        self.k = nn.Linear(self.context_dim, inner_kv, bias=bias)
        self.v = nn.Linear(self.context_dim, inner_kv, bias=bias)
        self.o = nn.Linear(inner, dim, bias=bias if out_bias is None else out_bias)
        self.qk_norm = bool(qk_norm)
        self.q_norm = nn.RMSNorm(self.shape.head_dim, eps=1e-6) if qk_norm else None
        self.k_norm = nn.RMSNorm(self.shape.head_dim, eps=1e-6) if qk_norm else None
        self.bound_scores(softcap, log_scale, sinks)
        self.core = Core(backend)
        place_parameters(self, device, dtype)
        self.reset_parameters()

    def extra_repr(self) -> str:
        """Sizes, and options that are not the defaults."""
        shape = self.shape
        widths = {"kv_heads": (shape.kv_heads, shape.heads), "head_dim": (shape.head_dim, shape.dim // shape.heads)}
        return f"dim={shape.dim}, heads={shape.heads}{self.told(**widths)}"

    def reset_parameters(self) -> None:
        """Draw W_Q, W_K, W_V and W_O of each head independently; biases are zero. Position draws its own."""
        shape = self.shape
        # T5 leaves scores unscaled and starts W_Q smaller by √d_k; with 1/√d_k in the scale that would count twice
        gain = shape.head_dim**-0.5 if self.scale == 1 else 1.0
        initialise(self.q.weight, self.init, parts=shape.heads, gain=gain)
        initialise(self.k.weight, self.init, parts=shape.kv_heads)
        initialise(self.v.weight, self.init, parts=shape.kv_heads)
        initialise(self.o.weight, self.init, parts=shape.heads, by_input=True, residual_depth=self.depth)
        for linear in (self.q, self.k, self.v, self.o):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        for norm in (self.q_norm, self.k_norm):
            if norm is not None:
                norm.reset_parameters()
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)

    def share_kv(self, owner: Attention) -> None:
        """Attend to the keys and values of another layer instead of own ones.

        This is cross-layer attention (arXiv:2405.12981), as in the upper layers of Gemma 3n: no W_K and W_V to
        learn, no cache to fill. W_K, W_V and the norm of keys become those of the owner, and so does the position
        method, which has rotated the keys. In each call the owner runs first, with the same :class:`SharedKV`.

        Raises:
            HeadwayError: when key heads or widths differ, or the owner has no keys of its own.

        >>> first, second = Attention(32, 4, position="rotary"), Attention(32, 4)
        >>> second.share_kv(first)
        >>> x, shared = torch.randn(1, 5, 32), SharedKV()
        >>> second(x + first(x, shared=shared), shared=shared).shape
        torch.Size([1, 5, 32])
        """
        mine, others = (
            (layer.shape.kv_heads, layer.shape.heads, layer.shape.head_dim, layer.context_dim)
            for layer in (self, owner)
        )
        if mine != others:
            raise HeadwayError(
                f"expected a layer of as many key heads and heads and the same widths to share keys and values, "
                f"{mine}, got {others}"
            )
        if owner.borrows or owner is self:
            raise HeadwayError("expected a layer with keys and values of its own to share, got one without")
        self.k, self.v, self.k_norm, self.position = owner.k, owner.v, owner.k_norm, owner.position
        self.borrows = True

    def forward(
        self,
        x: Float[Tensor, "*batch tokens dim"],
        *,
        context: Float[Tensor, "*batch keys context_dim"] | None = None,
        pos: Integers | None = None,
        context_pos: Integers | None = None,
        coordinates: Integers | None = None,
        mask: Mask | Tensor | Array | None = None,
        terms: Sequence[AnyTerm] = (),
        cache: KVCache | None = None,
        shared: SharedKV | None = None,
    ) -> Float[Tensor, "*batch tokens dim"]:
        """Attend from x to itself, or to a context.

        Args:
            x: (B, N, dim), or (N, dim) without a batch.
            context: attend to this other sequence instead, (B, M, context_dim).
            pos: integer positions of x, (B or 1, N) or (N,), as a tensor, array or list; -1 is padding. Default
                0 … N−1, or onwards from the cache.
            context_pos: integer positions of the context; default 0 … M−1.
            coordinates: where each token of x lies, (B or 1, N, axes), for methods of several axes (images, videos):
                they embed and rotate by these, while ``pos`` stays the order that masks, terms and caches go by. Not
                with a context.
            mask: restricts further, for this call, which keys a query may see, as packed documents do; a boolean
                tensor, True = may see, is taken as :class:`headway.Dense`, one of floats is added to the scores.
            terms: added to the scores besides the position method's, as a :class:`headway.terms.DenseBias` of a graph.
            cache: with self attention x continues the tokens in it and is appended; with a context its keys and values
                are kept at the first call and used from then on. What is cached is detached, the tokens of this call
                are not.
            shared: passes keys and values on to layers that share them, see :meth:`share_kv`. To such a layer positions
                and cache need not be given: they are those of the layer with the keys.

        Raises:
            HeadwayError: on widths, positions or a cache that do not fit.
        """
        if cache is not None and context is None and mask is None and coordinates is None and not terms:
            heads = None if shared is not None else one_token.step(self, x, pos, cache)
            if heads is not None:
                return self._join(heads)
        mask, terms = with_bias(mask, terms)
        if isinstance(x, Tensor) and x.ndim == 2:
            context = None if context is None else context[None]
            batch: Tensor = self(
                x[None],
                context=context,
                pos=pos,
                context_pos=context_pos,
                coordinates=coordinates,
                mask=mask,
                terms=terms,
                cache=cache,
                shared=shared,
            )
            return batch[0]
        self._check(x, context, cache, shared)
        if self.borrows:
            return self._borrowing(x, context, mask, terms, shared)
        x, q, q_pos, where, given = self._queries(x, context, pos, coordinates, cache)
        if context is not None and cache is not None and cache.begun:
            if pos is None and not isinstance(self.position, NoPosition):
                raise HeadwayError(
                    "expected pos, because a cache of the context does not count the queries before, got none: "
                    "pass the positions of x"
                )
            tokens, given = Tokens(cache.k, cache.v, cache.pos, cache.marks), True
            q, _ = self.rotated(q, tokens.k[:, :, :0], where, tokens.pos[:, :0])
        else:
            if context is None and self.spread is None and (given or mask is not None):
                self.check_order(q_pos, mask)
            given |= context_pos is not None or (cache is not None and cache.begun)
            source, k_pos = (x, q_pos) if context is None else self._context(context, context_pos)
            if self.spread is not None and context is not None and context_pos is None:
                raise HeadwayError(
                    "expected context_pos, because the context is spread over processes, got none: pass positions"
                )
            q, tokens = self._keys_and_values(q, where, source, k_pos, where if context is None else k_pos, cache)
        if shared is not None:
            shared.made = (tokens, q_pos, where, given, cache)
        return self._join(self._attend(q, q_pos, tokens, mask, terms, cache, crosses=context is not None, given=given))

    def _borrowing(
        self,
        x: Tensor,
        context: Tensor | None,
        mask: Mask | None,
        terms: Sequence[AnyTerm],
        shared: SharedKV | None,
    ) -> Tensor:
        """The output over the keys and values of another layer."""
        if context is not None:
            raise HeadwayError("expected no context, because this layer shares another's keys and values, got one")
        if shared is None or shared.made is None:
            raise HeadwayError(
                "expected the keys and values of the layer that this one shares them with, got none: run that layer "
                "first, and pass the same headway.attention.SharedKV() to both as `shared`"
            )
        tokens, q_pos, where, given, cache = shared.made
        if len(x) != len(tokens.k) or x.shape[1] != q_pos.shape[1]:
            raise HeadwayError(
                f"expected x of ({len(tokens.k)}, {q_pos.shape[1]}) tokens, as that of the layer with the keys, got "
                f"{tuple(x.shape[:2])}"
            )
        if given:
            x = x.masked_fill((q_pos < 0)[..., None], 0.0)
        x = self.position.embed(x, where) if self.embed else x
        q = self._normed(x, q_pos)
        q, _ = self.rotated(q, tokens.k[:, :, :0], where, tokens.pos[:, :0])
        return self._join(self._attend(q, q_pos, tokens, mask, terms, cache, crosses=False, given=given))

    def _queries(
        self,
        x: Tensor,
        context: Tensor | None,
        pos: Integers | None,
        coordinates: Integers | None,
        cache: KVCache | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
        """x with position, its queries not yet rotated, their positions, where they lie, and whether that was given."""
        x, q_pos, where, given = self.placed(x, context, pos, coordinates, cache)
        return x, self._normed(x, q_pos), q_pos, where, given

    def _normed(self, x: Tensor, q_pos: Tensor) -> Tensor:
        """The queries of x, normalised and sharpened, not yet rotated."""
        q = self._split(project(self.q, x), self.shape.heads)
        return self.sharpened(q if self.q_norm is None else normed(self.q_norm, q), q_pos)

    def _context(self, context: Tensor, pos: Integers | None) -> tuple[Tensor, Tensor]:
        """What keys and values of another sequence are computed from, and its positions."""
        k_pos = as_positions(pos, context, "context_pos")
        return context if pos is None else context.masked_fill((k_pos < 0)[..., None], 0.0), k_pos

    def _keys_and_values(
        self, q: Tensor, where: Tensor, source: Tensor, k_pos: Tensor, k_where: Tensor, cache: KVCache | None
    ) -> tuple[Tensor, Tokens]:
        """q rotated; and rotated keys, values, positions and marks: of what the cache holds, then of the source."""
        k, v = (self._split(project(one, source), self.shape.kv_heads) for one in (self.k, self.v))
        if self.k_norm is not None:
            k = normed(self.k_norm, k)
        marks = self.marked(source, k_pos, cache)
        q, k = self.rotated(q, k, where, k_where)
        v = self.position.turn_values(v, k_pos)
        return q, Tokens(k, v, k_pos, marks) if cache is None else cache.append(k, v, k_pos, marks)

    def _attend(
        self,
        q: Tensor,
        q_pos: Tensor,
        tokens: Tokens,
        mask: Mask | None,
        terms: Sequence[AnyTerm],
        cache: KVCache | None,
        *,
        crosses: bool,
        given: bool,
    ) -> Tensor:
        """The output of every head, (B, H, N, D_v)."""
        mask = self.restricted(mask)
        if self.spread is not None:
            out = self.spread.attend(self, q, q_pos, tokens, mask, tuple(terms), crosses=crosses)
        else:
            q, k, own = self.prepared(q, tokens.k, q_pos, tokens, mask, cache, crosses=crosses, given=given)
            out = self.weighed(q, k, tokens.v, mask, (*own, *terms), q_pos, tokens.pos, given=given)
        return self.position.turn_values(out, q_pos, back=True)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, self.shape.head_dim).transpose(1, 2)

    def _join(self, heads: Tensor) -> Tensor:
        return project(self.o, heads.transpose(1, 2).flatten(2))

    def _check(self, x: Tensor, context: Tensor | None, cache: KVCache | None, shared: SharedKV | None) -> None:
        check_given(cache, x=x, context=context)
        if shared is not None and not isinstance(shared, SharedKV):
            raise HeadwayError(f"expected shared as a headway.attention.SharedKV(), got {type(shared).__name__}")
        if x.ndim != 3 or x.shape[-1] != self.shape.dim:
            raise HeadwayError(f"expected x of shape (batch, tokens, {self.shape.dim}), got {tuple(x.shape)}")
        width = self.context_dim
        if context is None and width != self.shape.dim:
            raise HeadwayError(f"expected a context of width {width}, because context_dim was given, got none")
        if context is not None and (context.ndim != 3 or context.shape[-1] != width or context.shape[0] != x.shape[0]):
            raise HeadwayError(f"expected context of shape ({x.shape[0]}, tokens, {width}), got {tuple(context.shape)}")
        check_fits(self.q, x=x, context=context)
