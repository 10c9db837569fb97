"""One token per sequence in a layer with a cache: what its steps share is prepared once.

A step of decoding computes little, so that reading options and laying out arguments anew would take most of its time.
Where the position method is steady, see :mod:`headway.positions.steady`, and nothing watches what the layer does, a
step is one call of C++; all others go the way of any call, with the same result.
"""

from __future__ import annotations

from operator import is_not
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

from headway.attending import Attending, Core, normed
from headway.backends.base import transforms
from headway.backends.operators import are_seen
from headway.cache import KVCache, Tokens
from headway.functional import check
from headway.integers import FAR
from headway.masks import reach
from headway.positions.steady import is_steady, says

if TYPE_CHECKING:
    from headway.backends.native.step import Step

_SAME = ("_attend", "_keys_and_values", "marked", "placed", "prepared", "restricted", "rotated", "weighed")


class _Prepared(NamedTuple):
    """Steps over one cache, or None where they cannot be prepared; and what they were prepared for."""

    steps: Step | None
    options: tuple[Any, ...]
    learned: tuple[tuple[dict[str, Any], str, Tensor, int], ...]

    def serves(self, options: tuple[Any, ...]) -> bool:
        """Whether nothing has changed since."""
        for held, name, x, version in self.learned:
            if held.get(name) is not x or x._version != version:
                return False
        return not any(map(is_not, options, self.options))


_PREPARED: WeakKeyDictionary[KVCache, _Prepared] = WeakKeyDictionary()


def step(layer: Any, x: Tensor, pos: Any, cache: KVCache) -> Tensor | None:
    """The heads of the tokens x, (B, H, 1, D_v), after they joined the cache; None, with nothing done, where they go
    another way.

    Args:
        layer: :class:`headway.Attention`, attending from x to itself without a mask or terms of this call.
        x: (B, 1, dim).
        pos: positions of x, or None.
        cache: the layer's.
    """
    if torch.is_grad_enabled() or are_seen() or transforms() or not isinstance(cache, KVCache):
        return None
    store = cache.writable()
    if store is None or not _fits(layer, x, pos, store[0]):
        return None
    prepared = _prepared(layer, cache, store)
    if prepared.steps is None:
        return None
    made = layer._modules
    q, k, v = made["q"](x), made["k"](x), made["v"](x)
    if layer.qk_norm:
        heads, kv_heads = layer.shape.heads, layer.shape.kv_heads
        q, k = normed(made["q_norm"], layer._split(q, heads)), normed(made["k_norm"], layer._split(k, kv_heads))
    if not (q.dtype == k.dtype == v.dtype == store[0].dtype and type(q) is type(k) is type(v) is Tensor):
        return None
    done, out = prepared.steps.run(q, k, v, pos, store[3])
    if done == prepared.steps.REFUSED:
        return None
    cache.written()
    if done == prepared.steps.DONE:
        return out
    at = prepared.steps.at.clone()
    tokens = Tokens(cache.k, cache.v, cache.pos, None)
    q = q if layer.qk_norm else layer._split(q, layer.shape.heads)
    q, _ = layer.rotated(q, tokens.k[:, :, :0], at, tokens.pos[:, :0])
    isolated: Tensor = layer._attend(q, at, tokens, None, (), cache, crosses=False, given=True)
    return isolated


def _fits(layer: Any, x: Tensor, pos: Any, k: Tensor) -> bool:
    """Whether the call is a plain one: of a token for each sequence in the cache, on the CPU, and without hooks."""
    if type(x) is not Tensor or x.shape != (k.shape[0], 1, layer.shape.dim) or not x.is_cpu:
        return False
    if pos is not None and not (
        type(pos) is Tensor and pos.dtype is torch.int64 and pos.is_cpu and pos.shape in ((1, 1), (k.shape[0], 1))
    ):
        return False
    core = layer._modules["core"]
    watched = core._forward_hooks or core._forward_pre_hooks or _has_any_global_hook()
    return not (watched or (layer.dropout and layer.training))


def _prepared(layer: Any, cache: KVCache, store: tuple[Tensor, Tensor, Tensor, int | Tensor]) -> _Prepared:
    """What was prepared for the cache, anew where something has changed since."""
    made = layer._modules  # to read an attribute that is a module takes as long as a small operator of torch
    core, position = made["core"], made["position"]
    options = (
        layer,
        position,
        type(core),
        core.backend,
        *store[:3],
        layer.mask,
        layer.scale,
        layer.softcap,
        layer.log_scale,
        layer.embed,
        layer.spread,
        layer.own_heads,
        layer.borrows,
    )
    found = _PREPARED.get(cache)
    if found is None or not found.serves(options):
        places = [(held, name) for held in (position._parameters, position._buffers) for name in held]
        places += [(layer._parameters, "sinks")] if layer.sinks is not None else []
        learned = [(held, name, x) for held, name in places if (x := held[name]) is not None]
        # a tensor of inference mode does not tell when it changes
        fixed = store[0].device.type == "cpu" and not any(x.is_inference() for _, _, x in learned)
        steps = _prepare(layer, *store[:3], int(store[3])) if fixed and _is_plain(layer) else None
        versions = () if steps is None else tuple((*place, place[2]._version) for place in learned)
        found = _PREPARED[cache] = _Prepared(steps, options, versions)
    return found


def _is_plain(layer: Attending) -> bool:
    """Whether the layer does what :class:`headway.Attention` does, with a steady method."""
    position = layer.position
    if layer.spread is not None or layer.own_heads is not None or layer.borrows or layer.log_scale is not None:
        return False
    if type(layer.core) is not Core or layer.core.backend not in ("auto", "native"):
        return False
    if not (layer.steps and says(type(layer), "steps", _SAME)):
        return False
    return is_steady(position) and not position._modules and not (layer.embed and position.embeds)


def _prepare(layer: Attending, k: Tensor, v: Tensor, pos: Tensor, used: int) -> Step | None:
    """Steps over a cache, until it needs more memory."""
    from headway.backends.native import step as native

    k, v, position = k.transpose(1, 2), v.transpose(1, 2), layer.position
    batch, _, room, dim = k.shape
    turned, at = k.new_empty(batch, layer.shape.heads, 1, dim), pos.new_zeros(batch, 1)
    # tables reach as far as the last token that there is room for
    last = int(pos.amax()) + room - used
    _, _, terms = position.prepare(
        *(turned, k[:, :, :used], pos.new_full((1, 1), last), pos[:, :used], layer.scale),
        sees_future=reach(layer.mask)[1] > 0,
        absolute=layer.sinks is not None,
    )
    rest = (layer.scale, position.normalise, layer.softcap, layer.sinks)
    call = check(turned, k, v, layer.mask, terms, at, pos, *rest, looked_at=True)
    given = native.given_for_steps(call)
    return None if given is None else native.Step(given, position.turning(dim, k.device), last if terms else FAR - 1)
