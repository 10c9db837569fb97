"""What a position method is: an object that acts at one or more of the few places where position can enter attention.

    out_i = Σ_j softmax_j( scale · q_i·k_j + terms(i, j) under mask(i, j) ) · v_j

1. ``embed``   adds a vector to the token embedding
2. ``rotate``  maps q and k given their positions; what it makes of k is cached
3. ``terms``   adds something to the scores or values
4. ``mark``    computes something per token that is cached beside k and v; ``carry`` sums or convolves it along the text

And where these do not reach: ``renumber`` changes positions themselves while training, ``transform_qk`` maps all keys,
cached ones too, anew at every call, and ``normalise`` names another way from scores to weights than softmax.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.display import Displayed
from headway.integers import Integers, as_positions, readable
from headway.positions.along import Before
from headway.positions.along import angle_dtype as angle_dtype
from headway.shapes import HeadShape, HeadwayError, brief
from headway.terms import AnyTerm

REACH: ContextVar[int | None] = ContextVar("REACH", default=None)
"""How far apart tokens are at most where positions cannot be looked at, on the meta device; None is not known."""


@dataclass(frozen=True, eq=False)
class TermInputs:
    """What a method may look at when it makes its terms.

    Args:
        q: queries, rotated, (B, H, Q, D).
        k: keys, rotated, (B, H_kv, K, D).
        q_pos: positions of the queries, (B or 1, Q); -1 is padding.
        k_pos: positions of the keys, (B or 1, K); -1 is padding.
        scale: what q·k is multiplied with.
        marks: what :meth:`Position.marked` computed for the keys, (B, K, ...).
        heads: which of the method's heads q holds; None is all of them in order.
        sees_future: whether a query may see keys at positions after its own; False where that is not known.
        crosses: whether the keys are those of another sequence than the queries.
        absolute: whether what all scores of a row have in common counts: softmax ignores it, but not beside a sink, nor
            does another way to make weights.
        order: which token of the text each key is, (B or 1, K), see :attr:`headway.cache.KVCache.order`; None where
            neighbours in memory are neighbours in the text.
    """

    q: Float[Tensor, "batch heads queries dim"]
    k: Float[Tensor, "batch kv_heads keys dim"]
    q_pos: Int[Tensor, "#batch queries"]
    k_pos: Int[Tensor, "#batch keys"]
    scale: float
    marks: Tensor | None = None
    heads: Int[Tensor, " heads"] | None = None
    sees_future: bool = False
    crosses: bool = False
    absolute: bool = False
    order: Int[Tensor, "#batch keys"] | None = None

    def of_heads(self, parameter: Float[Tensor, "all_heads ..."]) -> Float[Tensor, "heads ..."]:
        """The rows of a per-head parameter for the heads at hand."""
        return parameter if self.heads is None else parameter[self.heads]

    def own_marks(self) -> Float[Tensor, "batch queries *rest"]:
        """What ``mark`` computed for the queries: in self attention they are the newest of the keys.

        Raises:
            HeadwayError: when the keys are of another sequence.
        """
        queries, keys = self.q.shape[2], self.k.shape[2]
        if self.marks is None or self.crosses or queries > keys:
            raise HeadwayError(
                f"expected tokens that attend to themselves and those before, got {queries} queries and {keys} keys: "
                f"use another position method in cross attention"
            )
        return self.marks[:, keys - queries :]

    def offsets(self, past: int, future: int) -> tuple[Int[Tensor, " width"], int]:
        """The distances, key minus query, that a table must hold for the tokens at hand, and the entry of distance 0.

        For bias that is constant beyond ``past`` and ``future``: then the table's width changes no result, only its
        cost. Where positions cannot be looked at (under torch.compile, on the meta device) it is as wide as it may be.

        Args:
            past: how far behind a query distances are told apart; keys farther away count as that far.
            future: how far before it.

        >>> pos = torch.tensor([[-1, -1, 10, 11]])
        >>> x = torch.zeros(1, 1, 4, 8)
        >>> TermInputs(x, x, pos, pos, 1.0).offsets(512, 0)
        (tensor([-1,  0]), 1)
        """
        q_pos, k_pos = self.q_pos, self.k_pos
        if 0 in (*q_pos.shape, *k_pos.shape):
            past, future = 0, 0
        elif readable(q_pos, anywhere=True):
            never = torch.iinfo(k_pos.dtype).max // 2  # where padding stands, no token is near
            first_q, first_k = (x.masked_fill(x < 0, never).amin(1) for x in (q_pos, k_pos))
            ends = torch.stack([(q_pos.amax(1) - first_k).amax(), (k_pos.amax(1) - first_q).amax()])
            behind, before = ends.clamp(min=0).tolist()
            past, future = min(past, behind), min(future, before)
        elif q_pos.is_meta and (reach := REACH.get()) is not None:
            past, future = min(past, reach), min(future, reach)
        return torch.arange(-past, future + 1, device=q_pos.device), past


@dataclass(eq=False)
class Position(Displayed, nn.Module):
    """A way to tell attention where a token is. Subclass it in one file of ``headway/positions`` to add a method.

    A method is a dataclass whose fields are its hyperparameters, all plain values. Parameters are made once, by
    :meth:`attach`, when the method is handed to attention; the same object handed to two layers shares them.

    Positions are integers, explicit and global; -1 is padding. A method never makes its own ``arange`` over tokens.
    """

    title: ClassVar[str] = ""
    """Its name in the field."""
    paper: ClassVar[str] = ""
    """Where it was published, as arXiv:NNNN.NNNNN."""
    summary: ClassVar[str] = ""
    """What it does, in one sentence."""
    summary_zh: ClassVar[str] = ""
    """The same in Chinese; where there is none, reports show the English."""
    relative: ClassVar[bool] = True
    """Whether attention depends on differences of positions only, so that shifting them all changes nothing."""
    per_layer: ClassVar[bool] = False
    """Whether a Transformer gives each layer parameters of its own, as the method's paper does."""
    normalise: ClassVar[str] = "softmax"
    """How scores become weights, see :func:`headway.functional.attend`."""
    sequential: ClassVar[bool] = False
    """Whether the order of the tokens in memory counts, which then must be that of the text."""
    contiguous: ClassVar[bool] = False
    """Whether the tokens of a document must lie side by side in memory, because what lies between them counts."""
    neighbours: ClassVar[bool] = False
    """Whether its terms go by :attr:`Look.order`."""
    unbroken: ClassVar[bool] = False
    """Whether all tokens between a query and a key are needed, so that a cache must not lose one of them."""
    variants: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters worth a look beside the defaults, as ``rotary(fraction=0.5)``; laws are tested on them too."""
    exempt: ClassVar[dict[str, str]] = {}
    """Laws (see tests/laws) that do not bind it, each with the reason; the tests expect them to fail."""

    shape: HeadShape | None = field(default=None, init=False, repr=False)
    """The widths it was attached to; None before."""

    def __new__(cls, *values: Any, **named: Any) -> Self:
        """Initialise the module first: dataclasses assign their fields before any ``__init__`` could.

        Raises:
            HeadwayError: on a hyperparameter that is not of its default's kind.
        """
        defaults = {f.name: f.default for f in fields(cls) if f.init}
        for key, value in (*zip(defaults, values, strict=False), *named.items()):
            if key in defaults:
                as_kind(cls.method_name(), key, value, defaults[key])
        self = super().__new__(cls)
        nn.Module.__init__(self)
        return self

    # --- what a method implements -------------------------------------------------------------------------------

    def build(self, shape: HeadShape) -> None:
        """Make the parameters for these widths; called once. Values come from :meth:`reset_parameters`."""

    def reset_parameters(self) -> None:
        """Initialise the parameters."""

    def embed(
        self, x: Float[Tensor, "batch tokens dim"], pos: Int[Tensor, "#batch tokens *axes"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Token embeddings with position added; by default unchanged. ``pos`` may be coordinates."""
        return x

    def rotate(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        q_pos: Int[Tensor, "#batch queries *axes"],
        k_pos: Int[Tensor, "#batch keys *axes"],
    ) -> tuple[Float[Tensor, "batch heads queries dim_r"], Float[Tensor, "batch kv_heads keys dim_r"]]:
        """Queries and keys mapped by their positions, or coordinates; by default unchanged."""
        return q, k

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """What is added to scores and values; by default nothing."""
        return ()

    def mark(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens *rest"] | None:
        """Something per token, computed from attention's input and cached beside k and v; by default nothing.

        Of each token by itself: see :meth:`carry` for what depends on the tokens before.
        """
        return None

    def carry(
        self,
        marks: Float[Tensor, "batch tokens *rest"],
        pos: Int[Tensor, "#batch tokens"],
        before: Before | None,
    ) -> Float[Tensor, "batch tokens *held"]:
        """What is cached of the tokens, for methods that sum or convolve along the text; by default what marks them.

        Whatever a later token needs of those before must be in the mark of the last of them: a cache may drop tokens.
        :mod:`headway.positions.along` has sums and windows.

        Args:
            marks: what :meth:`mark` made of the tokens, (B, N, ...).
            pos: their positions, (B or 1, N); -1 is padding.
            before: the token they follow, where a cache holds it.
        """
        return marks

    def renumber(self, pos: Int[Tensor, "#batch tokens"]) -> Int[Tensor, "batch tokens"]:
        """Other positions for the tokens while training, in the same order, -1 kept; by default the same.

        Called once for all layers, and not with a cache.
        """
        return pos

    def transform_qk(
        self, look: TermInputs
    ) -> tuple[Float[Tensor, "batch heads queries dim_r"], Float[Tensor, "batch kv_heads keys dim_r"]]:
        """Queries and all keys, cached ones too, mapped at every call: for maps that change as the sequence grows, or
        that follow from the marks of all tokens. By default unchanged.

        The queries are the newest tokens: query i of Q belongs to key K − Q + i, unless attention crosses to a context.
        """
        return look.q, look.k

    # --- what every method has ----------------------------------------------------------------------------------

    def marked(
        self,
        x: Float[Tensor, "batch tokens dim"],
        pos: Int[Tensor, "#batch tokens"],
        before: Before | None = None,
    ) -> Tensor | None:
        """What is cached beside k and v: :meth:`mark`, then :meth:`carry`; (B, N, ...), or None."""
        marks = self.mark(x)
        return None if marks is None else self.carry(marks, pos, before)

    def attach(self, shape: HeadShape | int) -> Self:
        """Make the parameters for these widths, once. Attention and Transformer do this themselves.

        Args:
            shape: the widths; a number is the width of an embedding without heads, as before an RNN.

        Raises:
            HeadwayError: when it is attached to other widths already.
        """
        shape = shape if isinstance(shape, HeadShape) else HeadShape.of(shape)
        if self.shape is None:
            self.build(shape)
            self.shape = shape
            self.reset_parameters()
        elif self.shape != shape:
            raise HeadwayError(
                f"expected {type(self).__name__} to be used with the widths it has, {self.shape}, got {shape}: "
                f"make another one, or .fresh()"
            )
        return self

    def fresh(self) -> Self:
        """The same method with parameters of its own, not yet made."""
        return type(self)(**self.hyperparameters())

    @classmethod
    def method_name(cls) -> str:
        """Its name on the command line and in files: the class name in lower case."""
        return cls.__name__.lower()

    @property
    def axes(self) -> int:
        """How many coordinates a token may have: 1 in text; 2 in an image, 3 in a video. See ``Attention.forward``."""
        return 1

    def prepare(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        q_pos: Int[Tensor, "#batch queries"],
        k_pos: Int[Tensor, "#batch keys"],
        scale: float,
        marks: Tensor | None = None,
        heads: Int[Tensor, " heads"] | None = None,
        sees_future: bool = False,
        *,
        crosses: bool = False,
        absolute: bool = False,
        order: Int[Tensor, "#batch keys"] | None = None,
    ) -> tuple[Tensor, Tensor, tuple[AnyTerm, ...]]:
        """What attention is to be called with: queries and keys after :meth:`transform_qk`, and the terms.

        Args:
            q: queries after :meth:`rotate`.
            k: keys after :meth:`rotate`, cached ones too.
            q_pos: as in :class:`TermInputs`, like all that follow.
            k_pos: positions of the keys.
            scale: what q·k is multiplied with.
            marks: what :meth:`marked` computed for the keys.
            heads: which of the method's heads q holds.
            sees_future: whether a query may see keys after it.
            crosses: as in :class:`TermInputs`, like the others.
            absolute: whether what all scores of a row have in common counts.
            order: which token of the text each key is.
        """
        look = TermInputs(q, k, q_pos, k_pos, scale, marks, heads, sees_future, crosses, absolute, order)
        if type(self).transform_qk is not Position.transform_qk:
            q, k = self.transform_qk(look)
            look = replace(look, q=q, k=k)
        return q, k, self.terms(look)

    @property
    def embeds(self) -> bool:
        """Whether the method acts on the embedding."""
        return type(self).embed is not Position.embed

    def hyperparameters(self) -> dict[str, Any]:
        """The fields and their values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    def spec(self) -> str:
        """How the command line and configurations write it: the name, and what differs from the defaults.

        >>> from headway.positions import Rotary
        >>> Rotary(base=500000.0).spec()
        'rotary(base=500000.0)'
        """
        defaults = {f.name: f.default for f in fields(self)}
        given = self.hyperparameters().items()
        changed = ", ".join(f"{name}={value!r}" for name, value in given if value != defaults[name])
        return self.method_name() + (f"({changed})" if changed else "")

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        pos: Integers | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Add position to embeddings in front of any sequence model: an RNN, a CNN, ``nn.TransformerEncoder``.

        Args:
            x: embeddings, (B, N, dim).
            pos: integer positions, (B or 1, N) or (N,); -1 is padding. Default 0 … N−1.

        Raises:
            HeadwayError: when the method acts only inside attention, or has no parameters yet.
        """
        if not self.embeds:
            raise HeadwayError(
                f"expected a method that acts on embeddings, got {type(self).__name__}, which acts inside attention: "
                f"hand it to headway.Attention, or use Sinusoidal or Learned here"
            )
        if not isinstance(x, Tensor) or x.ndim != 3 or not x.is_floating_point():
            got = type(x).__name__ if not isinstance(x, Tensor) else tuple(x.shape) if x.ndim != 3 else x.dtype
            raise HeadwayError(f"expected embeddings of shape (batch, tokens, width), got {got}")
        if self.shape is not None and x.shape[2] != self.shape.dim:
            raise HeadwayError(f"expected embeddings of width {self.shape.dim}, got {x.shape[2]}")
        return self.embed(x, as_positions(pos, x))


LARGEST = 2**31 - 1
"""The largest whole number in a method's text: products of two still are sizes that torch can name."""


def as_kind(method: str, key: str, value: Any, default: Any) -> Any:
    """A hyperparameter of its default's kind: an integer is taken for a float, nothing else for another.

    Raises:
        HeadwayError: when it is of another kind, or larger than torch can hold.
    """
    if isinstance(default, tuple) and isinstance(value, tuple):
        return tuple(as_kind(method, key, each, default[0] if default else 0.0) for each in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, float) and number and (isinstance(value, float) or abs(value) < 2**1023):
        return float(value)
    if type(value) is not type(default):
        raise HeadwayError(f"expected {method} {key} like {default!r}, got {brief(value)}")
    if type(value) is int and abs(value) > LARGEST:
        raise HeadwayError(f"expected {method} {key} of at most {LARGEST:,}, got {brief(value)}")
    return value


def frequencies(dim: int, base: float, device: torch.device, *, endpoint: bool = False) -> Float[Tensor, " pairs"]:
    """Angular frequencies base^(−2i/dim) for i = 0 … ⌈dim/2⌉−1, in float64 radians per token.

    Args:
        dim: how many numbers the pairs fill.
        base: ratio of the slowest to the fastest, nearly.
        device: where.
        endpoint: divide by ⌈dim/2⌉−1 instead of dim/2, so that the slowest is 1/base exactly (tensor2tensor).
    """
    pairs = (dim + 1) // 2
    exponent = torch.arange(pairs, device=device, dtype=angle_dtype(device)) / (
        max(pairs - 1, 1) if endpoint else dim / 2
    )
    return torch.as_tensor(base, dtype=exponent.dtype, device=device) ** -exponent
