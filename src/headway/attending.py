"""What every layer of attention does with position, whatever its projections are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headway.backends import BACKENDS
from headway.cache import KVCache, Tokens
from headway.functional import DROPOUT, as_seed, attend_checked, check
from headway.init import check_init
from headway.integers import FAR, Array, Integers, as_integers, as_positions, in_range, readable
from headway.masks import Documents, Mask, as_mask, parts, reach
from headway.positions import Position, as_method
from headway.positions.along import Before, interleaved, out_of_order
from headway.schema import require
from headway.shapes import HeadShape, HeadwayError, as_count, as_number, brief, broadcasts
from headway.terms import AnyTerm


class Core(nn.Module):
    """The call of :func:`headway.functional.attend` as a module, so that a hook can see what attention was given."""

    def __init__(self, backend: str = "auto") -> None:
        super().__init__()
        if not isinstance(backend, str) or backend not in ("auto", *BACKENDS):
            raise HeadwayError(f"expected backend 'auto' or one of {', '.join(BACKENDS)}, got {brief(backend)}")
        self.backend = backend

    def forward(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        v: Float[Tensor, "batch kv_heads keys dim_v"],
        mask: Mask | None,
        terms: Sequence[AnyTerm],
        q_pos: Int[Tensor, "#batch queries"] | None,
        k_pos: Int[Tensor, "#batch keys"] | None,
        scale: float,
        normalise: str = "softmax",
        softcap: float | None = None,
        sinks: Float[Tensor, " heads"] | None = None,
        dropout: float = 0.0,
        seed: Int[Tensor, "1"] | None = None,
    ) -> Float[Tensor, "batch heads queries dim_v"]:
        """Attend; positions are those of tokens that were looked at when they came in."""
        rest = (scale, normalise, softcap, sinks, dropout, seed)
        call = check(q, k, v, mask, terms, q_pos, k_pos, *rest, looked_at=True)
        return attend_checked(call, self.backend)


class Spread(Protocol):
    """What lets a layer attend over a sequence whose tokens are spread over processes, see :mod:`headway.parallel`."""

    def attend(
        self,
        layer: Attending,
        q: Float[Tensor, "batch heads queries dim"],
        q_pos: Int[Tensor, "#batch queries"],
        tokens: Tokens,
        mask: Mask | None,
        terms: tuple[AnyTerm, ...],
        *,
        crosses: bool,
    ) -> Float[Tensor, "batch heads queries dim_v"]:
        """The output of every head for this process's queries over the tokens of all processes; arguments are this
        process's, with marks as :meth:`headway.positions.Position.mark` makes them.
        """

    def together(
        self, layer: Attending, tokens: Tokens, mask: Mask | None, terms: tuple[AnyTerm, ...], *, crosses: bool
    ) -> tuple[Tokens, Mask | None, tuple[AnyTerm, ...]]:
        """The tokens of all processes in the text's order, and mask and terms over them."""


class HeadWeights(NamedTuple):
    """The matrices of one head, as in Q_h = X W_Q; views, so writing into them changes the model.

    Latent attention has them, too, but W_K and W_V, and with a latent vector of queries W_Q, map latent vectors.

    Args:
        q: W_Q, (d_model, d_k).
        k: W_K, (d_model, d_k); shared by the heads of a group.
        v: W_V, (d_model, d_v); likewise.
        o: W_O, (d_v, d_model).
    """

    q: Float[Tensor, "dim head_dim"]
    k: Float[Tensor, "dim head_dim"]
    v: Float[Tensor, "dim head_dim"]
    o: Float[Tensor, "head_dim dim"]


