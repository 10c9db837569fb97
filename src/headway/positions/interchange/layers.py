"""One position and one mask for each layer of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headway.masks import Causal, Chunks, Mask, Window
from headway.positions.base import Position
from headway.positions.interchange.families import (
    CHUNKED,
    FULL,
    LEGACY,
    OTHER_LAYERS,
    SLIDING,
    Family,
    family,
    rotated,
)
from headway.positions.interchange.keys import check_keys, check_read
from headway.positions.interchange.others import KNOWN, T5_LIKE, inkling, other_method
from headway.positions.interchange.rotations import (
    BASES,
    FRACTIONS,
    TEMPERATURE,
    pairing_of,
    rope_for,
    rope_of,
    rotation,
    sharpened,
    types_of,
)
from headway.positions.interchange.values import Values, names, short
from headway.positions.none import NoPosition
from headway.shapes import HeadwayError

KINDS = (FULL, SLIDING, CHUNKED, *OTHER_LAYERS)
COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
OF_ENCODER, OF_DECODER = ("encoder_layers",), ("num_decoder_layers", "decoder_layers")
"""Keys under which encoder-decoder models give the number of layers of one part."""
MOST_LAYERS = 10_000
"""More than any model has: a configuration with more is refused before a list of that length is created."""
OF_DECODERS = frozenset(
    names(
        "biogpt bloom clip_text_model codegen falcon gpt2 gpt_bigcode gpt_neo gptj imagegpt inkling_text mpt "
        "openai_gpt opt"
    )
)
"""Causal models without rotation."""


LATENT = {
    "latent_dim": "kv_lora_rank",
    "head_dim": "qk_nope_head_dim",
    "position_dim": "qk_rope_head_dim",
    "value_dim": "v_head_dim",
}
"""Sizes of latent attention, and their keys."""


@dataclass(frozen=True, eq=False)
class LayerPosition:
    """The position and mask of one layer: use them as ``Attention(…, position=layer.position, mask=layer.mask)``.

    Args:
        position: the method, not attached yet; layers that share one have the same object. None for a layer in which
            tokens of the text do not attend to each other (a convolution, a recurrence, only cross-attention).
        mask: which keys each query may see; None is all. A configuration's ``sliding_window`` of W tokens includes the
            token itself, which is ``Window(W − 1)``.
        layer_type: what the configuration calls such layers.
        scale: multiplies q·k; None is 1/√d_k.
        softcap: bounds scores, see :func:`headway.functional.attend`; None is no bound.
        latent: sizes of a layer with latent attention, on whose decoupled part position acts:
            ``LatentAttention(dim, heads, **layer.latent, position=layer.position, …)``. None for plain attention.
        beside: facts about these layers that ``Attention`` has no argument for, by the configuration's keys: the code
            that builds the model must apply them.
    """

    position: Position | None
    mask: Mask | None
    layer_type: str = FULL
    scale: float | None = None
    softcap: float | None = None
    latent: Mapping[str, Any] | None = None
    beside: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """What is known about a layer before its mask is determined."""

    type: str
    position: Position | None
    beside: dict[str, Any]


class Reading:
    """A parsed configuration: its family, and the type and position of each layer.

    Args:
        values: from :func:`headway.positions.interchange.values.plain`.
        pairing: the caller's ``pairing``.
    """

    def __init__(self, values: Values, pairing: str | None = None) -> None:
        self.values = values
        self.kind = str(values.get("model_type") or "").replace("-", "_")
        self.known: Family | None = family(self.kind)
        check_keys(values)
        self.method = other_method(values)
        self.pairing = ""
        if self.method is None:
            self._check_rotation()
            if self.known is None or self.known.pairing:
                self.pairing = pairing_of(values, self.known, pairing)
        self.count = self._count()
        self.types = self._types()
        self.layers = self._layers()

    def check(self, *, masks: bool) -> None:
        """Refuse keys about position that were not read; see :func:`check_read`."""
        still = self.method is not None or all(isinstance(layer.position, NoPosition | None) for layer in self.layers)
        check_read(self.values, masks=masks, rotates=self.known is None or not still)

    def _check_rotation(self) -> None:
        values, known = self.values, self.known
        rope = values.get("rope_parameters", "rope_scaling")
        if known is None and not rope and values.get(*BASES, *FRACTIONS, "rotary_dim") is None:
            raise HeadwayError(
                "expected rope_parameters, rope_scaling, rope_theta or a known model_type, got a configuration with "
                "none: see headway.positions for the methods it could be"
            )
        if self.kind == "cohere2_moe" and "dense" in (values.get("mlp_layer_types") or ()):
            raise HeadwayError("expected mlp_layer_types without 'dense', got some: such layers rotate by another rule")
        if known is not None:
            for key in known.must:
                if key == "mrope_section":
                    if "mrope_section" not in rope_of(values, known):
                        values.inner("rope_parameters").missing(key)
                elif not any(values.get(each) for each in known.must):
                    raise HeadwayError(
                        f"expected {' or '.join(known.must)}, because {values.get('model_type')} has no usual rotation "
                        f"without, got none"
                    )

    def _count(self) -> int | None:
        half = OF_DECODER if self.values.flag("is_decoder") else OF_ENCODER
        key = next((key for key in (*half, *COUNTS) if key in self.values), None)
        listed = self.values.get("layer_types", "layers_block_type", "no_rope_layers", "layer_rope_theta")
        if self.kind == "nemotron_h" and not listed:
            listed = self.values.get("hybrid_override_pattern")
        if key is None:
            return len(listed) if isinstance(listed, list | tuple | str) and listed else None
        count = self.values.whole(key)
        if count > MOST_LAYERS:
            raise HeadwayError(f"expected {key} of at most {MOST_LAYERS}, got {count}")
        return count

    def _types(self) -> list[str]:
        """The type of each layer; if their number is not given, one layer of each type."""
        values, known = self.values, self.known
        key = next((key for key in ("layer_types", "layers_block_type") if key in values), None)
        if key is not None:
            types = [LEGACY.get(each, each) for each in values.words(key)]
            if self.count is not None and len(types) != self.count:
                raise HeadwayError(f"expected {key} of {self.count} layers, got {len(types)}")
            unknown = sorted(set(types) - set(KINDS))
            if unknown:
                raise HeadwayError(f"expected {key} among {', '.join(KINDS)}, got {', '.join(unknown[:8])}")
            return types
        nested = types_of(rope_of(values, known)) if self.method is None else []
        if self.kind in ("exaone4", "exaone_moe") and not self._windowed():
            return [FULL] * (self.count or 1)
        if known is not None and known.pattern is not None:
            if self.count is not None:
                return known.pattern(values, self.count)
            return list(dict.fromkeys(known.pattern(values, 60)))
        if nested:
            if self.count is None:
                return nested
            raise HeadwayError(
                f"expected layer_types, because layers of type {', '.join(nested[:8])} rotate differently and their "
                f"order is not known, got none: add them to the configuration"
            )
        alone = SLIDING if known is not None and known.window == "all" and self._windowed() else FULL
        return [alone] * (self.count or 1)

    def _windowed(self) -> bool:
        values, known = self.values, self.known
        key = known.window_key if known is not None else "sliding_window"
        return key in values and values.flag("use_sliding_window", default=True)

    def _layers(self) -> list[Layer]:
        values, known = self.values, self.known
        per_layer = known.per_layer if known is not None else ()
        for key in ("no_rope_layers", "layer_rope_theta"):
            if values.get(key) and key not in per_layer:
                raise HeadwayError(
                    f"expected {key} in a model known to have it, got it with model_type {values.get('model_type')!r}"
                )
        turns = [True] * len(self.types)
        if "no_rope_layers" in per_layer:
            turns = rotated(values, len(self.types)) if self.count is not None else [True, False]
        bases: list[float | None] = [None] * len(self.types)
        if "layer_rope_theta" in per_layer and values.get("layer_rope_theta"):
            given = values.numbers("layer_rope_theta")
            if len(given) != len(self.types):
                raise HeadwayError(f"expected layer_rope_theta of {len(self.types)} layers, got {len(given)}")
            bases, turns = list(given), [bool(each) for each in given]
        shared: dict[tuple[str, bool, float | None], Position | None] = {}
        layers = []
        types = self.types if len(turns) == len(self.types) else self.types * len(turns)
        for kind, turn, base in zip(
            types, turns, bases if len(bases) == len(turns) else [None] * len(turns), strict=True
        ):
            if (kind, turn, base) not in shared:
                made = self._position(kind, turn, base)
                alike = (each for each in shared.values() if made is not None and each is not None)
                shared[kind, turn, base] = next((each for each in alike if made and each.spec() == made.spec()), made)
            layers.append(Layer(kind, shared[kind, turn, base], self._beside(kind, turn)))
        return layers

    def _position(self, kind: str, turns: bool, base: float | None) -> Position | None:
        known = self.known
        if kind in OTHER_LAYERS:
            return None
        if self.kind == "inkling_text":
            return inkling(self.values, sliding=kind == SLIDING)
        if self.method is not None:
            return self.method
        if not turns or (known is not None and (not known.pairing or self._still(kind))):
            return NoPosition()
        if self.kind == "granitemoehybrid" and self.values.get("position_embedding_type") != "rope":
            return NoPosition()
        return rotation(self.values, known, self.pairing, kind, base)

    def _still(self, kind: str) -> bool:
        """Whether layers of a type do not rotate; EXAONE's full layers do if no layer has a window."""
        known = self.known
        if known is None or kind not in known.still:
            return False
        return self.kind not in ("exaone4", "exaone_moe") or self._windowed()

    def _beside(self, kind: str, turns: bool) -> dict[str, Any]:
        """Facts by which queries are scaled by their position."""
        values = self.values
        if kind in OTHER_LAYERS or self.method is not None:
            return {}
        if (
            self.kind == "llama4_text"
            and not turns
            and values.get("attn_temperature_tuning") in (None, True, *range(1, 9))
        ):
            return {
                "attn_temperature_tuning": True,
                "floor_scale": values.number("floor_scale", default=8192),
                "attn_scale": values.number("attn_scale", default=0.1),
            }
        rope = rope_for(values, self.known, kind)
        if rope is not None and TEMPERATURE in rope and rope.number(TEMPERATURE):
            original = rope.whole("original_max_position_embeddings")
            return {TEMPERATURE: rope.number(TEMPERATURE), "original_max_position_embeddings": original}
        return {}

    def mask(self, kind: str) -> Mask | None:
        """The mask of layers of a type.

        Raises:
            HeadwayError: when the configuration does not determine it.
        """
        values, known = self.values, self.known
        if kind in OTHER_LAYERS:
            return None
        if values.get("use_bidirectional_attention") not in (None, False, "vision"):
            raise HeadwayError(
                f"expected causal attention, got use_bidirectional_attention="
                f"{short(values.get('use_bidirectional_attention'))}: files and objects differ in how wide its windows "
                f"are; take from_hf for the positions, and give the masks yourself"
            )
        causal = self._causal()
        if self.kind == "longt5":
            radius = values.whole("local_radius", default=127)
            return Causal() if causal else Window(radius, radius)
        if self.kind == "big_bird" and values.get("attention_type") != "original_full":
            raise HeadwayError(
                f"expected attention_type 'original_full', because others draw by chance what is seen, got "
                f"{short(values.get('attention_type') or 'block_sparse')}: take from_hf for the positions, and give "
                f"the masks yourself"
            )
        if self.kind == "mimo_v2_flash":
            values.known("attention_chunk_size")  # which nothing reads
        if kind == CHUNKED:
            return Causal() & Chunks(values.whole("attention_chunk_size"))
        if kind == SLIDING or (known is not None and known.window == "all" and self._windowed()):
            return self._window(causal)
        unread = "sliding_window" in values and values.flag("use_sliding_window", default=True)
        if unread and "layer_types" not in values and (known is None or not known.pattern):
            raise HeadwayError(
                f"expected sliding_window in a model known to have it, got {short(values.get('sliding_window'))} with "
                f"model_type {values.get('model_type')!r}: take it out, or give layer_types"
            )
        return Causal() if causal else None

    def _causal(self) -> bool:
        values, known = self.values, self.known
        if self.method is None:
            if known is None:
                raise HeadwayError(
                    f"expected a known model_type, because no key gives the mask, got "
                    f"{values.get('model_type')!r}: take from_hf for the positions, and give the masks yourself"
                )
            return known.causal or values.flag("is_decoder")
        if self.kind not in KNOWN:
            raise HeadwayError(
                f"expected a known model_type, because no key gives the mask, got "
                f"{values.get('model_type')!r}: take from_hf for the positions, and give the masks yourself"
            )
        return self.kind in OF_DECODERS or values.flag("is_decoder")

    def _window(self, causal: bool) -> Mask:
        values, known = self.values, self.known
        key = known.window_key if known is not None else "sliding_window"
        if key not in values:
            raise HeadwayError(f"expected {key} beside layers of type {SLIDING}, got none: add it to the configuration")
        width = values.whole(key)
        if self.kind == "mimo_v2_flash" and "sliding_window_size" in values:  # the keys before the query alone
            width = values.whole("sliding_window_size") + 1
        if key == "local_attention":  # both sides together
            width //= 2
        if causal:
            return Window(max(width - 1, 0))
        if known is None or not known.both:
            raise HeadwayError(f"expected a decoder beside layers of type {SLIDING}, got model_type {self.kind!r}")
        return Window(width, width)

    def scale(self, kind: str) -> float | None:
        """The factor of q·k in layers of a type; None for 1/√d_k."""
        values, known = self.values, self.known
        if self.kind == "inkling_text":
            return 1 / values.whole("swa_head_dim" if kind == SLIDING else "head_dim", default=128)
        if "query_pre_attn_scalar" in values:
            return float(values.number("query_pre_attn_scalar") ** -0.5)
        if "attention_multiplier" in values:
            return values.number("attention_multiplier")
        if self.kind in T5_LIKE or self.kind == "gpt_neo" or values.entries.get("scale_attn_weights") is False:
            return 1.0
        inner = values.inner("attn_config") if self.kind == "mpt" else Values({})
        if "softmax_scale" in inner:
            return inner.number("softmax_scale")
        if known is not None and known.latent and known.pairing:
            return sharpened(values, rope_of(values, known))
        return known.scale if known is not None else None

    def latent(self) -> dict[str, int | None] | None:
        """The sizes of latent attention by the names of :class:`headway.LatentAttention`; None if it is not latent."""
        values = self.values
        if self.known is None or not self.known.latent:
            return None
        if "index_topk" in values:
            raise HeadwayError(
                f"expected queries that see all keys before them, got index_topk={short(values.get('index_topk'))}: a "
                f"learned index picks which; take from_hf for the positions"
            )
        sizes = {ours: values.whole(theirs) for ours, theirs in LATENT.items()}
        low = values.whole("q_lora_rank") if "q_lora_rank" in values else None
        return {**sizes, "query_latent_dim": low}

    def whole(self) -> tuple[LayerPosition, ...]:
        """One :class:`LayerPosition` per layer.

        Raises:
            HeadwayError: when their number, or a mask, is not given.
        """
        values = self.values
        if values.flag("is_encoder_decoder"):
            raise HeadwayError(
                f"expected the configuration of one stack of layers, got model_type {values.get('model_type')!r}, an "
                f"encoder and a decoder: set is_encoder_decoder to false, and is_decoder to which of them you mean"
            )
        if self.count is None:
            raise HeadwayError("expected num_hidden_layers, got none: add how many layers there are")
        softcap = values.number("attn_logit_softcapping", default=0.0) or None
        for key in self.known.needs if self.known is not None else ():
            if key not in values.entries:
                raise HeadwayError(
                    f"expected {key}, for which model_type {values.get('model_type')!r} has no usual value, got none: "
                    f"add it to the configuration, or null"
                )
        types = self._mask_types()
        masks = {kind: self.mask(kind) for kind in dict.fromkeys(types)}
        more: dict[str, Any] = {}
        if values.flag("scale_attn_by_inverse_layer_idx"):
            more["scale_attn_by_inverse_layer_idx"] = True
        if values.get("use_bidirectional_attention") == "vision":
            more["use_bidirectional_attention"] = "vision"
        latent = self.latent()
        self.check(masks=True)
        return tuple(
            LayerPosition(
                self._own(layer.position, number),
                masks[kind],
                layer.type,
                None if layer.position is None else self.scale(layer.type),
                None if layer.position is None else softcap,
                None if layer.position is None else latent,
                {**layer.beside, **more} if layer.position is not None else {},
            )
            for number, (layer, kind) in enumerate(zip(self.layers, types, strict=True))
        )

    def _own(self, position: Position | None, number: int) -> Position | None:
        """A new object for each layer if the method has parameters per layer."""
        separate = position is not None and (position.per_layer or self.kind == "umt5")
        return position.fresh() if separate and number and position is not None else position

    def _mask_types(self) -> list[str]:
        """GPT-Neo lists in attention_types which of its layers have a window."""
        if self.kind != "gpt_neo":
            return self.types
        listed = self.values.get("attention_layers")  # the same, written out
        given = self.values.get("attention_types") or (
            [[listed, 1]] if listed is not None else [[["global", "local"], len(self.types) // 2]]
        )
        try:
            flat = [kind for kinds, times in given for _ in range(min(times, MOST_LAYERS)) for kind in kinds]
        except (TypeError, ValueError):
            flat = []
        if len(flat) != len(self.types) or not set(flat) <= {"global", "local"}:
            raise HeadwayError(
                f"expected attention_types of {len(self.types)} layers, global or local, got {short(given)}"
            )
        return [SLIDING if kind == "local" else FULL for kind in flat]
