"""A position method where an attention of a transformers model comes by, in place of the model's own."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from headway.hf.calls import cache_in
from headway.hf.recording import zero_angles
from headway.hf.watching import watched
from headway.inspect.record import Layer
from headway.latent import check_values
from headway.masks import Causal, Dense, Documents, parts, reach
from headway.positions import Position
from headway.shapes import HeadwayError


class Placed:
    """A position method at an attention of a model.

    Args:
        name: of the attention.
        position: the method.
        layer: a recorded pass of the attention.
    """

    def __init__(self, name: str, position: Position, layer: Layer) -> None:
        self.name, self.position, self.first = name, position, layer.attention.content_dim
        if self.first:
            check_values(position, f" for {name}")
        self.order: Tensor | None = getattr(layer.attention, "order", None)
        self.root, self.scale = _divided(layer.attention.__dict__["module"], layer.attention.shape.head_dim)
        self.marks: WeakKeyDictionary[Any, tuple[Tensor, Tensor, Tensor]] = WeakKeyDictionary()
        self.x: Tensor | None = None
        self.cache: Any = None
        self.off = False
        self.plain: tuple[Tensor, Tensor] | None = None
        self.packed = False
        """Whether positions start anew in each document, which the mask must then keep apart."""
        self.drawn: Tensor | None = None
        """Positions drawn for all layers of this call."""

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has: not what calls leave behind."""
        return vars(self) | {"marks": None, "x": None, "cache": None, "plain": None, "drawn": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"marks": WeakKeyDictionary()})

    def enter(self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """What the attention is called with, its angles zero."""
        if given.get("output_attentions"):
            raise HeadwayError(
                "expected no output_attentions, because the position method was swapped, got a call that asks for "
                "them: headway.inspect.record(model) has them"
            )
        self.x = args[0] if args else given["hidden_states"]
        self.cache = cache_in(given)
        if given.get("position_embeddings") is None:
            return None
        angles = zero_angles(type(module), given["position_embeddings"])
        return args, {**given, "position_embeddings": angles}

    def __call__(self, q: Tensor, k: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Queries, keys and arguments of attention with this method; keys include those of a cache."""
        if self.root != 1:
            q, given = q * self.root, given | {"scale": self.scale}
        if self.order is not None:
            q, k = q[..., self.order], k[..., self.order]
        self.plain = (q.detach(), k.detach()) if watched() else None
        if self.off:
            return q, k, given
        queries, keys, position = q.shape[2], k.shape[2], self.position
        q_pos, k_pos = given.get("q_pos"), given.get("k_pos")
        if k_pos is None:
            k_pos = torch.arange(keys, device=k.device)[None]
        if q_pos is None:
            q_pos = torch.arange(keys - queries, keys, device=q.device)[None]
        if self.cache is not None:  # a static one has room for later tokens
            k_pos = k_pos.masked_fill(k_pos > q_pos.amax(), -1)
        q_pos, k_pos = self._positions(q_pos, k_pos, given)
        marks = self._marked(k_pos[:, keys - queries :], k, queries)
        scale = given.get("scale")
        scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
        own = k[:, :1, :, self.first :] if self.first else k  # all heads of latent attention share a decoupled key
        turned_q, turned_k = position.rotate(q[..., self.first :], own, q_pos, k_pos)
        real = k_pos >= 0
        turned_q, turned_k, terms = position.prepare(
            turned_q,
            turned_k,
            q_pos,
            k_pos,
            scale,
            marks,
            sees_future=reach(given.get("mask"))[1] > 0,
            absolute=given.get("sinks") is not None or position.normalise != "softmax",
            order=real.cumsum(1) if position.neighbours and not bool(real.all()) else None,
        )
        if self.first:
            turned_q = torch.cat((q[..., : self.first], turned_q), -1)
            turned_k = torch.cat((k[..., : self.first], turned_k.expand(-1, k.shape[1], -1, -1)), -1)
        given |= {"terms": (*terms, *given.get("terms", ())), "normalise": position.normalise}
        return turned_q, turned_k, given | {"q_pos": q_pos, "k_pos": k_pos, "scale": scale}

    def turn_values(self, v: Tensor, pos: Tensor | None, *, back: bool = False) -> Tensor:
        """Values or outputs, as this method turns them; positions are those that :meth:`__call__` gave."""
        return v if self.off or pos is None else self.position.turn_values(v, pos, back=back)

    def _positions(self, q_pos: Tensor, k_pos: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Positions counted from the first token, or from the first of each packed document, or drawn ones; masks,
        which go by distance, see the same.
        """
        mask = given.get("mask")
        documents = next((part for part in parts(mask) if isinstance(part, Documents) and part.key_ids is None), None)
        if self.packed and documents is None:
            raise HeadwayError(
                "expected packed documents that the mask keeps apart, got position_ids that start anew and a mask that "
                "does not: pass use_cache=False, by which transformers knows them"
            )
        if self.drawn is not None:
            if mask is not None and not all(isinstance(part, Causal | Documents) for part in parts(mask)):
                given["mask"] = Dense(mask.tile(q_pos, k_pos))  # windows are of tokens
            return self.drawn, self.drawn
        q_pos, k_pos = _from_the_first(q_pos, k_pos)
        if documents is not None and q_pos.shape[1] == k_pos.shape[1]:
            number = torch.arange(q_pos.shape[1], device=q_pos.device)
            begins = torch.nn.functional.pad(torch.as_tensor(documents.ids).diff(dim=1) != 0, (1, 0))
            q_pos = k_pos = number - torch.where(begins, number, 0).cummax(1).values
        return q_pos, k_pos

    def _marked(self, pos: Tensor, k: Tensor, queries: int) -> Tensor | None:
        """The data of every key, of those in a cache too, which may have dropped the oldest; ``pos`` is of new ones."""
        assert self.x is not None
        x, self.x = self.x, None  # not kept, nor what it was computed from
        new = self.position.mark(x.masked_fill((pos < 0)[..., None], 0.0))
        if new is None:
            return None
        pos, held = pos.expand(len(new), -1), k.shape[2] - queries
        if held:
            old, old_pos, first = self.marks.get(self.cache, (None, None, None))
            if old is None or old_pos is None or first is None or not _alike(first, k[:, :, :held, self.first]):
                raise HeadwayError(
                    f"expected the cache as the model left it, because {self.position.method_name()} keeps something "
                    f"of every token besides, got one that was changed (reordered, cut, static or made elsewhere): "
                    f"generate without a cache, or without beams"
                )
            new, pos = torch.cat((old, new), 1), torch.cat((old_pos, pos), 1)
        if self.cache is not None:
            self.marks[self.cache] = new.detach(), pos, k.detach()[..., self.first].clone()
        return self.position.carry(new, pos, None)[:, -k.shape[2] :]


def _divided(module: Any, head_dim: int) -> tuple[float, float]:
    """What queries were divided by before they come by, in float32 as DeBERTa does, and the scale without its terms."""
    if type(module).__name__ != "DisentangledSelfAttention":
        return 1.0, 1.0
    kinds = module.pos_att_type if module.relative_attention else ()
    parts = 1 + sum(kind in kinds for kind in ("c2p", "p2c"))
    root = float(torch.tensor(head_dim * parts, dtype=torch.float32).sqrt())
    return root, parts**0.5 / root


def _alike(stored: Tensor, now: Tensor) -> bool:
    """Whether the keys of a cache are the newest of those that were there, by one entry of each."""
    return torch.equal(stored[:, :, stored.shape[2] - now.shape[2] :], now)


def _from_the_first(q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
    """Positions counted from the first token that is no padding; masks, which go by distance, see the same."""
    real = k_pos >= 0
    if bool(real.all()):
        return q_pos, k_pos
    first = real.long().argmax(1, keepdim=True)
    return (q_pos - first).clamp(min=-1), (k_pos - first).clamp(min=-1)
