"""Give the attentions of a transformers model headway's kernels, in place, and take them back."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from headway.hf import products
from headway.hf.families import family_of
from headway.hf.forms import formula
from headway.hf.interface import NAMES
from headway.hf.spread import SPREAD, Spread, spread_over
from headway.parallel.ranks import Mesh
from headway.plans import plan
from headway.positions import parse
from headway.shapes import HeadwayError

TESTED = "5.24"
TOKENS = 2048
"""Length of the text that the report names a backend and memory for."""


@dataclass(frozen=True)
class Part:
    """What was done to one kind of attention in a model.

    Args:
        kind: name of its class.
        names: names of its modules.
        position: how position enters, where headway computes it.
        like: the method of headway's own whose terms it has, and the device: for :attr:`plan`.
        memory: bytes of the position bias of such a text, in one layer, before and after; None where there is none.
        reason: why it was left alone; None when it was accelerated.
    """

    kind: str
    names: tuple[str, ...]
    position: str
    like: tuple[str, torch.device] | None = None
    memory: tuple[int, int] | None = None
    reason: str | None = None

    @property
    def plan(self) -> str:
        """Which backend computes a text of 2,048 tokens here, how exactly, and in how much memory."""
        if self.like is None:
            return ""
        method, device = self.like
        found = plan(parse(method), tokens=TOKENS, heads=8, head_dim=64, device=device)
        return f"{found.route} · {found.exactness} · {found.memory}"

    def __str__(self) -> str:
        many = f"{len(self.names)} × {self.kind}"
        if self.reason:
            return f"{many:<36} left alone: {self.reason}"
        parts = [self.position, self.plan]
        if self.memory is not None:
            before, after = (n / 2**20 for n in self.memory)
            parts.append(f"bias of {TOKENS:,} tokens {before:,.0f} → {after:.2g} MiB")
        return f"{many:<36} headway: {' · '.join(parts)}"


@dataclass
class Accelerated:
    """What :func:`accelerate` did to a model; made for printing.

    Args:
        model: the model.
        parts: one for each kind of attention.
        configs: the configurations that were changed, with the implementation that each had.
        classes: the modules that were changed, with the class that each had.
        linears: the linear layers that were changed, by name.
        spread: how its tokens are spread over processes; None where they are not.
    """

    model: PreTrainedModel
    parts: tuple[Part, ...]
    configs: list[tuple[Any, str | None]] = field(default_factory=list, repr=False)
    classes: list[tuple[nn.Module, type]] = field(default_factory=list, repr=False)
    linears: dict[str, nn.Module] = field(default_factory=dict, repr=False)
    spread: Spread | None = None

    def undo(self) -> None:
        """Give the model back its own code; its parameters were never touched."""
        for config, name in self.configs:
            config._attn_implementation_internal = name
        for module, kind in self.classes:
            module.__class__ = kind
            module.__dict__.pop("headway_form", None)
        for module in self.linears.values():
            products.give_back(module)
        self.configs.clear()
        self.classes.clear()
        self.linears.clear()
        if self.spread is not None:
            self.spread.undo()

    def __str__(self) -> str:
        name = type(self.model).__name__
        rows = [name if self.spread is None else f"{name}, its {self.spread}"]
        for part in self.parts:
            rows.append(f"  {part}")
        if self.linears:
            many = f"{len(self.linears)} × linear layer"
            rows.append(f"  {many:<36} {products.SAID}")
        return "\n".join(rows)


def accelerate(
    model: PreTrainedModel,
    *,
    mesh: Mesh | None = None,
    how: str = "all-gather",
    zigzag: bool = True,
    quiet: bool = False,
) -> Accelerated:
    """Let a transformers model compute attention with headway's kernels, in place.

    Parameters, their names, hooks and files stay as they are; position biases stay tables, buckets and slopes instead
    of a number for every pair of tokens. What is not known is left alone and named. Where a model is asked for its
    attentions, its own code computes them. On AMD processors with AVX-512,
    where MKL runs float32 products at half speed, linear layers use oneDNN instead, see :mod:`headway.linear`.

    With a mesh, the tokens of its texts are spread over processes. Each of them calls the model with its own tokens and
    their positions, as :func:`headway.parallel.shard_tokens` gives them, and gets their logits; padding is position −1
    instead of an ``attention_mask``, and packed documents are named by ``documents=shard(ids, fill=-1)``. A decoder
    beside an encoder has its own: ``decoder_input_ids``, ``decoder_position_ids`` and ``decoder_documents``. There is
    no cache, and the loss is of labels that were shifted before they were spread. Gradients are shares, see
    :func:`headway.parallel.context_parallel`. A call that would be anything but exact is refused.

    Args:
        model: any model of transformers; on a version that was not tested it is refused.
        mesh: the processes that a text is spread over, see :class:`headway.parallel.Ranks`; default not at all.
        how: with a mesh, "all-gather", "ulysses" or "ring", see :func:`headway.parallel.context_parallel`.
        zigzag: with a mesh, as the tokens were spread.
        quiet: do not print what was done.

    Raises:
        HeadwayError: when it is no transformers model, transformers has another version than those tested, or nothing
            in the model can be accelerated; with a mesh, when not all of it can be spread exactly.

    >>> from transformers import T5Config, T5EncoderModel
    >>> small = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    >>> accelerate(T5EncoderModel(small), quiet=True).parts[0].position
    'T5 buckets, a table by distance'
    """
    if not isinstance(model, PreTrainedModel):
        raise HeadwayError(
            f"expected a model of transformers, got {type(model).__name__}: pass the model that DDP or peft wraps"
        )
    check_version()
    done = Accelerated(model, (), spread=None if mesh is None else spread_over(model, mesh, how, zigzag))
    parts = []
    for unit in _units(model):
        parts += _accelerate(unit, done)
    done.parts = tuple(parts)
    left_alone = dict.fromkeys(f"{part.kind}: {part.reason}" for part in parts if part.reason)
    if not done.configs or (mesh is not None and left_alone):
        done.undo()
        why = "; ".join(left_alone) or "it has no attention of transformers"
        found = "others" if done.configs else "none"
        raise HeadwayError(
            f"expected attentions that headway can compute, got {found} in {type(model).__name__}: {why}"
        )
    if done.spread is not None:
        done.spread.start(model)
    done.linears = products.take(model)
    if not quiet:
        print(done)
    return done


def check_version() -> None:
    """Refuse versions of transformers that were not tested.

    Raises:
        HeadwayError: saying which to install.
    """
    if transformers.__version__.split(".")[:2] != TESTED.split("."):
        raise HeadwayError(
            f"expected transformers {TESTED}, with which headway.hf is tested, got {transformers.__version__}: "
            f"pip install 'transformers=={TESTED}.*'"
        )


@dataclass(frozen=True)
class _Unit:
    """The attentions of a model that read the same configuration, and so are accelerated together or not at all."""

    config: Any
    attentions: list[tuple[str, nn.Module]]


def _units(model: nn.Module) -> list[_Unit]:
    units: dict[int, _Unit] = {}
    nearest: dict[str, Any] = {}  # the configuration of each module, or of the nearest one around it
    for name, module in model.named_modules():
        nearest[name] = getattr(module, "config", None) or nearest.get(name.rpartition(".")[0])
        kind: Any = type(module)
        if _looks_like_attention(kind):
            units.setdefault(id(nearest[name]), _Unit(nearest[name], [])).attentions.append((name, module))
    return list(units.values())


def attentions_of(model: nn.Module) -> list[tuple[Any, list[tuple[str, nn.Module]]]]:
    """The attentions of a model that :func:`accelerate` has changed, by the configuration that they read."""
    found = []
    for unit in _units(model):
        if str(getattr(unit.config, "_attn_implementation", "")).startswith("headway"):
            names = [name for name, _ in unit.attentions]
            outer = {name for name in names if any(x != name and (not name or x.startswith(f"{name}.")) for x in names)}
            inner = [(name, at) for name, at in unit.attentions if name not in outer]
            found.append((unit.config, inner))
    return found


def _accelerate(unit: _Unit, done: Accelerated) -> list[Part]:
    """Accelerate a unit, and say so for each kind of attention in it."""
    kinds: dict[Any, list[str]] = {}
    for name, module in unit.attentions:
        kinds.setdefault(type(module), []).append(name)
    reasons = {kind: _reason(kind, unit) for kind in kinds}
    shared = next((f"it shares a configuration with {kind.__name__}" for kind, why in reasons.items() if why), None)
    if shared is None:
        done.configs.append((unit.config, unit.config._attn_implementation))
        own = unit.config._attn_implementation
        asked = (getattr(family_of(kind), "implementation", {}).get(own) for kind in kinds)
        name = SPREAD if done.spread is not None else next(filter(None, asked), NAMES[own])
        unit.config._attn_implementation_internal = name
    parts = []
    for kind, names in kinds.items():
        family = family_of(kind)
        position = getattr(family, "position", "position outside the attention, as the model adds it")
        module = next(module for _, module in unit.attentions if type(module) is kind)
        reason = reasons[kind] or shared
        if reason is not None:
            parts.append(Part(kind.__name__, tuple(names), position, reason=reason))
            continue
        memory = getattr(family, "memory", lambda module, tokens: None)(module, TOKENS)
        like = getattr(family, "like", "none"), next(module.parameters()).device
        parts.append(Part(kind.__name__, tuple(names), position, like, memory))
    if shared is None:
        for _, module in unit.attentions:
            _swap(module, done)
    return parts


def _reason(kind: Any, unit: _Unit) -> str | None:
    """Why attentions of this class must be left alone; None when they can be accelerated."""
    family = family_of(kind)
    for module in (module for _, module in unit.attentions if type(module) is kind):
        why = None if family is None else getattr(family, "unfit", lambda module: None)(module)
        if why is not None:
            return str(why)
    if family is None and not _uses_interface(kind):
        return "it does not use transformers' attention interface, and no family of headway.hf knows it"
    if str(unit.config._attn_implementation).startswith("headway"):
        return "it is accelerated already: take that back with undo() first"
    if unit.config._attn_implementation not in NAMES:
        return f"its implementation is {unit.config._attn_implementation!r}, which headway does not replace"
    if not _uses_interface(kind):
        return None
    if getattr(unit.config, "output_attentions", False):
        return "its configuration asks for attentions"
    if _special(inspect.getmodule(kind)):
        return "its code makes masks of its own for SDPA"
    if family is None and re.search(r"isinstance\((attention_)?mask", inspect.getsource(kind)):
        return "its code changes masks"
    if formula(kind) is None:
        return "its formula is not one that headway knows"
    return None


def _swap(module: nn.Module, done: Accelerated) -> None:
    """Put the family's mixin before the module's class, and remember its formula."""
    kind: Any = type(module)
    mixin = family_of(kind)
    if _uses_interface(kind):
        module.__dict__["headway_form"] = formula(kind)
    if mixin is not None:
        module.__class__ = mixed(mixin, kind)
    done.classes.append((module, kind))


@cache
def mixed(mixin: Any, kind: Any) -> type:
    """A class of attention with its family's mixin before it; it keeps its name, and can be pickled."""
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__, "__reduce_ex__": _reduce})


