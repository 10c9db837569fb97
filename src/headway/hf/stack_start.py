"""What happens to tokens before the layers of a stack whose position method was swapped.

The model's own position vectors are left out, and where tokens are is found once for all layers: counted without
padding, as ``position_ids`` say it, or drawn anew in training. A method that adds vectors adds them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headway.hf.calls import cache_in, named
from headway.hf.embedded import Embedded, nothing
from headway.hf.placed import Placed
from headway.positions import Position
from headway.shapes import HeadwayError


class Start:
    """Hooks on a stack of layers.

    Args:
        methods: those of its layers.
        layers: those of them that are in place of the model's own.

    Raises:
        HeadwayError: when some layers have a method that acts on what all layers share.
    """

    def __init__(self, methods: Sequence[Position], layers: Sequence[Placed]) -> None:
        self.layers = list(layers)
        shared = [method for method in methods if method.embeds or _draws(method)]
        if shared and len({method.spec() for method in methods}) > 1:
            what = "embedding" if shared[0].embeds else "positions"
            raise HeadwayError(
                f"expected one method for all layers of a stack, because {shared[0].spec()} acts on the {what} that "
                f"they share, got several"
            )
        self.shared = shared[0] if shared else None
        self.pos: Tensor | None = None

    def register(self, part: PreTrainedModel, stack: ExitStack) -> None:
        """Put the hooks in place, until the stack is closed."""
        handles: list[Any] = []
        if self.shared is not None and self.shared.embeds:
            embedding: nn.Module = part.get_input_embeddings()
            if not isinstance(embedding, nn.Embedding):
                raise HeadwayError(
                    f"expected layers of tokens, because {self.shared.method_name()} acts on their embedding, got "
                    f"{type(part).__name__}, which embeds something else"
                )
            handles.append(embedding.register_forward_hook(self.embed))
            handles.append(part.register_forward_hook(self.leave, always_call=True))
        handles.append(part.register_forward_pre_hook(self.enter, with_kwargs=True, prepend=True))
        for handle in handles:
            stack.callback(handle.remove)

    def enter(self, module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """Before the stack runs."""
        asked = named(module, args, given)
        ids, x = asked.get("input_ids"), asked.get("inputs_embeds")
        tokens = ids if x is None else x
        if not isinstance(tokens, Tensor):
            return None
        past = cache_in(asked)
        pos = self._read(_counted(tokens, asked.get("attention_mask"), past), asked, past)
        pos = self._drawn(pos, module, past)
        if self.shared is None or not self.shared.embeds:
            return None
        if x is None:
            self.pos = pos
            return None
        return (), {**asked, "inputs_embeds": self.shared.embed(x, pos)}

    def embed(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        """After tokens were embedded."""
        if self.pos is None or self.shared is None:
            return None
        pos, self.pos = self.pos, None
        return self.shared.embed(out, pos)

    def leave(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """After the stack has run, or failed to."""
        self.pos = None

    def _read(self, pos: Tensor, asked: dict[str, Any], past: Any) -> Tensor:
        """Positions as ``position_ids`` say them, where they are given."""
        given = asked.get("position_ids")
        for layer in self.layers:
            layer.packed = False
        if not isinstance(given, Tensor) or given.shape[-1] != pos.shape[-1] or given.ndim != 2:
            if isinstance(given, Tensor):
                raise HeadwayError(
                    f"expected position_ids of shape (batch, {pos.shape[-1]}), because the position method was "
                    f"swapped, got {tuple(given.shape)}"
                )
            return pos
        given = torch.where(pos < 0, pos, given)
        inside = [layer for layer in self.layers if not layer.position.embeds and layer.position.spec() != "none"]
        if not inside or bool((given == pos).all()):
            return given
        restarts = (given.diff(dim=1) == 1) | (given[:, 1:] == 0)
        if past is not None or asked.get("attention_mask") is not None or not bool(restarts.all()):
            raise HeadwayError(
                f"expected position_ids that count the tokens from 0, or from 0 in each packed document, because "
                f"{inside[0].position.method_name()} was put in place of the model's own method, got others: leave "
                f"them out"
            )
        for layer in inside:
            layer.packed = True
        return given

    def _drawn(self, pos: Tensor, module: Any, past: Any) -> Tensor:
        """Positions drawn anew, for a method that does so in training."""
        for layer in self.layers:
            layer.drawn = None
        if self.shared is None or not _draws(self.shared) or past is not None or not self.shared.training:
            return pos
        if module.is_activation_checkpointing:
            raise HeadwayError(
                f"expected no gradient checkpointing, because {self.shared.method_name()} draws positions that a layer "
                f"run again would not find, got some: activation_checkpointing_disable()"
            )
        pos = self.shared.renumber(pos)
        for layer in self.layers:
            layer.drawn = pos
        return pos


def _draws(method: Position) -> bool:
    return type(method).renumber is not Position.renumber


def _counted(x: Tensor, mask: Any, past: Any) -> Tensor:
    """The positions of tokens, counted without padding; −1 is padding."""
    if isinstance(mask, Tensor) and mask.ndim == 2:
        real = mask.bool()
        pos = (real.long().cumsum(1) - 1).masked_fill(~real, -1)
        return pos[:, -x.shape[1] :]
    held = 0 if past is None else int(past.get_seq_length())
    return torch.arange(held, held + x.shape[1], device=x.device)[None]


def leave_out_vectors(model: PreTrainedModel, stack: ExitStack) -> None:
    """The model's own position vectors become zero, and no longer limit the number of tokens."""
    for root in Embedded(model).roots:
        for owner, part in root.owners:
            own: Any = getattr(owner, part)
            if isinstance(own, nn.Parameter):
                raise HeadwayError(f"expected position vectors that a module makes, got the parameter {part}")
            stack.callback(own.register_forward_hook(nothing).remove)
            if isinstance(own, nn.Embedding):
                stack.callback(setattr, own, "__class__", type(own))
                own.__class__ = _rowless(type(own))  # type: ignore[arg-type]
            if isinstance(getattr(owner, "position_ids", None), Tensor):
                stack.callback(owner.register_forward_pre_hook(_at_the_start, with_kwargs=True).remove)


def _at_the_start(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """A hook before an embedding that has an index for each row of its table, and so no more tokens than rows."""
    asked = named(module, args, given)
    x = asked.get("input_ids") if asked.get("input_ids") is not None else asked.get("inputs_embeds")
    if not isinstance(x, Tensor):
        return None
    return (), {**asked, "position_ids": torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)}


class _Rowless(nn.Embedding):
    """A table that no row is looked up in."""

    def forward(self, input: Tensor) -> Tensor:
        """Zeros."""
        return self.weight.new_zeros(*input.shape, self.embedding_dim)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _remake, (type(self).__mro__[1],), self.__dict__


@cache
def _rowless(kind: type) -> type:
    """A class of tables whose own code finds zeros where it looks up its rows."""
    bases = (_Rowless,) if kind is nn.Embedding else (kind, _Rowless)
    return type(kind.__name__, bases, {"__module__": kind.__module__, "__reduce_ex__": _Rowless.__reduce_ex__})


def _remake(kind: type) -> nn.Module:
    found = nn.Embedding if kind is _Rowless else kind
    made: nn.Module = object.__new__(_rowless(found))
    return made
