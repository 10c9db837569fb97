"""Give the attentions of a transformers model another position method, and take it back.

What the model had is removed where it enters: angles of rotations become zero, position biases are left out, position
vectors become zero. That nothing of it is left is not assumed but looked at, in a recorded pass of random tokens. The
new method acts where every attention comes by, on queries and keys before position: those of a cache too, which are
therefore kept as projected and given their position at every call.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from headway._version import __version__
from headway.hf.accelerate import Accelerated, accelerate
from headway.hf.families.alibi import MPT
from headway.hf.families.deberta import take_over_deberta
from headway.hf.inputs import random_inputs
from headway.hf.interface import NAMES, headway_attention
from headway.hf.lazy_mask import LazyMask, headway_mask
from headway.hf.placed import Placed
from headway.hf.stack_start import Start, leave_out_vectors
from headway.hf.watching import PLACED
from headway.inspect.record import Layer, Trace, recorded
from headway.output import explained, write_output
from headway.positions import Position
from headway.positions.deberta import Deberta
from headway.positions.registry import as_method, parse
from headway.saving import fill, write_weights
from headway.schema import Anything, Named, Record, Whole, check
from headway.shapes import HeadShape, HeadwayError, brief
from headway.strict_json import parse_json

FILE, WEIGHTS = "headway.json", "headway.safetensors"
_METHOD = Record({"method": Anything(), "parameters": Whole(0)})
_SAVED = Record({"positions": Named(_METHOD)}, {"headway": Anything()})
METHODS = "headway_positions"
"""The model's part that holds the methods' parameters."""
TYPES = {"global": "full_attention", "local": "sliding_attention"}
"""Short names of types of layers."""
IMPLEMENTATIONS = {NAMES["sdpa"]: "headway_swapped", NAMES["eager"]: "headway_swapped", MPT: "headway_swapped_mpt"}

Methods = str | Position | Mapping[str, "str | Position"] | Sequence["str | Position"]


def _mask(*args: Any, **kwargs: Any) -> Any:
    """A mask that says where every token is, for single queries too."""
    never = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    made = headway_mask(*args, **{**kwargs, **never, "always": True})
    if not isinstance(made, LazyMask):
        raise HeadwayError(
            "expected a mask of a kind that says where tokens are, because the position method was swapped, got one "
            "that headway does not read: pass a mask of one value per token"
        )
    return made


for _known in set(IMPLEMENTATIONS.values()):
    AttentionInterface.register(_known, headway_attention)
    AttentionMaskInterface.register(_known, _mask)


@dataclass
class Swapped:
    """What :func:`swap_position` did to a model; made for printing.

    Args:
        model: the model.
        methods: for each attention's name, its method.
        had: for each, what the model itself has there.
    """

    model: PreTrainedModel
    methods: dict[str, Position]
    had: dict[str, str]
    _stack: contextlib.ExitStack = field(repr=False, default_factory=contextlib.ExitStack)

    def undo(self) -> None:
        """Give the model back its own positions; its own parameters were never touched."""
        self._stack.close()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the model into a folder, and its methods beside it: headway.json and headway.safetensors.

        The model's own files are those of ``save_pretrained``; plain transformers opens them, with the model's own
        positions, and :func:`headway.hf.load` with these methods.

        Args:
            folder: where; made if it is not there.
        """
        path = Path(folder)
        with _left_out(self.model):
            self.model.save_pretrained(path)
        numbers: dict[int, int] = {}
        methods = {
            name: {"method": method.spec(), "parameters": numbers.setdefault(id(method), len(numbers))}
            for name, method in self.methods.items()
        }
        write_weights(getattr(self.model, METHODS), path / WEIGHTS)
        held = {"headway": __version__, "positions": methods}
        write_output(path / FILE, json.dumps(held, indent=1, ensure_ascii=False) + "\n")
        return path

    def __str__(self) -> str:
        rows: dict[str, list[str]] = {}
        for name, method in self.methods.items():
            rows.setdefault(f"{self.had[name]} → {method.spec()}", []).append(name)
        lines = [
            f"  {len(names)} × {change}: {names[0]}{' …' if len(names) > 1 else ''}" for change, names in rows.items()
        ]
        return "\n".join([type(self.model).__name__, *lines])


def restore(model: PreTrainedModel, folder: Path) -> Swapped:
    """The methods that :meth:`Swapped.save` wrote, in a model of the same folder.

    Raises:
        HeadwayError: when the files are damaged, or of another model.
    """
    file = folder / FILE
    with explained(f"reading {file}"):
        held = parse_json(file.read_bytes(), str(file))
    check(held, _SAVED, str(file))
    seen = seen_in(model)
    if held["positions"].keys() != seen.keys():
        raise HeadwayError(f"expected a method for each attention of the model in {file}, got those of another model")
    made: dict[tuple[str, int], Position] = {}
    chosen = {}
    for name in seen:
        spec, number = held["positions"][name]["method"], held["positions"][name]["parameters"]
        if not isinstance(spec, str):
            raise HeadwayError(f"expected the text of a method for {name} in {file}, got {brief(spec)}")
        if (spec, number) not in made:
            made[spec, number] = parse(spec)
        chosen[name] = made[spec, number]
    swapped = _swapped(model, chosen, seen)
    try:
        fill(getattr(model, METHODS), folder, WEIGHTS)
    except HeadwayError:
        swapped.undo()
        raise
    return swapped