def _reduce(self: nn.Module, protocol: Any) -> Any:
    mixin, kind = type(self).__bases__
    return _remake, (mixin, kind), self.__dict__


def _remake(mixin: type, kind: type) -> nn.Module:
    made: nn.Module = object.__new__(mixed(mixin, kind))
    return made


@cache
def _looks_like_attention(kind: Any) -> bool:
    if family_of(kind) is not None:
        return True
    if not kind.__module__.startswith("transformers.models.") or "ttention" not in kind.__name__:
        return False
    return _uses_interface(kind) or bool(re.search(r"softmax|scaled_dot", inspect.getsource(kind), re.IGNORECASE))


@cache
def _uses_interface(kind: Any) -> bool:
    return "get_interface" in _code(kind)


def _code(kind: type) -> tuple[str, ...]:
    """The names that a class's forward uses."""
    forward = next((vars(base)["forward"] for base in kind.__mro__ if "forward" in vars(base)), None)
    found: tuple[str, ...] = getattr(inspect.unwrap(forward), "__code__", _code.__code__).co_names if forward else ()
    return found


@cache
def _special(file: Any) -> bool:
    """Whether a model's file does something else for SDPA by name."""
    source = inspect.getsource(file)
    return re.search(r"_attn_implementation\s*(==|in)\s*\(?\s*(\"eager\", )?\"sdpa\"", source) is not None
