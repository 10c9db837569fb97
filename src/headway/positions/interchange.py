"""Position settings of Hugging Face configurations: read, written, and weights re-ordered between the two pairings.

A configuration says how its model rotates in ``rope_parameters`` (transformers 5) or in ``rope_theta`` and
``rope_scaling`` (before), other methods in keys of their own. Which numbers of a head form a pair is said by no key: it
follows from ``model_type``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway.positions.alibi import Alibi
from headway.positions.base import Position
from headway.positions.deberta import Deberta
from headway.positions.learned import Learned
from headway.positions.mrope import MRope
from headway.positions.rotary import PAIRINGS, Rotary
from headway.positions.scaled import NTK, DynamicNTK, Interpolated, Llama3, LongRope, Proportional, Yarn
from headway.positions.shaw import Shaw
from headway.positions.swin import Swin, SwinV2
from headway.positions.t5 import T5
from headway.positions.transformerxl import TransformerXL
from headway.shapes import HeadwayError

INTERLEAVED = (
    *("blt", "codegen", "cohere", "cohere2", "cohere2_moe", "deepseek_v2", "ernie4_5", "ernie4_5_moe", "glm", "glm4"),
    *("gptj", "helium", "llama4_text", "moonshine", "openai_privacy_filter", "roformer"),
)
"""Model types whose weights pair number 2i of a head with 2i + 1; all others pair i with i + r/2."""
T5_LIKE = ("t5", "mt5", "byt5", "longt5", "switch_transformers", "umt5", "pix2struct_text_model", "udop")
MEANT_FOR_OTHERS = frozenset(("rope_theta", "rope_type", "type", "partial_rotary_factor"))
"""Keys that any kind of rotation may have beside its own."""


def from_hf(config: Mapping[str, Any] | object, *, layer_type: str | None = None) -> Position:
    """The position method of a Hugging Face configuration.

    Args:
        config: the content of ``config.json``, a configuration object of transformers, or a ``rope_parameters`` or
            ``rope_scaling`` dictionary by itself.
        layer_type: which layers, where they differ ("full_attention", "sliding_attention" …).

    Returns:
        A method that is not attached yet. Its ``pairing`` is that of the checkpoint's weights.

    Raises:
        HeadwayError: on a key, a kind of scaling or a method that is not known, by name: nothing is passed over.

    >>> from_hf({"rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 2.0}})
    Interpolated(base=500000.0, fraction=1.0, pairing='half', factor=2.0)
    """
    values = _plain(config)
    try:
        for reads in (_t5, _alibi, _relative_key, _absolute, _other):
            found = reads(values)
            if found is not None:
                return found
        return _rotary(values, layer_type)
    except (TypeError, ValueError) as error:
        if isinstance(error, HeadwayError):
            raise
        raise HeadwayError(f"expected plain numbers in the configuration, got what does not read so: {error}") from None


def to_hf(position: Position) -> dict[str, Any]:
    """What a Hugging Face configuration says of a method; :func:`from_hf` reads it back.

    Args:
        position: a method that such configurations know.

    Raises:
        HeadwayError: when they do not know it.

    >>> to_hf(Interpolated(factor=2.0))["rope_parameters"]
    {'rope_type': 'linear', 'rope_theta': 10000.0, 'partial_rotary_factor': 1.0, 'factor': 2.0}
    """
    if type(position) in _ROTATIONS:
        return _rotary_config(position)
    match position:
        case T5():
            return {
                "model_type": "t5",
                "is_decoder": not position.bidirectional,
                "relative_attention_num_buckets": position.buckets,
                "relative_attention_max_distance": position.max_distance,
            }
        case Alibi() if position.spec() == "alibi":
            return {"alibi": True}
        case Deberta(reverse=False):
            return {
                "model_type": "deberta-v2",
                "relative_attention": True,
                "pos_att_type": ["p2c", "c2p"],
                "max_relative_positions": position.clip,
                "position_buckets": position.buckets or -1,
            }
        case TransformerXL(bidirectional=True):
            return {"model_type": "xlnet", "clamp_len": position.clip}
        case Learned():
            return {"position_embedding_type": "absolute", "max_position_embeddings": position.max_length}
        case Shaw(values=False):
            return {"position_embedding_type": "relative_key", "max_position_embeddings": position.clip + 1}
    raise HeadwayError(
        f"expected a method that Hugging Face configurations know (rotary and its scalings, mrope, t5, alibi, learned, "
        f"deberta(reverse=False), transformerxl(bidirectional=True), shaw without values), got {position.spec()}"
    )


def convert_pairing(
    weight: Float[Tensor, "rows *rest"], heads: int, to: str, *, fraction: float = 1.0
) -> Float[Tensor, "rows *rest"]:
    """W_Q or W_K, or its bias, with the rows of each head re-ordered for the other pairing of a rotation.

    Scores stay the same when queries and keys are converted alike and ``pairing=to`` is given to the method.

    Args:
        weight: (heads · d_k, d_model), as ``nn.Linear`` keeps it, or a bias (heads · d_k,).
        heads: how many heads its rows hold; for W_K the key heads.
        to: "half" or "interleaved"; the weight has the other.
        fraction: how much of each head is turned, as in :class:`headway.Rotary`.

    Raises:
        HeadwayError: when the rows are not so many heads of even width.

    >>> convert_pairing(torch.arange(4.0), heads=1, to="half").tolist()
    [0.0, 2.0, 1.0, 3.0]
    """
    if to not in PAIRINGS:
        raise HeadwayError(f"expected pairing {' or '.join(PAIRINGS)}, got {to!r}")
    if heads < 1 or weight.shape[0] % heads:
        raise HeadwayError(f"expected rows for {heads} heads of one width, got {weight.shape[0]} rows")
    by_head = weight.unflatten(0, (heads, -1))
    width = Rotary(fraction=fraction).width(by_head.shape[1])
    pairs = (-1, 2) if to == "half" else (2, -1)
    turned = by_head[:, :width].unflatten(1, pairs).transpose(1, 2).flatten(1, 2)
    return torch.cat((turned, by_head[:, width:]), 1).flatten(0, 1)


# --- reading ----------------------------------------------------------------------------------------------------------


def _plain(config: Mapping[str, Any] | object) -> Mapping[str, Any]:
    to_dict = getattr(config, "to_dict", None)
    values = to_dict() if callable(to_dict) else config
    if not isinstance(values, Mapping):
        raise HeadwayError(
            f"expected a configuration, as a dictionary or an object with to_dict(), got {type(config).__name__}"
        )
    if "text_config" in values and "hidden_size" not in values:
        return _plain(values["text_config"])
    if ("rope_type" in values or "type" in values) and "model_type" not in values:
        return {"rope_parameters": values}
    return values


def _kind(values: Mapping[str, Any]) -> str:
    return str(values.get("model_type", ""))


def _t5(values: Mapping[str, Any]) -> Position | None:
    if _kind(values) not in T5_LIKE and "relative_attention_num_buckets" not in values:
        return None
    return T5(
        buckets=values.get("relative_attention_num_buckets", 32),
        max_distance=values.get("relative_attention_max_distance", 128),
        bidirectional=not values.get("is_decoder", False),
    )


def _alibi(values: Mapping[str, Any]) -> Position | None:
    inner = values.get("attn_config")
    inner = inner if isinstance(inner, Mapping) else {}
    if not (values.get("alibi") or inner.get("alibi") or _kind(values) == "bloom"):
        return None
    steepest = inner.get("alibi_bias_max", 8)
    if steepest != 8:
        raise HeadwayError(f"expected alibi_bias_max of 8, as in the paper, got {steepest}")
    return Alibi()


def _relative_key(values: Mapping[str, Any]) -> Position | None:
    kind = values.get("position_embedding_type", values.get("position_embeddings_type"))
    if kind == "relative_key":
        return Shaw(clip=values["max_position_embeddings"] - 1, values=False)
    if kind not in (None, "absolute", "rotary", "rope", "learned", "alibi"):
        raise HeadwayError(
            f"expected position_embedding_type absolute, relative_key, rotary or alibi, got {kind!r}: "
            f"see `headway methods` for what there is"
        )
    return Alibi() if kind == "alibi" else None


def _absolute(values: Mapping[str, Any]) -> Position | None:
    lengths = [values[key] for key in ("max_position_embeddings", "n_positions") if key in values]
    learned = values.get("position_embedding_type") in ("absolute", "learned")
    if learned and not lengths:
        raise HeadwayError(
            "expected max_position_embeddings beside position_embedding_type 'absolute', got none: "
            "add how many positions the table has"
        )
    if learned or _kind(values) in ("gpt2", "bert", "opt", "gpt_neo", "gpt_bigcode"):
        return Learned(max_length=lengths[0]) if lengths else Learned()
    # RoBERTa's table begins with two rows for padding: its first token has position 2
    return Learned(max_length=lengths[0] - 2) if _kind(values) in ("roberta", "xlm-roberta", "camembert") else None


def _other(values: Mapping[str, Any]) -> Position | None:
    if values.get("relative_attention"):
        return _deberta(values)
    match _kind(values):
        case "xlnet":
            clip = values.get("clamp_len", -1)
            return TransformerXL(bidirectional=True, **({"clip": clip} if clip > 0 else {}))
        case "swin" | "swinv2" as kind:
            size = values.get("window_size", 7)
            return (Swin if kind == "swin" else SwinV2)(height=size, width=size)
    if values.get("qk_rope_head_dim"):
        raise HeadwayError(
            "expected heads that are turned from their first number on, got qk_rope_head_dim: multi-head latent "
            "attention turns numbers of their own"
        )
    return None


def _deberta(values: Mapping[str, Any]) -> Position:
    kinds = values.get("pos_att_type") or []
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    if set(kinds) != {"c2p", "p2c"}:
        raise HeadwayError(f"expected pos_att_type of c2p and p2c, as in DeBERTa's models, got {kinds}")
    clip = values.get("max_relative_positions", -1)
    return Deberta(
        clip=clip if clip > 0 else values.get("max_position_embeddings", 512),
        buckets=max(0, values.get("position_buckets", 0)),
        reverse=False,
    )


def _rotary(values: Mapping[str, Any], layer_type: str | None) -> Position:
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise HeadwayError(f"expected rope_parameters to be a dictionary, got {given!r}")
    nested = [key for key, inner in given.items() if isinstance(inner, Mapping)]
    if nested:
        if layer_type not in nested:
            raise HeadwayError(
                f"expected layer_type one of {', '.join(nested)}, because they rotate differently, got {layer_type!r}"
            )
        given = given[layer_type]
    bases = [values[key] for key in ("rope_theta", "rotary_emb_base", "rotary_base") if values.get(key) is not None]
    if not given and not bases and not any(key in values for key in ("rotary_dim", "rotary_pct", "rope_pct")):
        raise HeadwayError(
            "expected rope_parameters, rope_scaling, rope_theta or a known model_type, got a configuration with none: "
            "see headway.positions for the methods it could be"
        )
    kind = str(given.get("rope_type", given.get("type", "default")))
    # Qwen2-VL names its sections as a kind of scaling
    own = {"mrope": "default", "su": "longrope"}.get(kind, kind)
    shared: dict[str, Any] = {
        "base": float(given.get("rope_theta") or (bases[0] if bases else 10000.0)),
        "fraction": _fraction(values, given),
        "pairing": "interleaved" if _interleaved(values) else "half",
    }
    if own not in _READ:
        raise HeadwayError(f"expected rope_type one of {', '.join(_READ)}, got {kind!r}")
    method, keys, read = _READ[own]
    if "mrope_section" in given:
        method, keys, read = MRope, ("mrope_section", "mrope_interleaved", "interleaved"), _mrope
        if own != "default":
            raise HeadwayError(f"expected mrope_section with rope_type 'default', got {kind!r}: they are not combined")
    unknown = [key for key in given if key not in keys and key not in MEANT_FOR_OTHERS]
    if unknown:
        expected = ", ".join(sorted({*keys, *MEANT_FOR_OTHERS}))
        raise HeadwayError(f"expected keys of rope_type {kind!r} among {expected}, got {', '.join(unknown)}")
    return method(**shared, **read(values, given))


def _interleaved(values: Mapping[str, Any]) -> bool:
    return bool(values.get("rope_interleave", _kind(values) in INTERLEAVED))


def _fraction(values: Mapping[str, Any], given: Mapping[str, Any]) -> float:
    outside = (values.get(key) for key in ("partial_rotary_factor", "rotary_pct", "rope_pct"))
    for found in (given.get("partial_rotary_factor"), *outside):
        if found is not None:
            return float(found)
    if values.get("rotary_dim") is not None:
        width = values.get("n_embd", values.get("hidden_size", 0))
        heads = values.get("n_head", values.get("num_attention_heads", 1))
        return float(values["rotary_dim"]) / float(width // heads)
    return 1.0


def _need(given: Mapping[str, Any], key: str) -> Any:
    if given.get(key) is None:
        raise HeadwayError(f"expected {key} beside rope_type {given.get('rope_type', given.get('type'))!r}, got none")
    return given[key]


def _original(values: Mapping[str, Any], given: Mapping[str, Any]) -> int:
    for found in (
        values.get("original_max_position_embeddings"),  # Phi-3 keeps it outside, and that one counts
        given.get("original_max_position_embeddings"),
        values.get("max_position_embeddings"),
    ):
        if found is not None:
            return int(found)
    raise HeadwayError(
        "expected original_max_position_embeddings or max_position_embeddings, the length it was trained at, got none"
    )


def _factor(values: Mapping[str, Any], given: Mapping[str, Any]) -> float:
    if given.get("factor") is None and values.get("max_position_embeddings") is not None:
        return float(values["max_position_embeddings"]) / _original(values, given)
    return float(_need(given, "factor"))


def _linear(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {"factor": float(_need(given, "factor"))}


def _dynamic(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {**_linear(values, given), "original": _original(values, given)}


def _yarn(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    optional = {key: given.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim")}
    return {
        "factor": _factor(values, given),
        "original": _original(values, given),
        "beta_fast": float(given.get("beta_fast") or 32),
        "beta_slow": float(given.get("beta_slow") or 1),
        **{key: float(value or 0) for key, value in optional.items()},
        "truncate": bool(given.get("truncate", True)),
    }


def _longrope(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "factor": _factor(values, given),
        "original": _original(values, given),
        "short": tuple(map(float, _need(given, "short_factor"))),
        "long": tuple(map(float, _need(given, "long_factor"))),
        "attention_factor": float(given.get("attention_factor") or 0),
    }


def _llama3(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "factor": float(_need(given, "factor")),
        "low": float(_need(given, "low_freq_factor")),
        "high": float(_need(given, "high_freq_factor")),
        "original": _original({}, given),
    }


def _mrope(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    interleaved = given.get("mrope_interleaved", given.get("interleaved", False))
    return {"sections": tuple(given["mrope_section"]), "layout": "interleaved" if interleaved else "chunked"}


def _proportional(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {"factor": float(given.get("factor") or 1)}


def _nothing(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {}


_Reader = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
_FACTORS = ("factor", "original_max_position_embeddings")
_READ: dict[str, tuple[type[Rotary], tuple[str, ...], _Reader]] = {
    "default": (Rotary, (), _nothing),
    "linear": (Interpolated, ("factor",), _linear),
    "ntk": (NTK, ("factor",), _linear),
    "dynamic": (DynamicNTK, _FACTORS, _dynamic),
    "yarn": (
        Yarn,
        (*_FACTORS, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "finetuned"),
        _yarn,
    ),
    "longrope": (LongRope, (*_FACTORS, "short_factor", "long_factor", "attention_factor"), _longrope),
    "llama3": (Llama3, (*_FACTORS, "low_freq_factor", "high_freq_factor"), _llama3),
    "proportional": (Proportional, ("factor",), _proportional),
}
_ROTATIONS: dict[type, str] = {method: kind for kind, (method, _, _) in _READ.items()} | {MRope: "default"}
_NAMES = {
    "original": "original_max_position_embeddings",
    "short": "short_factor",
    "long": "long_factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "base": "rope_theta",
    "fraction": "partial_rotary_factor",
    "sections": "mrope_section",
}
"""What Hugging Face calls our hyperparameters, where it calls them otherwise."""
_FROM_A_FORMULA = ("attention_factor", "mscale", "mscale_all_dim")


def _rotary_config(position: Position) -> dict[str, Any]:
    values = position.hyperparameters()
    interleaved = values.pop("pairing") == "interleaved"
    parameters: dict[str, Any] = {"rope_type": _ROTATIONS[type(position)]}
    if isinstance(position, MRope):
        parameters["mrope_interleaved"] = values.pop("layout") == "interleaved"
    for name, value in values.items():
        if name in _FROM_A_FORMULA and not value:
            continue
        parameters[_NAMES.get(name, name)] = list(value) if isinstance(value, tuple) else value
    return {"rope_parameters": parameters} | ({"rope_interleave": True} if interleaved else {})
