"""Facts that no key of a configuration gives: the pairing of a family of models, which of its layers rotate, and their
masks.

Each entry is tested against the family's forward pass in transformers, layer by layer (``tests/parity/test_sweep.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from headway.positions.interchange.values import Values, names, short
from headway.shapes import HeadwayError

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
OTHER_LAYERS = ("linear_attention", "conv", "recurrent", "moe", "mlp", "cross_attention")
"""Layers in which tokens of the text do not attend to each other; they have no position method."""
LEGACY = {
    "attention": FULL,
    "indexed_attention": FULL,
    "hybrid": FULL,
    "hybrid_sliding": SLIDING,
    "mamba": "linear_attention",
    "mamba2": "linear_attention",
}
"""Older names of layer types."""

Pattern = Callable[[Values, int], list[str]]


def every(period: int, key: str = "sliding_window_pattern", first: int = -1, last: bool = False) -> Pattern:
    """Full attention in one of every ``period`` layers, a window in the others.

    Args:
        period: the period, unless given under ``key``.
        key: key under which a configuration may give it.
        first: the first full layer; -1 makes the last layer of each period full.
        last: whether the last layer is always full.
    """

    def types(values: Values, count: int) -> list[str]:
        n = values.whole(key, default=period)
        found = [FULL if (i - first) % n == 0 else SLIDING for i in range(count)]
        return [*found[:-1], FULL] if last else found

    return types


def _late(values: Values, count: int) -> list[str]:
    """Qwen2: a window from layer max_window_layers on, if windows are used at all."""
    if not values.flag("use_sliding_window") or "sliding_window" not in values:
        return [FULL] * count
    start = values.whole("max_window_layers", least=0)
    return [SLIDING if i >= start else FULL for i in range(count)]


def _early(values: Values, count: int) -> list[str]:
    """Qwen2-MoE: a window in every second of the first max_window_layers layers."""
    if not values.flag("use_sliding_window"):
        return [FULL] * count
    end = values.whole("max_window_layers", least=0)
    return [SLIDING if i % 2 == 0 and i < end else FULL for i in range(count)]


def _unrotated(values: Values, count: int) -> list[str]:
    """SmolLM3: a window in the layers without rotation, if windows are used at all."""
    windows = values.flag("use_sliding_window") and "sliding_window" in values
    return [SLIDING if windows and not turns else FULL for turns in rotated(values, count)]


def _chunks(values: Values, count: int) -> list[str]:
    """Llama 4: chunks in the layers with rotation."""
    chunks = values.entries.get("attention_chunk_size", True) is not None
    return [CHUNKED if turns and chunks else FULL for turns in rotated(values, count)]


def _prefixed(values: Values, count: int) -> list[str]:
    """Cohere2-MoE: the first dense layers have their own pattern, and rotate whatever their mask."""
    if values.get("first_k_dense_replace"):
        raise HeadwayError("expected layer_types beside first_k_dense_replace, got none: add them to the configuration")
    values.known("prefix_dense_sliding_window_pattern")  # of layers that it does not have then
    return every(4)(values, count)


def _listed(key: str, those: str, others: str, usual: Callable[[int], Sequence[float]] | None = None) -> Pattern:
    """Layers of one type by index, listed under a key, which is required if there is no default list."""

    def types(values: Values, count: int) -> list[str]:
        listed = set(values.numbers(key) if key in values or usual is None else usual(count))
        if not listed <= set(range(count)):
            raise HeadwayError(f"expected {key} of layers from 0 to {count - 1}, got {short(values.get(key))}")
        return [those if i in listed else others for i in range(count)]

    return types


LETTERS = {"M": "linear_attention", "*": FULL, "-": "mlp", "E": "moe"}


def _letters(values: Values, count: int) -> list[str]:
    """Nemotron-H: a letter for each layer."""
    text = values.get("hybrid_override_pattern")
    if not isinstance(text, str) or len(text) != count or not set(text) <= LETTERS.keys():
        raise HeadwayError(
            f"expected hybrid_override_pattern of {count} letters among {' '.join(LETTERS)}, got {short(text)}"
        )
    return [LETTERS[each] for each in text]


def _jamba(values: Values, count: int) -> list[str]:
    period, offset = values.whole("attn_layer_period", default=8), values.whole("attn_layer_offset", default=4, least=0)
    return [FULL if i % period == offset % period else "linear_attention" for i in range(count)]


def _mimo(values: Values, count: int) -> list[str]:
    """MiMo-V2: the first layer and every sixth are full, unless hybrid_layer_pattern lists the windows by 1."""
    if "hybrid_layer_pattern" not in values:
        return [FULL, *every(6)(values, count)[1:]]
    windows = values.numbers("hybrid_layer_pattern")
    if len(windows) != count or not set(windows) <= {0.0, 1.0}:
        raise HeadwayError(f"expected hybrid_layer_pattern of {count} zeros and ones, got {short(list(windows))}")
    return [SLIDING if window else FULL for window in windows]


def _linear(period: int) -> Pattern:
    def types(values: Values, count: int) -> list[str]:
        n = values.whole("full_attention_interval", default=period)
        return [FULL if (i + 1) % n == 0 else "linear_attention" for i in range(count)]

    return types


def rotated(values: Values, count: int) -> list[bool]:
    """Which layers rotate, from ``no_rope_layers`` (1 for layers that do) or ``no_rope_layer_interval``."""
    if values.get("no_rope_layers"):
        given = values.numbers("no_rope_layers")
        if len(given) != count or not set(given) <= {0.0, 1.0}:
            raise HeadwayError(
                f"expected no_rope_layers of {count} zeros and ones, one for each layer, got {len(given)} entries"
            )
        return [bool(each) for each in given]
    n = values.whole("no_rope_layer_interval", default=4)
    return [(i + 1) % n != 0 for i in range(count)]


@dataclass(frozen=True)
class Local:
    """How sliding layers rotate if the configuration has one flat ``rope_scaling``, which is for the full layers.

    Args:
        key: the key of their base; empty if it is that of the full layers.
        base: their default base.
        scaled: whether scaling applies to them too.
        full_key: the key of the full layers' base.
    """

    key: str = "rope_local_base_freq"
    base: float = 10000.0
    scaled: bool = False
    full_key: str = "rope_theta"


@dataclass(frozen=True)
class Family:
    """Facts about a family that its configurations do not contain.

    Args:
        pairing: as in :class:`headway.Rotary`; empty without rotation.
        base: default base of its rotation.
        fraction: default fraction of a head that is rotated.
        causal: whether it is a decoder; otherwise tokens see both sides.
        pattern: the types of its layers, if the configuration lists none.
        still: types of layers that do not rotate.
        window: "" if layer types decide which layers have a window, "all" if all layers have it.
        window_key: the key of the window's width.
        both: sliding layers see equally far into the future, and the window is the reach to each side.
        local: see :class:`Local`.
        nested: its rotation is given by layer type only.
        must: keys without which its rotation is unknown, because its default is not one of the usual ones.
        scale: multiplies q·k, if it is not 1/√d_k.
        sections: default sections of M-RoPE, in ``layout``.
        layout: as in :class:`headway.positions.MRope`; "" if it has none.
        per_layer: keys that list a fact for each layer, and are read.
        needs: keys that determine a layer's mask or scale and have no default; they may be null.
        latent: whether its attention is latent (MLA), and position acts on the decoupled part alone, as a whole.
    """

    pairing: str = "half"
    base: float = 10000.0
    fraction: float = 1.0
    causal: bool = True
    pattern: Pattern | None = None
    still: tuple[str, ...] = ()
    window: str = ""
    window_key: str = "sliding_window"
    both: bool = False
    local: Local | None = None
    nested: bool = False
    must: tuple[str, ...] = ()
    scale: float | None = None
    sections: tuple[float, ...] = ()
    layout: str = ""
    per_layer: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    latent: bool = False


_LLAMA, _GLM = Family(), Family("interleaved")
_GRANITE = Family(needs=("attention_multiplier",))
_QWEN_VL = Family(base=1e6, sections=(16, 24, 24), layout="chunked", pattern=_late)
_QWEN3_VL = Family(base=500000.0, sections=(24, 20, 20), layout="interleaved")
_GEMMA = Family(base=1e6, pattern=every(6), local=Local(), scale=256**-0.5)
_GEMMA4 = Family(pattern=every(6, last=True), nested=True, must=("rope_parameters",), scale=1.0)
_MODERNBERT = Family(
    base=160000.0,
    pattern=every(3, "global_attn_every_n_layers", first=0),
    local=Local("local_rope_theta", scaled=True, full_key="global_rope_theta"),
    window_key="local_attention",
)
_NONE = Family(pairing="")
_LATENT = replace(_GLM, latent=True)
_MUST = ("rope_parameters", "rope_scaling")

FAMILIES: dict[str, Family] = {
    # rotate all of each head in every layer, pairs (i, i + d/2), base 10000 where none is given
    **dict.fromkeys(
        names(
            "arcee aria_text chameleon dbrx diffllama falcon falcon_h1 gemma internlm3 "
            "iquestcoder jais2 llama olmo olmo2 olmoe seed_oss"
        ),
        _LLAMA,
    ),
    **dict.fromkeys(names("cohere ernie4_5 ernie4_5_moe"), replace(_GLM, base=500000.0)),
    **dict.fromkeys(names("glm glm4"), replace(_GLM, fraction=0.5)),
    **dict.fromkeys(names("codegen gptj"), replace(_GLM, must=("rotary_dim",))),
    **dict.fromkeys(names("granite granitemoe granitemoeshared granite_docling_text hyperclovax"), _GRANITE),
    **dict.fromkeys(names("bitnet exaone flex_olmo"), Family(base=500000.0)),
    **dict.fromkeys(names("glm4_moe persimmon phi"), Family(fraction=0.5)),
    **dict.fromkeys(names("gpt_neox stablelm"), Family(fraction=0.25)),
    **dict.fromkeys(names("qwen2 qwen3"), Family(pattern=_late)),
    **dict.fromkeys(
        names("axk1 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa mistral4 sarvam_mla youtu"), _LATENT
    ),
    "qwen2_5_omni_text": _QWEN_VL,
    "qwen3_omni_moe_text": replace(_QWEN3_VL, base=1e6),
    **dict.fromkeys(names("mistral mixtral phi3 phimoe phi4_multimodal starcoder2 doge"), Family(window="all")),
    "mixtral": Family(base=1e6, window="all"),
    "phimoe": Family(base=1e6, window="all"),
    **dict.fromkeys(names("qwen2_vl_text qwen2_5_vl_text"), _QWEN_VL),
    **dict.fromkeys(names("qwen3_vl_text qwen3_vl_moe_text"), _QWEN3_VL),
    **dict.fromkeys(
        ["qwen3_5_text", "qwen3_5_moe_text"],
        Family(fraction=0.25, sections=(11, 11, 10), layout="interleaved", pattern=_linear(4)),
    ),
    **dict.fromkeys(
        names("gemma2 vaultgemma"), Family(pattern=every(2), scale=256**-0.5, needs=("attn_logit_softcapping",))
    ),
    **dict.fromkeys(names("gemma4_text gemma4_unified_text"), _GEMMA4),
    **dict.fromkeys(names("exaone4 exaone_moe"), Family(pattern=every(4), still=(FULL,))),
    **dict.fromkeys(
        names("granite_swa granitemoe_swa"),
        replace(_GRANITE, pattern=every(4, "", first=0), per_layer=("layer_rope_theta",)),
    ),
    "afmoe": Family(pattern=every(4, "global_attn_every_n_layers"), still=(FULL,)),
    "apertus": Family(base=12e6, must=_MUST),
    "apertus1p5_text": Family(base=12e6, must=_MUST),
    "bamba": Family(fraction=0.5, pattern=_listed("attn_layer_indices", FULL, "linear_attention")),
    "cohere2": replace(_GLM, pattern=every(4), still=(FULL,)),
    "cohere2_moe": replace(_GLM, pattern=_prefixed, still=(FULL,)),
    "cosmos3_edge_text": Family(base=1e8, layout="interleaved", must=("mrope_section",)),
    "cwm": Family(base=1e6, pattern=every(4, "", first=0), must=_MUST),
    "dots1": Family(pattern=None),
    "embedding_gemma2_text": replace(_GEMMA4, causal=False, both=True),
    "emu3_text_model": Family(base=1e6),
    "esm": Family(causal=False),
    "eurobert": Family(causal=False),
    "flint": Family(still=(FULL,)),
    "gemma3_text": _GEMMA,
    "gemma3n_text": replace(_GEMMA, pattern=every(5), scale=1.0),
    "glm4v_text": replace(_GLM, layout="chunked", must=("mrope_section",)),
    "glm_ocr_text": replace(_GLM, layout="chunked", must=("mrope_section",)),
    "glm4v_moe_text": Family(fraction=0.5, layout="chunked", must=("mrope_section",)),
    "glm_image_text": Family(layout="chunked", must=("mrope_section",)),
    "gpt_neox_japanese": Family(),
    "gpt_oss": Family(base=150000.0, pattern=every(2), must=_MUST),
    "gpt_neo": Family(pairing="", window_key="window_size"),
    "granite4_vision_text": _GRANITE,
    "granitemoehybrid": _GRANITE,
    "gte": Family(base=160000.0, causal=False),
    "helium": replace(_GLM, base=100000.0),
    "hrm_text": _LLAMA,
    "hy_v3": Family(base=11158840.0),
    "hunyuan_v1_dense": _LLAMA,
    "hunyuan_v1_moe": _LLAMA,
    "jamba": replace(_NONE, pattern=_jamba),
    "jetmoe": _LLAMA,
    "jina_embeddings_v3": Family(base=20000.0, causal=False),
    "inkling_text": Family(
        pairing="",
        window_key="sliding_window_size",
        pattern=_listed("local_layer_ids", SLIDING, FULL, lambda count: [i for i in range(count) if (i + 1) % 6]),
    ),
    "kimi_linear": replace(_NONE, latent=True, must=("layer_types",)),
    "kolibri1": Family(pattern=every(5), still=(FULL,)),
    "laguna": Family(nested=True, must=("rope_parameters",)),
    "lfm2": Family(base=1e6, pattern=_listed("full_attn_idxs", FULL, "conv", range)),
    "lfm2_moe": Family(base=1e6),
    "lfm3": Family(nested=True, must=("rope_parameters",)),
    "llama4_text": replace(
        _GLM, base=500000.0, pattern=_chunks, per_layer=("no_rope_layers",), needs=("attention_chunk_size",)
    ),
    "mellum": Family(nested=True, must=("rope_parameters",)),
    "minicpm3": Family(latent=True),
    "mimo_v2_flash": Family(base=5e6, fraction=0.334, pattern=_mimo, nested=True, local=Local("swa_rope_theta")),
    "minimax": Family(base=1e6, window="all"),
    "minimax_m2": Family(base=5e6),
    "ministral": Family(window="all"),
    "ministral3": Family(window="all", must=_MUST),
    "mllama_text_model": Family(
        base=500000.0,
        pattern=_listed("cross_attention_layers", "cross_attention", FULL, lambda count: range(3, count, 5)),
    ),
    "modernbert": replace(_MODERNBERT, causal=False, both=True),
    "modernbert_decoder": _MODERNBERT,
    "muse_glimmer_text": Family(per_layer=("layer_rope_theta",), must=("layer_rope_theta",)),
    "muse_spark_text": Family(base=500000.0, per_layer=("layer_rope_theta",), must=("layer_rope_theta",)),
    "nemotron": Family(fraction=0.5),
    "nemotron_h": replace(
        _NONE, pattern=_letters, must=("layers_block_type", "layer_types", "hybrid_override_pattern")
    ),
    "nomic_bert": Family(base=1000.0, causal=False),
    "olmo3": Family(base=500000.0, pattern=every(4, ""), local=Local("")),
    "olmo_hybrid": Family(pattern=None),
    "openai_privacy_filter": replace(_GLM, base=150000.0, causal=False, both=True, window="all", must=_MUST),
    "paddleocr_vl_text": Family(base=500000.0, layout="chunked", must=("mrope_section",)),
    "qwen2_moe": Family(pattern=_early),
    "qwen3_moe": Family(window="all"),
    "qwen3_next": Family(fraction=0.25, pattern=_linear(4)),
    "roformer": replace(_GLM, causal=False),
    "sarvam_moe": Family(base=8e6),
    "smollm3": Family(base=2e6, pattern=_unrotated, per_layer=("no_rope_layers",)),
    "solar_open": Family(base=1e6),
    "step3p5": Family(nested=True, must=("rope_parameters",)),
    "ultrabert": Family(causal=False, both=True, nested=True, must=("rope_parameters",)),
}
"""By model type, with "_" for "-"; see :func:`family`."""

BY_KEY = frozenset(names("axk1 deepseek_v3 glm4_moe_lite mistral4 sarvam_mla youtu"))
"""Families whose pairing ``rope_interleave`` decides: interleaved if it is missing, half if it is null."""

PARTIAL = frozenset(
    names(
        "bamba glm glm4 glm4_moe glm4v_text glm4v_moe_text glm_image_text glm_ocr_text gpt_neox gpt_neox_japanese "
        "laguna mellum mimo_v2_flash minimax_m2 nemotron persimmon phi phi3 phi4_multimodal qwen3_5_text "
        "qwen3_5_moe_text qwen3_next solar_open stablelm codegen gptj"
    )
)
"""Families that rotate part of each head if the configuration says so; all others rotate the whole head."""

REFUSED = {
    "beam": "its full layers scale queries by their position",
    "deepseek_v4": "it rotates the last dimensions of a head, and values too",
    "dory": "it scales queries by their position",
    "lara_mini": "which of its layers rotate follows from their order",
    "minimax_m3_vl_text": "the meaning of its rotary_dim is unclear",
    "mistral_large4_text": "it scales queries by their position",
    "nanochat": "it rotates in reverse: negate the second half of each head's W_Q and W_K, and read it as llama",
    "neomme": "its layers rotate heads of different widths",
    "zamba2": "it rotates a concatenation of two streams",
}
"""Model types whose rotation headway does not have, each with the reason."""


def family(kind: str) -> Family | None:
    """The family of a model type; for a model of several parts, that of its text part.

    >>> family("glm4").pairing
    'interleaved'

    Raises:
        HeadwayError: when headway does not have its rotation.
    """
    name = kind.replace("-", "_")
    for known in (name, f"{name}_text"):
        if known in REFUSED:
            raise HeadwayError(f"expected a rotation that headway has, got model_type {kind!r}: {REFUSED[known]}")
        if known in FAMILIES:
            return FAMILIES[known]
    return None
