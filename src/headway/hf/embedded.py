"""Position vectors that a model adds to its embedding, found by leaving them out.

Each stack of layers is run a second time without them, up to its first attention. What its input lacks then is
position, whatever was added where: rows that begin at an offset, the sum of several tables.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from headway.hf.accelerate import attentions_of
from headway.hf.calls import input_of
from headway.hf.opened import Made, by_column, is_projection
from headway.inspect.record import Stream, wide
from headway.inspect.split import through_norm

NAMES = re.compile(r"wpe|(absolute_|learned_)?pos(ition)?(s|al)?_?(emb|enc)\w*|embed_pos\w*|embeddings?_pos\w*")
"""What models call their table of position vectors."""
KEPT = 4
"""How many norms are remembered, to find the one whose output an attention is given."""


class _AtAttentionError(Exception):
    """Ends the run without position vectors."""


@dataclass
class _Root:
    """A stack of layers with position vectors.

    Args:
        module: it.
        owners: modules and parameters that are or make the vectors, each with the module that has it.
        attentions: those in it.
        made: what norms and projections made before its first attention.
        without: the same of the run without position vectors.
        x: what the first attention was given in that run.
        norms: the last norms that ran.
        start: tokens and position vectors, and what of the vectors reaches the first attention.
    """

    module: nn.Module
    owners: list[tuple[nn.Module, str]]
    attentions: set[nn.Module]
    made: list[Made] = field(default_factory=list)
    without: list[Made] = field(default_factory=list)
    x: Tensor | None = None
    norms: list[Made] = field(default_factory=list)
    start: tuple[Tensor, Tensor, Tensor] | None = None
    running: str = ""


class Embedded:
    """Follows the residual streams of a model's stacks that start with position vectors.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.roots: list[_Root] = []
        attentions = {name: module for _, found in attentions_of(model) for name, module in found}
        for name, owner in model.named_modules():
            if any(name.startswith(f"{other}.") or name == other for other in attentions):
                continue
            for part in _tables(owner):
                while not any(other.startswith(f"{name}." if name else "") for other in attentions) and name:
                    name = name.rpartition(".")[0]
                inside = {other: at for other, at in attentions.items() if other.startswith(f"{name}." if name else "")}
                root = next((root for root in self.roots if root.module is model.get_submodule(name)), None)
                if root is None:
                    root = _Root(model.get_submodule(name), [], set(inside.values()))
                    self.roots.append(root)
                root.owners.append((owner, part))
        self.roots.sort(key=lambda root: len(root.attentions))  # the innermost first

    def watch(self) -> list[Any]:
        """Hooks, to be removed."""
        handles: list[Any] = []
        for root in self.roots:
            handles.append(root.module.register_forward_pre_hook(_begin(root), with_kwargs=True))
            for attention in root.attentions:
                handles.append(attention.register_forward_pre_hook(_reach(root), with_kwargs=True, prepend=True))
            for module in root.module.modules():
                if is_projection(module) or is_norm(module):
                    handles.append(module.register_forward_hook(_follow(root)))
        return handles

    def root_of(self, attention: nn.Module) -> _Root | None:
        """The stack with position vectors that an attention is in; None where it is in none."""
        return next((root for root in self.roots if attention in root.attentions), None)

    def stream(self, attention: nn.Module, x: Tensor) -> Stream | None:
        """The parts of an attention's input; None where no position vectors were added."""
        root = self.root_of(attention)
        if root is None or root.x is None:
            return None
        norm = next((made for made in reversed(root.norms) if same_tensor(made.out, x)), None)
        known = norm if norm is not None and isinstance(norm.module, nn.LayerNorm | nn.RMSNorm) else None
        if root.start is None:
            root.start = _started(root, x)
            if root.start is None:
                return None
            tokens, position, part = root.start
            if known is not None and same_tensor(root.made[-1].out, x):
                return Stream(tokens, position, known.x, known.module, True)  # type: ignore[arg-type]
            return Stream(wide(x) - part, part, x, None, True)
        tokens, position, part = root.start
        if part.shape != x.shape:  # later stages of an image have fewer and wider tokens
            return None
        if known is None or known.x.shape != tokens.shape:
            return Stream(wide(x) - part, part, x, None, False)
        return Stream(tokens, position, known.x, known.module, False)  # type: ignore[arg-type]


def _tables(owner: nn.Module) -> Iterator[str]:
    for name, module in owner.named_children():
        kind = type(module).__name__
        if NAMES.fullmatch(name) and not re.search("Rotary|Conv|Rel", kind):
            yield name
    for name, _ in owner.named_parameters(recurse=False):
        if NAMES.fullmatch(name):
            yield name


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm, by the name of its class."""
    return "norm" in type(module).__name__.lower()


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one in memory."""
    return a.shape == b.shape and a.data_ptr() == b.data_ptr()


def _begin(root: _Root) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        if root.running == "without":
            return
        root.made, root.without, root.norms, root.x, root.start = [], [], [], None, None
        root.running = "without"
        with contextlib.suppress(_AtAttentionError), _left_out(root), torch.no_grad(), torch.random.fork_rng():
            module.forward(*args, **given)
        root.running = "with"

    return hook


@contextlib.contextmanager
def _left_out(root: _Root) -> Iterator[None]:
    """No position vectors."""
    with contextlib.ExitStack() as stack:
        for owner, name in root.owners:
            part = getattr(owner, name)
            if isinstance(part, nn.Parameter):
                owner._parameters[name] = nn.Parameter(torch.zeros_like(part), requires_grad=False)
                stack.callback(owner._parameters.__setitem__, name, part)
            else:
                stack.callback(part.register_forward_hook(nothing).remove)
        yield


def nothing(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
    """A hook that makes what a module returns zero."""
    return torch.zeros_like(out) if isinstance(out, Tensor) else out


def _reach(root: _Root) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        if root.running == "without":
            root.x = input_of(args, given).detach()
            raise _AtAttentionError
        root.running = ""

    return hook


def _follow(root: _Root) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if not isinstance(out, Tensor) or not args:
            return
        made = Made(module, args[0].detach(), out.detach())
        if root.running:
            (root.without if root.running == "without" else root.made).append(made)
        if is_norm(module):
            root.norms = [*root.norms[1 - KEPT :], made]

    return hook


def _started(root: _Root, x: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """The embedding, the vectors added to it, and what they contribute to the input of the first attention; None where
    that went through a norm of another kind than LayerNorm and RMSNorm, or has other widths.
    """
    chain: list[int] = []
    at = x
    while True:
        found = next((i for i in range(len(root.made) - 1, -1, -1) if same_tensor(root.made[i].out, at)), None)
        if found is None or found in chain:
            break
        chain.append(found)
        at = root.made[found].x
    assert root.x is not None
    tokens = wide(root.without[chain[-1]].x if chain else root.x)
    position = wide(at) - tokens
    part = position
    for number in reversed(chain):
        made: Any = root.made[number]
        if is_projection(made.module):
            part = part @ wide(by_column(made.module, made.module.weight.detach())).T
        elif not isinstance(made.module, nn.LayerNorm | nn.RMSNorm):
            return None
        else:
            part = through_norm(Stream(tokens, position, made.x, made.module, True), part)
    return (tokens, position, part) if part.shape == x.shape else None
