"""Record the attentions of a transformers model, for :func:`headway.inspect.record`.

While the block runs, headway's attention computes the model (see :func:`headway.hf.accelerate`), and what every call is
given is kept: queries, keys and values, masks and position biases as terms. Where a model rotates, each attention is
called once more with angles of zero, up to the point where it attends: that gives queries and keys before position,
whatever the layout of the rotation.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headway.backends.base import Call
from headway.functional import check
from headway.hf.accelerate import accelerate, attentions_of
from headway.hf.calls import CACHES, input_of, named
from headway.hf.embedded import Embedded, is_norm, same_tensor
from headway.hf.opened import SAMPLE, Columns, Found, Made, Opened, find, is_projection
from headway.hf.positions_of import Own, PositionsOf, as_method
from headway.hf.watching import PLACED, looking
from headway.inspect.record import Latents, Layer, Trace, detached, differ, wide, wide_call
from headway.positions import parse
from headway.shapes import HeadShape, HeadwayError


class _SeenEnoughError(Exception):
    """Ends an attention's second call once its queries and keys are there."""


@dataclass
class _Frame:
    """One call of an attention that is going on.

    Args:
        x: its input.
        normed: whether a norm made it.
        call: what attention was given.
        plain: queries and keys before position.
        made: what its projections made, in order.
        norms: likewise of its norms.
    """

    x: Tensor
    normed: bool
    call: Call | None = None
    plain: tuple[Tensor, Tensor] | None = None
    made: list[Made] = field(default_factory=list)
    norms: list[Made] = field(default_factory=list)
    again: bool = False


@contextlib.contextmanager
def recording(model: PreTrainedModel, trace: Trace) -> Iterator[None]:
    """Append the attentions of every pass of the model to the trace while the block runs.

    Args:
        model: any model that :func:`headway.hf.accelerate` takes, or has taken.
        trace: gets one layer for each call of an attention.

    Raises:
        HeadwayError: when none of its attentions can be recorded.
    """
    with contextlib.ExitStack() as stack:
        if not attentions_of(model):
            stack.callback(accelerate(model, quiet=True).undo)
        recorder = _Recorder(model, trace)
        stack.callback(recorder.remove)
        recorder.watch()
        stack.enter_context(looking(recorder.look))
        yield