def swap_position(model: PreTrainedModel, method: Methods, *, quiet: bool = False) -> Swapped:
    """Replace the position method of a model's attentions by one of headway's, in place.

    The model's own parameters, names and files stay as they are. Parameters of the new method belong to the model, as
    ``model.headway_positions``, so that optimisers find them, and ``state_dict`` and a trainer's checkpoints hold them;
    a state dict without them is refused while they are trained. :meth:`Swapped.save` writes them beside the model, and
    what they are, for :func:`headway.hf.load`. A method that the
    model has already, with the same settings, takes over the model's own values. Attention to another sequence (cross
    attention) is left alone.

    Args:
        model: a model of transformers that reads text, or Whisper.
        method: a method or its text, e.g. "alibi", for all layers; for each type of layer, e.g. ``{"global": "none",
            "local": "rotary"}``, the types being those of the configuration's ``layer_types`` ("global" and "local"
            are short for full and sliding attention), or "encoder" and "decoder"; or one for each layer.
        quiet: do not print what was done.

    Returns:
        What was done; ``undo()`` takes it back.

    Raises:
        HeadwayError: when the model cannot be accelerated, its own position cannot be removed, or the methods do not
            fit its layers.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
    >>> done = swap_position(model, "alibi")
    LlamaForCausalLM
      2 × rotary → alibi: model.layers.0.self_attn …
    >>> done.undo()
    """
    if hasattr(model, METHODS):
        raise HeadwayError(
            "expected a model with its own positions, got one that was swapped before: undo() that first"
        )
    if model.main_input_name != "input_ids" and model.config.model_type != "whisper":
        raise HeadwayError(f"expected a model that reads text, or Whisper, got {type(model).__name__}")
    seen = seen_in(model)
    swapped = _swapped(model, _chosen(model, method, seen), seen)
    if not quiet:
        print(swapped)
    return swapped


def _swapped(
    model: PreTrainedModel, chosen: Mapping[str, Position], seen: Mapping[str, tuple[Layer, Position]]
) -> Swapped:
    """Put a method in place of each attention's own."""
    with contextlib.ExitStack() as stack:
        done = accelerate(model, quiet=True)
        stack.callback(done.undo)
        _name(done)
        methods, layers = _attached(model, chosen, seen), {}
        for name, module in _modules(model, seen).items():
            if methods[name] is seen[name][1]:
                continue
            layers[name] = Placed(name, methods[name], seen[name][0])
            module.__dict__[PLACED] = layers[name]
            stack.callback(module.__dict__.pop, PLACED)
            handle = module.register_forward_pre_hook(layers[name].enter, with_kwargs=True)
            stack.callback(handle.remove)
        leave_out_vectors(model, stack)
        for part, names in _stacks(model, methods):
            placed = [layers[name] for name in names if name in layers]
            Start([methods[name] for name in names], placed).register(part, stack)
        _register(model, methods, stack)
        _check_removed(model, layers)
        had = {name: position.spec() for name, (_, position) in seen.items()}
        return Swapped(model, methods, had, stack.pop_all())


def _sample(model: PreTrainedModel) -> Trace:
    """A recorded pass of a few random tokens."""
    return recorded(model, **random_inputs(model, 9, rows=1))


def seen_in(model: PreTrainedModel) -> dict[str, tuple[Layer, Position]]:
    """A recorded layer of each attention, and what position it has; without cross-attention."""
    found = {}
    for layer in _sample(model):
        if not layer.crosses:
            found[layer.name] = (layer, layer.attention.position)
    if not found:
        raise HeadwayError(f"expected attentions whose tokens attend to themselves, got none in {type(model).__name__}")
    return found


def _chosen(model: PreTrainedModel, method: Methods, seen: Mapping[str, Any]) -> dict[str, Position]:
    """The method of each attention, by its name; equal texts are one object."""
    made: dict[str, Position] = {}

    def one(given: Any) -> Position:
        if isinstance(given, Position):
            if given.shape is not None:
                raise HeadwayError(
                    f"expected a method without parameters, which are created for the model's sizes, got "
                    f"{given.spec()} that has some: pass .fresh()"
                )
            return given
        return made.setdefault(str(given), as_method(given))

    names = list(seen)
    if isinstance(method, str | Position):
        return dict.fromkeys(names, one(method))
    if isinstance(method, Mapping):
        types = _types(model, names)
        asked = {TYPES.get(key, key): value for key, value in method.items()}
        unknown = asked.keys() - set(types.values())
        missing = set(types.values()) - asked.keys()
        if unknown or missing:
            raise HeadwayError(
                f"expected a method for each type of layer ({', '.join(sorted(set(types.values())))}), got "
                f"{brief(', '.join(map(str, method)))}"
            )
        return {name: one(asked[types[name]]) for name in names}
    if not isinstance(method, Sequence) or len(method) != len(names):
        got = len(method) if isinstance(method, Sequence) else brief(method)
        raise HeadwayError(f"expected a method, a dictionary by type of layer, or {len(names)} methods, got {got}")
    return {name: one(given) for name, given in zip(names, method, strict=True)}


