"""Longer texts for a rotary model of transformers, as values of its configuration that plain transformers reads.

    linear    ω_i / s                                        rope_type "linear"
    ntk       ω_i with the base b·s^(r/(r−2))                rope_type "default", another rope_theta
    dynamic   ntk that grows with the text beyond L0         rope_type "dynamic"; max_position_embeddings stays L0
    yarn      slow pairs / s, fast ones kept                 rope_type "yarn"
    longrope  ω_i / λ_i beyond L0, ω_i up to it              rope_type "longrope", λ_i = ω_i / ω_i of yarn
    drope     no rotation                                    rope_type "proportional" of none of the pairs: ω_i = 0

s = to/L0, L0 the trained length, r the entries of a head that rotate; formulas in :mod:`headway.positions.scaled`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from headway.characters import shortened
from headway.positions import Alibi, Learned, Position, Rotary, extend, from_hf, to_hf
from headway.positions.scaled import NTK, Interpolated, LongRope, Yarn
from headway.schema import Words, require
from headway.shapes import HeadwayError, as_count, brief

WAYS = ("yarn", "ntk", "dynamic", "linear", "longrope", "drope")
NONE = {"rope_type": "proportional", "partial_rotary_factor": 0.0}
"""A rotation of no pair: transformers' frequencies are all 0, so that cosines are exactly 1 and sines 0."""
_USUAL = {"partial_rotary_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}


@dataclass(frozen=True)
class Stretch:
    """What an extension does to a configuration.

    Args:
        how: one of :data:`WAYS`.
        to: the new length, in tokens.
        trained: L0, the length the frequencies were trained at.
        before: the method before, e.g. "rotary".
        after: the method after.
        values: the entries of the configuration that change, of the part that describes the text.
        notes: what a reader should know, a sentence each.
    """

    how: str
    to: int
    trained: int
    before: str
    after: str
    values: Mapping[str, Any]
    notes: tuple[str, ...]

    def on(self, config: Any) -> Any:
        """A copy of a configuration of transformers, extended."""
        longer = copy.deepcopy(config)
        text = longer.get_text_config()
        for name, value in self.values.items():
            setattr(text, name, copy.deepcopy(value))
        return longer


def stretch(
    config: Any, to: int, how: str = "yarn", *, trained: int | None = None, windows_too: bool = False
) -> Stretch:
    """Find the values that extend a configuration.

    Args:
        config: a configuration of transformers.
        to: the new length, in tokens.
        how: one of :data:`WAYS`.
        trained: L0; default what the configuration says, ``original_max_position_embeddings`` where it was extended
            before, else ``max_position_embeddings``.
        windows_too: extend layers with a sliding window too, where these have frequencies of their own.

    Raises:
        HeadwayError: when the model has no rotation or one that cannot be extended, or the lengths are not longer.

    >>> from transformers import LlamaConfig
    >>> found = stretch(LlamaConfig(max_position_embeddings=4096), 32768)
    >>> found.values["rope_parameters"]["factor"], found.values["max_position_embeddings"]
    (8.0, 32768)
    """
    require(how, Words(WAYS), "how")
    to = as_count(to, "to, a length,", 2)
    text = config.get_text_config()
    ropes = getattr(text, "rope_parameters", None)
    if not ropes or _other(text) is not None:
        raise _unrotated(text)
    kinds = text.nested_rope_parameter_keys(ropes)
    chosen = [kind for kind in kinds if windows_too or kind == "full_attention"]
    if kinds and not chosen:
        raise HeadwayError(
            f"expected layers of full attention to extend, got {', '.join(kinds)}: --windows-too "
            f"(windows_too=True) extends all layers"
        )
    longer, notes, befores, afters = copy.deepcopy(ropes), [], [], []
    length = as_count(text.max_position_embeddings, "max_position_embeddings", 1)
    for kind in chosen or [None]:
        old = ropes if kind is None else ropes[kind]
        if old is None:
            continue
        position = _position(text, old)
        start = _trained(position, length, trained)
        if to <= max(start, length):
            raise HeadwayError(
                f"expected 'to' above the present length, {max(start, length):,} tokens, got {to:,}: the model reads it"
            )
        new = _dropped(position) if how == "drope" else _extended(position, to, how, start, _width(text, position))
        made = _entries(new, how, old)
        longer = made if kind is None else {**longer, kind: made}
        befores.append(position.spec())
        afters.append("none" if how == "drope" else new.spec())
        notes += _notes(position, how, to, start)
    values = {"rope_parameters": longer, "max_position_embeddings": start if how == "dynamic" else to}
    if getattr(text, "original_max_position_embeddings", None) is not None:
        values["original_max_position_embeddings"] = start
    values, again = _readable(config, values, chosen, text)
    notes += again
    if kinds and len(chosen) < len(kinds):
        notes.append("layers with a window keep their frequencies, because their distances do not grow")
    return Stretch(how, to, start, _said(befores), _said(afters), values, tuple(dict.fromkeys(notes)))


def _said(specs: list[str]) -> str:
    return "; ".join(dict.fromkeys(specs))


def _position(text: Any, rope: Mapping[str, Any]) -> Position:
    """The method of a rope dictionary; how a head's entries are paired does not matter for its frequencies."""
    around = {"max_position_embeddings": text.max_position_embeddings}
    original = getattr(text, "original_max_position_embeddings", None)
    if original is not None and rope.get("rope_type") in ("yarn", "longrope", "llama3"):
        around["original_max_position_embeddings"] = original
    return from_hf({"rope_parameters": dict(rope), **around})


def _trained(position: Position, length: int, given: int | None) -> int:
    if given is not None:
        return as_count(given, "trained, a length,", 2)
    if isinstance(position, Interpolated):
        raise HeadwayError(
            f"expected trained, the length that the model was trained at, because {position.spec()} does not say it, "
            f"got none: e.g. pass trained=2048"
        )
    return int(getattr(position, "original", length))


def _width(text: Any, position: Position) -> int:
    """r, as transformers finds it."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert isinstance(position, Rotary)
    return int(head * position.fraction)


def _dropped(position: Position) -> Position:
    if getattr(position, "fraction", 1.0) != 1:
        raise HeadwayError(
            f"expected heads that rotate whole, whose rotation transformers can leave out exactly, got "
            f"{position.spec()}: extend it with yarn"
        )
    return position


def _extended(position: Position, to: int, how: str, trained: int, width: int) -> Position:
    new = extend(position, to, "yarn" if how == "longrope" else how, trained)
    if isinstance(new, NTK):  # transformers has no such kind, but the same frequencies from a larger base
        base = new.base * new.factor ** (width / (width - 2)) if width > 2 else new.base
        return Rotary(base=base, fraction=new.fraction, pairing=new.pairing)
    if how == "longrope":
        assert isinstance(new, Yarn)
        device = torch.device("cpu")
        plain = Rotary(base=new.base, fraction=new.fraction, pairing=new.pairing)
        divisors = plain.rates(width, device) / new.rates(width, device)
        return LongRope(
            base=new.base,
            fraction=new.fraction,
            pairing=new.pairing,
            factor=new.factor,
            original=trained,
            short=(1.0,) * len(divisors),
            long=tuple(divisors.tolist()),
        )
    return new


def _entries(position: Position, how: str, old: Mapping[str, Any]) -> dict[str, Any]:
    """A method as a rope dictionary of transformers, without the entries that say what is usual."""
    if how == "drope":
        assert isinstance(position, Rotary)
        return {**NONE, "rope_theta": position.base}
    made: dict[str, Any] = to_hf(position)["rope_parameters"]
    return {name: value for name, value in made.items() if name in old or _USUAL.get(name) != value}


def _readable(config: Any, values: dict[str, Any], chosen: list[str], text: Any) -> tuple[dict[str, Any], list[str]]:
    """Values that transformers reads back as they are; Phi-3 reads longrope alone, which can say yarn and linear too.

    Raises:
        HeadwayError: when it does not.
    """
    why = misread(config, values)
    if why is None:
        return values, []
    again = copy.deepcopy(values)
    ropes = again["rope_parameters"]
    for rope in [ropes[kind] for kind in chosen] or [ropes]:
        if rope["rope_type"] not in ("yarn", "linear"):
            continue
        position = _position(text, rope)
        assert isinstance(position, Rotary)
        width, device = _width(text, position), torch.device("cpu")
        plain = Rotary(base=position.base).rates(width, device)
        divisors = (plain / position.rates(width, device)).tolist()
        rope.update(
            rope_type="longrope",
            original_max_position_embeddings=values.get(
                "original_max_position_embeddings", text.max_position_embeddings
            ),
            short_factor=divisors,
            long_factor=divisors,
            attention_factor=position.amplitude(),
        )
    if misread(config, again) is None:
        return again, ["written as longrope with the same divisors at all lengths, the one kind this model reads"]
    kind = next(iter([values["rope_parameters"][each] for each in chosen] or [values["rope_parameters"]]))["rope_type"]
    raise HeadwayError(f"expected an extension that {text.model_type} reads, got rope_type {kind!r}: {why}")


def misread(config: Any, values: Mapping[str, Any]) -> str | None:
    """What transformers makes of values other than what they say; None if nothing."""
    longer = copy.deepcopy(config).to_dict()
    part = part_of(config)
    (longer if part is None else longer[part]).update(copy.deepcopy(dict(values)))
    try:
        read: Any = type(config).from_dict(longer).get_text_config()
    except Exception as error:  # whatever its validation raises
        return shortened(str(error).strip().splitlines()[-1].strip(), 200)
    wrong = [name for name, value in values.items() if getattr(read, name, None) != value]
    return f"it is read as {brief(getattr(read, wrong[0], None))}" if wrong else None


def part_of(config: Any) -> str | None:
    """The entry of a configuration of several parts that describes the text; None where it is of one part."""
    text = config.get_text_config()
    if text is config:
        return None
    name: str = next(name for name in config.sub_configs if getattr(config, name, None) is text)
    return name


def _notes(position: Position, how: str, to: int, trained: int) -> list[str]:
    notes = []
    if type(position) is not Rotary:
        notes.append(f"the frequencies of {position.spec()} are replaced, not scaled once more: they begin from L0")
    if how == "dynamic":
        notes.append(
            f"max_position_embeddings stays {trained:,}, from which transformers counts; its code keeps the "
            f"frequencies of the longest text so far, which later texts of {trained:,} tokens or more see too"
        )
    if how == "longrope":
        notes.append("the divisors are those of yarn, where the paper's search starts; the search itself was not made")
    if how == "drope":
        notes.append("without rotation a model needs tuning: the paper trains on for 0.5 to 2 % of its steps")
    return notes


def _other(text: Any) -> Position | None:
    """The method of a model whose layers share one that does not rotate: of some, ``rope_parameters`` mean nothing."""
    try:
        position = from_hf(text)
    except HeadwayError:
        return None
    return None if isinstance(position, Rotary) else position


def _unrotated(text: Any) -> HeadwayError:
    position = _other(text)
    if isinstance(position, Alibi):
        why = "alibi, which reads texts of any length as it is"
    elif isinstance(position, Learned):
        why = f"a table of {position.max_length:,} learned vectors, which has no place in rope_parameters"
    elif position is None:
        why = "no rope_parameters, which its code in transformers does not read"
    else:
        why = position.spec()
    return HeadwayError(
        f"expected a model with rotary positions to extend, got model_type {text.model_type!r} with {why}"
    )
