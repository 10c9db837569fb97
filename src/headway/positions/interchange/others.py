"""Position methods in configurations that do not rotate: tables, biases, relative keys."""

from __future__ import annotations

from headway.positions.alibi import Alibi
from headway.positions.base import Position
from headway.positions.deberta import Deberta
from headway.positions.inkling import Inkling
from headway.positions.interchange.families import FAMILIES
from headway.positions.interchange.values import Values, names, short
from headway.positions.learned import Learned
from headway.positions.shaw import Shaw
from headway.positions.sinusoidal import Sinusoidal
from headway.positions.swin import Swin, SwinV2
from headway.positions.t5 import T5
from headway.positions.transformerxl import TransformerXL
from headway.shapes import HeadwayError

T5_LIKE = frozenset(
    names("t5 mt5 byt5 longt5 switch_transformers umt5 pix2struct_text_model pix2struct_vision_model pop2piano udop")
)
TABLES = frozenset(
    names(
        "albert bert bert_generation big_bird clip_text_model convbert distilbert electra ernie gpt2 gpt_bigcode "
        "gpt_neo imagegpt megatron_bert mobilebert openai_gpt rembert roc_bert splinter squeezebert "
        "visual_bert"
    )
)
"""A learned vector per position, with as many rows as the configuration says."""
AFTER_PADDING = frozenset(
    names(
        "camembert data2vec_text ibert longformer luke mpnet roberta roberta_prelayernorm "
        "xlm_roberta xlm_roberta_xl xmod"
    )
)
"""RoBERTa's table starts with unused rows up to the padding id: its first token has position pad_token_id + 1."""
TWO_MORE = frozenset(names("bart biogpt mbart mvp opt plbart"))
"""Their tables have two more rows than the configuration says, so that all its positions can be used."""
KNOWN = (
    T5_LIKE
    | TABLES
    | AFTER_PADDING
    | TWO_MORE
    | frozenset(names("bloom deberta deberta_v2 falcon inkling_text mpt xlnet"))
)
"""Models that are bidirectional unless they are decoders by name or by a key."""
NEITHER = ("rotary", "rope", "rope_gptj", "nope", "none")
"""Values of position_embedding_type that do not mean a table."""


def other_method(values: Values) -> Position | None:
    """The method of a configuration that does not rotate, or None.

    Raises:
        HeadwayError: on a variant of such a method that headway does not have.
    """
    kind = str(values.get("model_type") or "").replace("-", "_")
    for reads in (_t5, _alibi, _relative_key, _absolute, _families):
        found = reads(values, kind)
        if found is not None:
            return found
    return None


def _t5(values: Values, kind: str) -> Position | None:
    if kind not in T5_LIKE and ("relative_attention_num_buckets" not in values or kind == "mpnet"):
        return None
    if (
        kind == "longt5"
        and values.get("encoder_attention_type") not in (None, "local")
        and not values.flag("is_decoder")
    ):
        raise HeadwayError(
            f"expected encoder_attention_type 'local', got {short(values.get('encoder_attention_type'))}: its tokens "
            f"attend to sums of blocks too, which are placed by a table of their own"
        )
    return T5(
        buckets=values.whole("relative_attention_num_buckets", default=32),
        max_distance=values.whole("relative_attention_max_distance", default=128),
        bidirectional=not values.flag("is_decoder"),
    )


def _alibi(values: Values, kind: str) -> Position | None:
    inner = values.inner("attn_config") if kind in ("", "mpt") else Values({})
    if kind == "mpt" and inner.entries.get("alibi") is False:
        raise HeadwayError("expected attn_config.alibi to be true, as transformers runs every mpt, got False")
    given = values.flag("alibi") or inner.flag("alibi") or values.get("position_embedding_type") == "alibi"
    if not given and kind not in ("bloom", "mpt"):
        return None
    if kind == "mpt":
        values.known("learned_pos_emb")  # which no code in transformers reads
    steepest = inner.number("alibi_bias_max", default=values.number("alibi_bias_max", default=8.0))
    if steepest != 8:
        raise HeadwayError(f"expected alibi_bias_max of 8, as in the paper, got {steepest:g}")
    # Falcon adds its bias before the scores are multiplied by 1/√d_k, so that it is multiplied too
    return Alibi(scaled=kind in ("falcon", "refinedweb", "refinedwebmodel"))


def _relative_key(values: Values, kind: str) -> Position | None:
    said = values.get("position_embedding_type", "position_embeddings_type")
    if said == "relative_key" and "max_position_embeddings" in values:
        return Shaw(clip=values.whole("max_position_embeddings", least=2) - 1, values=False)
    if said not in (None, "absolute", "learned", "alibi", *NEITHER):
        raise HeadwayError(
            f"expected position_embedding_type absolute, relative_key, rotary or alibi, got {short(said)}: "
            f"see `headway methods` for what there is"
        )
    return None


