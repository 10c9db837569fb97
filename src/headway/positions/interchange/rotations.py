"""Rotary and its scalings: ``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling`` (before)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from headway.positions.base import Position
from headway.positions.interchange.families import BY_KEY, FULL, PARTIAL, Family
from headway.positions.interchange.values import Values, short
from headway.positions.mrope import MRope
from headway.positions.none import NoPosition
from headway.positions.rotary import PAIRINGS, Rotary
from headway.positions.scaled import NTK, DynamicNTK, Interpolated, Llama3, LongRope, Proportional, Yarn
from headway.shapes import HeadwayError

MEANT_FOR_OTHERS = frozenset(("rope_theta", "rope_type", "type", "partial_rotary_factor"))
"""Keys that any kind of rotation may have in addition to its own."""
BASES = ("rope_theta", "rotary_emb_base", "rotary_base", "rotary_embedding_base")
FRACTIONS = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rotary_emb_fraction")
TEMPERATURE = "llama_4_scaling_beta"
"""A key of the rope dictionary that scales queries by their position: not a rotation, but a fact about its layers."""
INTERLEAVED = ("rope_interleave", "rotary_emb_interleaved")
"""Keys that give the pairing."""


def pairing_of(values: Values, known: Family | None, pairing: str | None) -> str:
    """Which dimensions of a head form a pair: by the family, the configuration or the caller.

    Raises:
        HeadwayError: when none of them gives it, or two differ.
    """
    if pairing is not None and pairing not in PAIRINGS:
        raise HeadwayError(f"expected pairing {' or '.join(PAIRINGS)}, got {pairing!r}")
    kind = values.get("model_type")
    said = {"pairing": pairing} if pairing else {}
    said |= {key: PAIRINGS[values.flag(key)] for key in INTERLEAVED if key in values}
    if str(kind).replace("-", "_") in BY_KEY:
        values.entries.get("rope_interleave", True) or said.setdefault("rope_interleave", "half")
        said = said or {f"model_type {kind!r}": "interleaved"}
    elif known is not None and known.pairing:
        said = {f"model_type {kind!r}": known.pairing} | said
    elif not said and kind is None and not values.get("architectures"):
        return "half"  # a rope dictionary alone has no model type; the convention of transformers
    if not said:
        raise HeadwayError(
            f"expected pairing='half' or pairing='interleaved', because no key says which dimensions of a head are "
            f"pairs and model_type {kind!r} is not known, got none: look at its rotate function"
        )
    if len(set(said.values())) > 1:
        raise HeadwayError(f"expected one pairing, got {', '.join(f'{v} from {k}' for k, v in said.items())}")
    return next(iter(said.values()))


def rope_of(values: Values, known: Family | None) -> Values:
    """The rope dictionary, or a dictionary with one for each layer type.

    Raises:
        HeadwayError: when two keys have different ones, or its form is not that of the family.
    """
    keys = [key for key in ("rope_parameters", "rope_scaling") if values.get(key)]
    if len(keys) == 2 and values.get(keys[0]) != values.get(keys[1]):
        raise HeadwayError("expected rope_parameters or rope_scaling, got both, and they differ: keep one")
    rope = values.inner(keys[0]) if keys else Values({})
    types = types_of(rope)
    if types:
        beside = [key for key in rope.entries if key not in types and key in rope]
        if beside:
            raise HeadwayError(f"expected {keys[0]} by layer type only, got {', '.join(beside[:8])} beside {types[0]}")
    elif keys and known is not None and (known.nested or (known.local is not None and keys[0] == "rope_parameters")):
        raise HeadwayError(f"expected {keys[0]} by layer type, as {values.get('model_type')} has it, got one for all")
    return rope


def types_of(rope: Values) -> list[str]:
    """The layer types in a rope dictionary; empty if it is one for all layers."""
    return [key for key, inner in rope.entries.items() if isinstance(inner, Mapping)]


def rope_for(values: Values, known: Family | None, layer_type: str) -> Values | None:
    """The dictionary for layers of a type; None if they are listed without one and do not rotate."""
    rope = rope_of(values, known)
    if not types_of(rope):
        return rope
    if layer_type not in rope.entries:
        raise HeadwayError(f"expected rope_parameters for {layer_type}, got it for {', '.join(list(rope.entries)[:8])}")
    return rope.inner(layer_type) if layer_type in rope else None


def rotation(
    values: Values, known: Family | None, pairing: str, layer_type: str = FULL, base: float | None = None
) -> Position:
    """How the layers of a type rotate.

    Args:
        values: the configuration.
        known: its family.
        pairing: from :func:`pairing_of`.
        layer_type: which layers.
        base: the base of this layer alone.

    Raises:
        HeadwayError: on an unknown key or kind, by name.
    """
    given, local = rope_for(values, known, layer_type), known.local if known is not None else None
    if given is None:
        return NoPosition()
    rope = given
    if local is not None and not types_of(rope_of(values, known)):
        if layer_type != FULL and not local.scaled:
            rope = Values({})
        if base is None and "rope_theta" not in rope:
            key, fallback = (
                (local.full_key, known.base if known else None) if layer_type == FULL else (local.key, local.base)
            )
            base = values.number(key, default=fallback) if key else None
    elif local is not None and layer_type != FULL and values.entries.get(local.key) == rope.get("rope_theta"):
        values.known(local.key)  # redundant
    fallback = known.base if known is not None else 10000.0
    bases = {key: values.number(key) for key in BASES if key in values}
    if known is not None and str(values.get("model_type")).startswith("gpt_neox") and "rope_theta" in bases:
        bases.setdefault("rotary_emb_base", fallback)  # which is the key that these models read
    if values.get("model_type") == "dbrx" and "rope_theta" in values.inner("attn_config"):
        fallback = bases["attn_config.rope_theta"] = values.inner("attn_config").number("rope_theta")
        bases |= {"rope_parameters.rope_theta": rope.number("rope_theta")} if "rope_theta" in rope else {}
    if str(values.get("model_type")).startswith("lfm2") and "theta" in values:
        bases.setdefault("rope_theta", fallback)
        bases["theta"] = values.number("theta")  # redundant
    if len(set(bases.values())) > 1:
        raise HeadwayError(f"expected one base, got {', '.join(f'{key}={value}' for key, value in bases.items())}")
    shared: dict[str, Any] = {
        "base": base
        if base is not None
        else rope.number("rope_theta", default=values.number(*BASES, default=fallback)),
        "fraction": _latent_fraction(values, rope) if known and known.latent else _fraction(values, rope, known),
        "pairing": pairing,
    }
    kind = str(rope.get("rope_type", "type") or "default")
    name = str(values.get("model_type")).replace("-", "_")
    if known is not None and shared["fraction"] < 1 and kind != "proportional" and not {name, f"{name}_text"} & PARTIAL:
        raise HeadwayError(
            f"expected heads that rotate whole, as those of model_type {values.get('model_type')!r} do, got "
            f"partial_rotary_factor={shared['fraction']}"
        )
    # Qwen2-VL names its sections as a kind of scaling, early Phi-3 LongRoPE by other names
    own = {"mrope": "default", "su": "longrope"}.get(kind, kind)
    if own == "yarn" and "short_factor" in rope:
        own = "longrope"
    if own not in READERS:
        raise HeadwayError(f"expected rope_type one of {', '.join(READERS)}, got {short(kind)}")
    method, keys, read = READERS[own]
    if "mrope_section" in rope or (known is not None and known.sections):
        if own != "default":
            raise HeadwayError(f"expected mrope_section with rope_type 'default', got {kind!r}: they are not combined")
        method, keys, read = MRope, ("mrope_section", "mrope_interleaved", "interleaved"), _mrope(known)
    elif own == "dynamic" and "alpha" in rope and str(values.get("model_type")).startswith("hunyuan"):
        method, keys, read = NTK, ("factor", "alpha", *_UNUSED), _alpha
    unknown = [key for key in rope.entries if key not in keys and key not in MEANT_FOR_OTHERS and key in rope]
    unknown = [key for key in unknown if key != TEMPERATURE and not _repeats(values, rope, key)]
    if unknown:
        expected = ", ".join(sorted({*keys, *MEANT_FOR_OTHERS}))
        raise HeadwayError(f"expected keys of rope_type {kind!r} among {expected}, got {', '.join(unknown[:8])}")
    none = (own, shared["fraction"]) == ("proportional", 0)  # it pairs the whole head, and rotates none of the pairs
    return NoPosition() if none else method(**shared, **read(values, rope))


def _repeats(values: Values, rope: Values, key: str) -> bool:
    return key == "max_position_embeddings" and rope.get(key) == values.get(key)


def head_width(values: Values) -> int | None:
    """The head width, if the configuration gives it."""
    if "head_dim" in values or "kv_channels" in values:
        return values.whole("head_dim", "kv_channels")
    width, heads = (("hidden_size", "n_embd", "d_model"), ("num_attention_heads", "n_head", "n_heads"))
    if values.get(*width) is None or values.get(*heads) is None:
        return None
    return values.whole(*width) // values.whole(*heads)


def _fraction(values: Values, rope: Values, known: Family | None) -> float:
    """The fraction of a head that is rotated; the rope dictionary takes precedence, as in transformers."""
    default = 0.0 if "rotary_dim" in values else known.fraction if known is not None else 1.0
    found = rope.number("partial_rotary_factor", default=values.number(*FRACTIONS, default=default))
    width = head_width(values)
    if "rotary_dim" not in values:
        # an odd number is rounded up there, and the exponent runs over it
        if width is not None and 0 < found < 1 and int(round(found * width, 6)) % 2:
            raise HeadwayError(
                f"expected an even number of entries that rotate, got {found} of {width}: change partial_rotary_factor"
            )
        return found
    if width is None:
        raise HeadwayError(
            "expected head_dim, or hidden_size and num_attention_heads, beside rotary_dim, got none: "
            "how much of a head rotates is not said without them"
        )
    share = values.whole("rotary_dim", least=2) / width
    if found and abs(found - share) * width >= 1:
        raise HeadwayError(
            f"expected rotary_dim and partial_rotary_factor to agree, got rotary_dim={short(values.get('rotary_dim'))} "
            f"of {width} entries and {found}"
        )
    return share


def _latent_fraction(values: Values, rope: Values) -> float:
    """All of the decoupled part rotates; some files give its share of a head."""
    found, part = rope.number("partial_rotary_factor", default=1.0), values.whole("qk_rope_head_dim", default=64)
    if found != 1 and abs(found * (part + values.whole("qk_nope_head_dim")) - part) > 0.01:
        raise HeadwayError(
            f"expected a decoupled part that rotates whole, qk_rope_head_dim={part}, got partial_rotary_factor={found}"
        )
    return 1.0


def sharpened(values: Values, rope: Values) -> float | None:
    """The factor of q·k in latent attention with YaRN: 1/√d_k times (0.1·mscale_all_dim·ln s + 1)²; None is 1/√d_k."""
    mscale = rope.number("mscale_all_dim", default=0.0)
    if not mscale or rope.get("rope_type", "type") in (None, "default"):
        return None
    width = values.whole("qk_nope_head_dim") + values.whole("qk_rope_head_dim")
    return (0.1 * mscale * math.log(max(_factor(values, rope), 1.0)) + 1) ** 2 / math.sqrt(width)


def _need(rope: Values, key: str) -> float:
    if key not in rope:
        raise HeadwayError(f"expected {key} beside rope_type {short(rope.get('rope_type', 'type'))}, got none")
    return rope.number(key)


def _original(values: Values, rope: Values) -> int:
    """The training length; Phi-3 has it outside the rope dictionary, and that takes precedence."""
    for place, key in ((values, "original_"), (rope, "original_"), (values, "")):
        if f"{key}max_position_embeddings" in place:
            return place.whole(f"{key}max_position_embeddings")
    raise HeadwayError(
        "expected original_max_position_embeddings or max_position_embeddings, the length it was trained at, got none"
    )


def _factor(values: Values, rope: Values) -> float:
    if "factor" not in rope and "max_position_embeddings" in values:
        return values.number("max_position_embeddings") / _original(values, rope)
    return _need(rope, "factor")


def _linear(values: Values, rope: Values) -> dict[str, Any]:
    return {"factor": _need(rope, "factor")}


def _alpha(values: Values, rope: Values) -> dict[str, Any]:
    return {"factor": rope.number("alpha")}


def _dynamic(values: Values, rope: Values) -> dict[str, Any]:
    """Transformers uses max_position_embeddings as the training length, whatever other keys say."""
    original = _original(values, rope)
    if "max_position_embeddings" in values and values.whole("max_position_embeddings") != original:
        raise HeadwayError(
            f"expected max_position_embeddings, from which rope_type 'dynamic' counts, to be the trained length, got "
            f"{short(values.get('max_position_embeddings'))} and original_max_position_embeddings={original}: keep one"
        )
    return {**_linear(values, rope), "original": original}


def _yarn(values: Values, rope: Values) -> dict[str, Any]:
    return {
        "factor": _factor(values, rope),
        "original": _original(values, rope),
        "beta_fast": rope.number("beta_fast", default=32.0) or 32.0,
        "beta_slow": rope.number("beta_slow", default=1.0) or 1.0,
        **{key: rope.number(key, default=0.0) for key in ("attention_factor", "mscale", "mscale_all_dim")},
        "truncate": rope.flag("truncate", default=True),
    }


def _longrope(values: Values, rope: Values) -> dict[str, Any]:
    return {
        "factor": _factor(values, rope),
        "original": _original(values, rope),
        "short": rope.numbers("short_factor"),
        "long": rope.numbers("long_factor"),
        "attention_factor": rope.number("attention_factor", default=0.0),
    }


def _llama3(values: Values, rope: Values) -> dict[str, Any]:
    return {
        "factor": _need(rope, "factor"),
        "low": _need(rope, "low_freq_factor"),
        "high": _need(rope, "high_freq_factor"),
        "original": _original(values, rope),
    }


def _proportional(values: Values, rope: Values) -> dict[str, Any]:
    return {"factor": rope.number("factor", default=1.0)}


def _mrope(known: Family | None) -> _Reader:
    def read(values: Values, rope: Values) -> dict[str, Any]:
        sections = rope.numbers("mrope_section") if "mrope_section" in rope else known.sections if known else ()
        said = [rope.flag(key) for key in ("mrope_interleaved", "interleaved") if key in rope]
        if known is not None and known.layout:
            if said and said[0] != (known.layout == "interleaved"):
                raise HeadwayError(
                    f"expected M-RoPE {known.layout}, as {values.get('model_type')} has it, got "
                    f"mrope_interleaved={said[0]}"
                )
            layout = known.layout
        elif not said and "model_type" in values:
            raise HeadwayError(
                f"expected mrope_interleaved, true or false, beside mrope_section, because model_type "
                f"{values.get('model_type')!r} is not known to have M-RoPE, got none"
            )
        else:
            layout = "interleaved" if said and said[0] else "chunked"
        return {"sections": tuple(int(each) if each == int(each) else each for each in sections), "layout": layout}

    return read


_Reader = Callable[[Values, Values], dict[str, Any]]
_UNUSED = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
"""Keys beside alpha in Hunyuan's files, which no code in transformers reads."""
_FACTORS = ("factor", "original_max_position_embeddings")
READERS: dict[str, tuple[type[Rotary], tuple[str, ...], _Reader]] = {
    "default": (Rotary, (), lambda values, rope: {}),
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
"""Kinds of rotation: the method, its keys in addition to the common ones, and the function that reads them."""
