"""The options of a Transformer and their valid values; nothing here needs torch, so the command line can list them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from headway.schema import Number, Whole, Words, shown
from headway.settings import Settings
from headway.shapes import HeadShape, HeadwayError

KINDS = ("decoder", "encoder", "encoder-decoder")
NORMS = ("rms", "layer")
ACTIVATIONS = ("gelu", "swiglu")
INITS = ("xavier", "normal", "gpt2", "t5", "orthogonal")
OPTIMIZERS = ("sgd", "adam", "adamw")
CORE = ("none", "sinusoidal", "learned", "rotary", "alibi", "t5", "shaw")
"""The methods compared by default: a baseline, and the best known method of each kind."""
WIDEST, DEEPEST, MOST, STEPS = 1 << 16, 1024, 1 << 24, 1_000_000
"""The maximum width or number of heads, of layers, of counts (tokens, windows), and of training steps: every checkpoint
holds the history of all steps so far."""

Width = Annotated[int, Whole(1, WIDEST)]
MaybeWidth = Annotated[int | None, Whole(1, WIDEST)]


LATENT = ("latent_dim", "query_latent_dim", "position_dim", "value_dim")
"""The options of latent attention; without the first there is none."""


class Method(Protocol):
    """A position method: :class:`headway.positions.Position`."""

    def spec(self) -> str:
        """The method as a string, e.g. ``rotary(base=10000.0)``."""
        ...


class OfMethod:
    """A position method, or a string that names one; None means no position."""

    def problem(self, value: Any, at: str) -> str | None:
        """See :class:`headway.schema.Schema`."""
        fits = value is None or isinstance(value, str) or hasattr(value, "spec")
        return None if fits else f"{at} to be a position method or a string such as 'rotary', got {shown(value)}"


@dataclass(frozen=True)
class LayerConfig(Settings):
    """Options of one layer's self attention; None uses the option of the model.

    Args:
        position: position method inside attention, or none.
        window: visible tokens before the query, without the query itself; in an encoder also after it.
        chunk: tokens per chunk; tokens of other chunks are masked.
        scale: multiplies q·k.
        softcap: keep scores within ±softcap.
        log_scale: training length beyond which queries are scaled so that attention stays as sharp.
        sinks: learn an attention sink per head, a score for attending to nothing.
        qk_norm: normalise queries and keys.
        kv_from: use the keys and values of the layer so many layers before, and its position method, see
            :meth:`headway.Attention.share_kv`.
        latent_dim: latent attention with latent vectors of this width, like the next three.
        query_latent_dim: width of the latent vectors of queries.
        position_dim: width of the part of queries and keys that position acts on.
        value_dim: width of a head's values.

    >>> LayerConfig(window=511).position is None
    True
    """

    position: Annotated[Method | str | None, OfMethod()] = None
    window: Annotated[int | None, Whole(0)] = None
    chunk: Annotated[int | None, Whole(1)] = None
    scale: Annotated[float | None, Number()] = None
    softcap: Annotated[float | None, Number(above=0)] = None
    log_scale: Annotated[int | None, Whole(2)] = None
    sinks: bool | None = None
    qk_norm: bool | None = None
    kv_from: Annotated[int | None, Whole(1)] = None
    latent_dim: MaybeWidth = None
    query_latent_dim: MaybeWidth = None
    position_dim: MaybeWidth = None
    value_dim: MaybeWidth = None

    def plain(self) -> dict[str, Any]:
        """The options that are not None, as JSON values."""
        values = {name: value for name, value in super().plain().items() if value is not None}
        if not isinstance(position := values.get("position", ""), str):
            values["position"] = position.spec()
        return values


class OfLayers:
    """A list of layers, each a :class:`LayerConfig` or its values."""

    def problem(self, value: Any, at: str) -> str | None:
        """See :class:`headway.schema.Schema`."""
        fits = isinstance(value, list | tuple) and all(isinstance(one, LayerConfig | Mapping) for one in value)
        return None if fits else f"{at} to be a list of layers, each an object of options, got {shown(value)}"


@dataclass(frozen=True)
class TransformerConfig(Settings):
    """All options of a :class:`Transformer`.

    Args:
        vocab: number of different tokens.
        dim: width of the model.
        layers: number of layers in each stack.
        heads: query heads.
        kv_heads: key and value heads; default ``heads``.
        head_dim: width of a head; default dim / heads.
        hidden: width of the MLP; default 4·dim (gelu) or 8/3·dim (swiglu).
        position: the position method, e.g. rotary or rotary(base=500000). All layers share one object, unless the
            method has parameters per layer (``per_layer``) or ``share_position`` is off.
        share_position: one object for all layers, or one per layer; default as in the method's paper.
        kind: decoder (causal), encoder (no mask) or encoder-decoder. In an encoder-decoder, cross attention has no
            position, and the encoder uses the same method, with ``bidirectional`` on where it has that option.
        norm: rms (arXiv:1910.07467) or layer (arXiv:1607.06450).
        post_norm: normalise after adding to the residual stream, as in Vaswani et al., instead of before each sublayer.
        activation: activation of the MLP, gelu or swiglu.
        bias: biases on all matrices.
        init: initialisation of the matrices: xavier, normal, gpt2, t5 or orthogonal, see
            :func:`headway.init.initialise`. The embedding is N(0, 1/dim), multiplied by √dim when read.
        scale: multiplies q·k; default 1/√d_k.
        qk_norm: normalise queries and keys. This and the next three options are those of :class:`headway.Attention`,
            and apply to the self attention of both stacks.
        softcap: keep scores within ±softcap before position is added.
        sinks: learn an attention sink per head, a score for attending to nothing.
        log_scale: training length beyond which queries are scaled so that attention stays as sharp.
        tie: share the embedding with the output matrix.
        dropout: share of each layer's output that is set to zero in training.
        attention_dropout: share of the self-attention weights that is set to zero in training.
        pattern: options per layer, each a :class:`LayerConfig` or its values, repeated to the number of layers:
            ``5 * [{"window": 511}] + [{}]`` is five local layers and one global layer, as in Gemma 3; ``3 * [{}] +
            [{"position": "none"}]`` leaves every fourth layer without position, as in SmolLM3; ``[{}, {"kv_from": 1}]``
            lets two layers share keys and values (arXiv:2405.12981).
        sandwich_norm: also normalise the output of each sublayer before it is added to the residual stream (Gemma 2).
        parallel: attention and MLP in parallel, x + attention(norm x) + MLP(norm x), with one norm (GPT-J, Cohere).
        backend: the attention backend, e.g. auto, sdpa or native, see :func:`headway.functional.attend`.
        latent_dim: multi-head latent attention (MLA, arXiv:2405.04434), with latent vectors of this width, instead of
            a matrix of keys and one of values, see :class:`headway.LatentAttention`; head_dim is then the width of the
            part of queries and keys without position.
        query_latent_dim: in latent attention, width of the latent vectors of queries; default none.
        position_dim: in latent attention, width of the part of queries and keys that position acts on.
        value_dim: in latent attention, width of a head's values; default ``head_dim``.

    Raises:
        HeadwayError: on invalid values, naming the valid ones.

    >>> TransformerConfig(vocab=256, position="alibi").heads
    4
    """

    vocab: Annotated[int, Whole(1, 2**31)]
    dim: Width = 128
    layers: Annotated[int, Whole(1, DEEPEST)] = 3
    heads: Width = 4
    kv_heads: MaybeWidth = None
    head_dim: MaybeWidth = None
    hidden: Annotated[int | None, Whole(1, 4 * WIDEST)] = None
    position: Annotated[Method | str | None, OfMethod()] = "rotary"
    share_position: bool | None = None
    kind: Annotated[str, Words(KINDS)] = "decoder"
    norm: Annotated[str, Words(NORMS)] = "rms"
    post_norm: bool = False
    activation: Annotated[str, Words(ACTIVATIONS)] = "gelu"
    bias: bool = False
    init: Annotated[str, Words(INITS)] = "xavier"
    scale: Annotated[float | None, Number()] = None
    qk_norm: bool = False
    softcap: Annotated[float | None, Number(above=0)] = None
    sinks: bool = False
    log_scale: Annotated[int | None, Whole(2)] = None
    tie: bool = True
    dropout: Annotated[float, Number(0, below=1)] = 0.0
    backend: str = "auto"
    attention_dropout: Annotated[float, Number(0, below=1)] = 0.0
    pattern: Annotated[tuple[LayerConfig, ...], OfLayers()] = ()
    sandwich_norm: bool = False
    parallel: bool = False
    latent_dim: MaybeWidth = None
    query_latent_dim: MaybeWidth = None
    position_dim: Width = 64
    value_dim: MaybeWidth = None

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = (one if isinstance(one, LayerConfig) else LayerConfig.of(one, "a layer") for one in self.pattern)
        object.__setattr__(self, "pattern", tuple(layers))
        if self.post_norm and (self.sandwich_norm or self.parallel):
            raise HeadwayError("expected post_norm without sandwich_norm and parallel, got both: leave one out")
        HeadShape.of(self.dim, self.heads, self.kv_heads, self.head_dim)
        self._check_latent()
        for number in range(self.layers if self.pattern else 0):
            self._check_shared(number)

    def _check_latent(self) -> None:
        """Refuse options that latent attention lacks, or that only it has."""
        latent = [self.is_latent(number) for number in range(self.layers)]
        for number, is_latent in enumerate(latent):
            if is_latent and self.of_layer(number, "qk_norm"):
                raise HeadwayError(
                    f"expected no qk_norm in layer {number}, because latent attention normalises its latent vectors "
                    f"instead, got qk_norm: leave it or latent_dim out"
                )
        if all(latent) and self.kv_heads not in (None, self.heads):
            raise HeadwayError(
                f"expected no kv_heads, because latent attention makes the keys of all heads from one latent vector, "
                f"got {self.kv_heads}: leave kv_heads or latent_dim out"
            )
        own = (self.layer(number) for number, is_latent in enumerate(latent) if not is_latent)
        for options in own if any(latent) else (self, *own):
            given = [name for name in LATENT[1:] if getattr(options, name) != getattr(type(options), name)]
            if given:
                raise HeadwayError(
                    f"expected {given[0]} with latent_dim, because only latent attention has it, got it without"
                )

    def _check_shared(self, number: int) -> None:
        """Refuse a layer that would share the keys and values of none, or of one that has none."""
        own = self.layer(number)
        if own.kv_from is None:
            return
        if own.position is not None:
            raise HeadwayError(
                f"expected no position of its own for layer {number}, which has that of the layer whose keys it uses "
                f"(kv_from), got {own.plain()['position']}"
            )
        owner = number - own.kv_from
        if self.is_latent(number) or (owner >= 0 and self.is_latent(owner)):
            raise HeadwayError(
                f"expected kv_from between layers with keys and values, got layers {owner} and {number}, of which one "
                f"has latent attention: leave kv_from or latent_dim out"
            )
        if owner < 0 or self.layer(owner).kv_from is not None:
            why = "there is none" if owner < 0 else "it uses those of another"
            raise HeadwayError(
                f"expected kv_from of layer {number} to name a layer with keys and values of its own, "
                f"got {own.kv_from}, layer {owner}: {why}"
            )

    def plain(self) -> dict[str, Any]:
        """The options as JSON values, the position method as a string."""
        position = "none" if self.position is None else self.position
        pattern = [layer.plain() for layer in self.pattern]
        return {
            **super().plain(),
            "position": position if isinstance(position, str) else position.spec(),
            "pattern": pattern,
        }

    def of_layer(self, number: int, name: str) -> Any:
        """An option of one layer: its own, or else the model's."""
        own = getattr(self.layer(number), name)
        return getattr(self, name) if own is None else own

    def is_latent(self, number: int) -> bool:
        """Whether a layer has latent attention."""
        return self.of_layer(number, "latent_dim") is not None

    def owners(self) -> list[int]:
        """For each layer the one whose keys and values it uses: itself, or an earlier one (``kv_from``)."""
        return [number - (self.layer(number).kv_from or 0) for number in range(self.layers)]

    def layer(self, number: int) -> LayerConfig:
        """The options of one layer."""
        return self.pattern[number % len(self.pattern)] if self.pattern else LayerConfig()
