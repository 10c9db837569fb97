"""Multi-head latent attention (MLA): keys and values of all heads from one short vector per token, which is cached.

c = norm(X W_DKV)                      (n, latent)   cached, with the key k_R = rotate(X W_KR) (n, position_dim)
k_h = [c W_UK_h, k_R]                  the part without position, of each head, and the part with it, of all heads
v_h = c W_UV_h
q_h = [norm(X W_DQ) W_UQ_h, rotate(norm(X W_DQ) W_QR_h)]

When few queries meet many cached tokens, W_UK moves to the queries and W_UV behind attention (they are "absorbed"):
q·(c W_UK) = (q W_UKᵀ)·c and Σ w (c W_UV) = (Σ w c) W_UV. All heads then read the cache as it is, with one key head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from headway.attending import Attending, Core, check_fits, check_given, normed, place_parameters
from headway.cache import KVCache, Tokens
from headway.functional import with_bias
from headway.init import initialise
from headway.integers import Array, Integers
from headway.linear import project
from headway.masks import Mask
from headway.positions import Position
from headway.shapes import HeadShape, HeadwayError, as_count
from headway.terms import AnyTerm, ValuesByDistance


class LatentAttention(Attending):
    """Multi-head latent attention (MLA; DeepSeek-V2, arXiv:2405.04434), with any position method that leaves
    values as they are.

    Per token a cache holds ``latent_dim`` + ``position_dim`` numbers, whatever the number of heads. Position acts on
    the last ``position_dim`` dimensions of queries and keys, the decoupled part; a method whose bias depends on queries
    and keys reads those.

    Args:
        dim: width of the model, d_model.
        heads: number of heads H.
        latent_dim: width of the latent vector c.
        query_latent_dim: width of the latent vector of queries; None projects queries directly.
        head_dim: width of the part of queries and keys without position; default dim / heads.
        position_dim: width of the part with position.
        value_dim: width of a head's values; default ``head_dim``.
        position: a method or its text; DeepSeek uses ``"rotary(pairing='interleaved')"``.
        mask: who may see whom, always, as in :class:`headway.Attention`.
        bias: biases on the projections from X to latent vectors and on O, as ``attention_bias`` of DeepSeek-V3.
        scale: multiplies q·k; default 1/√(head_dim + position_dim).
        softcap: keep scores within ±softcap, as in :class:`headway.Attention`, like the next two.
        sinks: a learned score per head for attending to nothing.
        log_scale: training length beyond which queries are scaled, their part without position too.
        dropout: share of the attention weights set to zero in training, from 0 to below 1.
        init: "xavier", "normal", "gpt2", "t5" or "orthogonal", see :func:`headway.init.initialise`.
        depth: layers of the model, for "gpt2".
        embed: add position to X here, for methods that act on the embedding.
        backend: see :func:`headway.functional.attend`.
        device: where the parameters are made; default torch's own.
        dtype: of the parameters; default torch's own.

    Raises:
        HeadwayError: on sizes that do not fit each other.

    >>> from headway import Causal, LatentAttention
    >>> attention = LatentAttention(dim=256, heads=8, latent_dim=64, mask=Causal())
    >>> attention(torch.randn(2, 10, 256)).shape
    torch.Size([2, 10, 256])
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
        latent_dim: int = 512,
        query_latent_dim: int | None = None,
        head_dim: int | None = None,
        position_dim: int = 64,
        value_dim: int | None = None,
        position: Position | str | None = "rotary",
        mask: Mask | Bool[Tensor, "..."] | Array | None = None,
        bias: bool = False,
        scale: float | None = None,
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
        shape = HeadShape.of(dim, heads, None, head_dim)
        position_dim = as_count(position_dim, "position_dim of at least 1", 1)
        wide = shape.head_dim + position_dim
        super().__init__(
            HeadShape(shape.dim, shape.heads, 1, position_dim),
            position,
            mask,
            scale=wide**-0.5 if scale is None else scale,
            dropout=dropout,
            init=init,
            depth=depth,
            embed=embed,
        )
        check_values(self.position, ": use headway.Attention")
        self.dim, self.heads, self.head_dim = shape.dim, shape.heads, shape.head_dim
        self.shape = HeadShape(shape.dim, shape.heads, shape.heads, wide)
        self.content_dim = shape.head_dim
        self.latent_dim = as_count(latent_dim, "latent_dim of at least 1", 1)
        self.position_dim = position_dim
        self.value_dim = self.head_dim if value_dim is None else as_count(value_dim, "value_dim of at least 1", 1)
        source = self.dim
        self.q_down: nn.Linear | None = None
        self.q_norm: nn.RMSNorm | None = None
        if query_latent_dim is not None:
            source = as_count(query_latent_dim, "query_latent_dim of at least 1", 1)
            self.q_down, self.q_norm = nn.Linear(self.dim, source, bias=bias), nn.RMSNorm(source, eps=1e-6)
        self.q = nn.Linear(source, self.heads * wide, bias=False)
        self.kv_down = nn.Linear(self.dim, self.latent_dim + self.position_dim, bias=bias)
        self.kv_norm = nn.RMSNorm(self.latent_dim, eps=1e-6)
        self.k = nn.Linear(self.latent_dim, self.heads * self.head_dim, bias=False)
        self.v = nn.Linear(self.latent_dim, self.heads * self.value_dim, bias=False)
        self.o = nn.Linear(self.heads * self.value_dim, self.dim, bias=bias)
        self.bound_scores(softcap, log_scale, sinks)
        self.core = Core(backend)
        place_parameters(self, device, dtype)
        self.reset_parameters()

    def extra_repr(self) -> str:
        """Sizes, and options that are not the defaults."""
        names = ("dim", "heads", "latent_dim", "head_dim", "position_dim", "value_dim")
        sizes = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return sizes + self.told(query_latent_dim=(None if self.q_down is None else self.q_down.out_features, None))

    def reset_parameters(self) -> None:
        """Draw the matrices of each head independently; biases are zero, norms one. Position draws its own."""
        for linear in (self.q, self.k, self.v):
            initialise(linear.weight, self.init, parts=self.heads)
        for down in (self.q_down, self.kv_down):
            if down is not None:
                initialise(down.weight, self.init)
        initialise(self.o.weight, self.init, parts=self.heads, by_input=True, residual_depth=self.depth)
        for biased in (self.q_down, self.kv_down, self.o):
            if biased is not None and biased.bias is not None:
                nn.init.zeros_(biased.bias)
        for norm in (self.q_norm, self.kv_norm):
            if norm is not None:
                norm.reset_parameters()
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)

    def forward(
        self,
        x: Float[Tensor, "*batch tokens dim"],
        *,
        pos: Integers | None = None,
        coordinates: Integers | None = None,
        mask: Mask | Tensor | Array | None = None,
        terms: Sequence[AnyTerm] = (),
        cache: KVCache | None = None,
        absorb: bool | None = None,
    ) -> Float[Tensor, "*batch tokens dim"]:
        """Attend from x to itself and to what is cached.

        Args:
            x: (B, N, dim), or (N, dim) without a batch.
            pos: integer positions of x, (B or 1, N) or (N,); -1 is padding. Default 0 … N−1, or onwards from the cache.
            coordinates: where each token lies, (B or 1, N, axes), for methods of several axes.
            mask: restricts further, for this call, which keys a query may see; as in :class:`headway.Attention`.
            terms: added to the scores besides the position method's.
            cache: x continues the tokens in it and is appended: the latent vector and the rotated key of each token.
            absorb: whether W_UK and W_UV move to the queries and behind attention; default where it costs less. The
                result is the same, rounding aside.

        Raises:
            HeadwayError: on widths, positions or a cache that do not fit; with a method that adds to values, as Shaw
                does, where ``value_dim`` is not ``position_dim``.
        """
        mask, terms = with_bias(mask, terms)
        self._check(x, cache)
        if x.ndim == 2:
            rest: dict[str, Any] = {"mask": mask, "terms": terms, "cache": cache, "absorb": absorb}
            batch: Tensor = self(x[None], pos=pos, coordinates=coordinates, **rest)
            return batch[0]
        x, q_pos, where, given = self.placed(x, None, pos, coordinates, cache)
        if self.spread is None and (given or mask is not None):
            self.check_order(q_pos, mask)
        given |= cache is not None and cache.begun
        q, turned, tokens = self._latent(x, q_pos, where, cache)
        return self._attend(q, turned, q_pos, tokens, mask, terms, cache, absorb=absorb, given=given)

    def _latent(self, x: Tensor, q_pos: Tensor, where: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor, Tokens]:
        """Queries without position and rotated; and latent vectors with rotated keys: of the cache, then of x."""
        low = x if self.q_down is None or self.q_norm is None else normed(self.q_norm, project(self.q_down, x))
        wide = self.head_dim + self.position_dim
        q = self.sharpened(project(self.q, low).view(*x.shape[:2], self.heads, wide).transpose(1, 2), q_pos)
        q, turned = q.split((self.head_dim, self.position_dim), -1)
        latent, key = project(self.kv_down, x).split((self.latent_dim, self.position_dim), -1)
        marks = self.marked(x, q_pos, cache)
        turned, key = self.position.rotate(turned, key[:, None], where, where)
        held = torch.cat((normed(self.kv_norm, latent)[:, None], key), -1)
        none = held[..., :0]  # values are in the latent vectors
        tokens = Tokens(held, none, q_pos, marks) if cache is None else cache.append(held, none, q_pos, marks)
        return q, turned, tokens

    def _attend(
        self,
        q: Tensor,
        turned: Tensor,
        q_pos: Tensor,
        tokens: Tokens,
        mask: Mask | None,
        terms: Sequence[AnyTerm],
        cache: KVCache | None,
        *,
        absorb: bool | None,
        given: bool,
    ) -> Tensor:
        """Attention over latent vectors, or over the keys and values made from them, and the output projection."""
        mask = self.restricted(mask)
        if self.spread is not None:
            tokens, mask, terms = self.spread.together(self, tokens, mask, tuple(terms), crosses=False)
        latent, key = tokens.k.tensor_split((self.latent_dim,), -1)  # a method may have made the rotated part wider
        turned, key, own = self.prepared(turned, key, q_pos, tokens, mask, cache, crosses=False, given=given)
        if any(isinstance(term, ValuesByDistance) for term in own):
            if self.value_dim != self.position_dim:
                raise HeadwayError(
                    f"expected value_dim={self.position_dim}, the position_dim, because "
                    f"{self.position.method_name()} adds to values, got {self.value_dim}"
                )
            absorb = False
        if absorb is None:
            absorb = self._absorbs(q.shape[2], key.shape[2])
        elif absorb:
            self._check_absorbable()
        if absorb:
            up_k, up_v = (linear.weight.view(self.heads, -1, self.latent_dim) for linear in (self.k, self.v))
            q, k, v = q @ up_k, latent, latent
        else:
            k, v = (up(latent[:, 0]).unflatten(-1, (self.heads, -1)).transpose(1, 2) for up in (self.k, self.v))
            key = key.expand(-1, self.heads, -1, -1)
        q, k = torch.cat((q, turned), -1), torch.cat((k, key), -1)
        heads = self.weighed(q, k, v, mask, (*own, *terms), q_pos, tokens.pos, given=given)
        if absorb:
            heads = heads @ up_v.mT
        return project(self.o, heads.transpose(1, 2).flatten(2))

    def _absorbs(self, queries: int, keys: int) -> bool:
        """Whether absorbing takes fewer multiplications: wider vectors per pair against keys and values not made."""
        if self._replaced():
            return False
        made = (keys - queries) * self.latent_dim * (self.head_dim + self.value_dim)
        wider = queries * keys * (2 * self.latent_dim - self.head_dim - self.value_dim)
        return wider < made

    def _replaced(self) -> list[str]:
        """Those of the projections k and v that are more than a matrix, e.g. one with an adapter, or quantized."""
        plain = (type(up) is nn.Linear and type(up.weight) in (Tensor, nn.Parameter) for up in (self.k, self.v))
        return [name for name, is_plain in zip("kv", plain, strict=True) if not is_plain]

    def _check_absorbable(self) -> None:
        for name in self._replaced():
            raise HeadwayError(
                f"expected {name} as torch.nn.Linear, whose matrix absorb=True moves, got "
                f"{type(getattr(self, name)).__name__}: leave absorb out"
            )

    def _check(self, x: Tensor, cache: KVCache | None) -> None:
        check_given(cache, x=x)
        if x.ndim not in (2, 3) or x.shape[-1] != self.dim:
            raise HeadwayError(f"expected x of shape (batch, tokens, {self.dim}), got {tuple(x.shape)}")
        check_fits(self.q, x=x)


def check_values(position: Position, hint: str) -> None:
    """Refuse a method that turns values, which latent attention makes of latent vectors; ``hint`` ends the sentence."""
    if position.turns_values:
        raise HeadwayError(
            f"expected a method that leaves values as they are, because latent attention makes them of latent "
            f"vectors, got {position.method_name()}{hint}"
        )