class Attending(nn.Module):
    """Base class of layers of attention: positions of tokens, and attention once queries, keys and values are there.

    A layer adds ``core``, the projections ``q``, ``k``, ``v`` and ``o``, whose heads lie side by side, and ``shape``,
    the widths of the queries and keys that are compared.

    Args:
        shape: of the queries and keys that the position method acts on.
        position: a method or its text; None is none.
        mask: who may see whom, always.
        scale: multiplies q·k.
        dropout: share of the attention weights set to zero in training, from 0 to below 1.
        init: see :func:`headway.init.initialise`.
        depth: layers of the model, for "gpt2".
        embed: add position to X here.

    Raises:
        HeadwayError: on values that do not fit.
    """

    core: Core
    shape: HeadShape
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    softcap: float | None
    log_scale: int | None
    sinks: nn.Parameter | None
    spread: Spread | None = None
    """How a sequence is spread over processes, see :func:`headway.parallel.context_parallel`; None is not at all."""
    own_heads: slice | None = None
    """Which of the method's heads the layer has, see :func:`headway.parallel.tensor_parallel`; None is all."""
    borrows = False
    """Whether keys and values are those of another layer, see :meth:`headway.Attention.share_kv`."""
    qk_norm = False
    """Whether each query and key is normalised."""
    steps = False
    """Whether :mod:`headway.one_token` does what the layer does, unless a class below overrides a part of it."""
    content_dim = 0
    """The first dimensions of queries and keys that position does not act on; the rest is the decoupled part."""

    def __init__(
        self,
        shape: HeadShape,
        position: Position | str | None,
        mask: Mask | Bool[Tensor, "..."] | Array | None,
        *,
        scale: float,
        dropout: float,
        init: str,
        depth: int,
        embed: bool,
    ) -> None:
        super().__init__()
        require(dropout, DROPOUT, "dropout")
        self.position = as_method(position).attach(shape)
        self.mask, self.embed, self.dropout = as_mask(mask), embed, float(dropout)
        self.scale = as_number(scale, "a finite scale")
        check_init(init)
        self.init, self.depth = init, as_count(depth, "a depth of at least 1 layer", 1)

    def bound_scores(self, softcap: float | None, log_scale: int | None, sinks: bool) -> None:
        """Check and set what bounds and sharpens scores; arguments as of :class:`headway.Attention`."""
        if softcap is not None:
            softcap = as_number(softcap, "a finite softcap above 0, or None", 0)
        if log_scale is not None:
            log_scale = as_count(log_scale, "log_scale, a training length, of at least 2", 2)
        self.softcap, self.log_scale = softcap, log_scale
        self.sinks = nn.Parameter(torch.zeros(self.shape.heads)) if sinks else None

    def told(self, **more: tuple[Any, Any]) -> str:
        """Options that are not the defaults, for ``repr``: those of a layer, each with its default, and what all have.

        >>> import headway
        >>> headway.Attention(dim=64, heads=8, softcap=30.0).told(kv_heads=(8, 8))
        ', softcap=30.0'
        """
        given: dict[str, tuple[Any, Any]] = {
            **more,
            "softcap": (self.softcap, None),
            "log_scale": (self.log_scale, None),
            "dropout": (self.dropout, 0.0),
            "backend": (self.core.backend, "auto"),
        }
        return "".join(f", {name}={value}" for name, (value, usual) in given.items() if value != usual)

    def columns(self, which: str) -> int:
        """How many columns of one head's Q, K or V its matrix makes; in latent attention K has its decoupled part
        besides.

        >>> import headway
        >>> headway.Attention(dim=64, heads=8, kv_heads=2).columns("k")
        8
        """
        linear: nn.Linear = getattr(self, which)
        return linear.out_features // (self.shape.heads if which == "q" else self.shape.kv_heads)

    def head(self, index: int, *, grad: bool = False) -> HeadWeights:
        """W_Q, W_K, W_V and W_O of one head as views, or their gradients.

        Args:
            index: the head, 0 … H−1.
            grad: the gradients of the last backward instead.

        Raises:
            HeadwayError: when there is no such head, no gradient yet, or a projection is more than a matrix.

        >>> import headway
        >>> headway.Attention(dim=64, heads=8).head(3).q.shape
        torch.Size([64, 8])
        """
        shape = self.shape
        index, group = shape.numbers(index)

        def matrix(linear: nn.Linear, number: int, heads: int, by_input: bool = False) -> Tensor:
            found = as_matrix(linear)
            weight = found.grad if grad else found.detach()
            if weight is None:
                raise HeadwayError("expected gradients, got none: call backward() on a loss first")
            return weight.chunk(heads, 1 if by_input else 0)[number].T

        return HeadWeights(
            matrix(self.q, index, shape.heads),
            matrix(self.k, group, shape.kv_heads),
            matrix(self.v, group, shape.kv_heads),
            matrix(self.o, index, shape.heads, by_input=True),
        )

    def placed(
        self,
        x: Float[Tensor, "batch tokens dim"],
        context: Float[Tensor, "batch keys context_dim"] | None,
        pos: Integers | None,
        coordinates: Integers | None,
        cache: KVCache | None,
    ) -> tuple[Tensor, Tensor, Tensor, bool]:
        """x with position, its positions, where its tokens lie, and whether positions were given."""
        if self.spread is not None and (pos is None or cache is not None):
            got = "none: pass pos" if pos is None else "a cache: leave it out, or undo context_parallel"
            raise HeadwayError(
                f"expected positions of the tokens and no cache, because the sequence is spread over processes, got "
                f"{got}"
            )
        if pos is None and context is None and cache is not None and cache.begun:
            q_pos = cache.next_pos(x.shape[1])
        else:
            q_pos = as_positions(pos, x)
            if self.embed and pos is None:
                self.position.check_length(x)
        given = pos is not None
        if given:  # what stands where padding is, e.g. NaN, must not reach the gradient of W_Q
            x = x.masked_fill((q_pos < 0)[..., None], 0.0)
        if self.embed and renumbers(self.position, cache):
            q_pos, given = self.position.renumber(q_pos), True
        where = q_pos if coordinates is None else as_coordinates(coordinates, x, self.position, context)
        if self.embed:
            x = self.position.embed(x, where)
        return x, q_pos, where, given

    def prepared(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        q_pos: Int[Tensor, "#batch queries"],
        tokens: Tokens,
        mask: Mask | None,
        cache: KVCache | None,
        *,
        crosses: bool,
        given: bool,
        heads: Int[Tensor, " heads"] | None = None,
    ) -> tuple[Tensor, Tensor, tuple[AnyTerm, ...]]:
        """Queries, keys and terms as the position method gives them to attention; ``heads`` are those that q holds."""
        return self.position.prepare(
            q,
            k,
            q_pos,
            tokens.pos,
            self.scale,
            tokens.marks,
            sees_future=reach(mask)[1] > 0,
            crosses=crosses,
            absolute=self.sinks is not None or self.position.normalise != "softmax",
            order=self._order(cache, tokens.pos) if given else None,
            start=tokens.start,
            below=None if given else max(q.shape[2], k.shape[2]),
            own=tokens.own,
            heads=self._numbers(heads, q),
        )

    def rotated(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim_k"],
        q_pos: Int[Tensor, "#batch queries *axes"],
        k_pos: Int[Tensor, "#batch keys *axes"],
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys as the position method rotates them; there may be no new keys, as wide as cached ones."""
        if self.own_heads is None:
            return self.position.rotate(q, k, q_pos, k_pos)
        groups = self.shape.heads // self.shape.kv_heads
        with self.position.of_key_heads(slice(self.own_heads.start // groups, self.own_heads.stop // groups)):
            return self.position.rotate(q, k, q_pos, k_pos)

    def own_sinks(self, q: Tensor, heads: Int[Tensor, " heads"] | None = None) -> Float[Tensor, " heads"] | None:
        """The sinks of the layer's heads, or of some of them."""
        numbers = self._numbers(heads, q)
        return self.sinks if self.sinks is None or numbers is None else self.sinks[numbers]

    def _numbers(self, heads: Int[Tensor, " heads"] | None, q: Tensor) -> Int[Tensor, " heads"] | None:
        """Which of the method's heads some of the layer's are; default all."""
        if self.own_heads is None:
            return heads
        own = torch.arange(self.own_heads.start, self.own_heads.stop, device=q.device)
        return own if heads is None else own[heads]

    def weighed(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        v: Float[Tensor, "batch kv_heads keys dim_v"],
        mask: Mask | None,
        terms: Sequence[AnyTerm],
        q_pos: Int[Tensor, "#batch queries"],
        k_pos: Int[Tensor, "#batch keys"],
        *,
        given: bool,
        seed: Int[Tensor, "1"] | None = None,
        heads: Int[Tensor, " heads"] | None = None,
    ) -> Float[Tensor, "batch heads queries dim_v"]:
        """The output of every head, or of those that q holds."""
        dropout = (self.dropout, as_seed(seed)) if self.dropout and self.training else ()
        rest = (self.scale, self.position.normalise, self.softcap, self.own_sinks(q, heads), *dropout)
        # every way but softmax to weigh scores goes by the keys' order
        compared = mask is not None or bool(terms) or self.position.normalise != "softmax"
        # positions 0, 1, 2 … that nobody gave need not be looked at, and attention may run fused
        looked_at = given or (compared and q.shape[2] != k.shape[2])
        at = (q_pos, k_pos) if looked_at else (None, None)
        out: Tensor = self.core(q, k, v, mask, terms, *at, *rest)
        return out

    def marked(
        self, x: Float[Tensor, "batch tokens width"], pos: Int[Tensor, "#batch tokens"], cache: KVCache | None
    ) -> Tensor | None:
        """What is kept per token besides keys and values; where a sequence is spread over processes, what the method
        carries along the text once the tokens are together.
        """
        if self.spread is not None:
            return self.position.mark(x)
        return self.position.marked(x, pos, self._before(cache, pos))

    def restricted(self, mask: Mask | None) -> Mask | None:
        """The mask of a call and the layer's own."""
        return mask if self.mask is None else self.mask if mask is None else self.mask & mask

    def sharpened(
        self, q: Float[Tensor, "batch heads queries dim"], q_pos: Int[Tensor, "#batch queries"]
    ) -> Float[Tensor, "batch heads queries dim"]:
        """Queries times ln(p+1)/ln L at positions p ≥ L, where ``log_scale`` is a training length L."""
        if self.log_scale is None:
            return q
        length = (q_pos + 1).clamp(min=self.log_scale).to(torch.promote_types(q.dtype, torch.float32))
        return (q * (length.log() / math.log(self.log_scale))[:, None, :, None]).to(q.dtype)

    def check_order(self, pos: Int[Tensor, "#batch tokens"], mask: Mask | None) -> None:
        """Refuse shuffled tokens where a method goes by their order, as far as positions and documents show it."""
        if not self.position.sequential or pos.shape[1] < 2 or not readable(pos):
            return
        documents = next((part for part in parts(mask) if isinstance(part, Documents)), None)
        ids = None if documents is None else torch.as_tensor(documents.ids, device=pos.device)
        if ids is not None and ids.shape[1] != pos.shape[1]:
            return  # the mask itself says what is wrong
        again = interleaved(pos, ids) if ids is not None and self.position.contiguous else None
        if again is not None:
            raise HeadwayError(
                f"expected each document's tokens side by side in memory, because {self.position.method_name()} goes "
                f"by what lies between two tokens, got document {again} in several places: sort the tokens by document"
            )
        wrong = out_of_order(pos, ids)
        if wrong is not None:
            raise HeadwayError(
                f"expected positions that go up from token to token, because {self.position.method_name()} goes by the "
                f"order of tokens in memory, got {wrong[1]} after {wrong[0]}: sort the tokens, or say where documents "
                f"begin (headway.Documents)"
            )

    def _before(self, cache: KVCache | None, pos: Int[Tensor, "#batch tokens"]) -> Before | None:
        """What the tokens at these positions follow in a cache."""
        if cache is None or type(self.position).carry is Position.carry:
            return None
        if self.position.unbroken and cache.misses(pos):
            raise HeadwayError(
                f"expected a cache that dropped the oldest tokens, or the newest that new ones replace, because "
                f"{self.position.method_name()} needs every token between a query and a key, got one that dropped "
                f"others: keep a run of tokens, or use another position method"
            )
        found = cache.before(pos)
        return None if found is None else Before(*found)

    def _order(self, cache: KVCache | None, k_pos: Int[Tensor, "#batch keys"]) -> Int[Tensor, "#batch keys"] | None:
        """Which token of the text each key is, for methods that ask; None where neighbours in memory are neighbours."""
        if not self.position.neighbours:
            return None
        order = (k_pos >= 0).cumsum(1) if cache is None else cache.order[:, : k_pos.shape[1]]
        if readable(k_pos):
            steps = (order.diff(dim=1) == 1) | (k_pos[:, :-1] < 0) & (order[:, :-1] == 0)
            return None if bool(steps.all()) else order
        return order


def check_given(cache: KVCache | None, **given: Tensor | None) -> None:
    """Refuse a cache that is not of one layer, and what is no tensor; only x has to be given."""
    if cache is not None and not isinstance(cache, KVCache):
        raise HeadwayError(f"expected a KVCache, which is of one layer, got {type(cache).__name__}")
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor) and (name == "x" or tensor is not None):
            raise HeadwayError(f"expected {name} as a tensor, got {type(tensor).__name__}")