class _Recorder:
    """Watches a model, and makes a layer of each call of an attention."""

    def __init__(self, model: PreTrainedModel, trace: Trace) -> None:
        self.model, self.trace = model, trace
        self.opened: dict[nn.Module, Opened] = {}
        self.frames: dict[nn.Module, _Frame] = {}
        self.unfinished: list[tuple[nn.Module, Opened, Layer]] = []
        self.normed: Tensor | None = None
        self.handles: list[Any] = []
        self.embedded = Embedded(model)
        self.positions = PositionsOf(model, self.embedded)

    def watch(self) -> None:
        """Hook what has to be seen."""
        modules = dict(self.model.named_modules())
        attentions = {name: module for _, found in attentions_of(self.model) for name, module in found}
        for name, module in attentions.items():
            parent = modules[name.rpartition(".")[0]]
            self._hook(module.register_forward_pre_hook(self._starts, with_kwargs=True, prepend=True))
            self._hook(module.register_forward_hook(self._ends(name, parent), with_kwargs=True))
            for inner in module.modules():
                if is_projection(inner) or is_norm(inner):
                    self._hook(inner.register_forward_hook(self._makes(module)))
            inside = set(module.modules())
            for other in parent.modules():
                if is_projection(other) and other not in inside:
                    self._hook(other.register_forward_hook(self._projects_out(parent)))
        self.handles += self.embedded.watch()
        for module in modules.values():
            if is_norm(module):
                self._hook(module.register_forward_hook(self._norms))
        if self.model.main_input_name == "input_ids":
            self._hook(self.model.register_forward_pre_hook(self._tokens, with_kwargs=True))

    def _hook(self, handle: Any) -> None:
        self.handles.append(handle)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    # --- what happens in a pass -----------------------------------------------------------------------------------

    def _tokens(self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        ids = given.get("input_ids", args[0] if args else None)
        if isinstance(ids, Tensor):
            self.trace.tokens.append(ids.detach())

    def _norms(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if isinstance(out, Tensor):
            self.normed = out

    def _starts(self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        if module not in self.frames:
            x = input_of(args, given)
            self.frames[module] = _Frame(x.detach(), self.normed is not None and same_tensor(x, self.normed))

    def _makes(self, attention: nn.Module) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            frame = self.frames.get(attention)
            if frame is None or frame.again or not isinstance(out, Tensor):
                return
            x = args[0].detach()
            if is_projection(module) and x.ndim == 4 and x.shape[1] == 1:  # a head that all share
                x, out = x.squeeze(1), out.squeeze(1)
            seen = Made(module, x, out.detach())
            (frame.made if is_projection(module) else frame.norms).append(seen)

        return hook

    def look(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, given: dict[str, Any]) -> None:
        """What attention is given; in the second call, queries and keys alone."""
        frame = self.frames.get(module)
        if frame is None:
            return
        if frame.again:
            frame.plain = q.detach(), k.detach()
            raise _SeenEnoughError
        q, k, v = (x.detach() for x in (q, k, v))
        terms = [detached(term) for term in given.get("terms", ())]
        names = ("mask", "q_pos", "k_pos", "scale", "softcap", "sinks")
        mask, q_pos, k_pos, scale, softcap, sinks = (detached(given.get(name)) for name in names)
        way = given.get("normalise", "softmax")
        frame.call = wide_call(check(q, k, v, mask, terms, q_pos, k_pos, scale, way, softcap, sinks))

    def _ends(self, name: str, parent: nn.Module) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any], out: Any) -> None:
            frame = self.frames.get(module)
            if frame is None or frame.again:
                return
            try:
                if frame.call is None:
                    raise HeadwayError(
                        f"expected {name} to be computed here while it is recorded, got its own code at work: leave "
                        f"output_attentions out, Layer.weights has them"
                    )
                frame.plain = self._unrotated(module, frame, args, given)
                self._finish(name, module, parent, frame)
            finally:
                self.frames.pop(module, None)

        return hook

    def _unrotated(
        self, module: Any, frame: _Frame, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[Tensor, Tensor] | None:
        """Queries and keys before rotation: of the same call with angles of zero, and without a cache."""
        placed = module.__dict__.get(PLACED)
        if placed is not None:
            found: tuple[Tensor, Tensor] = placed.plain
            return found
        again = named(module, args, given)
        angles = again.get("position_embeddings")
        if angles is None:
            return None
        frame.again = True
        again["position_embeddings"] = zero_angles(type(module), angles)
        again |= dict.fromkeys(CACHES & again.keys())
        with contextlib.suppress(_SeenEnoughError), torch.no_grad():
            module.forward(**again)
        frame.again = False
        return frame.plain

    def _projects_out(self, parent: nn.Module) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            for owner, opened, layer in self.unfinished:
                if owner is parent:
                    _project_out(opened, layer, [Made(module, args[0].detach(), out.detach())])

        return hook

    # --- a layer of the trace ----------------------------------------------------------------------------------------

    def _finish(self, name: str, module: nn.Module, parent: nn.Module, frame: _Frame) -> None:
        call = frame.call
        assert call is not None
        plain = None if frame.plain is None else tuple(wide(x) for x in frame.plain)
        q, k = (call.q, call.k) if plain is None else plain
        known = k.shape[2] == call.k.shape[2]
        where = _sources(module, frame, q, k, call.v)
        order = _order(where["q"], where["k"], q.shape[-1])
        if order is not None:  # pairs of a rotation, put side by side: as the projections have them
            q, k, call = q[..., order], k[..., order], replace(call, q=call.q[..., order], k=call.k[..., order])
        if where["q"] is not None and where["q"].factor != 1:  # scaled before position: one scale, as in the formula
            factor = where["q"].factor
            q, call = q / factor, replace(call, q=call.q / factor, scale=call.scale * factor)
        made = {which: found.made for which, found in where.items() if found is not None}
        x = made["q"].x if "q" in made else frame.x
        source = made["k"].x if "k" in made else x
        latents = None
        found_k = where["k"]
        if found_k is not None and found_k.shared is not None and found_k.shared_columns is not None:
            shared = found_k.shared_columns
            key = wide(found_k.shared.out)[..., shared if order is None else shared.sort().values]
            latents, x = Latents(wide(x), wide(source), key), frame.x
            source = x
        crosses = differ(source, x)
        opened = self.opened.get(module)
        if opened is None:
            own = 0 if found_k is None or found_k.shared is None else found_k.columns.shape[1]
            shape = HeadShape.of(frame.x.shape[-1], call.q.shape[1], call.k.shape[1], call.q.shape[3])
            place = HeadShape.of(shape.dim, shape.heads, 1, shape.head_dim - own) if own else shape
            seen = (q, k if known else None, own)
            position = parse("none").attach(place) if crosses else self.positions.of(name, module, place, call, seen)
            opened = Opened(name, module, shape, position, call.scale, own)
            opened.softcap, opened.order = call.softcap, order
            for which, found in where.items():
                if found is not None:
                    columns = found.columns if order is None else found.columns.sort(-1).values
                    opened.parts[which] = Columns(found.made.module, columns.flatten())
                    if found.norm is not None:
                        opened.norms[which] = found.norm
            self.opened[module] = opened
        q, call = as_method(opened.position, q, call)
        call = replace(call, v=opened.position.turn_values(call.v, call.k_pos))
        stream = None if crosses else self.embedded.stream(module, x)
        starts = stream is None and not crosses and set(re.findall(r"\d+", name)) <= {"0"}
        starts = starts and not isinstance(opened.position, Own)
        streams = stream, stream
        layer = Layer(name, opened, call, x, q, k if known else None, source, *streams, latents, frame.normed, starts)
        if "o" not in opened.parts:
            _project_out(opened, layer, frame.made)
            if "o" not in opened.parts:
                self.unfinished = [one for one in self.unfinished if one[0] is not parent]
                self.unfinished.append((parent, opened, layer))
        self.trace.layers.append(layer)


def zero_angles(kind: type, angles: Any) -> Any:
    """cos and sin of zero, in the form of these, which are those of an attention of this class."""
    if isinstance(angles, tuple):
        first, second = angles
        if _takes_sin_first(kind):
            return torch.zeros_like(first), torch.ones_like(second)
        return torch.ones_like(first), torch.zeros_like(second)
    if angles.is_complex():
        return torch.ones_like(angles)
    sin, cos = angles.chunk(2, -1)  # GPT-J's, side by side
    return torch.cat((torch.zeros_like(sin), torch.ones_like(cos)), -1)


@cache
def _takes_sin_first(kind: type) -> bool:
    """Whether an attention takes sin and cos, as GPT-J's does, instead of cos and sin; values do not tell it."""
    own = next(base for base in kind.__mro__ if "forward" in vars(base) and not base.__module__.startswith("headway."))
    return "sin, cos = position_embeddings" in inspect.getsource(own)


def _sources(module: Any, frame: _Frame, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Found | None]:
    """Where queries, keys and values come from."""
    config = getattr(module, "config", None)
    clip = getattr(module, "clip_qkv", None) or getattr(config, "clip_qkv", None)
    root = q.shape[-1] ** -0.5
    given = (getattr(module, name, None) for name in ("scaling", "scale", "scale_attn", "inv_norm_factor"))
    many = (1 / float(torch.tensor(parts * q.shape[-1], dtype=torch.float32).sqrt()) for parts in (2, 3))  # DeBERTa's
    factors = (1.0, root, *(x for x in given if isinstance(x, float)), *many)
    found: dict[str, Found | None] = {}
    for which, x in (("q", q), ("k", k), ("v", v)):
        sample = x[0, :, :SAMPLE].to(frame.made[0].out.dtype) if frame.made else x[0, :, :SAMPLE]
        allowed = factors if which == "q" else (1.0,)
        found[which] = find(sample, frame.made, frame.norms, allowed, clip)
    return found


def _order(q: Found | None, k: Found | None, width: int) -> Tensor | None:
    """The order of a head's dimensions in its projections, where the model changes it; None where it does not."""
    if q is None or k is None:
        return None
    of_keys = k.columns[0].argsort()
    if k.shared_columns is not None:
        of_keys = torch.cat((of_keys, k.shared_columns.argsort() + len(of_keys)))
    same = torch.equal(q.columns[0].argsort(), of_keys)
    return of_keys if same and not torch.equal(of_keys, torch.arange(width)) else None


def _project_out(opened: Opened, layer: Layer, made: list[Made]) -> None:
    """Set W_O: the projection whose input is what the heads made."""
    width = layer.heads * layer.call.v.shape[3]
    fitting = [one for one in made if one.x.shape[-1] == width and one.x.ndim == 3]
    if not fitting or "o" in opened.parts:
        return
    real = layer.call.q_pos[0] >= 0
    first = int(real.long().argmax())
    few = slice(first, first + 4)
    heads = layer.output(few)[0].transpose(0, 1).flatten(1)
    for one in fitting:
        x = wide(one.x[0, few])
        if x.shape != heads.shape:
            continue
        near = 0.02 if one.x.dtype in (torch.bfloat16, torch.float16) else 1e-4
        if bool(((x - heads).abs() <= near * heads.abs().max()).all()):
            opened.parts["o"] = Columns(one.module, torch.arange(one.out.shape[-1]))
            return