def _types(model: PreTrainedModel, names: Sequence[str]) -> dict[str, str]:
    """The type of each layer: "encoder" or "decoder" of a model with both, otherwise as its configuration says."""
    if model.config.is_encoder_decoder:
        return {name: "decoder" if "decoder" in name.split(".") else "encoder" for name in names}
    config: Any = model.config.get_text_config()
    alike = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    types = getattr(config, "layer_types", None) or [alike] * config.num_hidden_layers
    return {name: types[int(re.findall(r"\d+", name)[0])] for name in names}


def _modules(model: nn.Module, names: Mapping[str, Any]) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    return {name: modules[name] for name in names}


def _name(done: Accelerated) -> None:
    for config, _ in done.configs:
        name = config._attn_implementation
        config._attn_implementation_internal = IMPLEMENTATIONS.get(name, name)


def _attached(
    model: PreTrainedModel, chosen: Mapping[str, Position], seen: Mapping[str, tuple[Layer, Position]]
) -> dict[str, Position]:
    """Methods with parameters for the shapes of their layers: shared by layers, unless the method is one per layer;
    a method that the model has takes over its values.
    """
    made: dict[Any, Position] = {}
    found = {}
    for name, method in chosen.items():
        layer, own = seen[name]
        shape, first = layer.attention.shape, layer.attention.content_dim
        module = layer.attention.__dict__["module"]
        if first:
            shape = HeadShape.of(shape.dim, shape.heads, 1, shape.head_dim - first)
        if method.embeds:  # ALBERT's embedding is narrower than its layers
            shape = replace(shape, dim=getattr(model.get_input_embeddings(), "embedding_dim", shape.dim))
        same = own.spec() == method.spec()
        if same and not method.embeds and not any(True for _ in own.parameters()):
            found[name] = own  # the model's own code does as well
            continue
        key = (id(method), shape, name if method.per_layer else id(own) if same else 0)
        if key not in made:
            fresh = method.fresh().attach(shape)
            if same and own.shape == fresh.shape:
                fresh.load_state_dict(own.state_dict())
            elif isinstance(fresh, Deberta):
                take_over_deberta(fresh, module, model)
            made[key] = fresh.to(next(module.parameters()))
        found[name] = made[key]
    return found


def _stacks(model: PreTrainedModel, methods: Mapping[str, Position]) -> list[tuple[PreTrainedModel, list[str]]]:
    """The parts of a model that embed tokens, each with the names of its attentions."""
    if not model.config.is_encoder_decoder:
        return [(model.base_model, list(methods))]  # type: ignore[list-item]
    types = _types(model, list(methods))
    whole: Any = model
    both = {"encoder": whole.get_encoder(), "decoder": whole.get_decoder()}
    return [(part, [name for name in methods if types[name] == kind]) for kind, part in both.items()]


def _register(model: Any, methods: Mapping[str, Position], stack: contextlib.ExitStack) -> None:
    """The methods' parameters as a part of the model."""
    unique = {id(method): (name, method) for name, method in reversed(list(methods.items()))}
    part = nn.ModuleDict({name.replace(".", "_"): method for name, method in unique.values()})
    part.register_load_state_dict_pre_hook(_complete)
    model.add_module(METHODS, part)
    stack.callback(delattr, model, METHODS)


def _complete(part: nn.Module, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
    """Refuse a state dict that would leave trained methods as they are, which trainers load without a word."""
    trained = [name for name, one in part.named_parameters() if one.requires_grad]
    lost = [name for name in trained if prefix + name not in state]
    if lost:
        raise HeadwayError(
            f"expected the parameters of the swapped position methods in the state dict, got no {prefix}{lost[0]}: "
            f"load a state dict of the swapped model; or load the model's own weights before swap_position"
        )


@contextlib.contextmanager
def _left_out(model: Any) -> Iterator[None]:
    """Let ``save_pretrained`` write the model's own weights alone."""
    before = model._keys_to_ignore_on_save
    own = (f"{METHODS}.{name}" for name in getattr(model, METHODS).state_dict())
    model._keys_to_ignore_on_save = {*(before or ()), *own}
    try:
        yield
    finally:
        model._keys_to_ignore_on_save = before


def _check_removed(model: PreTrainedModel, layers: Mapping[str, Placed]) -> None:
    """See that nothing of the model's own position is left: with no method in place, nothing but masks is there."""
    for method in layers.values():
        method.off = True
    try:
        trace = _sample(model)
    finally:
        for method in layers.values():
            method.off = False
    for layer in trace:
        turned = layer.name in layers and not torch.equal(layer.q, layer.call.q)
        if turned or (layer.name in layers and layer.call.terms):
            raise HeadwayError(
                f"expected a model whose own position method can be switched off, got {layer.name}, where it still acts"
            )