def check_fits(projection: nn.Module, **given: Tensor | None) -> None:
    """Refuse tensors on another device or of another dtype than the weights of a projection.

    A projection may have been replaced since, e.g. by one with an adapter; one without parameters, as after
    quantization, takes what it takes.
    """
    weight = next(projection.parameters(), None)
    for name, x in given.items():
        if weight is None or x is None:
            continue
        if x.device != weight.device:
            raise HeadwayError(f"expected {name} on {weight.device}, where the weights are, got {x.device}")
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(weight.device.type):
            raise HeadwayError(f"expected {name} of {weight.dtype}, as the weights are, got {x.dtype}")


def as_matrix(projection: nn.Module) -> Tensor:
    """The matrix of a projection, (outputs, inputs).

    Raises:
        HeadwayError: when it has been replaced by more than a matrix, e.g. one with an adapter, or quantized.
    """
    weight = projection.weight if isinstance(projection, nn.Linear) else None
    if not isinstance(weight, Tensor) or type(weight).__module__.partition(".")[0] != "torch":
        what = type(projection if weight is None else weight)
        raise HeadwayError(
            f"expected a projection that is one matrix, torch.nn.Linear, got {what.__module__}.{what.__name__}: merge "
            f"an adapter into it first, as merge_and_unload() of peft does, and quantize a copy"
        )
    return weight