def _absolute(values: Values, kind: str) -> Position | None:
    said = values.get("position_embedding_type")
    if said in NEITHER:
        return None
    lengths = ("max_position_embeddings", "n_positions")
    if kind in ("layoutlm", "lilt", "markuplm"):
        raise HeadwayError(
            f"expected one method, got model_type {kind!r}: it adds learned vectors of places on the page too"
        )
    if kind == "distilbert" and values.flag("sinusoidal_pos_embds"):
        return Sinusoidal()
    if kind == "mpnet":
        raise HeadwayError("expected one method, got model_type 'mpnet': it adds a learned table and T5's bias")
    if kind in AFTER_PADDING or (kind == "esm" and said in (None, "absolute")):
        rows, padding = values.whole(*lengths), values.whole("pad_token_id", default=1, least=0)
        if rows <= padding + 1:
            raise HeadwayError(
                f"expected max_position_embeddings above the {padding + 1} rows up to padding's, got {rows}"
            )
        return Learned(max_length=rows - padding - 1)
    rotates = kind in FAMILIES and FAMILIES[kind].pairing  # files of ModernBERT say "absolute", which nothing reads
    if rotates or (said not in ("absolute", "learned") and kind not in TABLES | TWO_MORE):
        return None
    if values.get(*lengths) is None:
        raise HeadwayError(
            "expected max_position_embeddings, how many positions the table of learned vectors has, got none: "
            "add it to the configuration"
        )
    return Learned(max_length=values.whole(*lengths))


def _families(values: Values, kind: str) -> Position | None:
    if values.flag("relative_attention"):
        return _deberta(values)
    match kind:
        case "deberta" | "deberta_v2":
            return _deberta(values)
        case "xlnet":
            if values.get("attn_type") not in (None, "bi"):
                raise HeadwayError(
                    f"expected attn_type 'bi', as in XLNet's models, got {short(values.get('attn_type'))}"
                )
            clip = values.number("clamp_len", default=-1)
            return TransformerXL(bidirectional=True, **({"clip": int(clip)} if clip > 0 else {}))
        case "swin" | "swinv2":
            return _swin(values, kind)
        case "inkling_text":
            return inkling(values)
    if "qk_rope_head_dim" in values and not (kind in FAMILIES and FAMILIES[kind].latent):
        raise HeadwayError(
            f"expected a model_type whose latent attention is known, as deepseek_v3, beside qk_rope_head_dim, got "
            f"{values.get('model_type')!r}: build the method yourself, see `headway methods`"
        )
    return None


def inkling(values: Values, sliding: bool = False) -> Position:
    """Inkling's bias: in sliding layers up to the window's width, and without a temperature."""
    if sliding:
        return Inkling(rank=values.whole("d_rel", default=16), extent=values.whole("sliding_window_size", default=512))
    return Inkling(
        rank=values.whole("d_rel", default=16),
        extent=values.whole("rel_extent", default=1024),
        floor=values.whole("log_scaling_n_floor", default=0, least=0),
        alpha=values.number("log_scaling_alpha", default=0.1),
    )


def _deberta(values: Values) -> Position:
    if not values.flag("relative_attention"):
        raise HeadwayError("expected relative_attention to be true, as in DeBERTa's models, got false")
    kinds = values.get("pos_att_type") or []
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list | tuple) or not all(isinstance(each, str) for each in kinds):
        raise HeadwayError(f"expected pos_att_type as a list of names, got {short(kinds)}")
    if {each.strip().lower() for each in kinds} != {"c2p", "p2c"}:
        raise HeadwayError(f"expected pos_att_type of c2p and p2c, as in DeBERTa's models, got {short(list(kinds))}")
    if values.flag("position_biased_input"):
        raise HeadwayError(
            "expected position_biased_input to be false, as in DeBERTa's models, got true: it adds a learned table too"
        )
    clip = values.number("max_relative_positions", default=-1)
    return Deberta(
        clip=int(clip) if clip > 0 else values.whole("max_position_embeddings", default=512),
        buckets=int(max(0, values.number("position_buckets", default=0))),
        reverse=False,
    )


def _swin(values: Values, kind: str) -> Position:
    if values.flag("use_absolute_embeddings"):
        raise HeadwayError("expected one method, got use_absolute_embeddings: it adds a learned table besides")
    if kind == "swinv2" and any(
        values.numbers("pretrained_window_sizes") if "pretrained_window_sizes" in values else ()
    ):
        raise HeadwayError(
            "expected pretrained_window_sizes of zeros, got others: give trained_height and trained_width of SwinV2 "
            "for each stage yourself"
        )
    size = values.whole("window_size", default=7)
    return (Swin if kind == "swin" else SwinV2)(height=size, width=size)
