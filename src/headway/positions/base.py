"""The interface of position methods: a method acts at one or more of the places where position can enter attention.

    out_i = Σ_j softmax_j( scale · q_i·k_j + terms(i, j) under mask(i, j) ) · v_j

1. ``embed``   adds a vector to the token embedding
2. ``rotate``  transforms q and k by their positions; the result for k is cached
3. ``terms``   adds something to the scores or values
4. ``mark``    computes data per token, cached with k and v; ``carry`` sums or convolves it along the text

For what these cannot express: ``turn_values`` transforms values and outputs, ``renumber`` changes the positions during
training, ``transform_qk`` transforms all keys, including cached ones, at every call; ``normalise`` replaces softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from headway.display import Displayed
from headway.integers import FAR, Integers, as_positions, exporting, readable
from headway.positions.along import Before
from headway.positions.along import angle_dtype as angle_dtype
from headway.positions.steady import Turning
from headway.positions.working import Lines, Number
from headway.shapes import HeadShape, HeadwayError, brief
from headway.terms import AnyTerm

REACH: ContextVar[int | None] = ContextVar("REACH", default=None)
"""Largest distance between tokens where positions cannot be read, on the meta device; None if unknown."""


@dataclass(frozen=True, eq=False)
class TermInputs:
    """The inputs from which a method computes its terms.

    Args:
        q: queries, rotated, (B, H, Q, D).
        k: keys, rotated, (B, H_kv, K, D).
        q_pos: positions of the queries, (B or 1, Q); -1 is padding.
        k_pos: positions of the keys, (B or 1, K); -1 is padding.
        scale: what q·k is multiplied by.
        marks: what :meth:`Position.marked` computed for the keys, (B, K, ...).
        heads: indices of the method's heads that q holds; None is all heads in order.
        sees_future: whether queries may see keys at later positions; None if unknown.
        crosses: whether the keys belong to another sequence than the queries (cross attention).
        absolute: whether a constant added to a whole row of scores matters: softmax ignores it, but not with an
            attention sink, and neither do other normalisations.
        order: index in the text of each key, (B or 1, K), see :attr:`headway.cache.KVCache.order`; None where
            neighbours in memory are neighbours in the text.
        start: the index of the first query's own key, (1,); None where the queries are the newest keys.
        below: every position is below this, known without reading them; None if unknown.
        own: the marks of the queries, (B, Q, ...), where their own keys lie anywhere; None where ``start`` says where.
    """

    q: Float[Tensor, "batch heads queries dim"]
    k: Float[Tensor, "batch kv_heads keys dim"]
    q_pos: Int[Tensor, "#batch queries"]
    k_pos: Int[Tensor, "#batch keys"]
    scale: float
    marks: Tensor | None = None
    heads: Int[Tensor, " heads"] | None = None
    sees_future: bool | None = None
    crosses: bool = False
    absolute: bool = False
    order: Int[Tensor, "#batch keys"] | None = None
    start: Int[Tensor, "1"] | None = None
    below: int | None = None
    own: Tensor | None = None

    def of_queries(self, x: Tensor, dim: int) -> Tensor:
        """Of numbers per key in a dimension of x, those of the keys that are the queries themselves."""
        queries, keys = self.q.shape[2], self.k.shape[2]
        if self.start is None:
            return x.narrow(dim, keys - queries, queries)
        return x.index_select(dim, self.start + torch.arange(queries, device=x.device))

    def of_heads(self, parameter: Float[Tensor, "all_heads ..."]) -> Float[Tensor, "heads ..."]:
        """The rows of a per-head parameter for the current heads."""
        return parameter if self.heads is None else parameter[self.heads]

    def own_marks(self) -> Float[Tensor, "batch queries *rest"]:
        """The marks of the queries, which in self attention are the newest keys.

        Raises:
            HeadwayError: when the keys belong to another sequence.
        """
        if self.own is not None and not self.crosses:
            return self.own
        queries, keys = self.q.shape[2], self.k.shape[2]
        if self.marks is None or self.crosses or queries > keys:
            raise HeadwayError(
                f"expected tokens that attend to themselves and those before, got {queries} queries and {keys} keys: "
                f"use another position method in cross attention"
            )
        return self.of_queries(self.marks, 1)

    def offsets(self, past: int, future: int) -> tuple[Int[Tensor, " width"], int]:
        """The distances, key minus query, that a table must hold for the current tokens, and the index of distance 0.

        For a bias that is constant beyond ``past`` and ``future``, so that the width of the table affects the cost, not
        the result. Positions that were given are read on a CPU only, because a GPU would have to be waited for: there,
        and under torch.compile, the table has full width.

        Args:
            past: largest distinguished distance behind a query; keys farther away count as that far.
            future: likewise for keys after the query.

        >>> pos = torch.tensor([[-1, -1, 10, 11]])
        >>> x = torch.zeros(1, 1, 4, 8)
        >>> TermInputs(x, x, pos, pos, 1.0).offsets(512, 0)
        (tensor([-1,  0]), 1)
        """
        q_pos, k_pos = self.q_pos, self.k_pos
        known = None if q_pos.device.type == "cpu" or torch.compiler.is_compiling() else self.below
        if 0 in (*q_pos.shape, *k_pos.shape):
            past, future = 0, 0
        elif known is not None:
            past, future = min(past, known - 1), min(future, known - 1)
        elif readable(q_pos, anywhere=min(past, future) >= FAR):
            never = torch.iinfo(k_pos.dtype).max // 2  # far from every token, for padding
            first_q, first_k = (x.masked_fill(x < 0, never).amin(1) for x in (q_pos, k_pos))
            ends = torch.stack([(q_pos.amax(1) - first_k).amax(), (k_pos.amax(1) - first_q).amax()])
            behind, before = ends.clamp(min=0).tolist()
            past, future = min(past, behind), min(future, before)
        elif q_pos.is_meta and (reach := REACH.get()) is not None:
            past, future = min(past, reach), min(future, reach)
        return torch.arange(-past, future + 1, device=q_pos.device), past


@dataclass(eq=False)
class Position(Displayed, nn.Module):
    """A position method. Subclass it in one file of ``headway/positions`` to add a method.

    A method is a dataclass whose fields are its hyperparameters, all plain values. Parameters are created once, by
    :meth:`attach`, when the method is passed to attention; two layers that get the same object share them.

    Positions are integers, explicit and global; -1 is padding. A method never makes its own ``arange`` over tokens.
    """

    title: ClassVar[str] = ""
    """Its name in the field."""
    paper: ClassVar[str] = ""
    """Where it was published, as arXiv:NNNN.NNNNN."""
    summary: ClassVar[str] = ""
    """Its effect, in one sentence."""
    summary_zh: ClassVar[str] = ""
    """The same in Chinese; if empty, reports show the English."""
    relative: ClassVar[bool] = True
    """Whether attention depends only on differences of positions, so that shifting all positions changes nothing."""
    per_layer: ClassVar[bool] = False
    """Whether each layer of a Transformer has separate parameters, as in the method's paper."""
    normalise: ClassVar[str] = "softmax"
    """How scores become weights, see :func:`headway.functional.attend`."""
    sequential: ClassVar[bool] = False
    """Whether the order of tokens in memory matters; it must then be that of the text."""
    contiguous: ClassVar[bool] = False
    """Whether the tokens of a document must be contiguous in memory, because tokens in between matter."""
    neighbours: ClassVar[bool] = False
    """Whether its terms depend on :attr:`TermInputs.order`."""
    unbroken: ClassVar[bool] = False
    """Whether all tokens between a query and a key are needed, so that a cache must not drop any of them."""
    sharding: ClassVar[dict[str, str]] = {}
    """What the axes of its parameters are for, by their names, and of "marks" behind those of sequences and tokens: h
    for heads and g for key heads, with equally many entries for each, x for anything else. A parameter that is not
    named is the same for all heads. So heads can be divided among processes."""
    steady: ClassVar[bool] = True
    """Whether its rotation is :meth:`turning`, and its terms follow from parameters, distances and products of queries
    with tables alone, so that steps of decoding can be prepared once. A subclass that defines :meth:`rotate`,
    :meth:`terms`, :meth:`turn_values`, :meth:`transform_qk` or :meth:`mark` must say so itself, see
    :func:`headway.positions.steady.is_steady`."""
    by_length: ClassVar[bool] = False
    """Whether how a pair of tokens is compared depends on the length of the whole text."""
    variants: ClassVar[tuple[str, ...]] = ()
    """Other hyperparameters to test the laws with, e.g. ``rotary(fraction=0.5)``."""
    exempt: ClassVar[dict[str, str]] = {}
    """Laws (see tests/laws) that it is exempt from, each with the reason; the tests expect them to fail."""

    shape: HeadShape | None = field(default=None, init=False, repr=False)
    """The shape it is attached to; None before."""

    def __new__(cls, *values: Any, **named: Any) -> Self:
        """Initialise the module first: dataclasses assign their fields before any ``__init__`` could.

        Raises:
            HeadwayError: on a hyperparameter whose type is not that of its default.
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
        """Create the parameters for this shape; called once. :meth:`reset_parameters` sets their values."""

    def reset_parameters(self) -> None:
        """Initialise the parameters."""

    def embed(
        self, x: Float[Tensor, "batch tokens dim"], pos: Int[Tensor, "#batch tokens *axes"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Add position to token embeddings; by default unchanged. ``pos`` may be coordinates."""
        return x

    def rotate(
        self,
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        q_pos: Int[Tensor, "#batch queries *axes"],
        k_pos: Int[Tensor, "#batch keys *axes"],
    ) -> tuple[Float[Tensor, "batch heads queries dim_r"], Float[Tensor, "batch kv_heads keys dim_r"]]:
        """Transform queries and keys by their positions or coordinates; by default unchanged."""
        return q, k

    def turn_values(
        self, v: Float[Tensor, "batch heads tokens dim"], pos: Int[Tensor, "#batch tokens"], *, back: bool = False
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """Transform values by their positions or, ``back``, outputs by those of their queries; by default unchanged."""
        return v

    def turning(self, dim: int, device: torch.device) -> Turning | None:
        """What :meth:`rotate` of a steady method does to queries and keys of this width; by default nothing."""
        return None

    def terms(self, look: TermInputs) -> tuple[AnyTerm, ...]:
        """The terms added to scores and values; by default none."""
        return ()

    def mark(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens *rest"] | None:
        """Data per token, computed from attention's input and cached with k and v; by default none.

        It depends on each token alone; see :meth:`carry` for what depends on earlier tokens.
        """
        return None

    def carry(
        self,
        marks: Float[Tensor, "batch tokens *rest"],
        pos: Int[Tensor, "#batch tokens"],
        before: Before | None,
    ) -> Float[Tensor, "batch tokens *held"]:
        """The data cached per token, for methods that sum or convolve along the text; by default the marks.

        All that a later token needs of earlier ones must be in the mark of the last of them: a cache may drop tokens.
        :mod:`headway.positions.along` has sums and windows.

        Args:
            marks: result of :meth:`mark` for the tokens, (B, N, ...).
            pos: their positions, (B or 1, N); -1 is padding.
            before: the preceding token, if it is cached.
        """
        return marks

    def renumber(self, pos: Int[Tensor, "#batch tokens"]) -> Int[Tensor, "batch tokens"]:
        """New positions for the tokens during training, in the same order, -1 unchanged; by default the same.

        Called once for all layers, and never with a cache.
        """
        return pos

    def check_length(self, x: Shaped[Tensor, "batch tokens *axes"]) -> None:
        """:meth:`check_last` for tokens at default positions; nothing where their number is not that of a text: while
        memory is measured, and in an exported program, which serves every length.
        """
        measured = x.is_meta and REACH.get() is not None
        if not (measured or exporting()):
            self.check_last(x.shape[1] - 1)

    def check_last(self, last: int) -> None:
        """Refuse a largest position that the method does not reach; by default all do.

        Raises:
            HeadwayError: with what to do instead.
        """

    def transform_qk(
        self, look: TermInputs
    ) -> tuple[Float[Tensor, "batch heads queries dim_r"], Float[Tensor, "batch kv_heads keys dim_r"]]:
        """Transform queries and all keys, including cached ones, at every call: for transforms that change as the
        sequence grows, or that depend on the marks of all tokens. By default unchanged.

        Which keys are those of the queries themselves, :meth:`TermInputs.of_queries` says, unless attention crosses to
        a context.
        """
        return look.q, look.k

    def worked(self, number: Number) -> Lines:
        """How one number is worked out, the result last, see :mod:`headway.positions.working`; by default not told."""
        return ()

    # --- what every method has ----------------------------------------------------------------------------------

    def marked(
        self,
        x: Float[Tensor, "batch tokens dim"],
        pos: Int[Tensor, "#batch tokens"],
        before: Before | None = None,
    ) -> Tensor | None:
        """The data cached with k and v: :meth:`mark`, then :meth:`carry`; (B, N, ...), or None."""
        marks = self.mark(x)
        return None if marks is None else self.carry(marks, pos, before)

    def of_key_heads(self, heads: slice) -> AbstractContextManager[None]:
        """Have :meth:`rotate` act on these key heads and their query heads alone, with their part of each parameter."""
        return _narrowed(self, heads)

    def attach(self, shape: HeadShape | int) -> Self:
        """Create the parameters for this shape, once. Attention and Transformer do this themselves.

        Args:
            shape: the shape of the heads; an integer is the width of an embedding without heads, e.g. before an RNN.

        Raises:
            HeadwayError: when it is already attached to another shape.
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
        """A new object with the same hyperparameters and no parameters yet."""
        return type(self)(**self.hyperparameters())

    @classmethod
    def method_name(cls) -> str:
        """Its name on the command line and in files: the class name in lower case."""
        return cls.__name__.lower()

    @property
    def axes(self) -> int:
        """Number of coordinates per token: 1 in text, 2 in an image, 3 in a video. See ``Attention.forward``."""
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
        sees_future: bool | None = None,
        *,
        crosses: bool = False,
        absolute: bool = False,
        order: Int[Tensor, "#batch keys"] | None = None,
        start: Int[Tensor, "1"] | None = None,
        below: int | None = None,
        own: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, tuple[AnyTerm, ...]]:
        """The inputs of attention: queries and keys after :meth:`transform_qk`, and the terms.

        Args:
            q: queries after :meth:`rotate`.
            k: keys after :meth:`rotate`, including cached ones.
            q_pos: positions of the queries, see :class:`TermInputs` for this and the rest.
            k_pos: positions of the keys.
            scale: what q·k is multiplied by.
            marks: what :meth:`marked` computed for the keys.
            heads: indices of the method's heads that q holds.
            sees_future: whether a query may see keys after it; None if unknown.
            crosses: whether the keys belong to another sequence.
            absolute: whether a constant added to a whole row of scores matters.
            order: index in the text of each key.
            start: the index of the first query's own key.
            below: every position is below this.
            own: the marks of the queries, where their own keys lie anywhere.
        """
        told = (heads, sees_future, crosses, absolute, order, start, below, own)
        look = TermInputs(q, k, q_pos, k_pos, scale, marks, *told)
        if type(self).transform_qk is not Position.transform_qk:
            q, k = self.transform_qk(look)
            look = replace(look, q=q, k=k)
        return q, k, self.terms(look)

    @property
    def turns_values(self) -> bool:
        """Whether values and outputs are transformed, see :meth:`turn_values`."""
        return type(self).turn_values is not Position.turn_values

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
        if pos is None:
            self.check_length(x)
        return self.embed(x, as_positions(pos, x))


@contextmanager
def _narrowed(position: Position, heads: slice) -> Iterator[None]:
    named = dict(position.named_parameters(recurse=False))
    parts = {name: named[name] for name, axes in position.sharding.items() if name in named and axes.startswith("g")}
    for name, whole in parts.items():  # found before what torch.nn.Module looks up
        if whole.shape[0] > 1:
            vars(position)[name] = whole[heads]
    try:
        yield
    finally:
        for name in parts:
            vars(position).pop(name, None)


LARGEST = 2**31 - 1
"""The largest integer in a method's string, so that the product of two still is a valid size in torch."""


def as_kind(method: str, key: str, value: Any, default: Any) -> Any:
    """Convert a hyperparameter to the type of its default; only integers convert, to float.

    Raises:
        HeadwayError: on another type, or a value larger than torch can hold.
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
        dim: number of dimensions that the pairs cover.
        base: nearly the ratio of the fastest to the slowest.
        device: device of the result.
        endpoint: divide by ⌈dim/2⌉−1 instead of dim/2, so that the slowest is 1/base exactly (tensor2tensor).
    """
    pairs = (dim + 1) // 2
    exponent = torch.arange(pairs, device=device, dtype=angle_dtype(device)) / (
        max(pairs - 1, 1) if endpoint else dim / 2
    )
    return torch.as_tensor(base, dtype=exponent.dtype, device=device) ** -exponent