def normed(norm: nn.RMSNorm, x: Float[Tensor, "*rest width"]) -> Float[Tensor, "*rest width"]:
    """x normalised in the dtype of the norm's weight, so that autocast, which narrows x, does not narrow the norm."""
    out: Tensor = norm(x.to(norm.weight.dtype))
    return out.to(x.dtype)


def place_parameters(module: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    """Parameters made anew, empty, on a device and of a dtype; None leaves them as they are."""
    if device is not None:
        module.to_empty(device=device)
    check_dtype(dtype)
    if dtype is not None:
        module.to(dtype)


def check_dtype(dtype: object) -> None:
    """Refuse what is neither None nor a floating dtype."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise HeadwayError(f"expected dtype as a floating dtype, as torch.bfloat16, got {brief(dtype)}")


def renumbers(position: Position, cache: object) -> bool:
    """Whether a method gives tokens other positions now: while training, and not with a cache."""
    return position.training and cache is None and type(position).renumber is not Position.renumber


def as_coordinates(
    coordinates: Integers, x: Tensor, position: Position, context: Tensor | None = None
) -> Int[Tensor, "#batch tokens axes"]:
    """Coordinates of the tokens x as int64, checked.

    Raises:
        HeadwayError: when the method has other axes, or they are not integers, not one set per token, or elsewhere.
    """
    if context is not None:
        raise HeadwayError("expected no coordinates in cross attention, got some: only x could have them")
    if position.axes == 1:
        raise HeadwayError(
            f"expected no coordinates, because {type(position).__name__} has one axis, got some: pass pos instead"
        )
    coordinates = as_integers(coordinates, "coordinates", x.device)
    expected, got = (x.shape[0], x.shape[1], position.axes), tuple(coordinates.shape)
    if len(got) != 3 or got[1:] != expected[1:] or not broadcasts(got[0], expected[0]):
        raise HeadwayError(
            f"expected coordinates of shape ({expected[0]} or 1, {expected[1]}, {expected[2]}), got {got}"
        )
    if coordinates.device != x.device:
        raise HeadwayError(f"expected coordinates on {x.device}, got {coordinates.device}")
    return in_range(coordinates, "coordinates", 1 - FAR)
